"""Structure-aware mutations of weight files: whatever a file holds, it is refused, or read as others read it.

    python -m tests.weights.fuzz 1000000        # one process; prints how many were read and how many refused

A checkpoint is mutated opcode by opcode, member by member of its zip and byte by byte; a safetensors file field by
field of its header. What is read is compared with Python's own unpickler (given harmless stand-ins) over zipfile, or
with the safetensors library: neither shares a line with the readers under test.
"""

import json
import pickletools
import random
import struct
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from sdjax.errors import SdjaxError
from sdjax.formats.tensors import read_tensors
from sdjax.formats.torch_objects import GLOBALS, STORAGES, Known
from tests.formats.assembler import (
    ORDERED,
    SYSTEM,
    group,
    make_legacy,
    make_zip,
    mapping,
    name,
    number,
    program,
    storage,
    tensor,
    text,
)
from tests.formats.oracle import expected_checkpoint, expected_safetensors

KINDS = {kind: np.dtype(dtype) for kind, dtype in STORAGES.items()}
NUMBERS = [
    -(1 << 63),
    -2,
    -1,
    0,
    1,
    2,
    3,
    4,
    5,
    7,
    8,
    11,
    12,
    13,
    24,
    255,
    256,
    65535,
    1 << 31,
    1 << 32,
    1 << 47,
    1 << 48,
    1 << 62,
    1 << 63,
    1 << 64,
    1 << 200,
]
WORDS = ["w", "a.b", "", "..", "../x", "/x", "state_dict", "0", "1", "cpu", "storage", "x" * 600, "a\nb", "é", "\0"]

MEMBERS = ["data/0", "data/01", "../x", "x/data.pkl", "code/a.py", ".data/serialization_id"]

# ---- checkpoints


