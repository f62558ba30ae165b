"""Drawn faces: the built-in data set, reproducible by identity number, picture number and seed.

`make_person` draws the lots for what makes a person, `draw_face` takes one picture of the person under
circumstances that differ from picture to picture, `draw_scene` puts several people into one photo, and
`write_faces` fills a folder of folders that is read like any other data set. `facekit/portrait.py` paints.

Units: 1 is about half the width of a head. x runs to the viewer's right, y down; the eyes are at y = 0.
Left and right are the viewer's everywhere. Colours are 0..1.
"""

import io
import math
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

from facekit.files import InputError, read_json, write_csv, write_json, written_whole
from facekit.parallel import in_parallel
from facekit.portrait import View, face_box, paint_person, seen_landmarks

LANDMARKS = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")  # left in the picture
FRAMED_CENTER = (0.50, 0.642)  # mean of the five landmarks of an ArcFace crop, in parts of its side
FRAMED_SPREAD = 0.2075  # and their root-mean-square distance from that mean
SMALLEST_SCENE_FACE = 24  # pixels between the sides of the head

SKINS = (
    (250, 222, 204), (240, 200, 172), (226, 176, 138), (198, 142, 102),
    (158, 106, 72), (112, 72, 50), (74, 48, 38),
)  # fmt: skip
HAIRS = {
    "black": (26, 23, 24), "dark brown": (58, 40, 30), "brown": (98, 66, 42), "auburn": (122, 60, 36),
    "red": (168, 84, 40), "dark blond": (150, 116, 74), "blond": (208, 174, 116), "grey": (150, 148, 146),
    "white": (222, 220, 216),
}  # fmt: skip
IRISES = (
    (62, 38, 24), (88, 56, 30), (120, 88, 50), (98, 110, 62),
    (96, 118, 110), (92, 128, 164), (128, 142, 150),
)  # fmt: skip


# What a person is ------------------------------------------------------------------------------------------


def _between(low: float, high: float) -> float:
    """A field of a dataclass that is drawn evenly from low..high."""
    return field(metadata={"range": (low, high)})


@cache
def _ranges(kind: type) -> tuple[list[str], np.ndarray]:
    """The names of the fields of a dataclass that are drawn evenly, and from where to where, (2, fields)."""
    ranges = {f.name: f.metadata["range"] for f in fields(kind) if "range" in f.metadata}
    return list(ranges), np.array(list(ranges.values())).T


def _draw_lots(kind: type, rng: np.random.Generator) -> dict[str, float]:
    names, (low, high) = _ranges(kind)
    return dict(zip(names, rng.uniform(low, high).tolist()))


