"""safetensors made by hand and by the library; the dispatch by content."""

import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, load_file, save_file

from sdjax.errors import SdjaxError
from sdjax.formats import tensors
from sdjax.formats.tensors import DTYPES, read_safetensors, read_tensors
from tests.formats.assembler import GOOD as CHECKPOINTS
from tests.formats.test_torch_files import QUICK

DATA = np.arange(6, dtype=np.float32).tobytes() + np.arange(4, dtype=np.float16).tobytes()
A = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
B = {"dtype": "F16", "shape": [4], "data_offsets": [24, 32]}


def make(header=None, data=DATA, size=None) -> bytes:
    header = {"a": A, "b": B} if header is None else header
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if size is None else size).to_bytes(8, "little") + raw + data


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def read(path, content: bytes, reader=read_safetensors):
    path.write_bytes(content)
    return reader(path)


def test_reads_what_the_library_writes(path):
    rng = np.random.default_rng(0)
    values = {name: rng.integers(0, 2, (3, 2)).astype(dtype) for name, dtype in DTYPES.items() if name[:2] != "F8"}
    values |= {"empty": np.zeros((0, 3), np.float32), "scalar": np.array(2, np.float32)}
    save_file(values, path, metadata={"format": "pt"})
    got, theirs = read_tensors(path), load_file(path)
    assert set(got) == set(values) == set(theirs)
    for name, value in values.items():
        assert got[name].dtype == value.dtype == theirs[name].dtype and got[name].shape == value.shape
        assert not got[name].flags.writeable or not got[name].size
        np.testing.assert_array_equal(got[name], value)
    eight = np.array([0, 1, 2], ml_dtypes.float8_e4m3fn)
    header = {"w": {"dtype": "F8_E4M3", "shape": [3], "data_offsets": [0, 3]}}
    assert (read(path, make(header, eight.tobytes()))["w"] == eight).all()


def entry(**changes):
    return {"a": {**A, **changes}, "b": B}


HOSTILE = {
    "nothing": b"",
    "eight bytes": bytes(8),
    "header of 2^64": make(size=2**64 - 1),
    "header beyond the file": make(size=100_000),
    "header cut short": make(size=20),
    "header is a list": make(b"[]"),
    "header is empty": make({}),
    "header is not JSON": make(b"{a: 1}"),
    "header is not UTF-8": make(b'{"\xff": 1}'),
    "header of UTF-16": make(json.dumps({"a": A, "b": B}).encode("utf-16")),
    "header with a mark": make(b"\xef\xbb\xbf" + json.dumps({"a": A, "b": B}).encode()),
    "header nested a million times": make(b'{"a":' + b"[" * 1_000_000),
    "number of a million digits": make(b'{"a":' + b"9" * 1_000_000 + b"}"),
    "a name twice": make(b'{"a": %b, "b": %b, "a": %b}' % tuple(json.dumps(x).encode() for x in (A, B, A))),
    "a field twice": make(b'{"a":{"dtype":"F32","shape":[2,3],"shape":[2,3],"data_offsets":[0,24]}}', DATA[:24]),
    "only metadata": make({"__metadata__": {}}, b""),
    "metadata of numbers": make({"__metadata__": {"a": 1}, "a": A, "b": B}),
    "metadata as a list": make({"__metadata__": [], "a": A, "b": B}),
    "a name that climbs": make({"../a": A, "b": B}),
    "an absolute name": make({"/a": A, "b": B}),
    "a name of Windows": make({"..\\a": A, "b": B}),
    "a name with a zero": make({"a\0": A, "b": B}),
    "a name with a line break": make({"a\nb": A, "b": B}),
    "a name turning the text": make({"a\u202eb": A, "b": B}),
    "an empty name": make({"": A, "b": B}),
    "a lone surrogate": make(b'{"\\ud800": %b, "b": %b}' % tuple(json.dumps(x).encode() for x in (A, B))),
    "unknown dtype": make(entry(dtype="F128")),
    "dtype is a list": make(entry(dtype=["F32"])),
    "unknown field": make(entry(strides=[3, 1])),
    "missing field": make({"a": {"dtype": "F32", "shape": [2, 3]}, "b": B}),
    "entry is a list": make({"a": [], "b": B}),
    "shape is a number": make(entry(shape=6)),
    "negative shape": make(entry(shape=[-2, -3])),
    "fractional shape": make(entry(shape=[2.0, 3.0])),
    "true in the shape": make(entry(shape=[6, True])),
    "shape too large": make(entry(shape=[2, 4])),
    "shape overflows 64 bits": make(entry(shape=[2**32, 2**32, 6])),
    "empty shape of 2^80": make({"a": {"dtype": "F32", "shape": [0, 2**40, 2**40], "data_offsets": [0, 0]}}, b""),
    "33 dimensions": make(entry(shape=[2, 3] + [1] * 31)),
    "three offsets": make(entry(data_offsets=[0, 24, 24])),
    "negative offset": make(entry(data_offsets=[-24, 0])),
    "offsets backwards": make(entry(data_offsets=[24, 0])),
    "overlap": make({"a": A, "b": {**B, "data_offsets": [16, 24]}}, DATA[:24]),
    "hole": make({"a": A, "b": {**B, "data_offsets": [28, 36]}}, DATA + bytes(4)),
    "hole at the beginning": make({"b": B}),
    "bytes behind": make(data=DATA + b"\0"),
    "cut off": make(data=DATA[:-1]),
    "a header of 8 MiB of lists": make(b'{"a":[' + b"[]," * 2_790_000 + b"[]]}"),
    "a header of 8 MiB of objects": make(b'{"a":[' + b"{}," * 2_790_000 + b"{}]}"),
    "a header of 9 MiB": make(b'{"a":[' + b"1," * 4_700_000 + b"1]}"),
    "truth values of 2": make({"a": {"dtype": "BOOL", "shape": [1], "data_offsets": [0, 1]}}, b"\2"),
}


