"""Checkpoints, written by Orbax: each is whole or absent, is verified before use, and is kept by number and age.

RUN/checkpoints/<step>/ holds `state/0`, `state/1` .., groups of arrays that Orbax wrote, and `digests.json`: the
SHA-256 of every array in memory before it was written, of every file after it was written, and of digests.json itself.
When everything in a folder is on the disk, one rename gives it its name, the step. Process 0 writes, in the background
and from copies in host memory; every process reads.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sdjax.errors import SdjaxError

GROUP = 2**28  # bytes of arrays that are written, or read, verified and placed, at a time
DIGESTS = "digests.json"


class Damaged(Exception):
    """A checkpoint differs from what was written. The message says in what."""


class Checkpoints:
    """The folder RUN/checkpoints.

    The `keep` newest checkpoints are kept, and with `keep_hours` one more for each such number of hours.
    """

    def __init__(self, folder: Path, keep: int = 2, keep_hours: float = 0.0):
        self.folder, self.keep, self.keep_hours = folder, keep, keep_hours
        self._pool, self._writing, self._restore_hook = ThreadPoolExecutor(1), None, None

    def steps(self) -> list[int]:
        """Returns the steps of all checkpoints, in rising order."""
        names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        return sorted(int(name) for name in names if name.isdecimal())

    def clean(self) -> None:
        """Removes what a killed process left half written."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if path.name.endswith(".tmp") or "orbax-checkpoint-tmp" in path.name:
                    _remove(path)

    # ---- writing

    def save(self, step: int, tree: Any, notes: dict[str, Any] | None = None) -> None:
        """Waits for the checkpoint before, then starts to write `tree` in the background.

        tree: numpy arrays, which must not change any more. notes: JSON values to keep in digests.json.
        SdjaxError: the checkpoint before could not be written.
        """
        self.wait()
        self._ignore_late_callbacks()
        self._writing = self._pool.submit(self._write, step, tree, notes or {})

    def check(self) -> None:
        """Raises SdjaxError if a background write has failed; does not wait."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Waits until the checkpoint that is being written is whole. SdjaxError: it could not be written."""
        writing: Future | None
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self._pool.shutdown()
            if self._restore_hook is not None:
                self._restore_hook()

    def _ignore_late_callbacks(self) -> None:
        """Until `close`, Python does not report what tensorstore calls back after Orbax has given up."""
        if self._restore_hook is not None:
            return
        before = sys.unraisablehook

        def hook(fault):
            if "Event loop is closed" not in str(fault.exc_value):
                before(fault)

        def restore():
            if sys.unraisablehook is hook:  # else somebody has put another one over it, which calls this one
                sys.unraisablehook = before

        sys.unraisablehook = hook
        self._restore_hook = restore

    def _write(self, step: int, tree: Any, notes: dict[str, Any]) -> None:
        scratch, final = self.folder / f".{step}.tmp", self.folder / str(step)
        leaves = dict(_named(tree))
        try:
            _remove(scratch)
            (scratch / "state").mkdir(parents=True)
            record = {
                "step": step,
                "time": time.time(),
                **notes,
                "leaves": {name: _signature(leaf) for name, leaf in leaves.items()},
            }
            record["groups"] = [*_groups(record["leaves"])]
            with _quiet():
                orbax = _orbax()
                for number, group in enumerate(record["groups"]):  # Orbax copies all of a save, more than once
                    orbax.save(scratch / "state" / str(number), {name: leaves[name] for name in group})
            record["files"] = {name: _file_digest(scratch / name, sync=True) for name in _files(scratch)}
            record["digest"] = _record_digest(record)
            with open(scratch / DIGESTS, "w", encoding="utf-8") as file:
                json.dump(record, file)
                file.flush()
                os.fsync(file.fileno())
            _remove(final)  # a damaged checkpoint of the same step
            os.replace(scratch, final)
            with contextlib.suppress(OSError):  # some file systems cannot sync folders
                _sync_folder(self.folder)
            self._thin()
        except Exception as error:
            for pause in (0, 0.1, 0.4, 1):  # tensorstore's threads still write after Orbax has given up
                time.sleep(pause)
                _remove(scratch)
            raise SdjaxError(
                f"out {self.folder.parent}: the checkpoint of step {step} could not be written ({_reason(error)}); "
                "older ones are whole, and the same command goes on from them"
            ) from None

    def _thin(self) -> None:
        """Removes the checkpoints that neither `keep` nor `keep_hours` keeps, and those set aside as damaged."""
        steps = self.steps()
        kept, last = set(steps[-self.keep :]), -np.inf
        for step in steps if self.keep_hours else ():
            with contextlib.suppress(Damaged):
                saved = read_record(self.folder / str(step))["time"]
                if saved - last >= 3600 * self.keep_hours:
                    kept.add(step)
                    last = saved
        for path in self.folder.iterdir():
            if path.name.startswith("damaged-") or (path.name.isdecimal() and int(path.name) not in kept):
                _remove(path)

    # ---- reading

    def restore(
        self,
        wanted: Any,
        adopt: Callable[[np.ndarray], Any] = lambda leaf: leaf,
        steps: list[int] | None = None,
        log: Callable[[str], None] | None = None,
    ) -> tuple[int, Any] | None:
        """Returns (step, state) of the newest whole checkpoint, or None if there is no checkpoint.

        A damaged checkpoint is reported and skipped, and the one before it is tried; see `set_aside`.
        wanted: the state's tree, of arrays or shapes.
        adopt: each array is replaced by adopt(array) before the next group is read.
        steps: the checkpoints to try; None: all.
        log: is called with a line about each damaged one; None prints it to stderr.
        SdjaxError: all of them are damaged, or one is of another model or another optimiser.
        """
        steps, reasons = self.steps() if steps is None else steps, []
        self._ignore_late_callbacks()
        log = log or (lambda line: print(line, file=sys.stderr))
        for step in reversed(steps):
            path = self.folder / str(step)
            try:
                return step, self._read(path, wanted, adopt)
            except Damaged as damage:
                reasons.append(f"{path}: {damage}")
                log(f"damaged checkpoint, not used: {path}: {damage}")
        if steps:
            raise SdjaxError(
                f"out {self.folder.parent}: none of its checkpoints is whole ({reasons[0]}); name a new "
                "folder, or move checkpoints/ away to begin anew"
            )
        return None

    def set_aside(self, after: int) -> None:
        """Renames the checkpoints after step `after`, all damaged, to damaged-<step>; the next save removes them."""
        for step in self.steps():
            if step > after:
                _remove(self.folder / f"damaged-{step}")
                os.replace(self.folder / str(step), self.folder / f"damaged-{step}")

    def _read(self, path: Path, wanted: Any, adopt: Callable[[np.ndarray], Any]) -> Any:
        record = read_record(path)
        describe = lambda leaf: f"{np.dtype(leaf.dtype)}{list(leaf.shape)}"
        expected = {name: describe(leaf) for name, leaf in _named(wanted)}
        found = {name: f"{dtype}{shape}" for name, (_, dtype, shape) in record["leaves"].items()}
        if wrong := [name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name)]:
            name, more = wrong[0], f" and {len(wrong) - 1} more" if wrong[1:] else ""
            raise SdjaxError(
                f"out {self.folder.parent}: its checkpoint of step {record['step']} is of another model or "
                f"optimizer: {name} is {found.get(name, 'absent')}, should be {expected.get(name, 'absent')}{more}; "
                "name a new folder or the options in its config.json"
            )
        files = _files(path)
        if wrong := sorted(set(files) ^ {*record["files"], DIGESTS}):
            raise Damaged(f"{wrong[0]} is {'not of it' if wrong[0] in files else 'missing'}")
        for name, digest in record["files"].items():
            if _file_digest(path / name) != digest:
                raise Damaged(f"{name} is not what was written")
        leaves = {}
        with _quiet():
            orbax = _orbax()
        for number, group in enumerate(record["groups"]):
            try:
                with _quiet():
                    values = orbax.restore(path / "state" / str(number), dict.fromkeys(group, 0))
            except Exception as error:
                raise Damaged(_reason(error)) from None
            for name in group:
                if _signature(values[name]) != record["leaves"][name]:
                    raise Damaged(f"{name} is not what was saved")
                leaves[name] = adopt(values.pop(name))
        return jax.tree.unflatten(jax.tree.structure(wanted), [leaves[name] for name, _ in _named(wanted)])


