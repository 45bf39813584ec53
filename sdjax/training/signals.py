"""What a training job does when it is asked to stop."""

import signal
from pathlib import Path
from typing import Any

from sdjax.devices.processes import is_primary


def leave_on_signals(out: Path) -> None:
    """Before and after the steps, and when told twice, SIGTERM and SIGINT leave at once."""

    def leave(*_):
        if is_primary():
            (out / "PREEMPTED").write_text(
                "stopped at once by a signal; the same command goes on after the newest checkpoint\n"
            )
        raise SystemExit(0)

    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, leave)


class _StopFlag:
    """SIGTERM and SIGINT ask for a checkpoint and an orderly end after the step in progress; a second one insists."""

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
