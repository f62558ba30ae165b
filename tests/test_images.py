"""Every kind of file that users have is opened the same way, or refused in one sentence that names it."""

import io
import os
import struct
import sys
import types
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from matplotlib import cbook
from PIL import Image, ImageOps

from facekit.files import InputError, write_text
from facekit.images import center_crop, contact_sheet, face_pixels, find_photos, open_photo, photos_in

PHOTO = Path(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))  # 512 x 600, comes with matplotlib


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def corners() -> Image.Image:
    """60 x 40, not symmetric in any way: red, green, blue and grey quarters."""
    pixels = np.full((40, 60, 3), 90, np.uint8)
    pixels[:20, :30], pixels[:20, 30:], pixels[20:, :30] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    return Image.fromarray(pixels)


def assert_same(opened: Image.Image, expected: Image.Image, tolerance: int = 0) -> None:
    assert (opened.mode, opened.size) == ("RGB", expected.size)
    difference = np.asarray(opened, int) - np.asarray(expected.convert("RGB"), int)
    assert np.abs(difference).max() <= tolerance


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".ppm", ".webp", ".gif", ".jpg", ".jp2"])
def test_formats_under_a_wrong_extension(tmp_path, suffix):
    right = tmp_path / f"photo{suffix}"
    options = {".webp": {"lossless": True}, ".jpg": {"quality": 100, "subsampling": 0}}.get(suffix, {})
    corners().save(right, **options)
    wrong = right.rename(tmp_path / ("photo.jpg" if suffix != ".jpg" else "photo.png"))
    assert_same(open_photo(wrong), corners(), tolerance=3 if suffix == ".jpg" else 0)
    assert_same(open_photo(str(wrong)), corners(), tolerance=3 if suffix == ".jpg" else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_exif_orientation(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == ".webp" else {}
    corners().save(tmp_path / f"photo{suffix}", exif=exif, **options)
    with Image.open(tmp_path / f"photo{suffix}") as stored:
        expected = ImageOps.exif_transpose(stored).convert("RGB")
    assert expected.size == ((60, 40) if orientation < 5 else (40, 60))
    opened = open_photo(tmp_path / f"photo{suffix}")
    assert_same(opened, expected)
    assert_same(open_photo(opened), expected)  # not turned a second time
    with Image.open(tmp_path / f"photo{suffix}") as unopened:
        assert_same(open_photo(unopened), expected)


def test_damaged_exif_does_not_matter(tmp_path):
    corners().save(tmp_path / "photo.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(20), quality=100,
                   subsampling=0)
    assert_same(open_photo(tmp_path / "photo.jpg"), corners(), tolerance=3)


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "YCbCr", "RGBX"])
def test_other_modes(mode):
    image = corners().convert(mode)
    assert_same(open_photo(image), image.convert("RGB"))


def test_cmyk_and_grey_files(tmp_path):
    for mode in ("CMYK", "L"):
        image = corners().convert(mode)
        image.save(tmp_path / f"{mode}.tif")
        assert_same(open_photo(tmp_path / f"{mode}.tif"), image.convert("RGB"))
    corners().convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100, subsampling=0)
    assert_same(open_photo(tmp_path / "cmyk.jpg"), corners(), tolerance=4)


