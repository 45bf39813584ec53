"""The class table as a Part."""

from collections.abc import Iterator

import jax.numpy as jnp

from sdjax.networks.fields import plain_fields
from sdjax.networks.labels.network import ClassConfig, ClassTable
from sdjax.networks.part import Part, example
from sdjax.networks.rows import TensorRow


def class_rows(config: ClassConfig, prefix: str = "cond_stage_model") -> Iterator[TensorRow]:
    """Yields the one row of the table."""
    yield TensorRow(("embedding",), "embedding.weight", f"{prefix}.embedding.weight", "same", "same")


CLASS_TABLE = Part(
    ClassConfig,
    ClassTable,
    lambda config: (example(1, dtype=jnp.int32),),
    class_rows,
    *plain_fields(ClassConfig, "ClassEmbedder"),
)
