"""The safety checker's reading and its rule; tests/parity compares decisions with diffusers."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import sdjax
from sdjax.image.pixels import CLIP_MEAN, CLIP_STD, clip_pixels
from sdjax.networks.clip.fields import FIELDS
from sdjax.networks.table import make_rows
from sdjax.tasks import safety
from sdjax.weights.convert import to_file_tensors
from tests.narrow import NARROW_VISION, random_params

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture
def folder(tmp_path):
    """As diffusers writes it, but for the doubled name of old files, which one tensor has."""
    rng, out = np.random.default_rng(0), tmp_path / "model" / "safety_checker"
    tensors = to_file_tensors(random_params(NARROW_VISION), make_rows(NARROW_VISION))
    old = "vision_model.embeddings.class_embedding"
    tensors[f"vision_model.{old}"] = tensors.pop(old)
    tensors |= {
        "vision_model.vision_model.embeddings.position_ids": np.arange(17)[None],
        "concept_embeds": rng.normal(size=(17, 16)).astype(np.float32),
        "concept_embeds_weights": np.full(17, 0.2, np.float32),
        "special_care_embeds": rng.normal(size=(3, 16)).astype(np.float32),
        "special_care_embeds_weights": np.full(3, 0.2, np.float32),
    }
    vision = {theirs: getattr(NARROW_VISION, ours) for ours, theirs in FIELDS.items() if ours != "projection"}
    out.mkdir(parents=True)
    save_file(tensors, out / "model.safetensors")
    content = {"projection_dim": 16, "vision_config": vision | {"dropout": 0.0}, "text_config": {"hidden_size": 768}}
    (out / "config.json").write_text(json.dumps(content))
    return out


def test_reading_and_checking(folder):
    checker = sdjax.load_safety_checker(folder)
    assert checker.config == NARROW_VISION and checker.concepts.shape == (17, 16)
    np.testing.assert_allclose(np.linalg.norm(checker.concepts, axis=1), 1, rtol=1e-6)
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)) for _ in range(11)]
    flags = sdjax.check_safety(sdjax.load_safety_checker(folder.parent), images)
    assert flags.shape == (11,) and flags.dtype == bool
    for i in (0, 7, 8, 10):  # chunks of 8 do not show
        assert sdjax.check_safety(checker, images[i]) == flags[i : i + 1]
    pixels = np.stack([np.asarray(image, np.float32) / 127.5 - 1 for image in images[:3]])
    np.testing.assert_array_equal(sdjax.check_safety(checker, pixels), flags[:3])
    assert sdjax.check_safety(checker, []).shape == (0,)


@pytest.mark.parametrize(
    "cosine, special, flag",
    [
        (0.2004, 0.0, False),
        (0.2006, 0.0, True),
        (0.1904, 0.2006, False),
        (0.1906, 0.2006, True),
        (0.1906, 0.2004, False),
        (0.5, 0.5, True),
        (-0.5, 0.9, False),
    ],
)
def test_the_rule(cosine, special, flag):
    """Above the threshold of 0.2 by more than half a thousandth; 0.01 lower once a special concept fired."""
    axes = np.eye(4, dtype=np.float32)
    limit = np.float32([0.2])
    checker = safety.SafetyChecker(NARROW_VISION, {}, axes[:1], limit, axes[1:2], limit)
    rest = np.sqrt(max(0, 1 - cosine**2 - special**2))
    assert safety.decide(checker, 3 * np.float32([[cosine, special, rest, 0]]))[0] == flag


def test_pixels():
    image = Image.new("RGB", (40, 20), (255, 0, 0))
    pixels = clip_pixels(image, 10)
    assert pixels.shape == (10, 10, 3) and pixels.dtype == np.float32
    np.testing.assert_allclose(pixels[5, 5], (np.array([1, 0, 0]) - CLIP_MEAN) / CLIP_STD, rtol=1e-5)
    image.paste((0, 0, 255), (0, 0, 10, 20))
    np.testing.assert_allclose(clip_pixels(image, 10)[0, -1], pixels[5, 5], rtol=1e-5)  # the sides are cut off


def edit(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def retensor(folder, **tensors):
    path = folder / "model.safetensors"
    found = load_file(path) | tensors
    save_file({name: value for name, value in found.items() if value is not None}, path)


@pytest.mark.parametrize(
    "spoil, match",
    [
        (lambda f: (f / "config.json").unlink(), "no such file"),
        (lambda f: edit(f, vision_config=3), "has no vision_config"),
        (lambda f: edit(f, vision_config={"hidden_size": "wide"}), "hidden_size is 'wide', should be a whole number"),
        (lambda f: edit(f, vision_config={"hidden_act": "relu"}), "hidden_act 'relu'"),
        (lambda f: edit(f, vision_config={"layer_norm_eps": 1e-6}), "layer_norm_eps 1e-06"),
        (lambda f: edit(f, projection_dim=32), r"concept_embeds has shape \[17, 16\].*should be \[n, 32\]"),
        (lambda f: (f / "model.safetensors").unlink(), r"no model\.safetensors there"),
        (lambda f: retensor(f, special_care_embeds=None), "no tensor special_care_embeds"),
        (lambda f: retensor(f, concept_embeds_weights=np.zeros(3, np.float32)), r"concept_embeds_weights \[3\]"),
        (
            lambda f: retensor(f, concept_embeds_weights=np.full(17, np.nan, np.float32)),
            "concept_embeds_weights with NaN",
        ),
    ],
)
def test_refusals(folder, spoil, match):
    spoil(folder)
    with pytest.raises(sdjax.SdjaxError, match=match) as caught:
        sdjax.load_safety_checker(folder)
    assert "safety_checker" in str(caught.value) and "\n" not in str(caught.value)


def test_a_checker_is_a_checker():
    with pytest.raises(sdjax.SdjaxError, match="checker is NoneType: what load_safety_checker gives"):
        sdjax.check_safety(None, [Image.new("RGB", (8, 8))])
