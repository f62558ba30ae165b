"""The gallery: built, changed, interrupted, killed, damaged, used by two processes; names."""

import hashlib
import io
import json
import multiprocessing
import os
import random
import sys
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facekit import gallery
from facekit.files import InputError
from facekit.gallery import Face, Gallery, enroll, forget, load_gallery, person_means, update_gallery

MADE_WITH = {"recogniser": "1234", "crop": ["similarity", 3.0]}
LANDMARKS = [[10, 10], [20, 10], [15, 15], [11, 20], [19, 20]]
spawn = multiprocessing.get_context("spawn")


def save_photo(path: Path, number: int = 0) -> Path:
    """A small photo that is different for every number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(1, 256, (24, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def mean_colour(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image, np.float32).mean(axis=(0, 1))


class Embedder:
    """Stands for the models: the mean colour is the embedding. Remembers what it was asked for."""

    def __init__(self, interrupt_at: int | None = None):
        self.asked: list[Path] = []
        self.calls = 0
        self.interrupt_at = interrupt_at

    def __call__(self, paths: list[Path]) -> list[Face | str]:
        self.calls += 1
        if self.calls == self.interrupt_at:
            raise KeyboardInterrupt
        self.asked += paths
        return [self.face(path) for path in paths]

    def face(self, path: Path) -> Face | str:
        try:
            embedding = mean_colour(path)
        except OSError:
            return f"{path} is damaged."
        note = "several faces, the largest was taken" if "several" in path.name else ""
        return Face(embedding, (1, 2, 30.126, 40), np.array(LANDMARKS), note)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three people with two photos each."""
    root = tmp_path / "my samples"
    for number in range(6):
        save_photo(root / f"person {number // 2}" / f"{number % 2}.png", number)
    return root


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return tmp_path / "data" / "gallery"


def update(folder: Path, saved: Path, embedder: Embedder | None = None, **options) -> tuple[Gallery, list[str], list]:
    """The updated gallery, the sentences said, and the files that were worked on."""
    said, embedder = [], embedder or Embedder()
    result = update_gallery(folder, saved, embedder, options.pop("made_with", MADE_WITH), say=said.append, **options)
    check_equals_folder(result, folder)
    check_same(load_gallery(saved), result)
    assert sorted(os.listdir(saved)) == sorted(["gallery.json", "gallery.lock", *arrays(saved)])
    assert len(arrays(saved)) == 1
    return result, said, [path.relative_to(folder).as_posix() for path in embedder.asked]


def arrays(saved: Path) -> list[str]:
    return [path.name for path in saved.glob("embeddings-*.npy")]


def check_equals_folder(result: Gallery, folder: Path) -> None:
    """The gallery holds what the photos below `folder` give, computed here."""
    expected = {}
    for path in folder.glob("*/**/*.*"):
        if isinstance(face := Embedder().face(path), Face):
            expected[path.relative_to(folder).as_posix()] = face.embedding
    assert {face.file for face in result.faces} == set(expected)
    assert result.embeddings.dtype == np.float32 and len(result.embeddings) == len(result.faces)
    for face, embedding in zip(result.faces, result.embeddings):
        np.testing.assert_array_equal(embedding, expected[face.file])


def check_same(one: Gallery, other: Gallery) -> None:
    np.testing.assert_array_equal(one.embeddings, other.embeddings)
    assert (one.faces, one.rejected, one.made_with) == (other.faces, other.rejected, other.made_with)


# ----------------------------------------------------------------------------------------- built and up to date


def test_built(folder: Path, saved: Path):
    result, said, asked = update(folder, saved)
    assert result.people() == {"person 0": 2, "person 1": 2, "person 2": 2}
    assert [face.file for face in result.faces] == asked == [f"person {n // 2}/{n % 2}.png" for n in range(6)]
    assert result.faces[0].person == "person 0"
    assert result.faces[0].box == [1, 2, 30.13, 40] and result.faces[0].landmarks == LANDMARKS
    assert said == []


