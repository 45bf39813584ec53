"""The bundled folder is a standard one: diffusers loads it and draws the same pictures."""

import logging
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

import sdjax  # noqa: E402

pytestmark = pytest.mark.parity

FOLDER = Path(sdjax.__file__).parent / "pretrained" / "emoji"
PROMPTS = ["a 3d render of a red apple on a yellow background", "a flat emoji of a dog face on a blue background"]


@pytest.fixture(scope="module")
def pipe():
    return diffusers.StableDiffusionPipeline.from_pretrained(FOLDER, torch_dtype=torch.float32)


def test_no_key_is_missing_or_unexpected(caplog, capfd):
    for name in ("diffusers", "transformers"):
        logging.getLogger(name).propagate = True
    diffusers.StableDiffusionPipeline.from_pretrained(FOLDER)
    said = (caplog.text + "".join(capfd.readouterr())).lower()
    assert not any(word in said for word in ("newly initialized", "not used", "missing", "unexpected"))


@pytest.mark.parametrize("guidance_scale", [4.0, 7.5])
def test_same_pictures(pipe, guidance_scale):
    sd = sdjax.load("emoji")
    noise = np.random.default_rng(0).standard_normal((len(PROMPTS), 16, 16, 4)).astype(np.float32)
    settings = {"guidance_scale": guidance_scale}
    found = sdjax.txt2img(sd, PROMPTS, steps=20, sampler="ddim", latents=noise, **settings)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(
        PROMPTS,
        num_inference_steps=20,
        latents=torch.tensor(noise.transpose(0, 3, 1, 2).copy()),
        **settings,
    ).images
    for mine, yours in zip(found, expected, strict=True):
        difference = np.abs(np.asarray(mine, int) - np.asarray(yours, int))
        assert difference.max() <= 2
