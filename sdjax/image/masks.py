"""Masks of pictures. White is repainted."""

import numpy as np
from PIL import Image, ImageFilter

from sdjax.errors import SdjaxError, log
from sdjax.image.pixels import to_rgb, whole_picture


def read_masks(mask, size: tuple[int, int]) -> np.ndarray:
    """Returns masks as float32 zeros and ones [Q, H, W, 1], where 1 is white and is repainted.

    mask: a PIL image, a list of them, or an array [H, W] or [Q, H, W], with or without a last axis of 1. An array holds
        bools, numbers from 0 to 1, or uint8 (0 to 255, or zeros and ones). Values of a half and more are white;
        transparent pixels are not.
    size: (H, W), to which the masks are resized by their nearest pixels.
    SdjaxError: another type, shape or range. It logs a line if nothing is white.
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
            raise SdjaxError(
                "mask: values from 0 (keep) to 1 (repaint), or uint8, expected; found "
                f"{array.min():.4g} to {array.max():.4g}"
            )
        arrays = [array]
    else:
        raise SdjaxError(
            f"mask is {type(mask).__name__}: a PIL image, a list of them, or an array [H, W]; white, or 1, is repainted"
        )
    nearest = lambda n, wanted: ((np.arange(wanted) + 0.5) * n / wanted).astype(int)
    arrays = [a[:, nearest(a.shape[1], size[0])][:, :, nearest(a.shape[2], size[1])] for a in arrays]
    white = np.concatenate(arrays) >= 0.5
    if not white.any():
        log.warning("mask: nothing in it is white, nothing will be repainted")
    return white.astype(np.float32)[..., None]


def shares(mask: np.ndarray) -> np.ndarray:
    """Returns a mask as float32 with 1 for white. In uint8, white is 255, or 1 if it holds only zeros and ones."""
    return mask.astype(np.float32) / (255 if mask.dtype == np.uint8 and mask.max(initial=0) > 1 else 1)


def feather_masks(masks: np.ndarray, feather: float) -> np.ndarray:
    """Returns the weights of the painted picture, [Q, H, W, 1], for masks of zeros and ones of that shape.

    The weight rises from 0 at the border of the mask to 1 at `feather` pixels inside. Zeros stay zeros, so that outside
    the mask the picture does not change at all.
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
