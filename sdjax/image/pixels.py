"""Pixels [B, H, W, 3] in [-1, 1] <-> PIL images, and the pictures that image tasks start from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageCms, ImageOps

from sdjax.errors import SdjaxError

if TYPE_CHECKING:  # types imports JAX, which reading pictures does not need
    from sdjax.types import Arrays


#: What CLIP's pictures are normalised by.
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def pixels_to_pil(pixels: Float[Arrays, "B H W 3"] | Float[Arrays, "H W 3"]) -> list[Image.Image]:
    """Returns B RGB images for pixels [B, H, W, 3], or one for [H, W, 3].

    A value x becomes 127.5 (x + 1), clipped to 0 .. 255 and rounded.

    SdjaxError: another shape, or a pixel that is not finite. Such a pixel comes from a computation that overflowed, and
    must not become a black picture.
    """
    pixels = np.asarray(pixels, np.float32)
    pixels = pixels[None] if pixels.ndim == 3 else pixels
    if pixels.ndim != 4 or pixels.shape[-1] != 3:
        raise SdjaxError(f"pixels of shape {pixels.shape}: [B, H, W, 3] expected")
    if not np.isfinite(pixels).all():
        raise SdjaxError("pixels are not finite: the computation overflowed (try dtype float32)")
    return [Image.fromarray(p) for p in np.round(np.clip(127.5 * (pixels + 1.0), 0, 255)).astype(np.uint8)]


def to_rgb(image: Image.Image, under: str = "white") -> Image.Image:
    """Returns any picture as RGB, by these rules:

    - It is turned as its EXIF says, if that can be read.
    - Transparency is laid on the colour `under`.
    - Of several frames or pages the current one is taken, which is the first one in a file that was just opened.
    - Palettes, greys, CMYK, YCbCr, Lab and HSV are converted by Pillow. An embedded colour profile is not applied.
    - Whole numbers of more than 8 bits are taken as 16 bits, and lose the lower 8.
    - Floating point is taken as 0 .. 1 if no value is larger than 1, else as 0 .. 255.
    """
    image = upright(image)
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


def upright(image: Image.Image) -> Image.Image:
    """Returns a picture turned as its EXIF says, if that can be read."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF is common, and does not mean that the pixels are broken
        image.load()
        return image


def lies_on_its_side(image: Image.Image) -> bool:
    """Does `upright` exchange the sides of a picture?"""
    try:
        return image.getexif().get(0x112) in (5, 6, 7, 8)  # these orientations exchange them
    except Exception:  # as in `upright`
        return False


def whole_picture(image: Image.Image, name: str = "image") -> Image.Image:
    """Reads the pixels of `image`, which Pillow delays, and returns it. SdjaxError: no PIL image, or not readable."""
    if not isinstance(image, Image.Image):
        raise SdjaxError(f"{name} is {type(image).__name__}: a PIL image expected")
    try:
        image.load()
    except Exception as error:  # decoders raise what they like
        raise SdjaxError(f"{name}: not readable ({str(error) or type(error).__name__})") from None
    return image


def pil_to_pixels(
    image: Image.Image, size: tuple[int, int] | None = None, multiple: int = 1
) -> Float[np.ndarray, "1 H W 3"]:
    """Returns one image as float32 pixels [1, H, W, 3] in [-1, 1]. It is converted by `to_rgb`.

    size: (height, width) to resize it to, with LANCZOS as in CompVis; None rounds its own sides down.
    multiple: what the sides are rounded down to a multiple of, without `size`.
    SdjaxError: it is no readable picture, or a side would be 0.
    """
    image = to_rgb(whole_picture(image))
    height, width = size or (image.height - image.height % multiple, image.width - image.width % multiple)
    if min(height, width) < 1:
        raise SdjaxError(f"image of {image.width} x {image.height} pixels: at least {multiple} x {multiple} needed")
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(image, np.float32)[None] / 127.5 - 1.0


def clip_pixels(image: Image.Image, size: int) -> np.ndarray:
    """Prepares an image as CLIP's image processor does. Returns float32 [size, size, 3].

    The image becomes RGB, is resized (bicubic) so that its shorter side is `size`, cropped to the centre square, and
    normalised with CLIP's mean and standard deviation.
    """
    image = to_rgb(whole_picture(image))
    short, long = sorted(image.size)
    sides = [size if side == short else int(size * long / short) for side in image.size]
    image = image.resize(sides, Image.Resampling.BICUBIC)
    left, top = ((side - size) // 2 for side in sides)
    image = image.crop((left, top, left + size, top + size))
    return (np.asarray(image, np.float32) / 255 - np.float32(CLIP_MEAN)) / np.float32(CLIP_STD)


def read_images(
    image, height: int | None, width: int | None, multiple: int, channels: int = 4, unit: int | None = None
) -> np.ndarray:
    """Reads what image tasks start from: pixels or latents.

    Returns float32 pixels [Q, H, W, 3], clipped to [-1, 1], or scaled latents [Q, h, w, channels].

    image: a PIL image, a list of them, or a float array [H, W, 3] or [Q, H, W, 3] in [-1, 1]. An array [Q, h, w,
        channels] is taken as scaled latents, unless `channels` is 3: three channels are always pixels.
    height, width: PIL images are resized to these. If a side is None, the picture's own is rounded down to a
        `multiple`. Arrays of pixels must have this size already, or, if a side is None, a multiple of `unit`.
    unit: None is `multiple`.
    SdjaxError: another type, shape or range.
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
        raise SdjaxError(
            f"image is {type(image).__name__}: a PIL image, a list of them, or an array [H, W, 3] or "
            "[B, H, W, 3] in [-1, 1]"
        )
    array = np.asarray(image)
    array = array[None] if array.ndim == 3 and array.shape[2] == 3 else array  # four channels would be latents
    if array.ndim != 4 or array.shape[3] not in (3, channels) or 0 in array.shape:
        raise SdjaxError(f"image of shape {np.shape(image)}: [H, W, 3] or [B, H, W, 3] expected")
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise SdjaxError(f"image is {array.dtype}: floating point in [-1, 1] expected, x / 127.5 - 1 of 0 .. 255")
    array = array.astype(np.float32)
    if not np.isfinite(array).all() or (array.shape[3] == 3 and np.abs(array).max() > 2):
        raise SdjaxError(
            f"image: pixels in [-1, 1] expected, found {np.abs(array).max():.4g} (of 0 .. 255 take x / 127.5 - 1)"
        )
    if array.shape[3] != 3:
        return array
    unit = unit or multiple
    fit = lambda side: max(side // unit, 1) * unit
    size = tuple(
        fit(side) if wanted is None else wanted for wanted, side in zip((height, width), array.shape[1:3], strict=True)
    )
    if array.shape[1:3] != size:
        raise SdjaxError(
            f"image of shape {np.shape(image)}: {size[0]} x {size[1]} pixels expected, arrays are not "
            f"resized (sides are multiples of {unit}; PIL images are)"
        )
    return np.clip(array, -1.0, 1.0)
