"""SDXL's refiner and the hand-over to it, against diffusers' pipelines in float64, from its folders."""

from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

import sdjax  # noqa: E402
from tests.parity.peers import nchw  # noqa: E402
from tests.parity.sdxl_models import (  # noqa: E402
    PROMPTS,
    SECOND,
    SEED,
    TEXT,
    UNET,
    WALK,
    drawn,
    noise,
    off,
    scheduler,
    unet_peer,
    xl,
)

pytestmark = [
    pytest.mark.parity,
    pytest.mark.usefixtures("quick_compile"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

IMG2IMG = "StableDiffusionXLImg2ImgPipeline"
PIXELS = np.random.default_rng(0).uniform(-1, 1, (1, 64, 64, 3)).astype(np.float32)
SIZES = {"original_size": (100, 700), "crop": (3, 5)}
SCHEDULERS = {
    "euler": partial(scheduler, "EulerDiscrete"),
    "ddim": partial(scheduler, "DDIM", set_alpha_to_one=False, clip_sample=False),
    "euler_a": partial(scheduler, "EulerAncestralDiscrete"),
}


@pytest.fixture(scope="module")
def refiner(tmp_path_factory):
    pipe, folder = xl(tmp_path_factory.mktemp("refiner"), "refiner", IMG2IMG, seed=1)
    return pipe, sdjax.load(folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    pipe, folder = xl(tmp_path_factory.mktemp("base"))
    return pipe, sdjax.load(folder)


def test_the_folder_says_what_the_model_is(refiner):
    config = refiner[1].config
    assert not config.zero_negative and config.guidance_scale == 5.0 and config.size == 64
    assert config.unet.vector == SECOND + 5 * 256


def test_encoded_prompts(refiner):
    pipe, sd = refiner
    states, _, pooled, _ = pipe.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
    cond = sdjax.encode_prompt(sd, PROMPTS, aesthetic_score=7.5, **SIZES)
    assert off(cond.context, states.detach()) < TEXT
    assert off(cond.vector[:, :SECOND], pooled.detach()) < TEXT
    numbers = torch.tensor([100, 700, 3, 5, 7.5]).double()
    features = pipe.unet.add_time_proj(numbers).reshape(1, -1).numpy()  # float32 inside
    np.testing.assert_allclose(cond.vector[0, SECOND:], features[0], atol=1e-4)


def test_encoded_prompts_have_a_good_score(refiner):
    plain, six = (sdjax.encode_prompt(refiner[1], "an owl", **given) for given in ({}, {"aesthetic_score": 6.0}))
    np.testing.assert_array_equal(plain.vector, six.vector)


def test_the_unet(refiner):
    pipe, sd = refiner
    x = noise(SEED, 2)
    cond = sdjax.encode_prompt(sd, PROMPTS, aesthetic_score=7.5, **SIZES)
    want = unet_peer(pipe, x, 101.0, cond, [[100, 700, 3, 5, 7.5]] * 2)
    found = off(sdjax.predict(sd, x, 101.0, cond), want)
    print(f"error {found:.1e}")
    assert found < UNET
    for numbers in ([700, 100, 3, 5, 7.5], [100, 700, 5, 3, 7.5], [7.5, 100, 700, 3, 5], [100, 700, 3, 5, 6.0]):
        assert off(unet_peer(pipe, x, 101.0, cond, [numbers] * 2), want) > 10 * UNET, numbers


OPTIONS = {
    "plain": ({}, {}),
    "a negative prompt": ({"negative_prompt": "an owl"}, {"negative_prompt": ["an owl"] * 2}),
    "scores": ({"aesthetic_score": 7.0, "negative_aesthetic_score": 1.0},) * 2,
    "sizes": (
        SIZES | {"negative_original_size": (30, 40), "negative_crop": (7, 9)},
        {
            "original_size": (100, 700),
            "crops_coords_top_left": (3, 5),
            "negative_original_size": (30, 40),
            "negative_crops_coords_top_left": (7, 9),
        },
    ),
    "a crop for both sides": (
        {"crop": (3, 5)},
        {"crops_coords_top_left": (3, 5), "negative_crops_coords_top_left": (3, 5)},
    ),
}


def theirs(pipe, **settings):
    return drawn(pipe, PROMPTS, image=nchw(PIXELS), strength=0.5, num_inference_steps=8, **settings)


def ours(sd, **options):
    options = {"strength": 0.5, "steps": 8, "sampler": "euler", "seed": SEED, "output": "latents"} | options
    return sdjax.img2img(sd, PROMPTS, PIXELS, **options)


@pytest.mark.parametrize("name", OPTIONS)
def test_img2img(name, refiner):
    options, settings = OPTIONS[name]
    pipe, sd = refiner
    found = off(ours(sd, **options), theirs(pipe, **settings))
    print(f"error {found:.1e}")
    assert found < WALK


WRONG = {
    "the negative score is the good one": {"negative_aesthetic_score": 6.0},
    "scores exchanged": {"aesthetic_score": 2.5, "negative_aesthetic_score": 6.0},
    "zeros for the empty prompt": {"zero_negative": True},
    "width first": {"original_size": (64, 65)},
    "the strength of another step": {"strength": 0.4},
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_would_be_seen(name, refiner):
    pipe, sd = refiner
    found = off(ours(sd, **WRONG[name]), theirs(pipe))
    print(f"error {found:.1e}")
    assert found > WALK


def handed(base, refiner, start: float, name: str, steps: int = 10, first=PROMPTS, output_type="latent", **settings):
    """diffusers' two pipelines, one after the other."""
    rows = iter(range(1000))
    for pipe in (base, refiner):
        pipe.scheduler = SCHEDULERS[name]()
    settings |= {"num_inference_steps": steps, "rows": rows}
    x = drawn(base, first, denoising_end=start, **settings)
    settings.pop("prompt_2", None)
    return drawn(refiner, first, image=nchw(x), denoising_start=start, output_type=output_type, **settings)


def walked(base, refiner, start: float, name: str, steps: int = 10, **options):
    options = {"seed": SEED, "output": "latents"} | options
    return sdjax.txt2img(base, PROMPTS, refiner=refiner, refiner_start=start, steps=steps, sampler=name, **options)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_handed_over(name, base, refiner):
    """At 0.799 the model changes at t = 201, which the base takes, and at 0.798 the refiner does.

    diffusers' own spacing is that of the folder, leading, for all three.
    """
    for start in (0.8, 0.799, 0.798, 0.5):
        found = off(walked(base[1], refiner[1], start, name), handed(base[0], refiner[0], start, name))
        print(f"{start}: error {found:.1e}")
        assert found < WALK, start


def test_handed_over_as_a_picture(base, refiner):
    want = handed(base[0], refiner[0], 0.8, "euler", output_type="pt")
    found = walked(base[1], refiner[1], 0.8, "euler", output="pixels")
    assert off(found, want) < WALK


def test_the_refiner_reads_the_first_prompt(base, refiner):
    want = handed(base[0], refiner[0], 0.5, "euler", prompt_2=["owls", "a hedgehog"])
    found = walked(base[1], refiner[1], 0.5, "euler", prompt_2=["owls", "a hedgehog"])
    assert off(found, want) < WALK
    assert off(walked(base[1], refiner[1], 0.5, "euler"), want) > 10 * WALK


def test_a_negative_prompt_goes_to_both(base, refiner):
    want = handed(base[0], refiner[0], 0.5, "euler", negative_prompt=["an owl"] * 2)
    assert off(walked(base[1], refiner[1], 0.5, "euler", negative_prompt="an owl"), want) < WALK


def test_one_step_too_early_would_be_seen(base, refiner):
    want = handed(base[0], refiner[0], 0.8, "euler")
    for start in (0.7, 0.9):
        found = off(walked(base[1], refiner[1], start, "euler"), want)
        print(f"{start}: error {found:.1e}")
        assert found > 1e-2, start


@pytest.mark.parametrize("name", sdjax.samplers)
def test_one_model_twice_is_one_walk(name, base):
    """History and rows of noise carry on, which diffusers' two pipelines do not do."""
    sd, options = base[1], {"steps": 8, "sampler": name, "seed": SEED, "output": "latents"}
    whole = sdjax.txt2img(sd, PROMPTS, **options)
    for start in (0.8, 0.45):
        found = off(sdjax.txt2img(sd, PROMPTS, refiner=sd, refiner_start=start, **options), whole)
        assert found < WALK, start


def of_pictures(pipe):
    """A base model in the pipeline that starts from pictures."""
    again = diffusers.StableDiffusionXLImg2ImgPipeline(**pipe.components, add_watermarker=False)
    again.set_progress_bar_config(disable=True)
    for pipeline in (pipe, again):
        pipeline.scheduler = SCHEDULERS["euler"]()
    return again


@pytest.mark.parametrize("name", ["euler", "ddim"])
def test_one_model_twice_with_diffusers(name, base):
    pipe = base[0]
    want = handed(pipe, of_pictures(pipe), 0.45, name)
    assert off(walked(base[1], base[1], 0.45, name), want) < WALK
    pipe.scheduler = SCHEDULERS[name]()
    assert off(drawn(pipe, PROMPTS, num_inference_steps=10), want) < WALK


def test_conds_in_place_of_prompts(base, refiner):
    want = handed(base[0], refiner[0], 0.5, "euler")
    prompt, again = (sdjax.encode_prompt(sd, PROMPTS) for sd in (base[1], refiner[1]))
    options = {"refiner_start": 0.5, "steps": 10, "sampler": "euler", "seed": SEED, "output": "latents"}
    found = sdjax.txt2img(base[1], prompt, refiner=refiner[1], refiner_cond=again, **options)
    assert off(found, want) < WALK


def test_a_picture_handed_over(base, refiner):
    refiner[0].scheduler = SCHEDULERS["euler"]()
    pipe, steps = of_pictures(base[0]), {"num_inference_steps": 10}
    x = drawn(pipe, PROMPTS, image=nchw(PIXELS), strength=0.8, denoising_end=0.5, **steps)
    want = drawn(refiner[0], PROMPTS, image=nchw(x), denoising_start=0.5, **steps)
    options = {"strength": 0.8, "refiner": refiner[1], "refiner_start": 0.5, "steps": 10, "sampler": "euler"}
    found = sdjax.img2img(base[1], PROMPTS, PIXELS, seed=SEED, output="latents", **options)
    assert off(found, want) < WALK
