"""A loaded IP-Adapter with its image tower as a value, and the pure functions that compute what it adds in a UNet."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from sdjax.checks import is_number
from sdjax.errors import SdjaxError
from sdjax.families.config import Config
from sdjax.families.table import family_of
from sdjax.image.pixels import clip_pixels, pixels_to_pil, read_images
from sdjax.model.value import millions
from sdjax.networks.clip.config import VisionConfig
from sdjax.networks.clip.network import ImageTower
from sdjax.networks.image_prompt.config import ImagePromptConfig
from sdjax.networks.image_prompt.names import attentions_of
from sdjax.networks.image_prompt.network import keys_of_tokens, tokens_of
from sdjax.networks.unet.blocks import KeysValues
from sdjax.networks.unet.config import UNetConfig
from sdjax.nn.layers import precise
from sdjax.types import Array, Params


@partial(jax.tree_util.register_dataclass, data_fields=["params", "tower"], meta_fields=["config", "vision"])
@dataclass(frozen=True, eq=False)
class ImagePrompt:
    """A loaded IP-Adapter. `sdjax.load_image_prompt` returns it.

    config, vision: hashable; of the adapter and of the image tower that it looks at pictures with.
    params, tower: of both, in the dtypes that they were stored in. They compute in the dtype of the model.
    """

    config: ImagePromptConfig
    params: Params = field(repr=False)
    vision: VisionConfig
    tower: Params = field(repr=False)

    def __repr__(self) -> str:
        kind = "plus" if self.config.plus else "base"
        return (
            f"<ImagePrompt {kind}: {self.config.tokens} tokens a picture, {millions(self.params)} parameters, "
            f"image tower {millions(self.tower)}>"
        )


Keys = list[tuple[Array, Array]]  # keys and scaled values for each cross-attention, by its number


class Asked(NamedTuple):
    """One image prompt of a request."""

    adapter: ImagePrompt
    pictures: np.ndarray | None  # `clip_pixels` [Q, K, size, size, 3]; None: what there is without a picture
    scale: float


# ---- pure functions of parameters


@partial(jax.jit, static_argnames=("config", "vision", "dtype"))
def look(params: Params, tower: Params, pixels: Array, config: ImagePromptConfig, vision: VisionConfig, dtype: Any):
    """Returns what the image tower sees of `clip_pixels` [B, size, size, 3]: embeddings [B, seen], or for plus the
    states before its last layer, [B, T, seen]."""
    with precise(dtype):
        return ImageTower(vision, dtype).apply({"params": tower}, pixels, back=int(config.plus))


@partial(jax.jit, static_argnames=("config", "dtype"))
def picture_tokens(params: Params, seen: Array, config: ImagePromptConfig, dtype: Any) -> Array:
    """Returns the tokens of what `look` returns, float32 [B, tokens, context_dim]."""
    with precise(dtype):
        return tokens_of(params, seen, config, dtype)


@partial(jax.jit, static_argnames=("count", "dtype"))
def picture_keys(params: Params, tokens: Array, scale: Array, count: int, dtype: Any) -> Keys:
    """Returns the keys and the scaled values that `count` cross-attentions make of tokens. One call serves a walk."""
    with precise(dtype):
        return keys_of_tokens(params, tokens, scale, count, dtype)


def tokens_of_pictures(asked: Asked, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens of an image prompt, [Q, K tokens, context_dim], and those of its unconditional side, of one.

    The unconditional side is an embedding of zeros, or for plus what the tower sees of a tensor of zeros
    (tencent-ailab's ip_adapter.py). Pictures go through the tower one by one: any number takes the same program.
    """
    adapter, config, side = asked.adapter, asked.adapter.config, asked.adapter.vision.size
    see = lambda pixels: look(adapter.params, adapter.tower, pixels, config, adapter.vision, dtype)
    tokens = lambda seen: np.asarray(picture_tokens(adapter.params, seen, config, dtype))
    nothing = see(np.zeros((1, side, side, 3), np.float32)) if config.plus else jnp.zeros((1, config.seen))
    nothing = tokens(nothing)
    if asked.pictures is None:
        return nothing, nothing
    count, several = asked.pictures.shape[:2]
    found = np.concatenate([tokens(see(one[None])) for one in asked.pictures.reshape(-1, side, side, 3)])
    return found.reshape(count, several * config.tokens, config.context_dim), np.tile(nothing, (1, several, 1))


def with_pictures(context: KeysValues, unet: UNetConfig, every: Sequence[Keys]) -> KeysValues:
    """Returns the keys and values of a UNet's context with those of image prompts behind them."""
    found = dict(context)
    for keys in every:
        for (name, _), pair in zip(attentions_of(unet), keys, strict=True):
            if found[name][0].ndim == 4:  # [B, P, L, C] of composed prompts, which all have the same pictures
                parts = found[name][0].shape[1]
                pair = [jnp.broadcast_to(leaf[:, None], (len(leaf), parts, *leaf.shape[1:])) for leaf in pair]
            found[name] = (*found[name], *pair)
    return found


