"""LPIPS (arXiv 1801.03924): the perceptual distance of two pictures, from the features of five of VGG16's layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdjax.types import Array

VGG16 = (64, 128, 256, 512, 512)  # channels of the five stages
DEPTHS = (2, 2, 3, 3, 3)  # convolutions of each stage
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's mean and deviation for pixels in [-1, 1]


class LPIPS(nn.Module):
    """Pixels a and b in [-1, 1], [B, H, W, 3] each -> distance [B], 0 for equal pictures. Sides must be 16 or more."""

    widths: tuple[int, ...] = VGG16

    @nn.compact
    def __call__(self, a: Array, b: Array) -> Array:
        h = (jnp.concatenate([a, b]) - jnp.array(SHIFT)) / jnp.array(SCALE)
        distance, number = 0.0, 0
        for stage, (width, depth) in enumerate(zip(self.widths, DEPTHS, strict=True)):
            if stage:
                h = nn.max_pool(h, (2, 2), (2, 2))
            for _ in range(depth):
                h = nn.relu(nn.Conv(width, (3, 3), padding=((1, 1), (1, 1)), name=f"conv_{number}")(h))
                number += 1
            head = self.param(f"head_{stage}", nn.initializers.ones_init(), (width, 1))
            one, other = jnp.split(unit(h), 2)
            distance += (jnp.square(one - other) @ head).mean((1, 2, 3))
        return distance


def unit(h: Array) -> Array:
    """Returns features of length 1 at every place: h / (|h| + 1e-10). Where all features are 0, so is the gradient."""
    square = jnp.square(h).sum(-1, keepdims=True)
    positive = square > 0
    return jnp.where(positive, h / (jnp.sqrt(jnp.where(positive, square, 1.0)) + 1e-10), 0.0)


def lpips(params, a: Array, b: Array) -> Array:
    """Returns the LPIPS distance [B] of pixels a and b, [B, H, W, 3] each in [-1, 1].

    params: the parameters of LPIPS (`read_lpips`); their shapes say how wide the layers are. They get no gradient.
    """
    widths = tuple(len(params[f"head_{stage}"]) for stage in range(len(DEPTHS)))
    return LPIPS(widths).apply({"params": jax.lax.stop_gradient(params)}, a, b)
