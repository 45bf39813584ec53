"""The two sides of guidance, what a picture is asked for and what to keep away from: texts, or Conds of the caller's.

A side is a Prompt or Prompts when it is read, and Tokens or a Cond when it is drawn with.
"""

from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.conditioning.null import null_cond
from sdjax.conditioning.text import encode_both, read_both, read_prompts, sizes_of, text_context, text_tower_of
from sdjax.errors import SdjaxError
from sdjax.families.table import prompt_of
from sdjax.model.value import StableDiffusion
from sdjax.networks.clip.config import TextConfig
from sdjax.tasks.request import Request
from sdjax.text.prompt import Prompt, Tokens, group, stack
from sdjax.types import Array, Cond, Params


class Sides(NamedTuple):
    """Both sides of a request, read."""

    prompts: list[Prompt] | Cond  # of B images
    negative: Prompt | Cond  # of one image, or of B


ONE = np.array([0])


def read_sides(sd: StableDiffusion, request: Request) -> Sides:
    """Reads both sides of a request, each text once, and logs what is cut or not understood in it.

    SdjaxError: a Cond that this model does not take.
    """
    syntax, prompts, negative = request.options.syntax, request.prompts, request.negative
    if sd.config.text is None:
        for name, value in (("prompt", prompts), ("negative_prompt", negative)):
            if not isinstance(value, Cond) and (name == "prompt" or value):
                raise SdjaxError(f"{name} {value!r}: {sd.config.name} takes no text, give {prompt_of(sd.config)}")
        if not isinstance(negative, Cond):
            unguided = bool(np.all(request.scales == 1))
            negative = some(prompts._replace(concat=None), ONE) if unguided else null_cond(sd)
    elif sd.config.text_2 is not None:
        return both_towers(sd, request)
    elif sd.config.unet.cross:
        prompts, negative = (with_context(sd, side) for side in (prompts, negative))
    if isinstance(negative, str):
        (negative,) = read_prompts(sd, negative, syntax, composed=False)
    if not isinstance(prompts, Cond):
        unique = [*dict.fromkeys(prompts)]
        found = dict(zip(unique, read_prompts(sd, unique, syntax), strict=True))
        prompts = [found[prompt] for prompt in prompts]
    return Sides(prompts, negative)


def both_towers(sd: StableDiffusion, request: Request) -> Sides:
    """Reads and encodes both sides for a model of two text towers, to one number of chunks.

    An empty negative prompt means zeros, of the context and of the pooled embedding, where the model says so.
    """
    options, factor = request.options, sd.config.vae.factor
    size = tuple(side * factor for side in request.shape[:2])
    sizes = sizes_of(sd, size, (0, 0), size)
    given, negative = request.prompts, request.negative
    read = lambda texts, composed: read_both(sd, texts, None, options.syntax, composed)
    unique = [*dict.fromkeys(given)] if isinstance(given, list) else []
    asked = dict(zip(unique, read(unique, True), strict=True)) if unique else {}
    away = read(negative, False) if isinstance(negative, str) else []
    found = [*asked.values(), *away]
    chunks = max((part.shape[1] for pair in found for part in pair), default=1)
    for name, side in (("prompt", given), ("negative_prompt", negative)):
        if isinstance(side, Cond) and found:
            length = np.shape(side.context)[-2] // sd.config.text.length
            if length < chunks:
                raise SdjaxError(f"{name}: its context has {length} chunks, the text of the other side takes {chunks}")
            chunks = length
    encode = lambda pairs: encode_both(
        sd,
        pairs,
        sizes,
        options.clip_skip,
        (max(part.shape[0] for pair in pairs for part in pair), chunks),
    )
    if asked:
        every = encode(list(asked.values()))
        places = np.array([unique.index(text) for text in given])
        given = jax.tree.map(lambda leaf: np.asarray(leaf)[places], every)
    if away:
        zero, negative = sd.config.zero_negative and negative == "", jax.tree.map(np.asarray, encode(away))
        if zero:
            pooled = sd.config.text_2.projection
            vector = np.concatenate([np.zeros((1, pooled), np.float32), negative.vector[:, pooled:]], 1)
            negative = negative._replace(context=np.zeros_like(negative.context), vector=vector)
    return Sides(given, negative)


def with_context(sd: StableDiffusion, side: Any) -> Any:
    """Returns a side as it is, but a Cond without a context with the empty prompt's."""
    if not isinstance(side, Cond) or side.context is not None:
        return side
    context = np.asarray(null_cond(sd).context)
    return side._replace(context=np.broadcast_to(context, (len(jax.tree.leaves(side)[0]), *context.shape[1:])))


def grouped(sd: StableDiffusion, request: Request, sides: Sides) -> list[tuple[np.ndarray, Any, Any]]:
    """Returns the images in groups that go through the model together: (their places, what is asked, the negative).

    Texts of one shape go together. A Cond has one shape, and a text beside it gets the same number of positions.
    SdjaxError: it cannot.
    """
    prompts, negative = sides
    places = np.arange(request.count)
    if isinstance(prompts, Cond) and isinstance(negative, Cond):
        return [(places, prompts, negative)]
    text = text_tower_of(sd, request.options.clip_skip)[0]
    if isinstance(prompts, list) and isinstance(negative, Prompt):
        return group(prompts, negative, text)
    given = "prompt" if isinstance(prompts, Cond) else "negative_prompt"
    other = prompts if isinstance(prompts, Cond) else negative
    length = 0 if other.context is None else np.shape(other.context)[-2]
    count = length // text.length
    texts = [negative] if isinstance(prompts, Cond) else prompts
    most = max(chunks for _, chunks in (prompt.shape for prompt in texts))
    if length % text.length or not most <= count:
        raise SdjaxError(
            f"{given}: its context has {length} positions, the text of the other side takes {most} times "
            f"{text.length}; encode both with sdjax.encode_prompt, to the same number"
        )
    shape = max(parts for parts, _ in (prompt.shape for prompt in texts)), count
    tokens = stack(texts, text, shape)
    return [(places, prompts, tokens) if isinstance(prompts, Cond) else (places, tokens, negative)]


def some(side: Tokens | Cond, places: np.ndarray) -> Tokens | Cond:
    """Returns the images `places` of a side; a side of one image is for all of them."""
    leaves = jax.tree.leaves(side)
    return side if not leaves or len(leaves[0]) == 1 else jax.tree.map(itemgetter(places), side)


def encoded(
    params: Params, side: Tokens | Cond, text: TextConfig, dtype: Any, vectors: Array | None, count: int
) -> Cond:
    """Returns a side as the Cond of `count` images."""
    cond = side if isinstance(side, Cond) else text_context(params["text"], side, text, dtype, vectors)
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape[1:])), cond)
