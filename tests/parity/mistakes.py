"""Mistakes of the kind that reimplementations make, to be injected one at a time: see test_modules.py."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.networks.clip import network as clip
from sdjax.networks.unet import blocks
from sdjax.networks.unet import network as unet
from sdjax.networks.vae import network as vae
from sdjax.nn import layers, transformer
from sdjax.nn.kernels import attention, convolution
from sdjax.weights import convert
from tests.narrow import NARROW, NARROW_V2
from tests.parity import peers

UNET, TEXT, VAE = 5e-6, 5e-6, 1e-5  # the limits of FACTS.md section 9


def odd_error(config):
    return peers.unet_error(config, size=(9, 13))


def changed(cls, **fixed):
    """A stand-in for module class `cls` that overrides constructor arguments where `when` holds."""
    when = fixed.pop("when", lambda kwargs: True)

    def make(*args, **kwargs):
        names = list(cls.__dataclass_fields__)
        kwargs = dict(zip(names, args, strict=False)) | kwargs
        return cls(**(kwargs | (fixed if when(kwargs) else {})))

    return make


def embedding(swap=False, divisor=0):
    def wrong(t, width):
        half = width // 2
        frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / (half - divisor))
        angles = t.astype(jnp.float32)[:, None] * frequencies
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)] if swap else [jnp.cos(angles), jnp.sin(angles)], -1)

    return wrong


def padded(wrong):
    def make(*args, **kwargs):
        if kwargs.get("stride") == 2:
            kwargs["padding"] = wrong
        return layers.conv3x3(*args, **kwargs)

    return make


def enlarged(wrong):
    def make(*args, enlarge=False, **kwargs):
        conv = layers.conv3x3(*args, **kwargs)
        return Enlarged(lambda x, size=None: conv(wrong(x))) if enlarge else conv

    return make


class Enlarged(NamedTuple):
    """A stand-in for a Conv3x3 that enlarges."""

    function: Callable

    def __call__(self, x):
        return self.function(x)

    def of(self, channels):
        return self.function


def cropped_late(x, kernel, bias, size=None):
    """The last row and column are left out after the convolution, which has seen them."""
    y = convolution.convolve_enlarged(x, kernel, bias)
    return y[:, : size[0], : size[1]] if size else y


def squeezed(x, kernel, bias, size=None):
    """Resized bilinearly to the size of the skip."""
    y = convolution.convolve_enlarged(x, kernel, bias)
    return jax.image.resize(y, (len(y), *(size or y.shape[1:3]), y.shape[3]), "bilinear")


def shim(**wrong):
    """jax.numpy with some functions replaced, for one file."""
    return SimpleNamespace(**{name: getattr(jnp, name) for name in dir(jnp)} | wrong)


def without(cls, name):
    """`cls`, but its instance called `name` does nothing."""
    return lambda *args, **kwargs: (lambda x: x) if kwargs.get("name") == name else cls(*args, **kwargs)


def names_changed(*words, where=""):
    """The table with the two `words` exchanged in the file's names that have `where` in them."""

    def rows(config, make=peers.make_rows):
        trade = {words[0]: words[1], words[1]: words[0]}
        spell = lambda name: ".".join(trade.get(word, word) for word in name.split("."))
        return [row._replace(diffusers=spell(row.diffusers)) if where in row.diffusers else row for row in make(config)]

    return [(peers, "make_rows", rows)]


def operation(name, to_ours):
    """The table with one operation's way to our layout replaced."""
    _, *rest = convert.OPERATIONS[name]
    return [(convert, "OPERATIONS", convert.OPERATIONS | {name: (to_ours, *rest)})]


def square(right, wrong):
    return lambda a: wrong(a) if a.shape[0] == a.shape[1] else right(a)


def scaled_by(factor):
    """Attention whose q is multiplied by factor(width, heads) besides."""

    def wrong(q, k, v, heads, *rest, formula=attention.attention):
        return formula(q * factor(q.shape[-1], heads), k, v, heads, *rest)

    return [(transformer, "attention", wrong)]


