"""Batches of the diffusion loss from cached latents and text states, and the pictures held out for validation."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sdjax.conditioning.sizes import size_features
from sdjax.data.order import Chosen
from sdjax.data.source import Pictures
from sdjax.devices.processes import local_part
from sdjax.errors import SdjaxError
from sdjax.families.config import Config
from sdjax.model.value import StableDiffusion
from sdjax.training.beside import Given
from sdjax.training.cache import cached_latents, cached_states, split_states
from sdjax.training.conditions import CONDITIONS, reads_captions
from sdjax.training.sizes import is_base, sizes_given
from sdjax.types import Batch


class Table:
    """The latents and text states of all rows of a source, computed once, and what else their conditions need.

    condition: what the model is trained on, a name in CONDITIONS.
    given: what batches hold besides; None: what the condition says.
    states: are the captions' states computed here? None: if the condition has captions. Otherwise the loss reads the
        captions, and `given` gives their tokens.
    """

    def __init__(
        self,
        sd: StableDiffusion,
        source: Pictures,
        folder: Path,
        views: int = 1,
        condition: str = "text",
        given: Given | None = None,
        states: bool | None = None,
    ):
        self.latents, self.files = cached_latents(sd, source, folder, views), source.files
        self.states = None
        if reads_captions(condition, sd.config) if states is None else states:
            self.states, self.caption_of = cached_states(sd, source.texts, folder)
        self.given, self.config = given or CONDITIONS[condition].given(sd, source, views), sd.config
        self.sizes = sizes_given(source, folder, views) if is_base(sd.config) else None

    def batch(self, chosen: Chosen, index: np.ndarray) -> Batch:
        """Returns the Batch of the chosen rows.

        index: uint32 [B], the examples' numbers in the global sequence; their random numbers depend on them.
        """
        moments, rows = self.latents(chosen)
        context, vector = None if self.states is None else self.states[self.caption_of[rows]], None
        if self.sizes is not None:
            vector = size_features(self.sizes(rows, chosen))
            if self.states is not None:
                context, pooled = split_states(self.config, context)
                vector = np.concatenate([pooled, vector], axis=1, dtype=np.float32)
        return Batch(moments, context, index, None if self.given is None else self.given(rows, chosen), vector)


def hold_out(
    validation: str | None, seed: int, source: Pictures, data: Any
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Returns the rows of each group to train on, and the rows of each group that are held out.

    validation: a number as text holds out so many random pictures; None or a folder's name holds out none.
    seed: of the choice. data: the data's name, for the error.
    SdjaxError: a number that does not lie between 1 and the number of pictures less 1.
    """
    groups, count, held_out = [np.asarray(rows) for rows in source.groups], len(source), np.array([], int)
    if validation is not None and validation.lstrip("-").isdecimal():
        number = int(validation)
        if not 1 <= number < count:
            raise SdjaxError(
                f"validation {number}: expected a folder or a number from 1 to {count - 1}, of the "
                f"{count} pictures in {data}"
            )
        held_out = np.random.default_rng(seed).permutation(count)[:number]
    return tuple([rows[np.isin(rows, held_out, invert=invert)] for rows in groups] for invert in (True, False))


def validation_batches(batch_size: int, table: Table, groups: list[np.ndarray]) -> Iterator[tuple[Batch, np.ndarray]]:
    """Yields this process' part of (batch, weights [B]) over all rows.

    The last batch of each group is padded with examples of weight 0.
    """
    mine, number = local_part(batch_size), 0
    for group, rows in enumerate(groups):
        for first in range(0, len(rows), batch_size):
            place = np.arange(first, first + batch_size)[mine]
            chosen = Chosen(rows[np.minimum(place, len(rows) - 1)], np.zeros(len(place), int), group)
            yield table.batch(chosen, (number + place).astype(np.uint32)), np.float32(place < len(rows))
        number += len(rows)


def batch_shapes(config: Config, count: int, condition: str = "text", live: bool = False) -> Batch:
    """Returns a batch's shapes and dtypes, for `count` examples of the model's own size.

    condition: what the model is trained on, a name in CONDITIONS, or "control".
    live: do batches hold their captions' tokens and not their states?
    """
    side, shape, text = config.size // config.vae.factor, jax.ShapeDtypeStruct, config.text
    beside = side, side, config.unet.in_channels - config.vae.latent_channels
    given = {
        "class": lambda: ((), np.int32),
        "layout": lambda: ((config.layout.length,), np.int32),
        "map": lambda: ((config.size, config.size), np.int32),
        "control": lambda: ((config.size, config.size, 3), np.uint8),
        **dict.fromkeys(("mask", "depth", "lowres"), lambda: (beside, np.float32)),
    }.get(condition)
    given, dtype = given() if given else (None, None)
    towers = [tower for tower in (text, config.text_2) if tower is not None]
    if live:
        given, dtype = (len(towers), text.length), np.int32
    width, told = sum(tower.width for tower in towers), config.unet.vector or 0
    reads = not live and (condition == "control" or reads_captions(condition, config))
    return Batch(
        shape((count, side, side, 2 * config.vae.latent_channels), np.float16),
        shape((count, text.length, width), np.float16) if reads else None,
        shape((count,), np.uint32),
        None if given is None else shape((count, *given), dtype),
        shape((count, told - live * config.text_2.projection), np.float32) if is_base(config) else None,
    )
