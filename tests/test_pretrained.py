"""The bundled model: it fits its budget, draws what is asked, and draws it the same alone, in a batch, on 4 devices."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import sdjax
from sdjax.families.sd import EMOJI

FOLDER = Path(sdjax.__file__).parent / "pretrained" / "emoji"
COLOURS = {"red": (222, 36, 40), "yellow": (252, 220, 48), "blue": (32, 84, 214), "white": (252, 252, 252)}
SETTINGS = {"steps": 10, "guidance_scale": 4.0}


@pytest.fixture(scope="module")
def sd():
    return sdjax.load("emoji")


def test_budget_and_preset(sd):
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 30_000_000
    assert replace(sd.config, name=EMOJI.name) == EMOJI


def test_background_is_the_one_asked_for(sd):
    prompts = [f"a 3d render of a red apple on a {colour} background" for colour in COLOURS]
    for name, image in zip(COLOURS, sdjax.txt2img(sd, prompts, **SETTINGS), strict=True):
        picture = np.asarray(image, float)
        border = np.median(np.concatenate([picture[:2].reshape(-1, 3), picture[-2:].reshape(-1, 3)]), axis=0)
        nearest = min(COLOURS, key=lambda colour: np.square(border - COLOURS[colour]).sum())
        assert nearest == name


def test_prompt_decides_what_is_drawn(sd):
    """Same noise, other thing: another picture; an empty prompt is allowed."""
    prompts = [f"a flat emoji of a {thing} on a white background" for thing in ("red apple", "dog face")]
    side = EMOJI.size // EMOJI.vae.factor
    noise = np.random.default_rng(0).normal(size=(1, side, side, 4)).repeat(4, 0)
    pictures = sdjax.txt2img(sd, [*prompts, "", prompts[0]], latents=noise, **SETTINGS)  # a batch as above: one program
    apple, dog, other, again = (np.asarray(picture, float) for picture in pictures)
    assert np.abs(apple - dog).mean() > 5 and np.abs(other - dog).mean() > 5 and np.abs(apple - again).max() <= 1


def test_a_picture_depends_on_its_seed_alone(sd, tmp_path):
    prompt = "a noto emoji of a cactus on a light blue background"
    alone = [np.asarray(sdjax.txt2img(sd, prompt, seed=seed, **SETTINGS)[0], int) for seed in (5, 6)]
    batch = [np.asarray(image, int) for image in sdjax.txt2img(sd, prompt, seed=4, num_images=4, **SETTINGS)]
    for mine, other in zip(alone, batch[1:3], strict=True):
        assert np.abs(mine - other).max() <= 1

    script = (
        "import sys, numpy as np, jax, sdjax; assert jax.local_device_count() == 4; "
        f"images = sdjax.txt2img(sdjax.load('emoji'), {prompt!r}, seed=4, num_images=4, **{SETTINGS!r}); "
        "np.save(sys.argv[1], np.stack([np.asarray(image, int) for image in images]))"
    )
    flags = os.environ | {"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", script, tmp_path / "four.npy"], env=flags, check=True, cwd=Path.cwd())
    assert np.abs(np.load(tmp_path / "four.npy") - np.stack(batch)).max() <= 1
