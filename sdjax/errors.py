"""The one exception of this package, its messages in commands, and the test for JAX's out-of-memory error."""

import contextlib
import difflib
import logging
import re
from collections.abc import Iterable, Iterator

log = logging.getLogger("sdjax")  # the package logs all its messages here


class SdjaxError(ValueError):
    """The error that this package raises when it refuses something.

    The message is one line (or one list) that names the file, key or argument, and says what would be right.
    """


def did_you_mean(value: object, names: Iterable[str]) -> str:
    """Returns the end of a refusal, "; did you mean NAME?", or "" if no name is near."""
    near = difflib.get_close_matches(str(value), names, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def in_short(value: object, most: int = 80) -> str:
    """Returns a value as a refusal shows it: as it is written in Python if that is short, else what it is."""
    text = repr(value)
    if len(text) <= most and "\n" not in text:
        return text
    shape = getattr(value, "shape", None)
    return f"is {type(value).__name__}" + ("" if shape is None else f" of shape {list(shape)}")


def out_of_memory(error: Exception) -> bool:
    """Did this JAX runtime error come from a device that ran out of memory?"""
    return "RESOURCE_EXHAUSTED" in str(error)


@contextlib.contextmanager
def prefixed(prefix: str) -> Iterator[None]:
    """Puts `prefix` before the message of any SdjaxError that is raised inside the block. Commands use it to say which
    flag the error is about."""
    try:
        yield
    except SdjaxError as error:
        raise SdjaxError(f"{prefix}{error}") from None


@contextlib.contextmanager
def loading(dashes: str = "--", model: str = "--model: ") -> Iterator[None]:
    """Says in the message of any SdjaxError inside the block that it is about --model, or about --config, --unet or
    --vae if the message begins with that argument. model: what stands there in place of --model."""
    try:
        yield
    except SdjaxError as error:
        own = str(error).startswith(("config ", "unet ", "vae "))
        raise SdjaxError(f"{dashes if own else model if dashes else 'model: '}{error}") from None


@contextlib.contextmanager
def flags_of(names: Iterable[str]) -> Iterator[None]:
    """Replaces arguments' names by flags in the message of any SdjaxError that is raised inside the block, as
    `with_flags` does."""
    try:
        yield
    except SdjaxError as error:
        raise SdjaxError(with_flags(str(error), names)) from None


def with_flags(message: str, names: Iterable[str]) -> str:
    """Returns the library's message with flags in place of the arguments in `names`.

    A name is replaced if it is the first word of the message, and not the beginning of a path, or stands in backticks.
    So "batch_size 3: too large, see `remat`" becomes "--batch-size 3: too large, see --remat".
    """
    flags = {name: f"--{name.replace('_', '-')}" for name in names}
    message = re.sub(r"^\w+(?![\w./\\-])", lambda m: flags.get(m[0], m[0]), message)
    return re.sub(r"`(\w+)`", lambda m: flags.get(m[1], m[0]), message)
