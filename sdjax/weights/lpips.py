"""Reads LPIPS' parameters from two files: torchvision's vgg16, and the heads that were trained on it by
github.com/richzhang/PerceptualSimilarity (vgg.pth of version 0.1)."""

from pathlib import Path

import jax
import jax.numpy as jnp

from sdjax.formats.tensors import read_tensors
from sdjax.networks.lpips.names import lpips_rows
from sdjax.networks.lpips.network import LPIPS, VGG16
from sdjax.networks.part import module_shapes
from sdjax.types import Params
from sdjax.weights.convert import from_file_tensors


def read_lpips(vgg: str | Path, heads: str | Path, widths: tuple[int, ...] = VGG16) -> Params:
    """Returns the parameters of `networks.lpips.network.LPIPS` as float32.

    vgg: the file of torchvision's vgg16.
    heads: the file of the trained heads.
    widths: channels of the five stages.
    SdjaxError: names the file and what does not fit in it.
    """
    pixels = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    expected, params = module_shapes(LPIPS(widths), pixels, pixels), {}
    for path, prefix in ((vgg, "features."), (heads, "lin")):
        rows = [row for row in lpips_rows() if row.diffusers.startswith(prefix)]
        tensors = {name: value for name, value in read_tensors(path).items() if not name.startswith("classifier.")}
        params |= from_file_tensors(tensors, rows, expected, source=str(path))
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
