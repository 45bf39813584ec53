"""Reads named arrays of HDF5 files, which Keras writes (.h5), with the package h5py of the extra `control`.

A file may point to arrays in other files, and say that it holds more than there is memory: such are refused.
"""

from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.errors import SdjaxError
from sdjax.formats.mapped import refusals, shown

MAGIC = b"\x89HDF\r\n\x1a\n"
MAX_ARRAY = 1 << 30  # bytes


def read_hdf5(path: str | Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Returns arrays of floats by their places in a file, float32. SdjaxError: names the file, which is another one,
    lacks an array, or needs h5py, which is not installed."""
    path = Path(path)
    with refusals(path):
        if not path.is_file():
            raise SdjaxError("no such file")
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise SdjaxError("not an HDF5 file (.h5)")
        try:
            import h5py
        except ImportError:
            raise SdjaxError("needs h5py to be read, pip install 'sdjax[control]'") from None
        try:
            with h5py.File(path, "r") as file:
                return {name: read_array(h5py, file, name) for name in names}
        except (RuntimeError, AssertionError) as error:  # HDF5's own
            raise SdjaxError(f"broken, HDF5 cannot read it ({type(error).__name__})") from None


def read_array(h5py: Any, file: Any, name: str) -> np.ndarray:
    """Returns one array of an open file."""
    found = file
    for part in name.split("/"):
        if not isinstance(found, h5py.Group) or type(found.get(part, getlink=True)) is not h5py.HardLink:
            raise SdjaxError(f"has no array {shown(name)}")
        found = found[part]
    if not isinstance(found, h5py.Dataset) or found.is_virtual or found.external or found.dtype.kind != "f":
        raise SdjaxError(f"{shown(name)} is no array of floats")
    if prod(found.shape) * found.dtype.itemsize > MAX_ARRAY:
        raise SdjaxError(f"{shown(name)} of shape {list(found.shape)} is too large")
    value = np.asarray(found[()], np.float32)
    if not np.isfinite(value).all():
        raise SdjaxError(f"{shown(name)} has NaN or infinite values")
    return value
