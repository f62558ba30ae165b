"""Who is in this photo? Detector, landmarks and recogniser in a chain that names everybody in a photo.

    python3 fasterrcnn_face_recognition.py                   asks for photos: type a path, get the names
    python3 fasterrcnn_face_recognition.py recognize PATH    the same for files and folders
    python3 fasterrcnn_face_recognition.py enroll NAME PHOTO, forget NAME, people
    python3 fasterrcnn_face_recognition.py cut FOLDER DIR    the largest face of each photo, to train the recogniser

    python3 fasterrcnn_face_recognition.py prepare           photos with boxes -> data/detection/, split by photo
    python3 fasterrcnn_face_recognition.py train             -> weights/detection.safetensors: photo -> boxes, scores
    python3 fasterrcnn_face_recognition.py evaluate          AP50, AP75, recall by face size, on photos not trained on
    python3 fasterrcnn_face_recognition.py evaluate --people DIR     the chain: enrolled people named, strangers not

The people that are known are folders of photos: face_recognition_samples/NAME/photo.jpg. A photo goes through the
detector (where are faces), the landmark model (eyes, nose, mouth), one warp from the photo's own pixels to the crop
that the recogniser was trained on (80x80, greyscale, upright), and the recogniser (32 numbers). The ten nearest
enrolled faces are scored by the verifier, each together with the mean of its person's faces; the best score gives the
name, if it is high enough, else Unknown.

The detector is trained here. prepare takes the data sets under dataset/, any folder with boxes.csv (--data), or draws
scenes.

Faster R-CNN (Ren et al. 2015) is torchvision's; what is small enough for a CPU is ours: a backbone of residual blocks
with features at strides 4, 8, 16 and 32 (pyramid of Lin et al. 2017), two anchors a place from 12 to 320 pixels, all of
them a little higher than wide as faces are, and a box head of two layers. The backbone sees a photo once; the region
proposal network scores every anchor; the best 200 are cut out of the features and judged again by the box head.

Training sees random crops in which faces are from 6 pixels to most of the crop, so that one set of weights finds
crowds and portraits. Published weights: 83 minutes on two cores; AP50 0.89 on photos of groups, 0.83 on crowds with
masks; see weights/MODEL_CARD.md.
"""

import argparse
import hashlib
import itertools
import json
import math
import os
import re
import sys
import unicodedata
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import facekit.quick_start  # noqa: F401, before torchvision

# isort: split
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.models.resnet import BasicBlock
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from tqdm import tqdm

import face_landmark
import face_recognition
from facekit import alignment, charts, commands, datasets, detection, drawing, metrics, training
from facekit.files import InputError, written_whole
from facekit.gallery import Face, Gallery, GalleryPhoto, enroll, forget, is_read_only, person_folder, update_gallery
from facekit.images import MAX_PIXELS, SUFFIXES, Picture, open_photo, photos_in, pictures_below
from facekit.landmarks import with_points

DETECTOR_SIZE = 512  # pixels of a photo's longer side when the detector sees it
ENLARGE = 1.6  # small photos are enlarged to it, at most so many times
PACKED_SIZE = 448  # pixels of the longer side that `prepare` keeps
CROP_SIZE = 256  # what training sees
SMALLEST_FACE = 6  # pixels; smaller ones in a crop are no targets
VISIBLE = 0.4  # a face is a target when so much of its box is inside the crop
ANCHORS = ((12, 19), (31, 49), (78, 125), (200, 320))  # pixels, at strides 4, 8, 16, 32
ANCHOR_HEIGHT = 1.1  # times the width: the median of faces
DRAWN_SCENES = 1000
VALIDATION_PHOTOS = 100  # after each epoch; all of them after the last

ALIGNMENTS = {"similarity": alignment.similarity, "affine": alignment.affine, "region": alignment.region}
SMALLEST_NAMED = 20  # pixels: faces with a smaller box are not named; half of them would be wrong (MODEL_CARD.md)
LARGEST_MISFIT = 0.1  # of the crop's side: landmarks that lie farther from a face's, on average, are not trusted
PHOTOS_AT_ONCE = 8

ARCHITECTURE = "fasterrcnn-faces-1"
PREPARED = Path("data/detection")
DETECTOR = Path("weights/detection.safetensors")
PEOPLE = Path("face_recognition_samples")
GALLERY = Path("data/gallery")


@dataclass(frozen=True)
class Settings:
    """The choices of a training; they are saved with the weights."""

    epochs: int = 30
    epoch_photos: int = 2400  # crops in an epoch
    batch_size: int = 8  # crops a step
    learning_rate: float = 1e-3  # at its highest: it rises over the first 5 % of the training, then falls to 1 %
    weight_decay: float = 0.05
    seed: int = 0


# ---------------------------------------------------------------- data


class Part:
    """The packed photos of one part of the split: pixels on disk, boxes on the CPU."""

    def __init__(self, photos: detection.PhotoSet, part: str):
        self.photos, self.rows = photos, photos.part(part)
        self.boxes = [photos.boxes[row] for row in self.rows]
        self.sources = photos.sources[self.rows]
        if not len(self.rows):
            raise InputError(f"There are no photos for {part}: prepare more.")

    def __len__(self) -> int:
        return len(self.rows)

    def pixels(self, number: int) -> Tensor:
        """One photo, uint8 (3, H, W)."""
        return torch.from_numpy(self.photos.photo(self.rows[number]))

    def picture(self, number: int) -> np.ndarray:
        """The same, as detect takes it: (H, W, 3)."""
        return self.photos.photo(self.rows[number]).transpose(1, 2, 0)


def choose_view(size: tuple[int, int], boxes: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, float]:
    """Where a crop looks in a photo of size (width, height): its centre (2,) in pixels, crop pixels per photo pixel.

    Half of the crops show the photo about as large as the detector will see it; in the others a random face gets
    a random size. Every crop of a photo with faces has a face in it, and little beyond the photo's edges.
    """
    usual = DETECTOR_SIZE / max(size)
    scale = usual * math.exp(random.uniform(math.log(0.5), math.log(1.5)))
    center = random.uniform(0, size)
    if len(boxes):
        face = boxes[random.integers(len(boxes))]
        side = math.sqrt((face[2] - face[0]) * (face[3] - face[1]))
        if random.random() < 0.5:
            scale = math.exp(random.uniform(math.log(10), math.log(0.75 * CROP_SIZE))) / side
        covered = 0.85 * CROP_SIZE / max(size)  # the photo fills 85 % of the crop, at least
        scale = min(max(scale, covered), 3 * usual, CROP_SIZE / side)  # and the face fits in
        slack = max(0.0, CROP_SIZE / scale - side) / 2
        center = (face[:2] + face[2:]) / 2 + random.uniform(-slack, slack, 2)
    half = CROP_SIZE / scale / 2
    low, high = np.minimum(half, np.array(size) - half), np.maximum(half, np.array(size) - half)
    return center.clip(low, high), scale


