"""Text and pictures to pictures. Each task reads its arguments, plans its walk and leaves the rest to engine.py."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sdjax.diffusion.sampler import Plan
from sdjax.diffusion.sampler import plan as make_plan
from sdjax.diffusion.schedule import make_schedule
from sdjax.errors import SdjaxError
from sdjax.families.sd import Config
from sdjax.image.pixels import read_images, read_masks
from sdjax.model.functions import StableDiffusion
from sdjax.tasks import stages
from sdjax.tasks.engine import evaluations, plan_work, run
from sdjax.tasks.options import Options, check, check_size, number, takes_options, whole

UPSCALE = ("latents", "pixels")
HIRES = 2**32 - 1  # numbers the second walk's draws


@takes_options
def txt2img(sd: StableDiffusion, prompt: str | Sequence[str], options: Options):
    """`num_images` pictures of each prompt, prompt by prompt: as `output` says, PIL images, pixels or latents."""
    refuse_inpainting(sd.config)
    return run(sd, check(sd.config, prompt, options), plan_of(sd, options))


@takes_options
def img2img(sd: StableDiffusion, prompt: str | Sequence[str], image, strength: float = 0.75, options: Options = None):
    """Pictures like `image`: it gets the noise of a level on the way and is denoised from there. Results as txt2img's.

    image: a PIL image or a list of them, resized to height and width or to the next smaller fitting size; a float
    array [H, W, 3] or [B, H, W, 3] in [-1, 1] of a fitting size; or scaled latents [B, h, w, 4]. One for all prompts,
    or as many as prompts. Its latents are the posterior's mean.
    strength: (0, 1]; the last int(steps strength) steps are walked, from the level that the picture is noised to.
    latents: the unit noise that is added.
    """
    refuse_inpainting(sd.config)
    options, pictures = read(sd.config, image, options)
    request = check(sd.config, prompt, options, len(pictures))
    return run(sd, request, plan_of(sd, options, given(strength)), pictures)


@takes_options
def inpaint(sd: StableDiffusion, prompt: str | Sequence[str], image, mask, strength: float = 1.0, feather: float = 0.0,
            options: Options = None):
    """`image` with its white part under `mask` painted anew; pixels under black are the input's. Results as txt2img's.

    An inpainting model (9 channels) sees the mask and the rest of the picture beside x; for any other what is known is
    put back, with noise, before each step. The model's mask takes one pixel in each latent's corner, as diffusers.
    image: as img2img's, but no latents. mask: PIL, or an array [H, W] or [B, H, W] (bool, 0 .. 1, uint8), of any size;
    half and more is white. One for all, or as many as images.
    strength: 1 fills the hole from noise; below 1 from what was there, as img2img. feather: pixels inside the mask's
    border over which old and new are blended.
    """
    config = sd.config
    known = (config.vae.latent_channels, 2 * config.vae.latent_channels + 1)
    if config.unet.in_channels not in known:
        raise SdjaxError(f"sd {config.name}: {config.unet.in_channels} channels, {known[0]} or {known[1]} expected")
    if not number(feather, 0):
        raise SdjaxError(f"feather {feather!r}: a number of pixels from 0 on")
    options, pictures = read(config, image, options)
    if pictures.shape[3] != 3:
        raise SdjaxError("image: pixels [B, H, W, 3] expected, inpaint does not take latents")
    masks = read_masks(mask, pictures.shape[1:3])
    count = max(len(pictures), len(masks))
    if len(masks) not in (1, count) or len(pictures) not in (1, count):
        raise SdjaxError(f"mask: {len(masks)} masks for {len(pictures)} images, one or {len(pictures)} expected")
    request = check(config, prompt, options, count)
    full = number(strength) and strength == 1  # then x is all noise, what is known included, as in diffusers
    plan = plan_of(sd, options, None if full else given(strength))
    return run(sd, request, plan, pictures, masks, feather)


@takes_options
def outpaint(sd: StableDiffusion, prompt: str | Sequence[str], image, left: int = 0, right: int = 0, top: int = 0,
             bottom: int = 0, strength: float = 1.0, feather: float = 0.0, options: Options = None):
    """`image` on a canvas larger by left, right, top and bottom pixels; what is added is painted by `inpaint`.

    The picture itself stays as it is. image: as inpaint's, not resized: the canvas has to have a size that the model
    takes. strength, feather: as inpaint's; below 1 the start is the picture's border, drawn out over the canvas.
    """
    sides = {"left": left, "right": right, "top": top, "bottom": bottom}
    for name, side in sides.items():
        if not whole(side, 0):
            raise SdjaxError(f"{name} {side!r}: a whole number of pixels from 0 on")
    if not any(sides.values()):
        raise SdjaxError("left, right, top, bottom: at least one of them must be above 0")
    for name in ("height", "width"):
        if getattr(options, name) is not None:
            raise SdjaxError(f"{name} {getattr(options, name)!r}: None, outpaint's canvas is the image and its sides")
    pictures = read_images(image, None, None, 1)
    if pictures.shape[3] != 3:
        raise SdjaxError("image: pixels [B, H, W, 3] expected, outpaint does not take latents")
    multiple = sd.config.multiple
    pads = ((0, 0), (top, bottom), (left, right), (0, 0))
    canvas = np.pad(pictures, pads, mode="edge")
    for name, size in (("bottom", canvas.shape[1]), ("right", canvas.shape[2])):
        if size % multiple:
            more = sides[name] + -size % multiple
            raise SdjaxError(f"{name} {sides[name]}: the canvas would have {size} pixels, {more} make it a multiple of "
                             f"{multiple}")
    mask = np.pad(np.zeros(pictures.shape[1:3], np.float32), pads[1:3], constant_values=1.0)
    return inpaint(sd, prompt, canvas, mask, strength, feather, **vars(options))


@takes_options
def hires(sd: StableDiffusion, prompt: str | Sequence[str], scale: float = 2.0, strength: float = 0.6,
          upscale: str = "latents", options: Options = None):
    """txt2img at height and width, enlarged `scale` times and refined by img2img with `strength`: large pictures whose
    composition a model can still hold together. Results as txt2img's; output "trajectory" is the second walk's.

    upscale: "latents", bicubic, soft until it is refined: strength from about 0.5 on; or "pixels", decoded, LANCZOS and
    encoded again, which keeps its edges at less. The second walk's noise is a draw of its own of the same seeds.
    """
    refuse_inpainting(sd.config)
    if not number(scale, 1):
        raise SdjaxError(f"scale {scale!r}: a number from 1 on")
    if upscale not in UPSCALE:
        raise SdjaxError(f"upscale {upscale!r}: one of {', '.join(UPSCALE)}")
    first, second = plan_of(sd, options), plan_of(sd, options, given(strength))
    small = check(sd.config, prompt, options)
    small = small._replace(options=replace(options, output=upscale))
    factor, multiple = sd.config.vae.factor, sd.config.unet.factor
    sides = [max(round(side * scale / multiple), 1) * multiple for side in small.shape[:2]]  # of latents
    size = {"height": sides[0] * factor, "width": sides[1] * factor}
    large = small._replace(shape=(*sides, small.shape[2]), options=replace(options, latents=None, **size))
    walks = [len(plan_work(sd, request)) * evaluations(plan) for request, plan in ((small, first), (large, second))]
    pictures = run(sd, small, first, after=walks[1])
    sides = sides if upscale == "latents" else [*size.values()]
    pictures = np.stack([stages.enlarge(picture, *sides, pixels=upscale == "pixels") for picture in pictures])
    return run(sd, large, second, pictures, stream=HIRES, before=walks[0])


def given(strength: float | None) -> float:
    """A plan without one begins with noise alone."""
    if strength is None:
        raise SdjaxError("strength None: a number above 0 and up to 1")
    return strength


def plan_of(sd: StableDiffusion, options: Options, strength: float | None = None) -> Plan:
    return make_plan(options.sampler, make_schedule(sd.config.schedule), options.steps, options.eta, options.sigmas,
                     options.spacing, strength)


def refuse_inpainting(config: Config) -> None:
    channels, latents = config.unet.in_channels, config.vae.latent_channels
    if channels == 2 * latents + 1:
        raise SdjaxError(f"sd {config.name}: an inpainting model ({channels} channels), use inpaint")
    if channels != latents:
        raise SdjaxError(f"sd {config.name}: its UNet takes {channels} channels, {latents} expected")


def read(config: Config, image, options: Options) -> tuple[Options, np.ndarray]:
    """The pictures [Q, H, W, 3] (or latents [Q, h, w, C]), and options with their size."""
    factor, channels = config.vae.factor, config.vae.latent_channels
    check_size(config, options)
    pictures = read_images(image, options.height, options.width, config.multiple, channels)
    height, width = (side * (1 if pictures.shape[3] == 3 else factor) for side in pictures.shape[1:3])
    for name, asked, side in (("height", options.height, height), ("width", options.width, width)):
        if asked not in (None, side):
            raise SdjaxError(f"{name} {asked}: the latents of image {np.shape(image)} are of {side} pixels")
    return replace(options, height=height, width=width), pictures
