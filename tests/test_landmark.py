"""The landmark model against its definitions, a small real training, a real photo, and the command line."""

import csv
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import matplotlib.cbook
import numpy as np
import pytest
import torch
from PIL import Image
from test_landmarks import FACE, dotted, face_of, find_dots, write_table
from torch import Tensor, nn

import face_landmark as fl
from facekit import alignment, landmarks, synthetic, training
from facekit.files import InputError
from facekit.images import open_photo
from facekit.landmarks import MIRRORED, POINTS, LandmarkSet

SCRIPT = Path(fl.__file__)
PUBLISHED = SCRIPT.parent / fl.WEIGHTS
CPU = torch.device("cpu")
COMMANDS = ("prepare", "train", "evaluate", "detect")
# In matplotlib's sample photo grace_hopper.jpg: the middle of each pupil, in pixels, marked by hand.
HOPPERS_EYES = np.array([(221.9, 190.3), (305.3, 186.8)])


class Toy(nn.Module):
    """In place of a network where it does not matter how well a face is learnt: much faster."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.AvgPool2d(12), nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 10))

    def forward(self, faces: Tensor) -> Tensor:
        return self.layers(faces)


class Knows(nn.Module):
    """Answers with where the dots of a dotted face are.

    `too_low` is added to each y, in -1..1. With a `reach` below 1 it answers with points between those and the places
    where they lie in an aligned crop.
    """

    def __init__(self, too_low: float = 0.0, reach: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.too_low, self.reach = too_low, reach

    def forward(self, faces: Tensor) -> Tensor:
        return torch.stack([self.answer(face[0].numpy()) for face in faces])

    def answer(self, face: np.ndarray) -> Tensor:
        eye, other_eye, nose, corner, other_corner = (find_dots(face * 255) * 2 / len(face) - 1).tolist()
        points = torch.tensor([*sorted([eye, other_eye]), nose, *sorted([corner, other_corner])])
        aligned = torch.from_numpy(alignment.TEMPLATE * 2 - 1).float()
        return aligned.lerp(points, self.reach) + torch.tensor([0, self.too_low])


class Says(nn.Module):
    """Always the same points (5, 2)."""

    def __init__(self, points: Sequence):
        super().__init__()
        self.points = nn.Parameter(torch.tensor(points, dtype=torch.float32))

    def forward(self, faces: Tensor) -> Tensor:
        return self.points.expand(len(faces), 5, 2)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in fl.ARCHITECTURES:
        monkeypatch.setitem(fl.ARCHITECTURES, name, Toy)


def toy_model() -> fl.Landmarker:
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(fl.ARCHITECTURES, "compact", Toy)
        return fl.Landmarker("compact").eval()


def toy_faces(train: int, validation: int) -> LandmarkSet:
    """Noise instead of faces, each with five points, some of them missing."""
    random, count = np.random.default_rng(0), train + validation
    images = random.integers(0, 256, (count, 1, 128, 128), dtype=np.uint8)
    points = np.stack([face_of(number, 128) for number in range(count)]).astype(np.float32)
    points[::4, 2] = np.nan
    split = np.array(["train"] * train + ["validation"] * validation)
    names = [f"group {number}" for number in range(count)]
    summary = {"faces": count, "sources": {"noise": count}, "splits": {"train": train}, "split_digest": "toys",
               "seed": 0}  # fmt: skip
    return LandmarkSet(images, points, np.array(["noise"] * count), np.array(names), split, names, summary)


# ---------------------------------------------------------------- augmentation

ASYMMETRIC = FACE * 2 - 1  # -1..1; the nose is nearer to the right eye


def dotted_batch(count: int) -> tuple[Tensor, Tensor]:
    image = torch.from_numpy(dotted(FACE * 128, 128, 128))[None, None]
    return image.expand(count, -1, -1, -1), torch.from_numpy(ASYMMETRIC).float().expand(count, -1, -1)


def augmented(monkeypatch: pytest.MonkeyPatch, reference: bool, count: int = 200) -> tuple[Tensor, Tensor]:
    """Of dotted faces, in unchanged light."""
    monkeypatch.setattr(fl, "vary_light", lambda faces, generator: faces)
    return fl.augment(*dotted_batch(count), torch.Generator().manual_seed(0), reference)


@pytest.mark.parametrize("reference", [False, True])
def test_points_follow_the_pixels(monkeypatch, reference: bool):
    """Around each point that is well inside of the face, the light is centred on the point."""
    faces, points = augmented(monkeypatch, reference)
    rows, columns = np.mgrid[:96, :96] + 0.5
    checked = 0
    for face, marks in zip(faces[:, 0].numpy(), (points.numpy() + 1) * 48):
        near = np.linalg.norm(marks[0] - marks[1]) / 4
        for x, y in marks:
            if near < min(x, y) and max(x, y) < 96 - near:
                weight = face * (np.hypot(columns - x, rows - y) < near)
                assert weight.max() > 0.15
                found = (weight * columns).sum() / weight.sum(), (weight * rows).sum() / weight.sum()
                assert math.dist(found, (x, y)) < 0.6
                checked += 1
    assert checked > 800


@pytest.mark.parametrize("reference", [False, True])
def test_left_stays_left_of_right_also_in_the_mirror(monkeypatch, reference: bool):
    _, points = augmented(monkeypatch, reference)
    left_eye, right_eye, nose, left_mouth, right_mouth = points.unbind(1)
    assert (left_eye[:, 0] < right_eye[:, 0]).all() and (left_mouth[:, 0] < right_mouth[:, 0]).all()
    assert (left_eye[:, 1] < left_mouth[:, 1]).all() and (right_eye[:, 1] < right_mouth[:, 1]).all()
    mirrored = (nose - left_eye).norm(dim=1) < (nose - right_eye).norm(dim=1)
    assert not mirrored.any() if reference else 70 < mirrored.sum() < 130


def test_augmentation_of_the_reference_has_its_ranges(monkeypatch):
    """Turned by up to 18 degrees, at 0.3 to 1 times its size, its middle up to 0.2 of the side away."""
    _, points = augmented(monkeypatch, reference=True, count=500)
    before, after = (torch.view_as_complex(each.double().contiguous()) for each in (dotted_batch(500)[1], points))
    factor = (after[:, 1] - after[:, 0]) / (before[:, 1] - before[:, 0])  # rotation and scale
    shift = torch.view_as_real((after[:, 0] / factor - before[:, 0]) * factor.abs())  # in half sides of the square
    for values, least, most in [(factor.angle().rad2deg(), -18, 18), (factor.abs(), 0.3, 1), (shift, -0.4, 0.4)]:
        assert least - 1e-4 <= values.min() < least + 0.1 * (most - least)
        assert most - 0.1 * (most - least) < values.max() <= most + 1e-4


@pytest.mark.parametrize("reference", [False, True])
def test_augmented_faces_are_in_range_and_reproducible(reference: bool):
    images, points = dotted_batch(16)
    first, again, other = (fl.augment(images, points, torch.Generator().manual_seed(s), reference) for s in (1, 1, 2))
    assert first[0].shape == (16, 1, 96, 96) and first[1].shape == (16, 5, 2)
    assert first[0].dtype == first[1].dtype == torch.float32
    assert first[0].min() >= 0 and first[0].max() <= 1
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not any(torch.equal(a, b) for a, b in zip(first, other))


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_batch_may_be_small(reference: bool, count: int):
    """As the last one of an epoch may be."""
    faces, points = fl.augment(*dotted_batch(count), torch.Generator().manual_seed(0), reference)
    assert faces.shape == (count, 1, 96, 96) and faces.isfinite().all() and points.isfinite().all()


@pytest.mark.parametrize("reference", [False, True])
def test_missing_points_stay_missing_and_change_no_others(monkeypatch, reference: bool):
    monkeypatch.setattr(fl, "upright_square", fl.region_square)  # which does not depend on the nose
    images, points = dotted_batch(40)
    some = points.clone()
    some[:, 2] = torch.nan  # within the others, so the square around them is the same
    faces, moved = fl.augment(images, points, torch.Generator().manual_seed(0), reference)
    faces_of_some, moved_of_some = fl.augment(images, some, torch.Generator().manual_seed(0), reference)
    assert moved_of_some[:, 2].isnan().all()
    others = [0, 1, 3, 4]
    torch.testing.assert_close(moved_of_some[:, others], moved[:, others])
    torch.testing.assert_close(faces_of_some, faces)

    only_eye = torch.full_like(points, torch.nan)
    only_eye[:, 0] = points[:, 0]
    faces, moved = fl.augment(images, only_eye, torch.Generator().manual_seed(0), reference)
    assert faces.isfinite().all() and (moved.isfinite().all(2).sum(1) == 1).all()
    assert moved[:, 2:].isnan().all()  # it is one of the eyes still


def test_the_upright_square_is_that_of_the_alignment():
    """Points that are turned, scaled and a little off the template; in pixels of a picture of 128."""
    random = np.random.default_rng(0)
    x_y = alignment.TEMPLATE @ (1, 1j) * 60 * np.exp(1j * random.uniform(-0.6, 0.6, (20, 1))) + (30 + 20j)
    points = np.stack([x_y.real, x_y.imag], axis=2) + random.normal(0, 1, (20, 5, 2))
    squares = fl.upright_square(torch.from_numpy(points / 64 - 1).float())
    corners = torch.tensor([(-1.0, -1), (1, -1), (-1, 1)])
    found = (corners @ squares[:, :, :2].transpose(1, 2) + squares[:, :, 2:].transpose(1, 2) + 1) * 64
    for each, marked in zip(found.numpy(), points):
        to_photo = alignment.invert(alignment.similarity(marked, 1))
        np.testing.assert_allclose(each, alignment.transform_points(to_photo, [(0, 0), (1, 0), (0, 1)]), atol=1e-3)


@pytest.mark.parametrize("marked", [[0], [2], [0, 4]])
def test_where_too_little_is_marked_the_square_is_the_region(marked: list[int]):
    points = torch.full((1, 5, 2), torch.nan)
    points[:, marked] = torch.tensor([0.3, -0.2])  # two of them coincide
    torch.testing.assert_close(fl.upright_square(points), fl.region_square(points))
    two = torch.from_numpy(ASYMMETRIC).float()[None].clone()
    two[:, [2, 3, 4]] = torch.nan
    assert fl.upright_square(two).isfinite().all()


def test_the_second_look_is_at_the_upright_face(monkeypatch):
    """A model that knows where the dots are finds them in pictures in which the face is small and turned."""
    x_y = (FACE - 0.5) @ (1, 1j) * 60 * np.exp(0.3j) + (70 + 60j)
    points = np.stack([x_y.real, x_y.imag], axis=1)
    picture = torch.from_numpy(dotted(points, 128, 128))[None, None]
    model, seen = Knows(), []
    monkeypatch.setattr(model, "forward", lambda faces, answer=model.forward: seen.append(faces) or answer(faces))
    found = fl.look_twice(model, picture)[0].numpy()
    np.testing.assert_allclose((found + 1) * 64, points, atol=0.7)
    upright = find_dots(255 * seen[1][0, 0].numpy())
    np.testing.assert_allclose(upright, alignment.transform_points(alignment.similarity(points, 96), points), atol=2)
    assert len(seen) == 2


def test_varied_light_leaves_every_face_in_its_place():
    """Brighter stays brighter: a ramp rises, but for the part that is hidden."""
    ramp = torch.linspace(0.2, 0.8, 96).expand(60, 1, 96, 96)
    varied = fl.vary_light(ramp, torch.Generator().manual_seed(0))
    assert varied.shape == ramp.shape and varied.min() >= 0 and varied.max() <= 1
    columns = varied.median(dim=2).values[:, 0]  # (60, 96)
    means = columns.view(60, 6, 16).mean(2)
    assert (means[:, -1] > means[:, 0] + 0.1).all()
    assert (means.diff(dim=1) > -0.05).float().mean() > 0.9
    assert varied.flatten(1).mean(1).std() > 0.05


# ---------------------------------------------------------------- model and loss


@pytest.mark.parametrize("architecture", sorted(fl.ARCHITECTURES))
def test_each_architecture_answers_with_five_points(architecture: str):
    model = fl.Landmarker(architecture).eval()
    points = model(torch.rand(3, 1, 96, 96))
    assert points.shape == (3, 5, 2) and points.dtype == torch.float32
    points.sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_weights_of_the_default_are_small():
    assert 2 * sum(value.numel() for value in fl.Landmarker("compact").state_dict().values()) < 12e6  # bytes, float16


def random_points(seed: int, missing: Sequence[tuple[int, int]] = ()) -> Tensor:
    points = torch.rand(4, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    for face, point in missing:
        points[face, point] = torch.nan
    return points


MISSING = [(0, 2), (1, 0), (1, 1), *((3, point) for point in range(5))]


@pytest.mark.parametrize("missing", [[], MISSING])
@pytest.mark.parametrize("reference", [False, True])
def test_loss_is_that_of_a_plain_loop(reference: bool, missing: list):
    found, marked = random_points(0), random_points(1, missing)
    each = []
    for face, point in itertools.product(range(4), range(5)):
        if (face, point) not in missing:
            x, y = (found[face, point] - marked[face, point]).tolist()
            each.append((x * x + y * y) / 2 if reference else math.sqrt(x * x + y * y + 0.0001) - 0.01)
    assert float(fl.point_loss(found, marked, reference)) == pytest.approx(sum(each) / len(each), rel=1e-12)


def test_half_a_point_is_no_point():
    found, marked = random_points(0), random_points(1, [(2, 3)])
    half = marked.clone()
    half[2, 3, 0] = 0.5
    assert fl.point_loss(found, half) == fl.point_loss(found, marked)


@pytest.mark.parametrize("reference", [False, True])
def test_gradient_is_right_and_zero_for_missing_points(reference: bool):
    found, marked = random_points(0).requires_grad_(), random_points(1, MISSING)
    assert torch.autograd.gradcheck(lambda points: fl.point_loss(points, marked, reference), found)
    fl.point_loss(found, marked, reference).backward()
    present = ~marked.isnan()
    assert (found.grad[~present] == 0).all() and (found.grad[present] != 0).all()


@pytest.mark.parametrize("reference", [False, True])
def test_loss_and_gradient_at_the_extremes(reference: bool):
    everything = [(face, point) for face in range(4) for point in range(5)]
    for found, marked in [(random_points(0), random_points(0)), (random_points(0), random_points(0, everything))]:
        found = found.float().requires_grad_()
        loss = fl.point_loss(found, marked.float(), reference)
        loss.backward()
        assert float(loss.detach()) == pytest.approx(0, abs=1e-7)
        assert (found.grad.abs() < 1e-5).all()  # false for NaN


# ---------------------------------------------------------------- use


def random_crops(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 1, 96, 96), dtype=np.uint8)


def test_points_of_the_mirror_image_are_the_mirrored_points():
    model, crops = toy_model(), random_crops(20)
    points = fl.predict(model, crops, "float32")
    mirrored = fl.predict(model, np.ascontiguousarray(crops[..., ::-1]), "float32")
    torch.testing.assert_close(mirrored, points[:, MIRRORED] * torch.tensor([-1.0, 1.0]))
    assert points.std() > 0.1


def test_prediction_goes_block_by_block_in_order():
    model, crops = toy_model().train(), random_crops(300)
    points = fl.predict(model, crops, "float32")
    assert points.shape == (300, 5, 2) and not points.requires_grad and model.training
    for some in (slice(0, 10), slice(250, 262), slice(295, 300)):
        torch.testing.assert_close(points[some], fl.predict(model, torch.from_numpy(crops[some]), "float32"))
    assert fl.predict(model, crops[:0]).shape == (0, 5, 2)


def test_what_a_model_knows_is_found_in_pixels_of_the_photo():
    points = FACE * 200 + (90, 40)
    photo = Image.fromarray(dotted(points, 400, 300))
    [found] = fl.detect_landmarks([photo], [(110, 60, 270, 240)], Knows())
    assert found.shape == (5, 2)
    np.testing.assert_allclose(found, points, atol=1)


def test_further_looks_come_nearer():
    points = FACE * 200 + (110, 60)
    photo, square = Image.fromarray(dotted(points, 400, 300)), alignment.box_region((70, 30, 320, 280), 96, scale=1)
    errors = []
    for looks in (1, 2, 3):
        [found] = fl.find_landmarks(Knows(reach=0.7), [photo], [square], looks)
        errors.append(np.linalg.norm(found - points, axis=1).mean())
    assert errors[0] > 5
    assert errors[1] < 0.6 * errors[0] and errors[2] < 0.6 * errors[1]


def test_three_looks_at_the_region_of_the_reference():
    """A model that answers with the same points everywhere: their width and height are 0.8 half sides, their middle
    is 0.1 half sides below that of the square. So each square is 1.2 times as large as the one before, and lower."""
    points = np.array([(-0.4, -0.3), (0.4, -0.3), (0, 0.1), (-0.3, 0.5), (0.3, 0.5)])
    square = alignment.box_region((40, 40, 60, 60), 96, scale=1)  # middle (50, 50), half side 10
    [found] = fl.find_landmarks(Says(points), [Image.new("RGB", (100, 100))], [square], 3, alignment.region)
    np.testing.assert_allclose(found, points * 14.4 + (50, 50 + 0.1 * 10 + 0.1 * 12), atol=1e-5)


@pytest.mark.parametrize("points", [
    np.zeros((5, 2)), np.full((5, 2), np.nan), np.full((5, 2), np.inf), FACE * 1e6, FACE * 1e-6,
    [(0, 0), (1, 1), (0, 0), (1, 1), (0, 0)],
])  # fmt: skip
def test_points_that_are_no_face_do_not_end_the_search(points: Sequence):
    photo = Image.new("RGB", (60, 40))
    found = fl.detect_landmarks([photo, photo], model=Says(points))
    assert [each.shape for each in found] == [(5, 2)] * 2


def test_a_second_look_at_no_face_is_at_the_same_square():
    square = alignment.box_region((10, 10, 50, 50), 96)
    assert fl.next_square(np.zeros((5, 2)), square, alignment.similarity) is square
    for frame in (alignment.similarity, alignment.region):
        np.testing.assert_array_equal(fl.next_square(FACE * 50, square, frame), frame(FACE * 50, 96))


def test_faces_are_found_by_their_boxes_together_as_one_by_one(tmp_path: Path):
    first, second = FACE * 100 + (10, 20), FACE * 120 + (150, 10)
    pixels = np.maximum(dotted(first, 300, 150), dotted(second, 300, 150))
    boxes = [(20, 30, 100, 110), (160, 20, 270, 120)]
    Image.fromarray(pixels).save(tmp_path / "both.png")
    photos = [tmp_path / "both.png", np.stack([pixels] * 3, axis=2)]
    found = fl.detect_landmarks(photos, boxes, Knows())
    np.testing.assert_allclose(found, [first, second], atol=1)

    photos = [Image.effect_noise((90 + 20 * number, 100), 80) for number in range(5)]
    boxes = [(10, 10, 80, 70 + number) for number in range(5)]
    for given in (boxes, None):
        together = fl.detect_landmarks(photos, given, toy_model())
        one_by_one = [fl.detect_landmarks([photo], given and [box], toy_model())[0]
                      for photo, box in zip(photos, boxes)]  # fmt: skip
        np.testing.assert_allclose(together, one_by_one, atol=0.01)
        assert np.std(together) > 1
    assert fl.detect_landmarks([], model=Knows()) == []


def test_a_photo_on_its_side_is_set_upright(tmp_path: Path):
    points = FACE * 100
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = Image.fromarray(dotted(points, 100, 100))
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "phone.jpg", exif=exif, quality=95)
    np.testing.assert_allclose(fl.detect_landmarks([tmp_path / "phone.jpg"], model=Knows())[0], points, atol=1)


def test_a_photo_or_a_box_that_is_none_is_named(tmp_path: Path):
    photo = Image.new("RGB", (60, 40))
    with pytest.raises(InputError, match=r"nobody\.jpg"):
        fl.detect_landmarks([photo, tmp_path / "nobody.jpg"], model=Knows())
    with pytest.raises(InputError, match="face box"):
        fl.detect_landmarks([photo], [(30, 10, 20, 30)], Knows())


# ---------------------------------------------------------------- weights


def test_saved_weights_give_the_same_points(toy, tmp_path: Path):
    faces = toy_faces(6, 2)
    course = fl.train(faces, replace(fl.Settings(), epochs=1), tmp_path, CPU, "float32")
    fl.save_landmarker(tmp_path / "mine.safetensors", course, faces, {"nme_validation": 0.5})
    model = fl.load_landmarker(tmp_path / "mine.safetensors", "cpu")
    torch.testing.assert_close(fl.predict(model, random_crops(5), "float32"),
                               fl.predict(course.model, random_crops(5), "float32"), rtol=0.01, atol=0.01)  # fmt: skip
    assert not model.training
    assert model.metadata["crop"] == {"size": 96, "color": False}
    assert model.metadata["settings"]["epochs"] == 1 and model.metadata["data"]["faces"] == 8
    assert model.metadata["measured"] == {"nme_validation": 0.5} and model.metadata["epoch"] == 1


def test_weights_that_do_not_fit_are_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"none\.safetensors is missing"):
        fl.load_landmarker(tmp_path / "none.safetensors")
    training.save_weights(tmp_path / "other.safetensors", nn.Linear(2, 2), {"architecture": "recogniser"})
    with pytest.raises(InputError, match=r"other\.safetensors holds recogniser, not compact or resnet18-128-10"):
        fl.load_landmarker(tmp_path / "other.safetensors")
    training.save_weights(tmp_path / "small.safetensors", nn.Linear(2, 2), {"architecture": "compact"})
    with pytest.raises(InputError, match=r"small\.safetensors does not fit"):
        fl.load_landmarker(tmp_path / "small.safetensors")


# ---------------------------------------------------------------- training, stopped and resumed

COURSES = {"default": replace(fl.Settings(), epochs=2, batch_size=12),  # of three and, with dry_run, two steps an epoch
           "reference": replace(fl.REFERENCE, epochs=2, batch_size=12)}  # fmt: skip


def train_toy(method: str, folder: Path, resume: bool = False) -> training.Course:
    with pytest.MonkeyPatch.context() as patch:
        for name in fl.ARCHITECTURES:
            patch.setitem(fl.ARCHITECTURES, name, Toy)
        patch.setattr(training.charts, "history_chart", lambda *_: None)  # it takes longer than the training
        return fl.train(toy_faces(30, 6), COURSES[method], folder, CPU, "float32", resume=resume,
                        dry_run=method == "reference")  # fmt: skip


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, training.Course]:
    return {method: train_toy(method, tmp_path_factory.mktemp(method)) for method in COURSES}


def press_ctrl_c(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """While the step, counted over all epochs from 1, is done."""
    steps, train_step = itertools.count(1), fl.train_step

    def stopped(*arguments: object) -> None:
        if next(steps) == step:
            signal.raise_signal(signal.SIGINT)
        train_step(*arguments)

    monkeypatch.setattr(fl, "train_step", stopped)


def cut_power(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Before the step is done: nothing can be saved."""
    steps, train_step = itertools.count(1), fl.train_step

    def stopped(*arguments: object) -> None:
        if next(steps) == step:
            raise OSError("power cut")
        train_step(*arguments)

    monkeypatch.setattr(fl, "train_step", stopped)


