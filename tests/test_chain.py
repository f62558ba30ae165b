"""The chain from photo to names, the gallery commands, the interactive loop, the evaluation with people.

Nearly all of it with small stand-ins for the models: a face is a grey rectangle on black, a person is a grey level.
The last tests use the shipped weights.
"""

import io
import json
import os
import re
import select
import shutil
import signal
import sys
import time
import traceback
import unicodedata
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import matplotlib
import matplotlib.cbook
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torch import Tensor, nn

import face_landmark
import face_recognition
import fasterrcnn_face_recognition as fr
from facekit import alignment, charts, datasets, drawing
from facekit.files import InputError
from facekit.gallery import Gallery, GalleryPhoto
from facekit.images import MAX_PIXELS
from facekit.synthetic import draw_face, make_person

detect = fr.detect  # tests put another one in its place
REPOSITORY = Path(fr.__file__).parent
ADA, BEN, CLEO, WATANABE, STRANGER = 60, 100, 140, 180, 220  # grey levels
UNCLEAR = 7  # the level of a face whose landmarks are not found
PATIENCE = 60  # seconds that a conversation may take on a busy machine

needs_terminal = pytest.mark.skipif(not hasattr(os, "forkpty"), reason="there are no pseudo-terminals")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")


# ---------------------------------------------------------------- stand-ins for the models


class OneNumber(nn.Module):
    """A model with a number, so that its digest can change."""

    def __init__(self, number: float = 0.0):
        super().__init__()
        self.number = nn.Parameter(torch.tensor(number))


class GreyLevel(OneNumber):
    """Embeds a crop by the grey level at its middle, in the first of the 32 numbers. Keeps what it has seen."""

    image_size, color, embedding_size, normalised, at_once = 80, False, 32, False, 256

    def __init__(self):
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, faces: Tensor) -> Tensor:
        self.seen.append(faces.clone())
        levels = 255 * faces[:, 0, 35:45, 35:45].mean((1, 2))
        return torch.cat([self.embedding_of(levels)[:, None], torch.zeros(len(faces), 31)], dim=1)

    def embedding_of(self, levels: Tensor) -> Tensor:
        return levels / 10


def make_verifier() -> face_recognition.Verifier:
    """sigmoid(4 - d²): 0.98 for the same grey level, 0.95 ten levels apart, 0.5 at twenty, 0.018 for d = √8."""
    verifier = face_recognition.Verifier()
    with torch.no_grad():
        verifier.linear.weight.fill_(-1.0)
        verifier.linear.bias.fill_(4.0)
    verifier.naming_thresholds = {"score": {1: 0.5, 100: 0.5}}
    verifier.thresholds = {"0.1": 0.3, "0.01": 0.6, "0.001": 0.97}
    return verifier.eval()


def score_of(difference: float) -> float:
    """The verifier's score of two grey levels that are so far apart."""
    return 1 / (1 + np.exp((difference / 10) ** 2 - 4))


def find_rectangles(model: nn.Module, photos: list[Image.Image], **options) -> list[tuple]:
    """In place of detect: every grey level of a photo but black is one face."""
    found = []
    for photo in photos:
        grey = np.asarray(photo.convert("L"))
        boxes = []
        for level in np.unique(grey[grey > 0]):
            rows, columns = np.nonzero(grey == level)
            boxes.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
        found.append((np.array(boxes, np.float32).reshape(-1, 4), np.linspace(0.99, 0.9, len(boxes))))
    return found


def template_in_box(model: nn.Module, photos: list[Image.Image], squares: list[np.ndarray],
                    **how: object) -> list[np.ndarray]:  # fmt: skip
    """In place of find_landmarks: the points lie so in the face's box that the aligned crop is the box."""
    results = []
    for photo, square in zip(photos, squares):
        points = alignment.transform_points(alignment.invert(square), 48 + 80 * (alignment.TEMPLATE - 0.5))
        x, y = points.mean(axis=0).astype(int).tolist()
        unclear = photo.convert("L").getpixel((x, y)) == UNCLEAR
        results.append(points[[3, 0, 4, 2, 1]] if unclear else points)
    return results


@pytest.fixture
def chain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> fr.Chain:
    """The stand-ins take the place of the models, also in all commands; the working folder is empty."""
    made = fr.Chain(OneNumber(), OneNumber(), GreyLevel(), make_verifier())
    monkeypatch.setattr(fr, "detect", find_rectangles)
    monkeypatch.setattr(face_landmark, "find_landmarks", template_in_box)
    monkeypatch.setattr(fr, "load_chain", lambda *choices: made)
    monkeypatch.setattr(fr, "load_detector", lambda *choices: made.detector)
    monkeypatch.setattr(face_landmark, "load_landmarker", lambda *choices: made.landmarker)
    monkeypatch.chdir(tmp_path)
    return made


def draw_photo(*levels: int, sides: tuple[int, ...] = (48, 40, 34, 30)) -> Image.Image:
    """A row of faces, of smaller and smaller sides; the first is at (10, 10)."""
    pixels = np.zeros((70, 60 * max(1, len(levels)) + 10, 3), np.uint8)
    for number, (level, side) in enumerate(zip(levels, sides, strict=False)):
        left = 10 + 60 * number
        pixels[10 : 10 + side, left : left + side] = level
    return Image.fromarray(pixels)


def save_photo(path: str | Path, *levels: int, **options) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_photo(*levels, **options).save(path)
    return path


@pytest.fixture
def people(chain: fr.Chain) -> dict[str, int]:
    """Four enrolled people with two photos each; the name is the folder, the value their grey level."""
    levels = {"Ada": ADA, "Ben": BEN, "Cleo": CLEO, "渡辺": WATANABE}
    for name, level in levels.items():
        save_photo(fr.PEOPLE / name / "1.png", level)
        save_photo(fr.PEOPLE / name / "2.png", level + 1)
    return levels


@pytest.fixture
def run(capsys: pytest.CaptureFixture) -> Callable[..., tuple[int, str, str]]:
    """Runs the program in this process: exit status, standard output, standard error."""

    def run_main(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        status = fr.main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run_main


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """The arguments of all calls of draw_faces, which still draws."""
    calls, draw = [], drawing.draw_faces

    def remember(*arguments):
        calls.append(arguments)
        return draw(*arguments)

    monkeypatch.setattr(drawing, "draw_faces", remember)
    return calls


def is_one_sentence(text: str) -> bool:
    return text.startswith("error: ") and text.count("\n") == 1 and "Traceback" not in text


def seen_face(level: float = ADA, doubt: str = "") -> fr.SeenFace:
    embedding = np.zeros(32, np.float32)
    embedding[0] = level / 10
    return fr.SeenFace(np.array([0, 0, 40, 40.0]), 0.9, 40 * alignment.TEMPLATE, embedding, doubt)


def gallery_of(*faces: tuple[str, float]) -> Gallery:
    """Of names and grey levels."""
    embeddings = np.stack([seen_face(level).embedding for _, level in faces])
    return Gallery(embeddings, [GalleryPhoto(f"{name}/{i}.png", 0, 0, "") for i, (name, _) in enumerate(faces)])


# ---------------------------------------------------------------- photo -> faces


def level_of(face: fr.SeenFace) -> float:
    return 10 * float(face.embedding[0])


def test_faces_have_box_landmarks_and_embedding_of_their_own(chain: fr.Chain):
    [faces] = fr.see_faces(chain, [draw_photo(ADA, BEN)])
    for face, level, box in zip(faces, (ADA, BEN), ((10, 10, 58, 58), (70, 10, 110, 50))):
        np.testing.assert_array_equal(face.box, box)
        np.testing.assert_allclose(face.landmarks, 10 + np.array([box[0] - 10, 0]) + (box[2] - box[0])
                                   * alignment.TEMPLATE, atol=1e-9)  # fmt: skip
        assert face.embedding.shape == (32,) and face.embedding.dtype == np.float32
        assert level_of(face) == pytest.approx(level, abs=0.01) and face.doubt == ""
    assert len(faces) == 2


def test_the_largest_face_comes_first_unless_it_is_hardly_one(chain: fr.Chain, monkeypatch):
    photo = draw_photo(ADA, BEN, CLEO)
    boxes, _ = find_rectangles(None, [photo])[0]
    scores = np.array([0.3, 0.95, 0.9])  # times the areas 48², 40², 34²: 691, 1520, 1040
    best_first = np.argsort(-scores)
    monkeypatch.setattr(fr, "detect", lambda model, photos, **options: [(boxes[best_first], scores[best_first])])
    [faces] = fr.see_faces(chain, [photo])
    assert [round(level_of(face)) for face in faces] == [BEN, CLEO, ADA]
    assert [face.detected for face in faces] == [0.95, 0.9, 0.3]


def test_many_photos_give_the_same_as_each_alone(chain: fr.Chain):
    photos = [draw_photo(ADA, BEN), draw_photo(), draw_photo(CLEO), draw_photo(STRANGER, ADA, BEN), draw_photo()]
    together = fr.see_faces(chain, photos)
    assert len(chain.recogniser.seen) == 1, "the recogniser is to see all faces at once"
    assert [len(faces) for faces in together] == [2, 0, 1, 3, 0]
    for photo, faces in zip(photos, together):
        [alone] = fr.see_faces(chain, [photo])
        for one, other in zip(faces, alone, strict=True):
            for name in ("box", "landmarks", "embedding"):
                np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-6)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_photos_without_a_face(chain: fr.Chain, count: int):
    assert fr.see_faces(chain, [draw_photo() for _ in range(count)]) == [[] for _ in range(count)]


@pytest.mark.parametrize(("shift", "count"), [(0.0, 1), (0.2, 1), (0.3, 2)])  # of the eyes' distance; 1/4 divides
def test_two_boxes_that_lead_to_one_face_are_one_face(chain: fr.Chain, monkeypatch, shift: float, count: int):
    photo, points = draw_photo(ADA), 10 + 48 * alignment.TEMPLATE
    eyes = points[1, 0] - points[0, 0]
    boxes = np.array([(10, 10, 58, 58), (8, 8, 60, 60)], np.float32)  # the second is larger, but worse
    monkeypatch.setattr(fr, "detect", lambda model, photos, **options: [(boxes, np.array([0.9, 0.5]))] * len(photos))
    places = [points, points + (0, shift * eyes)] * 2
    monkeypatch.setattr(face_landmark, "find_landmarks", lambda model, photos, squares: places[: len(squares)])
    faces, in_another_photo = fr.see_faces(chain, [photo, photo])
    assert len(faces) == len(in_another_photo) == count
    if count == 1:
        np.testing.assert_array_equal(faces[0].box, boxes[0])


