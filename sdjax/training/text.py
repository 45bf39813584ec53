"""Captions that the loss itself reads: where a text tower, or a word of it, is trained, or captions are shuffled.

A batch then holds tokens, int32 [B, T, L] for T towers, and the towers run in every step. Otherwise their states are
computed once for all captions, see cache.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from sdjax.data.order import Chosen
from sdjax.data.source import Pictures
from sdjax.errors import SdjaxError, log
from sdjax.families.config import Config
from sdjax.model.value import StableDiffusion
from sdjax.networks.clip.config import TextConfig
from sdjax.networks.clip.network import TextTower
from sdjax.text import prompt
from sdjax.training.beside import Given
from sdjax.types import Array, Batch, Cond

SHUFFLE = 9  # of the order of a caption's parts, beside the numbers of beside.py


def towers_of(config: Config) -> tuple[str, ...]:
    """Returns the names of a model's text towers."""
    return ("text",) if config.text_2 is None else ("text", "text_2")


def check_clip_text(model: str, config: Config) -> None:
    """SdjaxError: a model whose text towers are none of CLIP's."""
    if not isinstance(config.text, TextConfig):
        raise SdjaxError(f"model {model}: has no CLIP text tower")


def tokens_of(sd: StableDiffusion, texts: Sequence[str]) -> tuple[np.ndarray, int]:
    """Returns captions as the towers get them, int32 [N, T, L], and how many of them are cut.

    No character is special in captions, but words of sd.embeddings stand for their vectors.
    """
    towers, found = [getattr(sd.config, name) for name in towers_of(sd.config)], []
    ends = np.cumsum([towers[0].vocab_size, *(len(vectors) for vectors in sd.embeddings.values())])
    words = {word: range(*ends[i : i + 2]) for i, word in enumerate(sd.embeddings)}
    read = prompt.read_prompts(texts, sd.tokenizer, towers[0], "plain", words, composed=False)
    for tower in towers:
        found.append(prompt.stack(read, tower, (1, 1)).ids.reshape(len(texts), tower.length))
    return np.stack(found, 1), sum(bool(one.notes) for one in read)


def captions_given(sd: StableDiffusion, source: Pictures, shuffle: bool = False, keep: int = 0) -> Given:
    """Returns a function of rows that gives their captions' tokens, int32 [B, T, L].

    shuffle: put the parts of a caption between its commas in another order each time, but for the first `keep`.
    """
    known, cut = tokens_of(sd, source.texts)
    if cut:
        most = sd.config.text.length - 2
        log.warning("captions: %d of %d are cut: the text tower takes %d tokens", cut, len(known), most)
    if not shuffle:
        return lambda rows, chosen: known[rows]

    def given(rows: np.ndarray, chosen: Chosen) -> np.ndarray:
        texts = []
        for row, original, epoch in zip(rows.tolist(), chosen.rows.tolist(), chosen.epochs.tolist(), strict=True):
            rng = np.random.default_rng((source.seed, SHUFFLE, epoch, original))
            texts.append(shuffled(source.texts[row], keep, rng))
        return tokens_of(sd, texts)[0]

    return given


def shuffled(text: str, keep: int, rng: np.random.Generator) -> str:
    """Returns a caption with the parts between its commas, but for the first `keep`, in another order."""
    parts = [part.strip() for part in text.split(",")]
    rest = parts[keep:]
    return ", ".join(parts[:keep] + [rest[i] for i in rng.permutation(len(rest))])


def read_cond(
    config: Config, towers: Mapping[str, Any], batch: Batch, drop: Array, nothing: np.ndarray, dtype: Any, vectors: Any
) -> Cond:
    """Returns the Cond of a batch's captions. Traceable.

    towers: by the towers' names the collections that they are applied with, {"params": ..., "changes": ...}.
    drop: which captions are replaced by the empty one, bool [B] or [B, T], see `text_cond`.
    nothing: the empty caption's tokens [T, L].
    vectors: by the towers' names what the ids beyond their vocabularies stand for, [N, D]; {}: there are none.
    """
    contexts, pooled = [], None
    for place, name in enumerate(towers_of(config)):
        tower = getattr(config, name)
        lost = (drop if drop.ndim == 1 else drop[:, place])[:, None]
        ids = jnp.where(lost, nothing[place], batch.given[:, place])
        found = TextTower(tower, jnp.dtype(dtype)).apply(towers[name], ids, vectors.get(name))
        states, own = (found, None) if tower.projection is None else found
        if config.zero_negative:
            states = jnp.where(lost[..., None], 0, states)
            own = own if own is None else jnp.where(lost, 0, own)
        contexts.append(states)
        pooled = own
    context = jnp.concatenate(contexts, axis=-1)
    if batch.vector is None:
        return Cond(context)
    return Cond(context, vector=jnp.concatenate([pooled, batch.vector], axis=1))


def empty_tokens(sd: StableDiffusion) -> np.ndarray:
    """Returns the empty caption's tokens, int32 [T, L]."""
    return tokens_of(sd, [""])[0][0]