def without_minutes(history: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name != "minutes"} for row in history]


@pytest.mark.parametrize(("method", "stop", "step"), [
    ("default", press_ctrl_c, 2),
    ("default", press_ctrl_c, 3),  # the last of its epoch
    ("default", press_ctrl_c, 5),
    ("reference", press_ctrl_c, 1),
    ("default", cut_power, 4),  # goes on from the end of the first epoch
    ("reference", cut_power, 3),
])  # fmt: skip
def test_a_resumed_training_is_as_one_never_stopped(
        never_stopped, tmp_path: Path, monkeypatch, method: str, stop: Callable, step: int):  # fmt: skip
    with monkeypatch.context() as patch:
        stop(patch, step)
        with pytest.raises((KeyboardInterrupt, OSError)):
            train_toy(method, tmp_path)
    resumed, expected = train_toy(method, tmp_path, resume=True), never_stopped[method]
    assert without_minutes(resumed.history) == without_minutes(expected.history)
    assert len(expected.history) == 2 and resumed.best_epoch == expected.best_epoch
    for mine, other in [(resumed.model, expected.model), (resumed.optimizer, expected.optimizer)]:
        torch.testing.assert_close(mine.state_dict(), other.state_dict(), rtol=0, atol=0)


def test_a_seed_decides_the_training(toy, tmp_path: Path, never_stopped):
    first = never_stopped["default"].history
    same, other = (fl.train(toy_faces(30, 6), replace(COURSES["default"], seed=seed), tmp_path, CPU, "float32").history
                   for seed in (0, 1))  # fmt: skip
    assert without_minutes(same) == without_minutes(first) != without_minutes(other)


