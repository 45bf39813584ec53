"""txt2img on a narrow model with random weights."""

import contextlib
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

import sdjax
from sdjax.devices import placement
from sdjax.diffusion.noise import initial_noise
from sdjax.diffusion.schedule import SIGMAS
from sdjax.diffusion.tables import samplers
from sdjax.errors import SdjaxError
from sdjax.tasks import engine, stages
from sdjax.tasks.image_to_image import img2img, inpaint, outpaint
from sdjax.tasks.options import TaskOptions
from sdjax.tasks.request import check
from sdjax.tasks.sides import read_sides
from sdjax.tasks.text_to_image import hires, txt2img
from sdjax.weights.convert import cast_params
from tests.tiny import tiny

pytestmark = pytest.mark.usefixtures("quick_compile")


PICTURE = np.random.default_rng(0).uniform(-1, 1, (16, 16, 3)).astype(np.float32)
MASK = np.eye(16, dtype=bool)


def change(**options):
    return img2img(tiny(), "cat", PICTURE, **options)


def paint(mask=MASK, **options):
    return inpaint(tiny(), "cat", PICTURE, mask, **options)


def make(prompt="cat", steps=3, output="latents", **options):
    options = {"guidance_scale": 7.5} | options  # strong enough for a random model's prompts to tell
    return txt2img(tiny(), prompt, steps=steps, output=output, **options)


def test_outputs():
    pixels, (image,) = make(output="pixels"), make(output="pil")
    assert make().shape == (1, 8, 8, 4) and pixels.shape == (1, 16, 16, 3)
    assert np.abs(pixels).max() <= 1 and image.size == (16, 16)
    np.testing.assert_array_equal(np.asarray(image), np.round(127.5 * (pixels[0] + 1)).astype(np.uint8))
    assert make(output="pixels", height=8, width=24).shape == (1, 8, 24, 3)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"eta": 1.0},
        {"sampler": "plms"},
        {"sampler": "dpmpp_2m_sde", "sigmas": "karras"},
        {"sampler": "dpmpp_sde"},
        {"sampler": "dpm2_a", "sigmas": "exponential"},
        {"sampler": "dpmpp_2s_a", "sigmas": "sgm_uniform"},
        {"sampler": "dpmpp_3m_sde", "sigmas": "beta"},
    ],
)
def test_an_image_depends_on_its_seed_and_prompt_alone(options):
    together = make(["cat", "dog"], num_images=2, seed=7, **options)
    assert len(together) == 4
    for i, prompt in enumerate(["cat", "cat", "dog", "dog"]):
        np.testing.assert_allclose(together[i], make(prompt, seed=7 + i, **options)[0], atol=1e-4)
    assert np.abs(together[0] - together[1]).max() > 0.1
    assert np.abs(make("cat", seed=9, **options)[0] - together[2]).max() > 1e-3, "the prompt has no effect"


def test_an_image_does_not_depend_on_the_shapes_of_other_prompts():
    """One chunk of six letters, two chunks, composed: three walks."""
    calls, prompts = [], ["cat", "hippopotamus", "cat AND dog:0.5"]
    options = {"steps": 2, "progress": lambda *call: calls.append(call)}
    together = make(prompts, seed=7, **options)
    assert calls == [(n, 6) for n in range(1, 7)]
    for i, prompt in enumerate(prompts):
        np.testing.assert_allclose(together[i], make(prompt, seed=7 + i, **options)[0], atol=1e-4)
    np.testing.assert_allclose(make("cat:0.5 AND cat:0.5", seed=7, **options)[0], together[0], atol=1e-4)
    assert np.abs(make("cat", seed=7, negative_prompt="hippopotamus", **options)[0] - together[0]).max() > 1e-3
    with pytest.raises(SdjaxError, match="clip_skip 2"):
        make(clip_skip=2)


def test_chunks_do_not_show(monkeypatch):
    whole = make(num_images=4)
    monkeypatch.setattr(placement, "POSITIONS", 3 * 64)
    assert [placement.chunk_size(count, 64)[0] for count in (1, 2, 3, 4, 5, 7)] == [1, 2, 3, 2, 3, 3]
    copied, copy = [], engine.copy_over
    monkeypatch.setattr(engine, "copy_over", lambda *given: copied.append(given) or copy(*given))
    np.testing.assert_allclose(make(num_images=4), whole, atol=1e-4)
    assert len(copied) == 1, "parameters are copied once for all chunks"
    np.testing.assert_allclose(make(num_images=2, seed=2), whole[2:], atol=1e-4)


