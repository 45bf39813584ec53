"""Layouts -> Cond: boxes with labels as tokens, and the tokens' states.

The tokens are those of taming-transformers' `objects_bbox.py`. With a grid of N x N places, a corner (x, y) in [0, 1] is
the token round(y (N - 1)) N + round(x (N - 1)), halves to even.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.checks import is_number, is_whole
from sdjax.errors import SdjaxError
from sdjax.model.value import FLOAT32, StableDiffusion
from sdjax.networks.bert.config import LayoutConfig
from sdjax.networks.bert.network import Bert
from sdjax.nn.layers import precise
from sdjax.types import Array, Cond, Params

Box = Sequence[Any]  # (label, x0, y0, x1, y1)

WHOLE = (0.0, 0.0, 1.0, 1.0)  # the crop that is the whole picture


def encode_layout(sd: StableDiffusion, layouts: Sequence[Sequence[Box]], crop: Sequence[float] = WHOLE) -> Cond:
    """Returns the Cond of B layouts, with context float32 [B, L, D].

    layouts: for each picture a list of objects (label, x0, y0, x1, y1). Labels are whole numbers; (x0, y0) is a box's
        top left corner and (x1, y1) its bottom right one, in [0, 1] of the picture's sides. An empty list is the empty
        layout.
    crop: (x0, y0, x1, y1), the part of the picture that is drawn. Boxes stay relative to the whole picture; objects
        outside of the crop are left out.
    SdjaxError: a model that takes no layouts, too many objects, a label or a box out of range.
    """
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


def layout_tokens(config: LayoutConfig, layout: Sequence[Box], crop: Sequence[float] = WHOLE, name: str = "layout"):
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


def check_boxes(layout: Any, name: str, labels: int | None = None) -> Sequence[Box]:
    """Returns the objects of a layout. `labels`: labels are below it.

    SdjaxError: it is no list of (label, x0, y0, x1, y1), or a label or a box is out of range.
    """
    if not isinstance(layout, (list, tuple)):
        raise SdjaxError(f"{name} {layout!r}: a list of objects (label, x0, y0, x1, y1) expected")
    said = "from 0 on" if labels is None else f"from 0 to {labels - 1}"
    for i, box in enumerate(layout):
        if not isinstance(box, (list, tuple)) or len(box) != 5:
            raise SdjaxError(f"{name}[{i}] {box!r}: (label, x0, y0, x1, y1) expected")
        if not is_whole(box[0], 0, math.inf if labels is None else labels - 1):
            raise SdjaxError(f"{name}[{i}]: label {box[0]!r}, a whole number {said} expected")
        check_box(box[1:], f"{name}[{i}]")
    return layout


def check_box(box: Any, name: str) -> None:
    """SdjaxError unless `box` is (x0, y0, x1, y1) with 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1."""
    fits = isinstance(box, (list, tuple)) and len(box) == 4 and all(is_number(side, 0, 1) for side in box)
    if not fits or not (box[0] < box[2] and box[1] < box[3]):
        raise SdjaxError(f"{name}: box {box!r}, (x0, y0, x1, y1) with x0 < x1 and y0 < y1 in [0, 1] expected")
