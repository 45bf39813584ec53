"""21,000 mutated files end in equality or in SdjaxError; and the fuzz is seen to find mistakes."""

from collections import Counter

import numpy as np
import pytest

from sdjax.formats import mapped as files
from sdjax.formats import tensors
from sdjax.formats import torch_files as pickles
from sdjax.formats import unpickler as machine
from tests.formats.fuzz import fuzz


@pytest.mark.parametrize("seed", [0, 10_500])
def test_mutated_files(seed, tmp_path):
    outcomes = fuzz(10_500, tmp_path, seed)
    kinds = Counter()
    for (kind, outcome), n in outcomes.items():
        kinds[kind] += n
        assert n > 400, (kind, outcome, n)  # both happen to each
    assert len(outcomes) == 6 and set(kinds.values()) == {3_500}


@pytest.mark.parametrize(
    "place, name, wrong, message",
    [
        (machine, "is_count", lambda value: True, "seed"),
        (
            pickles,
            "view",
            lambda data, dtype, start, shape, strides: np.ndarray(shape, dtype, data, start),
            "as others",
        ),
        (tensors, "view", lambda data, dtype, start, shape: files.view(data, dtype, start, shape[::-1]), "as others"),
        (pickles, "checked", lambda data, name, member: member.start, "as others"),
    ],
    ids=["any number", "no strides", "shapes reversed", "no CRC"],
)
def test_mistakes_are_found(place, name, wrong, message, tmp_path, monkeypatch):
    monkeypatch.setattr(place, name, wrong)
    with pytest.raises(AssertionError, match=message):
        fuzz(6_000, tmp_path)
