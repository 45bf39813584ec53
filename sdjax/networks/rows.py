"""The one table of names: where each parameter lives here, in diffusers' files and in CompVis' files.

A Row is a whole fact about one tensor; the table is expanded from the config's block counts and read both ways.
We hold every 1x1 convolution as a Dense kernel [in, out]; files hold it as a convolution or as a Linear, which is
what the operation says:

    same      file value is ours               conv      file OIHW, ours HWIO
    dense     file [out, in], ours [in, out]   conv1x1   file [out, in, 1, 1], ours [in, out]
    split q, split k, split v                  one third of OpenCLIP's stacked [3 out, in] or [3 out], then as dense

SD 1.x single files hold transformers' CLIP names, SD 2.x ones OpenCLIP's (github.com/mlfoundations/open_clip).
"""

from collections.abc import Iterator
from typing import NamedTuple


class Row(NamedTuple):
    path: tuple[str, ...]  # in our tree
    diffusers: str  # in a diffusers / transformers file
    compvis: str | None  # in a CompVis single file, its prefix included; None where that layout has no such tower
    operation: str  # "same" | "dense" | "conv" | "conv1x1"
    compvis_operation: str  # these and "split q" | "split k" | "split v"


def join(prefix: str | None, name: str) -> str | None:
    return None if prefix is None else f"{prefix}.{name}"


def weight(
    path: str,
    diffusers: str,
    compvis: str | None,
    operation: str,
    bias: bool = True,
    compvis_operation: str | None = None,
) -> Iterator[Row]:
    """The kernel and the bias of one layer; `path` is slash-separated."""
    head = tuple(path.split("/"))
    compvis_operation = compvis_operation or operation
    yield Row((*head, "kernel"), f"{diffusers}.weight", join(compvis, "weight"), operation, compvis_operation)
    if bias:
        yield Row((*head, "bias"), f"{diffusers}.bias", join(compvis, "bias"), "same", "same")


def norm(path: str, diffusers: str, compvis: str | None) -> Iterator[Row]:
    head = tuple(path.split("/"))
    yield Row((*head, "scale"), f"{diffusers}.weight", join(compvis, "weight"), "same", "same")
    yield Row((*head, "bias"), f"{diffusers}.bias", join(compvis, "bias"), "same", "same")


def layer_norm(path: str, diffusers: str, compvis: str | None) -> Iterator[Row]:
    return norm(f"{path}/norm", diffusers, compvis)  # our LayerNorm wraps flax's


def res_block(path: str, diffusers: str, compvis: str, names: tuple, shortcut: bool) -> Iterator[Row]:
    norm1, conv1, time, norm2, conv2, skip = names
    yield from norm(f"{path}/norm1", f"{diffusers}.norm1", f"{compvis}.{norm1}")
    yield from weight(f"{path}/conv1", f"{diffusers}.conv1", f"{compvis}.{conv1}", "conv")
    if time:
        yield from weight(f"{path}/time", f"{diffusers}.time_emb_proj", f"{compvis}.{time}", "dense")
    yield from norm(f"{path}/norm2", f"{diffusers}.norm2", f"{compvis}.{norm2}")
    yield from weight(f"{path}/conv2", f"{diffusers}.conv2", f"{compvis}.{conv2}", "conv")
    if shortcut:
        yield from weight(f"{path}/shortcut", f"{diffusers}.conv_shortcut", f"{compvis}.{skip}", "conv1x1")


def transformer(path: str, diffusers: str, compvis: str, linear: bool) -> Iterator[Row]:
    """One SpatialTransformer: both layouts use the same names inside."""
    project = "dense" if linear else "conv1x1"
    both = lambda name: (f"{diffusers}.{name}", f"{compvis}.{name}")
    inside = lambda name: both(f"transformer_blocks.0.{name}")
    yield from norm(f"{path}/norm", *both("norm"))
    yield from weight(f"{path}/proj_in", *both("proj_in"), project)
    for ours, theirs in (("self", "attn1"), ("cross", "attn2")):
        for head in "qkv":
            yield from weight(f"{path}/block/{ours}/{head}", *inside(f"{theirs}.to_{head}"), "dense", bias=False)
        yield from weight(f"{path}/block/{ours}/out", *inside(f"{theirs}.to_out.0"), "dense")
    yield from weight(f"{path}/block/ff_in", *inside("ff.net.0.proj"), "dense")
    yield from weight(f"{path}/block/ff_out", *inside("ff.net.2"), "dense")
    for i in (1, 2, 3):
        yield from layer_norm(f"{path}/block/norm{i}", *inside(f"norm{i}"))
    yield from weight(f"{path}/proj_out", *both("proj_out"), project)
