"""The tasks that start from a picture. Each reads its arguments, plans its walk and leaves the rest to engine.py."""

from collections.abc import Sequence

import numpy as np

from sdjax.checks import is_number, is_whole
from sdjax.errors import SdjaxError
from sdjax.image.masks import cells_of, read_masks
from sdjax.image.pixels import read_images
from sdjax.model.value import StableDiffusion
from sdjax.tasks.engine import draw_request
from sdjax.tasks.given import check_beside
from sdjax.tasks.options import TaskOptions, takes_options
from sdjax.tasks.plans import given, plan_of, read
from sdjax.tasks.request import check
from sdjax.types import Cond


@takes_options
def img2img(
    sd: StableDiffusion,
    prompt: str | Sequence[str] | Cond | None,
    image,
    strength: float = 0.75,
    options: TaskOptions = None,
):
    """Returns pictures like `image`: adds noise of an intermediate level to it and denoises it from there.

    The results have the form of txt2img's.
    image: a PIL image or a list of them, resized to height and width or to the next smaller fitting size; a float
        array [H, W, 3] or [B, H, W, 3] in [-1, 1] of a fitting size; or scaled latents [B, h, w, C]. One for all
        prompts, or one for each. Pixels are encoded to the mean of the VAE's posterior. An array of three channels is
        always pixels: if the model's latents have three channels, decode them first with `sdjax.decode`.
    strength: in (0, 1]; only the last int(steps strength) steps are walked, and the picture is noised to the level of
        the first of them.
    latents: the unit noise that is added.
    """
    check_beside(sd.config, prompt)
    options, pictures = read(sd.config, image, options)
    request = check(sd.config, prompt, options, len(pictures))
    return draw_request(sd, request, plan_of(sd, options, given(strength)), pictures)


@takes_options
def inpaint(
    sd: StableDiffusion,
    prompt: str | Sequence[str] | Cond | None,
    image,
    mask,
    strength: float = 1.0,
    feather: float = 0.0,
    mask_cells: str = "corner",
    options: TaskOptions = None,
):
    """Returns `image` repainted where `mask` is white; pixels where it is black stay exactly those of `image`.

    The results have the form of txt2img's. An inpainting model (9 channels) gets the mask and the rest of the picture
    beside x; with any other model the known region is put back, with noise, before each step.
    image: as for img2img, but no latents.
    mask: a PIL image, a list of them, or an array [H, W] or [B, H, W] (bool, 0 .. 1, whole numbers), of any size;
        values of at least half are white, transparent pixels are not. One for all images, or one for each.
    strength: 1 fills the hole from noise; below 1 it starts from what was there, as img2img does.
    feather: width in pixels of the zone inside the mask's border in which old and new are blended.
    mask_cells: "corner": a latent is repainted if the top left pixel of its square is white, as in diffusers; "any": if
        any pixel of it is, so that nothing white is too thin.
    """
    config = sd.config
    check_beside(config, prompt, "mask")
    if not is_number(feather, 0):
        raise SdjaxError(f"feather {feather!r}: a number of pixels from 0 on")
    options, pictures = read(config, image, options)
    if pictures.shape[3] != 3:
        raise SdjaxError("image: pixels [B, H, W, 3] expected, inpaint does not take latents")
    masks = read_masks(mask, pictures.shape[1:3], image)
    count = max(len(pictures), len(masks))
    if len(masks) not in (1, count) or len(pictures) not in (1, count):
        raise SdjaxError(f"mask: {len(masks)} masks for {len(pictures)} images, one or {len(pictures)} expected")
    request = check(config, prompt, options, count)
    full = is_number(strength) and strength == 1  # x then starts as noise, in the known region too, as in diffusers
    plan = plan_of(sd, options, None if full else given(strength))
    cells = cells_of(masks, config.vae.factor, mask_cells)
    return draw_request(sd, request, plan, pictures, masks, feather, cells)


@takes_options
def outpaint(
    sd: StableDiffusion,
    prompt: str | Sequence[str] | Cond | None,
    image,
    left: int = 0,
    right: int = 0,
    top: int = 0,
    bottom: int = 0,
    strength: float = 1.0,
    feather: float = 0.0,
    mask_cells: str = "corner",
    options: TaskOptions = None,
):
    """Returns `image` on a larger canvas: `inpaint` paints what is added, and the picture itself stays as it is.

    image: as for inpaint, but never resized: the canvas must have a size that the model takes.
    left, right, top, bottom: whole numbers of pixels to add on each side.
    strength: as for inpaint; below 1 the added part starts from the picture's border pixels, repeated outwards.
    feather, mask_cells: as for inpaint.
    """
    sides = {"left": left, "right": right, "top": top, "bottom": bottom}
    for name, side in sides.items():
        if not is_whole(side, 0):
            raise SdjaxError(f"{name} {side!r}: a whole number of pixels from 0 on")
    if not any(sides.values()):
        raise SdjaxError("left, right, top, bottom: at least one of them must be above 0")
    for name in ("height", "width"):
        if getattr(options, name) is not None:
            raise SdjaxError(f"{name} {getattr(options, name)!r}: None, outpaint's canvas is the image and its sides")
    pictures = read_images(image, None, None, 1)
    if pictures.shape[3] != 3:
        raise SdjaxError("image: pixels [B, H, W, 3] expected, outpaint does not take latents")
    unit = sd.config.unit
    pads = ((0, 0), (top, bottom), (left, right), (0, 0))
    canvas = np.pad(pictures, pads, mode="edge")
    for name, size in (("bottom", canvas.shape[1]), ("right", canvas.shape[2])):
        if size % unit:
            more = sides[name] + -size % unit
            raise SdjaxError(
                f"{name} {sides[name]}: the canvas would have {size} pixels, {more} make it a multiple of {unit}"
            )
    mask = np.pad(np.zeros(pictures.shape[1:3], np.float32), pads[1:3], constant_values=1.0)
    size = {"height": canvas.shape[1], "width": canvas.shape[2]}
    return inpaint(sd, prompt, canvas, mask, strength, feather, mask_cells, **vars(options) | size)
