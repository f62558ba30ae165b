"""Paints a portrait: a person under given circumstances, onto a picture.

The head is a solid whose horizontal cuts are ellipses; `_outline` gives their half-width and half-depth at
each height. A ray from the viewer through a pixel meets the ellipse in closed form, so every pixel knows
which point (x, y) of the face it shows, turned by yaw and pitch. Features are soft-edged shapes in (x, y):
they paint a colour, and they add to a relief (height towards the viewer) whose slope, under a light, gives
the shading.

Units: 1 is about half the width of a head. x runs to the viewer's right, y down, z towards the viewer; the
eyes are at y = 0, the middle of the head is x = z = 0; (u, v) are x and y as seen, turned but without roll.
Images are float32 (3, height, width), 0..1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from facekit.synthetic import Circumstances, Person

IRIS_RADIUS = 0.105  # much the same in everyone
HEIGHTS = np.linspace(-2, 2.5, 256, dtype=np.float32)  # at which the outline of a head is known


def _clip(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """np.clip, without the 10 µs that it takes for arrays of any size: a portrait needs it 80 times."""
    return np.minimum(np.maximum(values, low), high)


# Geometry: from the face to the picture and back -----------------------------------------------------------


@dataclass(frozen=True)
class View:
    """Where in the picture a head is, and how large."""

    x: float  # the middle of the head, pixels
    y: float
    unit: float  # pixels per unit
    roll: float  # radians, clockwise

    def to_pixels(self, points: np.ndarray) -> np.ndarray:
        """(n, 2) points in head units, seen without roll -> (n, 2) pixels."""
        c, s = math.cos(self.roll), math.sin(self.roll)
        return np.asarray(points) @ np.array([[c, s], [-s, c]]) * self.unit + (self.x, self.y)

    def to_units(self, height: int, width: int, top: int, left: int) -> tuple[np.ndarray, np.ndarray]:
        """The way back, for the centre of every pixel of a window: u, v, each (height, width)."""
        c, s = math.cos(self.roll) / self.unit, math.sin(self.roll) / self.unit
        dx = np.arange(left, left + width, dtype=np.float32) + (0.5 - self.x)
        dy = np.arange(top, top + height, dtype=np.float32)[:, None] + (0.5 - self.y)
        return c * dx + s * dy, c * dy - s * dx


@lru_cache(maxsize=64)
def _outline(person: Person, now: Circumstances) -> tuple[np.ndarray, np.ndarray]:
    """Half-width, half-depth and steepness of the head at all HEIGHTS, and their rise to the next.

    Each (3, 256) float32. Width and depth are 0 above the crown and below the chin.
    """
    v = HEIGHTS
    chin = person.chin + 0.6 * max(now.mouth_open, 0)  # the jaw drops
    up = _clip(-v / person.crown, 0, 1)
    down = _clip(v / chin, 0, 1)
    skull = np.sqrt(1 - up**2.5)
    jaw = (1 + (person.jaw_width - 1) * down * down * (3 - 2 * down)) * np.sqrt(1 - down**person.jaw_angle)
    width = person.head_width * np.where(v < 0, skull, jaw)
    depth = person.head_depth * np.where(v < 0, skull, np.sqrt(1 - down**5) * (1 - 0.12 * down))
    steep = np.hypot(1, np.minimum(np.abs(np.gradient(width, v)), 6))
    table = np.stack([width, depth, steep]).astype(np.float32)
    return table, np.diff(table, append=table[:, -1:])


def _size_at(person: Person, now: Circumstances, v: np.ndarray) -> list[np.ndarray]:
    """Half-width and half-depth at a few heights v (n,), each (n,)."""
    return [np.interp(v, HEIGHTS, row) for row in _outline(person, now)[0][:2]]


def _outline_at(person: Person, now: Circumstances, v: np.ndarray) -> np.ndarray:
    """The outline at the heights v of all pixels (H, W), between those of the table: (3, H, W)."""
    table, rise = _outline(person, now)
    place = _clip((v - HEIGHTS[0]) * (255 / (HEIGHTS[-1] - HEIGHTS[0])), 0, 255)
    row = place.astype(np.int32)
    return table.take(row, 1, mode="clip") + (place - row.astype(place.dtype)) * rise.take(row, 1, mode="clip")


def _nod(now: Circumstances, v: np.ndarray) -> np.ndarray:
    """How far pitch moves the outline of the head down at height v: the chin most, the crown not."""
    return math.sin(now.pitch) * 0.75 * _clip((v + 1.0) / 2.4, 0, 1)


def _seen(person: Person, now: Circumstances, points: np.ndarray) -> np.ndarray:
    """Points of the face, (n, 3): x, y, how far off its surface -> where they are seen: u, v, (n, 2)."""
    x, y, off = points.T
    v = y = y + person.lopsided * x
    for _ in range(2):  # depth depends on the height at which it is seen, and that on depth
        width, depth = _size_at(person, now, v - _nod(now, v))
        z = depth * np.sqrt(np.maximum(1 - (x / np.maximum(width, 1e-3)) ** 2, 0)) + off
        v = y * math.cos(now.pitch) + z * math.sin(now.pitch)
    return np.stack([x * math.cos(now.yaw) + z * math.sin(now.yaw), v], 1)


def _mouth_corner(person: Person, now: Circumstances) -> tuple[float, float]:
    """x and y of the viewer's right mouth corner."""
    width = person.mouth_width * (1 + 0.2 * now.smile - 0.5 * max(now.mouth_open, 0))
    return width, person.mouth_height + person.mouth_corners - 0.09 * now.smile


