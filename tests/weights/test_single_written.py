"""Single files are written whole or not at all, and loaded and saved by name."""

import logging
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import sdjax
from sdjax.errors import SdjaxError
from sdjax.families.sd import EMOJI, EMOJI_64, SD15, SD21
from sdjax.model.load import bundled_tokenizer
from sdjax.text.tokenizer import clip_tokenizer
from sdjax.weights import single
from sdjax.weights.single import PREDICTION_KEY, read_single, write_single
from tests.formats.assembler import save_zip
from tests.narrow import NARROW, file_tensors, random_model_params
from tests.weights.files import same, written


def test_writing_is_atomic_and_names_what_it_will_not_replace(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    params = written(path, NARROW)
    before = path.read_bytes()
    with pytest.raises(SdjaxError, match="params do not fit"):
        write_single(path, NARROW, params | {"vae": {}})
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(SdjaxError, match=r"a\.safetensors: cannot be written \(disk full"):
        write_single(path, NARROW, random_model_params(NARROW, seed=1))
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(SdjaxError, match="is no file"):
        write_single(tmp_path / "folder.safetensors", NARROW, params)


def test_a_config_that_a_file_cannot_tell_is_said(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(single, "CANDIDATES", (NARROW,))
    told = replace(NARROW, name="mine", schedule=replace(NARROW.schedule, prediction="v"))
    write_single(tmp_path / "a.safetensors", told, random_model_params(told))
    assert not caplog.messages
    for other in (
        replace(NARROW, unet=replace(NARROW.unet, heads=(1, 1, 1))),
        replace(NARROW, size=64),
        replace(NARROW, schedule=replace(NARROW.schedule, zero_terminal_snr=True)),
    ):
        caplog.clear()
        write_single(tmp_path / "a.safetensors", other, random_model_params(other))
        assert "does not hold this model's config" in caplog.text


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2"])
def test_float8_becomes_float16(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(single, "CANDIDATES", (NARROW,))
    params = jax.tree.map(lambda leaf: np.asarray(leaf).astype(kind), random_model_params(NARROW))
    write_single(tmp_path / "a.safetensors", NARROW, params)
    wanted = jax.tree.map(lambda leaf: leaf.astype(np.float16), params)
    assert same(single.read_single(tmp_path / "a.safetensors")[1], wanted)


def test_load_and_save(tmp_path, monkeypatch, tokenizer, caplog):
    monkeypatch.setattr(single, "CANDIDATES", (NARROW,))
    sd, path = sdjax.StableDiffusion(NARROW, random_model_params(NARROW), tokenizer), tmp_path / "a.safetensors"
    sdjax.save(sd, path)
    again = sdjax.load(path, dtype="bfloat16")
    assert again.config == NARROW and same(again.params, sd.params) and again.tokenizer is None
    assert again.dtype == jnp.bfloat16 and sdjax.load(path, prediction="v").config.schedule.prediction == "v"
    sdjax.save(sd, tmp_path / "folder")
    assert sdjax.load(tmp_path / "folder", prediction="v").config.schedule.prediction == "v"
    assert not caplog.messages
    sdjax.load(tmp_path / "folder", prefer_ema=True)
    assert "prefer_ema is for single files" in caplog.text
    for call, match in [
        (lambda: sdjax.save(sd, tmp_path / "a.ckpt"), r"a\.ckpt: .*only read"),
        (lambda: sdjax.load(path, prediction="eps"), "prediction is 'eps'"),
        (lambda: sdjax.load(tmp_path / "no.safetensors"), r"no\.safetensors: no such folder or file"),
        (lambda: sdjax.load(__file__), r"test_single_written\.py"),
    ]:
        with pytest.raises(SdjaxError, match=match) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("config", [EMOJI, EMOJI_64], ids=lambda config: config.name)
def test_emoji_as_a_single_file(tmp_path, caplog, config):
    params = random_model_params(config, dtype=np.float16)
    write_single(tmp_path / "emoji.safetensors", config, params)
    caplog.set_level(logging.WARNING)
    sd = sdjax.load(tmp_path / "emoji.safetensors")
    assert sd.config == config and same(sd.params, params) and not caplog.messages
    assert sd.tokenizer is None or len(sd.tokenizer) == EMOJI.text.vocab_size


def test_tokenizers_of_single_files():
    assert bundled_tokenizer(SD15.text) is bundled_tokenizer(SD21.text) is clip_tokenizer()
    assert bundled_tokenizer(NARROW.text) is None


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_file_is_opened_once(tmp_path, monkeypatch, suffix):
    """Each opening of a file on a network drive takes its time; what is in the head is read with the tensors."""
    path, opened, before = tmp_path / f"model{suffix}", [], open
    tensors = {name: np.ascontiguousarray(value) for name, value in file_tensors(NARROW).items()}
    save_file(tensors, path, {PREDICTION_KEY: "v"}) if suffix == ".safetensors" else path.write_bytes(save_zip(tensors))

    def counted(name, *more, **options):
        opened.append(str(name))
        return before(name, *more, **options)

    monkeypatch.setattr("builtins.open", counted)
    config, _ = read_single(path, config=NARROW)
    assert opened == [str(path)]
    assert config.schedule.prediction == ("v" if suffix == ".safetensors" else "epsilon")
