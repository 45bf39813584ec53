"""A small assembler of torch checkpoints, two good ones, and the hostile ones."""

import io
import struct
import zipfile

import numpy as np

from sdjax.formats.torch_files import MAGIC
from sdjax.formats.torch_objects import STORAGES

FLOATS = np.arange(12, dtype=np.float32).tobytes()


def text(s: str) -> bytes:
    return b"X" + struct.pack("<L", len(s.encode())) + s.encode()


def number(n: int) -> bytes:
    raw = n.to_bytes((n.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def group(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def mapping(items: dict[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


ORDERED = name("collections", "OrderedDict") + b")R"


def storage(key="0", kind="Float", numel=12, legacy=False, device=b"X\3\0\0\0cpu", tail=b"N") -> bytes:
    head = (text("storage"), name("torch", f"{kind}Storage"), text(key), device, number(numel))
    return group(*head, *([tail] if legacy else [])) + b"Q"


def tensor(shape=(3, 4), strides=(4, 1), offset=0, body=None, **fields) -> bytes:
    args = (body or storage(**fields), number(offset), group(*map(number, shape)), group(*map(number, strides)))
    return name("torch._utils", "_rebuild_tensor_v2") + group(*args, b"\x89", ORDERED) + b"R"


def untyped(size: int, key: str = "0", legacy: bool = False) -> bytes:
    """A storage of `size` bytes whose tensors say their own types, as torch saves float8."""
    head = (text("storage"), name("torch.storage", "UntypedStorage"), text(key), text("cpu"), number(size))
    return group(*head, *([b"N"] if legacy else [])) + b"Q"


def typed(body: bytes, shape=(48,), strides=(1,), scalar: bytes | None = None) -> bytes:
    scalar = name("torch", "float8_e4m3fn") if scalar is None else scalar
    args = (body, number(0), group(*map(number, shape)), group(*map(number, strides)), b"\x89", ORDERED, scalar)
    return name("torch._utils", "_rebuild_tensor_v3") + group(*args) + b"R"


def stated(body: bytes) -> bytes:
    return name("torch._utils", "_rebuild_parameter_with_state") + group(body, b"\x89", ORDERED, b"}") + b"R"


def program(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def make_zip(body=None, members=(), drop=(), change=None, compression=zipfile.ZIP_STORED, prefix="archive/") -> bytes:
    """A zip with the pickle of `body`, the storage "0" of 12 floats, and `members` over those."""
    pickle = program(mapping({"w": tensor()}) if body is None else body)
    files = {"data.pkl": pickle, "byteorder": b"little", "data/0": FLOATS, "version": b"3\n", **dict(members)}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for key, value in files.items():
            if key not in drop:
                archive.writestr(prefix + key, value)
    return (change or bytes)(out.getvalue())


def to_zip64(data: bytes) -> bytes:
    """The same zip as one above 4 GB is written: 64-bit sizes and places, and 0xFFFFFFFF in the old fields."""
    count, size, start = struct.unpack("<HLL", data[-12:-2])
    entries, pos, none = [], start, 0xFFFFFFFF
    while pos < start + size:
        packed, length, names, extras = struct.unpack("<LLHH", data[pos + 20 : pos + 32])
        (header,) = struct.unpack("<L", data[pos + 42 : pos + 46])
        fields = struct.pack("<LLHH", none, none, names, extras + 28)
        wide = struct.pack("<HHQQQ", 1, 24, length, packed, header)
        rest = data[pos + 46 : pos + 46 + names + extras]
        entries.append(
            data[pos : pos + 20] + fields + data[pos + 32 : pos + 42] + struct.pack("<L", none) + rest + wide
        )
        pos += 46 + names + extras
    directory = b"".join(entries)
    end = start + len(directory)
    record = struct.pack("<4sQHHLLQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(directory), start)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, end, 1)
    last = struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, none, none, 0)
    return data[:start] + directory + record + locator + last


def save_zip(tensors: dict[str, np.ndarray]) -> bytes:
    """What torch.save makes of a dict of tensors that share no storage."""
    kinds = {np.dtype(dtype): kind for kind, dtype in STORAGES.items()}
    entries, members = {}, {}
    for i, (key, value) in enumerate(tensors.items()):
        steps = tuple(stride // value.itemsize for stride in np.ascontiguousarray(value).reshape(value.shape).strides)
        entries[key] = tensor(value.shape, steps, key=str(i), kind=kinds[value.dtype], numel=value.size)
        members[f"data/{i}"] = value.tobytes()
    return make_zip(mapping(entries), members)


def make_legacy(body=None, keys=("0",), data=None, magic=MAGIC, version=1001, little=b"\x88") -> bytes:
    body = mapping({"w": tensor(legacy=True)}) if body is None else body
    data = struct.pack("<q", 12) + FLOATS if data is None else data
    keys = b"](" + b"".join(map(text, keys)) + b"e"
    parts = number(magic), number(version), mapping({"little_endian": little}), body, keys
    return b"".join(map(program, parts)) + data


GOOD = {"zip": make_zip(), "legacy": make_legacy()}

VIEW = tensor((1 << 20,), (1,), kind="Bool", numel=1 << 20)
SYSTEM = name("os", "system") + group(text("true")) + b"R"
NESTED = b")" + b"\x86".join([b"q\0h\0"] * 200) + b"\x86"  # 2^200 leaves


def patched(old: bytes, new: bytes, last: bool = False):
    def change(data: bytes) -> bytes:
        at = data.rfind(old) if last else data.find(old)
        assert at >= 0
        return data[:at] + new + data[at + len(old) :]

    return change


def twice(data: bytes) -> bytes:
    """data/1 renamed to data/0, in the directory and in place."""
    return data.replace(b"archive/data/1", b"archive/data/0")


def overlapping(data: bytes) -> bytes:
    """The second member's directory entry points at the first's place."""
    end = data.rfind(b"PK\5\6")
    start = struct.unpack("<L", data[end + 16 : end + 20])[0]
    first, second = data.find(b"PK\1\2", start), data.find(b"PK\1\2", start + 4)
    return data[:second] + data[first:second] + data[second + (second - first) :]


def with_root(**items: bytes) -> bytes:
    return make_zip(mapping(items))


def with_raw(pickle: bytes) -> bytes:
    return make_zip(members={"data.pkl": pickle})


HOSTILE = {
    # programs
    "call in place of the root": lambda: make_zip(SYSTEM),
    "call among the tensors": lambda: with_root(w=SYSTEM),
    "call in the state dict": lambda: with_root(state_dict=mapping({"w": SYSTEM})),
    "stack global": lambda: with_root(w=text("os") + text("system") + b"\x93" + group(text("true")) + b"R"),
    "object by INST": lambda: make_zip(b"(" + text("true") + b"ios\nsystem\n"),
    "object by OBJ": lambda: make_zip(b"(" + name("os", "system") + text("true") + b"o"),
    "extension registry": lambda: make_zip(b"\x82\1"),
    "text of protocol 0": lambda: make_zip(b"I1\n"),
    "out of band buffer": lambda: make_zip(b"\x97"),
    "persistent id as text": lambda: make_zip(b"P0\n"),
    "unknown opcode": lambda: make_zip(b"\xff"),
    "protocol 6": lambda: with_raw(b"\x80\x06}."),
    "huge memo index, empty": lambda: make_zip(b"j\xff\xff\xff\xff"),
    "memo of an empty stack": lambda: make_zip(b"q\0"),
    "text of 4 GiB": lambda: make_zip(b"X\xff\xff\xff\xff"),
    "text of 2^63 bytes": lambda: make_zip(b"\x8d" + b"\xff" * 7 + b"\x7f"),
    "bytes of 2^64": lambda: make_zip(b"\x8e" + b"\xff" * 8),
    "bytearray of 2^62": lambda: make_zip(b"\x96" + bytes(7) + b"\x40"),
    "number of 2^31 bytes": lambda: make_zip(b"\x8b\xff\xff\xff\x7f"),
    "text that is not UTF-8": lambda: make_zip(b"X\1\0\0\0\xff"),
    "endless global": lambda: make_zip(b"c" + b"x" * 5000),
    "empty pickle": lambda: with_raw(b""),
    "no stop": lambda: with_raw(b"\x80\x02}"),
    "stop on an empty stack": lambda: make_zip(b""),
    "stop on two values": lambda: make_zip(b"}}"),
    "stop inside a list": lambda: make_zip(b"}(}"),
    "bytes behind the stop": lambda: with_raw(program(mapping({"w": tensor()})) + b"."),
    "tuple without mark": lambda: make_zip(b"t"),
    "a million marks": lambda: make_zip(b"(" * 1_000_000),
    "a million values": lambda: make_zip(b"}" * 1_000_000),
    "a tuple in itself 2^200 times as a key": lambda: make_zip(b"}" + NESTED + b"Ns"),
    "a list as a key": lambda: with_root(state_dict=mapping({"w": tensor()}), x=b"}]Ns"),
    "a dict in a tuple as a key": lambda: with_root(state_dict=mapping({"w": tensor()}), x=b"}}\x85Ns"),
    "a set as a key": lambda: with_root(state_dict=mapping({"w": tensor()}), x=b"}\x8fNs"),
    "a set of lists": lambda: with_root(state_dict=mapping({"w": tensor()}), x=b"\x8f(]\x90"),
    "a frozen set of lists": lambda: with_root(state_dict=mapping({"w": tensor()}), x=b"(]\x91"),
    "a long tuple as a key 100,000 times": lambda: make_zip(
        b"(" + b"N" * 90_000 + b"tq\0" + b"0" + b"}h\0Ns0" * 100_000 + mapping({"w": tensor()})
    ),
    "append to a set": lambda: with_root(state_dict=mapping({"w": tensor()}), x=b"\x8fNa"),
    "a zip of version 25.5": lambda: make_zip(change=patched(b"PK\1\2\x14\3\x14", b"PK\1\2\x14\3\xff", last=True)),
    "a tuple in itself 2^200 times as the root": lambda: make_zip(NESTED),
    "a million lists, each in the next": lambda: make_zip(b"]q\0" + b"0]h\0aq\0" * 1_000_000),
    "a dict in itself": lambda: make_zip(b"}q\0" + text("w") + b"h\0s"),
    "a dict that is its state dict": lambda: make_zip(b"}q\0" + text("state_dict") + b"h\0s"),
    "a name twice": lambda: make_zip(b"}(" + (text("w") + tensor()) * 2 + b"u"),
    "an odd number of items": lambda: make_zip(b"}(" + text("w") + b"u"),
    "items of a number": lambda: make_zip(b"K\1(" + text("w") + b"Nu"),
    "append to a tuple": lambda: make_zip(b")Na"),
    "attributes of a tensor": lambda: with_root(w=tensor() + b"}b"),
    "call of a tensor": lambda: with_root(w=tensor() + b")R"),
    "call of a text": lambda: with_root(w=text("OrderedDict") + b")R"),
    "call of a storage type": lambda: with_root(w=name("torch", "FloatStorage") + group(number(1 << 40)) + b"R"),
    "ordered dict of arguments": lambda: make_zip(name("collections", "OrderedDict") + group(b"]") + b"R"),
    "texts that grow fourfold": lambda: make_zip(
        b"}(" + b"".join(text("x" * (8 << 20) + "😀") + b"N" for _ in range(7)) + b"u"
    ),
    "two million lists": lambda: make_zip(b"](" + b"]" * 50_000 + b"e" + (b"(" + b"]" * 50_000 + b"e") * 39),
    "a million calls": lambda: make_zip(ORDERED + (b"0" + name("a", "b") + b")R") * 600_000),
    # what the program describes
    "a list as root": lambda: make_zip(b"]"),
    "a number as root": lambda: make_zip(b"K\1"),
    "no tensors": lambda: with_root(),
    "state dict is a list": lambda: with_root(state_dict=b"]", w=tensor()),
    "a number in place of the only tensor": lambda: with_root(epoch=b"K\1"),
    "a typed tensor of a typed storage": lambda: with_root(w=typed(storage())),
    "a tensor of an untyped storage": lambda: with_root(w=tensor(body=untyped(48))),
    "a typed tensor of no type": lambda: with_root(w=typed(untyped(48), scalar=b"K\1")),
    "a typed tensor beyond its storage": lambda: with_root(w=typed(untyped(48), (49,), (1,))),
    "an untyped storage of another size": lambda: with_root(w=typed(untyped(47), (47,), (1,))),
    "a stated parameter of a number": lambda: with_root(w=stated(b"K\1")),
    "legacy untyped storage": lambda: make_legacy(mapping({"w": typed(untyped(12, legacy=True))})),
    "a number as name": lambda: make_zip(b"}K\1" + tensor() + b"s"),
    "a name with line breaks": lambda: make_zip(mapping({"a\nb": tensor()})),
    "a name that climbs": lambda: make_zip(mapping({"../../w": tensor()})),
    "an absolute name": lambda: make_zip(mapping({"/etc/w": tensor()})),
    "an empty name": lambda: make_zip(mapping({"": tensor()})),
    "a name of 1000 letters": lambda: make_zip(mapping({"w" * 1000: tensor()})),
    "tensor without storage": lambda: with_root(w=tensor(body=b"N")),
    "tensor of a tuple": lambda: with_root(w=tensor(body=group(text("storage")))),
    "tensor of a storage type": lambda: with_root(w=tensor(body=name("torch", "FloatStorage"))),
    "tensor with few arguments": lambda: with_root(w=name("torch._utils", "_rebuild_tensor_v2") + b")R"),
    "parameter of a number": lambda: with_root(
        w=name("torch._utils", "_rebuild_parameter") + group(b"K\1", b"\x88", b"N") + b"R"
    ),
    "stride 0": lambda: with_root(w=tensor((1 << 40,), (0,))),
    "small stride 0": lambda: with_root(w=tensor((2,), (0,))),
    "overlapping windows": lambda: with_root(w=tensor((4, 4), (1, 1))),
    "negative stride": lambda: with_root(w=tensor((3,), (-1,), 2)),
    "negative size": lambda: with_root(w=tensor((-3, -4))),
    "negative offset": lambda: with_root(w=tensor((3,), (1,), -1)),
    "beyond the storage": lambda: with_root(w=tensor((13,), (1,))),
    "offset beyond the storage": lambda: with_root(w=tensor((3,), (1,), 10)),
    "empty beyond the storage": lambda: with_root(w=tensor((0,), (1,), 13)),
    "an empty shape of 2^80": lambda: with_root(w=tensor((0, 1 << 40, 1 << 40), (1, 1, 1))),
    "size of 600 digits": lambda: with_root(w=tensor((1 << 2000,), (1,))),
    "true as a size": lambda: with_root(w=tensor(body=storage(), offset=0).replace(number(3), b"\x88", 1)),
    "more strides than sizes": lambda: with_root(w=tensor((12,), (1, 1))),
    "33 dimensions": lambda: with_root(w=tensor((1,) * 33, (1,) * 33)),
    "storage of 2^60": lambda: with_root(w=tensor(numel=1 << 60)),
    "negative storage": lambda: with_root(w=tensor(numel=-1)),
    "storage larger than its member": lambda: with_root(w=tensor((13,), (1,), numel=13)),
    "storage smaller than its member": lambda: with_root(w=tensor((3,), (1,), numel=11)),
    "storage of another type": lambda: with_root(w=tensor(kind="Double")),
    "storage of an unknown type": lambda: with_root(w=tensor(kind="QInt8")),
    "storage without a member": lambda: with_root(w=tensor(key="1")),
    "storage key that climbs": lambda: with_root(w=tensor(key="../version")),
    "storage with two sizes": lambda: with_root(v=tensor(), w=tensor(numel=11)),
    "storage with two types": lambda: with_root(v=tensor(), w=tensor(kind="Int")),
    "device is a number": lambda: with_root(w=tensor(device=b"K\1")),
    "a module by id": lambda: make_zip(group(text("module"), b"N", b"N", b"N", b"N") + b"Q"),
    "a type by id": lambda: make_zip(group(*[name("torch", "FloatStorage")] * 5) + b"Q"),
    "20,000 views of one storage of truth values": lambda: make_zip(
        mapping({f"{i}": VIEW for i in range(20_000)}), {"data/0": b"\1" * ((1 << 20) - 1) + b"\2"}
    ),
    "truth values of 2": lambda: make_zip(mapping({"w": tensor((48,), (1,), kind="Bool", numel=48)})),
    # zips
    "cut off": lambda: GOOD["zip"][:-1],
    "bytes behind": lambda: GOOD["zip"] + b"\0",
    "only the magic": lambda: b"PK\3\4",
    "no data.pkl": lambda: make_zip(drop=["data.pkl"]),
    "compressed": lambda: make_zip(compression=zipfile.ZIP_DEFLATED),
    "big-endian": lambda: make_zip(members={"byteorder": b"big"}),
    "code in it": lambda: make_zip(members={"code/__torch__.py": b""}),
    "a member that climbs": lambda: make_zip(members={"../evil": b""}),
    "two pickles": lambda: make_zip(members={"x/data.pkl": program(b"}")}),
    "a member twice": lambda: make_zip(members={"data/1": FLOATS}, change=twice),
    "a member in another's place": lambda: make_zip(change=overlapping),
    "wrong CRC of a storage": lambda: make_zip(change=patched(FLOATS, FLOATS[:-1] + b"\0")),
    "wrong CRC of the pickle": lambda: make_zip(change=patched(text("w"), text("v"))),
    "another name in the directory": lambda: make_zip(change=patched(b"data/0", b"data/1", last=True)),
    "another name in place": lambda: make_zip(change=patched(b"data/0", b"data/1")),
    "encrypted": lambda: make_zip(change=patched(b"PK\1\2\x14\3\x14\0\0\0", b"PK\1\2\x14\3\x14\0\1\0", last=True)),
    "a comment": lambda: GOOD["zip"][:-2] + b"\1\0!",
    "more members than there are": lambda: make_zip(change=lambda data: data[:-14] + b"\xff\xff\xff\xff" + data[-10:]),
    "directory elsewhere": lambda: make_zip(change=lambda data: data[:-6] + b"\0\0\0\0" + data[-2:]),
    "a longer directory": lambda: make_zip(change=lambda data: data[:-10] + b"\xff\xff\xff\x7f" + data[-6:]),
    "bytes before": lambda: b"PK\3\4" + GOOD["zip"],
    # legacy
    "nothing": lambda: b"",
    "another magic": lambda: make_legacy(magic=MAGIC + 1),
    "another version": lambda: make_legacy(version=1002),
    "legacy big-endian": lambda: make_legacy(little=b"\x89"),
    "legacy call": lambda: make_legacy(SYSTEM),
    "legacy call as magic": lambda: program(SYSTEM),
    "legacy keys missing": lambda: make_legacy(keys=()),
    "legacy keys too many": lambda: make_legacy(keys=("0", "1")),
    "legacy keys twice": lambda: make_legacy(keys=("0", "0"), data=(struct.pack("<q", 12) + FLOATS) * 2),
    "legacy storage of another size": lambda: make_legacy(data=struct.pack("<q", 11) + FLOATS),
    "legacy storage of a negative size": lambda: make_legacy(data=struct.pack("<q", -12) + FLOATS),
    "legacy storage cut off": lambda: GOOD["legacy"][:-1],
    "legacy bytes behind": lambda: GOOD["legacy"] + b"\0",
    "legacy view of a storage": lambda: make_legacy(
        mapping({"w": tensor(legacy=True, tail=group(text("1"), b"K\0", b"K\1"))})
    ),
    "legacy unknown storage": lambda: make_legacy(mapping({"w": tensor(legacy=True, kind="QInt8")})),
    "legacy module": lambda: make_legacy(group(text("module"), name("a", "B"), text("a.py"), text("")) + b"Q"),
    "plain pickle": lambda: program(mapping({"w": b"]"})),
    "text": lambda: b"hello, this is no checkpoint",
    "a tar": lambda: b"storages".ljust(100, b"\0") + bytes(412),
}