def turn_boxes(boxes: np.ndarray, matrix: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Boxes (N, 4) of a photo -> boxes of the crop that x -> matrix (x - center) + CROP_SIZE / 2 cuts out of it.

    Each new box bounds the turned ellipse that fills the old one: the box around the turned box would be too large.
    """
    middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    middle = (middle - center) @ matrix.T + CROP_SIZE / 2
    half = np.sqrt(half**2 @ (matrix**2).T)
    return np.concatenate([middle - half, middle + half], axis=1)


def inside_crop(boxes: np.ndarray) -> np.ndarray:
    """Boxes (N, 4) clipped to the crop; those that are mostly outside or tiny are left out."""
    clipped = boxes.clip(0, CROP_SIZE)
    area, visible = ((b[:, 2:] - b[:, :2]).prod(1) for b in (boxes, clipped))
    large = (clipped[:, 2:] - clipped[:, :2]).min(1, initial=np.inf) >= SMALLEST_FACE
    return clipped[large & (visible >= VISIBLE * area)]


def augment(photos: Sequence[Tensor], boxes: Sequence[np.ndarray], device: torch.device,
            random: np.random.Generator) -> tuple[Tensor, list[Tensor]]:
    """Photos uint8 (3, H, W) with boxes (N, 4) -> crops (B, 3, 256, 256) float in 0..1, boxes in them.

    Scale from crowd to portrait, mirroring, rotation up to 20°, brightness, contrast, gamma, tint, greyscale, blur.
    """
    canvas = torch.zeros(len(photos), 3, *(max(p.shape[i] for p in photos) for i in (1, 2)), dtype=torch.uint8)
    thetas, crop_boxes = [], []
    for number, (photo, faces) in enumerate(zip(photos, boxes)):
        size = photo.shape[2], photo.shape[1]
        center, scale = choose_view(size, faces, random)
        while scale < 0.6:  # means of 2x2 pixels, since grid_sample skips pixels when it shrinks
            photo = F.avg_pool2d(photo.float(), 2, ceil_mode=True).to(torch.uint8)
            center, faces, scale = center / 2, faces / 2, scale * 2
        canvas[number, :, : photo.shape[1], : photo.shape[2]] = photo
        angle, mirror = math.radians(random.uniform(-20, 20) * random.integers(2)), random.choice([-1, 1])
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        matrix = scale * turn * (mirror, 1)  # photo to crop
        crop_boxes.append(inside_crop(turn_boxes(faces, matrix, center)))
        back = np.column_stack([np.linalg.inv(matrix) * CROP_SIZE / 2, center])  # crop, -1..1, to photo in pixels
        thetas.append(back * 2 / np.array(canvas.shape[:1:-1])[:, None] - [[0, 0, 1], [0, 0, 1]])
    theta = torch.from_numpy(np.stack(thetas)).float().to(device)
    grid = F.affine_grid(theta, [len(photos), 3, CROP_SIZE, CROP_SIZE], align_corners=False)
    crops = F.grid_sample(canvas.to(device).float() / 255, grid, align_corners=False)
    targets = [torch.from_numpy(faces).float().to(device) for faces in crop_boxes]
    return vary_light(crops, random), targets


def vary_light(crops: Tensor, random: np.random.Generator) -> Tensor:
    """Crops (B, 3, S, S) in 0..1 under other light and by other cameras."""

    def uniform(low: float, high: float, channels: int = 1) -> Tensor:
        values = random.uniform(low, high, (len(crops), channels, 1, 1))
        return torch.from_numpy(values).float().to(crops.device)

    blurred = F.avg_pool2d(crops, 3, stride=1, padding=1)
    crops = torch.lerp(crops, blurred, uniform(-2, 1).clamp(min=0))  # a third of them
    crops = torch.lerp(crops, crops.square(), uniform(-0.5, 0.5))  # a curve like gamma's, much cheaper than a power
    grey = crops.mean(1, keepdim=True)
    crops = torch.lerp(crops, grey, (uniform(0, 1) < 0.15).float())
    contrast, brightness = uniform(0.7, 1.25), uniform(-0.12, 0.12) + uniform(-0.04, 0.04, channels=3)
    return torch.addcmul(0.5 - contrast / 2 + brightness, crops, contrast).clamp_(0, 1)


# ---------------------------------------------------------------- model


def stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    """Residual blocks (He et al. 2016), the first of which halves width and height."""
    shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=2, bias=False), nn.BatchNorm2d(outputs))
    others = [BasicBlock(outputs, outputs) for _ in range(blocks - 1)]
    return nn.Sequential(BasicBlock(inputs, outputs, 2, shortcut), *others)


class Backbone(nn.Module):
    """Photos (B, 3, H, W) -> features of 48 channels at strides 4, 8, 16 and 32, each aware of the coarser ones."""

    out_channels = 48  # FasterRCNN asks for it
    precision = "auto"  # here alone: boxes are found in float32, since bfloat16 would round them to whole pixels

    def __init__(self):
        super().__init__()
        widths = (32, 64, 128, 160)
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.stages = nn.ModuleList(map(stage, (24, *widths), widths, (2, 2, 2, 1)))
        self.pyramid = FeaturePyramidNetwork(list(widths), self.out_channels)

    def forward(self, photos: Tensor) -> OrderedDict[str, Tensor]:
        with training.autocast(photos.device, self.precision):
            features = self.stem(photos.contiguous(memory_format=torch.channels_last))  # 20 % faster
            levels = OrderedDict()
            for stride, blocks in zip(("4", "8", "16", "32"), self.stages):
                levels[stride] = features = blocks(features)
            return OrderedDict((stride, level.float()) for stride, level in self.pyramid(levels).items())


class Normalise(GeneralizedRCNNTransform):
    """torchvision's preprocessing without its change of size, which fit_photo and augment have done."""

    def resize(self, image: Tensor, target: dict | None = None) -> tuple[Tensor, dict | None]:
        return image, target


class Detector(FasterRCNN):
    """Faster R-CNN for one class.

    `threshold` is the working score: boxes below it are not taken for faces. `size` is the longer side, in pixels, at
    which it is to see a photo.
    """

    threshold, size = 0.5, DETECTOR_SIZE

    def __init__(self):
        backbone = Backbone()
        cut_out = MultiScaleRoIAlign(["4", "8", "16", "32"], output_size=7, sampling_ratio=1, canonical_scale=112)
        super().__init__(
            backbone,
            rpn_anchor_generator=AnchorGenerator(ANCHORS, ((ANCHOR_HEIGHT,),) * len(ANCHORS)),
            rpn_pre_nms_top_n_train=300, rpn_post_nms_top_n_train=150, rpn_batch_size_per_image=128,
            rpn_pre_nms_top_n_test=300, rpn_post_nms_top_n_test=200,
            rpn_fg_iou_thresh=0.5, rpn_bg_iou_thresh=0.3,  # two anchors a place do not reach the usual 0.7
            box_roi_pool=cut_out, box_head=TwoMLPHead(backbone.out_channels * 7 * 7, 128),
            box_predictor=FastRCNNPredictor(128, 2), box_batch_size_per_image=48,
            box_score_thresh=0.02, box_nms_thresh=0.4, box_detections_per_img=detection.DETECTIONS_PER_PHOTO,
        )  # fmt: skip
        self.transform = Normalise(1, 1, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])


# ---------------------------------------------------------------- use


def detect_batch(model: Detector, photos: Sequence[Tensor | np.ndarray], precision: str = "auto") -> list[tuple]:
    """Photos uint8 (3, H, W) from fit_photo -> for each boxes (N, 4) in its pixels and scores (N,), best first."""
    device, model.backbone.precision = next(model.parameters()).device, precision
    with training.evaluating(model):
        found = model([torch.as_tensor(photo).to(device).float() / 255 for photo in photos])
    return [(one["boxes"].cpu().numpy(), one["scores"].cpu().numpy()) for one in found]


def detect(model: Detector, photos: Sequence[Picture], threshold: float | None = None, size: int | None = None,
           batch_size: int = 8, precision: str = "auto", max_pixels: int = MAX_PIXELS) -> list[tuple]:
    """The faces in photos (paths, PIL images or uint8 arrays): for each boxes (N, 4) and scores (N,), best first.

    Boxes are x0, y0, x1, y1 in pixels of the photo after EXIF rotation; scores are 0..1, from `threshold` on (None:
    the working threshold of the weights). `size` is the longer side at which the detector sees a photo (None: that of
    the weights): larger finds smaller faces and takes longer. InputError names the first photo that cannot be read.
    """
    threshold, size = model.threshold if threshold is None else threshold, size or model.size
    results = []
    for start in tqdm(range(0, len(photos), batch_size), "detecting", leave=False, disable=None, delay=3):
        fitted, sizes = [], []
        for photo in photos[start : start + batch_size]:
            image = open_photo(photo, max_pixels)
            fitted.append(detection.fit_photo(image, size, ENLARGE))
            sizes.append(image.size)
        for (width, height), pixels, (boxes, scores) in zip(sizes, fitted, detect_batch(model, fitted, precision)):
            to_photo = np.tile((width / pixels.shape[2], height / pixels.shape[1]), 2)
            keep = scores >= threshold
            results.append(((boxes[keep] * to_photo).astype(np.float32), scores[keep]))
    return results


