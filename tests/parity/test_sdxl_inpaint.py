"""SDXL's inpainting models against diffusers' pipeline in float64: nine channels, and four with what is known put back.

At strength 1 diffusers starts from noise alone. At 0.9999, its default, it walks int(steps 0.9999) = steps - 1 steps,
from the picture and noise.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import sdjax  # noqa: E402
from tests.parity.peers import nchw  # noqa: E402
from tests.parity.sdxl_models import PROMPTS, SECOND, SEED, UNET, WALK, drawn, noise, off, unet_peer, xl  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    pytest.mark.usefixtures("quick_compile"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

PIXELS = np.random.default_rng(0).uniform(-1, 1, (1, 64, 64, 3)).astype(np.float32)
MASK = np.zeros((64, 64), np.float32)
MASK[11:41, 20:64] = 1  # not in whole latents


@pytest.fixture(scope="module")
def nine(tmp_path_factory):
    pipe, folder = xl(tmp_path_factory.mktemp("nine"), "base", "StableDiffusionXLInpaintPipeline", in_channels=9)
    return pipe, sdjax.load(folder)


def theirs(pipe, strength=1.0, mask=MASK, **settings):
    settings = {"image": nchw(PIXELS), "mask_image": torch.tensor(mask)[None, None].double()} | settings
    return drawn(pipe, PROMPTS, strength=strength, num_inference_steps=4, height=64, width=64, **settings)


def ours(sd, mask=MASK, **options):
    options = {"steps": 4, "sampler": "euler", "seed": SEED, "output": "latents"} | options
    return sdjax.inpaint(sd, PROMPTS, PIXELS, mask, **options)


def test_the_folder_says_what_the_model_is(nine):
    config = nine[1].config
    assert config.unet.in_channels == 9 and config.zero_negative and config.guidance_scale == 7.5


def test_the_unet(nine):
    pipe, sd = nine
    x = np.random.default_rng(1).standard_normal((2, 8, 8, 9)).astype(np.float32)
    cond = sdjax.encode_prompt(sd, PROMPTS)
    assert cond.vector.shape[1] == SECOND + 6 * 256
    want = unet_peer(pipe, x, 501.0, cond, [[64, 64, 0, 0, 64, 64]] * 2)
    assert off(sdjax.predict(sd, x, 501.0, cond), want) < UNET
    wrong = np.concatenate([x[..., :4], x[..., 5:], x[..., 4:5]], -1)  # the mask last
    assert off(sdjax.predict(sd, wrong, 501.0, cond), want) > 100 * UNET


@pytest.mark.parametrize("strength", [1.0, 0.9999, 0.6])
def test_inpaint(strength, nine):
    pipe, sd = nine
    found = off(ours(sd, strength=strength, guidance_scale=7.5), theirs(pipe, strength, guidance_scale=7.5))
    print(f"error {found:.1e}")
    assert found < WALK


def test_its_own_guidance(nine):
    pipe, sd = nine
    assert off(ours(sd), theirs(pipe, guidance_scale=7.5)) < WALK


def test_sizes_and_prompts(nine):
    """diffusers gives the negative side of a model without a score the positive one's crop."""
    pipe, sd = nine
    pairs = {"original_size": (100, 700), "target_size": (90, 80)}
    names = {"prompt_2": ["owls", "a hedgehog"]}
    settings = names | {"negative_prompt": ["an owl"] * 2, "negative_original_size": (30, 40)}
    want = theirs(pipe, guidance_scale=7.5, crops_coords_top_left=(3, 5), **pairs, **settings)
    options = names | {"negative_prompt": "an owl", "negative_original_size": (30, 40)}
    assert off(ours(sd, crop=(3, 5), **pairs, **options), want) < WALK


def test_an_inpainting_model_s_picture_and_noise(nine):
    """Four of its nine channels are noise of the seed; the others are the picture's."""
    pipe, sd = nine
    want = theirs(pipe, guidance_scale=7.5)
    given = ours(sd, latents=noise(SEED, 2))
    assert off(given, want) < WALK
    for wrong in (ours(sd, mask=np.roll(MASK, 8)), ours(sd, strength=0.9999), ours(sd, zero_negative=False)):
        assert off(wrong, want) > 10 * WALK
