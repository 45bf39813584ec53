"""The kinds of LoRA, each a formula for the change of one layer: LoRA, LoCon, LoHa, LoKr, DoRA, and whole differences.

W is the layer's weight as files hold it, [out, in] or [out, in, k, k]; r is the rank, and scale = alpha / r.

    LoRA, LoCon   D = scale up down, with lora_mid scale einsum(mnkl,im,nj->ijkl; mid, up, down)   kohya lora.py
    LoHa          D = scale (w1_a w1_b) * (w2_a w2_b), each with a t einsum(pqkl,pi,qj->ijkl)      arXiv 2108.06098
    LoKr          D = scale kron(w1, w2); both are whole or products, where both are whole scale is 1   LyCORIS lokr.py
    DoRA          D = m (W + D') / norm(W + D') - W, where D' is one of the above                  arXiv 2402.09353
    whole         D = diff                                                                         LyCORIS full.py

A weight w multiplies D, also of DoRA, so that w = 0 is no change: the web UI and ComfyUI do so, where peft and LyCORIS
multiply D' inside of the norm. The norm of DoRA is over each output's weights if m is [out, 1, ...], as peft and
LyCORIS from 3.2 write it, and over each input's if m is [1, in, ...], as LyCORIS wrote it before.
"""

from collections.abc import Callable, Mapping
from math import prod, sqrt
from typing import Any, NamedTuple

import numpy as np

from sdjax.adapters.lora_names import Layer
from sdjax.errors import SdjaxError
from sdjax.networks.rows import TensorRow

Factors = Mapping[str, np.ndarray]
Sides = tuple[int, int]  # [out, in k k]


class Alpha(NamedTuple):
    """What a file's metadata, or peft's adapter_config.json, say of the scale of a layer."""

    alpha: float
    root: bool = False  # rsLoRA (arXiv 2312.03732): divide by sqrt(r)
    rank: float | None = None  # that LoKr of whole factors is divided by, of peft alone


class Change(NamedTuple):
    """What a file changes in one layer."""

    layer: Layer
    factors: Factors  # float32, by the names in lora_names.FACTORS
    names: Mapping[str, str]  # the factors' names in the file
    alpha: Alpha | None = None

    def rows(self) -> list[tuple[str, TensorRow]]:
        """Returns ("weight" or "bias", its row) of what it changes."""
        biases = any(name in self.factors for name in (*BIASES, "up_bias"))
        rows = [("bias", self.layer.bias)] if biases else []
        return rows if kind_of(self.factors) is None else [("weight", self.layer.weight), *rows]


class Kind(NamedTuple):
    """A kind of change: which factors it has, and what they are multiplied to."""

    needs: tuple[str, ...]  # one of the factors of each group, which "|" joins and "+" joins to one
    product: Callable[[Factors], np.ndarray]  # factors -> [out, in k k] without the scale
    shape: Callable[[Factors], Sides]  # the shape of that, without computing it; ValueError: they do not go together
    rank: Callable[[Factors], int | None]  # r; None: the scale is 1


def matrix(value: np.ndarray) -> np.ndarray:
    """[a, b, ...] -> [a, b ...]."""
    return value.reshape(len(value), -1)


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return matrix(a) @ matrix(b)


