"""Where the photos of the data sets lie, who is trained on and who tested, photos packed into one array."""

import csv
import hashlib
import importlib
import json
import math
import os
import re
import shutil
import sys
import unicodedata
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from facekit.files import InputError, printable, read_json, write_csv, write_json
from facekit.images import MAX_PIXELS, contact_sheet, face_pixels, find_photos
from facekit.parallel import in_parallel

SPLITS = ("train", "validation", "test")
CHUNK = 64  # photos that a process decodes in one go; what a stopped run loses at most, per process
SHEET_FACES = 96  # faces on the contact sheet of a data set


@dataclass(frozen=True)
class KnownSet:
    folder: str  # below dataset/
    layout: str  # "folders": PERSON/photo.jpg, "flat": PERSON_12.jpg
    crop_fraction: float  # what the centre crop keeps of width and height, so that the face fills the picture
    kaggle: str  # owner/name of its Kaggle page
    holds: str
    leave_out: str = ""  # a folder inside that is not part of the set


KNOWN = {
    "lfw": KnownSet("lfwpeople", "folders", 0.5, "atulanandjha/lfwpeople", "13,233 photos of 5,749 people"),
    "faces": KnownSet("face-recognition-dataset", "flat", 1.0, "vasukipatel/face-recognition-dataset",
                      "2,562 photos of 31 people", leave_out="Original Images"),
    "pins": KnownSet("pins-face-recognition", "folders", 0.7, "hereisburak/pins-face-recognition",
                     "17,534 photos of 105 people"),
}


@dataclass(frozen=True)
class Photo:
    """A photo of one person: `person` is a person_name(), `source` names the data set."""

    path: Path
    person: str
    source: str
    crop_fraction: float


@dataclass(frozen=True)
class FaceSet:
    """What pack_faces has written; row i of everything belongs to the same face."""

    images: np.memmap  # (N, C, S, S) uint8, on disk
    people: np.ndarray  # (N,) int64, index into names
    names: list[str]  # sorted
    split: np.ndarray  # (N,) of "train", "validation", "test"
    sources: np.ndarray  # (N,) of str
    files: list[str]
    summary: dict

    def part(self, split: str) -> np.ndarray:
        """The rows of one split, ascending, int64."""
        if split not in SPLITS:
            raise ValueError(f"there is no split {split!r}, only {SPLITS}")
        return np.flatnonzero(self.split == split)


# ------------------------------------------------------------------------------------- which photos there are


def person_name(text: str) -> str:
    """One normal form, so that people of the same name in two data sets are one person.

    `pins_Tom Cruise`, `Tom_Cruise` and `tom  cruise` are `tom cruise`; any script (Unicode NFC, case folded).
    """
    text = unicodedata.normalize("NFC", printable(text)).casefold().removeprefix("pins_")
    name = " ".join(text.replace("_", " ").split())
    return unicodedata.normalize("NFC", name) or text


def find_known(root: str | Path = "dataset") -> list[Photo]:
    """All photos of the known data sets below `root`, a folder more or less inside each set does not matter.

    Sets that are not there are left out. InputError when a set's folder is there, but no photo in it.
    """
    return [photo for known in KNOWN.values() if Path(root, known.folder).is_dir()
            for photo in _photos_of(known, Path(root, known.folder))]


def _photos_of(known: KnownSet, folder: Path) -> list[Photo]:
    photos = []
    for path in find_photos(folder):
        inside = path.parts[len(folder.parts):]
        if known.layout == "flat" and known.leave_out not in inside:
            person = re.sub(r"[\s_-]*\d*$", "", path.stem)  # Name_12 -> Name
            photos.append(Photo(path, person_name(person), known.folder, known.crop_fraction))
        elif known.layout == "folders" and len(inside) > 1:
            photos.append(Photo(path, person_name(path.parent.name), known.folder, known.crop_fraction))
    if not photos:
        raise InputError(f"{folder} holds no photos: unpack the data set there (see dataset/README.md), "
                         "or remove the folder.")
    return photos


