"""Narrow configs and random parameters for tests: every branch of the presets, thousands of parameters."""

import zlib
from dataclasses import replace

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from sdjax.diffusion.schedule import ScheduleConfig
from sdjax.families.config import Config
from sdjax.families.sd import SD15, SD21
from sdjax.families.table import family_of
from sdjax.networks.clip.config import TextConfig, VisionConfig
from sdjax.networks.table import make_rows, param_shapes
from sdjax.networks.unet.config import UNetConfig
from sdjax.networks.vae.config import VAEConfig
from sdjax.weights.convert import OPERATIONS, operation_of
from sdjax.weights.single import model_rows

NARROW = Config(
    name="narrow",
    text=TextConfig(
        vocab_size=580,
        length=12,
        width=24,
        layers=2,
        heads=3,
        mlp_width=48,
        bos_token=578,
        eos_token=579,
        pad_token=579,
    ),
    vae=VAEConfig(channels=(8, 16, 24), blocks=2, groups=4, scaling=0.5),
    unet=UNetConfig(
        channels=(16, 24, 32), blocks=2, attention=(True, False, True), heads=(2, 2, 4), context_dim=24, groups=8
    ),
    size=32,
)
NARROW_V2 = replace(
    NARROW,
    name="narrow-v2",
    text=replace(NARROW.text, activation="gelu", pad_token=0),
    unet=replace(
        NARROW.unet,
        blocks=1,
        attention=(True, True, False),
        heads=(2, 3, 4),
        linear_projection=True,
        upcast_attention=True,
    ),
    schedule=ScheduleConfig(prediction="v"),
)
NARROW_INPAINT = replace(NARROW, name="narrow-inpaint", unet=replace(NARROW.unet, in_channels=9))

#: the presets' own shapes, all levels and blocks, at a fiftieth of the width: head counts and head widths as there
LIKE_SD15 = replace(
    SD15,
    name="like-sd15",
    size=64,
    text=replace(
        SD15.text,
        vocab_size=580,
        length=12,
        width=24,
        layers=3,
        heads=3,
        mlp_width=48,
        bos_token=578,
        eos_token=579,
        pad_token=579,
    ),
    vae=replace(SD15.vae, channels=(8, 16, 24, 24), groups=4),
    unet=replace(SD15.unet, channels=(16, 24, 32, 32), context_dim=24, groups=8),
)
LIKE_SD21 = replace(
    SD21,
    name="like-sd21",
    size=64,
    text=replace(LIKE_SD15.text, activation="gelu", pad_token=0),
    vae=LIKE_SD15.vae,
    unet=replace(SD21.unet, channels=(16, 24, 32, 32), context_dim=24, groups=8, heads=(2, 3, 4, 4)),
)
LIKE_INPAINT = replace(LIKE_SD15, name="like-inpaint", unet=replace(LIKE_SD15.unet, in_channels=9))
LIKE = (LIKE_SD15, LIKE_SD21, LIKE_INPAINT)

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
    shapes = {
        (part, *path): leaf.shape
        for part in family_of(config).parts
        for path, leaf in flatten_dict(param_shapes(getattr(config, part))).items()
    }
    return {
        row.compvis: np.broadcast_to(np.float16(0), operation_of(row.compvis_operation)[2](shapes[row.path]))
        for row in model_rows(config)
    }


def reference_tensors(part: str, module) -> dict[str, np.ndarray]:
    """Weights of `module` under diffusers' names, the same on every machine: tests/parity/make_references.py gives
    them to torch. As hard to match as tests/parity/peers.py makes its own: no norm is the identity, q and k are large.
    """
    shapes, tensors = flatten_dict(param_shapes(module)), {}
    for row in make_rows(module):
        name, shape = row.diffusers, OPERATIONS[row.operation][2](shapes[row.path].shape)
        noise = np.random.RandomState(zlib.crc32(f"{part} {name}".encode())).standard_normal(shape)  # a frozen stream
        if len(shape) <= 1:
            value = (name.endswith("weight") and "embedding" not in name) + 0.1 * noise
        else:
            gain = 3 if any(key in name for key in (".to_q.", ".to_k.", ".q_proj.", ".k_proj.")) else 1
            value = gain * noise / np.sqrt(3 * np.prod(shape[1:]))  # the spread of torch's own initial weights
        tensors[name] = value.astype(np.float32)
    return tensors


def reference_inputs(config: Config) -> dict[str, np.ndarray]:
    """What goes into the modules for tests/data/references.npz."""
    draw = lambda seed, *shape: np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
    unet, text, side = config.unet, config.text, 8
    ids = np.random.RandomState(5).randint(0, text.vocab_size - 2, (2, text.length)).astype(np.int32)
    ids[:, 0], ids[0, 5], ids[0, 6:], ids[1, -1] = text.bos_token, text.eos_token, text.pad_token, text.eos_token
    return {
        "ids": ids,
        "x": draw(1, 2, side, side, unet.in_channels),
        "t": np.array([981.0, 17.0], np.float32),
        "context": draw(2, 2, text.length, unet.context_dim),
        "latents": draw(3, 1, 5, 4, config.vae.latent_channels),
        "pixels": draw(4, 1, 5 * config.vae.factor, 4 * config.vae.factor, 3).clip(-1, 1),
    }


def file_shapes(config, layout: str = "diffusers") -> dict[str, tuple[int, ...]]:
    """The names and shapes of the tensors of a network's file, diffusers' or compvis'; nothing is allocated."""
    found, shapes = {}, param_shapes(config)
    for row in make_rows(config):
        leaf = shapes
        for key in row.path:
            leaf = leaf[key]
        found[getattr(row, layout)] = tuple(operation_of(row.operation)[2](leaf.shape))
    return found
