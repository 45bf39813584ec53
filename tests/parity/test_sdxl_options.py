"""What SDXL's pictures are told, option by option, against diffusers' pipeline in float64.

Of several pictures with negative sizes diffusers mixes up the sides (it interleaves them), so that its pictures are
drawn one by one there, and ours together.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import sdjax  # noqa: E402
from tests.parity.sdxl_models import PROMPTS, SECOND, SEED, TEXT, WALK, drawn, off, xl  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("quick_compile")]

STEPS = 4
POSITIVE = (
    {"original_size": (100, 700), "crop": (3, 5), "target_size": (90, 80)},
    {"original_size": (100, 700), "crops_coords_top_left": (3, 5), "target_size": (90, 80)},
)
NEGATIVE = (
    {"negative_original_size": (30, 40), "negative_crop": (7, 9), "negative_target_size": (50, 60)},
    {"negative_original_size": (30, 40), "negative_crops_coords_top_left": (7, 9), "negative_target_size": (50, 60)},
)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    pipe, folder = xl(tmp_path_factory.mktemp("base"))
    return pipe, sdjax.load(folder)


def ours(sd, prompt=PROMPTS, **options):
    options = {"steps": STEPS, "sampler": "euler", "seed": SEED, "output": "latents"} | options
    return sdjax.txt2img(sd, prompt, **options)


def theirs(pipe, prompt=PROMPTS, **settings):
    return drawn(pipe, prompt, num_inference_steps=STEPS, **settings)


OPTIONS = {  # name -> ours, diffusers'
    "plain": ({}, {}),
    "prompt_2": ({"prompt_2": ["owls", "a hedgehog"]},) * 2,
    "one prompt_2 for all": ({"prompt_2": "owls"}, {"prompt_2": ["owls"] * 2}),
    "a negative prompt": ({"negative_prompt": "an owl"}, {"negative_prompt": ["an owl"] * 2}),
    "negative_prompt_2": (
        {"negative_prompt": "an owl", "negative_prompt_2": "a hedgehog"},
        {"negative_prompt": ["an owl"] * 2, "negative_prompt_2": ["a hedgehog"] * 2},
    ),
    "all four prompts": (
        {"prompt_2": ["owls", "a hat"], "negative_prompt": "an owl", "negative_prompt_2": "a hedgehog"},
        {"prompt_2": ["owls", "a hat"], "negative_prompt": ["an owl"] * 2, "negative_prompt_2": ["a hedgehog"] * 2},
    ),
    "original_size": ({"original_size": (100, 700)},) * 2,
    "crop": ({"crop": (3, 5)}, {"crops_coords_top_left": (3, 5)}),
    "target_size": ({"target_size": (90, 80)},) * 2,
    "sizes and a negative prompt": (
        POSITIVE[0] | {"negative_prompt": "an owl"},
        POSITIVE[1] | {"negative_prompt": ["an owl"] * 2},
    ),
    "guidance": ({"guidance_scale": 3.0},) * 2,
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option(name, both):
    options, settings = OPTIONS[name]
    pipe, sd = both
    want = theirs(pipe, **settings)
    found, without = off(ours(sd, **options), want), off(ours(sd), want)
    print(f"error {found:.1e}, without it {without:.1e}")
    assert found < WALK
    assert name == "plain" or without > 10 * WALK


NEGATIVES = {
    "all three": ({}, {}),
    "with the positive ones": POSITIVE,
    "with a negative prompt": ({"negative_prompt": "an owl"}, {"negative_prompt": "an owl"}),
}


@pytest.mark.parametrize("name", NEGATIVES)
def test_negative_sizes(name, both):
    """Two pictures together equal diffusers' one by one."""
    pipe, sd = both
    options, settings = NEGATIVES[name]
    found = ours(sd, **NEGATIVE[0], **options)
    for i, prompt in enumerate(PROMPTS):
        want = theirs(pipe, prompt, seed=SEED + i, **NEGATIVE[1], **settings)
        assert off(found[i : i + 1], want) < WALK, prompt
    assert off(ours(sd, **options), found) > 10 * WALK
    # three numbers that are not given are the positive ones, diffusers' crop is (0, 0)
    own = {name.replace("negative_", ""): size for name, size in NEGATIVE[0].items()}
    np.testing.assert_array_equal(ours(sd, **own), ours(sd, **own, **NEGATIVE[0]))