def test_transparency_becomes_white(tmp_path):
    rgba = corners().convert("RGBA")
    alpha = np.full((40, 60), 255, np.uint8)
    alpha[:20, :30], alpha[:20, 30:] = 0, 51  # red: invisible, green: one fifth visible
    rgba.putalpha(Image.fromarray(alpha))
    rgba.save(tmp_path / "rgba.png")
    opened = open_photo(tmp_path / "rgba.png")
    assert opened.getpixel((5, 5)) == (255, 255, 255)
    assert opened.getpixel((45, 5)) == (204, 255, 204)
    assert opened.getpixel((5, 35)) == (0, 0, 255)

    rgba.convert("LA").save(tmp_path / "la.png")
    assert open_photo(tmp_path / "la.png").getpixel((5, 5)) == (255, 255, 255)

    palette = corners().convert("P", palette=Image.Palette.ADAPTIVE)
    palette.save(tmp_path / "palette.png", transparency=palette.getpixel((5, 5)))
    assert open_photo(tmp_path / "palette.png").getpixel((5, 5)) == (255, 255, 255)
    assert open_photo(tmp_path / "palette.png").getpixel((45, 5)) == (0, 255, 0)

    corners().save(tmp_path / "key.png", transparency=(255, 0, 0))  # one colour of an RGB picture
    assert open_photo(tmp_path / "key.png").getpixel((5, 5)) == (255, 255, 255)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_gradient_is_scaled(tmp_path, suffix):
    gradient = np.tile(np.linspace(0, 65535, 64).round().astype(np.uint16), (8, 1))
    Image.fromarray(gradient).save(tmp_path / f"grey{suffix}")
    opened = np.asarray(open_photo(tmp_path / f"grey{suffix}"))
    assert np.array_equal(opened[..., 0], np.rint(gradient / 257).astype(np.uint8))


def test_16_bit_in_other_containers(tmp_path):
    gradient = np.tile(np.linspace(0, 65535, 64).round().astype(np.uint16), (8, 1))
    expected = np.rint(gradient / 257).astype(np.uint8)
    (tmp_path / "grey.pgm").write_bytes(b"P5 64 8 65535\n" + gradient.astype(">u2").tobytes())
    assert np.array_equal(np.asarray(open_photo(tmp_path / "grey.pgm"))[..., 1], expected)
    opened = np.asarray(open_photo(Image.fromarray(gradient.astype(np.int32))))
    assert np.array_equal(opened[..., 2], expected)


@pytest.mark.parametrize("white", [1.0, 255.0, 65535.0, 1e6])
def test_float_gradient_is_scaled(tmp_path, white):
    gradient = np.tile(np.linspace(0, white, 64, dtype=np.float32), (8, 1))
    Image.fromarray(gradient).save(tmp_path / "float.tif")
    opened = np.asarray(open_photo(tmp_path / "float.tif"), int)[..., 0]
    assert np.abs(opened - np.linspace(0, 255, 64)).max() <= 0.51


def test_float_that_is_not_finite():
    values = np.array([[np.nan, np.inf, -np.inf, -3, 1, 0.5]], np.float32)
    assert np.asarray(open_photo(Image.fromarray(values)))[0, :, 0].tolist() == [0, 0, 0, 0, 255, 128]


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif"])
def test_first_frame(tmp_path, suffix):
    frames = [corners(), Image.new("RGB", (60, 40), "black"), Image.new("RGB", (60, 40), "white")]
    options = {"lossless": True} if suffix == ".webp" else {}
    frames[0].save(tmp_path / f"moving{suffix}", save_all=True, append_images=frames[1:], **options)
    with Image.open(tmp_path / f"moving{suffix}") as stored:
        assert stored.n_frames == 3
    assert_same(open_photo(tmp_path / f"moving{suffix}"), corners())


def test_arrays_and_images():
    pixels = np.asarray(corners())
    assert_same(open_photo(pixels), corners())
    assert_same(open_photo(pixels[:, ::-1]), ImageOps.mirror(corners()))  # not contiguous
    assert_same(open_photo(pixels[..., 0]), Image.fromarray(pixels[..., 0]))
    image = corners()
    open_photo(image).paste("white", (0, 0, 60, 40))
    assert_same(image, corners())  # the picture given is not touched
    for wrong in (pixels.astype(float), pixels[None], pixels[:0], pixels[..., :2]):
        with pytest.raises(InputError, match="shape"):
            open_photo(wrong)
    with pytest.raises(InputError, match="no pixels"):
        open_photo(Image.new("RGB", (0, 5)))


