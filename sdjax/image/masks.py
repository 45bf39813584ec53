"""Masks of pictures. White is repainted."""

from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from sdjax.errors import SdjaxError, log
from sdjax.image.pixels import lies_on_its_side, to_rgb, upright, whole_picture

CELLS = ("corner", "any")  # which pixels of a cell, the square of a latent, decide whether it is repainted

SCALES = (1, 2**8 - 1, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1)  # white in whole numbers


def read_masks(mask: Any, size: tuple[int, int], pictures: Any = None) -> np.ndarray:
    """Returns masks as float32 zeros and ones [Q, H, W, 1], where 1 is white and is repainted.

    mask: a PIL image, a list of them, or an array [H, W] or [Q, H, W], with or without a last axis of 1. An array holds
        bools, numbers from 0 to 1, or whole numbers, of which white is the smallest of 1, 255, 65535 and so on that
        none exceeds. Values of a half and more are white; transparent pixels are not.
    size: (H, W), to which the masks are resized by their nearest pixels.
    pictures: what the masks are for, as the caller gave it.
    SdjaxError: another type, shape or range. It logs a line if nothing is white, if transparent parts are kept, or if
    the masks have the shape of neither the pictures nor `size`.
    """
    masks = mask if isinstance(mask, (list, tuple)) else [mask]
    if masks and all(isinstance(m, Image.Image) for m in masks):
        arrays = [shares_of_picture(m)[None] for m in masks]
    elif hasattr(mask, "shape") and hasattr(mask, "dtype"):
        array = np.asarray(mask)
        array = array[..., 0] if array.ndim > 2 and array.shape[-1] == 1 else array
        array = array[None] if array.ndim == 2 else array
        if array.ndim != 3 or 0 in array.shape or array.shape[2] in (3, 4):  # colours are no columns
            raise SdjaxError(f"mask of shape {np.shape(mask)}: [H, W], [B, H, W] or [B, H, W, 1] expected")
        arrays = [shares(array)]
    else:
        raise SdjaxError(
            f"mask is {type(mask).__name__}: a PIL image, a list of them, or an array [H, W]; white, or 1, is repainted"
        )
    remark_shapes([array.shape[1:] for array in arrays], [size, *sizes_of(pictures)])
    nearest = lambda n, wanted: ((np.arange(wanted) + 0.5) * n / wanted).astype(int)
    arrays = [a[:, nearest(a.shape[1], size[0])][:, :, nearest(a.shape[2], size[1])] for a in arrays]
    found = np.concatenate(arrays)
    if not (white := found >= 0.5).any():
        log.warning(
            "mask: nothing in it is white (the largest value is %.2g of 1), nothing will be repainted", found.max()
        )
    return white.astype(np.float32)[..., None]


def shares_of_picture(image: Image.Image) -> np.ndarray:
    """Returns a PIL mask as float32 [H, W] with 1 for white. Modes of more than 8 bits keep their values."""
    image = whole_picture(image, "mask")
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(upright(image))
        return shares(values / 255 if image.mode == "F" and 1 < values.max(initial=0) <= 255 else values)
    if image.has_transparency_data:
        hidden = np.mean(np.asarray(image.convert("RGBA").getchannel("A")) < 128)
        if hidden:
            log.warning(
                "mask: %.0f%% of it is transparent, which is kept; white is repainted. To repaint a transparent hole, "
                "give its alpha channel inverted",
                100 * hidden,
            )
    return shares(np.asarray(to_rgb(image, "black").convert("L")))


def shares(mask: np.ndarray) -> np.ndarray:
    """Returns a mask as float32 with 1 for white. Whole numbers: see `read_masks`. SdjaxError: values out of range."""
    low, high = (mask.min(), mask.max()) if mask.size else (0, 0)
    whole = mask.dtype.kind in "iu"
    if not (np.isfinite(low) and np.isfinite(high) and low >= 0 and (whole or high <= 1)):  # a NaN is both
        raise SdjaxError(
            "mask: values from 0 (keep) to 1 (repaint), or whole numbers from 0 on, expected; found "
            f"{low:.4g} to {high:.4g}"
        )
    return (mask / next(scale for scale in SCALES if scale >= high) if whole else mask).astype(np.float32)


def sizes_of(pictures: Any) -> list[tuple[int, int]]:
    """Returns (height, width) of PIL images, turned as their EXIF says; [] of anything else."""
    pictures = pictures if isinstance(pictures, (list, tuple)) else [pictures]
    return [
        image.size if lies_on_its_side(image) else image.size[::-1]
        for image in pictures
        if isinstance(image, Image.Image)
    ]


def remark_shapes(masks: list[tuple[int, int]], sizes: list[tuple[int, int]], allowed: float = 0.02) -> None:
    """Logs a line if the sides of a mask have the ratio of none of `sizes`, all (height, width)."""
    for height, width in masks:
        if all(abs(height * w / (width * h) - 1) > allowed for h, w in sizes):
            h, w = sizes[-1]
            log.warning("mask: of %d x %d pixels, stretched over the picture's %d x %d", width, height, w, h)


def cells_of(masks: np.ndarray, factor: int, mask_cells: str = "corner") -> np.ndarray:
    """Returns masks [Q, H, W, 1] of zeros and ones in the latents' size, [Q, H / factor, W / factor, 1].

    mask_cells: "corner": a latent is repainted if the top left pixel of its square is white, as in diffusers and
        CompVis; "any": if any of them is.
    SdjaxError: another word. It logs a line if most of what is white lies in squares that are kept.
    """
    if mask_cells not in CELLS:
        raise SdjaxError(f"mask_cells {mask_cells!r}: one of {', '.join(CELLS)}")
    q, height, width, _ = masks.shape
    squares = masks.reshape(q, height // factor, factor, width // factor, factor, 1)
    if mask_cells == "any":
        return squares.max((2, 4))
    cells = masks[:, ::factor, ::factor]
    white, lost = masks.sum(), (squares.sum((2, 4)) * (1 - cells)).sum()
    if lost > white / 2:
        log.warning(
            "mask: %.0f%% of its white is not repainted, since it misses the top left pixel of its %d x %d square; "
            "mask_cells any (--mask-cells any) counts any pixel",
            100 * lost / white,
            factor,
            factor,
        )
    return cells


def composed(before: np.ndarray, painted: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Returns pixels of which `share`, [B, H, W, 1] as `feather_masks` gives it, is painted; where that is 0 they are
    those before to the bit."""
    return np.where(share == 0, before, share * painted + (1 - share) * before)


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
