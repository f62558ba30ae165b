"""Layouts, splits and packed faces; a stopped or damaged run never costs the last good result."""

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import types
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facekit import datasets
from facekit.datasets import (
    KNOWN,
    Photo,
    download,
    find_known,
    folder_of_folders,
    load_faces,
    pack_faces,
    person_name,
    split_people,
)
from facekit.files import InputError
from facekit.images import face_pixels


def save_photo(path: Path, number: int = 0) -> Path:
    """A small photo that is different for every number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(1, 256, (24, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def make_people(root: Path, people: int = 8, photos: int = 3) -> list[Photo]:
    for person in range(people):
        for photo in range(photos):
            save_photo(root / f"person {person}" / f"{photo}.png", person * 100 + photo)
    return folder_of_folders(root)


# ---------------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("same", [
    ("pins_Tom Cruise", "Tom_Cruise", "tom cruise", " Tom  Cruise_"),
    ("Иван_Петров", "иван петров"),
    ("Zoë", unicodedata.normalize("NFD", "ZOË")),
    ("李_小龙", "李 小龙"),
    ("Weiß", "WEISS"),
])
def test_person_names_have_one_form(same):
    assert len({person_name(text) for text in same}) == 1
    assert person_name(person_name(same[0])) == person_name(same[0])


def test_person_names_stay_apart():
    assert person_name("Ann Lee") != person_name("Anne Lee")
    assert person_name("pins_Ann") == "ann"
    assert person_name("_") == "_"  # nothing left: better an odd name than none
    assert person_name("caf\udce9").encode("utf-8")  # a file name that is not UTF-8


LAYOUTS = {
    "natural": ("lfw_funneled/", "Faces/Faces/", "105_classes_pins_dataset/"),
    "one level less": ("", "Faces/", ""),
    "one level more": ("lfw/lfw_funneled/", "archive/Faces/Faces/", "archive/105_classes_pins_dataset/"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_known_layouts(tmp_path, layout):
    lfw, faces, pins = LAYOUTS[layout]
    for name in ("Tom_Cruise/Tom_Cruise_0001.jpg", "Ann_Lee/Ann_Lee_0001.jpg", "Ann_Lee/Ann_Lee_0002.jpg"):
        save_photo(tmp_path / "lfwpeople" / f"{lfw}{name}")
    for name in ("Tom Cruise_0.jpg", "Tom Cruise_12.jpg", "Zac Efron_3.jpg"):
        save_photo(tmp_path / "face-recognition-dataset" / f"{faces}{name}")
    save_photo(tmp_path / "face-recognition-dataset/Original Images/Zac Efron/Zac Efron_3.jpg", 1)
    save_photo(tmp_path / "pins-face-recognition" / f"{pins}pins_tom cruise/tom cruise100_2.jpg")

    photos = find_known(tmp_path)
    found = Counter((photo.source, photo.person, photo.crop_fraction) for photo in photos)
    assert found == {
        ("lfwpeople", "tom cruise", 0.5): 1, ("lfwpeople", "ann lee", 0.5): 2,
        ("face-recognition-dataset", "tom cruise", 1.0): 2, ("face-recognition-dataset", "zac efron", 1.0): 1,
        ("pins-face-recognition", "tom cruise", 0.7): 1}
    assert all(photo.path.is_file() for photo in photos)


def test_known_sets_that_are_missing_or_empty(tmp_path):
    assert find_known(tmp_path) == []
    (tmp_path / "lfwpeople").mkdir()
    with pytest.raises(InputError, match="lfwpeople holds no photos"):
        find_known(tmp_path)


def test_folder_of_folders(tmp_path, monkeypatch):
    root = tmp_path / "family"
    for name in ("Ann/1.png", "Ann/old/scan/2.png", "Ann/10.png", "Борис_Ж/1.png", "group.png"):
        save_photo(root / name)
    photos = folder_of_folders(root, crop_fraction=0.6)
    assert [photo.path.relative_to(root).as_posix() for photo in photos] == [
        "Ann/1.png", "Ann/10.png", "Ann/old/scan/2.png", "Борис_Ж/1.png"]
    assert [photo.person for photo in photos] == ["ann", "ann", "ann", "борис ж"]
    assert {(photo.source, photo.crop_fraction) for photo in photos} == {("family", 0.6)}
    monkeypatch.chdir(root)
    assert [photo.person for photo in folder_of_folders(".")] == ["ann", "ann", "ann", "борис ж"]
    assert folder_of_folders(".")[0].source == "family"


def test_folder_of_folders_says_what_it_wants(tmp_path):
    with pytest.raises(InputError, match="missing is not a folder"):
        folder_of_folders(tmp_path / "missing")
    save_photo(tmp_path / "flat.png")
    with pytest.raises(InputError, match="one folder per person.*PERSON/photo.jpg"):
        folder_of_folders(tmp_path)


# ----------------------------------------------------------------------------------------------------- splits


PEOPLE = {f"person {number}": 1 + number % 4 for number in range(1000)}  # a quarter have one photo


def test_split_has_every_person_once_and_each_kind_in_its_share():
    split = split_people(PEOPLE)
    assert split.keys() == PEOPLE.keys()
    kinds = Counter((part, PEOPLE[person] >= 2) for person, part in split.items())
    assert kinds == {("train", True): 600, ("validation", True): 75, ("test", True): 75,
                     ("train", False): 200, ("validation", False): 25, ("test", False): 25}


def test_split_is_stable():
    assert split_people(dict(reversed(PEOPLE.items()))) == split_people(PEOPLE)
    assert split_people(PEOPLE, seed=1) != split_people(PEOPLE, seed=0)
    # By the definition, on any machine: the first 8 of 10 by their hash are train.
    ten = {f"person {number}": 2 for number in range(10)}
    ranked = sorted(ten, key=lambda person: hashlib.sha256(f"7/{person}".encode()).digest())
    assert [split_people(ten, seed=7)[person] for person in ranked] == ["train"] * 8 + ["validation", "test"]


@pytest.mark.parametrize("count", range(12))
def test_split_of_few_people(count):
    parts = Counter(split_people({f"person {number}": 2 for number in range(count)}).values())
    assert sum(parts.values()) == count
    if count >= 3:
        assert min(parts["train"], parts["validation"], parts["test"]) >= 1
        assert parts["train"] == max(parts.values())
    else:
        assert parts["train"] == count


# ---------------------------------------------------------------------------------------------------- packing


def read_csv(path: Path) -> list[dict]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_pack_and_load(tmp_path):
    photos = make_people(tmp_path / "set")
    photos.append(Photo(save_photo(tmp_path / "x.png", 9999), "alone", "other", 0.5))
    summary = pack_faces(photos, tmp_path / "packed", size=16, seed=3)
    faces = load_faces(tmp_path / "packed")

    assert (faces.images.shape, faces.images.dtype) == ((25, 1, 16, 16), np.uint8)
    assert isinstance(faces.images, np.memmap)
    for row, photo in enumerate(photos):
        assert np.array_equal(faces.images[row], face_pixels(photo.path, 16, photo.crop_fraction))
        assert faces.names[faces.people[row]] == photo.person
        assert (faces.files[row], faces.sources[row]) == (str(photo.path), photo.source)
    assert faces.people.dtype == np.int64
    assert faces.names == sorted({photo.person for photo in photos})

    rows = [faces.part(split) for split in ("train", "validation", "test")]
    assert sorted(np.concatenate(rows)) == list(range(25))
    people = [set(faces.people[part]) for part in rows]
    assert not people[0] & people[1] and not people[0] & people[2] and not people[1] & people[2]
    split = split_people(Counter(photo.person for photo in photos), seed=3)
    assert faces.split.tolist() == [split[photo.person] for photo in photos]
    with pytest.raises(ValueError, match="no split"):
        faces.part("val")

    train = sorted(person for person, part in split.items() if part == "train")
    assert summary == faces.summary == {
        "people": 9, "images": 25, "people_with_one_image": 1,
        "sources": {"set": {"people": 8, "images": 24, "crop_fraction": 1.0},
                    "other": {"people": 1, "images": 1, "crop_fraction": 0.5}},
        "splits": {name: {"people": len(set(faces.people[part])), "images": len(part)}
                   for name, part in zip(("train", "validation", "test"), rows)},
        "split_digest": hashlib.sha256("\n".join(train).encode()).hexdigest()[:16],
        "skipped": [], "size": 16, "color": False, "seed": 3}
    assert contents(tmp_path / "packed").keys() == {
        "contact_sheet_other.png", "contact_sheet_set.png", "images.npy", "index.csv", "skipped.csv",
        "summary.json"}
    index = read_csv(tmp_path / "packed" / "index.csv")
    assert [line["row"] for line in index] == [str(row) for row in range(25)]


def test_colour_is_packed(tmp_path):
    photos = make_people(tmp_path / "set", people=1)
    pack_faces(photos, tmp_path / "packed", size=12, color=True)
    images = load_faces(tmp_path / "packed").images
    assert images.shape == (3, 3, 12, 12)
    assert np.array_equal(images[1], face_pixels(photos[1].path, 12, color=True))


def test_skipped_photos_are_named_and_leave_no_hole(tmp_path):
    root = tmp_path / "set"
    make_people(root, people=4, photos=3)
    (root / "person 1" / "0.png").write_bytes(b"not a photo")
    (root / "person 2" / "2.png").write_bytes((root / "person 2" / "2.png").read_bytes()[:200])
    (root / "person 0" / "copy.png").write_bytes((root / "person 0" / "1.png").read_bytes())
    (root / "person 3" / "shared.png").write_bytes((root / "person 2" / "0.png").read_bytes())
    photos = folder_of_folders(root)
    photos.append(Photo(root / "person 3" / "gone.png", "person 3", "set", 1.0))
    summary = pack_faces(photos, tmp_path / "packed", size=16)

    why = {Path(item["file"]).relative_to(root).as_posix(): item["why"] for item in summary["skipped"]}
    assert set(why) == {"person 0/copy.png", "person 1/0.png", "person 2/0.png", "person 2/2.png",
                        "person 3/shared.png", "person 3/gone.png"}
    assert "no photo" in why["person 1/0.png"]
    assert "damaged or cut off" in why["person 2/2.png"]
    assert "does not exist" in why["person 3/gone.png"]
    assert why["person 0/copy.png"] == f"exact copy of {root / 'person 0' / '1.png'}"
    assert why["person 2/0.png"] == f"same picture as {root / 'person 3' / 'shared.png'} of another person"
    assert why["person 3/shared.png"] == f"same picture as {root / 'person 2' / '0.png'} of another person"
    assert read_csv(tmp_path / "packed" / "skipped.csv") == summary["skipped"]

    faces = load_faces(tmp_path / "packed")
    assert len(faces.images) == summary["images"] == len(photos) - 6
    for row, file in enumerate(faces.files):
        assert np.array_equal(faces.images[row], face_pixels(file, 16))


def test_nothing_usable(tmp_path):
    with pytest.raises(InputError, match="no photos"):
        pack_faces([], tmp_path / "packed")
    (tmp_path / "set" / "a").mkdir(parents=True)
    (tmp_path / "set" / "a" / "1.jpg").touch()
    with pytest.raises(InputError, match="None of the 1 photos.*1.jpg is empty"):
        pack_faces(folder_of_folders(tmp_path / "set"), tmp_path / "packed")
    two = [Photo(tmp_path / "a.png", "a", "set", 1.0), Photo(tmp_path / "b.png", "b", "set", 0.5)]
    with pytest.raises(InputError, match="different centre crops"):
        pack_faces(two, tmp_path / "packed")


def test_file_names_that_are_not_utf8(tmp_path):
    photos = make_people(tmp_path / "set", people=3)
    odd = os.fsencode(tmp_path / "set" / "person 0") + b"/caf\xe9.png"
    try:
        os.rename(photos[0].path, odd)
    except OSError:
        pytest.skip("this file system only has UTF-8 names")
    (tmp_path / "set" / os.fsdecode(b"bad\xe9")).mkdir()
    Path(tmp_path / "set" / os.fsdecode(b"bad\xe9") / "1.png").touch()
    summary = pack_faces(folder_of_folders(tmp_path / "set"), tmp_path / "packed", size=8)
    assert summary["images"] == 9
    assert "bad\udce9" in summary["skipped"][0]["file"] and "bad\\udce9" in (
        tmp_path / "packed" / "skipped.csv").read_text(encoding="utf-8")
    assert any("caf\\udce9.png" in file for file in load_faces(tmp_path / "packed").files)


def test_the_result_does_not_depend_on_the_number_of_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "CHUNK", 4)
    photos = make_people(tmp_path / "set", people=10, photos=5)
    photos[7].path.write_bytes(b"broken")
    pack_faces(photos, tmp_path / "one", size=16, workers=1)
    pack_faces(photos, tmp_path / "three", size=16, workers=3)
    assert contents(tmp_path / "one") == contents(tmp_path / "three")


def count_decoded(monkeypatch, fail_after: int | None = None) -> list[Path]:
    """Lets face_pixels write down what it decodes, and stop the program after so many."""
    decoded = []

    def counting(path, *arguments):
        if len(decoded) == fail_after:
            raise KeyboardInterrupt
        decoded.append(path)
        return face_pixels(path, *arguments)

    monkeypatch.setattr(datasets, "face_pixels", counting)
    return decoded


def test_a_stopped_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "CHUNK", 4)
    photos = make_people(tmp_path / "set", people=8, photos=3)
    count_decoded(monkeypatch, fail_after=14)
    with pytest.raises(KeyboardInterrupt):
        pack_faces(photos, tmp_path / "packed", size=16, workers=1)
    with pytest.raises(InputError, match="run prepare first"):
        load_faces(tmp_path / "packed")

    journal = tmp_path / "packed" / ".working" / "journal.jsonl"
    with open(journal, "a") as file:
        file.write('\n["half a li')  # as if it had been stopped while it wrote
    decoded = count_decoded(monkeypatch)
    pack_faces(photos, tmp_path / "packed", size=16, workers=1)
    assert decoded == [photo.path for photo in photos[12:]]  # three chunks of four were done
    pack_faces(photos, tmp_path / "fresh", size=16, workers=1)
    assert contents(tmp_path / "packed") == contents(tmp_path / "fresh")
    assert not (tmp_path / "packed" / ".working").exists()


@pytest.mark.parametrize("change", ["size", "colour", "crop", "edited photo", "lost faces"])
def test_a_changed_job_starts_anew(tmp_path, monkeypatch, change):
    monkeypatch.setattr(datasets, "CHUNK", 4)
    photos = make_people(tmp_path / "set", people=4, photos=3)
    count_decoded(monkeypatch, fail_after=9)
    with pytest.raises(KeyboardInterrupt):
        pack_faces(photos, tmp_path / "packed", size=16, workers=1)
    settings, crop, expected = {"size": 16}, 1.0, 12
    if change == "size":
        settings["size"] = 8
    elif change == "colour":
        settings["color"] = True
    elif change == "crop":
        crop = 0.5
    elif change == "edited photo":
        save_photo(photos[0].path, 12345)
    else:
        with open(tmp_path / "packed" / ".working" / "images.raw", "r+b") as file:
            file.write(bytes(100))
        expected = 8  # of the two chunks that were done, one is damaged
    photos = folder_of_folders(tmp_path / "set", crop)
    decoded = count_decoded(monkeypatch)
    pack_faces(photos, tmp_path / "packed", workers=1, **settings)
    assert len(decoded) == expected
    color = settings.pop("color", False)
    for image, photo in zip(load_faces(tmp_path / "packed").images, photos, strict=True):
        assert np.array_equal(image, face_pixels(photo.path, settings["size"], crop, color))


KILLED_RUN = """
import sys, time
from facekit import datasets
def slow(*arguments, decode=datasets.face_pixels):
    time.sleep(0.02)
    return decode(*arguments)
