"""One picture: from a file's bytes to RGB pixels of a given shape, or to the reason why it cannot be used.

A picture is a file that Pillow decodes completely and whose format is one of FORMATS. `image.pixels.to_rgb` has the
rules by which modes become RGB. An animation or a file with several pages gives its first picture.
"""

import errno
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from sdjax.errors import SdjaxError
from sdjax.image.pixels import lies_on_its_side, to_rgb

#: Formats that their first bytes identify, and that need no other program (EPS would run Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO", "QOI")

#: Suffixes by which shards, and folders in train/caption.py, are searched for pictures.
SUFFIXES = frozenset(
    {
        "jpg",
        "jpeg",
        "jpe",
        "jfif",
        "png",
        "apng",
        "webp",
        "gif",
        "bmp",
        "tif",
        "tiff",
        "avif",
        "jp2",
        "j2k",
        "ppm",
        "pgm",
        "pbm",
        "ico",
        "qoi",
    }
)

CROPS = ("center", "random")

MAX_PIXELS = 89_478_485  # Pillow's own bound for a decompression bomb: a quarter of a gigabyte as RGB

TURNED = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")  # texts of a PNG that can hold its orientation


class Unreadable(SdjaxError):
    """A picture that cannot be used; the message is the reason, without the name."""


def open_file(path: Path) -> BinaryIO:
    """Opens a picture's file. Raises Unreadable, or OSError if there are too many open files or too little memory."""
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise Unreadable("no such picture") from None
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):  # not the picture's fault
            raise
        raise Unreadable(f"cannot be opened ({getattr(error, 'strerror', None) or error})") from None


def decode(opened: BinaryIO | Image.Image, under: str = "white") -> Image.Image:
    """An open file, or a Pillow image of any mode -> RGB, with transparency laid on `under`. Raises Unreadable."""
    return _read(opened, partial(to_rgb, under=under))


def decode_as_is(opened: BinaryIO | Image.Image) -> Image.Image:
    """An open file -> a Pillow image of the file's own mode. Raises Unreadable."""
    return _read(opened, lambda image: image.copy())


def measure(opened: BinaryIO | Image.Image) -> tuple[int, int]:
    """Returns (height, width) as `decode` will have them, read from the file's head. Raises Unreadable."""

    def size(image):
        plain = image.format == "PNG" and not isinstance(opened, Image.Image) and not _png_may_turn(opened)
        on_its_side = not plain and lies_on_its_side(image)  # for which Pillow reads all of a PNG
        return image.size if on_its_side else image.size[::-1]

    return _read(opened, size)


def _png_may_turn(file: BinaryIO) -> bool:
    """Does a PNG hold EXIF or XMP, before its pixels or behind them? Only the heads of its chunks are read.

    The file's position stays where it was.
    """
    before = file.tell()
    try:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            size, kind = int.from_bytes(head[:4], "big"), head[4:]
            start = file.tell()
            if kind == b"eXIf" or (kind in (b"iTXt", b"tEXt", b"zTXt") and file.read(24).startswith(TURNED)):
                return True
            file.seek(start + size + 4)
        return False
    finally:
        file.seek(before)