def seen_landmarks(person: Person, now: Circumstances) -> np.ndarray:
    """The five landmarks in head units, before roll, (5, 2)."""
    mouth_x, mouth_y = _mouth_corner(person, now)
    eyes = [(-person.eye_distance, 0, 0), (person.eye_distance, 0, 0)]
    nose = [(0, person.nose_length, person.nose_height)]
    return _seen(person, now, np.array(eyes + nose + [(-mouth_x, mouth_y, 0), (mouth_x, mouth_y, 0)]))


def face_box(person: Person, now: Circumstances, view: View) -> np.ndarray:
    """Hairline (or forehead, under hair or hat) to chin, ear to ear: x0, y0, x1, y1 in pixels, (4,)."""
    chin = person.chin + 0.6 * max(now.mouth_open, 0)
    level = np.linspace(-person.hairline, chin, 24)
    width, depth = _size_at(person, now, level)
    reach = np.hypot(width * math.cos(now.yaw), depth * math.sin(now.yaw))
    reach += person.ear_angle * math.cos(now.yaw) * (np.abs(level - 0.1) < person.ear_size)
    v = level + _nod(now, level)
    points = view.to_pixels(np.concatenate([np.stack([reach, v], 1), np.stack([-reach, v], 1)]))
    return np.concatenate([points.min(0), points.max(0)])


@dataclass
class _Canvas:
    """A part of the picture under work: the colour of each pixel, and which point of the face it shows."""

    image: np.ndarray  # (3, H, W) colour
    u: np.ndarray  # (H, W) position as seen, before roll
    v: np.ndarray
    x: np.ndarray  # (H, W) position on the face
    y: np.ndarray
    relief: np.ndarray  # (H, W) height towards the viewer
    inside: np.ndarray  # (H, W) distance to the outline of the head, inside > 0
    pixel: float  # size of a pixel in head units

    def around(self, mask: np.ndarray) -> _Canvas:
        """The smallest part that holds the true pixels of a mask (H, W), sharing memory; it may be empty."""
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        part = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else np.s_[:0, :0]
        views = [a[part] for a in (self.u, self.v, self.x, self.y, self.relief, self.inside)]
        return _Canvas(self.image[(slice(None), *part)], *views, self.pixel)

    def window(self, x: float, y: float, radius: float) -> _Canvas:
        """The part within `radius` of a point of the face."""
        return self.around((np.abs(self.x - x) < radius) & (np.abs(self.y - y) < radius))

    def paint(self, cover: np.ndarray, colour) -> None:
        """Blends a colour, (3,) or (3, H, W), over the picture where cover (H, W) is above 0."""
        painted = cover.any(1).nonzero()[0]
        if not len(painted):
            return
        rows = slice(painted[0], painted[-1] + 1)  # the rest of the picture stays as it is
        colour = np.asarray(colour, np.float32)
        colour = colour[:, rows] if colour.ndim == 3 else colour[:, None, None]
        change = colour - self.image[:, rows]
        change *= cover[rows]
        self.image[:, rows] += change

    def edge(self, distance: np.ndarray, soft: float = 0.0) -> np.ndarray:
        """Cover 0..1 of a shape from the distance to its border, inside > 0. No edge is under a pixel."""
        cover = distance / max(soft, self.pixel)
        cover += 0.5
        np.maximum(cover, 0, out=cover)
        return np.minimum(cover, 1, out=cover)


def _coloured(colour: tuple[float, float, float], light: np.ndarray) -> np.ndarray:
    """A colour under light that differs from pixel to pixel, (H, W) -> (3, H, W)."""
    return np.array(colour, np.float32)[:, None, None] * light