def predicted_keys(sd: Any, image_prompt: Any, scale: Any, count: int) -> list[Keys]:
    """Returns what each image prompt adds in a call of `sdjax.predict` for `count` images; [] without any."""
    every = []
    for asked in check_image_prompts(sd.config, image_prompt, scale, count):
        tokens, _ = tokens_of_pictures(asked, sd.dtype)
        tokens = np.repeat(tokens, count // len(tokens), axis=0)
        layers = len(asked.adapter.config.layers)
        every.append(picture_keys(asked.adapter.params, tokens, np.float32(asked.scale), layers, sd.dtype))
    return every


# ---- arguments

PAIR = "(adapter, picture) expected, or a list of such pairs; the adapter is what sdjax.load_image_prompt gives"


def pairs_of(image_prompt: Any) -> list[tuple[ImagePrompt, Any]]:
    """Returns the argument `image_prompt` as a list of pairs. SdjaxError: it is something else."""
    if image_prompt is None:
        return []
    if isinstance(image_prompt, (list, tuple)) and not image_prompt:
        raise SdjaxError(f"image_prompt {image_prompt!r}: {PAIR}")
    several = isinstance(image_prompt, (list, tuple)) and not any(isinstance(one, ImagePrompt) for one in image_prompt)
    pairs = list(image_prompt) if several else [image_prompt]
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not isinstance(pair[0], ImagePrompt):
            raise SdjaxError(f"image_prompt is {describe(pair)}: {PAIR}")
    return [(adapter, picture) for adapter, picture in pairs]


def describe(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"({', '.join(type(one).__name__ for one in value[:4])}{' ...' * (len(value) > 4)})"
    return type(value).__name__


def check_image_prompts(config: Config, image_prompt: Any, scale: Any, count: int) -> list[Asked]:
    """Returns the image prompts for `count` images. SdjaxError: one is not for this model, or is wrong."""
    pairs = pairs_of(image_prompt)
    if not pairs:
        if np.ndim(scale) or scale != 1:
            raise SdjaxError(f"image_prompt_scale {scale!r}: needs an image_prompt")
        return []
    scales = list(scale) if isinstance(scale, (list, tuple)) or np.ndim(scale) == 1 else [scale] * len(pairs)
    if len(scales) != len(pairs) or not all(map(is_number, scales)):
        raise SdjaxError(f"image_prompt_scale {scale!r}: a number, or one for each of {len(pairs)} image prompts")
    found = []
    for (adapter, picture), own in zip(pairs, scales, strict=True):
        check_fits(config, adapter)
        pictures = None if picture is None else read_pictures(picture, adapter.vision.size)
        if pictures is not None and count % len(pictures):
            raise SdjaxError(f"image_prompt: pictures for {len(pictures)} images, for one or {count} expected")
        found.append(Asked(adapter, pictures, float(own)))
    return found


def check_fits(config: Config, adapter: ImagePrompt) -> None:
    """SdjaxError: the adapter was made for another kind of model."""
    own, unet = adapter.config, config.unet
    if family_of(config).concat == "lowres" or not unet.cross:
        raise SdjaxError(f"image_prompt: {config.name} takes none")
    if own.context_dim != unet.context_dim:
        raise SdjaxError(
            f"image_prompt: is for a model with a context of width {own.context_dim}, {config.name} has "
            f"{unet.context_dim}"
        )
    widths = tuple(width for _, width in attentions_of(unet))
    if own.layers != widths:
        raise SdjaxError(
            f"image_prompt: is for {len(own.layers)} cross-attentions of {in_turn(own.layers)} channels, {config.name} "
            f"has {len(widths)} of {in_turn(widths)}"
        )


def in_turn(widths: Sequence[int]) -> str:
    """Returns widths as text, with equal neighbours once: [320, 320, 640] -> "320, 640"."""
    return ", ".join(str(width) for width, _ in groupby(widths))


def read_pictures(picture: Any, size: int) -> np.ndarray:
    """Returns the pictures of an image prompt as `clip_pixels`, [Q, K, size, size, 3]: K are seen together.

    picture: one; a list or an array [K, H, W, 3] of some that are seen together; or a list of such lists, one for each
        image. SdjaxError: these are no pictures, or the lists differ in length.
    """
    nested = isinstance(picture, (list, tuple)) and len(picture) and all(isinstance(p, (list, tuple)) for p in picture)
    every = [list(each_picture(one)) for one in (picture if nested else [picture])]
    if len({len(one) for one in every}) > 1 or not every[0]:
        many = ", ".join(str(len(one)) for one in every)
        raise SdjaxError(f"image_prompt: lists of {many} pictures, at least one and as many in each list expected")
    return np.stack([np.stack([clip_pixels(one, size) for one in several]) for several in every])


def each_picture(picture: Any) -> Iterator[Image.Image]:
    """Yields pictures as PIL images: of PIL, uint8 or floats in [-1, 1] of [H, W, 3] or [K, H, W, 3], or a list."""
    if isinstance(picture, (list, tuple)):
        for one in picture:
            yield from each_picture(one)
    elif isinstance(picture, Image.Image):
        yield picture
    elif getattr(picture, "dtype", None) == np.uint8 and np.ndim(picture) in (3, 4) and np.shape(picture)[-1] == 3:
        yield from map(Image.fromarray, np.asarray(picture).reshape(-1, *np.shape(picture)[-3:]))
    else:
        try:
            yield from pixels_to_pil(read_images(picture, None, None, 1, 3))
        except SdjaxError as error:
            raise SdjaxError(f"image_prompt: {error}") from None
