"""The enrolled people: photos in one folder per person, and their embeddings, saved.

FOLDER/PERSON/photo.jpg       the photos, all that a user has to care for; deeper folders belong to PERSON, too
SAVED/gallery.json            the photos by name, with box and landmarks of the face that was found in each
SAVED/embeddings-DIGEST.npy   float32 (N, D), row i for face i; gallery.json says which of them counts
SAVED/gallery.lock            held by the process that may write the other two
"""

import difflib
import hashlib
import io
import json
import math
import os
import re
import shutil
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from facekit.files import InputError, free_name, printable, read_json, write_json, written_whole
from facekit.images import MAX_PIXELS, SUFFIXES, find_photos, leave_folder_out, open_photo, refuse_folder

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    fcntl = None

BUILD_AGAIN = "build it again with `people --rebuild`, and --samples and --gallery as now."
SAVE_EVERY = 10  # seconds; the work that a killed build loses at most
# What _save writes, and killed processes leave.
OWN_FILE = re.compile(r"\.?embeddings-[0-9a-f]{29,64}(\.\d+)?\.npy|\.gallery\.\d+\.json")

# Control characters, halves of characters, line ends, and what Windows forbids or keeps for devices.
NOT_IN_NAMES = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]')
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Face:
    """What a photo is turned into. Box and landmarks are in pixels of the upright photo."""

    embedding: np.ndarray  # (D,)
    box: Sequence[float]  # x0, y0, x1, y1
    landmarks: np.ndarray  # (5, 2)
    note: str = ""  # "several faces, the largest was taken"


# Photos -> for each of them its face, or a sentence that names the photo and says why there is none; as an InputError
# if that should not be remembered, but the photo tried again next time.
EmbedFaces = Callable[[list[Path]], Sequence[Face | str | InputError]]


@dataclass(frozen=True)
class GalleryPhoto:
    """A photo as gallery.json remembers it; box and landmarks as in Face, None when there is an error."""

    file: str  # PERSON/photo.jpg
    size: int  # bytes
    mtime_ns: int
    sha256: str
    box: list[float] | None = None
    landmarks: list[list[float]] | None = None
    note: str = ""
    error: str = ""

    @property
    def person(self) -> str:
        """The name of the person's folder, in Unicode NFC."""
        return _normal(self.file.split("/")[0])


Entry = tuple[GalleryPhoto, np.ndarray | None]  # a photo and the embedding of its face, None if there is none


@dataclass(frozen=True)
class Gallery:
    """The enrolled faces, sorted by file. Row i of `embeddings`, float32 (N, D), belongs to faces[i]."""

    embeddings: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    faces: list[GalleryPhoto] = field(default_factory=list)
    rejected: list[GalleryPhoto] = field(default_factory=list)  # the photos with an error
    made_with: Any = None  # models and settings

    def people(self) -> Counter[str]:
        """Person -> number of faces."""
        return Counter(face.person for face in self.faces)

    @cached_property
    def person_means(self) -> np.ndarray:
        """Row i is what `person_means` gives for faces[i], float32 (N, D)."""
        return person_means(self.embeddings, [face.person for face in self.faces])


def person_means(embeddings: np.ndarray, people: Sequence) -> np.ndarray:
    """For each of the embeddings (N, D) of `people` (N,) the mean of those of its person, float32 (N, D).

    As long as they are on average: the mean of vectors of length 1 has length 1 again.
    """
    _, number = np.unique(np.asarray(people), return_inverse=True)  # of each row's person
    photos = np.bincount(number)
    means = np.zeros((len(photos), embeddings.shape[1]))
    np.add.at(means, number, embeddings)
    lengths = np.bincount(number, np.linalg.norm(embeddings, axis=1)) / photos
    means *= (lengths / np.maximum(np.linalg.norm(means, axis=1), 1e-12))[:, None]
    return means[number].astype(np.float32)


# --------------------------------------------------------------------------------------------- saving, reading


def load_gallery(saved: str | Path) -> Gallery:
    """Reads what update_gallery has saved; no lock is needed. InputError when it is missing or damaged."""
    saved, missing = Path(saved), None
    if not (saved / "gallery.json").exists():
        raise InputError(f"{saved / 'gallery.json'} is missing: build the gallery first.")
    while True:
        try:
            return _read(saved)
        except FileNotFoundError as error:  # an update may have replaced both files between our two looks
            if error.filename == missing:
                raise InputError(f"{missing} is missing: {BUILD_AGAIN}") from None
            missing = error.filename
        except (InputError, OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"The gallery saved in {saved} is damaged ({error}): {BUILD_AGAIN}") from None