@dataclass(frozen=True)
class Person:
    """What stays the same in every picture of a person. Lengths in half head widths, colours 0..1."""

    identity: int
    seed: int
    skin: tuple[float, float, float]
    hair: tuple[float, float, float]
    iris: tuple[float, float, float]
    lips: tuple[float, float, float]
    hair_length: int  # 0 bald, 1 short, 2 to the chin, 3 to the shoulders
    fringe: bool
    beard: float  # cover of cheeks and chin, 0..1
    moustache: float
    freckles: float
    moles: tuple[tuple[float, float, float], ...]  # x, y, radius
    scar: tuple[float, float, float] | None  # x, y, slope
    # the head
    head_width: float = _between(0.86, 1.12)
    head_depth: float = _between(0.90, 1.10)
    crown: float = _between(1.24, 1.56)  # height above the eyes
    jaw_width: float = _between(0.64, 1.04)  # as part of the head's width
    jaw_angle: float = _between(2.5, 5.5)  # pointed .. square
    chin_length: float = _between(0.38, 0.68)  # below the mouth
    chin_boss: float = _between(0.00, 0.16)
    cheekbones: float = _between(0.00, 0.13)
    neck: float = _between(0.46, 0.66)
    lopsided: float = _between(-0.025, 0.025)  # tilt of the features, nobody is symmetric
    # hair
    hairline: float = _between(0.62, 1.08)  # above the eyes
    recession: float = _between(-0.10, 0.40)  # of the temples
    widows_peak: float = _between(-0.08, 0.16)
    parting: float = _between(-0.35, 0.35)
    hair_volume: float = _between(0.05, 0.30)
    curl: float = _between(0.0, 1.0)
    # brows
    brow_height: float = _between(0.20, 0.43)
    brow_thickness: float = _between(0.02, 0.09)
    brow_arch: float = _between(0.00, 0.13)
    brow_tilt: float = _between(-0.13, 0.13)
    brow_length: float = _between(0.38, 0.58)
    brow_gap: float = _between(0.07, 0.24)
    # eyes
    eye_distance: float = _between(0.335, 0.5)  # from the middle
    eye_width: float = _between(0.145, 0.235)
    eye_height: float = _between(0.05, 0.125)
    eye_tilt: float = _between(-0.06, 0.07)
    eye_roundness: float = _between(0.55, 1.10)
    eye_depth: float = _between(0.00, 0.12)
    lid_crease: float = _between(0.02, 0.10)
    eye_bags: float = _between(0.0, 0.5)
    # nose
    nose_length: float = _between(0.42, 0.76)
    nose_width: float = _between(0.13, 0.33)
    nose_bridge: float = _between(0.06, 0.12)  # width between the eyes
    nose_height: float = _between(0.16, 0.36)
    nose_hump: float = _between(-0.06, 0.10)
    nose_tip: float = _between(0.00, 0.10)
    # mouth
    lip_distance: float = _between(0.23, 0.47)  # below the nose
    mouth_width: float = _between(0.22, 0.46)
    upper_lip: float = _between(0.02, 0.11)
    lower_lip: float = _between(0.04, 0.14)
    cupids_bow: float = _between(0.0, 0.6)
    mouth_corners: float = _between(-0.045, 0.045)
    # ears and age
    ear_size: float = _between(0.20, 0.40)
    ear_angle: float = _between(0.02, 0.20)  # how far they stand off
    wrinkles: float = _between(0.0, 1.0)

    @property
    def mouth_height(self) -> float:
        return self.nose_length + self.lip_distance

    @property
    def chin(self) -> float:
        return self.mouth_height + self.chin_length


def make_person(identity: int, seed: int = 0) -> Person:
    """The person with this number (0 or more); the same number and seed always give the same person."""
    rng = np.random.default_rng([seed, identity])
    lots = _draw_lots(Person, rng)
    tone = rng.uniform(0, len(SKINS) - 1)
    skin = np.array([np.interp(tone, range(len(SKINS)), channel) for channel in zip(*SKINS)]) / 255
    skin *= rng.uniform(0.95, 1.05, 3)
    dark = tone > 3 and rng.random() < 0.85  # most people of darker skin have dark hair and eyes
    hair_name = rng.choice(list(HAIRS))
    if dark:
        hair_name = rng.choice(["black", "dark brown", "grey"], p=[0.6, 0.3, 0.1])
    hair = np.array(HAIRS[str(hair_name)]) / 255 * rng.uniform(0.85, 1.15)
    iris = np.array(IRISES[rng.integers(3 if dark else len(IRISES))]) / 255
    bearded = rng.random() < 0.3
    lips = skin * (0.86, 0.62, 0.62)
    if not bearded and rng.random() < 0.3:  # made up
        lips = skin * 0.4 + np.array((0.48, 0.10, 0.14)) * rng.uniform(0.7, 1.2)
    moles = rng.uniform((-0.75, -0.7, 0.02), (0.75, 1.2, 0.045), (rng.integers(4), 3))
    scar = tuple(rng.uniform((-0.7, 0.2, -1.5), (0.7, 0.9, 1.5)).tolist())
    return Person(
        identity=identity,
        seed=seed,
        skin=_colour(skin),
        hair=_colour(hair),
        iris=_colour(iris),
        lips=_colour(lips),
        hair_length=int(rng.choice(4, p=[0.1, 0.5, 0.18, 0.22])),
        fringe=rng.random() < 0.2,
        beard=rng.uniform(0.3, 1) if bearded and rng.random() < 0.75 else 0.0,
        moustache=rng.uniform(0.3, 1) if bearded else 0.0,
        freckles=rng.uniform(0.3, 0.9) if tone < 3 and rng.random() < 0.25 else 0.0,
        moles=tuple(map(tuple, moles.tolist())),
        scar=scar if rng.random() < 0.06 else None,
        **lots,
    )


def _colour(channels: np.ndarray) -> tuple[float, float, float]:
    return tuple(np.clip(channels, 0, 1).tolist())


# What changes from picture to picture ----------------------------------------------------------------------