def _read(opened, use):
    try:
        if isinstance(opened, Image.Image):
            return use(opened)
        with opened:
            if not opened.read(1):
                raise Unreadable("not a readable picture (zero bytes)")
            opened.seek(0)
            image = Image.open(opened, formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            return use(image)
    except Unreadable:
        raise
    except UnidentifiedImageError:
        reason = "of no known format"
    except Image.DecompressionBombError:
        reason = f"more than {MAX_PIXELS} pixels: a decompression bomb?"
    except MemoryError:
        raise
    except Exception as error:  # decoders may raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
    raise Unreadable(f"not a readable picture ({reason})")


def fit(
    image: Image.Image, shape: tuple[int, int], place: tuple[float, float] = (0.5, 0.5), flip: bool = False
) -> np.ndarray:
    """RGB -> uint8 [height, width, 3]: the largest crop of the shape's aspect ratio, resized with Lanczos.

    shape: (height, width).
    place: where the crop lies, as (down, right): (0, 0) is at the top left, (1, 1) at the bottom right.
    flip: mirror left and right.
    """
    box = crop_box(image.size[::-1], shape, place)
    if box != (0, 0, *image.size):
        image = image.crop(box)
    if image.size != shape[::-1]:
        image = image.resize(shape[::-1], Image.Resampling.LANCZOS)
    pixels = np.asarray(image)
    return pixels[:, ::-1] if flip else pixels


def crop_box(
    size: tuple[int, int], shape: tuple[int, int], place: tuple[float, float] = (0.5, 0.5)
) -> tuple[int, int, int, int]:
    """Returns (left, top, right, bottom) in pixels of the crop that `fit` takes.

    size: (height, width) of the picture. shape, place: see `fit`.
    """
    scale = max(side / whole for side, whole in zip(shape, size, strict=True))
    crop_h, crop_w = (min(whole, max(1, round(side / scale))) for whole, side in zip(size, shape, strict=True))
    top, left = int(place[0] * (size[0] - crop_h)), int(place[1] * (size[1] - crop_w))
    return left, top, left + crop_w, top + crop_h


def decode_map(opened: BinaryIO | Image.Image) -> Image.Image:
    """An open PNG of ids, grey or palette indices -> a Pillow image of mode L or I. Raises Unreadable."""

    def ids(image: Image.Image) -> Image.Image:
        if image.mode not in ("1", "L", "P", "I", "I;16"):
            raise Unreadable(f"mode {image.mode}: ids are grey values or palette indices")
        if image.mode in ("1", "P"):  # convert would give colours
            return Image.fromarray(np.asarray(image).astype(np.uint8))
        return image.copy() if image.mode == "L" else image.convert("I")

    return _read(opened, ids)


def decode_depth(path: Path) -> np.ndarray:
    """Reads a depth map: a picture of one channel, of up to 16 bits or floating point, or a .npy [H, W].

    Returns float32 [H, W]. Raises Unreadable.
    """
    if path.suffix.lower() == ".npy":
        try:
            found = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise Unreadable("no such file") from None
        except (OSError, ValueError, EOFError, OverflowError, MemoryError) as error:
            raise Unreadable(f"not a readable .npy ({' '.join(str(error).split())[:80]})") from None
        if not isinstance(found, np.ndarray):
            raise Unreadable("several arrays in a zip, one .npy expected")
        if found.ndim != 2 or found.dtype.kind not in "fiu":
            raise Unreadable(f"{found.dtype} of shape {list(found.shape)}, numbers [H, W] expected")
    else:

        def depth(image: Image.Image) -> np.ndarray:
            if image.mode not in ("L", "I", "I;16", "F"):
                raise Unreadable(f"mode {image.mode}: one channel expected, of 8 or 16 bits")
            return np.asarray(image)

        found = _read(open_file(path), depth)
    found = found.astype(np.float32)
    if not np.isfinite(found).all():
        raise Unreadable("NaN or infinite values")
    return found


def load_picture(path: Path) -> Image.Image:
    """Reads a picture as RGB. SdjaxError, which names the file, if it cannot be read."""
    try:
        return decode(open_file(path))
    except Unreadable as error:
        raise SdjaxError(f"{path}: {error}") from None


def load_square(path: Path, size: int) -> np.ndarray:
    """Reads a picture's centre square as RGB uint8 [size, size, 3]. SdjaxError, which names the file, if it cannot."""
    return fit(load_picture(path), (size, size))


def to_pixels(pictures: np.ndarray) -> np.ndarray:
    """uint8 [..., 3] -> float32 in [-1, 1]."""
    return pictures.astype(np.float32) / 127.5 - 1.0