def detect_all(model: Detector, photos: Sequence[Picture], precision: str = "auto") -> list[tuple]:
    """For measuring: all boxes, down to the lowest scores."""
    return detect(model, photos, 0.0, precision=precision, max_pixels=sys.maxsize)


# ---------------------------------------------------------------- training


def plan_epoch(course: training.Course, part: Part) -> list[Tensor]:
    """Batches of photo numbers (B,): random photos, those of a source together by the square root of their number.

    So a small source, say crowds, is not lost in a large one. Within a source, photos with many faces come more often.
    """
    random, _ = training.step_generators(course.settings.seed, course.epoch)
    weights = np.sqrt([1 + len(faces) for faces in part.boxes])
    for source in np.unique(part.sources):
        inside = part.sources == source
        weights[inside] *= math.sqrt(inside.sum()) / weights[inside].sum()
    chosen = random.choice(len(part), course.settings.epoch_photos, p=weights / weights.sum())
    return list(torch.from_numpy(chosen).split(course.settings.batch_size))


def train_step(course: training.Course, batch: Tensor, part: Part, precision: str) -> None:
    """One batch, from photo numbers to changed weights."""
    settings = course.settings
    random, _ = training.step_generators(settings.seed, course.epoch, course.step)
    numbers = batch.tolist()
    crops, boxes = augment([part.pixels(i) for i in numbers], [part.boxes[i] for i in numbers], course.device, random)
    targets = [{"boxes": faces, "labels": torch.ones(len(faces), dtype=torch.int64, device=course.device)}
               for faces in boxes]  # fmt: skip
    course.model.train()
    course.model.backbone.precision = precision
    losses = course.model(list(crops), targets)  # of anchors and of proposals: is it a face, and where exactly
    course.learn(sum(losses.values()), settings.learning_rate * training.warm_cosine(course.done))


def finish_epoch(course: training.Course, part: Part, precision: str) -> None:
    """Measures AP50 on some validation photos; the weights are kept if they are the best."""
    numbers = np.random.default_rng(0).permutation(len(part))[:VALIDATION_PHOTOS]
    found = detect_all(course.model, [part.picture(number) for number in numbers], precision)
    ap50 = detection.average_precision(detection.match_photos(found, [part.boxes[number] for number in numbers]))
    course.finish_epoch(ap50, {"validation_ap50": ap50})


def train(photos: detection.PhotoSet, settings: Settings, folder: Path, device: torch.device, precision: str = "auto",
          minutes: float | None = None, resume: bool = False, dry_run: bool = False,
          events: Path | None = None) -> training.Course:  # fmt: skip
    """Trains on the train photos; the result has the weights with the best AP50 on validation photos.

    Writes checkpoint.pt and history.csv into `folder` after each epoch, and draws history.png. `minutes` fits the
    training, with its falling learning rate, into that time. A dry run takes two steps an epoch. `events` is a folder
    for TensorBoard. After Ctrl-C all is saved and KeyboardInterrupt raised. InputError when the loss is not finite or
    the checkpoint does not fit.
    """
    training.seed_everything(settings.seed)
    model = Detector().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay,
                                  fused=True)  # fmt: skip
    course = training.Course(model, optimizer, settings, folder)
    course.events = training.event_writer(events)
    course.data = training.array_digest(photos.pixels, *photos.boxes)
    part, validation = Part(photos, "train"), Part(photos, "validation")
    if not any(len(boxes) for boxes in validation.boxes):
        raise InputError("No validation photo has a face, by which the best epoch is chosen: prepare more photos.")
    if resume:
        course.load()
    with course.underway(minutes):
        while course.plan or course.done < 1:
            course.plan = course.plan or plan_epoch(course, part)[: 2 if dry_run else None]
            for batch in course.batches():
                train_step(course, batch, part, precision)
            finish_epoch(course, validation, precision)
    course.take_best()
    return course


# ---------------------------------------------------------------- weights


def save_detector(path: Path, course: training.Course, photos: detection.PhotoSet, measured: dict) -> None:
    """Writes the weights, and all that is needed to load them and to know where they come from."""
    about_data = {name: photos.summary[name] for name in ("photos", "boxes", "sources", "splits", "split_digest")}
    training.save_weights(path, course.model, {
        "architecture": ARCHITECTURE,
        "threshold": course.model.threshold,
        "size": course.model.size,
        "data": about_data,
        "settings": asdict(course.settings),
        "epoch": course.best_epoch,
        "minutes": round(course.seconds / 60, 1),
        "measured": measured,
    })  # fmt: skip


def load_detector(path: str | Path = DETECTOR, device: str = "auto") -> Detector:
    """A trained detector; `.threshold` is its working score, `.metadata` says how it was made and what it measured."""
    tensors, metadata = training.read_weights(path, ARCHITECTURE)
    model = Detector()
    training.load_tensors(model, tensors, path)
    model.metadata, model.threshold, model.size = metadata, metadata["threshold"], metadata["size"]
    return model.to(training.choose_device(device), memory_format=torch.channels_last).eval()


# ---------------------------------------------------------------- the chain: photo -> faces -> names


@dataclass(frozen=True)
class SeenFace:
    """A face in a photo; box (4,) and landmarks (5, 2) in pixels of the photo after EXIF rotation."""

    box: np.ndarray
    detected: float  # the detector's score
    landmarks: np.ndarray
    embedding: np.ndarray | None  # (D,); None as long as nobody is looked for
    doubt: str = ""  # why the recogniser cannot be relied on here: "too small", "unclear"


@dataclass(frozen=True)
class Answer:
    """Who a face is: the name, or None for Unknown; all candidates with their scores, the best first."""

    name: str | None
    candidates: list[tuple[str, float]]
    note: str = ""  # why there is no name although the score is high enough

    @property
    def score(self) -> float:
        return self.candidates[0][1] if self.candidates else 0.0


@dataclass(frozen=True)
class Chain:
    """The four models, loaded.

    `made_with` tells the alignment and the three models that make embeddings: those made with others are of no use.
    """

    detector: Detector
    landmarker: face_landmark.Landmarker
    recogniser: face_recognition.Recogniser
    verifier: face_recognition.Verifier
    align: str = "similarity"

    @property
    def made_with(self) -> dict:
        models = {"detector": self.detector, "landmarker": self.landmarker, "recogniser": self.recogniser}
        return {name: training.model_digest(model) for name, model in models.items()} | {"align": self.align}


def load_chain(detector: Path = DETECTOR, landmarker: Path = face_landmark.WEIGHTS,
               recogniser: Path = face_recognition.RECOGNISER, verifier: Path | None = None,
               align: str = "similarity", device: str = "auto") -> Chain:  # fmt: skip
    """InputError when weights are missing or the verifier belongs to another recogniser."""
    return Chain(
        load_detector(detector, device),
        face_landmark.load_landmarker(landmarker, device),
        face_recognition.load_recogniser(recogniser, device),
        face_recognition.load_matching_verifier(recogniser, verifier, device),
        align,
    )


def see_faces(chain: Chain, photos: Sequence[Image.Image], size: int | None = None) -> list[list[SeenFace]]:
    """All faces of each photo (upright RGB, as open_photo gives it), the largest first; `size` as in detect."""
    found = find_faces(chain.detector, chain.landmarker, photos, chain.align, size)
    side, color = chain.recogniser.image_size, chain.recogniser.color
    crops = [cut_face(photo, face.landmarks, face.box, chain.align, side, color)
             for photo, faces in zip(photos, found) for face in faces]  # fmt: skip
    embeddings = face_recognition.embed(chain.recogniser, np.stack(crops) if crops else ()).cpu().numpy()  # (F, D)
    if not np.isfinite(embeddings).all():
        raise InputError("The recogniser gives numbers that are not finite: its weights are damaged, get them again.")
    one_by_one = iter(embeddings)
    return [[replace(face, embedding=next(one_by_one)) for face in faces] for faces in found]


