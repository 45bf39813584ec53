"""Narrow configs and random parameters for tests: every branch of the presets, thousands of parameters."""

from dataclasses import replace

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from sdjax.config import Config, ScheduleConfig, TextConfig, UNetConfig, VAEConfig, VisionConfig
from sdjax.weights.convert import OPERATIONS, param_shapes
from sdjax.weights.single import model_rows

NARROW = Config(
    name="narrow",
    text=TextConfig(vocab_size=580, length=12, width=24, layers=2, heads=3, mlp_width=48,
                    bos_token=578, eos_token=579, pad_token=579),
    vae=VAEConfig(channels=(8, 16, 24), blocks=2, groups=4, scaling=0.5),
    unet=UNetConfig(channels=(16, 24, 32), blocks=2, attention=(True, False, True), heads=(2, 2, 4), context_dim=24,
                    groups=8),
    size=32,
)
NARROW_V2 = replace(
    NARROW, name="narrow-v2", text=replace(NARROW.text, activation="gelu", pad_token=0),
    unet=replace(NARROW.unet, blocks=1, attention=(True, True, False), heads=(2, 3, 4), linear_projection=True,
                 upcast_attention=True), schedule=ScheduleConfig(prediction="v"))
NARROW_INPAINT = replace(NARROW, name="narrow-inpaint", unet=replace(NARROW.unet, in_channels=9))
NARROW_VISION = VisionConfig(size=16, patch=4, width=24, layers=2, heads=3, mlp_width=48, projection=16)


def random_params(module, seed: int = 0, dtype=np.float32):
    """Parameters of one module's config: N(0, 0.05), norm scales around 1."""
    rng = np.random.default_rng(seed)
    draw = lambda path, s: (rng.normal(size=s.shape) * 0.05 + (path[-1].key == "scale")).astype(dtype)
    return jax.tree.map(jax.numpy.asarray, jax.tree_util.tree_map_with_path(draw, param_shapes(module)))


def random_model_params(config: Config, seed: int = 0, dtype=np.float32):
    parts = enumerate(("text", "unet", "vae"))
    return {part: random_params(getattr(config, part), seed + i, dtype) for i, part in parts}


def file_tensors(config):
    """Names and shapes of a whole single file of `config`; nothing is allocated."""
    shapes = {(part, *path): leaf.shape for part in ("text", "vae", "unet")
              for path, leaf in flatten_dict(param_shapes(getattr(config, part))).items()}
    return {row.compvis: np.broadcast_to(np.float16(0), OPERATIONS[row.compvis_operation][2](shapes[row.path]))
            for row in model_rows(config)}
