"""Drawn faces: reproducible, labelled where the picture says so, people who differ, folders written whole."""

import csv
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from facekit import portrait, synthetic
from facekit.files import InputError
from facekit.synthetic import Circumstances, Person, draw_face, draw_scene, make_person, write_faces

PLAIN = dict(
    yaw=0.0, pitch=0.0, roll=0.0, shift_x=0.0, shift_y=0.0, enlarge=1.0, smile=0.0, mouth_open=0.0,
    brow_raise=0.0, eyes_open=1.0, gaze_x=0.0, gaze_y=0.0, light_x=0.0, light_y=0.0, ambient=0.6, shine=0.0,
    warmth=0.0, exposure=1.0, gamma=1.0, blur=-1.0, noise=0.0, quality=95.0, grey=0.0, glasses=0.0, hat=0.0,
)  # fmt: skip


def drawn_under(monkeypatch, person: Person, size: int = 224, **circumstances):
    now = Circumstances(**{**PLAIN, **circumstances})
    monkeypatch.setattr(synthetic, "_circumstances", lambda rng: now)
    return draw_face(person, 1, size)


def grey(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).convert("L"), np.float32)


def test_same_numbers_same_face_other_numbers_other_face():
    def face(identity, picture, seed):
        return draw_face(make_person(identity, seed), picture)

    first, again = face(3, 1, 0), face(3, 1, 0)
    assert np.array_equal(first.pixels, again.pixels) and np.array_equal(first.landmarks, again.landmarks)
    for other in (face(4, 1, 0), face(3, 2, 0), face(3, 1, 1)):
        assert np.abs(first.pixels.astype(int) - other.pixels).mean() > 5
        assert not np.array_equal(first.landmarks, other.landmarks)


def test_first_picture_does_not_reuse_the_random_numbers_of_the_person():
    now = synthetic._pose(make_person(5), 0, 112, 1.0)[0]
    assert now != synthetic._circumstances(np.random.default_rng([0, 5]))  # [0, 5] and [0, 5, 0] seed alike


@pytest.mark.parametrize("size", [32, 80, 112, 200])
def test_shapes_and_types(size):
    face = draw_face(make_person(1), 1, size)
    assert face.pixels.shape == (size, size, 3) and face.pixels.dtype == np.uint8
    assert face.landmarks.shape == (5, 2) and face.landmarks.dtype == np.float32
    assert face.box.shape == (4,) and face.box.dtype == np.float32


def test_framed_about_like_an_arcface_crop():
    landmarks = np.array([synthetic._pose(make_person(i), 1, 112, 1.0)[3] for i in range(200)]) / 112
    arcface = np.array([[38.3, 51.7], [73.5, 51.5], [56.0, 71.7], [41.5, 92.4], [70.7, 92.2]]) / 112
    assert np.abs(landmarks.mean(0) - arcface).max() < 0.05
    assert (landmarks > 0).all() and (landmarks < 1).all()
    assert landmarks.std(0).min() > 0.01, "the framing must jitter"


def test_geometry_of_every_face():
    for identity in range(150):
        face_box = synthetic._pose(make_person(identity), identity, 112, 0.5)
        box, (left_eye, right_eye, nose, left_mouth, right_mouth) = face_box[2], face_box[3]
        assert left_eye[0] < right_eye[0] and left_mouth[0] < right_mouth[0]
        assert (left_eye + right_eye)[1] / 2 < nose[1] < (left_mouth + right_mouth)[1] / 2
        assert box[0] < min(left_eye[0], left_mouth[0]) and max(right_eye[0], right_mouth[0]) < box[2]
        assert box[1] < min(left_eye[1], right_eye[1]) and max(left_mouth[1], right_mouth[1]) < box[3]


@pytest.mark.parametrize("roll", [-0.4, 0.0, 0.3])
@pytest.mark.parametrize("yaw", [-0.4, 0.0, 0.4])
def test_eyes_are_dark_spots_where_the_landmarks_say(monkeypatch, yaw, roll):
    """The darkest spot near each eye's landmark is the pupil: an oracle that looks at pixels only."""
    person = replace(
        make_person(2), skin=(0.9, 0.75, 0.65), iris=(0.2, 0.1, 0.05), eye_height=0.115, moles=()
    )
    face = drawn_under(monkeypatch, person, yaw=yaw, roll=roll, pitch=0.1)
    dark = np.maximum(90 - grey(face.pixels), 0)
    rows, columns = np.mgrid[: dark.shape[0], : dark.shape[1]] + 0.5
    for x, y in face.landmarks[:2]:
        weight = dark * (np.hypot(columns - x, rows - y) < 10)
        assert weight.sum() > 0
        assert (
            np.hypot((weight * columns).sum() / weight.sum() - x, (weight * rows).sum() / weight.sum() - y)
            < 4
        )


