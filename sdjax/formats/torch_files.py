"""Reads PyTorch's .ckpt, .bin and .pt files without torch. The tensors are views of the memory-mapped file.

There are two formats:

zip      stored members prefix/data.pkl, prefix/byteorder, and prefix/data/<key> with one storage each
legacy   four pickles (magic, version, system, object), a fifth with the storage keys, then for each key: numel, bytes
"""

import mmap
import re
import struct
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sdjax.errors import SdjaxError
from sdjax.formats.mapped import MAX_TENSORS, check_name, check_truth, map_file, refusals, view
from sdjax.formats.torch_objects import Tensor, shown
from sdjax.formats.unpickler import MAX_PICKLE, Machine

ZIP = b"PK\3\4"
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001  # of the legacy format

MEMBER = re.compile(
    r"data\.pkl|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id|data/[0-9]{1,20}"
)


NESTED = 3  # how deep a state_dict may lie in others

#: Dicts of tensors that one file has side by side: those of an IP-Adapter. The tensors' names begin with the dict's.
BESIDE = ("image_proj", "ip_adapter")


def read_pickle_checkpoint(path: str | Path) -> dict[str, np.ndarray]:
    """Returns the tensors by name of a file that torch.save wrote, as read-only views of the mapped file.

    The file holds a dict of tensors, or a dict in which "state_dict" or "string_to_param" is one, or all of BESIDE
    are. It must not change while the arrays are used. Nothing in the file is ever executed. SdjaxError: names a file
    that holds anything else.
    """
    path = Path(path)
    with refusals(path):
        return read_pickle(map_file(path))


def read_pickle(data: mmap.mmap) -> dict[str, np.ndarray]:
    """`read_pickle_checkpoint` of a mapped file; its errors do not name the file."""
    value, place = (read_zip if data[:4] == ZIP else read_legacy)(data)
    places, arrays = {}, {}
    for name, tensor in find_tensors(value).items():
        key, dtype, numel, _ = tensor.storage
        if key not in places:
            places[key] = place(key)
            check_truth(data, dtype, places[key], numel * dtype.itemsize)
        start = places[key] + tensor.offset * dtype.itemsize
        arrays[name] = view(data, dtype, start, tensor.shape, tensor.strides)
    return arrays


def find_tensors(value: Any) -> dict[str, Tensor]:
    """Returns the tensors in an unpickled object by name. What lies beside them (steps, notes, None, objects of
    unknown classes) is left out. SdjaxError: it holds no tensors, or one without a possible name."""
    for _ in range(NESTED):
        for root in ("state_dict", "string_to_param"):  # in checkpoints, in the web UI's embeddings
            if isinstance(value, dict) and root in value:
                value = value[root]
    if isinstance(value, dict) and all(isinstance(value.get(name), dict) for name in BESIDE):
        nested = {root: value[root] for root in BESIDE}
        value = {
            f"{root}.{name}" if type(name) is str else name: tensor
            for root, inside in nested.items()
            for name, tensor in inside.items()
        }
    if not isinstance(value, dict) or not value:
        raise SdjaxError(f'holds {shown(value)}, should hold a dict of tensors, or one as "state_dict"')
    found = {}
    for name, tensor in value.items():
        if type(tensor) is Tensor:
            if type(name) is not str:
                raise SdjaxError(f"a tensor's name is {shown(name)}, should be text")
            check_name(name)
            found[name] = tensor
    if not found:
        name, other = next(iter(value.items()))
        raise SdjaxError(f"{shown(name)} is {shown(other)}, should be a tensor; there are no tensors beside it")
    return found


def read_legacy(data: mmap.mmap) -> tuple[Any, Callable[[str], int]]:
    """Returns (the pickled object, a function: storage key -> place of its bytes) of a file in the legacy format."""
    machine = Machine(data[:MAX_PICKLE], legacy=True)
    if data[:1] != b"\x80" or machine.run() != MAGIC:
        raise SdjaxError("neither a zip nor a pickle that torch wrote")
    if machine.run() != VERSION:
        raise SdjaxError(f"its legacy format is not number {VERSION}")
    system = machine.run()
    if type(system) is not dict or system.get("little_endian") is not True:
        raise SdjaxError("its numbers are big-endian, only little-endian is read")
    value, keys, places, pos = machine.run(), machine.run(), {}, machine.pos
    if type(keys) is not list or not all(type(key) is str for key in keys) or sorted(keys) != sorted(machine.storages):
        raise SdjaxError("its list of storages is not that of its tensors")
    for key in keys:
        storage = machine.storages[key]
        if data[pos : pos + 8] != storage.numel.to_bytes(8, "little"):
            raise SdjaxError(f"storage {shown(key)} does not begin with its size, {storage.numel}; is it cut off?")
        places[key] = pos + 8
        pos += 8 + storage.numel * storage.dtype.itemsize
    if pos > len(data):
        raise SdjaxError(f"should have {pos} bytes, has {len(data)}: it is cut off")
    if pos < len(data):
        raise SdjaxError(f"has {len(data) - pos} bytes behind its last storage; torch's files end there")
    return value, places.__getitem__


class Member(NamedTuple):
    """One stored file of a zip: its first byte, its size and its CRC."""

    start: int
    size: int
    crc: int


