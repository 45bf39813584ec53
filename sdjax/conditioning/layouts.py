"""Layouts -> Cond: boxes with labels as tokens, and the tokens' states.

The tokens are those of taming-transformers' `objects_bbox.py`. With a grid of N x N places, a corner (x, y) in [0, 1]
is the token round(y (N - 1)) N + round(x (N - 1)), halves to even.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.checks import check_box, check_boxes, check_model
from sdjax.errors import SdjaxError
from sdjax.model.value import FLOAT32, StableDiffusion
from sdjax.networks.bert.config import LayoutConfig
from sdjax.networks.bert.network import Bert
from sdjax.nn.layers import precise
from sdjax.types import Array, Cond, Params

Layout = Sequence[Sequence[float]]  # (label, x0, y0, x1, y1) of each object

WHOLE = (0.0, 0.0, 1.0, 1.0)  # the crop that is the whole picture


def encode_layout(sd: StableDiffusion, layouts: Sequence[Layout], crop: Sequence[float] = WHOLE) -> Cond:
    """Returns the Cond of B layouts, with context float32 [B, L, D].

    layouts: for each picture a list of objects (label, x0, y0, x1, y1). Labels are whole numbers; (x0, y0) is a box's
        top left corner and (x1, y1) its bottom right one, in [0, 1] of the picture's sides. An empty list is the empty
        layout.
    crop: (x0, y0, x1, y1), the part of the picture that is drawn. Boxes stay relative to the whole picture; objects
        outside of the crop are left out.
    SdjaxError: a model that takes no layouts, too many objects, a label or a box out of range.
    """
    check_model(sd)
    config = sd.config.layout
    if config is None:
        raise SdjaxError(f"layouts: {sd.config.name} takes none")
    if not isinstance(layouts, Sequence) or isinstance(layouts, str) or not layouts:
        raise SdjaxError(f"layouts {layouts!r}: a list with the objects of each picture")
    tokens = np.stack([layout_tokens(config, layout, crop, f"layouts[{i}]") for i, layout in enumerate(layouts)])
    return Cond(layout_states(sd.params["layout"], jnp.asarray(tokens), config, sd.dtype))


@partial(jax.jit, static_argnames=("config", "dtype"))
def layout_states(params: Params, tokens: Array, config: LayoutConfig, dtype=FLOAT32) -> Array:
    """The encoder's parameters, int32 tokens [B, L] -> float32 states [B, L, D]."""
    with precise(dtype):
        return Bert(config, dtype).apply({"params": params}, tokens)


def layout_tokens(config: LayoutConfig, layout: Layout, crop: Sequence[float] = WHOLE, name: str = "layout"):
    """Returns the tokens of one layout, int32 [L]: label and corners of each object, then the crop's corners.

    name: what messages call the layout. SdjaxError: see `encode_layout`.
    """
    layout = check_boxes(layout, name, config.vocab_size - 1 if config.labels is None else config.labels)
    check_box(crop, "crop")
    layout = [box for box in layout if overlap(box[1:], crop)]
    if len(layout) > config.objects:
        raise SdjaxError(f"{name}: {len(layout)} objects in the crop, at most {config.objects} expected")
    absent = [config.absent] * 3 * (config.objects - len(layout))
    objects = [token for label, *box in layout for token in (int(label), *corners(config, box))]
    return np.array([*objects, *absent, *corners(config, crop)], np.int32)


def overlap(box: Sequence[float], crop: Sequence[float]) -> bool:
    """Does a box share a part of its area with the crop?"""
    return min(box[2], crop[2]) > max(box[0], crop[0]) and min(box[3], crop[3]) > max(box[1], crop[1])


def corners(config: LayoutConfig, box: Sequence[float]) -> tuple[int, int]:
    """Returns the tokens of a box's two corners."""
    place = lambda x, y: round(y * (config.grid - 1)) * config.grid + round(x * (config.grid - 1))
    x0, y0, x1, y1 = map(float, box)
    return place(x0, y0), place(x1, y1)
