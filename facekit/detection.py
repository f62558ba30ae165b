"""Photos with face boxes: the data sets' formats, the packed photos with their split, and the metrics of detection.

A box is x0, y0, x1, y1 in pixels of the photo after EXIF rotation; pixel i reaches from i to i + 1.
"""

import csv
import hashlib
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
from PIL import Image, ImageDraw
from torchvision.ops import box_iou
from tqdm import tqdm

from facekit.datasets import SPLITS, split_digest
from facekit.files import InputError, printable, read_json, write_csv, write_json, written_whole
from facekit.images import MAX_PIXELS, contact_sheet, find_files, find_photos, open_photo, picture_of
from facekit.parallel import in_parallel
from facekit.synthetic import DrawnScene, draw_scene

KNOWN = "face-mask-detection", "count-the-number-of-faces-present-in-an-image"  # folders below dataset/
PACKED_FILES = ("photos.npy", "photos.csv", "boxes.csv", "summary.json")
CORNERS = ("xmin", "ymin", "xmax", "ymax")
NO_BOXES = np.zeros((0, 4), np.float32)
DETECTIONS_PER_PHOTO = 100  # at most, as COCO counts
SIZES = {"below 16": (0, 16), "16 to 32": (16, 32), "32 to 64": (32, 64), "64 and more": (64, np.inf)}  # pixels
MOST_SOURCES = 10  # in one folder; more names before "_" than this are no sources


@dataclass(frozen=True)
class BoxedPhoto:
    """A photo and its faces as a data set tells them: boxes (N, 4), with any faults that they may have."""

    path: Path
    source: str
    boxes: np.ndarray
    size: tuple[int, int] | None = None  # (width, height) of the picture that the boxes are for, where it is told


@dataclass(frozen=True)
class PhotoSet:
    """What pack_photos has written; number i of everything belongs to the same photo."""

    pixels: np.ndarray  # uint8, all photos one after the other, on disk
    starts: np.ndarray  # (N + 1,) int64, where in `pixels` a photo begins
    shapes: np.ndarray  # (N, 2) int64: height, width
    boxes: list[np.ndarray]  # (F, 4) float32 each, in pixels of the packed photo
    sources: np.ndarray  # (N,) of str
    split: np.ndarray  # (N,) of "train", "validation", "test"
    files: list[str]
    summary: dict

    def photo(self, row: int) -> np.ndarray:
        """One photo, uint8 (3, H, W)."""
        return self.pixels[self.starts[row] : self.starts[row + 1]].reshape(3, *self.shapes[row])

    def part(self, split: str) -> np.ndarray:
        """The rows of one split, ascending, int64."""
        if split not in SPLITS:
            raise ValueError(f"there is no split {split!r}, only {SPLITS}")
        return np.flatnonzero(self.split == split)


# ---------------------------------------------------------------- the formats of the data sets


def find_known(root: str | Path = "dataset") -> list[BoxedPhoto]:
    """The photos of the known data sets below `root`; sets that are not there are left out."""
    return [replace(photo, source=name) for name in KNOWN if Path(root, name).is_dir()
            for photo in read_folder(Path(root, name))]  # fmt: skip


def read_folder(folder: str | Path) -> list[BoxedPhoto]:
    """The photos and boxes of a folder in any of three formats, told by what lies in it or in its folders.

    boxes.csv        file, xmin, ymin, xmax, ymax; one line a box; one with empty corners for a photo without faces
    bbox_train.csv   Name, width, height, xmin, ...; photos in image_data/
    *.xml            one file a photo (Pascal VOC: annotation/object/bndbox); whatever an object is called, it is a face

    InputError when there is none of these, or when one cannot be read.
    """
    folder = Path(folder)
    tables = [path for path in find_files(folder, {".csv"}) if path.name in ("boxes.csv", "bbox_train.csv")]
    annotations = find_files(folder, {".xml"})
    if not tables and not annotations:
        raise InputError(f"{folder} has no boxes: put a boxes.csv (file,xmin,ymin,xmax,ymax) beside the photos.")
    photos, source = _photos_by_name(folder), printable(folder.resolve().name)
    of_tables = [photo for path in tables for photo in _read_table(path, [path.parent, folder], photos)]
    known = {photo.path for photo in of_tables}
    read = [_read_voc(path) for path in annotations]
    places = _locate([([path.parent / name], path, path.parent) for path, (name, *_) in zip(annotations, read)], photos)
    return of_tables + [BoxedPhoto(place, source, boxes, size) for place, (_, boxes, size) in zip(places, read)
                        if place not in known]  # fmt: skip