datasets.CHUNK, datasets.face_pixels = 4, slow
if __name__ == "__main__":
    photos = datasets.folder_of_folders(sys.argv[1])
    datasets.pack_faces(photos, sys.argv[2], size=16, workers=int(sys.argv[3]))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_runs_go_on(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(datasets, "CHUNK", 4)
    photos = make_people(tmp_path / "set", people=20, photos=5)
    (tmp_path / "run.py").write_text(KILLED_RUN)
    command = [sys.executable, tmp_path / "run.py", tmp_path / "set", tmp_path / "packed", str(workers)]
    repository = Path(datasets.__file__).parents[1]
    run = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(repository)}, stdout=subprocess.PIPE)
    journal = tmp_path / "packed" / ".working" / "journal.jsonl"
    deadline = time.monotonic() + 30
    while not (journal.exists() and journal.read_text().count("\n") >= 3) and time.monotonic() < deadline:
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.communicate(timeout=20)  # ends when no process has its output open: the decoding ones went, too
    finished = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
    assert 3 <= len(finished) < 25

    decoded = count_decoded(monkeypatch)
    pack_faces(photos, tmp_path / "packed", size=16, workers=1)
    assert len(decoded) == 100 - 4 * len(finished)
    pack_faces(photos, tmp_path / "fresh", size=16, workers=1)
    assert contents(tmp_path / "packed") == contents(tmp_path / "fresh")