def test_accelerators_take_what_their_memory_holds():
    device = lambda gigabytes: SimpleNamespace(memory_stats=lambda: {"bytes_limit": int(gigabytes * 2**30)})
    pictures = [placement.positions_at_once(device(size)) // 64**2 for size in (1, 7.5, 15.75, 60, 140)]
    assert pictures == [1, 3, 7, 16, 16]
    assert placement.positions_at_once(SimpleNamespace(memory_stats=lambda: None)) == placement.POSITIONS


def test_composed_prompts_go_through_fewer_at_a_time(monkeypatch):
    monkeypatch.setattr(placement, "POSITIONS", 4 * 64)
    options = TaskOptions(num_images=4)

    def sizes(prompt):
        request = check(tiny().config, prompt, options)
        return [part.length for part in engine.plan_work(tiny(), request, read_sides(tiny(), request))]

    assert [sizes(prompt) for prompt in ("a", "a AND b", "a AND b AND c", " AND ".join("abcdefgh"))] == [
        [4],
        [2, 2],
        [2, 2],
        [1] * 4,
    ]


def test_progress_walks_to_the_same_end():
    calls = []
    x = make(sampler="plms", num_images=2, progress=lambda *call: calls.append(call))
    np.testing.assert_allclose(x, make(sampler="plms", num_images=2), atol=1e-5)
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_latents_replace_the_seed_s_noise():
    noise = np.asarray(initial_noise(np.uint32([3]), (8, 8, 4)))
    np.testing.assert_array_equal(noise[0], jax.random.normal(jax.random.key(3), (8, 8, 4)))
    np.testing.assert_array_equal(make(latents=noise, seed=0), make(seed=3))


def test_guidance():
    conditional = make(guidance_scale=1.0)
    np.testing.assert_allclose(make(guidance_scale=1.0, negative_prompt="dog"), conditional, atol=1e-6)
    np.testing.assert_allclose(make(guidance_scale=9.0, negative_prompt="cat"), conditional, atol=1e-4)
    np.testing.assert_allclose(make(guidance_scale=0.0, negative_prompt="cat", prompt="dog"), conditional, atol=1e-4)
    assert np.abs(make(guidance_scale=9.0) - conditional).max() > 1e-3


@contextlib.contextmanager
def compilations():
    """Counts the programs that XLA compiles, those of single operations included."""
    count, listening = [], True
    listen = lambda event, *_, **__: count.append(event) if listening and "backend_compile" in event else None
    jax.monitoring.register_event_duration_secs_listener(listen)
    yield count
    listening = False


def test_nothing_recompiles_but_shapes():
    first, noise = {"steps": 20, "output": "pixels"}, np.ones((1, 8, 8, 4), np.float32)
    make(**first)
    make(**first, latents=noise)
    few = {"steps": 10, "output": "pixels"}
    for task in (change, paint):
        task(**few)
    with compilations() as count:
        for options in (
            {"latents": noise + 1},
            {"guidance_scale": 2.0},
            {"guidance_scale": 1.0},
            {"guidance_scale": lambda n: n / 2},
            {"guidance_interval": (0.3, 5)},
            {"guidance_rescale": 0.7},
            {"seed": 2**32 - 1},
            {"eta": 0.3},
            {"negative_prompt": "x"},
            {"prompt": "d(o:1.2)g"},
            {"spacing": "trailing"},
            {"variation_seed": 5, "variation_strength": 0.4},
            *({"sampler": name} for name in samplers),
            {"sampler": "euler_a", "sigmas": "karras", "eta": 0.7},
            *({"sampler": "dpmpp_sde", "sigmas": sigmas} for sigmas in SIGMAS),
        ):
            make(**first | options)
        for strength in (0.1, 0.5, 1.0):
            change(strength=strength, **few)
            change(strength=strength, sampler="heun", **few)
            change(strength=strength, sampler="dpmpp_sde", sigmas="beta", **few)
        paint(sampler="dpmpp_2m", guidance_scale=3.0, seed=4, **few)
        paint(mask=~MASK, feather=3, strength=0.7, **few)
        assert not count
        for steps in (25, 30):
            make(**first | {"steps": steps})
        assert len(count) <= 1


def test_four_devices_make_the_same_images():
    script = """
import sys, jax, numpy as np
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_disable_most_optimizations", True)
from tests.tasks.test_generate import make, paint
options = {"num_images": 4, "eta": 1.0, "output": "pixels"}
np.save(sys.argv[1], [make(**options), paint(steps=3, **options)])
"""
    root = Path(__file__).parents[2]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pixels.npy"
        subprocess.run([sys.executable, "-c", script, str(path)], check=True, cwd=root)
        found = np.load(path)
    options = {"eta": 1.0, "output": "pixels"}
    for seed in range(4):
        alone = [make(seed=seed, **options)[0], paint(seed=seed, steps=3, **options)[0]]
        np.testing.assert_allclose(found[:, seed], alone, atol=1 / 255)


@pytest.mark.parametrize("watched", [{}, {"progress": lambda *_: None}], ids=["one scan", "row by row"])
def test_parameters_are_cast_once_before_the_walk(watched, monkeypatch):
    """Each call of the walk would make a copy of its own, which progress and preview call once a step."""
    casts, seen, cast, walk = [], [], stages._cast_unet, stages.walk
    monkeypatch.setattr(stages, "_cast_unet", lambda *given: casts.append(given) or cast(*given))
    monkeypatch.setattr(stages, "walk", lambda params, *args, **kw: seen.append(params) or walk(params, *args, **kw))
    half = jax.tree.map(lambda leaf: leaf.astype(np.float16), tiny().params)
    stored = replace(tiny(), params=half)
    want = txt2img(replace(tiny(), params=cast_params(half, np.float32)), "cat", steps=3, output="latents")
    got = txt2img(stored, "cat", steps=3, output="latents", **watched)
    np.testing.assert_allclose(got, want, atol=1e-5)
    of_walk = seen[1:]
    assert len(casts) == 1 and len(of_walk) == (3 if watched else 1) and all(p is of_walk[0] for p in of_walk)
    assert of_walk[0]["conv_in"]["kernel"].dtype == np.float32 and of_walk[0]["norm_out"]["scale"].dtype == np.float16
    assert stages.cast_unet(tiny().params["unet"], np.float32) is tiny().params["unet"], "nothing to cast, no copy"


def test_hires_says_once_what_a_prompt_says(caplog):
    with caplog.at_level("WARNING", "sdjax"):
        hires(
            tiny(),
            "(cat",
            steps=3,
            spacing="trailing",
            output="latents",
            negative_prompt="a" * 40,
            scale=1.5,
            syntax="plain",
        )
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == len(set(lines)) == 1, lines


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_latents_that_are_not_finite_are_refused_before_the_walk(value, monkeypatch):
    latents = np.zeros((1, 8, 8, 4), np.float32)
    latents[0, 3, 3, 1] = value
    monkeypatch.setattr(engine, "draw_chunk", None)
    for given in (latents, latents.astype(np.float16), latents.tolist()):
        with pytest.raises(SdjaxError, match="latents have NaN or infinite values: unit"):
            make(latents=given)


@pytest.mark.parametrize(
    "options",
    [
        *({name: True} for name in ("eta", "steps", "seed", "num_images", "clip_skip", "preview_every")),
        *({name: True} for name in ("guidance_scale", "guidance_rescale", "variation_seed", "variation_strength")),
        *({"guidance_interval": (0.0, True)}, {"height": True}, {"width": True}),
    ],
    ids=str,
)
def test_true_is_no_number(options):
    ((name, _),) = options.items()
    with pytest.raises(SdjaxError, match=f"^{name} "):
        make(**options)


def test_true_is_no_number_elsewhere():
    image, mask = PICTURE, MASK
    for call, match in [
        (lambda: change(strength=True), "strength"),
        (lambda: paint(feather=True), "feather"),
        (lambda: hires(tiny(), "cat", scale=True), "scale"),
        (lambda: outpaint(tiny(), "cat", image, left=True), "left"),
        (lambda: sdjax.encode(tiny(), image[None], seed=True), "seed"),
        (lambda: sdjax.encode_prompt(tiny(), "cat", clip_skip=True), "clip_skip"),
        (lambda: sdjax.sampling.plan("ddim", sdjax.sampling.make_schedule(tiny().config.schedule), True), "steps"),
        (lambda: sdjax.watermark.decode(Image.new("RGB", (256, 256)), True), "length"),
    ]:
        with pytest.raises(SdjaxError, match=f"^{match} "):
            call()
    assert mask.any()


def test_a_dtype_may_be_given_by_its_name():
    named = replace(tiny(), dtype="bfloat16")
    assert named.dtype == np.dtype("bfloat16") and replace(named, dtype=np.float32).dtype.name == "float32"
    for wrong in ("int8", "float64", None, 3):
        with pytest.raises(SdjaxError, match=r"dtype is .*should be one of float32, bfloat16, float16"):
            replace(tiny(), dtype=wrong)
