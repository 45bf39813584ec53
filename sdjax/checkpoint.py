"""A run's folder: `config.json`, `metrics.jsonl`, Orbax checkpoints, restart from the newest one."""

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from sdjax.cli import check_folder
from sdjax.errors import SdjaxError
from sdjax.image import contact_sheet, save_png


class Run:
    """The folder RUN of one training job. Opening it again is how a job goes on."""

    def __init__(self, folder: str | Path, options: Any, keep: int = 2):
        import orbax.checkpoint as ocp

        check_folder(folder)
        self.folder = Path(folder).absolute()
        self._manager = ocp.CheckpointManager(
            self.folder / "checkpoints", item_handlers=ocp.StandardCheckpointHandler(),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep))
        self._args = ocp.args
        self._clock = None
        if self._manager.latest_step() is None:  # a run that goes on keeps the settings it was started with
            scratch = self.folder / ".config.json"
            scratch.write_text(json.dumps(dataclasses.asdict(options), indent=2, default=str) + "\n")
            os.replace(scratch, self.folder / "config.json")

    def restore(self, state: Any) -> Any:
        """The newest checkpoint in the shapes of `state`, arrays or not, or None in a fresh run.

        SdjaxError where the checkpoint is of another model or another optimiser.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        found, wanted = _shapes(self._manager.item_metadata(step).tree), _shapes(state)
        if wrong := [name for name in sorted({*found, *wanted}) if found.get(name) != wanted.get(name)]:
            name, more = wrong[0], f" and {len(wrong) - 1} more" if wrong[1:] else ""
            raise SdjaxError(
                f"--out {self.folder}: its checkpoint of step {step} is of another model or optimizer: {name} is "
                f"{found.get(name, 'absent')}, should be {wanted.get(name, 'absent')}{more}; name a new folder or the "
                "options in its config.json")
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])  # and not where the file says that it was
        abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), state)
        restored = self._manager.restore(step, args=self._args.StandardRestore(abstract))
        return jax.tree.map(jax.numpy.asarray, restored)

    def save(self, step: int, state: Any) -> None:
        """Writes checkpoints/<step>/ in the background."""
        self._manager.save(step, args=self._args.StandardSave(state))

    def log(self, step: int, metrics: dict[str, Any], images: int, notes: dict[str, Any] | None = None) -> dict:
        """Appends a line to metrics.jsonl. Floats are float32 written so that they read back to the same bits.

        `images` is the number of pictures since the last call, for images_per_second; `notes` are written as they are.
        """
        now = time.perf_counter()
        record = {"step": step} | {name: float(np.float32(value)) for name, value in metrics.items()}
        if self._clock is not None:
            record["images_per_second"] = images / (now - self._clock)
        self._clock = now
        record |= notes or {}
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        return record

    def save_sheet(self, step: int, pictures: list[Image.Image]) -> None:
        """Writes the pictures as samples/<step>.png."""
        (self.folder / "samples").mkdir(exist_ok=True)
        save_png(contact_sheet(pictures), self.folder / "samples" / f"{step}.png")

    def close(self) -> None:
        """Waits for the checkpoint that is being written."""
        self._manager.wait_until_finished()
        self._manager.close()


def _shapes(tree: Any) -> dict[str, list[int]]:
    """Path -> shape; a file's metadata has dicts where the state has NamedTuples, hence the names by hand."""
    name = lambda key: str(next(getattr(key, kind) for kind in ("key", "idx", "name") if hasattr(key, kind)))
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(map(name, path)): list(leaf.shape) for path, leaf in leaves}
