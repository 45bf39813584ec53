"""One picture: from a file's bytes to RGB pixels of a given shape, or to the reason why it cannot be used.

What counts as a picture is what Pillow decodes whole in one of FORMATS; `image.pixels.to_rgb` has the rules by which
modes become RGB. Of animations and of files with several pages the first picture is taken.
"""

import errno
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from sdjax.errors import SdjaxError
from sdjax.image.pixels import to_rgb

#: Those that say what they are in their first bytes, and need no other program. EPS would run Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO", "QOI")

#: Suffixes by which folders and shards are searched for pictures.
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


class Unreadable(SdjaxError):
    """A picture that cannot be used; the message is the reason, without the name."""


def open_file(path: Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise Unreadable("no such picture") from None
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):  # not the picture's fault
            raise
        raise Unreadable(f"cannot be opened ({getattr(error, 'strerror', None) or error})") from None


def decode(opened: BinaryIO | Image.Image, under: str = "white") -> Image.Image:
    """An open file, or a Pillow image of any mode -> RGB, transparency laid on `under`. Raises Unreadable."""
    return _read(opened, partial(to_rgb, under=under))


def measure(opened: BinaryIO | Image.Image) -> tuple[int, int]:
    """(height, width) as `decode` will have them, from the file's head. Raises Unreadable."""

    def size(image):
        whole = image.format == "PNG" and not any("exif" in str(key).lower() for key in image.info)
        try:
            orientation = None if whole else image.getexif().get(0x112)  # of a PNG without EXIF Pillow would read all
        except Exception:  # as in to_rgb
            orientation = None
        return image.size if orientation in (5, 6, 7, 8) else image.size[::-1]  # these exchange the sides

    return _read(opened, size)


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
    except Exception as error:  # decoders raise what they like
        reason = " ".join(str(error).split()) or type(error).__name__
    raise Unreadable(f"not a readable picture ({reason})")


def fit(
    image: Image.Image, shape: tuple[int, int], place: tuple[float, float] = (0.5, 0.5), flip: bool = False
) -> np.ndarray:
    """RGB -> uint8 [height, width, 3]: the largest crop of the shape's aspect ratio, resized with LANCZOS.

    `place`: where the crop lies, from (0, 0) at the top and left to (1, 1); the centre is (0.5, 0.5).
    `flip` mirrors left and right.
    """
    height, width = shape
    scale = max(height / image.height, width / image.width)
    crop_h, crop_w = (
        min(whole, max(1, round(side / scale))) for whole, side in ((image.height, height), (image.width, width))
    )
    top, left = int(place[0] * (image.height - crop_h)), int(place[1] * (image.width - crop_w))
    if (crop_w, crop_h) != image.size:
        image = image.crop((left, top, left + crop_w, top + crop_h))
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    pixels = np.asarray(image)
    return pixels[:, ::-1] if flip else pixels


def load_picture(path: Path) -> Image.Image:
    """A picture as RGB. SdjaxError that names the file."""
    try:
        return decode(open_file(path))
    except Unreadable as error:
        raise SdjaxError(f"{path}: {error}") from None


def load_square(path: Path, size: int) -> np.ndarray:
    """A picture's centre as RGB uint8 [size, size, 3]. SdjaxError that names the file."""
    return fit(load_picture(path), (size, size))


def to_pixels(pictures: np.ndarray) -> np.ndarray:
    """uint8 [..., 3] -> float32 in [-1, 1]."""
    return pictures.astype(np.float32) / 127.5 - 1.0