@dataclass(frozen=True)
class Circumstances:
    """What differs between two pictures of a person. Angles in radians; all but yaw are drawn evenly.

    The ranges are wide enough that no nearest neighbour on pixels solves the task, and narrow enough that a
    small network learns it in minutes.
    """

    # pose: yaw > 0 looks to the viewer's right, pitch > 0 looks down, roll > 0 leans clockwise
    yaw: float
    pitch: float = _between(-0.09, 0.09)
    roll: float = _between(-0.07, 0.07)
    # framing, in parts of the picture's side
    shift_x: float = _between(-0.02, 0.02)
    shift_y: float = _between(-0.02, 0.02)
    enlarge: float = _between(0.96, 1.04)
    # expression
    smile: float = _between(-0.30, 0.80)
    mouth_open: float = _between(-0.14, 0.12)  # below 0 is closed
    brow_raise: float = _between(-0.04, 0.07)
    eyes_open: float = _between(0.65, 1.15)
    gaze_x: float = _between(-0.05, 0.05)
    gaze_y: float = _between(-0.02, 0.02)
    # light: where it comes from and how hard it is
    light_x: float = _between(-0.40, 0.40)
    light_y: float = _between(-0.50, 0.00)
    ambient: float = _between(0.50, 0.70)
    shine: float = _between(0.0, 0.25)
    warmth: float = _between(-0.12, 0.12)
    # camera
    exposure: float = _between(0.88, 1.10)
    gamma: float = _between(0.90, 1.10)
    blur: float = _between(-1.20, 0.70)  # standard deviation in pixels of a 112 pixel picture; below 0.3 is sharp
    noise: float = _between(0.00, 0.01)
    quality: float = _between(30, 95)  # JPEG
    # rare things: a grey picture, glasses, a hat
    grey: float = _between(0, 1)
    glasses: float = _between(0, 1)
    hat: float = _between(0, 1)

    @property
    def is_grey(self) -> bool:
        return self.grey > 0.95

    @property
    def has_glasses(self) -> bool:
        return self.glasses > 0.88

    @property
    def has_hat(self) -> bool:
        return self.hat > 0.94


def _circumstances(rng: np.random.Generator) -> Circumstances:
    return Circumstances(yaw=float(np.clip(rng.normal(0, 0.14), -0.7, 0.7)), **_draw_lots(Circumstances, rng))


# Background and camera -------------------------------------------------------------------------------------


def _background(rng: np.random.Generator, width: int, height: int, clutter: int) -> np.ndarray:
    """Soft blobs, tiles or a gradient with some things in front, (3, height, width)."""
    base, vary = rng.uniform(0.1, 0.9) + rng.uniform(-0.15, 0.15, 3), rng.uniform(0.05, 0.35)
    rows, columns = rng.integers(2, 9, 2)
    cells = rng.uniform(-1, 1, (rows, columns, 1)) + 0.4 * rng.uniform(-1, 1, (rows, columns, 3))
    cells = np.clip(base + vary * cells, 0, 1)
    how = Image.Resampling.NEAREST if rng.random() < 0.2 else Image.Resampling.BICUBIC
    image = Image.fromarray((cells * 255).astype(np.uint8)).resize((width, height), how)
    pen = ImageDraw.Draw(image)
    for _ in range(clutter):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        w, h = rng.uniform(0.03, 0.35, 2) * width
        colour = tuple(rng.integers(0, 256, 3).tolist())
        shape = rng.integers(3)
        if shape == 0:
            pen.rectangle((x, y, x + w, y + h), fill=colour)
        elif shape == 1:
            pen.ellipse((x, y, x + w, y + h), fill=colour)
        else:
            pen.line((x, y, x + w, y - h), fill=colour, width=1 + int(0.1 * h))
    return np.stack([np.asarray(channel, np.float32) for channel in image.split()]) / 255


def _photograph(image: np.ndarray, now: Circumstances, rng: np.random.Generator) -> bytes:
    """Blur, exposure and noise: (3, height, width) 0..1 -> a JPEG file."""
    height, width = image.shape[1:]
    channels = (np.clip(image, 0, 1) * 255).astype(np.uint8)
    box = math.sqrt(3) * now.blur * width / 112 - 0.5  # as wide as a Gaussian of that standard deviation
    if box > 0:
        lens = ImageFilter.BoxBlur(box)
        channels = np.stack([Image.fromarray(channel).filter(lens) for channel in channels])
    levels = np.clip(np.linspace(0, 1, 256) ** now.gamma * now.exposure, 0, 1).astype(np.float32) * 255
    exposed = levels.take(channels, mode="clip")
    exposed += 255 * math.sqrt(12) * now.noise * (rng.random((height, width), dtype=np.float32) - 0.5)
    channels = np.clip(exposed, 0, 255, out=exposed).astype(np.uint8)
    photo = Image.merge("RGB", [Image.fromarray(channel) for channel in channels])
    if now.is_grey:
        photo = photo.convert("L").convert("RGB")
    with io.BytesIO() as jpeg:
        photo.save(jpeg, "JPEG", quality=int(now.quality))
        return jpeg.getvalue()


