"""Layouts: how the devices share the state and the batch of a train step.

A train step is a pure function of (state, batch, seed). A layout places its arguments on the devices and compiles it:

| layout | state on each device                        | gradients meet in               | compiled by               |
|--------|---------------------------------------------|---------------------------------|---------------------------|
| pmap   | all of it                                   | one `pmean`                     | `jax.pmap`                |
| fsdp   | a slice of every large array                | what XLA puts in for the mesh   | `jax.jit`, NamedSharding  |

Both split the batch evenly over all devices of all processes. The random numbers of an example depend on its global
index, never on the device that computes it.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sdjax.errors import SdjaxError

AXIS = "data"

KINDS = ("pmap", "fsdp")

SMALL = 2**10  # arrays of fewer values are not sliced: the transfers would cost more than the slices save


class PmapLayout:
    """Data parallel: every device holds the whole state. The arrays of a placed state have a leading axis of local
    devices."""

    kind = "pmap"

    @property
    def count(self) -> int:
        """The number of this process' devices."""
        return jax.local_device_count()

    def average(self, tree: Any) -> Any:
        """Returns the mean over the devices. Call it inside a step."""
        return lax.pmean(tree, AXIS)

    def for_loss(self, params: Any) -> Any:
        """Returns the parameters as a loss should take them (`in_order`)."""
        return in_order(params)

    def gather(self, tree: Any) -> tuple[Any, Any]:
        """Returns (the examples of all devices, the index of this device's first one among them). Call it inside a
        step."""
        count = len(jax.tree.leaves(tree)[0])
        return jax.tree.map(lambda leaf: lax.all_gather(leaf, AXIS, tiled=True), tree), lax.axis_index(AXIS) * count

    def create(self, make: Callable[[Any], Any], params: Any, seed: np.uint32) -> Any:
        """Returns make(params), with a copy on every device.

        params: arrays, or a function of the seed that returns them.
        """
        return self.place(jax.jit(lambda seed: make(params(seed)))(seed) if callable(params) else jax.jit(make)(params))

    def place(self, tree: Any) -> Any:
        """Returns the tree with a copy on every local device."""
        copy = jax.pmap(lambda _, value: value, axis_name=AXIS, in_axes=(0, None))  # the name is part of the sharding
        return copy(np.arange(self.count), tree)

    def adopt(self, leaf: np.ndarray) -> Any:
        """Takes one array of a state that is being read from a file. Here it does nothing: `place` is called when all
        arrays are there."""
        return leaf

    def abstract(self, shapes: Any) -> Any:
        """Returns the shapes of a state as `place` lays it out, for compiling ahead."""
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((self.count, *leaf.shape), leaf.dtype), shapes)

    def abstract_batch(self, shapes: Any) -> Any:
        """Returns the shapes of this process' batch as `put` lays it out, for compiling ahead."""
        split = lambda shape: (self.count, shape[0] // self.count, *shape[1:])
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(split(leaf.shape), leaf.dtype), shapes)

    def put(self, batch: Any) -> Any:
        """Splits this process' part of a batch over its devices: [B, ...] -> [devices, B / devices, ...]."""
        return jax.tree.map(lambda leaf: np.asarray(leaf).reshape(self.count, -1, *np.shape(leaf)[1:]), batch)

    def step(self, step: Callable, state: Any, *frozen: Any) -> Callable:
        """Compiles step(state, batch, seed, *frozen) -> (state, metrics). The new state reuses the old one's memory.

        frozen: trees that steps read and do not change, placed as the state is.
        """
        return jax.pmap(step, axis_name=AXIS, in_axes=(0, 0, None, *(0 for _ in frozen)), donate_argnums=0)

    def evaluate(self, function: Callable, *frozen: Any) -> Callable:
        """Compiles function(params, batch, seed, *frozen) -> scalars."""
        return jax.pmap(function, axis_name=AXIS, in_axes=(0, 0, None, *(0 for _ in frozen)))

    def fetch(self, tree: Any, everywhere: bool = True, free: bool = False) -> Any:
        """Returns numpy copies of the whole tree.

        everywhere: False returns them on process 0 only, and None on the others.
        free: delete each array on the devices once it is copied; the tree cannot be used afterwards.
        """
        if not everywhere and jax.process_index():
            return None

        def fetch(leaf):
            copy = np.array(leaf.addressable_data(0)).reshape(leaf.shape[1:])
            if free:
                leaf.delete()
            return copy

        return jax.tree.map(fetch, tree)

    def shards(self, shape: tuple[int, ...]) -> int:
        """Returns over how many devices an array of the state is spread."""
        return 1


