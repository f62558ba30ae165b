"""Faces with five marked points: the layouts that are known, one packed array of them all, and how wrong points are.

Points are x, y in pixels of the picture, continuous as in facekit.alignment: left eye, right eye, nose tip, left and
right mouth corner. Left and right are the viewer's. A point that is not marked is NaN.
"""

import csv
import hashlib
import re
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from facekit import alignment, synthetic
from facekit.datasets import SPLITS, split_digest, split_people
from facekit.files import InputError, printable, read_json, write_csv, write_json, written_whole
from facekit.images import MAX_PIXELS, Picture, contact_sheet, find_files, find_photos, open_photo, picture_of

POINTS = synthetic.LANDMARKS
MIRRORED = [1, 0, 2, 4, 3]  # which point each one becomes in a mirror
FEWEST_GROUPS = 4  # fewer folders or names than this are collections, not people
PACKED_SIZE = 128  # pixels: more than the model sees, so that a closer crop stays sharp

# The columns of Kaggle's facial_keypoints.csv. Its left is the person's own, ours the viewer's.
KAGGLE_COLUMNS = ("right_eye_center", "left_eye_center", "nose_tip", "mouth_right_corner", "mouth_left_corner")
# Of the 68 points of the iBUG markup, counted from 0: those whose mean is a point of ours.
IBUG_POINTS = (range(36, 42), range(42, 48), [30], [48], [54])


@dataclass(frozen=True)
class MarkedFace:
    """A picture with five points; faces of one group (a person, a photo) go to one part of the split."""

    picture: Picture
    points: np.ndarray  # (5, 2)
    file: str
    source: str
    group: str
    box: tuple[float, float, float, float] | None = None  # where the face is; None: it is the picture


# ---------------------------------------------------------------- the layouts


def find_faces(root: str | Path, skipped: list[dict] | None = None) -> list[MarkedFace]:
    """All marked faces below a folder: points.csv or landmarks.csv, Kaggle's arrays, .pts files beside photos.

    A photo whose .pts file cannot be used is added to `skipped`: its file, and why. InputError when `root` is no
    folder, or when a table of points cannot be read.
    """
    faces: list[MarkedFace] = []
    for path in find_files(root, {".csv"}):
        if path.name in ("points.csv", "landmarks.csv"):
            faces += read_points_csv(path)
        elif path.name == "facial_keypoints.csv":
            faces += read_kaggle(path)
    if find_files(root, {".pts"}):
        for photo in find_photos(root):
            if photo.with_suffix(".pts").is_file():
                try:
                    faces.append(read_pts(photo))
                except InputError as error:
                    if skipped is not None:
                        skipped.append({"file": str(photo), "why": str(error)})
    return faces


def read_points_csv(path: Path, pictures: Path | None = None) -> list[MarkedFace]:
    """Rows `file,left_eye_x,left_eye_y,right_eye_x,...`; files are found in `pictures`, else beside the table.

    The source is the first word of the file's name (word_...) where all names have one and these are fewer than ten,
    else the folder. Lines without a file, as spreadsheets write them, are left out.
    """
    columns = ["file", *(f"{point}_{axis}" for point in POINTS for axis in "xy")]
    rows = [row for row in _rows(path, columns) if row[0]]
    group_of = _chosen_groups([file for file, _ in rows])
    words = {match[0] if (match := re.match(r"[a-z]+(?=_)", Path(row[0]).name)) else "" for row in rows}
    are_sources = "" not in words and len(words) < 10  # more would be people, not collections
    folder = (path.parent if pictures is None else pictures).resolve()
    return [
        MarkedFace(folder / file, points, file, Path(file).name.split("_")[0] if are_sources else folder.name,
                   group_of[file])  # fmt: skip
        for file, points in rows
    ]


def _chosen_groups(files: Sequence[str]) -> dict[str, str]:
    """The group of each file. Where folders are too few (images/; train/ and test/) the names are asked; where these
    tell too few groups, too (img_001.png, img_002.png), each file is on its own."""
    for names in (files, [Path(file).name for file in files]):
        groups = {file: _group_of(name) for file, name in zip(files, names)}
        if len(set(groups.values())) >= FEWEST_GROUPS:
            return groups
    return {file: file for file in files}