def test_training_gives_the_weights_of_the_best_epoch(toy, tmp_path: Path, monkeypatch):
    finish_epoch, weights = fl.finish_epoch, []

    def finished(course: training.Course, *rest: object) -> None:
        weights.append({name: value.clone() for name, value in course.model.state_dict().items()})
        finish_epoch(course, *rest)

    monkeypatch.setattr(fl, "finish_epoch", finished)
    choices = replace(fl.Settings(), epochs=6, batch_size=12, learning_rate=0.5)  # so that epochs differ wildly
    course = fl.train(toy_faces(30, 6), choices, tmp_path, CPU, "float32")
    measured = [row["validation_nme"] for row in course.history]
    assert len(set(measured)) == 6 and course.best_epoch == 1 + int(np.argmin(measured))
    torch.testing.assert_close(course.model.state_dict(), weights[course.best_epoch - 1], rtol=0, atol=0)
    with open(tmp_path / "history.csv", newline="", encoding="utf-8") as file:
        assert [float(row["validation_nme"]) for row in csv.DictReader(file)] == measured
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "history.csv", "history.png"]


def test_a_part_without_faces_is_named():
    with pytest.raises(InputError, match="no faces for validation"):
        fl.train(toy_faces(6, 0), fl.Settings(), Path("unused"), CPU)


