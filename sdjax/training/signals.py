"""What a training job does when SIGTERM or SIGINT asks it to stop."""

import signal
from pathlib import Path
from typing import Any

from sdjax.devices.processes import is_primary


def leave_on_signals(out: Path) -> None:
    """Makes SIGTERM and SIGINT end the process at once and leave the marker PREEMPTED in `out`.

    This holds before and after the training steps, and for a second signal during them (see _StopFlag).
    """

    def leave(*_):
        if is_primary():
            (out / "PREEMPTED").write_text(
                "stopped at once by a signal; the same command goes on after the newest checkpoint\n"
            )
        raise SystemExit(0)

    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, leave)


class _StopFlag:
    """While it is entered, SIGTERM or SIGINT sets `asked`: the loop saves a checkpoint after its step and ends.

    A second signal is handled as before, by `leave_on_signals`.
    """

    def __init__(self):
        self.asked = False

    def __enter__(self):
        self._before = {name: signal.signal(name, self._ask) for name in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_):
        for name, handler in self._before.items():
            signal.signal(name, handler)

    def _ask(self, name: int, _frame: Any):
        self.asked = True
        signal.signal(name, self._before[name])
