"""Small pictures -> Cond: what models that enlarge them take beside x, with or without noise."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from sdjax.checks import check_model, is_whole
from sdjax.diffusion import noise
from sdjax.diffusion.schedule import make_schedule
from sdjax.errors import SdjaxError, in_short
from sdjax.families.sd2 import LEVELS, MOST_LEVEL
from sdjax.families.table import family_of
from sdjax.image.pixels import read_images
from sdjax.model.value import StableDiffusion
from sdjax.types import Array, Cond

LEVEL = 20  # the noise level that is taken if none is given

STREAM = 2**32 - 2  # of the small pictures' noise, beside the streams of walks


def noise_from(seed: int, shape: tuple[int, ...], stream: int) -> Array:
    """Returns unit noise [B, h, w, C] for a condition: picture i's comes from seed + i, in a stream of its own.

    SdjaxError: a seed out of range.
    """
    if not is_whole(seed, 0, 2**32 - shape[0]):
        raise SdjaxError(f"seed {seed!r}: a whole number from 0 to {2**32 - shape[0]}")
    seeds = np.arange(seed, seed + shape[0], dtype=np.uint32)
    return noise.draw(noise.image_draws(seeds, np.uint32(0), np.float32(0), stream), shape[1:])


def encode_lowres(sd: StableDiffusion, pictures: Any, noise_level: int = LEVEL, seed: int = 0) -> Cond:
    """Returns the Cond of B small pictures, with concat float32 [B, h, w, 3] and, for the x4 upscaler, vector [B, 1].

    pictures: PIL, a list of them, or float [B, h, w, 3] in [-1, 1]. PIL pictures are rounded down to multiples of
        sd.config.unet.factor; what is drawn is sd.config.vae.factor times as large.
    noise_level: 0 to 350: how much noise the x4 upscaler's small pictures get, x = sqrt(abar) picture + sqrt(1 - abar)
        eps, abar of its own schedule. bsr_sr takes pictures without noise.
    seed: picture i gets the noise of seed + i.
    SdjaxError: the model takes no small pictures, or an argument out of range.
    """
    check_model(sd)
    family, multiple = family_of(sd.config), sd.config.unet.factor
    if family.concat != "lowres":
        raise SdjaxError(f"pictures: {sd.config.name} takes no small pictures")
    small = read_images(pictures, None, None, multiple, 3, sd.config.unet.unit)
    if family.vector is None:
        if not is_whole(noise_level, LEVEL, LEVEL):
            raise SdjaxError(f"noise_level {in_short(noise_level)}: {sd.config.name} takes none")
        return Cond(concat=jnp.asarray(small))
    if not is_whole(noise_level, 0, min(MOST_LEVEL, sd.config.unet.labels - 1)):
        raise SdjaxError(f"noise_level {in_short(noise_level)}: a whole number from 0 to {MOST_LEVEL}")
    abar = make_schedule(LEVELS).alphas_cumprod[noise_level]
    eps = noise_from(seed, small.shape, STREAM)
    noised = np.float32(np.sqrt(abar)) * small + np.float32(np.sqrt(1 - abar)) * eps
    return Cond(vector=jnp.full((len(small), 1), noise_level, jnp.float32), concat=noised)