def _photos_by_name(folder: Path) -> dict[str, list[Path]]:
    photos = defaultdict(list)
    for photo in find_photos(folder):
        photos[photo.name].append(photo)
    return photos


def _locate(wanted: Sequence[tuple[Sequence[Path], Path, Path]], photos: Mapping[str, list[Path]]) -> list[Path]:
    """Where the photos are that annotations want: (places, annotation, within), the first for where it should be, the
    last for its folder as the annotation has it.

    What is in none of its places is the nearest photo of that name which no other annotation has; of several that want
    one photo the nearest gets it. The first place of those that find none: others' boxes would be wrong.
    """
    found = [next(filter(Path.is_file, places), None) for places, _, _ in wanted]
    taken = {photo.absolute() for photo in found if photo}
    nearest: dict[Path, tuple[tuple[int, int], int]] = {}  # photo -> how near whoever wants it is, and their number
    for number, (places, annotation, within) in enumerate(wanted):
        left = [photo for photo in photos.get(places[0].name, ()) if photo.absolute() not in taken]
        if left and not found[number]:
            nearness, photo = max(((_nearness(photo, annotation, within), photo) for photo in left), key=itemgetter(0))
            if photo not in nearest or nearness > nearest[photo][0]:
                nearest[photo] = nearness, number
    for photo, (_, number) in nearest.items():
        found[number] = photo
    return [photo or places[0] for photo, (places, _, _) in zip(found, wanted)]


def _nearness(photo: Path, annotation: Path, within: Path) -> tuple[int, int]:
    """How many folders the photo shares with the annotation, and how many of its last folders are called like those
    of `within`: images/day2/1.jpg for marks/day2/1.xml."""
    shared = set(annotation.absolute().parents).intersection(photo.absolute().parents)
    alike = zip(reversed(photo.parent.parts), reversed(within.parts))
    return len(shared), len(list(itertools.takewhile(lambda names: names[0] == names[1], alike)))


def read_boxes(path: str | Path, *folders: str | Path) -> list[BoxedPhoto]:
    """The photos that boxes.csv or bbox_train.csv names: in the first of the folders that has them, else beside the
    table, else anywhere below the last folder a photo of this file name that no other line names.

    Sources are told apart by what stands before the first "_" of a file name, unless these are too many.
    InputError when the file is missing or cannot be read.
    """
    return _read_table(Path(path), folders, _photos_by_name(Path(folders[-1])))


def _read_table(path: Path, folders: Sequence[str | Path], photos: Mapping[str, list[Path]]) -> list[BoxedPhoto]:
    boxes, sizes = _read_boxes_csv(path)
    prefixes = {name: Path(name).name.partition("_")[0] for name in boxes if "_" in Path(name).name}
    several = len(set(prefixes.values())) <= MOST_SOURCES
    folder_name = printable(path.resolve().parent.name)
    folders = (*folders, path.parent)
    places = _locate([([Path(folder, name) for folder in folders], path, Path(name).parent) for name in boxes], photos)
    result = []
    for photo, (name, corners) in zip(places, boxes.items()):
        source = prefixes.get(name, folder_name) if several else folder_name
        result.append(BoxedPhoto(photo, source, np.array(corners, np.float32).reshape(-1, 4), sizes.get(name)))
    return result


