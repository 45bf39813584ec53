"""Placement for sampling: how many pictures are computed at once, and which device holds which array."""

import contextlib
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sdjax.devices.layouts import AXIS

# ---- sampling


def split_over(tree: Any, devices: list[jax.Device]) -> Any:
    """Splits the first axis of every leaf over `devices`. With one device, the arrays keep JAX's default placement."""
    return tree if len(devices) == 1 else jax.device_put(tree, _sharding(devices, AXIS))


def copy_over(tree: Any, devices: list[jax.Device]) -> Any:
    """Puts a copy of the tree on each of `devices`. Nothing moves if it is there already."""
    return jax.device_put(tree) if len(devices) == 1 else jax.device_put(tree, _sharding(devices))


def over(devices: list[jax.Device]) -> contextlib.AbstractContextManager:
    """Returns a context in which traced code knows that its batches are split over `devices`, as with `on_mesh`."""
    if len(devices) == 1:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(Mesh(np.array(devices), (AXIS,)).abstract_mesh)


def _sharding(devices: list[jax.Device], *axes: str) -> NamedSharding:
    return NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec(*axes))


POSITIONS = 2**13  # latent positions that a CPU takes at once: 32 guided pictures of 16 x 16, or 2 of 64 x 64


def chunk_size(count: int, positions: int) -> tuple[int, list]:
    """Returns how many pictures to compute at once, and the devices that share them evenly.

    count: the number of pictures.
    positions: the latent positions of one picture, h w, if the model is called twice a step (a prompt and guidance);
        more calls count in proportion.
    """
    devices = jax.local_devices()[:count]
    most = max(1, positions_at_once(devices[0]) // positions) * len(devices)
    size = math.ceil(count / math.ceil(count / most))
    return math.ceil(size / len(devices)) * len(devices), devices


def positions_at_once(device: jax.Device) -> int:
    """Returns how many latent positions a device takes at once. An accelerator takes one picture of 512 px for every
    2 GiB of its memory, up to 16 pictures, which keep the largest accelerators busy."""
    memory = (device.memory_stats() or {}).get("bytes_limit")
    return POSITIONS if memory is None else 2**12 * min(16, max(1, memory // 2**31))
