"""The data sets with boxes, the augmentation, the metrics against pycocotools, a small real training, the commands."""

import contextlib
import csv
import io
import json
import math
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

import fasterrcnn_face_recognition as fr
from facekit import detection, training
from facekit.detection import BoxedPhoto
from facekit.files import InputError

CPU = torch.device("cpu")


def save_photo(path: Path, size: tuple[int, int] = (60, 40), colour: int = 90, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour, 120, 30)).save(path, **options)
    return path


def write_lines(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def by_name(photos: list[BoxedPhoto]) -> dict[str, BoxedPhoto]:
    return {photo.path.name: photo for photo in photos}


# ---------------------------------------------------------------- formats


def test_boxes_csv(tmp_path: Path):
    for name in ("crowd_1.png", "crowd_2.png", "alone_1.png"):
        save_photo(tmp_path / "photos" / name)
    write_lines(tmp_path / "boxes.csv", "file,xmin,ymin,xmax,ymax", "crowd_1.png,1,2,11,12.5",
                "photos/crowd_1.png,20,2,30,12", "alone_1.png,5,5,9,9", "crowd_2.png,,,,")  # fmt: skip
    photos = by_name(detection.read_folder(tmp_path)[1:])
    assert {name: photo.source for name, photo in photos.items()} == {
        "crowd_1.png": "crowd", "crowd_2.png": "crowd", "alone_1.png": "alone"}  # fmt: skip
    np.testing.assert_array_equal(detection.read_folder(tmp_path)[0].boxes, [[1, 2, 11, 12.5]])
    assert photos["crowd_2.png"].boxes.shape == (0, 4)
    assert photos["alone_1.png"].path == tmp_path / "photos" / "alone_1.png"


def test_photos_of_the_same_name_in_two_folders(tmp_path: Path):
    """As the drawn faces of the recogniser lie."""
    for person in ("ann", "bob"):
        save_photo(tmp_path / person / "1.png")
    write_lines(tmp_path / "boxes.csv", "file,xmin,ymin,xmax,ymax", "ann/1.png,1,1,9,9", "bob/1.png,2,2,9,9")
    first, second = detection.read_folder(tmp_path)
    assert (first.path, second.path) == (tmp_path / "ann" / "1.png", tmp_path / "bob" / "1.png")
    assert first.source == second.source == tmp_path.name


def test_many_prefixes_are_no_sources(tmp_path: Path):
    lines = [f"name{number}_1.png,1,1,9,9" for number in range(detection.MOST_SOURCES + 1)]
    write_lines(tmp_path / "boxes.csv", "file,xmin,ymin,xmax,ymax", *lines)
    assert {photo.source for photo in detection.read_folder(tmp_path)} == {tmp_path.name}


def test_bbox_train_csv_is_scaled_to_the_photo(tmp_path: Path):
    folder = tmp_path / "count-the-number-of-faces-present-in-an-image" / "train"
    for number in range(4):
        save_photo(folder / "image_data" / f"1000{number}.jpg", (60, 40), colour=40 * number)
    write_lines(folder / "bbox_train.csv", "Name,width,height,xmin,ymin,xmax,ymax", "10000.jpg,120,80,20,20,40,44",
                "10000.jpg,120,80,60,20,80,44", "10001.jpg,60,40,5,5,15,15", "10002.jpg,40,60,5,5,15,15",
                "10003.jpg,60,0,5,5,15,15")  # fmt: skip
    photos = detection.find_known(tmp_path)
    assert {photo.source for photo in photos} == {folder.parent.name}
    summary = detection.pack_photos(photos, tmp_path / "packed", size=30)
    assert [item["file"] for item in summary["skipped"]] == [str(folder / f"image_data/1000{n}.jpg") for n in (2, 3)]
    assert "40 x 60" in summary["skipped"][0]["why"] and "60 x 0" in summary["skipped"][1]["why"]
    packed = detection.load_photos(tmp_path / "packed")
    assert packed.photo(0).shape == (3, 20, 30)
    np.testing.assert_allclose(packed.boxes[0], [[5, 5, 10, 11], [15, 5, 20, 11]])


def test_voc_takes_every_object_for_a_face(tmp_path: Path):
    folder = tmp_path / "face-mask-detection"
    save_photo(folder / "images" / "maksssksksss0.png")
    box = "<bndbox><xmin>{}</xmin><ymin>2</ymin><xmax>{}</xmax><ymax>22</ymax></bndbox>"
    objects = "".join(f"<object><name>{name}</name>{box.format(x, x + 10)}</object>"
                      for name, x in (("with_mask", 1), ("without_mask", 20), ("mask_weared_incorrect", 40)))
    write_lines(folder / "annotations" / "maksssksksss0.xml",
                f"<annotation><filename>maksssksksss0.png</filename>{objects}</annotation>")
    write_lines(folder / "annotations" / "none.xml", "<annotation></annotation>")
    with_faces, without = detection.find_known(tmp_path)
    assert with_faces.path == folder / "images" / "maksssksksss0.png" and with_faces.source == "face-mask-detection"
    np.testing.assert_array_equal(with_faces.boxes, [[1, 2, 11, 22], [20, 2, 30, 22], [40, 2, 50, 22]])
    assert without.boxes.shape == (0, 4)
    write_lines(folder / "annotations" / "broken.xml", "<annotation><object>")
    with pytest.raises(InputError, match="broken.xml"):
        detection.find_known(tmp_path)


@pytest.mark.parametrize("content", ["", "file,xmin\na.png,1\n", "file,xmin,ymin,xmax,ymax\n", "a,b\n1,2\n",
                                     "file,xmin,ymin,xmax,ymax\na.png,x,1,2,3\n",
                                     "file,xmin,ymin,xmax,ymax\na.png,1,,2,3\n",
                                     "file,xmin,ymin,xmax,ymax\na.png,1,2\n", "\0\0",
                                     "xmin,ymin,xmax,ymax,file\n1,2,3,4\n"])  # fmt: skip
def test_a_bad_boxes_csv_is_named(tmp_path: Path, content: str):
    (tmp_path / "boxes.csv").write_text(content)
    with pytest.raises(InputError, match="boxes.csv"):
        detection.read_folder(tmp_path)


def test_all_tables_of_a_folder_are_read(tmp_path: Path):
    for name in "ab":
        save_photo(tmp_path / name / "1.png")
        write_lines(tmp_path / name / "boxes.csv", "file,xmin,ymin,xmax,ymax", "1.png,1,2,11,22")
    assert [photo.path for photo in detection.read_folder(tmp_path)] == [tmp_path / "a/1.png", tmp_path / "b/1.png"]


def test_photos_of_the_same_name_are_told_apart_by_their_folders(tmp_path: Path):
    for name in "ab":
        save_photo(tmp_path / "photos" / name / "1.png")
    table = tmp_path / "marks" / "boxes.csv"
    write_lines(table, "file,xmin,ymin,xmax,ymax", "a/1.png,1,2,11,22", "b/1.png,1,2,11,22")
    photos = detection.read_boxes(table, tmp_path / "photos")
    assert [photo.path for photo in photos] == [tmp_path / "photos/a/1.png", tmp_path / "photos/b/1.png"]


def test_photos_of_the_same_name_belong_to_the_nearest_file_of_boxes(tmp_path: Path):
    box = "<object><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>11</xmax><ymax>22</ymax></bndbox></object>"
    for day in ("day1", "day2"):
        save_photo(tmp_path / day / "frame_1.png")
        write_lines(tmp_path / day / "frame_1.xml",
                    f"<annotation><filename>frame_1.png</filename>"
                    f"<size><width>0</width><height>0</height></size>{box}</annotation>")  # fmt: skip
        save_photo(tmp_path / "more" / day / "images" / "frame_2.png")
        write_lines(tmp_path / "more" / day / "marks" / "frame_2.xml",
                    f"<annotation><filename>frame_2.png</filename>"
                    f"<size><width>7</width><height>5</height></size>{box}</annotation>")  # fmt: skip
    photos = {photo.path.relative_to(tmp_path).as_posix(): photo.size for photo in detection.read_folder(tmp_path)}
    assert photos == {"day1/frame_1.png": None, "day2/frame_1.png": None,
                      "more/day1/images/frame_2.png": (7, 5), "more/day2/images/frame_2.png": (7, 5)}  # fmt: skip


def test_a_photo_that_is_missing_does_not_get_the_one_of_the_same_name_elsewhere(tmp_path: Path):
    for day in ("day1", "day2"):
        write_lines(tmp_path / day / "1.xml", "<annotation></annotation>")
    save_photo(tmp_path / "day2" / "1.png")
    read = detection.read_folder(tmp_path)
    assert [photo.path for photo in read] == [tmp_path / "day1/1.png", tmp_path / "day2/1.png"]
    (tmp_path / "images").mkdir()
    (tmp_path / "day2").rename(tmp_path / "images" / "day2")
    (tmp_path / "day1" / "1.xml").unlink()
    write_lines(tmp_path / "boxes.csv", "file,xmin,ymin,xmax,ymax", "day1/1.png,1,2,11,22", "day2/1.png,1,2,12,22",
                "day3/1.png,1,2,13,22")  # fmt: skip
    read = detection.read_boxes(tmp_path / "boxes.csv", tmp_path)
    assert [photo.path for photo in read] == [tmp_path / "day1/1.png", tmp_path / "images/day2/1.png",
                                              tmp_path / "day3/1.png"]  # fmt: skip


def test_sizes_may_be_empty_or_have_a_point(tmp_path: Path):
    write_lines(tmp_path / "boxes.csv", "file,width,height,xmin,ymin,xmax,ymax", "a.png,640.0,480.0,1,2,11,22",
                "b.png,,,,,,")  # fmt: skip
    save_photo(tmp_path / "c.png")
    write_lines(tmp_path / "c.xml", "<annotation><size><width>7.0</width><height>5</height></size></annotation>")
    sizes = {photo.path.name: photo.size for photo in detection.read_folder(tmp_path)}
    assert sizes == {"a.png": (640, 480), "b.png": None, "c.png": (7, 5)}


def test_folders_of_the_same_name_belong_together(tmp_path: Path):
    for day, right in (("day1", 11), ("day2", 12), ("day3", 13)):
        save_photo(tmp_path / "images" / day / "1.png")
        box = f"<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>{right}</xmax><ymax>22</ymax></bndbox>"
        write_lines(tmp_path / "marks" / day / "1.xml",
                    f"<annotation><filename>1.png</filename><object>{box}</object></annotation>")  # fmt: skip
    read = {photo.path.parent.name: photo.boxes[0, 2] for photo in detection.read_folder(tmp_path)}
    assert read == {"day1": 11, "day2": 12, "day3": 13}
    shutil.rmtree(tmp_path / "marks")
    write_lines(tmp_path / "boxes.csv", "file,xmin,ymin,xmax,ymax", "C:/day1/1.png,1,2,11,22",
                "C:/day2/1.png,1,2,12,22")  # fmt: skip
    read = {photo.path.parent.name: photo.boxes[0, 2] for photo in detection.read_folder(tmp_path)}
    assert read == {"day1": 11, "day2": 12}


def test_a_table_does_not_hide_the_other_files_of_boxes(tmp_path: Path):
    for name in ("a/1.png", "b/2.png"):
        save_photo(tmp_path / name)
    write_lines(tmp_path / "a" / "boxes.csv", "file, xmin, ymin, xmax, ymax", "1.png, 1, 2, 11, 22")
    write_lines(tmp_path / "b" / "2.xml", "<annotation><filename>2.png</filename></annotation>")
    first, second = detection.read_folder(tmp_path)
    assert (first.path.name, second.path.name) == ("1.png", "2.png")
    write_lines(tmp_path / "a" / "1.xml", "<annotation><filename>1.png</filename></annotation>")
    assert len(detection.read_folder(tmp_path)) == 2, "a photo that has both comes once"
    np.testing.assert_array_equal(first.boxes, [[1, 2, 11, 22]])


def test_a_folder_that_is_asked_for_is_looked_in_first(tmp_path: Path):
    for folder in ("photos", "darkened"):
        save_photo(tmp_path / folder / "1.png")
    write_lines(tmp_path / "photos" / "boxes.csv", "file,xmin,ymin,xmax,ymax", "1.png,1,2,11,22")
    [photo] = detection.read_boxes(tmp_path / "photos" / "boxes.csv", tmp_path / "darkened")
    assert photo.path == tmp_path / "darkened" / "1.png"


def test_boxes_and_photos_may_be_named_from_here_and_from_the_root(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in "ab":
        save_photo(tmp_path / "photos" / folder / "1.png")
    write_lines(tmp_path / "boxes.csv", "file,xmin,ymin,xmax,ymax", "photos/a/1.png,1,2,11,22",
                "photos/b/1.png,1,2,11,22", "2.png,1,2,11,22", "c/1.png,1,2,11,22", ",,,,")  # fmt: skip
    save_photo(tmp_path / "photos" / "b" / "2.png")
    paths = [photo.path.resolve() for photo in detection.read_boxes(tmp_path / "boxes.csv", "photos")]
    found = [tmp_path / "photos" / name for name in ("a/1.png", "b/1.png", "b/2.png")]
    assert paths == [*found, tmp_path / "photos/c/1.png"], "a photo that is missing gets no other one's place"


def test_small_sources_are_split_together():
    sources = [f"source {number // 2}" for number in range(20)] + ["large"] * 10
    parts = detection.split_photos(sources, [str(number) for number in range(30)])
    assert sorted(parts[:20]) == ["test"] * 2 + ["train"] * 16 + ["validation"] * 2
    assert sorted(parts[20:]) == ["test"] + ["train"] * 8 + ["validation"]


def test_a_folder_without_boxes(tmp_path: Path):
    save_photo(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"boxes.csv"):
        detection.read_folder(tmp_path)
    with pytest.raises(InputError, match="missing"):
        detection.read_boxes(tmp_path / "other.csv", tmp_path)
    assert detection.find_known(tmp_path) == []


def test_drawn_scenes_have_their_boxes(scenes: Path, tmp_path: Path):
    photos = detection.read_folder(scenes)
    counts = [len(photo.boxes) for photo in photos]
    assert len(photos) == 40 and min(counts) == 0 and max(counts) == 6
    detection.draw_scenes(tmp_path, 2, size=(240, 180))  # with one process; forty were drawn with several
    for one, again in zip(photos, detection.read_folder(tmp_path)):
        np.testing.assert_array_equal(again.boxes, one.boxes)
        assert again.path.read_bytes() == one.path.read_bytes() and again.source == "drawn"


# ---------------------------------------------------------------- packing


def test_bad_boxes_are_put_right_or_left_out():
    nan, inf = math.nan, math.inf
    boxes = np.array([[10, 10, 20, 20], [-5, -5, 5, 5], [50, 30, 70, 50], [20, 20, 10, 10], [100, 100, 120, 120],
                      [10, 10, 10, 20], [nan, 1, 2, 3], [1, 2, inf, 3], [-20, 5, -1, 9], [10, 10, 10.3, 20]])
    expected = [[10, 10, 20, 20], [0, 0, 5, 5], [50, 30, 60, 40], [10, 10, 20, 20]]
    np.testing.assert_array_equal(detection.clean_boxes(boxes, 60, 40), np.float32(expected))
    assert detection.clean_boxes(np.zeros((0, 4)), 60, 40).shape == (0, 4)


def test_boxes_are_scaled_to_the_picture_that_is_there():
    boxes = np.array([[10, 20, 30, 60], [5, 5, 5, 9]], np.float32)  # the second is empty
    photo = BoxedPhoto(Path("a.jpg"), "set", boxes, size=(100, 200))
    assert detection.boxes_within(photo, 50, 100).tolist() == [[5, 10, 15, 30]]
    assert detection.boxes_within(replace(photo, size=None), 100, 200).tolist() == [[10, 20, 30, 60]]
    with pytest.raises(InputError, match="a.jpg is 100 x 100, but its boxes are for a picture of 100 x 200"):
        detection.boxes_within(photo, 100, 100)


def test_packing(tmp_path: Path):
    faces = np.float32([[10, 10, 20, 20], [30, 5, 90, 8]])
    photos = [BoxedPhoto(save_photo(tmp_path / f"a_{n}.png", (60 + n, 40), n), "a", faces) for n in range(30)]
    photos += [BoxedPhoto(save_photo(tmp_path / f"b_{n}.png", (40, 60), n), "b", faces[:0]) for n in range(10)]
    for n in range(10):
        shutil.copy(tmp_path / f"a_{n}.png", tmp_path / f"c_{n}.png")
    photos += [BoxedPhoto(tmp_path / f"c_{n}.png", "b", faces) for n in range(10)]
    (tmp_path / "broken.png").write_bytes(b"no photo")
    photos += [BoxedPhoto(tmp_path / "broken.png", "a", faces), BoxedPhoto(tmp_path / "missing.png", "a", faces)]
    folder = tmp_path / "packed"
    summary = detection.pack_photos(photos, folder, size=32)
    assert [Path(item["file"]).name for item in summary["skipped"]] == ["broken.png", "missing.png"]
    assert summary["photos"] == 50 and summary["boxes"] == 80 and summary["copies"] == 10
    assert {name: counts["photos"] for name, counts in summary["sources"].items()} == {"a": 30, "b": 20}
    packed = detection.load_photos(folder)
    part_of = {Path(file).name: part for file, part in zip(packed.files, packed.split)}
    assert all(part_of[f"a_{n}.png"] == part_of[f"c_{n}.png"] for n in range(10))
    for source in "ab":
        assert {part_of[name] for name in part_of if name[0] == source} == {"train", "validation", "test"}
    for row, photo in enumerate(photos[:50]):
        expected = detection.fit_photo(Image.open(photo.path), 32)
        np.testing.assert_array_equal(packed.photo(row), expected)
        assert max(packed.shapes[row]) == 32
    assert packed.photo(0).shape == (3, 21, 32)  # of 40 x 60
    expected = faces.clip(0, 60) * np.tile((32 / 60, 21 / 40), 2)
    np.testing.assert_allclose(packed.boxes[0], expected, atol=0.01)
    assert {path.name for path in folder.iterdir()} == {
        "photos.npy", "photos.csv", "boxes.csv", "summary.json", "skipped.csv",
        "contact_sheet_a.png", "contact_sheet_b.png"}  # fmt: skip


def test_boxes_that_are_left_out_are_counted_by_file(tmp_path: Path):
    boxes = np.float32([[10, 10, 20, 20], [70, 10, 80, 20], [1, 1, 1, 9]])
    summary = detection.pack_photos([BoxedPhoto(save_photo(tmp_path / "a.png"), "a", boxes)], tmp_path / "packed")
    assert summary["bad_boxes"] == {str(tmp_path / "a.png"): 2} and summary["boxes"] == 1


def test_a_photo_without_any_face_can_be_packed(tmp_path: Path):
    photo = BoxedPhoto(save_photo(tmp_path / "a.png"), "a", detection.NO_BOXES)
    detection.pack_photos([photo], tmp_path / "packed")
    assert detection.load_photos(tmp_path / "packed").boxes[0].shape == (0, 4)
    with pytest.raises(InputError, match="None of the 1"):
        detection.pack_photos([replace(photo, path=tmp_path / "gone.png")], tmp_path / "packed")
    assert len(detection.load_photos(tmp_path / "packed").files) == 1  # the last good state


def test_boxes_are_for_the_photo_after_exif_rotation(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save_photo(tmp_path / "a.jpg", (60, 40), exif=exif)
    detection.pack_photos([BoxedPhoto(path, "a", np.float32([[5, 50, 15, 58]]))], tmp_path / "packed")
    packed = detection.load_photos(tmp_path / "packed")
    assert packed.photo(0).shape == (3, 60, 40)
    np.testing.assert_array_equal(packed.boxes[0], [[5, 50, 15, 58]])


@pytest.mark.parametrize("damage", [
    lambda folder: (folder / "photos.npy").unlink(),
    lambda folder: (folder / "photos.npy").write_bytes(b""),
    lambda folder: np.save(folder / "photos.npy", np.zeros(5, np.uint8)),
    lambda folder: (folder / "photos.csv").write_text("row,source\n0,a\n"),
    lambda folder: (folder / "boxes.csv").write_text("row,xmin\n0,x\n"),
    lambda folder: (folder / "summary.json").write_text("{"),
])  # fmt: skip
def test_damaged_packed_photos_are_refused(tmp_path: Path, damage):
    detection.pack_photos([BoxedPhoto(save_photo(tmp_path / "a.png"), "a", detection.NO_BOXES)], tmp_path / "packed")
    damage(tmp_path / "packed")
    with pytest.raises(InputError, match="packed"):
        detection.load_photos(tmp_path / "packed")


# ---------------------------------------------------------------- metrics


def random_photos(seed: int, count: int = 12) -> tuple[list[np.ndarray], list[tuple[np.ndarray, np.ndarray]]]:
    """Faces, and boxes found that are near some of them, doubled, or anywhere."""
    random = np.random.default_rng(seed)
    faces, found = [], []
    for _ in range(count):
        corner, size = random.uniform(0, 300, (random.integers(0, 8), 2)), random.uniform(8, 80)
        truth = np.hstack([corner, corner + size * random.uniform(0.8, 1.3, corner.shape)])
        near = np.repeat(truth, random.integers(0, 4), axis=0)
        near = near + random.normal(0, size / 12, near.shape)
        corner = random.uniform(0, 300, (random.integers(0, 5), 2))
        boxes = np.vstack([near, np.hstack([corner, corner + random.uniform(5, 60)])])
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        faces.append(truth)
        found.append((boxes, random.permutation(len(boxes)) / 40))  # with equal scores in different photos
    return faces, found


def coco_average_precision(faces: list, found: list, iou: float) -> float:
    boxes = [(photo, [x0, y0, x1 - x0, y1 - y0]) for photo, truth in enumerate(faces) for x0, y0, x1, y1 in truth]
    results = [{"image_id": photo + 1, "category_id": 1, "bbox": [x0, y0, x1 - x0, y1 - y0], "score": float(score)}
               for photo, (boxes_found, scores) in enumerate(found)
               for (x0, y0, x1, y1), score in zip(boxes_found, scores)]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {"info": {}, "images": [{"id": photo + 1} for photo in range(len(faces))],
                         "categories": [{"id": 1}],
                         "annotations": [{"id": n + 1, "image_id": photo + 1, "category_id": 1, "bbox": box,
                                          "area": box[2] * box[3], "iscrowd": 0}
                                         for n, (photo, box) in enumerate(boxes)]}  # fmt: skip
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(results), "bbox")
        judge.params.iouThrs = np.array([iou])
        judge.evaluate()
        judge.accumulate()
    return float(judge.eval["precision"][0, :, 0, 0, -1].mean())


@pytest.mark.parametrize("iou", [0.5, 0.75])
@pytest.mark.parametrize("seed", range(6))
def test_average_precision_is_that_of_coco(seed: int, iou: float):
    faces, found = random_photos(seed)
    ours = detection.average_precision(detection.match_photos(found, faces, iou))
    assert 0.01 < ours < 0.99
    assert ours == pytest.approx(coco_average_precision(faces, found, iou), abs=1e-9)


def test_no_more_than_100_boxes_a_photo_count():
    face = np.array([[0.0, 0, 10, 10]])
    wrong = np.array([[500.0, 500, 520, 520]])
    boxes, scores = np.vstack([wrong.repeat(100, 0), face]), np.append(np.full(100, 0.9), 0.1)
    assert detection.average_precision(detection.match_photos([(boxes, scores)], [face])) == 0
    assert detection.average_precision(detection.match_photos([(boxes[1:], scores[1:])], [face])) == pytest.approx(0.01)


def test_the_report_by_hand():
    faces = [np.float32([[0, 0, 10, 10], [50, 50, 100, 100]]), detection.NO_BOXES, np.float32([[0, 0, 30, 30]])]
    found = [
        (np.float32([[0, 0, 10, 10], [50, 50, 100, 98], [1, 1, 10, 10]]), np.float32([0.9, 0.8, 0.7])),
        (np.float32([[5, 5, 9, 9]]), np.float32([0.65])),
        (np.float32([[0, 0, 30, 14]]), np.float32([0.95])),
    ]
    report = detection.detection_report(found, faces, threshold=0.68)
    assert report["photos"] == 3 and report["boxes"] == 3
    assert report["recall"] == pytest.approx(2 / 3)
    assert report["false_boxes_per_photo"] == pytest.approx(2 / 3)  # the double and the half face
    assert {name: size["faces"] for name, size in report["recall_by_size"].items()} == {
        "below 16": 1, "16 to 32": 1, "32 to 64": 1, "64 and more": 0}  # fmt: skip
    assert [size["recall"] for size in report["recall_by_size"].values()] == [1, 0, 1, None]
    assert report["ap50"] == pytest.approx(67 / 101 * 2 / 3)  # the precision is 2/3 up to a recall of 2/3
    assert detection.worst_photos(found, faces, 0.68) == [2, 0]
    assert detection.worst_photos(found, faces, 0.6) == [2, 0, 1]


def test_reports_of_nothing():
    report = detection.detection_report([(detection.NO_BOXES, np.zeros(0))], [detection.NO_BOXES], 0.5)
    assert report["ap50"] is None and report["recall"] is None and report["false_boxes_per_photo"] == 0
    faces = [np.float32([[0, 0, 10, 10]])]
    assert detection.detection_report([(detection.NO_BOXES, np.zeros(0))], faces, 0.5)["ap50"] == 0
    assert detection.best_threshold(detection.match_photos([(detection.NO_BOXES, np.zeros(0))], faces)) == 0.5
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize("seed", range(4))
def test_the_threshold_has_the_highest_f1(seed: int):
    faces, found = random_photos(seed)
    matched = detection.match_photos(found, faces)

    def f1(threshold: float) -> float:
        kept = matched.scores >= threshold
        return 2 * matched.right[kept].sum() / (kept.sum() + len(matched.face_sizes))

    assert f1(detection.best_threshold(matched)) == max(map(f1, matched.scores))


# ---------------------------------------------------------------- augmentation


@given(st.integers(0, 10_000), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_crops_and_their_boxes_stay_together(seed: int, faces: int):
    """White discs on black: each box found in the crop bounds one, whatever was turned, scaled or mirrored."""
    random = np.random.default_rng(seed)
    width, height = random.integers(120, 440, 2)
    image, boxes = Image.new("RGB", (int(width), int(height))), []
    places = random.permutation(9)[:faces]
    for place in places:
        side = min(width, height) / 3
        radius = random.uniform(0.15, 0.45) * side
        x, y = (place % 3 + 0.5) * width / 3, (place // 3 + 0.5) * height / 3
        boxes.append((x - radius, y - radius, x + radius, y + radius))
        ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius - 1, y + radius - 1), fill="white")
    boxes = np.float32(boxes).reshape(-1, 4)
    photo = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fr, "vary_light", lambda crops, random: crops)
        crops, (targets,) = fr.augment([photo], [boxes], CPU, random)
    assert crops.shape == (1, 3, fr.CROP_SIZE, fr.CROP_SIZE)
    assert faces == 0 or len(targets) > 0
    bright = crops[0, 0].numpy() > 0.5
    left = bright.copy()
    for x0, y0, x1, y1 in targets.numpy():
        assert 0 <= x0 < x1 <= fr.CROP_SIZE and 0 <= y0 < y1 <= fr.CROP_SIZE
        inside = bright[round(y0) : round(y1), round(x0) : round(x1)]
        slack = 2 + 0.04 * max(inside.shape)  # where a pixel of the photo is several of the crop
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        assert rows[0] <= slack and columns[0] <= slack
        assert rows[-1] >= inside.shape[0] - 1 - slack and columns[-1] >= inside.shape[1] - 1 - slack
        margin = int(slack) + 1
        left[max(0, round(y0) - margin) : round(y1) + margin, max(0, round(x0) - margin) : round(x1) + margin] = False
    if faces == 0:
        assert not bright.any()
    elif len(targets) == len(boxes):
        assert not left.any()  # nothing bright outside the boxes


def test_boxes_that_leave_the_crop_or_are_tiny_are_no_targets():
    size = fr.CROP_SIZE
    boxes = np.float64([[10, 10, 30, 30], [-11, 10, 9, 30], [-13, 10, 7, 30], [size - 9, 0, size + 11, 20],
                        [40, 40, 45, 60], [-50, -50, -10, -10], [-10, -10, size + 10, size + 10]])  # fmt: skip
    kept = fr.inside_crop(boxes)
    np.testing.assert_array_equal(kept, [[10, 10, 30, 30], [0, 10, 9, 30], [size - 9, 0, size, 20], [0, 0, size, size]])
    assert fr.inside_crop(boxes[:0]).shape == (0, 4)


@given(st.floats(-0.35, 0.35), st.sampled_from([-1, 1]), st.floats(0.2, 4), st.floats(5, 80), st.floats(0.6, 1.8))
def test_a_turned_box_bounds_the_turned_ellipse(angle: float, mirror: int, scale: float, width: float, ratio: float):
    matrix = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]) * (mirror, 1)
    center, middle, half = np.array([50.0, 60]), np.array([70.0, 40]), np.array([width, width * ratio]) / 2
    around = np.linspace(0, 2 * np.pi, 2001)
    ellipse = middle + half * np.column_stack([np.cos(around), np.sin(around)])
    there = (ellipse - center) @ matrix.T + fr.CROP_SIZE / 2
    box = fr.turn_boxes(np.concatenate([middle - half, middle + half])[None], matrix, center)[0]
    np.testing.assert_allclose(box, [*there.min(0), *there.max(0)], atol=1e-3 * width * scale * max(1, ratio))


