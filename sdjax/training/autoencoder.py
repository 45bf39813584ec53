"""The loss of the VAE (arXiv 2112.10752, appendix G; CompVis `contperceptual.py`).

For a picture of n values, with every sum divided by n, so that the loss does not grow with the picture:

    L = |x - D(z)| (or squared) + p LPIPS(x, D(z)) + k/n KL(q(z|x) || N(0, 1)) + w lambda/n (-C(D(z))) + hinge(C)
        + l |s (m - m')|^2 / (values of a latent)

z is a sample of the posterior, m its mean; m' is the mean that another VAE gives the picture, reduced to its size, and
s that one's scaling: what was trained on its latents goes on from them. For a decoder that is to hide a UNet's errors z
gets further normal noise of a spread between 0 and e / scaling, drawn for each picture (after arXiv 2510.11690,
"noise-augmented decoding"). C is a patch discriminator, trained in the same step: in the VAE's part of L its parameters
are constants, and in the hinge loss the VAE's pictures are. lambda balances the adversarial term with the first two by
their gradients at the decoder's last layer: with L' the first two terms and g = -C(D(z)),

    lambda = |grad n L'| / (|grad g| + 1e-4), clipped to [0, 1e4], gradients of the batch's mean by the last convolution
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sdjax.diffusion.noise import example_keys, posterior_sample
from sdjax.image.quality import psnr, ssim
from sdjax.networks.lpips.network import lpips
from sdjax.networks.vae.config import VAEConfig
from sdjax.networks.vae.network import VAE
from sdjax.nn.layers import precise
from sdjax.training.discriminator import PatchDiscriminator
from sdjax.types import Array, Params

MOST = 1e4  # largest lambda


@dataclass(frozen=True)
class Weights:
    """The weights of the loss's terms, named as at the top of this file."""

    kind: str = "l1"  # or "l2"
    kl: float = 1e-6  # k
    perceptual: float = 1.0  # p, used if vgg is given
    side: int | None = None  # of the random part of a picture that LPIPS compares, in pixels; None: the whole picture
    adversarial: float = 0.0  # w; 0 is no discriminator
    start: int = 0  # the first step in which the adversarial term and the hinge loss count
    like: float = 1.0  # l, used if there is another VAE
    noise: float = 0.0  # e, of latents at unit variance


class Other(NamedTuple):
    """A VAE whose latents are to be given again."""

    config: VAEConfig
    params: Params

    def means(self, pixels: Array, side: int) -> Array:
        """pixels [B, H, W, 3], H = `side` latents times any multiple of the factor -> means [B, h, w, C]."""
        by = pixels.shape[1] // (side * self.config.factor)
        batch, height, width, _ = pixels.shape
        small = pixels.reshape(batch, height // by, by, width // by, by, 3).mean((2, 4))
        means = VAE(self.config).apply({"params": self.params}, small, method="encode")[0]
        return jax.lax.stop_gradient(means)


def vae_loss(
    config: VAEConfig,
    weights: Weights,
    vgg: Params | None = None,
    fixed: Params | None = None,
    average: Callable[[Any], Any] = lambda tree: tree,
    dtype: Any = jnp.float32,
    other: Other | None = None,
) -> Callable:
    """Returns the loss, a function ({"vae": ..., "critic": ...}, batch, key) -> (losses [B], metrics).

    batch is {"pixels" [B, H, W, 3], "index" [B], "step" [B]}; step is that of the batch.
    vgg: LPIPS' parameters as `read_lpips` returns them; None: no perceptual term.
    fixed: the parts of the VAE that are not trained.
    average: the mean over devices, for lambda.
    dtype: of the computation.
    other: the VAE whose latents are to be given again; its factor divides that of `config`.
    """
    vae, critic, constant = VAE(config, jnp.dtype(dtype)), PatchDiscriminator(), jax.lax.stop_gradient

    def loss_fn(params: Params, batch: dict[str, Array], key: Array) -> tuple[Array, dict[str, Array]]:
        with precise(dtype):
            return losses_of(params, batch, key)

    def losses_of(params, batch, key):
        pixels, parts = batch["pixels"], (fixed or {}) | params["vae"]
        size = pixels[0].size
        mean, logvar = vae.apply({"params": parts}, pixels, method="encode")
        keys = example_keys(key, batch["index"])
        noise = jax.vmap(lambda k: jax.random.normal(k, mean.shape[1:]))(keys)
        latents = posterior_sample(mean.astype(jnp.float32), logvar.astype(jnp.float32), noise)
        if weights.noise:
            latents = latents + further_noise(keys, weights.noise / config.scaling, latents)

        def decode(last: Params) -> Array:
            decoder = parts["decoder"] | {"conv_out": last}
            return vae.apply({"params": parts | {"decoder": decoder}}, latents, method="decode")

        def difference(decoded: Array) -> Array:
            error = reconstruction(pixels, decoded, weights.kind)
            if vgg is None:
                return error
            compared = (pixels, decoded)
            if weights.side is not None:
                compared = random_parts(keys, weights.side, *compared)
            return error + weights.perceptual * lpips(vgg, *compared)

        apart = 0.0
        if other is not None:
            away = jnp.square((mean - other.means(pixels, mean.shape[1])) * other.config.scaling)
            apart = away.astype(jnp.float32).mean((1, 2, 3))

        last, kl, metrics = parts["decoder"]["conv_out"], gaussian_kl(mean, logvar), {}
        if not weights.adversarial:
            decoded = decode(last)
            error = difference(decoded)
            losses = error + weights.kl * kl / size
        else:
            judge = lambda judged, pictures: critic.apply({"params": judged}, pictures)
            decoded, to_last = jax.vjp(decode, last)
            error, slope = with_slope(difference, decoded)
            doubt, doubt_slope = with_slope(lambda d: -judge(constant(params["critic"]), d).mean((1, 2)), decoded)
            length = lambda slope: optax.global_norm(average(to_last(slope / len(pixels))))
            balance = constant(jnp.clip(size * length(slope) / (length(doubt_slope) + 1e-4), 0, MOST))
            on = (batch["step"] >= weights.start).astype(jnp.float32)
            caution = hinge(judge(params["critic"], pixels), judge(params["critic"], constant(decoded)))
            losses = error + weights.kl * kl / size + on * (weights.adversarial * balance / size * doubt + caution)
            metrics = {"realism": -doubt, "critic_loss": caution, "adaptive_weight": balance}
        losses = losses + weights.like * apart
        pixel_error, shown = reconstruction(pixels, decoded, weights.kind), jnp.clip(decoded, -1, 1)
        metrics |= {"reconstruction": pixel_error, "kl": kl, "psnr": psnr(pixels, shown), "ssim": ssim(pixels, shown)}
        if other is not None:
            metrics["apart"] = apart
        if vgg is not None:
            metrics["perceptual"] = (error - pixel_error) / weights.perceptual
        return losses, {name: value.mean() for name, value in metrics.items()}

    return loss_fn


def further_noise(keys: Array, most: float, latents: Array) -> Array:
    """Returns normal noise for latents [B, h, w, C], of a spread that is even in [0, most] and one for each key."""
    spread = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 2), (1, 1, 1), maxval=most))(keys)
    return spread * jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 3), latents.shape[1:]))(keys)