def folder_of_folders(root: str | Path, crop_fraction: float = 1.0) -> list[Photo]:
    """All photos root/PERSON/photo.jpg, also deeper inside the person's folder; others are left out.

    InputError when there are none.
    """
    root = Path(root)
    depth = len(root.parts)
    found = find_photos(root)
    paths = [path for path in found if len(path.parts) > depth + 1]
    if not paths:
        raise InputError(f"{root} holds no photos of people: put them into one folder per person, "
                         f"{root / 'PERSON' / 'photo.jpg'}.")
    if len(paths) < len(found):
        print(f"Note: {len(found) - len(paths)} photos lie directly in {root}, in no person's folder: left out.",
              file=sys.stderr)
    source = printable(root.resolve().name)
    return [Photo(path, person_name(path.parts[depth]), source, crop_fraction)
            for path in paths]


# -------------------------------------------------------------------------------------- who is in which split


def split_people(people: Mapping[str, int], seed: int = 0) -> dict[str, str]:
    """Gives every person (name -> number of photos) "train" (80 %), "validation" (10 %) or "test" (10 %).

    By rank of a hash of seed and name: the same on every machine and in every order. People with one photo
    are split apart from the others, so that every part gets its share of both. Three people with two or more
    photos are enough to have one in every part.
    """
    several = [person for person, photos in people.items() if photos >= 2]
    single = [person for person, photos in people.items() if photos < 2]
    return _split_group(several, seed, everywhere=True) | _split_group(single, seed)


def _split_group(people: Iterable[str], seed: int, everywhere: bool = False) -> dict[str, str]:
    ranked = sorted(people, key=lambda person: hashlib.sha256(f"{seed}/{person}".encode()).hexdigest())
    count = len(ranked)
    train, seen = round(count * 0.8), round(count * 0.9)
    if everywhere and count >= 3:
        train = min(max(train, 1), count - 2)
        seen = min(max(seen, train + 1), count - 1)
    return {person: "train" if rank < train else "validation" if rank < seen else "test"
            for rank, person in enumerate(ranked)}


def split_digest(trained: Iterable[str]) -> str:
    """Tells what is trained on; it goes with data and with weights, so that `evaluate` notices other test data."""
    return hashlib.sha256("\n".join(sorted(trained)).encode()).hexdigest()[:16]


# -------------------------------------------------------------------------------------- photos into one array
#
# FOLDER/.working/         images.raw and journal.jsonl: what is decoded so far, each face at its own place
# FOLDER/.working/result/  the files of the result while they are written
# FOLDER/.finished/        the same, complete; the next step moves them into FOLDER
# FOLDER/                  images.npy, index.csv, ...: the last complete result, untouched until then


def pack_faces(photos: Sequence[Photo], folder: str | Path, size: int = 80, color: bool = False,
               seed: int = 0, workers: int | None = None, max_pixels: int = MAX_PIXELS) -> dict:
    """Decodes photos with face_pixels and writes them into `folder`, split by person. Returns the summary.

    images.npy     uint8 (N, C, size, size), for np.load(..., mmap_mode="r")
    index.csv      row, person, source, file, split
    summary.json   what was found, with which settings; skipped.csv: photos left out, and why
    contact_sheet_SOURCE.png   some faces of each data set, as the model will see them

    Photos that cannot be opened are skipped, and so are exact copies; a picture that two people share is
    mislabelled and skipped for both. Faces are never all in memory. A stopped run leaves the last result as
    it was, and goes on where it stopped when it is started again with the same photos and settings.
    workers  processes; by default one per core. The result does not depend on it.
    InputError when no photo is left.
    """
    if not photos:
        raise InputError(f"There are no photos for {folder}: give a folder that has one folder per person.")
    folder = Path(folder)
    crop_fractions = _crop_fractions(photos)
    _publish(folder)
    working, result = folder / ".working", folder / ".working" / "result"
    face_shape = (3 if color else 1, size, size)

    outcomes = _decode(photos, working, face_shape, workers, max_pixels)
    skipped = _skipped(photos, outcomes)
    rows = [row for row in range(len(photos)) if row not in skipped]
    if not rows:
        raise InputError(f"None of the {len(photos)} photos can be used. The first: {skipped[0]}")

    shutil.rmtree(result, ignore_errors=True)
    result.mkdir()
    _copy_rows(working / "images.raw", rows, len(photos), face_shape, result / "images.npy")
    kept = [photos[row] for row in rows]
    split = split_people(Counter(photo.person for photo in kept), seed)
    summary = _summary(kept, split, crop_fractions) | {
        "size": size, "color": color, "seed": seed,
        "skipped": [{"file": str(photos[row].path), "why": why} for row, why in skipped.items()]}
    write_json(result / "summary.json", summary)
    write_csv(result / "skipped.csv", [("file", "why"), *(item.values() for item in summary["skipped"])])
    index = [(row, photo.person, photo.source, photo.path, split[photo.person]) for row, photo in enumerate(kept)]
    write_csv(result / "index.csv", [("row", "person", "source", "file", "split"), *index])
    _write_contact_sheets(result, kept, seed)

    for old in folder.glob("contact_sheet_*.png"):
        old.unlink()
    result.rename(folder / ".finished")
    _publish(folder)
    shutil.rmtree(working)
    return summary


