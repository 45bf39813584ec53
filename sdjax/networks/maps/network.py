"""The spatial rescaler: `SpatialRescaler` in CompVis `encoders/modules.py`."""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp

from sdjax.nn.layers import lecun_normal
from sdjax.types import Array


@dataclass(frozen=True)
class MapConfig:
    """A rescaler of semantic maps."""

    classes: int = 182  # ids are below it
    channels: int = 3
    factor: int = 4  # how many pixels of the map along a side make one of the channels': a power of two


class MapRescaler(nn.Module):
    """Ids -> channels: the mean of the ids' rows over squares of factor x factor pixels.

    That is one-hot channels, halved bilinearly log2(factor) times, and a convolution of 1 x 1.
    """

    config: MapConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, ids: Array) -> Array:
        """ids int32 [B, H, W] -> float32 [B, H / factor, W / factor, channels]."""
        config, f = self.config, self.config.factor
        kernel = self.param("kernel", lecun_normal, (config.classes, config.channels)).astype(jnp.float32)
        b, h, w = ids.shape
        return kernel[ids].reshape(b, h // f, f, w // f, f, config.channels).mean((2, 4))
