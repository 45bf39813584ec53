"""What a pickle of torch is read as: tensors and storages by their places, and placeholders for everything else.

GLOBALS lists the only names that mean something. Every other class or function becomes an Inert, which is never
imported and never called.
"""

from enum import Enum
from typing import Any, NamedTuple

import numpy as np
from ml_dtypes import bfloat16, float8_e4m3fn, float8_e5m2

from sdjax.formats import mapped as files


class Inert:
    """A placeholder for an object that is not read."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name


class Foreign(Inert):
    """A placeholder for an unknown class or function. Calling it makes an Inert."""

    __slots__ = ()


class Set(Inert):
    """A placeholder for a set. Unlike an Inert it cannot be a key, and items cannot be set in it."""

    __slots__ = ()


def shown(value: Any) -> str:
    """Like `mapped.shown`, also for Inerts."""
    return f"a {value.name[:80]!r}" if isinstance(value, Inert) else files.shown(value)


class Ordered(dict):
    """collections.OrderedDict. Unlike a dict it may be given attributes, which are dropped here."""


class Storage(NamedTuple):
    key: str
    dtype: np.dtype
    numel: int
    untyped: bool = False


class Tensor(NamedTuple):
    storage: Storage
    offset: int  # this and the strides in elements
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Known(Enum):
    """The known callables, and the storage without a type, as tags."""

    DICT = ("collections", "OrderedDict")
    TENSOR = ("torch._utils", "_rebuild_tensor_v2")
    TYPED = ("torch._utils", "_rebuild_tensor_v3")  # of an untyped storage; its type is an argument
    PARAMETER = ("torch._utils", "_rebuild_parameter")
    STATED = ("torch._utils", "_rebuild_parameter_with_state")
    UNTYPED = ("torch.storage", "UntypedStorage")


STORAGES = {
    "Float": np.float32,
    "Half": np.float16,
    "BFloat16": bfloat16,
    "Double": np.float64,
    "Int": np.int32,
    "Long": np.int64,
    "Short": np.int16,
    "Char": np.int8,
    "Byte": np.uint8,
    "Bool": np.bool_,
}
GLOBALS = {("torch", f"{name}Storage"): np.dtype(dtype) for name, dtype in STORAGES.items()}
GLOBALS |= {known.value: known for known in Known}


class Scalar(NamedTuple):
    """A torch.dtype that has no storage type of its own."""

    dtype: np.dtype


GLOBALS |= {("torch", f"{t.__name__}"): Scalar(np.dtype(t)) for t in (float8_e4m3fn, float8_e5m2)}
GLOBALS |= {("torch", f"uint{bits}"): Scalar(np.dtype(f"uint{bits}")) for bits in (16, 32, 64)}
