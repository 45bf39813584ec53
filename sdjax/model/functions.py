"""Pure functions of a loaded model: encode pixels, predict, decode latents.

There are two layers. The functions that take `sd` are the public ones; they check their arguments. They call
`text_states`, `context_keys`, `unet_output`, `vae_posterior` and `vae_pixels`, which take parameters and a config, are
compiled once for each shape, config and dtype, and may be called inside other jitted functions.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sdjax.checks import is_whole
from sdjax.diffusion.noise import seeded_posterior_sample
from sdjax.errors import SdjaxError
from sdjax.model.control import Control, predicted_residuals
from sdjax.model.image_prompt import ImagePrompt, predicted_keys, with_pictures
from sdjax.model.value import FLOAT32, StableDiffusion
from sdjax.networks.bert.config import BertTextConfig
from sdjax.networks.bert.network import Bert
from sdjax.networks.clip.config import TextConfig
from sdjax.networks.clip.network import TextTower
from sdjax.networks.unet.blocks import Residuals
from sdjax.networks.unet.config import UNetConfig
from sdjax.networks.unet.network import KeysValues, TimeShifts, UNet, guidance_features, keys_values
from sdjax.networks.vae.config import VAEConfig
from sdjax.networks.vae.network import VAE
from sdjax.nn.layers import precise
from sdjax.nn.tiles import in_tiles
from sdjax.types import Array, Arrays, Cond, Params

#: The VAE's tiles, in latents: a tile's side, the least overlap of two tiles, and the largest number of positions that
#: goes through in one piece (1024 x 1024 pixels at a factor of 8)
TILE, OVERLAP, UNTILED = 96, 16, 128 * 128


# ---- pure functions of parameters


@partial(jax.jit, static_argnames=("config", "dtype"))
def text_states(
    params: Params, ids: Array, config: TextConfig | BertTextConfig, dtype=FLOAT32, vectors: Array | None = None
) -> Array:
    """Text parameters, int32 ids [B, L] -> float32 states [B, L, D] after the final LayerNorm, or as config.back says.

    config: with fewer layers than the parameters have, the last ones are skipped (clip_skip).
    vectors: [N, D], what ids from vocab_size on stand for (textual inversion).
    """
    with precise(dtype):
        if isinstance(config, BertTextConfig):
            return Bert(config, dtype).apply({"params": params}, ids)
        found = TextTower(config, dtype).apply({"params": params}, ids, vectors)
        return found if config.projection is None else found[0]


@partial(jax.jit, static_argnames=("config", "dtype"))
def states_and_pooled(
    params: Params, ids: Array, config: TextConfig, dtype=FLOAT32, vectors: Array | None = None
) -> tuple[Array, Array]:
    """Text parameters of a tower with a projection, int32 ids [B, L] -> (`text_states`, float32 pooled embeddings [B,
    projection]), of one run of the tower."""
    with precise(dtype):
        return TextTower(config, dtype).apply({"params": params}, ids, vectors)


@partial(jax.jit, static_argnames="dtype")
def context_keys(params: Params, context: Array, dtype=FLOAT32) -> KeysValues:
    """UNet parameters, context [..., L, D] -> the keys and values that all cross-attentions make of it.

    Give them to `unet_output` in place of the context, and they are computed once for all steps of a walk.
    """
    with precise(dtype):
        return keys_values(params, context, dtype)


@partial(jax.jit, static_argnames=("config", "dtype"))
def unet_output(
    params: Params,
    x: Array,
    t: Array | TimeShifts,
    context: Array | KeysValues | None,
    config: UNetConfig,
    dtype=FLOAT32,
    vector: Array | None = None,
    guidance: Array | None = None,
    control: Residuals | None = None,
) -> Array:
    """Returns the UNet's raw output, float32 [B, h, w, C'].

    params: the UNet's. x: [B, h, w, C]. t: timesteps [B], or their `time_shifts` (networks/unet/network.py).
    context: [B, L, D], or its `context_keys`; None if the UNet takes none.
    vector: [B, V], for a UNet that takes one, unless t holds what it adds.
    guidance: [B, G], for a UNet that takes the guidance scale, its `guidance_features`, unless t holds what they add.
    control: what ControlNets and T2I-Adapters add, see model/control.py.
    """
    with precise(dtype):
        return UNet(config, dtype).apply({"params": params}, x, t, context, vector, guidance, control)


@partial(jax.jit, static_argnames=("config", "dtype"))
def vae_posterior(params: Params, pixels: Array, config: VAEConfig, dtype=FLOAT32) -> tuple[Array, Array]:
    """VAE parameters, pixels [B, H, W, 3] -> posterior mean and log variance, each unscaled float32 [B, h, w, 4]."""

    def encode(pixels: Array) -> Array:
        return jnp.concatenate(VAE(config, dtype).apply({"params": params}, pixels, method="encode"), axis=-1)

    f, dtype = config.factor, config.computed_in(dtype)
    with precise(dtype):
        return tuple(jnp.split(in_tiles(encode, pixels, f * TILE, f * OVERLAP, f, f * f * UNTILED), 2, axis=-1))


@partial(jax.jit, static_argnames=("config", "dtype"))
def vae_pixels(params: Params, latents: Array, config: VAEConfig, dtype=FLOAT32) -> Array:
    """VAE parameters, scaled latents [B, h, w, 4] -> float32 pixels [B, H, W, 3], not clipped."""
    dtype = config.computed_in(dtype)
    with precise(dtype):
        latents = latents.astype(jnp.float32) / config.scaling
        decode = lambda latents: VAE(config, dtype).apply({"params": params}, latents, method="decode")
        return in_tiles(decode, latents, TILE, OVERLAP, most=UNTILED)


def beside(x: Array, concat: Array | None) -> Array:
    """Returns x [B, h, w, c] with a Cond's channels [B, h, w, C] behind its own, or x alone without any."""
    return x if concat is None else jnp.concatenate([x, concat.astype(x.dtype)], -1)


