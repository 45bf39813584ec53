"""The lines that a training job prints about itself: memory, sharding, FLOPs, and its share of the peak."""

from typing import Any

import jax
import numpy as np

from sdjax.devices.cost import Costs, peak_flops
from sdjax.devices.layouts import Layout
from sdjax.training.state import TrainState


def describe_state(
    shapes: TrainState, layout: Layout, devices: int, processes: int, kind: str, frozen: Any = ()
) -> list[str]:
    """Returns the lines about devices, parameters and the state, for before the first step.

    shapes: the whole state, as arrays or shapes. frozen: parameters that are not trained, as arrays or shapes.
    devices, processes, kind: how many devices and processes there are, and the devices' kind.
    """
    size = lambda leaf: int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize
    total = lambda tree: sum(map(size, jax.tree.leaves(tree)))
    leaves = jax.tree.leaves(shapes)
    spread = [leaf for leaf in leaves if layout.shards(leaf.shape) > 1]
    share = sum(size(leaf) // layout.shards(leaf.shape) for leaf in leaves)
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes.params))
    how = "every device holds all of it"
    if spread:
        slices = layout.shards(spread[0].shape)
        how = f"{len(spread)} of {len(leaves)} arrays lie in {slices} slices, {megabytes(share)} a device"
    return [
        f"devices     {devices} x {kind}, {processes} process{'es' * (processes > 1)}, {layout.kind}",
        f"parameters  {count:,} trained, {len(jax.tree.leaves(shapes.params))} arrays",
        f"state       {megabytes(total(shapes))}: parameters {megabytes(total(shapes.params))}, optimiser "
        f"{megabytes(total(shapes.opt_state))}, EMA {megabytes(total(shapes.ema))}; {how}",
        *([f"frozen      {megabytes(total(frozen))}"] if frozen else []),
    ]


def describe_step(costs: Costs, batch_size: int, accumulate: int, devices: int) -> list[str]:
    """Returns the lines about a compiled step: its pictures, FLOPs and memory."""
    found, flops = costs.memory, costs.flops * devices
    parts = f" in {accumulate} parts" if accumulate > 1 else ""
    lines = [
        f"step        {batch_size * accumulate} pictures{parts}, {flops / 1e9:,.1f} GFLOP"
        if flops
        else f"step        {batch_size * accumulate} pictures{parts}"
    ]
    if found:
        lines.append(describe_memory(found))
    return lines


def describe_memory(found: dict[str, int], where: str = "device") -> str:
    """Returns the line about memory. found: as `sdjax.devices.cost.memory` returns it."""
    return (
        f"memory      {megabytes(found['total'])} a {where}: arguments {megabytes(found['arguments'])}, "
        f"temporary {megabytes(found['temporary'])}"
    )


def utilisation(flops: float, seconds: float, kind: str) -> float | None:
    """Returns the share of one device's peak that a step reaches, or None if the peak or the FLOPs are unknown.

    flops: of the step, on one device. seconds: its time. kind: the device's kind.
    """
    peak = peak_flops(kind)
    return flops / seconds / peak if peak and flops and seconds > 0 else None


def megabytes(size: float) -> str:
    """Bytes as text, in GB from 1e9 on, else in MB."""
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
