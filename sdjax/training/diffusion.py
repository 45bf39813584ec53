"""The diffusion loss: it noises latents and compares the UNet's output with its target, one loss for each example.

x = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps. The network regresses eps (Eq. 14 of DDPM, arXiv 2006.11239),
v = sqrt(abar_t) eps - sqrt(1 - abar_t) x0 (arXiv 2202.00512), or x0; see PREDICTIONS in diffusion/prediction.py.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.diffusion.noise import example_keys, posterior_sample
from sdjax.diffusion.prediction import PREDICTIONS
from sdjax.diffusion.schedule import make_schedule
from sdjax.families.config import Config
from sdjax.model.functions import beside
from sdjax.networks.unet.network import UNet
from sdjax.nn.layers import precise
from sdjax.types import Array, Batch, Cond, Params

#: numbers for fold_in of an example's key; split(k, 3) in noise_batch uses 0 to 2, conditions.py and beside.py 5 to 8
CAPTION, OFFSET, SECOND = 3, 4, 9


class Noised(NamedTuple):
    """One draw of the forward process for a batch."""

    x: Array  # [B, h, w, 4]
    t: Array  # [B] int32
    target: Array  # [B, h, w, 4]: eps, v or x0
    weight: Array  # [B]: of the examples' losses


def latents_of(moments: Array, noise: Array) -> Array:
    """moments [B, h, w, 8] = (mean, log variance), unit noise [B, h, w, 4] -> a sample of the latents, unscaled."""
    return posterior_sample(*jnp.split(moments.astype(jnp.float32), 2, axis=-1), noise)


def noise_batch(
    x0_from: callable,
    shape: tuple[int, ...],
    index: Array,
    key: Array,
    abar: Array,
    prediction: str,
    min_snr_gamma: float | None = None,
    logit_normal: tuple[float, float] | None = None,
    noise_offset: float = 0.0,
) -> Noised:
    """Noises a batch: draws t, eps and the posterior's noise of every example from fold_in(key, index).

    x0_from: maps the posterior's unit noise [B, h, w, 4] to scaled latents.
    shape: of the latents, (B, h, w, 4).
    index: the examples' numbers [B].
    abar: float32 [T].
    prediction: a name of PREDICTIONS; it says what the target is.
    min_snr_gamma: None: all weights are 1. Else min-SNR-gamma (arXiv 2303.09556): min(snr, gamma) / snr for eps,
        min(snr, gamma) / (snr + 1) for v, min(snr, gamma) for x0. At zero terminal SNR v's weight is 0 at the last
        timestep.
    logit_normal: None: t is uniform. Else (m, s), with t = floor(T sigmoid(m + s n)), n ~ N(0, 1) (arXiv 2403.03206,
        section 3.1).
    noise_offset: standard deviation of one more draw, which is added to each channel of eps as a whole, so that the
        model learns to move a picture's mean (N. Guttenberg, "Diffusion with offset noise", 2023).
    """
    keys = jax.vmap(lambda k: jax.random.split(k, 3))(example_keys(key, index))
    t_key, eps_key, posterior_key = keys[:, 0], keys[:, 1], keys[:, 2]
    normal = jax.vmap(lambda k: jax.random.normal(k, shape[1:]))
    t = jax.vmap(lambda k: draw_timestep(k, len(abar), logit_normal))(t_key)
    x0, eps = x0_from(normal(posterior_key)), normal(eps_key)
    if noise_offset:
        draw = lambda k: jax.random.normal(jax.random.fold_in(k, OFFSET), (1, 1, shape[-1]))
        eps += noise_offset * jax.vmap(draw)(example_keys(key, index))
    signal, noise = jnp.sqrt(abar[t])[:, None, None, None], jnp.sqrt(1 - abar[t])[:, None, None, None]
    target = PREDICTIONS[prediction].target(x0, eps, signal, noise)
    weight = jnp.ones_like(abar[t])
    if min_snr_gamma is not None:
        snr = abar[t] / (1 - abar[t])
        weight = jnp.minimum(snr, min_snr_gamma) / PREDICTIONS[prediction].weight(snr)
    return Noised(signal * x0 + noise * eps, t, target, weight)


def draw_timestep(key: Array, total: int, logit_normal: tuple[float, float] | None) -> Array:
    """Draws one t in 0 .. total - 1, int32; see `noise_batch` for logit_normal."""
    if logit_normal is None:
        return jax.random.randint(key, (), 0, total)
    mean, spread = logit_normal
    t = jnp.floor(total * jax.nn.sigmoid(mean + spread * jax.random.normal(key)))
    return jnp.clip(t, 0, total - 1).astype(jnp.int32)


def dropped(index: Array, key: Array, rate: float, number: int = CAPTION) -> Array:
    """Returns which examples lose their condition, with probability `rate`: bool [B].

    The model learns to predict without one, which classifier-free guidance needs (arXiv 2207.12598).
    number: for fold_in; draws of another number are independent.
    """
    draw = lambda k: jax.random.bernoulli(jax.random.fold_in(k, number), rate)
    return jax.vmap(draw)(example_keys(key, index))


def drop_captions(context: Array, null: Array, drop: Array) -> Array:
    """Replaces the states [B, L, D] of the examples `drop` [B] by the empty prompt's `null` [L, D]."""
    return jnp.where(drop[:, None, None], null, context.astype(jnp.float32))


