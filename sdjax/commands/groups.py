"""Dataclasses of options as tyro reads them: in groups, with short help.

A dataclass may name groups in a ClassVar `GROUPS`: title -> names of fields; all other fields are plain options. The
help of a field is the string below it, or its own tyro.conf.arg.
"""

import ast
import inspect
import textwrap
from dataclasses import MISSING, Field, field, fields, make_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

EMPTY = ("None", "''", '""', "")  # defaults that say nothing


def grouped(options: type) -> type:
    """Returns a dataclass of dataclasses, one for each group of `options`, whose fields are documented for --help."""
    hints, helps = get_type_hints(options, include_extras=True), documented(options)
    groups = {"": [f for f in fields(options) if not any(f.name in names for names in titles(options).values())]}
    groups |= {title: [f for f in fields(options) if f.name in names] for title, names in titles(options).items()}
    parts = []
    for place, (title, members) in enumerate(groups.items()):
        rows = [(f.name, with_help(hints[f.name], helps.get(f.name)), default_of(f)) for f in members]
        part = make_dataclass(f"{options.__name__}{place}", rows, kw_only=True, frozen=True)
        whole = MISSING if any(row[2].default is row[2].default_factory is MISSING for row in rows) else part
        default = field() if whole is MISSING else field(default_factory=part)
        parts.append((f"group_{place}", Annotated[part, tyro.conf.arg(name=title)], default))
    return make_dataclass(options.__name__, parts, kw_only=True, frozen=True)


def titles(options: type) -> dict[str, tuple[str, ...]]:
    return getattr(options, "GROUPS", {})


def flat(options: type, value: Any) -> Any:
    """Returns an instance of `options` with the values of an instance of grouped(options)."""
    return options(
        **{
            f.name: getattr(part, f.name)
            for part in (getattr(value, g.name) for g in fields(value))
            for f in fields(part)
        }
    )


def nested(shape: type, value: Any) -> Any:
    """Returns an instance of `shape`, which is grouped(type(value)), with the values of `value`."""
    parts = {}
    for group in fields(shape):
        part = get_args(group.type)[0]
        parts[group.name] = part(**{f.name: getattr(value, f.name) for f in fields(part)})
    return shape(**parts)


def default_of(f: Field) -> Field:
    return field(default=f.default, default_factory=f.default_factory)


def with_help(hint: Any, text: str | None) -> Any:
    """Returns a field's type with its help, without None in its form and in its default."""
    plain = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    optional = get_origin(plain) in (Union, UnionType) and NoneType in get_args(plain)
    more = {"metavar": form(next(t for t in get_args(plain) if t is not NoneType))} if optional else {}
    remark = lambda default: "" if default in EMPTY else f"(default: {default})"
    return Annotated[hint, tyro.conf.arg(help=text, help_behavior_hint=remark, **more)]


def form(kind: Any) -> str:
    """Returns how a value of this type is written on the command line, as INT or INT INT."""
    inner = get_args(kind)
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, inner)) + "}"
    if get_origin(kind) is tuple:
        return f"{form(inner[0])} ..." if inner[-1] is Ellipsis else " ".join(map(form, inner))
    return {int: "INT", float: "FLOAT", str: "STR", Path: "PATH", bool: "{True,False}"}.get(kind, "VALUE")


def documented(options: type) -> dict[str, str]:
    """Returns the strings below the fields of a dataclass and of those that it inherits from."""
    found: dict[str, str] = {}
    for cls in reversed(options.__mro__):
        try:
            (node,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        except (OSError, TypeError, ValueError, SyntaxError):  # it has no source: object, or made by make_dataclass
            continue
        for before, after in zip(node.body, node.body[1:], strict=False):
            if (
                isinstance(before, ast.AnnAssign)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                found[before.target.id] = inspect.cleandoc(str(after.value.value))
    return found