# Pictures, scenes, folders ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    jpeg: bytes  # the picture as a file

    @property
    def pixels(self) -> np.ndarray:
        """(height, width, 3) uint8 RGB."""
        return np.array(Image.open(io.BytesIO(self.jpeg)))


@dataclass(frozen=True)
class DrawnFace(Drawn):
    box: np.ndarray  # (4,) float32: x0, y0, x1, y1 of the face in pixels, within the picture
    landmarks: np.ndarray  # (5, 2) float32: x, y in pixels, in the order of LANDMARKS


@dataclass(frozen=True)
class DrawnScene(Drawn):
    identities: list[int]
    boxes: np.ndarray  # (n, 4) float32, as in DrawnFace
    landmarks: np.ndarray  # (n, 5, 2) float32


def _framed(now: Circumstances, points: np.ndarray, size: int, zoom: float) -> View:
    """The view in which the landmarks (5, 2) lie about as in an ArcFace crop."""
    spread = math.sqrt(((points - points.mean(0)) ** 2).sum(1).mean())
    upright = View(0, 0, FRAMED_SPREAD * zoom * now.enlarge * size / spread, now.roll)
    middle = 0.5 + zoom * (np.array(FRAMED_CENTER) - 0.5) + (now.shift_x, now.shift_y)
    x, y = middle * size - upright.to_pixels(points).mean(0)
    return replace(upright, x=float(x), y=float(y))


def _pose(person: Person, picture: int, size: int, zoom: float):
    """What is known of a picture before drawing: circumstances, view, box, landmarks, random numbers."""
    # The 1 keeps pictures apart from the person's own lots, as [a, b] and [a, b, 0] seed alike.
    rng = np.random.default_rng([person.seed, person.identity, 1, picture])
    now = _circumstances(rng)
    points = seen_landmarks(person, now)
    view = _framed(now, points, size, zoom)
    box = np.clip(face_box(person, now, view), 0, size).astype(np.float32)
    return now, view, box, view.to_pixels(points).astype(np.float32), rng


def draw_face(person: Person, picture: int, size: int = 112, zoom: float = 1.0) -> DrawnFace:
    """One picture of a person; the same person, picture number, size and zoom give the same pixels.

    zoom: 1 frames the face about like an ArcFace crop, 0.4 shows the shoulders.
    """
    now, view, box, landmarks, rng = _pose(person, picture, size, zoom)
    image = _background(rng, size, size, clutter=int(rng.integers(4)))
    paint_person(image, person, now, view, rng)
    return DrawnFace(_photograph(image, now, rng), box, landmarks)


def draw_scene(
    identities: list[int], seed: int, size: tuple[int, int] = (640, 480)
) -> DrawnScene:
    """A photo, size (width, height), of people before a cluttered background, the nearest first in the list.

    Faces are from about 24 pixels wide to most of the photo. InputError when they do not all fit.
    """
    width, height = size
    rng = np.random.default_rng([seed, 3, *identities])
    image = _background(rng, width, height, clutter=int(rng.integers(4, 16)))
    camera = replace(_circumstances(rng), blur=float(rng.uniform(-0.8, 0.8)) * 112 / width)
    light = {name: getattr(camera, name) for name in ("light_x", "light_y", "ambient", "warmth")}
    crowd = [(make_person(i), replace(_circumstances(rng), **light)) for i in identities]
    views = _placed(crowd, width, height, rng)
    for one, view in reversed(list(zip(crowd, views))):
        paint_person(image, *one, view, rng)
    landmarks = [view.to_pixels(seen_landmarks(*one)) for one, view in zip(crowd, views)]
    boxes = [np.clip(face_box(*one, view), 0, (width, height) * 2) for one, view in zip(crowd, views)]
    jpeg = _photograph(image, camera, rng)
    boxes, landmarks = np.array(boxes, np.float32), np.array(landmarks, np.float32)
    return DrawnScene(jpeg, list(identities), boxes.reshape(-1, 4), landmarks.reshape(-1, 5, 2))