def test_mouth_corners_end_the_lips(monkeypatch):
    person = replace(
        make_person(2), skin=(0.9, 0.8, 0.7), lips=(0.8, 0.0, 0.1), moustache=0.0, beard=0.0, scar=None
    )
    face = drawn_under(monkeypatch, person, smile=0.5)
    red = face.pixels[..., 0].astype(int) - face.pixels[..., 1] > 90
    left, top, right, bottom = face.box.astype(int)  # clothes may be as red as lips
    columns = left + np.flatnonzero(red[int(face.landmarks[2, 1]) + 8 : bottom, left:right].any(0))
    assert abs(columns[0] - face.landmarks[3, 0]) < 6 and abs(columns[-1] - face.landmarks[4, 0]) < 6


def test_the_nose_tip_moves_further_than_the_eyes_when_the_head_turns():
    person = make_person(7)
    straight, turned = (
        portrait.seen_landmarks(person, Circumstances(**{**PLAIN, "yaw": yaw})) for yaw in (0.0, 0.3)
    )
    moved = (turned - straight)[:, 0]
    assert (moved > 0).all() and moved[2] > moved[:2].max()


def test_the_box_holds_the_face_and_no_more(monkeypatch):
    """Bald, without light and on any background, the head's outline is found by comparing two skins."""
    bald = replace(make_person(9), hair_length=0, moustache=0.0, beard=0.0)
    monkeypatch.setattr(synthetic, "_background", lambda rng, w, h, clutter: np.zeros((3, h, w), np.float32))
    monkeypatch.setattr(portrait, "_body", lambda *_: None)
    face = drawn_under(monkeypatch, bald, yaw=0.2)
    lit = grey(face.pixels) > 25
    rows, columns = np.flatnonzero(lit.any(1)), np.flatnonzero(lit.any(0))
    assert abs(columns[0] - face.box[0]) < 10 and abs(columns[-1] - face.box[2]) < 10
    assert abs(rows[-1] - face.box[3]) < 10


def test_people_of_the_same_skin_and_hair_still_differ(monkeypatch):
    first = make_person(11)
    second = replace(make_person(12), skin=first.skin, hair=first.hair, hair_length=first.hair_length)
    one, other = (grey(drawn_under(monkeypatch, p, size=112).pixels) for p in (first, second))
    center = np.s_[35:105, 25:88]
    assert np.abs(one[center] - other[center]).mean() > 5


@pytest.mark.parametrize(
    "change",
    [
        dict(yaw=0.4), dict(pitch=0.2), dict(roll=0.2), dict(shift_x=0.03), dict(enlarge=1.1),
        dict(smile=1.0), dict(mouth_open=0.16), dict(brow_raise=0.07), dict(eyes_open=0.6), dict(gaze_x=0.05),
        dict(light_x=0.9), dict(ambient=0.3, light_x=0.5), dict(shine=0.3), dict(warmth=0.12),
        dict(exposure=0.7), dict(gamma=1.3), dict(blur=1.3), dict(noise=0.04), dict(quality=20),
        dict(grey=1.0), dict(glasses=0.9), dict(hat=0.95),
    ],
)  # fmt: skip
def test_every_circumstance_changes_the_picture(monkeypatch, change):
    plain = drawn_under(monkeypatch, make_person(13), size=112).pixels.astype(int)
    changed = drawn_under(monkeypatch, make_person(13), size=112, **change).pixels.astype(int)
    assert (np.abs(plain - changed).max(-1) > 8).sum() > 10


def test_light_from_the_left_makes_the_left_side_brighter(monkeypatch):
    face = drawn_under(monkeypatch, replace(make_person(14), hair_length=0), light_x=-0.9, ambient=0.3)
    shade = grey(face.pixels)
    y = int(face.landmarks[2, 1])
    left, right = int(face.landmarks[0, 0]), int(face.landmarks[1, 0])
    assert (
        shade[y - 5 : y + 5, left - 8 : left + 8].mean()
        > 1.2 * shade[y - 5 : y + 5, right - 8 : right + 8].mean()
    )


def test_skins_cover_light_to_dark_evenly():
    lightness = [np.mean(make_person(i).skin) for i in range(400)]
    counts, _ = np.histogram(lightness, bins=5, range=(0.2, 0.9))
    assert counts.min() > 40


def test_a_scene_labels_everyone():
    scene = draw_scene([1, 2, 3, 4], seed=5)
    assert scene.pixels.shape == (480, 640, 3) and scene.identities == [1, 2, 3, 4]
    assert scene.boxes.shape == (4, 4) and scene.landmarks.shape == (4, 5, 2)
    again, other = draw_scene([1, 2, 3, 4], seed=5), draw_scene([1, 2, 3, 4], seed=6)
    assert np.array_equal(scene.pixels, again.pixels) and not np.array_equal(scene.boxes, other.boxes)
    for box, landmarks in zip(scene.boxes, scene.landmarks):
        assert (landmarks > box[:2]).all() and (landmarks < box[2:]).all()