def random_parts(keys: Array, side: int, *pictures: Array) -> tuple[Array, ...]:
    """Returns of each of the pictures [B, H, W, C] the same `side` x `side` pixels, in a random place for each key."""
    high, wide = pictures[0].shape[1:3]
    tops = jax.vmap(lambda key: jax.random.randint(jax.random.fold_in(key, 0), (), 0, high - side + 1))(keys)
    lefts = jax.vmap(lambda key: jax.random.randint(jax.random.fold_in(key, 1), (), 0, wide - side + 1))(keys)
    cut = lambda picture, top, left: jax.lax.dynamic_slice(picture, (top, left, 0), (side, side, picture.shape[-1]))
    return tuple(jax.vmap(cut)(picture, tops, lefts) for picture in pictures)


def with_slope(function: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
    """Returns function(x) [B], and its gradient with respect to x [B, ...] as constants.

    A later derivative of the returned value uses this gradient again, so that the function is computed and
    differentiated once. function(x)[i] must depend on x[i] alone.
    """
    still = jax.lax.stop_gradient(x)
    value, back = jax.vjp(function, still)
    (slope,) = back(jnp.ones_like(value))
    value, slope = jax.lax.stop_gradient((value, slope))
    return value + ((x - still) * slope).sum(tuple(range(1, x.ndim))), slope


def init_critic(seed: int, size: int) -> Params:
    """Returns random parameters of the discriminator, for pictures of `size` pixels a side."""
    return PatchDiscriminator().init(jax.random.key(seed), jnp.zeros((1, size, size, 3)))["params"]


def reconstruction(pixels: Array, decoded: Array, kind: str) -> Array:
    """Two pictures [B, H, W, 3] -> their mean absolute ("l1") or mean squared ("l2") difference, [B]."""
    difference = decoded - pixels
    return (jnp.abs(difference) if kind == "l1" else jnp.square(difference)).mean((1, 2, 3))


def gaussian_kl(mean: Array, logvar: Array) -> Array:
    """KL(N(mean, exp(logvar)) || N(0, 1)), summed over all values of an example: [B, h, w, c] twice -> [B]."""
    return 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar).sum((1, 2, 3))


def hinge(real: Array, fake: Array) -> Array:
    """Patch logits [B, h, w] of real and of fake pictures -> the discriminator's hinge loss [B] (arXiv 1705.02894)."""
    return 0.5 * (jax.nn.relu(1.0 - real) + jax.nn.relu(1.0 + fake)).mean((1, 2))