def zip_members(data: mmap.mmap) -> dict[str, Member]:
    """Returns the members of a zip by name. It refuses what torch does not write and another reader could read
    differently: compression, comments, members that overlap, a directory with holes."""
    end = len(data) - 22
    if end < 0 or data[end : end + 4] != b"PK\5\6":
        raise SdjaxError("the zip has no end record; is the file cut off?")
    here, count, size, start, comment = struct.unpack("<8xHHLLH", data[end:])
    if here != count or comment:
        raise SdjaxError("the zip has several parts or a comment")
    if data[end - 20 : end - 16] == b"PK\6\7" and end >= 76:  # zip64
        (end,) = struct.unpack("<8xQ4x", data[end - 20 : end])
        if end != len(data) - 98 or data[end : end + 4] != b"PK\6\6":
            raise SdjaxError("the zip64 end record is not at its place")
        count, size, start = struct.unpack("<32xQQQ", data[end : end + 56])
    if start + size != end or count > MAX_TENSORS + 16 or 46 * count > size:
        raise SdjaxError("the zip's directory is not at its place, or too long")

    members, places, pos = {}, [(start, end)], start
    for _ in range(count):
        magic, needs, flags, method, crc, packed, size, names, extras, comment, disk, header = struct.unpack(
            "<4s2xBxHH4xLLLHHHH6xL", data[pos : pos + 46]
        )
        name = data[pos + 46 : pos + 46 + names].decode()
        extra = data[pos + 46 + names : pos + 46 + names + extras]
        pos += 46 + names + extras
        if magic != b"PK\1\2" or comment or disk or pos > end:
            raise SdjaxError("the zip's directory is broken")
        size, packed, header = large(extra, size, packed, header)
        if method or packed != size or flags & ~0x808 or needs > 63:  # of the format's version 6.3
            raise SdjaxError(f"the zip's member {shown(name)} is not simply stored")
        local, local_flags, local_method, n, m = struct.unpack("<4s2xHH16xHH", data[header : header + 30])
        body = header + 30 + n + m
        if (
            local != b"PK\3\4"
            or local_method
            or local_flags & ~0x808
            or data[header + 30 : header + 30 + n] != (name.encode())
            or body + size > start
            or name in members
        ):
            raise SdjaxError(f"the zip's member {shown(name)} is not at its place, or there twice")
        members[name] = Member(body, size, crc)
        places.append((header, body + size))
    places.sort()
    if pos != end or any(a[1] > b[0] for a, b in pairwise(places)):
        raise SdjaxError("the zip's members overlap, or its directory has a hole")
    return members


def large(extra: bytes, *values: int) -> list[int]:
    """Returns values of 32 bits, in which 0xFFFFFFFF is replaced by the next 64-bit value of the zip64 field."""
    found, pos = b"", 0
    while pos + 4 <= len(extra):
        kind, n = struct.unpack("<HH", extra[pos : pos + 4])
        found, pos = extra[pos + 4 : pos + 4 + n] if kind == 1 else found, pos + 4 + n
    wide = iter(struct.unpack(f"<{len(found) // 8}Q", found[: len(found) // 8 * 8]))
    return [next(wide, value) if value == 0xFFFFFFFF else value for value in values]


def checked(data: mmap.mmap, name: str, member: Member) -> int:
    """Returns the place of a member's bytes, after checking their CRC."""
    if zlib.crc32(memoryview(data)[member.start : member.start + member.size]) != member.crc:
        raise SdjaxError(f"the CRC of the zip's member {shown(name)} is wrong: the file is damaged")
    return member.start


def read_zip(data: mmap.mmap) -> tuple[Any, Callable[[str], int]]:
    """Returns (the pickled object, a function: storage key -> place of its bytes) of a zip. The function checks the
    bytes' CRC."""
    members = zip_members(data)
    prefix = next((name[:-8] for name in members if name.endswith("/data.pkl")), None)
    if prefix is None:
        raise SdjaxError("a zip without data.pkl, so not torch's")
    for name in members:
        if not name.startswith(prefix) or not MEMBER.fullmatch(name[len(prefix) :]):
            raise SdjaxError(f"the zip has the member {shown(name)}, which torch.save does not write")

    def content(name: str, limit: int) -> bytes:
        member = members[prefix + name]
        if member.size > limit:
            raise SdjaxError(f"{name} has {member.size} bytes, at most {limit} are read")
        start = checked(data, name, member)
        return data[start : start + member.size]

    if prefix + "byteorder" in members and content("byteorder", 16) != b"little":
        raise SdjaxError("its numbers are big-endian, only little-endian is read")
    machine = Machine(content("data.pkl", MAX_PICKLE))
    value = machine.run()
    if machine.pos != len(machine.data):
        raise SdjaxError("data.pkl goes on behind its end")
    for storage in machine.storages.values():
        name, size = f"{prefix}data/{storage.key}", storage.numel * storage.dtype.itemsize
        if name not in members or members[name].size != size:
            raise SdjaxError(f"storage {shown(storage.key)} should have {size} bytes in the zip")
    return value, lambda key: checked(data, f"data/{key}", members[f"{prefix}data/{key}"])
