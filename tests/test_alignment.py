"""Crops of faces: every matrix against points computed by hand or in another way, the warp pixel by pixel."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import cbook
from PIL import Image

from facekit.alignment import (
    TEMPLATE,
    affine,
    box_region,
    invert,
    region,
    similarity,
    transform_points,
    warp,
)
from facekit.files import InputError
from facekit.images import face_pixels, open_photo
from facekit.synthetic import draw_face, make_person

WAYS = {"region": region, "similarity": similarity, "affine": affine}
FACE = np.array([(100, 100), (140, 100), (120, 125), (105, 150), (135, 150)], dtype=float)  # upright, by hand
MIRRORED = [1, 0, 2, 4, 3]  # the order of the landmarks of a mirrored face
IDENTITY = np.array([[1.0, 0, 0], [0, 1, 0]])


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def warp_one(photo, matrix, size: int, color: bool = True) -> np.ndarray:
    """(size, size, C), as integers that can be subtracted."""
    return warp(photo, np.array(matrix, dtype=float), size, color).transpose(1, 2, 0).astype(int)


def turned(points: np.ndarray, degrees: float, scale: float = 1.0, shift=(0.0, 0.0)) -> np.ndarray:
    angle = np.radians(degrees)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return scale * points @ rotation.T + shift


faces = st.builds(
    lambda wobble, degrees, scale, x, y: turned(FACE + wobble, degrees, scale, (x, y)),
    st.lists(st.tuples(st.floats(-8, 8), st.floats(-8, 8)), min_size=5, max_size=5).map(np.array),
    st.floats(-180, 180),
    st.floats(0.2, 20),
    st.floats(-500, 500),
    st.floats(-500, 500),
)


# The matrices ------------------------------------------------------------------------------------------------------


def test_region_by_hand():
    # 40 wide, 50 high, centre (120, 125): a square of side 150 from (45, 50) to (195, 200).
    matrix = region(FACE, 75)
    assert (matrix.shape, matrix.dtype) == ((2, 3), np.float64)
    np.testing.assert_allclose(matrix, [[0.5, 0, -22.5], [0, 0.5, -25]])
    corners = transform_points(matrix, [(45, 50), (195, 200), (120, 125)])
    np.testing.assert_allclose(corners, [(0, 0), (75, 75), (37.5, 37.5)])


def test_box_region_by_hand():
    # 100 wide, 80 high, centre (60, 60), twice as large: from (-40, -40) to (160, 160).
    matrix = box_region((10, 20, 110, 100), 100, scale=2)
    np.testing.assert_allclose(transform_points(matrix, [(-40, -40), (160, 160)]), [(0, 0), (100, 100)], atol=1e-9)


def test_box_region_is_about_as_large_as_region():
    drawn = [draw_face(make_person(identity), 1, size=64, zoom=0.6) for identity in range(12)]
    ratios = [region(one.landmarks, 80)[0, 0] / box_region(one.box, 80)[0, 0] for one in drawn]
    assert np.mean(ratios) == pytest.approx(1, abs=0.1)


def test_template_is_arcface_in_our_place():
    arcface = np.array([
        (38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041),
    ])  # fmt: skip
    centred = arcface - arcface[:2].mean(axis=0)
    symmetric = (centred + centred[MIRRORED] * (-1, 1)) / 2
    scale = 0.34 / (symmetric[1, 0] - symmetric[0, 0])
    expected = scale * symmetric + (0.48, 0.46)
    np.testing.assert_allclose(TEMPLATE, expected, atol=6e-5)


@pytest.mark.parametrize("way", ["similarity", "affine"])
def test_template_is_hit_from_every_side(way):
    """A quarter turn, three times as large, shifted: (x, y) -> (-3 y + 400, 3 x + 20)."""
    x, y = (100 * TEMPLATE).T
    photo = np.stack([-3 * y + 400, 3 * x + 20], axis=1)
    matrix = WAYS[way](photo, 100)
    np.testing.assert_allclose(matrix, [[0, 1 / 3, -20 / 3], [-1 / 3, 0, 400 / 3]], atol=1e-9)
    np.testing.assert_allclose(transform_points(matrix, photo), 100 * TEMPLATE, atol=1e-9)


@given(faces)
@settings(deadline=None, max_examples=60)
def test_similarity_is_the_least_squares_solution(landmarks):
    """Brute force: a, b, x, y of (a X - b Y + x, b X + a Y + y) from ten linear equations."""
    x, y = landmarks.T
    one, zero = np.ones(5), np.zeros(5)
    equations = np.concatenate([np.stack([x, -y, one, zero], axis=1), np.stack([y, x, zero, one], axis=1)])
    a, b, shift_x, shift_y = np.linalg.lstsq(equations, 80 * TEMPLATE.T.ravel(), rcond=None)[0]
    np.testing.assert_allclose(similarity(landmarks, 80), [[a, -b, shift_x], [b, a, shift_y]], atol=1e-6)


@given(faces)
@settings(deadline=None, max_examples=60)
def test_similarity_never_reflects(landmarks):
    reflected = landmarks * (-1, 1)  # left and right not swapped
    for points in (landmarks, reflected):
        linear = similarity(points, 80)[:, :2]
        scale = np.sqrt(np.linalg.det(linear))
        assert scale > 0
        np.testing.assert_allclose(linear @ linear.T, scale**2 * np.eye(2), atol=1e-9 + 1e-9 * scale**2)


@given(faces)
@settings(deadline=None, max_examples=60)
def test_affine_hits_eyes_and_nose_and_affine_images_of_faces_give_the_same_crop(landmarks):
    matrix = affine(landmarks, 80)
    np.testing.assert_allclose(transform_points(matrix, landmarks[:3]), 80 * TEMPLATE[:3], atol=1e-6)
    sheared = landmarks @ np.array([[1.3, 0.2], [-0.4, 0.8]]) + (7, -9)
    crop = transform_points(affine(sheared, 80), sheared)
    np.testing.assert_allclose(crop, transform_points(matrix, landmarks), atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
@given(landmarks=faces)
@settings(deadline=None, max_examples=40)
def test_invert_maps_back(way, landmarks):
    matrix = WAYS[way](landmarks, 80)
    points = np.random.default_rng(0).uniform(-1000, 1000, (7, 3, 2))
    there = transform_points(matrix, points)
    assert there.shape == points.shape
    np.testing.assert_allclose(transform_points(invert(matrix), there), points, atol=1e-6)
    np.testing.assert_allclose(invert(invert(matrix)), matrix, atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_crops_scale_with_their_size(way):
    landmarks = FACE + [[1], [4], [0], [2], [9]]
    np.testing.assert_allclose(WAYS[way](landmarks, 160), 2 * WAYS[way](landmarks, 80))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("landmarks", [
    np.full((5, 2), 7.0), np.zeros((5, 2)), FACE[:4], FACE.ravel(), np.full((5, 2), np.nan), FACE * [[np.inf, 1]],
])  # fmt: skip
def test_landmarks_that_are_no_face(way, landmarks):
    with pytest.raises(InputError, match="landmarks"):
        WAYS[way](landmarks, 80)


def test_eyes_and_nose_on_a_line():
    collinear = np.array([(0, 0), (10, 20), (5, 10), (3, 30), (20, 31)], dtype=float)
    with pytest.raises(InputError, match="on one line"):
        affine(collinear, 80)
    with pytest.raises(InputError, match="on one line"):
        affine(np.array([(5, 5), (5, 5), (8, 9), (3, 30), (20, 31)]), 80)
    assert np.isfinite(similarity(collinear, 80)).all()


def test_landmarks_without_any_similarity():
    """Points made orthogonal to the template: no rotation and no scale brings them nearer to it."""
    u, v = (TEMPLATE - TEMPLATE.mean(axis=0)).T
    complex_template = u + 1j * v
    landmarks = np.ones(5) * 1j + np.arange(5)
    landmarks -= landmarks.mean()
    landmarks -= complex_template * np.vdot(complex_template, landmarks) / np.vdot(complex_template, complex_template)
    with pytest.raises(InputError, match="do not lie like those of a face"):
        similarity(np.stack([landmarks.real, landmarks.imag], axis=1), 80)


@pytest.mark.parametrize("box", [(5, 5, 5, 9), (9, 5, 5, 9), (0, 0, np.nan, 9), (0, 0, np.inf, 9), (1, 2, 3)])
def test_boxes_that_are_none(box):
    with pytest.raises(InputError, match="face box"):
        box_region(box, 80)


@pytest.mark.parametrize("matrix", [np.zeros((2, 3)), [[1, 2, 0], [2, 4, 1]], np.full((2, 3), np.nan)])
def test_matrices_without_inverse(matrix):
    with pytest.raises(InputError, match="leave this face out"):
        invert(np.array(matrix, dtype=float))


# The warp ----------------------------------------------------------------------------------------------------------


def test_identity_gives_the_same_pixels():
    photo = noise(32, 32)
    assert (warp_one(photo, IDENTITY, 32) == photo).all()
    grey = np.asarray(Image.fromarray(photo).convert("L"))
    assert (warp_one(photo, IDENTITY, 32, color=False)[:, :, 0] == grey).all()


@pytest.mark.parametrize("shape", [(40, 50), (3000, 4000)])
def test_shift_by_whole_pixels_gives_the_same_pixels(shape):
    photo = noise(*shape)
    top, left = shape[0] - 35, shape[1] - 33
    assert (warp_one(photo, [[1, 0, -left], [0, 1, -top]], 32) == photo[top:top + 32, left:left + 32]).all()


def test_shift_by_half_a_pixel_is_the_average_of_neighbours():
    photo = noise(20, 20).astype(int)
    pixels = warp_one(photo.astype(np.uint8), [[1, 0, -2.5], [0, 1, -3]], 16)
    assert np.abs(pixels - (photo[3:19, 2:18] + photo[3:19, 3:19]) / 2).max() < 0.51


def test_enlarged_ramp_is_sub_pixel_accurate():
    """The pixel centre x + 0.5 has the level 10 x; three times enlarged and shifted it is a ramp of 10 / 3."""
    photo = np.repeat(np.tile(np.arange(24, dtype=np.uint8) * 10, (24, 1))[:, :, None], 3, axis=2)
    pixels = warp_one(photo, [[3, 0, -15.6], [0, 3, -9]], 30)[:, :, 0]
    expected = 10 * ((np.arange(30) + 0.5 + 15.6) / 3 - 0.5)
    assert np.abs(pixels - expected).max() < 0.51


def test_quarter_turns_equal_rot90():
    photo = noise(24, 24)
    assert (warp_one(photo, [[0, 1, 0], [-1, 0, 24]], 24) == np.rot90(photo)).all()
    assert (warp_one(photo, [[0, -1, 24], [1, 0, 0]], 24) == np.rot90(photo, -1)).all()
    assert (warp_one(photo, [[-1, 0, 24], [0, -1, 24]], 24) == np.rot90(photo, 2)).all()


def test_quarter_turn_while_shrinking():
    photo = noise(96, 96)
    upright = warp_one(photo, [[1 / 3, 0, 0], [0, 1 / 3, 0]], 32)
    assert (warp_one(photo, [[0, 1 / 3, 0], [-1 / 3, 0, 32]], 32) == np.rot90(upright)).all()


@pytest.mark.parametrize("x, y", [(10, 7), (-12, -9), (100, -3), (-99, 99)])
def test_edges_are_repeated(x, y):
    photo = noise(16, 16)
    padded = np.pad(photo, ((100, 100), (100, 100), (0, 0)), mode="edge")
    expected = padded[100 - y:116 - y, 100 - x:116 - x]
    assert (warp_one(photo, [[1, 0, x], [0, 1, y]], 16) == expected).all()


def test_checkerboard_shrinks_to_grey():
    board = np.indices((240, 240)).sum(axis=0) % 2 * 255
    photo = np.repeat(board.astype(np.uint8)[:, :, None], 3, axis=2)
    for scale in (3, 2.6, 7.3):
        for matrix in ([[1 / scale, 0, 0], [0, 1 / scale, 0]], np.c_[turned(np.eye(2), 30) / scale, (0, 0)]):
            pixels = warp_one(photo, matrix, 32)[1:20, 1:20]
            inside = transform_points(invert(np.array(matrix, dtype=float)), np.indices((19, 19)).T + 1.5)
            known = ((inside > 20) & (inside < 220)).all(axis=2)
            assert known.sum() > 60
            assert np.abs(pixels[known] - 127.5).max() < 12


def test_shrinking_one_direction_only_is_antialiased():
    photo = np.zeros((32, 160, 3), np.uint8)
    photo[:, ::2] = 255
    assert np.abs(warp_one(photo, [[0.2, 0, 0], [0, 1, 0]], 32)[:, 1:-1] - 127.5).max() < 8


def smooth_photo(side: int) -> Image.Image:
    return Image.fromarray(noise(5, 5)).resize((side, side), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("color", [False, True])
@pytest.mark.parametrize("side", [40, 80, 97, 160, 250, 400, 1500])
def test_whole_photo_agrees_with_face_pixels(side, color):
    def difference(photo: Image.Image) -> np.ndarray:
        matrix = [[80 / side, 0, 0], [0, 80 / side, 0]]
        return warp_one(photo, matrix, 80, color) - face_pixels(photo, 80, color=color).transpose(1, 2, 0)

    smooth, noisy = difference(smooth_photo(side)), difference(Image.fromarray(noise(side, side)))
    assert np.abs(smooth).max() <= 2
    assert abs(smooth.mean()) < 0.26  # Pillow rounds up twice
    # Bilinear samples between the pixels of white noise blur it; most where the crop is hardly smaller.
    assert np.abs(noisy).mean() <= (7.5 if 80 < side < 160 else 1.2)
    assert abs(noisy.mean()) < 0.26


def test_real_photo_agrees_with_face_pixels():
    photo = open_photo(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)).crop((0, 0, 512, 512))
    difference = warp_one(photo, [[80 / 512, 0, 0], [0, 80 / 512, 0]], 80, color=False)[:, :, 0] - face_pixels(photo)[0]
    assert np.abs(difference[1:-1, 1:-1]).max() <= 2  # at the edge, Pillow's filter leaves out what is beyond
    assert np.abs(difference).mean() < 0.5


def test_mirrored_photo_gives_the_mirrored_crop():
    """At size 100 the template's axis, 0.48, lies 2 pixels beside the middle: 4 between the two crops."""
    drawn = draw_face(make_person(3), 1, size=200, zoom=0.6)
    mirrored = np.column_stack([200 - drawn.landmarks[:, 0], drawn.landmarks[:, 1]])[MIRRORED]
    crop = warp_one(drawn.pixels, similarity(drawn.landmarks, 100), 100)
    mirrored_crop = warp_one(np.ascontiguousarray(drawn.pixels[:, ::-1]), similarity(mirrored, 100), 100)
    assert np.abs(crop[:, :96][:, ::-1] - mirrored_crop[:, :96]).max() <= 1
    assert crop.std() > 20


