"""Pixels [B, H, W, 3] in [-1, 1] <-> PIL images, contact sheets, and PNG files that remember their settings."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageFilter, ImageOps
from PIL.PngImagePlugin import PngInfo

from sdjax.errors import SdjaxError
from sdjax.files import whole

log = logging.getLogger("sdjax")


def pixels_to_pil(pixels) -> list[Image.Image]:
    """[B, H, W, 3] (or one [H, W, 3]) -> B RGB images: 127.5 (x + 1), clipped to 0 .. 255 and rounded.

    SdjaxError when a pixel is not finite: that is a model that overflowed, not a black picture.
    """
    pixels = np.asarray(pixels, np.float32)
    pixels = pixels[None] if pixels.ndim == 3 else pixels
    if pixels.ndim != 4 or pixels.shape[-1] != 3:
        raise SdjaxError(f"pixels of shape {pixels.shape}: [B, H, W, 3] expected")
    if not np.isfinite(pixels).all():
        raise SdjaxError("pixels are not finite: the computation overflowed (try dtype float32)")
    return [Image.fromarray(p) for p in np.round(np.clip(127.5 * (pixels + 1.0), 0, 255)).astype(np.uint8)]


def to_rgb(image: Image.Image, under: str = "white") -> Image.Image:
    """Any picture as RGB, by these rules:

    turned as its EXIF says, if that can be read; transparency laid on `under`; of several frames or pages the current
    one, which is the first in a file just opened; palettes, greys, CMYK, YCbCr, Lab and HSV as Pillow converts them
    (an embedded colour profile is not applied); whole numbers of more than 8 bits are taken for 16 and lose the lower
    8; floating point is taken for 0 .. 1 if nothing in it is larger than 1, else for 0 .. 255.
    """
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # EXIF is written by many, and says nothing about whether the pixels are whole
        image.load()
    if image.mode.startswith("I"):  # Pillow would clip at 255
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    elif image.mode == "F":
        values = np.nan_to_num(np.asarray(image))
        values = values * 255 if values.max(initial=0) <= 1 else values
        image = Image.fromarray(np.round(values).clip(0, 255).astype(np.uint8))
    elif image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.applyTransform(image, ImageCms.buildTransform(lab, srgb, "LAB", "RGB"))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, under), image)
    return image.convert("RGB")


def whole_picture(image: Image.Image, name: str = "image") -> Image.Image:
    """`image` with its pixels read, which Pillow puts off. SdjaxError: no PIL image, a file cut off."""
    if not isinstance(image, Image.Image):
        raise SdjaxError(f"{name} is {type(image).__name__}: a PIL image expected")
    try:
        image.load()
    except Exception as error:  # decoders raise what they like
        raise SdjaxError(f"{name}: not readable ({str(error) or type(error).__name__})") from None
    return image


def pil_to_pixels(image: Image.Image, size: tuple[int, int] | None = None, multiple: int = 1) -> np.ndarray:
    """One image -> float32 [1, H, W, 3], by `to_rgb`.

    `size` = (height, width) resizes it; otherwise its sides are floored to a `multiple`. LANCZOS, as CompVis.
    """
    image = to_rgb(whole_picture(image))
    height, width = size or (image.height - image.height % multiple, image.width - image.width % multiple)
    if min(height, width) < 1:
        raise SdjaxError(f"image of {image.width} x {image.height} pixels: at least {multiple} x {multiple} needed")
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(image, np.float32)[None] / 127.5 - 1.0


def read_images(image, height: int | None, width: int | None, multiple: int, channels: int = 4) -> np.ndarray:
    """What image tasks start from -> float32 pixels [Q, H, W, 3], clipped to [-1, 1], or scaled latents [Q, h, w, 4].

    `image`: a PIL image, a list of them, or a float array [H, W, 3] or [Q, H, W, 3] in [-1, 1]; [Q, h, w, channels] is
    taken for latents. PIL images are resized to height and width, a side that is None floored to a `multiple`; arrays
    must fit.
    """
    pictures = image if isinstance(image, (list, tuple)) else [image]
    if pictures and all(isinstance(picture, Image.Image) for picture in pictures):
        pixels = []
        for picture in (to_rgb(whole_picture(picture)) for picture in pictures):
            sides = zip((height, width), (picture.height, picture.width), strict=True)
            size = tuple(side - side % multiple if wanted is None else wanted for wanted, side in sides)
            pixels.append(pil_to_pixels(picture, size if min(size) else None, multiple))
        if len({p.shape for p in pixels}) > 1:
            raise SdjaxError("image: the images differ in size, give height and width")
        return np.concatenate(pixels)
    if not hasattr(image, "shape") or not hasattr(image, "dtype"):
        raise SdjaxError(f"image is {type(image).__name__}: a PIL image, a list of them, or an array [H, W, 3] or "
                         "[B, H, W, 3] in [-1, 1]")
    array = np.asarray(image)
    array = array[None] if array.ndim == 3 and array.shape[2] == 3 else array  # of four channels it would be latents
    if array.ndim != 4 or array.shape[3] not in (3, channels) or 0 in array.shape:
        raise SdjaxError(f"image of shape {np.shape(image)}: [H, W, 3] or [B, H, W, 3] expected")
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise SdjaxError(f"image is {array.dtype}: floating point in [-1, 1] expected, x / 127.5 - 1 of 0 .. 255")
    array = array.astype(np.float32)
    if not np.isfinite(array).all() or (array.shape[3] == 3 and np.abs(array).max() > 2):
        raise SdjaxError("image: pixels in [-1, 1] expected, found "
                         f"{np.abs(array).max():.4g} (of 0 .. 255 take x / 127.5 - 1)")
    if array.shape[3] != 3:
        return array
    fit = lambda side: max(side // multiple, 1) * multiple
    size = tuple(fit(side) if wanted is None else wanted for wanted, side in
                 zip((height, width), array.shape[1:3], strict=True))
    if array.shape[1:3] != size:
        raise SdjaxError(f"image of shape {np.shape(image)}: {size[0]} x {size[1]} pixels expected, arrays are not "
                         f"resized (sides are multiples of {multiple}; PIL images are)")
    return np.clip(array, -1.0, 1.0)


def read_masks(mask, size: tuple[int, int]) -> np.ndarray:
    """Masks, white = repaint -> float32 0 or 1 [Q, H, W, 1], resized to `size` = (H, W), the nearest pixel counting.

    `mask`: a PIL image, a list of them, or an array [H, W] or [Q, H, W], with or without a last axis of 1, of bools,
    numbers from 0 to 1, or uint8 (of 255, or zeros and ones). Half and more is white; what is transparent is not.
    """
    masks = mask if isinstance(mask, (list, tuple)) else [mask]
    if masks and all(isinstance(m, Image.Image) for m in masks):
        arrays = [shares(np.asarray(to_rgb(whole_picture(m, "mask"), "black").convert("L")))[None] for m in masks]
    elif hasattr(mask, "shape") and hasattr(mask, "dtype"):
        array = np.asarray(mask)
        array = array[..., 0] if array.ndim > 2 and array.shape[-1] == 1 else array
        array = array[None] if array.ndim == 2 else array
        if array.ndim != 3 or 0 in array.shape or array.shape[2] in (3, 4):  # colours are no columns
            raise SdjaxError(f"mask of shape {np.shape(mask)}: [H, W], [B, H, W] or [B, H, W, 1] expected")
        array = shares(array)
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise SdjaxError("mask: values from 0 (keep) to 1 (repaint), or uint8, expected; found "
                             f"{array.min():.4g} to {array.max():.4g}")
        arrays = [array]
    else:
        raise SdjaxError(f"mask is {type(mask).__name__}: a PIL image, a list of them, or an array [H, W]; white, "
                         "or 1, is repainted")
    nearest = lambda n, wanted: ((np.arange(wanted) + 0.5) * n / wanted).astype(int)
    arrays = [a[:, nearest(a.shape[1], size[0])][:, :, nearest(a.shape[2], size[1])] for a in arrays]
    white = np.concatenate(arrays) >= 0.5
    if not white.any():
        log.warning("mask: nothing in it is white, nothing will be repainted")
    return white.astype(np.float32)[..., None]


def shares(mask: np.ndarray) -> np.ndarray:
    """float32, 1 for white: 255 of uint8, but 1 where it holds zeros and ones only."""
    return mask.astype(np.float32) / (255 if mask.dtype == np.uint8 and mask.max(initial=0) > 1 else 1)


def feather_masks(masks: np.ndarray, feather: float) -> np.ndarray:
    """Zeros and ones [Q, H, W, 1] -> the weight of what is painted, from 0 at the border to 1 `feather` pixels inside.

    Zeros stay zeros, so that what is outside is still exactly the picture's.
    """
    if not feather:
        return masks
    soft = []
    for mask in masks[..., 0]:
        left, depth = Image.fromarray(np.uint8(mask)), np.zeros_like(mask)  # rows and columns to the nearest zero
        while np.any(left) and depth.max() < feather + 0.5:
            depth += left
            left = left.filter(ImageFilter.MinFilter(3))
        soft.append(np.clip((depth - 0.5) / feather, 0.0, 1.0) if not mask.all() else mask)
    return np.stack(soft)[..., None]


def contact_sheet(images: Sequence[Image.Image], columns: int | None = None, gap: int = 2) -> Image.Image:
    """The images row by row on white, about as many rows as columns, `gap` pixels apart. Cells fit the largest."""
    if not images:
        raise SdjaxError("images: a contact sheet needs at least one")
    columns = columns or math.ceil(math.sqrt(len(images)))
    width, height = (max(image.size[i] for image in images) + gap for i in (0, 1))
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * width + gap, rows * height + gap), "white")
    for i, image in enumerate(images):
        sheet.paste(image, (gap + i % columns * width, gap + i // columns * height))
    return sheet


def save_png(image: Image.Image, path: str | Path, parameters: str | None = None) -> Path:
    """Writes a PNG whole or not at all; `parameters` goes into its text chunk of that name."""
    path, info = Path(path), PngInfo()
    if parameters is not None:
        info.add_text("parameters", parameters)  # PIL writes iTXt when Latin-1 does not hold it
    with whole(path) as scratch:
        image.save(scratch, "PNG", pnginfo=info)
    return path
