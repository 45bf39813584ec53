"""The public API as a type checker sees it: `pyright` reads this file, and nothing runs it."""

from collections.abc import Callable
from typing import Any, assert_type

import jax
import numpy as np
from PIL.Image import Image

import sdjax
from sdjax.sampling import NoiseSchedule, Plan, Row, State, make_schedule, plan, sample, start
from sdjax.tasks.engine import Trajectory
from sdjax.tasks.program import Program
from sdjax.tasks.safety import SafetyChecker


def pictures(sd: sdjax.StableDiffusion, image: Image, noise: np.ndarray) -> None:
    assert_type(sdjax.txt2img(sd, "a cat"), list[Image])
    assert_type(sdjax.txt2img(sd, ["a cat", "a dog"], seed=3, guidance_scale=None, output="pixels"), np.ndarray)
    assert_type(sdjax.txt2img(sd, "a cat", guidance_scale=lambda step: 4.0, output="trajectory"), Trajectory)
    assert_type(sdjax.hires(sd, "a cat", scale=1.5, upscale="pixels"), list[Image])
    assert_type(sdjax.img2img(sd, "a cat", image, 0.5, steps=20), list[Image])
    assert_type(sdjax.img2img(sd, "a cat", [image, image], output="latents"), np.ndarray)
    assert_type(sdjax.inpaint(sd, "a cat", noise, image, feather=2.0), list[Image])
    assert_type(sdjax.outpaint(sd, "a cat", image, left=64, latents=noise, progress=lambda n, of: None), list[Image])


def refused(sd: sdjax.StableDiffusion, image: Image) -> None:
    """Each of these has to be an error: pyright says so where an ignored one is none."""
    sdjax.txt2img(sd, 3)  # pyright: ignore[reportCallIssue, reportArgumentType]
    sdjax.txt2img(sd, "a cat", step=3)  # pyright: ignore[reportCallIssue]
    sdjax.txt2img(sd, "a cat", steps="3")  # pyright: ignore[reportCallIssue, reportArgumentType]
    sdjax.txt2img(sd, "a cat", output="png")  # pyright: ignore[reportCallIssue, reportArgumentType]
    sdjax.img2img(sd, "a cat")  # pyright: ignore[reportCallIssue]
    sdjax.load("emoji", dtype=3)  # pyright: ignore[reportArgumentType]
    sdjax.nothing  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def model(x: jax.Array, folder: str, image: Image) -> None:
    sd = sdjax.load(folder, dtype="bfloat16", prefer_ema=True)
    assert_type(sd, sdjax.StableDiffusion)
    assert_type(sdjax.create("SD15"), sdjax.StableDiffusion)
    cond = sdjax.encode_prompt(sd, ["a cat"])
    assert_type(cond, sdjax.Cond)
    assert_type(sdjax.predict(sd, x, 500.0, cond), jax.Array)
    latents = sdjax.encode(sd, np.zeros((1, 64, 64, 3), np.float32), seed=1)
    assert_type(latents, jax.Array)
    assert_type(sdjax.decode(sd, latents), jax.Array)
    assert_type(sdjax.vae_moments(sd, x), tuple[jax.Array, jax.Array])
    assert_type(sdjax.tokenize(sd, "a cat"), np.ndarray)
    sdjax.save(sd, folder, dtype="float16")
    assert_type(sdjax.add_embedding(sd, folder), sdjax.StableDiffusion)
    assert_type(sdjax.add_lora(sd, folder, 0.8, text_weight=0.5, strict=False), sdjax.StableDiffusion)
    maps = sdjax.attention_maps(sd, "a cat", latents, 500)
    assert_type(maps, np.ndarray)
    assert_type(sdjax.attention_pictures(image, maps[0], sdjax.prompt_words(sd, "a cat")[0]), Image)
    sdjax.save_program(sd, "a.sdjax", platforms=("cpu", "tpu"))
    assert_type(sdjax.load_program("a.sdjax"), Program)
    checker = sdjax.load_safety_checker(folder)
    assert_type(checker, SafetyChecker)
    assert_type(sdjax.check_safety(checker, [image]), np.ndarray)
    assert_type(sdjax.watermark.embed(image), Image)


def samplers(sd: sdjax.StableDiffusion, cond: sdjax.Cond, noise: jax.Array) -> jax.Array:
    schedule = make_schedule(sd.config.schedule)
    assert_type(schedule, NoiseSchedule)
    table = plan("dpmpp_2m", schedule, 20, sigmas="karras")
    assert_type(table, Plan)
    assert_type(table.rows, Row)
    denoiser: Callable[[jax.Array, jax.Array], jax.Array] = sdjax.denoiser(sd, cond, cond, guidance_scale=4.0)
    state = sample(table.rows, denoiser, start(table, noise))
    assert_type(state, State)
    trace = sample(table.rows, denoiser, start(table, noise), keep=True)[1]
    assert_type(trace.x0, jax.Array)
    assert_type(sdjax.pictures.contact_sheet(sdjax.pictures.pixels_to_pil(np.asarray(state.x))), Image)
    settings: dict[str, Any] = sdjax.pictures.understand(sdjax.pictures.read_parameters("a.png"))[0]
    return sdjax.sampling.add_noise(state.x, noise, settings["sigma"])
