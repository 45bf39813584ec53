"""Compiles the training step for a TPU, which is not needed for that, and prints the memory and the work it takes.

    pip install ".[tpu]"
    python train/compile_for.py --topology v5e:8x8 --model SD15 --batch-size 512 --parallel fsdp --remat

It works on any Linux machine with a CPU; the full step of SD 1.5 compiles in some minutes. Memory, FLOPs and bytes are
the compiler's figures for one chip.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sdjax import errors
from sdjax.devices.cost import Costs, array_sizes, cycles, main_memory_traffic, operations
from sdjax.devices.layouts import KINDS, FsdpLayout
from sdjax.devices.tpu import compile_lowered, topology_devices
from sdjax.errors import SdjaxError
from sdjax.families.config import Config
from sdjax.families.table import NAMED
from sdjax.model.load import initial_params
from sdjax.networks.table import param_shapes
from sdjax.training.captions import batch_shapes
from sdjax.training.diffusion import diffusion_loss, on_text, text_cond, zero_null
from sdjax.training.loop import build, state_shapes
from sdjax.training.lora import changes, chosen_sites, initial_tree, with_changes
from sdjax.training.options import TrainOptions, check_channels, check_dtype, picture_size
from sdjax.training.report import describe_memory, describe_state, megabytes
from sdjax.types import Array, Batch, Cond, Params

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclass(frozen=True)
class Options:
    topology: str
    """Of the TPU slice, such as v5e:2x2, v5e:8x8, v4:2x2x2, v5p:4x4x4."""
    model: str = "SD15"
    """A preset: EMOJI, SD15, SD21, ..."""
    batch_size: int = 64
    """Pictures that go through at once, over all chips."""
    accumulate: int = 1
    size: int | None = None
    """Pixels a side; the model's own when not given."""
    parallel: str = "fsdp"
    """fsdp, or pmap: every chip holds the whole state."""
    replicas: int = 1
    """Copies of the state under fsdp."""
    optimizer: str = "adamw"
    ema_decay: float = 0.9999
    dtype: str = "bfloat16"
    remat: bool = False
    lora: int | None = None
    """Train a LoRA of this rank beside the attentions' matrices, and not the UNet, which is in --dtype then."""
    chips: int | None = None
    """So many of the slice's chips; all when not given."""


def main(options: Options) -> None:
    """Compile the training step ahead of time for a TPU topology."""
    if options.model not in NAMED:
        raise SdjaxError(f"--model {options.model}: expected one of {', '.join(NAMED)}")
    if options.parallel not in KINDS:
        raise SdjaxError(f"--parallel {options.parallel}: expected {' or '.join(KINDS)}")
    check_dtype(options.dtype)
    config = NAMED[options.model]
    check_channels(options.model, config)
    config = replace(config, size=picture_size(options.size, config, config.multiple))
    with errors.prefixed("--topology "):
        devices = topology_devices(options.topology)
    if options.lora is not None and options.lora < 1:
        raise SdjaxError(f"--lora {options.lora}: expected at least 1")
    if options.chips is not None and not 1 <= options.chips <= len(devices):
        raise SdjaxError(f"--chips {options.chips}: expected 1 to {len(devices)}, of {options.topology}")
    devices = devices[: options.chips]
    settings = TrainOptions(
        Path(),
        Path(),
        batch_size=options.batch_size,
        accumulate=options.accumulate,
        optimizer=options.optimizer,
        ema_decay=options.ema_decay,
        parallel=options.parallel,
        replicas=options.replicas,
    )
    if options.batch_size % len(devices):
        raise SdjaxError(f"--batch-size {options.batch_size}: expected a positive multiple of the {len(devices)} chips")
    # pmap compiles only for devices of this machine; jit with the state on every chip is the same arrangement
    layout = FsdpLayout(options.replicas if options.parallel == "fsdp" else len(devices), devices)
    layout.kind = options.parallel
    loss, params, frozen = whole_unet(config, options) if options.lora is None else beside_unet(config, options)
    make, step = build(settings, loss, layout)
    shapes = state_shapes(make, params)
    print(*describe_state(shapes, layout, len(devices), 1, devices[0].device_kind, frozen), sep="\n")
    batch = batch_shapes(config, settings.examples), jax.ShapeDtypeStruct((settings.examples,), np.float32)
    lowered = layout.step(step, shapes, *frozen).lower(shapes, batch, np.uint32(0), *frozen)
    with errors.prefixed(f"--batch-size {options.batch_size}: "):
        compiled = compile_lowered(lowered)
    text, costs = compiled.as_text(), Costs(compiled, options.accumulate)
    moved = main_memory_traffic(text) * options.accumulate
    print(describe_memory(costs.memory, "chip"))
    print(
        f"arithmetic  {costs.flops / 1e12:,.2f} TFLOP a chip and step, {megabytes(costs.bytes)} read and written by "
        f"XLA's count, {megabytes(moved)} to and from the chip's main memory"
    )
    print(
        f"time        {cycles(text) * options.accumulate / 1e6:,.1f} million clock cycles by XLA's estimate, without "
        "attention's kernels"
    )
    for name, (count, size) in collectives(text).items():
        print(f"{name:<20}{count:5d} x, {megabytes(size)} a chip")


def whole_unet(config: Config, options: Options) -> tuple[Callable, Any, tuple]:
    """Returns the loss, the parameters and what is frozen, of a training of the UNet."""
    loss = diffusion_loss(config, on_text(zero_null(config)), options.dtype, options.remat, 0.1)
    return loss, partial(initial_params, config, "unet"), ()


def beside_unet(config: Config, options: Options) -> tuple[Callable, Any, tuple]:
    """Returns the same of a training of a LoRA."""
    sites, null = chosen_sites(config, "attention", options.lora, ("unet",)), zero_null(config)
    tree = initial_tree("lora", sites, options.lora, 0, {"unet": {}})
    shaped = lambda tree, dtype=None: jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, dtype or a.dtype), tree)

    def cond(params: Params, batch: Batch, drop: Array, key: Array, frozen: Params) -> tuple[Params, Cond]:
        return {"params": frozen, "changes": changes(sites, params, "unet")}, text_cond(batch, null, drop)

    loss = diffusion_loss(config, cond, options.dtype, options.remat, 0.1, forward=with_changes)
    return loss, shaped(tree), (shaped(param_shapes(config.unet), jax.numpy.dtype(options.dtype)),)


def collectives(text: str) -> dict[str, tuple[int, int]]:
    """Returns {name: (how many, bytes of their results)} of a compiled program's text; a loop's body counts once."""
    counts, sizes = Counter(), Counter()
    for _, kind, operation, *_ in operations(text):
        name = operation.removesuffix("-start")
        if name in COLLECTIVES:
            results = array_sizes(kind)
            counts[name] += 1  # the type of a start contains its operands too
            sizes[name] += sum(results) if name == operation else max(results, default=0)
    return {name: (counts[name], sizes[name]) for name in COLLECTIVES if counts[name]}
