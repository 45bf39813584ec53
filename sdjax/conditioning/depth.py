"""Depth maps -> Cond: one channel beside the latents, in [-1, 1]."""

from typing import Any

import numpy as np

from sdjax.checks import as_array, check_model
from sdjax.errors import SdjaxError
from sdjax.families.table import family_of
from sdjax.image import bicubic
from sdjax.model.value import StableDiffusion
from sdjax.types import Cond


def encode_depth(sd: StableDiffusion, depth: Any, height: int | None = None, width: int | None = None) -> Cond:
    """Returns the Cond of B depth maps, with concat float32 [B, h, w, 1].

    depth: numbers [B, H, W], or [H, W] for one, of any scale and size; MiDaS' maps are larger where it is nearer.
    height, width: of the pictures in pixels, multiples of sd.config.unit; None: the map's own, rounded down to a
        multiple of sd.config.multiple.
    Each map is resized bicubically to the latents' size, then stretched to [-1, 1] by its own smallest and largest
    value (Stability `ddpm.py`, LatentDepth2ImageDiffusion). A flat map becomes -1.
    SdjaxError: the model takes no depth, or a shape or a size that does not fit.
    """
    check_model(sd)
    config = sd.config
    if family_of(config).concat != "depth":
        raise SdjaxError(f"depth: {config.name} takes none")
    maps = as_array("depth", depth)
    maps = maps[None] if maps.ndim == 2 else maps
    if maps.ndim != 3 or 0 in maps.shape or maps.dtype.kind not in "fiu":
        raise SdjaxError(f"depth is {maps.dtype} of shape {list(maps.shape)}: numbers [B, H, W] expected")
    if not np.isfinite(maps.astype(np.float64)).all():
        raise SdjaxError("depth has NaN or infinite values")
    multiple, factor = config.multiple, config.vae.factor
    sides = []
    for name, side, own in (("height", height, maps.shape[1]), ("width", width, maps.shape[2])):
        config.check_side(name, side)
        sides.append((side or max(own // multiple, 1) * multiple) // factor)
    return Cond(concat=normalised(bicubic.resize(maps, *sides))[..., None])


def normalised(maps: np.ndarray) -> np.ndarray:
    """Returns maps [B, h, w] stretched to [-1, 1], each by its own range; a flat one becomes -1."""
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    span = np.where(high > low, high - low, 1)
    return (2 * (maps - low) / span - 1).astype(np.float32)
