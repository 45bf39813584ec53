"""Prompts -> Cond: token ids, the text tower's states, and the weights of words."""

from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int32

from sdjax.checks import is_whole
from sdjax.errors import SdjaxError, log
from sdjax.families.table import prompt_of
from sdjax.model.functions import pooled_text, text_states
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
    rows = lambda a: a.reshape(-1, config.length)
    states = emphasise(text_states(params, rows(tokens.ids), config, dtype, vectors), rows(tokens.weights))
    b, p, k, length = tokens.ids.shape
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
    """Returns the text tower's config without its last clip_skip - 1 layers, and the vectors of sd.embeddings."""
    if sd.config.text is None:
        raise SdjaxError(f"prompt: {sd.config.name} takes no text, give {prompt_of(sd.config)}")
    vectors = list(sd.embeddings.values())
    return skipping(sd.config.text, clip_skip), np.concatenate(vectors) if vectors else None


def skipping(config: TextConfig, clip_skip: int) -> TextConfig:
    """Returns a tower's config whose states come from clip_skip - 1 layers earlier. SdjaxError: there is none."""
    back = getattr(config, "back", 0)
    if not is_whole(clip_skip, 1, config.layers - back):
        raise SdjaxError(f"clip_skip {clip_skip!r}: a whole number from 1, the last layer, to {config.layers - back}")
    if back:
        return replace(config, back=back + int(clip_skip) - 1)
    return replace(config, layers=config.layers + 1 - int(clip_skip))


def encode_prompt(
    sd: StableDiffusion,
    prompts: str | Sequence[str],
    clip_skip: int = 1,
    syntax: str = "a1111",
    prompt_2: str | Sequence[str] | None = None,
    original_size: tuple[int, int] | None = None,
    crop: tuple[int, int] = (0, 0),
    target_size: tuple[int, int] | None = None,
) -> Cond:
    """Prompts -> Cond, whose context is float32 [B, L, D]: the text tower's last states after its final LayerNorm.

    Of SDXL the context is [B, L, 2048], both towers' states before their last layers side by side, and vector [B, 2816]
    holds the second tower's pooled embedding and three sizes.
    If a prompt composes several with AND, context is [B, P, L, D] and mix [B, P] holds their weights; guidance takes
    such a Cond, and `predict` does not.
    clip_skip: 1 is the last layer, 2 the last but one, and so on; the final LayerNorm always follows.
    syntax: "a1111" is the web UI's (see text/prompt.py), with L = config.text.length times the number of chunks of the
        longest prompt. In "plain" no character is special, and a prompt that is too long is cut.
    prompt_2: for SDXL's second tower; None: the same prompts.
    original_size, crop, target_size: of SDXL, (height, width), (top, left) and (height, width) in pixels; None: the
        model's own size.
    What is cut or not understood is logged as a warning to "sdjax". SdjaxError: an unknown syntax, no such layer.
    """
    config, vectors = text_tower_of(sd, clip_skip)
    if sd.config.text_2 is not None:
        sizes = original_size, crop, target_size
        return encode_both(sd, read_both(sd, prompts, prompt_2, syntax), sizes_of(sd, *sizes), clip_skip)
    for name, value in (("prompt_2", prompt_2), ("original_size", original_size), ("target_size", target_size)):
        if value is not None:
            raise SdjaxError(f"{name} {value!r}: {sd.config.name} takes none, it has one text tower")
    found = read_prompts(sd, prompts, syntax)
    if not found:
        return Cond(jnp.zeros((0, config.length, config.width)))
    return text_context(sd.params["text"], prompt.stack(found, config), config, sd.dtype, vectors)


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


# ---- two towers


Both = list[tuple[prompt.Prompt, prompt.Prompt]]  # what each tower is given, of each picture


def read_both(
    sd: StableDiffusion,
    prompts: str | Sequence[str],
    prompts_2: str | Sequence[str] | None = None,
    syntax: str = "a1111",
    composed: bool = True,
) -> Both:
    """Returns prompts as both of SDXL's towers get them. prompts_2: the second tower's; None: the same.

    SdjaxError: another number of prompts for the second tower.
    """
    first = read_prompts(sd, prompts, syntax, composed)
    if prompts_2 is None:
        return [(one, one) for one in first]
    second = read_prompts(sd, prompts_2, syntax, composed)
    if len(second) != len(first):
        raise SdjaxError(f"prompt_2: {len(second)} prompts, the first tower has {len(first)}")
    return list(zip(first, second, strict=True))


def encode_both(
    sd: StableDiffusion, both: Both, sizes: np.ndarray, clip_skip: int = 1, shape: tuple[int, int] | None = None
) -> Cond:
    """Returns the Cond of prompts that `read_both` read, of a model of two text towers.

    sizes: [6] or [B, 6], see `sizes_of`.
    shape: the number of composed parts and of chunks; None: the most that a prompt has.
    """
    most = lambda place: max(part.shape[place] for pair in both for part in pair)
    shape, tokens, contexts = shape or (most(0), most(1)), None, []
    vectors = np.concatenate([*sd.embeddings.values()]) if sd.embeddings else None
    for part, name in enumerate(("text", "text_2")):
        config = skipping(getattr(sd.config, name), clip_skip)
        tokens = prompt.stack([pair[part] for pair in both], config, shape)
        contexts.append(text_context(sd.params[name], tokens, config, sd.dtype, None if part else vectors))
    first = tokens.ids[:, :, 0]  # of each part's first chunk
    pooled = pooled_text(sd.params["text_2"], first.reshape(-1, first.shape[-1]), sd.config.text_2, sd.dtype)
    numbers = np.broadcast_to(size_features(sizes), (len(both), 6 * FEATURES))
    numbers = np.repeat(numbers, first.shape[1], axis=0)
    vector = jnp.concatenate([pooled, jnp.asarray(numbers)], axis=1)
    context = jnp.concatenate([cond.context for cond in contexts], axis=-1)
    if context.ndim == 4:
        vector = vector.reshape(*context.shape[:2], -1)
    return contexts[0]._replace(context=context, vector=vector)


FEATURES = 256  # of each size


def sizes_of(
    sd: StableDiffusion,
    original_size: tuple[int, int] | None = None,
    crop: tuple[int, int] = (0, 0),
    target_size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Returns the six numbers that SDXL is told of a picture's sizes, float64 [6].

    They are (height, width) of the original, (top, left) of the crop, (height, width) of the target; None is the
    model's own size. SdjaxError: no pair of whole numbers.
    """
    own, found = (sd.config.size, sd.config.size), []
    for name, pair, least in (("original_size", original_size, 1), ("crop", crop, 0), ("target_size", target_size, 1)):
        pair = own if pair is None else pair
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(is_whole(side, least) for side in pair):
            raise SdjaxError(f"{name} {pair!r}: two whole numbers from {least} on")
        found += pair
    return np.array(found, np.float64)


def size_features(sizes: np.ndarray) -> np.ndarray:
    """Returns numbers [..., 6] as features, float32 [..., 6 FEATURES]: cosines, then sines, of frequencies 1 to 1e-4.

    They are computed in float64: float32 sinusoids of 1024 are 5e-5 off.
    """
    half = FEATURES // 2
    angles = np.asarray(sizes, np.float64)[..., None] * np.exp(-np.log(10000.0) * np.arange(half) / half)
    found = np.concatenate([np.cos(angles), np.sin(angles)], -1)
    return found.reshape(*found.shape[:-2], -1).astype(np.float32)
