"""AutoencoderKL: pixels [B, H, W, 3] <-> latents [B, H/f, W/f, 4]. The eps of every GroupNorm is 1e-6.

The layout is that of CompVis `model.py`, with the quant convs. The decoder has one more ResBlock per level than the
encoder.
"""

import flax.linen as nn
import jax.numpy as jnp

from sdjax.networks.vae.config import VAEConfig
from sdjax.nn.layers import Dense, GroupNorm, ResBlock, conv3x3
from sdjax.nn.transformer import Attention
from sdjax.types import Array


class Middle(nn.Module):
    """ResBlock, single-head attention with biases, ResBlock."""

    config: VAEConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, h: Array) -> Array:
        config, channels = self.config, h.shape[-1]
        h = ResBlock(channels, config.groups, 1e-6, self.dtype, name="res_0")(h)
        tokens = GroupNorm(config.groups, 1e-6, name="norm")(h).reshape(h.shape[0], -1, channels)
        h = h + Attention(1, True, self.dtype, name="attn")(tokens).reshape(h.shape)
        return ResBlock(channels, config.groups, 1e-6, self.dtype, name="res_1")(h)


class Encoder(nn.Module):
    """pixels [B, H, W, 3] -> mean and log variance, side by side in the channels [B, h, w, 8]."""

    config: VAEConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, pixels: Array) -> Array:
        config, dtype = self.config, self.dtype
        h = conv3x3(config.channels[0], "conv_in", dtype)(pixels.astype(dtype))
        for level, channels in enumerate(config.channels):
            for i in range(config.blocks):
                h = ResBlock(channels, config.groups, 1e-6, dtype, name=f"down_{level}_res_{i}")(h)
            if level != len(config.channels) - 1:
                pad = ((0, 1), (0, 1))  # the encoder pads right and bottom only
                h = conv3x3(channels, f"down_{level}_downsample", dtype, stride=2, padding=pad)(h)
        h = Middle(config, dtype, name="mid")(h)
        h = nn.silu(GroupNorm(config.groups, 1e-6, name="norm_out")(h))
        h = conv3x3(2 * config.latent_channels, "conv_out", dtype)(h)
        return Dense(2 * config.latent_channels, dtype, name="quant")(h)


class Decoder(nn.Module):
    """Unscaled latents [B, h, w, 4] -> pixels [B, H, W, 3], not clipped."""

    config: VAEConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, latents: Array) -> Array:
        config, dtype = self.config, self.dtype
        h = Dense(config.latent_channels, dtype, name="post_quant")(latents.astype(dtype))
        h = conv3x3(config.channels[-1], "conv_in", dtype)(h)
        h = Middle(config, dtype, name="mid")(h)
        for level in reversed(range(len(config.channels))):
            channels = config.channels[level]
            for i in range(config.blocks + 1):
                h = ResBlock(channels, config.groups, 1e-6, dtype, name=f"up_{level}_res_{i}")(h)
            if level != 0:
                h = conv3x3(channels, f"up_{level}_upsample", dtype, enlarge=True)(h)
        h = nn.silu(GroupNorm(config.groups, 1e-6, name="norm_out")(h))
        return conv3x3(3, "conv_out", dtype)(h)


class VAE(nn.Module):
    """The whole autoencoder. Its latents are unscaled: the caller multiplies them by `config.scaling`."""

    config: VAEConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.encoder = Encoder(self.config, self.dtype)
        self.decoder = Decoder(self.config, self.dtype)

    def encode(self, pixels: Array) -> tuple[Array, Array]:
        """pixels [B, H, W, 3] -> posterior mean and log variance (clamped to [-30, 20]), float32 [B, h, w, 4] each."""
        mean, logvar = jnp.split(self.encoder(pixels).astype(jnp.float32), 2, axis=-1)
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def decode(self, latents: Array) -> Array:
        """Unscaled latents [B, h, w, 4] -> float32 pixels [B, H, W, 3], not clipped."""
        return self.decoder(latents).astype(jnp.float32)

    def __call__(self, pixels: Array) -> Array:
        """Runs both halves once. It is there for initialisation."""
        return self.decode(self.encode(pixels)[0])
