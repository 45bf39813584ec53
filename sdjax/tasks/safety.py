"""Stable Diffusion's safety checker: a CLIP image tower and embeddings of what it looks for (arXiv 2210.04610).

    checker = sdjax.load_safety_checker("path/to/a/diffusers/folder")
    flags = sdjax.check_safety(checker, images)        # one bool for each image

An image is flagged if its cosine similarity to one of 17 concepts is above that concept's threshold. If one of 3
special concepts is above its own, all thresholds of the 17 are lower by 0.01. Differences are rounded to three digits
before they are compared with 0. The decisions are those of diffusers' `safety_checker.py`. The caller decides what to
do with a flagged image.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from sdjax.conditioning.clip import image_embedding
from sdjax.devices.placement import on_all_devices
from sdjax.errors import SdjaxError
from sdjax.image.pixels import clip_pixels, pixels_to_pil
from sdjax.networks.clip.config import VisionConfig
from sdjax.networks.clip.fields import read_vision
from sdjax.networks.fields import Fields
from sdjax.networks.table import make_rows, param_shapes
from sdjax.types import Arrays, Params
from sdjax.weights.convert import from_file_tensors
from sdjax.weights.folder import TRANSFORMERS, read_weights

CHUNK = 8  # images that go through the tower at once

HEADS = ("concept_embeds", "concept_embeds_weights", "special_care_embeds", "special_care_embeds_weights")


class SafetyChecker(NamedTuple):
    """A loaded safety checker; `load_safety_checker` makes it."""

    config: VisionConfig
    params: Params  # of the image tower
    concepts: np.ndarray  # [17, projection], of length 1
    thresholds: np.ndarray  # [17]
    special: np.ndarray  # [3, projection], of length 1
    special_thresholds: np.ndarray  # [3]


def load_safety_checker(folder: str | Path) -> SafetyChecker:
    """Loads the safety checker of a diffusers folder, or the folder `safety_checker/` itself.

    SdjaxError: a file or tensor is missing or does not fit; the message names it.
    """
    folder = Path(folder)
    folder = folder / "safety_checker" if (folder / "safety_checker").is_dir() else folder
    config, tensors = read_vision(Fields(folder / "config.json")), read_weights(folder, TRANSFORMERS, "safety")
    heads = {}
    for name in HEADS:
        if name not in tensors:
            raise SdjaxError(f"{folder}: its weights have no tensor {name}")
        heads[name] = np.asarray(tensors.pop(name), np.float32)
    for name in HEADS[::2]:
        count = heads[f"{name}_weights"].shape[:1]
        if heads[name].shape != (*count, config.projection) or heads[f"{name}_weights"].shape != count:
            raise SdjaxError(
                f"{folder}: {name} has shape {list(heads[name].shape)} and {name}_weights "
                f"{list(heads[f'{name}_weights'].shape)}, should be [n, {config.projection}] and [n]"
            )
    if bad := [name for name, value in heads.items() if not np.isfinite(value).all()]:
        raise SdjaxError(f"{folder}: {', '.join(bad)} with NaN or infinite values")
    params = from_file_tensors(tensors, make_rows(config), param_shapes(config), source=str(folder))
    concepts, thresholds, special, special_thresholds = heads.values()
    return SafetyChecker(config, params, unit(concepts), thresholds, unit(special), special_thresholds)


def check_safety(
    checker: SafetyChecker, images: Sequence[Image.Image] | Image.Image | Float[Arrays, "B H W 3"]
) -> Bool[np.ndarray, " B"]:
    """Returns bool [B]: True for each image in which the checker found a concept.

    images: PIL images, one or several, or pixels [B, H, W, 3] in [-1, 1].
    """
    if not isinstance(checker, SafetyChecker):
        raise SdjaxError(f"checker is {type(checker).__name__}: what load_safety_checker gives expected")
    images = [images] if isinstance(images, Image.Image) else images
    if not isinstance(images, Sequence) or not all(isinstance(image, Image.Image) for image in images):
        images = pixels_to_pil(images)
    if not images:
        return np.zeros(0, bool)
    pixels = np.stack([clip_pixels(image, checker.config.size) for image in images])
    size = min(CHUNK, len(pixels))
    places = np.arange(-(-len(pixels) // size) * size).clip(max=len(pixels) - 1)  # pads the last chunk
    chunks = np.split(pixels[places], len(places) // size)
    embed = lambda params, pixels: image_embedding(params, pixels, checker.config)
    return decide(checker, np.concatenate([*on_all_devices(embed, checker.params, chunks)])[: len(pixels)])


def decide(checker: SafetyChecker, embedding: np.ndarray) -> np.ndarray:
    """Image embeddings [B, projection] -> bool [B], by the rule at the top of this file."""
    embedding = unit(embedding)
    above = lambda directions, thresholds, lower: np.round(embedding @ directions.T - thresholds + lower, 3) > 0
    special = above(checker.special, checker.special_thresholds, np.float32(0)).any(1, keepdims=True)
    return above(checker.concepts, checker.thresholds, np.where(special, np.float32(0.01), np.float32(0))).any(1)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
