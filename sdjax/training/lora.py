"""LoRA and its relatives in training: small factors beside chosen layers, which are trained while the model stays.

The factors have the names, the shapes and the formulas of files (adapters/lora_kinds.py). A tree of them is
{part: {the layer's path in diffusers: {factor: array}}}, float32. In the loss every layer gets a `Trained`, by which it
computes (nn/layers.py): plain LoRA as a second, narrow path beside the layer, up(dropout(down(x))) alpha / r, so that
neither the large weight's change nor its gradient is ever made; the other kinds as a changed weight.
"""

import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import isqrt, prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sdjax.adapters.lora_files import file_shape
from sdjax.adapters.lora_kinds import EPSILON, kind_of, matrix
from sdjax.adapters.lora_names import Layer, layers_of
from sdjax.errors import SdjaxError
from sdjax.families.config import Config
from sdjax.families.table import family_of
from sdjax.nn.layers import CHANGE, precise
from sdjax.types import Array, Cond, Params
from sdjax.weights.convert import operation_of

KINDS = ("lora", "locon", "loha", "lokr", "dora")

#: What is trained -> the layers, by the ends and the middles of their paths in diffusers. "linear" are the layers that
#: kohya's trainer takes, and "all" those that it takes with conv_dim.
TARGETS = {
    "attention": r".+\.(to_[qkv]|to_out\.0|[qkv]_proj|out_proj)",
    "linear": r".+\.attentions\..+|.+\.([qkv]_proj|out_proj|fc1|fc2)",
    "all": r".+\.(attentions|resnets|downsamplers|upsamplers)\..+|.+\.([qkv]_proj|out_proj|fc1|fc2)",
}


class Site(NamedTuple):
    """A layer that is trained."""

    layer: Layer
    shape: tuple[int, ...]  # of its weight in files: [out, in] or [out, in, k, k]
    alpha: float  # the factors' product is multiplied by alpha / r
    single: str | None  # the layer's path in single files of the UNet

    @property
    def number(self) -> int:
        """A number of its own, for random draws; it depends on the layer's name alone."""
        return zlib.crc32(f"{self.layer.part} {self.layer.name}".encode()) & 0x7FFFFFFF


Factors = Mapping[str, Any]  # factor -> array, of one layer
Tree = Mapping[str, Mapping[str, Factors]]  # part -> layer's path -> Factors


def all_sites(config: Config, alpha: float, parts: tuple[str, ...]) -> Iterator[Site]:
    """Yields every layer with a weight of some parts of a model."""
    for part in parts:
        for layer, single in layers_of(part, family_of(config).parts[part], config):
            row = layer.weight
            if row is not None and row.path[-1] == "kernel":
                yield Site(layer, file_shape(config, part, row), float(alpha), single)


def chosen_sites(config: Config, targets: str, alpha: float, parts: tuple[str, ...]) -> list[Site]:
    """Returns the layers that `targets` means. SdjaxError: the model has none of them."""
    found = [site for site in all_sites(config, alpha, parts) if re.fullmatch(TARGETS[targets], site.layer.name)]
    if lacking := [part for part in parts if part not in {site.layer.part for site in found}]:
        raise SdjaxError(f"targets {targets}: the {lacking[0]} of {config.name} has no such layers")
    return found


def text_parts(config: Config) -> tuple[str, ...]:
    """Returns the names of a model's text towers."""
    return tuple(tower.part for tower in family_of(config).towers if tower.part.startswith("text"))


# ---- the factors at the beginning


def initial_factors(kind: str, site: Site, rank: int, seed: int, weight: Any) -> dict[str, np.ndarray]:
    """Returns the random factors of a layer, whose product is 0, as kohya and LyCORIS begin.

    weight: the layer's own, in our layout; DoRA's magnitudes are its norms.
    """
    rng, (out, wide, *k) = np.random.default_rng((seed, site.number)), site.shape
    ones, area = [1] * len(k), prod(k)
    normal = lambda spread, *sides: (spread * rng.standard_normal(sides)).astype(np.float32)
    zeros = lambda *sides: np.zeros(sides, np.float32)

    def even(*sides: int) -> np.ndarray:  # torch's kaiming_uniform with a = sqrt(5)
        return rng.uniform(-1, 1, sides).astype(np.float32) / np.float32(np.sqrt(prod(sides[1:])))

    if kind == "loha":
        first = {"hada_w1_a": normal(0.1, out, rank), "hada_w1_b": normal(1, rank, wide * area)}
        return first | {"hada_w2_a": zeros(out, rank), "hada_w2_b": normal(1, rank, wide * area)}
    if kind == "lokr":
        (a, b), (c, d) = split(out), split(wide)
        low = rank < min(b, d * area)
        two = {"lokr_w2_a": even(b, rank), "lokr_w2_b": zeros(rank, d * area)}
        return {"lokr_w1": even(a, c)} | (two if low else {"lokr_w2": zeros(b, d, *k)})
    if kind == "locon" and area > 1:
        return {"mid": even(rank, rank, *k), "down": even(rank, wide, *ones), "up": zeros(out, rank, *ones)}
    found = {"down": even(rank, wide, *k), "up": zeros(out, rank, *ones)}
    if kind == "dora":
        norms = np.sqrt(np.square(np.asarray(weight, np.float64)).sum(tuple(range(np.ndim(weight) - 1))))
        found["dora_scale"] = norms.astype(np.float32).reshape(out, 1, *ones)
    return found


def split(side: int) -> tuple[int, int]:
    """Returns the two factors of a number that are nearest to each other, the smaller one first (LyCORIS)."""
    small = next(n for n in range(isqrt(side), 0, -1) if side % n == 0)
    return small, side // small


