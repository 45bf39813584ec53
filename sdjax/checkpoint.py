"""A run's folder: `config.json`, `metrics.jsonl`, Orbax checkpoints, restart from the newest one."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sdjax.errors import SdjaxError


class Run:
    """The folder RUN of one training job. Opening it again is how a job goes on."""

    def __init__(self, folder: str | Path, options: Any, keep: int = 2):
        import orbax.checkpoint as ocp

        self.folder = Path(folder).absolute()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "config.json").write_text(json.dumps(dataclasses.asdict(options), indent=2, default=str) + "\n")
        except OSError as error:
            raise SdjaxError(f"--out {folder}: cannot write there ({error.strerror})") from None
        self._manager = ocp.CheckpointManager(
            self.folder / "checkpoints", options=ocp.CheckpointManagerOptions(max_to_keep=keep))
        self._args = ocp.args
        self._clock = None

    def restore(self, state: Any) -> Any:
        """The newest checkpoint in the shapes of `state`, or `state` itself in a fresh run."""
        step = self._manager.latest_step()
        if step is None:
            return state
        abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
        restored = self._manager.restore(step, args=self._args.StandardRestore(abstract))
        return jax.tree.map(jax.numpy.asarray, restored)

    def save(self, step: int, state: Any) -> None:
        """Writes checkpoints/<step>/ in the background."""
        self._manager.save(step, args=self._args.StandardSave(state))

    def log(self, step: int, metrics: dict[str, Any], images: int) -> dict[str, float]:
        """Appends a line to metrics.jsonl. Floats are float32 written so that they read back to the same bits.

        `images` is the number of pictures since the last call, for images_per_second.
        """
        now = time.perf_counter()
        record = {"step": step} | {name: float(np.float32(value)) for name, value in metrics.items()}
        if self._clock is not None:
            record["images_per_second"] = images / (now - self._clock)
        self._clock = now
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        return record

    def close(self) -> None:
        self._manager.wait_until_finished()
        self._manager.close()
