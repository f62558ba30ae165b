"""Five landmarks of a face, trained from scratch: both eyes, the nose tip and the corners of the mouth.

    python3 face_landmark.py prepare       marked faces -> data/landmarks/: greyscale pictures, points, split
    python3 face_landmark.py train         -> weights/landmark.safetensors
    python3 face_landmark.py evaluate      errors, curve and worst faces, of people that nothing was trained on
    python3 face_landmark.py detect PATH   the five points of a face, in pixels of the photo

prepare takes the data sets under dataset/, any folder with marked faces (--data), or draws faces.

The model sees a square around a face, 96x96 pixels, greyscale, and answers with ten numbers: x and y of the left eye,
the right eye, the nose tip, the left and the right mouth corner (left as the viewer sees it), from -1 to 1. In use it
looks twice: the points of the first look turn the face upright and place the square of the second.

`train --reference` is ResNet18 with a mean squared error. The default is a network of 1.1 M weights that points at the
landmarks on heat maps, a loss that is the distance itself, and squares of which most are nearly those of the second
look. After 17 minutes of training on 11,791 real faces, on two cores, it has an NME of 5.2 % on faces of other people,
and the reference one of 14.7 %. What was tried beside that is in weights/MODEL_CARD.md.

Published weights: these of 17 minutes. On faces of people not trained on, the mean error is 1.1 % of the picture's
width (the reference publishes 4.7 % on its data), and 3.2 % of the faces fail (NME above 10 %). Squares that are up to
15 % off-centre and 25 % too large or small change nothing.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import facekit.quick_start  # noqa: F401, before torchvision

# isort: split
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.models import resnet18

from facekit import alignment, charts, commands, drawing, landmarks, metrics, synthetic, training
from facekit.files import InputError, free_name
from facekit.images import MAX_PIXELS, contact_sheet, open_photo, photos_in, pictures_below
from facekit.landmarks import MIRRORED, PACKED_SIZE, POINTS

IMAGE_SIZE = 96  # the model sees 96x96 pixels, greyscale, values 0..1
LOOKS = 2  # in use: the second is at the face as the points of the first turn it upright and cut it out
FAILURE = 0.10  # a face with a larger NME counts as failed
DRAWN_PEOPLE = 1500
PHOTOS_AT_ONCE = 16  # that are open: one of 12 megapixels takes 48 MB

PREPARED = Path("data/landmarks")
WEIGHTS = Path("weights/landmark.safetensors")


@dataclass(frozen=True)
class Settings:
    """The choices of a training; they are saved with the weights."""

    reference: bool = False
    epochs: int = 60
    batch_size: int = 64
    learning_rate: float = 2e-3  # at its highest: it rises over the first 5 % of the training, then falls to 1 %
    weight_decay: float = 0.05
    seed: int = 0


REFERENCE = Settings(reference=True, epochs=100, batch_size=128, learning_rate=1e-3, weight_decay=0.0)


# ---------------------------------------------------------------- data


def augment(images: Tensor, points: Tensor, generator: torch.Generator, reference: bool) -> tuple[Tensor, Tensor]:
    """Packed pictures (B, 1, 128, 128) uint8 and points (B, 5, 2), -1..1 -> faces (B, 1, 96, 96) and their points.

    A new square is laid over each face: turned, larger or smaller, shifted, every second one mirrored; with `reference`
    over each picture, and not mirrored. What lies outside of the picture shows another face of the batch, or the
    picture's edge repeated. The random numbers come from the CPU, so they are the same on every device.
    """
    count, device = len(images), images.device

    def uniform(low: float, high: float) -> Tensor:
        return (torch.rand(count, 1, 1, generator=generator) * (high - low) + low).to(device)

    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    if reference:  # the picture at 0.3 to 1 times its size
        square = torch.eye(2, 3, device=device).expand(count, 2, 3)
        angle, zoom, reach, mirror = uniform(-18, 18), 1 / uniform(0.3, 1), 0.4, mirror.abs()
    else:  # more than half of the squares nearly as the last look has them, the others as the first may
        near = uniform(0, 1) < 0.6
        square = torch.where(near, upright_square(points), region_square(points))
        angle = uniform(-30, 30) * torch.where(near, 0.4, 1.0)
        zoom = torch.where(near, uniform(-0.16, 0.16).exp(), 0.7 * 4.5 ** uniform(0, 1).square())
        reach = torch.where(near, 0.1, 0.4)
    angle = angle.deg2rad()
    turn = torch.cat([torch.cat([angle.cos(), -angle.sin()], 2), torch.cat([angle.sin(), angle.cos()], 2)], 1)
    shift = torch.cat([uniform(-1, 1), uniform(-1, 1)], dim=1) * reach * zoom  # (B, 2, 1)
    linear = square[:, :, :2] @ turn * zoom * torch.cat([mirror, torch.ones_like(mirror)], dim=2)  # (B, 2, 2)
    center = square[:, :, :2] @ shift + square[:, :, 2:]  # (B, 2, 1)
    theta = torch.cat([linear, center], dim=2)  # (B, 2, 3), from the new square to the picture
    grid = F.affine_grid(theta, [count, 1, IMAGE_SIZE, IMAGE_SIZE], align_corners=False)
    pictures = images.float() / 255
    faces = F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    other = F.grid_sample(pictures.roll(1, 0), grid * 0.5, padding_mode="border", align_corners=False)
    outside = (grid.abs() > 1).any(3)[:, None] & (uniform(0, 1) < 0.5)[:, :, :, None]
    faces = torch.where(outside, other, faces)

    points = torch.linalg.solve(linear, points.transpose(1, 2) - center).transpose(1, 2)
    points = torch.where(mirror < 0, points[:, MIRRORED], points)
    return faces if reference else vary_light(faces, generator), points


def region_square(points: Tensor) -> Tensor:
    """The reference's square around points (B, 5, 2), NaN where missing, as a map from it to the picture (B, 2, 3).

    As alignment.region, on the device: the side is 3 times the larger of the points' width and height.
    """
    low = points.nan_to_num(math.inf).amin(1)  # (B, 2)
    high = points.nan_to_num(-math.inf).amax(1)
    half = (1.5 * (high - low).amax(1)).clamp(min=0.2)  # (B,)
    return torch.cat([half[:, None, None] * torch.eye(2, device=points.device), ((low + high) / 2)[:, :, None]], dim=2)


def upright_square(points: Tensor) -> Tensor:
    """The square in which a face with points (B, 5, 2) is upright, as a map from it to the picture (B, 2, 3).

    As alignment.similarity, on the device, with the points that are marked; `region_square` where they tell too little.
    """
    weight = (~points.isnan().any(2)).float()  # (B, 5)
    weight = weight / weight.sum(1, keepdim=True).clamp(min=1)
    x_y = points.nan_to_num().contiguous()
    source = torch.view_as_complex(x_y)  # (B, 5)
    target = torch.view_as_complex(torch.from_numpy(2 * alignment.TEMPLATE - 1).float()).to(points.device)  # (5,)
    source_mean, target_mean = ((weight * one).sum(1, keepdim=True) for one in (source, target))  # (B, 1)
    centred = source - source_mean
    spread = (weight * centred.abs().square()).sum(1)  # (B,)
    factor = (weight * centred.conj() * (target - target_mean)).sum(1)  # times 1 / spread: from picture to square
    turned = spread / torch.where(factor == 0, 1, factor)  # (B,)
    shift = (source_mean - turned[:, None] * target_mean)[:, 0]
    x_row, y_row = (turned.real, -turned.imag, shift.real), (turned.imag, turned.real, shift.imag)
    square = torch.stack([*x_row, *y_row], dim=1).view(-1, 2, 3)
    told = (turned.abs() > 0.1) & (turned.abs() < 4)
    return torch.where(told[:, None, None], square, region_square(points))


def vary_light(faces: Tensor, generator: torch.Generator) -> Tensor:
    """Faces (B, 1, S, S) in 0..1 with other gamma, contrast and brightness; some blurred, noisy or partly hidden."""
    count, size, device = len(faces), faces.shape[-1], faces.device

    def uniform(low: float, high: float) -> Tensor:
        return (torch.rand(count, 1, 1, 1, generator=generator) * (high - low) + low).to(device)

    faces = faces.clamp(0, 1) ** uniform(-0.5, 0.5).exp()
    faces = (faces - 0.5) * uniform(0.6, 1.3) + 0.5 + uniform(-0.15, 0.15)
    coarse = int(torch.randint(size // 4, size // 2, (), generator=generator))
    # A quarter of the batch is made small and large again, as small faces are.
    small = F.interpolate(faces[: count // 4], size=(coarse, coarse), mode="bilinear", antialias=True)
    faces = torch.cat([F.interpolate(small, size=(size, size), mode="bilinear"), faces[count // 4 :]])
    noise = torch.randn(faces.shape, generator=generator).to(device)
    faces = faces + noise * uniform(0, 0.05) * (uniform(0, 1) < 0.3)

    pixels = torch.linspace(0, 1, size, device=device)
    half_width = uniform(0.05, 0.15) * (uniform(0, 1) < 0.2)
    rows = (pixels[:, None] - uniform(0, 1)).abs() < half_width  # (B, 1, S, 1) by broadcasting
    columns = (pixels - uniform(0, 1)).abs() < half_width
    return torch.where(rows & columns, uniform(0, 1), faces).clamp(0, 1)


# ---------------------------------------------------------------- model


class Residual(nn.Module):
    """Two 3x3 convolutions and a way around them (He et al. 2016): (B, C, H, W) -> (B, D, H / stride, W / stride)."""

    def __init__(self, channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False), nn.BatchNorm2d(out_channels),
            nn.ReLU(), nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False), nn.BatchNorm2d(out_channels),
        )  # fmt: skip
        self.around = nn.Identity() if stride == 1 and channels == out_channels else nn.Sequential(
            nn.Conv2d(channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.path(x) + self.around(x))


class Compact(nn.Module):
    """Half as wide as ResNet18, with a heat map for each landmark instead of a linear layer.

    A map says for each of 12x12 places how likely the landmark is there; softmax makes it a distribution, and the
    expected place is the answer (soft-argmax; Nibali et al. 2018, "Numerical coordinate regression"). What a landmark
    looks like is learnt once for all places, while a linear layer learns it anew for every shift of the face.
    """

    def __init__(self, widths: Sequence[int] = (32, 64, 128)):
        super().__init__()
        self.fine = nn.Sequential(  # 48x48, 24x24, 12x12
            nn.Conv2d(1, widths[0], 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU(),
            Residual(widths[0], widths[0], stride=2), Residual(widths[0], widths[0]),
            Residual(widths[0], widths[1], stride=2), Residual(widths[1], widths[1]),
        )  # fmt: skip
        self.coarse = nn.Sequential(  # 6x6: sees the whole face
            Residual(widths[1], widths[2], stride=2), Residual(widths[2], widths[2]), Residual(widths[2], widths[2]),
            nn.Conv2d(widths[2], widths[1], 1),
        )  # fmt: skip
        self.maps = nn.Sequential(Residual(widths[1], widths[1]), nn.Conv2d(widths[1], len(POINTS), 1))

    def forward(self, faces: Tensor) -> Tensor:
        fine = self.fine(faces)  # (B, 64, 12, 12)
        context = F.interpolate(self.coarse(fine), scale_factor=2.0, mode="bilinear", align_corners=False)
        maps = self.maps(fine + context).float()  # (B, 5, 12, 12)
        places = (torch.arange(12, device=faces.device) + 0.5) / 6 - 1
        likely = maps.flatten(2).softmax(2).view_as(maps)
        return torch.stack([(likely.sum(2) * places).sum(2), (likely.sum(3) * places).sum(2)], dim=2)


class ReferenceNet(nn.Module):
    """ResNet18 (He et al. 2016) with one input channel -> 128 -> 10."""

    def __init__(self):
        super().__init__()
        self.backbone = resnet18(num_classes=128)
        self.backbone.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(128, 2 * len(POINTS)))

    def forward(self, faces: Tensor) -> Tensor:
        return self.head(self.backbone(faces))


ARCHITECTURES = {"compact": Compact, "resnet18-128-10": ReferenceNet}


class Landmarker(nn.Module):
    """Faces (B, 1, 96, 96) in 0..1 -> points (B, 5, 2) in -1..1: the left or upper edge is -1, the right or lower 1."""

    def __init__(self, architecture: str):
        super().__init__()
        self.architecture = architecture
        self.net = ARCHITECTURES[architecture]()

    def forward(self, faces: Tensor) -> Tensor:
        faces = faces.contiguous(memory_format=torch.channels_last)
        return self.net(faces).float().view(-1, len(POINTS), 2)


# ---------------------------------------------------------------- loss


def point_loss(found: Tensor, marked: Tensor, reference: bool = False) -> Tensor:
    """Points (B, 5, 2), (B, 5, 2) -> scalar; points that are not marked (NaN) do not count.

    The mean distance, in half widths of the square, rounded off below 0.01; the reference's is the mean squared
    error of the coordinates.
    """
    present = ~marked.isnan().any(2)  # (B, 5)
    squared = (found - torch.where(present[:, :, None], marked, found.detach())).square().sum(2)  # (B, 5)
    errors = squared / 2 if reference else (squared + 0.01**2).sqrt() - 0.01
    return (errors * present).sum() / present.sum().clamp(min=1)


# ---------------------------------------------------------------- training


class Part:
    """One part of the split on the device: images (N, 1, 128, 128) uint8, points (N, 5, 2) in -1..1, NaN: missing."""

    def __init__(self, faces: landmarks.LandmarkSet, name: str, device: torch.device):
        rows = faces.part(name)
        if not len(rows):
            raise InputError(f"There are no faces for {name}: prepare more data.")
        self.images = torch.from_numpy(faces.images[rows]).to(device)
        self.points = torch.from_numpy(faces.points[rows] * 2 / PACKED_SIZE - 1).to(device)


def train_step(course: training.Course, part: Part, rows: Tensor, precision: str) -> None:
    """One batch, from rows (B,) to changed weights."""
    settings = course.settings
    _, random = training.step_generators(settings.seed, course.epoch, course.step)
    course.model.train()
    faces, points = augment(part.images[rows], part.points[rows], random, settings.reference)
    with training.autocast(course.device, precision):
        loss = point_loss(course.model(faces), points, settings.reference)
    course.learn(loss, settings.learning_rate * (1 if settings.reference else training.warm_cosine(course.done)))


def finish_epoch(course: training.Course, validation: Part, precision: str) -> None:
    """Measures the validation faces with two looks at each; the weights are kept if their NME is the lowest."""
    with training.evaluating(course.model):
        looks = [look_twice(course.model, images, precision) for images in validation.images.split(256)]
    found = torch.cat(looks).cpu().numpy()
    marked = validation.points.cpu().numpy()
    errors = landmarks.point_errors(found, marked)
    nme = float(np.nanmean(landmarks.normalised_errors(errors, marked)))
    course.finish_epoch(-nme, {"validation_nme": nme, "validation_error_percent": float(50 * np.nanmean(errors))})


def look_twice(model: Landmarker, images: Tensor, precision: str = "auto") -> Tensor:
    """Packed pictures (B, 1, 128, 128) uint8 -> points (B, 5, 2), -1..1: a look at all of it, one at the upright face.

    Nearly as `find_landmarks`, but on the device and without the mirror image.
    """
    square = torch.eye(2, 3, device=images.device).expand(len(images), 2, 3)
    for _ in range(LOOKS):
        grid = F.affine_grid(square, [len(images), 1, IMAGE_SIZE, IMAGE_SIZE], align_corners=False)
        faces = F.grid_sample(images.float() / 255, grid, padding_mode="border", align_corners=False)
        with training.autocast(images.device, precision):  # the model alone: bfloat16 would shift pixels
            answer = model(faces).float()
        points = answer @ square[:, :, :2].transpose(1, 2) + square[:, :, 2:].transpose(1, 2)
        square = upright_square(points)
    return points


def train(faces: landmarks.LandmarkSet, settings: Settings, folder: Path, device: torch.device,
          precision: str = "auto", minutes: float | None = None, resume: bool = False,
          dry_run: bool = False, events: Path | None = None) -> training.Course:  # fmt: skip
    """Trains on the train faces; the weights that are best on validation faces are in the result.

    Writes checkpoint.pt and history.csv into `folder` after each epoch, and draws history.png. `minutes` fits the
    training into that time. `events` is a folder for TensorBoard. After Ctrl-C all is saved and KeyboardInterrupt
    raised.
    """
    training.seed_everything(settings.seed)
    model = Landmarker("resnet18-128-10" if settings.reference else "compact")
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    course = training.Course(model, optimizer, settings, folder)
    course.events = training.event_writer(events)
    part, validation = Part(faces, "train", device), Part(faces, "validation", device)
    course.data = training.array_digest(part.images.cpu().numpy(), part.points.cpu().numpy())
    if validation.points[:, :2].isnan().any(2).any(1).all():
        raise InputError("No validation face has both eyes marked, by which errors are measured: prepare more data.")
    if resume:
        course.load()
    with course.underway(minutes):
        while course.plan or course.done < 1:
            if not course.plan:
                _, random = training.step_generators(settings.seed, course.epoch)
                order = torch.randperm(len(part.images), generator=random)
                course.plan = list(order.split(settings.batch_size))[: 2 if dry_run else None]
            for batch in course.batches():
                train_step(course, part, batch, precision)
            finish_epoch(course, validation, precision)
    course.take_best()
    return course


# ---------------------------------------------------------------- use


def predict(model: Landmarker, crops: np.ndarray | Tensor, precision: str = "auto") -> Tensor:
    """Crops (N, 1, 96, 96) uint8 -> points (N, 5, 2) in -1..1: the mean of the face's and of its mirror image's."""
    device = next(model.parameters()).device
    points = [torch.empty(0, len(POINTS), 2, device=device)]
    with training.evaluating(model), training.autocast(device, precision):
        for start in range(0, len(crops), 256):
            faces = torch.as_tensor(crops[start : start + 256]).to(device).float() / 255
            mirrored = model(faces.flip(3))[:, MIRRORED] * torch.tensor([-1, 1], device=device)
            points.append((model(faces) + mirrored) / 2)
    return torch.cat(points)


def look(model: Landmarker, photos: Sequence, matrices: Sequence[np.ndarray]) -> list[np.ndarray]:
    """One look at one face of each photo, through its square (2, 3): points (5, 2) in pixels of the photo."""
    if not photos:
        return []
    crops = [alignment.warp(photo, matrix, IMAGE_SIZE) for photo, matrix in zip(photos, matrices)]
    found = predict(model, np.stack(crops)).cpu().numpy().astype(np.float64)
    return [
        alignment.transform_points(alignment.invert(matrix), (points + 1) * IMAGE_SIZE / 2)
        for points, matrix in zip(found, matrices)
    ]


def find_landmarks(model: Landmarker, photos: Sequence, squares: Sequence[np.ndarray], looks: int = LOOKS,
                   frame: Callable = alignment.similarity) -> list[np.ndarray]:  # fmt: skip
    """Landmarks (5, 2), in pixels, of one face in each photo; `squares` (2, 3) say where to look first.

    A photo with several faces comes several times. Each further look is at the face cut out by the points found before,
    upright (alignment.similarity). The reference takes three looks, frame alignment.region.
    """
    points = look(model, photos, squares)
    for _ in range(looks - 1):
        squares = [next_square(*each, frame) for each in zip(points, squares)]
        points = look(model, photos, squares)
    return points


def next_square(points: np.ndarray, before: np.ndarray, frame: Callable) -> np.ndarray:
    """The square (2, 3) of a face with points (5, 2); the one before if they are no face's."""
    try:
        return frame(points, IMAGE_SIZE)
    except InputError:
        return before


