"""Pixels [B, H, W, 3] in [-1, 1] <-> PIL images, contact sheets, and PNG files that remember their settings."""

import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from sdjax.errors import SdjaxError


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


def to_rgb(image: Image.Image) -> Image.Image:
    """Any picture as RGB: turned as its EXIF says, 16 bits a channel brought to 8, transparency laid on white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # Pillow would clip at 255
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def pil_to_pixels(image: Image.Image, size: tuple[int, int] | None = None, multiple: int = 1) -> np.ndarray:
    """One image -> float32 [1, H, W, 3], by `to_rgb`.

    `size` = (height, width) resizes it; otherwise its sides are floored to a `multiple`. LANCZOS, as CompVis.
    """
    image = to_rgb(image)
    height, width = size or (image.height - image.height % multiple, image.width - image.width % multiple)
    if min(height, width) < 1:
        raise SdjaxError(f"image of {image.width} x {image.height} pixels: at least {multiple} x {multiple} needed")
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(image, np.float32)[None] / 127.5 - 1.0


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


def parameters_text(prompt: str, negative_prompt: str = "", **settings) -> str:
    """Settings in the form AUTOMATIC1111's web UI writes and reads, "Steps: 20, Sampler: ddim, ...".

    `settings` keep their order; "_" in a name becomes a space: parameters_text("a cat", Steps=20, CFG_scale=7.5).
    """
    lines = [prompt, f"Negative prompt: {negative_prompt}"] if negative_prompt else [prompt]
    return "\n".join([*lines, ", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in settings.items())])


def save_png(image: Image.Image, path: str | Path, parameters: str | None = None) -> Path:
    """Writes a PNG whole or not at all; `parameters` goes into its text chunk of that name."""
    path, info = Path(path), PngInfo()
    if parameters is not None:
        info.add_text("parameters", parameters)  # PIL writes iTXt when Latin-1 does not hold it
    handle, scratch = tempfile.mkstemp(suffix=".tmp", prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            image.save(file, "PNG", pnginfo=info)
        os.chmod(scratch, 0o644)
        os.replace(scratch, path)
    except BaseException:
        os.unlink(scratch)
        raise
    return path
