"""Where settings are found in pictures' files: PNG's three kinds of text, EXIF's comment, a ComfyUI graph."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdjax.errors import SdjaxError
from sdjax.image.metadata import of_graph, read_parameters, user_comment
from sdjax.tasks.parameters import understand

TEXT = "a käse — ねこ\nNegative prompt: dog\nSteps: 20, Seed: 1, Size: 8x8"
LATIN = "a käse\nNegative prompt: dog\nSteps: 20, Seed: 1, Size: 8x8"


def png(path, add):
    info = PngInfo()
    add(info)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


@pytest.mark.parametrize(
    "add, want",
    [
        (lambda info: info.add_itxt("parameters", TEXT), TEXT),
        (lambda info: info.add_itxt("parameters", TEXT, zip=True), TEXT),
        (lambda info: info.add(b"tEXt", b"parameters\0" + TEXT.encode()), TEXT),  # UTF-8 where Latin-1 should be
        (lambda info: info.add_text("parameters", LATIN), LATIN),  # Latin-1
        (lambda info: info.add_text("parameters", LATIN, zip=True), LATIN),
        (lambda info: info.add_itxt("parameters", "Ã¤\nSteps: 1"), "Ã¤\nSteps: 1"),  # no UTF-8 that was misread
    ],
)
def test_text_of_a_png(add, want, tmp_path):
    assert read_parameters(png(tmp_path / "a.png", add)) == want


@pytest.mark.parametrize("kind", ["jpg", "webp", "png"])
@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + TEXT.encode("utf-16-be"),
        b"UNICODE\0" + TEXT.encode("utf-16-le"),
        b"UNICODE\0" + TEXT.encode("utf-16"),
        b"ASCII\0\0\0" + TEXT.encode("utf-8"),
        bytes(8) + TEXT.encode("utf-8"),
        TEXT.encode("utf-8"),
    ],
)
def test_the_comment_of_exif(comment, kind, tmp_path):
    picture, exif = Image.new("RGB", (8, 8)), Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = comment
    picture.save(tmp_path / f"a.{kind}", exif=exif.tobytes())
    assert read_parameters(tmp_path / f"a.{kind}") == TEXT


@given(st.binary())
def test_any_comment_is_some_text(comment):
    assert isinstance(user_comment(comment), str)


GRAPH = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 7,
            "steps": 20,
            "cfg": 8.0,
            "sampler_name": "euler_ancestral",
            "scheduler": "karras",
            "denoise": 1.0,
            "model": ["10", 0],
            "positive": ["12", 0],
            "negative": ["7", 0],
            "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sub/v1-5.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 768, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat,\non a table", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": ["8", 0], "clip": ["4", 1]}},
    "8": {"class_type": "String", "inputs": {"text": "dog"}},
    "10": {"class_type": "LoraLoader", "inputs": {"model": ["4", 0], "lora_name": "x"}},
    "12": {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": ["6", 0]}},
}


def test_a_comfyui_picture(tmp_path):
    path = png(tmp_path / "a.png", lambda info: info.add_text("prompt", json.dumps(GRAPH)))
    found, rest = understand(read_parameters(path))
    assert found == {
        "prompt": "a cat,\non a table",
        "negative_prompt": "dog",
        "steps": 20,
        "sampler": "euler_a",
        "sigmas": "karras",
        "guidance_scale": 8.0,
        "seed": 7,
        "width": 512,
        "height": 768,
    }
    assert rest == {"Model": "v1-5"}
    GRAPH["6"]["inputs"]["clip"] = ["6", 0]  # round and round
    assert understand(of_graph(json.dumps(GRAPH | {"12": {"inputs": {"x": ["12", 0]}}})))[0]["prompt"] == ""


@pytest.mark.parametrize(
    "sampler, scheduler, ours",
    [
        ("dpm_2", "exponential", ("dpm2", "exponential")),
        ("dpm_2_ancestral", "normal", ("dpm2_a", "default")),
        ("dpmpp_2s_ancestral", "sgm_uniform", ("dpmpp_2s_a", "sgm_uniform")),
        ("dpmpp_sde_gpu", "beta", ("dpmpp_sde", "beta")),
        ("dpmpp_3m_sde", "karras", ("dpmpp_3m_sde", "karras")),
        ("deis", "simple", ("deis", "default")),
    ],
)
def test_comfyui_s_names(sampler, scheduler, ours):
    inputs = {"steps": 4, "sampler_name": sampler, "scheduler": scheduler}
    found, rest = understand(of_graph(json.dumps({"3": {"class_type": "KSampler", "inputs": inputs}})))
    assert (found["sampler"], found.get("sigmas", "default")) == ours
    assert rest == ({"Schedule type": "simple"} if scheduler == "simple" else {})


def test_other_graphs(tmp_path):
    for graph in ("", "[]", "{}", "{not json", '{"3": 4}', '{"3": {"class_type": "KSampler"}}', "[" * 100_000):
        assert of_graph(graph) == ""
    bare = '{"3": {"class_type": "KSamplerAdvanced", "inputs": {"noise_seed": 3, "steps": 4}}}'
    assert understand(of_graph(bare))[0] == {"prompt": "", "negative_prompt": "", "steps": 4, "seed": 3}
    path = png(tmp_path / "a.png", lambda info: info.add_text("prompt", "a cat"))
    with pytest.raises(SdjaxError, match=r"a\.png: no `parameters` text there"):
        read_parameters(path)
