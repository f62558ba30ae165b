"""From five landmarks to the crop of a face: three ways to place the crop, and the one warp that cuts it out.

Coordinates are pixels, x to the right and y down, of the picture after EXIF rotation. They are continuous: the
centre of the top-left pixel is (0.5, 0.5) and x from 0 to width spans the picture, as for face boxes. Landmarks
are (5, 2): left eye, right eye, nose tip, left and right mouth corner; left and right are the viewer's.

A matrix (2, 3), float64, maps a point of the photo to a point of the crop: crop = matrix[:, :2] @ photo + matrix[:, 2].
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import conv2d, grid_sample

from facekit.files import InputError

# Where the landmarks lie in a crop whose side is 1. The eyes are chosen; nose and mouth follow from the template of
# ArcFace (112 x 112: eyes (38.2946, 51.6963) (73.5318, 51.5014), nose (56.0252, 71.7366), mouth (41.5493, 92.3655)
# (70.7299, 92.2041)), made symmetric about the line between the eyes and scaled by 0.34 / 35.2372 (distances of
# the eyes).
TEMPLATE = np.array([(0.31, 0.46), (0.65, 0.46), (0.48, 0.6543), (0.3392, 0.8526), (0.6208, 0.8526)])

MAX_SAMPLES = 16  # along each side of a crop pixel: every pixel of a face 16 times as large as its crop counts


def region(landmarks: np.ndarray, size: int) -> np.ndarray:
    """The upright square around the landmarks, of side 3 times the larger of their width and height.

    The reference finds the landmarks again in this crop, three times in all; so does the chain with --align region.
    InputError when the landmarks are not (5, 2) finite numbers or coincide.
    """
    points = _checked(landmarks)
    low, high = points.min(axis=0), points.max(axis=0)
    return _square((low + high) / 2, 3 * (high - low).max(), size)


def box_region(box: Sequence[float], size: int, scale: float = 1.2) -> np.ndarray:
    """The upright square around a face box (x0, y0, x1, y1), of side `scale` times the box's longer side.

    At 1.2 the square is on average as large as that of `region` (measured on drawn faces).
    InputError when the box is empty or not finite.
    """
    box = np.asarray(box, dtype=np.float64)
    if box.shape != (4,) or not np.isfinite(box).all() or not (box[2:] > box[:2]).all():
        raise InputError(f"The face box {box.tolist()} is no rectangle: give finite x0 < x1 and y0 < y1.")
    return _square((box[:2] + box[2:]) / 2, scale * (box[2:] - box[:2]).max(), size)


def similarity(landmarks: np.ndarray, size: int) -> np.ndarray:
    """Rotation, uniform scale and shift that bring the landmarks nearest to the template (least squares).

    Umeyama, "Least-squares estimation of transformation parameters between two point patterns", 1991. In the
    plane its solution without reflection is one linear regression of complex numbers x + iy: a factor (rotation
    and scale) and a shift. InputError when the landmarks are not (5, 2) finite numbers or fit in no way.
    """
    source = _checked(landmarks) @ (1, 1j)  # (5,) complex
    target = size * TEMPLATE @ (1, 1j)
    centred = source - source.mean()
    factor = np.vdot(centred, target) / np.vdot(centred, centred).real
    if abs(factor) < 1e-9:
        raise InputError("The landmarks do not lie like those of a face: find them again or leave this face out.")
    shift = target.mean() - factor * source.mean()
    return np.array([[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]])


def affine(landmarks: np.ndarray, size: int) -> np.ndarray:
    """The affine map that brings both eyes and the nose tip exactly to their places in the template.

    InputError when the landmarks are not (5, 2) finite numbers or these three lie on one line.
    """
    points = _checked(landmarks)[:3]
    (across_x, across_y), (down_x, down_y) = points[1] - points[0], points[2] - points[0]
    doubled_area = abs(across_x * down_y - across_y * down_x)
    if doubled_area <= 1e-3 * np.ptp(points, axis=0).max() ** 2:
        raise InputError("Eyes and nose tip lie on one line: find the landmarks again or leave this face out.")
    return np.linalg.solve(np.column_stack([points, np.ones(3)]), size * TEMPLATE[:3]).T


def _checked(landmarks: np.ndarray) -> np.ndarray:
    points = np.asarray(landmarks, dtype=np.float64)
    if points.shape != (5, 2) or not np.isfinite(points).all():
        raise InputError("The landmarks are not five finite points: find them again or leave this face out.")
    if np.ptp(points, axis=0).max() < 1e-3:  # pixels
        raise InputError("The five landmarks coincide: find them again or leave this face out.")
    return points


def _square(center: np.ndarray, side: float, size: int) -> np.ndarray:
    scale = size / side
    x, y = size / 2 - scale * center
    return np.array([[scale, 0, x], [0, scale, y]])


def invert(matrix: np.ndarray) -> np.ndarray:
    """The matrix (2, 3) that maps back. InputError when there is none."""
    if not np.isfinite(matrix).all() or np.linalg.matrix_rank(matrix[:, :2]) < 2:
        raise InputError("The crop of a face is squeezed to a line or not finite: leave this face out.")
    linear = np.linalg.inv(matrix[:, :2])
    return np.column_stack([linear, -linear @ matrix[:, 2]])


def transform_points(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Maps points (..., 2) by a matrix (2, 3)."""
    return np.asarray(points) @ matrix[:, :2].T + matrix[:, 2]