def _bump(x, y, center_x: float, center_y: float, radius_x: float, radius_y: float) -> np.ndarray:
    """1 in the middle of an ellipse, 0 at its rim and beyond, smooth in between."""
    dx, dy = (x - center_x) * (1 / radius_x), (y - center_y) * (1 / radius_y)
    return np.square(np.maximum(1 - dx * dx - dy * dy, 0))


# Drawing a person, from back to front ----------------------------------------------------------------------


def _look_at(image: np.ndarray, person: Person, now: Circumstances, view: View) -> _Canvas:
    """Finds for every pixel of the part of the image around a person which point of the face it shows."""
    height, width = image.shape[1:]
    left, right = (int(_clip(view.x + side * 3.2 * view.unit, 0, width)) for side in (-1, 1))
    top = int(_clip(view.y - 2.4 * view.unit, 0, height))
    u, v = view.to_units(height - top, right - left, top, left)
    half_width, half_depth, steep = _outline_at(person, now, v - _nod(now, v))
    wide, deep = half_width * math.cos(now.yaw), half_depth * math.sin(now.yaw)
    reach = np.sqrt(wide**2 + deep**2) + 1e-6
    across = _clip(u / reach, -1, 1)
    towards = np.sqrt(1 - across**2)
    x = half_width * (across * wide - towards * deep) / reach
    z = half_depth * (towards * wide + across * deep) / reach
    y = (v - z * math.sin(now.pitch)) / math.cos(now.pitch) - person.lopsided * x
    relief = z * math.cos(now.yaw) - x * math.sin(now.yaw)
    inside = (reach - np.abs(u)) / steep - (half_width < 1e-3)  # nothing above the crown, however near
    return _Canvas(image[:, top:, left:right], u, v, x, y, relief, inside, 1 / view.unit)


def paint_person(
    image: np.ndarray, person: Person, now: Circumstances, view: View, rng: np.random.Generator
) -> None:
    """Draws a person over an image, (3, H, W) float32 in 0..1; `rng` chooses the clothes, glasses and hat."""
    canvas = _look_at(image, person, now, view)
    head = canvas.around(canvas.inside > -2 * canvas.pixel)
    if min(head.u.shape) < 2:
        return  # out of the picture
    texture = _texture(person.seed, person.identity)
    hair = _hair_colours(canvas, person, now, texture) if person.hair_length else None
    if hair is not None:
        _back_hair(canvas, person, now, hair)
    _body(canvas, person, now, rng)
    _ears(canvas, person, now, behind=True)
    _head(head, person, now, texture)
    if hair is not None:
        _front_hair(canvas, person, now, hair, texture)
    _ears(canvas, person, now, behind=False)
    if now.has_hat:
        _hat(canvas, person, now, rng)
    if now.has_glasses:
        _glasses(head, person, now, rng)


@lru_cache(maxsize=16)
def _texture(seed: int, identity: int) -> np.ndarray:
    """The person's own grain of hair and skin, (256, 256) in 0..1, with 64 grains a side."""
    grains = np.random.default_rng([seed, identity, 2]).integers(0, 256, (64, 64), dtype=np.uint8)
    return np.asarray(Image.fromarray(grains).resize((256, 256), Image.Resampling.BILINEAR), np.float32) / 255


def _grain(texture: np.ndarray, down: np.ndarray, across: np.ndarray) -> np.ndarray:
    """The texture at places given in grains from its middle; it repeats."""
    rows, columns = (((place + 32) * 4).astype(np.int32) & 255 for place in (down, across))
    return texture.ravel().take(rows * 256 + columns, mode="clip")


def _hair_colours(canvas: _Canvas, person: Person, now: Circumstances, texture: np.ndarray) -> np.ndarray:
    """Strands that follow the skull from the crown down, or curls, lit from where the light is: (3, H, W)."""
    u, v = canvas.u, canvas.v
    strand = u / np.sqrt(np.maximum(1.4 - 0.35 * (v + 0.4) ** 2, 0.35))
    straight = _grain(texture, 2.5 * v, 20 * strand)
    curled = _grain(texture, 11 * v, 11 * u)
    light = 0.62 + 0.55 * (straight + (curled - straight) * person.curl)
    lit = _clip(0.9 + 0.5 * (now.light_x * u + now.light_y * v), 0.1, 1.7)
    light *= now.ambient + (1 - now.ambient) * lit
    gloss = _bump(strand, v, now.light_x * 0.6, -0.95, 0.9, 0.35) * straight
    return _coloured(person.hair, light) + (1 - person.curl) * (0.1 + 0.5 * now.shine) * gloss


