"""Distilled models against diffusers' pipelines in float64: SDXL-Turbo, SD-Turbo, and LCMs that are told the guidance.

The noise of every step is our seed's. In diffusers' pipelines guidance_scale 0.0 means no guidance, which here is 1.
"""

from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import sdjax  # noqa: E402
from tests.parity.sdxl_models import PROMPTS, SEED, TOWERS, WALK, WIDE, drawn, off, plain, scheduler, xl  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("quick_compile")]

TRAILING = {"timestep_spacing": "trailing"}
TURBO = {
    "sdxl-turbo": partial(xl, noise=scheduler("EulerAncestralDiscrete", **TRAILING)),
    "sd-turbo": partial(
        plain,
        kind="sd2",
        pipeline="StableDiffusionPipeline",
        noise=scheduler("EulerAncestralDiscrete", **TRAILING),
        towers=WIDE,
    ),
}
LCM = {
    "sdxl": partial(xl, noise=scheduler("LCM"), time_cond_proj_dim=256),
    "sd": partial(
        plain,
        kind="sd1",
        pipeline="LatentConsistencyModelPipeline",
        noise=scheduler("LCM"),
        towers=TOWERS,
        time_cond_proj_dim=256,
    ),
}


@pytest.fixture(scope="module", params=TURBO)
def turbo(request, tmp_path_factory):
    pipe, folder = TURBO[request.param](tmp_path_factory.mktemp("turbo"))
    return pipe, sdjax.load(folder)


@pytest.fixture(scope="module", params=LCM)
def lcm(request, tmp_path_factory):
    pipe, folder = LCM[request.param](tmp_path_factory.mktemp("lcm"))
    return pipe, sdjax.load(folder)


def ours(sd, steps: int, sampler="euler_a", **options):
    options = {"seed": SEED, "output": "latents"} | options
    return sdjax.txt2img(sd, PROMPTS, steps=steps, sampler=sampler, **options)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_turbo(steps, turbo):
    pipe, sd = turbo
    assert sd.config.spacing == "trailing"
    want = drawn(pipe, PROMPTS, num_inference_steps=steps, guidance_scale=0.0)
    found = off(ours(sd, steps, guidance_scale=1.0), want)
    print(f"error {found:.1e}")
    assert found < WALK


def test_turbo_s_pictures(turbo):
    pipe, sd = turbo
    want = drawn(pipe, PROMPTS, num_inference_steps=1, guidance_scale=0.0, output_type="pt")
    assert off(ours(sd, 1, guidance_scale=1.0, output="pixels"), want) < WALK


@pytest.mark.parametrize(
    "wrong",
    [{"spacing": "leading"}, {"guidance_scale": 0.0}, {"guidance_scale": 7.5}, {"spacing": "linspace", "steps": 2}],
    ids=["leading", "the unconditional alone", "guided", "linspace"],
)
def test_mistakes_with_turbo_would_be_seen(wrong, turbo):
    pipe, sd = turbo
    steps = wrong.get("steps", 1)
    want = drawn(pipe, PROMPTS, num_inference_steps=steps, guidance_scale=0.0)
    found = off(ours(sd, **{"guidance_scale": 1.0, "steps": steps} | wrong), want)
    print(f"error {found:.1e}")
    assert found > 100 * WALK


def test_turbo_s_noise_is_the_row_s(turbo):
    pipe, sd = turbo
    want = drawn(pipe, PROMPTS, num_inference_steps=2, guidance_scale=0.0, rows=iter(range(1, 9)))
    assert off(ours(sd, 2, guidance_scale=1.0), want) > 100 * WALK


# ---- latent consistency models


def exact(w: torch.Tensor, embedding_dim: int = 512, dtype=None, swap=False, divisor=1, factor=1000.0, offset=0.0):
    """The guidance's embedding in float64: diffusers' own is float32, which at 7500 radians is 2e-4 off."""
    half = embedding_dim // 2
    angles = (w.double() + offset)[:, None] * factor * torch.exp(-np.log(1e4) / (half - divisor) * torch.arange(half))
    both = [torch.sin(angles), torch.cos(angles)]
    return torch.cat(both[::-1] if swap else both, 1)


def told(pipe, monkeypatch, steps=4, guidance_scale=8.5, **wrong):
    monkeypatch.setattr(pipe, "get_guidance_scale_embedding", partial(exact, **wrong))
    return drawn(pipe, PROMPTS, num_inference_steps=steps, guidance_scale=guidance_scale)


@pytest.mark.parametrize("steps, guidance_scale", [(4, 8.5), (2, 8.5), (4, 2.0), (4, 1.0)])
def test_lcm(steps, guidance_scale, lcm, monkeypatch):
    pipe, sd = lcm
    found = off(ours(sd, steps, "lcm", guidance_scale=guidance_scale), told(pipe, monkeypatch, steps, guidance_scale))
    print(f"error {found:.1e}")
    assert found < WALK


def test_lcm_as_diffusers_computes_it(lcm):
    """With its float32 sinusoids."""
    pipe, sd = lcm
    want = drawn(pipe, PROMPTS, num_inference_steps=4, guidance_scale=8.5)
    found = off(ours(sd, 4, "lcm", guidance_scale=8.5), want)
    print(f"error {found:.1e}")
    assert found < WALK


def test_lcm_s_own_guidance(lcm, monkeypatch):
    pipe, sd = lcm
    assert off(ours(sd, 4, "lcm"), told(pipe, monkeypatch)) < WALK


def test_lcm_has_no_other_side(lcm):
    """The model is told the guidance, so that what to keep away from is never asked."""
    sd = lcm[1]
    a, b = (ours(sd, 2, "lcm", guidance_scale=8.5, negative_prompt=text) for text in ("", "an owl"))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "wrong",
    [{"swap": True}, {"divisor": 0}, {"offset": 1.0}, {"factor": 1.0}],
    ids=["cos before sin", "divisor half", "w for w - 1", "not times 1000"],
)
def test_mistakes_with_lcm_would_be_seen(wrong, lcm, monkeypatch):
    pipe, sd = lcm
    found = off(ours(sd, 4, "lcm", guidance_scale=8.5), told(pipe, monkeypatch, **wrong))
    print(f"error {found:.1e}")
    assert found > 10 * WALK


def test_guidance_beside_the_embedding_would_be_seen(lcm, monkeypatch):
    """A model of scale 8.5 guided by 2.0, or told nothing."""
    pipe, sd = lcm
    want = told(pipe, monkeypatch)
    assert off(ours(sd, 4, "lcm", guidance_scale=2.0), want) > 100 * WALK
    assert off(ours(sd, 4, "lcm", guidance_scale=1.0), want) > 100 * WALK