def _read_boxes_csv(path: Path) -> tuple[dict[str, list], dict[str, tuple[int, int]]]:
    """The boxes of each file, and the size of its picture where it is told."""
    boxes: dict[str, list] = {}
    sizes, lines = {}, None
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = csv.DictReader(file, skipinitialspace=True)
            for line in lines:
                name = line["file"] if "file" in line else line["Name"]
                corners = [line[corner] for corner in CORNERS]
                if not name and not any(corners):
                    continue  # an empty line of a spreadsheet
                if not name:
                    raise ValueError("a line names no file")
                boxes.setdefault(name, []).extend([[float(x) for x in corners]] if any(corners) else [])
                if line.get("width") and line.get("height"):
                    sizes[name] = int(float(line["width"])), int(float(line["height"]))
    except FileNotFoundError:
        raise InputError(f"{path} is missing: it shall have the columns file, {', '.join(CORNERS)}.") from None
    except (OSError, KeyError, TypeError, ValueError, OverflowError, csv.Error) as error:
        where = f", line {lines.line_num}," if lines else ""
        raise InputError(f"{path}{where} cannot be read ({type(error).__name__}: {error}): it shall have the columns "
                         f"file, {', '.join(CORNERS)} with numbers.") from None  # fmt: skip
    if not boxes:
        raise InputError(f"{path} names no photos: one line file,{','.join(CORNERS)} a face is needed.")
    return boxes, sizes


def _read_voc(path: Path) -> tuple[str, np.ndarray, tuple[int, int] | None]:
    """The photo's name, its boxes (N, 4), and its size where it is told."""
    try:
        tree = ElementTree.parse(path).getroot()
        name = Path(tree.findtext("filename") or f"{path.stem}.png").name
        corners = [[float(box.findtext(corner)) for corner in CORNERS] for box in tree.iterfind("object/bndbox")]
        width, height = (int(float(tree.findtext(f"size/{side}") or 0)) for side in ("width", "height"))
    except (ElementTree.ParseError, TypeError, ValueError, OverflowError, OSError) as error:
        raise InputError(f"{path} cannot be read as Pascal VOC ({error}): repair or remove it.") from None
    size = (width, height) if width and height else None  # some tools write 0
    return name, np.array(corners, np.float32).reshape(-1, 4), size


def draw_scenes(folder: str | Path, count: int, seed: int = 0, size: tuple[int, int] = (400, 300)) -> None:
    """Draws photos of nobody to six people into `folder`, with boxes.csv, on all cores."""
    folder, lines = Path(folder), []
    jobs = [(folder, number, seed, size) for number in range(count)]
    for of_one in tqdm(in_parallel(_write_scene, jobs), "drawing", count, unit=" photos", disable=None):
        lines += of_one
    write_csv(folder / "boxes.csv", [("file", *CORNERS), *sorted(lines, key=lambda line: line[0])])


def _write_scene(folder: Path, number: int, seed: int, size: tuple[int, int]) -> list[tuple]:
    """Draws one photo; its lines of boxes.csv."""
    random = np.random.default_rng([seed, number])
    people = random.integers(0, 1_000_000, random.integers(0, 7)).tolist()
    scene = _draw_as_many_as_fit(people, int(random.integers(2**31)), size)
    name = f"drawn_{seed}_{number:05d}.jpg"
    with written_whole(folder / name) as temporary:
        temporary.write_bytes(scene.jpeg)
    return [(name, *(round(float(x), 1) for x in box)) for box in scene.boxes] or [(name, "", "", "", "")]


def _draw_as_many_as_fit(people: list[int], seed: int, size: tuple[int, int]) -> DrawnScene:
    try:
        return draw_scene(people, seed, size)
    except InputError:
        return _draw_as_many_as_fit(people[:-1], seed, size)


# ---------------------------------------------------------------- packing


def fit_photo(photo: Image.Image, size: int, enlarge: float = 1.0) -> np.ndarray:
    """The pixels that the detector sees, uint8 (3, H, W): the longer side is `size`.

    Smaller photos are enlarged, at most `enlarge` times. The preprocessing of training, evaluation and use.
    """
    scale = min(size / max(photo.size), enlarge)
    if scale != 1:
        width, height = (max(1, round(side * scale)) for side in photo.size)
        photo = photo.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=3)
    return np.ascontiguousarray(np.asarray(photo).transpose(2, 0, 1))


