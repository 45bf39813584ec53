"""CLIP's towers as Parts."""

import jax.numpy as jnp

from sdjax.networks.clip.config import TextConfig, VisionConfig
from sdjax.networks.clip.fields import read_text, read_vision, write_text, write_vision
from sdjax.networks.clip.names import text_rows, vision_rows
from sdjax.networks.clip.network import ImageTower, TextTower
from sdjax.networks.part import Part, example

CLIP_TEXT = Part(
    TextConfig,
    TextTower,
    lambda config: (example(1, config.length, dtype=jnp.int32),),
    text_rows,
    read_text,
    write_text,
    ("text_model.",),  # beside them a whole CLIPModel has its image tower, its projections and its scale
)

CLIP_VISION = Part(
    VisionConfig,
    ImageTower,
    lambda config: (example(1, config.size, config.size, 3),),
    vision_rows,
    read_vision,
    write_vision,
)
