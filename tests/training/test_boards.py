"""What --log-to writes: TensorBoard's files if they can be, Weights & Biases' calls."""

import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from sdjax.errors import SdjaxError
from sdjax.training import boards


class FakeWandb(SimpleNamespace):
    """Records what is called."""

    def __init__(self):
        super().__init__(calls=[], Image=lambda image: ("picture", image.size))

    def init(self, **settings):
        self.calls.append(("init", settings["id"], settings["resume"], settings["config"]))
        log = lambda values, step: self.calls.append(("log", values, step))
        return SimpleNamespace(id="abc", url=None, log=log, finish=lambda: self.calls.append(("finish",)))


@pytest.fixture
def wandb(monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(boards, "installed", lambda module: module == "wandb")
    return fake


def test_wandb(wandb, tmp_path, capsys):
    """The run is named in RUN, so that the same command goes on with it."""
    for known in (None, "abc"):
        (board,) = boards.open_boards("wandb", tmp_path, 3, {"steps": 9})
        board.numbers({"loss": 0.5}, 4)
        board.picture("samples", Image.new("RGB", (3, 2)), 4)
        board.close()
        assert wandb.calls == [
            ("init", known, "allow", {"steps": 9}),
            ("log", {"loss": 0.5}, 4),
            ("log", {"samples": ("picture", (3, 2))}, 4),
            ("finish",),
        ]
        wandb.calls.clear()
    assert "wandb: wandb sync " in capsys.readouterr().err


@pytest.mark.parametrize(
    "names, message",
    [
        ("board", "log_to board: expected some of tensorboard, wandb"),
        (
            "wandb,tensorboard",
            "log_to tensorboard: tensorboardX is not installed; pip install",
        ),
        ("wandb,", "log_to : expected some of"),
    ],
)
def test_refusals(wandb, names, message):
    with pytest.raises(SdjaxError) as error:
        boards.check_boards(names)
    assert str(error.value).startswith(message)
    assert boards.check_boards(None) == [] == boards.check_boards("")


def test_tensorboard(tmp_path, capsys):
    pytest.importorskip("tensorboardX")
    (board,) = boards.open_boards("tensorboard", tmp_path, 0, {})
    board.numbers({"loss": 0.5}, 1)
    board.picture("samples", Image.new("RGB", (3, 2)), 1)
    board.close()
    assert any((tmp_path / "tensorboard").iterdir())
    assert f"tensorboard: tensorboard --logdir {tmp_path / 'tensorboard'}" in capsys.readouterr().err