def _back_hair(canvas: _Canvas, person: Person, now: Circumstances, hair: np.ndarray) -> None:
    """The mass of hair around and behind the head, down to the ears, the chin or the shoulders."""
    u = canvas.u + 0.25 * math.sin(now.yaw)  # the back of the head turns the other way
    v = canvas.v
    volume = person.hair_volume
    rough = 0.03 * np.sin(17 * u) * np.sin(17 * v) * person.curl
    wide = person.head_width + (0.25 if person.hair_length == 1 else 0.8) * volume
    dome = 1 - np.sqrt((u / wide) ** 2 + (np.minimum(v, 0) / (person.crown + volume)) ** 2)
    if person.hair_length > 1:
        dome += 0.06 * np.maximum(v, 0)  # long hair spreads
    hanging = np.minimum(dome, (0.1, 1.25, 2.3)[person.hair_length - 1] - v)
    canvas.paint(canvas.edge(hanging + rough, 0.05), hair * _clip(0.95 - 0.2 * np.maximum(v, 0), 0.55, 1))


def _body(canvas: _Canvas, person: Person, now: Circumstances, rng: np.random.Generator) -> None:
    """Neck and shoulders, in clothes of the day."""
    canvas = canvas.around(canvas.v > 0.5)
    u = canvas.u + 0.12 * math.sin(now.yaw)
    v = canvas.v
    cloth, second = rng.uniform(0.05, 0.95, (2, 3))
    stripes, collar = rng.random() < 0.3, rng.uniform(0.1, 0.6)
    light = _clip(0.8 + 0.3 * now.light_x * u, 0.4, 1.15)
    shadow = 1 - 0.45 * _clip(1.4 + person.chin - v, 0, 1)
    neck = np.minimum(person.neck + 0.12 * np.maximum(v - 1.4, 0) - np.abs(u), v - 0.5)
    shadow *= 1 - 0.35 * (u / person.neck) ** 2
    canvas.paint(canvas.edge(neck), _coloured(person.skin, light * shadow))
    shoulders = v - person.chin - 0.34 - 0.30 * np.maximum(np.abs(u) - person.neck, 0) ** 1.4
    shoulders = np.minimum(shoulders, 2.3 - np.abs(u)) - np.maximum(collar * (1 - np.abs(u) / person.neck), 0)
    colours = cloth.astype(np.float32)[:, None, None]
    if stripes:
        colours = np.where(np.sin(14 * v) > 0.3, second.astype(np.float32)[:, None, None], colours)
    canvas.paint(canvas.edge(shoulders), colours * _clip(light - 0.1 * np.abs(u), 0.3, 1.2))


def _ears(canvas: _Canvas, person: Person, now: Circumstances, behind: bool) -> None:
    """The ear on the side that turns to us lies on the head, the other one is hidden behind it."""
    for side in (-1, 1):
        towards = -side * person.head_width * math.sin(now.yaw)
        if (towards < 0.12) != behind or person.hair_length > 1:
            continue
        stand_off = person.head_width + 0.4 * person.ear_angle
        u = side * stand_off * math.cos(now.yaw) - 0.05 * math.sin(now.yaw)
        wide = 0.10 + person.ear_angle * 0.5 + 0.25 * max(towards, 0)
        part = canvas.around((np.abs(canvas.u - u) < 1.3 * wide) & (np.abs(canvas.v - 0.14) < 1.3 * person.ear_size))
        du, dv = (part.u - u) / wide, (part.v - 0.14) / person.ear_size
        rim = 1 - np.sqrt(du**2 + dv**2 + 0.35 * du * dv * side)
        light = _clip(0.75 + 0.35 * now.light_x * side, 0.35, 1.1)
        skin = np.array(person.skin)
        part.paint(part.edge(rim * wide), skin * light * (1.0, 0.93, 0.91))
        part.paint(0.45 * _bump(du, dv, -0.1 * side, 0.0, 0.6, 0.7), skin * light * (0.6, 0.45, 0.42))


def _head(canvas: _Canvas, person: Person, now: Circumstances, texture: np.ndarray) -> None:
    """The skin with all its features, shaded as one relief."""
    skin = np.empty_like(canvas.image)
    skin[:] = np.array(person.skin, np.float32)[:, None, None]
    face = replace(canvas, image=skin)
    _complexion(face, person, texture)
    _bones(face, person, now)
    _nose(face, person, now)
    _wrinkles(face, person, now)
    _beard(face, person, texture)
    _mouth(face, person, now)
    _eyes(face, person, now)
    _brows(face, person, now, texture)
    _shade(face, now)
    canvas.paint(canvas.edge(canvas.inside), face.image)


