"""The small layers that all networks share, with the constants of the original implementations.

Norms compute in float32 and give back the computation's dtype. Their variance takes two passes: the mean of squares
less the square of the mean loses three digits at mean / std = 100. Half precision takes one where another way loses
nothing (GPUs), and bfloat16 where it has lost more itself (TPUs). Epsilons have no default on purpose: they differ from
place to place.
"""

import contextlib
import math
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from sdjax.nn.convolution import convolve, convolve_enlarged
from sdjax.types import Array


def precise(dtype):
    """float32 means float32: not TF32 on a GPU, not bfloat16 passes on a TPU."""
    return jax.default_matmul_precision("highest") if jnp.dtype(dtype) == jnp.float32 else contextlib.nullcontext()


def by_platform(*args: Array, default: Callable, **ways: Callable):
    """`jax.lax.platform_dependent`, but what is the same as the default is not traced again."""
    ways = {platform: way for platform, way in ways.items() if way is not default}
    return jax.lax.platform_dependent(*args, default=default, **ways) if ways else default(*args)


class GroupNorm(nn.Module):
    """Group normalisation over [B, H, W, C] or [B, T, C] (arXiv 1803.08494), statistics in float32."""

    groups: int
    eps: float

    def __call__(self, x: Array) -> Array:
        return self.of(x)(x)

    @nn.compact
    def of(self, x: Array) -> Callable[[Array], Array]:
        """What normalises x, or some rows of x."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones_init(), (channels,))
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,))
        exact, rows, squares = (partial(way, groups=self.groups) for way in (two_pass, by_rows, by_squares))
        mean, variance = by_platform(x.astype(jnp.float32), default=exact,
                                     cuda=exact if x.dtype == jnp.float32 else rows,
                                     tpu=squares if x.dtype == jnp.bfloat16 else exact)
        scale, bias = scale.astype(jnp.float32), bias.astype(jnp.float32)
        factor = jax.lax.rsqrt(variance + self.eps)
        return lambda x: ((x.astype(jnp.float32) - mean) * factor * scale + bias).astype(x.dtype)


def two_pass(x: Array, groups: int) -> tuple[Array, Array]:
    """Mean and variance of each channel's group, x [B, ..., C] -> [B, 1, .., C] each. The mean over pixels comes first:
    x keeps its shape, in which its neighbours read it too."""
    mean = of_groups(over_pixels(x), groups)
    return mean, of_groups(over_pixels(jnp.square(x - mean)), groups)


def by_rows(x: Array, groups: int) -> tuple[Array, Array]:
    """The same in one reading, for GPUs, which a sum over all pixels at once leaves half idle and a second pass makes
    write x - mean: variances within rows, of rows in a channel and of channels in a group add up."""
    shape, pixels = (len(x), *[1] * (x.ndim - 2), -1), math.prod(x.shape[1:-1])
    x = x.reshape(len(x), -1, math.gcd(pixels, 2 ** (pixels.bit_length() // 2)), x.shape[-1])
    rows = x.mean(-2, keepdims=True)
    within = jnp.square(x).mean(-2, keepdims=True) - jnp.square(rows)
    channels = over_pixels(rows)
    mean = of_groups(channels, groups)
    variance = of_groups(over_pixels(within + jnp.square(rows - channels)) + jnp.square(channels - mean), groups)
    return mean.reshape(shape), variance.reshape(shape)


def by_squares(x: Array, groups: int) -> tuple[Array, Array]:
    """The same by two sums that do not wait for each other, for TPUs, which compute them as x is made."""
    mean = of_groups(over_pixels(x), groups)
    return mean, jnp.maximum(0.0, of_groups(over_pixels(jnp.square(x)), groups) - jnp.square(mean))


def over_pixels(x: Array) -> Array:
    """[B, ..., C] -> [B, 1, .., C], the mean."""
    return x.mean(tuple(range(1, x.ndim - 1)), keepdims=True)


def of_groups(x: Array, groups: int) -> Array:
    """[B, 1, .., C], the mean of its group in each."""
    means = x.reshape(*x.shape[:-1], groups, -1).mean(-1)
    return jnp.repeat(means, x.shape[-1] // groups, axis=-1)


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis, in float32; of bfloat16 on TPUs with both of its sums in one pass."""

    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        params = self.param("norm", lambda key: {"scale": jnp.ones(channels), "bias": jnp.zeros(channels)})

        def normalise(x: Array, fast: bool) -> Array:
            norm = nn.LayerNorm(epsilon=self.eps, dtype=jnp.float32, use_fast_variance=fast, parent=None)
            return norm.apply({"params": params}, x).astype(x.dtype)

        exact, fast = (partial(normalise, fast=fast) for fast in (False, True))
        return by_platform(x, default=exact, tpu=fast if x.dtype == jnp.bfloat16 else exact)