@pytest.mark.parametrize("step", ["_copy_rows", "write_json", "write_csv", "_write_contact_sheets"])
def test_an_interrupted_write_leaves_the_last_result(tmp_path, monkeypatch, step):
    photos = make_people(tmp_path / "set", people=4)
    pack_faces(photos[:9], tmp_path / "packed", size=16)
    before = contents(tmp_path / "packed")
    with monkeypatch.context() as patch:
        def stop(*_):
            raise KeyboardInterrupt
        patch.setattr(datasets, step, stop)
        with pytest.raises(KeyboardInterrupt):
            pack_faces(photos, tmp_path / "packed", size=16)
    assert contents(tmp_path / "packed") == before
    assert len(load_faces(tmp_path / "packed").images) == 9
    decoded = count_decoded(monkeypatch)
    pack_faces(photos, tmp_path / "packed", size=16)
    assert len(load_faces(tmp_path / "packed").images) == 12
    assert decoded == []  # all had been decoded before the interruption


@pytest.mark.parametrize("moved", range(5))
def test_stopped_while_the_result_is_moved(tmp_path, monkeypatch, moved):
    """Whatever has been moved, the index that is read belongs to the images that are read."""
    photos = make_people(tmp_path / "set", people=4)
    pack_faces(photos[:9], tmp_path / "packed", size=16)
    replace, calls = os.replace, []

    def stop_later(source, target):
        if Path(source).parent.name == ".finished":
            if len(calls) == moved:
                raise KeyboardInterrupt
            calls.append(target)
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stop_later)
        with pytest.raises(KeyboardInterrupt):
            pack_faces(photos, tmp_path / "packed", size=16)
    faces = load_faces(tmp_path / "packed")
    assert faces.files == [str(photo.path) for photo in photos]
    for row, photo in enumerate(photos):
        assert np.array_equal(faces.images[row], face_pixels(photo.path, 16))


