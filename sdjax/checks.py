"""Checks of arguments, which the library and the commands share."""

import math
from typing import Any

import numpy as np

from sdjax.errors import SdjaxError

DTYPES = ("float32", "bfloat16", "float16")  # the dtypes that a model can compute in
SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16"}  # their other names


def is_whole(value: Any, low: int, high: float = math.inf) -> bool:
    """Is `value` a whole number from `low` to `high`? True and False are not."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and low <= value <= high


def is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """Is `value` a finite real number from `low` to `high`? True and False are not."""
    real = isinstance(value, (int, float, np.number)) and not isinstance(value, (bool, np.complexfloating))
    return real and math.isfinite(value) and low <= value <= high


def as_array(name: str, value: Any) -> np.ndarray:
    """Returns an argument as an array. SdjaxError: it is none, as lists of several lengths are."""
    try:
        return np.asarray(value)
    except (ValueError, TypeError):
        raise SdjaxError(f"{name} is {type(value).__name__}: an array, or lists of one length, expected") from None


def check_model(sd: Any) -> None:
    """SdjaxError unless `sd` is a model."""
    if not hasattr(sd, "config") or not hasattr(sd, "tokenizer"):
        raise SdjaxError(f"sd is {type(sd).__name__}: a model, as sdjax.load gives it, expected")


def check_boxes(layout: Any, name: str, labels: int | None = None) -> Any:
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