def read_record(path: Path) -> dict[str, Any]:
    """Returns digests.json of a checkpoint. Damaged: it is missing or was changed."""
    try:
        record = json.loads((path / DIGESTS).read_bytes())
        if record.pop("digest") == _record_digest(record):
            return record
    except FileNotFoundError:
        raise Damaged(f"{DIGESTS} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise Damaged(f"{DIGESTS} is not what was written")


class _orbax:
    """Orbax for one process alone: it waits for no other process, however many there are."""

    def __init__(self):
        import orbax.checkpoint as ocp

        mine = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=mine, active_processes={mine}, barrier_sync_key_prefix=f"process{mine}"
        )
        self._ocp = ocp
        self._checkpointer = ocp.Checkpointer(
            ocp.PyTreeCheckpointHandler(multiprocessing_options=alone), multiprocessing_options=alone
        )

    def save(self, path: Path, leaves: dict[str, np.ndarray]) -> None:
        self._checkpointer.save(path, args=self._ocp.args.PyTreeSave(leaves))

    def restore(self, path: Path, names: dict[str, Any]) -> dict[str, np.ndarray]:
        kind = self._ocp.RestoreArgs(restore_type=np.ndarray)
        args = self._ocp.args.PyTreeRestore(item=names, restore_args=dict.fromkeys(names, kind), partial_restore=True)
        return self._checkpointer.restore(path, args=args)


def _named(tree: Any) -> list[tuple[str, Any]]:
    """Returns (path, leaf) of every leaf, in the tree's order; a path is like "params.conv_in.kernel"."""
    name = lambda key: str(next(getattr(key, kind) for kind in ("key", "idx", "name") if hasattr(key, kind)))
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(".".join(map(name, path)), leaf) for path, leaf in leaves]


def _groups(leaves: dict[str, list]) -> Iterator[list[str]]:
    """Yields the names in groups of at most GROUP bytes; a larger leaf is a group of its own."""
    group, size = [], 0
    for name, (_, dtype, shape) in leaves.items():
        more = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if group and size + more > GROUP:
            yield group
            group, size = [], 0
        group.append(name)
        size += more
    if group:
        yield group


def _signature(leaf: np.ndarray) -> list:
    """Returns [SHA-256 of the values' bytes, dtype, shape]."""
    leaf = np.asarray(leaf)
    values = np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)
    return [hashlib.sha256(values).hexdigest(), str(leaf.dtype), list(leaf.shape)]


def _file_digest(path: Path, sync: bool = False) -> str:
    with open(path, "rb") as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _record_digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.unlink()


def _reason(error: Exception) -> str:
    """Returns the system's message, taken out of the long text that Orbax and tensorstore make of it."""
    text = " ".join(str(error).split())
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (match := re.search(r"os_error_code='(\d+)'", text)):
        number = int(match[1])
    return os.strerror(number) if number else text[:200] or type(error).__name__


@contextlib.contextmanager
def _quiet():
    """Hides what Orbax logs through absl and raises anyway."""
    log = logging.getLogger("absl")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)
