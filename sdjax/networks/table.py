"""The table of all networks, by the type of their config."""

from functools import lru_cache
from typing import Any

import jax.numpy as jnp

from sdjax.networks.bert.part import BERT_TEXT, LAYOUT_TOWER
from sdjax.networks.clip.part import CLIP_TEXT, CLIP_VISION, NORMALIZER
from sdjax.networks.control.part import CONTROLNET
from sdjax.networks.image_prompt.part import IMAGE_PROMPT
from sdjax.networks.labels.part import CLASS_TABLE
from sdjax.networks.maps.part import MAP_RESCALER
from sdjax.networks.part import Part, module_shapes
from sdjax.networks.rows import TensorRow
from sdjax.networks.t2i.part import T2I_ADAPTER
from sdjax.networks.unet.part import UNET
from sdjax.networks.vae.part import KL_VAE
from sdjax.types import Array, Params

NETWORKS = (
    *(CLIP_TEXT, CLIP_VISION, NORMALIZER, KL_VAE, UNET, CLASS_TABLE, BERT_TEXT, LAYOUT_TOWER, MAP_RESCALER),
    *(CONTROLNET, T2I_ADAPTER, IMAGE_PROMPT),
)
PARTS: dict[type, Part] = {part.config: part for part in NETWORKS}


def make_rows(config: Any, **prefix: str) -> list[TensorRow]:
    """Returns the rows of all tensors of the network that `config` describes.

    prefix: prefix="..." of the tensors' names in single files; without it, the network's usual one.
    """
    return list(PARTS[type(config)].rows(config, **prefix))


@lru_cache(maxsize=32)
def param_shapes(config: Any) -> Params:
    """Returns the network's parameter tree as jax.ShapeDtypeStructs. Nothing is computed. The result is cached, so do
    not modify it."""
    part = PARTS[type(config)]
    return module_shapes(part.network(config), *part.inputs(config))


def random_params(config: Any, key: Array) -> Params:
    """Returns random parameters of the network that `config` describes, from its layers' own initialisers. It can be
    traced."""
    part = PARTS[type(config)]
    inputs = (shape and jnp.zeros(shape.shape, shape.dtype) for shape in part.inputs(config))
    return part.network(config).init(key, *inputs)["params"]
