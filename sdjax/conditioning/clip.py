"""Phrases and pictures as embeddings in CLIP's shared space (arXiv 2103.00020)."""

from collections.abc import Sequence
from functools import partial
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.conditioning.text import read_prompts, text_context, text_tower_of
from sdjax.devices.placement import on_all_devices
from sdjax.model.value import FLOAT32, StableDiffusion
from sdjax.networks.clip.config import VisionConfig
from sdjax.networks.clip.network import ImageTower, pool_text
from sdjax.nn.layers import precise
from sdjax.text.prompt import Tokens, stack
from sdjax.types import Array, Params

PHRASES = 256  # that go through the text tower at once


def embed_phrases(sd: StableDiffusion, phrases: Sequence[str], projection: Array) -> Array:
    """Returns unit embeddings [N, D] of phrases in the shared space of a CLIP model (arXiv 2103.00020, section 2.4).

    phrases: N texts; no character is special in them.
    projection: [width, D], the "text_projection" that `load_clip` reads; the CLIP image tower must belong to it.
    """
    text, vectors = text_tower_of(sd)
    tokens = stack(read_prompts(sd, phrases, "plain"), text)

    def embed(params: tuple, tokens: Tokens) -> Array:
        params, projection = params
        states = text_context(params, tokens, text, sd.dtype, vectors).context
        return pool_text(states, tokens.ids[:, 0, 0], text.eos_token) @ projection

    some = lambda first: jax.tree.map(itemgetter(slice(first, first + PHRASES)), tokens)
    starts, full = range(0, len(phrases), PHRASES), len(phrases) // PHRASES
    params = sd.params["text"], projection
    words = [*on_all_devices(embed, params, map(some, starts[:full]))]
    words += [np.asarray(embed(params, some(first))) for first in starts[full:]]
    words = jnp.concatenate(words)
    return words / jnp.linalg.norm(words, axis=1, keepdims=True)


@partial(jax.jit, static_argnames=("config", "dtype"))
def image_embedding(params: Params, pixels: Array, config: VisionConfig, dtype=FLOAT32) -> Array:
    """Image tower's parameters, `clip_pixels` [B, size, size, 3] -> float32 [B, projection], not normalised."""
    with precise(dtype):
        return ImageTower(config, dtype).apply({"params": params}, pixels)