def warp(photo: Image.Image | np.ndarray, matrix: np.ndarray, size: int, color: bool = False) -> np.ndarray:
    """Cuts out a face, in one warp from the photo's own pixels.

    photo   upright, as open_photo gives it: an RGB picture, or uint8 (H, W, 3).
    matrix  (2, 3), from pixels of the photo to pixels of the crop.
    Returns uint8 (C, size, size), C = 3 with `color`, else 1. InputError when the matrix cannot be inverted.

    Grey levels as in face_pixels (ITU-R 601), and so is the filter: bilinear where the crop enlarges, widened to a
    triangle of two crop pixels where it shrinks (antialiasing). Beyond the photo its edge is repeated.
    """
    photo, to_photo = Image.fromarray(photo) if isinstance(photo, np.ndarray) else photo, invert(matrix)
    # Samples lie 1 / samples of a crop pixel apart, about one pixel of the photo, and reach one crop pixel beyond
    # the crop's outermost pixel centres, as far as the filter does.
    shrinks = np.linalg.norm(to_photo[:, :2], ord=2)  # photo pixels per crop pixel, where they are most
    samples = min(max(math.ceil(shrinks - 1e-6), 1), MAX_SAMPLES)
    along = 0.5 + np.arange(1 - samples, size * samples) / samples  # (S,), S = (size + 1) * samples - 1
    corners = transform_points(to_photo, [(x, y) for x in along[[0, -1]] for y in along[[0, -1]]])
    pixels, corner = _cut(photo, corners.min(axis=0), corners.max(axis=0), color)  # (C, H, W)

    scale = 2 / np.array(pixels.shape[:0:-1])  # grid_sample counts from -1 to 1
    (xx, xy, x), (yx, yy, y) = (np.column_stack([to_photo[:, :2], to_photo[:, 2] - corner]) * scale[:, None]).tolist()
    along = torch.from_numpy(along)
    grid_x = (xx * along + x - 1).float() + (xy * along).float()[:, None]
    grid_y = (yx * along + y - 1).float() + (yy * along).float()[:, None]
    grid = torch.stack([grid_x, grid_y], dim=-1)[None]  # (1, S, S, 2)
    sampled = grid_sample(pixels[None], grid, padding_mode="border", align_corners=False)  # (1, C, S, S)

    triangle = 1 - torch.arange(1 - samples, samples).abs() / samples
    kernel = torch.outer(triangle, triangle)[None, None] / samples**2
    crop = conv2d(sampled[0, :, None], kernel, stride=samples)[:, 0]  # (C, size, size)
    return (crop + 0.5).clamp(0, 255).byte().numpy()  # halves up, as Pillow


def _cut(photo: Image.Image, low: np.ndarray, high: np.ndarray, color: bool) -> tuple[torch.Tensor, np.ndarray]:
    """The part of the photo between two points, and a pixel around it: 0..255 (C, H, W), and its top-left corner.

    At least one pixel, the nearest, even when all lies beyond the photo.
    """
    left, top = np.clip(np.floor(low) - 1, 0, np.array(photo.size) - 1).astype(int).tolist()
    right, bottom = np.clip(np.ceil(high) + 1, (left + 1, top + 1), photo.size).astype(int).tolist()
    # EXTENT at scale 1 is a crop, without the pixel limit that Pillow's crop() has.
    part = photo.transform((right - left, bottom - top), Image.Transform.EXTENT, (left, top, right, bottom))
    pixels = np.atleast_3d(np.asarray(part.convert("RGB" if color else "L"), dtype=np.float32))
    return torch.from_numpy(pixels.transpose(2, 0, 1)), np.array((left, top))
