"""What one picture is asked for. Pictures whose `key` is the same are drawn in one batch, whoever asked for them."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from sdjax.errors import SdjaxError
from sdjax.image.masks import cells_of, feather_masks
from sdjax.model.value import StableDiffusion
from sdjax.tasks.given import check_beside
from sdjax.tasks.options import TaskOptions
from sdjax.tasks.plans import plan_of
from sdjax.tasks.request import Request, check, some_images
from sdjax.tasks.sides import grouped, read_sides
from sdjax.tasks.text_to_image import enlarged

#: Options that may differ between the pictures of a batch.
OF_PICTURES = ("negative_prompt", "seed", "variation_seed", "guidance_scale", "control_image", "progress", "num_images")

PARTS = 16  # the most prompts that AND composes
POSITIONS = 2**16  # of the context, all of these together: 10,000 characters of any script need less


class Hires(NamedTuple):
    """The second walk of a large picture."""

    scale: float
    strength: float
    upscale: str
    steps: int | None = None
    target: tuple[int, int] | None = None  # (height, width) in pixels, in place of scale


class Key(NamedTuple):
    """What pictures of one batch have in common."""

    model: str
    alike: tuple  # options and their values
    kind: tuple
    text: tuple[int, int]  # (prompts that AND composes, chunks of the longest)
    networks: tuple  # LoRAs that the prompt names

    @property
    def shape(self) -> tuple:
        """What a program is compiled for, or nearly so."""
        wanted = ("height", "width", "clip_skip")
        return self.model, tuple(value for name, value in self.alike if name in wanted), self.kind, self.text


@dataclass(frozen=True, eq=False)
class Ask:
    """One picture.

    options: those of the task, with this picture's seed, and with height and width.
    pictures: float32 [1, H, W, 3], what the walk starts from. masks: float32 [1, H, W, 1], zeros and ones.
    strength: how much of `pictures` may change; 1 with masks starts from noise alone.
    hole: what is in place of the picture where the mask is white: None is the picture itself, else so much noise.
    texts: further fields of the text in the PNG.
    after: makes of what is drawn the picture that is answered.
    """

    prompt: str
    options: TaskOptions
    pictures: np.ndarray | None = None
    masks: np.ndarray | None = None
    feather: float = 0.0
    strength: float | None = None
    hole: float | None = None
    hires: Hires | None = None
    controls: tuple[tuple, ...] = ()  # what must be the same of them in a batch
    texts: dict[str, Any] = field(default_factory=dict)
    after: Callable[[Image.Image], Image.Image] | None = None

    @property
    def begins_with(self) -> float | None:
        """The strength of the plan; None: it starts from noise alone."""
        return None if self.masks is not None and self.strength == 1 else self.strength

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the finished picture."""
        return self.options.width, self.options.height


def request_of(sd: StableDiffusion, asks: list[Ask]) -> Request:
    """Returns the request of some pictures of one key. SdjaxError: an option that cannot be used."""
    first = asks[0].options
    own = replace(
        first,
        negative_prompt=[ask.options.negative_prompt for ask in asks],
        seed=0,
        output="pixels",
        progress=ignore,
        control_image=pictures_of_controls([ask.options.control_image for ask in asks]),
    )
    count = len(asks) if asks[0].pictures is not None else 1
    found = check(sd.config, [ask.prompt for ask in asks], own, count)
    seeds, others = (
        np.array([getattr(ask.options, name) for ask in asks], np.uint32) for name in ("seed", "variation_seed")
    )
    guidance = None
    if not sd.config.unet.guidance:
        own_scale = sd.config.guidance_scale
        scales = [ask.options.guidance_scale for ask in asks]
        guidance = np.array([own_scale if scale is None else scale for scale in scales], np.float32)
    return found._replace(seeds=seeds, others=others, guidance=guidance)


def ignore(step: int, total: int) -> None:
    """Stands for a `progress`, so that the engine goes step by step."""


def pictures_of_controls(each: list) -> list | None:
    """Returns the pictures of each control, of all images, for each image's pictures of all controls."""
    return None if each[0] is None else [list(pictures) for pictures in zip(*each, strict=True)]


def checked(sd: StableDiffusion, model: str, ask: Ask) -> Key:
    """Returns the key of a picture. SdjaxError: it cannot be drawn by this model; the message names the argument."""
    check_beside(sd.config, ask.prompt, None if ask.masks is None else "mask")
    request = request_of(sd, [ask])
    plan_of(sd, ask.options, ask.begins_with)
    if ask.hires is not None:
        again = replace(ask.options, steps=ask.hires.steps or ask.options.steps)
        plan_of(sd, again, ask.hires.strength)
    sides, networks = read_sides(sd, request), tuple(request.networks or ())
    for share in sides.shares:
        request, sides = some_images(request, share.places), share.sides
    (group,) = grouped(sd, request, sides)
    length = getattr(sd.config.text, "length", 0)
    if group.parts > PARTS or group.parts * group.chunks * length > POSITIONS:
        name = "prompt" if len(ask.prompt) >= len(ask.options.negative_prompt) else "negative_prompt"
        most = POSITIONS // length
        raise SdjaxError(f"{name}: at most {PARTS} prompts joined by AND, and {most} chunks in all, expected")
    alike = tuple((name, value) for name, value in vars(ask.options).items() if name not in OF_PICTURES)
    alike = tuple((name, value) for name, value in alike if name != "control")
    of_all = ask.options.guidance_scale if sd.config.unet.guidance else None
    kind = ask.pictures is not None, ask.masks is not None, ask.strength, ask.feather, ask.hires, ask.hole is not None
    return Key(model, alike, (*kind, ask.controls, of_all), (group.parts, group.chunks), networks)


def large_sides(sd: StableDiffusion, shape: tuple[int, int, int], hires: Hires) -> tuple[int, int]:
    """Returns the sides of the latents of a second walk, which cover `hires.target` if there is one."""
    if hires.target is None:
        return enlarged(sd, shape, hires.scale)
    factor = sd.config.vae.factor
    scale = max(target / (side * factor) for target, side in zip(hires.target, shape, strict=False))
    sides = enlarged(sd, shape, scale)
    return tuple(max(side, -(-target // factor)) for side, target in zip(sides, hires.target, strict=True))


def weights_of_masks(asks: list[Ask]) -> np.ndarray:
    """Returns the share of what is painted in each pixel, [B, H, W, 1]."""
    return np.concatenate([feather_masks(ask.masks, ask.feather) for ask in asks])


def cells(sd: StableDiffusion, asks: list[Ask]) -> np.ndarray:
    """Returns the masks for latents, [B, h, w, 1]."""
    return np.concatenate([cells_of(ask.masks, sd.config.vae.factor, "corner") for ask in asks])
