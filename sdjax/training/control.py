"""Training a ControlNet: how it begins, its loss, the pictures that it is shown, and its files (arXiv 2302.05543)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sdjax.data.beside import FilesBeside
from sdjax.data.source import Pictures
from sdjax.errors import SdjaxError
from sdjax.families.config import Config
from sdjax.files import written_whole
from sdjax.formats.mapped import write_json, write_tensors
from sdjax.image import preprocess
from sdjax.networks.control.config import ControlConfig
from sdjax.networks.control.network import ControlNet
from sdjax.networks.control.part import CONTROLNET
from sdjax.networks.table import make_rows, param_shapes
from sdjax.training.beside import Given, each_view
from sdjax.training.diffusion import Null, text_cond
from sdjax.types import Array, Batch, Cond, Params
from sdjax.weights.convert import to_file_tensors

HINT = (16, 32, 96, 256)  # channels of the embedding of pictures, of which a VAE's factor of 8 takes all four
WEIGHTS, SINGLE = "diffusion_pytorch_model.safetensors", "single/control.safetensors"


def control_config(config: Config) -> ControlConfig:
    """Returns the config of a ControlNet for a model. Its embedding of pictures has strides that give the VAE's factor.

    SdjaxError: the model's UNet takes no text, or its VAE's factor is none of 2, 4 and 8.
    """
    halvings = config.vae.factor.bit_length() - 1
    if not config.unet.cross or not 1 <= halvings < len(HINT):
        raise SdjaxError(f"model {config.name}: a ControlNet is for a UNet of text and a VAE of a factor of 2, 4 or 8")
    return ControlConfig(config.unet, HINT[: halvings + 1])


def initial_control(config: ControlConfig, unet: Params, seed: int) -> Params:
    """Returns the parameters that a ControlNet begins with: the UNet's, where it copies it; zeros behind every residual
    and at the end of the embedding of pictures, which else is random.

    That begins as LeCun's normal: of torch's usual initial weights, five layers leave 6e-4 of what two pictures differ
    by, and for hundreds of steps nothing is learned.
    """
    own, found, key = flatten_dict(unet), {}, jax.random.key(seed)
    for number, (path, leaf) in enumerate(sorted(flatten_dict(param_shapes(config)).items())):
        if path in own:
            found[path] = np.asarray(own[path], np.float32)
        elif path[0] == "hint" and path[1] != "conv_out" and path[-1] == "kernel":
            draw = nn.initializers.lecun_normal()
            found[path] = np.asarray(draw(jax.random.fold_in(key, number), leaf.shape, jnp.float32))
        else:
            found[path] = np.zeros(leaf.shape, np.float32)
    return unflatten_dict(found)


def control_conditioner(null: Array | Null) -> Callable:
    """Returns the Conditioner of a ControlNet's loss; the UNet is frozen."""

    def cond(params: Params, batch: Batch, drop: Array, key: Array, frozen: Params) -> tuple[Any, Cond]:
        return (frozen["unet"], params), text_cond(batch, null, drop)

    return cond


def control_forward(config: ControlConfig, dtype: Any, remat: bool) -> Callable:
    """Returns the Forward of a ControlNet's loss: a batch gives its pictures as uint8 [B, H, W, 3]."""
    network = ControlNet(config, jnp.dtype(dtype), remat)

    def forward(unet: Any, params: tuple[Params, Params], x: Array, t: Array, cond: Cond, batch: Batch) -> Array:
        base, own = params
        hint = batch.given.astype(jnp.float32) / 255
        residuals = network.apply({"params": own}, x, t, cond.context, hint, cond.vector)
        return unet.apply({"params": base}, x, t, cond.context, cond.vector, None, residuals)

    return forward


def pictures_given(source: Pictures, how: str, options: tuple[Any, ...], views: int) -> Given:
    """Returns a function of rows that gives the pictures which a ControlNet is shown, uint8 [B, H, W, 3].

    how: "none": those of the column control_file_name; else the function of sdjax.preprocess that makes them.
    options: its further arguments: Canny's thresholds, HED's weights.
    """
    if how == "none":
        files: FilesBeside = source.beside
        return each_view(lambda i, row, epoch, group: files.view(i, row, epoch, group, source.shapes[group]), views)

    def view(i: int, row: int, epoch: int, group: int) -> np.ndarray:
        picture = source.view(row, epoch, group)["pixels"]
        return np.asarray(getattr(preprocess, how)(picture, *options))

    return each_view(view, views)


def write_control(folder: Path, config: ControlConfig, params: Params) -> Path:
    """Writes a diffusers folder, and in it single/control.safetensors in lllyasviel's names. Returns the folder."""
    rows = make_rows(config)
    with written_whole(folder / SINGLE) as scratch:
        write_tensors(scratch, to_file_tensors(params, rows, "compvis"))
    with written_whole(folder / WEIGHTS) as scratch:
        write_tensors(scratch, to_file_tensors(params, rows))
    with written_whole(folder / "config.json") as scratch:
        write_json(scratch, CONTROLNET.write(config))
    return folder
