"""Textual inversion (arXiv 2208.01618): a file gives prompts a new word, which stands for learned vectors.

sd = sdjax.add_embedding(sd, "learned_embeds.safetensors")             # diffusers: {token: [D] or [n, D]}
sd = sdjax.add_embedding(sd, "easynegative.pt", token="easynegative")  # the web UI: its "string_to_param"
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from sdjax.errors import SdjaxError
from sdjax.families.config import Config
from sdjax.families.table import family_of
from sdjax.formats.tensors import read_tensors
from sdjax.model.value import StableDiffusion
from sdjax.networks.clip.config import TextConfig

#: The tensors of an embedding for SDXL, by the towers' folders (kohya's and the web UI's names).
OF_TOWERS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
UNNAMED = ("*", "emb_params", *OF_TOWERS.values())  # names that stand for no word


def add_embedding(sd: StableDiffusion, path: str | Path, token: str | None = None) -> StableDiffusion:
    """Returns a model like `sd` in whose prompts the word `token` stands for the n vectors of a file.

    path: a .safetensors, .pt or .bin file.
    token: the word; None takes the name that the file gives it, or the file's own name if it gives none. Prompts may
        write it in upper or lower case, but as a whole word; it takes n tokens of a chunk.
    `sdjax.save` does not write the word.
    A file for SDXL holds a tensor for each text tower, clip_l and clip_g; its refiner takes clip_g of them.
    SdjaxError: the file holds something else than an [n, D] or [D] tensor of each text tower's width D, or more vectors
    than a chunk has tokens; or prompts cannot hold `token`.
    """
    if not isinstance(sd.config.text, TextConfig):
        raise SdjaxError(f"path {path}: embeddings are words of CLIP text towers, which {sd.config.name} has not")
    return with_word(sd, read_tensors(path), path, token)


def with_word(
    sd: StableDiffusion, tensors: Mapping[str, np.ndarray], path: str | Path, token: str | None
) -> StableDiffusion:
    """Returns `add_embedding` of the tensors of a file, or of the part of a LoRA file that messages call `path`."""
    config = sd.config.text
    name, values = of_towers(sd.config, tensors, path)
    vectors = np.concatenate([value.astype(np.float32) for value in values], axis=1)
    if not np.isfinite(vectors).all():
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
    return replace(sd, embeddings=known | {token: vectors})


def of_towers(config: Config, tensors: Mapping[str, np.ndarray], path: str | Path) -> tuple[str, list[np.ndarray]]:
    """Returns the name that a file gives its embedding, and the vectors [n, D] for each text tower of the model.

    A model of one tower takes the file's only tensor; one of several takes a tensor for each, by OF_TOWERS' names.
    SdjaxError: other tensors, or of another width, number or dtype.
    """
    parts = [tower.part for tower in family_of(config).towers]
    places = [family_of(config).parts[part].folder for part in parts]
    of_sdxl = family_of(config).vector == "sizes" and {*OF_TOWERS.values()} & {*tensors}
    names = [OF_TOWERS[place] for place in places] if of_sdxl else [*tensors]
    if len(names) != len(parts) or not {*names} <= {*tensors}:
        given = ", ".join([*sorted(tensors)[:4], *["..."] * (len(tensors) > 4)])
        wanted = "one" if len(parts) == 1 else f"{' and '.join(OF_TOWERS[place] for place in places)}"
        raise SdjaxError(f"{path}: holds {len(tensors)} tensors ({given}), an embedding for {config.name} is {wanted}")
    values = []
    for name, part in zip(names, parts, strict=True):
        value, width = tensors[name], getattr(config, part).width
        if not 1 <= value.ndim <= 2 or value.shape[-1] != width:
            raise SdjaxError(f"{path}: {name} has shape {list(value.shape)}, should be [n, {width}] for this model")
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise SdjaxError(f"{path}: {name} is not made of finite floating point numbers")
        values.append(value.reshape(-1, width))
    if len({len(value) for value in values}) > 1:
        raise SdjaxError(f"{path}: {' and '.join(names)} have {' and '.join(str(len(v)) for v in values)} vectors")
    return names[0], values