def _publish(folder: Path) -> None:
    """Moves a complete result to its place. If that is stopped half-way, the next call goes on."""
    finished = folder / ".finished"
    if finished.is_dir():
        images_first_index_last = sorted(
            finished.iterdir(), key=lambda path: (path.name == "index.csv", path.name != "images.npy"))
        for path in images_first_index_last:
            os.replace(path, folder / path.name)
        finished.rmdir()


def _crop_fractions(photos: Iterable[Photo]) -> dict[str, float]:
    fractions = {}
    for photo in photos:
        if fractions.setdefault(photo.source, photo.crop_fraction) != photo.crop_fraction:
            raise InputError(f"Two folders called {photo.source} have different centre crops: rename one.")
    return fractions


def _decode(photos: Sequence[Photo], working: Path, face_shape: tuple[int, int, int], workers: int | None,
            max_pixels: int) -> list[tuple[str, str]]:
    """Decodes into images.raw what the journal lacks. Returns per photo (SHA-256, "") or ("", why not)."""
    job = _job_digest(photos, face_shape, max_pixels)
    done = _read_journal(working, job, face_shape)
    if not done:
        shutil.rmtree(working, ignore_errors=True)
        working.mkdir(parents=True)
        (working / "images.raw").touch()
    tasks = [(working / "images.raw", start, photos[start:start + CHUNK], face_shape, max_pixels)
             for start in range(0, len(photos), CHUNK) if start not in done]
    decoded = sum(len(outcomes) for outcomes in done.values())
    progress = tqdm(total=len(photos), initial=decoded, desc="decoding", unit=" photos", disable=None)
    with open(working / "journal.jsonl", "a", encoding="utf-8") as journal, progress:
        for start, checksum, outcomes in in_parallel(_decode_chunk, tasks, workers):
            journal.write("\n" + json.dumps([job, start, checksum, outcomes]))
            journal.flush()
            done[start] = outcomes
            progress.update(len(outcomes))
    return [tuple(outcome) for start in sorted(done) for outcome in done[start]]


def _job_digest(photos: Sequence[Photo], face_shape: tuple[int, int, int], max_pixels: int) -> str:
    """Changes with everything that decides about the decoded pixels, so with every edited photo, too."""
    digest = hashlib.sha256(repr((CHUNK, face_shape, max_pixels)).encode())
    for photo in photos:
        try:
            status = os.stat(photo.path)
            state = status.st_size, status.st_mtime_ns
        except OSError:  # it will be named and skipped when it is opened
            state = None
        digest.update(repr((str(photo.path), photo.crop_fraction, state)).encode())
    return digest.hexdigest()


