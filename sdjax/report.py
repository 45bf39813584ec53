"""What a training job says of itself: memory, sharding, arithmetic, and how much of the machine it uses."""

from typing import Any

import jax
import numpy as np

from sdjax.parallel import Layout
from sdjax.train_state import TrainState

#: Dense bfloat16 FLOP/s of a device, from the makers' data sheets, by a part of `device_kind`; first match counts.
PEAK = {
    "TPU v6": 918e12, "TPU v5p": 459e12, "TPU v5 lite": 197e12, "TPU v5e": 197e12, "TPU v5": 459e12, "TPU v4": 275e12,
    "TPU v3": 61.5e12, "TPU v2": 22.5e12,  # v2 and v3: a device is one of a chip's two cores
    "B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12,
    "A10": 125e12, "V100": 125e12, "T4": 65e12, "RTX 4090": 165e12, "RTX 3090": 71e12,
}


def peak_flops(kind: str) -> float | None:
    """Of one device of this `device_kind`, None where it is not known."""
    return next((flops for name, flops in PEAK.items() if name.lower() in kind.lower()), None)


class Costs:
    """What the compiler says of a step, for one device."""

    def __init__(self, compiled: Any, parts: int = 1):
        """compiled: `jax.stages.Compiled`. parts: how often its inner loop runs (--accumulate)."""
        found = compiled.cost_analysis()
        found = dict(found[0] if isinstance(found, list) else found or {})
        self.flops: float = found.get("flops", 0.0) * parts  # XLA counts a loop's body once
        self.bytes: float = found.get("bytes accessed", 0.0) * parts
        self.memory = memory(compiled)


def memory(compiled: Any) -> dict[str, int]:
    """Bytes on one device: arguments, outputs, temporary, total (outputs that take over arguments count once)."""
    stats = compiled.memory_analysis()
    if stats is None:
        return {}
    found = {"arguments": stats.argument_size_in_bytes, "outputs": stats.output_size_in_bytes,
             "temporary": stats.temp_size_in_bytes}
    return found | {"total": sum(found.values()) - stats.alias_size_in_bytes}


def describe_state(shapes: TrainState, layout: Layout, devices: int, processes: int, kind: str) -> list[str]:
    """What there is before the first step. `shapes`: the whole state, arrays or not."""
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
    ]


def describe_step(costs: Costs, batch_size: int, accumulate: int, devices: int) -> list[str]:
    """What a compiled step takes."""
    found, flops = costs.memory, costs.flops * devices
    parts = f" in {accumulate} parts" if accumulate > 1 else ""
    lines = [f"step        {batch_size * accumulate} pictures{parts}, {flops / 1e9:,.1f} GFLOP" if flops else
             f"step        {batch_size * accumulate} pictures{parts}"]
    if found:
        lines.append(f"memory      {megabytes(found['total'])} a device: arguments {megabytes(found['arguments'])}, "
                     f"temporary {megabytes(found['temporary'])}")
    return lines


def utilisation(flops: float, seconds: float, kind: str) -> float | None:
    """Share of one device's peak: FLOPs of a step on it over its time. None where either is unknown."""
    peak = peak_flops(kind)
    return flops / seconds / peak if peak and flops and seconds > 0 else None


def megabytes(size: float) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