def clean_boxes(boxes: np.ndarray, width: float, height: float) -> np.ndarray:
    """Boxes (N, 4) with their corners in order and inside the photo; those that are not finite or empty left out."""
    boxes = boxes[np.isfinite(boxes).all(1)].reshape(-1, 2, 2)
    corners = np.concatenate([boxes.min(1), boxes.max(1)], axis=1).clip(0, (width, height) * 2)  # (N, 4)
    return corners[(corners[:, 2:] - corners[:, :2] > 0.5).all(1)].astype(np.float32)


def pack_photos(photos: Sequence[BoxedPhoto], folder: str | Path, size: int = 448, seed: int = 0,
                max_pixels: int = MAX_PIXELS) -> dict:
    """Decodes photos, scaled down to `size`, and writes them into `folder` with a split by photo. The summary.

    photos.npy     uint8, the pixels (3, H, W) of all photos one after the other
    photos.csv     row, source, file, split, height, width;   boxes.csv   row and corners in the packed photo
    summary.json   what was found; skipped.csv: photos left out, and why; contact_sheet_SOURCE.png: photos with boxes

    Photos that cannot be opened are skipped, boxes that are empty or outside are left out and counted. Exact copies
    are in the same part. A run that is stopped at its work leaves the last result. InputError when no photo is left.
    """
    folder = Path(folder)
    kept, box_lines, digests, skipped, bad_boxes = [], [], [], [], {}
    with ExitStack() as whole:
        photos_npy, photos_csv, boxes_csv, summary_json = (
            whole.enter_context(written_whole(folder / name)) for name in PACKED_FILES
        )
        raw_file = photos_npy.with_suffix(".raw")
        whole.callback(raw_file.unlink, missing_ok=True)  # after it is closed, as Windows wants it
        raw = whole.enter_context(open(raw_file, "w+b"))
        for photo in tqdm(photos, "decoding", unit=" photos", disable=None):
            try:
                pixels, boxes = _decode(photo, size, max_pixels)
            except InputError as error:
                skipped.append((str(photo.path), str(error)))
                continue
            raw.write(pixels)
            digests.append(hashlib.sha256(pixels.tobytes() + repr(pixels.shape).encode()).hexdigest())
            if len(boxes) < len(photo.boxes):
                bad_boxes[str(photo.path)] = len(photo.boxes) - len(boxes)
            box_lines += [(len(kept), *np.round(box, 2).tolist()) for box in boxes]
            kept.append((photo, pixels.shape, boxes))
        if not kept:
            raise InputError(f"None of the {len(photos)} photos can be used"
                             f"{', the first because: ' + skipped[0][1] if skipped else ': give another folder.'}")
        split = split_photos([photo.source for photo, _, _ in kept], digests, seed)
        lines = [(row, photo.source, str(photo.path), split[row], *shape[1:])
                 for row, (photo, shape, _) in enumerate(kept)]  # fmt: skip
        raw.flush()
        np.save(photos_npy, np.memmap(raw_file, np.uint8, "r"))
        write_csv(photos_csv, [("row", "source", "file", "split", "height", "width"), *lines])
        write_csv(boxes_csv, [("row", *CORNERS), *box_lines])
        summary = _summary(kept, split, digests) | {"size": size, "seed": seed, "bad_boxes": bad_boxes,
            "skipped": [{"file": file, "why": why} for file, why in skipped]}  # fmt: skip
        write_json(summary_json, summary)
    write_csv(folder / "skipped.csv", [("file", "why"), *skipped])
    _write_contact_sheets(load_photos(folder), folder, seed)
    return summary


def _decode(photo: BoxedPhoto, size: int, max_pixels: int) -> tuple[np.ndarray, np.ndarray]:
    image = open_photo(photo.path, max_pixels)
    pixels = fit_photo(image, size)
    height, width = pixels.shape[1:]
    to_packed = np.tile((width / image.width, height / image.height), 2)
    return pixels, clean_boxes(boxes_within(photo, *image.size) * to_packed, width, height)