def contents(rng: random.Random) -> tuple[bytes, dict[str, bytes]]:
    """The body of a good checkpoint's pickle, and its storages."""
    entries, members = {}, {}
    for key in map(str, range(rng.randint(1, 2))):
        kind = rng.choice(list(KINDS))
        numel = rng.choice([1, 4, 12])
        members[key] = (
            rng.randbytes(numel * KINDS[kind].itemsize) if kind != "Bool" else bytes(rng.choices((0, 1), k=numel))
        )
        for i in range(rng.randint(1, 2)):
            shape, strides, offset = rng.choice(
                [
                    ((numel,), (1,), 0),
                    ((), (), numel - 1),
                    ((numel // 2, 2), (2, 1), 0),
                    ((2, numel // 2), (1, 2), 0),
                    ((numel // 2,), (2,), 0),
                    ((0, 3), (3, 1), 0),
                    ((1, numel), (99, 1), 0),
                ]
            )
            value = tensor(shape, strides, offset, kind=kind, numel=numel, key=key, legacy=False)
            if rng.random() < 0.2:
                value = name(*Known.PARAMETER.value) + group(value, b"\x88", ORDERED) + b"R"
            entries[f"w{key}.{i}"] = value
    body = mapping(entries) if rng.random() < 0.5 else ORDERED + mapping(entries)[1:]
    if rng.random() < 0.5:
        stranger = name("lightning", "Callback") + b")\x81" + mapping({"x": number(3)}) + b"b"
        body = mapping({"epoch": number(3), "state_dict": body, "callbacks": mapping({"c": stranger})})
    return body, members


def tokens(body: bytes) -> list[bytes]:
    """A pickle's opcodes, each with its argument."""
    return [body[a:b] for a, b in pairwise(pos for _, _, pos in pickletools.genops(body + b"."))]


SNIPPETS = [bytes([op]) for op in range(256)] + [
    text("w"),
    tensor(),
    tensor((2,), (0,)),
    tensor((13,), (1,)),
    storage(),
    storage(key="1"),
    ORDERED,
    SYSTEM,
    b"K\3",
    b"q\0",
    b"h\0",
    b"j\xff\xff\xff\xff",
    b"X\xff\xff\xff\x7f",
    b"\x8e" + b"\xff" * 8,
    *(name(*pair) for pair in GLOBALS),
    name("os", "system"),
    name("builtins", "eval"),
]


def other(token: bytes, rng: random.Random) -> bytes:
    """A token like this one."""
    op = token[:1]
    if op in b"XU\x8c":
        return text(rng.choice(WORDS))
    if op in b"KMJ\x8a":
        return number(rng.choice(NUMBERS))
    if op == b"c":
        return name(*rng.choice(list(GLOBALS))) if rng.random() < 0.8 else name("os", "system")
    return rng.choice(SNIPPETS)


def shuffled(items: list, rng: random.Random, like: Callable[[Any, random.Random], Any]) -> list:
    """`items` with one replaced, left out, doubled, moved or exchanged."""
    items, i = list(items), rng.randrange(len(items))
    j = rng.randrange(len(items))
    match rng.randrange(6):
        case 0 | 1:
            items[i] = like(items[i], rng)
        case 2:
            del items[i]
        case 3:
            items.insert(j, items[i])
        case 4:
            items.insert(j, items.pop(i))
        case 5:
            items[i], items[j] = items[j], items[i]
    return items


def flipped(data: bytes, rng: random.Random) -> bytes:
    """Bits turned, bytes cut off, put in or left out."""
    data, at = bytearray(data), rng.randrange(max(len(data), 1))
    match rng.randrange(5):
        case 0 | 1:
            for _ in range(rng.randint(1, 3)):
                if data:
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 2:
            del data[at:]
        case 3:
            data[at:at] = rng.randbytes(rng.choice([1, 4, 8]))
        case 4:
            del data[at : at + rng.choice([1, 4, 8])]
    return bytes(data)


def numbers_changed(data: bytes, rng: random.Random) -> bytes:
    """One field of one of the zip's records replaced by another number."""
    at = rng.choice([place for magic in (b"PK\1\2", b"PK\3\4", b"PK\5\6") for place in find_all(data, magic)])
    at += 2 * rng.randint(2, 21)
    width = rng.choice("HL")
    value = struct.pack(f"<{width}", rng.choice(NUMBERS) % (1 << 16 if width == "H" else 1 << 32))
    return data[:at] + value + data[at + len(value) :]


def find_all(data: bytes, what: bytes) -> list[int]:
    found, at = [], data.find(what)
    while at >= 0:
        found.append(at)
        at = data.find(what, at + 1)
    return found


def zip_case(rng: random.Random) -> bytes:
    body, members = contents(rng)
    for _ in range(rng.choice([0, 0, 1, 1, 1, 2, 4])):
        if not parses(body):
            break
        body = b"".join(shuffled(tokens(body), rng, other))
    pickled = program(body)
    if rng.random() < 0.1:
        pickled = flipped(pickled, rng)
    files = {f"data/{key}": value for key, value in members.items()} | {"data.pkl": pickled}
    if rng.random() < 0.15:
        key = rng.choice(list(files))
        match rng.randrange(4):
            case 0:
                files[rng.choice(MEMBERS)] = files.pop(key)
            case 1:
                del files[key]
            case 2:
                files[key] = flipped(files[key], rng)
            case 3:
                files["byteorder"] = rng.choice([b"big", b"little", b"", b"little\n"])
    compression = rng.choice([zipfile.ZIP_STORED] * 30 + [zipfile.ZIP_DEFLATED])
    data = make_zip(members=files, drop={"data/0", "data.pkl"} - set(files), compression=compression)
    if rng.random() < 0.2:
        data = (flipped if rng.random() < 0.5 else numbers_changed)(data, rng)
    return data


def parses(body: bytes) -> bool:
    """Can it be cut into opcodes once more?"""
    try:
        return len(list(pickletools.genops(body + b"."))) > 1
    except (ValueError, IndexError, OverflowError):
        return False


def legacy_case(rng: random.Random) -> bytes:
    kind, numel = rng.choice(list(KINDS)), rng.choice([1, 4, 12])
    content = rng.randbytes(numel * KINDS[kind].itemsize) if kind != "Bool" else bytes(rng.choices((0, 1), k=numel))
    body = mapping({"w": tensor((numel,), (1,), kind=kind, numel=numel, legacy=True)})
    size, keys = numel, ["0"]
    for _ in range(rng.choice([0, 1, 1, 2])):
        if parses(body):
            body = b"".join(shuffled(tokens(body), rng, other))
    if rng.random() < 0.15:
        size = rng.choice(NUMBERS[:-4])
    if rng.random() < 0.1:
        keys = rng.choice([[], ["1"], ["0", "0"], ["0", "1"]])
    size = min(max(size, -(1 << 63)), (1 << 63) - 1)
    data = make_legacy(body, keys, struct.pack("<q", size) + content)
    return flipped(data, rng) if rng.random() < 0.3 else data


# ---- safetensors

FIELDS = {"F32": 4, "F16": 2, "U8": 1, "BOOL": 1, "I64": 8, "F64": 8}
ANY = [None, True, -1, 0, 1, 2, 3, 1.5, 1 << 63, "F32", "", [], {}, [1], [0, 4], [[1]], {"a": 1}]


def safetensors_case(rng: random.Random) -> bytes:
    header, data = {}, b""
    for i in range(rng.randint(1, 3)):
        dtype, shape = rng.choice(list(FIELDS)), rng.choice([[], [1], [2, 2], [0, 3], [4], [1, 2, 1]])
        size = int(np.prod(shape)) * FIELDS[dtype]
        header[f"w{i}"] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + size]}
        data += bytes(rng.choices((0, 1), k=size)) if dtype == "BOOL" else rng.randbytes(size)
    if rng.random() < 0.3:
        header["__metadata__"] = {"format": "pt"}
    for _ in range(rng.choice([0, 1, 1, 1, 2])):
        key = rng.choice(list(header))
        entry = header[key]
        match rng.randrange(6):
            case 0:
                header[rng.choice([*WORDS, "w0", "__metadata__"])] = header.pop(key)
            case 1:
                header[key] = rng.choice(ANY)
            case 2 | 3 if isinstance(entry, dict) and entry:
                header[key] = entry | {rng.choice(list(entry)): rng.choice([*ANY, *FIELDS])}
            case 4 if isinstance(entry, dict):
                field = rng.choice(["shape", "data_offsets"])
                if isinstance(numbers := entry.get(field), list) and numbers:
                    at = rng.randrange(len(numbers))
                    new = rng.choice([*NUMBERS, len(data)])
                    header[key] = entry | {field: [*numbers[:at], new, *numbers[at + 1 :]]}
            case 5:
                data = flipped(data, rng)
    raw = json.dumps(header).encode()
    if rng.random() < 0.05:
        raw = raw.replace(b'"w1"', b'"w0"')  # a name twice
    if rng.random() < 0.3:
        raw += b" " * (-len(raw) % 8)
    if rng.random() < 0.1:
        raw = flipped(raw, rng)
    size = len(raw) if rng.random() < 0.95 else rng.choice(NUMBERS) % (1 << 64)
    whole = size.to_bytes(8, "little") + raw + data
    return flipped(whole, rng) if rng.random() < 0.1 else whole


# ---- the run

CASES = ((zip_case, expected_checkpoint), (legacy_case, expected_checkpoint), (safetensors_case, expected_safetensors))


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == np.asarray(b).tobytes()


def fuzz(count: int, folder: Path, seed: int = 0) -> Counter:
    """`count` files; how many of each kind were read and refused. Raises AssertionError with the seed of a failure."""
    outcomes, path = Counter(), folder / "file"
    for i in range(seed, seed + count):
        make, expected = CASES[i % len(CASES)]
        data = make(random.Random(i))
        path.unlink(missing_ok=True)  # to write over a file costs ext4 a flush
        path.write_bytes(data)
        try:
            got = read_tensors(path)
        except SdjaxError as error:
            message = str(error).removeprefix(f"{path}: ")
            assert message != str(error) and "\n" not in message and len(message) < 400, (i, message)
            outcomes[make.__name__, "refused"] += 1
            continue
        except BaseException as error:
            raise AssertionError(f"seed {i}: {error!r}") from error
        try:
            want = expected(data)
            assert list(got) == list(want) or (expected is expected_safetensors and set(got) == set(want))
            assert all(same(got[key], want[key]) for key in want)
        except BaseException as error:
            raise AssertionError(f"seed {i}: read, but not as others read it: {error!r}") from error
        outcomes[make.__name__, "read"] += 1
    return outcomes


if __name__ == "__main__":
    wanted, first = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    begun = time.process_time()
    with TemporaryDirectory() as scratch:
        total = fuzz(wanted, Path(scratch), first)
    for (kind, outcome), n in sorted(total.items()):
        print(f"{kind.removesuffix('_case'):12} {outcome:8} {n:9,}")
    print(f"{wanted:,} files in {time.process_time() - begun:.0f} s of one processor")