def initial_tree(kind: str, sites: list[Site], rank: int, seed: int, params: Params) -> Params:
    """Returns the factors of all layers. params: the model's."""
    tree: Params = {}
    own = {part: flatten_dict(params[part]) for part in {site.layer.part for site in sites}}
    for site in sites:
        weight = own[site.layer.part][site.layer.weight.path] if kind == "dora" else None
        tree.setdefault(site.layer.part, {})[site.layer.name] = initial_factors(kind, site, rank, seed, weight)
    return tree


# ---- the factors in the loss


@partial(jax.tree_util.register_dataclass, data_fields=["factors", "keys"], meta_fields=["site", "dropout"])
@dataclass(frozen=True)
class Trained:
    """A layer's factors as its Change, see sdjax.nn.layers.Change."""

    factors: Factors
    keys: Array | None  # of the examples, [B]: with them neurons behind `down` are dropped
    site: Site
    dropout: float = 0.0

    @property
    def scale(self) -> float:
        rank = kind_of(self.factors).rank(self.factors)
        return 1.0 if rank is None else self.site.alpha / rank

    @property
    def beside(self) -> bool:
        """Is it a narrow path beside the layer?"""
        return "down" in self.factors and "dora_scale" not in self.factors

    def kernel(self, kernel: Array) -> Array:
        if self.beside:
            return kernel
        to_ours = operation_of(self.site.layer.weight.operation)[0]
        with precise(jnp.float32):
            change = to_ours((kind_of(self.factors).product(self.factors) * self.scale).reshape(self.site.shape))
        found = kernel.astype(jnp.float32) + change
        if "dora_scale" not in self.factors:
            return found
        norm = jnp.sqrt(jnp.square(found).sum(tuple(range(found.ndim - 1))))
        norm = jax.lax.stop_gradient(jnp.maximum(norm, EPSILON))  # a constant of the gradient: arXiv 2402.09353, 4.3
        return found * (self.factors["dora_scale"].reshape(-1) / norm)

    def down(self) -> Array | None:
        if not self.beside:
            return None
        to_ours = operation_of(self.site.layer.weight.operation)[0]
        return to_ours(whole_down(self.factors).reshape(-1, *self.site.shape[1:]))

    def up(self, h: Array) -> Array:
        if self.keys is not None:
            kept = 1 - self.dropout
            draw = lambda key: jax.random.bernoulli(jax.random.fold_in(key, self.site.number), kept, h.shape[1:])
            h = jnp.where(jax.vmap(draw)(self.keys), h / kept, 0).astype(h.dtype)
        return h @ (matrix(self.factors["up"]).T * self.scale).astype(h.dtype)


def whole_down(factors: Factors) -> Any:
    """Returns LoRA's down [r, in, ...], with LoCon's middle multiplied in: it is over the rank alone, so that the two
    are a LoRA of the same rank."""
    if "mid" not in factors:
        return factors["down"]
    r, inner, *k = factors["mid"].shape
    core = factors["mid"].reshape(r, inner, -1).swapaxes(1, 2).reshape(-1, inner)
    found = (core @ matrix(factors["down"])).reshape(r, -1, factors["down"].shape[1])
    return found.swapaxes(1, 2).reshape(r, -1, *k)


def changes(sites: list[Site], tree: Tree, part: str, keys: Array | None = None, dropout: float = 0.0) -> Params:
    """Returns the collection "changes" of one network, by the paths of its layers.

    keys: of the examples; None: nothing is dropped.
    """
    found = {}
    for site in sites:
        if site.layer.part == part:
            own = Trained(tree[part][site.layer.name], keys, site, dropout)
            found[(*site.layer.weight.path[:-1], CHANGE)] = own
    return unflatten_dict(found)


def with_changes(unet: Any, variables: Params, x: Array, t: Array, cond: Cond, batch: Any) -> Array:
    """The Forward of a LoRA's loss (training/diffusion.py). variables: {"params": ..., "changes": ...}."""
    return unet.apply(variables, x, t, cond.context, cond.vector)


# ---- as LoRA alone


def as_lora(factors: Factors, shape: tuple[int, ...], scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns (down [R, in, ...], up [out, R, ...]) of a LoRA of scale 1 that is the same change, without a magnitude.

    Its rank R is r; of LoHa r^2, since a product of sums is the sum of all products; of LoKr that of both its factors
    together, since kron(A B, C D) = kron(A, C) kron(B, D).
    """
    f = {name: np.asarray(value, np.float32) for name, value in factors.items()}
    out, _, *k = shape
    if "down" in f:
        down, up = whole_down(f), matrix(f["up"])
    elif "hada_w1_a" in f:
        pairs = lambda a, b: (a[:, :, None] * b[:, None, :]).reshape(len(a), -1)
        up = pairs(f["hada_w1_a"], f["hada_w2_a"])
        down = pairs(matrix(f["hada_w1_b"]).T, matrix(f["hada_w2_b"]).T).T
    else:
        two = matrix(f["lokr_w2"]) if "lokr_w2" in f else None
        c, d = (np.eye(two.shape[0], dtype=np.float32), two) if two is not None else (f["lokr_w2_a"], f["lokr_w2_b"])
        up, down = np.kron(f["lokr_w1"], c), np.kron(np.eye(f["lokr_w1"].shape[1], dtype=np.float32), matrix(d))
    return down.reshape(-1, *shape[1:]), (up * np.float32(scale)).reshape(out, -1, *[1] * len(k))
