"""What stands beside x in training: maps, masks, depth, small pictures. New channels of the UNet start at zero.

A text tower that the model has stays, and with it captions and their dropout. What stands beside x is never dropped.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from sdjax.conditioning.masks import hide, mask_channels
from sdjax.data.beside import FilesBeside
from sdjax.data.order import Chosen
from sdjax.data.picture import to_pixels
from sdjax.data.source import Pictures
from sdjax.diffusion.noise import example_keys
from sdjax.diffusion.schedule import make_schedule
from sdjax.families.config import Config
from sdjax.families.sd2 import LEVELS, MOST_LEVEL
from sdjax.families.table import family_of
from sdjax.image import bicubic
from sdjax.model.functions import vae_posterior
from sdjax.model.value import StableDiffusion
from sdjax.networks.maps.network import MapConfig, MapRescaler
from sdjax.types import Array, Batch, Cond, Params

MASK, LEVEL, NOISE = 6, 7, 8  # of random masks, and for fold_in of an example's key, beside those of conditions.py

Given = Callable[[np.ndarray, Chosen], np.ndarray]  # (rows of pictures, what was chosen) -> Batch.given


def widened(config: Config, channels: int, **unet) -> Config:
    """Returns the config with so many channels beside x, and other fields of its UNet."""
    return replace(config, unet=replace(config.unet, in_channels=config.vae.latent_channels + channels, **unet))


def each(rows: np.ndarray, chosen: Chosen, views: int) -> list[tuple[int, int, int]]:
    """Returns (picture, row, epoch of its view) of each row."""
    return list(zip(map(int, rows), map(int, chosen.rows), map(int, chosen.epochs % views), strict=True))


def each_view(make: Callable[[int, int, int, int], np.ndarray], views: int) -> Given:
    """Returns a function that stacks make(picture, row, epoch of its view, group) of all rows."""
    return lambda rows, chosen: np.stack([make(*three, chosen.group) for three in each(rows, chosen, views)])


def concat_cond(config: Config, params: Params, batch: Batch, drop: Array, key: Array) -> Cond:
    """What a batch holds is what stands beside x."""
    return Cond(concat=batch.given)


# ---- maps


def with_map(config: Config, source: Pictures, null: bool) -> Config:
    """Returns the config with a rescaler of the data's maps."""
    files = source.beside = FilesBeside(source, "map")
    count = 1 + files.largest_id()
    if config.map is None or config.map.classes < count:
        rescaler = MapConfig(count, config.map.channels if config.map else 3, config.vae.factor)
        config = widened(replace(config, map=rescaler), rescaler.channels)
    files.below = config.map.classes
    return config


def maps_given(sd: StableDiffusion, source: Pictures, views: int) -> Given:
    files = source.beside
    view = lambda i, row, epoch, group: files.view(i, row, epoch, group, source.shapes[group]).astype(np.int32)
    return each_view(view, views)


def map_cond(config: Config, params: Params, batch: Batch, drop: Array, key: Array) -> Cond:
    return Cond(concat=MapRescaler(config.map).apply({"params": params}, batch.given))


# ---- masks


def with_mask(config: Config, source: Pictures, null: bool) -> Config:
    """Returns the config of an inpainting model. Pictures without a mask get random ones, others in each epoch."""
    source.beside = FilesBeside(source, "mask")
    return widened(config, 1 + config.vae.latent_channels)


def masks_given(sd: StableDiffusion, source: Pictures, views: int) -> Given:
    """Returns a function of rows that gives the mask and the masked pictures' latents, encoded as they are needed."""
    config, files = sd.config, source.beside
    rule, factor = family_of(config).mask, config.vae.factor

    def mask_of(i: int, row: int, view: int, epoch: int, group: int) -> np.ndarray:
        if files.has(i):
            return (files.view(i, row, view, group, source.shapes[group]) >= 128).astype(np.float32)
        return random_mask(np.random.default_rng((source.seed, MASK, epoch, row)), *source.shapes[group])

    def given(rows: np.ndarray, chosen: Chosen) -> np.ndarray:
        found = each(rows, chosen, views)
        pixels = to_pixels(np.stack([source.view(row, view, chosen.group)["pixels"] for _, row, view in found]))
        epochs = map(int, chosen.epochs)
        masks = [mask_of(*one, epoch, chosen.group) for one, epoch in zip(found, epochs, strict=True)]
        masks = np.stack(masks)[..., None]
        hidden = hide(rule, pixels, masks)
        latents = vae_posterior(sd.params["vae"], hidden, config.vae, sd.dtype)[0] * config.vae.scaling
        return np.asarray(mask_channels(rule, masks[:, ::factor, ::factor], latents))

    return given


