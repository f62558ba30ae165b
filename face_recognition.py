"""Face recognition, trained from scratch: a face becomes 32 numbers, near each other for one person.

    python3 face_recognition.py prepare        photos -> data/recognition/: greyscale 80x80 faces, split by person
    python3 face_recognition.py train          -> weights/recognition.safetensors: ResNet18, 32 numbers a face
    python3 face_recognition.py train-verify   -> weights/verification.safetensors: two faces -> score 0..1
    python3 face_recognition.py evaluate       all metrics, on people that nothing was trained or chosen on
    python3 face_recognition.py compare A B    two face crops: same person?

prepare takes the data sets under dataset/ (`download` gets them), any folder of folders (--data), or draws faces.

The recogniser learns by triplets. An anchor should be nearer to a positive, another photo of its person, than to
negatives, photos of strangers. Global mining finds the negatives that matter: a memory holds the latest embedding of
every training image, all of them are ranked by their distance to the anchor, and the 20 nearest strangers are skipped,
since mislabelled photos and look-alikes are among them. The verifier is one linear layer over the 32 squared
differences of two embeddings.

`train --reference` does this plainly. By default, everybody in a batch is anchor, positive and negative at once (a
smooth triplet loss on embeddings of length 1, and on the 256 features before the head), mining decides who meets in a
batch from 40 % of the training on, the learning rate falls, faces are augmented, and who has only one photo is there,
too, with that photo varied in two ways. The loss on the features matters most: without it the embeddings of a long
training varied in 4 of their 32 dimensions, and 78.5 % of faces of test people were nearer to their own person than to
ten strangers; with it, a head made anew and 80 minutes more, 84.7 %. On validation people that was 85.2 %; more at a
lower learning rate had 85.3 % there, stronger augmentation and people with one photo 85.2 %, but the mean of these
three weights (`average`) 85.7 %. Negatives for the loss straight from the memory: 37.6 %, where batches had 44.2 %.
More, and how the head was made, is in weights/MODEL_CARD.md.

Published weights: that mean, after 433 minutes on two cores; 85.9 % of faces of test people nearer to their own person
than to ten strangers, 93.2 % of pairs right.

Beside the lesson: `train --loss` and `--backbone` name its relatives, `identify` finds face crops in a gallery,
`visualize` draws a map of people, `export` writes ONNX or TorchScript.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import facekit.quick_start  # noqa: F401, before torchvision

# isort: split
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet18
from tqdm import tqdm

from facekit import backbones, charts, commands, datasets, export, losses, maps, metrics, synthetic, training
from facekit.files import InputError, written_whole
from facekit.gallery import person_means
from facekit.images import MAX_PIXELS, face_pixels, photos_in

IMAGE_SIZE = 80  # a face crop is 80x80 pixels, greyscale, values 0..1
EMBEDDING_SIZE = 32
NEGATIVES = 10  # for each anchor of the reference method, of which
MINED_NEGATIVES = 7  # are mined and the others random
SKIPPED_NEAREST = 20  # mislabelled images and look-alikes are among the 20 nearest strangers
PATIENCE = 20  # epochs without a validation accuracy within 1 % of the best
FALSE_ACCEPT_RATES = (0.1, 0.01, 0.001)
LEAST_BATCHES = 10  # of an epoch: few people with many photos come several times
NEAREST = 10  # gallery faces that the chain shows to the verifier, to name a face
GALLERY_SIZES = (1, 3, 10, 30, 100, 300)  # people, for which train-verify chooses thresholds
VERIFIER_PEOPLE = 3000  # of each part: enough for 33 weights, and for a false-accept rate of 0.1 %
PICTURES_PER_DRAWN_PERSON = 8
CENTRES_FASTER = 1000  # the learning rate of a loss's centres, to that of the model
TEACHING = 100  # the weight of a teacher's cosines in the loss
LARGEST_EXPORT_ERROR = 1e-3  # of an exported model's numbers

SYNTHETIC = Path("synthetic")  # the name of the drawn faces for --data
PREPARED = Path("data/recognition")
RECOGNISER = Path("weights/recognition.safetensors")
VERIFIER = Path("weights/verification.safetensors")


@dataclass(frozen=True)
class Settings:
    """The choices of a training; they are saved with the weights."""

    backbone: str = "resnet18"
    embedding_size: int = EMBEDDING_SIZE
    loss: str = "triplet"
    reference: bool = False
    epochs: int = 60
    batch_size: int = 128  # images a step
    learning_rate: float = 1e-3  # at its highest: it rises over the first 5 % of the training, then falls to 1 %
    weight_decay: float = 0.05
    images_per_person: int = 4  # in a batch: each of them is anchor and positive of the others
    scale: float | None = 32.0  # how much the hardest negatives count more than the others
    margin: float | None = 0.1  # how much nearer the positive has to be than a negative
    hard_only: bool = False  # learn only from the triplets that the model gets wrong
    mine_from: float = 0.4  # part of the training after which mining decides who meets in a batch
    init: str | None = None  # weights to start from
    teacher: str | None = None  # weights whose cosines are to be learnt, too
    seed: int = 0


REFERENCE = Settings(reference=True, epochs=200, batch_size=400, weight_decay=0.0, margin=0.2)


# ---------------------------------------------------------------- data


class Part:
    """The packed images of one part of the split, on the device, and whose they are.

    images (N, C, S, S) uint8, people (N,) int64, sources: N names of data sets; `all_photos_of` has the rows of each
    person, `photos_of` of those with at least two. With `most_people` it is of so many at most.
    """

    def __init__(self, faces: datasets.FaceSet, part: str, device: torch.device, most_people: int | None = None):
        rows = faces.part(part)
        if most_people:
            some = np.random.default_rng(0).permutation(np.unique(faces.people[rows]))[:most_people]
            rows = rows[np.isin(faces.people[rows], some)]
        self.images = torch.from_numpy(faces.images[rows]).to(device)
        self.people = torch.from_numpy(faces.people[rows]).to(device)
        self.sources = faces.sources[rows].tolist()  # the data set of each
        rows_of: dict[int, list[int]] = {}
        for row, person in enumerate(faces.people[rows].tolist()):
            rows_of.setdefault(person, []).append(row)
        self.all_photos_of = {person: np.array(photos) for person, photos in rows_of.items()}
        self.photos_of = {person: photos for person, photos in self.all_photos_of.items() if len(photos) > 1}
        if len(self.photos_of) < 2:
            raise InputError(f"Of the {len(rows_of)} people for {part}, {len(self.photos_of)} have two photos: "
                             "too few; with 20 such people there are enough for all parts: prepare more.")

    def digest(self) -> str:
        """16 hexadecimal digits that change with any pixel, or with whose a photo is."""
        return training.array_digest(self.images.cpu().numpy(), self.people.cpu().numpy())


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Packed crops (B, C, S, S) uint8 -> varied faces (B, C, S, S) float in 0..1.

    Rotation up to 12°, scale by 0.89 to 1.16, shift up to 5 % of the width, mirroring, blur or sharpening, gamma,
    contrast, brightness, light from one side, and on every third face a patch hidden. The random numbers come from the
    CPU, so they are the same on every device.
    """
    count, device = len(images), images.device

    def uniform(low: float, high: float) -> Tensor:
        return (torch.rand(count, 1, generator=generator) * (high - low) + low).to(device)

    angle, zoom = uniform(-12, 12).deg2rad(), uniform(-0.15, 0.12).exp()
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    x_axis = torch.stack([mirror * zoom * angle.cos(), -zoom * angle.sin(), uniform(-0.1, 0.1)], dim=2)
    y_axis = torch.stack([mirror * zoom * angle.sin(), zoom * angle.cos(), uniform(-0.1, 0.1)], dim=2)
    grid = F.affine_grid(torch.cat([x_axis, y_axis], dim=1), list(images.shape), align_corners=False)
    faces = F.grid_sample(images.float() / 255, grid, padding_mode="border", align_corners=False)

    blurred = F.avg_pool2d(F.pad(faces, [2] * 4, mode="replicate"), 5, stride=1)
    faces = torch.lerp(faces, blurred, uniform(-0.5, 1)[:, :, None, None])  # below 0 it sharpens
    gamma, contrast, brightness = uniform(-0.3, 0.3).exp(), uniform(0.75, 1.25), uniform(-0.12, 0.12)
    faces = faces.clamp(0, 1) ** gamma[:, :, None, None]
    pixels = torch.linspace(-1, 1, images.shape[-1], device=device)
    light = brightness + uniform(-0.15, 0.15) * pixels  # (B, S), from the left or from the right
    faces = ((faces - 0.5) * contrast[:, :, None, None] + 0.5 + light[:, None, None, :]).clamp(0, 1)

    half_width = uniform(0, 0.5) * (uniform(0, 1) < 0.33)  # (B, 1) of a width of 2; 0 hides nothing
    columns_hidden = (pixels - uniform(-1, 1)).abs() < half_width  # (B, S)
    rows_hidden = (pixels - uniform(-1, 1)).abs() < half_width  # (B, S)
    hidden = (rows_hidden[:, :, None] & columns_hidden[:, None, :])[:, None]  # (B, 1, S, S)
    return torch.where(hidden, uniform(0, 1)[:, :, None, None], faces)


def unvaried(images: Tensor) -> Tensor:
    """Packed crops (B, C, S, S) uint8 -> faces (B, C, S, S) float in 0..1, as they are."""
    return images.float() / 255


# ---------------------------------------------------------------- model


class Recogniser(nn.Module):
    """Faces (B, C, S, S) in 0..1 -> embeddings (B, D): ResNet18 (He et al. 2016), or another backbone.

    `normalised`: embeddings of length 1, so that their distance depends on the angle alone; each is the mean of those
    of the face and of its mirror image. (Training sees the face alone, through `features` and `head`.)
    """

    def __init__(self, backbone: str = "resnet18", embedding_size: int = EMBEDDING_SIZE, image_size: int = IMAGE_SIZE,
                 color: bool = False, normalised: bool = True):
        super().__init__()
        self.image_size, self.color = image_size, color
        self.embedding_size, self.normalised = embedding_size, normalised
        self.at_once = 256 if backbone == "resnet18" else 32  # faces; more need memory, which takes longer to get
        channels = 3 if color else 1
        if backbone == "resnet18":
            self.backbone = resnet18(num_classes=256)
            self.backbone.conv1 = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
            self.head = nn.Sequential(nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, embedding_size))
        else:
            self.backbone = backbones.build(backbone, embedding_size, channels, image_size)
            self.head = nn.Identity()

    def features(self, faces: Tensor) -> Tensor:
        """The input of the head: 256 numbers of ResNet18. Other backbones have no head: their embeddings."""
        return self.backbone(faces.contiguous(memory_format=torch.channels_last))  # 5 to 15 % faster

    def raw(self, faces: Tensor) -> Tensor:
        """Embeddings (B, D) before they are scaled to length 1."""
        return self.head(self.features(faces)).float()

    def forward(self, faces: Tensor) -> Tensor:
        if not self.normalised:
            return self.raw(faces)
        both = F.normalize(self.raw(faces), dim=1) + F.normalize(self.raw(faces.flip(3)), dim=1)
        return F.normalize(both, dim=1)