def detect_landmarks(photos: Sequence, boxes: Sequence | None = None, model: Landmarker | None = None,
                     max_pixels: int = MAX_PIXELS) -> list[np.ndarray]:  # fmt: skip
    """The five points (5, 2), x and y in pixels, of the face in each photo.

    photos: paths, PIL images or uint8 arrays. boxes: the face of each photo (x0, y0, x1, y1); without them the face
    is looked for in the whole photo, of which it should fill a good part. InputError names a photo that cannot be
    opened. ValueError when there are not as many boxes as photos.
    """
    if boxes is not None and len(boxes) != len(photos):
        raise ValueError(f"{len(photos)} photos, but {len(boxes)} boxes")
    model, points = model or load_landmarker(), []
    for start in range(0, len(photos), PHOTOS_AT_ONCE):
        opened = [open_photo(photo, max_pixels) for photo in photos[start : start + PHOTOS_AT_ONCE]]
        if boxes is None:
            squares = [alignment.box_region((0, 0, *photo.size), IMAGE_SIZE, scale=1) for photo in opened]
        else:
            squares = [alignment.box_region(box, IMAGE_SIZE) for box in boxes[start : start + PHOTOS_AT_ONCE]]
        points += find_landmarks(model, opened, squares)
    return points


def save_landmarker(path: Path, course: training.Course, faces: landmarks.LandmarkSet, measured: dict) -> None:
    """Writes the weights, and all that is needed to load them and to know where they come from."""
    training.save_weights(path, course.model, {
        "architecture": course.model.architecture,
        "crop": {"size": IMAGE_SIZE, "color": False},
        "data": {name: faces.summary[name] for name in ("faces", "sources", "splits", "split_digest", "seed")},
        "settings": asdict(course.settings),
        "epoch": course.best_epoch,
        "minutes": round(course.seconds / 60, 1),
        "measured": measured,
    })  # fmt: skip


