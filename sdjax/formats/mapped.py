"""Helpers of all readers and writers of weights: memory-mapped files, arrays over them, errors that name the file."""

import json
import mmap
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.errors import SdjaxError

MAX_TENSORS = 200_000
MAX_ELEMENTS = 1 << 48  # more than any file has, and far below numpy's own limit

#: The exceptions that Python may raise while it reads a broken file.
BROKEN = (ValueError, TypeError, IndexError, KeyError, OverflowError, RecursionError, struct.error)


@contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Turns every error that reading `path` raises inside the block into an SdjaxError of one line that names it."""
    try:
        yield
    except SdjaxError as error:
        raise SdjaxError(f"{path}: {error}") from None
    except OSError as error:
        raise SdjaxError(f"{path}: not readable ({error.strerror})") from None
    except BROKEN as error:
        raise SdjaxError(f"{path}: broken, its parts do not fit together ({type(error).__name__})") from None


def shown(value: Any) -> str:
    """Returns a short text for messages. It is never the repr of a container, which may be endless."""
    return repr(value[:80]) if isinstance(value, (str, bytes)) else f"a {type(value).__name__}"


def is_count(value: Any) -> bool:
    """Is `value` an int that can be a size or an offset?"""
    return type(value) is int and 0 <= value < MAX_ELEMENTS


def check_name(name: str) -> None:
    """SdjaxError: `name` cannot be a tensor's name, since it is empty, too long, unprintable or like a path outside."""
    if (
        not 0 < len(name) <= 512
        or not name.isprintable()
        or "\\" in name
        or any(part in ("", ".", "..") for part in name.split("/"))
    ):
        raise SdjaxError(f"{shown(name)} is not a tensor's name")


def map_file(path: Path) -> mmap.mmap:
    """Returns the file as a read-only memory map. SdjaxError: there is no such file, or it is empty."""
    if not path.is_file():
        raise SdjaxError("no such file")
    if not path.stat().st_size:
        raise SdjaxError("the file is empty")
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def check_truth(data: mmap.mmap, dtype: np.dtype, start: int, size: int) -> None:
    """SdjaxError: a place of bool values has bytes other than 0 and 1. Call it once for each place in the file, because
    thousands of tensors may share one."""
    if dtype.kind == "b" and size and np.frombuffer(data, np.uint8, size, start).max() > 1:
        raise SdjaxError("truth values have bytes above 1")


def view(data: mmap.mmap, dtype: np.dtype, start: int, shape: tuple, strides: tuple | None = None) -> np.ndarray:
    """Returns a read-only array over `data`, from byte `start` on. `strides` are in elements; None is contiguous."""
    if prod(n for n in shape if n) > MAX_ELEMENTS:
        raise SdjaxError(f"a tensor has the shape {list(shape)}")
    if not all(shape):
        return np.empty(shape, dtype)
    if strides is not None:
        strides = [(stride if n > 1 else 1) * dtype.itemsize for n, stride in zip(shape, strides, strict=True)]
    return np.ndarray(shape, dtype, data, start, strides)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file with sorted keys."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a .safetensors file. Its metadata are {"format": "pt"}, which transformers needs, unless others are given.

    OSError: the system refuses to write the file.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file(dict(tensors), path, metadata=dict(metadata or {"format": "pt"}))
    except SafetensorError as error:  # safetensors raises it also if the system refuses
        raise OSError(str(error)) from None