def test_faces_in_scenes_have_many_sizes_and_do_not_overlap():
    widths = []
    for seed in range(12):
        crowd = [(make_person(i), Circumstances(**PLAIN)) for i in range(6)]
        views = synthetic._placed(crowd, 640, 480, np.random.default_rng(seed))
        boxes = np.array([portrait.face_box(*one, view) for one, view in zip(crowd, views)])
        widths += (boxes[:, 2] - boxes[:, 0]).tolist()
        assert boxes.min() >= 0 and (boxes[:, 2:] <= (640, 480)).all()
        for i in range(6):
            for j in range(i):
                apart = (boxes[i, :2] >= boxes[j, 2:]) | (boxes[j, :2] >= boxes[i, 2:])
                assert apart.any(), "two faces overlap"
    assert min(widths) >= 20 and min(widths) < 40 and max(widths) > 100


def test_scenes_of_nobody_and_of_too_many():
    assert draw_scene([], seed=1, size=(64, 48)).boxes.shape == (0, 4)
    with pytest.raises(InputError, match="30 faces do not fit into 64 x 48"):
        draw_scene(list(range(30)), seed=1, size=(64, 48))


def read_table(path) -> dict[str, list[float]]:
    with open(path, newline="", encoding="utf-8") as file:
        return {row[0]: [float(value) for value in row[1:]] for row in list(csv.reader(file))[1:]}


def test_folder_of_faces_with_their_labels(tmp_path):
    write_faces(tmp_path, people=3, pictures_per_person=2, seed=4, size=64, workers=1)
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.jpg"))
    assert names == [f"person_{i:05d}/{j:04d}.jpg" for i in (1, 2, 3) for j in (1, 2)]
    landmarks, boxes = read_table(tmp_path / "landmarks.csv"), read_table(tmp_path / "boxes.csv")
    assert sorted(landmarks) == sorted(boxes) == names
    face = draw_face(make_person(2, seed=4), 1, 64)
    stored = np.asarray(Image.open(tmp_path / "person_00002/0001.jpg"), int)
    assert np.abs(stored - face.pixels).mean() < 6  # JPEG
    assert landmarks["person_00002/0001.jpg"] == pytest.approx(face.landmarks.ravel().tolist(), abs=0.006)
    assert boxes["person_00002/0001.jpg"] == pytest.approx(face.box.tolist(), abs=0.006)


def test_folder_of_faces_seen_from_farther_away(tmp_path):
    write_faces(tmp_path, people=2, pictures_per_person=2, size=64, workers=1, zoom=0.5)
    landmarks, boxes = read_table(tmp_path / "landmarks.csv"), read_table(tmp_path / "boxes.csv")
    for identity, picture in [(1, 1), (1, 2), (2, 1), (2, 2)]:
        name = f"person_{identity:05d}/{picture:04d}.jpg"
        near, far = (draw_face(make_person(identity), picture, 64, zoom) for zoom in (1.0, 0.5))
        stored = np.asarray(Image.open(tmp_path / name), int)
        assert np.abs(stored - far.pixels).mean() < 6 < np.abs(stored - near.pixels).mean()
        assert landmarks[name] == pytest.approx(far.landmarks.ravel().tolist(), abs=0.006)
        assert boxes[name] == pytest.approx(far.box.tolist(), abs=0.006)
        eyes = np.reshape(landmarks[name], (5, 2))[:2]
        assert np.ptp(eyes[:, 0]) == pytest.approx(np.ptp(near.landmarks[:2, 0]) / 2, rel=0.01)


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_number_of_processes_does_not_matter(tmp_path):
    write_faces(tmp_path / "one", 3, 1, size=32, workers=1)
    write_faces(tmp_path / "two", 3, 1, size=32, workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_stopped_call_goes_on_and_gives_the_same(tmp_path, monkeypatch):
    write_faces(tmp_path / "whole", 3, 2, size=32, workers=1)
    drawn = []

    def stops_after_three(person, picture, size, zoom):
        if len(drawn) == 3:
            raise KeyboardInterrupt
        drawn.append(picture)
        return draw_face(person, picture, size, zoom)

    monkeypatch.setattr(synthetic, "draw_face", stops_after_three)
    with pytest.raises(KeyboardInterrupt):
        write_faces(tmp_path / "parts", 3, 2, size=32, workers=1)
    drawn.clear()
    write_faces(tmp_path / "parts", 3, 2, size=32, workers=1)  # draws the three that are missing, no more
    assert len(drawn) == 3 and contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_faces_of_two_seeds_do_not_mix(tmp_path):
    write_faces(tmp_path, 1, 1, seed=1, size=32, workers=1)
    with pytest.raises(InputError, match="another seed, size or zoom"):
        write_faces(tmp_path, 1, 1, seed=2, size=32, workers=1)
    with pytest.raises(InputError, match="another seed, size or zoom"):
        write_faces(tmp_path, 1, 1, seed=1, size=32, workers=1, zoom=0.65)
    with pytest.raises(InputError, match="at least one person"):
        write_faces(tmp_path, 0, 1, seed=1, size=32, workers=1)


def test_quiet_when_not_on_a_terminal(tmp_path, capfd):
    write_faces(tmp_path, 1, 1, size=32, workers=1)
    assert capfd.readouterr() == ("", "")