def test_light_varies_and_stays_in_range():
    crops = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    varied = fr.vary_light(crops, np.random.default_rng(0))
    assert varied.shape == crops.shape and varied.min() >= 0 and varied.max() <= 1
    assert (varied - crops).abs().mean((1, 2, 3)).min() > 0.01
    assert torch.equal(varied, fr.vary_light(crops, np.random.default_rng(0)))


# ---------------------------------------------------------------- the model in use


class SeesPhotos(nn.Module):
    """In place of a detector: finds the left half of every photo, and keeps what it saw."""

    threshold, size = 0.5, 512

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.backbone = SimpleNamespace(precision="auto")
        self.seen: list[torch.Tensor] = []

    def forward(self, photos: list[torch.Tensor]) -> list[dict]:
        self.seen += photos
        return [{"boxes": torch.tensor([[0.0, 0, p.shape[2] / 2, p.shape[1]], [0, 0, 1, 1]]),
                 "scores": torch.tensor([0.8, 0.3])} for p in photos]  # fmt: skip


def test_boxes_come_back_in_pixels_of_the_upright_photo(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = save_photo(tmp_path / "turned.jpg", (1600, 1200), exif=exif)
    small = np.zeros((50, 80, 3), np.uint8)
    model = SeesPhotos().train()
    (boxes, scores), (small_boxes, _), _ = fr.detect(model, [turned, small, Image.new("L", (700, 300))], batch_size=2)
    np.testing.assert_allclose(boxes, [[0, 0, 600, 1600]])
    np.testing.assert_allclose(scores, [0.8])
    np.testing.assert_allclose(small_boxes, [[0, 0, 40, 50]])
    assert [tuple(photo.shape[1:]) for photo in model.seen] == [(512, 384), (80, 128), (219, 512)]
    assert all(photo.shape[0] == 3 and photo.min() >= 0 and photo.max() <= 1 for photo in model.seen)
    assert model.training and len(fr.detect(model, [small], threshold=0.1)[0][1]) == 2
    assert fr.detect(model, []) == []


def test_the_model_sees_the_photo_in_the_size_it_was_given():
    model = fr.Detector().eval()
    seen = []
    model.backbone.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    fr.detect(model, [np.zeros((300, 400, 3), np.uint8)])
    assert seen == [(1, 3, 384, 512)]
    assert sum(parameter.numel() for parameter in model.parameters()) * 2 < 25e6


# ---------------------------------------------------------------- training


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    detection.draw_scenes(folder, 40, size=(240, 180))
    return folder


@pytest.fixture(scope="session")
def packed(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed_scenes")
    detection.pack_photos(detection.read_folder(scenes), folder, fr.PACKED_SIZE)
    return folder


def small(patch: pytest.MonkeyPatch) -> None:
    """Crops and photos that a test has time for."""
    patch.setattr(fr, "CROP_SIZE", 128)
    patch.setattr(fr, "DETECTOR_SIZE", 240)
    patch.setattr(fr.Detector, "size", 240)


@pytest.fixture
def small_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)


TINY = fr.Settings(epochs=2, epoch_photos=8, batch_size=4)


def test_bfloat16_does_not_round_the_boxes():
    """It has eight binary digits: a corner at 500 pixels would be off by up to 2."""
    root = Path(fr.__file__).parent
    model, photo = fr.load_detector(root / fr.DETECTOR, "cpu"), root / "dataset" / "group_photo.jpg"
    (exact, _), (found, _) = (fr.detect(model, [photo], size=512, precision=p)[0] for p in ("float32", "bfloat16"))
    far_corners = np.sort(exact[:, 2])[-3:]
    assert found.shape == exact.shape
    assert np.abs(np.sort(found[:, 2])[-3:] - far_corners).max() / Image.open(photo).width < 0.5 / 512


def test_a_stopped_training_goes_on_as_if_never_stopped(packed: Path, tmp_path: Path, small_crops: None,
                                                         monkeypatch: pytest.MonkeyPatch):  # fmt: skip
    photos = detection.load_photos(packed)
    whole = fr.train(photos, TINY, tmp_path / "whole", CPU)
    step = fr.train_step

    def step_and_interrupt(course: training.Course, *others: object) -> None:
        step(course, *others)
        course.interruption.requested = True

    with monkeypatch.context() as patch:
        patch.setattr(fr, "train_step", step_and_interrupt)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                fr.train(photos, TINY, tmp_path / "parts", CPU, resume=(tmp_path / "parts").exists())
    parts = fr.train(photos, TINY, tmp_path / "parts", CPU, resume=True)
    for (name, one), other in zip(whole.model.state_dict().items(), parts.model.state_dict().values()):
        torch.testing.assert_close(one, other, rtol=0, atol=0, msg=name)
    with pytest.raises(InputError, match="other settings"):
        fr.train(photos, replace(TINY, seed=1), tmp_path / "parts", CPU, resume=True)


def test_small_sources_and_crowds_come_more_often():
    boxes = [np.zeros((8 if number % 10 == 0 else 0, 4)) for number in range(1000)]
    part = fr.Part.__new__(fr.Part)  # without photos
    part.rows, part.boxes, part.sources = range(1000), boxes, np.array(["many"] * 900 + ["few"] * 100)
    course = SimpleNamespace(settings=fr.Settings(epoch_photos=20_000), epoch=1)
    plan = fr.plan_epoch(course, part)
    assert {len(batch) for batch in plan} == {8}
    chosen = torch.cat(plan)
    assert (chosen >= 900).float().mean() == pytest.approx(0.25, abs=0.02)  # 10 : 30
    assert (chosen % 10 == 0).float().mean() == pytest.approx(0.25, abs=0.02)  # 3 to each 9 x 1
    assert torch.equal(torch.cat(fr.plan_epoch(course, part)), chosen)


@pytest.fixture(scope="session")
def trained(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Weights of a short training on drawn scenes, made by the command, and what the command printed."""
    weights = tmp_path_factory.mktemp("weights") / "detection.safetensors"
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        small(patch)
        patch.chdir(weights.parent)
        patch.setattr(fr, "Settings", partial(fr.Settings, epochs=2, epoch_photos=160, batch_size=4))
        status = fr.main(["train", "--prepared", str(packed), "--detector", str(weights), "--device", "cpu"])
    assert status == 0
    return weights, printed.getvalue()


def test_a_short_training_finds_drawn_faces(trained: tuple[Path, str], packed: Path, small_crops: None):
    weights, printed = trained
    model = fr.load_detector(weights, "cpu")
    assert weights.stat().st_size < 25e6 and not model.training
    assert model.metadata["threshold"] == model.threshold and 0 < model.threshold < 1
    assert model.metadata["settings"]["epoch_photos"] == 160 and model.metadata["data"]["photos"] == 40
    part = fr.Part(detection.load_photos(packed), "train")
    found = fr.detect_all(model, [part.picture(i) for i in range(20)], "float32")
    ap50 = detection.average_precision(detection.match_photos(found, part.boxes[:20]))
    assert ap50 > 0.3, ap50
    assert "AP50" in printed and "history.png" in printed
    (folder,) = weights.parent.glob("outputs/*-detection")
    history = list(csv.DictReader((folder / "history.csv").open()))
    assert [row["epoch"] for row in history] == ["1", "2"]


def test_evaluate_on_the_saved_split(trained: tuple[Path, str], packed: Path, tmp_path: Path, small_crops: None,
                                     capsys: pytest.CaptureFixture):  # fmt: skip
    arguments = ["evaluate", "--prepared", str(packed), "--detector", str(trained[0]), "--charts", str(tmp_path)]
    assert fr.main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {"ap50", "ap75", "recall", "false_boxes_per_photo", "photos", "boxes"} <= set(report)
    assert report["photos"] == 4 and list(report["sources"]) == ["drawn"]
    assert 0 <= report["ap75"] <= report["ap50"] <= 1
    Image.open(tmp_path / "precision_recall.png").verify()
    Image.open(tmp_path / "worst_photos.png").verify()
    assert fr.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "drawn: AP50" in printed and "worst_photos.png" in printed


def test_evaluate_on_a_folder_agrees_with_the_split(trained: tuple[Path, str], packed: Path, scenes: Path,
                                                    tmp_path: Path, small_crops: None,
                                                    capsys: pytest.CaptureFixture):  # fmt: skip
    photos = detection.load_photos(packed)
    for row in photos.part("test"):
        shutil.copy(photos.files[row], tmp_path)
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    names = {Path(photos.files[row]).name for row in photos.part("test")}
    lines = [line for line in (scenes / "boxes.csv").read_text().splitlines() if line.split(",")[0] in {"file", *names}]
    write_lines(tmp_path / "boxes.csv", *lines, "broken.jpg,1,1,5,5")
    common = ["evaluate", "--detector", str(trained[0]), "--charts", str(tmp_path / "charts"), "--json"]
    assert fr.main([*common, "--images", str(tmp_path), "--boxes", str(tmp_path / "boxes.csv")]) == 0
    on_folder, complaints = capsys.readouterr()
    assert "broken.jpg" in complaints
    assert fr.main([*common, "--prepared", str(packed)]) == 0
    on_split = json.loads(capsys.readouterr().out)
    for name in ("ap50", "recall", "photos", "boxes", "false_boxes_per_photo"):
        assert json.loads(on_folder)[name] == pytest.approx(on_split[name], abs=1e-6)


def test_prepare_and_a_dry_run(scenes: Path, tmp_path: Path, small_crops: None, capsys: pytest.CaptureFixture):
    prepared = tmp_path / "prepared"
    assert fr.main(["prepare", "--data", str(scenes), "--prepared", str(prepared)]) == 0
    printed = capsys.readouterr().out
    assert "40 photos with" in printed and "32 for train, 4 for validation, 4 for test" in printed
    weights = tmp_path / "published.safetensors"
    assert fr.main(["train", "--prepared", str(prepared), "--detector", str(weights), "--dry-run",
                    "--batch-size", "2"]) == 0  # fmt: skip
    assert not weights.exists() and (prepared / "dry_run" / "detection.safetensors").exists()


def test_train_obeys_its_switches_and_goes_on_after_a_stop(packed: Path, tmp_path: Path, small_crops: None,
                                                          monkeypatch: pytest.MonkeyPatch,
                                                          capsys: pytest.CaptureFixture):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fr, "Settings", partial(fr.Settings, epoch_photos=8))
    finish_epoch = fr.finish_epoch

    def stopped(*arguments: object) -> None:
        finish_epoch(*arguments)
        raise KeyboardInterrupt

    command = ["train", "--prepared", str(packed), "--detector", "mine.safetensors", "--device", "cpu", "--epochs", "2",
               "--batch-size", "4", "--learning-rate", "1e-4", "--seed", "5", "--name", "mine"]  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(fr, "finish_epoch", stopped)
        assert fr.main(command) == 130
    assert "--resume" in capsys.readouterr().err and not Path("mine.safetensors").exists()
    assert fr.main([*command, "--resume"]) == 0
    printed = capsys.readouterr().out
    assert "epoch 2" in printed and "epoch 1" not in printed
    chosen = fr.load_detector("mine.safetensors", "cpu").metadata["settings"]
    assert [chosen[name] for name in ("epochs", "batch_size", "learning_rate", "seed")] == [2, 4, 1e-4, 5]
    (folder,) = Path("outputs").iterdir()
    assert folder.name.endswith("-mine")
    assert [row["epoch"] for row in csv.DictReader((folder / "history.csv").open())] == ["1", "2"]


def test_prepare_draws_when_there_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                             capsys: pytest.CaptureFixture):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fr, "DRAWN_SCENES", 5)
    assert fr.main(["prepare"]) == 0
    assert "drawing 5 photos" in capsys.readouterr().out
    assert detection.load_photos("data/detection").summary["photos"] == 5


@pytest.mark.parametrize("arguments, complaint", [
    (["train"], "run prepare first"),
    (["evaluate"], "train it first"),
    (["prepare", "--data", "nowhere"], "nowhere"),
])  # fmt: skip
def test_errors_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
                                 arguments: list[str], complaint: str):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert fr.main(arguments) == 2
    error = capsys.readouterr().err
    assert complaint in error and error.startswith("error: ") and error.count("\n") == 1


def test_images_and_boxes_go_together(trained: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture):
    assert fr.main(["evaluate", "--detector", str(trained[0]), "--images", str(tmp_path)]) == 2
    assert "--boxes" in capsys.readouterr().err


def test_weights_of_something_else_are_refused(tmp_path: Path):
    path = tmp_path / "other.safetensors"
    training.save_weights(path, nn.Linear(2, 2), {"architecture": "linear"})
    with pytest.raises(InputError, match="other.safetensors"):
        fr.load_detector(path)