def test_negative_sizes_at_two_pictures_are_mixed_up_by_diffusers(both):
    pipe, sd = both
    found = off(theirs(pipe, **NEGATIVE[1]), ours(sd, **NEGATIVE[0]))
    assert found > 10 * WALK, "diffusers has been mended: say so above"


@pytest.mark.parametrize("zero", [True, False])
def test_zeros_or_the_empty_prompt(zero, both):
    pipe, sd = both
    pipe.register_to_config(force_zeros_for_empty_prompt=zero)
    try:
        want = theirs(pipe)
    finally:
        pipe.register_to_config(force_zeros_for_empty_prompt=True)
    assert off(ours(sd, zero_negative=zero), want) < WALK
    assert off(ours(sd, zero_negative=not zero), want) > 10 * WALK
    assert zero or off(ours(sd, negative_prompt=sdjax.encode_prompt(sd, "")), want) < WALK


def test_a_negative_prompt_is_read_whatever_zero_negative_says(both):
    pipe, sd = both
    want = theirs(pipe, negative_prompt=["an owl"] * 2)
    for zero in (True, False, None):
        assert off(ours(sd, negative_prompt="an owl", zero_negative=zero), want) < WALK


def test_a_second_negative_prompt_alone(both):
    """diffusers zeroes it, for negative_prompt is None; given "" it reads it."""
    pipe, sd = both
    want = theirs(pipe, negative_prompt=[""] * 2, negative_prompt_2=["a hedgehog"] * 2)
    assert off(ours(sd, negative_prompt_2="a hedgehog"), want) < WALK


def embedded(pipe, prompts, **settings):
    states, _, pooled, _ = pipe.encode_prompt(prompts, do_classifier_free_guidance=False, **settings)
    return states.detach(), pooled.detach()


def test_clip_skip(both):
    """2 is diffusers' 1. Here it is for both sides, there for what is asked alone; the pooled embedding knows none."""
    pipe, sd = both
    states, pooled = embedded(pipe, PROMPTS, clip_skip=1)
    cond = sdjax.encode_prompt(sd, PROMPTS, clip_skip=2)
    assert off(cond.context, states) < TEXT and off(cond.vector[:, :SECOND], pooled) < TEXT
    away, away_pooled = embedded(pipe, ["an owl"] * 2, clip_skip=1)
    given = {"negative_prompt_embeds": away, "negative_pooled_prompt_embeds": away_pooled}
    want = theirs(pipe, clip_skip=1, **given)
    assert off(ours(sd, clip_skip=2, negative_prompt="an owl"), want) < WALK
    one_sided = theirs(pipe, clip_skip=1, negative_prompt=["an owl"] * 2)
    assert off(ours(sd, clip_skip=2, negative_prompt="an owl"), one_sided) > 10 * WALK


def test_a_cond_in_place_of_options(both):
    """What encode_prompt makes of the options is what the task makes of them."""
    pipe, sd = both
    cond = sdjax.encode_prompt(sd, PROMPTS, prompt_2=["owls", "a hat"], **POSITIVE[0])
    negative = sdjax.encode_prompt(sd, "an owl", prompt_2="a hedgehog", **POSITIVE[0])
    settings = {"prompt_2": ["owls", "a hat"], "negative_prompt": ["an owl"] * 2} | POSITIVE[1]
    want = theirs(pipe, negative_prompt_2=["a hedgehog"] * 2, **settings)
    assert off(ours(sd, cond, negative_prompt=negative), want) < WALK


def test_a_picture_s_own_size(both):
    """None is the picture's size, not the model's: of 64 x 96 pixels, height first."""
    pipe, sd = both
    large = np.random.default_rng(2).standard_normal((1, 8, 12, 4)).astype(np.float32)
    settings = {"num_inference_steps": STEPS, "height": 64, "width": 96, "output_type": "latent"}
    with torch.no_grad():
        found = pipe(PROMPTS[0], latents=torch.tensor(large.transpose(0, 3, 1, 2)).double(), **settings).images
    want = found.numpy().transpose(0, 2, 3, 1)
    options = {"height": 64, "width": 96, "latents": large}
    assert off(ours(sd, PROMPTS[0], **options), want) < WALK
    for wrong in ((96, 64), (64, 64)):
        assert off(ours(sd, PROMPTS[0], **options, original_size=wrong, target_size=wrong), want) > 10 * WALK