def test_contact_sheets_of_sources_that_are_gone_are_removed(tmp_path):
    pack_faces(make_people(tmp_path / "first"), tmp_path / "packed", size=8)
    pack_faces(make_people(tmp_path / "second"), tmp_path / "packed", size=8)
    sheets = [path.name for path in (tmp_path / "packed").glob("contact_sheet_*")]
    assert sheets == ["contact_sheet_second.png"]


def damage(name: str, data: bytes | None):
    def apply(folder: Path) -> None:
        (folder / name).unlink()
        if data is not None:
            (folder / name).write_bytes(data)
    return apply


@pytest.mark.parametrize("spoil", [
    damage("images.npy", None), damage("index.csv", None), damage("summary.json", None),
    damage("images.npy", b""), damage("images.npy", b"\x93NUMPY\x01\x00"), damage("summary.json", b"{"),
    damage("index.csv", b""), damage("index.csv", b"row,person,source,file,split\n"),
    damage("index.csv", b"row,person\n0,a\n"), damage("index.csv", b"\xff\xfe"),
    lambda folder: np.save(folder / "images.npy", np.zeros((4, 1, 8, 8), np.uint8)),
    lambda folder: np.save(folder / "images.npy", np.zeros((6, 1, 8, 8), np.float32)),
    lambda folder: np.save(folder / "images.npy", np.array([{}], object), allow_pickle=True),
    damage("index.csv", b"row,person,source,file,split\n0,a,b,c,val\n1,a,b,c,val\n2,a,b,c,val\n"
                        b"3,a,b,c,val\n4,a,b,c,val\n5,a,b,c,val\n"),
])
def test_load_says_what_is_wrong(tmp_path, spoil):
    pack_faces(make_people(tmp_path / "set", people=2), tmp_path / "packed", size=8)
    spoil(tmp_path / "packed")
    with pytest.raises(InputError, match=r"packed.*(run prepare|make it again)"):
        load_faces(tmp_path / "packed")