def test_the_recogniser_sees_the_crop_of_the_landmarks(chain: fr.Chain, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    photo, points = Image.fromarray(pixels), turned_template(side=110, angle=0.4, corner=(120, 40))
    found = np.array([[100, 30, 220, 170.0]]), np.array([0.9])
    monkeypatch.setattr(fr, "detect", lambda model, photos, **options: [found])
    monkeypatch.setattr(face_landmark, "find_landmarks", lambda model, photos, squares: [points])
    fr.see_faces(chain, [photo])
    [[crop]] = chain.recogniser.seen
    expected = alignment.warp(photo, alignment.similarity(points, 80), 80)
    np.testing.assert_array_equal((255 * crop).round().numpy(), expected)


# ---------------------------------------------------------------- the crop


def turned_template(side: float, angle: float, corner: tuple[float, float]) -> np.ndarray:
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return side * alignment.TEMPLATE @ turn.T + corner


@pytest.mark.parametrize(("align", "points_there"), [("similarity", 5), ("affine", 3)])
def test_landmarks_come_to_their_places_in_the_crop(align: str, points_there: int):
    """Independent of the warp's code: white discs at the landmarks are where the template says."""
    points = turned_template(side=120, angle=-0.5, corner=(30, 90))
    y, x = np.mgrid[:240, :260] + 0.5
    nearest = np.min([np.hypot(x - px, y - py) for px, py in points], axis=0)
    photo = Image.fromarray(np.where(nearest < 4, 255, 0).astype(np.uint8)).convert("RGB")
    crop = fr.cut_face(photo, points, np.array([40, 40, 200, 200]), align)
    assert crop.shape == (1, 80, 80) and crop.dtype == np.uint8
    for px, py in 80 * alignment.TEMPLATE[:points_there]:
        around = crop[0, int(py) - 4 : int(py) + 5, int(px) - 4 : int(px) + 5].astype(float)
        rows, columns = np.mgrid[int(py) - 4 : int(py) + 5, int(px) - 4 : int(px) + 5] + 0.5
        weights = around / around.sum()
        assert (weights * columns).sum() == pytest.approx(px, abs=0.5)
        assert (weights * rows).sum() == pytest.approx(py, abs=0.5)


def test_a_photo_that_was_opened_is_not_too_large_for_the_detector(chain: fr.Chain, monkeypatch):
    """--max-pixels may have raised the limit."""
    lower = tuple(100 if value == MAX_PIXELS else value for value in detect.__defaults__)
    monkeypatch.setattr(detect, "__defaults__", lower)
    monkeypatch.setattr(fr, "detect", detect)
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
    monkeypatch.setattr(fr, "detect_batch", lambda model, photos, precision: [nothing] * len(photos))
    chain.detector.threshold, chain.detector.size = 0.5, 512
    assert fr.see_faces(chain, [draw_photo(ADA)]) == [[]]


def test_the_recogniser_says_how_large_a_crop_is_and_whether_in_colour(chain: fr.Chain):
    chain.recogniser.image_size, chain.recogniser.color = 112, True
    [faces] = fr.see_faces(chain, [draw_photo(ADA)])
    assert len(faces) == 1 and chain.recogniser.seen[-1].shape == (1, 3, 112, 112)


def test_region_is_another_crop(chain: fr.Chain):
    photo, points = draw_photo(ADA), 10 + 48 * alignment.TEMPLATE
    expected = alignment.warp(photo, alignment.region(points, 80), 80)
    np.testing.assert_array_equal(fr.cut_face(photo, points, np.array([10, 10, 58, 58]), "region"), expected)


def test_the_region_of_the_reference_is_refined_three_times(chain: fr.Chain, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def recorded(*arguments: object, **how: object) -> list[np.ndarray]:
        asked.append(how)
        return template_in_box(*arguments)

    monkeypatch.setattr(face_landmark, "find_landmarks", recorded)
    photo = Image.new("RGB", (120, 90))
    photo.paste((150, 150, 150), (20, 20, 68, 68))
    for align in ("similarity", "region"):
        fr.see_faces(replace(chain, align=align), [photo])
    assert asked == [{}, {"looks": 3, "frame": alignment.region}]


@pytest.mark.parametrize("align", list(fr.ALIGNMENTS))
@pytest.mark.parametrize("points", [np.full((5, 2), 30.0), np.full((5, 2), np.nan)], ids=["coincide", "nan"])
def test_landmarks_that_are_no_face_s_fall_back_to_the_box(align: str, points: np.ndarray):
    pixels = np.random.default_rng(1).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    photo = Image.fromarray(pixels)
    crop = fr.cut_face(photo, points, np.array([10, 5, 50, 45]), align)
    enlarged = photo.convert("L").crop((10, 5, 50, 45)).resize((80, 80), Image.Resampling.BILINEAR)
    difference = np.abs(crop[0].astype(int) - np.asarray(enlarged, int))
    assert difference[2:-2, 2:-2].max() <= 1  # at the edges, resize does not see what lies beyond them


def test_a_face_whose_landmarks_coincide_is_seen_and_doubtful(chain: fr.Chain, monkeypatch):
    monkeypatch.setattr(face_landmark, "find_landmarks", lambda model, photos, squares: [np.full((5, 2), 30.0)])
    [[face]] = fr.see_faces(chain, [draw_photo(ADA)])
    assert face.doubt == "unclear" and level_of(face) == pytest.approx(ADA, abs=0.01)


# ---------------------------------------------------------------- doubt


@pytest.mark.parametrize(("box", "points", "expected"), [
    ((0, 0, 48, 48), 48 * alignment.TEMPLATE, ""),
    ((0, 0, 20, 20), 20 * alignment.TEMPLATE, ""),
    ((0, 0, 19.9, 60), 20 * alignment.TEMPLATE, "too small"),
    ((0, 0, 60, 19.9), 20 * alignment.TEMPLATE, "too small"),
    ((0, 0, 10, 10), np.full((5, 2), 5.0), "too small"),
    ((0, 0, 48, 48), np.full((5, 2), 24.0), "unclear"),
    ((0, 0, 48, 48), np.full((5, 2), np.nan), "unclear"),
    ((0, 0, 48, 48), 48 * alignment.TEMPLATE[[3, 0, 4, 2, 1]], "unclear"),
    ((0, 0, 48, 48), turned_template(48, 2.0, (90, 0)), ""),  # a head that lies on its side is a clear face
    ((0, 0, 48, 48), 48 * alignment.TEMPLATE * (-1, 1), "unclear"),  # left and right changed
])  # fmt: skip
def test_doubt(box: tuple, points: np.ndarray, expected: str):
    assert fr.doubt(np.array(box), points) == expected


# ---------------------------------------------------------------- candidates


def test_candidates_equal_a_plain_search(chain: fr.Chain):
    random = np.random.default_rng(0)
    embeddings = random.normal(size=(60, 32)).astype(np.float32) / 4
    owners = [f"person {number}" for number in random.integers(0, 15, 60)]
    gallery = Gallery(embeddings, [GalleryPhoto(f"{name}/1.png", 0, 0, "") for name in owners])
    faces = [fr.SeenFace(np.zeros(4), 1.0, np.zeros((5, 2)), query)
             for query in random.normal(size=(7, 32)).astype(np.float32) / 4]  # fmt: skip
    with torch.no_grad():
        chain.verifier.linear.weight.copy_(-torch.rand(1, 32))  # so that the nearest is not always the best
    weight = chain.verifier.linear.weight.detach().numpy()[0].astype(float)
    best_is_not_nearest = 0
    for face, found in zip(faces, fr.find_candidates(chain, gallery, faces), strict=True):
        squares = (face.embedding.astype(float) - embeddings) ** 2
        nearest = squares.sum(axis=1).argsort()[:10]
        best: dict[str, float] = {}
        for row in nearest:
            own = embeddings[[owner == owners[row] for owner in owners]].astype(float)
            mean = own.mean(axis=0) * np.linalg.norm(own, axis=1).mean() / np.linalg.norm(own.mean(axis=0))
            logits = squares[row] @ weight + 4, (face.embedding.astype(float) - mean) ** 2 @ weight + 4
            score = np.mean([1 / (1 + np.exp(-logit)) for logit in logits])
            best[owners[row]] = max(best.get(owners[row], 0), score)
        assert [name for name, _ in found] == sorted(best, key=best.get, reverse=True)
        assert [score for _, score in found] == pytest.approx(sorted(best.values(), reverse=True), abs=1e-5)
        best_is_not_nearest += found[0][0] != owners[nearest[0]]
    assert best_is_not_nearest


def test_entry_0_of_the_gallery_can_win(chain: fr.Chain):
    gallery = gallery_of(("Ada", ADA), ("Ben", BEN), ("Cleo", CLEO))
    [candidates] = fr.find_candidates(chain, gallery, [seen_face(ADA)])
    assert [name for name, _ in candidates] == ["Ada", "Ben", "Cleo"]
    assert candidates[0][1] == pytest.approx(score_of(0)) and fr.name_faces([seen_face()], [candidates], 0.5)[0].name


def test_only_the_ten_nearest_count(chain: fr.Chain):
    gallery = gallery_of(*[("Ada", ADA + i / 10) for i in range(10)], ("Ben", ADA + 2), ("Cleo", ADA + 3))
    assert [name for name, _ in fr.find_candidates(chain, gallery, [seen_face(ADA)])[0]] == ["Ada"]
    [candidates] = fr.find_candidates(chain, gallery, [seen_face(ADA + 3)])
    assert {name for name, _ in candidates} == {"Ada", "Ben", "Cleo"}


def test_a_person_has_the_score_of_their_best_photo_and_of_the_mean(chain: fr.Chain):
    gallery = gallery_of(("Ada", ADA + 15), ("Ada", ADA + 5), ("Ada", ADA - 10), ("Ben", ADA + 8))
    [candidates] = fr.find_candidates(chain, gallery, [seen_face(ADA)])
    assert [name for name, _ in candidates] == ["Ada", "Ben"]
    assert [score for _, score in candidates] == pytest.approx(
        [(score_of(5) + score_of(10 / 3)) / 2, score_of(8)], abs=1e-5)


def test_candidates_of_nobody_and_in_an_empty_gallery(chain: fr.Chain):
    assert fr.find_candidates(chain, Gallery(), [seen_face(), seen_face()]) == [[], []]
    assert fr.find_candidates(chain, gallery_of(("Ada", ADA)), []) == []
    assert fr.find_candidates(chain, Gallery(), []) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_candidates_with_the_models_on_a_gpu(chain: fr.Chain):
    on_gpu = fr.Chain(chain.detector.cuda(), chain.landmarker.cuda(), chain.recogniser.cuda(), chain.verifier.cuda())
    [candidates] = fr.find_candidates(on_gpu, gallery_of(("Ada", ADA)), [seen_face(ADA)])
    assert candidates == [("Ada", pytest.approx(score_of(0)))]


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(("candidates", "doubts", "names"), [
    ([[("Ada", 0.9)], [("Ben", 0.8)]], ["", ""], ["Ada", "Ben"]),
    ([[("Ada", 0.8)], [("Ada", 0.9)]], ["", ""], [None, "Ada"]),  # the best, not the first
    ([[("Ada", 0.9), ("Ben", 0.1)], [("Ben", 0.8)]], ["", ""], ["Ada", "Ben"]),
    ([[("Ada", 0.9)], [("Ada", 0.9)]], ["", ""], ["Ada", None]),  # a tie: the more prominent face
    ([[("Ada", 0.5)], [("Ben", 0.4999)]], ["", ""], ["Ada", None]),  # from the threshold on
    ([[("Ada", 0.9)], [("Ada", 0.8)]], ["too small", ""], [None, "Ada"]),  # a doubtful face takes no name away
    ([[("Ada", 0.9)]], ["unclear"], [None]),
    ([[], [("Ada", 0.9)], []], ["", "", ""], [None, "Ada", None]),
    ([], [], []),
])  # fmt: skip
def test_names(candidates: list, doubts: list[str], names: list):
    answers = fr.name_faces([seen_face(doubt=doubt) for doubt in doubts], candidates, 0.5)
    assert [answer.name for answer in answers] == names
    assert [answer.candidates for answer in answers] == candidates
    assert [answer.score for answer in answers] == [people[0][1] if people else 0.0 for people in candidates]


def test_a_person_may_name_several_faces_when_allowed():
    candidates = [[("Ada", 0.8)], [("Ada", 0.9)], [("Ada", 0.4)], [("Ada", 0.95)]]
    faces = [seen_face(), seen_face(), seen_face(), seen_face(doubt="unclear")]
    assert [a.name for a in fr.name_faces(faces, candidates, 0.5, allow_repeats=True)] == ["Ada", "Ada", None, None]


def test_an_empty_gallery_names_nobody_even_at_threshold_0():
    assert fr.name_faces([seen_face()], [[]], 0.0) == [fr.Answer(None, [])]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ABC"), st.sampled_from([0.1, 0.5, 0.7, 0.9]), st.booleans()), max_size=7),
       st.booleans())  # fmt: skip
def test_each_name_goes_to_its_best_face(faces: list[tuple[str, float, bool]], allow_repeats: bool):
    answers = fr.name_faces([seen_face(doubt="unclear" * doubt) for *_, doubt in faces],
                            [[(name, score)] for name, score, _ in faces], 0.5, allow_repeats)  # fmt: skip
    for number, ((name, score, doubt), answer) in enumerate(zip(faces, answers, strict=True)):
        better = any(other == name and not other_doubt and (other_score, -i) > (score, -number)
                     for i, (other, other_score, other_doubt) in enumerate(faces))  # fmt: skip
        expected = score >= 0.5 and not doubt and (allow_repeats or not better)
        assert answer.name == (name if expected else None)


def test_recognise_several_photos(chain: fr.Chain):
    gallery = gallery_of(("Ada", ADA), ("Ben", BEN), ("Cleo", CLEO))
    photos = [draw_photo(STRANGER, BEN), draw_photo(), draw_photo(ADA, CLEO, ADA + 2), draw_photo(ADA)]
    names = [[answer.name for _, answer in faces] for faces in fr.recognise(chain, gallery, photos, 0.5)]
    assert names == [[None, "Ben"], [], ["Ada", "Cleo", None], ["Ada"]]
    names = [[answer.name for _, answer in faces] for faces in fr.recognise(chain, gallery, photos, 0.5, True)]
    assert names == [[None, "Ben"], [], ["Ada", "Cleo", "Ada"], ["Ada"]]
    assert fr.recognise(chain, gallery, [], 0.5) == []
    assert [answer for _, answer in fr.recognise(chain, Gallery(), photos[:1], 0.5)[0]] == [fr.Answer(None, [])] * 2


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize(("answer", "doubt", "said"), [
    (fr.Answer("Ada", [("Ada", 0.974)]), "", "Ada: 0.974"),
    (fr.Answer(None, [("Ada", 0.31)]), "", "Unknown: 0.310"),
    (fr.Answer(None, [("Ada", 0.99)]), "too small", "Unknown: 0.990 (too small)"),
    (fr.Answer(None, []), "unclear", "Unknown: 0.000 (unclear)"),
    (fr.Answer(None, [("Ada", 0.98)], "Ada is another face"), "", "Unknown: 0.980 (Ada is another face)"),
])  # fmt: skip
def test_what_is_said_of_a_face(answer: fr.Answer, doubt: str, said: str):
    assert fr.describe_face(seen_face(doubt=doubt), answer) == said


@pytest.mark.parametrize(("threshold", "far", "expected"), [
    (None, None, 0.5), (0.7, None, 0.7), (0.0, None, 0.0), (None, "0.1", 0.3), (None, "0.001", 0.97),
])  # fmt: skip
def test_working_threshold(chain: fr.Chain, threshold: float | None, far: str | None, expected: float):
    assert fr.working_threshold(chain, Gallery(), Namespace(threshold=threshold, far=far)) == expected


def test_threshold_and_far_together_are_refused(people, run):
    status, _, error = run("recognize", save_photo("photo.png", ADA), "--threshold", "0.5", "--far", "0.1")
    assert status == 2 and is_one_sentence(error) and "give one of them" in error


def test_what_an_embedding_was_made_with(chain: fr.Chain):
    same = fr.Chain(OneNumber(), OneNumber(), GreyLevel(), make_verifier())
    assert chain.made_with == same.made_with
    others = [fr.Chain(OneNumber(1.0), OneNumber(), GreyLevel(), make_verifier()),
              fr.Chain(OneNumber(), OneNumber(1.0), GreyLevel(), make_verifier()),
              fr.Chain(OneNumber(), OneNumber(), OneNumber(1.0), make_verifier()),
              fr.Chain(OneNumber(), OneNumber(), GreyLevel(), make_verifier(), "affine")]  # fmt: skip
    texts = {json.dumps(each.made_with) for each in [chain, *others]}
    assert len(texts) == 5


# ---------------------------------------------------------------- the interactive loop


def be_the_program(arguments: list[str]) -> None:
    """In a forked process: what the interpreter does around main. Never returns."""
    status = 70
    try:
        torch.set_num_threads(1)  # the parent's threads are not there
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        sys.stdin = open(0, encoding="utf-8")  # noqa: SIM115
        sys.stdout = open(1, "w", encoding="utf-8")  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        status = fr.main(arguments)
        sys.stdout.flush()  # as at the end of a program
    except BaseException:  # noqa: BLE001
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


class Conversation:
    """The program at a pseudo-terminal, as a user sees it."""

    def __init__(self, *arguments: str):
        import pty

        self.process, self.terminal = pty.fork()
        if not self.process:
            be_the_program(list(arguments))
        self.transcript, self.heard = b"", 0
        self.deadline = time.monotonic() + PATIENCE

    def hear(self, text: str) -> str:
        """Waits for a text that has not been heard yet; returns what came before it."""
        while (at := self.transcript.find(text.encode(), self.heard)) < 0:
            assert self.read(), f"{text!r} was never said:\n{self.transcript.decode()}"
        start, self.heard = self.heard, at + len(text.encode())
        return self.transcript[start:at].decode()

    def type(self, keys: str) -> None:
        self.hear("Image path: ")
        os.write(self.terminal, keys.encode())

    def read(self) -> bool:
        ready, _, _ = select.select([self.terminal], [], [], max(0, self.deadline - time.monotonic()))
        try:
            new = os.read(self.terminal, 4096) if ready else b""
        except OSError:  # the other side is closed
            new = b""
        self.transcript += new
        return bool(new)

    def end(self, again: str = "") -> tuple[str, int]:
        """Everything that was said, and the exit status.

        `again` is a key that is pressed every second: Python loses a Ctrl-C in the moment in which it prints a prompt.
        """
        while again and not select.select([self.terminal], [], [], 1)[0] and time.monotonic() < self.deadline:
            os.write(self.terminal, again.encode())
        while self.read():
            pass
        return self.transcript.decode().replace("\r", ""), exit_status(self.process)

    def close(self) -> None:
        os.close(self.terminal)
        with suppress(ChildProcessError):  # it has ended
            exit_status(self.process, patience=0)


def exit_status(process: int, patience: float = PATIENCE) -> int:
    """Waits for a process to end; one that does not is killed, which gives -9."""
    deadline = time.monotonic() + patience
    while (ended := os.waitpid(process, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(process, signal.SIGKILL)
        time.sleep(0.02)
    return os.waitstatus_to_exitcode(ended[1])


@pytest.fixture
def talk(people: dict[str, int]) -> Iterator[Callable[..., Conversation]]:
    conversations = []

    def start(*arguments: str) -> Conversation:
        conversations.append(Conversation(*arguments))
        return conversations[-1]

    yield start
    for conversation in conversations:
        conversation.close()


@needs_terminal
def test_a_conversation_at_a_terminal(talk, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(Path.cwd() / "home"))
    save_photo("group.png", BEN, STRANGER, ADA)
    save_photo("home/my photo.png", WATANABE)
    save_photo("it's Ben.png", BEN)
    save_photo("empty.png")
    Path("notes.png").write_text("no photo")
    user = talk()
    user.type("group.png\n")
    answers = user.hear("saved to img_output.png")
    lines = [line for line in answers.replace("\r", "").splitlines() if line.startswith("result: ")]
    assert lines == ["result: Ben: 0.982", "result: Unknown: 0.000", "result: Ada: 0.982"]
    with Image.open("img_output.png") as picture:
        assert picture.size == draw_photo(BEN, STRANGER, ADA).size
    user.type("\n")
    user.type("   \n")
    user.type("'~/my photo.png'\n")  # in quotes, ~ is still the home folder
    user.hear("result: 渡辺: 0.982")
    user.type('"home/my photo.png" \n')
    user.hear("result: 渡辺: 0.982")
    user.type("~/my photo.png\n")
    user.hear("result: 渡辺: 0.982")
    user.type("home/my\\ photo.png\n")  # as a terminal writes a dropped file
    user.hear("result: 渡辺: 0.982")
    user.type("'it'\\''s Ben.png'\n")
    user.hear("result: Ben: 0.982")
    user.type("empty.png\n")
    user.hear("no face found")
    for typed, said in [("nobody.png", "nobody.png does not exist"), ("home", "home is a folder"),
                        ("notes.png", "notes.png is no photo"), ("~no such user/a", "~no such user/a does not exist"),
                        ("x" * 300, "error: ")]:  # fmt: skip
        user.type(typed + "\n")
        user.hear(said)
    user.type("\x04")
    transcript, status = user.end()
    assert status == 0 and "Traceback" not in transcript
    assert "4 people are known from 8 photos" in transcript


@needs_terminal
@pytest.mark.parametrize("typed", ["\x03", "half a na\x03", "\x04"], ids=["ctrl-c", "ctrl-c in a word", "ctrl-d"])
def test_ctrl_c_and_ctrl_d_leave_politely(talk, typed: str):
    user = talk()
    user.type(typed)
    transcript, status = user.end(again=typed[-1])
    assert status == 0 and "Traceback" not in transcript and "Interrupt" not in transcript
    assert transcript.endswith("\n"), "the shell's prompt is to begin a line"


@needs_terminal
def test_ctrl_c_while_a_photo_is_worked_on(talk, monkeypatch: pytest.MonkeyPatch):
    user = talk("people")
    user.end()  # the gallery is built

    def detect_for_ever(model, photos, **options):
        print("at work", flush=True)
        time.sleep(PATIENCE)

    monkeypatch.setattr(fr, "detect", detect_for_ever)
    save_photo("photo.png", ADA)
    user = talk()
    user.type("photo.png\n")
    user.hear("at work")
    os.write(user.terminal, b"\x03")
    transcript, status = user.end()
    assert status == 0 and "Traceback" not in transcript


@needs_terminal
def test_tab_completes_file_names(talk):
    pytest.importorskip("readline")
    save_photo("a folder/photo of Ada.png", ADA)
    save_photo("a folder/with Ben.png", BEN)
    user = talk()
    user.type("a fo\tpho\t\n")
    user.hear("photo of Ada.png")
    user.hear("result: Ada: 0.982")
    user.type("a folder/w\t\n")
    user.hear("result: Ben: 0.982")
    user.type("'a fo\tpho\t'\n")
    user.hear("result: Ada: 0.982")
    user.type("\x04")
    assert user.end()[1] == 0


def through_pipes(arguments: list[str], typed: bytes = b"", listen: bool = True) -> tuple[int, str, str]:
    """The program with standard input, output and error in pipes: exit status, output, error."""
    pipes = [os.pipe() for _ in range(3)]
    (input_end, to_program), (output, output_end), (error, error_end) = pipes
    if not listen:
        os.close(output)
    sys.stdout.flush()
    process = os.fork()
    if not process:
        for number, end in enumerate((input_end, output_end, error_end)):
            os.dup2(end, number)
        for end in (input_end, to_program, output_end, error, error_end):
            os.close(end)
        be_the_program(arguments)
    for end in (input_end, output_end, error_end):
        os.close(end)
    os.write(to_program, typed)
    os.close(to_program)
    said = []
    for end in (output, error) if listen else (error,):
        with open(end, encoding="utf-8") as stream:
            said.append(stream.read())
    return exit_status(process), *(said if listen else ("", *said))


def answers_of(output: str) -> list[str]:
    """The lines without prompts and without the sentences on gallery and threshold."""
    lines = output.replace("Image path: ", "\n").splitlines()
    return [line for line in lines if line.strip() and not re.search("people are known|gets a name from", line)]


@needs_fork
def test_input_from_a_pipe_with_bad_photos_of_every_kind(people):
    save_photo("good.png", CLEO)
    save_photo("cut off.png", ADA)
    Path("cut off.png").write_bytes(Path("cut off.png").read_bytes()[:60])
    Path("empty.jpg").touch()
    Path("text.jpg").write_text("no photo")
    os.mkfifo("fifo.png")
    save_photo("large.png", ADA, BEN, CLEO, WATANABE)
    bad = [b"missing.png", b"cut off.png", b"empty.jpg", b"text.jpg", b"fifo.png", b"large.png", b"data", b".", b"''",
           b"a\0b.png", b"x" * 5000, b"~", b"/"]  # fmt: skip
    typed = b"\n  \n" + b"".join(line + b"\ngood.png\n" for line in bad) + b"good.png"  # the last line has no end
    status, output, error = through_pipes(["--max-pixels", "10000"], typed)
    assert status == 0 and "Traceback" not in output + error
    answers = answers_of(output)
    good = ["result: Cleo: 0.982", "saved to img_output.png"]
    expected = [line for name in bad for line in (["error"] if name != b"''" else []) + good] + good
    assert [line if line in good else line.split(":")[0] for line in answers] == expected
    assert "--max-pixels" in next(line for line in answers if "large.png" in line)
    assert Path("img_output.png").exists()


@needs_fork
def test_a_line_that_is_not_unicode_loses_no_other(people):
    save_photo("good.png", CLEO)
    status, output, error = through_pipes([], b"good.png\ncaf\xe9.png\ngood.png\n")
    assert status == 0 and "Traceback" not in output + error
    kinds = [line.split(":")[0] for line in answers_of(output) if not line.startswith("saved")]
    assert kinds == ["result", "error", "result"]


def typed_lines(monkeypatch: pytest.MonkeyPatch, *lines: str | Path) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


@pytest.mark.parametrize("arguments", [[], ["interactive"], ["--threshold", "0.5"]])
def test_without_a_command_the_loop_starts(people, run, monkeypatch, arguments: list[str]):
    typed_lines(monkeypatch, save_photo("photo.png", ADA))
    status, output, _ = run(*arguments)
    assert status == 0 and answers_of(output) == ["result: Ada: 0.982", "saved to img_output.png"]


@pytest.mark.parametrize(("arguments", "said"), [
    ([], "from score 0.500 on: one stranger in a hundred got there when it was chosen. Running on cpu"),
    (["--threshold", "0.99"], "from score 0.990 on. Running on cpu"),
    (["--far", "0.001"], "from score 0.970 on: 0.1% of the pairs of strangers got there when it was chosen. Running"),
])  # fmt: skip
def test_the_loop_says_from_which_score_on_a_name_is_given(people, run, monkeypatch, arguments: list[str], said: str):
    typed_lines(monkeypatch)
    assert f"A face gets a name {said}" in run(*arguments)[1]


@pytest.mark.parametrize(("arguments", "name"), [
    ([], "Ada"), (["--threshold", "0.99"], "Unknown"), (["--far", "0.001"], "Unknown"), (["--far", "0.01"], "Ada"),
])  # fmt: skip
def test_threshold_and_far_in_the_loop(people, run, monkeypatch, arguments: list[str], name: str):
    typed_lines(monkeypatch, save_photo("photo.png", ADA - 8))  # scores less than the 0.970 of --far 0.001
    _, said, score = answers_of(run(*arguments)[1])[0].split(": ")
    assert said == name and float(score) == pytest.approx(score_of(8), abs=0.002) and float(score) < 0.97


def test_the_loop_does_not_draw_over_the_photo_that_it_is_asked_about(people, run, monkeypatch):
    photo = save_photo("photo.png", ADA)
    before = Path(photo).read_bytes()
    typed_lines(monkeypatch, photo)
    output = run("--output", "./photo.png")[1]
    assert "photo.png is where the answer is drawn: choose another --output" in output
    assert Path(photo).read_bytes() == before


def test_the_label_drawn_is_the_name_printed(people, run, monkeypatch, drawn):
    photo = save_photo("photo.png", ADA, STRANGER, WATANABE, UNCLEAR)
    typed_lines(monkeypatch, photo)
    answers = answers_of(run("--output", "out/named.png")[1])
    [(picture, boxes, landmarks, labels, marked)] = drawn
    assert [f"result: {label}" for label in labels] == [line for line in answers if line.startswith("result")]
    assert [label.split(":")[0] for label in labels] == ["Ada", "Unknown", "渡辺", "Unknown"]
    assert labels[3].endswith("(unclear)") and list(marked) == [False, False, False, True]
    np.testing.assert_array_equal(boxes[:, 0], [10, 70, 130, 190])  # each label at its own face
    np.testing.assert_allclose(landmarks[0], 10 + 48 * alignment.TEMPLATE)
    assert answers[-1] == "saved to out/named.png"
    shown = np.asarray(Image.open("out/named.png"), int)
    changed = np.abs(shown - np.asarray(Image.open(photo), int)).max(axis=2) > 50
    assert changed[10:58, 10:58].any() and changed[10:50, 70:110].any()
    assert sorted(path.name for path in Path("out").iterdir()) == ["named.png"]


def test_a_name_that_no_font_has_gives_a_note(people, run, monkeypatch):
    monkeypatch.setattr(drawing, "_system_font_files", lambda characters: {})
    typed_lines(monkeypatch, save_photo("photo.png", WATANABE))
    answers = answers_of(run()[1])
    assert answers[0] == "result: 渡辺: 0.982" and "No installed font has" in answers[1]
    assert answers[2] == "saved to img_output.png"


@pytest.mark.parametrize("output", ["named.xyz", "named"])
def test_an_output_that_is_no_picture_is_said_before_any_work(people, run, output: str):
    status, said, error = run("--output", output)
    assert (status, said) == (2, "") and is_one_sentence(error) and f"--output {output}" in error


@pytest.mark.parametrize("output", ["a folder.png", "photo.png/named.png"])
def test_a_picture_that_cannot_be_written_does_not_end_the_loop(people, run, monkeypatch, output: str):
    Path("a folder.png").mkdir()
    photo = save_photo("photo.png", ADA)
    typed_lines(monkeypatch, photo, photo)
    status, said, _ = run("--output", output)
    errors = [line for line in said.splitlines() if "error: " in line]
    assert status == 0 and len(errors) == 2 and all(output in error for error in errors)


def test_with_an_empty_gallery_everybody_is_unknown(chain, run, monkeypatch):
    typed_lines(monkeypatch, save_photo("photo.png", ADA))
    status, output, _ = run()
    assert status == 0 and "result: Unknown: 0.000" in output and "face_recognition_samples/NAME/" in output


# ---------------------------------------------------------------- recognize


def recognized(run, *arguments: str | Path) -> tuple[int, dict[str, dict]]:
    """Exit status and file -> its object, of recognize --json."""
    status, output, _ = run("recognize", "--json", *arguments)
    return status, {result["file"]: result for result in json.loads(output)}


def names_of(result: dict) -> list[str | None]:
    return [face["name"] for face in result["faces"]]


def test_recognize_files_and_folders(people, run):
    save_photo("one.png", ADA, STRANGER)
    save_photo("album/2.png")
    save_photo("album/10.png", BEN)
    save_photo("album/deeper/1.png", WATANABE)
    Path("album/notes.txt").write_text("no photo, and not named like one")
    status, output, _ = run("recognize", "one.png", "album")
    assert status == 0
    assert output.splitlines() == [
        "one.png:", "result: Ada: 0.982", "result: Unknown: 0.000", "album/2.png:", "no face found",
        "album/10.png:", "result: Ben: 0.982", "album/deeper/1.png:", "result: 渡辺: 0.982"]  # fmt: skip
    assert not Path("img_output.png").exists()


def test_recognize_json(people, run):
    photo = save_photo("photo.png", BEN, STRANGER, UNCLEAR)
    status, output, _ = run("recognize", "--json", photo, save_photo("empty.png"))
    found, empty = json.loads(output)
    assert status == 0 and (found["file"], empty) == ("photo.png", {"file": "empty.png", "faces": []})
    ben, stranger, unclear = found["faces"]
    assert (ben["box"], ben["name"], ben["doubt"]) == ([10, 10, 58, 58], "Ben", None)
    np.testing.assert_allclose(ben["landmarks"], 10 + 48 * alignment.TEMPLATE, atol=0.051)
    assert ben["score"] == pytest.approx(score_of(0), abs=1e-3) and 0 < ben["detected"] <= 1
    scores = [each["score"] for each in ben["runners_up"]]
    assert scores == sorted(scores, reverse=True) and {"Ada", "Cleo"} < {each["name"] for each in ben["runners_up"]}
    assert (stranger["name"], stranger["doubt"]) == (None, None) and stranger["score"] < 0.5
    assert (unclear["name"], unclear["doubt"]) == (None, "unclear")
    assert "渡辺" in output, "names are to be readable"


def test_recognize_with_an_empty_gallery(chain, run):
    status, results = recognized(run, save_photo("photo.png", ADA))
    [face] = results["photo.png"]["faces"]
    assert status == 0 and (face["name"], face["score"], face["runners_up"]) == (None, 0.0, [])


def test_boxes_are_those_of_the_upright_photo(people, run):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    draw_photo(ADA, BEN).transpose(Image.Transpose.ROTATE_90).save("turned.png", exif=exif)
    _, results = recognized(run, "turned.png")
    assert [face["box"] for face in results["turned.png"]["faces"]] == [[10, 10, 58, 58], [70, 10, 110, 50]]
    assert names_of(results["turned.png"]) == ["Ada", "Ben"]


@pytest.mark.parametrize(("arguments", "names"), [
    ([], ["Ada", "Ben", None]), (["--allow-repeats"], ["Ada", "Ben", "Ada"]), (["--threshold", "0.97"],
    ["Ada", None, None]), (["--threshold", "1"], [None] * 3), (["--far", "0.001"], ["Ada", None, None]),
    (["--far", "0.1", "--allow-repeats"], ["Ada", "Ben", "Ada"]),
])  # fmt: skip
def test_recognize_options(people, run, arguments: list[str], names: list):
    _, results = recognized(run, save_photo("photo.png", ADA, BEN - 9, ADA - 10), *arguments)
    assert names_of(results["photo.png"]) == names


@pytest.mark.parametrize("wrong", [["--far", "0.5"], ["--threshold", "-1"], ["--align", "wild"], []])
def test_wrong_options(chain, run, wrong: list[str]):
    with pytest.raises(SystemExit) as ended:
        run("recognize", *wrong)
    assert ended.value.code == 2


def test_bad_photos_do_not_stop_the_others(people, run):
    good = [save_photo(f"album/{number}.png", level) for number, level in enumerate([ADA, BEN, CLEO] * 4)]
    Path("album/3.jpg").write_text("no photo")
    Path("album/4.jpg").touch()
    Path("album/5.jpg").write_bytes(good[0].read_bytes()[:50])
    if hasattr(os, "mkfifo"):  # not on Windows
        os.mkfifo("album/6.png.fifo")
    bad = ["album/3.jpg", "album/4.jpg", "album/5.jpg", "missing.png", "album/6.png.fifo"]
    status, output, error = run("recognize", "--json", "missing.png", "album", "album/6.png.fifo")
    results = {result["file"]: result for result in json.loads(output)}
    assert status == 2 and sorted(results) == sorted([*map(str, good), *bad])
    assert [names_of(results[str(path)]) for path in good] == [["Ada"], ["Ben"], ["Cleo"]] * 4
    for name in bad:
        assert results[name]["error"].startswith(name) and f"error: {results[name]['error']}\n" in error
    assert "Traceback" not in error and error.count("error: ") == len(bad)


@pytest.mark.parametrize("path", ["x" * 300 + ".png", "photo.png/inside.png"])
def test_a_path_that_cannot_be(people, run, path: str):
    save_photo("photo.png", ADA)
    status, output, error = run("recognize", path, "photo.png")
    assert status == 2 and "result: Ada" in output and error.count("error: ") == 1
    assert f"error: {path} does not exist: check the name." in error


def test_file_names_that_are_not_unicode(people, run):
    try:
        os.mkdir("album")
        draw_photo(ADA).save("album/1.png")
        os.rename(b"album/1.png", b"album/caf\xe9.png")
    except OSError:
        pytest.skip("this file system has only Unicode names")
    status, output, _ = run("recognize", "album")
    assert status == 0 and "result: Ada: 0.982" in output
    assert recognized(run, "album")[0] == 0


@pytest.mark.parametrize("arguments", [["recognize", "photo.png"], ["recognize", "--json", "photo.png"], ["people"]])
def test_a_terminal_that_cannot_show_a_name(people, monkeypatch, arguments: list[str]):
    """Such as a Windows pipe: what it cannot show is written in another way, and the program goes on."""
    save_photo("photo.png", WATANABE)
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    assert fr.main(arguments) == 0
    sys.stdout.flush()
    assert b"0.98" in shown.getvalue() or b"2 photos" in shown.getvalue()
    if "--json" in arguments:
        assert json.loads(shown.getvalue())[0]["faces"][0]["name"] == "渡辺"


def test_pictures_of_recognize(people, run, drawn):
    for album, level in [("summer", ADA), ("winter", BEN)]:
        save_photo(f"{album}/same.png", level, STRANGER)
    save_photo("winter/nobody.png")
    status, output, _ = run("recognize", "summer", "winter", "--out", "drawn/here")
    assert status == 0
    labels = [label for call in drawn for label in call[3]]
    assert [f"result: {label}" for label in labels] == [x for x in output.splitlines() if x.startswith("result: ")]
    pictures = [path for path in Path("drawn/here").rglob("*") if path.is_file()]
    assert len(pictures) == 3, "photos of the same name in two folders are not to replace each other"
    assert all(Image.open(path).format == "PNG" for path in pictures)


def test_drawn_pictures_are_no_photos_and_no_photo_comes_twice(people, run):
    save_photo("album/1.png", ADA)
    for _ in range(2):
        status, output, _ = run("recognize", "album", "album/1.png", "--out", "album/drawn")
        assert status == 0 and output.count("result: ") == 1
    assert len(list(Path("album").rglob("*.png"))) == 2
    [drawn] = Path("album/drawn").rglob("*.png")
    assert "result: Ada" in run("recognize", drawn, "--out", "album/drawn")[1], "but it can be asked about by name"


def test_a_picture_that_cannot_be_written_costs_no_answer(people, run):
    photos = [save_photo(f"album/{number}.png", level) for number, level in enumerate([ADA, BEN])]
    Path("out/0.png.png").mkdir(parents=True)
    status, results = recognized(run, *photos, "--out", "out")
    assert status == 2 and [names_of(results[str(photo)]) for photo in photos] == [["Ada"], ["Ben"]]
    assert "out/0.png.png" in results[str(photos[0])]["error"] and "error" not in results[str(photos[1])]


def test_no_photo_is_drawn_over(people, run):
    photos = [save_photo("album/x.png", ADA), save_photo("album/x.png.png", BEN)]
    before = Path(photos[1]).read_bytes()
    status, output, error = run("recognize", *photos, "--out", "album/../album")
    assert (status, output) == (2, "") and "album/x.png would replace another photo" in error.splitlines()[-1]
    assert Path(photos[1]).read_bytes() == before


@pytest.mark.parametrize("gallery", [".", "saved", "Ada/saved"])
def test_a_gallery_among_the_people_is_refused(people, run, gallery: str):
    """Its cut faces would be enrolled by the next run."""
    status, _, error = run("people", "--gallery", fr.PEOPLE / gallery)
    assert status == 2 and f"is in {fr.PEOPLE}, where every folder is a person" in error
    assert run("people", "--gallery", fr.PEOPLE / ".saved")[0] == 0
    assert "4 people are known from 8 photos" in run("people", "--gallery", fr.PEOPLE / ".saved")[1]


def test_a_photo_instead_of_a_command(people, run):
    assert "result: Ada" in run(save_photo("photo.png", ADA))[1]


def test_embeddings_that_are_not_finite_are_said(people, chain, run, monkeypatch):
    monkeypatch.setattr(chain.recogniser, "embedding_of", lambda levels: levels * torch.nan)
    status, _, error = run("recognize", save_photo("photo.png", ADA))
    assert status == 2 and "weights are damaged" in error and "Traceback" not in error


def test_a_folder_for_pictures_that_is_a_file(people, run):
    photo = save_photo("photo.png", ADA)
    status, _, error = run("recognize", photo, "--out", photo)
    assert status == 2 and is_one_sentence(error.splitlines(True)[-1]) and "Traceback" not in error


# ---------------------------------------------------------------- the gallery commands


def test_enroll_people_forget(chain, run):
    first, second = save_photo("in/1.png", ADA), save_photo("in/2.png", ADA + 1)
    status, output, _ = run("enroll", "Ada", first, second)
    assert status == 0 and "2 of 2" in output
    assert sorted(path.name for path in (fr.PEOPLE / "Ada").iterdir()) == ["1.png", "2.png"]
    assert run("enroll", "Ada", first)[1].startswith("0 of 1")
    assert run("enroll", "渡辺", save_photo("in/3.png", WATANABE))[0] == 0
    status, output, _ = run("people")
    assert status == 0 and output.splitlines()[:2] == ["Ada: 2 photos", "渡辺: 1 photo"]
    probe = save_photo("probe.png", ADA - 1, WATANABE - 1)
    assert names_of(recognized(run, probe)[1]["probe.png"]) == ["Ada", "渡辺"]
    status, output, _ = run("forget", "Ada")
    assert status == 0 and "Ada" in output and not (fr.PEOPLE / "Ada").exists()
    assert names_of(recognized(run, probe)[1]["probe.png"]) == [None, "渡辺"]
    left = [path for path in fr.GALLERY.rglob("*") if "Ada" in str(path)]
    assert not left and b"Ada" not in (fr.GALLERY / "gallery.json").read_bytes()
    assert first.exists(), "only the copy goes"


def test_cut_makes_crops_that_prepare_takes(chain, run):
    save_photo("in/Ada/1.png", ADA, BEN)
    save_photo("in/Ben/1.png", BEN)
    save_photo("in/Ben/nobody.png")
    status, output, _ = run("cut", "in", "out", "--crop-size", 64)
    assert status == 0 and "2 of 3 photos" in output
    crops = {photo.person: np.asarray(Image.open(photo.path)) for photo in datasets.folder_of_folders(Path("out"))}
    assert {person: crop.shape for person, crop in crops.items()} == {"ada": (64, 64, 3), "ben": (64, 64, 3)}
    assert (crops["ada"][32, 32] == ADA).all(), "the largest face is taken, and lies in the middle"
    assert (crops["ben"][32, 32] == BEN).all()
    for _ in range(2):  # what it has written itself is no photo
        assert "2 of 3 photos" in run("cut", "in", "in/faces")[1]
    status, _, error = run("cut", "in", "in")
    assert status == 2 and is_one_sentence(error)
    save_photo("empty/Ben/nobody.png")
    status, _, error = run("cut", "empty", "out")
    assert status == 2 and is_one_sentence(error)


def test_a_typing_error_in_samples_leaves_the_gallery(people, run):
    assert run("people")[0] == 0
    saved = (fr.GALLERY / "gallery.json").read_bytes()
    status, _, error = run("people", "--samples", "face_recogniton_samples")
    assert status == 2 and is_one_sentence(error) and not Path("face_recogniton_samples").exists()
    assert (fr.GALLERY / "gallery.json").read_bytes() == saved


def test_other_samples_have_a_gallery_of_their_own(people, chain, run):
    run("people")
    faces_worked_on(chain)
    save_photo("friends/Dora/1.png", STRANGER)
    assert run("people", "--samples", "friends")[1].startswith("Dora: 1 photo\n") and faces_worked_on(chain) == 1
    assert "4 people are known" in run("people")[1] and faces_worked_on(chain) == 0
    assert "1 person is known" in run("people", "--samples", "./friends/")[1] and faces_worked_on(chain) == 0


def test_a_gallery_that_cannot_be_written_is_still_read(people, run, monkeypatch):
    run("people")
    save_photo(fr.PEOPLE / "Dora" / "1.png", STRANGER)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != fr.GALLERY)
    status, output, error = run("people")
    assert status == 0 and "4 people are known" in output and "cannot be written" in error


@pytest.mark.skipif(os.name == "nt", reason="no such names on Windows")
def test_a_photo_without_a_face_is_counted_and_a_name_with_control_characters_left_out(people, run):
    save_photo(fr.PEOPLE / "Dora" / "1.png")
    save_photo(fr.PEOPLE / "Ev\x1b[2Jil" / "1.png", STRANGER)
    status, output, error = run("people")
    assert status == 0 and "8 photos (1 more not used, see `people`)" in output
    assert "control characters" in error and "\x1b" not in output + error


def test_a_photo_that_did_not_open_is_tried_again(people, run):
    run("people")
    save_photo(fr.PEOPLE / "Dora" / "1.png", 201)
    status, output, error = run("people", "--max-pixels", "100")
    assert status == 0 and "Dora" not in output and "--max-pixels" in error
    status, output, _ = run("people")
    assert status == 0 and "Dora: 1 photo" in output


@pytest.mark.parametrize(("typed", "listed"), [(" Ada ", "Ada"), (unicodedata.normalize("NFD", "Zoë"), "Zoë")])
def test_the_name_may_be_typed_in_another_way(chain, run, typed: str, listed: str):
    status, output, _ = run("enroll", typed, save_photo("in.png", ADA))
    assert status == 0 and "1 of 1" in output and "1 in all" in output
    assert run("people")[1].startswith(f"{listed}: 1 photo\n")
    assert run("forget", typed.strip())[0] == 0


@pytest.mark.parametrize("name", ["", "..", "a/b", "CON"])
def test_enroll_refuses_names_and_copies_nothing(chain, run, name: str):
    status, _, error = run("enroll", name, save_photo("in.png", ADA))
    assert status == 2 and is_one_sentence(error) and not list(fr.PEOPLE.glob("*"))


def test_enroll_bad_photos(people, run):
    before = sorted(fr.PEOPLE.rglob("*"))
    Path("text.png").write_text("no photo")
    for bad in ("text.png", "missing.png", "data"):
        status, _, error = run("enroll", "Dan", save_photo("good.png", STRANGER), bad)
        assert status == 2 and is_one_sentence(error) and error.startswith(f"error: {bad}")
    assert sorted(fr.PEOPLE.rglob("*")) == before


def test_a_larger_size_is_for_the_photos_that_are_asked_about(chain, people, run, monkeypatch: pytest.MonkeyPatch):
    """The gallery is kept: it is to be the same, whichever way it was built."""
    sizes, see = [], fr.detect
    monkeypatch.setattr(fr, "detect", lambda *arguments, **how: sizes.append(how["size"]) or see(*arguments, **how))
    assert run("recognize", save_photo("photo.png", ADA), "--size", 1024)[0] == 0
    assert set(sizes[:-1]) == {None} and sizes[-1] == 1024


def test_a_photo_without_a_face_is_shown_as_it_is(people, run, monkeypatch: pytest.MonkeyPatch):
    """Not the answer to the photo before it."""
    typed_lines(monkeypatch, save_photo("ada.png", ADA), save_photo("empty.png"))
    assert answers_of(run()[1])[2:] == ["no face found", "saved to img_output.png"]
    with Image.open("img_output.png") as picture, Image.open("empty.png") as photo:
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(photo))


NO_ROOM = "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
                                   RuntimeError(NO_ROOM)])  # fmt: skip
