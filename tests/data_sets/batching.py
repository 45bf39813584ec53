"""Endless shuffled batches of a source: what the trainings do with Order and read_ahead, in one function."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from sdjax.data.order import Order, read_ahead


def batches(
    source: Any,
    batch_size: int,
    seed: int | None,
    start: int = 0,
    collate: Callable | None = None,
    part: slice = slice(None),
) -> Iterator[Any]:
    """Endless shuffled batches from step `start` on. Seed None keeps the source's order.

    source: Pictures, or any sequence. collate: list of rows -> batch, np.stack when not given. part: of every batch
    the examples that this process reads.
    """
    view = getattr(source, "view", lambda row, epoch, group: source[row])
    order = Order(getattr(source, "groups", [range(len(source))]), batch_size, seed)
    collate = collate or np.stack

    def make(step: int) -> Any:
        rows, epochs, group = order(step).part(part)
        return collate([view(int(row), int(epoch), group) for row, epoch in zip(rows, epochs, strict=True)])

    return read_ahead(make, start)