class Null(NamedTuple):
    """What replaces the dropped captions of a model of two text towers; of one tower it is the states [L, D] alone."""

    first: Array  # [L, D]: the first tower's states
    second: Array  # [L, D']: the second tower's
    pooled: Array  # [P]: the second tower's pooled embedding


def zero_null(config: Config) -> Array | Null:
    """Returns a null of zeros, of a model of text."""
    zeros = lambda *shape: np.zeros(shape, np.float32)
    first, second = zeros(config.text.length, config.text.width), config.text_2
    return first if second is None else Null(first, zeros(len(first), second.width), zeros(second.projection))


def text_cond(batch: Batch, null: Array | Null, drop: Array) -> Cond:
    """Returns the Cond of a batch's captions.

    drop: which are replaced by `null`, bool [B]; of two text towers [B, 2], since each tower's embedding is dropped by
        itself. The sizes of pictures, which stand behind the pooled embedding, are never dropped.
    """
    if not isinstance(null, Null):
        return Cond(drop_captions(batch.context, null, drop))
    width, pooled = null.first.shape[-1], len(null.pooled)
    first = drop_captions(batch.context[..., :width], null.first, drop[:, 0])
    second = drop_captions(batch.context[..., width:], null.second, drop[:, 1])
    kept = jnp.where(drop[:, 1:], null.pooled, batch.vector[:, :pooled])
    return Cond(
        jnp.concatenate([first, second], axis=-1), vector=jnp.concatenate([kept, batch.vector[:, pooled:]], axis=-1)
    )


#: (params, Batch, which examples lose their condition, key, *frozen) -> (the UNet's parameters, Cond). The third is
#: bool [B], or [B, 2] as in `text_cond`. frozen: see `sdjax.training.loop.fit`.
Conditioner = Callable[..., tuple[Params, Cond]]

#: (the UNet, what the Conditioner gives as its parameters, x, t, Cond, Batch) -> its output
Forward = Callable[[UNet, Any, Array, Array, Cond, Batch], Array]


def plain(unet: UNet, params: Params, x: Array, t: Array, cond: Cond, batch: Batch) -> Array:
    """Returns the output of the UNet alone."""
    return unet.apply({"params": params}, beside(x, cond.concat), t, cond.context, cond.vector)


def on_text(null: Array | Null) -> Conditioner:
    """Returns the Conditioner of captions alone. null: see `text_cond`."""

    def cond(params: Params, batch: Batch, drop: Array, key: Array) -> tuple[Params, Cond]:
        return params, text_cond(batch, null, drop)

    return cond


def diffusion_loss(
    config: Config,
    conditioner: Conditioner,
    dtype: Any = jnp.float32,
    remat: bool = False,
    caption_dropout: float = 0.0,
    min_snr_gamma: float | None = None,
    logit_normal: tuple[float, float] | None = None,
    noise_offset: float = 0.0,
    forward: Forward = plain,
) -> Callable:
    """Returns the loss of the UNet, and of the networks that make its condition: the weighted mean squared error.

    It is a function (params, Batch, key, *frozen) -> (losses [B], {}).

    conditioner: what the UNet is conditioned on, `on_text` or one of training/conditions.py.
    dtype: of the computation.
    remat: see `UNet`.
    caption_dropout: share of examples whose condition is replaced by the model's null, see `dropped`; of two text
        towers the share for which each one's embedding is replaced, whether the other's is or not.
    min_snr_gamma, logit_normal, noise_offset: see `noise_batch`.
    forward: how the UNet is called, where something is added in it.
    """
    unet = UNet(config.unet, jnp.dtype(dtype), remat)
    abar = jnp.asarray(make_schedule(config.schedule).alphas_cumprod, jnp.float32)

    def loss_fn(params: Params, batch: Batch, key: Array, *frozen: Params) -> tuple[Array, dict[str, Array]]:
        x0 = lambda noise: config.vae.scaling * latents_of(batch.moments, noise)
        shape = (*batch.moments.shape[:3], config.vae.latent_channels)
        noised = noise_batch(
            x0, shape, batch.index, key, abar, config.schedule.prediction, min_snr_gamma, logit_normal, noise_offset
        )
        drop = dropped(batch.index, key, caption_dropout)
        if config.text_2 is not None:
            drop = jnp.stack([drop, dropped(batch.index, key, caption_dropout, SECOND)], axis=1)
        unet_params, cond = conditioner(params, batch, drop, key, *frozen)
        with precise(dtype):
            out = forward(unet, unet_params, noised.x, noised.t, cond, batch)
        weight = noised.weight if batch.weight is None else noised.weight * batch.weight
        return weight * jnp.square(out - noised.target).mean((1, 2, 3)), {}

    return loss_fn