def test_nothing_to_do_writes_nothing(folder: Path, saved: Path):
    first, _, _ = update(folder, saved)
    before = {path.name: path.stat().st_mtime_ns for path in saved.iterdir()}
    second, said, asked = update(folder, saved)
    check_same(second, first)
    assert asked == said == []
    assert {path.name: path.stat().st_mtime_ns for path in saved.iterdir()} == before


def test_extended_and_shrunk(folder: Path, saved: Path):
    update(folder, saved)
    save_photo(folder / "person 1" / "album" / "2012" / "10.png", 10)
    save_photo(folder / "new" / "11.png", 11)
    result, _, asked = update(folder, saved)
    assert asked == ["new/11.png", "person 1/album/2012/10.png"]
    assert result.people() == {"new": 1, "person 0": 2, "person 1": 3, "person 2": 2}

    (folder / "person 0" / "0.png").unlink()
    forget(folder, "person 2")
    result, _, asked = update(folder, saved)
    assert asked == []
    assert result.people() == {"new": 1, "person 0": 1, "person 1": 3}


def test_all_removed(folder: Path, saved: Path):
    update(folder, saved)
    for number in range(3):
        forget(folder, f"person {number}")
    result, _, _ = update(folder, saved)
    assert result.people() == {} and result.embeddings.shape[0] == 0


def test_changed_photo_of_the_same_name_size_or_time(folder: Path, saved: Path):
    photo = folder / "person 1" / "0.png"
    bitmap = save_photo(folder / "person 1" / "b.bmp", 20)  # of two bitmaps of the same shape, the sizes are equal
    update(folder, saved)
    times = photo.stat().st_atime_ns, photo.stat().st_mtime_ns
    photo.write_bytes(save_photo(folder.parent / "other.png", 99).read_bytes() + b"longer")
    os.utime(photo, ns=times)
    save_photo(bitmap, 21)
    os.utime(bitmap, ns=(1, 1))
    assert update(folder, saved)[2] == ["person 1/0.png", "person 1/b.bmp"]


def test_touched_but_unchanged(folder: Path, saved: Path):
    first, _, _ = update(folder, saved)
    photo = folder / "person 1" / "0.png"
    os.utime(photo, ns=(1, 1))
    result, _, asked = update(folder, saved)
    assert asked == []
    np.testing.assert_array_equal(result.embeddings, first.embeddings)
    assert next(face for face in result.faces if face.file == "person 1/0.png").mtime_ns == 1


def test_renamed_person_and_swapped_photos(folder: Path, saved: Path):
    update(folder, saved)
    (folder / "person 0").rename(folder / "Zoë")
    one, two = folder / "person 1" / "0.png", folder / "person 2" / "0.png"
    one.rename(folder / "x")
    two.rename(one)
    (folder / "x").rename(two)
    result, _, asked = update(folder, saved)
    assert asked == []
    assert result.people() == {"Zoë": 2, "person 1": 2, "person 2": 2}


@pytest.mark.parametrize("other", [{**MADE_WITH, "recogniser": "5678"}, "text", {}])
def test_other_models_build_everything_again(folder: Path, saved: Path, other):
    update(folder, saved)
    result, _, asked = update(folder, saved, made_with=other)
    assert len(asked) == 6 and result.made_with == other


def test_other_models_that_fail_leave_what_is_saved(folder: Path, saved: Path):
    def fail(paths: list[Path]) -> list:
        raise InputError("damaged weights")

    update(folder, saved)
    before = load_gallery(saved)
    with pytest.raises(InputError, match="damaged weights"):
        update_gallery(folder, saved, fail, {"other": "models"})
    check_same(load_gallery(saved), before)
    assert len(before.faces) == 6


def test_files_of_others_in_the_folder_are_left_alone(folder: Path, saved: Path):
    saved.mkdir(parents=True)
    others = [saved / name for name in ("lfw_embeddings-old.npy", "embeddings-old.npy", "gallery.old.json")]
    left = [saved / f"embeddings-{'0' * 64}.npy", saved / f".embeddings-{'0' * 29}.7.npy", saved / ".gallery.7.json"]
    for file in (*others, *left):
        file.touch()
    update_gallery(folder, saved, Embedder(), MADE_WITH)
    assert all(file.exists() for file in others) and not any(file.exists() for file in left)