def predict(
    sd: StableDiffusion,
    x: Float[Arrays, "B h w C"],
    t: Float[Arrays, "#B"] | float,
    cond: Cond | None,
    control: Control | Sequence[Control] | None = None,
    control_image: Any = None,
    control_scale: float | Sequence[Any] = 1.0,
    image_prompt: tuple[ImagePrompt, Any] | Sequence[tuple[ImagePrompt, Any]] | None = None,
    image_prompt_scale: float | Sequence[float] = 1.0,
    guidance_scale: Float[Arrays, "#B"] | float | None = None,
) -> Float[Array, "B h w c"]:
    """Returns the UNet's raw output, float32 [B, h, w, 4]: eps, v or x0, as config.schedule.prediction says.

    x: noisy scaled latents [B, h, w, C]. If `cond.concat` holds what stands beside them, C is the number of latent
        channels; otherwise C = config.unet.in_channels (inpainting: latents, mask, masked latents).
    t: timesteps in [0, 999], int or float, [B] or one for all.
    cond: of batch B, as `sdjax.encode_prompt` and the other builders return it; None for a model that takes nothing.
    control: a ControlNet or T2I-Adapter, as `sdjax.load_control` returns it, or a list of them.
    control_image, control_scale: as for `sdjax.txt2img`; a list of one for each control of a list.
    image_prompt, image_prompt_scale: as for `sdjax.txt2img`. (adapter, None) is the unconditional side, which an
        IP-Adapter gives tokens of its own.
    guidance_scale: of a model whose UNet takes the scale itself (LCM), [B] or one for all; None: the model's own.
    SdjaxError: a wrong shape or dtype, a scale or an adapter for another model.
    """
    config = sd.config.unet
    cond = Cond() if cond is None else cond
    if not isinstance(cond, Cond):
        raise SdjaxError(f"cond is {type(cond).__name__}: what sdjax.encode_prompt gives expected")
    channels = config.in_channels
    if cond.concat is not None:
        channels -= np.shape(cond.concat)[-1]
        concat = check_pictures("cond.concat", cond.concat, config.in_channels - sd.config.vae.latent_channels, 1)
        x = beside(check_pictures("x", x, channels, config.unit), concat)
    x = check_pictures("x", x, config.in_channels, config.unit)
    try:
        t = jnp.asarray(t)
    except (TypeError, ValueError):
        raise SdjaxError(f"t {t!r}: timesteps expected, one number or [{len(x)}]") from None
    if t.dtype.kind not in "fiu":
        raise SdjaxError(f"t is {t.dtype}: timesteps expected, one number or [{len(x)}]")
    if t.shape not in ((), (len(x),)):
        raise SdjaxError(f"t has shape {list(t.shape)}, should be [{len(x)}] or one number")
    context = checked_field("context", cond.context, (len(x), None, config.context_dim) if config.cross else None)
    vector = checked_field("vector", cond.vector, (len(x), config.vector or 1) if config.takes_vector else None)
    t = jnp.broadcast_to(t.astype(jnp.float32), len(x))
    guidance = embedded_scale(sd, guidance_scale, len(x))
    keys, pictures = context, predicted_keys(sd, image_prompt, image_prompt_scale, len(x))
    if pictures:
        keys = with_pictures(context_keys(sd.params["unet"], context, sd.dtype), config, pictures)
    args = sd.params["unet"], x, t, keys, config, sd.dtype, vector, guidance
    if control is None:
        if control_image is not None:
            raise SdjaxError("control_image: needs a control")
        if np.ndim(control_scale) or control_scale not in (None, 1):
            raise SdjaxError("control_scale: needs a control")
        return unet_output(*args)
    more = predicted_residuals(sd, control, control_image, control_scale, x, t, context, vector)
    return unet_output(*args, more)


