"""train/prepare_emoji.py and sample/evaluate.py: what they refuse, also where resvg is not installed."""

import sys

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def without_resvg(monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)


def refused(script, capfd, *command):
    assert script(*command) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1, said
    return said


def test_drawing_needs_an_extra_and_evaluating_does_not(script, place, capfd):
    said = refused(script, capfd, "train/prepare_emoji.py", "--out", "emoji")
    assert "resvg_py" in said and "install the extra emoji" in said
    assert "no held_out.json there" in refused(script, capfd, "sample/evaluate.py", "--data", "nope")


def test_a_sample_is_of_the_script_s_own_dataset(script, capfd):
    said = refused(script, capfd, "train/prepare_emoji.py", "--out", "pictures", "--sample", 2, "--sample-out", "few")
    assert "--out pictures: is not this script's dataset" in said


def test_edges_lose_what_a_gaussian_blur_takes():
    """A step loses the kernel's weights beyond it; the tenth of the pixels that lose most is counted."""
    from sdjax.commands.evaluate import edge_strength

    step = np.zeros((1, 40, 40, 3), np.uint8)
    step[:, :, 20:] = 200
    weights = np.exp(-0.5 * np.arange(-9, 10) ** 2) / np.exp(-0.5 * np.arange(-9, 10) ** 2).sum()
    beside, next_to_it = weights[10:].sum(), weights[11:].sum()  # 4 of 40 columns: the two nearest on each side
    np.testing.assert_allclose(edge_strength(step), 200 * (beside + next_to_it) / 2, rtol=1e-3)
    soft = np.repeat(np.linspace(0, 200, 40)[None, None, :, None], 40, 1).repeat(3, 3).astype(np.uint8)
    assert edge_strength(soft) < 0.1 * edge_strength(step) and edge_strength(step * 0) == 0