def test_load_without_prepare(tmp_path):
    with pytest.raises(InputError, match=r"images\.npy is missing: run prepare first"):
        load_faces(tmp_path / "nothing")


# -------------------------------------------------------------------------------------------------- downloads


def test_download_lfw(tmp_path, monkeypatch):
    def fetch_lfw_people(data_home, **_):
        save_photo(Path(data_home, "lfw_home/lfw_funneled/Ann_Lee/Ann_Lee_0001.jpg"))
        Path(data_home, "lfw_home/joblib").mkdir()

    stand_in = types.SimpleNamespace(fetch_lfw_people=fetch_lfw_people)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", stand_in)
    assert download("lfw", tmp_path) == tmp_path / "lfwpeople"
    assert [path.name for path in tmp_path.iterdir()] == ["lfwpeople"]
    assert (tmp_path / "lfwpeople/lfw_funneled/Ann_Lee/Ann_Lee_0001.jpg").is_file()
    assert [photo.person for photo in find_known(tmp_path)] == ["ann lee"]
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    download("lfw", tmp_path)  # it is there: nothing is loaded again


@pytest.mark.parametrize(("name", "inside"), [("faces", "Faces/Faces/Ann Lee_1.jpg"),
                                              ("pins", "105_classes_pins_dataset/pins_Ann Lee/1.jpg")])
