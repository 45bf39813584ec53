"""The small layers that the networks are built from, with the constants of the original implementations.

Norms compute in float32 and return their input's dtype. They compute the variance in two passes, because E[x^2] -
E[x]^2 loses three digits at mean / std = 100. There are two exceptions. On GPUs, GroupNorm reads half precision once,
in a way that loses nothing (`by_rows`). On TPUs, bfloat16 takes a single pass, because bfloat16 itself has lost more
digits than that. GroupNorm's epsilon has no default on purpose: it differs from place to place.
"""

import contextlib
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdjax.nn.kernels.backends import LOWERED_FOR, SHAPES, by_platform, split_by_batch
from sdjax.nn.kernels.convolution import ROWS, by_bands, convolve, convolve_enlarged, is_large
from sdjax.nn.kernels.norm import by_rows, by_squares, two_pass
from sdjax.types import Array, Params


def precise(dtype):
    """Returns a context in which a float32 computation uses true float32 products: not TF32 on a GPU, not bfloat16
    passes on a TPU. It changes nothing for other dtypes."""
    return jax.default_matmul_precision("highest") if jnp.dtype(dtype) == jnp.float32 else contextlib.nullcontext()


def parameter(module: nn.Module, name: str, init: Callable, shape: tuple[int, ...]):
    """Returns the parameter `name` of `module`; `init` creates it when the module is initialised.

    Use it in place of `module.param`, which traces `init` at every application to compare shapes; this compares the
    shapes alone.
    """
    found = module.get_variable("params", name)
    fits = found is not None and all(leaf.shape == shape for leaf in jax.tree.leaves(found))
    return found if fits else module.param(name, init, shape)


