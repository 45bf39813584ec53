"""Reads the tensors of a file that nobody vouches for: safetensors, or torch's pickles (torch_files.py).

The content decides which it is. A safetensors file is the header's length (8 bytes, little-endian), the header (JSON)
and the data.
"""

import json
import mmap
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from sdjax.errors import SdjaxError
from sdjax.formats.mapped import MAX_TENSORS, check_name, check_truth, is_count, map_file, refusals, shown, view
from sdjax.formats.torch_files import ZIP, read_pickle

MAX_HEADER = 100_000_000  # bytes, the format's own limit; most of a header this long is text in its __metadata__

#: What else a header may have, so that what it is parsed to stays small: lists and objects, and commas between values.
MAX_NESTED, MAX_COMMAS = 2_000_000, 5_000_000

DTYPES = {
    name: np.dtype(dtype)
    for name, dtype in {
        "BOOL": np.bool_,
        "U8": np.uint8,
        "I8": np.int8,
        "U16": np.uint16,
        "I16": np.int16,
        "U32": np.uint32,
        "I32": np.int32,
        "U64": np.uint64,
        "I64": np.int64,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F32": np.float32,
        "F64": np.float64,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
    }.items()
}

LFS = b"version https://git-lfs"


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """Returns the tensors by name of a safetensors file or a torch checkpoint, as read-only views of the mapped file.

    Values are not checked here; `from_file_tensors` refuses those that are not finite. SdjaxError: names the file.
    """
    return read_checkpoint(path)[0]


def read_checkpoint(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns `read_tensors` and the metadata of a safetensors file's header, {} for a torch checkpoint."""
    if not isinstance(path, (str, Path)):
        raise SdjaxError(f"path is {type(path).__name__}: the name of a file expected")
    path = Path(path)
    with refusals(path):
        data = map_file(path)
        head = data[:32]
        if head.startswith(LFS):
            raise SdjaxError("a pointer of Git LFS, not the file itself; run `git lfs pull`")
        if head[8:9] != b"{" and not head.startswith((ZIP, b"\x80")):
            raise SdjaxError("neither safetensors nor a torch checkpoint")
        if head[8:9] != b"{" or head[:4] == ZIP:
            return read_pickle(data), {}
        return _read_safetensors(data)


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """Returns the tensors by name of a safetensors file, as read-only views of the mapped file, which must not change.

    It is stricter than the library, which accepts names with "../" and a name twice. SdjaxError: names the file.
    """
    path = Path(path)
    with refusals(path):
        return _read_safetensors(map_file(path))[0]


def _read_safetensors(data: mmap.mmap) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    start, header, metadata = read_header(data)
    entries = {name: read_entry(name, entry) for name, entry in header.items()}
    pos = start
    for begin, end in sorted((begin, end) for *_, begin, end in entries.values()):
        if start + begin != pos:
            raise SdjaxError("its tensors overlap, or leave a hole")
        pos = start + end
    if pos > len(data):
        raise SdjaxError(f"should have {pos} bytes, has {len(data)}: it is cut off")
    if pos < len(data):
        raise SdjaxError(f"has {len(data) - pos} bytes behind its last tensor; a safetensors file ends there")
    for dtype, _, begin, end in entries.values():
        check_truth(data, dtype, start + begin, end - begin)
    tensors = {name: view(data, dtype, start + begin, shape) for name, (dtype, shape, begin, _) in entries.items()}
    return tensors, metadata


def read_header(data: mmap.mmap) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Returns where the data begin, the header without its __metadata__, and these."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 10 or size > len(data) - 8 or data[8:9] != b"{":
        raise SdjaxError("no safetensors header at its beginning, or one that goes beyond the file")
    if size > MAX_HEADER:
        raise SdjaxError(f"its header has {size:,} bytes, the format's limit is {MAX_HEADER:,}")
    text = data[8 : 8 + size]
    if text.count(b"[") + text.count(b"{") > MAX_NESTED or text.count(b",") > MAX_COMMAS:
        raise SdjaxError(f"its header has more than {MAX_NESTED:,} lists and objects, or {MAX_COMMAS:,} values")
    try:
        header = json.loads(text.decode(), object_pairs_hook=unique)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        raise SdjaxError("its header is not JSON") from None
    metadata = header.pop("__metadata__", {})
    if type(metadata) is not dict or not all(type(value) is str for value in metadata.values()):
        raise SdjaxError("its __metadata__ has values that are not text")
    if not 0 < len(header) <= MAX_TENSORS:
        raise SdjaxError(f"has {len(header)} tensors, should be 1 to {MAX_TENSORS}")
    return 8 + size, header, metadata


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns the pairs of a JSON object as a dict. SdjaxError: a key is there twice."""
    found = {}
    for key, value in pairs:
        if key in found:
            raise SdjaxError(f"its header has {shown(key)} twice")
        found[key] = value
    return found


def read_entry(name: str, entry: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """Returns (dtype, shape, begin, end) of one tensor. The bytes count from the end of the header."""
    check_name(name)
    if type(entry) is not dict or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise SdjaxError(f"{shown(name)} should have dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if type(dtype) is not str or dtype not in DTYPES:
        raise SdjaxError(f"{shown(name)} has the dtype {shown(dtype)}, should be one of {', '.join(DTYPES)}")
    if type(shape) is not list or len(shape) > 32 or not all(map(is_count, shape)):
        raise SdjaxError(f"{shown(name)} has no possible shape")
    if type(offsets) is not list or len(offsets) != 2 or not all(map(is_count, offsets)) or offsets[0] > offsets[1]:
        raise SdjaxError(f"{shown(name)} has no possible data_offsets")
    if (size := offsets[1] - offsets[0]) != (want := prod(shape) * DTYPES[dtype].itemsize):
        raise SdjaxError(f"{shown(name)} {shape} has {size} bytes, should have {want}")
    return DTYPES[dtype], tuple(shape), *offsets
