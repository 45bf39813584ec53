"""Tiny random IP-Adapters and their files."""

from functools import cache

import jax

import sdjax
from sdjax.formats.mapped import write_json, write_tensors
from sdjax.model.image_prompt import ImagePrompt
from sdjax.networks.clip.config import VisionConfig
from sdjax.networks.clip.fields import write_image_tower
from sdjax.networks.image_prompt.config import ImagePromptConfig
from sdjax.networks.image_prompt.names import attentions_of
from sdjax.networks.table import make_rows
from sdjax.weights.convert import to_file_tensors
from tests.narrow import random_params

TOWER = VisionConfig(size=16, patch=4, width=12, layers=2, heads=2, mlp_width=16, activation="gelu", projection=10)


def config_for(sd: sdjax.StableDiffusion, plus: bool = False) -> ImagePromptConfig:
    unet = sd.config.unet
    layers = tuple(width for _, width in attentions_of(unet))
    if not plus:
        return ImagePromptConfig(layers, TOWER.projection, unet.context_dim)
    return ImagePromptConfig(layers, TOWER.width, unet.context_dim, 3, True, 8, 2, 1, 12)


@cache
def image_prompt(sd: sdjax.StableDiffusion, plus: bool = False, seed: int = 0) -> ImagePrompt:
    config = config_for(sd, plus)
    loud = lambda tree: jax.tree.map(lambda leaf: 4 * leaf, tree)
    return ImagePrompt(config, loud(random_params(config, seed)), TOWER, loud(random_params(TOWER, 9)))


def write_image_prompt(adapter: ImagePrompt, folder) -> None:
    """Writes adapter.safetensors and image_encoder/ as they are published."""
    write_tensors(folder / "adapter.safetensors", to_file_tensors(adapter.params, make_rows(adapter.config)))
    (folder / "image_encoder").mkdir()
    write_json(folder / "image_encoder" / "config.json", write_image_tower(adapter.vision))
    write_tensors(
        folder / "image_encoder" / "model.safetensors", to_file_tensors(adapter.tower, make_rows(adapter.vision))
    )
