"""Textual inversion files: both layouts of both formats, and what is refused. tests/parity compares with diffusers."""

import logging
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

import sdjax
from tests.formats.assembler import SYSTEM, make_legacy, make_zip, mapping, number, tensor, text
from tests.narrow import NARROW
from tests.text.test_prompt import Words

VECTORS = np.arange(12, dtype=np.float32).reshape(3, 4)  # what the assembler's tensor() holds
STORY = {
    "string_to_token": mapping({"*": number(265)}),
    "name": text("mine"),
    "step": number(500),
    "sd_checkpoint": text("abcdef"),
}


#: as torch.save writes an nn.ParameterDict
PARAMETER_DICT = (
    b"ctorch.nn.modules.container\nParameterDict\n)\x81"
    + mapping({"training": b"\x88", "_parameters": mapping({"*": tensor()}), "_keys": mapping({"*": b"N"})})
    + b"b"
)


@pytest.fixture
def sd():
    text = replace(NARROW.text, width=4, length=6)
    return sdjax.StableDiffusion(replace(NARROW, text=text), {}, Words())


@pytest.mark.parametrize(
    "name, write, token",
    [
        ("learned_embeds.safetensors", lambda path: save_file({"<cat>": VECTORS}, path), "<cat>"),
        ("learned_embeds.bin", lambda path: path.write_bytes(make_zip(mapping({"<cat>": tensor()}))), "<cat>"),
        ("old.bin", lambda path: path.write_bytes(make_legacy(mapping({"<cat>": tensor(legacy=True)}))), "<cat>"),
        (
            "EasyNeg.pt",
            lambda path: path.write_bytes(make_zip(mapping(STORY | {"string_to_param": mapping({"*": tensor()})}))),
            "EasyNeg",
        ),
        (
            "Oldest.pt",
            lambda path: path.write_bytes(make_zip(mapping(STORY | {"string_to_param": PARAMETER_DICT}))),
            "Oldest",
        ),
        ("EasyNeg.safetensors", lambda path: save_file({"emb_params": VECTORS.astype(np.float16)}, path), "EasyNeg"),
    ],
)
def test_files(sd, tmp_path, name, write, token):
    write(tmp_path / name)
    found = sdjax.add_embedding(sd, tmp_path / name)
    assert list(found.embeddings) == [token] and not sd.embeddings
    np.testing.assert_array_equal(found.embeddings[token], VECTORS)
    assert found.embeddings[token].dtype == np.float32
    named = sdjax.add_embedding(found, str(tmp_path / name), token="<x>")
    assert list(named.embeddings) == [token, "<x>"]
    assert list(sdjax.add_embedding(named, tmp_path / name, token.upper()).embeddings) == ["<x>", token.upper()]


def test_one_vector(sd, tmp_path):
    save_file({"<cat>": VECTORS[0]}, tmp_path / "a.safetensors")
    assert sdjax.add_embedding(sd, tmp_path / "a.safetensors").embeddings["<cat>"].shape == (1, 4)


def test_saving_says_that_they_are_left_out(sd, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="sdjax"), pytest.raises(sdjax.SdjaxError):  # it has no parameters
        sdjax.save(replace(sd, embeddings={"<cat>": VECTORS}), tmp_path / "out.safetensors")
    assert "is written without the embeddings <cat>" in caplog.text


@pytest.mark.parametrize(
    "tensors, options, match",
    [
        ({"a": np.zeros((2, 5), np.float32)}, {}, r"a\.safetensors: a has shape \[2, 5\], should be \[n, 4\]"),
        ({"a": np.zeros((1, 2, 4), np.float32)}, {}, r"shape \[1, 2, 4\]"),
        ({"a": np.zeros((5, 4), np.float32)}, {}, "a has 5 vectors, should have 1 to 4"),
        ({"a": np.zeros((0, 4), np.float32)}, {}, "a has 0 vectors"),
        ({"a": np.zeros((2, 4), np.int32)}, {}, "a is not made of finite floating point numbers"),
        ({"a": np.full((2, 4), np.nan, np.float32)}, {}, "finite"),
        ({"clip_l": VECTORS, "clip_g": VECTORS}, {}, r"holds 2 tensors \(clip_g, clip_l\), an embedding for .* is one"),
        ({"a (b)": VECTORS}, {}, r"token 'a \(b\)': a word without brackets"),
        ({"a": VECTORS}, {"token": " "}, "token ' '"),
        ({"a": VECTORS}, {"token": "a:b"}, "token 'a:b'"),
        ({"a": VECTORS}, {"token": "x AND y"}, "token 'x AND y'"),
        ({"a": VECTORS}, {"token": 3}, "token 3"),
    ],
)
def test_refusals(sd, tmp_path, tensors, options, match):
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(sdjax.SdjaxError, match=match) as caught:
        sdjax.add_embedding(sd, tmp_path / "a.safetensors", **options)
    assert "\n" not in str(caught.value)


def test_a_path_is_a_path(sd):
    with pytest.raises(sdjax.SdjaxError, match="path is NoneType"):
        sdjax.add_embedding(sd, None)


@pytest.mark.parametrize(
    "content, match",
    [
        (b"", "the file is empty"),
        (b"hello, hello, hello", "neither safetensors nor a torch checkpoint"),
        (make_zip(mapping(STORY | {"string_to_param": mapping({"*": SYSTEM})})), r"'\*' is a 'os.system', should be"),
        (make_zip(mapping(STORY)), "should be a tensor"),
    ],
)
def test_strangers_files(sd, tmp_path, content, match):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(sdjax.SdjaxError, match=match) as caught:
        sdjax.add_embedding(sd, tmp_path / "a.pt")
    assert "a.pt" in str(caught.value) and "\n" not in str(caught.value)
