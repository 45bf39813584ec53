"""The names of a T2I-Adapter's tensors in files: diffusers', and TencentARC's."""

from collections.abc import Iterator

from sdjax.networks.rows import TensorRow, join, weight
from sdjax.networks.t2i.config import AdapterConfig


def adapter_rows(config: AdapterConfig, prefix: str = "") -> Iterator[TensorRow]:
    """Yields the rows of all tensors of a T2I-Adapter. `prefix` is that of their names in TencentARC's files."""
    first = lambda name: join(prefix or None, name) or name
    if not config.light:
        yield from weight("conv_in", "adapter.conv_in", first("conv_in"), "conv")
    for level, wide in enumerate(config.channels):
        theirs = f"adapter.body.{level}"
        number = level if config.light else level * config.blocks  # of TencentARC's blocks, through all levels
        if config.light or config.before(level) != wide:
            yield from weight(f"level_{level}_in", f"{theirs}.in_conv", first(f"body.{number}.in_conv"), "conv1x1")
        for i in range(config.blocks):
            block = first(f"body.{level}.body.{i}" if config.light else f"body.{number + i}")
            for n, kind in ((1, "conv"), (2, "conv" if config.light else "conv1x1")):
                names = f"{theirs}.resnets.{i}.block{n}", f"{block}.block{n}"
                yield from weight(f"level_{level}_conv{n}_{i}", *names, kind)
        if config.light:
            yield from weight(f"level_{level}_out", f"{theirs}.out_conv", first(f"body.{level}.out_conv"), "conv1x1")
