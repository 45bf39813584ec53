"""The UNets of the published latent diffusion models, by their configurations alone: parameters to the number.

Counts were taken from the original classes on torch's meta device, each built from its published yaml.
"""

import jax
import pytest
from flax.traverse_util import flatten_dict

from sdjax.networks.table import make_rows, param_shapes
from sdjax.networks.unet.config import UNetConfig


def published(width, multipliers, factors, channels, head_width=None, heads=None, **fields):
    """The fields of a CompVis yaml: model_channels, channel_mult, attention_resolutions (factors), and the heads."""
    widths = tuple(width * multiplier for multiplier in multipliers)
    return UNetConfig(
        in_channels=channels[0],
        out_channels=channels[1],
        channels=widths,
        attention=tuple(2**level in factors for level in range(len(widths))),
        heads=tuple(heads or wide // head_width for wide in widths),
        **fields,
    )


V2 = {"heads": (5, 10, 20, 20), "context_dim": 1024, "linear_projection": True}
ALONE = {"cross": False}
MODELS = {
    "cin256-v2": (published(192, (1, 2, 3, 5), (8, 4, 2), (3, 3), heads=1, context_dim=512), 400_920_579),
    "cin256": (published(256, (1, 2, 4), (4, 2, 1), (4, 4), 32, context_dim=512), 394_984_196),
    "layout2img-openimages256": (
        published(128, (1, 2, 3, 4), (8, 4, 2), (3, 3), 32, context_dim=512, depth=(3, 3, 3, 3)),
        246_277_379,
    ),
    "semantic-synthesis": (published(128, (1, 4, 8), (32, 16, 8), (6, 3), heads=8, **ALONE), 215_229_315),
    "inpainting-big": (published(256, (1, 2, 3, 4), (8, 4, 2), (7, 3), heads=8, updown=True, **ALONE), 387_245_827),
    "bsr-sr": (published(160, (1, 2, 2, 4), (16, 8), (6, 3), 32, **ALONE), 113_622_563),
    "text2img-large": (published(320, (1, 2, 4, 4), (4, 2, 1), (4, 4), heads=8, context_dim=1280), 872_300_484),
    "text2img256": (published(192, (1, 2, 3, 5), (8, 4, 2), (3, 3), 32, context_dim=640), 403_623_939),
    "celeba256, ffhq256, lsun-beds256": (published(224, (1, 2, 3, 4), (8, 4, 2), (3, 3), 32, **ALONE), 274_056_163),
    "lsun-churches256": (
        published(192, (1, 2, 2, 4, 4), (1, 2, 4, 8), (4, 4), heads=8, scale_shift=True, updown=True, **ALONE),
        294_966_916,
    ),
    "rdm768": (published(448, (1, 2, 3, 4), (4, 2, 1), (16, 16), 32, context_dim=768), 1_335_480_400),
    "sd2-depth": (UNetConfig(in_channels=5, **V2), 865_913_604),
    "x4-upscaler": (
        published(
            *(256, (1, 2, 2, 4), (2, 4, 8), (7, 4)),
            heads=8,
            context_dim=1024,
            linear_projection=True,
            labels=1000,
            self_attention=(True, False, False, True),
        ),
        473_398_020,
    ),
    "sd21-unclip-h": (UNetConfig(vector=2048, **V2), 870_173_124),
    "sd21-unclip-l": (UNetConfig(vector=1536, **V2), 869_517_764),
}


@pytest.mark.parametrize("name", MODELS)
def test_parameters_and_names(name):
    config, count = MODELS[name]
    shapes = flatten_dict(param_shapes(config))
    assert sum(leaf.size for leaf in shapes.values()) == count
    rows = make_rows(config)
    assert {row.path for row in rows} == set(shapes), "each parameter has a row, and each row a parameter"
    stacked = len({row.compvis for row in rows if "qkv" in row.compvis})
    parts = sum("qkv" in row.compvis for row in rows)
    assert parts == 3 * stacked and len({row.compvis for row in rows}) == len(rows) - parts + stacked
    assert len({row.diffusers for row in rows}) == len(rows)


def test_whole_files_of_stacked_attention_come_back_byte_for_byte():
    import numpy as np

    from sdjax.weights.convert import from_file_tensors, to_file_tensors
    from tests.narrow import random_params

    config = published(16, (1, 2), (1, 2), (4, 4), heads=4, groups=8, updown=True, scale_shift=True, **ALONE)
    params, rows = random_params(config), make_rows(config)
    for layout in ("compvis", "diffusers"):
        tensors = to_file_tensors(params, rows, layout)
        found = from_file_tensors(tensors, rows, param_shapes(config), layout)
        assert jax.tree.all(
            jax.tree.map(lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), found, params)
        )
    assert tensors.keys() and any(".to_q." in name for name in tensors)
