"""Semantic maps -> Cond: ids of classes as channels beside the latents."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from sdjax.checks import as_array, check_model
from sdjax.errors import SdjaxError
from sdjax.model.value import StableDiffusion
from sdjax.networks.maps.network import MapConfig, MapRescaler
from sdjax.types import Array, Cond, Params


def encode_map(sd: StableDiffusion, maps: Any) -> Cond:
    """Returns the Cond of B semantic maps, with concat float32 [B, h, w, C]. Pictures get the maps' size.

    maps: ids of classes, int [B, H, W], or [H, W] for one. The sides are multiples of sd.config.unit.
    SdjaxError: a model that takes no maps, an id out of range, a shape that does not fit.
    """
    check_model(sd)
    config = sd.config.map
    if config is None:
        raise SdjaxError(f"maps: {sd.config.name} takes none")
    ids = as_array("maps", maps)
    ids = ids[None] if ids.ndim == 2 else ids
    unit = sd.config.unit
    if ids.ndim != 3 or 0 in ids.shape or ids.shape[1] % unit or ids.shape[2] % unit:
        raise SdjaxError(f"maps of shape {list(ids.shape)}: [B, H, W] expected, sides multiples of {unit}")
    if ids.dtype.kind not in "iu":
        raise SdjaxError(f"maps are {ids.dtype}: whole numbers expected, the ids of classes")
    for value in (ids.min(), ids.max()):
        if not 0 <= value < config.classes:
            raise SdjaxError(f"maps: id {value}, 0 to {config.classes - 1} expected for {sd.config.name}")
    return Cond(concat=map_channels(sd.params["map"], jnp.asarray(ids, jnp.int32), config))


@partial(jax.jit, static_argnames="config")
def map_channels(params: Params, ids: Array, config: MapConfig) -> Array:
    """The rescaler's parameters, int32 ids [B, H, W] -> float32 channels [B, h, w, C]."""
    return MapRescaler(config).apply({"params": params}, ids)
