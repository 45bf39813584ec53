"""The pictures that ControlNets and T2I-Adapters see, in [0, 1]; pictures elsewhere are in [-1, 1]."""

from typing import Any

import numpy as np
from PIL import Image

from sdjax.errors import SdjaxError
from sdjax.image.pixels import to_rgb, whole_picture

GREY = np.float32([0.299, 0.587, 0.114])  # ITU-R 601, as Pillow's mode L


def read_hints(name: str, image: Any, size: tuple[int, int], channels: int = 3) -> np.ndarray:
    """Returns control pictures as float32 [Q, H, W, channels] in [0, 1], resized to `size`, (height, width).

    name: what messages call them.
    image: PIL; uint8 or floats in [0, 1], [H, W], [H, W, 1 or 3] or [Q, H, W, 1 or 3]; or a list of such pictures.
    channels: 3, or 1 for grey, which colours become with the weights of ITU-R 601; grey becomes three times the same.
    SdjaxError: another type, shape or range.
    """
    if isinstance(image, (list, tuple)):
        if not image:
            raise SdjaxError(f"{name} is empty: a picture expected")
        return np.concatenate([read_hints(name, one, size, channels) for one in image])
    if isinstance(image, Image.Image):
        return _sized(np.asarray(_resized(to_rgb(whole_picture(image, name)), size))[None], size, channels)
    if not hasattr(image, "shape") or not hasattr(image, "dtype"):
        raise SdjaxError(f"{name} is {type(image).__name__}: a PIL image, uint8 or floats in [0, 1] expected")
    array = np.asarray(image)
    array = array[..., None] if array.ndim == 2 else array
    array = array[None] if array.ndim == 3 else array
    if array.ndim != 4 or array.shape[3] not in (1, 3) or 0 in array.shape:
        raise SdjaxError(f"{name} of shape {np.shape(image)}: [H, W, 3] or [Q, H, W, 3] expected")
    if array.dtype == np.uint8:
        pictures = [Image.fromarray(one[..., 0] if one.shape[2] == 1 else one) for one in array]
        return np.concatenate([read_hints(name, one, size, channels) for one in pictures])
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise SdjaxError(f"{name} is {array.dtype}: uint8, or floats in [0, 1], expected")
    array = array.astype(np.float32)
    if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
        low, high = array.min(), array.max()
        raise SdjaxError(f"{name} has values from {low:.4g} to {high:.4g}: floats in [0, 1] expected, or uint8")
    return _sized(array, size, channels)


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size[::-1] else image.resize(size[::-1], Image.Resampling.LANCZOS)


def _sized(array: np.ndarray, size: tuple[int, int], channels: int) -> np.ndarray:
    """Returns uint8, or floats in [0, 1], as floats of this size and number of channels."""
    if array.dtype == np.uint8:
        array = array.astype(np.float32) / np.float32(255)
    if array.shape[1:3] != tuple(size):
        planes = [[_resized(Image.fromarray(one[..., c]), size) for c in range(one.shape[2])] for one in array]
        array = np.stack([np.stack([np.asarray(plane) for plane in one], -1) for one in planes]).clip(0, 1)
    if array.shape[3] == channels:
        return array
    return (array @ GREY)[..., None] if channels == 1 else array.repeat(3, -1)