def in_order(params: Any) -> Any:
    """Pins the memory layout of 4-D kernels [3, 3, C, D], and of their gradients, on GPUs.

    Without it XLA transposes the EMA and the optimiser's state to cuDNN's layout and back in every step.
    """
    flat = lambda leaf: lax.optimization_barrier(leaf.reshape(-1)).reshape(leaf.shape)
    either = lambda leaf: lax.platform_dependent(leaf, cuda=flat, default=lambda leaf: leaf)
    return jax.tree.map(lambda leaf: either(leaf) if leaf.ndim == 4 else leaf, params)


class FsdpLayout:
    """Fully sharded: every large array of the state is split into equal slices along the mesh's axis "fsdp".

    replicas: length of the mesh's other axis: so many copies of the state, each spread over devices / replicas.
    devices: the devices to use; None is all of them.
    SdjaxError: `replicas` does not divide the number of devices.
    """

    kind = "fsdp"

    def __init__(self, replicas: int = 1, devices: list[jax.Device] | None = None):
        devices = jax.devices() if devices is None else devices
        if replicas < 1 or len(devices) % replicas:
            raise SdjaxError(f"replicas {replicas}: expected a divisor of the {len(devices)} devices")
        shape = replicas, len(devices) // replicas
        self.mesh = jax.make_mesh(shape, (AXIS, "fsdp"), (AxisType.Auto, AxisType.Auto), devices=devices)
        self.whole = NamedSharding(self.mesh, PartitionSpec())
        self.batch = NamedSharding(self.mesh, PartitionSpec((AXIS, "fsdp")))

    def average(self, tree: Any) -> Any:
        """Returns the tree as it is: under jit, a mean over the batch is already the mean over all devices."""
        return tree

    def for_loss(self, params: Any) -> Any:
        """Returns the parameters as a loss should take them. Sliced parameters stay as they are, since `in_order` would
        gather them."""
        return in_order(params) if self.mesh.size == 1 else params

    def gather(self, tree: Any) -> tuple[Any, Any]:
        """Returns (tree, 0): under jit, the examples are already those of all devices."""
        return tree, 0

    def sharding(self, leaf: Any) -> NamedSharding:
        """Returns the sharding of one array of the state, which depends on its shape alone: the longest side that
        divides evenly is sliced."""
        shape, count = np.shape(leaf), self.mesh.shape["fsdp"]
        sides = [side if side % count == 0 else 0 for side in shape]
        if count == 1 or np.prod(shape) < SMALL or not max(sides, default=0):
            return self.whole
        axis = max(range(len(sides)), key=lambda i: (sides[i], i))
        return NamedSharding(self.mesh, PartitionSpec(*[None] * axis, "fsdp"))

    def shardings(self, tree: Any) -> Any:
        """Returns the tree of `sharding` of every leaf."""
        return jax.tree.map(self.sharding, tree)

    def create(self, make: Callable[[Any], Any], params: Any, seed: np.uint32) -> Any:
        """Returns make(params), with each array made where it belongs. No large array is whole on any device.

        params: arrays, or a function of the seed that returns them.
        """
        if not callable(params):
            params = jax.tree.map(self.adopt, params)
            shardings = self.shardings(jax.eval_shape(make, params))
            return jax.jit(make, out_shardings=shardings, donate_argnums=0)(params)
        whole = lambda seed: make(params(seed))
        return jax.jit(whole, out_shardings=self.shardings(jax.eval_shape(whole, seed)))(seed)

    def place(self, tree: Any) -> Any:
        """Moves the arrays of this host to their slices on the devices. Arrays that are there already stay."""
        return jax.tree.map(lambda leaf: leaf if isinstance(leaf, jax.Array) else self.adopt(leaf), tree)

    def adopt(self, leaf: np.ndarray) -> jax.Array:
        """Moves one array to its slices on the devices. While a state is being read from a file, only this one array is
        whole on the host."""
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, self.sharding(leaf), lambda index: leaf[index])

    def abstract(self, shapes: Any) -> Any:
        """Returns the shapes of a state, for compiling ahead."""
        return shapes

    def abstract_batch(self, shapes: Any) -> Any:
        """Returns the shapes of a batch of all processes, for compiling ahead."""
        return shapes

    def put(self, batch: Any) -> Any:
        """Puts this process' part of a batch on its devices."""
        return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(self.batch, np.asarray(leaf)), batch)

    def step(self, step: Callable, state: Any, *frozen: Any) -> Callable:
        """Compiles step(state, batch, seed, *frozen) -> (state, metrics). The new state reuses the old one's memory.

        frozen: trees that steps read and do not change, placed as the state is.
        """
        shardings = self.shardings(state)
        return jax.jit(
            on_mesh(step, self.mesh),
            in_shardings=(shardings, self.batch, self.whole, *map(self.shardings, frozen)),
            out_shardings=(shardings, self.whole),
            donate_argnums=0,
        )

    def evaluate(self, function: Callable, *frozen: Any) -> Callable:
        """Compiles function(params, batch, seed, *frozen) -> scalars."""
        return jax.jit(on_mesh(function, self.mesh), out_shardings=self.whole)

    def fetch(self, tree: Any, everywhere: bool = True, free: bool = False) -> Any:
        """Returns numpy copies of the whole tree.

        everywhere: False returns them on process 0 only, and None on the others.
        free: delete each array on the devices once it is copied; the tree cannot be used afterwards.
        """
        gather = jax.jit(lambda leaf: leaf, out_shardings=self.whole)
        wanted = everywhere or jax.process_index() == 0

        def fetch(leaf):  # one at a time: no more than one of them is whole on a device
            # every process waits for each gather: one that ran ahead would hold a thread of a small pool for each
            whole = leaf if leaf.is_fully_addressable else jax.block_until_ready(gather(leaf)).addressable_data(0)
            copy = np.array(whole) if wanted else None
            if free:
                leaf.delete()
            return copy

        fetched = jax.tree.map(fetch, tree)
        return fetched if wanted else None

    def shards(self, shape: tuple[int, ...]) -> int:
        """Returns over how many devices an array of the state is spread."""
        return 1 if self.sharding(np.broadcast_to(0, shape)).is_fully_replicated else self.mesh.shape["fsdp"]


def on_mesh(function: Callable, mesh: Mesh) -> Callable:
    """Wraps `function` so that `jax.sharding.get_abstract_mesh` returns the mesh while it is traced.

    Operations that XLA cannot split over devices need the mesh (`split_by_batch`).
    """

    @functools.wraps(function)
    def traced(*args):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return traced


Layout = PmapLayout | FsdpLayout


def make_layout(kind: str, replicas: int = 1) -> Layout:
    """Returns the layout "pmap" or "fsdp"; `replicas` is for fsdp. SdjaxError: any other kind."""
    if kind not in KINDS:
        raise SdjaxError(f"parallel {kind}: expected {' or '.join(KINDS)}")
    return PmapLayout() if kind == "pmap" else FsdpLayout(replicas)


def check_batch_size(batch_size: int) -> None:
    """SdjaxError: the batch is not a positive multiple of the number of all devices."""
    count = jax.device_count()
    if batch_size < 1 or batch_size % count:
        raise SdjaxError(f"batch_size {batch_size}: expected a positive multiple of the {count} devices")