def find_faces(detector: Detector, landmarker: face_landmark.Landmarker, photos: Sequence[Image.Image],
               align: str = "similarity", size: int | None = None) -> list[list[SeenFace]]:  # fmt: skip
    """Where the faces of each photo are, the largest first."""
    found = detect(detector, photos, size=size, max_pixels=sys.maxsize)
    flat = [(number, *face) for number, boxes_scores in enumerate(found) for face in zip(*boxes_scores)]
    photo_of, boxes, scores = zip(*flat) if flat else ((), (), ())
    squares = [alignment.box_region(box, face_landmark.IMAGE_SIZE) for box in boxes]
    as_reference = {"looks": 3, "frame": alignment.region} if align == "region" else {}
    pictures = [photos[number] for number in photo_of]
    landmarks = face_landmark.find_landmarks(landmarker, pictures, squares, **as_reference)  # F times (5, 2)
    seen: list[list[SeenFace]] = [[] for _ in photos]
    for number, box, score, points in zip(photo_of, boxes, scores, landmarks):
        if not any(same_place(points, face.landmarks) for face in seen[number]):  # the best-scored comes first
            seen[number].append(SeenFace(box, float(score), points, None, doubt(box, points)))
    return [sorted(faces, key=prominence, reverse=True) for faces in seen]


def same_place(landmarks: np.ndarray, others: np.ndarray) -> bool:
    """Whether two boxes have led to the same face: its points differ by less than a quarter of the eyes' distance."""
    eyes = np.linalg.norm(others[0] - others[1])
    return bool(np.linalg.norm(landmarks - others, axis=1).mean() < eyes / 4)


def prominence(face: SeenFace) -> float:
    """Large and surely a face: area times the detector's score."""
    return float((face.box[2:] - face.box[:2]).prod()) * face.detected


def cut_face(photo: Image.Image, landmarks: np.ndarray, box: np.ndarray, align: str,
             size: int = face_recognition.IMAGE_SIZE, color: bool = False) -> np.ndarray:  # fmt: skip
    """What the recogniser sees, uint8 (C, size, size)."""
    return alignment.warp(photo, crop_matrix(landmarks, box, align, size), size, color)


def crop_matrix(landmarks: np.ndarray, box: np.ndarray, align: str, size: int) -> np.ndarray:
    """From the photo to the crop, (2, 3); to the square of the box if the landmarks are no face's."""
    try:
        return ALIGNMENTS[align](landmarks, size)
    except InputError:
        return alignment.box_region(box, size, scale=1)


def doubt(box: np.ndarray, landmarks: np.ndarray) -> str:
    """Why a face is not to be named, or nothing: it is too small, or its landmarks do not lie like a face's."""
    if min(box[2:] - box[:2]) < SMALLEST_NAMED:
        return "too small"
    try:
        misfit = alignment.transform_points(alignment.similarity(landmarks, 1), landmarks) - alignment.TEMPLATE
    except InputError:
        return "unclear"
    return "unclear" if np.linalg.norm(misfit, axis=1).mean() > LARGEST_MISFIT else ""


def find_candidates(chain: Chain, gallery: Gallery, faces: Sequence[SeenFace]) -> list[list[tuple[str, float]]]:
    """For each face the people of its ten nearest gallery faces with their scores, best first.

    A person's score is the mean of two by the verifier: that of the best photo, and that of the mean of all photos.
    """
    if not faces or not gallery.faces:
        return [[] for _ in faces]
    device = next(chain.verifier.parameters()).device
    asked, enrolled, means = (
        torch.from_numpy(embeddings).to(device)
        for embeddings in (np.stack([face.embedding for face in faces]), gallery.embeddings, gallery.person_means)
    )  # (F, D), (N, D), (N, D)
    nearest, scores = face_recognition.nearest_enrolled(chain.verifier, asked, enrolled, means)  # both (F, 10)
    return [face_recognition.rank_people([gallery.faces[row].person for row in rows], row_scores)
            for rows, row_scores in zip(nearest.tolist(), scores.tolist())]  # fmt: skip


def name_faces(faces: Sequence[SeenFace], candidates: Sequence[list[tuple[str, float]]], threshold: float,
               allow_repeats: bool = False) -> list[Answer]:
    """The faces of one photo: each gets its best candidate's name if that scores at least `threshold`.

    A person names only one face of a photo, the one with the best score, unless `allow_repeats`. Doubtful faces get
    no name.
    """
    names: dict[int, str] = {}
    notes: dict[int, str] = {}
    scores = [people[0][1] if people else 0.0 for people in candidates]
    for number in sorted(range(len(faces)), key=lambda i: -scores[i]):
        if scores[number] >= threshold and candidates[number] and not faces[number].doubt:
            name = candidates[number][0][0]
            if allow_repeats or name not in names.values():
                names[number] = name
            else:
                notes[number] = f"{name} is another face"
    return [Answer(names.get(number), people, notes.get(number, "")) for number, people in enumerate(candidates)]


def naming_threshold(chain: Chain, gallery: Gallery) -> float:
    """Where 1 % of strangers got a name with a gallery of validation people as large."""
    return chain.verifier.naming_threshold(len(gallery.people()))


def recognise(chain: Chain, gallery: Gallery, photos: Sequence[Image.Image], threshold: float | None = None,
              allow_repeats: bool = False, size: int | None = None) -> list[list[tuple[SeenFace, Answer]]]:
    """Every face of each photo (as open_photo gives it), the largest first, with who it is.

    A name takes a score of at least `threshold`; None is the one that let 1 % of strangers have a name when it was
    chosen. `size` is the longer side at which the detector sees a photo.
    """
    if threshold is None:
        threshold = naming_threshold(chain, gallery)
    seen = see_faces(chain, photos, size)
    candidates = iter(find_candidates(chain, gallery, [face for faces in seen for face in faces]))
    named = [name_faces(faces, [next(candidates) for _ in faces], threshold, allow_repeats) for faces in seen]
    return [list(zip(faces, answers)) for faces, answers in zip(seen, named)]


# ---------------------------------------------------------------- the gallery


def open_photos(paths: Sequence[Path],
                max_pixels: int) -> tuple[dict[Path, Image.Image], dict[Path, InputError]]:  # fmt: skip
    """The photos that open, and the errors of the others."""
    opened, failed = {}, {}
    for path in paths:
        try:
            opened[path] = open_photo(path, max_pixels)
        except InputError as error:
            failed[path] = error
    return opened, failed


def embed_gallery_photos(chain: Chain, paths: Sequence[Path],
                         max_pixels: int = MAX_PIXELS) -> list[Face | str | InputError]:  # fmt: skip
    """For each photo its largest face, a sentence that says why there is none, or the error why it does not open."""
    opened, failed = open_photos(paths, max_pixels)
    results: dict[Path, Face | str | InputError] = {**failed}
    for path, faces in zip(opened, see_faces(chain, list(opened.values()))):
        if not faces:
            results[path] = f"{path}: no face was found in it; give a photo in which the face is larger."
            continue
        face = faces[0]
        note = f"it shows {len(faces)} faces, the largest was taken" if len(faces) > 1 else ""
        if face.doubt:
            note = "; ".join(filter(None, [note, f"its face is {face.doubt}, a better photo would help"]))
        results[path] = Face(face.embedding, face.box, face.landmarks, note)
    return [results[path] for path in paths]


def open_gallery(chain: Chain, samples: str | Path = PEOPLE, saved: str | Path | None = None,
                 max_pixels: int = MAX_PIXELS, rebuild: bool = False) -> Gallery:  # fmt: skip
    """The gallery, brought up to date with the photos samples/NAME/photo.jpg; says what it works on.

    The cut faces are in saved/detected_faces/. InputError when what is saved is damaged, or cannot be written.
    """
    samples, saved = Path(samples), Path(saved or saved_gallery(samples))
    if samples == PEOPLE:  # another one that is missing is a typing error
        try:
            samples.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"{samples} cannot be made ({error}): choose another folder.") from None
    people, place = Path(os.path.realpath(samples)), Path(os.path.realpath(saved))
    if place.is_relative_to(people) and not any(part[0] == "." for part in place.relative_to(people).parts):
        raise InputError(f"{saved} is in {samples}, where every folder is a person: choose another --gallery.")
    gallery = update_gallery(samples, saved, lambda paths: embed_gallery_photos(chain, paths, max_pixels),
                             chain.made_with, rebuild=rebuild, block=PHOTOS_AT_ONCE)  # fmt: skip
    write_cuts(chain, gallery, samples, saved / "detected_faces", max_pixels)
    return gallery


