"""Marked faces: each layout that is read, the packed array of them all, and how wrong points are."""

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facekit import landmarks, synthetic
from facekit.files import InputError
from facekit.images import open_photo
from facekit.landmarks import KAGGLE_COLUMNS, POINTS, MarkedFace

HEADER = ["file", *(f"{point}_{axis}" for point in POINTS for axis in "xy")]
# Of a face in a picture of side 1; all distances between two points differ.
FACE = np.array([(0.34, 0.38), (0.62, 0.40), (0.52, 0.53), (0.41, 0.67), (0.60, 0.70)])
BRIGHTNESS = (240, 200, 160, 120, 80)  # of the dots at the five points


def dotted(points: np.ndarray, width: int = 96, height: int = 96) -> np.ndarray:
    """A grey picture (height, width) uint8: black, with a soft dot at each point (5, 2), each of its own brightness."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    radius = 0.06 * np.ptp(points, axis=0).max()
    picture = np.zeros((height, width))
    for (x, y), brightness in zip(points, BRIGHTNESS):
        picture += brightness * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * radius**2))
    return picture.round().astype(np.uint8)


def find_dots(pixels: np.ndarray, count: int = 5) -> np.ndarray:
    """The dots (count, 2) of a grey picture (H, W), the brightest first: by pixels alone."""
    light, found = pixels.astype(float), []
    rows, columns = np.mgrid[: light.shape[0], : light.shape[1]] + 0.5
    for _ in range(count):
        y, x = np.unravel_index(light.argmax(), light.shape)
        near = np.hypot(columns - x - 0.5, rows - y - 0.5) < 0.05 * len(light)
        weight = light * near
        found.append(((weight * columns).sum() / weight.sum(), (weight * rows).sum() / weight.sum()))
        light[near] = 0
    return np.array(found)


def face_of(number: int, side: float = 96) -> np.ndarray:
    """Points (5, 2), other ones for each number."""
    return (FACE + np.random.default_rng(number).uniform(-0.02, 0.02, (5, 2))) * side


def write_table(path: Path, rows: Sequence[Sequence], header: Sequence[str] = HEADER) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_dotted(folder: Path, names: Sequence[str], width: int = 96, height: int = 96) -> Path:
    """Pictures with dots at their points, and points.csv."""
    rows = []
    for number, name in enumerate(names):
        points = face_of(number, min(width, height))
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(dotted(points, width, height)).save(folder / name)
        rows.append([name, *points.ravel()])
    return write_table(folder / "points.csv", rows)


def dots_of(face: MarkedFace) -> np.ndarray:
    return find_dots(np.asarray(open_photo(face.picture).convert("L")))


# ---------------------------------------------------------------- the layouts


def test_points_csv_says_where_the_points_of_its_pictures_are(tmp_path: Path):
    write_dotted(tmp_path / "some faces", ["web_One_0001.png", "video_Two_00tr.png", "photo_3_1.png"], 120, 96)
    faces = landmarks.find_faces(tmp_path)
    assert [face.file for face in faces] == ["web_One_0001.png", "video_Two_00tr.png", "photo_3_1.png"]
    assert [face.source for face in faces] == ["web", "video", "photo"]
    for face in faces:
        assert face.points.shape == (5, 2) and face.box is None
        np.testing.assert_allclose(face.points, dots_of(face), atol=0.2)


def test_pictures_may_lie_in_another_folder_than_their_points(tmp_path: Path):
    write_dotted(tmp_path / "pictures", ["a.png", "B.png"])
    (tmp_path / "pictures" / "points.csv").rename(tmp_path / "marks.csv")
    faces = landmarks.read_points_csv(tmp_path / "marks.csv", tmp_path / "pictures")
    assert [face.picture for face in faces] == [tmp_path / "pictures" / "a.png", tmp_path / "pictures" / "B.png"]
    assert {face.source for face in faces} == {"pictures"}


@pytest.mark.parametrize("empty", ["", "nan", "inf"])
def test_points_that_are_not_marked_are_nan(tmp_path: Path, empty: str):
    numbers = np.arange(10).astype(str).tolist()
    numbers[4] = empty  # x of the nose tip
    [face] = landmarks.read_points_csv(write_table(tmp_path / "points.csv", [["a.png", *numbers]]))
    np.testing.assert_array_equal(face.points, [(0, 1), (2, 3), (np.nan, np.nan), (6, 7), (8, 9)])


def test_columns_may_come_in_any_order_among_others(tmp_path: Path):
    header = ["who", *reversed(HEADER)]
    path = write_table(tmp_path / "points.csv", [["me", *reversed(["a.png", *range(10)])]], header)
    path.write_text("\ufeff" + path.read_text())  # as a spreadsheet saves it
    [face] = landmarks.read_points_csv(path)
    assert face.file == "a.png" and face.points.tolist() == np.arange(10.0).reshape(5, 2).tolist()


def test_drawn_faces_are_marked_where_they_were_drawn(tmp_path: Path):
    synthetic.write_faces(tmp_path, people=4, pictures_per_person=2, seed=3, size=64, workers=1, zoom=0.65)
    faces = landmarks.find_faces(tmp_path)
    assert [face.group for face in faces[::2]] == [face.group for face in faces[1::2]] == [
        f"person_0000{identity}" for identity in (1, 2, 3, 4)]  # fmt: skip
    for face, (identity, picture) in zip(faces, [(1, 1), (1, 2), (2, 1), (2, 2)]):
        expected = synthetic.draw_face(synthetic.make_person(identity, 3), picture, 64, 0.65)
        np.testing.assert_allclose(face.points, expected.landmarks, atol=0.006)
        assert np.abs(np.asarray(open_photo(face.picture), int) - expected.pixels).mean() < 6  # JPEG


def write_kaggle(folder: Path, name: str = "face_images.npz", faces: int = 3, rows: int = 3) -> None:
    """Its left is the person's own, and its points count from the centre of the first pixel."""
    points = [face_of(number) for number in range(faces)]
    images = np.stack([dotted(each) for each in points], axis=2).astype(np.float64)  # (96, 96, N)
    assert images.shape == (96, 96, faces)
    own = {"right_eye_center": 0, "left_eye_center": 1, "nose_tip": 2, "mouth_right_corner": 3, "mouth_left_corner": 4}
    names = ["mouth_center_bottom_lip", "left_eye_center", "mouth_left_corner", "nose_tip", "left_eye_inner_corner",
             "mouth_right_corner", "right_eye_center"]  # fmt: skip
    table = []
    for each in points[:rows]:
        marks = {other: each[point] - 0.5 for other, point in own.items()}
        table.append(np.concatenate([marks.get(other, np.zeros(2)) for other in names]).tolist())
    table[1][names.index("nose_tip") * 2] = ""
    write_table(folder / "facial_keypoints.csv", table, [f"{other}_{axis}" for other in names for axis in "xy"])
    if name.endswith(".npz"):
        np.savez_compressed(folder / name, face_images=images)
    else:
        np.save(folder / name, images)


