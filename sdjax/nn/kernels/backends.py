"""Where a computation runs: the platforms that its program is lowered for, and the devices that share a batch."""

import math
from collections.abc import Callable

import jax
from jax.sharding import AxisType, PartitionSpec

from sdjax.types import Array

#: The platforms that the program being traced may be lowered for; "default" stands for any other platform, and None
#: means all of them. It is part of jit's cache keys.
LOWERED_FOR = jax.make_user_context(None)
SHAPES = ("default",)  # the value of LOWERED_FOR when only shapes are traced


def here():
    """Returns a context for programs that run in this process. Inside it they are traced only for this process'
    platforms, which takes less time.

    Do not use it around code that the caller may be tracing: the caller may export that program to any platform.
    """
    found = {"cpu": ("cpu",), "gpu": ("cuda", "rocm", "cpu"), "tpu": ("tpu", "cpu")}
    return LOWERED_FOR(found.get(jax.default_backend()))


def by_platform(*args: Array, default: Callable, **ways: Callable):
    """Like `jax.lax.platform_dependent`, but traces each implementation once, only for the platforms in LOWERED_FOR.

    args: the arrays that every implementation takes.
    default: the implementation for all platforms that are not in `ways`.
    ways: platform ("cpu", "cuda", "rocm", "tpu") -> its implementation.
    """
    if LOWERED_FOR.value:
        first, *others = (ways.get(platform, default) for platform in LOWERED_FOR.value)
        default, ways = first, dict(zip(LOWERED_FOR.value[1:], others, strict=True))
    ways = {platform: way for platform, way in ways.items() if way is not default}
    return jax.lax.platform_dependent(*args, default=default, **ways) if ways else default(*args)


def batch_axes() -> tuple[str, ...]:
    """Returns the axes of the current mesh over which XLA spreads a batch (see `devices.layouts.on_mesh`)."""
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto)


def devices_sharing(batch: int) -> int:
    """Returns how many devices share a batch of this size: all on `batch_axes`, or 1 if it has no equal parts for
    them."""
    mesh = jax.sharding.get_abstract_mesh()
    count = math.prod(mesh.shape[name] for name in batch_axes())
    return count if batch % count == 0 else 1


def split_by_batch(function: Callable, *arrays: Array, whole: tuple[Array, ...] = ()):
    """Returns function(*arrays, *whole). On a mesh, each device computes its own part of the batch.

    Use it where XLA cannot split the batch itself (Pallas kernels: libtpu knows no `custom_partitioning`) or does not:
    to enlarge pictures, XLA gathers all of them on every device.

    arrays: [B, ...] each, as the results are.
    whole: further arguments, which every device takes as a whole.
    """
    axes, mesh = batch_axes(), jax.sharding.get_abstract_mesh()
    if math.prod(mesh.shape[name] for name in axes) == 1:
        return function(*arrays, *whole)
    spec = PartitionSpec(axes) if devices_sharing(len(arrays[0])) > 1 else PartitionSpec()
    specs = (*[spec] * len(arrays), *[PartitionSpec()] * len(whole))
    split = jax.shard_map(function, in_specs=specs, out_specs=spec, axis_names=set(axes), check_vma=False)
    return split(*arrays, *whole)