def tucker(core: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Core [p, q, ...], a [p, out], b [q, in] -> [out, in ...].

    It is written with methods of arrays alone, as all products are: training gives them JAX' arrays.
    """
    a, b, (p, q) = matrix(a), matrix(b), core.shape[:2]
    half = (a.T @ core.reshape(p, -1)).reshape(a.shape[1], q, -1)
    whole = half.swapaxes(1, 2).reshape(-1, q) @ b  # [out ..., in]
    return matrix(whole.reshape(a.shape[1], -1, b.shape[1]).swapaxes(1, 2))


def product_shape(a: np.ndarray, b: np.ndarray) -> Sides:
    (out, p), (q, wide) = matrix(a).shape, matrix(b).shape
    if p != q:
        raise ValueError
    return out, wide


def tucker_shape(core: np.ndarray, a: np.ndarray, b: np.ndarray) -> Sides:
    (p, out), (q, wide) = matrix(a).shape, matrix(b).shape
    if core.shape[:2] != (p, q):
        raise ValueError
    return out, wide * prod(core.shape[2:])


def lora_shape(f: Factors) -> Sides:
    if "mid" in f:
        return tucker_shape(f["mid"], matrix(f["up"]).T, matrix(f["down"]))
    return product_shape(f["up"], f["down"])


def loha_shape(f: Factors) -> Sides:
    halves = []
    for i in (1, 2):
        a, b, core = f[f"hada_w{i}_a"], f[f"hada_w{i}_b"], f.get(f"hada_t{i}")
        halves.append(product_shape(a, b) if core is None else tucker_shape(core, a, b))
    if halves[0] != halves[1]:
        raise ValueError
    return halves[0]


def lokr_shape(f: Factors) -> Sides:
    one = matrix(f["lokr_w1"]).shape if "lokr_w1" in f else product_shape(f["lokr_w1_a"], f["lokr_w1_b"])
    if "lokr_w2" in f:
        two = matrix(f["lokr_w2"]).shape
    elif "lokr_t2" in f:
        two = tucker_shape(f["lokr_t2"], f["lokr_w2_a"], f["lokr_w2_b"])
    else:
        two = product_shape(f["lokr_w2_a"], f["lokr_w2_b"])
    return one[0] * two[0], one[1] * two[1]


def lora(f: Factors) -> np.ndarray:
    if "mid" in f:
        return tucker(f["mid"], matrix(f["up"]).T, matrix(f["down"]))
    return product(f["up"], f["down"])


def loha(f: Factors) -> np.ndarray:
    halves = []
    for i in (1, 2):
        a, b, core = f[f"hada_w{i}_a"], f[f"hada_w{i}_b"], f.get(f"hada_t{i}")
        halves.append(product(a, b) if core is None else tucker(core, a, b))
    return halves[0] * halves[1]


def lokr(f: Factors) -> np.ndarray:
    one = matrix(f["lokr_w1"]) if "lokr_w1" in f else product(f["lokr_w1_a"], f["lokr_w1_b"])
    if "lokr_w2" in f:
        two = matrix(f["lokr_w2"])
    elif "lokr_t2" in f:
        two = tucker(f["lokr_t2"], f["lokr_w2_a"], f["lokr_w2_b"])
    else:
        two = product(f["lokr_w2_a"], f["lokr_w2_b"])
    found = one[:, None, :, None] * two[None, :, None, :]
    return found.reshape(len(one) * len(two), -1)


def rank_of_lokr(f: Factors) -> int | None:
    return next((len(f[name]) for name in ("lokr_w1_b", "lokr_w2_b") if name in f), None)


def whole(name: str) -> Kind:
    """Returns the kind of a difference that a file holds as it is."""
    return Kind((name,), lambda f: matrix(f[name]), lambda f: matrix(f[name]).shape, lambda f: None)


#: By the beginning of their factors' names.
KINDS = {
    "hada": Kind(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), loha, loha_shape, lambda f: len(f["hada_w1_b"])),
    "lokr": Kind(("lokr_w1|lokr_w1_a+lokr_w1_b", "lokr_w2|lokr_w2_a+lokr_w2_b"), lokr, lokr_shape, rank_of_lokr),
    "diff": whole("diff"),
    "w_norm": whole("w_norm"),
    "down": Kind(("down", "up"), lora, lora_shape, lambda f: len(f["down"])),
}

EPSILON = 1.2e-7  # DoRA's norms are at least this, as LyCORIS has it

#: Factors that say something of a change of the weight, and those that are one of the bias.
BESIDE, BIASES = ("alpha", "dora_scale", "magnitude", "up_bias"), ("diff_b", "b_norm")


def kind_of(factors: Factors) -> Kind | None:
    """Returns the kind of a change of a layer's weight, or None if only its bias is changed. SdjaxError: there are
    factors of several kinds, or some of a kind's are missing."""
    own = [name for name in factors if name not in (*BESIDE, *BIASES)]
    start = lambda name: "down" if name in ("up", "mid") else next(kind for kind in KINDS if name.startswith(kind))
    found = {start(name) for name in own}
    if len(found) > 1:
        raise SdjaxError(f"has {' and '.join(sorted(own))}, which are of several kinds")
    if not found:
        if unused := [name for name in BESIDE if name in factors]:
            raise SdjaxError(f"has {' and '.join(unused)} alone")
        return None
    kind = KINDS[found.pop()]
    for group in kind.needs:
        if not any(all(name in factors for name in choice.split("+")) for choice in group.split("|")):
            wanted = " or ".join(" and ".join(choice.split("+")) for choice in group.split("|"))
            raise SdjaxError(f"has {' and '.join(sorted(own))}, and no {wanted}")
    return kind


def scale_of(change: Change, kind: Kind) -> float:
    """Returns what the product of the factors is multiplied by: alpha / r. Without an alpha, or with 0, it is 1."""
    rank, alpha = kind.rank(change.factors), change.alpha
    if rank is None:
        of_peft = alpha is not None and alpha.rank and "lokr_w1" in change.factors
        return alpha.alpha / alpha.rank if of_peft else 1.0
    if own := float(change.factors["alpha"].reshape(-1)[0]) if "alpha" in change.factors else 0.0:
        return own / rank
    if alpha is None or not alpha.alpha:
        return 1.0
    return alpha.alpha / (sqrt(rank) if alpha.root else rank)


def check_change(change: Change, shapes: Mapping[str, tuple[int, ...] | None]) -> None:
    """SdjaxError, without the names of the file and of the layer, if a change is incomplete or has a wrong shape.

    shapes: of the layer's "weight" and "bias", as files hold them; None: it has none.
    """
    factors = change.factors
    for name, value in factors.items():
        if not value.size or not np.isfinite(value).all():
            raise SdjaxError(f"{name} is empty or has NaN or infinite values")
        if name == "alpha" and value.size != 1:
            raise SdjaxError(f"alpha has shape {list(value.shape)}, should be one number")
    weight, bias = shapes.get("weight"), shapes.get("bias")
    for name in (*BIASES, "up_bias"):
        if name in factors and (bias is None or factors[name].size != prod(bias)):
            wanted = f"should be {list(bias)}" if bias else "the layer has no bias"
            raise SdjaxError(f"{name} has shape {list(factors[name].shape)}, {wanted}")
    kind = kind_of(factors)
    if kind is None:
        return
    if weight is None:
        raise SdjaxError("changes a weight, which the layer has not")
    try:
        found = kind.shape(factors)
    except (ValueError, IndexError, TypeError):
        shown = ", ".join(f"{name} {list(value.shape)}" for name, value in sorted(factors.items()))
        raise SdjaxError(f"has factors that do not go together: {shown}") from None
    if found != (want := (weight[0], prod(weight[1:]))):
        raise SdjaxError(f"has shape {list(found)}, should be {list(want)}")
    if (m := norms_of(factors)) is not None and m.shape not in (
        sides := [(want[0], 1), (1, weight[1] if weight[1:] else 1)]
    ):
        raise SdjaxError(f"has magnitudes of shape {list(m.shape)}, should be {list(sides[0])} or {list(sides[1])}")


def norms_of(factors: Factors) -> np.ndarray | None:
    """Returns DoRA's magnitudes, [out, 1] or [1, in], or None of another kind."""
    if "magnitude" in factors:  # peft's are per output, [out], of a convolution [1, out, 1, 1]
        return factors["magnitude"].reshape(-1, 1)
    if (m := factors.get("dora_scale")) is None:
        return None
    return m.reshape(-1, 1) if m.ndim == 1 else m.reshape(m.shape[:2]) if m.size == prod(m.shape[:2]) else m


def difference(
    change: Change, base: np.ndarray, shape: tuple[int, ...], to_ours: Callable[[Any], Any], weight: float = 1.0
) -> np.ndarray:
    """Returns weight D of a layer's weight as a new float32 array of our layout, which base has.

    base: the layer's own weight, float32; its last axis is the outputs, and the one before it the inputs.
    shape: of the weight in files. to_ours: brings an array of that shape to our layout.
    """
    factors, kind, m = change.factors, kind_of(change.factors), norms_of(change.factors)
    scale, found = np.float32(scale_of(change, kind) * (weight if m is None else 1)), aligned(base.shape)
    if kind is KINDS["down"] and "mid" not in factors:  # ours of `down`, times `up`: no large array is transposed
        down = to_ours(factors["down"].reshape(-1, *shape[1:]))
        up = np.ascontiguousarray(matrix(factors["up"]).T) * scale
        multiply(down.reshape(-1, len(up)), up, found.reshape(-1, up.shape[1]))
    else:
        found[...] = to_ours((kind.product(factors) * scale).reshape(shape))
    if m is None:
        return found
    found += base
    per_output = m.shape[1] == 1 and len(m) == shape[0]
    place = found.ndim - (1 if per_output else 2)
    axes = tuple(axis for axis in range(found.ndim) if axis != place)
    norm = np.sqrt(np.sum(np.square(found), axis=axes, dtype=np.float64))
    factor = (m.reshape(-1) / np.maximum(norm, EPSILON)).astype(np.float32)
    found *= factor if per_output else factor[:, None]
    found -= base
    found *= np.float32(weight)
    return found


#: m n r of the largest product that OpenBLAS computes on one thread (its interface/gemm.c), and columns at a time. Its
#: threads wait for each other longer than these thin products take: 15 ms in place of 0.06 for [320, 32] [32, 320].
ALONE, COLUMNS = 2**18, 1024


def multiply(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    """Computes a [m, r] b [r, n] into out [m, n], piece by piece on this thread alone."""
    for first in range(0, b.shape[1], COLUMNS):
        columns = slice(first, first + COLUMNS)
        part, place = np.ascontiguousarray(b[:, columns]), out[:, columns]
        rows = max(1, ALONE // part.size)
        whole = len(a) // rows * rows
        np.matmul(a[:whole].reshape(-1, rows, a.shape[1]), part, out=place[:whole].reshape(-1, rows, part.shape[1]))
        np.matmul(a[whole:], part, out=place[whole:])


def aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Returns a new float32 array whose place in memory lets JAX take it over on CPUs without a copy."""
    size = prod(shape)
    buffer = np.empty(size + 15, np.float32)
    start = -buffer.ctypes.data % 64 // 4
    return buffer[start : start + size].reshape(shape)


def bias_difference(change: Change) -> np.ndarray | None:
    """Returns D of a layer's bias, float32 [out], or None if the change has none."""
    own = [change.factors[name].reshape(-1) for name in BIASES if name in change.factors]
    if "up_bias" in change.factors:
        own.append(change.factors["up_bias"].reshape(-1) * np.float32(scale_of(change, kind_of(change.factors))))
    return sum(own) if own else None