def swapped_moments(self, pixels):
    logvar, mean = jnp.split(self.encoder(pixels), 2, axis=-1)
    return mean, logvar


def bilinear(x):
    b, h, w, c = x.shape
    return jax.image.resize(x, (b, 2 * h, 2 * w, c), "linear")


SYMMETRIC, ASYMMETRIC = ((1, 1), (1, 1)), ((0, 1), (0, 1))
SMALL = replace(
    NARROW,
    unet=replace(NARROW.unet, channels=(16, 32), blocks=1, attention=(False, True), heads=(2, 4)),
    vae=replace(NARROW.vae, channels=(8, 16), blocks=1),
)
HALVED = replace(SMALL, unet=replace(SMALL.unet, heads=(1, 2)))
GELU = replace(SMALL, text=replace(SMALL.text, activation="gelu"))
QUICK = replace(NARROW_V2, text=replace(NARROW_V2.text, activation="quick_gelu"))
SHORT = replace(SMALL, text=replace(SMALL.text, layers=1))
SCALED = replace(SMALL, vae=replace(SMALL.vae, scaling=0.13025))
TANH = layers.ACTIVATIONS | {"gelu": lambda x: jax.nn.gelu(x, approximate=True)}
ROUNDED = layers.ACTIVATIONS | {"quick_gelu": lambda x: x * jax.nn.sigmoid(1.7 * x)}
SMALL_EPS = changed(layers.LayerNorm, eps=1e-6)


def padded_error(config):
    """The states of a prompt that ends early, its padding another token."""
    tensors, ids, states, _ = peers.text_case(config)
    ids = np.where(np.cumsum(ids == config.text.eos_token, axis=1) > 1, 0, ids)
    return peers.error(
        peers.run(peers.model.text_states, peers.export(tensors, config.text), ids, config=config.text), states
    )


CONV = lambda a: a.transpose(2, 3, 1, 0)