def test_a_full_memory_is_one_sentence(people, run, monkeypatch: pytest.MonkeyPatch, error: Exception):
    photo = save_photo("photo.png", ADA)
    assert run("people")[0] == 0

    def too_much(*arguments: object, **how: object) -> None:
        raise error

    monkeypatch.setattr(fr, "detect", too_much)
    status, _, said = run("recognize", photo)
    assert status == 2 and said.splitlines()[-1].startswith("error: there is not enough memory: work on less")
    typed_lines(monkeypatch, photo, "missing.png")
    status, output, _ = run()
    assert status == 0 and "error: there is not enough memory" in output and "missing.png does not exist" in output


def test_a_fault_of_the_program_is_no_sentence(people, run, monkeypatch: pytest.MonkeyPatch):
    def wrong(*arguments: object, **how: object) -> None:
        raise RuntimeError("The size of tensor a (3) must match the size of tensor b (4)")

    monkeypatch.setattr(fr, "detect", wrong)
    with pytest.raises(RuntimeError, match="must match"):
        run("recognize", save_photo("photo.png", ADA))


def test_forget_nobody(people, run):
    status, _, error = run("forget", "Bem")
    assert status == 2 and is_one_sentence(error) and "did you mean Ben" in error


def test_photos_without_a_face_and_with_several_are_said_by_name(chain, run):
    status, output, error = run("enroll", "Ada", save_photo("nobody.png"))
    assert status == 2 and "0 of 1" in output and "nobody.png: no face was found" in error
    assert run("enroll", "Cleo", save_photo("cleo.png", CLEO))[0] == 0
    status, output, error = run("enroll", "Cleo", save_photo("2.png", CLEO, sides=(60,)), save_photo("nobody.png"))
    assert status == 2 and "1 of 2 photos of Cleo are new, 1 without a face; 2 in all" in output
    status, output, error = run("enroll", "Ada", save_photo("small.png", ADA, sides=(15,)),
                                save_photo("two.png", ADA, BEN), save_photo("strange.png", UNCLEAR))  # fmt: skip
    assert status == 0 and "3 of 3" in output
    said = {line.split(": ")[0].split("/")[-1]: line for line in error.splitlines() if ".png: " in line}
    assert "shows 2 faces, the largest was taken" in said["two.png"]
    assert "too small" in said["small.png"] and "unclear" in said["strange.png"]
    assert names_of(recognized(run, save_photo("probe.png", ADA, BEN))[1]["probe.png"]) == ["Ada", None]
    output = run("people")[1]
    assert "Ada: 3 photos" in output and "not used: face_recognition_samples/Ada/nobody.png: no face" in output


