"""Placement for sampling: how many pictures are computed at once, and which device holds which array."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
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


def on_all_devices(function: Callable[[Any, Any], Any], params: Any, chunks: Iterable[Any]) -> Iterator[Any]:
    """Yields function(params, chunk) of each chunk in turn, as many computed at once as this process has devices.

    chunks: arrays, or trees of arrays, of the same shapes [n, ...]. function: (params, rows [m, ...]) -> array, or a
    tree of arrays, [m, ...], in which a row depends on its own row alone. Every device computes with n rows, as one
    device alone would, so that results are the same to the bit. They are numpy arrays.
    """
    chunks, placed = iter(chunks), None
    devices = jax.local_devices()
    while group := list(islice(chunks, len(devices))):
        if placed is None:
            devices = devices[: len(group)]  # two chunks in all need two devices
            placed = copy_over(params, devices)
        filled = group + group[-1:] * (len(devices) - len(group))
        rows = jax.tree.map(lambda *leaves: np.concatenate(leaves), *filled)
        with over(devices):
            found = jax.tree.map(np.asarray, function(placed, split_over(rows, devices)))
        leaves, tree = jax.tree.flatten(found)
        parts = zip(*(np.split(leaf, len(filled)) for leaf in leaves), strict=True)
        yield from (jax.tree.unflatten(tree, part) for part in islice(parts, len(group)))


def _sharding(devices: list[jax.Device], *axes: str) -> NamedSharding:
    return NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec(*axes))


POSITIONS = 2**13  # latent positions that a CPU takes at once: 32 guided pictures of 16 x 16, or 2 of 64 x 64


def chunk_size(count: int, positions: int) -> tuple[int, list]:
    """Returns how many pictures to compute at once, and the devices that share them evenly.

    Each device gets a power of two of them, so that few shapes are compiled for, or as many as it takes at once, if
    that is less.

    count: the number of pictures.
    positions: the latent positions of one picture, h w, if the model is called twice a step (a prompt and guidance);
        more calls count in proportion.
    """
    devices = jax.local_devices()[:count]
    most = max(1, positions_at_once(devices[0]) // positions)
    times = math.ceil(count / (most * len(devices)))
    share = math.ceil(count / (times * len(devices)))
    return min(most, 1 << (share - 1).bit_length()) * len(devices), devices


def positions_at_once(device: jax.Device) -> int:
    """Returns how many latent positions a device takes at once. An accelerator takes one picture of 512 px for every
    2 GiB of its memory, up to 16 pictures, which keep the largest accelerators busy."""
    memory = (device.memory_stats() or {}).get("bytes_limit")
    return POSITIONS if memory is None else 2**12 * min(16, max(1, memory // 2**31))