@pytest.mark.parametrize("trap", HOSTILE)
@pytest.mark.parametrize("reader", [read_safetensors, read_tensors])
def test_hostile_files_are_refused(path, trap, reader):
    with pytest.raises(SdjaxError) as refusal:
        read(path, HOSTILE[trap], reader)
    message = str(refusal.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < len(str(path)) + 300


def test_limits(path, monkeypatch):
    monkeypatch.setattr(tensors, "MAX_TENSORS", 1)
    with pytest.raises(SdjaxError, match="has 2 tensors"):
        read(path, make())
    monkeypatch.setattr(tensors, "MAX_HEADER", 10)
    with pytest.raises(SdjaxError, match=r"its header has [0-9,]+ bytes, the format's limit is 10"):
        read(path, make())


def test_long_headers(path):
    """Trainers keep whole records of their data in the metadata: up to the format's limit of 100 MB that is read."""
    entry = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    note = json.dumps({f"tag {i}": i for i in range(100_000)})
    for size in (9_000_000, 60_000_000):
        metadata = {"__metadata__": {"recipe": "x" * size, "ss_tag_frequency": note}}
        assert set(read(path, make(entry | metadata, data=b"12345678"))) == {"a"}
    long = make(entry | {"__metadata__": {"recipe": "x" * 100_000_000}}, data=b"12345678")
    with pytest.raises(SdjaxError, match="the format's limit is 100,000,000"):
        read(path, long)


def test_what_is_behind_and_what_is_missing_is_said(path):
    with pytest.raises(SdjaxError, match="has 1 bytes behind its last tensor"):
        read(path, make(data=DATA + b"\0"))
    with pytest.raises(SdjaxError, match="it is cut off"):
        read(path, make(data=DATA[:-1]))


def test_the_content_decides_not_the_suffix(tmp_path):
    for kind, content in {**CHECKPOINTS, "safetensors": make()}.items():
        for suffix in (".safetensors", ".ckpt", ".bin", ""):
            path = tmp_path / f"{kind}{suffix}"
            assert set(read(path, content, read_tensors)) == ({"a", "b"} if kind == "safetensors" else {"w"})
    with pytest.raises(SdjaxError, match="git lfs pull"):
        read(tmp_path / "pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", read_tensors)
    with pytest.raises(SdjaxError, match="neither safetensors nor"):
        read(tmp_path / "page", b"<html>404</html>", read_tensors)
    with pytest.raises(SdjaxError, match="no such file"):
        read_tensors(tmp_path / "none")


def outcome(path, content: bytes):
    """Refused, or read as the library reads it."""
    try:
        got = read(path, content, read_tensors)
    except SdjaxError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
        return
    theirs = load(content)
    assert set(got) == set(theirs)
    for name, value in theirs.items():
        assert got[name].dtype == value.dtype and got[name].shape == value.shape
        assert got[name].tobytes() == value.tobytes()


@QUICK
@given(st.binary(max_size=100), st.sampled_from([b"", b"\x10" + bytes(7) + b"{", make()[:80], b"\xff" * 8]))
def test_random_bytes(path, content, head):
    outcome(path, head + content)


@QUICK
@given(st.integers(0, len(make()) - 1))
def test_truncation(path, at):
    with pytest.raises(SdjaxError):
        read(path, make()[:at])


@QUICK
@given(st.lists(st.integers(0, 8 * len(make()) - 1), min_size=1, max_size=4))
def test_bit_flips(path, bits):
    data = bytearray(make())
    for bit in bits:
        data[bit // 8] ^= 1 << bit % 8
    outcome(path, bytes(data))


LEAVES = st.none() | st.booleans() | st.integers(-3, 40) | st.floats() | st.sampled_from(["F32", "U8", "", "a"])
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3), max_leaves=4)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8", "F16"]) | VALUES,
        "shape": st.lists(st.integers(0, 4), max_size=3) | VALUES,
        "data_offsets": st.sampled_from([[0, 24], [24, 32], [0, 32], [0, 0]]) | VALUES,
    }
)


@QUICK
@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "__metadata__", "../c"]) | st.text(max_size=3), ENTRIES | VALUES, max_size=3
    )
)
def test_random_headers(path, header):
    outcome(path, make(header))