@pytest.mark.parametrize("name", ["face_images.npz", "face_images.npy"])
def test_the_left_of_kaggle_is_our_right(tmp_path: Path, name: str):
    write_kaggle(tmp_path / "kaggle", name)
    faces = landmarks.find_faces(tmp_path)
    assert [face.source for face in faces] == ["kaggle"] * 3 and len({face.group for face in faces}) == 3
    for number, face in enumerate(faces):
        assert f"{name}[{number}]" == face.file
        expected = dots_of(face)  # the dots tell the points by their brightness
        expected[2] = np.nan if number == 1 else expected[2]
        np.testing.assert_allclose(face.points, expected, atol=0.2)


PTS = "version: 1\nn_points: 68\n{\n" + "".join(f"{i + 1}.0 {100 - i}\n" for i in range(68)) + "}\n"


def write_pts(folder: Path, names: Sequence[str], size: tuple[int, int] = (120, 110)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.new("L", size, 10 * number).save(folder / name)
        (folder / name).with_suffix(".pts").write_text(PTS)


def test_five_points_of_68(tmp_path: Path):
    """Point i, counted from 0, is at (i + 1, 100 - i), in pixels counted from 1."""
    write_pts(tmp_path / "indoor", ["indoor_001.png"])
    Image.new("L", (9, 9)).save(tmp_path / "unmarked.png")
    [face] = landmarks.find_faces(tmp_path)
    # The left eye is the mean of points 36 to 41, the right eye of 42 to 47.
    assert face.points.tolist() == [[39, 61], [45, 55], [30.5, 69.5], [48.5, 51.5], [54.5, 45.5]]
    # A square of four times 24 pixels, the width of the five points, around the middle of them.
    assert face.box == (42.5 - 48, 57.5 - 48, 42.5 + 48, 57.5 + 48)
    assert (face.file, face.source) == ("indoor_001.png", "indoor")
    _, points = landmarks.cut(face)
    np.testing.assert_allclose(points, (face.points - face.box[:2]) * 128 / 96)


def test_photos_with_68_points_are_each_their_own_group_but_faces_of_one_photo_are_not(tmp_path: Path):
    write_pts(tmp_path, ["indoor_001.png", "indoor_002.png", "1051618982_1.png", "1051618982_2.png",
                         "image_003_1.png", "image_003_2.png", "image_003_1_mirror.png"])  # fmt: skip
    group = {face.file: face.group for face in landmarks.find_faces(tmp_path)}
    assert group["1051618982_1.png"] == group["1051618982_2.png"]
    assert group["image_003_1.png"] == group["image_003_2.png"] == group["image_003_1_mirror.png"]
    assert len(set(group.values())) == 4


@pytest.mark.parametrize("files", [
    ("video_Some_One_12tr.webp", "video_Some_One_07te.webp", "video_Some_One_3.webp"),
    ("photo_helen_trainset_100040721_1.webp", "photo_helen_trainset_100040721_2.webp"),
    ("Some_One/1.jpg", "Some_One/2.jpg"),
    ("web_lfw_5590_Some_One_0001.webp", "video_Some_One_12tr.webp"),
    ("web_lfw_5590_J.J._de_la_One-Two_0001.webp", "video_J.J._de_la_One-Two_3.webp"),
    ("web_AFLW_0001-image20056.webp", "web_AFLW_0733-image20056.webp"),
    ("web_net_7876_60_0_0.webp", "web_net_7876_60_1_0.webp"),
])  # fmt: skip
def test_pictures_of_one_video_photo_or_person_are_one_group(tmp_path: Path, files: tuple):
    others = ["video_Some_Two_12tr.webp", "photo_helen_trainset_100040722_1.webp", "Some_Three/1.jpg",
              "web_AFLW_0001-image20057.webp", "web_AFLW_0733-image20058.webp", "web_net_7876_61_0_0.webp"]
    rows = [[file, *range(10)] for file in (*files, *others)]
    faces = landmarks.read_points_csv(write_table(tmp_path / "points.csv", rows))
    groups = [face.group for face in faces]
    assert len(set(groups[: len(files)])) == 1 and len(set(groups)) == 1 + len(others)


@pytest.mark.parametrize(("files", "groups"), [
    (["images/Ada_1.jpg", "images/Ada_2.jpg", "images/Ben_1.jpg", "images/Cleo_1.jpg", "images/Dan_1.jpg"],
     ["Ada", "Ada", "Ben", "Cleo", "Dan"]),  # one folder tells nothing
    (["train/Ada_1.jpg", "val/Ada_2.jpg", "val/Ben_1.jpg", "val/Cleo_1.jpg", "val/Dan_1.jpg"],
     ["Ada", "Ada", "Ben", "Cleo", "Dan"]),
    (["Ada/1.jpg", "Ada/2.jpg", "Ben/1.jpg", "Cleo/1.jpg", "Dan/1.jpg"], ["Ada", "Ada", "Ben", "Cleo", "Dan"]),
    (["IMG_1.jpg", "IMG_2.jpg", "DSC_1.jpg", "DSC_2.jpg"], None),  # cameras, not people
    (["train/1.jpg", "train/2.jpg", "val/1.jpg"], None),
])  # fmt: skip
def test_folders_or_names_that_are_too_few_to_be_people_are_no_groups(tmp_path: Path, files: list, groups: list | None):
    path = write_table(tmp_path / "points.csv", [[file, *range(10)] for file in files])
    assert [face.group for face in landmarks.read_points_csv(path)] == (groups or files)


# ---------------------------------------------------------------- what cannot be read


def test_a_folder_without_marked_faces(tmp_path: Path):
    Image.new("L", (9, 9)).save(tmp_path / "face.png")
    assert landmarks.find_faces(tmp_path) == []
    with pytest.raises(InputError, match="nowhere is not a folder"):
        landmarks.find_faces(tmp_path / "nowhere")


@pytest.mark.parametrize(("text", "said"), [
    ("", "no rows with the column file"),
    (",".join(HEADER) + "\n", "no rows with the column file"),
    (",".join(HEADER[:-1]) + "\na.png,1,2,3,4,5,6,7,8,9\n", "no rows with the column right_mouth_y"),
    (",".join(HEADER) + "\na.png,0,1,2,3,4,5,6,7,8,9\nb.png,0,1,2,much,4,5,6,7,8,9\n", "line 3: a coordinate is not"),
    (b"file,\xff\xfe\n", "must be a CSV file in UTF-8"),
])  # fmt: skip
def test_a_table_that_cannot_be_used_is_named(tmp_path: Path, text: str | bytes, said: str):
    (tmp_path / "points.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=rf"points\.csv.*{said}"):
        landmarks.find_faces(tmp_path)


def test_a_row_that_is_cut_off_has_fewer_points(tmp_path: Path):
    (tmp_path / "points.csv").write_text(",".join(HEADER) + "\na.png,0,1,2,3,4\n")
    [face] = landmarks.find_faces(tmp_path)
    np.testing.assert_array_equal(np.isnan(face.points).all(1), [False, False, True, True, True])


def test_a_table_of_kaggle_needs_its_columns_and_its_pictures(tmp_path: Path):
    write_kaggle(tmp_path)
    (tmp_path / "face_images.npz").unlink()
    with pytest.raises(InputError, match=r"facial_keypoints\.csv lacks its pictures"):
        landmarks.find_faces(tmp_path)
    write_table(tmp_path / "facial_keypoints.csv", [[1.0]], ["left_eye_center_x"])
    with pytest.raises(InputError, match=rf"facial_keypoints\.csv.*column {KAGGLE_COLUMNS[0]}_x"):
        landmarks.find_faces(tmp_path)


def test_kaggle_pictures_and_rows_must_be_as_many(tmp_path: Path):
    write_kaggle(tmp_path, faces=3, rows=2)
    with pytest.raises(InputError, match=r"face_images\.npz has 3 pictures, but .*facial_keypoints\.csv has 2 rows"):
        landmarks.find_faces(tmp_path)


@pytest.mark.parametrize("name", ["face_images.npz", "face_images.npy"])
@pytest.mark.parametrize("part", [0, 0.5, 0.95])
def test_kaggle_pictures_that_are_cut_off(tmp_path: Path, name: str, part: float):
    write_kaggle(tmp_path, name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(InputError, match=rf"{name} cannot be read"):
        landmarks.find_faces(tmp_path)


def test_kaggle_pictures_that_are_damaged_inside(tmp_path: Path):
    write_kaggle(tmp_path)
    damaged = bytearray((tmp_path / "face_images.npz").read_bytes())
    damaged[500:600] = bytes(100)
    (tmp_path / "face_images.npz").write_bytes(damaged)
    with pytest.raises(InputError, match=r"face_images\.npz cannot be read"):
        landmarks.find_faces(tmp_path)


@pytest.mark.parametrize("array", [
    np.zeros((96, 96)), np.array(7), np.array([{"a": 1}], dtype=object), np.array(["no", "pictures"]),
])  # fmt: skip
def test_kaggle_arrays_that_are_no_pictures(tmp_path: Path, array: np.ndarray):
    write_kaggle(tmp_path)
    np.savez(tmp_path / "face_images.npz", array)
    with pytest.raises(InputError, match=r"face_images\.npz cannot be read"):
        landmarks.find_faces(tmp_path)


@pytest.mark.parametrize("text", [
    "", PTS.replace("{", "").replace("}", ""), PTS.replace("7.0 94\n", ""), PTS.replace("7.0", "seven"),
])  # fmt: skip
def test_a_pts_file_without_68_points_is_named_and_skipped(tmp_path: Path, text: str):
    write_pts(tmp_path, ["one.png"])
    write_pts(tmp_path, ["two.png"])
    (tmp_path / "one.pts").write_text(text)
    skipped: list[dict] = []
    faces = landmarks.find_faces(tmp_path, skipped)
    assert [face.file for face in faces] == ["two.png"]
    assert [photo["file"] for photo in skipped] == [str(tmp_path / "one.png")]
    assert re.search(r"one\.pts does not hold 68 points between braces", skipped[0]["why"])
    assert landmarks.pack_landmarks(faces, tmp_path / "packed", skipped=skipped)["skipped"] == skipped


# ---------------------------------------------------------------- one packed array


def test_packed_points_fit_the_packed_pictures(tmp_path: Path):
    for name, (width, height) in {"wide": (150, 100), "high": (60, 90), "square": (300, 300)}.items():
        write_dotted(tmp_path / name, [f"{name}_a.png", f"{name}_b.png"], width, height)
    landmarks.pack_landmarks(landmarks.find_faces(tmp_path), tmp_path / "packed")
    faces = landmarks.load_landmarks(tmp_path / "packed")
    assert faces.images.shape == (6, 1, 128, 128) and faces.images.dtype == np.uint8
    assert faces.points.shape == (6, 5, 2) and faces.points.dtype == np.float32
    assert faces.files == ["high_a.png", "high_b.png", "square_a.png", "square_b.png", "wide_a.png", "wide_b.png"]
    for image, points in zip(faces.images, faces.points):
        np.testing.assert_allclose(find_dots(image[0]), points, atol=0.3)
    # 150 x 100 pixels, made square: a scale of 128 / 150, and 25 pixels above and below.
    expected = (face_of(0, 100) + (0, 25)) * 128 / 150
    np.testing.assert_allclose(faces.points[4], expected, rtol=1e-6)


def test_photos_that_cannot_be_used_are_skipped_and_named(tmp_path: Path):
    names = ["a_1.png", "b_1.png", "c_1.png", "d_1.png", "e_1.png"]
    path = write_dotted(tmp_path, names)
    rows = list(csv.reader(path.read_text().splitlines()))[1:]
    (tmp_path / "b_1.png").write_text("no photo")
    (tmp_path / "c_1.png").unlink()
    (tmp_path / "again_1.png").write_bytes((tmp_path / "a_1.png").read_bytes())  # an exact copy
    rows[3][1:] = [500] * 10  # beyond the picture
    rows[4][5:7] = ["", ""]  # no nose tip
    faces = landmarks.read_points_csv(write_table(path, [*rows, ["again_1.png", *rows[0][1:]]]))
    summary = landmarks.pack_landmarks(faces, tmp_path / "packed")
    why = {skipped["file"]: skipped["why"] for skipped in summary["skipped"]}
    assert set(why) == {"b_1.png", "c_1.png", "d_1.png", "again_1.png"}
    assert "no photo of a known format" in why["b_1.png"] and "does not exist" in why["c_1.png"]
    assert "no marked point" in why["d_1.png"] and "exact copy" in why["again_1.png"]
    assert (summary["faces"], summary["missing_points"]) == (2, 1)
    packed = landmarks.load_landmarks(tmp_path / "packed")
    assert packed.files == ["a_1.png", "e_1.png"] and packed.summary == summary
    assert np.isnan(packed.points).all(2).tolist() == [[False] * 5, [False, False, True, False, False]]


def test_no_picture_at_all_can_be_used(tmp_path: Path):
    path = write_table(tmp_path / "points.csv", [["gone.png", *range(10)], ["lost.png", *range(10)]])
    with pytest.raises(InputError, match=r"None of the 2 pictures can be used.*gone\.png"):
        landmarks.pack_landmarks(landmarks.read_points_csv(path), tmp_path / "packed")
    assert not list((tmp_path / "packed").iterdir())


def some_faces(groups: int = 50) -> list[MarkedFace]:
    """Four faces of each of half of the groups, one of each of the others; as arrays, with their points."""
    faces = []
    for number in range(groups):
        for picture in range(4 if number % 2 else 1):
            points = face_of(1000 * number + picture)
            group = f"group_{number}"
            faces.append(MarkedFace(dotted(points), points, f"{group}_{picture}.png", "dots", group))
    return faces


def test_no_group_is_in_two_parts_of_the_split(tmp_path: Path):
    summary = landmarks.pack_landmarks(some_faces(), tmp_path)
    faces = landmarks.load_landmarks(tmp_path)
    parts = {name: faces.part(name) for name in ("train", "validation", "test")}
    assert sorted(np.concatenate(list(parts.values()))) == list(range(125))
    groups = {name: set(faces.groups[rows]) for name, rows in parts.items()}
    assert sum(map(len, groups.values())) == 50
    assert {name: len(rows) for name, rows in parts.items()} == summary["splits"]
    assert len(groups["train"]) == 40 and len(groups["validation"]) in range(4, 7)
    assert summary["sources"] == {"dots": 125} and summary["faces"] == 125


def test_the_split_depends_on_groups_and_seed_alone(tmp_path: Path):
    faces = some_faces(groups=20)
    landmarks.pack_landmarks(faces, tmp_path / "one", seed=0)
    landmarks.pack_landmarks(faces[::-1], tmp_path / "reversed", seed=0)
    landmarks.pack_landmarks(faces, tmp_path / "other", seed=1)
    one, other_order, other = (landmarks.load_landmarks(tmp_path / name) for name in ("one", "reversed", "other"))
    assert dict(zip(one.groups, one.split)) == dict(zip(other_order.groups, other_order.split))
    assert dict(zip(one.groups, one.split)) != dict(zip(other.groups, other.split))


def test_packing_leaves_plain_files_and_nothing_half_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    faces = some_faces(groups=4)
    landmarks.pack_landmarks(faces, tmp_path)
    names = {"images.npy", "points.npy", "index.csv", "summary.json", "skipped.csv", "contact_sheet.png"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert json.loads((tmp_path / "summary.json").read_text())["faces"] == 10
    sheet = Image.open(tmp_path / "contact_sheet.png")
    assert sheet.size == (10 * 128, 128)

    def stopped(face: MarkedFace, max_pixels: int) -> None:
        raise KeyboardInterrupt

    before = {name: (tmp_path / name).read_bytes() for name in names}
    monkeypatch.setattr(landmarks, "cut", stopped)
    with pytest.raises(KeyboardInterrupt):
        landmarks.pack_landmarks(faces[:3], tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in names} == before


@pytest.mark.parametrize("name", ["images.npy", "points.npy", "index.csv", "summary.json"])
def test_packed_faces_that_are_missing_or_damaged(tmp_path: Path, name: str):
    landmarks.pack_landmarks(some_faces(groups=4), tmp_path)
    whole = (tmp_path / name).read_bytes()
    for left in (len(whole) // 2, 0):
        (tmp_path / name).write_bytes(whole[:left])
        with pytest.raises(InputError):
            landmarks.load_landmarks(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=f"{name} is missing: run prepare first"):
        landmarks.load_landmarks(tmp_path)


# ---------------------------------------------------------------- errors and pictures of points


def test_errors_by_hand():
    marked = np.array([[(0, 0), (10, 0), (5, 5), (2, 9), (8, 9)], [(0, 0), (6, 8), (3, 3), (0, 9), (6, 9)]], np.float32)
    found = marked + np.array([[(3, 4), (0, 1), (0, 0), (-2, 0), (0, 2)], [(1, 0)] * 5])
    errors = landmarks.point_errors(found, marked)
    np.testing.assert_allclose(errors, [[5, 1, 0, 2, 2], [1, 1, 1, 1, 1]], atol=1e-6)
    np.testing.assert_allclose(landmarks.normalised_errors(errors, marked), [2 / 10, 1 / 10], atol=1e-6)


def test_points_that_are_not_marked_do_not_count():
    marked = np.tile(np.array([(0, 0), (10, 0), (5, 5), (2, 9), (8, 9)], float), (5, 1, 1))
    found = marked + (0, 1)
    found[:, 2] += (0, 3)
    marked[1, 2] = np.nan  # no nose tip: the others are off by 1
    marked[2, 0] = np.nan  # one eye
    marked[3] = np.nan
    marked[4, 1] = marked[4, 0]  # eyes in one place
    errors = landmarks.point_errors(found, marked)
    assert np.isnan(errors).sum(1).tolist() == [0, 1, 1, 5, 0]
    np.testing.assert_allclose(landmarks.normalised_errors(errors, marked), [0.16, 0.1, np.nan, np.nan, np.nan])


@pytest.mark.parametrize("scale", [1, 2])
def test_pictures_with_points(scale: int):
    pictures = np.full((2, 1, 96, 96), 100, np.uint8)
    marked, found = np.stack([face_of(0), face_of(1)]), np.stack([face_of(0), face_of(1)]) + (0, 12)
    marked[1, 2] = np.nan
    drawn = landmarks.with_points(pictures, marked, found, scale=scale).astype(int)
    assert drawn.shape == (2, 3, 96 * scale, 96 * scale)
    green, red = drawn[:, 1] - drawn[:, 0] > 100, drawn[:, 0] - drawn[:, 1] > 100
    for points, colour in ((marked, green), (found, red)):
        for face, mask in zip(points, colour):
            for x, y in face[np.isfinite(face).all(1)] * scale:
                assert mask[int(y), int(x)]
    ones = green.sum((1, 2))
    assert ones[0] * 4 / 5 == pytest.approx(ones[1], rel=0.1)  # no dot for the point that is not marked
    plain = landmarks.with_points(pictures, marked).astype(int)
    assert not (plain[:, 0] - plain[:, 1] > 100).any()