def _complexion(face: _Canvas, person: Person, texture: np.ndarray) -> None:
    """Red cheeks and nose, freckles, moles, a scar, and the shadow of shaven hair."""
    skin = np.array(person.skin)
    aside = np.abs(face.x)
    red = 0.35 * _bump(aside, face.y, 0.55, 0.5, 0.4, 0.4)
    red += 0.30 * _bump(aside, face.y, 0, person.nose_length, 0.3, 0.25)
    face.paint(red, skin * (1.03, 0.80, 0.78))
    if person.hair_length == 0:
        face.paint(0.25 * face.edge(-person.hairline - face.y, 0.2), person.hair)
    if person.freckles:
        spots = _grain(texture, 18 * face.y, 18 * face.x)
        cover = _bump(aside, face.y, 0.35, 0.35, 0.8, 0.6) * (spots > 0.84)
        face.paint(person.freckles * cover, skin * (0.66, 0.5, 0.42))
    for x, y, radius in person.moles:
        part = face.window(x, y, 0.15)
        part.paint(0.85 * part.edge(radius - np.hypot(part.x - x, part.y - y)), skin * (0.40, 0.30, 0.28))
    if person.scar:
        x, y, slope = person.scar
        along, across = face.x - x + slope * (face.y - y), face.y - y - slope * (face.x - x)
        face.paint(0.6 * face.edge(0.02 - np.abs(across)) * (np.abs(along) < 0.25), skin * (1.15, 0.95, 0.95))


def _bones(face: _Canvas, person: Person, now: Circumstances) -> None:
    """Brow ridge, eye sockets, cheekbones, the mound of the mouth, chin."""
    aside = np.abs(face.x)
    mouth = person.mouth_height
    relief = face.relief
    relief += 0.09 * _bump(aside, face.y, 0.38, -person.brow_height, 0.50, 0.26)
    relief -= (0.09 + person.eye_depth) * _bump(aside, face.y, person.eye_distance - 0.05, -0.02, 0.34, 0.24)
    relief += (person.cheekbones + 0.05 * max(now.smile, 0)) * _bump(aside, face.y, 0.55, 0.40, 0.36, 0.32)
    relief += 0.10 * _bump(face.x, face.y, 0, mouth, 0.60, 0.42)
    relief += (0.05 + person.chin_boss) * _bump(face.x, face.y, 0, person.chin - 0.17, 0.34, 0.24)
    relief -= 0.05 * _bump(face.x, face.y, 0, person.chin - 0.42, 0.30, 0.14)


def _nose(face: _Canvas, person: Person, now: Circumstances) -> None:
    """A ridge that rises and widens to the tip, with wings and nostrils; it stands off, so yaw moves it."""
    part = face.window(0, 0.5 * person.nose_length, 0.5 * person.nose_length + 0.4)
    down = _clip(part.y / person.nose_length, -0.3, 1)
    height = person.nose_height * (0.3 + 0.7 * down) + person.nose_hump * (1 - (2 * down - 1) ** 2)
    x = part.x - height * math.tan(now.yaw)
    tip = person.nose_length + 0.10 * math.sin(now.pitch)
    below = _clip((tip + 0.17 - part.y) / 0.20, 0, 1)
    width = person.nose_bridge + (person.nose_width - person.nose_bridge) * down**2 + 0.10
    ridge = np.maximum(1 - (x / width) ** 2, 0) ** 1.5
    between_eyes = _clip((part.y + 0.35) / 0.35, 0, 1)
    part.relief += 0.9 * np.maximum(height, 0) * ridge * below * between_eyes
    part.relief += (0.06 + person.nose_tip) * _bump(x, part.y, 0, tip - 0.02, 0.65 * person.nose_width, 0.15)
    wing = np.abs(x)
    part.relief += 0.10 * _bump(wing, part.y, 0.8 * person.nose_width, tip - 0.01, 0.10, 0.12)
    dark = np.array(person.skin) * (0.38, 0.26, 0.24)
    shadow = 0.25 * _bump(x, part.y, 0, tip + 0.13, person.nose_width + 0.05, 0.09)
    shadow += 0.5 * _bump(wing, part.y, person.nose_width + 0.05, tip, 0.05, 0.13)
    opening = 0.035 - 0.06 * now.pitch
    nostril = np.hypot((wing - 0.45 * person.nose_width) / 0.07, (part.y - tip - 0.085) / opening)
    part.paint(np.maximum(shadow, 0.7 * _clip(1.5 - nostril, 0, 1)), dark)


