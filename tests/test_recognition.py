"""The recogniser and its verifier against their definitions, a small real training, and the command line."""

import csv
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from datetime import date
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.reducers import MeanReducer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

import face_recognition as fr
from facekit import datasets, metrics, synthetic, training
from facekit.datasets import FaceSet
from facekit.files import InputError
from facekit.gallery import person_means
from facekit.images import face_pixels

SCRIPT = Path(fr.__file__)
CPU = torch.device("cpu")
COMMANDS = ("download", "prepare", "train", "average", "train-verify", "evaluate", "compare", "identify", "visualize",
            "export")  # fmt: skip
INTERVALS = ("one_of_eleven", "balanced_accuracy", "accuracy", "roc_auc", "eer", "tar_at_far_0.01",
             "tar_at_far_0.001", "recall_at_1", "r_precision", "map_at_r")  # fmt: skip


def toy_faces(train: Sequence[int], validation: Sequence[int] = ()) -> FaceSet:
    """Noise instead of faces: as many images of each person as the numbers say."""
    photos = [*train, *validation]
    people = np.repeat(np.arange(len(photos)), photos)
    images = np.random.default_rng(0).integers(0, 256, (len(people), 1, 80, 80), dtype=np.uint8)
    split = np.where(people < len(train), "train", "validation")
    return FaceSet(images, people, [f"person {i}" for i in range(len(photos))], split, split, [], {})


def toy_resnet(num_classes: int) -> nn.Module:
    """In place of ResNet18 where it does not matter how well a face is learnt: much faster."""
    layers = {"conv1": nn.Conv2d(3, 64, 7), "norm": nn.BatchNorm2d(64), "relu": nn.ReLU(),
              "pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(64, num_classes)}  # fmt: skip
    return nn.Sequential(OrderedDict(layers))


@pytest.fixture
def toy_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fr, "resnet18", toy_resnet)


def toy_course(train: Sequence[int], **choices: object) -> fr.Course:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fr, "resnet18", toy_resnet)
        part = fr.Part(toy_faces(train), "train", CPU)
        return fr.Course(part, replace(fr.Settings(), **choices), Path("unused"), CPU)


def random_unit(*shape: int, seed: int = 0) -> Tensor:
    values = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return F.normalize(values, dim=-1)


class SeesFaces(nn.Module):
    """A recogniser of one matrix that keeps the faces it was given."""

    image_size, color, embedding_size, normalised, at_once = 80, False, 32, False, 256

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6400, 32, generator=torch.Generator().manual_seed(0)) / 80)
        self.head = nn.Identity()
        self.seen: list[Tensor] = []

    def forward(self, faces: Tensor) -> Tensor:
        self.seen.append(faces)
        return faces.flatten(1) @ self.weight

    raw = features = forward


# ---------------------------------------------------------------- preprocessing


def test_every_entry_point_gives_the_model_the_same_face(faces: FaceSet):
    photo = faces.files[100]
    entries: dict[str, Callable[[SeesFaces], Tensor]] = {
        "packed": lambda model: fr.embed(model, faces.images[100:101]),
        "path": lambda model: fr.embed_photos(model, [photo]),
        "image": lambda model: fr.embed_photos(model, [Image.open(photo)]),
        "array": lambda model: fr.embed_photos(model, [np.asarray(Image.open(photo))]),
    }
    seen = {}
    for name, entry in entries.items():
        model = SeesFaces()
        assert entry(model).shape == (1, 32)
        seen[name] = model.seen[0]
        assert seen[name].shape == (1, 1, 80, 80) and seen[name].dtype == torch.float32
        assert torch.equal(seen[name], seen["packed"]), name
    expected = face_pixels(photo, 80).astype(np.float32) / 255
    np.testing.assert_array_equal(seen["packed"][0], expected)
    assert 0 <= expected.min() < 0.3 and 0.5 < expected.max() <= 1


def test_embedding_goes_block_by_block_in_order():
    images = torch.arange(600).remainder(251).to(torch.uint8)[:, None, None, None].expand(-1, 1, 80, 80)
    model = SeesFaces().train()
    embeddings = fr.embed(model, images)
    torch.testing.assert_close(embeddings, model(images.float() / 255))
    assert [len(faces) for faces in model.seen[:-1]] == [256, 256, 88]
    assert model.training and not embeddings.requires_grad and not embeddings.is_inference()
    assert fr.embed_photos(model, []).shape == (0, 32)


def test_embed_photos_crops_and_names_the_photo_that_is_none(tmp_path: Path):
    pixels = np.zeros((160, 160, 3), np.uint8)
    pixels[40:120, 40:120] = 200
    model = SeesFaces()
    fr.embed_photos(model, [pixels], crop_fraction=0.5)
    assert torch.equal(model.seen[0], torch.full((1, 1, 80, 80), 200 / 255))
    with pytest.raises(InputError, match=r"nobody\.jpg"):
        fr.embed_photos(model, [pixels, tmp_path / "nobody.jpg"])


def test_unvaried_faces_are_the_pixels_over_255(faces: FaceSet):
    images = torch.from_numpy(faces.images[:8])
    assert torch.equal(fr.unvaried(images), images / 255)