def test_download_from_kaggle(tmp_path, monkeypatch, name, inside):
    def dataset_download(handle):
        assert handle == KNOWN[name].kaggle
        save_photo(tmp_path / "cache" / inside)
        return str(tmp_path / "cache")

    monkeypatch.setitem(sys.modules, "kagglehub", types.SimpleNamespace(dataset_download=dataset_download))
    assert (download(name, tmp_path / "dataset") / inside).is_file()
    assert [photo.person for photo in find_known(tmp_path / "dataset")] == ["ann lee"]
    assert (tmp_path / "cache" / inside).is_file()  # kagglehub's cache stays whole


@pytest.mark.parametrize("name", KNOWN)
def test_download_that_fails_says_how_to_do_it_by_hand(tmp_path, monkeypatch, name):
    def fail(*_, **__):
        raise ConnectionError("no network")

    by_hand = rf"By hand: get https://www.kaggle.com/datasets/{KNOWN[name].kaggle} .*{KNOWN[name].folder}"
    package = "sklearn.datasets" if name == "lfw" else "kagglehub"
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"pip install.*{by_hand}"):
        download(name, tmp_path)
    monkeypatch.setitem(sys.modules, package,
                        types.SimpleNamespace(fetch_lfw_people=fail, dataset_download=fail))
    with pytest.raises(InputError, match=rf"no network.*{by_hand}"):
        download(name, tmp_path)
    assert not (tmp_path / KNOWN[name].folder).exists()