def _read_journal(working: Path, job: str, face_shape: tuple[int, int, int]) -> dict[int, list]:
    """Start row -> outcomes, of the chunks that a stopped run of the same job has decoded."""
    done = {}
    if not ((working / "journal.jsonl").exists() and (working / "images.raw").exists()):
        return done
    face_bytes = math.prod(face_shape)
    with open(working / "images.raw", "rb") as images:
        for line in (working / "journal.jsonl").read_text(encoding="utf-8").splitlines():
            try:
                line_job, start, checksum, outcomes = json.loads(line)
            except ValueError:  # the run was stopped while it wrote this line
                continue
            images.seek(start * face_bytes)
            faces = images.read(len(outcomes) * face_bytes)
            if line_job == job and zlib.crc32(faces) == checksum:  # a power cut can lose what was written
                done[start] = outcomes
    return done


def _decode_chunk(raw: Path, start: int, photos: Sequence[Photo], face_shape: tuple[int, int, int],
                  max_pixels: int) -> tuple[int, int, list[tuple[str, str]]]:
    """Writes the faces of `photos` into `raw` from row `start` on; black where a photo is skipped."""
    channels, size, _ = face_shape
    faces = np.zeros((len(photos), *face_shape), np.uint8)
    outcomes = []
    for face, photo in zip(faces, photos):
        try:
            face[:] = face_pixels(photo.path, size, photo.crop_fraction, channels == 3, max_pixels)
            outcomes.append((hashlib.sha256(Path(photo.path).read_bytes()).hexdigest(), ""))
        except (InputError, OSError) as error:
            outcomes.append(("", str(error)))
    with open(raw, "r+b") as file:
        file.seek(start * faces[0].nbytes)
        file.write(faces)
    return start, zlib.crc32(faces), outcomes


def _skipped(photos: Sequence[Photo], outcomes: Sequence[tuple[str, str]]) -> dict[int, str]:
    """Row -> why it is left out, ascending."""
    rows_of = defaultdict(list)  # digest of the file -> rows
    skipped = {}
    for row, (digest, why) in enumerate(outcomes):
        if why:
            skipped[row] = why
        else:
            rows_of[digest].append(row)
    for rows in rows_of.values():
        first = photos[rows[0]]
        other = next((photos[row] for row in rows if photos[row].person != first.person), None)
        for row in rows:
            if other is not None:
                namesake = other if photos[row].person == first.person else first
                skipped[row] = f"same picture as {namesake.path} of another person"
            elif row != rows[0]:
                skipped[row] = f"exact copy of {first.path}"
    return dict(sorted(skipped.items()))


def _copy_rows(raw: Path, rows: Sequence[int], count: int, face_shape: tuple[int, int, int],
               path: Path) -> None:
    """Copies `rows` of `raw`, which has `count`, into an .npy file, a block at a time."""
    source = np.memmap(raw, np.uint8, "r", shape=(count, *face_shape))
    target = np.lib.format.open_memmap(path, "w+", np.uint8, (len(rows), *face_shape))
    for start in range(0, len(rows), CHUNK):
        target[start:start + CHUNK] = source[rows[start:start + CHUNK]]


def _summary(kept: Sequence[Photo], split: Mapping[str, str], crop_fractions: Mapping[str, float]) -> dict:
    photos_of = Counter(photo.person for photo in kept)
    trained = [person for person in split if split[person] == "train"]

    def counts(photos: list[Photo]) -> dict:
        return {"people": len({photo.person for photo in photos}), "images": len(photos)}

    return counts(kept) | {
        "people_with_one_image": sum(photos == 1 for photos in photos_of.values()),
        "sources": {source: counts([photo for photo in kept if photo.source == source])
                    | {"crop_fraction": fraction} for source, fraction in crop_fractions.items()},
        "splits": {name: counts([photo for photo in kept if split[photo.person] == name]) for name in SPLITS},
        "split_digest": split_digest(trained),
    }


