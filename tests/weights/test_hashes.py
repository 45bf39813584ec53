"""The hash by which web UIs know a model again: of its file, or of its UNet's, computed once."""

import hashlib
import json
import os

import pytest

from sdjax.weights import hashes
from sdjax.weights.hashes import file_hash, model_hash


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setattr(hashes, "programs_folder", lambda: str(tmp_path / "programs"))
    return tmp_path / "programs" / "hashes.json"


@pytest.fixture
def computed(monkeypatch):
    """The files whose hash was computed."""
    found, digest = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: found.append(file.name) or digest(file, name))
    return found


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text)
    return hashlib.sha256(text).hexdigest()


def test_of_a_file(tmp_path, kept):
    whole = write(tmp_path / "model.safetensors", b"weights")
    assert file_hash(tmp_path / "model.safetensors") == whole
    assert model_hash(tmp_path / "model.safetensors") == whole[:10]
    assert model_hash(tmp_path / "nothing") is None


def test_of_a_folder(tmp_path, kept):
    unet = tmp_path / "model" / "unet"
    unet.mkdir(parents=True)
    assert model_hash(tmp_path / "model") is None
    half = write(unet / "diffusion_pytorch_model.fp16.safetensors", b"half")
    assert model_hash(tmp_path / "model") == half[:10]
    full = write(unet / "diffusion_pytorch_model.safetensors", b"full")
    assert model_hash(tmp_path / "model") == full[:10]
    assert model_hash(tmp_path / "model", "fp16") == half[:10]


def test_of_shards(tmp_path, kept):
    unet = tmp_path / "model" / "unet"
    names = [f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    first, _ = (write(unet / name, name.encode()) for name in names)
    index = unet / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"b": names[1], "a": names[0]}}))
    assert model_hash(tmp_path / "model") == first[:10]
    index.write_text("{}")
    assert model_hash(tmp_path / "model") is None


def test_computed_once_for_a_path_a_size_and_a_time(tmp_path, kept, computed):
    model = tmp_path / "model.safetensors"
    first = write(model, b"one")
    os.utime(model, ns=(0, 10**9))
    assert [file_hash(model) for _ in range(3)] == [first] * 3 and len(computed) == 1
    second = write(model, b"two")
    assert file_hash(model) == second and len(computed) == 2
    os.utime(model, ns=(0, 2 * 10**9))
    assert file_hash(model) == second and len(computed) == 3
    assert json.loads(kept.read_text()) == {str(model): [3, 2 * 10**9, second]}


@pytest.mark.parametrize("text", ["", "[]", "{", '{"x": 1}', '{"x": [1, 2, 3]}', "\xff"])
def test_what_is_kept_may_be_broken(tmp_path, kept, text):
    write(kept, text.encode("latin-1"))
    assert file_hash(tmp_path / "a") if (tmp_path / "a").is_file() else True
    whole = write(tmp_path / "a", b"a")
    assert file_hash(tmp_path / "a") == whole == file_hash(tmp_path / "a")


def test_without_a_folder(tmp_path, monkeypatch, computed):
    """It is computed each time, where nothing is kept or the folder cannot be written."""
    whole = write(tmp_path / "a", b"a")
    for folder in (None, str(tmp_path / "a" / "in the way")):
        monkeypatch.setattr(hashes, "programs_folder", lambda folder=folder: folder)
        assert file_hash(tmp_path / "a") == whole == file_hash(tmp_path / "a")
    assert len(computed) == 4
