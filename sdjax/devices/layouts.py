"""Devices: the only file that knows how they share the work.

A train step is a pure function of (state, batch, seed); a layout says where its arguments lie and compiles it:

| layout | state on each device                        | gradients meet in               | compiled by               |
|--------|---------------------------------------------|---------------------------------|---------------------------|
| pmap   | all of it                                   | one `pmean`                     | `jax.pmap`                |
| fsdp   | a slice of every large array                | what XLA puts in for the mesh   | `jax.jit`, NamedSharding  |

Both split the batch evenly over all devices of all processes. What an example draws depends on its global index,
never on the device that it falls to.
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

SMALL = 2**10  # arrays of fewer values are not worth a slice and its transfer


class PmapLayout:
    """Data parallel: every device holds the whole state. In here a state has a leading axis of local devices."""

    kind = "pmap"

    @property
    def count(self) -> int:
        return jax.local_device_count()

    def average(self, tree: Any) -> Any:
        """The mean over the devices, inside of a step."""
        return lax.pmean(tree, AXIS)

    def for_loss(self, params: Any) -> Any:
        """Parameters as a loss takes them."""
        return in_order(params)

    def gather(self, tree: Any) -> tuple[Any, Any]:
        """All devices' examples, inside of a step, and the number of this device's first among them."""
        count = len(jax.tree.leaves(tree)[0])
        return jax.tree.map(lambda leaf: lax.all_gather(leaf, AXIS, tiled=True), tree), lax.axis_index(AXIS) * count

    def create(self, make: Callable[[Any], Any], params: Any, seed: np.uint32) -> Any:
        """make(params) on every device. `params`: arrays, or a function of the seed that gives them."""
        return self.place(jax.jit(lambda seed: make(params(seed)))(seed) if callable(params) else jax.jit(make)(params))

    def place(self, tree: Any) -> Any:
        """A copy on every local device."""
        copy = jax.pmap(lambda _, value: value, axis_name=AXIS, in_axes=(0, None))  # the name is part of the sharding
        return copy(np.arange(self.count), tree)

    def adopt(self, leaf: np.ndarray) -> Any:
        """Takes one array of a state that is being read; `place` comes when all of them are there."""
        return leaf

    def abstract(self, shapes: Any) -> Any:
        """The shapes of a state as `place` lays it out, to compile for."""
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((self.count, *leaf.shape), leaf.dtype), shapes)

    def abstract_batch(self, shapes: Any) -> Any:
        """The shapes of a batch of this process as `put` lays it out."""
        split = lambda shape: (self.count, shape[0] // self.count, *shape[1:])
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(split(leaf.shape), leaf.dtype), shapes)

    def put(self, batch: Any) -> Any:
        """This process' part of a batch, on its devices: [B, ...] -> [devices, B / devices, ...]."""
        return jax.tree.map(lambda leaf: np.asarray(leaf).reshape(self.count, -1, *np.shape(leaf)[1:]), batch)

    def step(self, step: Callable, state: Any) -> Callable:
        """Compiles step(state, batch, seed) -> (state, metrics); the old state's memory is given to the new one."""
        return jax.pmap(step, axis_name=AXIS, in_axes=(0, 0, None), donate_argnums=0)

    def evaluate(self, function: Callable) -> Callable:
        """Compiles function(params, batch, seed) -> scalars."""
        return jax.pmap(function, axis_name=AXIS, in_axes=(0, 0, None))

    def fetch(self, tree: Any, everywhere: bool = True, free: bool = False) -> Any:
        """Numpy copies of the whole tree, on process 0 alone where not `everywhere` (None on the others). `free` gives
        the devices' memory back, one array after the other: the tree is used up."""
        if not everywhere and jax.process_index():
            return None

        def fetch(leaf):
            copy = np.array(leaf.addressable_data(0)).reshape(leaf.shape[1:])
            if free:
                leaf.delete()
            return copy

        return jax.tree.map(fetch, tree)

    def shards(self, shape: tuple[int, ...]) -> int:
        """Over how many devices an array of the state is spread."""
        return 1


def in_order(params: Any) -> Any:
    """Parameters, and so their gradients, in the order in which they lie. cuDNN takes kernels [3, 3, C, D] in another,
    and on GPUs XLA would turn the EMA and the optimiser's state to that one too, and back, at every step."""
    flat = lambda leaf: lax.optimization_barrier(leaf.reshape(-1)).reshape(leaf.shape)
    either = lambda leaf: lax.platform_dependent(leaf, cuda=flat, default=lambda leaf: leaf)
    return jax.tree.map(lambda leaf: either(leaf) if leaf.ndim == 4 else leaf, params)


