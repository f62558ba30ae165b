"""One safe opener for every photo, and the way from a face crop to the pixels that the models see."""

import math
import os
import re
import stat
import sys
import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

from facekit.files import InputError, written_whole

MAX_PIXELS = 120_000_000  # above the 108 megapixels of today's phones; decoded, it takes 4 bytes a pixel

# What Pillow may try. Not everything it can: some of its readers start other programs (EPS runs Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF")
SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff",
            ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif", ".heic", ".heif"}
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")

ORIENTATION_TAG = 0x0112
UPRIGHT = {  # EXIF orientation -> what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Picture = str | os.PathLike | Image.Image | np.ndarray  # everything that is accepted as a photo

_header_lock = threading.Lock()


def open_photo(photo: Picture, max_pixels: int = MAX_PIXELS, at_least: int | None = None) -> Image.Image:
    """Opens any photo as RGB, upright (EXIF rotation applied), the first frame if it has several.

    photo       a path, a PIL image, or a uint8 array (H, W, 3) or (H, W). The format is told by the content,
                not by the suffix.
    max_pixels  larger photos are refused by their header, before they are decoded.
    at_least    both sides may shrink while decoding, but not below this (large JPEGs: several times faster).

    Transparent parts become white: that is what a viewer shows, while the colours stored below them are
    arbitrary. 16-bit, 32-bit and float greyscale are scaled to 8 bits, not clipped.
    InputError, naming the file, for everything that cannot be opened. The picture given is never changed.
    """
    if isinstance(photo, np.ndarray):
        photo = _image_from_array(photo)
    if isinstance(photo, Image.Image):
        name = getattr(photo, "filename", "") or "The given picture"
        with _clear_errors(name):
            _check_size(photo.size, name, max_pixels)
            return _upright_rgb(photo)
    path = Path(photo)
    with _clear_errors(path):
        _check_file(path)
        with path.open("rb") as file:
            image = _read_header(file, path)
            _check_size(image.size, path, max_pixels)
            if at_least:
                image.draft(None, (at_least, at_least))
            return _upright_rgb(image)


@contextmanager
def _clear_errors(name: str | Path) -> Iterator[None]:
    """Turns whatever the readers of picture formats raise into one InputError; silences their warnings."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL|pillow_heif")
            yield
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(f"{name} is no photo of a known format: give JPEG, PNG, WebP or TIFF.") from None
    except PermissionError:
        raise InputError(f"{name} may not be read: change its permissions.") from None
    except MemoryError:
        raise InputError(f"{name} does not fit into memory: scale it down.") from None
    except Exception as error:  # noqa: BLE001  struct.error, SyntaxError, EOFError, zlib.error, ...
        raise InputError(f"{name} is damaged or cut off ({error}): copy or download it again.") from None


def _check_file(path: Path) -> None:
    try:
        status = path.stat()
    except PermissionError:
        raise
    except (OSError, ValueError):  # nor can it, where the name is too long or goes through a file
        raise InputError(f"{path} does not exist: check the name.") from None
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{path} is a folder, not a photo: give a photo inside it.")
    if not stat.S_ISREG(status.st_mode):  # a pipe or a device could block for ever
        raise InputError(f"{path} is not an ordinary file: give a photo.")
    if status.st_size == 0:
        raise InputError(f"{path} is empty (0 bytes): copy or download it again.")


def _check_size(size: tuple[int, int], name: str | Path, max_pixels: int) -> None:
    width, height = size
    if width * height == 0:
        raise InputError(f"{name} has no pixels: give another photo.")
    if width * height > max_pixels:
        raise InputError(f"{name} has {width} x {height} pixels, more than the limit of {max_pixels:,}: "
                         "scale it down, or raise the limit with max_pixels (--max-pixels).")


def _read_header(file: BinaryIO, path: Path) -> Image.Image:
    head = file.read(64)
    file.seek(0)
    if head[4:8] == b"ftyp" and any(brand in head[8:] for brand in HEIC_BRANDS):
        _register_heic(path)
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    with _header_lock:  # Pillow's own limit is a global and cannot be raised for one photo; ours replaces it
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file, formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _register_heic(path: Path) -> None:
    try:
        import pillow_heif
    except ImportError:
        raise InputError(f"{path} is a HEIC photo: to read it, `pip install pillow-heif`.") from None
    pillow_heif.register_heif_opener()


def _image_from_array(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8 or not (array.ndim == 2 or array.ndim == 3 and array.shape[2] == 3):
        raise InputError(f"An array of {array.dtype} and shape {array.shape} is not a photo: "
                         "give uint8 of shape (H, W, 3) or (H, W).")
    if array.size == 0:
        raise InputError(f"The array of shape {array.shape} has no pixels: give another photo.")
    return Image.fromarray(array)


def _upright_rgb(image: Image.Image) -> Image.Image:
    image.load()  # first of all: TIFF and HEIC turn themselves while loading
    orientation = _orientation(image)
    if orientation in UPRIGHT:
        image = image.transpose(UPRIGHT[orientation])
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _grey_to_8_bits(image)
    elif image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    image = image.convert("RGB")  # a copy in every case
    image.info.clear()  # or the rotation in it would be applied again by the next one who opens this picture
    return image


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # noqa: BLE001  damaged EXIF is no reason to refuse good pixels
        return 1


def _grey_to_8_bits(image: Image.Image) -> Image.Image:
    """White is 65535 for whole numbers; for floats, the first of 1, 255 and 65535 that no pixel exceeds."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float32), nan=0, posinf=0, neginf=0)
    largest = values.max()
    usual_whites = (1, 255, 65535) if image.mode == "F" else (65535,)
    white = next((white for white in usual_whites if largest <= white), largest)
    return Image.fromarray(np.rint(np.clip(values / white, 0, 1) * 255).astype(np.uint8))


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction <= 1:
        raise InputError(f"The centre crop must be above 0 and at most 1, not {fraction}.")


def center_crop(image: Image.Image, fraction: float) -> Image.Image:
    """The centre `fraction` (above 0, at most 1) of width and height, in whole pixels, at least one."""
    _check_fraction(fraction)
    if fraction == 1:
        return image
    width, height = (max(1, round(side * fraction)) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    # EXTENT at scale 1 is a crop, without the pixel limit that Pillow's crop() has.
    return image.transform((width, height), Image.Transform.EXTENT, (left, top, left + width, top + height))


def face_pixels(photo: Picture, size: int = 80, crop_fraction: float = 1.0, color: bool = False,
                max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The pixels of a face crop that the models see: the preprocessing of `prepare`, `compare` and the like.

    The chain cuts faces out of photos by alignment.warp instead.

    Centre crop, greyscale unless `color` (ITU-R 601: 0.299 R + 0.587 G + 0.114 B), scaled so that the longer
    side is `size`, padded with black to a square, centred; never stretched.
    Returns uint8 (C, size, size), C = 3 with `color`, else 1. Errors as in open_photo.
    A file and the same photo opened give the same pixels, save that large JPEG files are shrunk while they
    are decoded, which changes some pixels by one grey level.
    """
    _check_fraction(crop_fraction)
    image = open_photo(photo, max_pixels, at_least=math.ceil(4 * size / crop_fraction))
    image = center_crop(image, crop_fraction).convert("RGB" if color else "L")
    width, height = (max(1, round(side * size / max(image.size))) for side in image.size)
    # Pillow's bilinear filter widens when it scales down (antialiasing) and, unlike Lanczos, does not ring.
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (size - width) // 2, (size - height) // 2
    pixels = np.zeros((3 if color else 1, size, size), np.uint8)
    pixels[:, top:top + height, left:left + width] = np.atleast_3d(image).transpose(2, 0, 1)
    return pixels


def refuse_folder(error: OSError) -> None:
    """InputError for a folder that cannot be read."""
    if not isinstance(error, FileNotFoundError):  # which has just been removed
        raise InputError(f"{error.filename} cannot be read ({error.strerror}): change its permissions.")


def leave_folder_out(error: OSError) -> None:
    """Says so of a folder that cannot be read."""
    if not isinstance(error, FileNotFoundError):
        print(f"{error.filename} is left out: it cannot be read ({error.strerror}).", file=sys.stderr)


def find_photos(folder: str | Path, unreadable: Callable[[OSError], None] = leave_folder_out) -> list[Path]:
    """All photos below `folder`, told by their suffix. InputError as in find_files."""
    return find_files(folder, SUFFIXES, unreadable)


def find_files(folder: str | Path, suffixes: Collection[str],
               unreadable: Callable[[OSError], None] = leave_folder_out) -> list[Path]:  # fmt: skip
    """All files below `folder` with one of these suffixes (small letters), 2.jpg before 10.jpg.

    Hidden files and folders are left out; linked folders are followed, but none is visited twice. `unreadable` gets
    the error of a folder that cannot be read.
    InputError when `folder` is not a folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give one with photos in it.")
    found, visited = [], set()
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=unreadable):
        try:
            status = os.stat(parent)
        except OSError:  # it has just been removed
            continue
        identity = status.st_dev, status.st_ino
        if identity in visited:
            folders.clear()
            continue
        visited.add(identity)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [os.path.join(parent, name) for name in files
                  if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes]
    return [Path(file) for file in sorted(found, key=_natural_order)]


def photos_in(paths: Sequence[str | Path], out: Path | None = None) -> list[Path]:
    """The photos that are named, and all below the folders that are named, each once.

    `out` is where pictures of them will be written: what a folder has there is from an earlier time, and left out.
    InputError as in find_photos, when `out` is one of the folders, and when there is no photo.
    """
    out = out and Path(os.path.realpath(out))
    photos: list[Path] = []
    for path in paths:
        if not os.path.isdir(path):
            photos.append(Path(path))
            continue
        folder = Path(os.path.realpath(path))
        if folder == out:
            raise InputError(f"{path} cannot be both where photos are and where pictures are written: choose another.")
        found = find_photos(path)
        if out and folder in out.parents:
            found = [photo for photo in found if out not in Path(os.path.realpath(photo)).parents]
        photos += found
    if not photos:
        raise InputError(f"There are no photos in {', '.join(map(str, paths))}: give a folder with photos.")
    return list(dict.fromkeys(photos))


def places_below(paths: Sequence[Path]) -> dict[Path, Path]:
    """How each photo lies below the deepest folder that holds all of them: a name of its own for each.

    InputError when there is no such folder.
    """
    absolute = {path: Path(os.path.abspath(path)) for path in paths}
    try:
        shared = os.path.commonpath([path.parent for path in absolute.values()])
    except ValueError:
        raise InputError("The photos are on several drives: name those of one drive at a time.") from None
    return {path: place.relative_to(shared) for path, place in absolute.items()}


def pictures_below(out: Path, paths: Sequence[Path]) -> dict[Path, Path]:
    """Where the pictures of photos are drawn: as the photos lie, below `out`.

    InputError as in places_below, and when one would replace a photo.
    """
    pictures = {path: out / f"{place}.png" for path, place in places_below(paths).items()}
    photos = {os.path.realpath(path) for path in paths}
    for path, picture in pictures.items():
        if os.path.realpath(picture) in photos:
            raise InputError(f"The picture of {path} would replace another photo: choose another --out.")
    return pictures


def _natural_order(path: str) -> tuple[list[int | str], str]:
    """Digits compare as numbers, letters without case; the path itself decides between equals."""
    pieces = re.split(r"(\d+)", path.casefold())  # text, digits, text, ...
    return [int(piece) if piece.isdecimal() else piece for piece in pieces], path


def picture_of(pixels: np.ndarray) -> Image.Image:
    """uint8 (C, H, W), C 1 or 3 -> the picture, grey or in colour."""
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def contact_sheet(pictures: np.ndarray, path: str | Path, columns: int = 16,
                  captions: Sequence[str] | None = None) -> None:
    """Writes pictures, uint8 (N, C, H, W) with C 1 or 3, as one PNG or JPEG, captions below them."""
    count, _, height, width = pictures.shape
    if count == 0:
        raise InputError(f"There is no picture to show on {path}.")
    columns = min(columns, count)
    line = 14 if captions else 0  # pixels
    sheet = Image.new("RGB", (columns * width, math.ceil(count / columns) * (height + line)))
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        corner = (column * width, row * (height + line))
        sheet.paste(picture_of(picture), corner)
        if captions:
            _write_caption(sheet, captions[number], (corner[0], corner[1] + height), width)
    with written_whole(path) as temporary:
        sheet.save(temporary)


def _write_caption(sheet: Image.Image, text: str, corner: tuple[int, int], width: int) -> None:
    import matplotlib  # for its font: it comes with the package and knows more scripts than Pillow's own

    font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), 10)
    while text and font.getlength(text) > width:
        text = text[:-1]
    ImageDraw.Draw(sheet).text(corner, text, fill="white", font=font)
