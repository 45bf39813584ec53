"""The pictures of the emoji dataset: drawings cut out, and put on plain backgrounds."""

import io

import numpy as np
from PIL import Image


def cut_out(drawing: str | bytes, size: int = 128) -> Image.Image:
    """Draws at 256 pixels, crops to the visible part and fits its longer side to the frame: RGBA [size, size]."""
    if isinstance(drawing, str):
        import resvg_py

        drawing = bytes(resvg_py.svg_to_bytes(svg_string=drawing, width=256, height=256, skip_system_fonts=True))
    image = Image.open(io.BytesIO(drawing)).convert("RGBA")
    image = image.crop(image.getchannel("A").point(lambda alpha: 255 * (alpha > 12)).getbbox())
    scale = size / max(image.size)
    image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
    frame = Image.new("RGBA", (size, size))
    frame.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return frame


def place(cutout: Image.Image, size: int, fill: float, dx: int = 0, dy: int = 0) -> np.ndarray:
    """Returns a frame with a cutout in it: uint8 [size, size, 4].

    Its longer side becomes fill * size pixels; its centre moves (dx, dy) pixels to the right and down. Colours are
    premultiplied by alpha before they are resampled, so that those of invisible pixels do not bleed into the edges.
    """
    side = max(1, round(fill * size))
    layer = Image.new("RGBa", (size, size))
    thing = cutout.convert("RGBa").resize((side, side), Image.Resampling.LANCZOS)
    layer.paste(thing, ((size - side) // 2 + dx, (size - side) // 2 + dy))
    return np.asarray(layer)


def compose(cutout: Image.Image, background: tuple, size: int, fill: float, dx: int = 0, dy: int = 0) -> Image.Image:
    """Puts a cutout on a plain (r, g, b) background: RGB [size, size]. The other arguments are those of `place`."""
    return on_ground(place(cutout, size, fill, dx, dy), background)


def on_ground(layer: np.ndarray, background: tuple) -> Image.Image:
    """Puts what `place` returns on a plain (r, g, b) background: RGB [size, size]."""
    rgba = layer.astype(np.float32)
    pixels = rgba[..., :3] + (1 - rgba[..., 3:] / 255) * np.float32(background)
    return Image.fromarray(np.clip(np.round(pixels), 0, 255).astype(np.uint8))
