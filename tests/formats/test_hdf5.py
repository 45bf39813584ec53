"""Arrays of HDF5 files are read by their places; what is hostile, broken or something else is refused in one line."""

import sys

import numpy as np
import pytest

from sdjax.errors import SdjaxError
from sdjax.formats import hdf5
from sdjax.formats.hdf5 import read_hdf5

ONE = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def h5py():
    return pytest.importorskip("h5py")


def test_reads_what_is_named(h5py, tmp_path):
    with h5py.File(tmp_path / "file.h5", "w") as file:
        file["a/b/0"], file["a/half"], file["other"] = ONE, ONE.astype(np.float16), "text"
        file.create_dataset("packed", data=ONE, compression="gzip", chunks=True)
    found = read_hdf5(tmp_path / "file.h5", ["a/b/0", "a/half", "packed"])
    assert set(found) == {"a/b/0", "a/half", "packed"}
    for value in found.values():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, ONE)


def test_what_is_hostile_is_refused(h5py, tmp_path, monkeypatch):
    """Links out of the file and arrays that other files hold, or that say they are larger than any weights."""
    path = tmp_path / "file.h5"
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = ONE
    with h5py.File(path, "w") as file:
        file["external"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "x")
        file["there"], file["soft"] = ONE, h5py.SoftLink("/there")
        file["whole"], file["group/x"], file["nan"] = np.arange(3), ONE, ONE * np.nan
        layout = h5py.VirtualLayout((2, 3), np.float32)
        layout[...] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "x", (2, 3))
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("outside", (2, 3), np.float32, external=[(str(tmp_path / "raw"), 0, 24)])
        file.create_dataset("large", (2**20, 2**20), np.float32, chunks=(1024, 1024), compression="gzip")
    for name, said in (
        ("external", "has no array 'external'"),
        ("soft", "has no array 'soft'"),
        ("absent", "has no array 'absent'"),
        ("there/x", "has no array 'there/x'"),
        ("group", "'group' is no array of floats"),
        ("whole", "'whole' is no array of floats"),
        ("virtual", "'virtual' is no array of floats"),
        ("outside", "'outside' is no array of floats"),
        ("large", "'large' of shape .* is too large"),
        ("nan", "'nan' has NaN"),
    ):
        with pytest.raises(SdjaxError, match=f"file.h5: {said}") as refused:
            read_hdf5(path, [name])
        assert "\n" not in str(refused.value)


def test_what_is_broken_or_no_such_file_is_refused(h5py, tmp_path):
    path = tmp_path / "file.h5"
    with h5py.File(path, "w") as file:
        file["a"] = ONE
    content = path.read_bytes()
    for some, said in (
        (content[: len(content) // 2], "file.h5: "),
        (b"PK" + content, "not an HDF5 file"),
        (b"", "not an"),
    ):
        path.write_bytes(some)
        with pytest.raises(SdjaxError, match=said) as refused:
            read_hdf5(path, ["a"])
        assert "\n" not in str(refused.value)
    path.write_bytes(content)
    rng = np.random.default_rng(0)
    for _ in range(60):  # an array, or one line
        changed = bytearray(content)
        for place in rng.integers(len(hdf5.MAGIC), len(content), 3):
            changed[place] = rng.integers(256)
        path.write_bytes(changed)
        try:
            assert read_hdf5(path, ["a"])["a"].dtype == np.float32
        except SdjaxError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    with pytest.raises(SdjaxError, match="no such file"):
        read_hdf5(tmp_path, ["a"])


def test_without_h5py(tmp_path, monkeypatch):
    (tmp_path / "file.h5").write_bytes(hdf5.MAGIC)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(SdjaxError, match=r"file.h5: needs h5py to be read, pip install 'sdjax\[control\]'"):
        read_hdf5(tmp_path / "file.h5", ["a"])
