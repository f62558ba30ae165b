"""Faces drawn into a photo: box, five points and a label that is readable on every background."""

import math
import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby, product
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from facekit.files import InputError, written_whole

COLOURS = ((124, 252, 130), (255, 214, 90), (110, 206, 255), (255, 158, 205), (255, 176, 110), (196, 180, 255))
MARKED = (176, 176, 176)
DARK = (22, 22, 22)
MOST_CHARACTERS = 120  # of a label
# matplotlib brings this font along: Latin, Greek, Cyrillic, Arabic, Hebrew and more.
DEJAVU = str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"))


def draw_faces(photo: Image.Image | np.ndarray, boxes: np.ndarray, landmarks: np.ndarray, labels: Sequence[str],
               marked: Sequence[bool] | None = None) -> tuple[Image.Image, list[str]]:
    """A copy of the photo with a box, five points and a label for each face; and what could not be written.

    photo      upright, as open_photo gives it: an RGB picture, or uint8 (H, W, 3); it stays as it is.
    boxes      (N, 4): x0, y0, x1, y1 in pixels.
    landmarks  (N, 5, 2) in pixels; points that are NaN are left out.
    labels     N texts in any script; an empty one draws nothing.
    marked     N; true draws the face in grey (it is too small or unclear to rely on).

    Lines and text grow with the photo. A label lies inside the photo, off other labels and off faces where there
    is room; one that is too long loses its middle. The second result holds one sentence for each label with
    characters that are in no installed font.
    """
    picture = (Image.fromarray(photo) if isinstance(photo, np.ndarray) else photo).convert("RGB")  # a copy
    boxes = np.rint(np.asarray(boxes, dtype=float)).reshape(-1, 4)
    marked = [False] * len(boxes) if marked is None else marked
    colours = [MARKED if mark else COLOURS[number % len(COLOURS)] for number, mark in enumerate(marked)]
    side = (picture.width * picture.height) ** 0.5
    for box, points, colour in zip(boxes, landmarks, colours):
        _draw_face(picture, box, points, colour, line=max(1, round(side / 300)))
    size = max(10, round(side / 40))  # of the text
    notes, taken = [], np.empty((0, 4))  # where labels lie already: x0, y0, x1, y1
    for box, label, colour in zip(boxes, labels, colours):
        text = shorten(one_line(label), size, picture.width - size)
        plate = _label_plate(text, size, colour) if text else None
        if plate is None or plate.height > picture.height:
            continue
        x, y = _place(plate.size, picture.size, box, boxes, taken)
        picture.paste(plate, (x, y))
        taken = np.vstack([taken, (x, y, x + plate.width, y + plate.height)])
        missing = "".join(sorted(set(text) - set(font_files(text))))
        if missing:
            notes.append(f"No installed font has {missing} of the label {text}: install one that does, such as Noto.")
    return picture, list(dict.fromkeys(notes))


def _draw_face(picture: Image.Image, box: np.ndarray, points: np.ndarray, colour: tuple, line: int) -> None:
    """Dark rims along the bright lines and points keep them visible on bright skin."""
    pen, rim = ImageDraw.Draw(picture), max(1, line // 2)
    left, top, right, bottom = np.clip(box, 0, picture.size * 2).astype(int).tolist()
    corners = (left, top, max(right - 1, left), max(bottom - 1, top))  # Pillow's are the last pixels drawn on
    pen.rectangle(corners, outline=DARK, width=line + rim)
    pen.rectangle(corners, outline=colour, width=line)
    radius = max(1, min(1.5 * line, (box[2] - box[0]) / 30))
    points = np.asarray(points, dtype=float)
    for x, y in points[np.isfinite(points).all(axis=1)] - 0.5:  # Pillow counts from the first pixel's centre
        for fill, r in ((DARK, radius + rim), (colour, radius)):
            pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)


