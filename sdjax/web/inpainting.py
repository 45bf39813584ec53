"""The web UI's inpainting: its masks, what is put into their holes, and painting the masked region alone."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from sdjax.image.masks import feather_masks, read_masks
from sdjax.web.pictures import resized
from sdjax.web.refusals import Refused

FILL, ORIGINAL, NOISE, NOTHING = range(4)  # inpainting_fill


class Painted(NamedTuple):
    """A picture to be painted in part."""

    image: Image.Image  # of the size that is drawn
    mask: np.ndarray  # float32 [1, H, W, 1]
    after: Callable[[Image.Image], Image.Image] | None  # puts the painted region back into the whole picture


def prepare(
    image: Image.Image,
    mask: Image.Image,
    size: tuple[int, int],
    *,
    invert: bool,
    fill: int,
    blur: float,
    mode: int,
    whole: bool,
    padding: int,
) -> Painted:
    """Returns what is drawn.

    image, mask: as they were sent; the mask is stretched to the image's size. size: (width, height) that is drawn.
    whole: draw the whole picture; if not, the region around the mask alone, with `padding` pixels more on each side.
    mode: see `resized`. Refused: nothing is white in the mask.
    """
    white = read_masks(mask, (image.height, image.width))[0, ..., 0]
    white = 1 - white if invert else white
    if not white.any():
        raise Refused("something white expected: what is white is painted anew", "mask")
    after, shown = None, Image.fromarray(np.uint8(white * 255))
    if not whole:
        box = around(white, padding, size[0] / size[1])
        after, image, shown = pasting(image, white, box, blur), image.crop(box), shown.crop(box)
        image, shown = resized(image, size, 0), shown.resize(size, Image.Resampling.NEAREST)
    else:
        image = resized(image, size, mode)
        shown = shown.resize(size, Image.Resampling.NEAREST) if mode == 0 else resized(shown, size, mode)
    found = read_masks(shown, (size[1], size[0]))
    if fill == FILL:
        image = filled(image, found[0, ..., 0])
    return Painted(image, found, after)


def around(white: np.ndarray, padding: int, ratio: float) -> tuple[int, int, int, int]:
    """Returns the box (left, top, right, bottom) of what is white, larger by `padding`, and then by as much as its
    width / height needs to be `ratio`, as far as the picture goes."""
    rows, columns = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
    height, width = white.shape
    left, right = max(0, columns[0] - padding), min(width, columns[-1] + 1 + padding)
    top, bottom = max(0, rows[0] - padding), min(height, rows[-1] + 1 + padding)
    wide, high = right - left, bottom - top
    if wide / high < ratio:
        left, right = widened(left, right, round(high * ratio), width)
    else:
        top, bottom = widened(top, bottom, round(wide / ratio), height)
    return int(left), int(top), int(right), int(bottom)


def widened(low: int, high: int, wanted: int, most: int) -> tuple[int, int]:
    """Returns an interval of `wanted` length around [low, high) inside of [0, most)."""
    wanted = min(max(wanted, high - low), most)
    low = min(max(0, low - (wanted - (high - low)) // 2), most - wanted)
    return low, low + wanted


def pasting(
    image: Image.Image, white: np.ndarray, box: tuple[int, int, int, int], blur: float
) -> Callable[[Image.Image], Image.Image]:
    """Returns the function that puts a painted region back into `image`, where the mask is white."""
    left, top, right, bottom = box
    weight = feather_masks(white[None, ..., None], blur)[0, ..., 0]
    share = Image.fromarray(np.uint8(np.round(255 * weight[top:bottom, left:right])))

    def after(painted: Image.Image) -> Image.Image:
        found = image.convert("RGB")
        found.paste(resized(painted, (right - left, bottom - top), 0), (left, top), share)
        return found

    return after


def filled(image: Image.Image, white: np.ndarray) -> Image.Image:
    """Returns a picture whose hole has the colours around it: sums of blurred surroundings, the widest below."""
    pixels, known = np.asarray(image.convert("RGB"), np.float32), 1 - white[..., None]
    found = np.broadcast_to((pixels * known).sum((0, 1)) / max(known.sum(), 1), pixels.shape).copy()
    for radius in (256, 64, 32, 16, 8, 4, 2):
        soft = [blurred(plane, radius) for plane in np.moveaxis(np.concatenate([pixels * known, known], -1), -1, 0)]
        share = soft[3][..., None]
        near = np.stack(soft[:3], -1) / np.maximum(share, 1e-6)
        weight = np.clip(8 * share, 0, 1)
        found = weight * near + (1 - weight) * found
    found = np.where(known == 1, pixels, found)
    return Image.fromarray(np.uint8(np.clip(np.round(found), 0, 255)))


def blurred(plane: np.ndarray, radius: float) -> np.ndarray:
    """Returns floats [H, W] under Pillow's Gaussian blur, which takes 8 bits: high and low parts apart."""
    top = max(float(plane.max()), 1e-6)
    levels = np.uint16(np.round(plane / top * 65535))
    parts = [
        Image.fromarray(np.uint8(part)).filter(ImageFilter.GaussianBlur(radius)) for part in (levels >> 8, levels & 255)
    ]
    high, low = (np.asarray(part, np.float32) for part in parts)
    return (high * 256 + low) / 65535 * top
