"""What a training job does when SIGTERM or SIGINT asks it to stop."""

import signal
import sys
from pathlib import Path
from typing import Any

from sdjax.devices.processes import is_primary


def leave_on_signals(out: Path) -> None:
    """Makes SIGTERM and SIGINT end the process at once, with status 0 and 130, and leave the marker PREEMPTED in `out`.

    This holds before and after the training steps, and for a second signal during them (see _StopFlag).
    """

    def leave(name, *_):
        if is_primary():
            line = "stopped at once by a signal; the same command goes on after the newest checkpoint"
            (out / "PREEMPTED").write_text(f"{line}\n")
            print(line, file=sys.stderr)
        raise SystemExit(status_of(name))

    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, leave)


def status_of(name: int | None) -> int:
    """Returns the exit status after a signal: 130 after Ctrl-C, as shells have it, and 0 after others."""
    return 130 if name == signal.SIGINT else 0


class _StopFlag:
    """While it is entered, SIGTERM or SIGINT sets `asked`: the loop saves a checkpoint after its step and ends.

    A second signal is handled as before, by `leave_on_signals`.
    """

    def __init__(self):
        self.asked, self.name = False, None

    def __enter__(self):
        self._before = {name: signal.signal(name, self._ask) for name in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_):
        for name, handler in self._before.items():
            signal.signal(name, handler)

    def _ask(self, name: int, _frame: Any):
        self.asked, self.name = True, name
        signal.signal(name, self._before[name])
