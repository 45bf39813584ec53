"""Draws a batch of pictures, watched step by step."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from sdjax.errors import SdjaxError
from sdjax.image.masks import composed
from sdjax.image.pixels import pixels_to_pil
from sdjax.model.value import StableDiffusion
from sdjax.tasks.engine import draw_request
from sdjax.tasks.plans import plan_of
from sdjax.tasks.text_to_image import draw_hires
from sdjax.tasks.work import at_once
from sdjax.web.ask import Ask, cells, large_sides, request_of, weights_of_masks

MOST = 16  # pictures of a device at once
CONTEXT = 2**18  # positions of the context of all of them

#: watch(step, total, picture): called after each step; picture() returns PIL images of all pictures as they are now.
Watch = Callable[[int, int, Callable[[], list]], None]


def most_at_once(sd: StableDiffusion, ask: Ask, text: tuple[int, int]) -> int:
    """Returns how many pictures like `ask` all devices together draw at once. text: as in Key."""
    parts, chunks = text
    sides = large_sides(sd, latents_of(sd, ask), ask.hires) if ask.hires else latents_of(sd, ask)[:2]
    size, devices = at_once(2**20, sides, parts)
    room = CONTEXT // max(1, parts * chunks * getattr(sd.config.text, "length", 0))
    return min(size, min(MOST, max(1, room)) * len(devices))


def latents_of(sd: StableDiffusion, ask: Ask) -> tuple[int, int, int]:
    factor = sd.config.vae.factor
    return ask.options.height // factor, ask.options.width // factor, sd.config.vae.latent_channels


def padded(asks: list[Ask], most: int) -> list[Ask]:
    """Returns pictures filled up to a power of two of them for each device, or to `most`, by the last one."""
    devices = len(jax.local_devices())
    share = -(-len(asks) // devices)
    count = min(most, devices << (share - 1).bit_length())
    return asks + asks[-1:] * (count - len(asks))


def draw(sd: StableDiffusion, asks: list[Ask], most: int, watch: Watch) -> list[Any]:
    """Returns the picture of each of `asks`, whose key is the same, or the SdjaxError that stands for it.

    watch may raise an exception, which ends the batch.
    """
    every, first = padded(asks, most), asks[0]
    request = request_of(sd, every)
    pictures = None if first.pictures is None else np.concatenate([ask.pictures for ask in every])
    inside = None if first.masks is None else weights_of_masks(every)

    def seen(step: int, total: int, picture: Callable[[], Any]) -> None:
        def shown() -> list:
            pixels = np.asarray(picture())
            pixels = pixels if inside is None else composed(pictures, pixels, inside)
            return [finished(*one) for one in zip(asks, pixels, strict=False)]

        watch(step, total, shown)

    if first.hires is not None:
        hires = first.hires
        sides = large_sides(sd, request.shape, hires)
        pixels = draw_hires(sd, request, sides, hires.strength, hires.upscale, hires.steps, seen)
    else:
        masks = None if first.masks is None else np.concatenate([ask.masks for ask in every])
        pixels = draw_request(
            sd,
            request,
            plan_of(sd, request.options, first.begins_with),
            pictures,
            masks,
            first.feather,
            None if masks is None else cells(sd, every),
            hole=None if first.hole is None else np.array([ask.hole for ask in every], np.float32),
            watch=seen,
        )
    return [one_picture(ask, row) for ask, row in zip(asks, pixels, strict=False)]


def one_picture(ask: Ask, pixels: np.ndarray) -> Any:
    """Returns a finished picture, or the SdjaxError of one that overflowed: its neighbours are not lost."""
    try:
        return finished(ask, pixels)
    except SdjaxError as error:
        return error


def finished(ask: Ask, pixels: np.ndarray) -> Any:
    """Returns pixels [H, W, 3] as a PIL image, cut to the size that a second walk was asked for."""
    (image,) = pixels_to_pil(pixels)
    if ask.hires is None or ask.hires.target is None:
        return image
    height, width = ask.hires.target
    left, top = max(0, image.width - width) // 2, max(0, image.height - height) // 2
    return image.crop((left, top, min(image.width, left + width), min(image.height, top + height)))