# ---------------------------------------------------------------- a small real training, and a real photo


def test_a_small_training_finds_the_points_of_drawn_people_it_has_never_seen(tmp_path: Path, monkeypatch):
    """NME of validation and test people together, looked for first in boxes that do not fit.

    The validation people only chose the epoch. A network of half the width, or it would take minutes. Measured: 0.088;
    a model that always answers with the mean face has 0.33 even in boxes that do fit.
    """
    monkeypatch.setitem(fl.ARCHITECTURES, "compact", lambda: fl.Compact(widths=(16, 32, 64)))
    synthetic.write_faces(tmp_path / "drawn", people=150, pictures_per_person=2, workers=1, zoom=0.65)
    landmarks.pack_landmarks(landmarks.find_faces(tmp_path / "drawn"), tmp_path)
    faces = landmarks.load_landmarks(tmp_path)
    choices = replace(fl.Settings(), epochs=20, batch_size=12, learning_rate=3e-3)
    course = fl.train(faces, choices, tmp_path / "training", CPU, "float32")
    unseen = np.flatnonzero(faces.split != "train")
    pictures = [open_photo(image[0]) for image in faces.images[unseen]]
    report, *_ = fl.measure(course.model, pictures, faces.points[unseen], faces.sources[unseen], faces.groups[unseen])
    print(f"NME: {report['nme']:.3f}, from random boxes {report['nme_random_boxes']:.3f}")
    assert report["nme_random_boxes"] < 0.12


