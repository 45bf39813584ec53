"""CLIP's head beside a text tower: a round trip, and what is refused."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sdjax
from tests.narrow import NARROW, NARROW_VISION, random_params

WIDTH = NARROW.text.width


def head():
    projection = np.random.default_rng(0).normal(size=(WIDTH, NARROW_VISION.projection)).astype(np.float32)
    return {"vision": random_params(NARROW_VISION), "text_projection": projection, "logit_scale": np.float32(2.5)}


@pytest.fixture
def folder(tmp_path):
    sdjax.save_clip(head(), NARROW_VISION, tmp_path / "model" / "clip")
    return tmp_path / "model" / "clip"


def test_a_saved_head_loads_the_same(folder):
    config, params = sdjax.load_clip(folder)
    assert config == NARROW_VISION and jax.tree.structure(params) == jax.tree.structure(head())
    assert jax.tree.all(jax.tree.map(lambda a, b: a.dtype == b.dtype and np.array_equal(a, b), params, head()))
    sdjax.save_clip(head() | {"logit_scale": np.float32(1.0)}, config, folder)
    assert sdjax.load_clip(folder)[1]["logit_scale"] == 1
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}


def test_names_and_shapes_are_those_of_transformers_clip_model(folder):
    tensors = load_file(folder / "model.safetensors")
    assert tensors["text_projection.weight"].shape == (NARROW_VISION.projection, WIDTH)
    assert tensors["visual_projection.weight"].shape == (NARROW_VISION.projection, NARROW_VISION.width)
    assert tensors["logit_scale"].shape == ()
    assert tensors["vision_model.embeddings.patch_embedding.weight"].shape == (24, 3, 4, 4)
    fields = json.loads((folder / "config.json").read_text())
    assert fields["model_type"] == "clip" and fields["vision_config"]["hidden_size"] == 24


def test_a_failing_save_leaves_the_older_head(folder):
    with pytest.raises(sdjax.SdjaxError, match="params do not fit"):
        sdjax.save_clip(head() | {"vision": {}}, NARROW_VISION, folder)
    assert sdjax.load_clip(folder)[1]["logit_scale"] == 2.5


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"logit_scale": None}, "has no tensor 'logit_scale'"),
        ({"text_projection.weight": None}, "text_projection"),
        ({"visual_projection.weight": None}, "1 missing: visual_projection"),
        ({"stranger": np.zeros(1)}, "stranger"),
        (
            {"text_projection.weight": np.zeros((3, WIDTH), np.float32)},
            r"text_projection \[3, 24\].*should be \[16, width\]",
        ),
        ({"logit_scale": np.zeros(2, np.float32)}, r"logit_scale \[2\]"),
    ],
)
def test_files_that_do_not_fit_are_refused(folder, changes, message):
    tensors = load_file(folder / "model.safetensors") | changes
    save_file({name: value for name, value in tensors.items() if value is not None}, folder / "model.safetensors")
    with pytest.raises(sdjax.SdjaxError, match=message) as caught:
        sdjax.load_clip(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    "content, message",
    [
        ({}, "has no vision_config"),
        ({"vision_config": {"hidden_act": "relu"}}, "hidden_act 'relu'"),
        ({"vision_config": {"patch_size": "4"}}, "patch_size is '4', should be a whole number"),
        ({"vision_config": {"image_size": 32}, "projection_dim": 16}, "tensors do not fit"),
    ],
)  # the rest: as CLIP has it
def test_a_config_that_does_not_fit_is_refused(folder, content, message):
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(sdjax.SdjaxError, match=message) as caught:
        sdjax.load_clip(folder)
    assert str(folder) in str(caught.value)
