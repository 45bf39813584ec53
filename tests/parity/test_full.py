"""Full size: SD 1.5, SD 2.1 (v) and SD 1.5 inpainting with random weights that diffusers saved, against torch float64.

    pytest -m slow tests/parity/test_full.py -s

takes some 5 minutes, 10 GB of memory and 5 GB of disk a model; modules are built one after the other. Limits: FACTS 9.
"""

import gc
import resource
import time

import diffusers
import jax
import numpy as np
import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel

import sdjax
from sdjax.families.sd import SD15, SD15_INPAINT, SD21
from sdjax.text.tokenizer import clip_tokenizer, write_tokenizer
from sdjax.types import Cond
from tests.parity.peers import error, fields, nchw, nhwc, rng_normal, roughen

pytestmark = [pytest.mark.parity, pytest.mark.slow]

PROMPTS = ["a photo of an astronaut riding a horse on mars", ""]
LIMITS = {"text": 5e-6, "unet": 5e-6, "vae mean": 1e-5, "vae logvar": 1e-5, "vae decode": 1e-5}


def inputs(config):
    context = rng_normal(2, 77, config.unet.context_dim, seed=1)
    return {
        "x": rng_normal(2, 16, 16, config.unet.in_channels),
        "t": np.array([981.0, 17.0], np.float32),
        "context": context,
        "pixels": rng_normal(1, 128, 128, 3, seed=2).clip(-1, 1),
        "latents": rng_normal(1, 16, 16, 4, seed=3),
    }


def build(config, part):
    if part == "text_encoder":
        return CLIPTextModel(CLIPTextConfig(**fields(config, "text_encoder/config.json")))
    kind = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}[part]
    return kind(**fields(config, f"{part}/config.json"))


def reference(config, part, peer, given):
    """{name: torch's float64 output}."""
    if part == "text_encoder":
        tokens = clip_tokenizer()(PROMPTS, add_special_tokens=False)["input_ids"]
        text, ids = config.text, torch.full((2, 77), config.text.pad_token)
        for row, found in zip(ids, tokens, strict=True):
            row[: len(found) + 2] = torch.tensor([text.bos_token, *found, text.eos_token])
        return {"text": peer(ids).last_hidden_state}
    if part == "unet":
        t, context = (torch.from_numpy(given[name]).double() for name in ("t", "context"))
        return {"unet": nhwc(peer(nchw(given["x"]), t, context).sample)}
    posterior = peer.encode(nchw(given["pixels"])).latent_dist
    decoded = peer.decode(nchw(given["latents"]) / config.vae.scaling).sample
    return {"vae mean": nhwc(posterior.mean), "vae logvar": nhwc(posterior.logvar), "vae decode": nhwc(decoded)}


def save_with_diffusers(config, folder, given):
    """Writes the folder part by part; returns torch's outputs."""
    found = {}
    for seed, part in enumerate(("text_encoder", "vae", "unet")):
        torch.manual_seed(seed)
        peer = roughen(build(config, part))
        peer.save_pretrained(folder / part)
        with torch.no_grad():
            found |= reference(config, part, peer.double(), given)
        del peer
        gc.collect()
    scheduler = diffusers.DDIMScheduler(**fields(config, "scheduler/scheduler_config.json"))
    scheduler.save_pretrained(folder / "scheduler")
    write_tokenizer(clip_tokenizer(), config.text, folder / "tokenizer")
    with torch.device("meta"):
        parts = {part: build(config, part) for part in ("text_encoder", "vae", "unet")}
    inpainting = config.unet.in_channels == 9
    kind = diffusers.StableDiffusionInpaintPipeline if inpainting else diffusers.StableDiffusionPipeline
    pipe = kind(
        **parts,
        scheduler=scheduler,
        tokenizer=clip_tokenizer(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_config(folder)
    return found


@pytest.mark.parametrize("config", [SD15, SD21, SD15_INPAINT], ids=lambda config: config.name)
def test_full_size(config, tmp_path):
    given, begun = inputs(config), time.monotonic()
    want = save_with_diffusers(config, tmp_path / "model", given)
    print(f"\n{config.name}: torch {time.monotonic() - begun:.0f} s")
    gc.collect()
    begun = time.monotonic()
    sd = sdjax.load(tmp_path / "model")
    assert sd.config == config
    print(
        f"sdjax.load {time.monotonic() - begun:.1f} s,",
        ", ".join(f"{part} {sum(leaf.size for leaf in jax.tree.leaves(sd.params[part])):,}" for part in sd.params),
        "parameters",
    )
    mean, logvar = sdjax.vae_moments(sd, given["pixels"])
    found = {
        "text": sdjax.encode_prompt(sd, PROMPTS).context,
        "vae mean": mean,
        "vae logvar": logvar,
        "vae decode": sdjax.decode(sd, given["latents"]),
        "unet": sdjax.predict(sd, given["x"], given["t"], Cond(given["context"])),
    }
    errors = {name: error(found[name], want[name]) for name in LIMITS}
    print(
        "  ".join(f"{name} {value:.1e}" for name, value in errors.items()),
        f" peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GB",
    )
    assert all(np.isfinite(value) and value <= LIMITS[name] for name, value in errors.items()), errors
