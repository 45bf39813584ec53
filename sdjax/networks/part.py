"""What the rest of the package knows of a network: its config class and five functions, a Part.

A new network is a folder with a `part.py`, and a row in table.py.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sdjax.networks.rows import TensorRow
from sdjax.nn.kernels.backends import LOWERED_FOR, SHAPES
from sdjax.types import Params


class Part(NamedTuple):
    """Everything that other packages need from a network."""

    config: type  # the frozen dataclass of its configuration
    network: Callable[..., Any]  # (config, dtype=float32) -> Linen module
    inputs: Callable[[Any], tuple[jax.ShapeDtypeStruct, ...]]  # config -> one example of each argument, as shapes
    rows: Callable[..., Iterator[TensorRow]]  # (config, prefix of names in single files) -> a row for each tensor
    read: Callable[..., Any]  # (Fields of a config.json, the tokenizer's folder) -> config
    write: Callable[[Any], dict[str, Any]]  # config -> the content of config.json
    own: tuple[str, ...] = ("",)  # how its tensors' names begin in a diffusers folder; others there are not its own
    own_in_single: tuple[str, ...] = ("",)  # the same behind its prefix in a single file


def module_shapes(module: Any, *inputs: jax.ShapeDtypeStruct) -> Params:
    """Returns the parameter tree of `module` as jax.ShapeDtypeStructs. Nothing is computed."""
    with LOWERED_FOR(SHAPES):
        return jax.eval_shape(lambda *inputs: module.init(jax.random.key(0), *inputs), *inputs)["params"]


def example(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    """Returns an example of an argument of a network, as a shape."""
    return jax.ShapeDtypeStruct(shape, dtype)