def boxes_within(photo: BoxedPhoto, width: int, height: int) -> np.ndarray:
    """Its boxes (N, 4), without bad ones, in pixels of the picture of that size that the file holds.

    InputError when the boxes were marked on a picture of another shape.
    """
    told_width, told_height = photo.size or (width, height)
    if abs(told_width * height - told_height * width) >= 0.02 * told_height * width:  # >= is for 0 x 0, too
        raise InputError(f"{photo.path} is {width} x {height}, but its boxes are for a picture of {told_width} x "
                         f"{told_height}: correct its lines.")  # fmt: skip
    return clean_boxes(photo.boxes * np.tile((width / told_width, height / told_height), 2), width, height)


def split_photos(sources: Sequence[str], digests: Sequence[str], seed: int = 0) -> list[str]:
    """ "train" (80 %), "validation" (10 %) or "test" (10 %) for each photo: by rank of a hash, within each source.

    Photos with the same digest get the same part. Three photos of a source are enough to have one in every part;
    sources with fewer are taken together.
    """
    source_of = dict(reversed(list(zip(digests, sources))))  # of the first photo with this digest
    size_of = Counter(source_of.values())
    digests_of = defaultdict(list)
    for digest, source in source_of.items():
        digests_of[source if size_of[source] >= 3 else ""].append(digest)
    part = {}
    for ranked in digests_of.values():
        ranked.sort(key=lambda digest: hashlib.sha256(f"{seed}/{digest}".encode()).hexdigest())
        held_back = max(1, round(len(ranked) / 10)) if len(ranked) >= 3 else 0
        part |= {digest: "validation" if rank < held_back else "test" if rank < 2 * held_back else "train"
                 for rank, digest in enumerate(ranked)}  # fmt: skip
    return [part[digest] for digest in digests]


def _summary(kept: Sequence[tuple], split: Sequence[str], digests: Sequence[str]) -> dict:
    def counts(rows: Iterable[int]) -> dict:
        rows = list(rows)
        return {"photos": len(rows), "boxes": sum(len(kept[row][2]) for row in rows)}

    rows = range(len(kept))
    return counts(rows) | {
        "sources": {source: counts(row for row in rows if kept[row][0].source == source)
                    for source in sorted({photo.source for photo, _, _ in kept})},
        "splits": {name: counts(row for row in rows if split[row] == name) for name in SPLITS},
        "copies": len(digests) - len(set(digests)),
        "split_digest": split_digest(digest for digest, part in zip(digests, split) if part == "train"),
    }  # fmt: skip


def _write_contact_sheets(photos: PhotoSet, folder: Path, seed: int) -> None:
    for old in folder.glob("contact_sheet_*.png"):
        old.unlink()
    for source in photos.summary["sources"]:
        rows = np.random.default_rng(seed).permutation(np.flatnonzero(photos.sources == source))[:24]
        pictures = np.stack([picture_with_boxes(photos.photo(row), photos.boxes[row]) for row in np.sort(rows)])
        contact_sheet(pictures, folder / re.sub(r"[^\w.-]", "_", f"contact_sheet_{source}.png"), columns=6)


def picture_with_boxes(photo: np.ndarray, right: np.ndarray, wrong: np.ndarray = NO_BOXES,
                       missed: np.ndarray = NO_BOXES, size: int = 256) -> np.ndarray:
    """The photo, uint8 (3, H, W), with green, red and yellow boxes on a square of `size`: uint8 (3, size, size)."""
    image = picture_of(photo)
    scale = size / max(image.size)
    image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BILINEAR)
    square = Image.new("RGB", (size, size))
    square.paste(image)
    draw = ImageDraw.Draw(square)
    for boxes, colour in ((right, "lime"), (wrong, "red"), (missed, "yellow")):
        for box in boxes:
            draw.rectangle([float(x) * scale for x in box], outline=colour)
    return np.asarray(square).transpose(2, 0, 1)


