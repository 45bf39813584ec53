"""Pictures -> Cond: their embeddings by CLIP's image tower, in place of a text or beside it.

unCLIP adds noise to a normalised embedding z by a cosine schedule, sqrt(abar) z + sqrt(1 - abar) eps, and tells the
level (Stability `ldm/modules/encoders/modules.py`, CLIPEmbeddingNoiseAugmentation).
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from sdjax.checks import check_model, is_whole
from sdjax.conditioning.clip import image_embedding
from sdjax.conditioning.lowres import noise_from
from sdjax.errors import SdjaxError, in_short
from sdjax.image.pixels import clip_pixels, pixels_to_pil, read_images
from sdjax.model.value import StableDiffusion
from sdjax.nn.layers import timestep_embedding
from sdjax.types import Cond

LEVELS = 1000  # of noise on embeddings

STREAM = 2**32 - 3  # of the embeddings' noise, beside the streams of walks and of small pictures


def encode_picture(sd: StableDiffusion, pixels: Any, noise_level: int = 0, seed: int = 0) -> Cond:
    """Returns the Cond of B pictures: vector float32 [B, 2 D] for unCLIP, context [B, 1, D] for image variations.

    pixels: PIL, a list of them, or float [B, H, W, 3] in [-1, 1]. As CLIP's processor does it, the shorter side
        becomes the tower's, and the centre is cut out.
    noise_level: 0 to 999: how much noise unCLIP's embeddings get; level 0 still adds a little. Image variations take
        none.
    seed: picture i gets the noise of seed + i.
    SdjaxError: the model takes no pictures, or an argument out of range.
    """
    check_model(sd)
    config = sd.config
    if config.image is None:
        raise SdjaxError(f"pixels: {config.name} takes no pictures")
    images = pixels if isinstance(pixels, (list, tuple)) else [pixels]
    if not len(images):
        raise SdjaxError("pixels []: at least one expected")
    if config.unet.vector is None and not is_whole(noise_level, 0, 0):
        raise SdjaxError(f"noise_level {in_short(noise_level)}: {config.name} takes none")
    if hasattr(pixels, "shape"):
        images = pixels_to_pil(read_images(pixels, None, None, 1, 3))
    seen = np.stack([clip_pixels(image, config.image.size) for image in images])
    embeddings = image_embedding(sd.params["image"], seen, config.image, sd.dtype)
    if config.unet.vector is None:
        return Cond(embeddings[:, None])
    if not is_whole(noise_level, 0, LEVELS - 1):
        raise SdjaxError(f"noise_level {in_short(noise_level)}: a whole number from 0 to {LEVELS - 1}")
    mean, std = (sd.params["normalizer"][name].astype(jnp.float32) for name in ("mean", "std"))
    eps = noise_from(seed, (len(images), 1, 1, embeddings.shape[1]), STREAM)[:, 0, 0]
    abar = cosine_abar()[noise_level]
    z = np.float32(np.sqrt(abar)) * (embeddings - mean) / std + np.float32(np.sqrt(1 - abar)) * eps
    level = timestep_embedding(jnp.full(len(images), noise_level, jnp.float32), embeddings.shape[1])
    return Cond(vector=jnp.concatenate([z * std + mean, level], axis=1))


def cosine_abar() -> np.ndarray:
    """Returns abar of the cosine schedule (arXiv 2102.09672, equation 17) with betas of at most 0.999: [LEVELS]."""
    t = np.arange(LEVELS + 1) / LEVELS
    f = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.cumprod(1 - np.minimum(1 - f[1:] / f[:-1], 0.999))
