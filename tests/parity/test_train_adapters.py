"""What the commands export that train a part of a model: diffusers loads it and draws the same pictures."""

from dataclasses import replace

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")

import sdjax  # noqa: E402
from sdjax.commands.train_embedding import Options, initial_vectors, with_vectors, write_embedding  # noqa: E402
from sdjax.training.control import control_config, initial_control, write_control  # noqa: E402
from sdjax.training.lora import KINDS, chosen_sites, initial_tree  # noqa: E402
from sdjax.training.lora_export import write_lora  # noqa: E402
from tests.scripts import EMOJI64  # noqa: E402

pytestmark = pytest.mark.parity

PROMPT = "a 3d render of a red apple on a yellow background"
NOISE = np.random.default_rng(0).standard_normal((1, 16, 16, 4)).astype(np.float32)
SETTINGS = {"guidance_scale": 4.0}


def moved(tree, share):
    """The parameters with noise, a share of each one's own spread, or of 1 where all are zero."""
    rng = np.random.default_rng(0)
    spread = lambda leaf: share * (float(np.std(leaf)) or 0.2)
    return jax.tree.map(lambda leaf: np.float32(leaf + spread(leaf) * rng.normal(size=np.shape(leaf))), tree)


def theirs(pipe, prompt=PROMPT, **more):
    pipe.set_progress_bar_config(disable=True)
    latents = torch.tensor(NOISE.transpose(0, 3, 1, 2).copy())
    found = pipe(prompt, num_inference_steps=10, latents=latents, height=64, width=64, **SETTINGS, **more)
    return np.asarray(found.images[0], int)


def ours(sd, prompt=PROMPT, **more):
    return np.asarray(sdjax.txt2img(sd, prompt, steps=10, sampler="ddim", latents=NOISE, **SETTINGS, **more)[0], int)


def pipeline(kind=diffusers.StableDiffusionPipeline, **more):
    return kind.from_pretrained(EMOJI64, torch_dtype=torch.float32, **more)


@pytest.fixture(scope="module")
def sd():
    """In float32: diffusers' LoRA stands beside layers, sdjax' is merged and rounded to what these are stored in."""
    found = sdjax.load(EMOJI64)
    return replace(found, params=jax.tree.map(lambda leaf: leaf.astype(np.float32), found.params))


@pytest.mark.parametrize("kind", KINDS)
def test_lora(sd, tmp_path, kind):
    """UNet and text tower, all layers; LoHa and LoKr are written for diffusers as the LoRA that they are."""
    sites = chosen_sites(sd.config, "all", 2.0, ("unet", "text"))
    tree = moved(initial_tree(kind, sites, 4, 0, sd.params), 0.5)
    path = write_lora(tmp_path, "style", sd, sites, tree, {})
    pipe = pipeline()
    before = theirs(pipe)
    pipe.load_lora_weights(tmp_path / "diffusers")
    found = ours(sdjax.add_lora(sd, path))
    expected = theirs(pipe)
    assert np.abs(found - expected).max() <= 2
    assert np.abs(expected - before).max() > 20
    if kind == "lora":  # kohya's layout, which diffusers reads of plain LoRA
        pipe = pipeline()
        pipe.load_lora_weights(path)
        assert np.abs(found - theirs(pipe)).max() <= 2
        off = write_lora(tmp_path / "off", "style", sd, [site._replace(alpha=3.0) for site in sites], tree, {})
        assert np.abs(ours(sdjax.add_lora(sd, off)) - expected).max() > 2


def test_controlnet(sd, tmp_path):
    config = control_config(sd.config)
    write_control(tmp_path, config, moved(initial_control(config, sd.params["unet"], 0), 0.1))
    picture = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    net = diffusers.ControlNetModel.from_pretrained(tmp_path)
    pipe = pipeline(diffusers.StableDiffusionControlNetPipeline, controlnet=net)
    from PIL import Image

    expected = theirs(pipe, image=Image.fromarray(picture))
    single = tmp_path / "single" / "control.safetensors"
    for source in (tmp_path, single):
        control = sdjax.load_control(source, sd)
        found = ours(sd, control=control, control_image=picture)
        assert np.abs(found - expected).max() <= 2
    assert np.abs(found - ours(sd)).max() > 20


def test_embedding(sd, tmp_path):
    """diffusers reads the word's name from the file, and its vectors."""
    options = Options(tmp_path, tmp_path / "run", token="<zorp>", init_word="hamburger", vectors=2)
    tree = moved(initial_vectors(sd, options), 0.3)
    with_vectors(sd, options.token, tree)
    path = write_embedding(tmp_path, sd, options, tree)
    assert path.name == "zorp.safetensors"
    pipe, prompt = pipeline(), "a flat emoji of a <zorp> on a blue background"
    before = theirs(pipe, prompt)
    pipe.load_textual_inversion(path)
    expected = theirs(pipe, prompt)
    assert np.abs(ours(sdjax.add_embedding(sd, path), prompt) - expected).max() <= 2
    assert np.abs(expected - before).max() > 20
