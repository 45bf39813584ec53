"""sdjax convert: a folder as a file, a file as a folder, the same model; never over what is there."""

import os

import numpy as np
import pytest

import sdjax
from sdjax.commands.main import main


@pytest.fixture
def convert(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDJAX_CACHE", "off")

    def convert(*arguments):
        try:
            main(["convert", *arguments])
        except SystemExit as stop:
            return stop.code, capsys.readouterr().err.splitlines()[-1]
        return 0, capsys.readouterr().out.strip()

    return convert


def test_there_and_back(convert, tmp_path):
    assert convert("emoji", "one.safetensors") == (0, "one.safetensors")
    assert convert("one.safetensors", "two") == (0, "two")
    first, second = sdjax.load("emoji").params, sdjax.load(tmp_path / "two").params
    assert first.keys() == second.keys()
    import jax

    jax.tree.map(np.testing.assert_array_equal, first, second)
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "one.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask, "others may read it"
    assert convert("two", "half.safetensors", "--dtype", "bf16")[0] == 0
    half = sdjax.load(tmp_path / "half.safetensors").params
    assert {leaf.dtype.name for leaf in jax.tree.leaves(half)} == {"bfloat16"}


def test_refusals(convert, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "file.safetensors").write_text("mine")
    for target in ("there", "file.safetensors"):
        status, said = convert("emoji", target)
        assert status == 2 and said == f"error: TARGET {target}: is there already; name a new one, or move it away"
    status, said = convert("emojy", "new")
    assert status == 2 and said.startswith("error: SOURCE emojy: no such folder") and said.endswith("mean emoji?")
    assert convert("emoji", "new.ckpt") == (
        2,
        "error: TARGET new.ckpt: .ckpt files are only read; give a name in .safetensors or a folder's",
    )
    assert convert("emoji")[0] == 2 and not (tmp_path / "new").exists()