def _read(saved: Path) -> Gallery:
    index = read_json(saved / "gallery.json")
    content = (saved / f"embeddings-{index['embeddings']}.npy").read_bytes()
    if _digest(content) != index["embeddings"]:
        raise ValueError("the embeddings are not those that were saved")
    embeddings = np.load(io.BytesIO(content), allow_pickle=False)
    faces, rejected = ([GalleryPhoto(**photo) for photo in index[key]] for key in ("faces", "rejected"))
    if embeddings.dtype != np.float32 or embeddings.ndim != 2 or not np.isfinite(embeddings).all():
        raise ValueError("the embeddings are not rows of finite float32 numbers")
    if len(embeddings) != len(faces):
        raise ValueError(f"it has {len(embeddings)} embeddings, but {len(faces)} faces")
    for face in faces:
        if np.shape(face.box) != (4,) or np.shape(face.landmarks) != (5, 2):
            raise ValueError(f"{face.file} has no box or no landmarks")
    return Gallery(embeddings, faces, rejected, index["made_with"])


def _save(gallery: Gallery, saved: Path) -> None:
    """First the array under a new name, then the index that names it, then old arrays go: valid at any moment."""
    buffer = io.BytesIO()
    np.save(buffer, gallery.embeddings)
    digest = _digest(buffer.getvalue())
    array = saved / f"embeddings-{digest}.npy"
    try:
        with written_whole(array) as temporary:
            temporary.write_bytes(buffer.getvalue())
        write_json(saved / "gallery.json", {
            "made_with": gallery.made_with, "embeddings": digest,
            "faces": [vars(photo) for photo in gallery.faces],
            "rejected": [vars(photo) for photo in gallery.rejected]})
    except OSError as error:
        raise InputError(f"The gallery cannot be saved in {saved} ({error}): make room there.") from None
    for old in saved.iterdir():
        if old != array and OWN_FILE.fullmatch(old.name):
            with suppress(PermissionError):  # on Windows, while somebody reads it; the next save removes it
                old.unlink()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def _locked(saved: Path, wait_s: float, say: Callable[[str], None]) -> Iterator[None]:
    """One process at a time. When a process is killed, the operating system opens its lock."""
    try:
        saved.mkdir(parents=True, exist_ok=True)
        file = open(saved / "gallery.lock", "ab")  # noqa: SIM115  closed below
    except OSError as error:
        raise InputError(f"The gallery cannot be saved in {saved} ({error}): choose another folder.") from None
    with file:
        deadline = time.monotonic() + wait_s
        if not _try_lock(file):
            say(f"Another process is working on {saved}: waiting for it.")
            while not _try_lock(file):
                if time.monotonic() > deadline:
                    raise InputError(f"Another process has been working on {saved} for more than {wait_s:g} s: "
                                     "try again when it is done.")
                time.sleep(0.05)
        try:
            yield
        finally:
            if fcntl:  # closing is not enough while a process that was forked meanwhile holds a copy
                fcntl.flock(file, fcntl.LOCK_UN)
            else:
                msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)


def _try_lock(file: BinaryIO) -> bool:
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        return True
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        raise InputError(f"{file.name} cannot be locked ({error}): choose a folder on another disk.") from None


# --------------------------------------------------------------------------------------- photos into embeddings


def _say(sentence: str) -> None:
    tqdm.write(sentence, file=sys.stderr)


def update_gallery(folder: str | Path, saved: str | Path, embed_faces: EmbedFaces, made_with: Any, *,
                   rebuild: bool = False, block: int = 32, wait_s: float = math.inf,
                   say: Callable[[str], None] = _say) -> Gallery:
    """Brings what is saved up to date with the photos FOLDER/PERSON/photo.jpg, and returns it.

    embed_faces  is called with at most `block` photos at once, and only with those whose content is new. A
                 photo that was renamed or moved is known by its content.
    made_with    any JSON value that says which models and settings embed_faces uses: all photos are worked on
                 again when it differs, and also with `rebuild`, which ignores what is saved.
    say          gets a sentence for every photo without a face and every note, once, when the photo is worked
                 on, and for what lies in the wrong place, each time.

    Stopped by Ctrl-C or killed, it goes on where it was when it is called again. While another process works
    on the same `saved`, it waits, up to wait_s seconds. What is saved in a place that cannot be written is taken as it
    is.
    InputError when `folder` is not a folder, when the folder of somebody known cannot be read, or when what is saved is
    damaged or cannot be written.
    """
    folder, saved = Path(folder), Path(saved)
    made_with = json.loads(json.dumps(made_with))  # as it will be read
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give one with photos in it.")
    if not rebuild and is_read_only(saved):
        gallery = load_gallery(saved)
        if gallery.made_with == made_with:
            say(f"{saved} cannot be written, so it is taken as it is, whatever has changed in {folder}.")
            return gallery
    with _locked(saved, wait_s, say):
        before = Gallery() if rebuild or not (saved / "gallery.json").exists() else load_gallery(saved)
        if before.made_with != made_with:
            before = Gallery()
        known = _entries(before)
        found = _find(folder, known, say)
        by_content = {photo.sha256: (photo, embedding) for photo, embedding in known.values()}
        entries = {file: known[file] for file in found if file in known}  # a changed photo stays until its turn
        waiting = [file for file in found
                   if file not in known or (known[file][0].size, known[file][0].mtime_ns) != found[file]]
        progress = tqdm(total=len(waiting), desc="gallery", unit=" photos", disable=None if waiting else True)
        saved_at, changed, finished = time.monotonic(), False, False
        try:
            for start in range(0, len(waiting), block):
                photos = {file: found[file] for file in waiting[start:start + block]}
                fresh = _work_on(folder, photos, by_content, embed_faces, say)
                entries = {file: entry for file, entry in entries.items() if file not in photos} | fresh
                changed |= bool(fresh)
                progress.update(len(photos))
                if time.monotonic() - saved_at > SAVE_EVERY:
                    _save(_gallery(entries, found, made_with), saved)
                    saved_at = time.monotonic()
            finished = True
        finally:
            progress.close()
            gallery = _gallery(entries, found, made_with)
            if changed or finished and (entries.keys() != known.keys() or made_with != before.made_with):
                _save(gallery, saved)
        return gallery