def _write_contact_sheets(folder: Path, kept: Sequence[Photo], seed: int) -> None:
    images = np.load(folder / "images.npy", mmap_mode="r")
    rows_of = defaultdict(list)
    for row, photo in enumerate(kept):
        rows_of[photo.source].append(row)
    for source, rows in rows_of.items():
        chosen = np.random.default_rng(seed).permutation(rows)[:SHEET_FACES]
        file_name = re.sub(r"[^\w.-]", "_", f"contact_sheet_{source}.png")
        contact_sheet(images[np.sort(chosen)], folder / file_name)


def load_faces(folder: str | Path) -> FaceSet:
    """Opens what pack_faces has written; the images stay on disk.

    InputError when something is missing or damaged, or when the index does not fit the images.
    """
    folder = Path(folder)
    _publish(folder)
    missing = [name for name in ("images.npy", "index.csv", "summary.json") if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{folder / missing[0]} is missing: run prepare first.")
    summary = read_json(folder / "summary.json")
    try:
        images = np.load(folder / "images.npy", mmap_mode="c")  # torch warns of arrays that cannot be written to
        with open(folder / "index.csv", encoding="utf-8", newline="") as file:
            index = list(csv.DictReader(file))
        rows = [int(line["row"]) for line in index]
        columns = {key: [line[key] for line in index] for key in ("person", "source", "file", "split")}
    except (OSError, ValueError, EOFError, KeyError, TypeError, csv.Error) as error:
        raise InputError(f"The faces in {folder} are damaged ({error}): run prepare again.") from None
    if images.dtype != np.uint8 or images.ndim != 4 or rows != list(range(len(images))):
        raise InputError(f"{folder / 'index.csv'} does not fit images.npy beside it: run prepare again.")
    if not set(columns["split"]) <= set(SPLITS):
        raise InputError(f"{folder / 'index.csv'} has another split than {SPLITS}: run prepare again.")
    names, people = np.unique(columns["person"], return_inverse=True)
    return FaceSet(images, people.astype(np.int64), names.tolist(), np.array(columns["split"]),
                   np.array(columns["source"]), columns["file"], summary)


# -------------------------------------------------------------------------------------------------- downloads


def download(name: str, root: str | Path = "dataset") -> Path:
    """Downloads the data set "lfw", "faces" or "pins" to its place below `root`; returns its folder.

    Does nothing when it is there. InputError, which says how to do it by hand, when it does not work.
    """
    known = KNOWN[name]
    target = Path(root, known.folder)
    try:
        if not target.exists() and name == "lfw":
            _download_lfw(target)
        elif not target.exists():
            _download_from_kaggle(known.kaggle, target)
    except Exception as error:  # noqa: BLE001  network, disk, account: whatever it is, there is a way by hand
        package = "scikit-learn" if name == "lfw" else "kagglehub"
        reason = f"pip install {package}" if isinstance(error, ImportError) else error
        raise InputError(f"Downloading {name} failed ({reason}). By hand: get "
                         f"https://www.kaggle.com/datasets/{known.kaggle} ({known.holds}; its "
                         f"licence is there) and unpack it into {target}.") from None
    _photos_of(known, target)  # InputError when there are none
    return target


def _download_lfw(target: Path) -> None:
    """Through scikit-learn, which has the archive of LFW in a place that needs no account."""
    datasets = importlib.import_module("sklearn.datasets")
    home = target.with_name(f".download-{target.name}")
    shutil.rmtree(home / "lfw_home" / "lfw_funneled", ignore_errors=True)  # half unpacked by a stopped run
    # It also loads the pictures of those who have at least so many; 530 is the largest number, one person's.
    datasets.fetch_lfw_people(data_home=str(home), min_faces_per_person=530, resize=0.1)
    shutil.rmtree(home / "lfw_home" / "joblib", ignore_errors=True)  # its cache of these pictures
    (home / "lfw_home").rename(target)
    home.rmdir()


def _download_from_kaggle(handle: str, target: Path) -> None:
    kagglehub = importlib.import_module("kagglehub")
    fetched = kagglehub.dataset_download(handle)
    partial = target.with_name(f".download-{target.name}")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(fetched, partial)  # a copy: kagglehub would miss what is taken out of its cache
    partial.rename(target)