def test_a_folder_that_cannot_be_read_does_not_forget_its_person(folder: Path, saved: Path, monkeypatch):
    update(folder, saved)
    person, scandir = next(path for path in folder.iterdir() if path.is_dir()), os.scandir

    def forbidden(path: str) -> object:
        if Path(path) == person:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    before = load_gallery(saved)
    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(InputError, match=f"{person.name} cannot be read .Permission denied.: change its permissions"):
        update(folder, saved)
    check_same(load_gallery(saved), before)
    person = folder / "lost+found"  # nobody's
    person.mkdir()
    assert len(update_gallery(folder, saved, Embedder(), MADE_WITH).faces) == 6


def test_rebuild(folder: Path, saved: Path):
    update(folder, saved)
    assert len(update(folder, saved, rebuild=True)[2]) == 6


def test_settings_with_tuples_are_the_same_next_time(folder: Path, saved: Path):
    update(folder, saved, made_with={"sizes": (80, 80)})
    assert update(folder, saved, made_with={"sizes": (80, 80)})[2] == []


def test_bad_photos_and_notes_are_said_once_and_remembered(folder: Path, saved: Path):
    bad = folder / "person 1" / "bad.jpg"
    bad.write_bytes(b"no photo")
    save_photo(folder / "person 2" / "several.png", 12)
    result, said, _ = update(folder, saved)
    assert said == [f"{bad} is damaged.",
                    f"{folder / 'person 2' / 'several.png'}: several faces, the largest was taken."]
    assert [(photo.file, photo.error) for photo in result.rejected] == [("person 1/bad.jpg", f"{bad} is damaged.")]
    assert [face.note for face in result.faces if face.note] == ["several faces, the largest was taken"]

    os.utime(bad, ns=(1, 1))
    assert update(folder, saved)[1:] == ([], [])
    bad.rename(bad.with_name("worse.jpg"))  # the sentence names the file
    assert update(folder, saved)[1] == [f"{bad.with_name('worse.jpg')} is damaged."]
    save_photo(folder / "person 1" / "worse.png", 13).rename(folder / "person 1" / "worse.jpg")
    result, said, asked = update(folder, saved)
    assert asked == ["person 1/worse.jpg"] and said == [] and result.rejected == []


def test_what_lies_in_the_wrong_place_is_said_every_time(folder: Path, saved: Path):
    save_photo(folder / "group.png", 1)
    (folder / "README.md").write_text("about")
    (folder / "nobody" / "inside").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    for _ in range(2):
        result, said, _ = update(folder, saved)
        assert len(said) == 2 and "group.png" in said[0] and "nobody" in said[1]
    assert len(result.faces) == 6


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such file names")
def test_name_that_is_not_unicode(folder: Path, saved: Path):
    path = os.fsencode(folder / "person 1") + b"/caf\xe9.png"
    with open(path, "wb") as file:
        Image.new("RGB", (4, 4)).save(file, "png")
    said = []
    result = update_gallery(folder, saved, Embedder(), MADE_WITH, say=said.append)
    assert len(result.faces) == 6
    assert len(said) == 1 and "caf\\udce9.png" in said[0]


