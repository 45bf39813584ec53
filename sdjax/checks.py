"""Checks of arguments, which the library and the commands share."""

import math
from typing import Any

import numpy as np

DTYPES = ("float32", "bfloat16", "float16")  # the dtypes that a model can compute in


def is_whole(value: Any, low: int, high: float = math.inf) -> bool:
    """Is `value` a whole number from `low` to `high`? True and False are not."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and low <= value <= high


def is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """Is `value` a finite real number from `low` to `high`? True and False are not."""
    real = isinstance(value, (int, float, np.number)) and not isinstance(value, (bool, np.complexfloating))
    return real and math.isfinite(value) and low <= value <= high
