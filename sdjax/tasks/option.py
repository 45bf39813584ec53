"""A row of OPTIONS, and the checks that several rows share."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sdjax.checks import is_number, is_whole
from sdjax.diffusion.tables import Sampler, samplers


class Option(NamedTuple):
    """A row of OPTIONS, or of OTHERS in parameters.py."""

    name: str
    default: Any
    type: Any  # type of the argument
    help: str  # for the command line and for the docstring
    more: str = ""  # for the docstring alone
    check: Callable[[Any], bool] | None = None  # is a value right for any model? None: checked elsewhere
    right: str = ""  # which values are right, for the error's message
    flag: Any = None  # its type on the command line; None: it has no flag
    text: str | None = None  # its field in a PNG's parameters
    read: Callable[[str], Any] | None = None  # field's text -> value, or a dict of arguments; or ValueError
    write: Callable[[Any], Any] | None = None  # value -> what is written; None: written if not the default
    place: int = 100  # place of the field in the text: the order is the same in files of all versions
    axis: Callable[[str], Any] | None = None  # how --grid reads a value
    static: bool = False  # another value compiles anew
    program: bool = True  # an exported program takes it
    aliases: tuple[str, ...] = ()  # other names of its flag


def one_of(names: Sequence[str]) -> dict[str, Any]:
    """Returns `check` and `right` for an option whose value is one of `names`."""
    return {"check": lambda value: isinstance(value, str) and value in names, "right": f"one of {', '.join(names)}"}


def named(sampler: Any) -> Sampler | None:
    """Returns the Sampler that an option names or is; None: there is no such sampler."""
    return sampler if isinstance(sampler, Sampler) else samplers.get(sampler) if isinstance(sampler, str) else None


def label_of(sampler: Any) -> str:
    """Returns the web UI's name of a sampler."""
    found = named(sampler)
    return str(sampler) if found is None else found.label or found.name


SEED = {"check": lambda value: is_whole(value, 0, 2**32 - 1), "right": f"a whole number from 0 to {2**32 - 1}"}
SHARE = {"check": lambda value: is_number(value, 0, 1), "right": "a number from 0 to 1"}
FUNCTION = {"check": lambda value: value is None or callable(value), "right": "a function or None", "program": False}
