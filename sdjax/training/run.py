"""A run's folder: config.json, metrics.jsonl, samples/, checkpoints/, and how a job goes on in it."""

import contextlib
import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sdjax.devices.processes import agree, is_primary
from sdjax.errors import SdjaxError
from sdjax.files import check_folder, cut_torn_line, json_line, lock, whole
from sdjax.image.png import save_png
from sdjax.image.sheets import contact_sheet
from sdjax.training.checkpoint import Checkpoints

OWN = {"out", "coordinator", "num_processes", "process_id", "patience", "dry_run"}  # may differ between two starts

HELD: dict[Path, int] = {}  # folders that `hold` locked and no Run has opened yet


class Run:
    """The folder RUN of one training job. Opening it again is how a job goes on.

    All processes open it; process 0 alone writes.
    """

    def __init__(self, folder: str | Path, options: Any):
        self.folder, self.primary = Path(folder).absolute(), is_primary()
        self.checkpoints = Checkpoints(
            self.folder / "checkpoints", getattr(options, "keep", 2), getattr(options, "keep_hours", 0.0)
        )
        self._clock, self._board = time.perf_counter(), None
        if not self.primary:
            return
        check_folder(self.folder)
        hold(self.folder)
        self._lock = HELD.pop(self.folder)
        self.settings = json.loads(json.dumps(dataclasses.asdict(options), default=str))
        try:
            self._clean()
            self._write_settings(self.folder / "config.json")
        except BaseException:
            os.close(self._lock)  # else this process could not try again
            raise

    def _write_settings(self, path: Path) -> None:
        if self.checkpoints.steps() and path.is_file():  # a run that goes on keeps the settings it was started with
            _report_changes(self.folder, path, self.settings)
            return
        with whole(path) as scratch:
            scratch.write_text(json.dumps(self.settings, indent=2) + "\n")

    def restore(self, wanted: Any, adopt: Callable[[np.ndarray], Any] = lambda leaf: leaf) -> Any:
        """The newest whole checkpoint in the shapes of `wanted`, arrays or not; None in a fresh run.

        See `Checkpoints.restore`. Process 0 decides which one that is.
        """
        found = self.checkpoints.restore(wanted, adopt) if self.primary else None
        step = agree(-1 if found is None else found[0])
        if not self.primary and step >= 0:
            found = self.checkpoints.restore(wanted, adopt, [step])
        if self.primary and step >= 0:
            self.checkpoints.set_aside(after=step)
        return found and found[1]

    def start(self, step: int) -> None:
        """Training begins after `step` steps: the clock of images_per_second runs from here on."""
        self._clock = time.perf_counter()
        if self.primary:
            (self.folder / "PREEMPTED").unlink(missing_ok=True)
            with contextlib.suppress(ImportError):  # TensorBoard's files too, where somebody wants them
                from tensorboardX import SummaryWriter

                self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step + 1)

    @contextlib.contextmanager
    def aside(self):
        """What is done in here is no training: the clock of images_per_second stands still."""
        begun = time.perf_counter()
        yield
        self._clock += time.perf_counter() - begun

    def save(self, step: int, state: Any, notes: dict[str, Any] | None = None) -> None:
        """Writes checkpoints/<step>/ in the background, after everything that was logged is on the disk.

        `state`: numpy arrays on process 0.
        """
        if self.primary:
            with contextlib.suppress(FileNotFoundError), open(self.folder / "metrics.jsonl", "rb") as file:
                os.fsync(file.fileno())
            self.checkpoints.save(step, state, {"options": self.settings} | (notes or {}))

    def log(self, step: int, metrics: dict[str, Any], images: int, notes: dict[str, Any] | None = None) -> dict:
        """Appends a line to metrics.jsonl and returns it. Floats are float32, written so that they read back to the
        same bits. NaN and infinity, which JSON does not have, are written as null.

        `images` is the number of pictures since the last call, for images_per_second; `notes` are written as they are.
        """
        now = time.perf_counter()
        record = {"step": step} | {name: float(np.float32(value)) for name, value in metrics.items()}
        record["images_per_second"] = images / max(now - self._clock, 1e-9)
        self._clock = now
        record |= notes or {}
        if self.primary:
            with self._writing("metrics.jsonl"), open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json_line(record))
            for name, value in record.items() if self._board else ():
                if isinstance(value, float):
                    self._board.add_scalar(name, value, step)
        return record

    def save_sheet(self, step: int, pictures: list[Image.Image]) -> None:
        """Writes the pictures as samples/<step>.png."""
        sheet = contact_sheet(pictures)
        save_png(sheet, self.folder / "samples" / f"{step}.png")
        if self._board:
            self._board.add_image("samples", np.asarray(sheet), step, dataformats="HWC")

    def preempted(self, step: int) -> None:
        """Leaves the marker PREEMPTED once the checkpoint of `step` is whole."""
        self.checkpoints.wait()
        if self.primary:
            (self.folder / "PREEMPTED").write_text(f"stopped by a signal after step {step}; its checkpoint is whole\n")

    def close(self) -> None:
        """Waits for the checkpoint that is being written."""
        try:
            self.checkpoints.close()
        finally:
            if self._board:
                self._board.close()
            if self.primary:
                os.close(self._lock)

    @contextlib.contextmanager
    def _writing(self, name: str):
        try:
            yield
        except OSError as error:
            raise SdjaxError(f"out {self.folder}: {name} cannot be written ({error.strerror})") from None

    def _clean(self) -> None:
        """Removes what a killed process left half written."""
        self.checkpoints.clean()
        for path in [*self.folder.glob(".*.tmp"), *self.folder.glob("samples/.*.tmp"), *self.folder.glob(".export.*")]:
            shutil.rmtree(path, ignore_errors=True)
            with contextlib.suppress(OSError):
                path.unlink()
        path = self.folder / "metrics.jsonl"
        if path.is_file():
            cut_torn_line(path)


def hold(folder: Path) -> None:
    """Locks RUN for this process before a Run opens it, which takes the lock over; SdjaxError where another has it."""
    folder = Path(folder).absolute()
    if folder not in HELD:
        HELD[folder] = _lock(folder)


def _lock(folder: Path) -> int:
    """Holds `folder` until the handle is closed or the process is gone; SdjaxError where another one holds it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        lock(handle, f"out {folder}: another process is training there")
    except SdjaxError:
        os.close(handle)
        raise
    return handle


def _report_changes(folder: Path, path: Path, settings: dict[str, Any]) -> None:
    """Prints in one line what is asked for now and was not when the run began."""
    try:
        before = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise SdjaxError(f"{path}: not readable as JSON; remove it to go on with the options given now") from None
    flag = lambda name: "--" + name.replace("_", "-")
    changes = [
        f"{flag(name)} {settings.get(name)} (was {before.get(name)})"
        for name in sorted({*settings, *before})
        if name not in OWN and settings.get(name) != before.get(name)
    ]
    if changes:
        print(f"--out {folder} goes on with other options than it began with: {', '.join(changes)}", file=sys.stderr)