def saved_gallery(samples: str | Path) -> Path:
    """data/gallery; for other samples than the usual ones another folder, so that neither throws away the other's."""
    place = os.path.abspath(samples)
    if place == os.path.abspath(PEOPLE):
        return GALLERY
    return GALLERY.with_name(f"{GALLERY.name}-{hashlib.sha256(os.fsencode(place)).hexdigest()[:8]}")


def write_cuts(chain: Chain, gallery: Gallery, samples: Path, folder: Path, max_pixels: int = MAX_PIXELS) -> None:
    """For checking: each enrolled face as the recogniser sees it, but twice as large, with its five points.

    A name tells photo, points and way of cutting, so what is there is right and only the rest is written.
    """
    size, face_of = 2 * chain.recogniser.image_size, {}
    for face in gallery.faces:
        look = chain.align, size, chain.recogniser.color
        about = hashlib.sha256(repr((face.sha256, face.landmarks, look)).encode()).hexdigest()
        face_of[folder / f"{Path(face.file).with_suffix('')}-{about[:16]}.png"] = face
    pictures = folder.rglob("[!.]*.png") if folder.is_dir() else ()
    there = {path for path in pictures if path.is_file() and re.search(r"-[0-9a-f]{16}\.png$", path.name)}
    for path in tqdm(face_of.keys() - there, "cutting", leave=False, disable=None):
        with suppress(InputError, OSError):  # the photo has gone, or there is no room: nothing else needs the cut
            photo, landmarks = open_photo(samples / face_of[path].file, max_pixels), np.array(face_of[path].landmarks)
            matrix = crop_matrix(landmarks, face_of[path].box, chain.align, size)
            crop = alignment.warp(photo, matrix, size, chain.recogniser.color)
            points = alignment.transform_points(matrix, landmarks)
            with written_whole(path) as temporary:
                Image.fromarray(with_points(crop[None], points[None])[0].transpose(1, 2, 0)).save(temporary)
    for old in there - face_of.keys():
        with suppress(OSError):  # another process has done it, or other cuts of the person are there
            old.unlink()
            for parent in itertools.takewhile(lambda parent: parent != folder, old.parents):
                parent.rmdir()


# ---------------------------------------------------------------- answers


def describe_face(face: SeenFace, answer: Answer) -> str:
    """`NAME: 0.972`; for nobody `Unknown: 0.310`, and why if it is not for the score."""
    reason = face.doubt or answer.note
    return f"{answer.name or 'Unknown'}: {answer.score:.3f}" + (f" ({reason})" if reason else "")


def draw_answers(photo: Image.Image, answers: Sequence[tuple[SeenFace, Answer]]) -> tuple[Image.Image, list[str]]:
    """The photo with boxes, points and the names as they are printed; and notes on what could not be written."""
    return drawing.draw_faces(
        photo,
        np.array([face.box for face, _ in answers]),
        np.array([face.landmarks for face, _ in answers]),
        [describe_face(*each) for each in answers],
        [bool(face.doubt) for face, _ in answers],
    )


def answer_photo(chain: Chain, gallery: Gallery, path: Path, args: argparse.Namespace) -> None:
    """One turn of the interactive loop: the names of a photo, and the picture of them."""
    photo = open_photo(path, args.max_pixels)
    if path.resolve() == args.output.resolve():
        raise InputError(f"{path} is where the answer is drawn: choose another --output.")
    threshold = working_threshold(chain, gallery, args)
    [answers] = recognise(chain, gallery, [photo], threshold, args.allow_repeats, args.size)
    print("\n".join(f"result: {describe_face(*each)}" for each in answers) or "no face found")
    picture, notes = draw_answers(photo, answers)
    drawing.save_picture(picture, args.output)
    print(*notes, f"saved to {args.output}", sep="\n")


def chosen_chain(args: argparse.Namespace) -> Chain:
    return load_chain(args.detector, args.landmarker, args.recogniser, args.verifier, args.align, args.device)


def chosen_gallery(chain: Chain, args: argparse.Namespace, rebuild: bool = False) -> Gallery:
    return open_gallery(chain, args.samples, args.gallery, args.max_pixels, rebuild)


def working_threshold(chain: Chain, gallery: Gallery, args: argparse.Namespace) -> float:
    """From --threshold or --far, else the usual one."""
    if args.threshold is not None:
        return args.threshold
    return chain.verifier.thresholds[args.far] if args.far else naming_threshold(chain, gallery)


def as_json(path: Path, answers: Sequence[tuple[SeenFace, Answer]]) -> dict:
    faces = [{"box": [round(float(value), 1) for value in face.box],
              "landmarks": [[round(float(value), 1) for value in point] for point in face.landmarks],
              "name": answer.name, "score": round(answer.score, 4), "doubt": face.doubt or None,
              "note": answer.note or None,
              "detected": round(face.detected, 4),
              "runners_up": [{"name": name, "score": round(score, 4)} for name, score in answer.candidates
                             if name != answer.name][:5]}
             for face, answer in answers]  # fmt: skip
    return {"file": str(path), "faces": faces}


# ---------------------------------------------------------------- measuring the chain


def measure_people(chain: Chain, args: argparse.Namespace) -> tuple[dict, np.ndarray, np.ndarray]:
    """Open-set identification: some people of a folder are enrolled, their other photos and strangers are asked about.

    Returns the report, and for the curve the score of each probe whose first candidate is right (-1 where it is not)
    and of each stranger (-1 where there is no face).
    """
    photos_of = people_folders(args.people)
    paths = [path for photos in photos_of.values() for path in photos]
    seen = largest_faces(lambda photos: see_faces(chain, photos, args.size), paths, args.max_pixels)
    faces = {path: face for path, _, face in seen}
    random = np.random.default_rng(args.seed)
    rows, probes, strangers = choose_enrolled(photos_of, faces, args, random)
    if args.size:  # a gallery is always made at the usual size
        enrolled = [photo for _, photo in rows]
        seen = largest_faces(lambda photos: see_faces(chain, photos), enrolled, args.max_pixels)
        in_gallery = {path: face for path, _, face in seen}
        rows, faces = [row for row in rows if row[1] in in_gallery], faces | in_gallery
        if not rows:
            raise InputError(f"{args.people} has no photo that shows a face at the usual --size: give larger ones.")
    gallery = Gallery(np.stack([faces[photo].embedding for _, photo in rows]),
                      [GalleryPhoto(f"{person}/{photo.name}", 0, 0, "") for person, photo in rows])  # fmt: skip

    def ask(asked: list[tuple[str, Path]]) -> tuple[np.ndarray, np.ndarray]:
        """Who the first candidates are, and their scores; -1 where there is no face, or one that gets no name."""
        candidates = iter(find_candidates(chain, gallery, [faces[photo] for _, photo in asked if photo in faces]))
        best = [next(candidates)[0] if photo in faces else ("", 0.0) for _, photo in asked]
        sure = [photo in faces and not faces[photo].doubt for _, photo in asked]
        return np.array([name for name, _ in best]), np.array([score if ok else -1.0
                                                               for ok, (_, score) in zip(sure, best)])  # fmt: skip

    threshold = working_threshold(chain, gallery, args)
    first_names, probe_scores = ask(probes)
    right = first_names == np.array([person for person, _ in probes])
    probe_scores = np.where(right, probe_scores, -1.0)
    _, stranger_scores = ask(strangers)
    whose = {"probes": np.array([person for person, _ in probes]),
             "strangers": np.array([person for person, _ in strangers]),
             "all": np.array([person for person, photos in photos_of.items() for _ in photos])}  # fmt: skip
    missed = np.array([photo not in faces for photos in photos_of.values() for photo in photos])
    report: dict = {}
    for name, values, group in (
        ("rank1", right, "probes"), ("named_rightly", probe_scores >= threshold, "probes"),
        ("strangers_named", stranger_scores >= threshold, "strangers"), ("photos_without_face", missed, "all"),
    ):  # fmt: skip
        report[name] = float(np.mean(values))
        report[f"{name}_interval"] = list(metrics.people_interval(values, whose[group], random))
    counts = {"people": len({person for person, _ in rows}), "enrolled_photos": len(rows), "probes": len(probes),
              "strangers": len(strangers), "photos": len(missed), "threshold": threshold}  # fmt: skip
    return report | counts, probe_scores, stranger_scores