def test_the_eyes_of_grace_hopper_are_found():
    """A photo that nothing was trained on, as a whole: the face is a third of its width, and off its middle."""
    photo = matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    [found] = fl.detect_landmarks([photo], model=fl.load_landmarker(PUBLISHED, "cpu"))
    distance = np.linalg.norm(HOPPERS_EYES[1] - HOPPERS_EYES[0])
    assert np.linalg.norm(found[:2] - HOPPERS_EYES, axis=1).max() < 0.1 * distance


# ---------------------------------------------------------------- command line: prepare


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def eyes_together(number: int, side: float = 96) -> np.ndarray:
    """Points (5, 2) of a face whose eyes are less than half as far apart as those of face_of."""
    points = face_of(number, side)
    points[:2, 0] = (points[:2, 0] - 0.48 * side) * 0.4 + 0.48 * side
    return points


def write_marked(folder: Path, faces: int) -> list[np.ndarray]:
    """Dotted pictures of 96 x 120 pixels and points.csv, half of them of each of two sources; their points."""
    folder.mkdir(parents=True)
    points = [(eyes_together if number % 2 else face_of)(number) + (0, 12) for number in range(faces)]
    names = [f"{'near' if number % 2 else 'far'}_{number}_1.png" for number in range(faces)]
    for name, each in zip(names, points):
        Image.fromarray(dotted(each, 96, 120)).save(folder / name)
    write_table(folder / "points.csv", [[name, *each.ravel()] for name, each in zip(names, points)])
    return points


def test_prepare_reads_the_folders_it_is_given(workplace: Path, capsys: pytest.CaptureFixture):
    write_marked(workplace / "some", 30)
    write_marked(workplace / "more", 4)
    (workplace / "some" / "near_3_1.png").write_text("no photo")
    assert fl.main(["prepare", "--data", "some", "--data", "more"]) == 0
    said = capsys.readouterr().out
    assert "far: 15 faces\nnear: 15 faces\n" in said
    assert "skipped near_3_1.png:" in said and "skipped near_1_1.png: exact copy" in said
    parts = r"\d+ for train, \d for validation, \d for test"
    assert re.search(rf"^30 faces \({parts}\), 0 points not marked; 4 pictures skipped", said, re.MULTILINE)
    faces = landmarks.load_landmarks(fl.PREPARED)
    assert len(faces.images) == 30 and (fl.PREPARED / "contact_sheet.png").is_file()


def test_prepare_takes_what_lies_under_dataset(workplace: Path, capsys: pytest.CaptureFixture):
    write_marked(workplace / "dataset" / "mine", 12)
    assert fl.main(["prepare", "--prepared", "elsewhere", "--seed", "3"]) == 0
    assert "12 faces (" in capsys.readouterr().out
    assert landmarks.load_landmarks(workplace / "elsewhere").summary["seed"] == 3


def test_prepare_draws_faces_where_there_are_none(workplace: Path, monkeypatch, capsys):
    (workplace / "dataset").mkdir()
    (workplace / "dataset" / "README.md").write_text("Data sets go here.")
    drawn, write_faces = [], synthetic.write_faces

    def draw_fewer(folder: Path, people: int, pictures_per_person: int, seed: int, zoom: float) -> None:
        drawn.append(people)
        write_faces(folder, min(people, 4), pictures_per_person, seed, workers=1, zoom=zoom)

    monkeypatch.setattr(synthetic, "write_faces", draw_fewer)
    assert fl.main(["prepare"]) == 0
    assert "There are no marked faces under dataset/: drawing 1500 people." in capsys.readouterr().out
    assert len(landmarks.load_landmarks(fl.PREPARED).images) == 8

    write_marked(workplace / "dataset" / "mine", 3)  # drawn ones are asked for all the same
    assert fl.main(["prepare", "--drawn-people", "3", "--prepared", "elsewhere", "--seed", "5"]) == 0
    assert "drawing 3 people" in capsys.readouterr().out
    assert len(landmarks.load_landmarks("elsewhere").images) == 6 and drawn == [1500, 3]


