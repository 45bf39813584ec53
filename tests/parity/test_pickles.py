"""What torch.save writes is read as torch.load reads it."""

from collections import OrderedDict

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from sdjax.errors import SdjaxError  # noqa: E402
from sdjax.formats.tensors import read_tensors  # noqa: E402
from sdjax.formats.torch_objects import STORAGES  # noqa: E402
from tests.formats.assembler import to_zip64  # noqa: E402

pytestmark = pytest.mark.parity

FORMATS = pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])


def save(content, path, new: bool, protocol: int = 2):
    torch.save(content, path, _use_new_zipfile_serialization=new, pickle_protocol=protocol)


def check(path, pick=lambda content: content):
    """Equal to torch.load in names, order, shape, dtype and bits."""
    got, want = read_tensors(path), pick(torch.load(path, weights_only=False))
    assert list(got) == list(want)
    for key, value in want.items():
        value = value.detach()
        assert got[key].shape == tuple(value.shape) and str(got[key].dtype) == str(value.dtype).removeprefix("torch.")
        if value.dtype == torch.bfloat16:
            value = value.view(torch.int16) if value.ndim else value.reshape(1).view(torch.int16).reshape(())
            got[key] = got[key].view(np.int16)
        np.testing.assert_array_equal(got[key], value.numpy())


def tensors() -> dict:
    torch.manual_seed(0)
    base = torch.randn(6, 8)
    found = {kind: (10 * base).to(getattr(torch, str(np.dtype(dtype)))) for kind, dtype in STORAGES.items()}
    found |= {
        "base": base,
        "transposed": base.t(),
        "row": base[2],
        "column": base[:, 3],
        "steps": base[1::2, ::3],
        "diagonal": base.diagonal(),
        "permuted": torch.randn(2, 3, 4).permute(2, 0, 1),
        "same": base,
        "channels_last": torch.randn(1, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        "scalar": torch.tensor(2.5),
        "of one": base[:1, :1],
        "empty": torch.empty(0, 3),
        "empty part": base[6:],
        "parameter": torch.nn.Parameter(base[1:3]),
        "frozen": torch.nn.Parameter(torch.arange(3), requires_grad=False),
        "special": torch.tensor([np.inf, -np.inf, np.nan, -0.0]),
    }
    return found


@FORMATS
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_dict_of_tensors(tmp_path, new, protocol):
    save(tensors(), tmp_path / "model.pt", new, protocol)
    check(tmp_path / "model.pt")


@FORMATS
@pytest.mark.parametrize("kind", [str(np.dtype(dtype)) for dtype in STORAGES.values()])
def test_a_file_of_one_dtype(tmp_path, new, kind):
    """Every dtype in both layouts: with the other tests here more than 30 good files of different making."""
    torch.manual_seed(1)
    x = (10 * torch.randn(4, 3, 5)).to(getattr(torch, kind))
    save(
        {"state_dict": {"a.weight": x, "a.part": x[1:, :, ::2], "b": x.permute(2, 0, 1), "n": x[0, 0, 0]}, "step": 7},
        tmp_path / "model.ckpt",
        new,
    )
    check(tmp_path / "model.ckpt", lambda loaded: loaded["state_dict"])


@FORMATS
def test_shared_storages_are_shared_and_mapped(tmp_path, new):
    base = torch.arange(1000.0)
    save({"a": base, "b": base[10:20], "c": base.view(10, 100).t()}, tmp_path / "model.pt", new)
    got = read_tensors(tmp_path / "model.pt")
    assert got["a"].ctypes.data + 40 == got["b"].ctypes.data and got["c"].ctypes.data == got["a"].ctypes.data
    assert not any(value.flags.owndata or value.flags.writeable for value in got.values())
    check(tmp_path / "model.pt")


class ModelCheckpoint:
    """As lightning's class of that name, which Stable Diffusion 1's checkpoints refer to."""

    def __init__(self):
        self.best = torch.ones(3)


@FORMATS
def test_a_checkpoint_of_lightning(tmp_path, new):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.GroupNorm(2, 4), torch.nn.Linear(4, 5))
    optimizer = torch.optim.AdamW(module.parameters())
    content = {
        "epoch": 3,
        "global_step": 470_000,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": module.state_dict(),
        "callbacks": OrderedDict({ModelCheckpoint: {"score": np.float64(0.5), "object": ModelCheckpoint()}}),
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [{"lambdas": [None], (1, 2): {3, 4}}],
        "rng": np.random.default_rng(0).integers(0, 9, 5),
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "complex": torch.ones(2, dtype=torch.complex64) if new else None,
    }
    save(content, tmp_path / "model.ckpt", new)
    check(tmp_path / "model.ckpt", lambda loaded: loaded["state_dict"])


@FORMATS
def test_what_lies_beside_the_tensors(tmp_path, new):
    """As strangers leave it, whole files and state dicts: torch's own tensors of it, and nothing else."""
    inner = {"a": torch.arange(6.0).reshape(2, 3), "step": 470_000, "note": "a merge", "none": None, "list": [1, "x"]}
    inner |= {"lr": 1e-4, "flag": True, "half": torch.ones(2, dtype=torch.float16)}
    tensors = lambda loaded: {key: value for key, value in loaded.items() if isinstance(value, torch.Tensor)}
    for content, pick in (
        (inner, tensors),
        ({"state_dict": inner, "epoch": 3}, lambda loaded: tensors(loaded["state_dict"])),
        ({"state_dict": {"state_dict": inner}}, lambda loaded: tensors(loaded["state_dict"]["state_dict"])),
    ):
        save(content, tmp_path / "model.ckpt", new)
        check(tmp_path / "model.ckpt", pick)


def test_float8_parameters_with_a_state_and_zip64(tmp_path):
    values = torch.linspace(-3, 3, 12).reshape(3, 4)
    parameter = torch.nn.Parameter(values)
    parameter.note = "a state"  # such a parameter is rebuilt by another function
    small = {name: values.to(getattr(torch, name)) for name in ("float8_e4m3fn", "float8_e5m2")}
    path = tmp_path / "model.pt"
    torch.save({"p": parameter, **small}, path)
    for content in (path.read_bytes(), to_zip64(path.read_bytes())):
        path.write_bytes(content)
        loaded, got = torch.load(path, weights_only=False), read_tensors(path)
        assert list(got) == ["p", *small]
        np.testing.assert_array_equal(got["p"], loaded["p"].detach().numpy())
        for name in small:
            assert got[name].dtype.name == name
            np.testing.assert_array_equal(got[name].astype(np.float32), loaded[name].float().numpy())


@FORMATS
def test_what_is_no_dict_of_tensors_is_refused(tmp_path, new):
    path = tmp_path / "model.pt"
    x = torch.ones(3)
    for content in (
        x,
        [x],
        {"a": 1, "b": "text"},
        {"a": [x]},
        {"a": torch.ones(1).expand(5)},
        torch.nn.Linear(2, 2),
        {"a": torch.ones(2, dtype=torch.complex64)},
        {"a": x.to_sparse()},
        {1: x},
        {},
    ):
        save(content, path, new)
        with pytest.raises(SdjaxError, match=str(path)):
            read_tensors(path)
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    with pytest.raises(SdjaxError, match="the zip's member"):
        read_tensors(path)


def test_this_test_can_fail(tmp_path):
    save({"a": torch.arange(4.0)}, tmp_path / "model.pt", True)
    for pick in (lambda c: {"a": c["a"] + 1e-6}, lambda c: {"b": c["a"]}, lambda c: {"a": c["a"].double()}):
        with pytest.raises(AssertionError):
            check(tmp_path / "model.pt", pick)