def test_augmented_faces_are_in_range_and_reproducible(faces: FaceSet):
    images = torch.from_numpy(faces.images[:16])
    first, again, other = (fr.augment(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.shape == (16, 1, 80, 80) and first.dtype == torch.float32
    assert first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_each_face_varies_in_its_own_way(faces: FaceSet):
    copies = torch.from_numpy(faces.images[:1]).expand(12, -1, -1, -1)
    varied = fr.augment(copies, torch.Generator().manual_seed(0))
    for first, second in itertools.combinations(varied, 2):
        assert (first - second).abs().mean() > 0.01


def test_augmented_faces_stay_upright_and_half_of_them_are_mirrored():
    bright_above, bright_left = torch.zeros(2, 200, 1, 80, 80, dtype=torch.uint8)
    bright_above[:, :, :40], bright_left[:, :, :, :40] = 255, 255
    varied = fr.augment(bright_above, torch.Generator().manual_seed(0))
    assert (varied[:, :, :40].mean((1, 2, 3)) > varied[:, :, 40:].mean((1, 2, 3)) + 0.1).all()
    varied = fr.augment(bright_left, torch.Generator().manual_seed(0))
    left_is_brighter = varied[..., :40].mean((1, 2, 3)) > varied[..., 40:].mean((1, 2, 3))
    assert 70 < left_is_brighter.sum() < 130


# ---------------------------------------------------------------- model and its parts


def test_recogniser_gives_32_numbers_of_length_1_unless_it_is_the_reference():
    faces = torch.rand(3, 1, 80, 80)
    lengths = fr.Recogniser().eval()(faces).norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(3))
    embeddings = fr.Recogniser(normalised=False).eval()(faces)
    assert embeddings.shape == (3, 32) and (embeddings.norm(dim=1) - 1).abs().min() > 0.01


def test_part_knows_whose_the_images_are():
    faces = toy_faces(train=[3, 1, 2], validation=[2, 4])
    part = fr.Part(faces, "validation", CPU)
    assert part.people.tolist() == [3, 3, 4, 4, 4, 4]
    assert {person: rows.tolist() for person, rows in part.photos_of.items()} == {3: [0, 1], 4: [2, 3, 4, 5]}
    np.testing.assert_array_equal(part.images, faces.images[6:])
    with pytest.raises(InputError, match="2 people for train, 1 have two photos"):
        fr.Part(toy_faces(train=[5, 1]), "train", CPU)


# ---------------------------------------------------------------- global mining


def ranked_strangers(memory: Tensor, people: Tensor, anchor: Tensor, person: int) -> list[int]:
    """All rows of other people, nearest first: the definition."""
    strangers = [row for row in range(len(people)) if int(people[row]) != person]
    return sorted(strangers, key=lambda row: sum((float(a) - float(b)) ** 2 for a, b in zip(anchor, memory[row])))


@given(images=st.integers(30, 90), people=st.integers(3, 60), anchors=st.integers(1, 6), dimensions=st.integers(1, 8),
       count=st.integers(0, 9), skip=st.integers(0, 25), seed=st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_mined_negatives_are_those_of_a_plain_loop(images, people, anchors, dimensions, count, skip, seed):
    random = torch.Generator().manual_seed(seed)
    memory = torch.randn(images, dimensions, dtype=torch.float64, generator=random)
    whose = torch.randint(people, (images,), generator=random)
    rows = torch.randint(images, (anchors,), generator=random)
    mined = fr.mine_negatives(memory, whose, memory[rows], whose[rows], count, skip)
    ranked = [ranked_strangers(memory, whose, memory[row], int(whose[row])) for row in rows]
    strangers = min(map(len, ranked))  # that every anchor has
    end = min(skip + count, strangers)
    start = end - min(count, strangers)
    assert mined.tolist() == [rows[start:end] for rows in ranked]


def test_by_default_the_20_nearest_strangers_are_skipped():
    memory = torch.arange(40, dtype=torch.float64)[:, None]  # on a line
    people = torch.arange(40) // 2  # rows 0 and 1 are the first person
    mined = fr.mine_negatives(memory, people, memory[:1], people[:1], count=7)
    assert mined.tolist() == [list(range(22, 29))]


@pytest.mark.parametrize(("images", "expected"), [
    (29, [22, 23, 24, 25, 26, 27, 28]),  # 27 strangers: just enough
    (26, [19, 20, 21, 22, 23, 24, 25]),  # fewer are skipped
    (6, [2, 3, 4, 5]),  # fewer than seven: all
    (2, []),
])  # fmt: skip
def test_mining_among_few_strangers(images: int, expected: list[int]):
    memory = torch.arange(images, dtype=torch.float64)[:, None]
    people = torch.arange(images) // 2
    assert fr.mine_negatives(memory, people, memory[:1], people[:1], count=7).tolist() == [expected]


# ---------------------------------------------------------------- losses


@pytest.mark.parametrize("margin", [0.2, 3.0])
def test_triplet_loss_and_gradient_are_those_of_pytorch_metric_learning(margin: float):
    random = torch.Generator().manual_seed(0)
    shapes = {"anchors": (6, 5), "positives": (6, 5), "negatives": (6, 4, 5)}
    ours = {name: torch.randn(shape, dtype=torch.float64, generator=random) for name, shape in shapes.items()}
    theirs = {name: value.clone() for name, value in ours.items()}
    for value in (*ours.values(), *theirs.values()):
        value.requires_grad_()

    loss = fr.triplet_loss(**ours, margin=margin)
    anchor = torch.arange(6).repeat_interleave(4)
    triplets = anchor, anchor + 6, torch.arange(24) + 12
    everything = torch.cat([value.reshape(-1, 5) for value in theirs.values()])
    distance = LpDistance(normalize_embeddings=False, power=2)
    mean = TripletMarginLoss(margin=margin, distance=distance, reducer=MeanReducer())
    expected = 4 * mean(everything, torch.zeros(36), triplets)  # ours is a sum over the four negatives
    torch.testing.assert_close(loss, expected)
    for mine, other in zip(torch.autograd.grad(loss, ours.values()), torch.autograd.grad(expected, theirs.values())):
        torch.testing.assert_close(mine, other)


def smooth_triplet_loss_by_loops(embeddings: Tensor, people: list[int], scale: float, margin: float) -> float:
    def cosine(a: int, b: int) -> float:
        return float(embeddings[a] @ embeddings[b])

    losses = []
    everyone = range(len(people))
    for a in everyone:
        positives = [b for b in everyone if b != a and people[b] == people[a]]
        strangers = [c for c in everyone if people[c] != people[a]]
        each = [math.log1p(sum(math.exp(scale * (cosine(a, c) - cosine(a, b) + margin)) for c in strangers))
                for b in positives]
        losses += [sum(each) / len(each)] if each else []
    return sum(losses) / len(losses)


@pytest.mark.parametrize("people", [[0, 0, 1, 1], [0, 1, 0, 2, 1, 0, 3], [5, 5, 5, 9], [1, 1, 1]])
@pytest.mark.parametrize(("scale", "margin"), [(16.0, 0.1), (2.0, 0.5)])
def test_smooth_triplet_loss_is_that_of_plain_loops(people: list[int], scale: float, margin: float):
    embeddings = random_unit(len(people), 6)
    loss = fr.smooth_triplet_loss(embeddings, torch.tensor(people), scale, margin)
    assert float(loss) == pytest.approx(smooth_triplet_loss_by_loops(embeddings, people, scale, margin), abs=1e-12)


def test_gradient_of_the_smooth_triplet_loss_is_right():
    people = torch.tensor([0, 1, 0, 2, 1, 0])
    assert torch.autograd.gradcheck(lambda e: fr.smooth_triplet_loss(e, people, 16.0, 0.1),
                                    random_unit(6, 4).requires_grad_())  # fmt: skip


def test_an_image_alone_is_a_negative_but_no_anchor():
    people = torch.tensor([0, 0, 1, 1, 2])
    embeddings = random_unit(5, 6).requires_grad_()
    fr.smooth_triplet_loss(embeddings, people, 16.0, 0.1).backward()
    assert embeddings.grad[4].norm() > 0
    # Were it an anchor, the mean would be over five.
    assert float(fr.smooth_triplet_loss(embeddings.detach(), people, 16.0, 0.1)) == pytest.approx(
        smooth_triplet_loss_by_loops(embeddings.detach(), people.tolist(), 16.0, 0.1))


@pytest.mark.parametrize("scale", [16.0, 1000.0])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_smooth_triplet_loss_stays_finite_at_the_extremes(scale: float, precision: str):
    """Strangers in one place and own images opposite; everybody in one place; and a batch of one person."""
    one = F.normalize(torch.ones(4, 32), dim=1)
    worst = torch.stack([one[0], -one[0], one[0], -one[0]])
    for vectors, people, per_anchor in [
        (worst, [0, 0, 1, 1], 2.1 * scale),
        (one, [0, 0, 1, 1], math.log1p(2 * math.exp(min(0.1 * scale, 700)))),
        (worst, [0, 0, 0, 0], 0.0),
    ]:
        embeddings = vectors.clone().requires_grad_()
        with training.autocast(CPU, precision):
            loss = fr.SmoothTriplet(scale, margin=0.1)(embeddings, torch.tensor(people))
        loss.backward()
        assert loss.item() == pytest.approx(per_anchor, rel=1e-5)
        assert embeddings.grad.isfinite().all()


# ---------------------------------------------------------------- a teacher


def test_distillation_loss_is_that_of_plain_loops():
    embeddings, taught = 3 * random_unit(5, 8, seed=1).float(), random_unit(5, 4, seed=2).float()
    cosine = F.cosine_similarity
    errors = [float(cosine(embeddings[i], embeddings[j], dim=0) - taught[i] @ taught[j]) ** 2
              for i in range(5) for j in range(5)]  # fmt: skip
    assert float(fr.distillation_loss(embeddings, taught)) == pytest.approx(sum(errors) / 25, rel=1e-5)


def test_a_teacher_is_followed_in_any_size_and_direction():
    taught = random_unit(6, 4).float()
    turned = 5 * F.pad(taught, (3, 0)) @ nn.init.orthogonal_(torch.empty(7, 7))
    assert float(fr.distillation_loss(turned, taught)) == pytest.approx(0, abs=1e-10)


def test_crops_recut_for_another_recogniser_look_as_if_prepared_for_it():
    pixels = synthetic.draw_face(synthetic.make_person(3), 0).pixels
    for color, to_color in ((True, False), (True, True), (False, True)):
        images = torch.from_numpy(np.stack([face_pixels(pixels, 112, 1.0, color)] * 300))
        recut = fr.recut(images, fr.Recogniser("mobilefacenet", 16, 80, to_color))
        expected = face_pixels(pixels if color else images[0].numpy()[0], 80, 1.0, to_color)
        assert recut.shape == (300, *expected.shape) and recut.dtype == torch.uint8
        difference = (recut[299].float() - torch.from_numpy(expected).float()).abs()
        assert difference.mean() < 1 and difference.max() < 16  # scaled twice, and rounded


def test_what_a_student_learns_comes_near_to_its_teacher(faces: FaceSet, tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch):  # fmt: skip
    monkeypatch.setattr(fr, "TEACHING", 1e4)  # the teacher alone counts
    teacher = Path(fr.__file__).parent / "weights/recognition.safetensors"
    part = fr.Part(faces, "train", CPU)
    taught = fr.embed(fr.load_recogniser(teacher, "cpu"), part.images)
    likeness = {}
    for name in (str(teacher), None):
        choices = fr.Settings("resnet18", 32, epochs=4, batch_size=16, teacher=name)
        course = fr.train(faces, choices, tmp_path, CPU, "float32")
        with torch.no_grad():  # few steps: too few for the running averages of batch normalisation
            learnt = course.model.train()(fr.unvaried(part.images))
        likeness[name] = float(fr.distillation_loss(learnt, taught))
    assert likeness[str(teacher)] < likeness[None] / 2
    assert course.taught is None and course.data == part.digest()


# ---------------------------------------------------------------- who meets in a batch


def test_random_strangers_are_never_the_own_person_and_can_be_everybody_else():
    people = torch.tensor([0] * 50 + [1] + [2] * 3)  # one person has nearly all images
    anchors = torch.tensor([0, 49, 50, 53])
    strangers = fr.random_strangers(people, anchors, 2000, np.random.default_rng(0))
    assert strangers.shape == (4, 2000)
    for anchor, row in zip(anchors, strangers):
        others = torch.nonzero(people != people[anchor]).flatten()
        assert sorted(set(row.tolist())) == others.tolist()
    again = fr.random_strangers(people, anchors, 2000, np.random.default_rng(0))
    assert torch.equal(strangers, again)


PHOTOS = [2, 3, 4, 5, 9, 1, 2, 2, 7, 1, 4, 4]  # of each person


def rows_of_batches(batches: list[Tensor]) -> list[list[int]]:
    return [batch.tolist() for batch in batches]


@pytest.mark.parametrize("loss", ["triplet", "arcface"])
def test_every_person_comes_once_an_epoch_a_single_photo_twice_or_with_class_centres_not_at_all(loss, monkeypatch):
    monkeypatch.setattr(fr, "LEAST_BATCHES", 1)
    course = toy_course(PHOTOS, batch_size=12, loss=loss)
    batches = fr.plan_epoch(course)
    rows = torch.cat(batches)
    people, counts = course.part.people[rows].unique(return_counts=True)
    assert dict(zip(people.tolist(), counts.tolist())) == {
        person: 2 if photos == 1 else min(photos, 4)
        for person, photos in enumerate(PHOTOS) if photos > 1 or loss == "triplet"}  # fmt: skip
    assert len(rows.unique()) == len(rows) - (loss == "triplet") * PHOTOS.count(1)
    assert course.class_of[people].unique().tolist() == list(range(len(people)))
    in_batches = [set(course.part.people[batch].tolist()) for batch in batches]
    assert sum(map(len, in_batches)) == len(people)  # nobody is torn apart
    assert all(len(batch) < 12 + 4 for batch in batches)
    assert len(batches) <= math.ceil(len(rows) / 12)
    assert min(map(len, batches)) > max(map(len, batches)) - 2 * 4, "no tiny last batch"


@pytest.mark.parametrize(("people", "photos", "times"), [
    (5, 100, 6),  # of 20 images: as often as it takes for ten batches
    (5, 17, 4),  # as far as there are photos
    (40, 100, 1), (5, 4, 1),  # more than ten batches, or no more photos
])  # fmt: skip
def test_few_people_with_many_photos_come_several_times_an_epoch(people: int, photos: int, times: int):
    course = toy_course([photos] * people, batch_size=12)
    rows = torch.cat(fr.plan_epoch(course))
    _, counts = course.part.people[rows].unique(return_counts=True)
    assert counts.tolist() == [times * 4] * people
    assert len(rows.unique()) == len(rows)


def test_who_has_no_more_photos_comes_once_all_the_same():
    course = toy_course([2, 2, 2, 1000], batch_size=64)
    rows = torch.cat(fr.plan_epoch(course))
    people, counts = course.part.people[rows].unique(return_counts=True)
    assert counts[:3].tolist() == [2, 2, 2] and 640 <= len(rows) < 650 and len(rows.unique()) == len(rows)


def test_pairs_are_two_images_of_one_person_each_person_twice_an_epoch():
    course = toy_course(PHOTOS, reference=True, batch_size=60)
    batches = fr.plan_epoch(course)
    assert [len(batch) for batch in batches[:-1]] == [5] * (len(batches) - 1) and 1 <= len(batches[-1]) <= 5
    pairs = torch.cat(batches)
    people = course.part.people[pairs]
    assert (people[:, 0] == people[:, 1]).all() and (pairs[:, 0] != pairs[:, 1]).all()
    pairs_of = np.bincount(people[:, 0], minlength=len(PHOTOS))
    assert pairs_of.tolist() == [2 * (photos // 2) for photos in PHOTOS]
    times = np.bincount(pairs.flatten(), minlength=len(course.part.people))
    assert times.max() == 2
    assert (times[np.flatnonzero(np.array(PHOTOS)[course.part.people] % 2 == 0)] == 2).all()
    assert [len(batch) for batch in fr.plan_pairs([np.arange(4)], 0, np.random.default_rng(0))] == [1] * 4


@pytest.mark.parametrize(("reference", "mine"), [(False, False), (False, True), (True, False)])
def test_a_plan_depends_on_seed_and_epoch_alone(reference: bool, mine: bool):
    plans = []
    for seed, epoch in [(0, 2), (0, 2), (0, 3), (1, 2)]:
        course = toy_course(PHOTOS, reference=reference, seed=seed, batch_size=12, mine_from=0.0 if mine else 1.0)
        course.memory, course.epoch = random_unit(len(course.memory), 32), epoch
        course.memory_epoch[[len(rows) > 1 for rows in same_person(course)]] = epoch - 1
        torch.rand(epoch), np.random.rand(seed)  # noqa: NPY002  the global generators do not matter
        plans.append(rows_of_batches(fr.plan_epoch(course)))
    assert plans[0] == plans[1]
    assert plans[0] != plans[2] and plans[0] != plans[3]


@pytest.mark.parametrize(("epoch", "mine_from", "mines"), [
    (1, 0.0, False),  # the memory is empty
    (2, 0.0, True), (4, 0.4, False), (5, 0.4, True), (10, 1.0, False),
])  # fmt: skip
def test_mining_decides_from_its_part_of_the_training_on(monkeypatch, epoch: int, mine_from: float, mines: bool):
    calls = []

    def in_order(course: fr.Course, random: np.random.Generator) -> np.ndarray:
        calls.append(course.epoch)
        return np.array(list(course.learn_from))

    monkeypatch.setattr(fr, "group_look_alikes", in_order)
    monkeypatch.setattr(fr, "LEAST_BATCHES", 0.1)
    course = toy_course(PHOTOS, epochs=10, mine_from=mine_from)
    course.epoch = epoch
    fr.plan_epoch(course)
    assert calls == [epoch] * mines


def same_person(course: fr.Course) -> list[Tensor]:
    """For each image the rows of its person."""
    people = course.part.people
    return [torch.nonzero(people == person).flatten() for person in people]


def test_look_alikes_stand_together():
    """100 people in five crowds; the 20 nearest images are passed over, the next are of the same crowd."""
    course = toy_course([4] * 100)
    crowd = np.arange(100) % 5
    centres = random_unit(5, 32)
    course.memory = centres[crowd[course.part.people]] + 0.05 * random_unit(400, 32, seed=1)
    order = fr.group_look_alikes(course, np.random.default_rng(0))
    assert sorted(order.tolist()) == list(range(100))
    neighbours_alike = np.mean(crowd[order[1:]] == crowd[order[:-1]])
    assert neighbours_alike > 0.7  # by chance 0.2


def test_a_group_is_a_person_and_seven_mined_look_alikes():
    course = toy_course([2] * 50)
    people = course.part.people
    course.memory = torch.randn(50, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))[people]
    photos = list(course.part.photos_of.values())
    order = fr.group_look_alikes(course, np.random.default_rng(0)).tolist()

    def look_alikes(person: int) -> list[int]:
        ranked = ranked_strangers(course.memory, people, course.memory[photos[person][0]], person)
        return list(dict.fromkeys(int(people[stranger]) for stranger in ranked[20:84]))[:7]

    whole_groups = [person for at, person in enumerate(order) if order[at + 1 : at + 8] == look_alikes(person)]
    assert whole_groups  # at least the one that was made first


def test_a_single_photo_is_no_anchor_to_count_and_is_remembered_once():
    course = toy_course([4] * 6 + [1])
    rows = torch.tensor([24, 24, 0, 1, 4, 5])
    seen = []
    course.loss = lambda embeddings, people: seen.append((embeddings, people)) or embeddings.sum()
    _, right = fr.batch_loss(course, rows, torch.Generator().manual_seed(0))
    assert right.shape == (4,)
    embeddings, people = seen[0]
    assert len(set(people.tolist())) == 3 and people[0] == people[1] and not torch.equal(embeddings[0], embeddings[1])
    torch.testing.assert_close(course.memory[24], F.normalize(embeddings[0].detach(), dim=0))


def test_stale_embeddings_are_not_mined(monkeypatch):
    seen, mine_negatives = [], fr.mine_negatives

    def mine(memory: Tensor, people: Tensor, *rest, **options) -> Tensor:
        seen.append(people.tolist())
        return mine_negatives(memory, people, *rest, **options)

    monkeypatch.setattr(fr, "mine_negatives", mine)
    course = toy_course([2] * 30 + [1] * 10)
    course.epoch = 3
    course.memory = random_unit(70, 32)
    course.memory_epoch[:60] = 2
    order = fr.group_look_alikes(course, np.random.default_rng(0))
    assert sorted(order.tolist()) == list(range(40)), "the others come, too, but as groups of their own"
    assert seen == [sorted(list(range(30)) * 2)]


# ---------------------------------------------------------------- steps


def test_reference_step_embeds_each_image_once_and_gives_the_loss_of_the_definition():
    course = toy_course([4] * 12, reference=True)
    course.model, course.epoch = SeesFaces(), 5
    course.memory = random_unit(48, 32).float()
    memory, people = course.memory.clone(), course.part.people
    pairs = torch.tensor([[0, 1], [2, 3], [8, 10], [47, 44]])  # two of one person
    loss, right = fr.reference_loss(course, pairs, np.random.default_rng(7))

    strangers = fr.random_strangers(people, pairs[:, 0], 10, np.random.default_rng(7)).tolist()
    images = fr.unvaried(course.part.images).flatten(1) @ course.model.weight.detach()
    losses, used, expected_right = [], set(pairs.flatten().tolist()), []
    for (a, b), others in zip(pairs.tolist(), strangers):
        negatives = ranked_strangers(memory, people, memory[a], int(people[a]))[20:27] + others[7:]
        used |= set(negatives)
        near = float((images[a] - images[b]).square().sum())
        losses.append(sum(max(0.0, near - float((images[a] - images[c]).square().sum()) + 0.1) for c in negatives))
        # What memory says after the step, of the images it has seen.
        now = torch.where(torch.isin(torch.arange(48), torch.tensor(sorted(used)))[:, None], images, memory)
    for (a, b), others in zip(pairs.tolist(), strangers):
        near = (images[a] - images[b]).square().sum()
        expected_right.append(all(near < (now[a] - now[c]).square().sum() for c in others))
    assert float(loss.detach()) == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert right.tolist() == expected_right

    (seen,) = course.model.seen
    assert len(seen) == len(seen.unique(dim=0)) == len(used)
    assert torch.nonzero(course.memory_epoch == 5).flatten().tolist() == sorted(used)
    torch.testing.assert_close(course.memory, now)


def test_batch_step_embeds_each_image_once_and_remembers_it():
    course = toy_course([4] * 6)
    course.model, course.epoch = SeesFaces(), 5
    rows = torch.tensor([20, 3, 1, 22, 9])
    loss, right = fr.batch_loss(course, rows, torch.Generator().manual_seed(0))
    (seen,) = course.model.seen
    assert torch.equal(seen, fr.augment(course.part.images[rows], torch.Generator().manual_seed(0)))
    embeddings = (seen.flatten(1) @ course.model.weight).detach()
    torch.testing.assert_close(course.memory[rows], embeddings / embeddings.norm(dim=1, keepdim=True))
    assert torch.nonzero(course.memory_epoch == 5).flatten().tolist() == [1, 3, 9, 20, 22]
    assert loss.requires_grad and right.shape == (5,) and right.dtype == torch.bool


def test_the_triplet_loss_is_that_of_the_embeddings_and_of_the_features_before_the_head():
    course, rows = toy_course([4] * 6), torch.arange(24)
    course.model = SeesFaces()
    course.model.head = nn.Linear(32, 32)
    loss, _ = fr.batch_loss(course, rows, torch.Generator().manual_seed(0))
    features = course.model.seen[0].flatten(1) @ course.model.weight
    expected = [course.loss(vectors, course.part.people) for vectors in (features, course.model.head(features))]
    torch.testing.assert_close(loss, sum(expected))
    loss.backward()
    assert course.model.weight.grad.any() and course.model.head.weight.grad.any()


def test_in_use_an_embedding_is_of_the_face_and_its_mirror_image():
    faces = torch.rand(2, 1, 80, 80)
    model = fr.Recogniser().eval()
    face, mirrored = F.normalize(model.raw(faces), dim=1), F.normalize(model.raw(faces.flip(3)), dim=1)
    torch.testing.assert_close(model(faces), F.normalize(face + mirrored, dim=1))
    torch.testing.assert_close(model(faces), model(faces.flip(3)))
    assert (face - mirrored).abs().max() > 1e-3
    plain = fr.Recogniser(normalised=False).eval()
    torch.testing.assert_close(plain(faces), plain.raw(faces))


def test_test_time_augmentation_is_the_mean_over_shifted_faces_and_their_mirror_images():
    images = torch.zeros(1, 1, 80, 80, dtype=torch.uint8)
    images[:, :, 40, 40] = 255
    views = fr.shifted(fr.unvaried(images))
    bright = [tuple(torch.nonzero(view[0, 0])[0].tolist()) for view in views]
    assert sorted(bright) == [(38, 40), (40, 38), (40, 40), (40, 42), (42, 40)]
    assert all(view.shape == (1, 1, 80, 80) for view in views)
    model = SeesFaces()
    expected = torch.stack([model(view) for view in [*views, *(view.flip(3) for view in views)]]).mean(0)
    torch.testing.assert_close(fr.embed(model, images, tta=True), expected.detach())
    torch.testing.assert_close(fr.embed(model, images), model(views[0]).detach())


@pytest.mark.parametrize("loss", sorted(fr.LOSSES))
def test_every_loss_learns_and_is_resumed_as_if_never_stopped(loss: str, tmp_path: Path, monkeypatch):
    """Noise can be learnt by heart: the loss falls. The class centres are saved, too."""
    choices = replace(fr.Settings(), epochs=12, batch_size=12, loss=loss, learning_rate=0.01)
    if loss != "triplet":  # a scale that does not grow: the losses of two epochs can be compared
        choices = replace(choices, scale=None if loss == "softmax" else fr.losses.FIRST_SCALE, margin=None)
    monkeypatch.setattr(fr, "resnet18", toy_resnet)
    faces = toy_faces([4] * 4 + [1], validation=[3] * 3)
    expected = fr.train(faces, choices, tmp_path / "whole", CPU, "float32")
    losses = [row["loss"] for row in expected.history]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    with monkeypatch.context() as patch:
        press_ctrl_c(patch, 8)
        with pytest.raises(KeyboardInterrupt):
            fr.train(faces, choices, tmp_path / "stopped", CPU, "float32")
    resumed = fr.train(faces, choices, tmp_path / "stopped", CPU, "float32", resume=True)
    assert without_minutes(resumed.history) == without_minutes(expected.history)
    assert_same_weights(resumed.loss, expected.loss)


def test_losses_with_centres_have_one_for_each_person_with_two_photos():
    course = toy_course([4, 1, 2, 3], loss="cosface", scale=None, margin=None)
    assert course.loss.centres.shape == (3, 32)
    assert course.class_of.tolist() == [0, -1, 1, 2]
    before = course.loss.centres.detach().clone()
    fr.train_step(course, torch.arange(4))
    assert not torch.equal(course.loss.centres, before)
    assert course.loss.done == 0, "the scale grows"
    course.epoch = 31
    fr.train_step(course, torch.arange(4))
    assert course.loss.done == course.done == 0.5


def test_the_centres_of_a_loss_learn_by_plain_gradient_descent():
    course = toy_course([4, 4, 4], loss="arcface", scale=None, margin=None)
    before = course.loss.centres.detach().clone()
    loss, _ = fr.batch_loss(course, torch.arange(8), torch.Generator().manual_seed(0))  # without the third person
    [gradient] = torch.autograd.grad(loss, course.loss.centres, retain_graph=True)
    assert gradient.any(1).all(), "everybody is pushed away from the others"
    course.learn(loss, 1e-4)
    torch.testing.assert_close(course.loss.centres.data, before - 0.1 * gradient)
    assert course.loss.centres.grad is None, "or gradients would add up"


def test_training_starts_with_centres_where_the_untrained_model_has_their_people(tmp_path: Path, monkeypatch):
    found = []
    monkeypatch.setattr(fr, "train_step", lambda course, rows: found.append((course, rows)))
    monkeypatch.setattr(fr, "resnet18", toy_resnet)
    choices = replace(fr.Settings(), epochs=1, loss="cosface", scale=None, margin=None)
    fr.train(toy_faces([4, 1, 2, 3], validation=[3] * 3), choices, tmp_path, CPU, "float32")
    [(course, rows)] = found
    people = course.part.people[rows]
    course.model.train()  # as the first step will see them
    embeddings = F.normalize(course.model.raw(course.part.images[rows] / 255), dim=1)
    for centre, person in zip(course.loss.centres, [0, 2, 3]):
        expected = F.normalize(embeddings[people == person].mean(0), dim=0)
        torch.testing.assert_close(centre, expected, rtol=0, atol=1e-5)


def test_hard_only_counts_what_is_wrong():
    a, b, c = torch.tensor([[0.0, 0], [9, 0]]), torch.tensor([[2.0, 0], [9, 1]]), torch.tensor([[1.0, 0], [5, 0]])
    negatives = torch.stack([c, c + 7], dim=1)
    # Only the first triplet is wrong: the positive is 4 away, its nearest negative 1; by the margin 0.2.
    assert float(fr.triplet_loss(a, b, negatives, hard_only=True)) == pytest.approx((4 - 1 + 0.2) / 2)
    embeddings, people = random_unit(12, 8), torch.arange(3).repeat_interleave(4)
    cosines, expected = embeddings @ embeddings.T, []
    for i in range(12):
        strangers = [float(cosines[i, j]) for j in range(12) if people[j] != people[i]]
        wrong = [float(cosines[i, j]) for j in range(12)
                 if j != i and people[j] == people[i] and cosines[i, j] < max(strangers)]  # fmt: skip
        if wrong:
            expected.append(np.mean([math.log1p(sum(math.exp(16 * (c - near + 0.1)) for c in strangers))
                                     for near in wrong]))  # fmt: skip
    assert 0 < len(expected) <= 12
    assert float(fr.smooth_triplet_loss(embeddings, people, 16.0, 0.1, hard_only=True)) == pytest.approx(
        np.mean(expected))
    told_apart = F.one_hot(people).double().requires_grad_()
    loss = fr.smooth_triplet_loss(told_apart, people, 16.0, 0.1, hard_only=True)
    loss.backward()
    assert float(loss) == 0 and not told_apart.grad.any()


def test_hard_only_reaches_the_loss_of_a_training():
    rows = torch.arange(24)
    losses = []
    for hard_only in (False, True):
        course = toy_course([4] * 6, hard_only=hard_only)
        patches = F.interpolate(course.part.images[0:12:4, :, :3, :3].float(), 80)  # three people who are easy to tell
        course.part.images[:12] = patches.byte().repeat_interleave(4, 0)
        course.model = SeesFaces()
        losses.append(float(fr.batch_loss(course, rows, torch.Generator().manual_seed(0))[0].detach()))
    features = course.model.seen[0].flatten(1) @ course.model.weight
    expected = 2 * fr.smooth_triplet_loss(F.normalize(features, dim=1), course.part.people, course.settings.scale,
                                          course.settings.margin, hard_only=True)  # fmt: skip
    assert losses[1] == pytest.approx(float(expected.detach()), rel=1e-4) and losses[1] > losses[0]


def test_the_triplet_loss_is_computed_in_float32_under_autocast():
    embeddings, people = random_unit(24, 32).float(), torch.arange(6).repeat_interleave(4)
    loss = fr.make_loss(fr.Settings(), people=6)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = loss(embeddings, people)
    assert torch.equal(under_autocast, loss(embeddings, people))


def test_the_hardest_triplets_are_those_of_a_plain_search():
    embeddings, people = random_unit(20, 4), torch.arange(5).repeat_interleave(4)
    found = []
    for a in range(20):
        near = {j: float((embeddings[a] - embeddings[j]).norm()) for j in range(20) if j != a}
        positive = max((j for j in near if people[j] == people[a]), key=near.get)
        negative = min((j for j in near if people[j] != people[a]), key=near.get)
        found.append((near[positive] - near[negative], [a, positive, negative]))
    expected = [triplet for _, triplet in sorted(found, reverse=True)[:6]]
    assert fr.hardest_triplets(embeddings, people, 6).tolist() == expected


def test_one_of_eleven_in_a_batch():
    people = torch.arange(15).repeat_interleave(4)
    own_place = 10.0 * torch.eye(15)[people] + 0.1 * torch.randn(60, 15, generator=torch.Generator().manual_seed(0))
    assert fr.one_of_eleven_in_batch(own_place, people, torch.Generator().manual_seed(0)).all()
    by_chance = torch.randn(60, 15, generator=torch.Generator().manual_seed(0))
    right = [fr.one_of_eleven_in_batch(by_chance, people, torch.Generator().manual_seed(i)) for i in range(50)]
    assert float(torch.cat(right).float().mean()) == pytest.approx(1 / 11, abs=0.05)


# ---------------------------------------------------------------- verifier


def test_verifier_is_a_linear_layer_over_squared_differences():
    torch.manual_seed(0)
    verifier, first, second = fr.Verifier(), torch.randn(5, 32), torch.randn(5, 32)
    weight, bias = verifier.linear.weight[0].tolist(), float(verifier.linear.bias)
    for a, b, score in zip(first.tolist(), second.tolist(), verifier(first, second).tolist()):
        logit = bias + sum(w * (x - y) ** 2 for w, x, y in zip(weight, a, b))
        assert score == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-5)
    assert torch.equal(verifier(first, second), verifier(second, first))
    each_with_all = verifier(first[:, None], second[None])
    assert each_with_all.shape == (5, 5)
    torch.testing.assert_close(each_with_all.diagonal(), verifier(first, second))


def separable(people: int, photos: int = 4, seed: int = 0) -> tuple[fr.Part, Tensor]:
    """16 numbers of each embedding tell people apart, 16 are noise."""
    part = fr.Part(toy_faces([photos] * people), "train", CPU)
    random = np.random.default_rng(seed)
    told = 3 * random.normal(size=(people, 16))[part.people] + 0.1 * random.normal(size=(len(part.people), 16))
    noise = 3 * random.normal(size=(len(part.people), 16))
    return part, torch.from_numpy(np.hstack([told, noise])).float()


def test_trained_verifier_learns_which_numbers_to_trust():
    verifier = fr.train_verifier(separable(40)[1], separable(40)[0], epochs=150)
    part, embeddings = separable(20, seed=1)  # other people
    first, second, same = fr.sampled_pairs(part)
    scores = fr.score_pairs(verifier, embeddings, first, second)
    assert metrics.balanced_accuracy(scores, same) > 0.97
    weights = verifier.linear.weight[0].detach()
    assert weights[:16].mean() < weights[16:].mean() < 0.1

    part, embeddings = separable(40)
    one, other = (fr.train_verifier(embeddings, part, epochs=3) for _ in range(2))
    assert torch.equal(one.linear.weight, other.linear.weight)


def distance_verifier(bias: float = 2.0, weight: float = -0.01) -> fr.Verifier:
    verifier = fr.Verifier()
    nn.init.constant_(verifier.linear.weight, weight)
    nn.init.constant_(verifier.linear.bias, bias)
    return verifier


def test_scores_of_pairs_do_not_depend_on_the_blocks():
    embeddings = random_unit(30, 32).float()
    first, second = np.random.default_rng(0).integers(0, 30, (2, 250_000))
    scores = fr.score_pairs(distance_verifier(), embeddings, first, second)
    assert scores.shape == (250_000,) and scores.dtype == np.float64
    some = np.random.default_rng(1).integers(0, 250_000, 100)
    expected = distance_verifier()(embeddings[first[some]], embeddings[second[some]]).detach()
    np.testing.assert_allclose(scores[some], expected, rtol=1e-6)


def test_all_strangers_are_every_two_people_once():
    part = fr.Part(toy_faces(PHOTOS), "train", CPU)
    first, second = fr.all_strangers(part)
    people = part.people.numpy()
    met = {frozenset(pair) for pair in zip(people[first].tolist(), people[second].tolist())}
    assert met == {frozenset(pair) for pair in itertools.combinations(range(len(PHOTOS)), 2)}
    assert len(first) == len(second) == len(met)


def test_thresholds_accept_no_more_strangers_than_asked():
    part, embeddings = separable(60)
    verifier = distance_verifier()
    thresholds = fr.choose_thresholds(verifier, embeddings, part)
    assert list(thresholds) == ["0.1", "0.01", "0.001"]
    scores = fr.score_pairs(verifier, embeddings, *fr.all_strangers(part))  # of 1770 pairs
    for far, threshold in thresholds.items():
        accepted = scores >= threshold
        assert accepted.sum() == math.floor(float(far) * len(scores))  # 177, 17, 1: no fewer than could be, either


def test_centered_scores_part_best_at_one_half():
    part, embeddings = separable(30)
    first, second, same = fr.sampled_pairs(part)
    verifier = distance_verifier(bias=5.0)
    before = fr.score_pairs(verifier, embeddings, first, second)
    best = np.mean((before >= metrics.best_threshold(before, same)) == same)
    assert np.mean((before >= 0.5) == same) < best
    fr.center_at_half(verifier, embeddings, part)
    after = fr.score_pairs(verifier, embeddings, first, second)
    assert np.mean((after >= 0.5) == same) == best
    np.testing.assert_array_equal(np.argsort(after, kind="stable"), np.argsort(before, kind="stable"))


@pytest.mark.parametrize("bias", [-200.0, 2.0, 200.0])
def test_centering_a_verifier_that_is_worse_than_chance_keeps_it_finite(bias: float):
    part, embeddings = separable(30)
    verifier = distance_verifier(bias, weight=0.01)  # the farther, the more alike
    fr.center_at_half(verifier, embeddings, part)
    assert verifier.linear.bias.isfinite().all()


# ---------------------------------------------------------------- the course of a training


@pytest.mark.parametrize("reference", [False, True])
def test_the_learning_rate_follows_the_training_but_is_constant_for_the_reference(reference: bool):
    course = toy_course([4] * 8, reference=reference, batch_size=12, epochs=2, learning_rate=0.01)
    course.plan = fr.plan_epoch(course)
    rates = {}
    for course.epoch, course.step in [(1, 0), (1, 1), (2, 0)]:
        done = course.done
        fr.train_step(course, course.plan[course.step])
        rates[done] = course.optimizer.param_groups[0]["lr"]
    assert len(rates) == 3
    assert rates == {done: 0.01 if reference else 0.01 * training.warm_cosine(done) for done in rates}


def test_naming_thresholds_hold_strangers_to_the_share_and_grow_with_the_gallery():
    part = fr.Part(toy_faces([4] * 60), "train", CPU)
    random = np.random.default_rng(0)
    told = random.normal(size=(60, 32))[part.people] + 0.3 * random.normal(size=(len(part.people), 32))
    embeddings = F.normalize(torch.from_numpy(told).float(), dim=1)
    verifier = fr.train_verifier(embeddings, part)
    thresholds = fr.choose_naming_thresholds(verifier, embeddings, part, share=0.1)
    chosen = {int(size): value for size, value in thresholds.items()}
    verifier.naming_thresholds = {"score": chosen, "cosine": {1: 0.2, 100: 0.6}}
    assert list(chosen) == [1, 3, 10, 30] and sorted(chosen.values()) == list(chosen.values())
    assert verifier.naming_threshold(0) == chosen[1] and verifier.naming_threshold(10**6) == chosen[30]
    assert chosen[3] < verifier.naming_threshold(5) < chosen[10]
    assert verifier.naming_threshold(10, "cosine") == pytest.approx(0.4)

    named = []  # counted plainly, for the first 10 people enrolled with all their photos
    enrolled = [row for row in range(len(told)) if part.people[row] < 10]
    means = torch.from_numpy(person_means(embeddings[enrolled].numpy(), part.people[enrolled]))
    for row in range(len(told)):
        if part.people[row] >= 10:
            with torch.inference_mode():
                scores = (verifier(embeddings[row], embeddings[enrolled]) + verifier(embeddings[row], means)) / 2
            named.append(float(scores.max()) >= chosen[10])
    assert 0.02 < np.mean(named) < 0.25  # 0.1, but for these ten people and not on average


def test_naming_thresholds_are_chosen_in_the_data_set_where_strangers_are_hardest():
    part = fr.Part(toy_faces([2] * 240), "train", CPU)
    assert [len(people) for people in fr.one_set_each(part)] == [240]
    part.sources = ["a" if person < 120 else "b" for person in part.people.tolist()]
    a, b = fr.one_set_each(part)
    assert (sorted(a), sorted(b)) == (list(range(120)), list(range(120, 240)))
    assert all(part.people[rows].tolist() == [person] * 2 for person, rows in (a | b).items())

    random = np.random.default_rng(0)
    told = random.normal(size=(240, 8))[part.people] + 0.1 * random.normal(size=(480, 8))
    told[240:, 4:] *= 0.2  # the people of b are more alike
    far_apart = np.repeat([[9.0], [-9.0]], 240, axis=0)
    embeddings = torch.from_numpy(np.hstack([told, far_apart])).float()

    def nearness(first: Tensor, second: Tensor) -> Tensor:
        return -(first - second).norm(dim=-1)

    each = fr.choose_naming_thresholds(nearness, embeddings, part, share=0.1)
    part.sources = ["one set"] * 480
    together = fr.choose_naming_thresholds(nearness, embeddings, part, share=0.1)
    part.sources = ["b" if person >= 120 else f"small set {person}" for person in part.people.tolist()]
    only_b = fr.choose_naming_thresholds(nearness, embeddings, part, share=0.1)
    for size in ("10", "30"):
        assert each[size] > together[size] and each[size] == pytest.approx(only_b[size], rel=0.1)




@pytest.mark.parametrize(("accuracies", "stops"), [
    ([], False),
    ([0.5] * 200, False),
    ([0.8] + [0.78] * 19, False),
    ([0.8] + [0.78] * 20, True),
    ([0.8] + [0.795] * 50, False),  # within 1 % of the best
    ([0.8] + [0.78] * 19 + [0.791], False),
    ([0.8] + [0.78] * 10 + [0.795] + [0.78] * 19, False),
    ([0.8] + [0.78] * 10 + [0.795] + [0.78] * 20, True),
    (list(np.linspace(0, 1, 100)), False),
])  # fmt: skip
def test_patience_ends_after_20_epochs_without_a_good_one(accuracies: list[float], stops: bool):
    history = [{"epoch": epoch, "validation_accuracy": value} for epoch, value in enumerate(accuracies, start=1)]
    course = SimpleNamespace(history=history, best_score=max(accuracies, default=-math.inf))
    assert fr.out_of_patience(course) is stops


def test_training_stops_early_and_gives_the_best_weights(toy_backbone, tmp_path: Path, monkeypatch):
    accuracies, weights = iter([0.5, 0.9, 0.4, 0.4, 0.4]), []

    def embed(model: nn.Module, *_: object) -> Tensor:
        weights.append({name: value.clone() for name, value in model.state_dict().items()})
        return torch.zeros(1)

    monkeypatch.setattr(fr, "PATIENCE", 2)
    monkeypatch.setattr(fr, "embed", embed)
    monkeypatch.setattr(fr, "one_of_eleven", lambda *_: (np.array([next(accuracies)]), None))
    choices = replace(fr.Settings(), epochs=9, batch_size=9)
    course = fr.train(toy_faces([4] * 4, [2] * 2), choices, tmp_path, CPU, "float32", dry_run=True)
    assert [row["epoch"] for row in course.history] == [1, 2, 3, 4]
    assert course.best_epoch == 2 and course.best_score == 0.9
    assert all(torch.equal(value, weights[1][name]) for name, value in course.model.state_dict().items())
    assert any(not torch.equal(value, weights[3][name]) for name, value in course.model.state_dict().items())


# ---------------------------------------------------------------- stopped and resumed

DEFAULT_COURSE = replace(fr.Settings(), epochs=2, batch_size=12, mine_from=0.0)
REFERENCE_COURSE = replace(fr.REFERENCE, epochs=2, batch_size=60)
COURSES = {"default": DEFAULT_COURSE, "reference": REFERENCE_COURSE}  # of three and, with dry_run, two steps an epoch


def train_toy(method: str, folder: Path, resume: bool = False) -> fr.Course:
    faces = toy_faces([4] * 8, validation=[3] * 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fr, "resnet18", toy_resnet)
        return fr.train(faces, COURSES[method], folder, CPU, "float32", resume=resume, dry_run=method == "reference")


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[fr.Course, Path]]:
    folders = {method: tmp_path_factory.mktemp(method) for method in COURSES}
    return {method: (train_toy(method, folder), folder) for method, folder in folders.items()}


def press_ctrl_c(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """While the step, counted over all epochs from 1, is done."""
    steps, train_step = itertools.count(1), fr.train_step

    def stopped(*arguments: object) -> None:
        if next(steps) == step:
            signal.raise_signal(signal.SIGINT)
        train_step(*arguments)

    monkeypatch.setattr(fr, "train_step", stopped)


def cut_power(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Before the step is done: nothing can be saved."""
    steps, train_step = itertools.count(1), fr.train_step

    def stopped(*arguments: object) -> None:
        if next(steps) == step:
            raise OSError("power cut")
        train_step(*arguments)

    monkeypatch.setattr(fr, "train_step", stopped)


def assert_same_weights(model: nn.Module, expected: nn.Module) -> None:
    torch.testing.assert_close(model.state_dict(), expected.state_dict(), rtol=0, atol=0)


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
def test_a_resumed_training_is_as_one_never_stopped(never_stopped, tmp_path: Path, monkeypatch, method, stop, step):
    with monkeypatch.context() as patch:
        stop(patch, step)
        with pytest.raises((KeyboardInterrupt, OSError)):
            train_toy(method, tmp_path)
    resumed = train_toy(method, tmp_path, resume=True)
    expected, folder = never_stopped[method]
    assert without_minutes(resumed.history) == without_minutes(expected.history)
    assert len(expected.history) == 2 and resumed.best_epoch == expected.best_epoch
    assert_same_weights(resumed.model, expected.model)
    last, expected_last = (training.load_checkpoint(path / "checkpoint.pt", CPU) for path in (tmp_path, folder))
    for name in ("model", "optimizer", "memory", "memory_epoch", "best_weights"):
        torch.testing.assert_close(last[name], expected_last[name], rtol=0, atol=0)


def test_other_data_are_not_resumed(never_stopped, toy_backbone, tmp_path: Path):
    shutil.copy(never_stopped["default"][1] / "checkpoint.pt", tmp_path)
    with pytest.raises(InputError, match="other settings or data"):
        fr.train(toy_faces([4] * 9, [3] * 3), DEFAULT_COURSE, tmp_path, CPU, "float32", resume=True)
    faces = toy_faces([4] * 8, [3] * 3)
    for name, values in (("images", 255 - faces.images), ("people", 10 - faces.people)):
        with pytest.raises(InputError, match="other settings or data"):
            other = replace(faces, **{name: values})
            fr.train(other, DEFAULT_COURSE, tmp_path, CPU, "float32", resume=True)


# ---------------------------------------------------------------- a small real training


@pytest.fixture(scope="module")
def trained(faces: FaceSet, tmp_path_factory: pytest.TempPathFactory) -> tuple[fr.Course, Path]:
    folder = tmp_path_factory.mktemp("trained")
    choices = replace(fr.Settings(), epochs=12, batch_size=64)
    return fr.train(faces, choices, folder, CPU), folder


def test_a_small_training_recognises_drawn_people_it_has_never_seen(faces: FaceSet, trained):
    """The validation people only chose the epoch; they count, too, as four test people are few."""
    course, _ = trained
    unseen = replace(faces, split=np.where(faces.split == "train", "train", "test"))
    part = fr.Part(unseen, "test", CPU)
    accuracy = fr.one_of_eleven(fr.embed(course.model, part.images), part.people)[0].mean()
    print(f"1 of 11: {accuracy:.3f}")
    assert accuracy > 0.55  # chance: 0.09; untrained models, as the drawn people differ much: 0.38 to 0.50


def test_a_small_training_is_recorded(trained):
    course, folder = trained
    with open(folder / "history.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == list(range(1, 13))
    losses = [float(row["loss"]) for row in rows]
    assert np.mean(losses[-3:]) < 0.95 * np.mean(losses[:3])
    assert all(0 <= float(row[name]) <= 1 for row in rows for name in ("train_accuracy", "validation_accuracy"))
    assert Image.open(folder / "history.png").width > 300
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.pt", "history.csv", "history.png"]


# ---------------------------------------------------------------- command line


@dataclass(frozen=True)
class Weights:
    folder: Path  # recognition.safetensors and verification.safetensors
    said: str  # what train-verify printed


@pytest.fixture(scope="module")
def weights(prepared: Path, faces: FaceSet, trained, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    folder = tmp_path_factory.mktemp("weights")
    fr.save_recogniser(folder / "recognition.safetensors", trained[0], fr.about_data(faces),
                       {"one_of_eleven_test": 0.5})  # fmt: skip
    said = StringIO()
    with redirect_stdout(said):
        status = fr.main(["train-verify", "--prepared", str(prepared), "--device", "cpu",
                          "--recogniser", str(folder / "recognition.safetensors")])  # fmt: skip
    assert status == 0
    return Weights(folder, said.getvalue())


@pytest.fixture
def workplace(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the prepared faces where the commands look for them."""
    shutil.copytree(prepared, tmp_path / "data" / "recognition", ignore=shutil.ignore_patterns("drawn_faces"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def workplace_with_weights(workplace: Path, weights: Weights) -> Path:
    shutil.copytree(weights.folder, workplace / "weights")
    return workplace


def drawn_photo(prepared: Path, person: int, picture: int) -> Path:
    return prepared / "drawn_faces" / f"person_{person:05d}" / f"{picture:04d}.jpg"


def run_script(arguments: list[str], folder: Path, **options: object) -> subprocess.CompletedProcess:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500, **options)


def test_importing_does_nothing(tmp_path: Path):
    path = {**os.environ, "PYTHONPATH": str(SCRIPT.parent)}
    done = run_script(["-c", "import face_recognition"], tmp_path, env=path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


def test_help_of_the_script(tmp_path: Path):
    done = run_script([str(SCRIPT), "--help"], tmp_path)
    assert done.returncode == 0 and set(COMMANDS) <= set(done.stdout.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as ended:
        fr.main([command, "--help"])
    assert ended.value.code == 0 and capsys.readouterr().out.startswith("usage:")


@pytest.mark.parametrize("arguments", [
    [], ["fly"], ["train", "--epochs", "0"], ["prepare", "--drawn-people", "many"],
    ["compare", "one.jpg"], ["compare", "a.jpg", "b.jpg", "--far", "0.5"], ["train", "--device", "abacus"],
])  # fmt: skip
def test_wrong_usage_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as ended:
        fr.main(arguments)
    assert ended.value.code == 2 and "usage:" in capsys.readouterr().err


def test_download_of_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.chdir(tmp_path)
    photo = tmp_path / "dataset" / "lfwpeople" / "Some_One" / "Some_One_0001.jpg"
    photo.parent.mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(photo)
    assert fr.main(["download", "lfw"]) == 0
    assert "lfw: dataset/lfwpeople" in Path(capsys.readouterr().out).as_posix()


def test_download_all_goes_on_after_a_failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    def download(name: str) -> Path:
        if name == "lfw":
            raise InputError("no network")
        return Path(name)

    monkeypatch.setattr(datasets, "download", download)
    assert fr.main(["download", "all"]) == 2
    said = capsys.readouterr()
    assert said.err == "error: no network\n" and said.out == "faces: faces\npins: pins\n"


def test_prepare_draws_faces_where_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    drawn, write_faces = [], synthetic.write_faces

    def draw_fewer(folder: Path, people: int, pictures_per_person: int, seed: int) -> None:
        drawn.append((people, pictures_per_person))
        write_faces(folder, min(people, 4), 2, seed, workers=1)

    monkeypatch.setattr(synthetic, "write_faces", draw_fewer)
    assert fr.main(["prepare"]) == 0
    said = capsys.readouterr().out
    assert "There is no data set under dataset/" in said and "drawing 500 people" in said
    assert "8 images of 4 people, 0 of them with one image; 0 files skipped" in said
    assert len(datasets.load_faces(tmp_path / "data" / "recognition").images) == 8

    assert fr.main(["prepare", "--drawn-people", "3", "--prepared", "elsewhere", "--seed", "5"]) == 0
    assert "drawing 3 people" in capsys.readouterr().out
    other = datasets.load_faces(tmp_path / "elsewhere")
    assert drawn == [(500, 8), (3, 8)] and len(other.names) == 3
    assert len(list((tmp_path / "elsewhere").glob("contact_sheet_*.png"))) == 1


def test_prepare_names_the_bad_file_among_good_ones(prepared: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for person in (1, 2, 3):
        shutil.copytree(drawn_photo(prepared, person, 1).parent, tmp_path / "photos" / f"Person {person}")
    (tmp_path / "photos" / "Person 2" / "0003.jpg").write_text("no photo")
    (tmp_path / "more" / "Person_1").mkdir(parents=True)
    shutil.copy(drawn_photo(prepared, 4, 1), tmp_path / "more" / "Person_1" / "another.jpg")  # the same person
    assert fr.main(["prepare", "--data", "photos", "--data", "more", "--center-crop", "0.8"]) == 0
    said = capsys.readouterr().out
    assert "photos: 17 images of 3 people" in said and "more: 1 images of 1 people" in said
    assert f"skipped {Path('photos', 'Person 2', '0003.jpg')}:" in said
    assert "18 images of 3 people, 0 of them with one image; 1 files skipped" in said
    faces = datasets.load_faces("data/recognition")
    np.testing.assert_array_equal(faces.images[0], face_pixels(faces.files[0], 80, 0.8))


@pytest.mark.parametrize("arguments", [["--batch-size", "16"], ["--reference", "--batch-size", "60"]])
def test_dry_run_goes_all_the_way_but_touches_no_weights(workplace: Path, toy_backbone, capsys, arguments: list[str]):
    assert fr.main(["train", "--dry-run", "--device", "cpu", *arguments]) == 0
    said = capsys.readouterr().out
    assert "32 people, 192 images for training, on cpu" in said
    assert "epoch 1  loss" in said and "epoch 2  loss" in said and "epoch 3" not in said
    model = fr.load_recogniser(workplace / "data" / "recognition" / "dry_run" / "recognition.safetensors", "cpu")
    assert model.normalised is ("--reference" not in arguments)
    assert model.metadata["settings"]["batch_size"] == int(arguments[-1])
    assert not (workplace / "weights").exists()
    assert {path.name for path in (workplace / "data" / "recognition").iterdir() if path.is_dir()} == {"dry_run"}
    assert not (workplace / "outputs").exists()


def test_ctrl_c_says_how_to_go_on_and_resume_does(workplace: Path, capsys: pytest.CaptureFixture):
    arguments = ["train", "--epochs", "2", "--batch-size", "32", "--device", "cpu", "--recogniser", "mine.safetensors"]
    process = subprocess.Popen([sys.executable, str(SCRIPT), *arguments], cwd=workplace, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    said = ""
    while "epoch 1  loss" not in said:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        said += line
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert err.startswith(f"\nStopped and saved. To go on: python3 {SCRIPT} {' '.join(arguments)} --resume")
    assert not (workplace / "mine.safetensors").exists() and err.count("\n") == 2

    assert fr.main([*arguments, "--resume"]) == 0
    out = capsys.readouterr().out
    assert "epoch 1  loss" not in out and "epoch 2  loss" in out and "best epoch: " in out
    (run,) = (workplace / "outputs").iterdir()
    assert run.name == f"{date.today()}-triplet-resnet18"
    assert len((run / "history.csv").read_text().splitlines()) == 1 + 2
    assert "epoch 1  loss" in (run / "log.txt").read_text() and "epoch 2  loss" in (run / "log.txt").read_text()
    assert (run / "recognition.safetensors").read_bytes() == Path("mine.safetensors").read_bytes()
    metadata = fr.load_recogniser("mine.safetensors", "cpu").metadata
    assert metadata["settings"]["epochs"] == 2 and metadata["settings"]["seed"] == 0
    assert metadata["crop"] == {"size": 80, "color": False, "left_eye": [0.31, 0.46], "right_eye": [0.65, 0.46]}
    assert metadata["data"]["splits"]["train"] == {"people": 32, "images": 192}
    assert set(metadata["measured"]) == {"one_of_eleven_validation", "one_of_eleven_test"}
    assert all(0 <= value <= 1 for value in metadata["measured"].values())


def test_each_loss_brings_its_own_learning_rate_scale_and_margin():
    def chosen(*switches: str) -> tuple[float, float | None, float | None]:
        settings = fr.choose_settings(fr.parse(["train", *switches]))
        return settings.learning_rate, settings.scale, settings.margin

    assert chosen() == (1e-3, 32, 0.1)
    assert chosen("--loss", "arcface") == (1e-3, None, None)  # those of the paper, in losses.py
    assert chosen("--loss", "softmax") == (3e-4, None, None)
    assert chosen("--loss", "softmax", "--learning-rate", "0.01")[0] == 0.01


def test_ctrl_c_before_anything_is_saved_promises_nothing(workplace: Path, toy_backbone, monkeypatch, capsys):
    def stopped(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fr, "plan_epoch", stopped)
    assert fr.main(["train", "--device", "cpu", "--epochs", "1"]) == 130
    assert "saved" not in capsys.readouterr().out


def test_the_verifier_of_a_recogniser_lies_beside_it():
    assert fr.verifier_of(fr.RECOGNISER) == fr.VERIFIER
    assert fr.verifier_of("outputs/run/recognition.safetensors") == Path("outputs/run/verification.safetensors")
    for name in ("mobilefacenet", "mamba"):
        other = Path(fr.__file__).parent / "weights" / f"{name}.safetensors"
        assert fr.verifier_of(other) == other.with_name(f"{name}-verifier.safetensors")
        verifier = fr.load_matching_verifier(other, device="cpu")  # the published ones belong together
        assert verifier.linear.in_features == fr.load_recogniser(other, "cpu").embedding_size == 128
        assert 0.85 < verifier.naming_threshold(1) < verifier.naming_threshold(100) < 1


def test_training_ends_with_the_command_that_comes_next(workplace: Path, toy_backbone, capsys):
    arguments = ["train", "--device", "cpu", "--epochs", "1", "--batch-size", "32", "--recogniser"]
    assert fr.main([*arguments, "weights/recognition.safetensors"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("train-verify")
    assert fr.main([*arguments, "mine.safetensors"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(
        "train-verify --recogniser mine.safetensors")


def test_train_prepares_what_data_names_each_time_and_the_recorded_run_can_be_repeated(
    prepared: Path, tmp_path: Path, toy_backbone, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    folder = prepared / "drawn_faces"
    shutil.copytree(folder, "first")
    shutil.copytree(folder, "second")
    for person in sorted(Path("second").glob("person_*"))[:8]:
        shutil.rmtree(person)
    arguments = ["train", "--device", "cpu", "--dry-run", "--batch-size", "32"]
    for data, people in (("first", 40), ("second", 32)):
        assert fr.main([*arguments, "--data", data]) == 0
        assert len(datasets.load_faces("data/recognition").names) == people
    assert fr.main(["prepare", "--data", "second", "--image-size", "48", "--color", "--prepared", "other"]) == 0
    assert fr.main([*arguments, "--prepared", "other"]) == 0
    assert fr.main([*arguments, "--config", "other/dry_run/config.yaml"]) == 0
    assert "error" not in capsys.readouterr().err


def test_time_limit_ends_a_training_at_a_low_learning_rate(workplace: Path, toy_backbone, monkeypatch):
    quarters = itertools.count()  # of a second
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: next(quarters) / 4))
    arguments = ["--epochs", "1000", "--time-limit", "0.1", "--device", "cpu", "--recogniser", "mine.safetensors"]
    assert fr.main(["train", "--batch-size", "16", *arguments]) == 0
    (checkpoint,) = workplace.glob("outputs/*/checkpoint.pt")
    last = training.load_checkpoint(checkpoint, CPU)
    assert 1 <= len(last["history"]) < 10
    assert 1e-5 <= last["optimizer"]["param_groups"][0]["lr"] < 3e-5


def test_train_verify_reports_and_saves_its_thresholds(faces: FaceSet, weights: Weights):
    verifier = fr.load_verifier(weights.folder / "verification.safetensors", "cpu")
    assert list(verifier.thresholds) == ["0.1", "0.01", "0.001"]
    assert "Test people:" in weights.said and "of 80 pairs right at score 0.5" in weights.said
    for far, threshold in verifier.thresholds.items():
        assert f"{float(far):.1%} was asked for: score {threshold:.3f}; on test people" in weights.said
    # The thresholds are those of the weights that were saved, to the last bit.
    model = fr.load_recogniser(weights.folder / "recognition.safetensors", "cpu")
    part = fr.Part(faces, "validation", CPU)
    assert fr.choose_thresholds(verifier, fr.embed(model, part.images), part) == verifier.thresholds


def test_the_mean_of_weights(workplace_with_weights: Path, capsys: pytest.CaptureFixture):
    tensors, metadata = fr.read_recogniser(fr.RECOGNISER)
    other = fr.load_recogniser()
    with torch.no_grad():
        for parameter in other.head.parameters():
            parameter += 0.25
    training.save_weights("other.safetensors", other, metadata)
    assert fr.main(["average", str(fr.RECOGNISER), "other.safetensors", "--output", "mean.safetensors"]) == 0
    said = capsys.readouterr().out
    assert "train-verify --recogniser mean.safetensors" in said
    mean, about = fr.read_recogniser("mean.safetensors")
    assert about["averaged"] == ["recognition.safetensors", "other.safetensors"]
    assert about["minutes"] == pytest.approx(2 * metadata["minutes"])
    test = fr.Part(datasets.load_faces(fr.PREPARED), "test", CPU)
    embeddings = fr.embed(fr.load_recogniser("mean.safetensors", "cpu"), test.images)
    expected = fr.one_of_eleven(embeddings, test.people)[0].mean()
    assert about["measured"]["one_of_eleven_test"] == pytest.approx(expected, abs=0.03)
    assert f"{about['measured']['one_of_eleven_test']:.1%} of those of test people" in said
    torch.testing.assert_close(mean["head.1.weight"], tensors["head.1.weight"] + 0.125, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(mean["backbone.bn1.running_var"], tensors["backbone.bn1.running_var"])
    assert fr.embed_photos(fr.load_recogniser("mean.safetensors"), [np.zeros((80, 80, 3), np.uint8)]).isfinite().all()
    training.save_weights("grey64.safetensors", other, metadata | {"crop": metadata["crop"] | {"size": 64}})
    assert fr.main(["average", str(fr.RECOGNISER), "grey64.safetensors", "--output", "mean.safetensors"]) == 2
    assert "several kinds" in capsys.readouterr().err


def test_center_crop_without_photos_to_cut_is_an_error(workplace_with_weights: Path, capsys: pytest.CaptureFixture):
    for arguments in (["evaluate"], ["prepare"], ["train"], ["train", "--data", "synthetic"]):
        assert fr.main([*arguments, "--center-crop", "0.8"]) == 2
        assert capsys.readouterr().err.startswith("error: --center-crop goes with --")


def test_evaluate_prints_one_json_object(workplace_with_weights: Path, capsys: pytest.CaptureFixture):
    assert fr.main(["evaluate", "--json", "--device", "cpu", "--charts", "charts"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {*INTERVALS, *(f"{name}_interval" for name in INTERVALS), "people", "pairs"} <= set(report)
    assert (report["people"], report["images"], report["pairs"]) == (4, 24, 80)
    assert list(report["balanced_accuracy_at"]) == [f"0.{tenth}" for tenth in range(1, 10)]
    assert report["balanced_accuracy_at"]["0.5"] == report["balanced_accuracy"]
    for name in set(INTERVALS) - {"tar_at_far_0.01", "tar_at_far_0.001"}:  # not measurable with 40 pairs of strangers
        low, high = report[f"{name}_interval"]
        assert 0 <= low <= high <= 1 and 0 <= report[name] <= 1
    assert report["tar_at_far_0.01"] is report["tar_at_far_0.001"] is None
    assert report["roc_auc"] > 0.6
    assert sorted(path.name for path in (workplace_with_weights / "charts").iterdir()) == ["roc.png", "scores.png"]


def test_evaluate_prints_a_line_a_metric_for_people(workplace_with_weights: Path, capsys: pytest.CaptureFixture):
    assert fr.main(["evaluate", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} >= set(INTERVALS)
    assert all("[" in line and "]" in line for line in lines if line.startswith(("one_of_eleven", "roc_auc")))
    assert any(line.startswith("4 people, 24 images, 80 pairs") for line in lines)
    assert "tar_at_far_0.0001  too few pairs: it takes 10000 of strangers" in lines
    assert (workplace_with_weights / "data" / "evaluation" / "roc.png").exists()


def lfw_tree(prepared: Path, folder: Path) -> list[str]:
    """lfw/ of four drawn people; pairs.txt of two folds, of which one pair has a photo that is missing."""
    for person, picture in itertools.product((1, 2, 3, 4), (1, 2, 3)):
        name = f"Drawn_Person{person}"
        (folder / "lfw" / name).mkdir(parents=True, exist_ok=True)
        Image.open(drawn_photo(prepared, person, picture)).save(
            folder / "lfw" / name / f"{name}_{picture:04d}.{'png' if person == 2 else 'jpg'}")
    same = [f"Drawn_Person{person}\t1\t{other}" for person in (1, 2, 3, 4) for other in (2, 3)]
    different = [f"Drawn_Person{a}\t{picture}\tDrawn_Person{b}\t{picture}"
                 for a, b in ((1, 2), (3, 4), (1, 3), (2, 4)) for picture in (1, 2)]
    different[5] = "Drawn_Person1\t99\tDrawn_Person3\t1"
    lines = ["2\t4", *same[:4], *different[:4], *same[4:], *different[4:]]
    (folder / "pairs.txt").write_text("\n".join(lines) + "\n")
    return ["--images", "lfw", "--pairs", "pairs.txt"]


def test_evaluate_by_the_protocol_of_lfw(prepared: Path, workplace_with_weights: Path, capsys):
    arguments = lfw_tree(prepared, workplace_with_weights)
    assert fr.main(["evaluate", *arguments, "--json", "--device", "cpu", "--center-crop", "0.9"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert (report["pairs"], report["pairs_skipped"], report["people"], report["images"]) == (15, 1, 4, 12)
    line, note = err.splitlines()
    assert line.startswith("skipped: ") and "Drawn_Person1_0099.jpg" in line
    assert note.startswith("Note: ")
    assert 0 <= report["accuracy"] <= 1 and report["standard_error"] >= 0
    low, high = report["accuracy_interval"]
    assert low <= report["accuracy"] <= high


def test_compare_says_same_or_different(prepared: Path, faces: FaceSet, workplace_with_weights: Path, capsys):
    photo = str(drawn_photo(prepared, 1, 1))
    assert fr.main(["compare", photo, photo, "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith("same person: score ")

    model, verifier = fr.load_recogniser(device="cpu"), fr.load_verifier(device="cpu")
    embeddings = fr.embed(model, faces.images)
    first, second = np.triu_indices(len(embeddings), k=1)
    least = int(np.argmin(fr.score_pairs(verifier, embeddings, first, second)))
    a, b = faces.files[first[least]], faces.files[second[least]]
    assert fr.main(["compare", a, b, "--far", "0.1", "--device", "cpu"]) == 1
    out = capsys.readouterr().out
    distance = float((embeddings[first[least]] - embeddings[second[least]]).norm())
    assert out.startswith("different people: score ") and f"distance {distance:.3f}" in out
    assert f"same from {verifier.thresholds['0.1']:.3f} on, which 10.0% of strangers reach" in out


def test_compare_with_a_folder_is_a_table(prepared: Path, workplace_with_weights: Path, capsys):
    reference, folder = drawn_photo(prepared, 1, 1), drawn_photo(prepared, 1, 1).parent
    stranger = drawn_photo(prepared, 2, 1)
    (workplace_with_weights / "bad.jpg").write_text("no photo")
    arguments = ["compare", str(reference), str(folder), str(stranger), "bad.jpg", "--device", "cpu"]
    assert fr.main([*arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    rows = json.loads(out)
    assert err.startswith("skipped: bad.jpg") and len(rows) == 7
    assert [row["photo"] for row in rows] == [*map(str, sorted(folder.iterdir())), str(stranger)]
    same = next(row for row in rows if row["photo"] == str(reference))
    assert same["cosine"] == pytest.approx(1, abs=1e-5) and same["distance"] == pytest.approx(0, abs=1e-3)
    verifier = fr.load_verifier(device="cpu")
    assert all(row["same"] is (row["score"] >= verifier.thresholds["0.01"]) for row in rows)
    assert all(row["distance"] ** 2 == pytest.approx(2 - 2 * row["cosine"], abs=1e-4) for row in rows)
    assert fr.main([*arguments, "--threshold", "1.1"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["photo", "cosine", "distance", "score", "same"] and len(lines) == 8
    assert all(line.endswith("no") for line in lines[1:])


@pytest.mark.parametrize("by", ["score", "cosine"])
def test_identify_names_the_enrolled_and_no_stranger(prepared: Path, workplace_with_weights: Path, capsys, by: str):
    for person in (1, 2, 3):
        shutil.copytree(drawn_photo(prepared, person, 1).parent, f"gallery/Person {person}")
    known, stranger = drawn_photo(prepared, 2, 1), drawn_photo(prepared, 7, 1)
    arguments = ["identify", "gallery", str(known), str(stranger), "--by", by, "--device", "cpu", "--json"]
    assert fr.main([*arguments, "--threshold", "0.0", "--top", "2"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[0]["name"] == "Person 2"
    (first, second) = rows[0]["candidates"]
    assert first["name"] == "Person 2" and first[by] > second[by]
    assert fr.main([*arguments, "--threshold", "1.1"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == [None, None]
    assert fr.main([*arguments[:-1], "--threshold", "1.1"]) == 0
    assert capsys.readouterr().out.count("Unknown") == 2


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 60), st.integers(0, 20), st.integers(1, 8), st.sampled_from([1e-3, 1.0, 1e4]),
       st.integers(0, 2**32))  # fmt: skip
def test_nearest_enrolled_equals_brute_force(enrolled: int, asked: int, numbers: int, scale: float, seed: int):
    random = torch.Generator().manual_seed(seed)
    probes, photos, means = (
        scale * torch.randn(count, numbers, generator=random) for count in (asked, enrolled, enrolled)
    )
    rows, scores = fr.nearest_enrolled(fr.cosine, probes, photos, means)
    assert rows.shape == scores.shape == (asked, min(10, enrolled))
    for probe, found, found_scores in zip(probes, rows.tolist(), scores.tolist()):
        distances = [math.dist(probe.tolist(), photo) for photo in photos.tolist()]
        assert [distances[row] for row in found] == pytest.approx(sorted(distances)[:10], rel=1e-5)
        assert len(set(found)) == len(found)
        expected = [float(fr.cosine(probe, photos[row]) + fr.cosine(probe, means[row])) / 2 for row in found]
        assert found_scores == pytest.approx(expected, abs=1e-5)


def test_each_enrolled_photo_is_nearest_to_itself_also_the_first():
    photos = random_unit(50, 4).float()
    assert fr.nearest_enrolled(fr.cosine, photos, photos, photos)[0][:, 0].tolist() == list(range(50))


def test_identify_in_an_empty_gallery():
    assert fr.identify(fr.cosine, torch.zeros(0, 32), [], random_unit(2, 32).float(), 0.5) == [(None, []), (None, [])]


def test_identify_ranks_people_by_their_best_photo_and_their_mean():
    gallery, names = random_unit(30, 32).float(), list("abc") * 10
    probe = gallery[4] + 0.01
    (name, ranked), (nobody, _) = fr.identify(fr.cosine, gallery, names, torch.stack([probe, -probe]), threshold=0.5)
    of = {n: gallery[[i for i in range(30) if names[i] == n]] for n in "abc"}
    best = {n: float(F.cosine_similarity(probe, own).max() + F.cosine_similarity(probe, own.mean(0), dim=0)) / 2
            for n, own in of.items()}  # fmt: skip
    assert name == "b" and nobody is None
    assert dict(ranked) == pytest.approx(best) and [n for n, _ in ranked] == sorted(best, key=best.get, reverse=True)


def test_visualize_draws_a_map(prepared: Path, workplace_with_weights: Path, capsys: pytest.CaptureFixture):
    pytest.importorskip("plotly")
    for person in (1, 2):
        shutil.copytree(drawn_photo(prepared, person, 1).parent, f"people/Person {person}")
    assert fr.main(["visualize", "people", "--method", "pca", "--output", "map", "--device", "cpu"]) == 0
    assert capsys.readouterr().out == "12 photos of 2 people: map/map.png\nand with the photos: map/map.html\n"
    assert "Person 1" in Path("map/map.html").read_text(encoding="utf-8") and Image.open("map/map.png").width > 300


def test_an_export_that_gives_other_numbers_is_an_error(workplace_with_weights: Path, monkeypatch, capsys):
    for difference in (0.01, math.nan):
        monkeypatch.setattr(fr.export, "check_export", lambda *arguments, difference=difference: difference)
        assert fr.main(["export", "--format", "torchscript", "--output", "model.pt"]) == 2
        assert "model.pt was not written: it would give other embeddings" in capsys.readouterr().err
        assert not list(Path().glob("*model*.pt"))


@pytest.mark.parametrize("form", ["onnx", "torchscript"])
def test_export_agrees_with_pytorch(workplace_with_weights: Path, capsys: pytest.CaptureFixture, form: str):
    if form == "onnx":
        pytest.importorskip("onnxruntime")
    assert fr.main(["export", "--format", form, "--output", f"model.{form}"]) == 0
    said = capsys.readouterr().out
    difference = float(said.split("PyTorch's by ")[1].split()[0])
    assert said.startswith(f"model.{form}: embeddings of 32 drawn faces") and 0 < difference < 1e-4


@pytest.mark.parametrize("backbone", ["mobilefacenet", "mamba"])
def test_another_backbone_goes_through_all_commands(backbone: str, tmp_path: Path, monkeypatch, capsys):
    """Its crops, larger and in colour, are stored in the weights and obeyed by the commands that follow."""
    monkeypatch.chdir(tmp_path)
    arguments = ["--data", "synthetic", "--drawn-people", "40", "--image-size", "48", "--embedding-size", "16"]
    training_on = ["train", *arguments, "--backbone", backbone, "--loss", "arcface", "--epochs", "1"]
    assert fr.main([*training_on, "--batch-size", "32", "--device", "cpu", "--tensorboard", "events"]) == 0
    assert "drawing 40 people" in capsys.readouterr().out
    assert datasets.load_faces("data/recognition-synthetic-48-color").images.shape[1:] == (3, 48, 48)
    model = fr.load_recogniser(device="cpu")
    assert (model.image_size, model.color, model.embedding_size) == (48, True, 16)
    assert model.metadata["settings"]["loss"] == "arcface" and model.metadata["architecture"] == f"{backbone}-16"

    assert fr.main(["train-verify", "--prepared", "data/recognition-synthetic-48-color"]) == 0
    assert fr.main(["evaluate", "--prepared", "data/recognition-synthetic-48-color", "--json"]) == 0
    assert 0 <= json.loads(capsys.readouterr().out.splitlines()[-1])["one_of_eleven"] <= 1
    photo = next(Path("data").glob("*/drawn_*/*/*.jpg"))
    assert fr.main(["compare", str(photo), str(photo), "--threshold", "0"]) == 0
    assert fr.main(["evaluate"]) == 2
    error = capsys.readouterr().err
    assert "prepare --image-size 48 --color --prepared data/recognition-48-color" in error
    events = EventAccumulator("events", size_guidance={"images": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("validation_accuracy")] == [1]
    assert [event.step for event in events.Images("hardest triplets: anchor, positive, negative")] == [1]

    own = "weights/recognition.safetensors"
    again = [*training_on, "--init", own, "--teacher", own, "--dry-run", "--name", "again"]
    assert fr.main([*again, "--batch-size", "32"]) == 0
    repeated = ["train", "--config", "data/recognition-synthetic-48-color/dry_run/config.yaml"]
    assert fr.main([*repeated, "--dry-run"]) == 0
    assert fr.main([*repeated, "--epochs", "1"]) == 0
    (run,) = Path("outputs").glob("*-again")
    shutil.copy("data/recognition-synthetic-48-color/dry_run/recognition.safetensors", "other.safetensors")
    resume = ["train", "--config", str(run / "config.yaml"), "--epochs", "1", "--resume"]
    assert fr.main(resume) == 0
    capsys.readouterr()
    assert_error([*resume, "--teacher", "other.safetensors"], "other settings or data", capsys)
    assert_error(["train", *arguments, "--teacher", own], "would replace its teacher", capsys)
    after = ["train", "--init", own, *arguments[:4], "--batch-size", "32", "--dry-run"]
    assert fr.main(after) == 0  # a triplet loss now; backbone and sizes are those of the weights
    assert fr.read_recogniser("data/recognition-synthetic-48-color/dry_run/recognition.safetensors")[1][
        "architecture"] == f"{backbone}-16"  # fmt: skip
    assert fr.main([*after, "--backbone", "resnet18"]) == 2
    assert f"{own} does not fit --backbone resnet18: leave out" in capsys.readouterr().err
    assert_error([*after, "--no-color"], f"{own} does not fit --no-color: leave out", capsys)
    assert_error([*after, "--embedding-size", "32"], "does not fit --embedding-size 32", capsys)


def assert_error(arguments: Sequence[str], message: str, capsys: pytest.CaptureFixture) -> None:
    """Exit status 2 and one line that says why."""
    assert fr.main([*arguments]) == 2
    err = capsys.readouterr().err
    (line,) = err.splitlines()
    assert line.startswith("error: ") and message in line


@pytest.mark.parametrize(("arguments", "message"), [
    (["train", "--prepared", "nowhere"], "nowhere is missing: first run face_recognition.py prepare --prepared "),
    (["train-verify", "--recogniser", "no.safetensors"], "no.safetensors is missing"),
    (["train", "--resume"], "no training called triplet-resnet18 under outputs/ to resume"),
    (["train", "--init", "no.safetensors"], "no.safetensors is missing"),
    (["train", "--teacher", "no.safetensors"], "no.safetensors is missing"),
    (["train", "--teacher", "no.safetensors", "--reference"], "--reference has no --teacher"),
    (["train", "--loss", "cosface", "--reference"], "--reference is a triplet loss"),
    (["train", "--scale", "8", "--reference"], "--reference is a triplet loss without a scale"),
    (["train", "--prepared", "data/recognition", "--image-size", "100"], "has other faces, 80x80 grey"),
    (["compare", "text.jpg", "data/someone"], "recognition.safetensors is missing"),
    (["train", "--loss", "cosface", "--hard-only"], "--hard-only goes with the loss triplet"),
    (["train", "--backbone", "mobilefacenet"], "prepare --image-size 112 --color --prepared data/"),
    (["train", "--backbone", "resnet9000"], "There is no backbone resnet9000"),
    (["prepare", "--data", "nowhere"], "nowhere is not a folder"),
    (["prepare", "--data", "data"], "None of the"),
    (["evaluate"], "recognition.safetensors is missing"),
    (["evaluate", "--recogniser", "text.jpg"], "text.jpg is not a weights file"),
    (["compare", "text.jpg", "text.jpg"], "recognition.safetensors is missing"),
])  # fmt: skip
def test_what_is_missing_is_one_clear_line(workplace: Path, capsys, arguments: list[str], message: str):
    (workplace / "text.jpg").write_text("no photo")
    (workplace / "data" / "someone").mkdir()
    shutil.copy("text.jpg", workplace / "data" / "someone")
    for sheet in (workplace / "data" / "recognition").glob("*.png"):
        sheet.unlink()
    assert_error(arguments, message, capsys)


@pytest.mark.parametrize(("arguments", "message"), [
    (["compare", "text.jpg", "text.jpg"], "text.jpg is no photo"),
    (["compare", "nobody.jpg", "text.jpg"], "nobody.jpg does not exist"),
    (["evaluate", "--images", "lfw"], "--images DIR and --pairs FILE go together"),
    (["evaluate", "--pairs", "pairs.txt"], "--images DIR and --pairs FILE go together"),
    (["evaluate", "--images", "lfw", "--pairs", "no.txt"], "no.txt is missing"),
    (["evaluate", "--images", "lfw", "--pairs", "no.txt", "--prepared", "data"], "--prepared is not read with"),
    (["export", "--center-crop", "0.5"], "--center-crop goes with --photos"),
    (["evaluate", "--prepared", "nowhere"], "nowhere is missing: first run"),
    (["evaluate", "--verifier", "weights/recognition.safetensors"], "holds resnet18-256-128-32, not linear"),
    (["evaluate", "--recogniser", "other.safetensors"], "does not belong to other.safetensors: run train-verify"),
    (["compare", "text.jpg", "text.jpg", "--recogniser", "other.safetensors"], "does not belong to"),
    (["train", "--batch-size", "7"], "--batch-size 7 leaves no strangers to compare with: take 8 at least"),
    (["train", "--resume", "outputs/typo"], "outputs/typo has no checkpoint.pt"),
])  # fmt: skip
def test_what_does_not_fit_is_one_clear_line(workplace_with_weights: Path, capsys, arguments: list[str], message: str):
    (workplace_with_weights / "text.jpg").write_text("no photo")
    tensors, metadata = training.read_weights("weights/recognition.safetensors", "resnet18-256-128-32")
    model = fr.Recogniser()
    training.load_tensors(model, tensors, "weights")
    training.save_weights("other.safetensors", model, metadata | {"epoch": -1})
    shutil.copy("weights/verification.safetensors", "other-verifier.safetensors")
    assert_error(arguments, message, capsys)


def test_pairs_without_their_photos_are_an_error(workplace_with_weights: Path, prepared: Path, capsys):
    arguments = lfw_tree(prepared, workplace_with_weights)
    (workplace_with_weights / "empty").mkdir()
    assert fr.main(["evaluate", *arguments, "--images", "empty"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: empty lacks the photos of pairs.txt")


def test_too_few_people_to_learn_from_is_said(prepared: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for person in (1, 2, 3):
        shutil.copytree(drawn_photo(prepared, person, 1).parent, tmp_path / "photos" / f"Person {person}")
    assert fr.main(["prepare", "--data", "photos"]) == 0
    capsys.readouterr()
    assert_error(["train", "--device", "cpu"], "with 20 such people there are enough for all parts", capsys)
    for person in range(4, 14):
        shutil.copytree(drawn_photo(prepared, person, 1).parent, tmp_path / "photos" / f"Person {person}")
    assert fr.main(["prepare", "--data", "photos"]) == 0
    capsys.readouterr()
    assert_error(["train", "--device", "cpu"], "people for test", capsys)
    assert not Path("outputs").exists(), "said before the training, not after it"


def test_another_split_is_noted(faces: FaceSet, prepared: Path, capsys: pytest.CaptureFixture):
    def trained_on(digest: str) -> SimpleNamespace:
        return SimpleNamespace(image_size=80, color=False, metadata={"data": {"split_digest": digest}})

    arguments = Path("mine"), prepared
    fr.prepared_for(trained_on(faces.summary["split_digest"]), *arguments)
    assert capsys.readouterr() == ("", "")
    fr.prepared_for(trained_on("another"), *arguments)
    assert "trained on another split" in capsys.readouterr().err


@pytest.mark.usefixtures("toy_backbone")
def test_weights_that_learnt_from_others_of_another_split_say_so_ever_after(faces: FaceSet, workplace: Path, capsys):
    def digest(path: str) -> str | None:
        return fr.read_recogniser(path)[1]["data"]["split_digest"]

    course = fr.Course(fr.Part(faces, "train", CPU), fr.Settings(), Path("unused"), CPU)
    data = fr.about_data(faces)
    fr.save_recogniser(Path("own.safetensors"), course, data, {})
    fr.save_recogniser(Path("other.safetensors"), course, data | {"split_digest": "another"}, {})
    for switches, expected in ((["--init", "own.safetensors"], data["split_digest"]),
                               (["--init", "other.safetensors"], None),
                               (["--teacher", "other.safetensors"], None)):  # fmt: skip
        assert fr.main(["train", *switches, "--dry-run", "--device", "cpu"]) == 0
        assert ("trained on another split" in capsys.readouterr().err) is (expected is None)
        assert digest("data/recognition/dry_run/recognition.safetensors") == expected
    assert fr.main(["average", "own.safetensors", "other.safetensors", "--output", "mean.safetensors"]) == 0
    assert "trained on another split" in capsys.readouterr().err and digest("mean.safetensors") is None