def _wrinkles(face: _Canvas, person: Person, now: Circumstances) -> None:
    """Folds from nose to mouth (deeper in a smile), lines on the forehead, crow's feet."""
    skin = np.array(person.skin) * (0.62, 0.48, 0.44)
    middle = (person.nose_length + person.mouth_height) / 2
    cheeks = face.around(np.abs(face.y - middle) < 0.28)
    fold = np.abs(cheeks.x) - person.nose_width - 0.06 - 0.55 * np.maximum(cheeks.y - person.nose_length, 0)
    depth = 0.12 + 0.3 * person.wrinkles + 0.25 * max(now.smile, 0)
    cheeks.paint(depth * _bump(fold, cheeks.y, 0, middle, 0.07, 0.28), skin)
    if person.wrinkles > 0.6:
        brow = face.window(0, -0.62, 0.6)
        lines = np.maximum(np.sin(34 * brow.y + 3 * brow.x**2) - 0.6, 0)
        lines *= _bump(brow.x, brow.y, 0, -0.62, 0.6, 0.28)
        brow.paint((person.wrinkles + 5 * max(now.brow_raise, 0)) * lines, skin)
        aside = np.abs(face.x)
        feet = np.maximum(np.sin(40 * (face.y + 0.3 * aside)) - 0.4, 0)
        feet *= _bump(aside, face.y, 0.74, 0.03, 0.13, 0.16)
        face.paint((0.4 * person.wrinkles + 0.3 * max(now.smile, 0)) * feet, skin)


def _beard(face: _Canvas, person: Person, texture: np.ndarray) -> None:
    """Moustache and beard, from stubble (thin cover) to full."""
    if not person.moustache:
        return
    aside, y, mouth = np.abs(face.x), face.y, person.mouth_height
    rough = _grain(texture, 14 * y, 22 * face.x)
    colour = _coloured(person.hair, 0.55 + 0.6 * rough)
    upper = _bump(aside, y, 0.16, mouth - 0.13 + 0.25 * aside, 0.40, 0.15)
    face.paint(person.moustache * _clip(3 * upper, 0, 1) * (0.6 + 0.4 * rough), colour)
    line = mouth + 0.05 - 0.9 * np.maximum(aside - 0.45, 0)  # rises to the ears
    outside_lips = np.maximum(face.edge(aside - 0.40, 0.2), face.edge(y - mouth - 0.2, 0.15))
    grown = face.edge(y - line + 0.1 * rough, 0.2) * outside_lips
    face.paint(person.beard * grown * (0.6 + 0.4 * rough), colour)
    face.relief += 0.06 * person.beard * grown * rough


def _mouth(face: _Canvas, person: Person, now: Circumstances) -> None:
    """Lips around a line that a smile bends, teeth when it opens."""
    corner_x, corner_y = _mouth_corner(person, now)
    part = face.window(0, person.mouth_height, 0.62)
    t = part.x / corner_x
    arc = np.maximum(1 - t * t, 0)
    line = person.mouth_height + (corner_y - person.mouth_height) * np.minimum(t * t, 1.2)
    gap = max(now.mouth_open, 0) * arc
    above, below = line - 0.25 * gap, line + 1.1 * gap
    thin = 1 - 0.2 * max(now.smile, 0)
    bow = 1 - person.cupids_bow * np.maximum(1 - (t / 0.35) ** 2, 0)
    top = above - (person.upper_lip * thin + 0.01) * np.sqrt(arc) * bow
    bottom = below + person.lower_lip * thin * arc
    lips = np.minimum(part.y - top, bottom - part.y)
    part.relief += 0.05 * _clip(lips / 0.05, 0, 1) * arc
    lip_colour = _coloured(person.lips, 0.86 + 0.19 * part.edge(part.y - line))
    part.paint(0.9 * part.edge(lips, 0.02) * (arc > 0), lip_colour)
    part.paint(0.3 * _bump(t, part.y, 0, bottom + 0.06, 0.8, 0.07), np.array(person.skin) * 0.5)
    opening = part.edge(np.minimum(part.y - above, below - part.y)) * (gap > 0)
    part.paint(opening, (0.16, 0.05, 0.06))
    part.paint(opening * part.edge(above + 0.5 * gap + 0.02 - part.y), (0.90, 0.88, 0.84))
    dark = np.array(person.lips) * (0.35, 0.25, 0.25)
    part.paint(0.8 * part.edge(0.016 - np.abs(part.y - above)) * (np.abs(t) < 1.03), dark)
    part.paint(0.5 * _bump(np.abs(part.x), part.y, corner_x, corner_y, 0.06, 0.06), dark)


