"""Command lines from dataclasses: one line on standard error and exit status 2 for whatever is refused."""

import contextlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sdjax.errors import SdjaxError

Options = TypeVar("Options")


def parse(options: type[Options], description: str) -> Options:
    """Reads sys.argv into the dataclass `options`; tyro's error box becomes one line, exit status 2."""
    import tyro

    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            return tyro.cli(options, description=description)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        refuse(_one_line(captured.getvalue()))


def run(main: Callable[[Options], None], options: type[Options]) -> None:
    """Parses, calls `main`, and turns every refusal into one line and exit status 2."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # "PyTorch was not found" is no news here
    parsed = parse(options, main.__doc__ or "")
    try:
        main(parsed)
    except (SdjaxError, OSError) as error:
        refuse(str(error))
    except KeyboardInterrupt:
        sys.exit(130)


def refuse(message: str) -> None:
    """Prints `error: message` in one line and leaves with status 2."""
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


def check_folder(folder: str | Path) -> None:
    """Makes the folder and writes a file in it, or raises SdjaxError: to be called before anything is computed."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SdjaxError(f"--out {folder}: cannot be written ({error.strerror})") from None


def _one_line(box: str) -> str:
    """The sentences inside tyro's box: without escapes, borders, its title and the hint below its rule."""
    text = re.split(r"\n│ ─+ │\n", re.sub(r"\x1b\[[0-9;]*m", "", box))[0]
    lines = [line for line in text.splitlines() if not line.startswith(("╭", "╰"))]
    sentence = " ".join(" ".join(re.sub(r"[─-╿]+", " ", line) for line in lines).split())
    return sentence or "the command line could not be read: see --help"