def load_landmarker(path: str | Path = WEIGHTS, device: str = "auto") -> Landmarker:
    """The trained model; `.metadata` says how it was made and what it measured."""
    tensors, metadata = training.read_weights(path, *ARCHITECTURES)
    model = Landmarker(metadata["architecture"])
    training.load_tensors(model, tensors, path)
    model.metadata = metadata
    return model.to(training.choose_device(device), memory_format=torch.channels_last).eval()


# ---------------------------------------------------------------- measuring


def measure(model: Landmarker, pictures: Sequence, marked: np.ndarray, sources: np.ndarray,
            groups: np.ndarray) -> tuple[dict, np.ndarray, np.ndarray]:
    """Pictures of one face each, marked (N, 5, 2) in pixels -> the report, the points found, and the NME (N,).

    Errors in per cent are of the width of the picture's square. `nme_random_boxes`: the first look is at squares
    that are up to 15 % off-centre and 25 % too large or too small.
    """
    if not np.isfinite(marked.reshape(-1, len(POINTS), 2)[:, :2]).all((1, 2)).any():
        raise InputError("No face to measure has both eyes marked: give other faces.")
    squares = [alignment.box_region((0, 0, *picture.size), IMAGE_SIZE, scale=1) for picture in pictures]
    sides = np.array([max(picture.size) for picture in pictures])
    found = np.array(find_landmarks(model, pictures, squares))
    errors = landmarks.point_errors(found, marked)  # (N, 5)
    nme = landmarks.normalised_errors(errors, marked)  # (N,)
    elsewhere = np.array(find_landmarks(model, pictures, _random_squares(sides, pictures)))
    nme_elsewhere = landmarks.normalised_errors(landmarks.point_errors(elsewhere, marked), marked)

    percent, known, random = 100 * errors / sides[:, None], ~np.isnan(nme), np.random.default_rng(0)
    mean_percent = np.nansum(percent, axis=1) / np.maximum(1, (~np.isnan(percent)).sum(1))  # (N,)
    per_face = {"mean_error_percent": mean_percent, "nme": nme, "failure_rate": nme > FAILURE,
                "nme_random_boxes": nme_elsewhere}  # fmt: skip
    report: dict = {}
    for name, values in per_face.items():
        report[name] = float(np.mean(values[known]))
        report[f"{name}_interval"] = list(metrics.people_interval(values[known], groups[known], random))
    relative = errors / np.linalg.norm(marked[:, 0] - marked[:, 1], axis=1)[:, None]  # (N, 5), by the eyes' distance
    report["per_landmark"] = {point: {"mean_error_percent": mean_or_none(percent[known, number]),
                                      "nme": mean_or_none(relative[known, number])}
                              for number, point in enumerate(POINTS)}  # fmt: skip
    report["per_source"] = {str(source): {name: float(np.mean(values[known & (sources == source)]))
                                          for name, values in per_face.items()}
                            for source in np.unique(sources[known])}  # fmt: skip
    counts = {"faces": int(known.sum()), "faces_without_eyes": int((~known).sum()),
              "groups": len(np.unique(groups[known]))}  # fmt: skip
    return report | counts, found, nme