def _placed(crowd: list, width: int, height: int, rng: np.random.Generator) -> list[View]:
    """Places of shrinking size, so that no face is hidden behind the head or body of someone nearer."""
    smallest = SMALLEST_SCENE_FACE / 2
    largest = max(0.36 * min(width, height) / math.sqrt(max(len(crowd), 1)), smallest)
    units = np.sort(np.exp(rng.uniform(math.log(smallest), math.log(largest), len(crowd))))[::-1]
    hidden = np.empty((0, 4))  # what nearer people cover
    views = []
    for (person, now), unit in zip(crowd, units):
        unit = min([unit, *(view.unit for view in views[-1:])])
        for _ in range(400):
            unit = max(unit * 0.99, smallest)
            x, y = rng.uniform(1.1 * unit, width - 1.1 * unit), rng.uniform(1.5 * unit, height - 1.6 * unit)
            view = View(float(x), float(y), float(unit), now.roll)
            x0, y0, x1, y1 = face_box(person, now, view)
            overlap = (hidden[:, 0] < x1) & (hidden[:, 2] > x0) & (hidden[:, 1] < y1) & (hidden[:, 3] > y0)
            if x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height and not overlap.any():
                break
        else:
            raise InputError(f"{len(crowd)} faces do not fit into {width} x {height} pixels: ask for fewer.")
        head = (x - 1.4 * unit, y - 1.8 * unit, x + 1.4 * unit, y + 1.8 * unit)
        body = (x - 2.5 * unit, y + 1.6 * unit, x + 2.5 * unit, height)
        hidden = np.concatenate([hidden, [head, body]])
        views.append(view)
    return views


def _write_person(folder: Path, identity: int, pictures: int, seed: int, size: int, zoom: float) -> list[list]:
    """Draws the pictures of a person that are not there yet; a row for each: file, box, landmarks."""
    person = make_person(identity, seed)
    rows = []
    for picture in range(1, pictures + 1):
        name = f"person_{identity:05d}/{picture:04d}.jpg"
        if (folder / name).exists():
            _, _, box, landmarks, _ = _pose(person, picture, size, zoom)
        else:
            face = draw_face(person, picture, size, zoom)
            box, landmarks = face.box, face.landmarks
            with written_whole(folder / name) as temporary:
                temporary.write_bytes(face.jpeg)
        rows.append([name, *(round(number, 2) for number in [*box.tolist(), *landmarks.ravel().tolist()])])
    return rows


def write_faces(
    folder: str | Path,
    people: int,
    pictures_per_person: int,
    seed: int = 0,
    size: int = 112,
    workers: int | None = None,
    zoom: float = 1.0,
) -> None:
    """Draws identities 1..people into `folder`/person_00001/0001.jpg ..., with boxes.csv and landmarks.csv.

    Uses all cores unless told how many. Pictures that are there are kept, so a stopped call goes on where it
    was. InputError when they were drawn with another seed, size or zoom (see draw_face).
    """
    folder = Path(folder)
    if people < 1 or pictures_per_person < 1:
        raise InputError(f"{folder}: drawn faces need at least one person and one picture of each.")
    settings = {"seed": seed, "size": size, "zoom": zoom}
    if (folder / "drawn.json").exists() and read_json(folder / "drawn.json") != settings:
        raise InputError(f"{folder} holds faces of another seed, size or zoom: delete it or choose another folder.")
    write_json(folder / "drawn.json", settings)
    jobs = [(folder, identity, pictures_per_person, seed, size, zoom) for identity in range(1, people + 1)]
    rows = []
    with tqdm(total=people * pictures_per_person, unit=" faces", desc="drawing", disable=None) as progress:
        for person_rows in in_parallel(_write_person, jobs, workers):
            rows += person_rows
            progress.update(pictures_per_person)
    rows.sort()
    write_csv(folder / "boxes.csv", [["file", "xmin", "ymin", "xmax", "ymax"], *(row[:5] for row in rows)])
    header = ["file"] + [f"{point}_{axis}" for point in LANDMARKS for axis in "xy"]
    write_csv(folder / "landmarks.csv", [header, *([row[0], *row[5:]] for row in rows)])
