"""The folder of a run: config.json, metrics.jsonl, samples/ and checkpoints/, and how a job continues in it."""

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
from sdjax.files import check_folder, cut_torn_line, json_line, lock, written_whole
from sdjax.image.png import save_png
from sdjax.image.sheets import captioned_sheet, contact_sheet
from sdjax.training.boards import open_boards
from sdjax.training.checkpoint import Checkpoints

OWN = {
    "out",
    "log_to",
    "coordinator",
    "num_processes",
    "process_id",
    "patience",
    "dry_run",
}  # may change from start to start

HELD: dict[Path, int] = {}  # folders that `hold` locked and no Run has opened yet


class Run:
    """The folder RUN of one training job. A job that opens the folder of an earlier one continues it.

    All processes open the folder; only process 0 writes. SdjaxError: the folder cannot be written, or another process
    is training there.
    """

    def __init__(self, folder: str | Path, options: Any):
        self.folder, self.primary = Path(folder).absolute(), is_primary()
        self.checkpoints = Checkpoints(
            self.folder / "checkpoints", getattr(options, "keep", 2), getattr(options, "keep_hours", 0.0)
        )
        self._clock, self._boards, self.options = time.perf_counter(), [], options
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
        with written_whole(path) as scratch:
            scratch.write_text(json.dumps(self.settings, indent=2) + "\n")

    def restore(self, wanted: Any, adopt: Callable[[np.ndarray], Any] = lambda leaf: leaf) -> Any:
        """Returns the newest whole checkpoint as a tree like `wanted` (arrays or shapes), or None in a fresh run.

        Process 0 decides which checkpoint it is. See `Checkpoints.restore`.
        """
        found = self.checkpoints.restore(wanted, adopt) if self.primary else None
        step = agree(-1 if found is None else found[0])
        if not self.primary and step >= 0:
            found = self.checkpoints.restore(wanted, adopt, [step])
        if self.primary:
            self._cut_metrics(max(step, 0))
        if self.primary and step >= 0:
            self.checkpoints.set_aside(after=step)
        return found and found[1]

    def _cut_metrics(self, step: int) -> None:
        """Removes the lines of metrics.jsonl after `step`: those steps were killed with their run, and come again."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        kept = []
        for line in lines:
            with contextlib.suppress(ValueError, TypeError, KeyError):  # a line that is not ours stays
                if json.loads(line)["step"] > step:
                    continue
            kept.append(line)
        if len(kept) < len(lines):
            with written_whole(path) as scratch:
                scratch.write_bytes(b"".join(kept))

    def start(self, step: int) -> None:
        """Starts the clock of images_per_second; `step` steps are done already."""
        self._clock = time.perf_counter()
        if self.primary:
            (self.folder / "PREEMPTED").unlink(missing_ok=True)
            self._boards = open_boards(getattr(self.options, "log_to", None), self.folder, step, self.settings)

    @contextlib.contextmanager
    def aside(self):
        """Stops the clock of images_per_second inside the block, for work that is no training."""
        begun = time.perf_counter()
        yield
        self._clock += time.perf_counter() - begun

    def save(self, step: int, state: Any, notes: dict[str, Any] | None = None) -> None:
        """Starts to write checkpoints/<step>/ in the background, once everything that was logged is on the disk.

        state: numpy arrays, on process 0.
        notes: JSON values to keep in the checkpoint beside the options.
        """
        if self.primary:
            with contextlib.suppress(FileNotFoundError), open(self.folder / "metrics.jsonl", "rb") as file:
                os.fsync(file.fileno())
            self.checkpoints.save(step, state, {"options": self.settings} | (notes or {}))

    def log(self, step: int, metrics: dict[str, Any], images: int, notes: dict[str, Any] | None = None) -> dict:
        """Appends a line to metrics.jsonl and returns it as a dict. The file has null for NaN and infinity.

        metrics: scalars; they are rounded to float32 and written so that they read back to the same bits.
        images: the number of pictures since the last call, for images_per_second.
        notes: JSON values, written as they are.
        """
        now = time.perf_counter()
        record = {"step": step} | {name: float(np.float32(value)) for name, value in metrics.items()}
        record["images_per_second"] = images / max(now - self._clock, 1e-9)
        self._clock = now
        record |= notes or {}
        if self.primary:
            with self._writing("metrics.jsonl"), open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json_line(record))
            for board in self._boards:
                board.numbers({name: value for name, value in record.items() if isinstance(value, float)}, step)
        return record

    def save_sheet(
        self, step: int, pictures: list[Image.Image], text: str | None = None, captions: list[str] | None = None
    ) -> None:
        """Writes the pictures as one sheet, samples/<step>.png.

        text: its parameters. captions: one for each picture, written under it.
        """
        sheet = contact_sheet(pictures) if captions is None else captioned_sheet(pictures, captions)
        save_png(sheet, self.folder / "samples" / f"{step}.png", text)
        for board in self._boards:
            board.picture("samples", sheet, step)

    def preempted(self, step: int) -> None:
        """Waits until the checkpoint of `step` is whole, then writes the marker PREEMPTED."""
        self.checkpoints.wait()
        if self.primary:
            (self.folder / "PREEMPTED").write_text(f"stopped by a signal after step {step}; its checkpoint is whole\n")

    def close(self) -> None:
        """Waits for the checkpoint that is being written, and unlocks the folder."""
        try:
            self.checkpoints.close()
        finally:
            for board in self._boards:
                board.close()
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
    """Locks RUN for this process before it opens a Run, which takes the lock over. SdjaxError: another one has it."""
    folder = Path(folder).absolute()
    if folder not in HELD:
        HELD[folder] = _lock(folder)


def _lock(folder: Path) -> int:
    """Locks `folder` until the returned handle is closed or the process ends. SdjaxError: another one has it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        lock(handle, f"out {folder}: another process is training there")
    except SdjaxError:
        os.close(handle)
        raise
    return handle


def _report_changes(folder: Path, path: Path, settings: dict[str, Any]) -> None:
    """Prints one line with the options that differ from those that the run was started with."""
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