def mean_or_none(values: np.ndarray) -> float | None:
    """The mean of what is not NaN; None where all is: JSON has no NaN."""
    return None if np.isnan(values).all() else float(np.nanmean(values))


def _random_squares(sides: np.ndarray, pictures: Sequence[Image.Image]) -> list[np.ndarray]:
    random, squares = np.random.default_rng(0), []
    for side, picture in zip(sides, pictures):
        x, y = random.uniform(-0.15, 0.15, 2) * side
        box = (x, y, x + picture.width, y + picture.height)
        squares.append(alignment.box_region(box, IMAGE_SIZE, scale=random.uniform(0.75, 1.25)))
    return squares


# ---------------------------------------------------------------- commands


def command_prepare(args: argparse.Namespace) -> int:
    known = Path("dataset")
    roots = args.data or ([known] if known.is_dir() and args.drawn_people is None else [])
    if args.data and args.drawn_people:
        raise InputError("--drawn-people draws faces instead of reading some: leave it out, or --data.")
    skipped: list[dict] = []
    faces = [face for root in roots for face in landmarks.find_faces(root, skipped)]
    if not faces and (args.data or skipped):
        none_there = "no points.csv, no facial_keypoints.csv, no .pts files; see dataset/README.md."
        raise InputError(f"There are no marked faces in {', '.join(map(str, roots))}: "
                         f"{skipped[0]['why'] if skipped else none_there}")  # fmt: skip
    if not faces:
        people = args.drawn_people or DRAWN_PEOPLE
        print(f"{'' if args.drawn_people else 'There are no marked faces under dataset/: '}drawing {people} people.")
        drawn = args.prepared / f"drawn_{people}_people_{args.seed}"
        synthetic.write_faces(drawn, people, pictures_per_person=2, seed=args.seed, zoom=0.65)
        faces = landmarks.find_faces(drawn)
    summary = landmarks.pack_landmarks(faces, args.prepared, args.seed, args.max_pixels, skipped)
    for source, count in summary["sources"].items():
        print(f"{source}: {count} faces")
    commands.print_skipped(summary, args.prepared)
    parts = ", ".join(f"{count} for {name}" for name, count in summary["splits"].items())
    print(f"{summary['faces']} faces ({parts}), {summary['missing_points']} points not marked; "
          f"{len(summary['skipped'])} pictures skipped.\nFaces and points: {args.prepared / 'contact_sheet.png'}")
    return 0


