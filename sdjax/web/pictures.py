"""Pictures in requests and answers: base64 or uploaded bytes <-> PIL images, PNGs with their settings."""

import base64
import binascii
import io
from typing import Any

from PIL import Image

from sdjax.image.png import png_text
from sdjax.web.refusals import Refused

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")  # others, EPS among them, would start other programs or read odd parts
MOST_PIXELS = 2**25  # of a picture that is sent, or enlarged


def decode_text(value: Any, field: str) -> bytes:
    """Returns the bytes of a picture in base64, with or without `data:image/png;base64,`. Refused: it is none."""
    right = "a picture in base64 expected; addresses and paths are not opened"
    if not isinstance(value, str) or not value:
        raise Refused(right, field)
    head, comma, body = value.partition(",")
    if comma and not (head.startswith("data:image/") and head.endswith(";base64") and len(head) < 100):
        raise Refused(right, field)
    try:
        plain = (body if comma else value).replace("\n", "").replace("\r", "").strip()
        found = base64.b64decode(plain, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(right, field) from None
    if not found:
        raise Refused(right, field)
    return found


def open_picture(content: bytes, field: str) -> Image.Image:
    """Returns a picture as its file has it. Refused: it is none, of another format, broken, or too large."""
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        if image.width * image.height > MOST_PIXELS:
            raise Refused(f"a picture of at most {MOST_PIXELS} pixels expected", field)
        image.load()
    except Refused:
        raise
    except Exception:  # decoders raise what they like
        raise Refused(f"a whole picture expected, one of {', '.join(FORMATS)}", field) from None
    return image


def read_picture(value: Any, field: str) -> Image.Image:
    """Returns the picture of a field in base64; see `decode_text` and `open_picture`."""
    return open_picture(decode_text(value, field), field)


def png(image: Image.Image, text: str | None = None) -> bytes:
    """Returns a picture as a PNG whose `parameters` are `text`."""
    out = io.BytesIO()
    image.save(out, "PNG", pnginfo=png_text(text))
    return out.getvalue()


def in_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def resized(image: Image.Image, size: tuple[int, int], mode: int) -> Image.Image:
    """Returns a picture of a size, (width, height), made from another as the web UI's resize_mode says.

    0 stretches it. 1 covers the size and cuts off what is over. 2 fits it in and repeats its border outwards.
    """
    if image.size == size or mode == 0:
        return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)
    scales = [wanted / side for wanted, side in zip(size, image.size, strict=True)]
    scale = max(scales) if mode == 1 else min(scales)
    fitted = tuple(max(1, round(side * scale)) for side in image.size)
    fitted = tuple(wanted if abs(side - wanted) <= 1 else side for side, wanted in zip(fitted, size, strict=True))
    image = image.resize(fitted, Image.Resampling.LANCZOS)
    left, top = ((wanted - side) // 2 for wanted, side in zip(size, fitted, strict=True))
    if mode == 1:
        return image.crop((-left, -top, size[0] - left, size[1] - top))
    canvas = Image.new(image.mode, size)
    for box, place in (  # the border's rows and columns first, the picture over them
        ((0, 0, fitted[0], 1), (left, 0, fitted[0], top)),
        ((0, fitted[1] - 1, fitted[0], fitted[1]), (left, top + fitted[1], fitted[0], size[1] - top - fitted[1])),
        ((0, 0, 1, fitted[1]), (0, top, left, fitted[1])),
        ((fitted[0] - 1, 0, *fitted), (left + fitted[0], top, size[0] - left - fitted[0], fitted[1])),
    ):
        x, y, width, height = place
        if width > 0 and height > 0:
            canvas.paste(image.crop(box).resize((width, height), Image.Resampling.NEAREST), (x, y))
    canvas.paste(image, (left, top))
    return canvas
