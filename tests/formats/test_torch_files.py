"""Checkpoints made by hand, opcode by opcode: the good are read, the hostile are refused in one line."""

import io
import os
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from ml_dtypes import bfloat16

from sdjax.errors import SdjaxError
from sdjax.formats import unpickler as machine
from sdjax.formats.torch_files import read_pickle_checkpoint
from tests.formats.assembler import (
    FLOATS,
    GOOD,
    HOSTILE,
    ORDERED,
    SYSTEM,
    group,
    make_legacy,
    make_zip,
    mapping,
    name,
    number,
    program,
    stated,
    storage,
    tensor,
    text,
    to_zip64,
    typed,
    untyped,
    with_raw,
    with_root,
)

QUICK = settings(deadline=1000, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read(path, content: bytes):
    path.write_bytes(content)
    return read_pickle_checkpoint(path)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.ckpt"


@pytest.mark.parametrize("kind", GOOD)
def test_reads_a_dict_of_tensors(path, kind):
    ((key, value),) = read(path, GOOD[kind]).items()
    assert key == "w" and not value.flags.writeable and not value.flags.owndata
    np.testing.assert_array_equal(value, np.arange(12, dtype=np.float32).reshape(3, 4))


def test_views_parameters_and_every_type(path):
    ours = np.arange(12, dtype=np.float32)
    parameter = name("torch._utils", "_rebuild_parameter") + group(tensor((4, 3), (1, 4)), b"\x88", ORDERED) + b"R"
    body = {
        "transposed": parameter,
        "part": tensor((2, 2), (4, 2), 5),
        "scalar": tensor((), (), 7),
        "empty": tensor((0, 3), (3, 1), 12),
        "one": tensor((1, 3), (999, 1)),
    }
    got = read(path, make_zip(name("collections", "OrderedDict") + b")R" + mapping(body)[1:]))
    want = {
        "transposed": ours.reshape(3, 4).T,
        "part": ours.reshape(3, 4)[1:, 1::2],
        "scalar": ours[7],
        "empty": ours[:0].reshape(0, 3),
        "one": ours[None, :3],
    }
    assert list(got) == list(want)
    for key in want:
        np.testing.assert_array_equal(got[key], want[key])

    for kind, dtype in machine.STORAGES.items():
        values = np.array([0, 1, 1, 0, 1]).astype(dtype)
        body = mapping({"w": tensor((5,), (1,), kind=kind, numel=5)})
        value = read(path, make_zip(body, {"data/0": values.tobytes()}))["w"]
        assert value.dtype == dtype and (value == values).all()
    assert machine.STORAGES["BFloat16"] is bfloat16


def test_strangers_beside_the_state_dict_are_never_imported(path, tmp_path):
    """What lightning writes beside the weights, and a command that must not run."""
    victim = tmp_path / "ran"
    callback = name("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
    dtype = name("numpy", "dtype") + group(text("f8")) + b"R"
    scalar = name("numpy.core.multiarray", "scalar") + group(dtype, b"C\0") + b"R"
    by_default = name("collections", "defaultdict") + group(name("builtins", "dict")) + b"R"
    tuples = group(b"N", b"G" + bytes(8)) + number(7)
    body = mapping(
        {
            "callbacks": b"}(" + callback + mapping({"best": scalar}) + tuples + b"u",
            "evil": name("os", "system") + group(text(f"touch {victim}")) + b"R",
            "object": name("builtins", "object") + b")\x81" + mapping({"x": number(3)}) + b"b",
            "optimizer": by_default + b"(" + text("k") + tensor() + b"u",
            "complex": tensor(kind="ComplexFloat", key="9"),
            "state_dict": ORDERED + b"(" + text("w") + tensor() + b"u" + mapping({"_metadata": ORDERED}) + b"b",
        }
    )
    assert list(read(path, make_zip(body))) == ["w"]
    assert not victim.exists()


def test_protocol_4(path):
    body = (
        b"\x80\x04\x95"
        + bytes(8)
        + b"}\x94(\x8c\x01w\x94\x8c\x0ctorch._utils\x94"
        + b"\x8c\x12_rebuild_tensor_v2\x94\x93\x94"
        + group(storage(), b"K\0", b"K\x0c\x85", b"K\x01\x85", b"\x89", b"N")
        + b"R\x94u."
    )
    assert read(path, make_zip(members={"data.pkl": body}))["w"].shape == (12,)


@pytest.mark.parametrize("trap", HOSTILE)
def test_hostile_files_are_refused(path, trap):
    with pytest.raises(SdjaxError) as refusal:
        read(path, HOSTILE[trap]())
    message = str(refusal.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < len(str(path)) + 300


def test_paths_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for bad in (tmp_path, tmp_path / "none", tmp_path / "fifo"):
        with pytest.raises(SdjaxError, match="no such file"):
            read_pickle_checkpoint(bad)


def test_limits(path, monkeypatch):
    for limit, value, what in (("MAX_TENSORS", 1, "tensors"), ("MAX_OPCODES", 50, "opcodes")):
        with monkeypatch.context() as patch, pytest.raises(SdjaxError, match=f"more than {value} {what}"):
            patch.setattr(machine, limit, value)
            read(path, with_root(a=tensor(), b=tensor()))
    big = mapping({"x": b"B" + struct.pack("<L", 64 << 20) + bytes(64 << 20)})
    with pytest.raises(SdjaxError, match="at most 67108864 are read"):
        read(path, make_zip(big))
    with pytest.raises(SdjaxError, match="more than 64 MiB"):
        read(path, make_legacy(big))


def outcome(path, content: bytes):
    """The arrays, or None for a refusal; anything else fails the test."""
    try:
        return read(path, content)
    except SdjaxError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
        return None


@QUICK
@given(st.binary(max_size=200), st.sampled_from([b"", b"PK\3\4", b"\x80\x02", GOOD["legacy"][:140], GOOD["zip"][:60]]))
def test_random_bytes(path, content, head):
    assert outcome(path, head + content) is None


@QUICK
@given(st.sampled_from(sorted(GOOD)), st.integers(0, 10_000))
def test_random_truncation(path, kind, at):
    assert outcome(path, GOOD[kind][: at % len(GOOD[kind])]) is None


@QUICK
@given(st.sampled_from(sorted(GOOD)), st.lists(st.integers(0, 100_000), min_size=1, max_size=4, unique=True))
def test_random_bit_flips(path, kind, bits):
    data = bytearray(GOOD[kind])
    for bit in bits:
        data[bit // 8 % len(data)] ^= 1 << bit % 8
    arrays = outcome(path, bytes(data))
    if arrays is not None and kind == "zip" and data != GOOD[kind]:  # CRCs cover all that matters
        np.testing.assert_array_equal(arrays["w"], np.frombuffer(FLOATS, np.float32).reshape(3, 4))


@QUICK
@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=3))
def test_bit_flips_of_the_pickle_under_a_right_crc(path, bits):
    data = bytearray(program(mapping({"state_dict": mapping({"w": tensor(), "v": tensor((4, 3), (1, 4))})})))
    for bit in bits:
        data[bit // 8 % len(data)] ^= 1 << bit % 8
    for value in (outcome(path, with_raw(bytes(data))) or {}).values():
        value.sum()  # inside the file


GLOBALS = [name(*known.value) for known in machine.Known] + [name("torch", "HalfStorage"), name("a", "b")]
SNIPPETS = [bytes([op]) for op in range(256)] + [
    text("w"),
    text("state_dict"),
    tensor(),
    tensor((2,), (0,)),
    storage(),
    ORDERED,
    SYSTEM,
    number(1 << 70),
    b"K\3",
    b"q\0",
    b"h\0",
    b"}",
    b"]",
    b"(",
    b"u",
    b"t",
    b"R",
    b"s",
    b"Q",
    b"\x86",
    *GLOBALS,
]


@QUICK
@given(st.lists(st.sampled_from(SNIPPETS), max_size=40))
@example([b"}", text("w"), tensor(), b"s"])
def test_random_programs(path, snippets):
    for value in (outcome(path, make_zip(b"".join(snippets))) or {}).values():
        value.sum()


def test_zip64(path):
    """As checkpoints of more than 4 GB have it; Python's own reader agrees that it is one."""
    data = to_zip64(make_zip())
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None and archive.read("archive/data/0") == FLOATS
    found, plain = read(path, data), read(path.with_name("plain"), make_zip())
    np.testing.assert_array_equal(found["w"], plain["w"])
    for at in range(len(data) - 98, len(data)):  # the end records: every byte counts, or says what another one says
        broken = bytearray(data)
        broken[at] ^= 0x81
        try:
            np.testing.assert_array_equal(read(path, bytes(broken))["w"], plain["w"])
        except SdjaxError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    "beside",
    [{}, {"global_step": b"K\1"}, {"note": text("merge"), "optimizer": b"N", "on": b"\x88"}, {"x": SYSTEM, "y": b"]"}],
    ids=lambda beside: ", ".join(beside) or "nothing",
)
def test_what_lies_beside_the_tensors_is_left_out(path, beside):
    """As strangers' merges and trainers leave it: numbers, texts, None, lists, objects; nothing of it is run."""
    want = np.frombuffer(FLOATS, np.float32).reshape(3, 4)
    inner = {"w": tensor(), **beside}
    for root in (mapping(inner), mapping({"state_dict": mapping(inner), **beside})):
        found = read(path, make_zip(root))
        assert list(found) == ["w"]
        np.testing.assert_array_equal(found["w"], want)
    nested = mapping({"state_dict": mapping({"state_dict": mapping(inner)})})
    np.testing.assert_array_equal(read(path, make_zip(nested))["w"], want)


def test_float8_and_parameters_with_a_state(path):
    found = read(path, make_zip(mapping({"w": typed(untyped(48)), "v": stated(typed(untyped(48), (6, 8), (8, 1)))})))
    assert found["w"].dtype.name == found["v"].dtype.name == "float8_e4m3fn"
    assert found["w"].tobytes() == found["v"].tobytes() == FLOATS and found["v"].shape == (6, 8)
    wide = read(path, make_zip(mapping({"w": typed(untyped(48), (24,), scalar=name("torch", "uint16"))})))
    assert wide["w"].dtype == np.uint16 and wide["w"].tobytes() == FLOATS
    for strange in (name("torch", "complex32"), name("torch", "uint7")):  # of a type that nothing here computes with
        found = read(path, make_zip(mapping({"w": typed(untyped(48), scalar=strange), "v": typed(untyped(48))})))
        assert list(found) == ["v"]


def test_two_dicts_side_by_side(path):
    """An IP-Adapter's file: names begin with their dict's. One of the dicts alone, or others, is no such file."""
    both = {
        "image_proj": mapping({"norm.bias": tensor((4,), (1,))}),
        "ip_adapter": mapping({"1.to_k_ip.weight": tensor()}),
    }
    for body in (both, {"epoch": number(3)} | both):
        found = read(path, make_zip(mapping(body)))
        assert {key: value.shape for key, value in found.items()} == {
            "image_proj.norm.bias": (4,),
            "ip_adapter.1.to_k_ip.weight": (3, 4),
        }
    ordered = ORDERED + b"(" + text("norm.bias") + tensor() + b"u" + mapping({"_metadata": ORDERED}) + b"b"
    assert set(read(path, make_zip(mapping(both | {"image_proj": ordered})))) == {
        "image_proj.norm.bias",
        "ip_adapter.1.to_k_ip.weight",
    }
    evil = name("os", "system") + group(text("exit")) + b"R"
    strange = mapping({"norm.bias": evil, "norm.weight": tensor()})
    assert "image_proj.norm.bias" not in read(path, make_zip(mapping(both | {"image_proj": strange})))
    empty = {key: mapping({"x": number(1)}) for key in both}
    for body in ({"image_proj": both["image_proj"]}, {"a": both["image_proj"], "b": both["ip_adapter"]}, empty):
        with pytest.raises(SdjaxError, match=r"model.ckpt: .*should be a tensor"):
            read(path, make_zip(mapping(body)))
    odd = b"}(" + group(number(1)) + tensor() + b"u"
    with pytest.raises(SdjaxError, match=r"model.ckpt: a tensor's name is"):
        read(path, make_zip(mapping(both | {"image_proj": odd})))
    with pytest.raises(SdjaxError, match=r"is not a tensor's name"):
        read(path, make_zip(mapping(both | {"image_proj": mapping({"a\\b": tensor()})})))