def random_mask(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Returns a mask, float32 [height, width]: everything in a quarter of all, else one to four boxes. 1 is painted."""
    mask = np.zeros((height, width), np.float32)
    if rng.random() < 0.25:
        return mask + 1
    for _ in range(rng.integers(1, 5)):
        h, w = (
            max(1, round(side * share)) for side, share in zip((height, width), rng.uniform(0.2, 0.6, 2), strict=True)
        )
        top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
        mask[top : top + h, left : left + w] = 1
    return mask


# ---- depth


def with_depth(config: Config, source: Pictures, null: bool) -> Config:
    """Returns the config of a model of depth."""
    source.beside = FilesBeside(source, "depth")
    return widened(config, 1)


def depth_given(sd: StableDiffusion, source: Pictures, views: int) -> Given:
    """Returns a function of rows that gives depth maps in [-1, 1], with Stability's 0.001 added to their range."""
    files, factor = source.beside, sd.config.vae.factor

    def view(i: int, row: int, epoch: int, group: int) -> np.ndarray:
        sides = (side // factor for side in source.shapes[group])
        depth = bicubic.resize(files.view(i, row, epoch, group)[None], *sides)[0, ..., None]
        return (2 * (depth - depth.min()) / (depth.max() - depth.min() + 1e-3) - 1).astype(np.float32)

    return each_view(view, views)


# ---- small pictures


def with_lowres(config: Config, source: Pictures, null: bool) -> Config:
    """Returns the config of a model that enlarges pictures. With text it takes noisy ones, and their level."""
    source.beside = FilesBeside(source, "lowres")
    labels = {} if config.text is None or config.unet.labels else {"labels": LEVELS.timesteps}
    return widened(config, 3, **labels)


def lowres_given(sd: StableDiffusion, source: Pictures, views: int) -> Given:
    """Returns a function of rows that gives small pictures in [-1, 1], of the latents' size."""
    files, factor = source.beside, sd.config.vae.factor

    def view(i: int, row: int, epoch: int, group: int) -> np.ndarray:
        height, width = (side // factor for side in source.shapes[group])
        if files.has(i):
            return files.view(i, row, epoch, group, (height, width))
        whole = Image.fromarray(source.view(row, epoch, group)["pixels"])
        return np.asarray(whole.resize((width, height), Image.Resampling.LANCZOS))

    small = each_view(view, views)
    return lambda rows, chosen: to_pixels(small(rows, chosen))


def lowres_cond(config: Config, params: Params, batch: Batch, drop: Array, key: Array) -> Cond:
    """With labels, the small pictures get noise of a level that is drawn for each example from 0 to MOST_LEVEL."""
    if config.unet.labels is None:
        return Cond(concat=batch.given)
    keys, shape = example_keys(key, batch.index), batch.given.shape[1:]
    draw = lambda number, make: jax.vmap(lambda k: make(jax.random.fold_in(k, number)))(keys)
    level = draw(LEVEL, partial(jax.random.randint, shape=(), minval=0, maxval=MOST_LEVEL + 1))
    eps = draw(NOISE, partial(jax.random.normal, shape=shape))
    abar = jnp.asarray(make_schedule(LEVELS).alphas_cumprod, jnp.float32)[level][:, None, None, None]
    return Cond(
        vector=level[:, None].astype(jnp.float32), concat=jnp.sqrt(abar) * batch.given + jnp.sqrt(1 - abar) * eps
    )