def test_the_cut_faces_are_there_for_checking(people, run):
    assert run("people")[0] == 0
    assert cut_faces() == sorted(f"{name}/{number}" for name in people for number in (1, 2))
    [cut] = (fr.GALLERY / "detected_faces" / "Ben").glob("1-*.png")
    picture = np.asarray(Image.open(cut).convert("RGB"), int)
    assert picture.shape == (160, 160, 3)
    eye = picture[69:78, 45:54]  # the template's left eye is at (49.6, 73.6)
    assert np.abs(eye - BEN).max() > 50 and np.abs(picture[20:60, 70:90] - BEN).max() <= 1
    (fr.PEOPLE / "Ben" / "1.png").unlink()
    run("people")
    assert "Ben/1" not in cut_faces() and "Ben/2" in cut_faces()


def cut_faces() -> list[str]:
    """PERSON/PHOTO of the cut faces that are there, without the digests."""
    cuts = fr.GALLERY / "detected_faces"
    return sorted(cut.relative_to(cuts).as_posix().rpartition("-")[0] for cut in cuts.rglob("*.png"))


def test_cut_faces_follow_photos_that_are_renamed_copied_or_have_the_same_stem(people, run):
    run("people")
    (fr.PEOPLE / "Ada").rename(fr.PEOPLE / "Adele")
    Image.open(fr.PEOPLE / "Ben/1.png").save(fr.PEOPLE / "Ben/1.webp", lossless=True)
    (fr.PEOPLE / "Cleo/3.png").write_bytes((fr.PEOPLE / "Cleo/1.png").read_bytes())
    run("people")
    assert cut_faces() == ["Adele/1", "Adele/2", "Ben/1", "Ben/1", "Ben/2", "Cleo/1", "Cleo/2", "Cleo/3",
                           "渡辺/1", "渡辺/2"]  # fmt: skip
    (fr.PEOPLE / "Ben/1.png").rename("there.png")  # two photos change their names
    (fr.PEOPLE / "Ben/2.png").rename(fr.PEOPLE / "Ben/1.png")
    Path("there.png").rename(fr.PEOPLE / "Ben/2.png")
    run("people")
    [cut] = (fr.GALLERY / "detected_faces/Ben").glob("2-*.png")
    assert np.asarray(Image.open(cut).convert("RGB"), int)[40, 80].tolist() == [BEN] * 3