def embed(model: Recogniser, images: np.ndarray | Tensor, precision: str = "auto", tta: bool = False) -> Tensor:
    """Packed crops (N, C, S, S) uint8 -> embeddings (N, D) float32 on the model's device.

    `tta` (test-time augmentation): the mean over the crop, the same crop shifted by 2 pixels each way, and the mirror
    images of these.
    """
    device = next(model.parameters()).device
    embeddings = [torch.empty(0, model.embedding_size, device=device)]
    with training.evaluating(model), training.autocast(device, precision):
        for start in tqdm(range(0, len(images), model.at_once), "embedding", leave=False, disable=None, delay=3):
            faces = unvaried(torch.as_tensor(images[start : start + model.at_once]).to(device))
            views = shifted(faces) if tta else [faces]
            if tta and not model.normalised:  # the others see mirror images anyway
                views += [view.flip(3) for view in views]
            views = torch.stack([model(view) for view in views])  # (V, B, D)
            embeddings.append(F.normalize(views.sum(0), dim=1) if model.normalised else views.mean(0))
    return torch.cat(embeddings)


def recut(images: Tensor, model: Recogniser) -> Tensor:
    """Packed crops (N, C, S, S) uint8 of any size, grey or in colour -> as the model takes them, uint8."""
    blocks = []
    for faces in map(unvaried, images.split(256)):
        if faces.shape[1] == 3 and not model.color:
            faces = torch.einsum("bchw,c->bhw", faces, faces.new_tensor([0.299, 0.587, 0.114]))[:, None]  # ITU-R 601
        elif faces.shape[1] == 1 and model.color:
            faces = faces.expand(-1, 3, -1, -1)
        faces = F.interpolate(faces, (model.image_size, model.image_size), mode="bilinear", antialias=True)
        blocks.append((faces * 255).round().byte())
    return torch.cat(blocks)


def shifted(faces: Tensor) -> list[Tensor]:
    """Faces (B, C, S, S) as they are and moved by 2 pixels left, right, up and down, the edge repeated."""
    size, framed = faces.shape[-1], F.pad(faces, [2, 2, 2, 2], mode="replicate")
    corners = (2, 2), (2, 0), (2, 4), (0, 2), (4, 2)
    return [framed[:, :, top : top + size, left : left + size] for top, left in corners]


# ---------------------------------------------------------------- the reference: global mining and the triplet loss


def mine_negatives(
    memory: Tensor, people: Tensor, anchors: Tensor, anchor_people: Tensor, count: int, skip: int = SKIPPED_NEAREST
) -> Tensor:
    """The hardest strangers of each anchor: the nearest by squared distance, after skipping the `skip` nearest.

    memory (N, D) holds the latest embedding of every training image, people (N,) whose it is; anchors (A, D) are
    embeddings of anchor_people (A,). Returns rows of the memory (A, count), nearest first. Exact: all N are ranked,
    but by one matrix product and one top-k for 64 anchors at a time instead of a sort for each. Where the
    most photographed anchor has fewer than skip + count strangers, fewer are skipped for all; where it has fewer than
    count, as many as it has are returned for each.
    """
    photos = torch.bincount(people, minlength=int(anchor_people.max()) + 1)
    own = int(photos[anchor_people].max())  # of the most photographed anchor
    count = min(count, len(people) - own)
    skip = min(skip, len(people) - own - count)
    lengths = memory.square().sum(1)  # (N,)
    distances = memory.new_empty(min(64, len(anchors)), len(people))  # less |anchor|², which changes no ranking
    nearest = torch.cat([
        torch.addmm(lengths, block, memory.T, alpha=-2, out=distances[: len(block)])
        .topk(skip + count + own, largest=False).indices
        for block in anchors.split(64)
    ])  # (A, skip + count + own), so that skip + count strangers are among them  # fmt: skip
    stranger = people[nearest] != anchor_people[:, None]
    rank = stranger.cumsum(1)  # 1 for the nearest stranger
    return nearest[stranger & (rank > skip) & (rank <= skip + count)].view(len(anchors), count)


def triplet_loss(anchors: Tensor, positives: Tensor, negatives: Tensor, margin: float = 0.2,
                 hard_only: bool = False) -> Tensor:  # fmt: skip
    """FaceNet's loss (Schroff et al. 2015): anchors, positives (A, D), negatives (A, C, D) -> scalar.

    For each anchor the sum over its negatives of relu(|a - b|² - |a - c|² + margin), mean over the anchors.
    With `hard_only` the sum over the negatives that are nearer than the positive.
    """
    near = (anchors - positives).square().sum(1, keepdim=True)  # (A, 1)
    far = (anchors[:, None] - negatives).square().sum(2)  # (A, C)
    losses = F.relu(near - far + margin)  # (A, C)
    return (losses * (far < near) if hard_only else losses).sum(1).mean()


