"""Devices: the only file that knows how they share the work.

A train step is a pure function of (state, batch, seed); a layout says where its arguments lie and compiles it:

| layout | state on each device                        | gradients meet in               | compiled by               |
|--------|---------------------------------------------|---------------------------------|---------------------------|
| pmap   | all of it                                   | one `pmean`                     | `jax.pmap`                |
| fsdp   | a slice of every large array                | what XLA puts in for the mesh   | `jax.jit`, NamedSharding  |

Both split the batch evenly over all devices of all processes. What an example draws depends on its global index,
never on the device that it falls to.
"""

import contextlib
import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sdjax.errors import SdjaxError, out_of_memory
from sdjax.types import Array

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
            raise SdjaxError(f"--replicas {replicas}: expected a divisor of the {len(devices)} devices")
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
        return jax.jit(on_mesh(step, self.mesh), in_shardings=(shardings, self.batch, self.whole),
                       out_shardings=(shardings, self.whole), donate_argnums=0)

    def evaluate(self, function: Callable) -> Callable:
        """Compiles function(params, batch, seed) -> scalars."""
        return jax.jit(on_mesh(function, self.mesh), out_shardings=self.whole)

    def fetch(self, tree: Any, everywhere: bool = True, free: bool = False) -> Any:
        """Numpy copies of the whole tree, on process 0 alone where not `everywhere` (None on the others). `free` gives
        the devices' memory back, one array after the other: the tree is used up."""
        gather = jax.jit(lambda leaf: leaf, out_shardings=self.whole)
        wanted = everywhere or jax.process_index() == 0

        def fetch(leaf):  # one at a time: no more than one of them is whole on a device
            whole = leaf if leaf.is_fully_addressable else gather(leaf).addressable_data(0)
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
        raise SdjaxError(f"--parallel {kind}: expected {' or '.join(KINDS)}")
    return PmapLayout() if kind == "pmap" else FsdpLayout(replicas)


# ---- processes


def start_processes(coordinator: str | None, count: int | None, index: int | None, patience: int = 100) -> None:
    """Joins the other processes of the job, before anything else touches a device.

    coordinator: HOST:PORT of process 0; "auto" where the cluster tells (SLURM, Open MPI, TPU pods, Kubernetes); None
    is a job of one process. A process that does not answer for `patience` seconds ends the others.
    """
    if coordinator is None:
        if count not in (None, 1) or index not in (None, 0):
            raise SdjaxError("--coordinator: is missing, give HOST:PORT of process 0 to all processes, or auto")
        return
    if coordinator == "auto":
        if (count, index) != (None, None):
            raise SdjaxError("--coordinator auto: the cluster tells --num-processes and --process-id; leave them out, "
                             "or give HOST:PORT of process 0")
        where = {}
    else:
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 2**16:
            raise SdjaxError(f"--coordinator {coordinator}: expected HOST:PORT of process 0, or auto")
        if count is None or count < 1:
            raise SdjaxError(f"--num-processes {count}: expected the number of processes, at least 1")
        if index is None or not 0 <= index < count:
            raise SdjaxError(f"--process-id {index}: expected a number from 0 to {count - 1}")
        where = {"coordinator_address": coordinator, "num_processes": count, "process_id": index}
    try:
        jax.distributed.initialize(**where, initialization_timeout=300, heartbeat_timeout_seconds=patience,
                                   shutdown_timeout_seconds=patience)
    except (RuntimeError, ValueError) as error:
        raise SdjaxError(f"--coordinator {coordinator}: {error}") from None


def is_primary() -> bool:
    """Is this the process that writes?"""
    return jax.process_index() == 0


def local_part(count: int) -> slice:
    """Which `count` / processes of a global batch's examples this process reads."""
    size = count // jax.process_count()
    return slice(jax.process_index() * size, (jax.process_index() + 1) * size)


def agree(value: int) -> int:
    """Process 0's value, on all of them."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


@contextlib.contextmanager
def device_errors():
    """One line instead of a traceback where a device has too little memory, or where another process is gone.

    A process that lost its partners leaves at once: an orderly end would wait for them.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        if jax.process_count() > 1:
            print(f"error: --coordinator: another process is gone or a device failed ({reason}); start all processes "
                  "again with the same command", file=sys.stderr, flush=True)
            os._exit(2)
        if out_of_memory(error):
            raise SdjaxError(f"--batch-size: the device's memory does not hold the step ({reason}); a smaller batch "
                             "with --accumulate, --remat, --dtype bfloat16 and --parallel fsdp take less") from None
        raise


def check_batch_size(batch_size: int) -> None:
    count = jax.device_count()
    if batch_size < 1 or batch_size % count:
        raise SdjaxError(f"--batch-size {batch_size}: expected a positive multiple of the {count} devices")


def example_keys(key: Array, index: Array) -> Array:
    """One key an example: fold_in(key, global example index)."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.asarray(index))


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