def command_train(args: argparse.Namespace) -> int:
    faces, device = landmarks.load_landmarks(args.prepared), training.choose_device(args.device)
    settings = commands.choose_settings(REFERENCE if args.reference else Settings(), args)
    with commands.recorded(args, "landmark-reference" if args.reference else "landmark") as folder:
        print(f"{faces.summary['splits']['train']} faces to learn from, on {training.describe(device, args.precision)}",
              flush=True)  # fmt: skip
        course = train(faces, settings, folder, device, args.precision, args.time_limit, args.resume, args.dry_run,
                       args.tensorboard)  # fmt: skip
        measured = {"nme_validation": round(-course.best_score, 4)}
        for weights in [folder / "landmark.safetensors"] + [args.weights] * (not args.dry_run):
            save_landmarker(weights, course, faces, measured)
        print(f"Validation faces: NME {measured['nme_validation']:.2%} (best epoch: {course.best_epoch}).\n"
              f"Weights: {weights}; history: {folder / 'history.png'}")  # fmt: skip
    return 0


def command_evaluate(args: argparse.Namespace) -> int:
    model = load_landmarker(args.weights, args.device)
    if args.points or args.images:
        if not (args.points and args.images):
            raise InputError("--images DIR and --points FILE go together: give both, or neither for the saved split.")
        if args.prepared != PREPARED:
            raise InputError("--prepared is not read with --images: leave out one of them.")
        faces = landmarks.read_points_csv(args.points, args.images)
        given = len(faces)
        faces, pictures = open_faces(faces, args.max_pixels)
        if not faces:
            raise InputError(f"None of the {given} pictures of {args.points} opens in {args.images}: check --images.")
        marked = np.array([face.points for face in faces])
        sources, groups = (np.array([getattr(face, name) for face in faces]) for name in ("source", "group"))
        files = [face.file for face in faces]
    else:
        prepared = landmarks.load_landmarks(args.prepared)
        rows = prepared.part("test")
        pictures = [Image.fromarray(image[0]).convert("RGB") for image in prepared.images[rows]]
        marked, sources, groups = prepared.points[rows], prepared.sources[rows], prepared.groups[rows]
        files = [prepared.files[row] for row in rows]
        commands.note_other_split(model.metadata, prepared.summary)
    report, found, nme = measure(model, pictures, marked, sources, groups)
    charts.cumulative_error_chart(nme, args.charts / "errors.png", FAILURE)
    write_worst(pictures, marked, found, nme, files, args.charts / "worst.png")
    if args.json:
        print(json.dumps(report))
        return 0
    for name in ("mean_error_percent", "nme", "failure_rate", "nme_random_boxes"):
        low, high = report[f"{name}_interval"]
        print(f"{name:20} {report[name]:.4f}  [{low:.4f}, {high:.4f}]")
    for name, row in {**report["per_landmark"], **report["per_source"]}.items():
        print(f"{name:20} " + "  ".join(f"{key} {value:.4f}" for key, value in row.items() if value is not None))
    if report["faces_without_eyes"]:
        print(f"{report['faces_without_eyes']} faces without both eyes marked are not measured")
    print(f"{report['faces']} faces of {report['groups']} people or photos; in brackets 95 % intervals, by resampling "
          f"these\nCharts: {args.charts / 'errors.png'}, {args.charts / 'worst.png'}")  # fmt: skip
    return 0