def is_read_only(saved: Path) -> bool:
    """Whether a gallery is saved there that cannot be changed."""
    return (saved / "gallery.json").exists() and not os.access(saved, os.W_OK)


def _entries(gallery: Gallery) -> dict[str, Entry]:
    faces = {face.file: (face, embedding) for face, embedding in zip(gallery.faces, gallery.embeddings)}
    return faces | {photo.file: (photo, None) for photo in gallery.rejected}


def _gallery(entries: dict[str, Entry], order: Iterable[str], made_with: Any) -> Gallery:
    in_order = [entries[file] for file in order if file in entries]
    faces = [entry for entry in in_order if entry[1] is not None]
    rejected = [photo for photo, embedding in in_order if embedding is None]
    if not faces:
        return Gallery(rejected=rejected, made_with=made_with)
    photos, embeddings = zip(*faces)
    return Gallery(np.stack(embeddings), list(photos), rejected, made_with)


def _is_text(name: str) -> bool:
    """Whether it can be printed and stored: without control characters, and no bytes that are no text."""
    return name == printable(name) and not CONTROL.search(name)


def _find(folder: Path, known: Iterable[str], say: Callable[[str], None]) -> dict[str, tuple[int, int]]:
    """PERSON/photo.jpg -> (size, mtime_ns). Says what lies in the wrong place.

    InputError when a folder cannot be read that has photos in it which are known: they would be forgotten.
    """

    def unreadable(error: OSError) -> None:
        enrolled = any(Path(error.filename) in (folder / file).parents for file in known)
        (refuse_folder if enrolled else leave_folder_out)(error)

    found, astray, people = {}, [], set()
    for path in find_photos(folder, unreadable):
        file = path.relative_to(folder).as_posix()
        if "/" not in file:
            astray.append(path.name)
        elif not _is_text(file):
            people.add(file.split("/")[0])
            say(f"{shown(path)} is left out: there are control characters in its name, or bytes that are no text; "
                "rename it.")
        else:
            try:
                status = path.stat()
                found[file] = status.st_size, status.st_mtime_ns
            except OSError as error:
                say(f"{path} is left out: it cannot be read ({error.strerror}).")
    if astray:
        say(f"{len(astray)} photos are left out, because they lie directly in {folder} "
            f"({shown(', '.join(astray[:3]))}): put each into a folder with the name of its person.")
    people |= {file.split("/")[0] for file in found}
    for person in _person_folders(folder):
        if person.name not in people:
            say(f"{shown(person)} holds no photo: put one there, or remove the folder.")
    return found


def shown(name: object) -> str:
    """A name as a terminal can show it: control characters, and bytes that are no text, as their numbers."""
    return CONTROL.sub(lambda control: f"\\x{ord(control[0]):02x}", printable(name))


def _work_on(folder: Path, photos: dict[str, tuple[int, int]], by_content: dict[str, Entry],
             embed_faces: EmbedFaces, say: Callable[[str], None]) -> dict[str, Entry]:
    """The entries of `photos`, file -> (size, mtime_ns): known by content, or else made by embed_faces."""
    entries, new = {}, []
    for file, (size, mtime_ns) in photos.items():
        try:
            sha256 = _digest((folder / file).read_bytes())
        except OSError as error:  # not remembered: whatever makes it readable may change neither size nor time
            say(f"{folder / file} is left out: it cannot be read ({error.strerror}).")
            continue
        old, embedding = by_content.get(sha256, (None, None))
        if old and (old.file == file or not old.error):  # an error names the file, it does not fit another one
            entries[file] = replace(old, file=file, size=size, mtime_ns=mtime_ns), embedding
        else:
            new.append(GalleryPhoto(file, size, mtime_ns, sha256))
    results = embed_faces([folder / photo.file for photo in new]) if new else []
    for photo, result in zip(new, results, strict=True):
        if isinstance(result, InputError):  # not remembered: a package or a higher limit may mend it
            say(str(result))
        elif isinstance(result, str):
            entries[photo.file] = replace(photo, error=result), None
            say(result)
        else:
            entries[photo.file] = _with_face(photo, result)
            if result.note:
                say(f"{folder / photo.file}: {result.note}.")
    return entries