def test_other_pictures_among_the_cut_faces_stay(people, run):
    other = save_photo(fr.GALLERY / "detected_faces" / "Ada" / "holiday-20240518.png", ADA)
    run("people")
    assert other.is_file()


def test_a_cut_face_that_cannot_be_written_stops_nothing(people, run):
    fr.GALLERY.mkdir(parents=True)
    (fr.GALLERY / "detected_faces").write_text("no folder")
    assert "4 people are known from 8 photos" in run("people")[1]


def faces_worked_on(chain: fr.Chain) -> int:
    """Since this was last asked."""
    count = sum(len(faces) for faces in chain.recogniser.seen)
    chain.recogniser.seen.clear()
    return count


def test_the_gallery_follows_its_folder(people, chain, run):
    assert "4 people are known from 8 photos" in run("people")[1] and faces_worked_on(chain) == 8
    assert "4 people are known from 8 photos" in run("people")[1] and faces_worked_on(chain) == 0
    save_photo(fr.PEOPLE / "Dan" / "1.png", STRANGER)
    (fr.PEOPLE / "Ada" / "1.png").unlink()
    save_photo(fr.PEOPLE / "Ben" / "1.png", BEN + 3)
    (fr.PEOPLE / "Cleo").rename(fr.PEOPLE / "Cleopatra")
    output = run("people")[1]
    assert output.splitlines()[:5] == ["Ada: 1 photo", "Ben: 2 photos", "Cleopatra: 2 photos", "Dan: 1 photo",
                                       "渡辺: 2 photos"]  # fmt: skip
    assert faces_worked_on(chain) == 2, "only the new and the changed photo"
    probe = save_photo("probe.png", STRANGER, CLEO)
    assert names_of(recognized(run, probe)[1]["probe.png"]) == ["Dan", "Cleopatra"]