def open_faces(faces: Sequence[landmarks.MarkedFace],
               max_pixels: int) -> tuple[list[landmarks.MarkedFace], list[Image.Image]]:  # fmt: skip
    """The faces whose pictures open, and these, not larger than 512 pixels; the others are named."""
    good, pictures = [], []
    for face in faces:
        try:
            picture = open_photo(face.picture, max_pixels)
        except InputError as error:
            print(f"skipped: {error}", file=sys.stderr)
            continue
        size = np.array(picture.size)
        picture.thumbnail((512, 512))  # so that memory does not grow with the photos of large cameras
        good.append(replace(face, points=face.points * picture.size / size))
        pictures.append(picture.convert("L"))
    return good, pictures


def write_worst(pictures: Sequence[Image.Image], marked: np.ndarray, found: np.ndarray, nme: np.ndarray,
                files: Sequence[str], path: Path) -> None:
    """The twelve faces with the largest NME, the marked points green, the found ones red."""
    worst = [row for row in np.argsort(-np.nan_to_num(nme, nan=-1)) if not np.isnan(nme[row])][:12]
    crops, points = [], []
    for row in worst:
        matrix = alignment.box_region((0, 0, *pictures[row].size), PACKED_SIZE, scale=1)
        crops.append(alignment.warp(pictures[row], matrix, PACKED_SIZE))
        points.append([alignment.transform_points(matrix, each[row]) for each in (marked, found)])
    tiles = landmarks.with_points(np.stack(crops), *np.stack(points, axis=1), scale=2)
    contact_sheet(tiles, path, columns=4, captions=[f"{nme[row]:.1%} {files[row]}" for row in worst])


