"""The ControlNet: a copy of a UNet's way down and middle, and 1 x 1 convolutions that begin at zero.

After lllyasviel's cldm.py. Shapes at 512 px: the picture [B, 512, 512, 3], its embedding [B, 64, 64, 320], which is
added behind the first convolution; the residuals are as large as the UNet's skips and its middle.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from sdjax.networks.control.config import ControlConfig
from sdjax.networks.unet.blocks import Blocks, KeysValues, Residuals, TimeShifts
from sdjax.nn.layers import Dense, conv3x3
from sdjax.types import Array, Params


class Hint(nn.Module):
    """The embedding of pictures: 3 x 3 convolutions with SiLU between, of which every second halves the sides."""

    config: ControlConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, pictures: Array) -> Array:
        """pictures [B, H, W, picture_channels] in [0, 1] -> [B, H / factor, W / factor, C], C of the first level."""
        config = self.config
        h = pictures[..., ::-1] if config.bgr else pictures
        h = nn.silu(conv3x3(config.hint[0], "conv_in", self.dtype)(h.astype(self.dtype)))
        for i, (width, wider) in enumerate(zip(config.hint, config.hint[1:], strict=False)):
            h = nn.silu(conv3x3(width, f"conv_{2 * i}", self.dtype)(h))
            h = nn.silu(conv3x3(wider, f"conv_{2 * i + 1}", self.dtype, stride=2)(h))
        zeros = nn.initializers.zeros_init()
        return conv3x3(config.unet.channels[0], "conv_out", self.dtype, init=zeros)(h)


class ControlNet(nn.Module):
    """The ControlNet. It computes in `dtype`, and the time embedding in float32."""

    config: ControlConfig
    dtype: Any = jnp.float32
    remat: bool = False  # see `UNet`

    @nn.compact
    def __call__(
        self,
        x: Array,
        t: Array | TimeShifts,
        context: Array | KeysValues | None,
        hint: Array,
        vector: Array | None = None,
    ) -> Residuals:
        """Returns what it adds in the UNet, at a scale of 1.

        x, t, context, vector: as `UNet` takes them; keys, values and shifts are the ControlNet's own.
        hint: pictures [B, H, W, picture_channels] in [0, 1], or their `embed_hint`, which is as large as x.
        """
        config, dtype = self.config, self.dtype
        blocks = Blocks(config.unet, dtype, self.remat, t, context, vector)
        if hint.shape[1:3] != x.shape[1:3]:
            hint = Hint(config, dtype, name="hint")(hint)
        h = conv3x3(config.unet.channels[0], "conv_in", dtype)(x.astype(dtype)) + hint.astype(dtype)
        h, skips = blocks.down(h)
        h = blocks.middle(h)

        def zero(name: str, h: Array) -> Array:
            h = Dense(h.shape[-1], dtype, kernel_init=nn.initializers.zeros_init(), name=name)(h)
            return h.mean((1, 2), keepdims=True) if config.pooled else h

        return Residuals(tuple(zero(f"zero_{i}", skip) for i, skip in enumerate(skips)), zero("zero_mid", h))


def embed_hint(params: Params, pictures: Array, config: ControlConfig, dtype: Any) -> Array:
    """Returns the embedding of pictures as `Hint` makes it. One call serves all steps of a walk.

    params: the ControlNet's.
    """
    return Hint(config, dtype).apply({"params": params["hint"]}, pictures)
