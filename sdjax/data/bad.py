"""Bad pictures: they are set aside and named in RUN/bad_data.jsonl, and too many of them stop the run."""

import json
import threading
from pathlib import Path

from sdjax.errors import SdjaxError, log
from sdjax.files import json_line, writing


class BadData:
    """Counts bad pictures, writes each to a file once, and stops the run when there are too many. Thread-safe.

    total: the number of all pictures.
    share: the share of them that may be bad.
    path: the file of JSON lines; a run that is continued appends to it what is not in it yet.
    """

    def __init__(self, total: int, share: float = 0.0, path: Path | None = None):
        self.total, self.share, self.path, self.lock = total, share, path, threading.Lock()
        self.names: set[str] = set()  # found by this process: a picture repaired since an earlier start does not count
        self.written: set[str] = set()
        self.refusal: SdjaxError | None = None
        self.before = ""  # written before the next line: a line break if a full disk cut the last line off
        if path is not None and path.is_file():
            content = path.read_text("utf-8", "replace")
            self.before = "\n" if content and not content.endswith("\n") else ""
            for line in content.splitlines():
                try:
                    self.written.add(json.loads(line)["path"])
                except (ValueError, KeyError, TypeError):  # a line that was cut off
                    continue

    def __len__(self) -> int:
        return len(self.names)

    def check(self) -> None:
        """Raises again the SdjaxError that `add` raised in any thread."""
        if self.refusal is not None:
            raise self.refusal

    def add(self, name: str, reason: str) -> None:
        """Counts and writes down a bad picture. SdjaxError if more than `share` of all pictures are bad now."""
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
