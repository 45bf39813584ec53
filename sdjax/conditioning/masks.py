"""Masks and the rest of the picture -> Cond: what inpainting models take beside x."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from sdjax.checks import check_model
from sdjax.errors import SdjaxError
from sdjax.families.family import Mask
from sdjax.families.table import family_of
from sdjax.image.masks import cells_of, read_masks
from sdjax.image.pixels import read_images
from sdjax.model.functions import encode
from sdjax.model.value import StableDiffusion
from sdjax.types import Array, Cond


def encode_mask(sd: StableDiffusion, pictures: Any, masks: Any, mask_cells: str = "corner") -> Cond:
    """Returns the Cond of B pictures to be repainted, with concat float32 [B, h, w, C] in the model's own order.

    `sdjax.inpaint` makes it itself; use this to draw with other tasks, or to look into it.
    pictures: PIL, a list of them, or float [B, H, W, 3] in [-1, 1]; an array's sides are multiples of
        sd.config.unit; PIL pictures are rounded down to multiples of sd.config.multiple.
    masks: white, or 1, is repainted; see `sdjax.inpaint`. One for all pictures, or one for each.
    mask_cells: see `sdjax.inpaint`.
    SdjaxError: the model is no inpainting model, or shapes that do not fit.
    """
    check_model(sd)
    family = family_of(sd.config)
    if family.concat != "mask":
        raise SdjaxError(f"masks: {sd.config.name} takes none")
    given = pictures
    pictures = read_images(pictures, None, None, sd.config.multiple, unit=sd.config.unit)
    white = read_masks(masks, pictures.shape[1:3], given)
    if len(white) not in (1, len(pictures)):
        raise SdjaxError(f"masks: {len(white)} for {len(pictures)} pictures, one or {len(pictures)} expected")
    white = np.broadcast_to(white, (len(pictures), *white.shape[1:]))
    cells = cells_of(white, sd.config.vae.factor, mask_cells)
    return Cond(concat=mask_channels(family.mask, cells, encode(sd, hide(family.mask, pictures, white))))


def hide(rule: Mask, pictures: Array, masks: Array) -> Array:
    """Returns pictures [B, H, W, 3] with the rule's value where the masks [B, H, W, 1] are 1."""
    kept = pictures * (1 - masks)
    return kept if rule.hole == 0 else kept + rule.hole * masks


def mask_channels(rule: Mask, small: Array, latents: Array) -> Array:
    """Returns what stands beside x: a mask [B, h, w, 1] of zeros and ones, and the masked picture's latents."""
    mask = jnp.asarray(small) if rule.kept == 0 else rule.kept + (1 - rule.kept) * jnp.asarray(small)
    return jnp.concatenate([mask, latents] if rule.first else [latents, mask], -1)
