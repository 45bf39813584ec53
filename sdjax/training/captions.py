"""Pictures and captions as batches of the diffusion loss, computed once and read by row; what is held out of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sdjax.data.order import Chosen
from sdjax.data.source import Pictures
from sdjax.devices.processes import local_part
from sdjax.errors import SdjaxError
from sdjax.families.config import Config
from sdjax.model.value import StableDiffusion
from sdjax.training.cache import cached_latents, cached_states
from sdjax.types import Batch


class Table:
    """Latents and text states of a source's rows, computed once."""

    def __init__(self, sd: StableDiffusion, source: Pictures, folder: Path, views: int = 1):
        self.latents = cached_latents(sd, source, folder, views)
        self.states, self.caption_of = cached_states(sd, source.texts, folder)

    def batch(self, chosen: Chosen, index: np.ndarray) -> Batch:
        """index: the examples' numbers, on which their draws hang."""
        moments, rows = self.latents(chosen)
        return Batch(moments, self.states[self.caption_of[rows]], index)


def hold_out(
    validation: str | None, seed: int, source: Pictures, data: Any
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The rows of each group to train on, and those that `validation`, where it is a number, holds out of them."""
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
    """(batch, weights) after batch of this process' part of the rows; each group's last is filled up with weight 0."""
    mine, number = local_part(batch_size), 0
    for group, rows in enumerate(groups):
        for first in range(0, len(rows), batch_size):
            place = np.arange(first, first + batch_size)[mine]
            chosen = Chosen(rows[np.minimum(place, len(rows) - 1)], np.zeros(len(place), int), group)
            yield table.batch(chosen, (number + place).astype(np.uint32)), np.float32(place < len(rows))
        number += len(rows)


def batch_shapes(config: Config, count: int) -> Batch:
    """A batch without its values."""
    side, shape = config.size // config.vae.factor, jax.ShapeDtypeStruct
    return Batch(
        shape((count, side, side, 2 * config.vae.latent_channels), np.float16),
        shape((count, config.text.length, config.text.width), np.float16),
        shape((count,), np.uint32),
    )