def command_detect(args: argparse.Namespace) -> int:
    model = load_landmarker(args.weights, args.device)
    if not args.paths:
        drawn: dict[Path, Path] = {}  # of photos of one name in two folders, both are kept

        def answer(path: Path) -> None:
            if args.out and path not in drawn:
                drawn[path] = free_name(args.out / f"{path.name}.png")
            detect_one(model, path, drawn.get(path), args)

        return commands.ask_for_photos(answer)
    paths = photos_in(args.paths, args.out)
    pictures = pictures_below(args.out, paths) if args.out else {}
    print(f"Running on {training.describe(next(model.parameters()).device)}.", file=sys.stderr)
    failed = 0
    for path in paths:
        try:
            detect_one(model, path, pictures.get(path), args)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            failed += 1
    return 2 if failed else 0


def detect_one(model: Landmarker, path: Path, drawn: Path | None, args: argparse.Namespace) -> None:
    """Prints the points of one photo; draws them into the file `drawn`."""
    photo = open_photo(path, args.max_pixels)
    [points] = detect_landmarks([photo], model=model, max_pixels=args.max_pixels)
    print(f"{path}: " + ", ".join(f"{name.replace('_', ' ')} {x:.1f} {y:.1f}" for name, (x, y) in zip(POINTS, points)))
    if drawn:
        around = alignment.invert(alignment.region(points, 1))  # the reference's square
        box = alignment.transform_points(around, np.array([[0, 0], [1, 1]])).ravel()
        drawing.save_picture(drawing.draw_faces(photo, box[None], points[None], [""])[0], drawn)
        print(f"saved to {drawn}")


