"""Folders of latent diffusion models that are conditioned on nothing, against diffusers' LDMPipeline, both ways."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

import sdjax  # noqa: E402
from sdjax.diffusion.schedule import ScheduleConfig  # noqa: E402
from sdjax.families.config import Config  # noqa: E402
from sdjax.networks.unet.config import UNetConfig  # noqa: E402
from sdjax.networks.vae.config import VAEConfig  # noqa: E402
from tests.narrow import random_params  # noqa: E402

pytestmark = pytest.mark.parity

FACES = Config(
    name="faces",
    text=None,
    vae=VAEConfig((8, 16, 16), 1, 3, 4, 1.0, codes=20),
    unet=UNetConfig(3, 3, (16, 32), 1, (False, True), (2, 4), groups=8, cross=False),
    schedule=ScheduleConfig(beta_start=0.0015, beta_end=0.0195),
    size=32,
    guidance_scale=1.0,
)
CHURCHES = replace(
    FACES,
    name="churches",
    vae=VAEConfig((8, 16, 16), 1, 4, 4, 0.22, (False, False, True)),
    unet=UNetConfig(4, 4, (16, 32), 1, (True, True), (2, 4), groups=8, cross=False, updown=True),
)


def same(a, b):
    pixels = lambda images: np.stack([np.asarray(image, int) for image in images])
    difference = np.abs(pixels(a) - pixels(b))
    assert difference.max() <= 1 and (difference == 0).mean() > 0.995 and pixels(b).std() > 10


@pytest.mark.parametrize("config", [FACES, CHURCHES], ids=lambda config: config.name)
def test_what_we_save_diffusers_draws_and_what_it_saves_we_load(config, tmp_path):
    params = {part: random_params(getattr(config, part)) for part in ("vae", "unet")}
    sd = sdjax.StableDiffusion(config, params, None)
    sdjax.save(sd, tmp_path / "ours")
    pipe = diffusers.LDMPipeline.from_pretrained(tmp_path / "ours")
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe.vqvae).__name__ == ("VQModel" if config.vae.codes else "AutoencoderKL")
    noise = torch.randn(2, config.vae.latent_channels, 8, 8, generator=torch.manual_seed(3))
    theirs = pipe(batch_size=2, generator=torch.manual_seed(3), num_inference_steps=10).images
    latents = noise.numpy().transpose(0, 2, 3, 1)
    draw = lambda sd: sdjax.txt2img(sd, None, num_images=2, steps=10, latents=latents)
    same(draw(sd), theirs)
    pipe.save_pretrained(tmp_path / "theirs")
    found = sdjax.load(tmp_path / "theirs")
    assert found.config == replace(config, name="theirs") and found.config.guidance_scale == 1.0
    same(draw(found), theirs)


def test_an_old_folder_says_no_scaling_and_means_one(tmp_path):
    """diffusers' default is 0.18215 since 2023; the published folders of latent diffusion's VQ models are older."""
    import json

    params = {part: random_params(getattr(FACES, part)) for part in ("vae", "unet")}
    sdjax.save(sdjax.StableDiffusion(FACES, params, None), tmp_path / "old")
    path = tmp_path / "old" / "vqvae" / "config.json"
    content = json.loads(path.read_text())
    del content["scaling_factor"]
    path.write_text(json.dumps(content))
    assert sdjax.load(tmp_path / "old").config.vae.scaling == 1.0
