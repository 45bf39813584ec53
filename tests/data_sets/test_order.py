"""Which rows a batch has: every row in its turn, groups in proportion, the same from wherever one starts."""

from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdjax.data.order import Order, read_ahead

groups_of = st.lists(st.integers(1, 40), min_size=1, max_size=6)


def make_groups(counts):
    ends = np.cumsum([0, *counts])
    return [np.arange(a, b) for a, b in pairwise(ends)]


@settings(max_examples=60, deadline=None)
@given(groups_of, st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_every_row_comes_in_its_turn(counts, batch_size, seed):
    """In each group's stream every epoch has every row once; epochs are told rightly."""
    groups = make_groups(counts)
    order, streams = Order(groups, batch_size, seed), [[] for _ in groups]
    for step in range(3 * (-(-sum(counts) // batch_size) + len(counts))):
        rows, epochs, group = order(step)
        assert len(rows) == batch_size
        streams[group] += zip(epochs.tolist(), rows.tolist(), strict=True)
    for rows, stream in zip(groups, streams, strict=True):
        whole = len(stream) // len(rows)
        assert whole >= 1, "a row did not come in the first epochs"
        for epoch in range(whole):
            part = stream[epoch * len(rows) : (epoch + 1) * len(rows)]
            assert {e for e, _ in part} == {epoch} and sorted(r for _, r in part) == rows.tolist()


@settings(max_examples=40, deadline=None)
@given(groups_of, st.integers(1, 12), st.integers(0, 2**32 - 1), st.integers(1, 60))
def test_groups_come_in_proportion(counts, batch_size, seed, epochs):
    """After e epochs of N / B steps each group has had e n / B batches, up to the one it is ahead in every epoch."""
    order, seen = Order(make_groups(counts), batch_size, seed), np.zeros(len(counts), int)
    steps = epochs * sum(counts) // batch_size
    for step in range(min(steps, 300)):
        seen[order(step).group] += 1
    done = min(steps, 300) * batch_size / sum(counts)
    for n, count in zip(counts, seen, strict=True):
        slack = 1 + n / batch_size + len(counts) * n / sum(counts)
        assert abs(count - done * n / batch_size) <= slack


def test_a_step_depends_on_nothing_before_it():
    counts = [3, 17, 40, 1]
    whole = [Order(make_groups(counts), 8, 7)(step) for step in range(50)]
    order = Order(make_groups(counts), 8, 7)
    for step in np.random.default_rng(0).permutation(50):
        assert order(int(step)).rows.tolist() == whole[step].rows.tolist() and order(step).group == whole[step].group
    other = [Order(make_groups(counts), 8, 8)(step) for step in range(50)]
    assert [c.group for c in other] != [c.group for c in whole]


def test_epochs_and_groups_are_shuffled():
    order = Order(make_groups([20, 20]), 4, 0)
    chosen = [order(step) for step in range(200)]
    labels = [c.group for c in chosen]
    assert sum(a != b for a, b in pairwise(labels)) > 60
    firsts = {tuple(c.rows.tolist()) for c in chosen if c.group == 0}
    assert len(firsts) > 60
    assert len({tuple((c.rows - 20 * c.group).tolist()) for c in chosen[:10]}) > 5, "the groups share one order"


def test_no_seed_keeps_the_order():
    order = Order([range(5)], 2, None)
    assert [order(step).rows.tolist() for step in range(4)] == [[0, 1], [2, 3], [4, 0], [1, 2]]
    assert [order(step).epochs.tolist() for step in range(3)] == [[0, 0], [0, 0], [0, 1]]


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_parts_of_hosts_are_the_global_batch(hosts):
    order = Order([range(30)], 8, 3)
    for step in range(9):
        whole = order(step)
        parts = [whole.part(slice(k * 8 // hosts, (k + 1) * 8 // hosts)) for k in range(hosts)]
        assert np.concatenate([part.rows for part in parts]).tolist() == whole.rows.tolist()
        assert np.concatenate([part.epochs for part in parts]).tolist() == whole.epochs.tolist()


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_the_order_of_many_rows_is_grain_s_recipe(hosts):
    """source.shuffle(seed).repeat()[host::hosts].batch(B // hosts) draws the same global batch on any number of hosts,
    and it is ours."""
    import grain

    data = grain.MapDataset.range(70_000).shuffle(seed=3).repeat()
    streams = [data[host::hosts].batch(8 // hosts) for host in range(hosts)]
    order = Order([range(70_000)], 8, 3)
    for step in (0, 1, 8_749, 8_750, 30_000):
        assert sorted(np.concatenate([stream[step] for stream in streams])) == sorted(order(step).rows)


def test_read_ahead_keeps_the_order_and_raises_at_its_turn():
    def make(step):
        if step == 5:
            raise ValueError("five")
        return step

    stream = read_ahead(make, 2)
    assert list(islice(stream, 3)) == [2, 3, 4]
    with pytest.raises(ValueError, match=r"^five$"):  # and none of grain's own words
        next(stream)
    assert list(read_ahead(lambda step: -step, 1, 4)) == [-1, -2, -3]