def plan_pairs(photos_of: list[np.ndarray], size: int, random: np.random.Generator) -> list[Tensor]:
    """Twice each person's photos in random pairs (anchor, positive), all pairs shuffled: batches (size, 2)."""
    photos = [random.permutation(rows)[: len(rows) // 2 * 2] for rows in photos_of for _ in range(2)]
    pairs = random.permutation(np.concatenate([rows.reshape(-1, 2) for rows in photos]))
    return list(torch.from_numpy(pairs).split(max(1, size)))


def random_strangers(people: Tensor, anchors: Tensor, count: int, random: np.random.Generator) -> Tensor:
    """Rows (A, count) of random images, none of the anchor's person."""
    chosen = torch.empty(len(anchors), count, dtype=torch.int64, device=people.device)
    wrong = torch.ones_like(chosen, dtype=torch.bool)
    while wrong.any():
        again = random.integers(0, len(people), int(wrong.sum()))
        chosen[wrong] = torch.from_numpy(again).to(people.device)
        wrong = people[chosen] == people[anchors][:, None]
    return chosen


def reference_loss(course: "Course", pairs: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """pairs (A, 2) of anchor and positive -> the triplet loss, and which anchors are right (A,)."""
    people, memory = course.part.people, course.memory
    anchors, positives = pairs.T  # rows (A,), (A,)
    mined = mine_negatives(memory, people, memory[anchors], people[anchors], MINED_NEGATIVES)  # (A, 7)
    strangers = random_strangers(people, anchors, NEGATIVES, random)  # (A, 10)
    negatives = torch.cat([mined, strangers[:, mined.shape[1] :]], dim=1)  # (A, 10)

    rows, place = torch.cat([anchors, positives, negatives.flatten()]).unique(return_inverse=True)
    with training.autocast(course.device, course.precision):
        embeddings = course.model(unvaried(course.part.images[rows]))  # each image once
    course.remember(rows, embeddings)
    a, b, c = embeddings[place].split([len(pairs), len(pairs), negatives.numel()])
    loss = triplet_loss(a, b, c.view(*negatives.shape, -1), course.settings.margin, course.settings.hard_only)
    with torch.no_grad():
        to_strangers = (memory[anchors][:, None] - memory[strangers]).square().sum(2)  # (A, 10)
        return loss, (a - b).square().sum(1) < to_strangers.amin(1)


# ---------------------------------------------------------------- the default: everybody in a batch against everybody


def smooth_triplet_loss(embeddings: Tensor, people: Tensor, scale: float, margin: float,
                        hard_only: bool = False) -> Tensor:  # fmt: skip
    """Every image of the batch is an anchor, its person's other images are positives, all strangers are negatives.

    For anchor a and positive b: log(1 + Σ_c exp(scale · (cos(a, c) - cos(a, b) + margin))), the triplet loss with a
    smooth maximum over the negatives c (N-pair loss, Sohn 2016; supervised contrastive loss, Khosla et al. 2020):
    on vectors of length 1, |a - b|² = 2 - 2 cos(a, b). Mean over the positives of an anchor, then over anchors; with
    `hard_only` over the positives that are farther than the nearest negative.
    embeddings (B, D) of length 1, people (B,) -> scalar.
    """
    cosines = embeddings @ embeddings.T  # (B, B)
    same = people[:, None] == people
    positive = same & ~torch.eye(len(people), dtype=torch.bool, device=people.device)
    to_negatives = cosines.masked_fill(same, -math.inf)  # (B, B)
    hardest = (scale * to_negatives).logsumexp(dim=1, keepdim=True)  # (B, 1)
    if hard_only:
        positive &= cosines < to_negatives.amax(1, keepdim=True)
    losses = F.softplus(hardest - scale * (cosines - margin)) * positive  # (B, B)
    means = losses.sum(1) / positive.sum(1).clamp(min=1)  # (B,)
    return means.sum() / positive.any(1).sum().clamp(min=1)


class SmoothTriplet(nn.Module):
    """The smooth triplet loss, called as the margin losses of facekit/losses.py: embeddings of any length, people.

    Computed in float32, also under autocast: bfloat16 rounds a cosine of 0.9981 to 1.
    """

    def __init__(self, scale: float, margin: float, hard_only: bool = False):
        super().__init__()
        self.scale, self.margin, self.hard_only = scale, margin, hard_only

    def forward(self, embeddings: Tensor, people: Tensor) -> Tensor:
        with torch.autocast(embeddings.device.type, enabled=False):
            unit = F.normalize(embeddings.float(), dim=1)
            return smooth_triplet_loss(unit, people, self.scale, self.margin, self.hard_only)


def distillation_loss(embeddings: Tensor, taught: Tensor) -> Tensor:
    """The mean squared difference between the cosines of a batch and those of its teacher.

    A small network learns from a larger one's embeddings, whatever their size. After Tung and Mori 2019,
    "Similarity-Preserving Knowledge Distillation"; they scale each row of the similarities to length 1 instead.
    embeddings (B, D) of any length, taught (B, E) of length 1 -> scalar.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        unit = F.normalize(embeddings.float(), dim=1)
        return (unit @ unit.T - taught @ taught.T).square().mean()


LOSSES = ("triplet", *losses.LOSSES)


def make_loss(settings: Settings, people: int) -> nn.Module:
    """The loss of the settings, for a training with so many people."""
    if settings.loss == "triplet":
        return SmoothTriplet(settings.scale, settings.margin, settings.hard_only)
    return losses.LOSSES[settings.loss](people, settings.embedding_size, settings.scale, settings.margin)


# ---------------------------------------------------------------- a training on its way


class Course(training.Course):
    """A training of the recogniser: with a memory of the latest embedding of every training image."""

    SAVED = (*training.Course.SAVED, "memory", "memory_epoch", "right", "anchors", "loss_state")

    def __init__(self, part: Part, settings: Settings, folder: Path, device: torch.device, precision: str = "auto"):
        training.seed_everything(settings.seed)
        channels, _, image_size = part.images.shape[1:]
        model = Recogniser(settings.backbone, settings.embedding_size, image_size, channels == 3,
                           normalised=not settings.reference)  # fmt: skip
        if settings.init:
            training.load_tensors(model, read_recogniser(settings.init)[0], settings.init)
        model = model.to(device, memory_format=torch.channels_last)
        loss = make_loss(settings, len(part.photos_of)).to(device)
        rate, decay = settings.learning_rate, settings.weight_decay
        optimizer = (torch.optim.AdamW(model.parameters(), rate, weight_decay=decay, fused=True) if settings.reference
                     else training.Muon(model, rate, decay))  # fmt: skip
        super().__init__(model, optimizer, settings, folder)
        self.part, self.precision, self.loss = part, precision, loss
        self.learn_from = part.photos_of  # person -> rows
        if settings.loss == "triplet" and not settings.reference:  # a single photo comes twice, varied in two ways
            self.learn_from = {person: photos if len(photos) > 1 else photos.repeat(2)
                               for person, photos in part.all_photos_of.items()}  # fmt: skip
        self.class_of = torch.full((int(part.people.max()) + 1,), -1, device=device)  # for losses with class centres
        self.class_of[list(self.learn_from)] = torch.arange(len(self.learn_from), device=device)
        self.memory = torch.zeros(len(part.images), settings.embedding_size, device=device)
        self.memory_epoch = torch.zeros(len(part.images), dtype=torch.int64, device=device)  # when it was made
        self.right, self.anchors = 0, 0  # sums over the present epoch
        self.taught: Tensor | None = None  # (N, E), the teacher's embeddings
        if settings.teacher:
            teacher = load_recogniser(settings.teacher, device.type)
            self.taught = F.normalize(embed(teacher, recut(part.images, teacher), precision), dim=1)

    @property
    def loss_state(self) -> dict[str, Tensor]:
        return self.loss.state_dict()

    @loss_state.setter
    def loss_state(self, state: dict[str, Tensor]) -> None:
        self.loss.load_state_dict(state)

    def learn(self, loss: Tensor, rate: float) -> None:
        """The model learns by Muon, the centres of a loss by plain gradient descent.

        A person comes once an epoch. In all other batches a gradient next to nothing pushes their centre away from
        everybody, and AdamW, which divides gradients by their usual size, would follow that as fast as their own.
        After 8 minutes of ArcFace, the model learning by AdamW, that left 29.6 % of validation faces nearer to their
        person than to ten strangers, gradient descent 36.6 % (benchmarks/compare_methods.py --minutes 8).
        """
        super().learn(loss, rate)
        with torch.no_grad():
            for parameter in self.loss.parameters():
                parameter -= CENTRES_FASTER * rate * parameter.grad
                parameter.grad = None

    def remember(self, rows: Tensor, embeddings: Tensor) -> None:
        self.memory[rows] = embeddings.detach()
        self.memory_epoch[rows] = self.epoch


def plan_epoch(course: Course) -> list[Tensor]:
    """Batches of rows (B,): every person comes once, with `images_per_person` random photos at most.

    People come in random order, or in groups of look-alikes. Where that makes less than LEAST_BATCHES, those who have
    more photos come again with these. Somebody's single photo comes twice; for the margin losses, which have a class
    for each person, it stays out. The reference comes twice to each person with two photos and takes all of them in
    random pairs: (A, 2), anchors and positives.
    """
    settings, photos_of = course.settings, course.learn_from
    random = np.random.default_rng([settings.seed, course.epoch])
    if settings.reference:
        return plan_pairs(list(photos_of.values()), settings.batch_size // (2 + NEGATIVES), random)
    mine = settings.loss == "triplet" and course.done >= settings.mine_from and course.epoch > 1  # before, no memory
    shuffled = {person: random.permutation(rows) for person, rows in photos_of.items()}
    photos: list[np.ndarray] = []  # of one person each
    for first in range(0, max(map(len, shuffled.values())), settings.images_per_person):
        if sum(map(len, photos)) >= LEAST_BATCHES * settings.batch_size:
            break
        people = group_look_alikes(course, random) if mine else random.permutation(list(photos_of))
        photos += [shuffled[person][first : first + settings.images_per_person] for person in people
                   if len(shuffled[person]) >= first + 2]  # fmt: skip
    ends = np.cumsum([len(rows) for rows in photos])
    batches = math.ceil(ends[-1] / settings.batch_size)
    batch_of = (ends - 1) * batches // ends[-1]  # of equal sizes: a tiny last one would spoil the batch statistics
    cuts = ends[:-1][np.diff(batch_of) > 0]
    return [torch.from_numpy(rows) for rows in np.split(np.concatenate(photos), cuts)]


def group_look_alikes(course: Course, random: np.random.Generator) -> np.ndarray:
    """Everybody in groups: one, and up to 7 mined look-alikes who are in no group yet."""
    recent = torch.nonzero(course.memory_epoch >= course.epoch - 1).flatten()  # older embeddings are stale
    memory, people = course.memory[recent], course.part.people[recent]
    row_of = {person: row for row, person in enumerate(people.tolist())}  # one photo of each
    left, groups = set(course.learn_from), []
    for block in torch.from_numpy(random.permutation(list(row_of))).split(256):
        anchors = torch.tensor([row_of[person] for person in block.tolist()], device=memory.device)
        mined = mine_negatives(memory, people, memory[anchors], people[anchors], count=64)
        for person, look_alikes in zip(block.tolist(), people[mined].tolist()):
            if person in left:
                alike = [other for other in dict.fromkeys(look_alikes) if other in left]  # once each, nearest first
                groups.append([person, *alike[:MINED_NEGATIVES]])
                left -= set(groups[-1])
    groups += [[person] for person in sorted(left)]  # without a recent embedding, as in a dry run
    return np.concatenate([groups[i] for i in random.permutation(len(groups))])


def batch_loss(course: Course, rows: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """rows (B,) of images -> the loss, and which anchors are right, single photos aside (A,).

    The triplet loss is that of the embeddings plus that of the features before the head.
    """
    people = course.part.people[rows]  # (B,)
    faces = augment(course.part.images[rows], random)  # not under autocast: bfloat16 would shift pixels
    with training.autocast(course.device, course.precision):
        features = course.model.features(faces)  # (B, 256)
        embeddings = course.model.head(features)  # (B, D)
    loss = course.loss(embeddings, course.class_of[people])
    if course.settings.loss == "triplet" and course.settings.backbone == "resnet18":
        loss = loss + course.loss(features, course.class_of[people])
    if course.taught is not None:
        loss = loss + TEACHING * distillation_loss(embeddings, course.taught[rows])
    embeddings = F.normalize(embeddings.detach().float(), dim=1)
    again = torch.cat([rows.new_zeros(1), rows[1:] == rows[:-1]]).bool()  # the second time of a single photo
    course.remember(rows[~again], embeddings[~again])
    single = again | again.roll(-1)  # and the first time
    return loss, one_of_eleven_in_batch(embeddings, people, random)[~single]


def one_of_eleven_in_batch(embeddings: Tensor, people: Tensor, random: torch.Generator) -> Tensor:
    """Which of the images (B,) are nearer to an image of their person than to 10 random strangers of the batch."""
    distances = torch.cdist(embeddings, embeddings)  # (B, B)
    same = people[:, None] == people
    itself = torch.eye(len(people), dtype=torch.bool, device=people.device)
    lots = torch.rand(distances.shape, generator=random).to(people.device)
    positive = lots.masked_fill(~same | itself, -1).argmax(1, keepdim=True)  # (B, 1), the highest lot
    strangers = lots.masked_fill(same, -1).topk(min(NEGATIVES, len(people) - int(same.sum(1).max()))).indices
    return (distances.gather(1, positive) < distances.gather(1, strangers)).all(1)


# ---------------------------------------------------------------- the training loop


def train_step(course: Course, batch: Tensor) -> None:
    """One batch, from rows to changed weights."""
    settings, rate = course.settings, course.settings.learning_rate
    numpy_random, torch_random = training.step_generators(settings.seed, course.epoch, course.step)
    course.model.train()
    if settings.reference:
        loss, right = reference_loss(course, batch, numpy_random)
    else:
        if isinstance(course.loss, losses.MarginLoss) and not settings.init:
            course.loss.done = course.done
        loss, right = batch_loss(course, batch, torch_random)
        rate *= training.warm_cosine(course.done)
    course.right, course.anchors = course.right + int(right.sum()), course.anchors + len(right)
    course.learn(loss, rate)


def start_centres(course: Course, batches: list[Tensor]) -> None:
    """Puts the centres of a loss where the model, as it is in training, has the photos of these batches."""
    course.model.train()
    for rows in batches:
        with torch.no_grad(), training.autocast(course.device, course.precision):
            course.remember(rows, F.normalize(course.model.raw(unvaried(course.part.images[rows])), dim=1))
    seen = torch.cat(batches)
    losses.start_at_means(course.loss, course.memory[seen], course.class_of[course.part.people[seen]])


def finish_epoch(course: Course, validation: Part) -> None:
    """Measures the validation people; the weights are kept if they are the best."""
    rows = few_of_each(validation)
    embeddings = embed(course.model, validation.images[rows], course.precision)
    training.check_finite(embeddings.sum(), f"the end of epoch {course.epoch}")
    accuracy = float(one_of_eleven(embeddings, validation.people[rows])[0].mean())
    if course.events:
        show_hardest(course, validation.images[rows], embeddings, validation.people[rows])
    train_accuracy = course.right / max(1, course.anchors)
    course.right, course.anchors = 0, 0
    course.finish_epoch(accuracy, {"train_accuracy": train_accuracy, "validation_accuracy": accuracy})


def train(faces: datasets.FaceSet, settings: Settings, folder: Path, device: torch.device, precision: str = "auto",
          minutes: float | None = None, resume: bool = False, dry_run: bool = False,
          events: Path | None = None) -> Course:  # fmt: skip
    """Trains on the train people; the best weights by the accuracy on validation people are in the result.

    Writes checkpoint.pt and history.csv into `folder` after each epoch, and draws history.png. `minutes` fits the
    training, with its falling learning rate, into that time. A dry run takes two steps an epoch. `events` is a folder
    for TensorBoard. After Ctrl-C all is saved and KeyboardInterrupt raised. InputError when the loss is not finite or
    the checkpoint does not fit.
    """
    course = Course(Part(faces, "train", device), settings, folder, device, precision)
    validation = Part(faces, "validation", device)
    course.events = training.event_writer(events)
    course.data = course.part.digest()
    if settings.teacher:
        course.data += f", taught by {training.digest(settings.teacher)}"
    if resume:
        course.load()
    elif settings.reference:
        everything = torch.arange(len(course.memory), device=device)
        course.remember(everything, embed(course.model, course.part.images, precision))  # for the first mining
    with course.underway(minutes):
        if settings.loss != "triplet" and not resume:
            start_centres(course, plan_epoch(course)[: 2 if dry_run else None])
        while course.plan or (course.done < 1 and (course.minutes or not out_of_patience(course))):
            course.plan = course.plan or plan_epoch(course)[: 2 if dry_run else None]
            for batch in course.batches():
                train_step(course, batch)
            finish_epoch(course, validation)
    course.take_best()
    return course


def out_of_patience(course: Course) -> bool:
    """Whether no validation accuracy has come within 1 % of the best for 20 epochs."""
    good = [row["epoch"] for row in course.history if row["validation_accuracy"] >= course.best_score - 0.01]
    return bool(good) and course.history[-1]["epoch"] - good[-1] >= PATIENCE


def share_nearer(model: Recogniser, part: Part, rows: np.ndarray | slice = slice(None),
                 precision: str = "auto") -> float:  # fmt: skip
    """The share of images, those in `rows`, that are nearer to another one of their person than to ten strangers."""
    return float(one_of_eleven(embed(model, part.images[rows], precision), part.people[rows])[0].mean())


def few_of_each(part: Part) -> np.ndarray:
    """The rows of four photos at most of each person who has two."""
    return np.concatenate([photos[:4] for photos in part.photos_of.values()])


def one_of_eleven(embeddings: Tensor, people: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """How often each image is nearer to another one of its person than to ten strangers (A,), and whose it is (A,).

    embeddings (N, D), people (N,); the A images are of people with two at least. The mean over ten draws of positives
    and strangers: a single one is too uncertain to choose an epoch by.
    """
    vectors, whose = embeddings.cpu().numpy(), people.cpu().numpy()
    draws = [metrics.one_of_eleven(vectors, whose, np.random.default_rng(seed)) for seed in range(10)]
    return np.mean([right for right, _ in draws], axis=0), draws[0][1]


def show_hardest(course: Course, images: Tensor, embeddings: Tensor, people: Tensor) -> None:
    """For TensorBoard: a row for each of 16 triplets."""
    hardest = hardest_triplets(embeddings, people, count=16).cpu()  # (16, 3)
    mosaic = torch.cat([torch.cat([*images[triplet]], dim=2) for triplet in hardest], dim=1)
    course.events.add_image("hardest triplets: anchor, positive, negative", mosaic, course.epoch)


def hardest_triplets(embeddings: Tensor, people: Tensor, count: int) -> Tensor:
    """The anchors whose farthest positive is farther than their nearest negative by most: rows (count, 3)."""
    distances = torch.cdist(embeddings, embeddings)  # (N, N)
    same = people[:, None] == people
    far, positive = distances.masked_fill(~same, -1).max(1)
    near, negative = distances.masked_fill(same, math.inf).min(1)
    anchor = (far - near).topk(min(count, len(people))).indices
    return torch.stack([anchor, positive[anchor], negative[anchor]], dim=1)


# ---------------------------------------------------------------- verifier


class Verifier(nn.Module):
    """Do two faces show one person? Embeddings (..., D), (..., D) -> scores (...) in 0..1.

    A linear layer over the squared differences: it learns which of the D numbers to trust.
    """

    def __init__(self, embedding_size: int = EMBEDDING_SIZE):
        super().__init__()
        self.linear = nn.Linear(embedding_size, 1)
        self.thresholds: dict[str, float] = {}  # train-verify chooses these two, load_verifier fills them
        self.naming_thresholds: dict[str, dict[int, float]] = {}

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.sigmoid(self.linear((first - second).square())).squeeze(-1)

    def naming_threshold(self, people: int, by: str = "score") -> float:
        """The score, or cosine, at which 1 % of strangers get a name among so many enrolled people; between the sizes
        that train-verify tried by the logarithm of the size, beyond them the nearest."""
        sizes, thresholds = zip(*sorted(self.naming_thresholds[by].items()))
        return float(np.interp(math.log(max(1, people)), np.log(sizes), thresholds))


def train_verifier(embeddings: Tensor, part: Part, epochs: int = 20, seed: int = 0) -> Verifier:
    """Trains on frozen embeddings (N, D): the mean squared error of same pairs plus that of different pairs.

    Each person comes twice an epoch with all photos in random pairs, and each pair with ten random strangers; with many
    photos an epoch has about a hundred steps.
    """
    training.seed_everything(seed)
    verifier = Verifier(embeddings.shape[1]).to(embeddings.device)
    optimizer = torch.optim.Adam(verifier.parameters(), lr=0.01)
    for epoch in tqdm(range(epochs), "verifier", leave=False, disable=None):
        random = np.random.default_rng([seed, epoch])
        for pairs in plan_pairs(list(part.photos_of.values()), max(16, len(part.people) // 100), random):
            anchors, positives = pairs.to(embeddings.device).T  # (A,), (A,)
            strangers = random_strangers(part.people, anchors, NEGATIVES, random)  # (A, 10)
            same = verifier(embeddings[anchors], embeddings[positives])  # (A,)
            different = verifier(embeddings[anchors][:, None], embeddings[strangers])  # (A, 10)
            loss = (1 - same).square().mean() + different.square().mean()
            training.check_finite(loss, f"epoch {epoch + 1} of the verifier", "train the recogniser again")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return verifier


@torch.inference_mode()
def score_pairs(verifier: Callable, embeddings: Tensor, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The verifier's scores (P,), or another function's, of pairs of rows (P,), (P,) of embeddings (N, D)."""
    blocks = zip(np.array_split(first, len(first) // 100_000 + 1), np.array_split(second, len(second) // 100_000 + 1))
    return np.concatenate([verifier(embeddings[a], embeddings[b]).double().cpu().numpy() for a, b in blocks])


def sampled_pairs(part: Part) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """At most ten same pairs of each person, and as many pairs of two people: rows (P,), (P,) and same (P,)."""
    return metrics.sample_pairs(part.people.cpu().numpy(), np.random.default_rng(0), per_person=10)


def all_strangers(part: Part) -> tuple[np.ndarray, np.ndarray]:
    """Every two people of the part once, with a random photo of each: rows (Q,), (Q,)."""
    shuffled = np.random.default_rng(0).permutation(len(part.people))
    one_of_each = shuffled[np.unique(part.people.cpu().numpy()[shuffled], return_index=True)[1]]
    first, second = np.triu_indices(len(one_of_each), k=1)
    return one_of_each[first], one_of_each[second]


def center_at_half(verifier: Verifier, embeddings: Tensor, part: Part) -> None:
    """Shifts the scores so that 0.5 parts same from different pairs best among people who were not trained on.

    Trained people lie closer together than new ones, so a verifier that has seen only them is too strict.
    """
    first, second, same = sampled_pairs(part)
    threshold = metrics.best_threshold(score_pairs(verifier, embeddings, first, second), same)
    with torch.no_grad():
        verifier.linear.bias -= torch.logit(torch.tensor(threshold, dtype=torch.float64), eps=1e-6)


def cosine(first: Tensor, second: Tensor) -> Tensor:
    """The cosine of the angle between embeddings (..., D), (..., D) -> (...) in -1..1."""
    return F.cosine_similarity(first, second, dim=-1)


def choose_thresholds(verifier: Verifier, embeddings: Tensor, part: Part) -> dict[str, float]:
    """For each false-accept rate the lowest score that no larger share of all pairs of two people reaches."""
    first, second = all_strangers(part)
    scores = score_pairs(verifier, embeddings, first, second)
    return {str(far): metrics.threshold_at_far(scores, np.zeros(len(scores), bool), far) for far in FALSE_ACCEPT_RATES}


def choose_naming_thresholds(similarity: Callable, embeddings: Tensor, part: Part,
                             share: float = 0.01) -> dict[str, float]:  # fmt: skip
    """Number of enrolled people -> the lowest closeness at which no more than `share` of strangers are given a name.

    The more people are enrolled, the more of them a stranger can be taken for. The people of one data set are harder to
    tell apart than those of two, whose photos differ, so each set is asked alone and the highest threshold counts.
    """
    random, thresholds = np.random.default_rng(0), {}
    for size in GALLERY_SIZES:
        of_each_set = []
        for photos_of in one_set_each(part):
            with_two = [person for person, photos in photos_of.items() if len(photos) > 1]
            if size == 1 or size <= len(with_two) // 2:
                galleries = [random.permutation(with_two)[:size] for _ in range(max(20, 500 // size))]
                scores = np.concatenate([
                    stranger_scores(similarity, embeddings, photos_of, known.tolist(), random) for known in galleries
                ])  # fmt: skip
                of_each_set.append(metrics.threshold_at_far(scores, np.zeros(len(scores), bool), share))
        if of_each_set:
            thresholds[str(size)] = max(of_each_set)
    return thresholds


def one_set_each(part: Part) -> list[dict[int, np.ndarray]]:
    """The rows of each person, for each data set with 100 people of two photos; for all together if none has."""
    sets: dict[str, dict[int, list[int]]] = {}
    for row, (person, source) in enumerate(zip(part.people.tolist(), part.sources)):
        for name in (source, ""):  # "" is all together
            sets.setdefault(name, {}).setdefault(person, []).append(row)
    arrays = {name: {person: np.array(rows) for person, rows in each.items()} for name, each in sets.items()}
    together = arrays.pop("")
    return [each for each in arrays.values() if sum(len(rows) > 1 for rows in each.values()) >= 100] or [together]


@torch.inference_mode()
def nearest_enrolled(similarity: Callable, asked: Tensor, enrolled: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
    """The ten photos nearest to each face, of all who are enrolled, and how close the face is to them.

    Embeddings: asked (F, D); enrolled (N, D) and, for each of these photos, the mean of its person's (N, D). Returns
    rows of `enrolled` (F, 10), nearest first, and closeness (F, 10). Exact: all distances are compared.
    """
    distances = (torch.cdist(some, enrolled, compute_mode="donot_use_mm_for_euclid_dist") for some in asked.split(16))
    nearest = torch.cat([some.topk(min(NEAREST, len(enrolled)), largest=False).indices for some in distances])
    return nearest, closeness(similarity, asked[:, None], enrolled[nearest], means[nearest])


def closeness(similarity: Callable, asked: Tensor, photos: Tensor, means: Tensor) -> Tensor:
    """Of faces to enrolled photos: the mean of the similarity to the photo and to the mean of its person's.

    Embeddings (..., D), all three; `similarity` is a verifier or `cosine`. Returns (...).
    """
    return (similarity(asked, photos) + similarity(asked, means)) / 2


def rank_people(names: Sequence[str], scores: Sequence[float]) -> list[tuple[str, float]]:
    """The people whose photos have these scores, each with the best one, the best person first."""
    best: dict[str, float] = {}
    for name, score in zip(names, scores):
        best[name] = max(score, best.get(name, -math.inf))
    return sorted(best.items(), key=lambda item: -item[1])


def stranger_scores(similarity: Callable, embeddings: Tensor, photos_of: dict[int, np.ndarray], known: list[int],
                    random: np.random.Generator) -> np.ndarray:  # fmt: skip
    """How close a photo of each person who is not enrolled is to the best of the `known` (S,), as the chain scores it.

    The known are enrolled with five photos at most.
    """
    enrolled = np.concatenate([random.permutation(photos_of[person])[:5] for person in known])  # rows (E,)
    whose = np.concatenate([[person] * min(5, len(photos_of[person])) for person in known])  # (E,)
    strangers = np.array([random.choice(rows) for person, rows in photos_of.items() if person not in set(known)])
    means = torch.from_numpy(person_means(embeddings[enrolled].cpu().numpy(), whose)).to(embeddings.device)
    _, scores = nearest_enrolled(similarity, embeddings[strangers], embeddings[enrolled], means)  # (S, 10)
    return scores.amax(1).double().cpu().numpy()


# ---------------------------------------------------------------- weights, and their use from Python


def save_recogniser(path: Path, course: Course, data: dict, measured: dict) -> None:
    """Writes the weights, and all that is needed to load them and to know where they come from; see `about_data`."""
    model, settings, size = course.model, course.settings, course.settings.embedding_size
    training.save_weights(path, model, {
        "architecture": f"{'resnet18-256-128' if settings.backbone == 'resnet18' else settings.backbone}-{size}",
        "backbone": settings.backbone,
        "embedding_size": size,
        "normalised": model.normalised,
        "crop": {"size": model.image_size, "color": model.color, "left_eye": [0.31, 0.46], "right_eye": [0.65, 0.46]},
        "data": data,
        "settings": asdict(settings),
        "epoch": course.best_epoch,
        "minutes": round(course.seconds / 60, 1),
        "measured": measured,
    })  # fmt: skip


def about_data(faces: datasets.FaceSet) -> dict:
    """How many people and images of which data sets were prepared, and a digest of their split."""
    return {name: faces.summary[name] for name in ("people", "images", "sources", "splits", "split_digest")}


def load_recogniser(path: str | Path = RECOGNISER, device: str = "auto") -> Recogniser:
    """A trained recogniser, ready to embed photos; `.metadata` says how it was made and what it measured."""
    tensors, metadata = read_recogniser(path)
    crop = metadata["crop"]
    model = Recogniser(metadata["backbone"], metadata["embedding_size"], crop["size"], crop["color"],
                       metadata["normalised"])  # fmt: skip
    training.load_tensors(model, tensors, path)
    model.metadata = metadata
    return model.to(training.choose_device(device), memory_format=torch.channels_last).eval()


def read_recogniser(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    return training.read_weights(path, "resnet18-256-128", *backbones.BACKBONES, "timm:")


def load_verifier(path: str | Path = VERIFIER, device: str = "auto") -> Verifier:
    """A trained verifier; `.thresholds` maps the false-accept rates "0.1", "0.01", "0.001" to scores.

    `.naming_threshold(people)` is the score from which on a face gets a name when so many people are enrolled,
    `.naming_threshold(people, "cosine")` the cosine.
    """
    tensors, metadata = training.read_weights(path, "linear")
    verifier = Verifier(tensors["linear.weight"].shape[1])
    training.load_tensors(verifier, tensors, path)
    if "score" not in metadata.get("naming_thresholds", ()):
        raise InputError(f"{path} was written by an older version: run train-verify.")
    verifier.metadata, verifier.thresholds = metadata, metadata["thresholds"]
    verifier.naming_thresholds = {by: {int(size): threshold for size, threshold in thresholds.items()}
                                  for by, thresholds in metadata["naming_thresholds"].items()}  # fmt: skip
    return verifier.to(training.choose_device(device)).eval()


def verifier_of(recogniser: str | Path) -> Path:
    """verification.safetensors beside recognition.safetensors; small-verifier.safetensors beside small.safetensors."""
    recogniser = Path(recogniser)
    usual = recogniser.name == RECOGNISER.name
    return recogniser.with_name(VERIFIER.name if usual else f"{recogniser.stem}-verifier.safetensors")


def load_matching_verifier(recogniser: str | Path, verifier: str | Path | None = None, device: str = "auto",
                           tta: bool = False) -> Verifier:  # fmt: skip
    """The verifier, the recogniser's own unless another is given.

    InputError when it was trained on the embeddings of another recogniser. Says so if it was trained with test-time
    augmentation and is used without, or the other way round.
    """
    verifier = verifier or verifier_of(recogniser)
    loaded = load_verifier(verifier, device)
    if loaded.metadata["recogniser_digest"] != training.digest(recogniser):
        raise InputError(f"{verifier} does not belong to {recogniser}: run train-verify.")
    if loaded.metadata.get("tta", False) != tta:
        print(f"Note: the thresholds were chosen with{'out' * tta} --tta, and fit less well so.", file=sys.stderr)
    return loaded


def embed_photos(model: Recogniser, photos: Sequence, crop_fraction: float = 1.0, max_pixels: int = MAX_PIXELS,
                 tta: bool = False) -> Tensor:  # fmt: skip
    """Photos of cropped faces (paths, PIL images or uint8 arrays) -> embeddings (N, D).

    The face must fill the picture as `prepare` shows it; `crop_fraction` keeps the centre of each photo.
    InputError names the first photo that cannot be read.
    """
    crops = [face_pixels(photo, model.image_size, crop_fraction, model.color, max_pixels) for photo in photos]
    return embed(model, np.stack(crops) if crops else (), tta=tta)


def readable_crops(model: Recogniser, paths: Sequence[Path],
                   args: argparse.Namespace) -> tuple[list[Path], np.ndarray]:  # fmt: skip
    """The photos that can be read, and their crops, uint8 (N, C, S, S); the others are named.

    InputError when none can be.
    """
    crops = {}
    for path in tqdm(paths, "reading", leave=False, disable=None):
        try:
            crops[path] = face_pixels(path, model.image_size, args.center_crop, model.color, args.max_pixels)
        except InputError as error:
            print(f"skipped: {error}", file=sys.stderr)
    if not crops:
        raise InputError("There is no photo that can be read: name photos, or folders with photos in them.")
    return list(crops), np.stack(list(crops.values()))


def crops_of_people(model: Recogniser, folder: Path,
                    args: argparse.Namespace) -> tuple[list[Path], np.ndarray, list[str]]:  # fmt: skip
    """FOLDER/NAME/photo.jpg -> paths, crops (N, C, S, S) and names of the photos that can be read."""
    paths, crops = readable_crops(model, [photo.path for photo in datasets.folder_of_folders(folder)], args)
    return paths, crops, [path.relative_to(folder).parts[0] for path in paths]


@torch.inference_mode()
def identify(similarity: Callable, gallery: Tensor, names: Sequence[str], probes: Tensor,
             threshold: float) -> list[tuple[str | None, list[tuple[str, float]]]]:  # fmt: skip
    """Who are they? For each probe the name, None for a stranger, and all people with their closeness.

    gallery (N, D) embeddings of photos of the people `names` (N,), probes (P, D); `similarity` is a verifier or
    `cosine`. As in the chain, the closest of the people of the ten nearest photos gives the name, from `threshold` on.
    These people come first, then all others, the closest first in either group.
    """
    means = torch.from_numpy(person_means(gallery.cpu().numpy(), names)).to(gallery.device)  # (N, D)
    answers = []
    for probe, rows, scores in zip(probes, *nearest_enrolled(similarity, probes, gallery, means)):
        ranked = rank_people([names[row] for row in rows.tolist()], scores.tolist())
        name = ranked[0][0] if ranked and ranked[0][1] >= threshold else None
        near = dict(ranked)
        everybody = rank_people(names, closeness(similarity, probe, gallery, means).tolist())
        answers.append((name, ranked + [each for each in everybody if each[0] not in near]))
    return answers


# ---------------------------------------------------------------- measuring


def measure(verifier: Verifier, embeddings: Tensor, part: Part) -> tuple[dict, np.ndarray, np.ndarray]:
    """All metrics of people who were not trained on, with 95 % intervals; also the pairs' scores and same (P,)."""
    vectors, people, random = embeddings.cpu().numpy(), part.people.cpu().numpy(), np.random.default_rng(0)
    first, second, same = sampled_pairs(part)
    scores = score_pairs(verifier, embeddings, first, second)
    folds = random.permutation(len(scores)) % 10
    report = metrics.verification_report(scores, same, people[first], people[second], folds, random)

    queries = metrics.retrieval_per_query(vectors, people)
    right, anchor_people = one_of_eleven(embeddings, part.people)
    each = {name: (queries[name], queries["people"]) for name in ("recall_at_1", "r_precision", "map_at_r")}
    for name, (values, whose) in {"one_of_eleven": (right, anchor_people), **each}.items():
        report[name] = float(np.mean(values))
        report[f"{name}_interval"] = list(metrics.people_interval(values, whose, random))
    report["balanced_accuracy_at"] = accuracy_at_thresholds(scores, same)
    report["effective_dimensions"] = metrics.effective_dimensions(vectors)
    return report | {"people": len(np.unique(people)), "images": len(people), "pairs": len(same)}, scores, same


def accuracy_at_thresholds(scores: np.ndarray, same: np.ndarray) -> dict[str, float]:
    """Mean of the accuracies on same and on different pairs, if pairs from this score on are taken as same."""
    return {f"{score:.1f}": metrics.balanced_accuracy(scores, same, score) for score in np.arange(1, 10) / 10}


def measure_lfw(model: Recogniser, verifier: Verifier, args: argparse.Namespace) -> tuple[dict, np.ndarray, np.ndarray]:
    """The protocol of Labeled Faces in the Wild (Huang et al. 2007): ten folds of same and different pairs.

    Photos are IMAGES/name/name_0001.jpg, or .png and so on. Pairs with a photo that is missing or cannot be read are
    named, counted and left out.
    """
    pairs = metrics.read_lfw_pairs(args.pairs)  # (name, number, name, number, same, fold)
    path_of = {photo: metrics.lfw_photo(args.images, *photo) for pair in pairs for photo in (pair[:2], pair[2:4])}
    if not any(path.exists() for path in path_of.values()):
        raise InputError(f"{args.images} lacks the photos of {args.pairs}: give the folder with one folder per person.")
    paths, crops = readable_crops(model, sorted(path_of.values()), args)
    row_of = {path: row for row, path in enumerate(paths)}
    usable = [pair for pair in pairs if path_of[pair[:2]] in row_of and path_of[pair[2:4]] in row_of]
    if len({pair[4] for pair in usable}) < 2:
        raise InputError(f"Of the pairs of {args.pairs} only {len(usable)} of one kind can be read: both are needed.")
    first, second = (np.array([row_of[path_of[pair[i : i + 2]]] for pair in usable]) for i in (0, 2))
    first_people, second_people, same, folds = (np.array([pair[i] for pair in usable]) for i in (0, 2, 4, 5))
    embeddings = embed(model, crops, args.precision, args.tta)
    scores = score_pairs(verifier, embeddings, first, second)
    try:
        report = metrics.verification_report(scores, same, first_people, second_people, folds, np.random.default_rng(0))
    except ValueError as error:
        raise InputError(f"{args.pairs} cannot be measured: {error}.") from None
    if len(np.unique(folds)) > 1:
        report["standard_error"] = metrics.ten_fold_accuracy(scores, same, folds)[1]
    report["balanced_accuracy_at"] = accuracy_at_thresholds(scores, same)
    people = len({name for (name, _), path in path_of.items() if path in row_of})
    counts = {"people": people, "images": len(crops), "pairs": len(same), "pairs_skipped": len(pairs) - len(same)}
    return report | counts, scores, same


# ---------------------------------------------------------------- commands


def command_download(args: argparse.Namespace) -> int:
    failed = 0
    for name in datasets.KNOWN if args.name == "all" else [args.name]:
        try:
            print(f"{name}: {datasets.download(name)}")
        except InputError as error:  # the others may work
            print(f"error: {error}", file=sys.stderr)
            failed = 2
    return failed


def command_prepare(args: argparse.Namespace) -> int:
    args.prepared = args.prepared or prepared_folder(args.image_size, args.color, args.data)
    prepare(args, args.image_size or IMAGE_SIZE, bool(args.color), args.seed)
    print(f"To learn from them: train{changed_paths(prepared=(args.prepared, PREPARED))}")
    return 0


def prepared_folder(image_size: int | None, color: bool | None, data: Sequence[Path] | None = None) -> Path:
    """data/recognition for the usual crops, else for example data/recognition-112-color."""
    drawn = "-synthetic" if data == [SYNTHETIC] else ""
    size = f"-{image_size}" if image_size not in (None, IMAGE_SIZE) else ""
    return PREPARED.with_name(f"{PREPARED.name}{drawn}{size}{'-color' if color else ''}")


def prepare(args: argparse.Namespace, image_size: int, color: bool, seed: int = 0) -> None:
    """Finds the photos, or draws some, and packs them into the folder args.prepared; `seed` chooses the test people."""
    if args.center_crop != 1 and (not args.data or args.data == [SYNTHETIC]):
        raise InputError("--center-crop goes with --data DIR: the sets under dataset/ and drawn faces have their own.")
    if args.data and args.data != [SYNTHETIC]:
        if args.drawn_people:
            raise InputError("--drawn-people draws faces instead of reading photos: leave it out, or --data.")
        photos = [photo for root in args.data for photo in datasets.folder_of_folders(root, args.center_crop)]
    else:
        photos = datasets.find_known() if args.drawn_people is None and not args.data else []
    if not photos:
        people = args.drawn_people or 500
        why = "" if args.drawn_people or args.data else "There is no data set under dataset/: "
        print(f"{why}drawing {people} people.")
        drawn = args.prepared / f"drawn_{people}_people_{seed}"
        synthetic.write_faces(drawn, people, PICTURES_PER_DRAWN_PERSON, seed)
        photos = datasets.folder_of_folders(drawn)
    summary = datasets.pack_faces(photos, args.prepared, image_size, color, seed, max_pixels=args.max_pixels)
    for source, counts in summary["sources"].items():
        print(f"{source}: {counts['images']} images of {counts['people']} people")
    commands.print_skipped(summary, args.prepared)
    parts = ", ".join(f"{counts['people']} people for {name}" for name, counts in summary["splits"].items())
    print(f"{summary['images']} images of {summary['people']} people, {summary['people_with_one_image']} of them with "
          f"one image; {len(summary['skipped'])} files skipped; {parts}.")  # fmt: skip
    print(f"What the model will see: {args.prepared}/contact_sheet_*.png")


def load_prepared(folder: Path, image_size: int, color: bool) -> datasets.FaceSet:
    """InputError, which says how to prepare such faces, when there are none."""
    if not folder.exists():
        kind = f" --image-size {image_size}" * (image_size != IMAGE_SIZE) + " --color" * color
        raise InputError(f"{folder} is missing: first run face_recognition.py prepare{kind} --prepared {folder}")
    return datasets.load_faces(folder)


def prepared_for(model: Recogniser, weights: Path, prepared: Path | None) -> datasets.FaceSet:
    """The prepared faces, cut as the recogniser of these weights needs them."""
    folder = prepared or prepared_folder(model.image_size, model.color)
    faces = load_prepared(folder, model.image_size, model.color)
    if faces.images.shape[1:] != (3 if model.color else 1, model.image_size, model.image_size):
        raise InputError(f"{weights} needs other faces than {folder} has: prepare --image-size "
                         f"{model.image_size}{' --color' if model.color else ''} into another folder.")  # fmt: skip
    commands.note_other_split(model.metadata, faces.summary)
    return faces


def choose_settings(args: argparse.Namespace) -> Settings:
    """The settings that the command line asks for; each backbone and loss brings its own sizes, scale and margin."""
    if args.hard_only and args.loss != "triplet":
        raise InputError(f"--hard-only goes with the loss triplet, not with {args.loss}.")
    if args.reference and (args.loss != "triplet" or args.scale is not None):
        raise InputError("--reference is a triplet loss without a scale: leave it out, or --loss and --scale.")
    if args.reference and args.teacher:
        raise InputError("--reference has no --teacher: leave out one of them.")
    usual = REFERENCE if args.reference else Settings()
    commands.use_own_copies(args, run_name(args) if args.resume is True and not args.dry_run else None)
    if args.teacher:
        read_recogniser(args.teacher)
        if Path(args.teacher).resolve() == args.recogniser.resolve() and not args.dry_run:
            raise InputError(f"This training would replace its teacher, {args.teacher}: give --recogniser FILE.")
    least = 2 * usual.images_per_person
    if args.loss == "triplet" and not args.reference and (args.batch_size or least) < least:
        raise InputError(f"--batch-size {args.batch_size} leaves no strangers to compare with: take {least} at least.")
    if args.init:  # now: a mistake is to be known before anything is prepared
        follow_init(args)
    args.backbone = args.backbone or "resnet18"
    if args.backbone != "resnet18":
        backbones.check_name(args.backbone)
        usual = replace(usual, embedding_size=128)
    if args.loss != "triplet":
        usual = replace(usual, scale=None, margin=None)
    if args.loss == "softmax":
        usual = replace(usual, learning_rate=3e-4)  # at 1e-3 its embeddings soon shrink to nothing
    settings = commands.choose_settings(usual, args)
    make_loss(settings, people=2)  # now, too: not every loss has a scale and a margin
    return settings


def run_name(args: argparse.Namespace) -> str:
    """The name of a training without --name."""
    if args.reference:
        return "reference"
    backbone = read_recogniser(args.init)[1]["backbone"] if args.init and not args.backbone else args.backbone
    return f"{args.loss}-{backbone or 'resnet18'}"


def follow_init(args: argparse.Namespace) -> None:
    """Where the command line says nothing, backbone and sizes are those of the weights to start from."""
    _, about = read_recogniser(args.init)
    crop = about["crop"]
    own = {"backbone": about["backbone"], "embedding_size": about["embedding_size"], "image_size": crop["size"],
           "color": crop["color"]}  # fmt: skip
    for name, value in own.items():
        asked = getattr(args, name)
        if asked not in (None, value) and (name, own["backbone"]) != ("image_size", "resnet18"):  # which takes any
            switch = f"--{'no-' * (asked is False)}{name.replace('_', '-')}" + f" {asked}" * (name != "color")
            raise InputError(f"{args.init} does not fit {switch}: leave out one of them, or make it the --teacher.")
        if asked is None and not (name == "image_size" and args.prepared and own["backbone"] == "resnet18"):
            setattr(args, name, value)


def faces_for_training(args: argparse.Namespace) -> datasets.FaceSet:
    """The prepared faces; those of --data are prepared first. `args` has their size and colour then."""
    other = args.backbone != "resnet18"
    size, color = args.image_size or (112 if other else IMAGE_SIZE), other if args.color is None else args.color
    if args.drawn_people and not args.data:
        args.data = [SYNTHETIC]
    args.prepared = args.prepared or prepared_folder(size, color, args.data)
    if args.data and args.resume:
        print(f"Going on with the faces in {args.prepared}: --data is not read again.")
    elif args.data:
        if other:  # before the work: not every backbone is there, or takes every size
            backbones.build(args.backbone, args.embedding_size or 128, 3 if color else 1, size)
        prepare(args, size, color)
    elif args.center_crop != 1 and not args.data:
        raise InputError("--center-crop goes with --data DIR: prepared faces are cut already.")
    faces = load_prepared(args.prepared, size, color)
    channels, _, found = faces.images.shape[1:]
    if args.image_size not in (None, found) or args.color not in (None, channels == 3):
        colour = "in colour" if channels == 3 else "grey"
        raise InputError(f"{args.prepared} has other faces, {found}x{found} {colour}, than --image-size, --color or "
                         "--init ask for: leave these out, or prepare another folder.")  # fmt: skip
    args.image_size, args.color = found, channels == 3
    return faces


def command_train(args: argparse.Namespace) -> int:
    settings, device = choose_settings(args), training.choose_device(args.device)
    faces = faces_for_training(args)
    test = Part(faces, "test", device)  # now: too few test people are to be known before the training
    data = about_data(faces)
    for weights in filter(None, (settings.init, settings.teacher)):
        if commands.note_other_split(read_recogniser(weights)[1], faces.summary):
            data["split_digest"] = None  # `evaluate` is to say so, too
    with commands.recorded(args, run_name(args)) as folder:
        print(f"{faces.summary['splits']['train']['people']} people, {faces.summary['splits']['train']['images']} "
              f"images for training, on {training.describe(device, args.precision)}", flush=True)  # fmt: skip
        course = train(faces, settings, folder, device, args.precision, args.time_limit, args.resume, args.dry_run,
                       args.tensorboard)  # fmt: skip
        accuracy = share_nearer(course.model, test, precision=args.precision)
        measured = {"one_of_eleven_validation": round(course.best_score, 4), "one_of_eleven_test": round(accuracy, 4)}
        weights = folder / "recognition.safetensors"
        save_recogniser(weights, course, data, measured)
        print(f"Nearer to their own person than to ten strangers: {accuracy:.1%} of the faces of test people "
              f"(best epoch: {course.best_epoch}).\nHistory: {folder / 'history.png'}; weights: {weights}")  # fmt: skip
        if not args.dry_run:
            save_recogniser(args.recogniser, course, data, measured)
            usual = prepared_folder(args.image_size, args.color)
            flags = changed_paths(prepared=(args.prepared, usual), recogniser=(args.recogniser, RECOGNISER))
            print(f"and {args.recogniser}. The verifier has to learn these: train-verify{flags}")
    return 0


def changed_paths(**paths: tuple[Path | None, Path]) -> str:
    """The switches that the next command needs for those (chosen, usual) paths that are not the usual ones."""
    return "".join(f" {commands.quoted([f'--{name}', str(chosen)])}" for name, (chosen, usual) in paths.items()
                   if chosen not in (None, usual))  # fmt: skip


def command_average(args: argparse.Namespace) -> int:
    """The mean of weights that were trained on from the same ones is often better than each of them.

    Wortsman et al. 2022, "Model soups".
    """
    tensors, abouts = zip(*(read_recogniser(path) for path in args.weights))
    if any(about[name] != abouts[0][name] for about in abouts for name in ("architecture", "crop", "normalised")):
        raise InputError("These weights are of several kinds: average those that were trained on from the same ones.")
    model = load_recogniser(args.weights[0], args.device)
    if any(about["data"]["split_digest"] != abouts[-1]["data"]["split_digest"] for about in abouts):
        model.metadata["data"]["split_digest"] = abouts[-1]["data"]["split_digest"] = None
    faces = prepared_for(model, args.weights[0], args.prepared)
    mean = {name: torch.stack([each[name] for each in tensors]).float().mean(0) for name in tensors[0]}
    training.load_tensors(model, {name: value.to(tensors[0][name].dtype) for name, value in mean.items()}, args.output)
    validation, test = (Part(faces, name, training.choose_device(args.device)) for name in ("validation", "test"))
    measured = {"one_of_eleven_validation": share_nearer(model, validation, few_of_each(validation)),
                "one_of_eleven_test": share_nearer(model, test)}  # fmt: skip
    minutes = {path: about["minutes"] for path, about in zip(args.weights, abouts)}
    about = {"averaged": [path.name for path in args.weights], "minutes": sum(minutes.values()),
             "measured": {name: round(share, 4) for name, share in measured.items()}}  # fmt: skip
    training.save_weights(args.output, model, abouts[-1] | about)
    usual = prepared_folder(model.image_size, model.color)
    flags = changed_paths(prepared=(args.prepared, usual), recogniser=(args.output, RECOGNISER))
    print(f"{args.output}: the mean of {len(tensors)} weights.\nNearer to their own person than to ten strangers: "
          f"{measured['one_of_eleven_validation']:.1%} of the faces of validation people (to choose by), "
          f"{measured['one_of_eleven_test']:.1%} of those of test people.\n"
          f"The verifier has to learn these weights: train-verify{flags}")  # fmt: skip
    return 0


def command_train_verify(args: argparse.Namespace) -> int:
    model, device = load_recogniser(args.recogniser, args.device), training.choose_device(args.device)
    path = args.verifier or verifier_of(args.recogniser)
    faces = prepared_for(model, args.recogniser, args.prepared)
    parts = {name: Part(faces, name, device, most_people=VERIFIER_PEOPLE) for name in datasets.SPLITS}
    embeddings = {name: embed(model, part.images, args.precision, args.tta) for name, part in parts.items()}
    verifier = train_verifier(embeddings["train"], parts["train"], args.epochs, args.seed)
    center_at_half(verifier, embeddings["validation"], parts["validation"])
    verifier.half().float()  # as it will be saved: the thresholds are to fit to the last bit
    thresholds = choose_thresholds(verifier, embeddings["validation"], parts["validation"])
    naming = {by: choose_naming_thresholds(similarity, embeddings["validation"], parts["validation"])
              for by, similarity in (("score", verifier), ("cosine", cosine))}  # fmt: skip

    people = len(parts["validation"].all_photos_of)
    pairs = people * (people - 1) // 2
    for far in thresholds:
        if pairs * float(far) < 1:
            print(f"Note: {pairs} pairs of strangers are too few to choose a score for {float(far):.1%}.")
    accuracy = try_thresholds(verifier, thresholds, embeddings["test"], parts["test"])
    training.save_weights(path, verifier, {
        "architecture": f"linear-{model.embedding_size}", "seed": args.seed,
        "thresholds": thresholds, "naming_thresholds": naming, "crop": model.metadata["crop"], "tta": args.tta,
        "data": about_data(faces), "recogniser_digest": training.digest(args.recogniser),
        "measured": {"balanced_accuracy_test": round(accuracy, 4)},
    })  # fmt: skip
    sizes = ", ".join(f"{threshold:.3f} with {size}" for size, threshold in naming["score"].items())
    usual = prepared_folder(model.image_size, model.color)
    flags = changed_paths(prepared=(args.prepared, usual), recogniser=(args.recogniser, RECOGNISER),
                          verifier=(path, verifier_of(args.recogniser)))  # fmt: skip
    print(f"To name a face, at most 1 % of strangers getting a name: score {sizes} people enrolled.\n"
          f"Weights: {path}. To measure all: evaluate{flags}{' --tta' * args.tta}")  # fmt: skip
    return 0


def try_thresholds(verifier: Verifier, thresholds: dict[str, float], embeddings: Tensor, part: Part) -> float:
    """Prints what the thresholds turn out to be on other people; returns the accuracy at 0.5."""
    first, second, same = sampled_pairs(part)
    scores = score_pairs(verifier, embeddings, first, second)
    strangers = score_pairs(verifier, embeddings, *all_strangers(part))
    accuracy = metrics.balanced_accuracy(scores, same)
    print(f"Test people: {accuracy:.1%} of {len(same)} pairs right at score 0.5 (mean of same and different pairs).")
    for far, threshold in thresholds.items():
        print(f"A false-accept rate of {float(far):.1%} was asked for: score {threshold:.3f}; on test people "
              f"{np.mean(strangers >= threshold):.2%} of {len(strangers)} pairs of strangers are accepted, "
              f"and {np.mean(scores[same] >= threshold):.1%} of {same.sum()} same pairs.")  # fmt: skip
    return accuracy


def chosen_models(args: argparse.Namespace) -> tuple[Recogniser, Verifier]:
    return (load_recogniser(args.recogniser, args.device),
            load_matching_verifier(args.recogniser, args.verifier, args.device, args.tta))  # fmt: skip


def command_evaluate(args: argparse.Namespace) -> int:
    model, verifier = chosen_models(args)
    if args.pairs or args.images:
        if not (args.pairs and args.images):
            raise InputError("--images DIR and --pairs FILE go together: give both, or neither for the saved split.")
        if args.prepared:
            raise InputError("--prepared is not read with --images: leave out one of them.")
        report, scores, same = measure_lfw(model, verifier, args)
        print("Note: if some of these people are among those that the recogniser was trained on, the numbers are too "
              "good.", file=sys.stderr)  # fmt: skip
    else:
        if args.center_crop != 1:
            raise InputError("--center-crop goes with --images: prepared faces are cut already.")
        part = Part(prepared_for(model, args.recogniser, args.prepared), "test", training.choose_device(args.device))
        report, scores, same = measure(verifier, embed(model, part.images, args.precision, args.tta), part)
    far, tar, _ = metrics.roc_curve(scores, same)
    charts.roc_chart(far, tar, args.charts / "roc.png", report["roc_auc"], report["eer"])
    lines = {f"FAR {float(far):.1%}": threshold for far, threshold in verifier.thresholds.items()}
    charts.score_histogram(scores, same, lines, args.charts / "scores.png")
    if args.json:
        print(json.dumps(report))
    else:
        print_report(report)
        print(f"Charts: {args.charts / 'roc.png'}, {args.charts / 'scores.png'}")
    return 0


def print_report(report: dict) -> None:
    """One line a metric with its interval; then how many people, images and pairs they are measured on."""
    for name, value in report.items():
        if f"{name}_interval" not in report and name != "standard_error":
            continue
        low, high = report.get(f"{name}_interval") or (None, None)
        interval = "" if low is None else f"  [{low:.4f}, {high:.4f}]"
        if value is not None:
            print(f"{name:18} {value:.4f}{interval}")
        elif name.startswith("tar_at_far_"):
            print(f"{name:18} too few pairs: it takes {1 / float(name.removeprefix('tar_at_far_')):.0f} of strangers")
        else:
            print(f"{name:18} not with a single fold")
    at = "  ".join(f"{score}: {accuracy:.3f}" for score, accuracy in report["balanced_accuracy_at"].items())
    print(f"balanced_accuracy at score  {at}")
    if "effective_dimensions" in report:
        print(f"the embeddings vary in {report['effective_dimensions']:.1f} dimensions")
    counts = ", ".join(f"{report[name]} {name}" for name in ("people", "images", "pairs"))
    counts += f" ({report['pairs_skipped']} more skipped)" if report.get("pairs_skipped") else ""
    print(f"{counts}; in brackets 95 % intervals, by resampling people")


def command_compare(args: argparse.Namespace) -> int:
    """One photo against one: a sentence. Against many: a table."""
    model, verifier = chosen_models(args)
    threshold = verifier.thresholds[args.far or "0.01"] if args.threshold is None else args.threshold
    reference = embed_photos(model, [args.reference], args.center_crop, args.max_pixels, args.tta)  # (1, D)
    one = len(args.photos) == 1 and not os.path.isdir(args.photos[0])
    if one:
        paths = args.photos
        embeddings = embed_photos(model, paths, args.center_crop, args.max_pixels, args.tta)
    else:
        paths, crops = readable_crops(model, photos_in(args.photos), args)
        embeddings = embed(model, crops, tta=args.tta)  # (N, D)
    with torch.inference_mode():
        scores = verifier(reference, embeddings).tolist()
    distances, cosines = (reference - embeddings).norm(dim=1).tolist(), cosine(reference, embeddings).tolist()
    rows = [{"photo": str(path), "cosine": similarity, "distance": distance, "score": score, "same": score >= threshold}
            for path, similarity, distance, score in zip(paths, cosines, distances, scores)]  # fmt: skip
    if one and not (args.json or args.csv):
        reached_by = f", which {float(args.far or 0.01):.1%} of strangers reach" if args.threshold is None else ""
        print(f"{'same person' if rows[0]['same'] else 'different people'}: score {scores[0]:.3f}, "
              f"distance {distances[0]:.3f} (same from {threshold:.3f} on{reached_by})")  # fmt: skip
    else:
        commands.print_table(rows, args)
    return 0 if any(row["same"] for row in rows) else 1


def command_identify(args: argparse.Namespace) -> int:
    model, verifier = chosen_models(args)
    _, crops, names = crops_of_people(model, args.gallery, args)
    asked, faces = readable_crops(model, photos_in(args.photos), args)
    gallery, probes = embed(model, crops, tta=args.tta), embed(model, faces, tta=args.tta)
    similarity = verifier if args.by == "score" else cosine
    threshold = verifier.naming_threshold(len(set(names)), args.by) if args.threshold is None else args.threshold
    rows = []
    for path, (name, ranked) in zip(asked, identify(similarity, gallery, names, probes, threshold)):
        first = ranked[: args.top]
        if args.json:
            candidates = [{"name": person, args.by: value} for person, value in first]
            rows.append({"photo": str(path), "name": name, "candidates": candidates})
        else:
            best = ", ".join(f"{person} {value:.3f}" for person, value in first)
            rows.append({"photo": str(path), "name": name or "Unknown", f"best by {args.by}": best})
    commands.print_table(rows, args)
    return 0


def command_visualize(args: argparse.Namespace) -> int:
    model = load_recogniser(args.recogniser, args.device)
    paths, faces, names = crops_of_people(model, args.folder, args)
    points = maps.project(embed(model, faces, tta=args.tta).cpu().numpy(), args.method, args.seed)
    maps.map_png(points, names, args.output / "map.png")
    print(f"{len(paths)} photos of {len(set(names))} people: {args.output / 'map.png'}")
    maps.map_page(points, names, faces, paths, args.output / "map.html")
    print(f"and with the photos: {args.output / 'map.html'}")
    return 0


def command_export(args: argparse.Namespace) -> int:
    model = load_recogniser(args.recogniser, "cpu")
    path = args.output or args.recogniser.with_suffix({"onnx": ".onnx", "torchscript": ".pt"}[args.format])
    if (path.suffix == ".onnx") != (args.format == "onnx"):
        raise InputError(f"{path}: only a file of --format onnx can, and has to, be named .onnx.")
    channels, about = 3 if model.color else 1, model.metadata
    description = export.describe(about["architecture"], channels, model.image_size, model.embedding_size,
                                  model.normalised, about["crop"])  # fmt: skip
    if args.photos:
        _, crops = readable_crops(model, photos_in(args.photos), args)
    else:
        if args.center_crop != 1:
            raise InputError("--center-crop goes with --photos: drawn faces are cut already.")
        drawn = [synthetic.draw_face(synthetic.make_person(i), 0).pixels for i in range(32)]
        crops = np.stack([face_pixels(pixels, model.image_size, 1.0, model.color) for pixels in drawn])
    with written_whole(path) as temporary:
        try:
            export.EXPORTS[args.format](model, temporary, description, channels, model.image_size)
            difference = export.check_export(model, temporary, unvaried(torch.from_numpy(crops)))
        except InputError as error:
            raise InputError(str(error).replace(str(temporary), str(path))) from None
        if not difference < LARGEST_EXPORT_ERROR:
            raise InputError(f"{path} was not written: it would give other embeddings than PyTorch, by up to "
                             f"{difference:.2g}.")
    print(f"{path}: embeddings of {len(crops)} {'photos' if args.photos else 'drawn faces'} differ from PyTorch's by "
          f"{difference:.2g} at most.")  # fmt: skip
    return 0


# ---------------------------------------------------------------- command line


OPTIONS = commands.OPTIONS | commands.with_defaults(Settings(), REFERENCE) | {  # of more than one command
    "--prepared": dict(type=Path, metavar="DIR", help=f"prepared faces [{PREPARED}; {PREPARED}-112-color and so on]"),
    "--recogniser": dict(type=Path, default=RECOGNISER, metavar="FILE", help=f"train writes it [{RECOGNISER}]"),
    "--verifier": dict(type=Path, metavar="FILE", help=f"[{VERIFIER}; beside other weights NAME-verifier.safetensors]"),
    "--data": dict(type=Path, action="append", metavar="DIR", help="DIR/PERSON/photo.jpg, may be repeated, or "
                   "`synthetic` for drawn faces [prepare: the sets under dataset/, else drawn faces; train: what is "
                   "prepared]"),
    "--center-crop": dict(type=commands.number(float, 0.01, 1), default=1.0, metavar="PART",
                          help="keep this part of width and height [1]"),
    "--drawn-people": dict(type=commands.number(int, 1), metavar="N", help="draw N people instead"),
    "--image-size": dict(type=commands.number(int, 16), metavar="N", help="pixels a side of a crop "
                         f"[{IMAGE_SIZE}; train: 112 for other backbones]"),
    "--color": dict(action=argparse.BooleanOptionalAction, help="crops in colour [grey; train: in colour for "
                    "other backbones]"),
    "--tta": dict(action="store_true", help="test-time augmentation: the mean over shifted and mirrored crops"),
    "--far": dict(choices=[str(far) for far in FALSE_ACCEPT_RATES],
                  help="share of strangers that may be taken for one person [0.01]"),
    "--threshold": dict(type=commands.number(float, -1), metavar="SCORE",
                        help="use this one instead of that of the verifier"),
    "--json": dict(action="store_true", help="JSON on standard output"),
    "--csv": dict(action="store_true", help="CSV on standard output"),
}  # fmt: skip
PREPARING = ("--data", "--center-crop", "--drawn-people", "--image-size", "--color", "--max-pixels")
USING = ("--recogniser", "--verifier", "--device", "--center-crop", "--max-pixels", "--tta")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable, about: str, *options: str) -> argparse.ArgumentParser:
        return commands.add_command(subparsers, name, run, about, {option: OPTIONS[option] for option in options})

    sub = command("download", command_download, "Get a public data set into dataset/.")
    sub.add_argument("name", choices=[*datasets.KNOWN, "all"])

    command("prepare", command_prepare, "Find face crops, scale them, split the people.",
            "--prepared", *PREPARING, "--seed")  # fmt: skip

    sub = command("train", command_train, "Train the recogniser; with --data prepare first (with seed 0).",
                  "--prepared", "--recogniser", *PREPARING, *commands.TRAINING)  # fmt: skip
    sub.add_argument("--reference", action=argparse.BooleanOptionalAction, help="the reference method, without "
                     f"additions ({REFERENCE.epochs} epochs, {REFERENCE.batch_size} images a step)")  # fmt: skip
    sub.add_argument("--loss", default="triplet", choices=LOSSES, help="[triplet]; softmax learns at a rate of 0.0003")
    sub.add_argument("--scale", type=commands.number(float, 0.001), help="of the loss [its own]")
    sub.add_argument("--margin", type=commands.number(float, 0), help="of the loss [its own]")
    sub.add_argument("--backbone", metavar="NAME", help=f"resnet18, {', '.join(backbones.BACKBONES)}, or timm:NAME "
                     "[that of --init, else resnet18]")  # fmt: skip
    sub.add_argument("--embedding-size", type=commands.number(int, 2), metavar="N",
                     help=f"numbers of an embedding [{EMBEDDING_SIZE}; 128 for other backbones]")  # fmt: skip
    sub.add_argument("--init", metavar="WEIGHTS", help="start from these; backbone and sizes are theirs, then")
    sub.add_argument("--teacher", metavar="WEIGHTS", help="learn the cosines of this recogniser, too: a small backbone "
                     "from a large one's")  # fmt: skip
    sub.add_argument("--hard-only", action=argparse.BooleanOptionalAction,
                     help="learn only from triplets that the model gets wrong: a second stage, after --init")

    sub = command("average", command_average, "Weights that are the mean of several, trained on from the same ones.",
                  "--prepared", "--device")  # fmt: skip
    sub.add_argument("weights", type=Path, nargs="+", metavar="WEIGHTS", help="one that comes twice counts twice")
    sub.add_argument("--output", type=Path, required=True, metavar="FILE")

    sub = command("train-verify", command_train_verify, "Train the verifier, choose its thresholds.",
                  "--prepared", "--recogniser", "--verifier", "--tta", "--seed", "--device", "--precision")  # fmt: skip
    sub.add_argument("--epochs", type=commands.number(int, 1), default=20, help="[20]")

    sub = command("evaluate", command_evaluate, "Measure on test people, or by the LFW protocol.",
                  "--prepared", *USING, "--precision", "--json")  # fmt: skip
    sub.add_argument("--images", type=Path, metavar="DIR", help="DIR/name/name_0001.jpg, for --pairs")
    sub.add_argument("--pairs", type=Path, metavar="FILE", help="pairs.txt of LFW")
    sub.add_argument("--charts", type=Path, default=Path("data/evaluation"), metavar="DIR", help="[data/evaluation]")

    sub = command("compare", command_compare, "Does a face crop show the person of others? Exit status 0: yes, of one "
                  "at least, 1: no.", *USING, "--far", "--threshold", "--json", "--csv")  # fmt: skip
    sub.add_argument("reference", type=Path, metavar="REFERENCE")
    sub.add_argument("photos", type=Path, nargs="+", metavar="PATH", help="a photo, or a folder of photos")

    sub = command("identify", command_identify, "Whose face crops are these, among many people, or nobody's?",
                  *USING, "--threshold", "--json", "--csv")  # fmt: skip
    sub.add_argument("gallery", type=Path, metavar="GALLERY", help="a folder with one folder of face crops per person")
    sub.add_argument("photos", type=Path, nargs="+", metavar="PATH", help="a photo, or a folder of photos")
    sub.add_argument("--top", type=commands.number(int, 1), default=5, metavar="K", help="show K people [5]")
    sub.add_argument("--by", default="score", choices=["score", "cosine"], help="the verifier's score or the cosine")

    sub = command("visualize", command_visualize, "Draw a map of the embeddings of people's face crops.",
                  "--recogniser", "--device", "--center-crop", "--max-pixels", "--tta", "--seed")  # fmt: skip
    sub.add_argument("folder", type=Path, metavar="FOLDER", help="one folder of face crops per person")
    sub.add_argument("--method", default="tsne", choices=sorted(maps.PROJECTIONS), help="[tsne]")
    sub.add_argument("--output", type=Path, default=Path("data/map"), metavar="DIR", help="[data/map]")

    sub = command("export", command_export, "Write the recogniser for other software.", "--recogniser", "--center-crop",
                  "--max-pixels")  # fmt: skip
    sub.add_argument("--format", default="onnx", choices=sorted(export.EXPORTS), help="[onnx]")
    sub.add_argument("--output", type=Path, metavar="FILE", help="[beside the weights]")
    sub.add_argument("--photos", type=Path, nargs="+", default=[], metavar="PATH",
                     help="face crops to compare the exported model with PyTorch on [drawn faces]")  # fmt: skip
    return commands.parse(parser, arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    return commands.run(parse(arguments))


if __name__ == "__main__":
    sys.exit(main())
