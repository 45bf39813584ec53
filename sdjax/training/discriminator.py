"""The PatchGAN discriminator (arXiv 1611.07004), used only to train the VAE: one logit for each patch of a picture."""

import flax.linen as nn
import jax.numpy as jnp

from sdjax.nn.layers import GroupNorm
from sdjax.types import Array


class PatchDiscriminator(nn.Module):
    """4x4 convolutions of stride 2, then of stride 1.

    Group norm replaces batch norm, so that an example's logits do not depend on the others.
    """

    width: int = 32
    layers: int = 3

    @nn.compact
    def __call__(self, pixels: Array) -> Array:
        """pixels [B, H, W, 3] -> logits [B, h, w], positive where a patch looks real."""
        h, pad = pixels, ((1, 1), (1, 1))
        for i in range(self.layers + 1):
            stride = 2 if i < self.layers else 1
            h = nn.Conv(self.width * 2 ** min(i, 3), (4, 4), (stride, stride), pad, name=f"conv_{i}")(h)
            h = nn.leaky_relu(GroupNorm(8, 1e-5, name=f"norm_{i}")(h) if i else h, 0.2)
        return nn.Conv(1, (4, 4), (1, 1), pad, name="conv_out")(h)[..., 0].astype(jnp.float32)