def load_photos(folder: str | Path) -> PhotoSet:
    """Opens what pack_photos has written; the pixels stay on disk.

    InputError when something is missing or damaged, or when the files do not fit each other.
    """
    folder = Path(folder)
    missing = [name for name in PACKED_FILES if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{folder / missing[0]} is missing: run prepare first.")
    summary = read_json(folder / "summary.json")
    try:
        pixels = np.load(folder / "photos.npy", mmap_mode="c")  # torch warns of arrays that cannot be written to
        with open(folder / "photos.csv", encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
        shapes = np.array([(line["height"], line["width"]) for line in lines], np.int64).reshape(-1, 2)
        columns = {key: [line[key] for line in lines] for key in ("source", "split", "file")}
        boxes_of = defaultdict(list)
        with open(folder / "boxes.csv", encoding="utf-8", newline="") as file:
            for line in csv.DictReader(file):
                boxes_of[int(line["row"])].append([float(line[corner]) for corner in CORNERS])
        boxes = [np.array(boxes_of[row], np.float32).reshape(-1, 4) for row in range(len(lines))]
    except (OSError, ValueError, EOFError, KeyError, TypeError, csv.Error) as error:
        raise InputError(f"The photos in {folder} are damaged ({error}): run prepare again.") from None
    starts = np.concatenate([[0], (3 * shapes.prod(1)).cumsum()])
    if pixels.dtype != np.uint8 or pixels.shape != (starts[-1],) or not set(columns["split"]) <= set(SPLITS):
        raise InputError(f"{folder / 'photos.csv'} does not fit photos.npy beside it: run prepare again.")
    return PhotoSet(pixels, starts, shapes, boxes, np.array(columns["source"]), np.array(columns["split"]),
                    columns["file"], summary)  # fmt: skip


# ---------------------------------------------------------------- metrics


def match_boxes(found: np.ndarray, faces: np.ndarray, iou: float = 0.5) -> np.ndarray:
    """Which face each found box shows: found (N, 4), best first, faces (M, 4) -> (N,) int64, -1 for none.

    As COCO does it: one box after the other takes the face, not yet taken, that it overlaps most, from `iou` on.
    """
    overlaps = box_iou(torch.from_numpy(np.float64(found)), torch.from_numpy(np.float64(faces))).numpy()
    matches = np.full(len(found), -1)
    for number, overlap in enumerate(overlaps):
        if overlap.size and overlap.max() >= iou:
            matches[number] = overlap.argmax()
            overlaps[:, matches[number]] = -1
    return matches


@dataclass(frozen=True)
class Matched:
    """All boxes found in some photos, matched with the faces at one IoU."""

    scores: np.ndarray  # (N,), highest first
    right: np.ndarray  # (N,) bool
    photo: np.ndarray  # (N,) the number of the photo
    face_sizes: np.ndarray  # (F,) square root of the area, in pixels
    face_scores: np.ndarray  # (F,) the score of the box that shows this face; -inf for none
    face_photo: np.ndarray  # (F,)


def match_photos(found: Sequence[tuple[np.ndarray, np.ndarray]], faces: Sequence[np.ndarray],
                 iou: float = 0.5) -> Matched:
    """found: (boxes (N, 4), scores (N,)) of each photo, faces: boxes (M, 4) of each photo."""
    boxes_found, faces_shown = [np.zeros((0, 3))], [np.zeros((0, 3))]
    for number, ((boxes, scores), truth) in enumerate(zip(found, faces)):
        best = np.argsort(-scores, kind="stable")[:DETECTIONS_PER_PHOTO]
        matches = match_boxes(boxes[best], truth, iou)
        shown_by = np.full(len(truth), -np.inf)
        shown_by[matches[matches >= 0]] = scores[best][matches >= 0]
        sizes = np.sqrt((truth[:, 2:] - truth[:, :2]).prod(1))
        boxes_found.append(np.column_stack([scores[best], matches >= 0, np.full(len(best), number)]))
        faces_shown.append(np.column_stack([sizes, shown_by, np.full(len(truth), number)]))
    all_boxes, all_faces = np.concatenate(boxes_found), np.concatenate(faces_shown)
    scores, right, photo = all_boxes[np.argsort(-all_boxes[:, 0], kind="stable")].T
    sizes, shown_by, face_photo = all_faces.T
    return Matched(scores, right > 0, photo.astype(int), sizes, shown_by, face_photo.astype(int))


def precision_recall(matched: Matched) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall (N,), (N,) when the first 1, 2, ... N of the boxes are kept."""
    right = np.cumsum(matched.right)
    return right / np.arange(1, len(right) + 1), right / max(1, len(matched.face_sizes))


def average_precision(matched: Matched) -> float:
    """As COCO computes it: the mean, over the recalls 0, 0.01, ... 1, of the highest precision at that recall or above.

    NaN when there are no faces.
    """
    if not len(matched.face_sizes):
        return float("nan")
    precision, recall = precision_recall(matched)
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, np.linspace(0, 1, 101), side="left")
    return float(np.append(highest, 0)[np.minimum(at, len(highest))].mean())


def best_threshold(matched: Matched) -> float:
    """The score at which the harmonic mean of precision and recall (F1) is highest; 0.5 when nothing is right."""
    precision, recall = precision_recall(matched)
    if not matched.right.any():
        return 0.5
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    last_of_equal = np.append(matched.scores[1:] < matched.scores[:-1], True)  # a threshold keeps all of them
    return float(matched.scores[np.argmax(np.where(last_of_equal, f1, -1))])


def detection_report(found: Sequence[tuple[np.ndarray, np.ndarray]], faces: Sequence[np.ndarray],
                     threshold: float) -> dict:
    """ap50, ap75; at the working threshold recall (also by face size) and false boxes a photo; and the counts.

    None where there is nothing to measure. `found` and `faces` as in match_photos.
    """
    matched = match_photos(found, faces)
    shown, false = matched.face_scores >= threshold, ~matched.right & (matched.scores >= threshold)
    by_size = {}
    for name, (low, high) in SIZES.items():
        inside = (matched.face_sizes >= low) & (matched.face_sizes < high)
        by_size[name] = {"faces": int(inside.sum()), "recall": _mean(shown[inside])}
    return {
        "ap50": _number(average_precision(matched)),
        "ap75": _number(average_precision(match_photos(found, faces, 0.75))),
        "recall": _mean(shown),
        "false_boxes_per_photo": float(false.sum() / max(1, len(faces))),
        "recall_by_size": by_size,
        "threshold": threshold,
        "photos": len(faces),
        "boxes": len(matched.face_sizes),
    }


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value


def worst_photos(found: Sequence[tuple[np.ndarray, np.ndarray]], faces: Sequence[np.ndarray], threshold: float,
                 count: int = 24) -> list[int]:
    """The numbers of the photos with the most missed faces and false boxes, most first; none without a fault."""
    matched = match_photos(found, faces)
    false = matched.photo[~matched.right & (matched.scores >= threshold)]
    missed = matched.face_photo[matched.face_scores < threshold]
    faults = np.bincount(np.concatenate([false, missed]), minlength=len(faces))
    return [int(number) for number in np.argsort(-faults, kind="stable")[:count] if faults[number]]


def worst_photos_picture(pictures: Iterable[np.ndarray], found: Sequence[tuple[np.ndarray, np.ndarray]],
                         faces: Sequence[np.ndarray], threshold: float, path: str | Path) -> None:
    """Photos, uint8 (3, H, W) each: green are right boxes, red false ones, yellow missed faces."""
    sheet = []
    for picture, (boxes, scores), truth in zip(pictures, found, faces):
        best = np.argsort(-scores, kind="stable")
        boxes = boxes[best[scores[best] >= threshold]]
        matches = match_boxes(boxes, truth)
        missed = np.delete(truth, matches[matches >= 0], axis=0)
        sheet.append(picture_with_boxes(picture, boxes[matches >= 0], boxes[matches < 0], missed, size=320))
    contact_sheet(np.stack(sheet), path, columns=4)
