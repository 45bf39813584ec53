"""Draws thousands of pictures into one folder, with one process or many, and records each finished one.

    OUT/manifest.jsonl        {"settings": {...}}, then a record for each finished picture:
                              {"image": i, "file": "00007-seed7.png", "seed": 7, "prompt": "a red apple", "bytes": 9041}
    OUT/manifest-<p>.jsonl    the same for process p > 0

Each picture is written whole or not at all. After a kill the same command continues; finished pictures stay as they
are. Picture i always has the same place in the same batch, so its bytes are reproducible; a kill loses at most one
batch. The settings must be the same as before; prompts may be added at the end.
"""

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL.Image import Image

from sdjax.errors import SdjaxError
from sdjax.files import json_line, lock, writing
from sdjax.image.metadata import read_parameters
from sdjax.image.png import save_png

Draw = Callable[[list[str], int, Callable[[int, int], None]], list[Image]]


def run_batch(
    draw: Draw,
    describe: Callable[[int], str],
    prompts: Sequence[str],
    out: str | Path,
    settings: Mapping[str, Any],
    seed: int = 0,
    size: int = 32,
    process: int = 0,
    processes: int = 1,
    report: Callable[[float, int], None] | None = None,
) -> int:
    """Draws those pictures of this process's share that `out` does not hold yet. Returns how many it drew.

    draw: draw(prompts, seed, progress) draws `size` pictures, the k-th from seed + k alone. The last batch is padded
        with the last prompt.
    describe: describe(i) is the parameters text of picture i.
    prompts: picture i has prompt i and seed + i.
    settings: JSON values that must be the same when a run continues.
    size: pictures in a batch.
    process, processes: this process's number, and how many share the work.
    report: report(done, all) is called at the start and during each batch, for this process's share; during a batch
        done may be a fraction.
    SdjaxError: `out` holds a run with other settings or prompts, or another picture under a name that is needed; or
    another process writes there.
    """
    out, count, made = Path(out), len(prompts), 0
    if not 0 <= seed <= 2**32 - count - size:
        raise SdjaxError(f"seed {seed}: from 0 to {2**32 - count - size} for {count} pictures")
    share = range(count * process // processes, count * (process + 1) // processes)
    report = report or (lambda done, of: None)
    with Manifest(out, settings, prompts, process) as manifest:
        adopt(manifest, out, share, prompts, seed, describe)
        done = sum(i in manifest.finished for i in share)
        report(done, len(share))
        for first in share[::size]:
            missing = [i for i in share[first - share.start :][:size] if i not in manifest.finished]
            if not missing:
                continue
            chosen = [prompts[min(i, share[-1])] for i in range(first, first + size)]
            part = lambda n, of, done=done, new=missing: report(done + len(new) * n / of, len(share))
            images = draw(chosen, seed + first, part)
            for i in missing:
                path = save_png(images[i - first], out / name(i, seed), describe(i))
                manifest.add(i, path, prompts[i], seed + i)
            done, made = done + len(missing), made + len(missing)
            report(done, len(share))
    return made


def name(i: int, seed: int) -> str:
    """Returns the file name of picture i of a run from `seed`."""
    return f"{i:05d}-seed{seed + i}.png"


def adopt(manifest: "Manifest", out: Path, share: range, prompts: Sequence[str], seed: int, describe) -> None:
    """Records whole pictures that a killed process wrote and did not record, and removes its scratch files."""
    there = {entry.name for entry in os.scandir(out)}
    own = {name(i, seed): i for i in share if i not in manifest.recorded}
    for scratch in there:
        if scratch.endswith(".tmp") and scratch.lstrip(".").rpartition("-")[0] in own:
            (out / scratch).unlink()
    for file in sorted(own.keys() & there):
        i = own[file]
        if read_parameters(out / file) != describe(i):
            raise SdjaxError(f"{out / file}: a picture of another run; name an empty folder")
        manifest.add(i, out / file, prompts[i], seed + i)


class Manifest:
    """The record of a run: reads the manifests of all processes, and writes and locks that of its own.

    Use it as a context manager. `recorded`: the pictures that the manifests name; `finished`: those of them whose files
    are there, with the recorded size.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], prompts: Sequence[str], process: int):
        self.settings, self.finished, self.recorded, self.empty = json.loads(json.dumps(settings)), set(), set(), False
        self.path = out / ("manifest.jsonl" if process == 0 else f"manifest-{process}.jsonl")
        with writing(self.path):
            self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 closed in __exit__
        try:
            lock(self.file, f"{self.path}: another run writes in this folder")
            for path in sorted(out.glob("manifest*.jsonl")):
                whole = self._read(path, out, prompts)
                if path == self.path:
                    self.file.truncate(whole)
                    self.empty = not whole
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        if self.empty:
            self.path.unlink()

    def add(self, i: int, path: Path, prompt: str, seed: int) -> None:
        """Records picture i, whose file is whole."""
        if self.empty:
            self._write({"settings": self.settings})
            self.empty = False
        self._write({"image": i, "file": path.name, "seed": seed, "prompt": prompt, "bytes": path.stat().st_size})
        self.finished.add(i)

    def _write(self, record: dict[str, Any]) -> None:
        with writing(self.path):
            self.file.write(json_line(record))
            self.file.flush()

    def _read(self, path: Path, out: Path, prompts: Sequence[str]) -> int:
        """Reads the records of one manifest. Returns the bytes of its whole lines; a kill may tear the last one."""
        whole = 0
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                try:
                    record = json.loads(line)
                    if number == 1:
                        there = dict(record["settings"])
                    else:
                        i, prompt, picture = int(record["image"]), record["prompt"], out / record["file"]
                        size = record["bytes"]
                except (ValueError, KeyError, TypeError):
                    raise SdjaxError(f"{path} line {number}: not a record of a batch run") from None
                if number == 1:
                    self._compare(path, there)
                    continue
                if i < len(prompts) and prompt != prompts[i]:
                    raise SdjaxError(
                        f"{path} line {number}: picture {i} is of {prompt!r}, the prompts now have "
                        f"{prompts[i]!r} there; name an empty folder"
                    )
                self.recorded.add(i)
                with contextlib.suppress(OSError):
                    if os.stat(picture).st_size == size:
                        self.finished.add(i)
        return whole

    def _compare(self, path: Path, there: dict[str, Any]) -> None:
        different = [
            f"{key} is {there.get(key)!r} there, {self.settings.get(key)!r} here"
            for key in sorted({*there, *self.settings})
            if there.get(key) != self.settings.get(key)
        ]
        if different:
            raise SdjaxError(f"{path}: a run with other settings ({'; '.join(different)}); name an empty folder")
