"""Runs one side of a benchmark in a process of its own, and measures its memory."""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from sdjax.errors import SdjaxError

# ---- processes that take turns


def serve(pipe, make: Callable, *arguments) -> None:
    """Runs in the worker: answers each (part, size) with (seconds, peak memory in bytes, result).

    make(*arguments) loads a side; the first answer, without a question, is for that.
    """
    try:
        begin, calls = time.perf_counter(), {}
        side = make(*arguments)
        pipe.send((time.perf_counter() - begin, peak_memory(make), None))
        while True:
            asked = pipe.recv()
            calls = calls if asked in calls else {asked: side(*asked)}
            forget_peak()
            begin = time.perf_counter()
            result = calls[asked]()
            pipe.send((time.perf_counter() - begin, peak_memory(make), result))
    except EOFError:  # no more questions
        return
    except Exception as error:  # the other process raises it, instead of waiting
        pipe.send(error if isinstance(error, SdjaxError) else SdjaxError(f"{make.__name__}: {error!r}"))


class Worker:
    """A side of a benchmark in its own process. `loaded` is the answer for loading it, see `serve`."""

    def __init__(self, make: Callable, *arguments):
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, make, *arguments), daemon=True)
        self.process.start()
        other.close()
        self.loaded = self.answer()

    def answer(self):
        """Returns the next answer. Raises what the worker raised, or SdjaxError if its process has ended."""
        try:
            answer = self.pipe.recv()
        except EOFError:
            self.process.join()
            raise SdjaxError(f"a process ended (status {self.process.exitcode}): out of memory?") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def ask(self, part: str, size: int):
        """Returns (seconds, peak memory in bytes, result) of one call."""
        self.pipe.send((part, size))
        return self.answer()


def forget_peak() -> None:
    """Resets the process' peak memory to its present use, where Linux allows it."""
    if os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(make: Callable) -> float:
    """Returns the peak memory in bytes: the accelerator's if there is one, else the process'; 0 if unknown."""
    if make.__name__ == "ours" and (stats := sys.modules["jax"].local_devices()[0].memory_stats()):
        return stats["peak_bytes_in_use"]
    if make.__name__ == "theirs" and (cuda := sys.modules["torch"].cuda).is_available():
        return cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0.0)
