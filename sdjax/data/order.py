"""The order of the data: which rows the batch of a step has, and threads that read batches ahead.

Every group of rows (pictures of one shape) is an endless stream of its own: its rows are shuffled anew for each epoch,
and the stream is cut into batches of B. A group of n rows contributes ceil(e n / B) batches by the end of epoch e:
groups appear in proportion to their size, each visits every row once before it repeats one, and the first epoch has all
rows of all groups. Within an epoch the groups' batches come in random order.
"""

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

SPREAD = 0x9E3779B9  # distance of the groups' seeds


class Chosen(NamedTuple):
    """The examples of one batch, [B] each."""

    rows: np.ndarray
    epochs: np.ndarray  # how many times the row has come before
    group: int  # the group of all the rows

    def part(self, examples: slice) -> "Chosen":
        """Returns some of the examples."""
        return Chosen(self.rows[examples], self.epochs[examples], self.group)


class Order:
    """order(step) returns the examples of the batch that follows `step` steps.

    groups: the rows of each group. batch_size: B.
    seed: of the shuffling; None does not shuffle.
    """

    def __init__(self, groups: Sequence[Sequence[int]], batch_size: int, seed: int | None):
        self.groups, self.counts = groups, [len(rows) for rows in groups]
        self.batch_size, self.seed = batch_size, seed
        self.labels, self.tables = lru_cache(4)(self._labels), lru_cache(64)(self._table)

    def __call__(self, step: int) -> Chosen:
        if len(self.counts) == 1:
            return self._batch(0, step)
        most = step * self.batch_size // sum(self.counts)  # sum_k ceil(e n_k / B) >= e N / B
        epoch = bisect_right(range(most + 1), step, key=self._before) - 1
        labels, rank = self.labels(epoch), step - self._before(epoch)
        group = int(labels[rank])
        return self._batch(group, self._done(group, epoch) + int((labels[:rank] == group).sum()))

    def _batch(self, group: int, number: int) -> Chosen:
        """Returns batch `number` of the group's stream."""
        epochs, places = np.divmod(number * self.batch_size + np.arange(self.batch_size), self.counts[group])
        if self.seed is not None:
            pairs = zip(epochs.tolist(), places.tolist(), strict=True)
            places = [self._shuffled(group, epoch, place) for epoch, place in pairs]
        return Chosen(np.array([self.groups[group][place] for place in places]), epochs, group)

    def _shuffled(self, group: int, epoch: int, place: int) -> int:
        """Returns the position in the group of the row at `place` of the shuffled epoch.

        Groups of more than 2^16 rows are shuffled like grain's shuffle(seed), which needs no table. For fewer rows it
        would walk about 2^16 / n steps for each, so that they have a table.
        """
        if (count := self.counts[group]) <= 1 << 16:
            return self.tables(group, epoch)[place]
        from grain.experimental import index_shuffle

        return index_shuffle(place, max_index=count - 1, seed=(self.seed + SPREAD * group + epoch) % 2**32, rounds=4)

    def _table(self, group: int, epoch: int) -> np.ndarray:
        rows = np.arange(self.counts[group], dtype=np.int32)
        return np.random.default_rng((self.seed, group, epoch)).permutation(rows)

    def _done(self, group: int, epoch: int) -> int:
        """Returns the number of the group's batches before the epoch."""
        return -(-epoch * self.counts[group] // self.batch_size)

    def _before(self, epoch: int) -> int:
        return sum(self._done(group, epoch) for group in range(len(self.counts)))

    def _labels(self, epoch: int) -> np.ndarray:
        """Returns the group of each batch of the epoch."""
        counts = [self._done(group, epoch + 1) - self._done(group, epoch) for group in range(len(self.counts))]
        labels = np.repeat(np.arange(len(counts)), counts)
        return labels if self.seed is None else np.random.default_rng((self.seed, epoch)).permutation(labels)


def read_ahead(make: Callable[[int], Any], start: int = 0, stop: int = 2**62) -> Iterator[Any]:
    """Yields make(start), make(start + 1), ... up to `stop`, computed ahead by a few threads.

    An exception in `make` is raised when its turn comes.
    """
    import grain

    def attempt(step: int) -> tuple[Any, Exception | None]:
        try:
            return make(step), None
        except Exception as error:  # grain would add a paragraph about its own frames
            return None, error

    threads = min(8, os.cpu_count() or 1)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    for made, error in grain.MapDataset.range(start, stop).map(attempt).to_iter_dataset(read_options=options):
        if error is not None:
            raise error
        yield made
