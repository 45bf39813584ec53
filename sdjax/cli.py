"""Command lines from dataclasses: one line on standard error and exit status 2 for whatever is refused."""

import contextlib
import io
import re
import sys
from collections.abc import Callable
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
    parsed = parse(options, main.__doc__ or "")
    try:
        main(parsed)
    except SdjaxError as error:
        refuse(str(error))
    except KeyboardInterrupt:
        sys.exit(130)


def refuse(message: str) -> None:
    """Prints `error: message` in one line and leaves with status 2."""
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


def _one_line(box: str) -> str:
    """The sentences inside tyro's box: without escapes, borders and the usage hint."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [re.sub(r"[─-╿]+", " ", line).strip() for line in text.splitlines()]
    kept = [line for line in lines if line and not re.match(r"(usage:|For full helptext|Parsing error)", line, re.I)]
    return re.sub(r"\s+", " ", " ".join(kept)) or "the command line could not be read: see --help"
