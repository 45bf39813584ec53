"""train/prepare_emoji.py and sample/evaluate.py: what they refuse, also where resvg is not installed."""

import sys

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
