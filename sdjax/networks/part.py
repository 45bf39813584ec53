"""What a network is to the others: a row of five functions. A new network is a folder with a `part.py`."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sdjax.networks.rows import Row
from sdjax.nn.kernels.backends import LOWERED_FOR, SHAPES
from sdjax.types import Params


class Part(NamedTuple):
    """All that the other rooms know of a network."""

    config: type  # its frozen dataclass
    network: Callable[..., Any]  # (config, dtype=float32) -> Linen module
    inputs: Callable[[Any], tuple[jax.ShapeDtypeStruct, ...]]  # config -> one example of each argument, as shapes
    rows: Callable[..., Iterator[Row]]  # (config, prefix of single files) -> every tensor under all its names
    read: Callable[..., Any]  # (Fields of a config.json, the tokenizer's folder) -> config
    write: Callable[[Any], dict[str, Any]]  # config -> the content of config.json


def module_shapes(module: Any, *inputs: jax.ShapeDtypeStruct) -> Params:
    """The parameters of `module` as jax.ShapeDtypeStructs; nothing is computed."""
    with LOWERED_FOR(SHAPES):
        return jax.eval_shape(lambda *inputs: module.init(jax.random.key(0), *inputs), *inputs)["params"]


def example(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    """An argument of a network, as a shape."""
    return jax.ShapeDtypeStruct(shape, dtype)
