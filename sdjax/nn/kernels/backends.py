"""Where a computation runs: the platform that its program is lowered for, and the devices that share a batch."""

import math
from collections.abc import Callable

import jax
from jax.sharding import AxisType, PartitionSpec

from sdjax.types import Array

#: The platforms that what is traced may be lowered for, "default" for any other; None: all. Part of jit's cache keys.
LOWERED_FOR = jax.make_user_context(None)
SHAPES = ("default",)  # its value where a trace is for shapes alone


def here():
    """A context for programs that run in this process: they are traced for its platforms alone, which takes less time.

    Not for what somebody else may be tracing: that may be exported to any platform.
    """
    found = {"cpu": ("cpu",), "gpu": ("cuda", "rocm", "cpu"), "tpu": ("tpu", "cpu")}
    return LOWERED_FOR(found.get(jax.default_backend()))


def by_platform(*args: Array, default: Callable, **ways: Callable):
    """`jax.lax.platform_dependent`, but what is the same as the default is not traced again, nor what is not asked for
    (LOWERED_FOR)."""
    if LOWERED_FOR.value:
        first, *others = (ways.get(platform, default) for platform in LOWERED_FOR.value)
        default, ways = first, dict(zip(LOWERED_FOR.value[1:], others, strict=True))
    ways = {platform: way for platform, way in ways.items() if way is not default}
    return jax.lax.platform_dependent(*args, default=default, **ways) if ways else default(*args)


def batch_axes() -> tuple[str, ...]:
    """Of the mesh that is set (`parallel.on_mesh`): those over which XLA spreads a batch."""
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto)


def devices_sharing(batch: int) -> int:
    """How many devices share a batch: all of `batch_axes`, or one, where they cannot have equal parts."""
    mesh = jax.sharding.get_abstract_mesh()
    count = math.prod(mesh.shape[name] for name in batch_axes())
    return count if batch % count == 0 else 1


def split_by_batch(function: Callable, *arrays: Array, whole: tuple[Array, ...] = ()):
    """function(*arrays, *whole), where `arrays` are [B, ...] as its results are. On a mesh each device computes its
    part of the batch, where XLA cannot split it, as of Pallas' kernels (libtpu knows no `custom_partitioning`), or does
    not: to enlarge pictures it gathers all of them on every device.
    """
    axes, mesh = batch_axes(), jax.sharding.get_abstract_mesh()
    if math.prod(mesh.shape[name] for name in axes) == 1:
        return function(*arrays, *whole)
    spec = PartitionSpec(axes) if devices_sharing(len(arrays[0])) > 1 else PartitionSpec()
    specs = (*[spec] * len(arrays), *[PartitionSpec()] * len(whole))
    split = jax.shard_map(function, in_specs=specs, out_specs=spec, axis_names=set(axes), check_vma=False)
    return split(*arrays, *whole)
