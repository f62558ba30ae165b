"""Drawn results: pixels where they must be, labels inside the picture, and no name that stops it."""

import shutil
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from facekit import drawing
from facekit.drawing import COLOURS, DARK, DEJAVU, MARKED, draw_faces, font_files, one_line, shorten
from facekit.synthetic import draw_scene

BOX = np.array([(200, 150, 300, 270)])
POINTS = np.array([[(225, 190), (275, 190), (250, 215), (230, 240), (270, 240)]], dtype=float)
CREAM = (250, 245, 235)

NAMES = [
    "Grace Hopper 0.97", "Unknown", "Ελένη 0.91", "Łukasz Żółć", "Дмитрий", "محمد علی 0.97", "דנה כהן", "山田太郎 0.95",
    "김민수", "नेहा", "สมชาย", "😀👩‍👩‍👧 0.93", "a\tb\nc\r\x00\x1b[31m", "\u202egnp.eman", "\ud800 lone", "e\u0301" * 30,
    "Z\u0351\u0352\u0353\u0354\u0355" * 20, "\ue000\U0010ffff", "x" * 100_000, "W" * 120, "", "   ", "\n", "\u200d",
    "%s {0} \\",
]  # fmt: skip


@pytest.fixture
def system_fonts(monkeypatch):
    """Stands in for the list of the system's fonts."""
    fonts = []
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: list(map(str, fonts)))
    drawing._system_font_files.cache_clear()
    yield fonts
    drawing._system_font_files.cache_clear()