def test_other_models_make_the_embeddings_again(people, chain, run, monkeypatch):
    run("people")
    faces_worked_on(chain)
    other = fr.Chain(OneNumber(1.0), OneNumber(), chain.recogniser, chain.verifier)
    monkeypatch.setattr(fr, "load_chain", lambda *choices: other)
    assert run("people")[0] == 0 and faces_worked_on(chain) == 8
    assert run("people", "--rebuild")[0] == 0 and faces_worked_on(chain) == 8


def test_an_interrupted_build_goes_on(people, chain, run, monkeypatch):
    for number in range(40):
        save_photo(fr.PEOPLE / "Dan" / f"{number}.png", STRANGER, sides=(20 + number,))
    calls, embed = [], face_recognition.embed

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return embed(*arguments)

    monkeypatch.setattr(face_recognition, "embed", interrupted)
    status, _, error = run("people")
    assert status == 130 and "Traceback" not in error
    done = faces_worked_on(chain)
    assert 0 < done < 48
    status, output, _ = run("people")
    assert status == 0 and "Dan: 40 photos" in output and faces_worked_on(chain) == 48 - done


def damage_index() -> None:
    (fr.GALLERY / "gallery.json").write_text('{"embeddings": ')


def damage_array() -> None:
    [array] = fr.GALLERY.glob("embeddings-*.npy")
    array.write_bytes(array.read_bytes()[:-20])


