"""Reads the fields of a network's config.json, strictly where it matters.

A field that would change the computation must have the one value that this package supports. Fields that nobody here
knows are named in a warning (`Fields.finish`).
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sdjax.errors import SdjaxError, log

VERSION = "0.35.0"  # the version of diffusers whose layout this is

MOST, MOST_LAYERS = 1 << 20, 100  # limits of numbers and of layers; no model comes near, and they keep tables small


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file. SdjaxError: the file is missing, not readable, or holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))  # some editors write a byte order mark
    except FileNotFoundError:
        raise SdjaxError(f"{path}: no such file; a diffusers folder has one") from None
    except (OSError, ValueError, RecursionError) as error:
        raise SdjaxError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise SdjaxError(f"{path}: holds a {type(value).__name__}, should be an object")
    return value


class Fields:
    """The fields of one config.json. `take` reads and removes a field; `finish` refuses those that are left and matter.

    A field that is missing or null has its default value, because older versions wrote fewer fields. All methods raise
    SdjaxError that names the file and the field.
    """

    def __init__(self, path: Path | str, values: dict[str, Any] | None = None):
        """path: what messages call the fields. values: the fields, if they are not those of the JSON file `path`."""
        self.path, self.values = path, read_json(Path(path)) if values is None else dict(values)

    def enter(self, name: str) -> None:
        """Goes on with the object in field `name`, if there is one."""
        if isinstance(nested := self.values.get(name), dict):
            self.values = nested

    def take(self, name: str, default: Any = None, kind: type = int, most: float = MOST) -> Any:
        """Takes one value of the type `kind` (float accepts whole numbers too). Numbers must be above 0 and at most
        `most`."""
        value = self.values.pop(name, None)
        value = default if value is None else value
        accepted = (int, float) if kind is float else kind
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise SdjaxError(f"{self.path}: {name} is {value!r}, should be {kind.__name__}")
        if kind in (int, float) and not 0 < value <= most:
            raise SdjaxError(f"{self.path}: {name} is {value!r}, should be above 0 and at most {most}")
        return kind(value)

    def take_list(self, name: str, default: Any, length: int | None = None) -> tuple:
        """Takes a list of `length` entries, or one value, which then holds for every level. The entries have the type
        of `default` (or of its first entry)."""
        value = self.values.pop(name, None)
        value = default if value is None else value
        value = [value] * (length or 1) if isinstance(value, (int, str)) else value
        kind = type(default[0] if isinstance(default, tuple) else default)
        if (
            not isinstance(value, list | tuple)
            or not 0 < len(value) <= MOST_LAYERS
            or length not in (None, len(value))
            or not all(type(entry) is kind for entry in value)
        ):
            count = length or "some"
            raise SdjaxError(f"{self.path}: {name} is {value!r}, should be a list of {count} {kind.__name__} entries")
        if kind is int and not all(0 < entry <= MOST for entry in value):
            raise SdjaxError(f"{self.path}: {name} is {value!r}, should be above 0 and at most {MOST}")
        return tuple(value)

    def divides(self, name: str, parts: int, wholes: tuple[int, ...]) -> None:
        """Refuses `parts`, the value of field `name`, if it does not divide all of `wholes`."""
        if any(whole % parts for whole in wholes):
            raise SdjaxError(f"{self.path}: {name} is {parts}, which does not divide {', '.join(map(str, wholes))}")

    def finish(self, checked: dict[str, Any], ignored: set[str] | None = None, unset: tuple[str, ...] = ()) -> None:
        """Refuses the fields that are left and would change the computation.

        checked: field -> its only supported value, which is also what a missing field means.
        ignored: the fields without influence. If given, all other fields that are left are named in one warning:
            somebody's notes or a trainer's settings are no reason to refuse a model.
        unset: fields of other models, which must be missing, null or false.
        """
        for name, only in checked.items():
            value = self.values.pop(name, None)
            each = value if isinstance(value, list) else [only if value is None else value]  # a list has one per level
            if any(entry != only for entry in each):
                raise SdjaxError(f"{self.path}: {name} is {value!r}, only {only!r} is supported")
        for name in unset:
            if (value := self.values.pop(name, None)) not in (None, False):
                raise SdjaxError(f"{self.path}: {name} is {value!r}, only null is supported")
        strange = [name for name, value in self.values.items() if value not in (None, False) and name[:1] != "_"]
        strange = sorted(set(strange) - (ignored or set()))
        if ignored is not None and strange:
            names = ", ".join(strange[:5]) + (f" and {len(strange) - 5} more" if len(strange) > 5 else "")
            log.warning("%s: fields that are not known here have no effect: %s", self.path, names)


def class_name(name: str) -> dict[str, Any]:
    """Returns the two fields with which diffusers' JSON files begin."""
    return {"_class_name": name, "_diffusers_version": VERSION}


def plain_fields(config: type, name: str) -> tuple[Callable[..., Any], Callable[[Any], dict[str, Any]]]:
    """Returns `read` and `write` of a Part whose config.json holds the fields of its config under their own names.

    name: the file's _class_name. The fields are whole numbers from 1 on, truth values, or whole numbers or None.
    """

    def read(fields: Fields, *_: Any) -> Any:
        found = {}
        for field in dataclasses.fields(config):
            if field.default is not None or fields.values.get(field.name) is not None:
                kind = int if field.default is None else type(field.default)
                found[field.name] = fields.take(field.name, field.default, kind)
        fields.finish({}, set())
        return config(**found)

    return read, lambda config: class_name(name) | dataclasses.asdict(config)
