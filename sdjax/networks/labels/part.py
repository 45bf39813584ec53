"""The class table as a Part."""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp

from sdjax.errors import SdjaxError
from sdjax.networks.labels.network import ClassConfig, ClassTable
from sdjax.networks.part import Part, example
from sdjax.networks.rows import TensorRow


def class_rows(config: ClassConfig, prefix: str = "cond_stage_model") -> Iterator[TensorRow]:
    """Yields the one row of the table."""
    yield TensorRow(("embedding",), "embedding.weight", f"{prefix}.embedding.weight", "same", "same")


def no_folder(*_: Any) -> Any:
    """SdjaxError: diffusers has no folder of class-conditional latent diffusion."""
    raise SdjaxError("a model of classes is one .safetensors file: diffusers has no folder for it")


CLASS_TABLE = Part(
    ClassConfig, ClassTable, lambda config: (example(1, dtype=jnp.int32),), class_rows, no_folder, no_folder
)