def lecun_normal(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """Flax's LeCun normal initialiser. It returns zeros when only shapes are traced (`module_shapes`), because the real
    initialiser would take a third of that time."""
    return jnp.zeros(shape, dtype) if LOWERED_FOR.value == SHAPES else nn.initializers.lecun_normal()(key, shape, dtype)


class GroupNorm(nn.Module):
    """Group normalisation over [B, H, W, C] or [B, T, C] (arXiv 1803.08494), statistics in float32."""

    groups: int
    eps: float

    def __call__(self, x: Array) -> Array:
        return self.of(x.shape[-1])(x)(x)

    @nn.compact
    def of(self, channels: int) -> Callable[[Array], Callable[[Array], Array]]:
        """Creates the parameters and returns f. f(x) takes the statistics of x [B, ..., channels] and returns a
        function that normalises any rows of x with them."""
        scale = parameter(self, "scale", nn.initializers.ones_init(), (channels,)).astype(jnp.float32)
        bias = parameter(self, "bias", nn.initializers.zeros_init(), (channels,)).astype(jnp.float32)
        exact, rows, squares = (partial(way, groups=self.groups) for way in (two_pass, by_rows, by_squares))

        def normaliser(x: Array) -> Callable[[Array], Array]:
            mean, variance = by_platform(
                x.astype(jnp.float32),
                default=exact,
                cuda=exact if x.dtype == jnp.float32 else rows,
                tpu=squares if x.dtype == jnp.bfloat16 else exact,
            )
            factor = jax.lax.rsqrt(variance + self.eps)
            return lambda x: ((x.astype(jnp.float32) - mean) * factor * scale + bias).astype(x.dtype)

        return normaliser


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis, in float32. For bfloat16 on TPUs both sums are taken in one pass."""

    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: Array) -> Array:
        make = lambda key, shape: {"scale": jnp.ones(shape), "bias": jnp.zeros(shape)}
        params = parameter(self, "norm", make, x.shape[-1:])

        def normalise(x: Array, fast: bool) -> Array:
            norm = nn.LayerNorm(epsilon=self.eps, dtype=jnp.float32, use_fast_variance=fast, parent=None)
            return norm.apply({"params": params}, x).astype(x.dtype)

        exact, fast = (partial(normalise, fast=fast) for fast in (False, True))
        return by_platform(x, default=exact, tpu=fast if x.dtype == jnp.bfloat16 else exact)


CHANGES, CHANGE = "changes", "change"  # the collection of Changes, and the name of a layer's own one in it


class Change(Protocol):
    """What is added to one layer's kernel while it is trained, as a LoRA (training/lora.py). It is a pytree.

    Apply a network with {"params": ..., "changes": ...}: where the second tree has a Change under the name "change" at
    a layer's path, the layer computes with it. A network without that collection computes what it did before.
    """

    def kernel(self, kernel: Array) -> Array:
        """Returns the kernel that takes the place of the layer's own."""

    def down(self) -> Array | None:
        """Returns the kernel of a layer of the same kind with r outputs, whose output `up` takes, or None."""

    def up(self, h: Array) -> Array:
        """Returns what is added to the layer's output, [B, ..., r] -> [B, ..., features]."""


def changed(module: nn.Module, params: Params, apply: Callable, cast: Any = None) -> Callable:
    """Returns the function of a layer, x -> apply(params, x), with the module's Change if there is one.

    cast: a dtype that the parameters are cast to beforehand; None: `apply` does that.
    """
    ready = lambda params: params if cast is None else {name: leaf.astype(cast) for name, leaf in params.items()}
    change: Change | None = module.get_variable(CHANGES, CHANGE)
    if change is None:
        return partial(apply, ready(params))
    own, down = ready(params | {"kernel": change.kernel(params["kernel"])}), change.down()
    if down is None:
        return partial(apply, own)
    below = ready({"kernel": down, "bias": jnp.zeros(down.shape[-1])} if "bias" in params else {"kernel": down})

    def both(x: Array, *rest: Any, **more: Any) -> Array:
        y = apply(own, x, *rest, **more)
        return y + change.up(apply(below, x, *rest, **more)).astype(y.dtype)

    return both


class Dense(nn.Module):
    """x @ kernel + bias, computed in `dtype`.

    `of` creates the parameters and returns a plain function of x, which may be called inside lax loops; Linen modules
    may not.
    """

    features: int
    dtype: jnp.dtype
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = lecun_normal

    def __call__(self, x: Array) -> Array:
        return self.of(x.shape[-1])(x)

    @nn.compact
    def of(self, channels: int) -> Callable[[Array], Array]:
        """Creates the parameters and returns a function [..., channels] -> [..., features]."""
        params = {"kernel": parameter(self, "kernel", self.kernel_init, (channels, self.features))}
        if self.use_bias:
            params["bias"] = parameter(self, "bias", nn.initializers.zeros_init(), (self.features,))
        return changed(self, params, lambda params, x: dense(params, x, self.dtype))


def dense(params: Params, x: Array, dtype: jnp.dtype) -> Array:
    """x @ kernel + bias in `dtype`: x [..., channels] -> [..., features].

    params: {"kernel" [channels, features]}, with or without "bias" [features].
    """
    y = jnp.dot(x.astype(dtype), params["kernel"].astype(dtype))
    return y + params["bias"].astype(dtype) if "bias" in params else y


def some_at_a_time(function: Callable[[Array], Array], x: Array) -> Array:
    """Returns function(x) for a function that treats each token of x [B, T, C] alone.

    CPUs compute it chunk by chunk when x has 2^20 values or more (and T divides evenly), so that the intermediate
    results of a chunk stay in the cache.
    """
    (b, t, channels), count = x.shape, 2 ** max(0, (x.size // 2**18).bit_length() - 1)
    if count < 4 or t % count:
        return function(x)

    def loop(x: Array) -> Array:
        y = jax.lax.map(function, jnp.moveaxis(x.reshape(b, count, -1, channels), 1, 0))
        return jnp.moveaxis(y, 0, 1).reshape(x.shape)

    return by_platform(x, default=function, cpu=loop)


class Conv3x3(nn.Module):
    """3x3 convolution with torch's padding, which is explicit because XLA's SAME differs at stride 2.

    enlarge: first double each pixel along both sides (nearest-neighbour upsampling), then convolve.
    """

    features: int
    dtype: jnp.dtype
    stride: int
    padding: tuple[tuple[int, int], tuple[int, int]]
    kernel_init: nn.initializers.Initializer
    enlarge: bool

    def __call__(self, x: Array) -> Array:
        return self.of(x.shape[-1])(x)

    @nn.compact
    def of(self, channels: int) -> Callable[..., Array]:
        """Creates the parameters and returns a function that convolves x [B, H, W, channels]; see `Dense`.

        With `enlarge` the function also takes the size of its result, see `convolve_enlarged`; without it `before` (it
        convolves before(x)) and padding (by default its own).
        """
        kernel = parameter(self, "kernel", self.kernel_init, (3, 3, channels, self.features))
        bias = parameter(self, "bias", nn.initializers.zeros_init(), (self.features,))
        dtype, stride, own = self.dtype, self.stride, self.padding

        def enlarged(params: Params, x: Array, size: tuple[int, int] | None = None) -> Array:
            whole = params["kernel"], params["bias"]
            return split_by_batch(partial(convolve_enlarged, size=size), x.astype(dtype), whole=whole)

        def convolved(params: Params, x: Array, before: Callable | None = None, padding: Any = own) -> Array:
            return convolve(x.astype(dtype), params["kernel"], params["bias"], stride, padding, before)

        return changed(self, {"kernel": kernel, "bias": bias}, enlarged if self.enlarge else convolved, cast=dtype)


def conv3x3(
    features: int, name: str, dtype, stride: int = 1, padding=((1, 1), (1, 1)), init=None, enlarge: bool = False
) -> Conv3x3:
    """Returns a Conv3x3 with its usual settings: stride 1, one row or column of padding on every side, and a LeCun
    normal kernel."""
    return Conv3x3(features, dtype, stride, padding, init or lecun_normal, enlarge, name=name)


def timestep_embedding(t: Array, width: int) -> Array:
    """Returns sinusoidal features of t: [B] -> float32 [B, width], cosines first. `width` is even.

    The frequencies are exp(-ln(10000) i / (width / 2)), as in CompVis `util.py` timestep_embedding.
    """
    half = width // 2
    frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class ResBlock(nn.Module):
    """Residual block: norm, SiLU, conv, (+ time), norm, SiLU, conv, + shortcut. eps is 1e-5 in the UNet, 1e-6 in the
    VAE."""

    channels: int
    groups: int
    eps: float
    dtype: jnp.dtype
    zero_init: bool = False  # the second conv starts at zero (UNet, CompVis `zero_module`)
    scale_shift: bool = False  # the time scales and shifts the second norm, it is not added before it
    resize: str | None = None  # "up": nearest, twice the sides; "down": means of 2 x 2 pixels; of h and of x alike

    @nn.compact
    def __call__(self, x: Array, time: Array | None = None, shift: Array | None = None) -> Array:
        """x [B, H, W, C] -> [B, H, W, channels].

        time: the time embedding [B, T] after its MLP and before SiLU; None in the VAE.
        shift: what the time adds after the first conv, [B, channels], or with `scale_shift` the scale and the shift,
            [B, 2 channels]. Pass it instead of `time` when it is already computed (`time_shifts`).
        """
        before, channels = x.shape[-1], self.channels
        init = nn.initializers.zeros_init() if self.zero_init else None
        norm1 = GroupNorm(self.groups, self.eps, name="norm1").of(before)
        norm2 = GroupNorm(self.groups, self.eps, name="norm2").of(channels)
        conv1 = conv3x3(channels, "conv1", self.dtype).of(before)
        conv2 = conv3x3(channels, "conv2", self.dtype, init=init).of(channels)
        shortcut = Dense(channels, self.dtype, name="shortcut").of(before) if before != channels else lambda x: x
        if time is not None:
            width = 2 * channels if self.scale_shift else channels
            shift = Dense(width, self.dtype, name="time")(nn.silu(time).astype(x.dtype))
        shifted = lambda h: h if shift is None or self.scale_shift else h + shift[:, None, None, :]

        def activation(norm: Callable, x: Array) -> Callable[[Array], Array]:
            normalise = norm(x)
            return lambda x: nn.silu(normalise(x))

        def modulated(norm: Callable, x: Array) -> Callable[[Array], Array]:
            normalise, (scale, offset) = norm(x), jnp.split(shift[:, None, None, :], 2, axis=-1)
            return lambda x: nn.silu(normalise(x) * (1 + scale) + offset)

        def block(x: Array) -> Array:
            active = activation(norm1, x)
            h = conv1(x, active) if self.resize is None else conv1(resized(active(x), self.resize))
            h = shifted(h)
            h = conv2(h, (modulated if self.scale_shift else activation)(norm2, h))
            return shortcut(x if self.resize is None else resized(x, self.resize)) + h

        def in_place(x: Array) -> Array:
            """Computes `block` band by band and writes h and the shortcut over x. It saves a quarter of the memory and
            takes a twentieth more time."""
            first = lambda active, x: jnp.concatenate([shifted(conv1(active, padding=ROWS)), shortcut(x)], -1)
            both = by_bands(x, activation(norm1, x), first, in_place=True)
            active = activation(norm2, both[..., :channels])
            second = lambda active, both: both[..., channels:] + conv2(active, padding=ROWS)
            return by_bands(both, lambda both: active(both[..., :channels]), second)

        plain = self.resize is None and not self.scale_shift
        large = plain and before == 2 * channels and is_large(x, 2**26)
        return by_platform(x, default=block, cpu=in_place if large else block)


def resized(x: Array, direction: str) -> Array:
    """Returns x [B, H, W, C] with sides of twice the length ("up", nearest) or half of it ("down", means)."""
    if direction == "up":
        return x.repeat(2, axis=1).repeat(2, axis=2)
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


def gelu(x: Array) -> Array:
    """The exact GELU, x Phi(x) (arXiv 1606.08415).

    Half precision is computed in float32 with erf. That costs half as much as erfc and loses only digits that half
    precision does not have.
    """
    if x.dtype == jnp.float32:
        return jax.nn.gelu(x, approximate=False)
    x32 = x.astype(jnp.float32)
    return (0.5 * x32 * (1.0 + jax.lax.erf(x32 * math.sqrt(0.5)))).astype(x.dtype)


ACTIVATIONS = {
    "gelu": gelu,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}
