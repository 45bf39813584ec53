"""Pictures as controls see them, without weights: edges, grey values, negatives. Each function returns PIL RGB.

    control_image = sdjax.preprocess.canny(picture)

Edges need the package `opencv-python-headless`, the extra `control`: ControlNets were trained on its Canny, and its
thresholds are what 100 and 200 mean.
"""

from typing import Any

import numpy as np
from PIL import Image, ImageOps

from sdjax.checks import is_number
from sdjax.errors import SdjaxError
from sdjax.image.pixels import to_rgb, whole_picture


def canny(picture: Image.Image | np.ndarray, low: float = 100, high: float = 200) -> Image.Image:
    """Returns the edges of a picture, white on black, as lllyasviel's canny2image.py makes them.

    picture: PIL, or uint8 [H, W, 3] or [H, W].
    low, high: gradients in 0 .. 255 below which nothing, and from which anything, is an edge; between them what touches
        an edge.
    SdjaxError: no such picture, thresholds in the wrong order, or OpenCV is not installed.
    """
    for name, value in (("low", low), ("high", high)):
        if not is_number(value, 0):
            raise SdjaxError(f"{name} {value!r}: a number from 0 on")
    if low > high:
        raise SdjaxError(f"low {low}: not above high, {high}")
    pixels = np.array(as_rgb(picture))
    try:
        import cv2
    except ImportError:
        raise SdjaxError("canny: needs opencv-python-headless, pip install 'sdjax[control]'") from None
    edges = cv2.Canny(pixels, float(low), float(high))
    return Image.fromarray(np.asarray(edges, np.uint8)).convert("RGB")


def grey(picture: Image.Image | np.ndarray) -> Image.Image:
    """Returns a picture without its colours, by the weights of ITU-R 601, for ControlNets that recolour."""
    return as_rgb(picture).convert("L").convert("RGB")


def invert(picture: Image.Image | np.ndarray) -> Image.Image:
    """Returns the negative of a picture: dark lines on white become light lines on black, which scribbles are."""
    return ImageOps.invert(as_rgb(picture))


def as_rgb(picture: Any) -> Image.Image:
    """Returns a PIL image, or uint8 [H, W, 3] or [H, W], as RGB. SdjaxError: something else."""
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or not (picture.ndim == 2 or picture.shape[2:] == (3,)) or 0 in picture.shape:
            raise SdjaxError(f"picture is {picture.dtype} {list(picture.shape)}: uint8 [H, W, 3] expected")
        picture = Image.fromarray(picture)
    return to_rgb(whole_picture(picture, "picture"))