def remove_array() -> None:
    [array] = fr.GALLERY.glob("embeddings-*.npy")
    array.unlink()


@pytest.mark.parametrize("damage", [damage_index, damage_array, remove_array])
def test_a_damaged_gallery_is_said_and_can_be_rebuilt(people, run, damage: Callable[[], None]):
    run("people")
    damage()
    photo = save_photo("photo.png", CLEO)
    before = sorted(fr.PEOPLE.rglob("*"))
    for command in (["people"], ["recognize", photo], ["interactive"], ["enroll", "Ada", photo], ["forget", "Ada"]):
        status, output, error = run(*command)
        assert status == 2 and is_one_sentence(error) and "--rebuild" in error and "result" not in output
    assert sorted(fr.PEOPLE.rglob("*")) == before, "nothing is enrolled or forgotten"
    assert run("people", "--rebuild")[0] == 0
    assert names_of(recognized(run, photo)[1]["photo.png"]) == ["Cleo"]


@pytest.mark.parametrize("option", ["--samples", "--gallery"])
def test_a_gallery_folder_that_is_a_file(people, run, option: str):
    photo = save_photo("photo.png", CLEO)
    status, _, error = run("recognize", photo, option, photo)
    assert status == 2 and is_one_sentence(error) and "photo.png" in error


@needs_fork
def test_two_processes_at_once(people):
    children = []
    for _ in range(2):
        process = os.fork()
        if not process:
            null = os.open(os.devnull, os.O_RDWR)
            for number in range(3):
                os.dup2(null, number)
            be_the_program(["people"])
        children.append(process)
    assert [exit_status(process) for process in children] == [0, 0]
    status, output, error = through_pipes(["people"])
    assert status == 0 and "4 people are known from 8 photos" in output, error


@needs_fork
@pytest.mark.parametrize("arguments", [["people"], ["recognize", "photo.png"], ["recognize", "photo.png", "--json"],
                                       []])  # fmt: skip
def test_nobody_reads_the_output(people, arguments: list[str]):
    """As `... | head -0` does."""
    save_photo("photo.png", ADA)
    status, _, error = through_pipes(arguments, b"photo.png\n" * 3, listen=False)
    assert status == 0 and "Broken" not in error and "Traceback" not in error


# ---------------------------------------------------------------- weights that are not there


@pytest.mark.parametrize("arguments", [[], ["recognize", "photo.png"], ["enroll", "Ada", "photo.png"], ["people"],
                                       ["evaluate", "--people", "people"]])  # fmt: skip
def test_missing_detector(tmp_path: Path, monkeypatch, run, arguments: list[str]):
    monkeypatch.chdir(tmp_path)
    save_photo("photo.png", ADA)
    status, output, error = run(*arguments)
    assert status == 2 and is_one_sentence(error) and output == ""
    assert error.startswith(f"error: {fr.DETECTOR} is missing") and not fr.PEOPLE.exists()


def test_forget_without_weights_keeps_the_photos(people, run, monkeypatch):
    """Otherwise photos would go and embeddings would stay."""
    run("people")

    def missing(*choices: object) -> fr.Chain:
        raise InputError("weights are missing.")

    monkeypatch.setattr(fr, "load_chain", missing)
    assert run("forget", "Ada")[0] == 2
    known = b'"Ada/1.png"' in (fr.GALLERY / "gallery.json").read_bytes()
    assert (fr.PEOPLE / "Ada").exists() == known


@pytest.mark.parametrize("option", ["--landmarker", "--recogniser", "--verifier"])
def test_other_missing_weights(tmp_path: Path, monkeypatch, run, option: str):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fr, "load_detector", lambda path, device: OneNumber())
    if option != "--landmarker":
        monkeypatch.setattr(face_landmark, "load_landmarker", lambda path, device: OneNumber())
    if option == "--verifier":
        monkeypatch.setattr(face_recognition, "load_recogniser", lambda path, device: GreyLevel())
    status, _, error = run("recognize", "photo.png", option, "nowhere.safetensors")
    assert status == 2 and is_one_sentence(error) and "nowhere.safetensors is missing" in error


# ---------------------------------------------------------------- evaluate --people


LEVELS = range(30, 255, 30)  # of eight people: 30, 60, ..., 240


@pytest.fixture
def eight_people(chain: fr.Chain) -> Path:
    """Four photos each; three are alike, the fourth is a little off."""
    for number, level in enumerate(LEVELS):
        for photo, change in enumerate((0, 1, -1, 6)):
            save_photo(f"people/person {number}/{photo}.png", level + change)
    return Path("people")


def measured(chain: fr.Chain, folder: Path, *options: str) -> dict:
    return fr.measure_people(chain, fr.parse(["evaluate", "--people", str(folder), "--enroll", "2", *options]))[0]


def test_a_perfect_recogniser(eight_people: Path, run):
    status, output, _ = run("evaluate", "--people", eight_people, "--enroll", "2", "--json", "--charts", "charts")
    report = json.loads(output)
    assert status == 0
    assert (report["rank1"], report["named_rightly"], report["strangers_named"]) == (1, 1, 0)
    assert report["photos_without_face"] == 0 and report["threshold"] == 0.5
    assert (report["people"], report["enrolled_photos"], report["probes"], report["strangers"]) == (4, 8, 8, 16)
    assert report["rank1_interval"] == report["named_rightly_interval"] == [1, 1]
    assert report["strangers_named_interval"] == report["photos_without_face_interval"] == [0, 0]
    with Image.open("charts/det.png") as chart:
        assert chart.format == "PNG"
    assert not fr.GALLERY.exists() and not fr.PEOPLE.exists(), "the user's gallery is another one"


def test_the_numbers_are_printed(eight_people: Path, run):
    status, output, _ = run("evaluate", "--people", eight_people, "--enroll", "2", "--charts", "charts")
    lines = {line.split()[0]: line.split()[1:] for line in output.splitlines()}
    assert status == 0 and lines["rank1"] == ["1.0000", "[1.0000,", "1.0000]"]
    assert lines["strangers_named"][0] == "0.0000" and "8 probes, 16 photos of strangers" in output
    assert "charts/det.png" in output


def test_a_recogniser_to_whom_all_faces_are_one(eight_people: Path, chain, monkeypatch):
    monkeypatch.setattr(chain.recogniser, "embedding_of", torch.zeros_like)
    report = measured(chain, eight_people)
    assert report["strangers_named"] == 1 and report["strangers_named_interval"] == [1, 1]
    assert report["rank1"] == report["named_rightly"] <= 0.5  # all probes get the same name