def refused(path: Path, match: str, **options) -> None:
    for function in (open_photo, face_pixels):
        with pytest.raises(InputError, match=match) as caught:
            function(path, **options)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_not_a_photo(tmp_path):
    refused(tmp_path / "missing.jpg", "does not exist")
    refused(tmp_path, "is a folder")
    (tmp_path / "empty.jpg").touch()
    refused(tmp_path / "empty.jpg", "is empty")
    (tmp_path / "text.jpg").write_text("this is not a photo" * 20)
    refused(tmp_path / "text.jpg", "no photo")
    (tmp_path / "page.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    refused(tmp_path / "page.eps", "no photo")  # would start Ghostscript


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".gif", ".bmp", ".tif", ".ppm", ".jp2"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_truncated(tmp_path, suffix, share):
    whole = io.BytesIO()
    with Image.open(PHOTO) as photo:
        photo.resize((128, 150)).save(whole, Image.registered_extensions()[suffix])
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(whole.getvalue()[:int(len(whole.getvalue()) * share)])
    refused(path, "is damaged or cut off|no photo")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".gif", ".bmp", ".tif", ".ppm", ".jp2"])
def test_random_damage_opens_or_is_refused(tmp_path, suffix):
    whole = io.BytesIO()
    corners().save(whole, Image.registered_extensions()[suffix])
    random = np.random.default_rng(0)
    for _ in range(60):
        data = np.frombuffer(whole.getvalue(), np.uint8).copy()
        places = random.integers(0, min(len(data), 400), 6)
        data[places] = random.integers(0, 256, 6)
        (tmp_path / f"damaged{suffix}").write_bytes(data.tobytes())
        try:
            assert open_photo(tmp_path / f"damaged{suffix}", max_pixels=10**6).mode == "RGB"
        except InputError as error:
            assert f"damaged{suffix}" in str(error)


def png(width: int, height: int) -> bytes:
    """A greyscale PNG whose header promises far more than there is."""
    data = b"\x89PNG\r\n\x1a\n"
    for chunk in (b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0), b"IDAT" + bytes(64)):
        data += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return data


def test_gigantic_is_refused_by_its_header(tmp_path):
    (tmp_path / "huge.png").write_bytes(png(60_000, 50_000))
    refused(tmp_path / "huge.png", "60000 x 50000 pixels.*max_pixels.*--max-pixels")
    # With the limit raised, also above Pillow's own, the decoder gets its turn and finds nothing to decode.
    (tmp_path / "large.png").write_bytes(png(14_000, 14_000))
    refused(tmp_path / "large.png", "is damaged or cut off", max_pixels=200_000_000)


