"""The one exception of this package, the messages of commands, and how an exception of JAX' is told."""

import contextlib
import logging
import re
from collections.abc import Iterable, Iterator

log = logging.getLogger("sdjax")  # everything that this package has to say goes there


class SdjaxError(ValueError):
    """A refusal: the message is one line (or one list) naming the file, key or argument and what would be right."""


def out_of_memory(error: Exception) -> bool:
    """Of JAX' JaxRuntimeError: is it that a device has too little?"""
    return "RESOURCE_EXHAUSTED" in str(error)


@contextlib.contextmanager
def prefixed(prefix: str) -> Iterator[None]:
    """What is refused in here says first which flag it is about."""
    try:
        yield
    except SdjaxError as error:
        raise SdjaxError(f"{prefix}{error}") from None


@contextlib.contextmanager
def flags_of(names: Iterable[str]) -> Iterator[None]:
    """What is refused in here by an argument's name says the flag's."""
    try:
        yield
    except SdjaxError as error:
        raise SdjaxError(with_flags(str(error), names)) from None


def with_flags(message: str, names: Iterable[str]) -> str:
    """The library's message with flags in place of arguments' `names`, where one is its first word or in backticks.

    "batch_size 3: too large, see `remat`" becomes "--batch-size 3: too large, see --remat".
    """
    flags = {name: f"--{name.replace('_', '-')}" for name in names}
    message = re.sub(r"^\w+", lambda m: flags.get(m[0], m[0]), message)
    return re.sub(r"`(\w+)`", lambda m: flags.get(m[1], m[0]), message)