def _label_plate(text: str, size: int, colour: tuple) -> Image.Image:
    """The text on a dark plate."""
    runs = _runs(text, size)
    ascent, descent = np.max([font.getmetrics() for _, font in runs], axis=0).tolist()
    plate = Image.new("RGB", (math.ceil(_width(text, size)) + size // 2, ascent + descent + size // 4), DARK)
    x = size // 4
    for part, font in runs:
        ImageDraw.Draw(plate).text((x, ascent + size // 8), part, fill=colour, font=font, anchor="ls")
        x += font.getlength(part)
    return plate


def _place(size: tuple[int, int], picture_size: tuple[int, int], box: np.ndarray, boxes: np.ndarray,
           taken: np.ndarray) -> tuple[int, int]:
    """The top-left corner for a label: near its face, rather off faces, and off other labels at any price."""
    (width, height), room = size, np.subtract(picture_size, size)
    x0, y0, x1, y1 = box
    beside = [(x0, y0 - height), (x0, y1), (x1, y0), (x0 - width, y0)]
    anywhere = product(range(0, room[0] + 1, height), range(0, room[1] + 1, height))
    corners = np.clip(np.rint([*beside, *anywhere]), 0, room)
    places = np.hstack([corners, corners + size])  # (P, 4)
    distance = np.hypot(*_gaps(places, box[None])[:, 0].clip(min=0).T)
    faces, labels = ((_gaps(places, others) < 0).all(axis=2).sum(axis=1) for others in (boxes, taken))
    cost = distance + 8 * height * faces + 1e6 * labels
    x, y = corners[cost.argmin()].astype(int).tolist()  # the first of equals: above, below, right, left
    return x, y


def _gaps(places: np.ndarray, rectangles: np.ndarray) -> np.ndarray:
    """Distances between boxes (P, 4) and (R, 4) along x and along y, (P, R, 2); below 0 where they overlap."""
    places, rectangles = places[:, None], rectangles[None]
    return np.maximum(places[..., :2] - rectangles[..., 2:], rectangles[..., :2] - places[..., 2:])


def one_line(label: str) -> str:
    """The label in one line: blanks joined, accents composed, without control and formatting characters."""
    text = unicodedata.normalize("NFC", " ".join(str(label).split()))
    return "".join(c for c in text if unicodedata.category(c) not in ("Cc", "Cf", "Cs")).strip()


def shorten(text: str, size: int, width: float) -> str:
    """The text if it is at most `width` pixels wide, else as much of its start and end as is, around "…".

    The middle goes, because a label begins with the name and ends with the score. "" when nothing fits.
    """
    def cut(kept: int) -> str:
        return text[:kept - kept // 2] + "…" + text[len(text) - kept // 2:]

    if len(text) <= MOST_CHARACTERS and _width(text, size) <= width:
        return text
    most = min(len(text), MOST_CHARACTERS)
    kept = bisect_right(range(most), width, key=lambda kept: _width(cut(kept), size)) - 1
    return cut(kept) if kept > 0 else ""


def _width(text: str, size: int) -> float:
    return sum(font.getlength(part) for part, font in _runs(text, size))


def _runs(text: str, size: int) -> list[tuple[str, ImageFont.FreeTypeFont]]:
    """The text in pieces of one font each: a CJK font may have no digits, and DejaVu has no CJK."""
    files = font_files(text)
    pieces = groupby(text, key=lambda character: files.get(character, DEJAVU))
    return [("".join(piece), ImageFont.truetype(file, size)) for file, piece in pieces]


def font_files(text: str) -> dict[str, str]:
    """Character -> file of the font to write it with; characters that no installed font has are left out."""
    covered = _covered(DEJAVU, frozenset(text))
    return dict.fromkeys(covered, DEJAVU) | _system_font_files(frozenset(text) - covered)


@lru_cache
def _system_font_files(characters: frozenset[str]) -> dict[str, str]:
    """For what DejaVu lacks. The font that has most of it comes first: one script should have one font."""
    if not characters:
        return {}
    from matplotlib.font_manager import findSystemFonts  # here, as importing it can take seconds

    fonts = sorted(file for file in findSystemFonts() if "LastResort" not in file)  # its every glyph is a box
    covered = {file: _covered(file, characters) for file in fonts}
    files = {}
    for file in sorted(fonts, key=lambda file: len(covered[file]), reverse=True):
        files = dict.fromkeys(covered[file], file) | files
    return files


def _covered(file: str, characters: frozenset[str]) -> frozenset[str]:
    """The characters that the font has; none for a font that cannot be read or scaled (colour emoji)."""
    try:
        ImageFont.truetype(file, 20)
        font = FT2Font(file)
    except (OSError, RuntimeError):
        return frozenset()
    return frozenset(character for character in characters if font.get_char_index(ord(character)))


def save_picture(picture: Image.Image, path: Path) -> None:
    """Writes it whole or not at all. InputError when it cannot be written there."""
    try:
        with written_whole(path) as temporary:
            picture.save(temporary, compress_level=1)  # of PNG: three times as fast, 10 % larger
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be written ({error}): choose another file.") from None