def choose_enrolled(photos_of: dict[str, list[Path]], faces: dict[Path, SeenFace], args: argparse.Namespace,
                    random: np.random.Generator) -> tuple[list[tuple[str, Path]], ...]:  # fmt: skip
    """Who is enrolled with which photos, who is asked about, and who is a stranger: lists of (person, photo).

    At most 100 people are enrolled, half of those who have more photos with a face than it takes.
    """
    usable = [person for person, photos in photos_of.items() if sum(p in faces for p in photos) > args.enroll]
    if len(usable) < 2:
        raise InputError(f"{args.people} has {len(usable)} people with more than {args.enroll} photos that "
                         "show a face: give more photos, or a smaller --enroll.")  # fmt: skip
    enrolled = sorted(random.permutation(usable)[: min(100, (len(usable) + 1) // 2)].tolist())
    rows, probes, strangers = [], [], []
    for person, photos in photos_of.items():
        with_face = [photo for photo in photos if photo in faces]
        order = random.permutation(len(with_face))[: args.enroll] if person in enrolled else ()
        shown = [with_face[i] for i in sorted(order)]
        rows += [(person, photo) for photo in shown]
        (probes if person in enrolled else strangers).extend((person, photo) for photo in photos if photo not in shown)
    return rows, probes, strangers


def people_folders(folder: Path) -> dict[str, list[Path]]:
    """Person -> photos, of FOLDER/PERSON/photo.jpg."""
    photos_of: dict[str, list[Path]] = {}
    for photo in datasets.folder_of_folders(folder):
        photos_of.setdefault(photo.person, []).append(photo.path)
    return photos_of


def largest_faces(faces_of: Callable[[list[Image.Image]], list[list[SeenFace]]], paths: Sequence[Path],
                  max_pixels: int) -> Iterator[tuple[Path, Image.Image, SeenFace]]:  # fmt: skip
    """Each photo that has a face, with the largest one; photos that do not open are named and left out."""
    for start in tqdm(range(0, len(paths), PHOTOS_AT_ONCE), "looking for faces", leave=False, disable=None):
        opened, failed = open_photos(paths[start : start + PHOTOS_AT_ONCE], max_pixels)
        for error in failed.values():
            tqdm.write(f"skipped: {error}", file=sys.stderr)
        for (path, photo), faces in zip(opened.items(), faces_of(list(opened.values()))):
            if faces:
                yield path, photo, faces[0]


# ---------------------------------------------------------------- commands


def command_prepare(args: argparse.Namespace) -> int:
    if args.data and args.drawn_scenes:
        raise InputError("--drawn-scenes draws photos instead of reading some: leave it out, or --data.")
    photos = [photo for folder in args.data for photo in detection.read_folder(folder)]
    if not args.data and args.drawn_scenes is None:
        photos = detection.find_known()
    if not photos:
        count = args.drawn_scenes or DRAWN_SCENES
        why = "" if args.drawn_scenes else "None of the known data sets is under dataset/ (your own: --data DIR): "
        print(f"{why}drawing {count} photos.")
        drawn = args.prepared / f"drawn_{count}_scenes_{args.seed}"
        detection.draw_scenes(drawn, count, args.seed)
        photos = detection.read_folder(drawn)
    summary = detection.pack_photos(photos, args.prepared, PACKED_SIZE, args.seed, args.max_pixels)
    for source, counts in summary["sources"].items():
        print(f"{source}: {counts['photos']} photos with {counts['boxes']} faces")
    commands.print_skipped(summary, args.prepared)
    for file, count in list(summary["bad_boxes"].items())[:10]:
        print(f"left out of {file}: {count} boxes that are empty or outside the photo")
    parts = ", ".join(f"{counts['photos']} for {name}" for name, counts in summary["splits"].items())
    bad_boxes = sum(summary["bad_boxes"].values())
    print(f"{summary['photos']} photos with {summary['boxes']} faces, {summary['copies']} exact copies; "
          f"{len(summary['skipped'])} photos skipped, {bad_boxes} boxes left out; {parts}.")  # fmt: skip
    print(f"What the model will see: {args.prepared}/contact_sheet_*.png")
    return 0


def command_train(args: argparse.Namespace) -> int:
    photos, device = detection.load_photos(args.prepared), training.choose_device(args.device)
    settings = commands.choose_settings(Settings(), args)
    counts = photos.summary["splits"]["train"]
    with commands.recorded(args, "detection") as folder:
        print(f"{counts['photos']} photos with {counts['boxes']} faces to learn from, "
              f"on {training.describe(device, args.precision)}", flush=True)  # fmt: skip
        course = train(photos, settings, folder, device, args.precision, args.time_limit, args.resume, args.dry_run,
                       args.tensorboard)  # fmt: skip
        report = choose_threshold(course.model, photos, args.precision)
        measured = {f"{name}_test": report[name] for name in ("ap50", "ap75", "recall", "false_boxes_per_photo")}
        for weights in [folder / "detection.safetensors"] + [args.detector] * (not args.dry_run):
            save_detector(weights, course, photos, measured)
        print_report(report)
        print(f"Best epoch: {course.best_epoch}. Weights: {weights}; history: {folder / 'history.png'}")
    return 0


def choose_threshold(model: Detector, photos: detection.PhotoSet, precision: str) -> dict:
    """Sets the score from which on a box counts, by validation photos; what that measures on test photos."""
    model.half().float()  # as it will be saved: the threshold is to fit it
    validation, test = Part(photos, "validation"), Part(photos, "test")
    found = {part: detect_all(model, [part.picture(i) for i in range(len(part))], precision)
             for part in (validation, test)}  # fmt: skip
    model.threshold = detection.best_threshold(detection.match_photos(found[validation], validation.boxes))
    return detection.detection_report(found[test], test.boxes, model.threshold)


def command_evaluate(args: argparse.Namespace) -> int:
    if args.people:
        if args.images or args.boxes or args.precision != "auto":
            raise InputError("--images, --boxes and --precision are for the detector alone: leave out --people.")
        return command_evaluate_people(args)
    if args.threshold is not None or args.far or args.enroll:
        raise InputError("--enroll, --threshold and --far are for naming faces: give --people DIR, too.")
    if bool(args.images) != bool(args.boxes):
        raise InputError("--images DIR and --boxes FILE go together: give both, or neither for the saved split.")
    model = load_detector(args.detector, args.device)
    model.size = args.size or model.size
    print(f"Running on {training.describe(training.choose_device(args.device), args.precision)}.", file=sys.stderr)
    if model.size > PACKED_SIZE and not args.images:
        print(f"Note: the packed photos have {PACKED_SIZE} pixels at most; give --images and --boxes to measure "
              "larger ones.", file=sys.stderr)  # fmt: skip
    if args.images:
        pictures, faces, sources = read_labelled(args.boxes, args.images, args.max_pixels)
    else:
        photos = detection.load_photos(args.prepared)
        commands.note_other_split(model.metadata, photos.summary)
        part = Part(photos, "test")
        pictures, faces, sources = [part.picture(i) for i in range(len(part))], part.boxes, part.sources
    found = detect_all(model, pictures, args.precision)
    report = detection.detection_report(found, faces, model.threshold)
    rows_of = {str(source): np.flatnonzero(sources == source) for source in np.unique(sources)}
    curves = {}
    for source, rows in rows_of.items():
        found_here, faces_here = [found[row] for row in rows], [faces[row] for row in rows]
        matched = detection.match_photos(found_here, faces_here)
        name = f"{source}: AP50 {detection.average_precision(matched):.3f}, {len(rows)} photos"
        curves[name] = (*detection.precision_recall(matched), matched.scores)
        report.setdefault("sources", {})[source] = detection.detection_report(found_here, faces_here, model.threshold)
    charts.precision_recall_chart(curves, model.threshold, args.charts / "precision_recall.png")
    worst = detection.worst_photos(found, faces, model.threshold)
    if worst:
        shown = (np.asarray(open_photo(pictures[i], args.max_pixels)).transpose(2, 0, 1) for i in worst)
        detection.worst_photos_picture(shown, [found[i] for i in worst], [faces[i] for i in worst], model.threshold,
                                       args.charts / "worst_photos.png")  # fmt: skip
    if args.json:
        print(json.dumps(report))
    else:
        print_report(report)
        charts_made = ["precision_recall.png"] + ["worst_photos.png"] * bool(worst)
        print(f"Charts: {', '.join(str(args.charts / name) for name in charts_made)}")
    return 0


def read_labelled(boxes: Path, folder: Path, max_pixels: int) -> tuple[list[Path], list[np.ndarray], np.ndarray]:
    """The photos of `folder` that the file of boxes names, their faces (N, 4), and sources; bad photos are skipped."""
    pictures, faces, sources = [], [], []
    for photo in tqdm(detection.read_boxes(boxes, folder), "reading", leave=False, disable=None):
        try:
            marked = detection.boxes_within(photo, *open_photo(photo.path, max_pixels).size)
        except InputError as error:
            print(f"skipped: {error}", file=sys.stderr)
            continue
        pictures.append(photo.path)
        faces.append(marked)
        sources.append(photo.source)
    if not pictures:
        raise InputError(f"{folder} has none of the photos that {boxes} names: give the folder with the photos.")
    return pictures, faces, np.array(sources)


def print_report(report: dict) -> None:
    """The numbers of all photos, of each source, and the recall by face size."""
    for name, numbers in {"all": report, **report.get("sources", {})}.items():
        ap50, ap75, recall = (four_digits(numbers[metric]) for metric in ("ap50", "ap75", "recall"))
        print(f"{name}: AP50 {ap50}, AP75 {ap75} on {numbers['photos']} photos with {numbers['boxes']} faces; at score "
              f"{numbers['threshold']:.2f} recall {recall}, {numbers['false_boxes_per_photo']:.2f} false boxes a photo")
    for name, size in report["recall_by_size"].items():
        print(f"faces of {name} pixels: {four_digits(size['recall'])} of {size['faces']} found")


def four_digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def command_interactive(args: argparse.Namespace) -> int:
    if args.output.suffix.lower() not in SUFFIXES:
        raise InputError(f"--output {args.output} is no name of a picture: let it end with .png or .jpg.")
    chain = chosen_chain(args)
    gallery = chosen_gallery(chain, args)
    print(gallery_sentence(gallery, args), threshold_sentence(chain, gallery, args), sep="\n")
    return commands.ask_for_photos(lambda path: answer_photo(chain, gallery, path, args))


def gallery_sentence(gallery: Gallery, args: argparse.Namespace) -> str:
    people = gallery.people()
    unused = f" ({len(gallery.rejected)} more not used, see `people`)" if gallery.rejected else ""
    if not people:
        return f"The gallery is empty, so everybody is Unknown: put photos into {args.samples}/NAME/{unused}."
    known = counted(len(people), "person is", "people are")
    return f"{known} known from {counted(people.total(), 'photo', 'photos')}{unused} in {args.samples}."


def threshold_sentence(chain: Chain, gallery: Gallery, args: argparse.Namespace) -> str:
    """What the scores mean, and where the models run."""
    reached_by = ""
    if args.threshold is None:
        who = f"{float(args.far):.1%} of the pairs of strangers" if args.far else "one stranger in a hundred"
        tried = max(chain.verifier.naming_thresholds["score"])
        among = f" among {counted(tried, 'person', 'people')}" if not args.far and len(gallery.people()) > tried else ""
        reached_by = f": {who} got there when it was chosen{among}"
    return (f"A face gets a name from score {working_threshold(chain, gallery, args):.3f} on{reached_by}. "
            f"Running on {training.describe(next(chain.verifier.parameters()).device)}.")  # fmt: skip


def counted(count: int, one: str, several: str) -> str:
    return f"{count} {one if count == 1 else several}"


def command_recognize(args: argparse.Namespace) -> int:
    chain = chosen_chain(args)
    gallery = chosen_gallery(chain, args)
    threshold = working_threshold(chain, gallery, args)
    paths = photos_in(args.paths, args.out)
    places = pictures_below(args.out, paths) if args.out else {}
    print(threshold_sentence(chain, gallery, args), file=sys.stderr)
    results: list[dict] = []
    for start in tqdm(range(0, len(paths), PHOTOS_AT_ONCE), "photos", leave=False, disable=None):
        opened, failed = open_photos(paths[start : start + PHOTOS_AT_ONCE], args.max_pixels)
        for path, error in failed.items():
            tqdm.write(f"error: {error}", file=sys.stderr)
            results.append({"file": str(path), "error": str(error)})
        answers = recognise(chain, gallery, list(opened.values()), threshold, args.allow_repeats, args.size)
        for (path, photo), faces in zip(opened.items(), answers):
            results.append(as_json(path, faces))
            if not args.json:
                lines = [f"result: {describe_face(*each)}" for each in faces] or ["no face found"]
                tqdm.write("\n".join([f"{path}:", *lines]))
            if args.out:
                picture, notes = draw_answers(photo, faces)
                try:
                    drawing.save_picture(picture, places[path])
                except InputError as error:
                    results[-1]["error"] = str(error)
                    notes.append(f"error: {error}")
                for note in notes:
                    tqdm.write(note, file=sys.stderr)
    if args.json:
        place = {str(path): number for number, path in enumerate(paths)}
        results.sort(key=lambda result: place[result["file"]])
        commands.print_json(results)
    return 2 if any("error" in result for result in results) else 0


def check_gallery_can_change(args: argparse.Namespace) -> None:
    """InputError, before any photo is touched, when the gallery that would have to follow cannot be written."""
    saved = args.gallery or saved_gallery(args.samples)
    if is_read_only(saved):
        raise InputError(f"{saved} cannot be written, so nothing was changed: choose another --gallery.")


def command_enroll(args: argparse.Namespace) -> int:
    check_gallery_can_change(args)
    chain = chosen_chain(args)
    if args.samples.exists():
        chosen_gallery(chain, args)  # first: a damaged one is to leave the photos as they are
    copies = enroll(args.samples, args.name, args.photos, args.max_pixels)
    gallery = chosen_gallery(chain, args)
    there = {args.samples / face.file for face in gallery.faces}
    good = sum(copy in there for copy in copies)
    name = unicodedata.normalize("NFC", person_folder(args.samples, args.name).name)  # as the gallery has it
    useless = len(copies) - good
    print(f"{good} of {len(args.photos)} photos of {name} are new{f', {useless} without a face' * bool(useless)}; "
          f"{gallery.people()[name]} in all.")  # fmt: skip
    return 2 if useless or not gallery.people()[name] else 0


def command_forget(args: argparse.Namespace) -> int:
    check_gallery_can_change(args)
    chain = chosen_chain(args)
    chosen_gallery(chain, args)  # first: an error is to leave the photos
    forget(args.samples, args.name)
    chosen_gallery(chain, args)
    print(f"{args.name} is forgotten. Other galleries (--gallery) forget the next time they are used.")
    return 0


def command_people(args: argparse.Namespace) -> int:
    gallery = chosen_gallery(chosen_chain(args), args, args.rebuild)
    for person, photos in sorted(gallery.people().items()):
        print(f"{person}: {counted(photos, 'photo', 'photos')}")
    for face in gallery.faces:
        if face.note:
            print(f"note: {args.samples / face.file}: {face.note}")
    for photo in gallery.rejected:
        print(f"not used: {photo.error}")
    print(gallery_sentence(gallery, args))
    return 0


def command_cut(args: argparse.Namespace) -> int:
    """Crops in colour, cut as the chain cuts faces, below DIR in folders of the same names as the photos'."""
    if not args.folder.is_dir():
        raise InputError(f"{args.folder} is not a folder: give one with photos in it.")
    paths, count = photos_in([args.folder], args.out), 0
    models = load_detector(args.detector, args.device), face_landmark.load_landmarker(args.landmarker, args.device)
    seen = largest_faces(lambda photos: find_faces(*models, photos, args.align, args.size), paths, args.max_pixels)
    for path, photo, face in seen:
        if not face.doubt:
            crop = cut_face(photo, face.landmarks, face.box, args.align, args.crop_size, color=True)
            place = args.out / f"{path.relative_to(args.folder)}.png"
            drawing.save_picture(Image.fromarray(crop.transpose(1, 2, 0)), place)
            count += 1
    if not count:
        raise InputError(f"No clear face was found in the {counted(len(paths), 'photo', 'photos')} of {args.folder}: "
                         "give photos with larger faces, or a larger --size.")  # fmt: skip
    print(f"{args.out}: the faces of {count} of {counted(len(paths), 'photo', 'photos')}. Look through them and "
          f"delete those of others. Then: python3 face_recognition.py prepare --data {args.out}")  # fmt: skip
    return 0


def command_evaluate_people(args: argparse.Namespace) -> int:
    args.enroll = args.enroll or 5
    chain = chosen_chain(args)
    report, probe_scores, stranger_scores = measure_people(chain, args)
    charts.det_chart(probe_scores, stranger_scores, report["threshold"], args.charts / "det.png")
    if args.json:
        print(json.dumps(report))
        return 0
    for name in ("rank1", "named_rightly", "strangers_named", "photos_without_face"):
        low, high = report[f"{name}_interval"]
        print(f"{name:20} {report[name]:.4f}  [{low:.4f}, {high:.4f}]")
    print(f"{report['people']} people enrolled with {report['enrolled_photos']} photos; {report['probes']} probes, "
          f"{report['strangers']} photos of strangers; threshold {report['threshold']:.3f};\n"
          f"in brackets 95 % intervals, by resampling people\nDET curve: {args.charts / 'det.png'}")  # fmt: skip
    return 0


# ---------------------------------------------------------------- command line


OPTIONS = commands.OPTIONS | commands.with_defaults(Settings()) | {  # of more than one command
    "--prepared": dict(type=Path, default=PREPARED, metavar="DIR", help=f"prepared photos [{PREPARED}]"),
    "--detector": dict(type=Path, default=DETECTOR, metavar="FILE", help=f"[{DETECTOR}]"),
    "--size": dict(type=commands.number(int, 64), metavar="PIXELS",
                   help="longer side at which the detector sees photos: larger finds smaller faces, takes longer "
                        f"[that of the weights: {DETECTOR_SIZE}]"),
    "--landmarker": dict(type=Path, default=face_landmark.WEIGHTS, metavar="FILE", help=f"[{face_landmark.WEIGHTS}]"),
    **{name: face_recognition.OPTIONS[name] for name in ("--recogniser", "--verifier")},
    "--align": dict(choices=list(ALIGNMENTS), default="similarity", help="how a face is cut out [similarity]"),
    "--samples": dict(type=Path, default=PEOPLE, metavar="DIR", help=f"DIR/NAME/photo.jpg [{PEOPLE}]"),
    "--gallery": dict(type=Path, metavar="DIR", help=f"their embeddings [{GALLERY}; for other samples another]"),
    "--threshold": dict(type=commands.number(float, 0, 1), metavar="SCORE",
                        help="name a face from this score on [where 1 %% of strangers got a name]"),
    "--far": dict(choices=[str(far) for far in face_recognition.FALSE_ACCEPT_RATES],
                  help="or from the score on that this share of pairs of strangers reaches"),
    "--allow-repeats": dict(action="store_true", help="a person may name several faces of one photo"),
}  # fmt: skip
MODELS = ("--detector", "--landmarker", "--recogniser", "--verifier", "--align", "--device", "--max-pixels")
NAMING = (*MODELS, "--size", "--samples", "--gallery", "--threshold", "--far", "--allow-repeats")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable, about: str, *options: str) -> argparse.ArgumentParser:
        return commands.add_command(subparsers, name, run, about, {option: OPTIONS[option] for option in options})

    sub = command("interactive", command_interactive, "Ask for photos and name the faces; also without a command.",
                  *NAMING)  # fmt: skip
    sub.add_argument("--output", type=Path, default=Path("img_output.png"), metavar="FILE", help="[img_output.png]")

    sub = command("recognize", command_recognize, "Name the faces in photos.", *NAMING)
    sub.add_argument("paths", type=Path, nargs="+", help="photos or folders")
    sub.add_argument("--out", type=Path, metavar="DIR", help="write the photos with the names drawn")
    sub.add_argument("--json", action="store_true", help="one JSON array on standard output, an object a photo")

    sub = command("enroll", command_enroll, "Copy photos of a person into the samples.", *MODELS, "--samples",
                  "--gallery")  # fmt: skip
    sub.add_argument("name")
    sub.add_argument("photos", type=Path, nargs="+")
    sub = command("forget", command_forget, "Delete a person's photos and what is known of them.", *MODELS,
                  "--samples", "--gallery")  # fmt: skip
    sub.add_argument("name")
    sub = command("people", command_people, "Who is known, from how many photos.", *MODELS, "--samples", "--gallery")
    sub.add_argument("--rebuild", action="store_true", help="work on all photos again")

    sub = command("prepare", command_prepare, "Find photos with face boxes, pack and split them.",
                  "--prepared", "--max-pixels", "--seed")  # fmt: skip
    sub.add_argument("--data", type=Path, action="append", default=[], metavar="DIR",
                     help="photos with boxes.csv, may be repeated [the sets under dataset/, else drawn scenes]")
    sub.add_argument("--drawn-scenes", type=commands.number(int, 10), metavar="N", help="draw so many photos instead")

    sub = command("cut", command_cut, "Cut out the largest face of each photo, to train the recogniser on.",
                  "--detector", "--landmarker", "--align", "--device", "--max-pixels", "--size")  # fmt: skip
    sub.add_argument("folder", type=Path, metavar="FOLDER", help="FOLDER/NAME/photo.jpg")
    sub.add_argument("out", type=Path, metavar="DIR", help="gets DIR/NAME/photo.jpg.png")
    sub.add_argument("--crop-size", type=commands.number(int, 16), default=112, metavar="N",
                     help="pixels a side of a crop [112]")  # fmt: skip

    command("train", command_train, "Train the detector.", "--prepared", "--detector", *commands.TRAINING)

    sub = command("evaluate", command_evaluate, "Measure the detector, or with --people the chain.",
                  "--prepared", "--size", "--precision", "--seed", "--threshold", "--far", *MODELS)  # fmt: skip
    sub.add_argument("--people", type=Path, metavar="DIR", help="DIR/NAME/photo.jpg: enrol some, ask about all others")
    sub.add_argument("--enroll", type=commands.number(int, 1), metavar="K", help="photos a person [5]")
    sub.add_argument("--images", type=Path, metavar="DIR", help="photos, for --boxes")
    sub.add_argument("--boxes", type=Path, metavar="FILE", help="boxes.csv: file,xmin,ymin,xmax,ymax")
    sub.add_argument("--charts", type=Path, default=Path("data/detection_evaluation"), metavar="DIR",
                     help="[data/detection_evaluation]")
    sub.add_argument("--json", action="store_true", help="one JSON object on standard output")
    return commands.parse(parser, arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0].startswith("-") and words[0] not in ("-h", "--help"):
        words = ["interactive", *words]
    elif Path(words[0]).suffix.lower() in SUFFIXES:
        words = ["recognize", *words]
    return commands.run(parse(words))


if __name__ == "__main__":
    sys.exit(main())
