"""train/benchmark.py on the smallest model: both sides do the same, and both are timed."""

import re
import sys

import pytest

pytest.importorskip("diffusers")
from sdjax.commands import train_benchmark as benchmark
from sdjax.errors import SdjaxError
from tests.scripts import CONFIG

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("quick_compile")]


def test_the_benchmark(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules["sdjax.families.table"].NAMED, "EMOJI", CONFIG)
    benchmark.main(benchmark.Options("EMOJI", batch_size=2, steps=2))
    first, title, *rows = capsys.readouterr().out.splitlines()
    assert float(re.fullmatch(r"outputs differ by (\S+) \(largest, relative\)", first)[1]) < 5e-6
    assert title.split() == ["first", "step", "each", "step", "pictures/s"]
    assert [re.match(r"(\S.*?)  +[\d.]+ s +[\d.]+ s +[\d.]+", row)[1] for row in rows] == ["sdjax", "diffusers, eager"]
    for changes, message in (({"model": "SD3"}, "--model SD3"), ({"steps": 0}, "at least 1")):
        with pytest.raises(SdjaxError, match=message):
            benchmark.main(benchmark.Options(**changes))