class FsdpLayout:
    """Fully sharded: every large array of the state lies in equal slices over the devices of the mesh's fsdp axis.

    `replicas` is the mesh's other axis: that many copies of the state, each spread over devices / replicas.
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
        """Nothing is left to do: under jit a mean over the batch is the mean over all of it."""
        return tree

    def for_loss(self, params: Any) -> Any:
        """Parameters as a loss takes them. Those that lie in slices stay so: `in_order` would put them together."""
        return in_order(params) if self.mesh.size == 1 else params

    def gather(self, tree: Any) -> tuple[Any, Any]:
        """Under jit the examples are those of all devices already."""
        return tree, 0

    def sharding(self, leaf: Any) -> NamedSharding:
        """Of one array of the state, by its shape alone: slices of the longest side that divides evenly."""
        shape, count = np.shape(leaf), self.mesh.shape["fsdp"]
        sides = [side if side % count == 0 else 0 for side in shape]
        if count == 1 or np.prod(shape) < SMALL or not max(sides, default=0):
            return self.whole
        axis = max(range(len(sides)), key=lambda i: (sides[i], i))
        return NamedSharding(self.mesh, PartitionSpec(*[None] * axis, "fsdp"))

    def shardings(self, tree: Any) -> Any:
        return jax.tree.map(self.sharding, tree)

    def create(self, make: Callable[[Any], Any], params: Any, seed: np.uint32) -> Any:
        """make(params), each array made where it belongs; nothing is whole on any device."""
        if not callable(params):
            params = jax.tree.map(self.adopt, params)
            shardings = self.shardings(jax.eval_shape(make, params))
            return jax.jit(make, out_shardings=shardings, donate_argnums=0)(params)
        whole = lambda seed: make(params(seed))
        return jax.jit(whole, out_shardings=self.shardings(jax.eval_shape(whole, seed)))(seed)

    def place(self, tree: Any) -> Any:
        """Arrays on this host to their slices on the devices; those that are there already stay."""
        return jax.tree.map(lambda leaf: leaf if isinstance(leaf, jax.Array) else self.adopt(leaf), tree)

    def adopt(self, leaf: np.ndarray) -> jax.Array:
        """One array to its slices: of a state that is being read no more than this one is whole on the host."""
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, self.sharding(leaf), lambda index: leaf[index])

    def abstract(self, shapes: Any) -> Any:
        """The shapes of a state, to compile for."""
        return shapes

    def abstract_batch(self, shapes: Any) -> Any:
        """The shapes of a batch, of all processes."""
        return shapes

    def put(self, batch: Any) -> Any:
        """This process' part of a batch, on its devices."""
        return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(self.batch, np.asarray(leaf)), batch)

    def step(self, step: Callable, state: Any) -> Callable:
        """Compiles step(state, batch, seed) -> (state, metrics); the old state's memory is given to the new one."""
        shardings = self.shardings(state)
        return jax.jit(
            on_mesh(step, self.mesh),
            in_shardings=(shardings, self.batch, self.whole),
            out_shardings=(shardings, self.whole),
            donate_argnums=0,
        )

    def evaluate(self, function: Callable) -> Callable:
        """Compiles function(params, batch, seed) -> scalars."""
        return jax.jit(on_mesh(function, self.mesh), out_shardings=self.whole)

    def fetch(self, tree: Any, everywhere: bool = True, free: bool = False) -> Any:
        """Numpy copies of the whole tree, on process 0 alone where not `everywhere` (None on the others). `free` gives
        the devices' memory back, one array after the other: the tree is used up."""
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
        """Over how many devices an array of the state is spread."""
        return 1 if self.sharding(np.broadcast_to(0, shape)).is_fully_replicated else self.mesh.shape["fsdp"]


def on_mesh(function: Callable, mesh: Mesh) -> Callable:
    """`function`, traced where `jax.sharding.get_abstract_mesh` tells of the mesh: what XLA cannot split needs it."""

    @functools.wraps(function)
    def traced(*args):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return traced


Layout = PmapLayout | FsdpLayout


def make_layout(kind: str, replicas: int = 1) -> Layout:
    if kind not in KINDS:
        raise SdjaxError(f"parallel {kind}: expected {' or '.join(KINDS)}")
    return PmapLayout() if kind == "pmap" else FsdpLayout(replicas)


def check_batch_size(batch_size: int) -> None:
    count = jax.device_count()
    if batch_size < 1 or batch_size % count:
        raise SdjaxError(f"batch_size {batch_size}: expected a positive multiple of the {count} devices")
