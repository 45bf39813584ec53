"""Walks of SDXL with ControlNets against diffusers' pipelines in float64, with the same noise and weights."""

import diffusers
import numpy as np
import pytest
import torch

import sdjax
from sdjax.tasks import request_control
from tests.parity.peers import nchw, roughen
from tests.parity.sdxl_models import SEED, SIDE, WALK, drawn, noise, off, xl

pytestmark = [
    pytest.mark.parity,
    pytest.mark.usefixtures("quick_compile"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

STEPS, PROMPT, PIXELS = 4, "a red apple", 8 * SIDE
HINT = np.random.default_rng(0).uniform(size=(PIXELS, PIXELS, 3)).astype(np.float32)
START = np.random.default_rng(1).uniform(-1, 1, (1, PIXELS, PIXELS, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(diffusers' pipeline, ours, diffusers' ControlNets, ours), from what diffusers saved."""
    pipe, folder = xl(tmp_path_factory.mktemp("base"))
    peers, controls = [], []
    for seed in (0, 1):
        torch.manual_seed(seed)
        peer = diffusers.ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 6, 8, 12))
        peer = roughen(peer.float(), seed)
        peer.save_pretrained(folder.parent / f"control-{seed}")
        controls.append(sdjax.load_control(folder.parent / f"control-{seed}"))
        peers.append(peer.double())
    return pipe, sdjax.load(folder), peers, controls


def theirs(pipe, controlnet, kind: str = "", **settings):
    changed = getattr(diffusers, f"StableDiffusionXLControlNet{kind}Pipeline")(
        **{name: part for name, part in pipe.components.items() if name not in ("image_encoder", "feature_extractor")},
        controlnet=controlnet,
        add_watermarker=False,
    )
    changed.set_progress_bar_config(disable=True)
    several = isinstance(controlnet, list)
    hint = [nchw(HINT[None]), nchw(HINT[::-1][None].copy())] if several else nchw(HINT[None])
    settings = {"num_inference_steps": STEPS, "guidance_scale": 5.0, "controlnet_conditioning_scale": 1.0} | settings
    if kind:
        with pytest.MonkeyPatch.context() as patch:
            module = "diffusers.pipelines.controlnet.pipeline_controlnet_sd_xl_img2img.randn_tensor"
            patch.setattr(module, lambda shape, **_: nchw(noise(SEED, shape[0])))
            return drawn(changed, PROMPT, image=nchw(START), control_image=hint, **settings)
    size = {"latents": nchw(noise(SEED, 1)), "height": PIXELS, "width": PIXELS}
    return drawn(changed, PROMPT, image=hint, **size, **settings)


def ours(sd, task=sdjax.txt2img, *arguments, **options):
    options = {"steps": STEPS, "sampler": "euler", "seed": SEED, "output": "latents", "guidance_scale": 5.0} | options
    return task(sd, PROMPT, *arguments, **options)


#: what is asked for -> (our options, diffusers')
ASKED = {
    "scale": ({"control_scale": 0.7}, {"controlnet_conditioning_scale": 0.7}),
    "interval": ({"control_interval": (0.25, 0.75)}, {"control_guidance_start": 0.25, "control_guidance_end": 0.75}),
    "guess mode": ({"control_mode": "control"}, {"guess_mode": True}),
}


@pytest.mark.parametrize("asked", ASKED)
def test_txt2img(asked, both):
    pipe, sd, (peer, _), (control, _) = both
    options, settings = ASKED[asked]
    want = theirs(pipe, peer, **settings)
    found = off(ours(sd, control=control, control_image=HINT, **options), want)
    plain = off(ours(sd), want)
    print(f"error {found:.1e}, without control {plain:.1e}")
    assert found < WALK < plain


def test_two_controls(both):
    pipe, sd, peers, controls = both
    want = theirs(pipe, peers, controlnet_conditioning_scale=[0.5, 0.8])
    images = [HINT, HINT[::-1].copy()]
    assert off(ours(sd, control=controls, control_image=images, control_scale=[0.5, 0.8]), want) < WALK


def test_img2img(both):
    pipe, sd, (peer, _), (control, _) = both
    want = theirs(pipe, peer, "Img2Img", strength=0.75)
    found = ours(sd, sdjax.img2img, START, control=control, control_image=HINT, strength=0.75)
    assert off(found, want) < WALK


def test_mistakes_are_caught(both, monkeypatch):
    """Soft weights the other way round, and control on both sides of guess mode."""
    pipe, sd, (peer, _), (control, _) = both
    want = theirs(pipe, peer, guess_mode=True)
    asked = {"control": control, "control_image": HINT, "control_mode": "control"}
    with monkeypatch.context() as patch:
        patch.setattr(request_control, "soft_weights", lambda config: np.logspace(0, -1, config.residuals))
        assert off(ours(sd, **asked), want) > WALK
    right = request_control.AskedControl
    monkeypatch.setattr(request_control, "AskedControl", lambda *fields: right(*fields[:-1], False))
    assert off(ours(sd, **asked), want) > WALK