def test_the_limit_counts_pixels(tmp_path):
    corners().save(tmp_path / "photo.png")
    assert open_photo(tmp_path / "photo.png", max_pixels=2400).size == (60, 40)
    refused(tmp_path / "photo.png", "more than the limit of 2,399", max_pixels=2399)
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = 1000  # Pillow's own limit neither stops nor warns, and stays as it was
    try:
        assert face_pixels(tmp_path / "photo.png", crop_fraction=0.9).shape == (1, 80, 80)
        assert Image.MAX_IMAGE_PIXELS == 1000
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def test_heic(tmp_path, monkeypatch):
    """The first bytes are enough to know what is missing; a stand-in shows that the reader is used."""
    (tmp_path / "phone.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(50))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    refused(tmp_path / "phone.jpg", "pip install pillow-heif")

    def register_heif_opener():
        Image.register_open("HEIF", lambda file, name: corners(), lambda prefix: prefix[4:12] == b"ftypheic")

    pillow_heif = types.SimpleNamespace(register_heif_opener=register_heif_opener)
    monkeypatch.setitem(sys.modules, "pillow_heif", pillow_heif)
    try:
        assert_same(open_photo(tmp_path / "phone.jpg"), corners())
    finally:
        Image.OPEN.pop("HEIF", None)
        Image.ID.remove("HEIF")


def test_large_jpegs_shrink_while_decoding(tmp_path):
    with Image.open(PHOTO) as photo:
        photo.resize((2048, 2400)).save(tmp_path / "large.jpg", quality=95)
    opened = open_photo(tmp_path / "large.jpg", at_least=500)
    assert opened.size == (512, 600)
    assert open_photo(tmp_path / "large.jpg", at_least=513).size == (1024, 1200)
    shrunk = face_pixels(tmp_path / "large.jpg").astype(int)
    assert np.abs(shrunk - face_pixels(open_photo(tmp_path / "large.jpg"))).max() <= 2


def test_center_crop():
    image = Image.fromarray(np.arange(100, dtype=np.uint8).reshape(10, 10))
    assert np.array_equal(np.asarray(center_crop(image, 0.4)), np.asarray(image)[3:7, 3:7])
    assert center_crop(image, 1.0).size == (10, 10)
    assert center_crop(Image.new("L", (250, 100)), 0.5).size == (125, 50)
    assert center_crop(image, 0.001).size == (1, 1)
    for wrong in (0, -1, 1.01, float("nan")):
        with pytest.raises(InputError, match="centre crop"):
            center_crop(image, wrong)
        with pytest.raises(InputError, match="centre crop"):
            face_pixels(image, crop_fraction=wrong)


def disc(width: int, height: int, radius: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    inside = (x - (width - 1) / 2) ** 2 + (y - (height - 1) / 2) ** 2 <= radius ** 2
    return np.where(inside, 255, 60).astype(np.uint8)


@pytest.mark.parametrize(("width", "height"), [(400, 200), (200, 400), (300, 300), (40, 20), (401, 133)])
@pytest.mark.parametrize("crop_fraction", [1.0, 0.7])
def test_faces_are_never_stretched(width, height, crop_fraction):
    radius = min(width, height) * 0.3
    pixels = face_pixels(disc(width, height, radius), size=80, crop_fraction=crop_fraction)[0]
    bright = pixels > 160
    across, down = bright.any(axis=0).sum(), bright.any(axis=1).sum()
    expected = 2 * radius * 80 / (max(width, height) * crop_fraction)
    assert abs(across - expected) <= 3
    assert abs(down - expected) <= 3
    covered_rows, covered_columns = (pixels > 0).any(axis=1), (pixels > 0).any(axis=0)
    assert covered_columns.sum() == pytest.approx(80 * width / max(width, height), abs=1)
    assert covered_rows.sum() == pytest.approx(80 * height / max(width, height), abs=1)
    rows, columns = np.flatnonzero(covered_rows), np.flatnonzero(covered_columns)
    assert abs(rows[0] - (79 - rows[-1])) <= 1  # centred, what is around it is black
    assert abs(columns[0] - (79 - columns[-1])) <= 1


def test_face_pixels_shape_and_values():
    grey, color = face_pixels(PHOTO), face_pixels(PHOTO, size=96, color=True)
    assert (grey.dtype, grey.shape) == (np.uint8, (1, 80, 80))
    assert (color.dtype, color.shape) == (np.uint8, (3, 96, 96))
    assert grey.flags.c_contiguous
    assert grey.min() == 0
    assert grey.max() > 200
    red = face_pixels(Image.new("RGB", (10, 10), (255, 0, 0)))
    assert set(red.ravel().tolist()) == {76}  # 0.299 * 255
    red = face_pixels(Image.new("RGB", (10, 10), (255, 0, 0)), color=True)
    assert red[:, 40, 40].tolist() == [255, 0, 0]
    assert face_pixels(np.full((1, 5000), 255, np.uint8)).sum() > 0  # thinner than a pixel after scaling


def test_face_pixels_is_an_area_average_when_scaling_down():
    """No aliasing: a fine checkerboard becomes even grey."""
    checkerboard = (np.indices((640, 640)).sum(axis=0) % 2 * 255).astype(np.uint8)
    inside = face_pixels(checkerboard)[0, 1:-1, 1:-1].astype(int)
    assert np.abs(inside - 127.5).max() <= 2


def test_the_same_from_every_entry_point(tmp_path):
    with Image.open(PHOTO) as photo:
        photo.save(tmp_path / "photo.png")
        expected = face_pixels(tmp_path / "photo.png", crop_fraction=0.6)
        again = open_photo(tmp_path / "photo.png")
        for same in (photo, np.asarray(photo), str(tmp_path / "photo.png"), again):
            assert np.array_equal(face_pixels(same, crop_fraction=0.6), expected)


def test_a_folder_that_cannot_be_read_is_said(tmp_path, monkeypatch, capsys):
    for name in ("open/1.png", "locked/2.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    scandir = os.scandir

    def forbidden(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    assert find_photos(tmp_path) == [tmp_path / "open/1.png"]
    assert capsys.readouterr().err == f"{tmp_path / 'locked'} is left out: it cannot be read (Permission denied).\n"


def test_find_photos(tmp_path):
    for name in ["b/10.jpg", "b/2.JPG", "a.PNG", "b/notes.txt", ".hidden.jpg", ".cache/1.jpg", "b/c/1.webp",
                 "b/no_suffix", "Ж.heic", "._a.jpg"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    if os.name != "nt":  # where links take a privilege
        (tmp_path / "b" / "loop").symlink_to(tmp_path, target_is_directory=True)
    found = [path.relative_to(tmp_path).as_posix() for path in find_photos(tmp_path)]
    assert found == ["a.PNG", "b/2.JPG", "b/10.jpg", "b/c/1.webp", "Ж.heic"]
    assert find_photos(str(tmp_path)) == find_photos(tmp_path)
    for wrong in (tmp_path / "missing", tmp_path / "a.PNG"):
        with pytest.raises(InputError, match="is not a folder"):
            find_photos(wrong)


@pytest.mark.parametrize("channels", [1, 3])
def test_contact_sheet(tmp_path, channels):
    levels = np.arange(5 * channels, dtype=np.uint8).reshape(5, channels, 1, 1)
    pictures = levels * np.ones((20, 30), np.uint8)  # (5, C, 20, 30)
    contact_sheet(pictures, tmp_path / "sheet.png", columns=3)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (90, 40)
        assert sheet.getpixel((45, 30)) == tuple(np.broadcast_to(pictures[4, :, 0, 0], 3))
    contact_sheet(pictures, tmp_path / "named.jpg", captions=["Ada", "Борис", "李", "x" * 99, ""])
    with Image.open(tmp_path / "named.jpg") as sheet:
        assert sheet.size[0] == 150
        assert sheet.size[1] > 20
        assert np.asarray(sheet)[20:, :30].max() > 100  # something is written below the first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["named.jpg", "sheet.png"]
    with pytest.raises(InputError, match="no picture"):
        contact_sheet(pictures[:0], tmp_path / "none.png")


def test_photos_of_an_earlier_time_are_left_out_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("album/1.png", "album/2.png", "album/drawn/1.png.png", "other/3.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    both = [Path("album/1.png"), Path("album/2.png")]
    assert photos_in(["album", "album/2.png"], Path("album/drawn")) == both
    assert photos_in(["album"], tmp_path / "other/../album/drawn") == both
    assert photos_in([tmp_path / "album"], Path("album/drawn")) == [tmp_path / path for path in both]
    assert photos_in(["album"]) == [*both, Path("album/drawn/1.png.png")]
    assert photos_in(["album/drawn/1.png.png", "other"], Path("album/drawn")) == [
        Path("album/drawn/1.png.png"), Path("other/3.png")]  # fmt: skip
    with pytest.raises(InputError, match="album cannot be both"):
        photos_in(["other", "album"], tmp_path / "album")


def test_a_name_as_long_as_names_may_be_is_written(tmp_path):
    path = tmp_path / f"{'顔' * 83}.txt"  # 253 bytes
    write_text(path, "x")
    assert path.read_text() == "x" and list(tmp_path.iterdir()) == [path]