def test_photo_that_cannot_be_read_is_tried_again(folder: Path, saved: Path, monkeypatch):
    secret = save_photo(folder / "person 1" / "secret.png", 30)
    read_bytes = Path.read_bytes

    def denied(path: Path) -> bytes:
        if path == secret:
            raise PermissionError(13, "Permission denied")
        return read_bytes(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", denied)
        said = []
        assert len(update_gallery(folder, saved, Embedder(), MADE_WITH, say=said.append).faces) == 6
        assert len(said) == 1 and str(secret) in said[0] and "Permission denied" in said[0]
    assert update(folder, saved)[2] == ["person 1/secret.png"]


@pytest.mark.skipif(os.name == "nt", reason="links take a privilege on Windows")
def test_broken_link(folder: Path, saved: Path):
    (folder / "person 1" / "gone.png").symlink_to(folder / "nowhere.png")
    said = []
    assert len(update_gallery(folder, saved, Embedder(), MADE_WITH, say=said.append).faces) == 6
    assert len(said) == 1 and "gone.png" in said[0]


def test_person_name_is_the_same_in_both_unicode_forms(tmp_path: Path, saved: Path):
    decomposed = unicodedata.normalize("NFD", "Zoë")
    save_photo(tmp_path / "people" / decomposed / "1.png", 1)
    result, _, _ = update(tmp_path / "people", saved)
    assert result.people() == {"Zoë": 1}
    assert result.faces[0].file == f"{decomposed}/1.png"


def test_missing_folder_and_saved_that_is_a_file(folder: Path, saved: Path):
    with pytest.raises(InputError, match="nowhere"):
        update(folder / "nowhere", saved)
    saved.parent.mkdir(exist_ok=True, parents=True)
    (saved.parent / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        update(folder, saved.parent / "file")


def test_models_that_give_nan_are_named(folder: Path, saved: Path):
    nan = Face(np.array([1, np.nan]), (0, 0, 1, 1), np.array(LANDMARKS))
    with pytest.raises(InputError, match="person 0/0.png"):
        update_gallery(folder, saved, lambda paths: [nan] * len(paths), MADE_WITH)
    update(folder, saved)


def test_wrong_number_of_results_is_an_error(folder: Path, saved: Path):
    with pytest.raises(ValueError):
        update_gallery(folder, saved, lambda paths: [], MADE_WITH)


def test_disk_full(folder: Path, saved: Path, monkeypatch):
    first, _, _ = update(folder, saved)
    save_photo(folder / "person 1" / "new.png", 30)

    def full(path: Path, value: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(InputError, match="No space left"):
        patch.setattr(gallery, "write_json", full)
        update_gallery(folder, saved, Embedder(), MADE_WITH)
    check_same(load_gallery(saved), first)
    assert update(folder, saved)[2] == ["person 1/new.png"]


# ------------------------------------------------------------------------------------- interrupted, killed, damaged


@pytest.mark.parametrize("call", [1, 2, 3])
def test_interrupted_build_goes_on(folder: Path, saved: Path, call: int):
    stopped = Embedder(interrupt_at=call)
    with pytest.raises(KeyboardInterrupt):
        update_gallery(folder, saved, stopped, MADE_WITH, block=2)
    assert (saved / "gallery.json").exists() == (call > 1), "nothing is done: nothing is saved"
    assert len(stopped.asked) == 2 * (call - 1) == (len(load_gallery(saved).faces) if call > 1 else 0)
    _, _, asked = update(folder, saved, block=2)
    assert len(asked) == 6 - len(stopped.asked) and not set(asked) & set(stopped.asked)


def test_interrupted_update_keeps_the_work_on_touched_photos(folder: Path, saved: Path):
    update(folder, saved)
    for photo in folder.glob("*/*.png"):
        os.utime(photo, ns=(1, 1))
    save_photo(folder / "a" / "new.png", 50)  # comes first
    with pytest.raises(KeyboardInterrupt):
        update_gallery(folder, saved, Embedder(interrupt_at=1), MADE_WITH, block=1)
    assert update(folder, saved)[2] == ["a/new.png"]


def update_and_die(folder: Path, saved: Path, where: str) -> None:
    """Ends without any tidying up, as if killed: in the second call of the models, or around a write."""
    gallery.SAVE_EVERY = 0
    if where == "second block":
        class Dying(Embedder):
            def __call__(self, paths: list[Path]) -> list[Face | str]:
                return os._exit(9) if self.calls else super().__call__(paths)
        update_gallery(folder, saved, Dying(), MADE_WITH, block=2)
    elif where == "before index":
        gallery.write_json = lambda path, value: os._exit(9)
    elif where == "while writing index":
        gallery.write_json = lambda path, value: (path.with_name(".gallery.1.json").write_text("{"), os._exit(9))
    elif where == "while writing array":
        write_bytes = Path.write_bytes
        Path.write_bytes = lambda path, content: (write_bytes(path, content[:150]), os._exit(9))
    elif where == "before removal":
        Path.unlink = lambda path, missing_ok=False: None if path.name[0] == "." and not path.exists() else os._exit(9)
    update_gallery(folder, saved, Embedder(), MADE_WITH)


@pytest.mark.parametrize("where, kept", [
    ("second block", 8), ("before index", 6), ("while writing index", 6), ("while writing array", 6),
    ("before removal", 10)])
def test_killed(folder: Path, saved: Path, where: str, kept: int):
    update(folder, saved)
    for number in range(4):
        save_photo(folder / "person 0" / f"new {number}.png", 10 + number)
    process = spawn.Process(target=update_and_die, args=(folder, saved, where))
    process.start()
    process.join()
    assert process.exitcode == 9
    if where != "second block":  # something was left behind; update() checks that it is removed
        assert len(os.listdir(saved)) > 3
    assert len(load_gallery(saved).faces) == kept
    save_photo(folder / "person 0" / "z.png", 20)
    assert len(update(folder, saved)[2]) == 11 - kept


def replace_array(saved: Path, array: np.ndarray, **options) -> None:
    """Another array, of which gallery.json has the right digest."""
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    change_index(saved, embeddings=hashlib.sha256(buffer.getvalue()).hexdigest())
    (saved / f"embeddings-{hashlib.sha256(buffer.getvalue()).hexdigest()}.npy").write_bytes(buffer.getvalue())


def change_index(saved: Path, **changes) -> None:
    index = json.loads((saved / "gallery.json").read_text(encoding="utf-8"))
    (saved / "gallery.json").write_text(json.dumps({**index, **changes}), encoding="utf-8")


def one_face_less(saved: Path) -> None:
    change_index(saved, faces=json.loads((saved / "gallery.json").read_text(encoding="utf-8"))["faces"][1:])


def change_array(saved: Path, change) -> None:
    path = saved / arrays(saved)[0]
    path.write_bytes(change(path.read_bytes()))


DAMAGE = {
    "array cut off": lambda saved: change_array(saved, lambda content: content[:-5]),
    "array empty": lambda saved: change_array(saved, lambda content: b""),
    "one bit": lambda saved: change_array(saved, lambda content: content[:-1] + bytes([content[-1] ^ 1])),
    "array missing": lambda saved: (saved / arrays(saved)[0]).unlink(),
    "NaN": lambda saved: replace_array(saved, np.full((6, 3), np.nan, np.float32)),
    "wrong type": lambda saved: replace_array(saved, np.zeros((6, 3), np.float64)),
    "pickled": lambda saved: replace_array(saved, np.array([[{}]] * 6), allow_pickle=True),
    "wrong shape": lambda saved: replace_array(saved, np.zeros(6, np.float32)),
    "wrong count": lambda saved: replace_array(saved, np.zeros((5, 3), np.float32)),
    "one face less": one_face_less,
    "index empty": lambda saved: (saved / "gallery.json").write_text(""),
    "index cut off": lambda saved: (saved / "gallery.json").write_text('{"made_with": {'),
    "index a list": lambda saved: (saved / "gallery.json").write_text("[]"),
    "index a number": lambda saved: (saved / "gallery.json").write_text("3"),
    "index binary": lambda saved: (saved / "gallery.json").write_bytes(b"\xff\xfe\x00"),
    "faces missing": lambda saved: change_index(saved, faces=None),
    "face empty": lambda saved: change_index(saved, faces=[{}] * 6),
    "no box": lambda saved: change_index(saved, faces=[{"file": "a/b", "size": 1, "mtime_ns": 1, "sha256": ""}] * 6),
    "other key": lambda saved: change_index(saved, rejected=[{"name": "a"}]),
}


@pytest.mark.parametrize("damage", sorted(DAMAGE))
def test_damaged(folder: Path, saved: Path, damage: str):
    update(folder, saved)
    DAMAGE[damage](saved)
    for attempt in (lambda: load_gallery(saved), lambda: update(folder, saved)):
        with pytest.raises(InputError, match="--rebuild") as error:
            attempt()
        assert str(saved) in str(error.value) and "\n" not in str(error.value)
    assert len(update(folder, saved, rebuild=True)[2]) == 6
    assert update(folder, saved)[2] == []


def test_load_before_it_is_built(saved: Path):
    with pytest.raises(InputError, match=r"gallery\.json is missing"):
        load_gallery(saved)


def test_random_changes(folder: Path, saved: Path):
    """Many updates in a row, some of them stopped: always what the folder holds, and no photo twice in vain."""
    dice = random.Random(0)
    seen = set()
    for step in range(40):
        photos = sorted(folder.glob("*/*.png"))
        for photo in dice.sample(photos, min(len(photos), 2)):
            action = dice.choice(["remove", "touch", "change", "move", "copy"])
            target = folder / f"person {dice.randrange(4)}" / f"moved {step}.png"
            target.parent.mkdir(exist_ok=True)
            if action == "remove" and len(photos) > 4:
                photo.unlink()
            elif action == "touch":
                os.utime(photo, ns=(step, step))
            elif action == "change":
                save_photo(photo, 1000 + step)
            elif action == "move":
                photo.rename(target)
            elif action == "copy":
                target.write_bytes(photo.read_bytes())
        embedder = Embedder(interrupt_at=dice.choice([None, 1, 2, 3]))
        try:
            update_gallery(folder, saved, embedder, MADE_WITH, block=dice.choice([1, 2, 32]), say=[].append)
        except KeyboardInterrupt:
            embedder.interrupt_at = None
            update(folder, saved, embedder, block=1)
        update(folder, saved)
        assert not seen & {(path, path.read_bytes()) for path in embedder.asked}
        seen = {(photo, photo.read_bytes()) for photo in folder.glob("*/*.png")}


# --------------------------------------------------------------------------------------------- two processes at once


class SlowEmbedder(Embedder):
    """Writes down what it works on, one file for each photo, and fails when a photo is worked on twice."""

    def __init__(self, journal: Path):
        super().__init__()
        self.journal = journal

    def __call__(self, paths: list[Path]) -> list[Face | str]:
        for path in paths:
            (self.journal / f"{path.parent.name} {path.name}").touch(exist_ok=False)
        time.sleep(0.02)
        return super().__call__(paths)


def build(folder: Path, saved: Path, journal: Path) -> None:
    gallery.SAVE_EVERY = 0
    result = update_gallery(folder, saved, SlowEmbedder(journal), MADE_WITH, block=1)
    check_equals_folder(result, folder)


def read_often(saved: Path, stop) -> None:
    counts = []
    while not stop.is_set():
        if (saved / "gallery.json").exists():
            counts.append(len(load_gallery(saved).faces))
    assert counts == sorted(counts) and len(set(counts)) > 3


def test_two_builders_and_a_reader_at_once(folder: Path, saved: Path, tmp_path: Path):
    for number in range(20):
        save_photo(folder / "many" / f"{number}.png", 100 + number)
    (tmp_path / "journal").mkdir()
    stop = spawn.Event()
    reader = spawn.Process(target=read_often, args=(saved, stop))
    builders = [spawn.Process(target=build, args=(folder, saved, tmp_path / "journal")) for _ in range(2)]
    for process in (reader, *builders):
        process.start()
    for process in builders:
        process.join()
    stop.set()
    reader.join()
    assert [process.exitcode for process in (reader, *builders)] == [0, 0, 0]
    assert len(list((tmp_path / "journal").iterdir())) == 26  # shared, none done twice
    assert update(folder, saved)[2] == []


def test_reader_overtaken_by_an_update_looks_again(folder: Path, saved: Path, monkeypatch):
    update(folder, saved)
    save_photo(folder / "person 0" / "z.png", 20)
    read_json = gallery.read_json

    def overtaken(path: Path) -> object:
        monkeypatch.setattr(gallery, "read_json", read_json)
        index = read_json(path)
        update(folder, saved)
        return index

    monkeypatch.setattr(gallery, "read_json", overtaken)
    assert len(load_gallery(saved).faces) == 7


def hold(folder: Path, saved: Path, holding) -> None:
    def wait(paths: list[Path]) -> list:
        holding.set()
        time.sleep(60)
        return []
    update_gallery(folder, saved, wait, MADE_WITH)


def test_waiting_is_limited_and_a_killed_holder_does_not_matter(folder: Path, saved: Path):
    holding = spawn.Event()
    holder = spawn.Process(target=hold, args=(folder, saved, holding))
    holder.start()
    assert holding.wait(30)
    said = []
    with pytest.raises(InputError, match="Another process"):
        update_gallery(folder, saved, Embedder(), MADE_WITH, wait_s=0.2, say=said.append)
    assert len(said) == 1 and "waiting" in said[0]
    holder.kill()
    holder.join()
    assert len(update(folder, saved, wait_s=0.2)[2]) == 6


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_process_forked_meanwhile_does_not_keep_the_lock(folder: Path, saved: Path):
    children = []

    class Forking(Embedder):
        def __call__(self, paths: list[Path]) -> list[Face | str]:
            children.append(os.fork())
            if children[-1] == 0:
                time.sleep(60)
                os._exit(0)
            return super().__call__(paths)

    try:
        update(folder, saved, Forking())
        gallery = update(folder, saved, wait_s=0.1)[0]  # InputError if the lock were still held
        assert children and len(gallery.faces) == 6
    finally:
        for child in children:
            os.kill(child, 9)
            os.waitpid(child, 0)


def test_the_lock_of_windows(folder: Path, saved: Path, monkeypatch):
    class Msvcrt:
        LK_NBLCK, LK_UNLCK = 2, 0
        refusals, calls = 2, []

        def locking(self, descriptor: int, mode: int, length: int) -> None:
            assert os.lseek(descriptor, 0, os.SEEK_CUR) == 0 and length == 1
            self.calls.append(mode)
            if mode == self.LK_NBLCK and self.calls.count(mode) <= self.refusals:
                raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(gallery, "fcntl", None)
    monkeypatch.setattr(gallery, "msvcrt", Msvcrt(), raising=False)
    _, said, _ = update(folder, saved)
    assert Msvcrt.calls == [2, 2, 2, 0] and len(said) == 1


def test_the_mean_of_a_person_s_embeddings_is_as_long_as_they_are():
    embeddings = np.array([[3, 0], [0, 1], [0, 5], [0, -2]], np.float32)
    means = person_means(embeddings, ["Ada", "Ben", "Ada", "Cleo"])
    ada = np.array([3, 5]) / np.hypot(3, 5) * 4
    np.testing.assert_allclose(means, [ada, (0, 1), ada, (0, -2)], rtol=1e-6)
    assert means.dtype == np.float32
    np.testing.assert_array_equal(person_means(np.array([[1, 0], [-1, 0]]), ["Ada", "Ada"]), np.zeros((2, 2)))


# ---------------------------------------------------------------------------------------------- enroll and forget


@pytest.mark.parametrize("name", [
    "", " ", ".", "..", ".hidden", "end.", "a/b", "a\\b", "../up", "/root", "C:", "a\nb", "a\x00b", "a\x1bb", "what?",
    "star*", "<a>", 'quo"te', "pi|pe", "con", "NUL.txt", "COM1", "x" * 201, "ж" * 101, "\ud800", "a\u2028b"])
def test_bad_names(folder: Path, name: str):
    before = sorted(folder.rglob("*"))
    with pytest.raises(InputError, match="cannot name a folder") as error:
        enroll(folder, name, [folder / "person 0" / "0.png"])
    assert str(error.value).isprintable()
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("name", [
    "Ann", "Мария Кюри", "李小龙", "علی\u200cرضا", "O'Brien, Jr", "Zoë", "_", "Conrad", "J. R. R. Tolkien", "x" * 200])
def test_enroll_and_forget(folder: Path, saved: Path, name: str):
    update(folder, saved)
    photo = save_photo(folder.parent / "a photo.png", 77)
    copies = enroll(folder, unicodedata.normalize("NFD", f" {name} "), [photo, str(photo)])
    assert copies == [folder / name / "a photo.png"]
    assert copies[0].read_bytes() == photo.read_bytes()
    assert update(folder, saved)[0].people()[name] == 1

    forget(folder, unicodedata.normalize("NFD", name))
    assert not (folder / name).exists() and photo.exists()
    assert update(folder, saved)[0].people().keys() == {"person 0", "person 1", "person 2"}


def test_enroll_overwrites_nothing_and_copies_nothing_twice(folder: Path):
    old = (folder / "person 0" / "0.png").read_bytes()
    photos = [save_photo(folder.parent / name / "0.png", number) for number, name in enumerate("abc", start=70)]
    assert [path.name for path in enroll(folder, "person 0", photos)] == ["0_2.png", "0_3.png", "0_4.png"]
    assert enroll(folder, "person 0", photos) == []
    assert enroll(folder, "person 0", list((folder / "person 0").iterdir())) == []
    assert (folder / "person 0" / "0.png").read_bytes() == old
    assert len(os.listdir(folder / "person 0")) == 5


def test_enroll_finds_the_folder_in_another_unicode_form(folder: Path):
    there = save_photo(folder / unicodedata.normalize("NFD", "Zoë") / "1.png", 1)
    copies = enroll(folder, "Zoë", [save_photo(folder.parent / "2.png", 2)])
    assert [path.parent for path in copies] == [there.parent]


def test_enroll_makes_the_gallery_folder(tmp_path: Path):
    photo = save_photo(tmp_path / "1.png")
    assert enroll(tmp_path / "new" / "gallery", "Ann", [photo])[0].exists()


@pytest.mark.parametrize("bad", ["missing.png", "text.png", "photo.dat", ".hidden.png", "person 0"])
def test_enroll_copies_nothing_when_one_photo_is_bad(folder: Path, bad: str):
    good = save_photo(folder.parent / "good.png", 5)
    (folder.parent / "text.png").write_text("text")
    for name in ("photo.dat", ".hidden.png"):
        (folder.parent / name).write_bytes(good.read_bytes())
    (folder.parent / "person 0").mkdir()
    with pytest.raises(InputError, match=bad):
        enroll(folder, "Ann", [good, folder.parent / bad])
    assert not (folder / "Ann").exists()


@pytest.mark.skipif(os.name == "nt", reason="no such names on Windows")
def test_enroll_takes_no_photo_that_the_gallery_would_leave_out(folder: Path):
    with pytest.raises(InputError, match="rename it to something like photo.jpg"):
        enroll(folder, "Ann", [save_photo(folder.parent / "a\tb.png", 5)])
    assert not (folder / "Ann").exists()


def test_forget_both_forms_of_a_name(folder: Path):
    """As where a folder from a Mac was unzipped beside one that was typed."""
    for form in ("NFC", "NFD"):
        save_photo(folder / unicodedata.normalize(form, "Zoë") / "0.png", 3)
    forget(folder, "Zoë")
    assert sorted(path.name for path in folder.iterdir()) == ["person 0", "person 1", "person 2"]


@pytest.mark.parametrize("name, hint", [
    ("Person 1", "did you mean person 1"), ("PERSON1", "person 1"), ("..", "look there"), ("", "look there"),
    ("person 1/", "did you mean"), ("somebody else", "look there"), (".", "look there"), ("x\ud800", "look there")])
def test_forget_of_an_unknown_name(folder: Path, name: str, hint: str):
    before = sorted(folder.rglob("*"))
    with pytest.raises(InputError, match="Nobody") as error:
        forget(folder, name)
    assert hint in str(error.value)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.skipif(os.name == "nt", reason="links take a privilege on Windows")
@pytest.mark.parametrize("target", ["elsewhere", "my samples/person 1"])
def test_forget_follows_no_link(folder: Path, target: str):
    photo = save_photo(folder.parent / target / "0.png", 3)
    (folder / "linked").symlink_to(photo.parent, target_is_directory=True)
    with pytest.raises(InputError, match="link"):
        forget(folder, "linked")
    assert photo.exists() and (folder / "linked").exists()


@pytest.mark.skipif(os.name == "nt", reason="links take a privilege on Windows")
def test_forget_in_a_folder_reached_by_a_link(folder: Path):
    (folder.parent / "linked").symlink_to(folder, target_is_directory=True)
    forget(folder.parent / "linked", "person 1")
    assert sorted(path.name for path in folder.iterdir()) == ["person 0", "person 2"]
