"""The encoder of layouts as a Part."""

import jax.numpy as jnp

from sdjax.networks.bert.config import LayoutConfig
from sdjax.networks.bert.names import bert_rows
from sdjax.networks.bert.network import Bert
from sdjax.networks.fields import plain_fields
from sdjax.networks.part import Part, example

LAYOUT_TOWER = Part(
    LayoutConfig,
    Bert,
    lambda config: (example(1, config.length, dtype=jnp.int32),),
    bert_rows,
    *plain_fields(LayoutConfig, "LayoutTransformer"),
)