# ---------------------------------------------------------------- command line

OPTIONS = commands.OPTIONS | commands.with_defaults(Settings(), REFERENCE) | {  # of more than one command
    "--prepared": dict(type=Path, default=PREPARED, metavar="DIR", help=f"prepared faces [{PREPARED}]"),
    "--weights": dict(type=Path, default=WEIGHTS, metavar="FILE", help=f"[{WEIGHTS}]"),
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable, about: str, *options: str) -> argparse.ArgumentParser:
        return commands.add_command(subparsers, name, run, about, {option: OPTIONS[option] for option in options})

    sub = command("prepare", command_prepare, "Find marked faces, cut them out, split them.",
                  "--prepared", "--max-pixels", "--seed")  # fmt: skip
    sub.add_argument("--data", type=Path, action="append", metavar="DIR",
                     help="a folder of marked faces, may be repeated [dataset/, else drawn faces]")  # fmt: skip
    sub.add_argument("--drawn-people", type=commands.number(int, 1), metavar="N", help="draw N people instead")

    sub = command("train", command_train, "Train the landmark model.", "--prepared", "--weights", *commands.TRAINING)
    sub.add_argument("--reference", action=argparse.BooleanOptionalAction,
                     help="the reference method: ResNet18, mean squared error")  # fmt: skip

    sub = command("evaluate", command_evaluate, "Measure on test faces, or on a folder of marked faces.",
                  "--prepared", "--weights", "--device", "--max-pixels")  # fmt: skip
    sub.add_argument("--images", type=Path, metavar="DIR", help="pictures of one face each, for --points")
    sub.add_argument("--points", type=Path, metavar="FILE", help="file,left_eye_x,left_eye_y,... in pixels")
    sub.add_argument("--charts", type=Path, default=Path("data/evaluation"), metavar="DIR", help="[data/evaluation]")
    sub.add_argument("--json", action="store_true", help="one JSON object on standard output")

    sub = command("detect", command_detect, "The five points of the face in each photo.",
                  "--weights", "--device", "--max-pixels")  # fmt: skip
    sub.add_argument("paths", type=Path, nargs="*", help="photos or folders [asks for them]")
    sub.add_argument("--out", type=Path, metavar="DIR", help="write the photos with the points drawn")
    return commands.parse(parser, arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    return commands.run(parse(arguments))


if __name__ == "__main__":
    sys.exit(main())