def embedded_scale(sd: StableDiffusion, scale: Any, count: int) -> Array | None:
    """Returns the guidance scale of `count` images as the UNet takes it, [B, G]; None for a UNet that takes none.

    SdjaxError: a scale is given for such a UNet, or is not one number or one for each image.
    """
    width = sd.config.unet.guidance
    if width is None:
        if scale is not None:
            raise SdjaxError(f"guidance_scale {scale!r}: the UNet of {sd.config.name} takes none")
        return None
    scale = sd.config.guidance_scale if scale is None else scale
    if np.shape(scale) not in ((), (count,)):
        raise SdjaxError(f"guidance_scale has shape {list(np.shape(scale))}, should be [{count}] or one number")
    features = guidance_features(scale, width, jnp if isinstance(scale, jax.Array) else np)
    return jnp.broadcast_to(jnp.asarray(features), (count, width))


def checked_field(name: str, value: Any, shape: tuple[int | None, ...] | None) -> Array | None:
    """Returns a field of a Cond as an array. shape: what it should be, None for any side; None: the model takes none.

    SdjaxError: it is another one.
    """
    found = np.shape(value)
    fits = len(found) == len(shape or ()) and all(
        want in (None, side) for want, side in zip(shape or (), found, strict=True)
    )
    if shape is None and value is not None:
        raise SdjaxError(f"cond.{name} has shape {list(found)}: this model takes none")
    if shape is not None and (value is None or not fits):
        want = ", ".join("L" if side is None else str(side) for side in shape)
        said = "is None" if value is None else f"has shape {list(found)}"
        raise SdjaxError(f"cond.{name} {said}, should be [{want}]")
    return None if value is None else jnp.asarray(value)


def vae_moments(
    sd: StableDiffusion, pixels: Float[Arrays, "B H W 3"]
) -> tuple[Float[Array, "B h w c"], Float[Array, "B h w c"]]:
    """Returns the posterior's mean and log variance, each float32 [B, h, w, 4] and unscaled.

    pixels: [B, H, W, 3] in [-1, 1]; the sides are multiples of the VAE's factor. The log variance is clamped to
    [-30, 20].
    """
    config = sd.config.vae
    return vae_posterior(sd.params["vae"], check_pictures("pixels", pixels, 3, config.factor), config, sd.dtype)


def encode(sd: StableDiffusion, pixels: Float[Arrays, "B H W 3"], seed: int | None = None) -> Float[Array, "B h w c"]:
    """pixels [B, H, W, 3] in [-1, 1] -> scaled latents [B, h, w, 4]: the posterior's mean, or with a seed a sample.

    seed: image i is sampled with seed + i, so its sample depends on nothing else in the batch.
    SdjaxError: a wrong shape or dtype, or a seed outside 0 .. 2^32 - B.
    """
    mean, logvar = vae_moments(sd, pixels)
    if seed is not None:
        if not is_whole(seed, 0, 2**32 - len(mean)):
            raise SdjaxError(f"seed is {seed!r}, should be None or an integer from 0 to {2**32 - len(mean)}")
        mean = seeded_posterior_sample(mean, logvar, np.uint32(seed))
    return mean * sd.config.vae.scaling


def decode(sd: StableDiffusion, latents: Float[Arrays, "B h w c"]) -> Float[Array, "B H W 3"]:
    """Scaled latents [B, h, w, 4] -> float32 pixels [B, H, W, 3], in about [-1, 1] and not clipped."""
    config = sd.config.vae
    return vae_pixels(sd.params["vae"], check_pictures("latents", latents, config.latent_channels, 1), config, sd.dtype)


def check_pictures(name: str, x: Any, channels: int, factor: int) -> Array:
    """Returns `x` as an array. SdjaxError unless it is floating [B, H, W, channels] and `factor` divides H and W."""
    x = x if x is None or isinstance(x, str) else jnp.asarray(x)
    if np.ndim(x) != 4 or x.shape[3] != channels:
        raise SdjaxError(f"{name} has shape {list(np.shape(x))}, should be [B, H, W, {channels}]")
    if 0 in x.shape or x.shape[1] % factor or x.shape[2] % factor:
        raise SdjaxError(f"{name} has shape {list(x.shape)}, its sides should be positive multiples of {factor}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise SdjaxError(f"{name} is {x.dtype}, should be floating point")
    return x