@pytest.mark.parametrize("options", [[], ["--threshold", "0"], ["--far", "0.001"]])
def test_a_recogniser_to_whom_no_face_is_like_another(eight_people: Path, chain, monkeypatch, options: list[str]):
    monkeypatch.setattr(chain.recogniser, "embedding_of", lambda levels: 1000 * levels)
    report = measured(chain, eight_people, *options)
    if "0" in options:
        assert report["named_rightly"] == report["rank1"] and report["strangers_named"] == 1
    else:
        assert (report["named_rightly"], report["strangers_named"]) == (0, 0)


def test_a_threshold_that_nobody_reaches(eight_people: Path, chain):
    report = measured(chain, eight_people, "--threshold", "1")
    assert (report["rank1"], report["named_rightly"], report["strangers_named"], report["threshold"]) == (1, 0, 0, 1)


def test_photos_without_a_face_are_misses(eight_people: Path, chain):
    for person in eight_people.iterdir():
        save_photo(person / "nobody.png")
    report = measured(chain, eight_people)
    assert report["photos_without_face"] == 1 / 5 and report["photos"] == 40
    assert (report["people"], report["probes"], report["strangers"]) == (4, 12, 20)
    assert report["rank1"] == report["named_rightly"] == pytest.approx(2 / 3) and report["strangers_named"] == 0
    report = measured(chain, eight_people, "--threshold", "0")
    assert report["named_rightly"] == pytest.approx(2 / 3), "what shows no face has no name"
    assert report["strangers_named"] == pytest.approx(4 / 5)


def test_photos_that_do_not_open_are_said_and_have_no_face(eight_people: Path, run):
    (eight_people / "person 0" / "9.png").write_text("no photo")
    status, output, error = run("evaluate", "--people", eight_people, "--enroll", "2", "--json", "--charts", "charts")
    assert status == 0 and "person 0/9.png is no photo" in error
    assert json.loads(output)["photos_without_face"] == pytest.approx(1 / 33)


def test_doubtful_faces_are_neither_named_nor_strangers_named(eight_people: Path, chain):
    for person in eight_people.iterdir():
        save_photo(person / "x.png", LEVELS[int(person.name[-1])] + 2, sides=(15,))
    enrolled_and_named = measured(chain, eight_people)
    assert enrolled_and_named["strangers_named"] == 0 and enrolled_and_named["photos_without_face"] == 0
    assert enrolled_and_named["named_rightly"] < 1


def test_the_same_seed_gives_the_same_report(eight_people: Path, chain):
    options = ["--threshold", "0.978"]  # so that the fourth photos fail
    report = measured(chain, eight_people, *options)
    low, high = report["named_rightly_interval"]
    assert 0 <= low < report["named_rightly"] < high <= 1 and report["rank1"] == 1
    assert measured(chain, eight_people, *options) == report
    others = [measured(chain, eight_people, *options, "--seed", str(seed)) for seed in range(1, 4)]
    assert any(other != report for other in others), "the seed chooses nothing"


def test_names_in_decomposed_unicode_are_names_like_others(eight_people: Path, chain):
    """As folders are that come from a Mac."""
    for number, person in enumerate(sorted(eight_people.iterdir())):
        person.rename(eight_people / unicodedata.normalize("NFD", f"Zoë {number}"))
    assert measured(chain, eight_people)["rank1"] == 1


def test_a_person_s_deeper_folders_are_theirs(eight_people: Path, chain):
    for person in eight_people.iterdir():
        (person / "old").mkdir()
        (person / "3.png").rename(person / "old" / "0.png")
    report = measured(chain, eight_people)
    assert (report["rank1"], report["people"], report["photos"]) == (1, 4, 32)


@pytest.mark.parametrize(("enroll", "said"), [("3", None), ("4", "has 0 people with more than 4 photos")])
def test_too_few_photos(eight_people: Path, run, enroll: str, said: str | None):
    status, _, error = run("evaluate", "--people", eight_people, "--enroll", enroll, "--charts", "charts")
    assert status == (2 if said else 0) and (said is None or is_one_sentence(error) and said in error)


def test_people_are_enrolled_at_the_usual_size_whatever_size_is_asked_for(eight_people: Path, chain, monkeypatch):
    sizes, see_faces = [], fr.see_faces

    def seen(chain: fr.Chain, photos: list, size: int | None = None) -> list:
        sizes.append(size)
        return see_faces(chain, photos, size)

    monkeypatch.setattr(fr, "see_faces", seen)
    usual = measured(chain, eight_people)
    sizes.clear()
    assert measured(chain, eight_people, "--size", "200") == usual
    assert sizes.count(200) == 4 and sizes.count(None) == 1  # 32 photos, and the 8 that are enrolled
    monkeypatch.setattr(fr, "see_faces", lambda chain, photos, size=None: see_faces(chain, photos if size else []))
    with pytest.raises(InputError, match="no photo that shows a face at the usual --size"):
        measured(chain, eight_people, "--size", "200")


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_people(chain, run, count: int):
    Path("people").mkdir()
    for number in range(3 * count):
        save_photo(f"people/Ada/{number}.png", ADA + number)
    status, _, error = run("evaluate", "--people", "people", "--enroll", "2", "--charts", "charts")
    expected = f"people has {count} people with more than 2" if count else "people holds no photos of people"
    assert status == 2 and is_one_sentence(error) and expected in error
    with pytest.raises(InputError):
        fr.measure_people(fr.load_chain(), Namespace(people=Path("nowhere"), max_pixels=1000, seed=0, enroll=2))


# ---------------------------------------------------------------- the DET chart


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list:
    """The figures that are saved."""
    saved, save = [], charts._save

    def remember(figure, path):
        saved.append(figure)
        save(figure, path)

    monkeypatch.setattr(charts, "_save", remember)
    return saved


def test_det_chart_shows_both_errors_at_every_threshold(tmp_path: Path, figures: list):
    probes, strangers = np.array([0.9, 0.8, 0.6, 0.0]), np.array([0.1, 0.2, 0.6, 0.85, 0.3])
    charts.det_chart(probes, strangers, 0.6, tmp_path / "det.png")
    [axes] = figures[0].axes
    curve, dot = axes.lines
    points = set(zip(curve.get_xdata().round(9).tolist(), curve.get_ydata().round(9).tolist()))
    for threshold in (0.0, 0.1, 0.2, 0.3, 0.6, 0.8, 0.85, 0.9):
        assert (round((strangers >= threshold).mean(), 9), round((probes < threshold).mean(), 9)) in points
    assert (dot.get_xdata()[0], dot.get_ydata()[0]) == (pytest.approx(2 / 5), pytest.approx(1 / 4))
    assert "40.0% of strangers named, 25.0% of probes missed" in dot.get_label()
    with Image.open(tmp_path / "det.png") as picture:
        assert picture.format == "PNG"


@pytest.mark.parametrize(("probes", "strangers"), [([1.0], [0.0]), ([0.0], [1.0]), ([0.5] * 3, [0.5] * 3)])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0, 2.0])
def test_det_chart_of_extremes(tmp_path: Path, figures: list, probes: list, strangers: list, threshold: float):
    charts.det_chart(np.array(probes), np.array(strangers), threshold, tmp_path / "det.png")
    dot = figures[0].axes[0].lines[1]
    assert dot.get_xdata()[0] == np.mean(np.array(strangers) >= threshold)
    assert dot.get_ydata()[0] == np.mean(np.array(probes) < threshold)


# ---------------------------------------------------------------- with the shipped weights



def recognized_by_the_shipped(run, tmp_path: Path, monkeypatch, *paths: str | Path) -> list[dict]:
    monkeypatch.chdir(REPOSITORY)
    status, output, error = run("recognize", "--json", "--gallery", tmp_path / "gallery", *paths)
    assert status == 0, error
    return json.loads(output)


def test_everybody_in_the_shipped_group_photo_is_named_rightly(tmp_path: Path, monkeypatch, run):
    true = json.loads((REPOSITORY / "dataset/group_photo.json").read_text(encoding="utf-8"))
    [result] = recognized_by_the_shipped(run, tmp_path, monkeypatch, "dataset/group_photo.jpg")
    named = {face["name"]: face["box"] for face in result["faces"] if face["name"]}
    assert sorted(named) == sorted(person["name"] for person in true if person["name"])
    for person in (person for person in true if person["name"]):
        x0, y0, x1, y1 = named[person["name"]]
        middle_x, middle_y = np.mean(person["box"][0::2]), np.mean(person["box"][1::2])
        assert x0 < middle_x < x1 and y0 < middle_y < y1, f"{person['name']} is another one"


def test_grace_hopper_is_a_stranger_until_a_darker_mirrored_copy_is_enrolled(tmp_path: Path, monkeypatch, run):
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        photo = Image.open(file).convert("RGB")
    photo.save(tmp_path / "photo.png")
    shutil.copytree(REPOSITORY / fr.PEOPLE, tmp_path / "people")
    there = "--samples", tmp_path / "people"
    [before] = recognized_by_the_shipped(run, tmp_path, monkeypatch, tmp_path / "photo.png", *there)
    assert names_of(before) == [None]
    ImageOps.mirror(photo).point(lambda value: value * 0.6).save(tmp_path / "darker.png")
    status, _, error = run("enroll", "Grace Hopper", tmp_path / "darker.png", *there, "--gallery", tmp_path / "gallery")
    assert status == 0, error
    [after] = recognized_by_the_shipped(run, tmp_path, monkeypatch, tmp_path / "photo.png", *there)
    assert names_of(after) == ["Grace Hopper"]


def test_the_lines_of_python_in_the_readme(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(fr, "GALLERY", tmp_path)
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    [lines] = [block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "load_chain" in block]
    lines = lines.replace("open_gallery(chain)", f"open_gallery(chain, saved={str(tmp_path)!r})")
    exec(lines.replace('"photo.jpg"', '"dataset/group_photo.jpg"'), {})
    assert re.match(r"[A-Z][a-z]+ 0\.9\d+ \[", capsys.readouterr().out)


def test_drawn_strangers_are_unknown(tmp_path: Path, monkeypatch, run):
    for number in range(900, 906):
        Image.fromarray(draw_face(make_person(number), 1, 320, zoom=0.5).pixels).save(tmp_path / f"{number}.png")
    results = recognized_by_the_shipped(run, tmp_path, monkeypatch, *sorted(tmp_path.glob("*.png")))
    assert [names_of(result) for result in results] == [[None]] * 6
