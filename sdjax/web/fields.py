"""The fields of requests: what each may be, what stands for one that is left out, and the row of OPTIONS that it sets.

A field whose option is in OPTIONS has that option's check and words. Fields make the checks of requests and the schema
at /openapi.json.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from sdjax.checks import is_number
from sdjax.tasks.option import Option
from sdjax.tasks.options import OPTIONS
from sdjax.web.refusals import Refused

ROWS: Mapping[str, Option] = {option.name: option for option in OPTIONS}

LONGEST = 10_000  # characters of a prompt
PICTURE = 2**26  # of a picture in base64


class Kind(NamedTuple):
    """What a field's value may be."""

    read: Callable[[Any], Any]  # value -> value of the right type; ValueError: it is not right
    right: str  # which values are right
    schema: Mapping[str, Any]


def whole(low: float, high: float = math.inf) -> Kind:
    """Returns the kind of whole numbers; 20.0 is one, True and "20" are not."""

    def read(value: Any) -> int:
        if not is_number(value, low, high) or value != int(value):
            raise ValueError
        return int(value)

    right = f"a whole number from {low:g} on" if high == math.inf else f"a whole number from {low:.0f} to {high:.0f}"
    return Kind(read, right, {"type": "integer", **limits(low, high)})


def number(low: float = -(10.0**6), high: float = 10.0**6) -> Kind:
    """Returns the kind of numbers from `low` to `high`."""

    def read(value: Any) -> float:
        if not is_number(value, low, high):
            raise ValueError
        return float(value)

    return Kind(read, f"a number from {low:g} to {high:g}", {"type": "number", **limits(low, high)})


def limits(low: float, high: float) -> dict[str, float]:
    found = {"minimum": low, "maximum": high}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def is_text(value: Any, most: int) -> bool:
    """Is `value` a string of at most `most` characters that UTF-8 can hold?"""
    if not isinstance(value, str) or len(value) > most:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half a surrogate
        return False
    return "\0" not in value


def text(most: int = LONGEST) -> Kind:
    """Returns the kind of texts of at most `most` characters."""

    def read(value: Any) -> str:
        if not is_text(value, most):
            raise ValueError
        return value

    return Kind(read, f"text of at most {most} characters", {"type": "string", "maxLength": most})


def word(most: int = 100) -> Kind:
    """Returns the kind of names: letters, digits and a few signs."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(rf"[\w .+-]{{0,{most}}}", value, re.ASCII):
            raise ValueError
        return value

    return Kind(read, "a name", {"type": "string", "maxLength": most})


def one_of(names: Sequence[Any]) -> Kind:
    """Returns the kind of some values, texts or whole numbers."""

    def read(value: Any) -> Any:
        if isinstance(value, bool) or value not in names:
            raise ValueError
        return value

    return Kind(read, f"one of {', '.join(map(str, names))}", {"enum": [*names]})


def truth() -> Kind:
    """Returns the kind of true and false; 0 and 1 are taken, as some clients send them."""

    def read(value: Any) -> bool:
        if not isinstance(value, bool) and not (isinstance(value, int) and value in (0, 1)):
            raise ValueError
        return bool(value)

    return Kind(read, "true or false", {"type": "boolean"})


def instance(kind: type, right: str, schema: Mapping[str, Any]) -> Kind:
    """Returns the kind of lists or objects, whose content is looked at elsewhere."""

    def read(value: Any) -> Any:
        if not isinstance(value, kind):
            raise ValueError
        return value

    return Kind(read, right, schema)


OBJECT = instance(dict, "an object", {"type": "object"})
LIST = instance(list, "a list", {"type": "array"})


class Field(NamedTuple):
    """A field of a request."""

    name: str
    kind: Kind
    default: Any = None
    option: str | None = None  # the row of OPTIONS that it sets


def read_fields(fields: Sequence[Field], given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the value of each field; null is as if it were left out, and unknown fields are left out.

    Refused: a value is not right.
    """
    found = {}
    for field in fields:
        value = given.get(field.name)
        if value is None:
            found[field.name] = field.default
            continue
        try:
            found[field.name] = field.kind.read(value)
        except (ValueError, TypeError, OverflowError):
            raise Refused(f"{field.kind.right} expected", field.name) from None
    return found


def arguments(fields: Sequence[Field], values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what fields say of options, by the names of OPTIONS' rows."""
    return {field.option: values[field.name] for field in fields if field.option in ROWS}


def names_of(fields: Sequence[Field]) -> dict[str, str]:
    """Returns the fields by the library's names of the arguments that they set."""
    return {field.option: field.name for field in fields if field.option is not None}


def schema(fields: Sequence[Field], required: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the JSON schema of an object of these fields."""

    def one(field: Field) -> dict[str, Any]:
        row = ROWS.get(field.option or "")
        said = {"description": row.help} if row is not None else {}
        return {**field.kind.schema, **said, **({} if field.default is None else {"default": field.default})}

    found = {"type": "object", "properties": {field.name: one(field) for field in fields}}
    return {**found, **({"required": [*required]} if required else {})}


def json_body(fields: Sequence[Field], *required: str) -> dict[str, Any]:
    """Returns what /openapi.json says of a body of these fields."""
    return {"requestBody": {"content": {"application/json": {"schema": schema(fields, required)}}}}


def form_body(fields: Sequence[Field], required: Sequence[str], *files: str) -> dict[str, Any]:
    """Returns what /openapi.json says of a form of these fields, a picture `image`, and other files."""
    found = schema(fields, required)
    found["properties"] |= {name: {"type": "string", "format": "binary"} for name in ("image", *files)}
    return {"requestBody": {"content": {"multipart/form-data": {"schema": found}}}}
