"""Compiles programs for TPUs on a machine that has none. It needs libtpu (the extra `tpu`)."""

import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import SingleDeviceSharding

from sdjax.errors import SdjaxError, out_of_memory

# ---- compiled for TPUs that are not here


class Chip(NamedTuple):
    """A TPU chip. The figures are from cloud.google.com/tpu/docs, system architecture; FLOP/s are in cost.PEAK."""

    topology: str  # the smallest slice that libtpu knows
    bandwidth: float  # bytes a second


CHIPS = {"v5e": Chip("v5e:2x2", 819e9), "v5p": Chip("v5p:2x2x1", 2765e9), "v6e": Chip("v6e:2x2", 1640e9)}


def topology_devices(name: str) -> list[jax.Device]:
    """Returns the chips of a TPU slice such as "v5e:2x2", which need not be in this machine.

    SdjaxError: the slice is unknown, or libtpu is not installed.
    """
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # a machine without a TPU has no metadata server to ask
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no TPU is used, so other processes do not matter
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "4")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", name)
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(name, "tpu").devices)
    except Exception as error:  # its class depends on what is missing
        reason = " ".join(str(error).split())[:160]
        raise SdjaxError(
            f"{name}: not known here ({reason}); expected such as v5e:8x8, and the extra tpu installed"
        ) from None


def compile_for(device: jax.Device, function: Callable, *shapes: Any) -> jax.stages.Compiled:
    """Compiles function(*shapes) for one device of `topology_devices`. The arguments are pytrees of shapes.

    SdjaxError: as `compile_lowered`.
    """
    here = SingleDeviceSharding(device)
    placed = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), shapes)
    return compile_lowered(jax.jit(function).trace(*placed).lower(lowering_platforms=("tpu",)))


def compile_lowered(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compiles a lowered program. SdjaxError: the program takes more memory than the device has."""
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if not out_of_memory(error):
            raise
        used = re.search(r"(?:Used|temporaries) \(?([\d.]+\w)\)? (?:of|exceeds [\w ]+) \(?([\d.]+\w)", str(error))
        what = f"{used[1]} of the chip's {used[2]}" if used else str(error).splitlines()[0][:200]
        raise SdjaxError(f"does not fit, the program needs {what}") from None
