"""All samplers and tasks against diffusers' pipelines in float64: the same random model, noise and settings.

txt2img: every sampler, of eps and of v. img2img and both kinds of inpainting are exact, whatever the strength, for all
but plms and lms, with the settings of diffusion/tables.py. Below strength 1 these two are not diffusers':
cutting its list of timesteps loses PNDM's repeated one, and LMS then takes weights of order 4 for an empty history.
"""

from dataclasses import replace
from functools import cache
from itertools import chain

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

import sdjax  # noqa: E402
from sdjax.diffusion.schedule import ScheduleConfig, make_schedule, t_to_sigma  # noqa: E402
from tests.parity.peers import error, export, fields, file_tensors, nchw, nhwc, perturb  # noqa: E402
from tests.parity.test_samplers import DIFFUSERS, fed_with_eps, follow_noise, make, peers_draws  # noqa: E402
from tests.tiny import tiny  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    pytest.mark.usefixtures("quick_compile"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

INPAINT = "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint"
IMG2IMG = "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img"
SEED, PROMPT = 3, "cat"
PIXELS = np.random.default_rng(0).uniform(-1, 1, (16, 16, 3)).astype(np.float32)
MASK = np.zeros((16, 16), np.float32)
MASK[3:11, 5:16] = 1  # not in whole latents


@cache
def models(channels: int, prediction: str):
    """(ours, torch's UNet, torch's VAE)."""
    sd = tiny(channels)
    config = replace(sd.config, schedule=ScheduleConfig(prediction=prediction))
    torch.manual_seed(0)
    unet = perturb(diffusers.UNet2DConditionModel(**fields(config, "unet/config.json")))
    vae = perturb(diffusers.AutoencoderKL(**fields(config, "vae/config.json")))
    params = sd.params | {
        "unet": export(file_tensors(unet, "unet"), config.unet),
        "vae": export(file_tensors(vae, "vae"), config.vae),
    }
    return replace(sd, config=config, params=params), unet, vae


@pytest.fixture
def theirs(monkeypatch):
    """Runs a diffusers pipeline: latents [B, h, w, 4]. The VAE's posterior gives its mean, noise is our seed's."""

    def run(kind: str, channels: int, prediction: str, scheduler, **settings):
        sd, unet, vae = models(channels, prediction)
        key = jax.random.key(SEED)
        rows = [jax.random.normal(jax.random.fold_in(key, row), (8, 8, 4)) for row in range(40)]
        first, rows = jax.random.normal(key, (8, 8, 4)), peers_draws(type(scheduler).__name__, rows)
        draws = chain([first], rows)
        noise = lambda *_, **__: nchw(next(draws)[None])
        distribution = "diffusers.models.autoencoders.vae.DiagonalGaussianDistribution"
        monkeypatch.setattr(f"{distribution}.sample", lambda self, *_: self.mode())
        for module in (INPAINT, IMG2IMG):
            monkeypatch.setattr(f"{module}.randn_tensor", noise, raising=False)
        follow_noise(scheduler, noise, monkeypatch)
        states = sdjax.encode_prompt(sd, [PROMPT, ""]).context
        embeds = [torch.tensor(np.asarray(states[i : i + 1])).double() for i in (0, 1)]
        pipe = getattr(diffusers, f"StableDiffusion{kind}Pipeline")(
            vae, None, None, unet, scheduler, None, None, requires_safety_checker=False
        )
        pipe.set_progress_bar_config(disable=True)
        if kind:
            settings |= {"image": nchw(PIXELS[None])}
        else:
            settings |= {"latents": noise(), "height": 16, "width": 16}
        if kind == "Inpaint":
            settings |= {"mask_image": torch.tensor(MASK)[None, None].double(), "height": 16, "width": 16}
        return pipe(prompt_embeds=embeds[0], negative_prompt_embeds=embeds[1], output_type="latent", **settings).images

    return run


def keep_by_level(scheduler):
    """A scheduler that noises what inpainting keeps to the level of the timestep that the model is called with next.

    Left to itself diffusers looks the level up by its place in the list, and takes that of a step's end in its middle.
    """
    schedule = make_schedule(ScheduleConfig())
    scheduler.add_noise = lambda x0, noise, t: x0 + noise * t_to_sigma(schedule, float(t[0]))
    return scheduler


MIDDLE = ("dpmpp_sde", "dpm2")  # they call the model at levels between those of their steps


def compare(theirs, kind, channels, prediction, name, strength, steps, guidance_scale=3.0, by_level=True, **options):
    settings = {"karras": {"use_karras_sigmas": True}}.get(options.get("sigmas"), {})
    scheduler = make(name, prediction, **settings)
    expected = theirs(
        kind,
        channels,
        prediction,
        keep_by_level(scheduler) if by_level and name in MIDDLE else scheduler,
        strength=strength,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
    )
    args = (models(channels, prediction)[0], PROMPT, PIXELS, *([MASK] if kind == "Inpaint" else []))
    found = {"Img2Img": sdjax.img2img, "Inpaint": sdjax.inpaint}[kind](
        *args,
        strength=strength,
        steps=steps,
        sampler=name,
        guidance_scale=guidance_scale,
        seed=SEED,
        output="latents",
        **options,
    )
    return error(found, nhwc(expected))


EXACT = [name for name in DIFFUSERS if name not in ("plms", "lms")]
STEPS = {"lcm": 8}  # 10 divides 1000 and 999 = 9 x 111: no sampler's grid differs from its peer's


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("name", DIFFUSERS)
def test_txt2img(name, prediction, theirs):
    """ddim with guidance rescaled (arXiv 2305.08891), too."""
    sd, steps = models(4, prediction)[0], STEPS.get(name, 10)
    for rescale in (0.0, 0.7)[: 1 + (name == "ddim")]:
        plms_of_v = name == "plms" and prediction == "v"
        scheduler = fed_with_eps(make(name)) if plms_of_v else make(name, prediction)
        settings = {"guidance_scale": 3.0, "guidance_rescale": rescale}
        expected = theirs("", 4, prediction, scheduler, num_inference_steps=steps, **settings)
        found = sdjax.txt2img(sd, PROMPT, steps=steps, sampler=name, seed=SEED, output="latents", **settings)
        assert error(found, nhwc(expected)) < DIFFUSERS[name][2], rescale


@pytest.mark.parametrize("name", EXACT)
def test_img2img(name, theirs):
    for prediction, strength in (("epsilon", 0.35), ("epsilon", 1.0), ("v", 0.75)):
        found = compare(theirs, "Img2Img", 4, prediction, name, strength, STEPS.get(name, 10))
        assert found < DIFFUSERS[name][2], (prediction, strength)


@pytest.mark.parametrize("channels", [9, 4])
@pytest.mark.parametrize("name", EXACT)
def test_inpaint(name, channels, theirs):
    """With nine channels the model sees the rest; with four diffusers puts it back after each step, we before each."""
    for prediction, strength in (("epsilon", 1.0), ("v", 0.6)):
        found = compare(theirs, "Inpaint", channels, prediction, name, strength, STEPS.get(name, 10))
        assert found < DIFFUSERS[name][2], (prediction, strength)


def test_what_diffusers_keeps_in_the_middle_of_a_step(theirs):
    found = compare(theirs, "Inpaint", 4, "epsilon", "dpm2", 1.0, 10, by_level=False)
    assert found > 1e-3, "diffusers has been mended: say so above"


@pytest.mark.parametrize("name", ["plms", "lms"])
def test_multistep_samplers_at_full_strength(name, theirs):
    assert compare(theirs, "Inpaint", 9, "epsilon", name, 1.0, 10) < DIFFUSERS[name][2]
    assert compare(theirs, "Inpaint", 4, "epsilon", name, 1.0, 10) < DIFFUSERS[name][2]
    assert compare(theirs, "Img2Img", 4, "epsilon", name, 0.5, 10) > 1e-3, "diffusers has been mended: say so above"


def test_a_wrong_level_or_mask_would_be_seen(theirs):
    expected = theirs("Img2Img", 4, "epsilon", make("ddim"), strength=0.6, num_inference_steps=10, guidance_scale=3.0)
    sd = models(4, "epsilon")[0]
    found = sdjax.img2img(sd, PROMPT, PIXELS, strength=0.5, steps=10, guidance_scale=3.0, seed=SEED, output="latents")
    assert error(found, nhwc(expected)) > 1e-3
    expected = theirs("Inpaint", 4, "epsilon", make("ddim"), strength=1.0, num_inference_steps=10, guidance_scale=3.0)
    options = {"steps": 10, "guidance_scale": 3.0, "seed": SEED, "output": "latents"}
    found = sdjax.inpaint(sd, PROMPT, PIXELS, np.roll(MASK, 2), **options)
    assert error(found, nhwc(expected)) > 1e-3
