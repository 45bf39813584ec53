"""Textual inversion (arXiv 2208.01618): a file gives prompts a new word, which stands for learned vectors.

sd = sdjax.add_embedding(sd, "learned_embeds.safetensors")             # diffusers: {token: [D] or [n, D]}
sd = sdjax.add_embedding(sd, "easynegative.pt", token="easynegative")  # the web UI: its "string_to_param"
"""

import re
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from sdjax.errors import SdjaxError
from sdjax.formats.tensors import read_tensors
from sdjax.model.value import StableDiffusion
from sdjax.networks.clip.config import TextConfig

UNNAMED = ("*", "emb_params")  # names that the web UI's files give their one tensor


def add_embedding(sd: StableDiffusion, path: str | Path, token: str | None = None) -> StableDiffusion:
    """Returns a model like `sd` in whose prompts the word `token` stands for the n vectors of a file.

    path: a .safetensors, .pt or .bin file.
    token: the word; None takes the name that the file gives it, or the file's own name if it gives none. Prompts may
        write it in upper or lower case, but as a whole word; it takes n tokens of a chunk.
    `sdjax.save` does not write the word.
    SdjaxError: the file holds something else than one [n, D] or [D] tensor of the text tower's width D, or more vectors
    than a chunk has tokens; or prompts cannot hold `token`.
    """
    if not isinstance(sd.config.text, TextConfig) or sd.config.text_2 is not None:
        raise SdjaxError(f"path {path}: embeddings are words of one CLIP text tower, which {sd.config.name} has not")
    config, tensors = sd.config.text, read_tensors(path)
    if len(tensors) != 1:
        names = ", ".join([*sorted(tensors)[:4], *["..."] * (len(tensors) > 4)])
        raise SdjaxError(f"{path}: holds {len(tensors)} tensors ({names}), an embedding is one")
    ((name, value),) = tensors.items()
    if not 1 <= value.ndim <= 2 or value.shape[-1] != config.width:
        raise SdjaxError(f"{path}: {name} has shape {list(value.shape)}, should be [n, {config.width}] for this model")
    vectors = value.reshape(-1, config.width)
    if not jnp.issubdtype(value.dtype, jnp.floating) or not np.isfinite(vectors.astype(np.float32)).all():
        raise SdjaxError(f"{path}: {name} is not made of finite floating point numbers")
    if not 1 <= len(vectors) <= config.length - 2:
        raise SdjaxError(f"{path}: {name} has {len(vectors)} vectors, should have 1 to {config.length - 2}")
    token = token if token is not None else Path(path).stem if name in UNNAMED else name
    if (
        not isinstance(token, str)
        or not token.strip()
        or token != token.strip()
        or re.search(r"[\\()\[\]:]|\b(BREAK|AND)\b", token)
    ):
        raise SdjaxError(f"token {token!r}: a word without brackets, colons or backslashes")
    known = {word: found for word, found in sd.embeddings.items() if word.lower() != token.lower()}
    return replace(sd, embeddings=known | {token: vectors.astype(np.float32)})
