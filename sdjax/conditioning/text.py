"""Prompts -> Cond: token ids, the text tower's states, and the weights of words."""

from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int32

from sdjax.checks import check_model, is_whole
from sdjax.errors import SdjaxError, log
from sdjax.families.table import family_of, prompt_of
from sdjax.model.functions import text_states
from sdjax.model.value import FLOAT32, StableDiffusion
from sdjax.networks.clip.config import TextConfig
from sdjax.text import prompt, tokenizer
from sdjax.types import Array, Cond, Params


def text_context(
    params: Params, tokens: prompt.Tokens, config: TextConfig, dtype=FLOAT32, vectors: Array | None = None
) -> Cond:
    """Text parameters, tokens of B prompts of P parts and K chunks -> Cond, with the chunks' states concatenated.

    The context is [B, K L, D], or [B, P, K L, D] for prompts composed with AND.
    The tower and `emphasise` are two jitted functions and not one, so that states which `emphasise` does not change
    are the tower's output to the bit.
    """
    ids = tokens.ids.reshape(-1, config.length)
    return as_context(text_states(params, ids, config, dtype, vectors), tokens)


def as_context(states: Array, tokens: prompt.Tokens) -> Cond:
    """Returns a tower's states of all chunks, [B P K, length, D], weighted by the tokens, as a Cond."""
    b, p, k, length = tokens.ids.shape
    states = emphasise(states, tokens.weights.reshape(-1, length))
    if p == 1:
        return Cond(states.reshape(b, k * length, -1))
    return Cond(states.reshape(b, p, k * length, -1), tokens.mix)


def tokenize(sd: StableDiffusion, prompts: str | Sequence[str]) -> Int32[np.ndarray, "B L"]:
    """Prompts -> int32 [B, L]: the start token, the prompt's tokens (cut to fit), the end token, padding.

    SdjaxError: the model has no tokenizer.
    """
    if sd.tokenizer is None:
        raise SdjaxError("sd.tokenizer is None: this model came without a tokenizer")
    return tokenizer.tokenize(sd.tokenizer, sd.config.text, prompts)


def read_prompts(
    sd: StableDiffusion, prompts: str | Sequence[str], syntax: str = "a1111", composed: bool = True
) -> list[prompt.Prompt]:
    """Returns prompts as `text.prompt.read_prompts` reads them, with the words of sd.embeddings.

    composed: AND joins prompts; otherwise it is text.
    What is cut or not understood in a prompt is logged in one line. SdjaxError: no tokenizer, an unknown syntax.
    """
    text_tower_of(sd)
    if sd.tokenizer is None:
        raise SdjaxError("sd.tokenizer is None: this model came without a tokenizer")
    ends = np.cumsum([sd.config.text.vocab_size, *(len(v) for v in sd.embeddings.values())])
    words = {word: range(*ends[i : i + 2]) for i, word in enumerate(sd.embeddings)}
    prompts = tokenizer.as_list(prompts)
    found = prompt.read_prompts(prompts, sd.tokenizer, sd.config.text, syntax, words, composed)
    for string, notes in {string: one.notes for string, one in zip(prompts, found, strict=True)}.items():
        if notes:
            log.warning("prompt %s: %s", repr(string if len(string) <= 80 else string[:77] + "..."), "; ".join(notes))
    return found


def text_tower_of(sd: StableDiffusion, clip_skip: int = 1) -> tuple[TextConfig, Array | None]:
    """Returns the (first) text tower's config without its last clip_skip - 1 layers, and its vectors of sd.embeddings.

    SdjaxError: the model takes no text, or has no such layer.
    """
    check_model(sd)
    if sd.config.text is None:
        raise SdjaxError(f"prompt: {sd.config.name} takes no text, give {prompt_of(sd.config)}")
    return skipping(sd.config.text, clip_skip), embedded(sd).get("text")


def embedded(sd: StableDiffusion) -> dict[str, np.ndarray]:
    """Returns what the words of sd.embeddings stand for in each text tower, [N, its width]; nothing if there are none.

    A word's vectors hold those of all towers side by side, as the context does.
    """
    if not sd.embeddings:
        return {}
    names = [tower.part for tower in family_of(sd.config).towers]
    ends = np.cumsum([getattr(sd.config, name).width for name in names])[:-1]
    return dict(zip(names, np.split(np.concatenate([*sd.embeddings.values()]), ends, axis=1), strict=True))


def skipping(config: TextConfig, clip_skip: int) -> TextConfig:
    """Returns a tower's config whose states come from clip_skip - 1 layers earlier. SdjaxError: there is none."""
    back = getattr(config, "back", 0)
    if not is_whole(clip_skip, 1, config.layers - back):
        raise SdjaxError(f"clip_skip {clip_skip!r}: a whole number from 1, the last layer, to {config.layers - back}")
    if back:
        return replace(config, back=back + int(clip_skip) - 1)
    return replace(config, layers=config.layers + 1 - int(clip_skip))


@jax.jit
def emphasise(states: Array, weights: Array) -> Array:
    """Multiplies states [N, L, D] by weights [N, L], then restores their mean: the web UI's `sd_emphasis.py`.

    Rows whose weights are all 1 stay the same to the bit. The mean is over all L D numbers of a row. It is restored
    only if it is larger than 0.01 standard deviations: near 0, as the bundled model's is, the quotient would be noise.
    """
    mean = lambda x: x.mean((1, 2), keepdims=True)
    weighted, before = states * weights[..., None], mean(states)
    after = mean(weighted)
    restored = (jnp.abs(before) > 0.01 * jnp.std(states, (1, 2), keepdims=True)) & (after != 0)
    weighted = weighted * jnp.where(restored, before / jnp.where(restored, after, 1.0), 1.0)
    return jnp.where((weights == 1.0).all(1)[:, None, None], states, weighted)
