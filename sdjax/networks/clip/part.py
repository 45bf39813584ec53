"""CLIP's towers as Parts."""

from functools import partial

import jax.numpy as jnp

from sdjax.networks.clip.config import NormalizerConfig, TextConfig, VisionConfig
from sdjax.networks.clip.fields import (
    read_normalizer,
    read_text,
    read_vision,
    write_image_tower,
    write_normalizer,
    write_text,
    write_vision,
)
from sdjax.networks.clip.names import normalizer_rows, text_rows, vision_rows
from sdjax.networks.clip.network import ImageTower, Normalizer, TextTower
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

#: SDXL's towers: their states come from before the last layer, and the second one has a pooled embedding.
CLIP_TEXT_XL = CLIP_TEXT._replace(read=partial(read_text, back=1))
CLIP_TEXT_POOLED = CLIP_TEXT._replace(
    read=partial(read_text, back=1, pooled=True), own=("text_model.", "text_projection.")
)

CLIP_VISION = Part(
    VisionConfig,
    ImageTower,
    lambda config: (example(1, config.size, config.size, 3),),
    vision_rows,
    read_vision,
    write_vision,
)

#: The same, in a folder of its own beside a UNet.
CLIP_IMAGE = CLIP_VISION._replace(write=write_image_tower)

NORMALIZER = Part(
    NormalizerConfig,
    Normalizer,
    lambda config: (example(1, config.width),),
    normalizer_rows,
    read_normalizer,
    write_normalizer,
)
