"""The two sides of guidance, what a picture is asked for and what to keep away from: texts, or Conds of the caller's.

A side is a Prompt or Prompts when it is read, and Tokens or a Cond when it is drawn with.
"""

from collections.abc import Callable
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.adapters.lora import with_words
from sdjax.conditioning.null import null_cond
from sdjax.conditioning.sizes import pooled_width, takes_sizes
from sdjax.conditioning.text import read_prompts, text_context, text_tower_of
from sdjax.conditioning.towers import Read, encode_towers, read_towers, shape_of
from sdjax.errors import SdjaxError, log
from sdjax.families.config import Config
from sdjax.families.table import prompt_of
from sdjax.model.value import StableDiffusion
from sdjax.networks.clip.config import TextConfig
from sdjax.tasks.networks import Networks
from sdjax.tasks.request import Request, refiner_request, some_images
from sdjax.tasks.request_sdxl import sizes_asked
from sdjax.text.prompt import Prompt, Tokens, stack
from sdjax.types import Array, Cond, Params

Asked = list[Prompt] | list[Read] | Cond  # of B images; a Read is what several towers are given


class Sides(NamedTuple):
    """Both sides of a request, read."""

    prompts: Asked
    negative: Prompt | Read | list[Prompt] | list[Read] | Cond  # of one image, or of B
    refiner: "tuple[Request, Sides] | None" = None  # what the refiner is asked for, and both sides of that
    shares: "tuple[Share, ...]" = ()  # of prompts that name LoRAs: the images in groups of the same LoRAs


class Share(NamedTuple):
    """The images of a request whose prompts name the same LoRAs."""

    networks: Networks
    places: np.ndarray  # in the request
    sides: Sides


ONE = np.array([0])


def read_sides(sd: StableDiffusion, request: Request) -> Sides:
    """Reads both sides of a request, each text once, and logs what is cut or not understood in it.

    SdjaxError: a Cond that this model does not take.
    """
    remark(sd.config, request)
    other = refiner_request(request)
    if request.networks is None:
        return read_both(sd, request, other)
    shares = []
    for networks in dict.fromkeys(request.networks):
        places = np.flatnonzero([one == networks for one in request.networks])
        own = None if other is None else some_images(other, places)
        sides = read_both(with_words(sd, networks), some_images(request, places), own)
        shares.append(Share(networks, places, sides))
    return Sides(request.prompts, request.negative, None, tuple(shares))


def read_both(sd: StableDiffusion, request: Request, other: Request | None) -> Sides:
    """Returns both sides of a request and, if there is a refiner, of what that is asked for, `other`."""
    found = read_own(sd, request)
    return found if other is None else found._replace(refiner=(other, read_own(request.options.refiner, other)))


def remark(config: Config, request: Request) -> None:
    """Logs a line for each option that means something else, or nothing, to this model."""
    steps, scales = request.options.steps, request.scales
    if config.few_steps is not None and steps > config.few_steps:
        many = "1 step" if config.few_steps == 1 else f"at most {config.few_steps} steps"
        log.warning("steps %d: %s is distilled for %s", steps, config.name, many)
    if config.unet.guidance and request.negative != "":
        log.warning("negative_prompt: has no effect, %s is never called without the prompt", config.name)
    elif config.few_steps is not None and not config.unet.guidance and np.any(scales < 1):
        log.warning(
            "guidance_scale %g: 1 is the prompt alone for %s, which model cards call 0.0", scales.min(), config.name
        )
    elif not config.unet.guidance and config.null and not np.any(scales):
        own = config.guidance_scale
        others = "1 is the prompt alone" + (f", {own:g} {config.name}'s own" if own != 1 else "")
        log.warning("guidance_scale 0: what is asked for has no effect; %s", others)


