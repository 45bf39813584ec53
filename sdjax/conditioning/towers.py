"""Prompts -> Cond, for models of one text tower or several, and of a vector of pooled text and sizes (SDXL)."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from sdjax.conditioning.sizes import size_features, sizes_of, takes_sizes
from sdjax.conditioning.text import as_context, embedded, read_prompts, skipping, text_context, text_tower_of
from sdjax.errors import SdjaxError, in_short
from sdjax.families.table import family_of
from sdjax.model.functions import states_and_pooled, text_states
from sdjax.model.value import StableDiffusion
from sdjax.text import prompt
from sdjax.types import Cond


def encode_prompt(
    sd: StableDiffusion,
    prompts: str | Sequence[str],
    clip_skip: int = 1,
    syntax: str = "a1111",
    prompt_2: str | Sequence[str] | None = None,
    original_size: tuple[int, int] | None = None,
    crop: tuple[int, int] = (0, 0),
    target_size: tuple[int, int] | None = None,
    aesthetic_score: float | None = None,
) -> Cond:
    """Prompts -> Cond, whose context is float32 [B, L, D]: the text tower's last states after its final LayerNorm.

    Of SDXL the context is [B, L, 2048], both towers' states before their last layers side by side, and vector [B, 2816]
    holds the second tower's pooled embedding and three sizes. Of its refiner they are [B, L, 1280], of the second tower
    alone, and [B, 2560]: the pooled embedding, two sizes and an aesthetic score.
    If a prompt composes several with AND, context is [B, P, L, D] and mix [B, P] holds their weights; guidance takes
    such a Cond, and `predict` does not.
    clip_skip: 1 is the last layer, 2 the last but one, and so on; the final LayerNorm always follows. Of SDXL 1 is the
        last but one, which is its own, and no LayerNorm follows.
    syntax: "a1111" is the web UI's (see text/prompt.py), with L = config.text.length times the number of chunks of the
        longest prompt. In "plain" no character is special, and a prompt that is too long is cut.
    prompt_2: for SDXL's second tower; None: the same prompts.
    original_size, crop, target_size: of SDXL, (height, width), (top, left) and (height, width) in pixels; None: the
        model's own size. Its refiner takes no target_size.
    aesthetic_score: of SDXL's refiner; None: 6.0.
    What is cut or not understood is logged as a warning to "sdjax". SdjaxError: an unknown syntax, no such layer.
    """
    config, vectors = text_tower_of(sd, clip_skip)
    if prompt_2 is not None and sd.config.text_2 is None:
        raise SdjaxError(f"prompt_2 {prompt_2!r}: {sd.config.name} has no second text tower")
    if takes_sizes(sd.config):
        sizes = sizes_of(sd.config, original_size, crop, target_size, aesthetic_score)
        found = read_towers(sd, prompts, prompt_2, syntax)
        return encode_towers(sd, found, sizes, clip_skip)
    for name, value in (
        ("original_size", original_size),
        ("crop", None if isinstance(crop, (tuple, list)) and (*crop,) == (0, 0) else crop),
        ("target_size", target_size),
        ("aesthetic_score", aesthetic_score),
    ):
        if value is not None:
            raise SdjaxError(f"{name} {in_short(value)}: {sd.config.name} takes none, SDXL does")
    found = read_prompts(sd, prompts, syntax)
    if not found:
        return Cond(jnp.zeros((0, config.length, config.width)))
    return text_context(sd.params["text"], prompt.stack(found, config), config, sd.dtype, vectors)


Read = tuple[prompt.Prompt, ...]  # what each tower of a model is given, of one picture


def shape_of(read: Read) -> tuple[int, int]:
    """Returns the most composed parts and the most chunks that a tower is given."""
    return tuple(max(sizes) for sizes in zip(*(one.shape for one in read), strict=True))


def read_towers(
    sd: StableDiffusion,
    prompts: str | Sequence[str],
    prompts_2: str | Sequence[str] | None = None,
    syntax: str = "a1111",
    composed: bool = True,
) -> list[Read]:
    """Returns prompts as each text tower of a model gets them.

    prompts_2: the second tower's; None: the same.
    SdjaxError: another number of prompts for the second tower.
    """
    first = read_prompts(sd, prompts, syntax, composed)
    if sd.config.text_2 is None:
        return [(one,) for one in first]
    if prompts_2 is None:
        return [(one, one) for one in first]
    second = read_prompts(sd, prompts_2, syntax, composed)
    if len(second) != len(first):
        raise SdjaxError(f"prompt_2: {len(second)} prompts, the first tower has {len(first)}")
    return list(zip(first, second, strict=True))


def encode_towers(
    sd: StableDiffusion,
    found: Sequence[Read],
    sizes: np.ndarray,
    clip_skip: int = 1,
    shape: tuple[int, int] | None = None,
) -> Cond:
    """Returns the Cond of prompts that `read_towers` read, of a model that takes sizes.

    The context is the towers' states side by side; the vector is the last tower's pooled embedding of the first chunk,
    which no weights change, and then the sizes.
    sizes: [N] or [B, N], see `sizes_of`.
    shape: the number of composed parts and of chunks; None: the most that a prompt has.
    """
    if not found:
        towers = [getattr(sd.config, tower.part) for tower in family_of(sd.config).towers]
        width = sum(tower.width for tower in towers)
        return Cond(jnp.zeros((0, towers[0].length, width)), vector=jnp.zeros((0, sd.config.unet.vector)))
    shape = shape or tuple(max(sizes) for sizes in zip(*map(shape_of, found), strict=True))
    contexts, pooled, vectors = [], None, embedded(sd)
    for place, tower in enumerate(family_of(sd.config).towers):
        config, params = skipping(getattr(sd.config, tower.part), clip_skip), sd.params[tower.part]
        tokens = prompt.stack([read[place] for read in found], config, shape)
        rows, own = tokens.ids.reshape(-1, config.length), vectors.get(tower.part)
        if config.projection is None:
            states = text_states(params, rows, config, sd.dtype, own)
        else:
            states, pooled = states_and_pooled(params, rows, config, sd.dtype, own)
            pooled = pooled.reshape(-1, shape[1], config.projection)[:, 0]  # of each part's first chunk
        contexts.append(as_context(states, tokens))
    numbers = size_features(sizes)
    numbers = np.repeat(np.broadcast_to(numbers, (len(found), numbers.shape[-1])), shape[0], axis=0)
    vector = jnp.concatenate([pooled, jnp.asarray(numbers)], axis=1)
    context = jnp.concatenate([cond.context for cond in contexts], axis=-1)
    if context.ndim == 4:
        vector = vector.reshape(*context.shape[:2], -1)
    return contexts[0]._replace(context=context, vector=vector)
