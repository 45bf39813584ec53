"""Splits a request into chunks: images that one model draws together."""

from collections.abc import Iterator, Sequence
from functools import reduce
from operator import itemgetter
from typing import NamedTuple

import jax
import numpy as np

from sdjax.adapters.lora import forget, merged_for
from sdjax.devices.placement import chunk_size
from sdjax.model.value import StableDiffusion
from sdjax.tasks.request import Request, some_images
from sdjax.tasks.sides import Sides, grouped, some
from sdjax.text.prompt import Tokens
from sdjax.types import Cond


class Work(NamedTuple):
    """The part of a request that one chunk draws."""

    places: np.ndarray  # [B] the images' places in the request; after `length` the last one repeats, to fill up
    length: int
    sides: list[tuple[Tokens | Cond, Tokens | Cond]]  # for each model: what is asked, the negative (of one or of all)
    devices: list
    sd: StableDiffusion  # the model, with the LoRAs of these images' prompts


def plan_work(sd: StableDiffusion, request: Request, sides: Sides, made: bool = True) -> list[Work]:
    """Splits a request into chunks of images that go through together, as many at a time as the devices hold.

    made: False leaves the sides out, for a caller that counts the chunks.
    """
    return [*each_work(sd, request, sides, made)]


def each_work(sd: StableDiffusion, request: Request, sides: Sides, made: bool = True) -> Iterator[Work]:
    """Yields the chunks of `plan_work`. Of a request whose prompts name LoRAs each model is merged when its first chunk
    is asked for, so that memory holds one at a time."""
    if not sides.shares:
        if made:
            forget(sd)
        yield from chunks_of_model(sd, request, sides, made)
    for share in sides.shares:
        model = merged_for(sd, share.networks, request.options.lora_scale) if made else sd
        for part in chunks_of_model(model, some_images(request, share.places), share.sides, made):
            yield part._replace(places=share.places[part.places])


def chunks_of_model(sd: StableDiffusion, request: Request, sides: Sides, made: bool) -> Iterator[Work]:
    """Yields the chunks of a request that one model draws."""
    groups = [[group] for group in grouped(sd, request, sides)]
    if sides.refiner is not None:
        others = grouped(request.options.refiner, *sides.refiner)
        groups = [[group, other] for (group,) in groups for other in others]
    for models in groups:
        inside = reduce(np.intersect1d, [group.places for group in models])
        if not len(inside):
            continue
        both = [group.make() for group in models] if made else []
        size, devices = at_once(len(inside), request.shape, models[0].parts)
        for first in range(0, len(inside), size):
            chosen = inside[np.minimum(np.arange(first, first + size), len(inside) - 1)]
            parts = [chosen_sides(group.places, one, chosen) for group, one in zip(models, both, strict=False)]
            yield Work(chosen, min(size, len(inside) - first), parts, devices, sd)


def at_once(count: int, sides: Sequence[int], parts: int) -> tuple[int, list]:
    """Returns how many of `count` images go through at once, and on which devices.

    sides: of their latents. parts: prompts that AND composes; each is a call of the model, and the negative is one.
    """
    return chunk_size(count, sides[0] * sides[1] * (1 + parts) // 2)


def chosen_sides(places: np.ndarray, sides: tuple, chosen: np.ndarray) -> tuple[Tokens | Cond, Tokens | Cond]:
    """Returns both sides of the images `chosen` of a group, whose images are `places`."""
    rows = np.searchsorted(places, chosen)
    return jax.tree.map(itemgetter(rows), sides[0]), some(sides[1], rows)
