"""Arrays on devices: how many pictures go through at once, who holds what."""

import contextlib
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sdjax.devices.layouts import AXIS

# ---- sampling


def split_over(tree: Any, devices: list[jax.Device]) -> Any:
    """For sampling: splits the first axis of every leaf over `devices`; one device keeps JAX's default placement."""
    return tree if len(devices) == 1 else jax.device_put(tree, _sharding(devices, AXIS))


def copy_over(tree: Any, devices: list[jax.Device]) -> Any:
    """For sampling: a copy on each of `devices`; nothing moves when it is there already."""
    return jax.device_put(tree) if len(devices) == 1 else jax.device_put(tree, _sharding(devices))


def over(devices: list[jax.Device]) -> contextlib.AbstractContextManager:
    """For sampling: what is traced in here knows that its batches lie over `devices`, as in `on_mesh`."""
    if len(devices) == 1:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(Mesh(np.array(devices), (AXIS,)).abstract_mesh)


def _sharding(devices: list[jax.Device], *axes: str) -> NamedSharding:
    return NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec(*axes))


POSITIONS = 2**13  # latent positions that a CPU takes at once: 32 pictures of 16 x 16, 2 of 64 x 64; guided by one


def chunk_size(count: int, positions: int) -> tuple[int, list]:
    """How many pictures go through at once, and the devices that share them evenly."""
    devices = jax.local_devices()[:count]
    most = max(1, positions_at_once(devices[0]) // positions) * len(devices)
    size = math.ceil(count / math.ceil(count / most))
    return math.ceil(size / len(devices)) * len(devices), devices


def positions_at_once(device: jax.Device) -> int:
    """Latent positions that a device takes: an accelerator a picture of 512 px for every 2 GiB of its memory, up to 16,
    which keep the largest busy."""
    memory = (device.memory_stats() or {}).get("bytes_limit")
    return POSITIONS if memory is None else 2**12 * min(16, max(1, memory // 2**31))