def read_own(sd: StableDiffusion, request: Request) -> Sides:
    """Returns both sides of a request as a model reads them, without its refiner's."""
    syntax, prompts, negative = request.options.syntax, request.prompts, request.negative
    if sd.config.text is None:
        for name, value in (("prompt", prompts), ("negative_prompt", negative)):
            if not isinstance(value, Cond) and (name == "prompt" or value):
                raise SdjaxError(f"{name} {value!r}: {sd.config.name} takes no text, give {prompt_of(sd.config)}")
        if not isinstance(negative, Cond):
            unguided = bool(np.all(request.scales == 1))
            negative = some(prompts._replace(concat=None), ONE) if unguided else null_cond(sd)
    elif takes_sizes(sd.config):
        return read_with_sizes(sd, request)
    elif sd.config.unet.cross:
        prompts, negative = (with_context(sd, side) for side in (prompts, negative))
    if not isinstance(negative, Cond):
        negative = each_read(negative, lambda texts: read_prompts(sd, texts, syntax, composed=False))
    if not isinstance(prompts, Cond):
        unique = [*dict.fromkeys(prompts)]
        found = dict(zip(unique, read_prompts(sd, unique, syntax), strict=True))
        prompts = [found[prompt] for prompt in prompts]
    return Sides(prompts, negative)


def read_with_sizes(sd: StableDiffusion, request: Request) -> Sides:
    """Returns both sides of a request as the towers of a model that takes sizes read them."""
    syntax, prompts, negative = request.options.syntax, request.prompts, request.negative
    if not isinstance(negative, Cond):
        second = request.options.negative_prompt_2 if sd.config.text_2 else None
        negative = each_read(
            negative, lambda texts: read_towers(sd, texts, second and [second] * len(texts), syntax, False)
        )
    if not isinstance(prompts, Cond):
        pairs = [*zip(prompts, request.prompts_2 or prompts, strict=True)]
        unique = [*dict.fromkeys(pairs)]
        second = request.prompts_2 and [pair[1] for pair in unique]
        found = dict(zip(unique, read_towers(sd, [pair[0] for pair in unique], second, syntax), strict=True))
        prompts = [found[pair] for pair in pairs]
    return Sides(prompts, negative)


def each_read(negative: str | list[str], read: Callable[[list[str]], list]) -> Any:
    """Returns negative prompts as read(texts) reads them: one for all images, or a list with one for each."""
    texts = [negative] if isinstance(negative, str) else [*dict.fromkeys(negative)]
    found = dict(zip(texts, read(texts), strict=True))
    return found[negative] if isinstance(negative, str) else [found[text] for text in negative]


def with_context(sd: StableDiffusion, side: Any) -> Any:
    """Returns a side as it is, but a Cond without a context with the empty prompt's."""
    if not isinstance(side, Cond) or side.context is not None:
        return side
    context = np.asarray(null_cond(sd).context)
    return side._replace(context=np.broadcast_to(context, (len(jax.tree.leaves(side)[0]), *context.shape[1:])))


class Group(NamedTuple):
    """Images that go through a model together."""

    places: np.ndarray  # in the request
    parts: int  # prompts that AND composes
    chunks: int  # of the longest text
    make: Callable[[], tuple[Tokens | Cond, Tokens | Cond]]  # what is asked, one for each; the negative, of one or each


