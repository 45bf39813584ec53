"""Where a run's numbers and samples are shown: TensorBoard, Weights & Biases."""

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from sdjax.errors import SdjaxError


class Board(Protocol):
    """Shows what a run logs."""

    def numbers(self, values: Mapping[str, float], step: int) -> None: ...

    def picture(self, name: str, image: Image.Image, step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Writes RUN/tensorboard/. After a restart, records after `step` are dropped."""

    def __init__(self, folder: Path, step: int, settings: Mapping[str, Any]):
        self.writer = importlib.import_module("tensorboardX").SummaryWriter(
            str(folder / "tensorboard"), purge_step=step + 1
        )
        self.watch = f"tensorboard --logdir {folder / 'tensorboard'}"

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def picture(self, name: str, image: Image.Image, step: int) -> None:
        self.writer.add_image(name, np.asarray(image), step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class Wandb:
    """Logs to Weights & Biases. RUN/wandb-id.txt names the run there, which the same command goes on with."""

    def __init__(self, folder: Path, step: int, settings: Mapping[str, Any]):
        self.wandb = importlib.import_module("wandb")
        name = folder / "wandb-id.txt"
        known = name.read_text("utf-8").strip() if name.is_file() else None
        self.run = self.wandb.init(
            project="sdjax", name=folder.name, id=known, resume="allow", dir=str(folder), config=dict(settings)
        )
        name.write_text(self.run.id, "utf-8")
        self.watch = getattr(self.run, "url", None) or f"wandb sync {folder / 'wandb'}/offline-run-*"

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def picture(self, name: str, image: Image.Image, step: int) -> None:
        self.run.log({name: self.wandb.Image(image)}, step=step)

    def close(self) -> None:
        self.run.finish()


#: name -> (what shows it, the module that it needs). The extra of pyproject.toml has the board's name.
BOARDS = {"tensorboard": (TensorBoard, "tensorboardX"), "wandb": (Wandb, "wandb")}


def check_boards(names: str | None) -> list[str]:
    """Returns the names in --log-to. SdjaxError: an unknown one, or one whose library is not installed."""
    found = [name.strip() for name in names.split(",")] if names else []
    for name in found:
        if name not in BOARDS:
            raise SdjaxError(f"log_to {name}: expected some of {', '.join(BOARDS)}, with commas between them")
        if not installed(BOARDS[name][1]):
            raise SdjaxError(
                f"log_to {name}: {BOARDS[name][1]} is not installed; pip install 'sdjax[{name}]' does that"
            )
    return found


def installed(module: str) -> bool:
    if module in sys.modules:
        return sys.modules[module] is not None
    return importlib.util.find_spec(module) is not None


def open_boards(names: str | None, folder: Path, step: int, settings: Mapping[str, Any]) -> list[Board]:
    """Returns the boards that --log-to names and prints how to watch them; without it TensorBoard's, if there is one.

    folder: RUN. step: of the checkpoint that the run goes on from. settings: the run's options.
    """
    if names is None:
        return [TensorBoard(folder, step, settings)] if installed("tensorboardX") else []
    boards = []
    for name in check_boards(names):
        board = BOARDS[name][0](folder, step, settings)
        print(f"{name}: {board.watch}", file=sys.stderr)
        boards.append(board)
    return boards