def _eyes(face: _Canvas, person: Person, now: Circumstances) -> None:
    """Both at once: eyeball, iris, pupil and its glint between two lids, with crease, lashes and bags."""
    part = face.window(0, 0, person.eye_distance + 0.36)
    part = part.around(np.abs(part.y) < 0.36)
    skin = np.array(person.skin)
    outwards = np.abs(part.x) - person.eye_distance
    t = outwards / person.eye_width  # -1 inner corner .. 1 outer corner
    y = part.y + person.eye_tilt * t
    within = np.abs(t) < 1
    arc = np.maximum(1 - t * t, 0) ** person.eye_roundness
    squint = person.eye_height * (1 - 0.2 * max(now.smile, 0))
    upper = -squint * now.eyes_open * arc
    lower = 0.6 * squint * (0.4 + 0.6 * now.eyes_open) * arc
    part.paint(0.30 * _bump(t, y, -0.1, -0.08, 1.5, 0.22), skin * (0.62, 0.50, 0.48))
    bags = _bump(t, y, -0.1, person.eye_height + 0.10, 1.1, 0.08)
    part.paint((0.10 + person.eye_bags) * bags, skin * (0.62, 0.50, 0.50))
    crease = upper - person.lid_crease * (0.35 + 0.65 * arc)
    part.paint(0.55 * part.edge(0.014 - np.abs(y - crease)) * within, skin * (0.45, 0.34, 0.32))
    ball = part.edge(np.minimum(y - upper, lower - y)) * within
    shadow = _clip(0.62 + (y - upper) * 5, 0.62, 1)
    part.paint(ball, _coloured((0.93, 0.91, 0.89), shadow))
    sideways = outwards * np.sign(part.x) - now.gaze_x  # from the middle of the pupil, to the viewer's right
    below = part.y - now.gaze_y + 0.012
    from_pupil = np.sqrt(sideways**2 + below**2)
    ring = _clip(1.25 - (from_pupil / IRIS_RADIUS) ** 2, 0.35, 1.2) * shadow
    part.paint(ball * part.edge(IRIS_RADIUS - from_pupil), _coloured(person.iris, ring))
    part.paint(ball * part.edge(0.45 * IRIS_RADIUS - from_pupil), (0.03, 0.03, 0.03))
    glint = np.sqrt((sideways - 0.04 * now.light_x) ** 2 + (below + 0.033) ** 2)
    part.paint(ball * part.edge(0.028 - glint), (1.3, 1.3, 1.3))
    part.paint(0.9 * part.edge(0.020 - np.abs(y - upper)) * (np.abs(t) < 1.05), skin * 0.12)
    part.paint(0.4 * part.edge(0.012 - np.abs(y - lower)) * within, skin * (0.50, 0.35, 0.35))


def _brows(face: _Canvas, person: Person, now: Circumstances, texture: np.ndarray) -> None:
    height = person.brow_height + now.brow_raise
    part = face.around(np.abs(face.y + height + 0.1) < 0.32)
    t = (np.abs(part.x) - person.brow_gap) / person.brow_length  # 0 inner end .. 1 outer end
    along = _clip(t, 0, 1)
    line = person.brow_tilt * (along - 0.5) - 4 * person.brow_arch * along * (1 - along) * (0.5 + along) - height
    thick = person.brow_thickness * (1 - 0.75 * along**2)
    rough = _grain(texture, 8 * part.y, 26 * part.x)
    cover = part.edge(thick - np.abs(part.y - line), 0.035) * part.edge(np.minimum(t, 1 - t), 0.12)
    part.relief += 0.02 * cover
    part.paint(cover * (0.65 + 0.35 * rough), np.array(person.hair) * 0.7 + np.array(person.skin) * 0.06)


def _shade(face: _Canvas, now: Circumstances) -> None:
    """Lambert's law with light that wraps a little around the form, plus Blinn's highlight (1977)."""
    slope_v = np.diff(face.relief, axis=0, append=face.relief[-1:]) / face.pixel
    slope_u = np.diff(face.relief, axis=1, append=face.relief[:, -1:]) / face.pixel
    steep = 1 / np.sqrt(1 + slope_u**2 + slope_v**2)
    light = np.array((now.light_x, now.light_y, 1.0))
    light /= np.linalg.norm(light)
    middle = light + (0, 0, 1)  # between the light and the viewer
    middle /= np.linalg.norm(middle)

    def facing(direction: np.ndarray) -> np.ndarray:  # cosine of the angle to the surface's normal
        a, b, c = direction.tolist()
        return (c - a * slope_u - b * slope_v) * steep

    lit = _clip(facing(light) + 0.2, 0, 2) / 1.1
    gloss = _clip(facing(middle), 0, 1) ** 16
    warm = np.array((1 + now.warmth, 1.0, 1 - now.warmth), np.float32)[:, None, None]
    face.image *= now.ambient + (1.1 - now.ambient) * lit * warm
    face.image += now.shine * gloss