class Dense(nn.Module):
    """`nn.Dense` that makes its parameters first: what `of` gives may be called in a loop, as no module may."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def of(self, channels: int) -> Callable[[Array], Array]:
        """[..., channels] -> [..., features]."""
        params = {"kernel": self.param("kernel", nn.initializers.lecun_normal(), (channels, self.features)),
                  "bias": self.param("bias", nn.initializers.zeros_init(), (self.features,))}
        dense = nn.Dense(self.features, dtype=self.dtype, parent=None)
        return lambda x: dense.apply({"params": params}, x)


def some_at_a_time(function: Callable[[Array], Array], x: Array) -> Array:
    """function(x), which treats each token of x [B, T, C] alone. CPUs take some tokens after the other where there are
    many: what is made of them stays in the cache."""
    (b, t, channels), count = x.shape, 2 ** max(0, (x.size // 2**18).bit_length() - 1)
    if count < 4 or t % count:
        return function(x)

    def loop(x: Array) -> Array:
        y = jax.lax.map(function, jnp.moveaxis(x.reshape(b, count, -1, channels), 1, 0))
        return jnp.moveaxis(y, 0, 1).reshape(x.shape)

    return by_platform(x, default=function, cpu=loop)


class Conv3x3(nn.Module):
    """3x3 convolution with torch's padding, explicit because XLA's SAME differs at stride 2. `enlarge`: of the picture
    with each pixel doubled."""

    features: int
    dtype: jnp.dtype
    stride: int
    padding: tuple[tuple[int, int], tuple[int, int]]
    kernel_init: nn.initializers.Initializer
    enlarge: bool

    @nn.compact
    def __call__(self, x: Array, before: Callable[[Array], Array] | None = None) -> Array:
        """Of before(x), if given."""
        kernel = self.param("kernel", self.kernel_init, (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        if self.enlarge:
            return split_by_batch(convolve_enlarged, x, whole=(kernel, bias))
        return convolve(x, kernel, self.stride, self.padding, before) + bias


def conv3x3(features: int, name: str, dtype, stride: int = 1, padding=((1, 1), (1, 1)), init=None,
            enlarge: bool = False) -> Conv3x3:
    init = init or nn.initializers.lecun_normal()
    return Conv3x3(features, dtype, stride, padding, init, enlarge, name=name)


def split_by_batch(function: Callable, *arrays: Array, whole: tuple[Array, ...] = ()):
    """function(*arrays, *whole), where `arrays` are [B, ...] as its results are. On the mesh that is set
    (`parallel.on_mesh`) each device computes its part of the batch, where XLA cannot split, as Pallas' kernels (libtpu
    knows no `custom_partitioning`), or does not: to enlarge pictures it gathers all of them on every device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = [name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto]
    count = math.prod(mesh.shape[name] for name in axes)
    if count == 1:
        return function(*arrays, *whole)
    spec = PartitionSpec(tuple(axes)) if arrays[0].shape[0] % count == 0 else PartitionSpec()
    specs = (*[spec] * len(arrays), *[PartitionSpec()] * len(whole))
    split = jax.shard_map(function, in_specs=specs, out_specs=spec, axis_names=set(axes), check_vma=False)
    return split(*arrays, *whole)


def timestep_embedding(t: Array, width: int) -> Array:
    """Sinusoidal features of t: [B] -> float32 [B, width], cosines first, period up to 10,000.

    CompVis `util.py` timestep_embedding: frequencies exp(-ln(10000) i / (width / 2)).
    """
    half = width // 2
    frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class ResBlock(nn.Module):
    """norm, SiLU, conv, (+ time), norm, SiLU, conv, + shortcut. eps is 1e-5 in the UNet, 1e-6 in the VAE."""

    channels: int
    groups: int
    eps: float
    dtype: jnp.dtype
    zero_init: bool = False  # the second conv starts at zero (UNet, CompVis `zero_module`)

    @nn.compact
    def __call__(self, x: Array, time: Array | None = None, shift: Array | None = None) -> Array:
        """x: [B, H, W, C]; time: [B, T] embedding after its MLP, before SiLU; or what it adds, [B, channels]."""
        norm = GroupNorm(self.groups, self.eps, name="norm1").of(x)
        h = conv3x3(self.channels, "conv1", self.dtype)(x, lambda x: nn.silu(norm(x)))
        if time is not None:
            shift = nn.Dense(self.channels, dtype=self.dtype, name="time")(nn.silu(time).astype(x.dtype))
        if shift is not None:
            h = h + shift[:, None, None, :]
        norm = GroupNorm(self.groups, self.eps, name="norm2").of(h)
        init = nn.initializers.zeros_init() if self.zero_init else None
        h = conv3x3(self.channels, "conv2", self.dtype, init=init)(h, lambda h: nn.silu(norm(h)))
        if x.shape[-1] != self.channels:
            x = nn.Dense(self.channels, dtype=self.dtype, name="shortcut")(x)
        return x + h


def gelu(x: Array) -> Array:
    """x Phi(x), exact (arXiv 1606.08415). Half precision goes through float32 and erf, which costs half of erfc and
    leaves out digits that half precision does not have."""
    if x.dtype == jnp.float32:
        return jax.nn.gelu(x, approximate=False)
    x32 = x.astype(jnp.float32)
    return (0.5 * x32 * (1.0 + jax.lax.erf(x32 * math.sqrt(0.5)))).astype(x.dtype)


ACTIVATIONS = {
    "gelu": gelu,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}
