"""Walks with ControlNets and T2I-Adapters against diffusers' pipelines in float64, with the same noise and weights."""

from dataclasses import replace
from functools import cache

import diffusers
import jax
import numpy as np
import pytest
import torch

import sdjax
from sdjax.tasks import request_control, steering
from tests.parity import control_peers as peers
from tests.parity.peers import error, export, fields, file_tensors, nchw, nhwc, perturb
from tests.parity.test_samplers import make

pytestmark = [
    pytest.mark.parity,
    pytest.mark.usefixtures("quick_compile"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

SEED, PROMPT, SIZE, STEPS = 3, "cat", (64, 48), 5
LIMIT = 1e-4
PICTURE = np.random.default_rng(0).uniform(size=(*SIZE, 3)).astype(np.float32)
PIXELS = np.random.default_rng(1).uniform(-1, 1, (*SIZE, 3)).astype(np.float32)
MASK = np.zeros(SIZE, np.float32)
MASK[16:40, 8:40] = 1


@cache
def models(name: str = "SD 1"):
    """(ours, torch's UNet, torch's VAE)."""
    sd, unet = peers.model(name)
    torch.manual_seed(2)
    vae = perturb(diffusers.AutoencoderKL(**fields(sd.config, "vae/config.json")))
    vae_params = export(file_tensors(vae, "vae"), sd.config.vae)
    return replace(sd, params=sd.params | {"vae": vae_params}), unet, vae


@pytest.fixture
def theirs(monkeypatch):
    """Runs a diffusers pipeline: latents [1, h, w, 4]. The VAE's posterior gives its mean, noise is our seed's."""

    def run(kind: str, controls, pictures, name: str = "SD 1", **settings):
        sd, unet, vae = models(name)
        noise = nchw(jax.random.normal(jax.random.key(SEED), (SIZE[0] // 8, SIZE[1] // 8, 4))[None])
        distribution = "diffusers.models.autoencoders.vae.DiagonalGaussianDistribution"
        monkeypatch.setattr(f"{distribution}.sample", lambda self, *_: self.mode())
        states = sdjax.encode_prompt(sd, [PROMPT, ""]).context
        embeds = [torch.tensor(np.asarray(states[i : i + 1])).double() for i in (0, 1)]
        several = controls if isinstance(controls, list) else [controls]
        if "Adapter" in kind:
            pipe = diffusers.StableDiffusionAdapterPipeline(
                vae, None, None, unet, controls, make("ddim"), None, None, requires_safety_checker=False
            )
        else:
            pipe = getattr(diffusers, f"StableDiffusionControlNet{kind}Pipeline")(
                vae, None, None, unet, controls, make("ddim"), None, None, requires_safety_checker=False
            )
            module = "pipeline_controlnet" + {"Img2Img": "_img2img", "Inpaint": "_inpaint", "": ""}[kind]
            module = f"diffusers.pipelines.controlnet.{module}.randn_tensor"
            monkeypatch.setattr(module, lambda *_, **__: noise, raising=False)
        pipe.set_progress_bar_config(disable=True)
        hints = [nchw(one[None]) for one in pictures]
        hints = hints if len(several) > 1 else hints[0]
        if "Adapter" not in kind:  # whose defaults are 0.8 for img2img and 0.5 for inpaint
            settings = {"controlnet_conditioning_scale": 1.0} | settings
        settings |= {"num_inference_steps": STEPS, "guidance_scale": 3.0}
        if kind in ("", "Adapter"):
            settings |= {"image": hints, "latents": noise, "height": SIZE[0], "width": SIZE[1]}
        else:
            settings |= {"image": nchw(PIXELS[None]), "control_image": hints}
        if kind == "Inpaint":
            settings |= {"mask_image": torch.tensor(MASK)[None, None].double(), "height": SIZE[0], "width": SIZE[1]}
        return nhwc(
            pipe(prompt_embeds=embeds[0], negative_prompt_embeds=embeds[1], output_type="latent", **settings).images
        )

    return run


def ours(task, *arguments, name: str = "SD 1", **options):
    sd = models(name)[0]
    size = {} if task is not sdjax.txt2img else {"height": SIZE[0], "width": SIZE[1]}
    settings = {"steps": STEPS, "guidance_scale": 3.0, "seed": SEED, "output": "latents", "sampler": "ddim"} | size
    return task(sd, PROMPT, *arguments, **settings, **options)


def control(name: str = "SD 1", seed: int = 0, **changes):
    return peers.control(peers.control_config(models(name)[0].config, **changes), seed)


#: what is asked for -> (our options, diffusers')
ASKED = {
    "plain": ({}, {}),
    "scale": ({"control_scale": 0.6}, {"controlnet_conditioning_scale": 0.6}),
    "interval": (
        {"control_interval": (0.2, 0.6)},
        {"control_guidance_start": 0.2, "control_guidance_end": 0.6},
    ),
    "an interval's edge": (
        {"control_interval": (0.1, 0.5)},
        {"control_guidance_start": 0.1, "control_guidance_end": 0.5},
    ),
    "guess mode": ({"control_mode": "control"}, {"guess_mode": True}),
}


@pytest.mark.parametrize("asked", ASKED)
def test_txt2img(asked, theirs):
    mine, peer = control()
    options, settings = ASKED[asked]
    expected = theirs("", peer, [PICTURE], **settings)
    found = ours(sdjax.txt2img, control=mine, control_image=PICTURE, **options)
    plain = ours(sdjax.txt2img)
    print(f"error {error(found, expected):.2e}, without control {error(plain, expected):.2e}")
    assert error(found, expected) < LIMIT < error(plain, expected)


def test_pooled(theirs):
    """Shuffle: residuals are averaged, on the conditional side alone."""
    mine, peer = control(pooled=True)
    expected = theirs("", peer, [PICTURE])
    assert error(ours(sdjax.txt2img, control=mine, control_image=PICTURE), expected) < LIMIT


def test_two_controls(theirs):
    (a, peer_a), (b, peer_b) = control(), control(seed=5)
    pictures = [PICTURE, PICTURE[::-1].copy()]
    intervals = {"control_guidance_start": [0.0, 0.4], "control_guidance_end": [0.6, 1.0]}
    expected = theirs("", [peer_a, peer_b], pictures, controlnet_conditioning_scale=[0.5, 0.8], **intervals)
    options = {"control_scale": [0.5, 0.8], "control_interval": [(0, 0.6), (0.4, 1)]}
    found = ours(sdjax.txt2img, control=[a, b], control_image=pictures, **options)
    assert error(found, expected) < LIMIT


def test_img2img(theirs):
    """The interval counts the steps that run."""
    mine, peer = control()
    settings = {"control_guidance_start": 0.0, "control_guidance_end": 0.67}
    expected = theirs("Img2Img", peer, [PICTURE], strength=0.6, **settings)
    options = {"control_interval": (0.0, 0.67), "strength": 0.6}
    assert error(ours(sdjax.img2img, PIXELS, control=mine, control_image=PICTURE, **options), expected) < LIMIT


def test_inpaint(theirs):
    mine, peer = control()
    expected = theirs("Inpaint", peer, [PICTURE], strength=1.0)
    assert error(ours(sdjax.inpaint, PIXELS, MASK, control=mine, control_image=PICTURE), expected) < LIMIT


@pytest.mark.parametrize("kind", ["full_adapter", "light_adapter"])
def test_adapters(kind, theirs):
    mine, peer = peers.adapter(peers.adapter_config(models()[0].config, kind))
    expected = theirs("Adapter", peer, [PICTURE], adapter_conditioning_scale=0.7)
    found = ours(sdjax.txt2img, control=mine, control_image=PICTURE, control_scale=0.7)
    assert error(found, expected) < LIMIT


# ---- mistakes

right = {"asked": request_control.AskedControl, "weights": request_control.weights_of}


def webui(asked, plan):
    """On where i / N is inside: one step more."""
    table, count = right["weights"](asked._replace(interval=(0.0, 1.0)), plan), int(np.sum(plan.levels > 0))
    on = [asked.interval[0] <= i / count <= asked.interval[1] for i in range(count)]
    return table * np.pad(np.float32(on), (0, len(table) - count))[:, None]


def a_step_later(asked, plan):
    return np.roll(right["weights"](asked, plan), 1, axis=0)


#: what is wrong -> (what is asked for, its module and name, the wrong value)
MISTAKES = {
    "webui's interval": ("interval", steering, "weights_of", webui),
    "a step later": ("interval", steering, "weights_of", a_step_later),
    "lllyasviel's soft weights": (
        *("guess mode", request_control, "soft_weights"),
        lambda config: 0.825 ** np.arange(config.residuals - 1.0, -1, -1),
    ),
    "soft weights from the middle": (
        *("guess mode", request_control, "soft_weights"),
        lambda config: np.logspace(0, -1, config.residuals),
    ),
    "no soft weights": ("guess mode", request_control, "soft_weights", lambda config: np.ones(config.residuals)),
    "control on the unconditional side": (
        *("guess mode", request_control, "AskedControl"),
        lambda *fields: right["asked"](*fields[:-1], False),
    ),
    "control on the conditional side alone": (
        *("plain", request_control, "AskedControl"),
        lambda *fields: right["asked"](*fields[:-1], True),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_caught(mistake, theirs, monkeypatch):
    asked, place, name, wrong = MISTAKES[mistake]
    mine, peer = control()
    options, settings = ASKED[asked]
    expected = theirs("", peer, [PICTURE], **settings)
    monkeypatch.setattr(place, name, wrong)
    found = error(ours(sdjax.txt2img, control=mine, control_image=PICTURE, **options), expected)
    print(f"{found:.2e}")
    assert found > LIMIT and np.isfinite(found)


def test_steps_of_all_counted_is_caught(theirs, monkeypatch):
    """Those that strength leaves out are not counted."""
    mine, peer = control()
    expected = theirs("Img2Img", peer, [PICTURE], strength=0.6, control_guidance_end=0.67)

    def wrong(asked, plan):
        return right["weights"](asked, plan._replace(rows=plan.rows._replace(sigma=plan.levels)))

    monkeypatch.setattr(steering, "weights_of", wrong)
    options = {"control_interval": (0.0, 0.67), "strength": 0.6}
    assert error(ours(sdjax.img2img, PIXELS, control=mine, control_image=PICTURE, **options), expected) > LIMIT
