"""Columns of metadata.jsonl besides the caption: what each picture's condition is."""

from collections.abc import Callable
from typing import Any, NamedTuple

from sdjax.checks import check_boxes, is_whole
from sdjax.errors import SdjaxError


class Column(NamedTuple):
    """A column that a training needs. A row whose value does not fit is set aside, as an unreadable picture is."""

    name: str
    check: Callable[[Any], Any]  # SdjaxError, without the row's name: the value does not fit
    is_file: bool = False  # the value names a file in the data's folder
    optional: bool = False  # rows may lack it


def check_class(value: Any) -> None:
    """SdjaxError: `value` is no class."""
    if not is_whole(value, 0, 2**20):
        raise SdjaxError(f"class {value!r}, a whole number from 0 on expected")


def check_name(value: Any) -> None:
    """SdjaxError: `value` is no name of a file."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise SdjaxError(f"{value!r}, the name of a file expected")


CLASS = Column("class", check_class)
BOXES = Column("boxes", lambda value: check_boxes(value, "boxes"))
MAP = Column("map_file_name", check_name, is_file=True)
DEPTH = Column("depth_file_name", check_name, is_file=True)
MASK = Column("mask_file_name", check_name, is_file=True, optional=True)
LOWRES = Column("lowres_file_name", check_name, is_file=True, optional=True)
CONTROL = Column("control_file_name", check_name, is_file=True)