def _group_of(file: str) -> str:
    """The person or photo that a file's name tells; where there is a folder, its name.

    Ada_Byron of video_Ada_Byron_12tr.webp and of web_Ada_Byron_07.webp, image06325 of AFLW_0001-image06325.jpg, PHOTO
    of PHOTO_0.png and of PHOTO_1.png, net_7876_60 of net_7876_60_0_0.png and of net_7876_60_1_0.png.
    """
    path = Path(unicodedata.normalize("NFC", file))
    if path.parent != Path():
        return path.parent.as_posix()
    word = r"[^\W\d_](?:[^\W\d_]|[.'-])*"  # letters of any script
    told = re.search(rf"(?![a-z]){word}(?:_{word})+", path.stem) or re.search(r"image\d+$", path.stem)
    return told[0] if told else re.sub(r"((?:_\d+){2})_\d+_\d+$|_\d+[a-z]*$", r"\1", path.stem)


def read_kaggle(path: Path) -> list[MarkedFace]:
    """facial_keypoints.csv with face_images.npz or .npy, (96, 96, N), beside it."""
    points = [row[1] for row in _rows(path, [f"{name}_{axis}" for name in KAGGLE_COLUMNS for axis in "xy"])]
    images = next((path.with_name(name) for name in ("face_images.npz", "face_images.npy")
                   if path.with_name(name).is_file()), None)  # fmt: skip
    if images is None:
        raise InputError(f"{path} lacks its pictures: put face_images.npz or face_images.npy beside it.")
    try:
        pixels = np.load(images, allow_pickle=False)
        pixels = pixels[pixels.files[0]] if images.suffix == ".npz" else pixels
        pixels = np.clip(pixels, 0, 255).astype(np.uint8).transpose(2, 0, 1)  # (N, 96, 96)
    except (OSError, ValueError, EOFError, IndexError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{images} cannot be read ({error}): download it again.") from None
    if len(pixels) != len(points):
        raise InputError(f"{images} has {len(pixels)} pictures, but {path} has {len(points)} rows: get both again.")
    half = 0.5  # its points count from the centre of the first pixel
    return [MarkedFace(picture, point + half, f"{images.name}[{number}]", "kaggle", f"kaggle_{number}")
            for number, (picture, point) in enumerate(zip(pixels, points))]  # fmt: skip


def read_pts(photo: Path) -> MarkedFace:
    """A photo with 68 points in PHOTO.pts (iBUG 300-W): five points, and the square around them as the face."""
    path = photo.with_suffix(".pts")
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        numbers = np.array(re.search(r"\{(.*?)\}", text, re.DOTALL)[1].split(), dtype=float)
        marks = numbers.reshape(68, 2) - 0.5  # they count from (1, 1), the centre of the first pixel
    except (OSError, TypeError, ValueError):
        raise InputError(f"{path} does not hold 68 points between braces: correct it or move it away.") from None
    points = np.stack([marks[list(which)].mean(0) for which in IBUG_POINTS])
    center, side = (points.min(0) + points.max(0)) / 2, 4 * np.ptp(points, axis=0).max()
    box = (*(center - side / 2), *(center + side / 2))
    group = re.sub(r"(\d)_\d+$", r"\1", photo.stem.removesuffix("_mirror"))  # image_003_1 and _2 are of one photo
    return MarkedFace(photo, points, photo.name, photo.parent.resolve().name, group, box)


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    """(first column, points (5, 2)) of each row; an empty cell is NaN."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = list(csv.DictReader(file, skipinitialspace=True))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}): it must be a CSV file in UTF-8.") from None
    missing = [column for column in columns if table and column not in table[0]]
    if missing or not table:
        raise InputError(f"{path} has no rows with the column {(missing or columns)[0]}: see dataset/README.md.")
    coordinates = columns[-10:]
    for line, row in enumerate(table, start=2):
        try:
            points = np.array([float(row[column] or "nan") for column in coordinates]).reshape(5, 2)
        except (TypeError, ValueError):
            raise InputError(f"{path}, line {line}: a coordinate is not a number; correct it.") from None
        points[~np.isfinite(points).all(1)] = np.nan
        yield row[columns[0]] or "", points


# ---------------------------------------------------------------- one packed array

PACKED_FILES = ("images.npy", "points.npy", "index.csv", "summary.json")


@dataclass
class LandmarkSet:
    """What pack_landmarks has written; row i of everything belongs to the same face."""

    images: np.ndarray  # (N, 1, 128, 128) uint8, on disk
    points: np.ndarray  # (N, 5, 2) float32, pixels of the packed picture, NaN where missing
    sources: np.ndarray  # (N,) of str
    groups: np.ndarray  # (N,) of str
    split: np.ndarray  # (N,) of "train", "validation", "test"
    files: list[str]
    summary: dict

    def part(self, name: str) -> np.ndarray:
        """The rows of one part of the split, ascending."""
        return np.flatnonzero(self.split == name)


def cut(face: MarkedFace, max_pixels: int = MAX_PIXELS) -> tuple[np.ndarray, np.ndarray]:
    """The packed picture (1, 128, 128) uint8 of a face, and its points (5, 2) in pixels of it.

    The picture, or the face's box, is made square, never stretched. InputError when the picture cannot be opened or
    no marked point lies in it.
    """
    photo = open_photo(face.picture, max_pixels)
    matrix = alignment.box_region(face.box or (0, 0, *photo.size), PACKED_SIZE, scale=1)
    points = alignment.transform_points(matrix, face.points)
    if not ((points >= 0) & (points <= PACKED_SIZE)).all(1).any():
        raise InputError(f"{face.file}: no marked point lies in the picture.")
    return alignment.warp(photo, matrix, PACKED_SIZE), points


def pack_landmarks(faces: Sequence[MarkedFace], folder: str | Path, seed: int = 0, max_pixels: int = MAX_PIXELS,
                   skipped: Sequence[dict] = ()) -> dict:
    """Writes images.npy, points.npy, index.csv, summary.json and more into `folder`; returns the summary.

    80 / 10 / 10 per cent for train, validation and test, by group. Pictures that cannot be used, and exact copies,
    are skipped and named, after those `skipped` before. A run that is stopped at its work leaves the last result.
    InputError when no face is left.
    """
    folder, rows, skipped, seen = Path(folder), [], [*skipped], set()
    if not faces:
        raise InputError("There are no marked faces to pack: give another folder.")
    with ExitStack() as whole:
        images_npy, points_npy, index_csv, summary_json = (
            whole.enter_context(written_whole(folder / name)) for name in PACKED_FILES
        )
        working = images_npy.with_suffix(".working")
        whole.callback(working.unlink, missing_ok=True)
        images = np.memmap(working, np.uint8, "w+", shape=(len(faces), 1, PACKED_SIZE, PACKED_SIZE))
        points = np.empty((len(faces), len(POINTS), 2), np.float32)
        with ThreadPoolExecutor() as pool:
            outcomes = pool.map(lambda face: _cut_or_why(face, max_pixels), faces)
            for face, outcome in zip(faces, tqdm(outcomes, "cutting", len(faces), disable=None, unit=" faces")):
                digest = "" if isinstance(outcome, str) else hashlib.sha256(outcome[0]).hexdigest()
                if isinstance(outcome, str) or digest in seen:
                    why = outcome if isinstance(outcome, str) else "exact copy of another picture"
                    skipped.append({"file": face.file, "why": why})
                    continue
                images[len(rows)], points[len(rows)] = outcome
                seen.add(digest)
                rows.append(face)
        points = points[: len(rows)]
        np.save(images_npy, images[: len(rows)])
        np.save(points_npy, points)
        del images  # Windows deletes no file that is open
        if not rows:
            raise InputError(f"None of the {len(faces)} pictures can be used, the first because: {skipped[0]['why']}")
        groups = [printable(face.group) for face in rows]
        split_of = split_people(Counter(groups), seed)
        split = [split_of[group] for group in groups]
        index = [(row, printable(face.file), printable(face.source), groups[row], split[row])
                 for row, face in enumerate(rows)]  # fmt: skip
        write_csv(index_csv, [("row", "file", "source", "group", "split"), *index])
        summary = {
            "faces": len(rows),
            "sources": dict(Counter(source for _, _, source, _, _ in index)),
            "splits": {name: split.count(name) for name in SPLITS},
            "missing_points": int(np.isnan(points).any(2).sum()),
            "skipped": skipped,
            "split_digest": split_digest(file for _, file, _, _, part in index if part == "train"),
            "seed": seed,
        }
        write_json(summary_json, summary)
    write_csv(folder / "skipped.csv", [("file", "why"), *(each.values() for each in skipped)])
    chosen = np.random.default_rng(seed).permutation(len(rows))[:96]
    packed = np.load(folder / "images.npy", mmap_mode="r")[chosen]
    contact_sheet(with_points(packed, points[chosen]), folder / "contact_sheet.png")
    return summary


def _cut_or_why(face: MarkedFace, max_pixels: int) -> tuple[np.ndarray, np.ndarray] | str:
    try:
        return cut(face, max_pixels)
    except InputError as error:
        return str(error)


def load_landmarks(folder: str | Path) -> LandmarkSet:
    """Opens what pack_landmarks has written. InputError when something is missing or damaged."""
    folder = Path(folder)
    for name in PACKED_FILES:
        if not (folder / name).is_file():
            raise InputError(f"{folder / name} is missing: run prepare first.")
    try:
        images = np.load(folder / "images.npy", mmap_mode="c")
        points = np.load(folder / "points.npy", allow_pickle=False)
        with open(folder / "index.csv", newline="", encoding="utf-8") as file:
            index = list(csv.DictReader(file))
        files, sources, groups, split = ([row[name] for row in index] for name in ("file", "source", "group", "split"))
    except (OSError, ValueError, EOFError, KeyError, csv.Error) as error:
        raise InputError(f"The faces in {folder} are damaged ({error}): run prepare again.") from None
    if not images.shape == (len(index), 1, PACKED_SIZE, PACKED_SIZE) or points.shape != (len(index), 5, 2):
        raise InputError(f"{folder / 'index.csv'} does not fit the arrays beside it: run prepare again.")
    summary = read_json(folder / "summary.json")
    return LandmarkSet(images, points, np.array(sources), np.array(groups), np.array(split), files, summary)


# ---------------------------------------------------------------- how wrong points are, and pictures of them


def point_errors(found: np.ndarray, marked: np.ndarray) -> np.ndarray:
    """Distances (N, 5) in pixels between points (N, 5, 2); NaN where none is marked."""
    return np.linalg.norm(np.asarray(found, np.float64) - marked, axis=2)


def normalised_errors(errors: np.ndarray, marked: np.ndarray) -> np.ndarray:
    """NME of each face (N,): its mean error divided by the distance between the eyes; NaN without both eyes."""
    eyes = np.linalg.norm(marked[:, 0].astype(np.float64) - marked[:, 1], axis=1)
    eyes[eyes == 0] = np.nan
    present = ~np.isnan(errors)
    mean = np.where(present, errors, 0).sum(1) / np.maximum(present.sum(1), 1)  # (N,)
    return np.where(present.any(1), mean, np.nan) / eyes


def with_points(pictures: np.ndarray, *point_sets: np.ndarray, scale: int = 1) -> np.ndarray:
    """Pictures (N, C, H, W) uint8, C 1 or 3 -> RGB (N, 3, H, W) with dots: the first points green, further ones red."""
    drawn = []
    for number, picture in enumerate(pictures):
        image = picture_of(picture).convert("RGB")
        image = image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)
        pen = ImageDraw.Draw(image)
        for points, colour in zip(point_sets, ("#30e060", "#ff4040")):
            for x, y in points[number][np.isfinite(points[number]).all(1)] * scale:
                pen.ellipse((x - 1.5 * scale, y - 1.5 * scale, x + 1.5 * scale, y + 1.5 * scale), fill=colour)
        drawn.append(np.asarray(image).transpose(2, 0, 1))
    return np.stack(drawn)
