"""The T2I-Adapter: features of a picture that are added at the ends of a UNet's levels, the same at every step.

After TencentARC's adapter.py, as diffusers' models/adapter.py has it.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from sdjax.networks.t2i.config import AdapterConfig
from sdjax.networks.unet.blocks import Residuals
from sdjax.nn.layers import Dense, conv3x3
from sdjax.types import Array


def unshuffled(x: Array, side: int) -> Array:
    """Returns x [B, H, W, C] with each square of side x side pixels as channels, in torch's order."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // side, side, w // side, side, c)
    return x.transpose(0, 1, 3, 5, 2, 4).reshape(b, h // side, w // side, c * side * side)


def halved(x: Array) -> Array:
    """Returns means of 2 x 2 pixels of x [B, H, W, C]; a last odd row or column stands alone (ceil_mode)."""
    total = nn.avg_pool(jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0))), (2, 2), (2, 2))
    rows, columns = (jnp.full(-(-side // 2), 1.0).at[-1].set(2.0 if side % 2 else 1.0) for side in x.shape[1:3])
    return total * (rows[:, None, None] * columns[:, None]).astype(x.dtype)


class Adapter(nn.Module):
    """The T2I-Adapter. It computes in `dtype`."""

    config: AdapterConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, pictures: Array) -> Residuals:
        """pictures [B, H, W, picture_channels] in [0, 1] -> Residuals of features at a scale of 1."""
        config, dtype = self.config, self.dtype
        h = unshuffled(pictures, config.unshuffle).astype(dtype)
        if not config.light:
            h = conv3x3(config.channels[0], "conv_in", dtype)(h)
        features = []
        for level, wide in enumerate(config.channels):
            inner = wide // 4 if config.light else wide
            if config.halves(level):
                h = halved(h)
            if config.light or config.before(level) != wide:
                h = Dense(inner, dtype, name=f"level_{level}_in")(h)
            for i in range(config.blocks):
                g = nn.relu(conv3x3(inner, f"level_{level}_conv1_{i}", dtype)(h))
                name = f"level_{level}_conv2_{i}"
                h = h + (conv3x3(inner, name, dtype)(g) if config.light else Dense(inner, dtype, name=name)(g))
            if config.light:
                h = Dense(wide, dtype, name=f"level_{level}_out")(h)
            features.append(h)
        return Residuals(levels=tuple(features))
