"""The autoencoder: pixels [B, H, W, 3] <-> latents [B, H/f, W/f, C]. The eps of every GroupNorm is 1e-6.

The layout is that of CompVis `model.py`, with the quant convs. The decoder has one more ResBlock per level than the
encoder.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdjax.networks.vae.config import VAEConfig
from sdjax.nn.layers import Dense, GroupNorm, ResBlock, conv3x3
from sdjax.nn.transformer import Attention
from sdjax.types import Array


def attended(h: Array, groups: int, dtype: jnp.dtype) -> Array:
    """Single-head self-attention with biases, pre-normed and residual. Its layers belong to the calling module."""
    tokens = GroupNorm(groups, 1e-6, name="norm")(h).reshape(h.shape[0], -1, h.shape[-1])
    return h + Attention(1, True, dtype, name="attn")(tokens).reshape(h.shape)


class Middle(nn.Module):
    """ResBlock, single-head attention with biases, ResBlock."""

    config: VAEConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, h: Array) -> Array:
        config, channels = self.config, h.shape[-1]
        h = ResBlock(channels, config.groups, 1e-6, self.dtype, name="res_0")(h)
        h = attended(h, config.groups, self.dtype) if config.middle_attention else h
        return ResBlock(channels, config.groups, 1e-6, self.dtype, name="res_1")(h)


class Attend(nn.Module):
    """`attended`, as a module of its own after a ResBlock of a level."""

    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, h: Array) -> Array:
        return attended(h, self.groups, self.dtype)


class Encoder(nn.Module):
    """pixels [B, H, W, 3] -> mean and log variance, side by side in the channels [B, h, w, 2 C]; a VQ: latents."""

    config: VAEConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, pixels: Array) -> Array:
        config, dtype = self.config, self.dtype
        h = conv3x3(config.channels[0], "conv_in", dtype)(pixels.astype(dtype))
        for level, channels in enumerate(config.channels):
            for i in range(config.blocks):
                h = ResBlock(channels, config.groups, 1e-6, dtype, name=f"down_{level}_res_{i}")(h)
                if config.attends[level]:
                    h = Attend(config.groups, dtype, name=f"down_{level}_attn_{i}")(h)
            if level != len(config.channels) - 1:
                pad = ((0, 1), (0, 1))  # the encoder pads right and bottom only
                h = conv3x3(channels, f"down_{level}_downsample", dtype, stride=2, padding=pad)(h)
        h = Middle(config, dtype, name="mid")(h)
        h = nn.silu(GroupNorm(config.groups, 1e-6, name="norm_out")(h))
        width = config.latent_channels if config.codes else 2 * config.latent_channels
        return Dense(width, dtype, name="quant")(conv3x3(width, "conv_out", dtype)(h))


class Decoder(nn.Module):
    """Unscaled latents [B, h, w, C] -> pixels [B, H, W, 3], not clipped."""

    config: VAEConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, latents: Array) -> Array:
        config, dtype = self.config, self.dtype
        if config.codes:
            latents = nearest_codes(self.param("codebook", codebook_init, (config.codes, latents.shape[-1])), latents)
        h = Dense(config.latent_channels, dtype, name="post_quant")(latents.astype(dtype))
        h = conv3x3(config.channels[-1], "conv_in", dtype)(h)
        h = Middle(config, dtype, name="mid")(h)
        for level in reversed(range(len(config.channels))):
            channels = config.channels[level]
            for i in range(config.blocks + 1):
                h = ResBlock(channels, config.groups, 1e-6, dtype, name=f"up_{level}_res_{i}")(h)
                if config.attends[level]:
                    h = Attend(config.groups, dtype, name=f"up_{level}_attn_{i}")(h)
            if level != 0:
                h = conv3x3(channels, f"up_{level}_upsample", dtype, enlarge=True)(h)
        h = nn.silu(GroupNorm(config.groups, 1e-6, name="norm_out")(h))
        return conv3x3(3, "conv_out", dtype)(h)


def nearest_codes(codebook: Array, latents: Array) -> Array:
    """Returns the vectors of `codebook` [N, C] that are nearest to `latents` [..., C] (L2), float32 [..., C]."""
    codes, latents = codebook.astype(jnp.float32), latents.astype(jnp.float32)
    products = jnp.einsum("...c,nc->...n", latents, codes, precision="highest")
    return codes[jnp.argmin(jnp.square(codes).sum(-1) - 2 * products, axis=-1)]


def codebook_init(key: Array, shape: tuple[int, int]) -> Array:
    """Uniform in [-1 / N, 1 / N], as in taming-transformers' `quantize.py`."""
    return jax.random.uniform(key, shape, jnp.float32, -1 / shape[0], 1 / shape[0])


class VAE(nn.Module):
    """The whole autoencoder. Its latents are unscaled: the caller multiplies them by `config.scaling`."""

    config: VAEConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.encoder = Encoder(self.config, self.dtype)
        self.decoder = Decoder(self.config, self.dtype)

    def encode(self, pixels: Array) -> tuple[Array, Array]:
        """pixels [B, H, W, 3] -> posterior mean and log variance (clamped to [-30, 20]), float32 [B, h, w, C] each.

        A VQ's mean are its latents before they are quantised, and its log variance is -30: a sample is the mean.
        """
        if self.config.codes:
            latents = self.encoder(pixels).astype(jnp.float32)
            return latents, jnp.full_like(latents, -30.0)
        mean, logvar = jnp.split(self.encoder(pixels).astype(jnp.float32), 2, axis=-1)
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def decode(self, latents: Array) -> Array:
        """Unscaled latents [B, h, w, C], which a VQ quantises -> float32 pixels [B, H, W, 3], not clipped."""
        return self.decoder(latents).astype(jnp.float32)

    def __call__(self, pixels: Array) -> Array:
        """Runs both halves once. It is there for initialisation."""
        return self.decode(self.encode(pixels)[0])