def _front_hair(
    canvas: _Canvas, person: Person, now: Circumstances, hair: np.ndarray, texture: np.ndarray
) -> None:
    """Hair over the skull down to the hairline, a fringe, sideburns, and long hair along the cheeks."""
    aside = np.abs(canvas.x)
    line = -person.hairline + person.widows_peak * np.maximum(1 - aside / 0.2, 0)
    line -= person.recession * _bump(aside, 0, 0.5, 0, 0.3, 1) - 0.25 * aside**2
    if person.fringe:
        line = np.maximum(line, -0.42 - 0.15 * np.abs(canvas.x - person.parting))
    ends = _grain(texture, 2 * canvas.y, 18 * canvas.x)
    over = line + 0.10 * ends - canvas.y
    curtain = 0.80 + 0.05 * person.curl if person.hair_length > 1 else 0.92
    lowest = 0.35 - 0.15 * ends - aside * 0.1 if person.hair_length == 1 else 3.0
    back = 0.1 - canvas.u * math.sin(now.yaw) - canvas.relief * math.cos(now.yaw)
    side = np.maximum(aside - curtain * person.head_width - 0.04 * ends, back)
    covered = np.maximum(over, np.minimum(side, lowest - canvas.y))
    inside = canvas.edge(canvas.inside + 0.04)
    canvas.paint(0.35 * canvas.edge(covered + 0.06, 0.12) * inside, np.array(person.skin) * 0.4)  # its shadow
    canvas.paint(canvas.edge(covered, 0.05) * inside, hair)


def _hat(canvas: _Canvas, person: Person, now: Circumstances, rng: np.random.Generator) -> None:
    """A knitted hat, or a cap with a peak that shades the forehead."""
    colour = rng.uniform(0.05, 0.9, 3).astype(np.float32)[:, None, None]
    knitted = rng.random() < 0.5
    level = -0.62 + 0.44 * math.sin(now.pitch)
    u = canvas.u + 0.1 * math.sin(now.yaw)
    above = np.minimum(canvas.v, 0) / (person.crown + 0.25)
    dome = 1 - np.sqrt((u / (person.head_width + 0.14)) ** 2 + above**2)
    rim = level + 0.12 * (u / person.head_width) ** 2 - canvas.v
    light = _clip(0.85 + 0.35 * now.light_x * u + 0.3 * now.light_y * canvas.v, 0.3, 1.3)
    light = light * (1 - 0.18 * _clip(3 * np.sin(28 * u), 0, 1)) if knitted else light
    band = 0.8 + 0.2 * _clip((rim - 0.28) * 12, 0, 1)
    canvas.paint(canvas.edge(np.minimum(dome, rim)), colour * (light * band))
    if not knitted:
        peak_u = u - 0.75 * math.sin(now.yaw)
        peak = 1 - np.hypot(peak_u / 0.85, (canvas.v - level - 0.02) / 0.16)
        canvas.paint(0.4 * _bump(peak_u, canvas.v, 0, level + 0.16, 0.95, 0.3), (0, 0, 0))
        canvas.paint(canvas.edge(0.3 * peak), colour * light * 0.75)


def _glasses(canvas: _Canvas, person: Person, now: Circumstances, rng: np.random.Generator) -> None:
    """Round to square frames in front of the eyes, sometimes with tinted glass."""
    frame = rng.uniform(0, 0.5) * rng.uniform(0.3, 1, 3)
    half_width, half_height = rng.uniform(0.25, 0.34), rng.uniform(0.19, 0.29)
    square, thick = float(rng.choice([2.0, 2.6, 4.0])), rng.uniform(0.016, 0.045)
    tint = 0.85 if rng.random() < 0.08 else rng.uniform(0.02, 0.15)
    half_width = min(half_width, person.eye_distance - 0.07)
    x = canvas.x - 0.16 * math.tan(now.yaw)  # they stand off the face
    aside, y = np.abs(x), canvas.y - 0.04
    across = np.abs(aside - person.eye_distance) / half_width
    glass = (1 - (across**square + (np.abs(y) / half_height) ** square) ** (1 / square)) * half_height
    inside = canvas.edge(canvas.inside + 0.03)
    canvas.paint(tint * canvas.edge(glass) * inside, frame * 0.3)
    streak = np.abs(y + 0.6 * x - 0.1 * now.light_x) < 0.05
    canvas.paint(0.25 * canvas.edge(glass) * inside * streak, (1, 1, 1))
    bridge = np.minimum(0.8 * thick - np.abs(y + 0.06), person.eye_distance - half_width - aside)
    temple = np.minimum(thick - np.abs(y + 0.05), aside - person.eye_distance - half_width)
    wire = np.maximum(thick - np.abs(glass), np.maximum(bridge, temple))
    canvas.paint(canvas.edge(wire) * inside, frame)
