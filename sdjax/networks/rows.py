"""Rows of the tables of names, and the rows of the layers that several networks have.

A TensorRow says where one parameter lies in our tree, in diffusers' files and in CompVis' files, and how its values
differ.
Each network's `names.py` makes its table from the block counts in its config; weights/convert.py reads it both ways.
We hold every 1x1 convolution as a Dense kernel [in, out]; files hold it as a convolution or as a Linear. The operation
says which:

    same      file value is ours               conv      file OIHW, ours HWIO
    dense     file [out, in], ours [in, out]   conv1x1   file [out, in, 1, 1], ours [in, out]
    split q, split k, split v                  one third of OpenCLIP's stacked [3 out, in] or [3 out], then as dense
    half k, half v                             one half of a stacked [2 out, in], then as dense
    stacked 8 q, stacked 8 k, stacked 8 v      LDM's [3 out, in, 1] or [3 out], stacked head by head, here of 8 heads
    conv1d    file [out, in, 1], ours [in, out]

Single files of SD 1.x use transformers' CLIP names; those of SD 2.x use OpenCLIP's
(github.com/mlfoundations/open_clip).
"""

from collections.abc import Iterator
from typing import NamedTuple

from sdjax.nn.transformer import block_name


class TensorRow(NamedTuple):
    """The names of one tensor, and how its values in files become ours."""

    path: tuple[str, ...]  # in our tree
    diffusers: str  # name in a diffusers or transformers file (for LPIPS, in torchvision's and the heads' files)
    compvis: str | None  # name in a CompVis single file, prefix included; None if that layout has no such network
    operation: str  # "same" | "dense" | "conv" | "conv1x1"
    compvis_operation: str  # one of these, or "split q" | "split k" | "split v"


def join(prefix: str | None, name: str) -> str | None:
    """Returns "prefix.name", or None if there is no prefix (no CompVis name)."""
    return None if prefix is None else f"{prefix}.{name}"


def weight(
    path: str,
    diffusers: str,
    compvis: str | None,
    operation: str,
    bias: bool = True,
    compvis_operation: str | None = None,
) -> Iterator[TensorRow]:
    """Yields the rows of one layer's kernel and bias. `path` is separated by slashes."""
    head = tuple(path.split("/"))
    compvis_operation = compvis_operation or operation
    yield TensorRow((*head, "kernel"), f"{diffusers}.weight", join(compvis, "weight"), operation, compvis_operation)
    if bias:
        yield TensorRow((*head, "bias"), f"{diffusers}.bias", join(compvis, "bias"), "same", "same")


def norm(path: str, diffusers: str, compvis: str | None) -> Iterator[TensorRow]:
    """Yields the rows of one norm's scale and bias."""
    head = tuple(path.split("/"))
    yield TensorRow((*head, "scale"), f"{diffusers}.weight", join(compvis, "weight"), "same", "same")
    yield TensorRow((*head, "bias"), f"{diffusers}.bias", join(compvis, "bias"), "same", "same")


def layer_norm(path: str, diffusers: str, compvis: str | None) -> Iterator[TensorRow]:
    """Yields the rows of one LayerNorm, whose parameters lie one level deeper, in "norm"."""
    return norm(f"{path}/norm", diffusers, compvis)


def res_block(path: str, diffusers: str, compvis: str, names: tuple, shortcut: bool) -> Iterator[TensorRow]:
    """Yields the rows of one ResBlock.

    names: CompVis' names of its six layers: norm1, conv1, time (None in the VAE), norm2, conv2, shortcut.
    shortcut: does the block have one, since its number of channels changes?
    """
    norm1, conv1, time, norm2, conv2, skip = names
    yield from norm(f"{path}/norm1", f"{diffusers}.norm1", f"{compvis}.{norm1}")
    yield from weight(f"{path}/conv1", f"{diffusers}.conv1", f"{compvis}.{conv1}", "conv")
    if time:
        yield from weight(f"{path}/time", f"{diffusers}.time_emb_proj", f"{compvis}.{time}", "dense")
    yield from norm(f"{path}/norm2", f"{diffusers}.norm2", f"{compvis}.{norm2}")
    yield from weight(f"{path}/conv2", f"{diffusers}.conv2", f"{compvis}.{conv2}", "conv")
    if shortcut:
        yield from weight(f"{path}/shortcut", f"{diffusers}.conv_shortcut", f"{compvis}.{skip}", "conv1x1")


def attention_block(path: str, diffusers: str, compvis: str, heads: int) -> Iterator[TensorRow]:
    """Yields the rows of one AttentionBlock. CompVis stacks q, k and v head by head, in a convolution of one axis."""
    yield from norm(f"{path}/norm", f"{diffusers}.group_norm", f"{compvis}.norm")
    for head in "qkv":
        stacked = f"stacked {heads} {head}"
        for name, ours, kind in (("kernel", "weight", "dense"), ("bias", "bias", "same")):
            names = f"{diffusers}.to_{head}.{ours}", f"{compvis}.qkv.{ours}"
            yield TensorRow((*path.split("/"), "attention", head, name), *names, kind, stacked)
    names = f"{diffusers}.to_out.0", f"{compvis}.proj_out"
    yield from weight(f"{path}/attention/out", *names, "dense", compvis_operation="conv1d")


def transformer(
    path: str, diffusers: str, compvis: str, linear: bool, depth: int = 1, first: str = "self"
) -> Iterator[TensorRow]:
    """Yields the rows of one SpatialTransformer, inside of which both layouts use the same names.

    depth: the number of its transformer blocks.
    first: our name of their first attention, "self", or "text" if it attends to the context.
    linear: do files hold proj_in and proj_out as Linear (SD 2), not as 1x1 convolutions (SD 1)?
    """
    project = "dense" if linear else "conv1x1"
    both = lambda name: (f"{diffusers}.{name}", f"{compvis}.{name}")
    yield from norm(f"{path}/norm", *both("norm"))
    yield from weight(f"{path}/proj_in", *both("proj_in"), project)
    for number in range(depth):
        block = f"{path}/{block_name(number)}"
        inside = lambda name, number=number: both(f"transformer_blocks.{number}.{name}")
        for ours, theirs in ((first, "attn1"), ("cross", "attn2")):
            for head in "qkv":
                yield from weight(f"{block}/{ours}/{head}", *inside(f"{theirs}.to_{head}"), "dense", bias=False)
            yield from weight(f"{block}/{ours}/out", *inside(f"{theirs}.to_out.0"), "dense")
        yield from weight(f"{block}/ff_in", *inside("ff.net.0.proj"), "dense")
        yield from weight(f"{block}/ff_out", *inside("ff.net.2"), "dense")
        for i in (1, 2, 3):
            yield from layer_norm(f"{block}/norm{i}", *inside(f"norm{i}"))
    yield from weight(f"{path}/proj_out", *both("proj_out"), project)
