"""sample/benchmark.py as one types it: its table without a peer, and its refusals."""

import subprocess
import sys

import pytest

from sdjax.commands import benchmark
from sdjax.errors import SdjaxError
from tests.commands.test_command_line import ROOT


def test_the_table(place):
    command = [
        sys.executable,
        ROOT / "sample" / "benchmark.py",
        "--model",
        place / "model",
        "--peer",
        "none",
        "--runs",
        "2",
        "--steps",
        "2",
        "--sizes",
        "16",
    ]
    done = subprocess.run(
        command, env={"PYTHONPATH": str(ROOT), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}, text=True, capture_output=True
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[2:-1]]
    assert [row[:3] for row in rows[1:]] == [[part, "16", "sdjax"] for part in ("unet", "decode", "image")]
    for *_, compiling, median, interval, peak, share in rows[1:]:
        low, high = map(float, interval.split("-"))
        assert low <= float(median) <= high and float(compiling) > 0 and 0.1 < float(peak) < 5 and share.endswith("%")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"parts": ("vae",)}, "--parts vae"),
        ({"runs": 0}, "--runs"),
        ({"sizes": (20,)}, "--sizes 20: .* multiples of 64"),
        ({"model": "EMOJI"}, "--model EMOJI"),
        ({"model": "nowhere"}, "nowhere: no such folder"),
        ({"aot_tpu": "v9"}, "--aot-tpu v9: one of v5e"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(SdjaxError, match=message):
        benchmark.main(benchmark.Options(**changes))