def _with_face(photo: GalleryPhoto, face: Face) -> Entry:
    embedding = np.asarray(face.embedding, np.float32)
    box, landmarks = np.asarray(face.box, np.float64), np.asarray(face.landmarks, np.float64)
    if not all(np.isfinite(numbers).all() for numbers in (embedding, box, landmarks)):
        raise InputError(f"The models give numbers that are not finite for {photo.file}: "
                         "their weights are damaged, get them again.")
    return replace(photo, box=box.round(2).tolist(), landmarks=landmarks.round(2).tolist(), note=face.note), embedding


# ------------------------------------------------------------------------------------------------------- people


def enroll(folder: str | Path, name: str, photos: Sequence[str | Path],
           max_pixels: int = MAX_PIXELS) -> list[Path]:
    """Copies photos into FOLDER/NAME/ and returns the copies; the next update makes their embeddings.

    Nothing is overwritten: a copy takes a free name. A photo that is there already is not copied again.
    InputError, and nothing is copied, when `name` cannot name a folder on every system or a photo does not open.
    """
    folder, photos = Path(folder), [Path(photo) for photo in photos]
    person = person_folder(folder, name)
    for photo in photos:
        open_photo(photo, max_pixels)
        if photo.suffix.lower() not in SUFFIXES or photo.name.startswith(".") or not _is_text(photo.name):
            raise InputError(f"{shown(photo)} is not named like a photo: rename it to something like photo.jpg.")
    try:
        person.mkdir(parents=True, exist_ok=True)
        contents = {_digest(there.read_bytes()) for there in find_photos(person)}
        copies = []
        for photo in photos:
            content = photo.read_bytes()
            if _digest(content) not in contents:
                contents.add(_digest(content))
                copies.append(free_name(person / photo.name))
                with written_whole(copies[-1]) as temporary:
                    temporary.write_bytes(content)
    except OSError as error:
        raise InputError(f"The photos cannot be copied into {person} ({error}).") from None
    return copies


def forget(folder: str | Path, name: str) -> None:
    """Deletes FOLDER/NAME and everything in it; the next update removes the embeddings.

    Also another folder of that name that writes letters with accents in another form. InputError when there is nobody
    of that name, or when a folder is a link to another one.
    """
    folder = Path(folder)
    there = _person_folders(folder)
    named = [person for person in there if _normal(person.name) == _normal(name)]
    if not named:
        by_lower_case = {_normal(person.name).casefold(): _normal(person.name) for person in there}
        alike = [by_lower_case[there] for there in difflib.get_close_matches(_normal(name).casefold(), by_lower_case)]
        hint = f"did you mean {' or '.join(alike)}?" if alike else "look there for the names."
        raise InputError(printable(f"Nobody in {folder} is called {name!r}: {hint}"))
    for person in named:
        if person.resolve() != folder.resolve() / person.name:
            raise InputError(f"{person} is a link to {person.resolve()}: remove it by hand.")
    for person in named:
        try:
            shutil.rmtree(person)
        except OSError as error:
            raise InputError(f"{person} cannot be deleted completely ({error}): delete it by hand.") from None


def person_folder(folder: Path, name: str) -> Path:
    """FOLDER/NAME, as it is there (some systems write letters with accents in another form, or take capitals for
    small ones) or for a new folder. InputError when `name` cannot name a folder on every system."""
    name = _normal(name).strip()
    if (not name or NOT_IN_NAMES.search(name) or DEVICE.fullmatch(name) or name[0] == "." or name[-1] == "."
            or len(name.encode()) > 200):
        raise InputError(f"{printable(name)!r} cannot name a folder on every system: give a name that is neither "
                         'empty nor very long, without control characters and <>:"/\\|?*, '
                         "without a dot at its ends, and not one that Windows keeps for devices, like CON.")
    new = folder / name
    there = (person for person in _person_folders(folder)
             if _normal(person.name) == name or new.exists() and person.samefile(new))  # fmt: skip
    return next(there, new)


def _person_folders(folder: Path) -> list[Path]:
    """The visible folders directly in `folder`, sorted; none when it is not there."""
    inside = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in inside if path.is_dir() and not path.name.startswith("."))


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)