def grouped(sd: StableDiffusion, request: Request, sides: Sides) -> list[Group]:
    """Returns the images in groups. Texts of one shape go together, and other texts in the request do not change that.

    A Cond has one shape, and a text beside it gets the same number of positions. SdjaxError: it cannot.
    """
    prompts, negative = sides.prompts, sides.negative
    places = np.arange(request.count)
    parts = 1
    if isinstance(prompts, Cond):
        parts = 1 if prompts.mix is None else np.shape(prompts.mix)[1]
    if isinstance(prompts, Cond) and isinstance(negative, Cond):
        return [Group(places, parts, 1, lambda: (prompts, negative))]
    with_sizes = takes_sizes(sd.config)
    shape = shape_of if with_sizes else lambda prompt: prompt.shape
    each = negative if isinstance(negative, list) else [] if isinstance(negative, Cond) else [negative]
    chunks = np.broadcast_to([shape(one)[1] for one in each] or [1], request.count)
    given = [name for name, side in (("prompt", prompts), ("negative_prompt", negative)) if isinstance(side, Cond)]
    if isinstance(prompts, Cond):
        shapes = [(parts, max(chunks))]
    else:
        shapes = [(p, max(k, least)) for (p, k), least in zip(map(shape, prompts), map(int, chunks), strict=True)]
    if given:
        fixed = chunks_of(sd, given[0], prompts if isinstance(prompts, Cond) else negative, max(k for _, k in shapes))
        shapes = [(max(p for p, _ in shapes), fixed)] * request.count
    if sd.config.unet.guidance and any(p > 1 for p, _ in shapes):
        raise SdjaxError(f"prompt: AND composes prompts in guidance, which {sd.config.name} has inside its UNet")
    texts = [request.negative] if isinstance(request.negative, str) else request.negative
    empty = (
        set() if isinstance(negative, Cond) else {id(one) for one, text in zip(each, texts, strict=True) if not text}
    )
    encode = encoder(sd, request, empty) if with_sizes else stacker(sd, request)

    def group(found: tuple[int, int]) -> Group:
        inside = np.flatnonzero([one == found for one in shapes])
        asked = lambda: prompts if given == ["prompt"] else encode([prompts[i] for i in inside], found, False)
        others = [each[i] for i in inside] if len(each) > 1 else each
        away = lambda: negative if given == ["negative_prompt"] else encode(others, (1, found[1]), True)
        return Group(inside, *found, lambda: (asked(), away()))

    return [group(found) for found in dict.fromkeys(shapes)]


def chunks_of(sd: StableDiffusion, name: str, cond: Cond, most: int) -> int:
    """Returns how many chunks the context of a Cond is of, where the texts of the other side take `most`.

    SdjaxError: fewer, or no whole number.
    """
    length, one = 0 if cond.context is None else np.shape(cond.context)[-2], sd.config.text.length
    if length % one or most > length // one:
        raise SdjaxError(
            f"{name}: its context has {length} positions, the text of the other side takes {most} times "
            f"{one}; encode both with sdjax.encode_prompt, to the same number"
        )
    return length // one


def stacker(sd: StableDiffusion, request: Request) -> Callable[[list[Prompt], tuple[int, int], bool], Tokens]:
    """Returns the function that makes Tokens of prompts, which the walk encodes."""
    text = text_tower_of(sd, request.options.clip_skip)[0]
    return lambda prompts, shape, negative: stack(prompts, text, shape)


def encoder(
    sd: StableDiffusion, request: Request, empty: set[int]
) -> Callable[[list[Read], tuple[int, int], bool], Cond]:
    """Returns the function that makes the Cond of prompts, for a model that takes sizes: host arrays.

    empty: the ids of what was read of empty negative prompts.
    An empty negative prompt means zeros, of the context and of the pooled embedding, where zero_negative or the model
    says so.
    """
    options = request.options
    zero = sd.config.zero_negative if options.zero_negative is None else options.zero_negative
    zero = zero and not options.negative_prompt_2

    def encode(found: list[Read], shape: tuple[int, int], negative: bool) -> Cond:
        unique = [*{id(read): read for read in found}.values()]
        sizes = sizes_asked(sd.config, options, request.shape, negative)
        cond = jax.tree.map(np.asarray, encode_towers(sd, unique, sizes, options.clip_skip, shape))
        order = {id(read): place for place, read in enumerate(unique)}
        cond = jax.tree.map(itemgetter(np.array([order[id(read)] for read in found])), cond)
        if negative and zero:
            said = np.array([id(read) not in empty for read in found])
            kept = said[:, None] | (np.arange(cond.vector.shape[1]) >= pooled_width(sd.config))
            return cond._replace(
                context=np.where(said[:, None, None], cond.context, 0), vector=np.where(kept, cond.vector, 0)
            )
        return cond

    return encode


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
