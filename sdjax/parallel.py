"""Devices: the only file that knows how they share the work.

Training is data parallel by `jax.pmap`: every device holds the whole state and a slice of the batch, gradients are
averaged with `pmean`. What an example draws depends on its global index, never on the device that it falls to.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import lax

from sdjax.errors import SdjaxError
from sdjax.types import Array

AXIS = "data"


def average(tree: Any) -> Any:
    """The mean over the devices of a pmapped step."""
    return lax.pmean(tree, AXIS)


def pmap_step(step: Callable) -> Callable:
    """Runs step(state, batch, key) on all local devices; its `average` has to be the one above."""
    return jax.pmap(step, axis_name=AXIS, in_axes=(0, 0, None), donate_argnums=0)


def replicate(tree: Any) -> Any:
    """A copy on every local device, with a leading axis of devices."""
    count = jax.local_device_count()
    copy = jax.pmap(lambda _, value: value, axis_name=AXIS, in_axes=(0, None))  # the name is part of the sharding
    return copy(np.arange(count), tree)


def unreplicate(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0], tree)


def shard(batch: Any) -> Any:
    """[B, ...] -> [devices, B / devices, ...]."""
    count = jax.local_device_count()
    return jax.tree.map(lambda leaf: leaf.reshape(count, -1, *leaf.shape[1:]), batch)


def check_batch_size(batch_size: int) -> None:
    count = jax.local_device_count()
    if batch_size < 1 or batch_size % count:
        raise SdjaxError(f"--batch-size {batch_size}: expected a positive multiple of the {count} local devices")


def example_keys(key: Array, index: Array) -> Array:
    """One key an example: fold_in(key, global example index)."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)


def split_over(tree: Any, devices: list[jax.Device]) -> Any:
    """For sampling: splits the first axis of every leaf over `devices`; one device keeps JAX's default placement."""
    return tree if len(devices) == 1 else jax.device_put(tree, _sharding(devices, AXIS))


def copy_over(tree: Any, devices: list[jax.Device]) -> Any:
    """For sampling: a copy on each of `devices`; nothing moves when it is there already."""
    return jax.device_put(tree) if len(devices) == 1 else jax.device_put(tree, _sharding(devices))


def _sharding(devices: list[jax.Device], *axes: str) -> jax.sharding.NamedSharding:
    mesh = jax.sharding.Mesh(np.array(devices), (AXIS,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
