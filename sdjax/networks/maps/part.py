"""The spatial rescaler as a Part."""

from collections.abc import Iterator

import jax.numpy as jnp

from sdjax.networks.fields import plain_fields
from sdjax.networks.maps.network import MapConfig, MapRescaler
from sdjax.networks.part import Part, example
from sdjax.networks.rows import TensorRow


def map_rows(config: MapConfig, prefix: str = "cond_stage_model") -> Iterator[TensorRow]:
    """Yields the one row of the rescaler."""
    names = "channel_mapper.weight", f"{prefix}.channel_mapper.weight"
    yield TensorRow(("kernel",), *names, "conv1x1", "conv1x1")


MAP_RESCALER = Part(
    MapConfig,
    MapRescaler,
    lambda config: (example(1, config.factor, config.factor, dtype=jnp.int32),),
    map_rows,
    *plain_fields(MapConfig, "SpatialRescaler"),
)
