"""The pictures that a run does without, named in RUN/bad_data.jsonl."""

import json
import threading
from pathlib import Path

from sdjax.errors import SdjaxError, log
from sdjax.files import json_line, writing


class BadData:
    """Counts bad pictures, writes them down once, and stops the run when they are too many.

    total: how many pictures there are; share: how many of them may be bad; path: the file, to which a run that goes on
    appends what is not in it yet. Threads may share it.
    """

    def __init__(self, total: int, share: float = 0.0, path: Path | None = None):
        self.total, self.share, self.path, self.lock = total, share, path, threading.Lock()
        self.names: set[str] = set()  # met by this process: what was repaired since an earlier start does not count
        self.written: set[str] = set()
        self.refusal: SdjaxError | None = None
        self.before = ""  # what stands before the next line: a break where a full disk cut the last one off
        if path is not None and path.is_file():
            content = path.read_text("utf-8", "replace")
            self.before = "\n" if content and not content.endswith("\n") else ""
            for line in content.splitlines():
                try:
                    self.written.add(json.loads(line)["path"])
                except (ValueError, KeyError, TypeError):  # such a line
                    continue

    def __len__(self) -> int:
        return len(self.names)

    def check(self) -> None:
        """Raises what `add` raised, in every thread from then on."""
        if self.refusal is not None:
            raise self.refusal

    def add(self, name: str, reason: str) -> None:
        """SdjaxError when more than `share` of the pictures are bad with this one."""
        name = name.encode("utf-8", "replace").decode()
        with self.lock:
            new = name not in self.names
            if new:
                self.names.add(name)
                self._write(name, reason)
                self._judge(name, reason)
        self.check()
        if new and len(self) == 1:
            log.warning("%s: %s; set aside, as others will be that %s names", name, reason, self.path or "no file")

    def _write(self, name: str, reason: str) -> None:
        if self.path is not None and name not in self.written:
            self.written.add(name)
            with writing(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with open(self.path, "a", encoding="utf-8") as file:
                    file.write(self.before + json_line({"path": name, "reason": reason}))
            self.before = ""

    def _judge(self, name: str, reason: str) -> None:
        count = len(self.names)
        if self.refusal is None and count > self.share * self.total + 1e-9:
            more = f" (bad with it: {count} of {self.total} pictures, more than `max_bad` {self.share:g}"
            more += f"; they are named in {self.path})" if self.path else ")"
            self.refusal = SdjaxError(f"{name}: {reason}{more if self.share or self.path else ''}")