def test_prepare_of_nothing_is_status_2(workplace: Path, capsys: pytest.CaptureFixture):
    (workplace / "empty").mkdir()
    assert fl.main(["prepare", "--data", "empty"]) == 2
    assert fl.main(["prepare", "--data", "nowhere"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and all(line.startswith("error: ") for line in errors)
    assert not fl.PREPARED.exists()


def test_marked_faces_that_cannot_be_read_are_not_replaced_by_drawn_ones(workplace: Path, monkeypatch, capsys):
    monkeypatch.setattr(synthetic, "write_faces", lambda *_, **__: pytest.fail("drawn"))
    write_marked(workplace / "dataset" / "mine", 3)
    with open(workplace / "dataset" / "mine" / "points.csv", "a") as file:
        file.write("far_9_1.png,a,b,c,d,e,f,g,h,i,j\n")
    assert fl.main(["prepare"]) == 2
    assert "points.csv, line 5: a coordinate is not a number" in capsys.readouterr().err


def test_points_of_another_kind_are_not_replaced_by_drawn_faces(workplace: Path, monkeypatch, capsys):
    monkeypatch.setattr(synthetic, "write_faces", lambda *_, **__: pytest.fail("drawn"))
    photo = workplace / "dataset" / "five_points" / "a.png"
    photo.parent.mkdir(parents=True)
    Image.new("L", (96, 96)).save(photo)
    photo.with_suffix(".pts").write_text("version: 1\nn_points: 5\n{\n" + "30 40\n" * 5 + "}\n")
    for arguments in ([], ["--data", "dataset"]):
        assert fl.main(["prepare", *arguments]) == 2
        assert "a.pts does not hold 68 points" in capsys.readouterr().err


# ---------------------------------------------------------------- command line: train


@pytest.fixture
def prepared(workplace: Path) -> Path:
    write_marked(workplace / "dotted", 40)
    assert fl.main(["prepare", "--data", "dotted"]) == 0
    return workplace


def run_script(arguments: list[str], folder: Path, **options: object) -> subprocess.CompletedProcess:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500, **options)


def test_importing_does_nothing(tmp_path: Path):
    path = {**os.environ, "PYTHONPATH": str(SCRIPT.parent)}
    done = run_script(["-c", "import face_landmark"], tmp_path, env=path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [(), *((command,) for command in COMMANDS)])
def test_help_of_the_script_and_of_each_command(command: tuple, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as ended:
        fl.main([*command, "--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and said.startswith("usage:")
    assert command or set(COMMANDS) <= set(said.split())


@pytest.mark.parametrize("arguments", [
    [], ["fly"], ["train", "--epochs", "0"], ["prepare", "--drawn-people", "0"], ["train", "--device", "abacus"],
])  # fmt: skip
def test_wrong_usage_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as ended:
        fl.main(arguments)
    assert ended.value.code == 2 and "usage:" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["train"], ["evaluate"], ["detect", "photo.jpg"]])
def test_what_is_missing_is_named(workplace: Path, arguments: list[str], capsys: pytest.CaptureFixture):
    assert fl.main([*arguments, "--device", "cpu"]) == 2
    assert re.fullmatch(r"error: \S+ is missing: .*\n", capsys.readouterr().err)


def test_train_writes_weights_that_say_where_they_come_from(prepared: Path, toy, capsys: pytest.CaptureFixture):
    assert fl.main(["train", "--epochs", "2", "--batch-size", "8", "--seed", "4", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "32 faces to learn from, on cpu" in said and "epoch 2  loss" in said
    metadata = fl.load_landmarker(device="cpu").metadata
    assert f"Validation faces: NME {metadata['measured']['nme_validation']:.2%}" in said
    assert (metadata["settings"]["epochs"], metadata["settings"]["seed"]) == (2, 4)
    assert metadata["data"]["sources"] == {"far": 20, "near": 20} and metadata["architecture"] == "compact"


@pytest.mark.parametrize("arguments", [[], ["--reference"]])
def test_dry_run_goes_all_the_way_but_touches_no_weights(prepared: Path, toy, capsys, arguments: list[str]):
    assert fl.main(["train", "--dry-run", "--batch-size", "8", "--device", "cpu", *arguments]) == 0
    said = capsys.readouterr().out
    assert "epoch 1  loss" in said and "epoch 2  loss" in said and "epoch 3" not in said
    model = fl.load_landmarker(fl.PREPARED / "dry_run" / "landmark.safetensors", "cpu")
    assert model.architecture == ("resnet18-128-10" if arguments else "compact")
    assert model.metadata["settings"]["reference"] is bool(arguments)
    assert not (prepared / "weights").exists()
    assert [path.name for path in fl.PREPARED.iterdir() if path.is_dir()] == ["dry_run"]


def test_ctrl_c_says_how_to_go_on_and_resume_does(prepared: Path, toy, monkeypatch, capsys: pytest.CaptureFixture):
    arguments = ["train", "--epochs", "2", "--batch-size", "8", "--device", "cpu", "--weights", "mine.safetensors"]
    monkeypatch.setattr(sys, "argv", ["face_landmark.py", *arguments])
    with monkeypatch.context() as patch:
        press_ctrl_c(patch, step=6)  # of the 4 of each epoch
        assert fl.main(arguments) == 130
    said = capsys.readouterr()
    assert "epoch 1  loss" in said.out and "epoch 2  loss" not in said.out
    assert f"Stopped and saved. To go on: python3 face_landmark.py {' '.join(arguments)} --resume" in said.err
    assert not (prepared / "mine.safetensors").exists()

    assert fl.main([*arguments, "--resume"]) == 0
    said = capsys.readouterr().out
    assert "epoch 1  loss" not in said and "epoch 2  loss" in said
    assert fl.load_landmarker("mine.safetensors", "cpu").metadata["settings"]["epochs"] == 2


def test_time_limit_ends_a_training_at_a_low_learning_rate(prepared: Path, toy, monkeypatch):
    quarters = itertools.count()  # of a second
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: next(quarters) / 4))
    arguments = ["--epochs", "1000", "--time-limit", "0.1", "--device", "cpu", "--learning-rate", "1e-3"]
    assert fl.main(["train", "--batch-size", "8", *arguments]) == 0
    (checkpoint,) = prepared.glob("outputs/*-landmark/checkpoint.pt")
    last = training.load_checkpoint(checkpoint, CPU)
    assert 1 <= len(last["history"]) < 10
    assert 1e-5 <= last["optimizer"]["param_groups"][0]["lr"] < 3e-5


# ---------------------------------------------------------------- command line: evaluate


def use_model(monkeypatch: pytest.MonkeyPatch, model: nn.Module) -> None:
    model.metadata = {"data": {}}
    monkeypatch.setattr(fl, "load_landmarker", lambda path, device: model)


def evaluate(capsys: pytest.CaptureFixture, *arguments: str) -> dict:
    capsys.readouterr()
    assert fl.main(["evaluate", "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_perfect_model_has_no_errors(prepared: Path, monkeypatch, capsys: pytest.CaptureFixture):
    use_model(monkeypatch, Knows())
    test = landmarks.load_landmarks(fl.PREPARED).part("test")
    for arguments, faces in [((), len(test)), (("--images", "dotted", "--points", "dotted/points.csv"), 40)]:
        report = evaluate(capsys, *arguments)
        assert report["faces"] == report["groups"] == faces >= 3
        assert 0 <= report["nme"] < 0.01 and 0 <= report["nme_random_boxes"] < 0.015
        assert 0 <= report["mean_error_percent"] < 0.3
        assert report["failure_rate"] == 0 and report["failure_rate_interval"] == [0, 0]
        assert list(report["per_landmark"]) == list(POINTS)
        assert max(row["mean_error_percent"] for row in report["per_landmark"].values()) < 0.4
        assert set(report["per_source"]) <= {"far", "near"}
        low, high = report["nme_interval"]
        assert low <= report["nme"] <= high


def test_weights_of_another_split_are_said(prepared: Path, monkeypatch, capsys: pytest.CaptureFixture):
    model = Knows()
    use_model(monkeypatch, model)
    evaluate_saved = ["evaluate"]
    assert fl.main(evaluate_saved) == 0 and "trained on another split" in capsys.readouterr().err
    model.metadata["data"]["split_digest"] = landmarks.load_landmarks(fl.PREPARED).summary["split_digest"]
    assert fl.main(evaluate_saved) == 0 and "trained on another split" not in capsys.readouterr().err


def test_pictures_of_which_none_opens(prepared: Path, monkeypatch, capsys: pytest.CaptureFixture):
    use_model(monkeypatch, Knows())
    assert fl.main(["evaluate", "--images", ".", "--points", "dotted/points.csv"]) == 2
    assert "None of the 40 pictures" in capsys.readouterr().err


def test_the_errors_of_a_biased_model_are_known(prepared: Path, monkeypatch, capsys: pytest.CaptureFixture):
    """All points are too low by 0.04 of half the side of the last crop, which is turned and scaled for the face."""
    use_model(monkeypatch, Knows(too_low=0.04))
    points = np.array([(eyes_together if number % 2 else face_of)(number) for number in range(40)])
    enlarged = np.array([np.linalg.norm(alignment.similarity(each, 96)[:, 0]) for each in points])
    errors = 0.04 * 48 / enlarged  # (40,) in pixels
    nme = errors / np.linalg.norm(points[:, 0] - points[:, 1], axis=1)
    report = evaluate(capsys, "--images", "dotted", "--points", "dotted/points.csv", "--charts", "charts")
    assert report["nme"] == pytest.approx(nme.mean(), rel=0.03)
    assert report["nme_random_boxes"] == pytest.approx(nme.mean(), rel=0.03)
    assert report["mean_error_percent"] == pytest.approx(100 * errors.mean() / 120, rel=0.03)  # of 96 x 120 pixels
    assert report["failure_rate"] == np.mean(nme > 0.1) == 0.5
    assert report["per_source"]["far"]["nme"] == pytest.approx(nme[::2].mean(), rel=0.03)
    assert report["per_source"]["near"]["nme"] == pytest.approx(nme[1::2].mean(), rel=0.03)
    assert report["per_source"]["far"]["failure_rate"] + report["per_source"]["near"]["failure_rate"] == 1
    assert np.mean([row["nme"] for row in report["per_landmark"].values()]) == pytest.approx(nme.mean(), rel=0.03)
    assert sorted(path.name for path in Path("charts").iterdir()) == ["errors.png", "worst.png"]
    assert Image.open("charts/worst.png").size == (4 * 256, 3 * (256 + 14))


def test_points_that_are_not_marked_are_not_measured(prepared: Path, monkeypatch, capsys: pytest.CaptureFixture):
    use_model(monkeypatch, Knows())
    rows = list(csv.reader(Path("dotted/points.csv").read_text().splitlines()))
    for row in rows[1:11]:
        row[5:7] = ["", ""]  # no nose
    rows[1][9:11] = ["", ""]  # nor a mouth corner
    rows[20][1:3] = ["", ""]  # an eye: there is no distance to divide by
    rows[21][7:9] = ["0", "0"]  # wrong by far
    write_table(Path("some.csv"), rows[1:], rows[0])
    report = evaluate(capsys, "--images", "dotted", "--points", "some.csv")
    assert (report["faces"], report["faces_without_eyes"]) == (39, 1)
    assert report["failure_rate"] == pytest.approx(1 / 39)
    per_landmark = {name: row["mean_error_percent"] for name, row in report["per_landmark"].items()}
    assert per_landmark["nose"] < 0.5 < per_landmark["left_mouth"]
    for row in rows[1:]:
        row[5:7] = ["", ""]
    write_table(Path("no_noses.csv"), rows[1:], rows[0])
    assert evaluate(capsys, "--images", "dotted", "--points", "no_noses.csv")["per_landmark"]["nose"]["nme"] is None


def test_random_boxes_are_off_centre_and_off_scale(monkeypatch):
    asked, find_landmarks = [], fl.find_landmarks

    def recorded(model: nn.Module, photos: Sequence, squares: Sequence) -> list:
        asked.append(np.array(squares))
        return find_landmarks(model, photos, squares, 1)

    monkeypatch.setattr(fl, "find_landmarks", recorded)
    pictures, marked = [Image.new("RGB", (100, 50))] * 200, np.tile(FACE * 50, (200, 1, 1))
    names = np.arange(200).astype(str)
    fl.measure(Says(ASYMMETRIC), pictures, marked, names, names)
    whole, elsewhere = asked
    np.testing.assert_allclose(whole[0], alignment.box_region((0, -25, 100, 75), 96, scale=1))
    boxes = np.array([alignment.transform_points(alignment.invert(m), [(0, 0), (96, 96)]) for m in elsewhere])
    sides, centers = boxes[:, 1] - boxes[:, 0], boxes.mean(1) - (50, 25)
    assert 75 <= sides.min() < 78 and 122 < sides.max() <= 125.001
    assert -15 <= centers.min() < -14 and 14 < centers.max() <= 15


def test_the_worst_faces_come_first(prepared: Path, monkeypatch, capsys: pytest.CaptureFixture):
    sheets = []
    monkeypatch.setattr(fl, "contact_sheet", lambda tiles, path, columns, captions: sheets.append((tiles, captions)))
    use_model(monkeypatch, Knows(too_low=0.1))
    evaluate(capsys, "--images", "dotted", "--points", "dotted/points.csv")
    [(tiles, captions)] = sheets
    errors = [float(caption.split("%")[0]) for caption in captions]
    assert len(errors) == len(tiles) == 12 and errors == sorted(errors, reverse=True) and errors[-1] > 10
    number = int(captions[0].split("_")[1])
    x, y = ((eyes_together(number) + (12, 12)) * 256 / 120)[2]  # the nose: in the middle of a square of 120 pixels
    red, green, _ = tiles[0][:, int(y)].astype(int)[:, int(x)]
    assert green > red + 100
    below = tiles[0][:, int(y) : int(y) + 20, int(x)].astype(int)
    assert (below[0] > below[1] + 100).any()


def test_evaluate_prints_a_line_a_metric_for_people(prepared: Path, monkeypatch, capsys: pytest.CaptureFixture):
    use_model(monkeypatch, Knows(too_low=0.04))
    capsys.readouterr()
    assert fl.main(["evaluate"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = {line.split()[0] for line in lines}
    assert {"mean_error_percent", "nme", "failure_rate", "nme_random_boxes", *POINTS} <= names
    assert all("[" in line for line in lines if line.startswith(("nme", "mean_error", "failure")))
    assert Path("data/evaluation/errors.png").is_file() and Path("data/evaluation/worst.png").is_file()


@pytest.mark.parametrize("arguments", [
    ["--images", "dotted"], ["--points", "dotted/points.csv"], ["--images", "dotted", "--points", "nowhere.csv"],
    ["--images", "nowhere", "--points", "dotted/points.csv"], ["--prepared", "nowhere"],
    ["--images", "dotted", "--points", "dotted/points.csv", "--prepared", "data/other"],
])  # fmt: skip
def test_evaluate_of_what_is_not_there_is_status_2(prepared: Path, monkeypatch, capsys, arguments: list[str]):
    use_model(monkeypatch, Knows())
    capsys.readouterr()
    assert fl.main(["evaluate", "--json", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and re.fullmatch(r"(skipped: .*\n)*error: .*\n", err)


def test_evaluate_without_a_face_to_measure_is_status_2(workplace: Path, monkeypatch, capsys: pytest.CaptureFixture):
    use_model(monkeypatch, Knows())
    write_marked(workplace / "two", 2)
    assert fl.main(["prepare", "--data", "two"]) == 0
    assert len(landmarks.load_landmarks(fl.PREPARED).part("test")) == 0
    assert fl.main(["evaluate"]) == 2
    rows = [["far_0_1.png", "", "", *range(8)]]  # without an eye there is no NME
    write_table(workplace / "blind.csv", rows)
    assert fl.main(["evaluate", "--images", "two", "--points", "blind.csv"]) == 2
    note, *errors = capsys.readouterr().err.splitlines()
    assert note.startswith("Note: ") and len(errors) == 2 and all(line.startswith("error: ") for line in errors)


# ---------------------------------------------------------------- command line: detect


def printed_points(line: str) -> np.ndarray:
    """The points (5, 2) in a line such as `photo.jpg: left eye 34.3 34.8, right eye ...`."""
    pairs = re.findall(r"(left eye|right eye|nose|left mouth|right mouth) (-?[\d.]+) (-?[\d.]+)", line)
    assert tuple(name.replace(" ", "_") for name, _, _ in pairs) == POINTS
    return np.array([(float(x), float(y)) for _, x, y in pairs])


@pytest.fixture
def photos(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Photos of dotted faces and where their points are; detect uses a model that finds them."""
    use_model(monkeypatch, Knows())
    (workplace / "album" / "old photos").mkdir(parents=True)
    points = {"one.png": FACE * 200, "album/2.png": FACE * 150 + 10, "album/old photos/3.png": FACE * 120 + (20, 0)}
    for name, each in points.items():
        Image.fromarray(dotted(each, 200, 180)).save(workplace / name)
    return points


def test_detect_prints_the_points_in_pixels_of_the_photo(photos: dict[str, np.ndarray], capsys):
    assert fl.main(["detect", "one.png", "album"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["one.png", "album/2.png", "album/old photos/3.png"]
    assert err.startswith("Running on ") and err.count("\n") == 1
    for line, points in zip(lines, photos.values()):
        np.testing.assert_allclose(printed_points(line), points, atol=1)


def test_detect_draws_the_points(photos: dict[str, np.ndarray], capsys):
    assert fl.main(["detect", "one.png", "album/2.png", "--out", "drawn/here"]) == 0
    said = capsys.readouterr().out
    for name, target in [("one.png", "one.png.png"), ("album/2.png", "album/2.png.png")]:
        photo = np.asarray(Image.open(name).convert("RGB"), int)
        drawn = np.asarray(Image.open(Path("drawn/here", target)), int)
        assert drawn.shape == photo.shape
        for x, y in photos[name].astype(int):
            here = np.s_[y - 1 : y + 2, x - 1 : x + 2]
            assert np.abs(drawn[here] - photo[here]).max() > 50, "no point is drawn"
        assert f"saved to {Path('drawn/here', target)}" in said


def test_pictures_of_photos_with_the_same_name_do_not_replace_each_other(photos: dict[str, np.ndarray]):
    for folder in ("summer", "winter"):
        Path(folder).mkdir()
        shutil.copy("one.png", f"{folder}/same.png")
    assert fl.main(["detect", "summer", "winter", "--out", "drawn"]) == 0
    assert sorted(path.as_posix() for path in Path("drawn").rglob("*.png")) == [
        "drawn/summer/same.png.png", "drawn/winter/same.png.png"]  # fmt: skip


def test_a_bad_photo_does_not_stop_the_others(photos: dict[str, np.ndarray], capsys):
    Path("album/0.png").write_text("no photo")
    Path("album/notes.txt").write_text("not even a picture")
    assert fl.main(["detect", "album", "nobody.jpg", "one.png"]) == 2
    out, err = capsys.readouterr()
    assert [line.split(":")[0] for line in out.splitlines()] == ["album/2.png", "album/old photos/3.png", "one.png"]
    _, first, second = err.splitlines()
    assert first.startswith("error: album/0.png is no photo") and second.startswith("error: nobody.jpg does not exist")


def test_detect_asks_for_photos(photos: dict[str, np.ndarray], monkeypatch, capsys: pytest.CaptureFixture):
    home = Path.cwd() / "album"
    monkeypatch.setenv("HOME", str(home))
    lines = ["", "   ", "one.png", "nobody.jpg", "'one.png' ", '"album/old photos/3.png"', "~/2.png", "album",
             "~nobody/x"]  # fmt: skip
    monkeypatch.setattr(sys, "stdin", StringIO("\n".join(lines) + "\n"))
    assert fl.main(["detect"]) == 0
    out, err = capsys.readouterr()
    answers = [line for line in out.replace("Image path: ", "\n").splitlines() if line.strip()]
    said = [line.split(":")[0] for line in answers]
    assert said == ["one.png", "error", "one.png", "album/old photos/3.png", str(home / "2.png"), "error", "error"]
    assert "nobody.jpg does not exist" in answers[1] and "album is a folder" in answers[5] and err == ""
    np.testing.assert_allclose(printed_points(answers[4]), photos["album/2.png"], atol=1)


def test_detect_as_a_program(workplace: Path):
    """Asked through a pipe whose last line has no end."""
    Image.open(matplotlib.cbook.get_sample_data("grace_hopper.jpg")).save("hopper.png")
    done = run_script([str(SCRIPT), "detect", "--weights", str(PUBLISHED), "--device", "cpu", "--out", "drawn"],
                      workplace, input="\nhopper.png\nnowhere.jpg\n'hopper.png'")  # fmt: skip
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.count("hopper.png: left eye ") == 2 and done.stdout.count("error: nowhere.jpg does not") == 1
    points = printed_points(done.stdout.split("Image path: ")[2])
    assert np.linalg.norm(points[:2] - HOPPERS_EYES, axis=1).max() < 0.1 * np.linalg.norm(points[1] - points[0])
    assert [path.name for path in (workplace / "drawn").iterdir()] == ["hopper.png.png"]