def test_landmarks_move_with_the_pixels():
    """Five white dots in the photo are found in the crop where the matrix says."""
    photo = np.zeros((300, 400, 3), np.uint8)
    landmarks = np.array([(150.5, 120.5), (210.5, 110.5), (185.5, 150.5), (160.5, 190.5), (215.5, 180.5)])
    for x, y in landmarks.astype(int):
        photo[y - 2:y + 3, x - 2:x + 3] = 255
    for way in (region, similarity, affine):
        matrix = way(landmarks, 160)
        crop = warp_one(photo, matrix, 160)[:, :, 0]
        for x, y in transform_points(matrix, landmarks):
            rows, columns = np.mgrid[int(y) - 7:int(y) + 8, int(x) - 7:int(x) + 8]
            light = crop[rows, columns]
            found = (light * (columns + 0.5)).sum() / light.sum(), (light * (rows + 0.5)).sum() / light.sum()
            np.testing.assert_allclose(found, (x, y), atol=0.15)


def test_arrays_and_pictures_give_the_same_crop():
    photo, matrix = noise(120, 160), similarity(FACE / 2, 48)
    crop = warp(photo, matrix, 48)
    assert (crop.shape, crop.dtype) == ((1, 48, 48), np.uint8)
    assert (crop == warp(Image.fromarray(photo), matrix, 48)).all()
    assert warp(photo, matrix, 48, color=True).shape == (3, 48, 48)


def test_tiny_photo_and_huge_face():
    photo = np.full((1, 1, 3), 77, np.uint8)
    assert (warp_one(photo, region(FACE, 32), 32) == 77).all()
    assert (warp_one(noise(50, 50) * 0 + 9, region(FACE * 1e5, 32), 32) == 9).all()
