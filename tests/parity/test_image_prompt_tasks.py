"""Walks with IP-Adapters against diffusers' pipelines in float64, from the picture on, with the same noise."""

import copy
from dataclasses import replace
from functools import cache

import diffusers
import jax
import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import sdjax
from sdjax.tasks import image_prompts, preparing
from tests.parity import control_peers
from tests.parity import image_prompt_peers as peers
from tests.parity.peers import error, export, fields, file_tensors, nchw, nhwc, perturb
from tests.parity.sdxl_models import drawn, off, xl
from tests.parity.test_samplers import make

pytestmark = [
    pytest.mark.parity,
    pytest.mark.usefixtures("quick_compile"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

SEED, PROMPT, SIZE, STEPS, LIMIT = 3, "cat", (64, 48), 4, 1e-4
PICTURES = [Image.fromarray(one) for one in peers.pictures(2)]
PIXELS = np.random.default_rng(1).uniform(-1, 1, (*SIZE, 3)).astype(np.float32)
MASK = np.zeros(SIZE, np.float32)
MASK[16:40, 8:40] = 1


@cache
def models():
    """(ours, torch's VAE)."""
    sd = peers.model("SD 1")
    torch.manual_seed(2)
    vae = perturb(diffusers.AutoencoderKL(**fields(sd.config, "vae/config.json")))
    return replace(sd, params=sd.params | {"vae": export(file_tensors(vae, "vae"), sd.config.vae)}), vae


def processor(name: str) -> CLIPImageProcessorPil:
    side = peers.TOWERS[name].size
    return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


@pytest.fixture
def theirs(monkeypatch):
    """Runs a pipeline of SD 1 with adapters (kind, seed): latents [1, h, w, 4]."""

    def run(kind: str, adapters, images, scales, **settings):
        sd, vae = models()
        noise = nchw(jax.random.normal(jax.random.key(SEED), (SIZE[0] // 8, SIZE[1] // 8, 4))[None])
        distribution = "diffusers.models.autoencoders.vae.DiagonalGaussianDistribution"
        monkeypatch.setattr(f"{distribution}.sample", lambda self, *_: self.mode())
        states = sdjax.encode_prompt(sd, [PROMPT, ""]).context
        embeds = [torch.tensor(np.asarray(states[i : i + 1])).double() for i in (0, 1)]
        unet = peers.unet("SD 1", *adapters)
        peers.set_scales(unet, scales)
        parts = [vae, None, None, unet, *settings.pop("parts", []), make("ddim"), None, processor("SD 1")]
        pipe = getattr(diffusers, f"StableDiffusion{kind}Pipeline")(
            *parts, image_encoder=peers.tower("SD 1")[1], requires_safety_checker=False
        )
        pipe.set_progress_bar_config(disable=True)
        module = {"Img2Img": "_img2img", "Inpaint": "_inpaint"}.get(kind)
        if module:
            path = f"diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion{module}.randn_tensor"
            monkeypatch.setattr(path, lambda *_, **__: noise)
            settings |= {"image": nchw(PIXELS[None])}
        else:
            settings |= {"latents": noise}
        if kind == "Inpaint":
            settings |= {"mask_image": torch.tensor(MASK)[None, None].double()}
        if kind != "Img2Img":
            settings |= {"height": SIZE[0], "width": SIZE[1]}
        settings |= {"prompt_embeds": embeds[0], "negative_prompt_embeds": embeds[1], "output_type": "latent"}
        settings |= {"num_inference_steps": STEPS, "guidance_scale": 3.0, "ip_adapter_image": images}
        return nhwc(pipe(**settings).images)

    return run


def ours(task=sdjax.txt2img, *arguments, **options):
    size = {} if arguments else {"height": SIZE[0], "width": SIZE[1]}
    settings = {"steps": STEPS, "guidance_scale": 3.0, "seed": SEED, "output": "latents", "sampler": "ddim"} | size
    return task(models()[0], PROMPT, *arguments, **settings | options)


def adapter(kind: str, seed: int = 0):
    return peers.adapter("SD 1", kind, seed)


@pytest.mark.parametrize("kind", ["base", "plus"])
def test_txt2img(kind, theirs):
    found = []
    for pictures in (PICTURES[:1], PICTURES):
        expected = theirs("", [(kind, 0)], [pictures], [0.6])
        got = ours(image_prompt=(adapter(kind), pictures), image_prompt_scale=0.6)
        found.append(error(got, expected))
    plain = error(ours(), expected)
    print(f"one picture {found[0]:.2e}, two {found[1]:.2e}, without {plain:.2e}")
    assert max(found) < LIMIT < plain


def test_two_adapters(theirs):
    expected = theirs("", [("base", 0), ("plus", 1)], [PICTURES[:1], PICTURES], [0.4, 0.8])
    asked = [(adapter("base"), PICTURES[0]), (adapter("plus", 1), PICTURES)]
    assert error(ours(image_prompt=asked, image_prompt_scale=[0.4, 0.8]), expected) < LIMIT


@pytest.mark.parametrize("kind", ["Img2Img", "Inpaint"])
def test_from_a_picture(kind, theirs):
    strength = 0.8 if kind == "Img2Img" else 1.0
    expected = theirs(kind, [("plus", 0)], PICTURES[1], [0.5], strength=strength)
    task, more = (sdjax.img2img, ()) if kind == "Img2Img" else (sdjax.inpaint, (MASK,))
    asked = {"image_prompt": (adapter("plus"), PICTURES[1]), "image_prompt_scale": 0.5}
    assert error(ours(task, PIXELS, *more, strength=strength, **asked), expected) < LIMIT


def test_beside_a_control(theirs):
    """A ControlNet sees the text alone."""
    config = control_peers.control_config(models()[0].config)
    mine, peer = control_peers.control(config)
    hint = np.random.default_rng(0).uniform(size=(*SIZE, 3)).astype(np.float32)
    settings = {"parts": [peer], "image": nchw(hint[None])}
    expected = theirs("ControlNet", [("base", 0)], PICTURES[0], [0.7], **settings)
    asked = {"image_prompt": (adapter("base"), PICTURES[0]), "image_prompt_scale": 0.7}
    found = ours(control=mine, control_image=hint, **asked)
    assert error(found, expected) < LIMIT < error(ours(**asked), expected)


# ---- SDXL


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """(diffusers' pipeline with the image tower, ours)."""
    pipe, folder = xl(tmp_path_factory.mktemp("base"))
    return pipe, sdjax.load(folder)


@pytest.mark.parametrize("kind", ["base", "plus"])
def test_sdxl(kind, large, monkeypatch, tmp_path):
    pipe, sd = large
    monkeypatch.setattr(control_peers, "model", lambda name: (sd, pipe.unet))
    monkeypatch.setitem(control_peers.MODELS, "SDXL", sd.config)
    found = peers.tensors.__wrapped__("SDXL", kind)
    torch.save(peers.nested(found), tmp_path / "adapter.bin")
    peer = copy.deepcopy(pipe.unet)
    peer._load_ip_adapter_weights([peers.nested(found)], low_cpu_mem_usage=False)
    peers.set_scales(peer.double(), [0.7])
    changed = type(pipe)(
        **pipe.components
        | {"unet": peer, "image_encoder": peers.tower("SDXL")[1], "feature_extractor": processor("SDXL")},
        add_watermarker=False,
    )
    changed.set_progress_bar_config(disable=True)
    want = drawn(changed, "a red apple", num_inference_steps=STEPS, ip_adapter_image=[PICTURES], guidance_scale=5.0)
    peers.tower("SDXL")[1].float().save_pretrained(tmp_path / "image_encoder")
    peers.tower("SDXL")[1].double()
    mine = sdjax.load_image_prompt(tmp_path / "adapter.bin", tmp_path / "image_encoder")
    options = {"steps": STEPS, "sampler": "euler", "seed": SEED, "output": "latents", "guidance_scale": 5.0}
    asked = {"image_prompt": (mine, PICTURES), "image_prompt_scale": 0.7}
    got, plain = (off(sdjax.txt2img(sd, "a red apple", **options, **more), want) for more in (asked, {}))
    print(f"error {got:.2e}, without {plain:.2e}")
    assert got < LIMIT < plain


# ---- mistakes

right = {"looks": image_prompts.tokens_of_pictures, "keys": preparing.keys_of_looks}

#: what is wrong with the unconditional side -> (kind, its tokens of those of the picture and of nothing)
MISTAKES = {
    "the picture": ("plus", lambda seen, nothing: seen),
    "no tokens": ("base", lambda seen, nothing: 0 * nothing),
    "no tokens of plus": ("plus", lambda seen, nothing: 0 * nothing),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_caught(mistake, theirs, monkeypatch):
    kind, wrong = MISTAKES[mistake]
    expected = theirs("", [(kind, 0)], [PICTURES], [0.6])

    def looks(*given):
        seen, nothing = right["looks"](*given)
        return seen, wrong(seen, nothing)

    monkeypatch.setattr(image_prompts, "tokens_of_pictures", looks)
    found = error(ours(image_prompt=(adapter(kind), PICTURES), image_prompt_scale=0.6), expected)
    print(f"{found:.2e}")
    assert found > LIMIT


def test_sides_exchanged_is_caught(theirs, monkeypatch):
    expected = theirs("", [("plus", 0)], [PICTURES], [0.6])
    wrong = lambda adapters, looks, negative, dtype: right["keys"](adapters, looks, not negative, dtype)
    monkeypatch.setattr(preparing, "keys_of_looks", wrong)
    assert error(ours(image_prompt=(adapter("plus"), PICTURES), image_prompt_scale=0.6), expected) > LIMIT