#: name -> (what to patch, how the error is measured, the limit that it must pass)
MISTAKES = {
    "ResBlock eps 1e-6": ([(blocks, "ResBlock", changed(layers.ResBlock, eps=1e-6))], peers.unet_error, UNET),
    "UNet's last norm eps 1e-6": ([(unet, "GroupNorm", changed(layers.GroupNorm, eps=1e-6))], peers.unet_error, UNET),
    "transformer GroupNorm eps 1e-5": (
        [(transformer, "GroupNorm", changed(layers.GroupNorm, eps=1e-5))],
        peers.unet_error,
        UNET,
    ),
    "UNet LayerNorm eps 1e-6": ([(transformer, "LayerNorm", SMALL_EPS)], peers.unet_error, UNET),
    "tanh gelu": ([(transformer, "ACTIVATIONS", TANH)], peers.unet_error, UNET),
    "sin before cos": ([(blocks, "timestep_embedding", embedding(swap=True))], peers.unet_error, UNET),
    "timestep divisor half - 1": ([(blocks, "timestep_embedding", embedding(divisor=1))], peers.unet_error, UNET),
    "half the heads": ([], lambda config: peers.unet_error(config, HALVED), UNET),
    "UNet downsample padded right and bottom": ([(blocks, "conv3x3", padded(ASYMMETRIC))], peers.unet_error, UNET),
    "encoder downsample padded on all sides": ([(vae, "conv3x3", padded(SYMMETRIC))], peers.encode_error, VAE),
    "encoder eps 1e-5": ([(vae, "ResBlock", changed(layers.ResBlock, eps=1e-5))], peers.encode_error, VAE),
    "decoder eps 1e-5": ([(vae, "ResBlock", changed(layers.ResBlock, eps=1e-5))], peers.decode_error, VAE),
    "VAE attention norm eps 1e-5": ([(vae, "GroupNorm", changed(layers.GroupNorm, eps=1e-5))], peers.decode_error, VAE),
    "gelu for quick_gelu": ([], lambda config: peers.text_error(config, GELU), TEXT),
    "quick_gelu for gelu": ([], lambda config: peers.text_error(NARROW_V2, QUICK), TEXT),
    "text LayerNorm eps 1e-6": ([(clip, "LayerNorm", SMALL_EPS)], peers.text_error, TEXT),
    "text not causal": ([(clip, "Attention", changed(transformer.Attention, causal=False))], peers.text_error, TEXT),
    "1.7 for 1.702": ([(clip, "ACTIVATIONS", ROUNDED)], peers.text_error, TEXT),
    "one text layer not run": ([], lambda config: peers.text_error(config, SHORT), TEXT),
    "final norm not run": ([(clip, "LayerNorm", without(layers.LayerNorm, "final_norm"))], peers.text_error, TEXT),
    "padded with another token": ([], padded_error, TEXT),
    "pooled at the last token": ([(peers, "pool_text", lambda states, *_: states[:, -1])], peers.pooled_error, TEXT),
    "t + 1": (
        [(blocks, "timestep_embedding", lambda t, width: layers.timestep_embedding(t + 1, width))],
        peers.unet_error,
        UNET,
    ),
    "skips before h": (
        [(unet, "jnp", shim(concatenate=lambda pair, axis: jnp.concatenate(pair[::-1], axis)))],
        peers.unet_error,
        UNET,
    ),
    "gate before value": (
        [(transformer, "jnp", shim(split=lambda *args, **kwargs: jnp.split(*args, **kwargs)[::-1]))],
        peers.unet_error,
        UNET,
    ),
    "attention not scaled": (scaled_by(lambda width, heads: (width // heads) ** 0.5), peers.unet_error, UNET),
    "attention scaled by the whole width": (scaled_by(lambda width, heads: heads**-0.5), peers.unet_error, UNET),
    "upsampled by tiles": (
        [(blocks, "conv3x3", enlarged(lambda x: jnp.tile(x, (1, 2, 2, 1))))],
        peers.unet_error,
        UNET,
    ),
    "cropped after the convolution": ([(layers, "convolve_enlarged", cropped_late)], odd_error, UNET),
    "squeezed to the skip": ([(layers, "convolve_enlarged", squeezed)], odd_error, UNET),
    "upsampled bilinearly": ([(vae, "conv3x3", enlarged(bilinear))], peers.decode_error, VAE),
    "VAE attention of two heads": (
        [(vae, "Attention", changed(transformer.Attention, heads=2))],
        peers.encode_error,
        VAE,
    ),
    "mean and log variance exchanged": ([(vae.VAE, "encode", swapped_moments)], peers.encode_error, VAE),
    "another scale factor": ([], lambda config: peers.decode_error(config, SCALED), VAE),
    "q and k exchanged in the UNet": (names_changed("to_q", "to_k", where="attn1"), peers.unet_error, UNET),
    "k and v exchanged across": (names_changed("to_k", "to_v", where="attn2"), peers.unet_error, UNET),
    "q and k exchanged in the VAE": (names_changed("to_q", "to_k"), peers.decode_error, VAE),
    "k and v exchanged in the text tower": (names_changed("k_proj", "v_proj"), peers.text_error, TEXT),
    "norms exchanged in the UNet": (
        names_changed("norm1", "norm2", where="transformer_blocks"),
        peers.unet_error,
        UNET,
    ),
    "norms exchanged in the text tower": (names_changed("layer_norm1", "layer_norm2"), peers.text_error, TEXT),
    "square dense kernels not transposed": (operation("dense", square(np.transpose, np.array)), peers.text_error, TEXT),
    "square 1x1 kernels not transposed": (
        operation("conv1x1", square(lambda a: a[:, :, 0, 0].T, lambda a: a[:, :, 0, 0])),
        peers.unet_error,
        UNET,
    ),
    "square conv kernels, in and out exchanged": (
        operation("conv", square(CONV, lambda a: a.transpose(2, 3, 0, 1))),
        peers.encode_error,
        VAE,
    ),
    "conv kernels, height and width exchanged": (
        operation("conv", lambda a: a.transpose(3, 2, 1, 0)),
        peers.unet_error,
        UNET,
    ),
    "conv kernels turned by 180 degrees": (operation("conv", lambda a: CONV(a)[::-1, ::-1]), peers.decode_error, VAE),
}