def plain(width: int = 640, height: int = 480, colour=CREAM) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def changed(picture: Image.Image, background=CREAM) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 around everything that was drawn."""
    rows, columns = np.nonzero((np.asarray(picture) != background).any(axis=2))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def label_only(label: str, box=(200, 150, 300, 270), size=(640, 480)) -> tuple[Image.Image, np.ndarray]:
    """The picture and the pixels, (height, width) bool, that differ from the one without a label."""
    with_label, _ = draw_faces(plain(*size), [box], POINTS, [label])
    without, _ = draw_faces(plain(*size), [box], POINTS, [""])
    return with_label, (np.asarray(with_label) != np.asarray(without)).any(axis=2)


def test_box_and_points_are_where_they_must_be():
    picture, notes = draw_faces(plain(), BOX, POINTS, [""])
    assert notes == []
    assert changed(picture) == (200, 150, 300, 270)
    for corner in [(200, 150), (299, 150), (200, 269), (299, 269), (250, 150), (200, 200)]:
        assert picture.getpixel(corner) == COLOURS[0]
    for x, y in POINTS[0].astype(int):
        assert picture.getpixel((int(x), int(y))) == COLOURS[0]
    pixels = np.asarray(picture)
    assert (pixels[200:206, 240:246] == CREAM).all()  # between the points nothing is drawn
    dot = (pixels[183:198, 218:233] == COLOURS[0]).all(axis=2)
    rows, columns = np.nonzero(dot)
    assert (columns.mean() + 218.5, rows.mean() + 183.5) == pytest.approx((225, 190), abs=0.6)


@pytest.mark.parametrize("array", [False, True])
def test_original_is_untouched(array):
    photo = plain()
    given = np.array(photo) if array else photo
    picture, _ = draw_faces(given, BOX, POINTS, ["Somebody"])
    assert picture.getpixel((200, 150)) == COLOURS[0]
    assert (np.asarray(given) == CREAM).all()


def test_no_faces_is_a_copy():
    photo = plain(30, 20)
    picture, notes = draw_faces(photo, np.empty((0, 4)), np.empty((0, 5, 2)), [])
    assert picture is not photo
    assert (np.asarray(picture) == CREAM).all()
    assert notes == []


@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0), COLOURS[0], (128, 128, 128)])
def test_label_is_light_text_on_a_dark_plate(background):
    picture, _ = draw_faces(plain(colour=background), BOX, POINTS, ["Grace Hopper 0.97"])
    pixels = np.asarray(picture)[:150].astype(int)  # the label lies above the box
    dark, light = (pixels == DARK).all(axis=2), (np.abs(pixels - COLOURS[0]) < 50).all(axis=2)
    assert dark.sum() > 1000
    rows, columns = np.nonzero(dark)
    plate = light[rows.min():rows.max() + 1, columns.min():columns.max() + 1]
    assert 100 < plate.sum() < dark.sum()
    assert columns.min() == 200  # aligned with the box
    assert rows.max() == 149  # and touching it


def test_label_shows_the_text():
    """The plate's text is what Pillow writes with the same font."""
    _, drawn = label_only("Grace 0.97")
    rows, columns = np.nonzero(drawn)
    size = max(10, round((640 * 480) ** 0.5 / 40))
    font = ImageFont.truetype(DEJAVU, size)
    assert np.ptp(columns) + 1 == pytest.approx(font.getlength("Grace 0.97") + size // 2, abs=1)
    picture = label_only("Grace 0.97")[0].crop((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
    expected = Image.new("RGB", picture.size, DARK)
    ImageDraw.Draw(expected).text((size // 4, size // 8), "Grace 0.97", fill=COLOURS[0], font=font)
    assert (np.asarray(picture) == np.asarray(expected)).all()


def test_marked_faces_are_grey_and_others_are_not():
    boxes, points = np.repeat(BOX, 2, axis=0) + [[0], [200]], np.repeat(POINTS, 2, axis=0) + [[[0]], [[200]]]
    picture, _ = draw_faces(plain(), boxes, points, ["", ""], marked=np.array([True, False]))
    assert picture.getpixel((200, 200)) == MARKED
    assert picture.getpixel((225, 190)) == MARKED
    assert picture.getpixel((400, 400)) == COLOURS[1]


def test_neighbours_have_different_colours():
    boxes = np.array([(10 + 60 * i, 300, 50 + 60 * i, 350) for i in range(8)])
    picture, _ = draw_faces(plain(), boxes, np.full((8, 5, 2), np.nan), [""] * 8)
    colours = [picture.getpixel((int(box[0]), int(box[1]))) for box in boxes]
    assert len(set(colours[:6])) == 6
    assert colours[6:] == colours[:2]


@pytest.mark.parametrize("box", [
    (0, 0, 40, 50), (600, 0, 640, 50), (0, 430, 40, 480), (600, 430, 640, 480), (0, 0, 640, 480), (-50, -60, 30, 40),
    (620, 400, 700, 600), (300, -90, 340, -20), (250, 200, 251, 201), (250, 200, 250, 200),
])  # fmt: skip
def test_whole_label_inside_the_picture_wherever_the_face(box):
    _, reference = label_only("Grace Hopper 0.97", box=(200, 150, 300, 270))
    rows, columns = np.nonzero(reference)
    plate = (np.ptp(columns) + 1, np.ptp(rows) + 1)
    picture, notes = draw_faces(plain(), [box], np.full((1, 5, 2), np.nan), ["Grace Hopper 0.97"])
    without, _ = draw_faces(plain(), [box], np.full((1, 5, 2), np.nan), [""])
    rows, columns = np.nonzero((np.asarray(picture) != np.asarray(without)).any(axis=2))
    assert (np.ptp(columns) + 1, np.ptp(rows) + 1) == pytest.approx(plate, abs=3)  # less where box lines are as dark
    assert notes == []


def places_of(monkeypatch, boxes, labels, size=(640, 480)) -> np.ndarray:
    """x0, y0, x1, y1 of every label."""
    taken = []
    place = drawing._place

    def remember(plate, *rest):
        x, y = place(plate, *rest)
        taken.append((x, y, x + plate[0], y + plate[1]))
        return x, y

    monkeypatch.setattr(drawing, "_place", remember)
    draw_faces(plain(*size), boxes, np.full((len(boxes), 5, 2), np.nan), labels)
    return np.array(taken)


def overlaps(one, other) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@pytest.mark.parametrize("step", [(0, 0), (3, 2), (15, 0), (0, 8), (40, 3.3)])
def test_labels_do_not_hide_each_other(monkeypatch, step):
    boxes = np.array([(100, 120, 140, 165)] * 12) + np.arange(12)[:, None] * np.tile(step, 2)
    places = places_of(monkeypatch, boxes, [f"Somebody {i} 0.9{i % 10}" for i in range(12)])
    assert len(places) == 12
    assert not any(overlaps(places[i], places[j]) for i in range(12) for j in range(i))
    assert (places >= 0).all() and (places <= (640, 480) * 2).all()


def test_label_does_not_cover_the_face_above(monkeypatch):
    boxes = np.array([(200, 200, 260, 270), (190, 130, 250, 195), (205, 275, 270, 340)])
    places = places_of(monkeypatch, boxes, ["Somebody 0.97", "", ""])
    assert places[0][0] == 260  # neither above nor below, where the others are, but to the right


def test_labels_keep_off_faces_where_there_is_room(monkeypatch):
    scene = draw_scene([1, 2, 3, 4], seed=0)
    places = places_of(monkeypatch, scene.boxes, ["Ann 0.97", "Unknown", "Bo 0.95", "Unknown"])
    boxes = np.rint(scene.boxes)
    assert not any(overlaps(place, box) for place in places for box in boxes)
    gaps = [max(box[0] - place[2], place[0] - box[2], box[1] - place[3], place[1] - box[3])
            for place, box in zip(places, boxes)]
    assert gaps == [0, 0, 0, 0]  # each beside its own face


def test_more_labels_than_room(monkeypatch):
    places = places_of(monkeypatch, np.array([(5, 5, 60, 60)] * 40), ["Somebody 0.97"] * 40, (120, 90))
    assert len(places) == 40
    assert (places >= 0).all() and (places <= (120, 90) * 2).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (12, 12), (40, 30), (6000, 4000), (20000, 20)])
def test_photos_of_every_size(size):
    width, height = size
    box = np.array([(0.2 * width, 0.3 * height, 0.6 * width, 0.9 * height)])
    points = np.array(size) * np.linspace(0.3, 0.6, 5)[None, :, None]
    picture, _ = draw_faces(plain(*size), box, points, ["Somebody 0.97"])
    assert picture.size == size
    if size == (6000, 4000):  # lines and text grow along
        column = (np.asarray(picture)[2400, 1200:1260] == COLOURS[0]).all(axis=1)
        assert 10 <= column.sum() <= 25
        rows, _ = np.nonzero((np.asarray(picture)[:1200] != CREAM).any(axis=2))
        assert np.ptp(rows) > 100


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_drawn_or_noted(name):
    picture, notes = draw_faces(plain(300, 200), [(100, 80, 160, 140)], POINTS / 2, [name])
    assert picture.size == (300, 200)
    assert len(notes) <= 1
    bare, _ = draw_faces(plain(300, 200), [(100, 80, 160, 140)], POINTS / 2, [""])
    assert (changed(picture) == changed(bare)) == (one_line(name) == "")


@given(st.text(alphabet=st.characters(), max_size=40))
@settings(deadline=None, max_examples=60)
def test_any_text_at_all(text):
    picture, notes = draw_faces(plain(160, 120), [(50, 40, 90, 90)], POINTS / 4, [text])
    assert picture.size == (160, 120)
    assert all(isinstance(note, str) for note in notes)


@given(st.text(max_size=60), st.sampled_from([10, 16, 40]), st.floats(0, 500))
@settings(deadline=None, max_examples=60)
def test_shorten_fits_and_keeps_both_ends(text, size, width):
    text = one_line(text)
    short = shorten(text, size, width)
    assert drawing._width(short, size) <= width
    cuts = [text[:len(text) - dropped - tail] + "…" + text[len(text) - tail:]
            for dropped in range(1, len(text)) for tail in [(len(text) - dropped) // 2]]
    assert short in [text, "", *cuts]


def test_shorten_by_hand():
    assert shorten("Grace Hopper 0.97", 12, 1000) == "Grace Hopper 0.97"
    short = shorten("Grace Brewster Murray Hopper 0.97", 12, 100)
    assert short.startswith("Grace") and short.endswith("0.97") and short.count("…") == 1
    font = ImageFont.truetype(DEJAVU, 12)
    assert font.getlength(short) <= 100 < font.getlength(short) + 20  # no more is cut than must be
    assert shorten("Grace", 12, 3) == ""
    assert shorten("", 12, 100) == ""
    assert len(shorten("i" * 100_000, 12, 1e9)) == drawing.MOST_CHARACTERS


def test_printable():
    assert one_line("  Grace\n\tHopper\r\n 0.97 ") == "Grace Hopper 0.97"
    assert one_line("a\x00b\x1b[31mc\u202ed") == "ab[31mcd"
    assert one_line("Jose\u0301") == "José"
    assert one_line("\ud800\u200b") == ""
    assert one_line("山田 محمد Ελένη") == "山田 محمد Ελένη"
    assert one_line(None) == "None"


def test_common_scripts_need_no_system_font(monkeypatch):
    def fail():
        raise AssertionError("the system's fonts were searched")

    monkeypatch.setattr(font_manager, "findSystemFonts", fail)
    drawing._system_font_files.cache_clear()
    _, notes = draw_faces(plain(), BOX, POINTS, ["José Ελένη Дмитрий محمد דנה 0.97…"])
    assert notes == []


def test_missing_characters_are_noted_once_and_drawn_as_boxes(system_fonts):
    boxes, points = np.repeat(BOX, 3, axis=0), np.repeat(POINTS, 3, axis=0)
    picture, notes = draw_faces(plain(), boxes, points, ["山田 0.97", "山田 0.97", "Unknown"])
    assert len(notes) == 1
    assert "山" in notes[0] and "田" in notes[0] and "0" not in notes[0].split(" of the label ")[0]
    assert "山田 0.97" in notes[0]


def test_system_font_is_used_for_what_dejavu_lacks(system_fonts, tmp_path):
    """STIX has 𝔸 (U+1D538), which comes with matplotlib too; broken files and LastResort are passed over."""
    stix = Path(matplotlib.get_data_path(), "fonts/ttf/STIXGeneral.ttf")
    lacking = next(chr(code) for code in font_manager.get_font(stix).get_charmap()
                   if code not in font_manager.get_font(DEJAVU).get_charmap() and chr(code).isprintable())
    assert lacking not in font_files(f"A{lacking}")
    broken, last_resort = tmp_path / "broken.ttf", tmp_path / "LastResort.otf"
    broken.write_bytes(b"no font")
    shutil.copy(stix, last_resort)
    system_fonts += [broken, tmp_path / "gone.ttf", last_resort]
    drawing._system_font_files.cache_clear()
    assert lacking not in font_files(f"A{lacking}")
    _, notes = draw_faces(plain(), BOX, POINTS, [f"A{lacking}"])
    assert len(notes) == 1
    system_fonts.append(stix)
    drawing._system_font_files.cache_clear()
    assert font_files(f"A{lacking}") == {"A": DEJAVU, lacking: str(stix)}
    _, notes = draw_faces(plain(), BOX, POINTS, [f"A{lacking}"])
    assert notes == []
    expected = ImageFont.truetype(DEJAVU, 20).getlength("A") + ImageFont.truetype(stix, 20).getlength(lacking)
    assert drawing._width(f"A{lacking}", 20) == pytest.approx(expected)


def test_missing_points_are_left_out():
    points = POINTS.copy()
    points[0, 1] = np.nan
    picture, _ = draw_faces(plain(), BOX, points, [""])
    assert picture.getpixel((275, 190)) == CREAM
    assert picture.getpixel((225, 190)) == COLOURS[0]
