"""Small pictures -> Cond: what models that enlarge them take beside x, with or without noise."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from sdjax.checks import is_whole
from sdjax.diffusion import noise
from sdjax.diffusion.schedule import ScheduleConfig, make_schedule
from sdjax.errors import SdjaxError
from sdjax.families.table import family_of
from sdjax.image.pixels import read_images
from sdjax.model.value import StableDiffusion
from sdjax.types import Cond

#: The noise schedule of the x4 upscaler's small pictures, and the highest level that it was trained on.
SCHEDULE, MOST = ScheduleConfig(beta_start=0.0001, beta_end=0.02), 350

STREAM = 2**32 - 2  # of the small pictures' noise, beside the streams of walks


def encode_lowres(sd: StableDiffusion, pictures: Any, noise_level: int = 20, seed: int = 0) -> Cond:
    """Returns the Cond of B small pictures, with concat float32 [B, h, w, 3] and, for the x4 upscaler, vector [B, 1].

    pictures: PIL, a list of them, or float [B, h, w, 3] in [-1, 1]. The sides are multiples of sd.config.unet.factor
        (PIL pictures are rounded down to them); what is drawn is sd.config.vae.factor times as large.
    noise_level: 0 to 350: how much noise the x4 upscaler's small pictures get, x = sqrt(abar) picture + sqrt(1 - abar)
        eps, abar of its own schedule. bsr_sr takes pictures without noise.
    seed: picture i gets the noise of seed + i.
    SdjaxError: the model takes no small pictures, or an argument out of range.
    """
    family, multiple = family_of(sd.config), sd.config.unet.factor
    if family.concat != "lowres":
        raise SdjaxError(f"pictures: {sd.config.name} takes no small pictures")
    small = read_images(pictures, None, None, multiple, 3)
    if family.vector is None:
        return Cond(concat=jnp.asarray(small))
    if not is_whole(noise_level, 0, min(MOST, sd.config.unet.labels - 1)):
        raise SdjaxError(f"noise_level {noise_level!r}: a whole number from 0 to {MOST}")
    if not is_whole(seed, 0, 2**32 - len(small)):
        raise SdjaxError(f"seed {seed!r}: a whole number from 0 to {2**32 - len(small)}")
    abar = make_schedule(SCHEDULE).alphas_cumprod[noise_level]
    seeds = np.arange(seed, seed + len(small), dtype=np.uint32)
    eps = noise.draw(noise.image_draws(seeds, np.uint32(0), np.float32(0), STREAM), small.shape[1:])
    noised = np.float32(np.sqrt(abar)) * small + np.float32(np.sqrt(1 - abar)) * eps
    return Cond(vector=jnp.full((len(small), 1), noise_level, jnp.float32), concat=noised)
