"""Grids: a picture for each combination of some settings, "guidance_scale=3,5,7.5" x "seed=0,1", on a labelled sheet.

The last axis runs along the columns, all others along the rows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from PIL import Image

from sdjax.errors import SdjaxError
from sdjax.image.sheets import labelled_sheet
from sdjax.tasks.options import OPTIONS
from sdjax.tasks.parameters import OTHERS

#: The axes that a grid can have: arguments of txt2img (strength: of img2img), and how their values are read.
AXES: Mapping[str, Callable[[str], Any]] = {
    option.name: option.axis for option in (*OPTIONS, *OTHERS) if option.axis is not None
}


def read_axes(texts: Sequence[str]) -> dict[str, list]:
    """["guidance_scale=3,5", "seed=0..3"] -> {"guidance_scale": [3.0, 5.0], "seed": [0, 1, 2, 3]}.

    "a..b" stands for all whole numbers from a to b. SdjaxError, which names the axis, if one cannot be read.
    """
    axes: dict[str, list] = {}
    for text in texts:
        name, _, values = text.partition("=")
        name = name.strip().replace("-", "_")
        if name not in AXES:
            raise SdjaxError(f"grid {text!r}: NAME=VALUE,VALUE expected, NAME one of {', '.join(AXES)}")
        if name in axes:
            raise SdjaxError(f"grid {text!r}: {name} is there twice")
        try:
            axes[name] = [value for part in values.split(",") for value in _read(part.strip(), AXES[name])]
        except ValueError:
            kind = {int: "whole numbers, a..b for a range,", float: "numbers", str: "names"}[AXES[name]]
            raise SdjaxError(f"grid {text!r}: {kind} with commas between them expected") from None
        if len(set(axes[name])) < len(axes[name]):
            raise SdjaxError(f"grid {text!r}: a value is there twice")
    return axes


def _read(text: str, kind: Callable[[str], Any]) -> list:
    if not text:
        raise ValueError
    if kind is int and ".." in text:
        first, last = map(int, text.split(".."))
        if not first <= last <= first + 10_000:
            raise ValueError
        return list(range(first, last + 1))
    return [kind(text)]


def cells(axes: Mapping[str, list]) -> Iterator[dict[str, Any]]:
    """Yields the settings of each picture, row by row."""
    return (dict(zip(axes, values, strict=True)) for values in product(*axes.values()))


def grid_sheet(axes: Mapping[str, list], images: Sequence[Image.Image]) -> Image.Image:
    """Returns the labelled sheet. images: those of `cells(axes)`, in the same order."""
    *others, last = axes
    shown = lambda value: f"{value:g}" if isinstance(value, float) else str(value)
    label = lambda name, value: f"{name.replace('_', ' ')}\n{shown(value)}"
    rows = ["\n".join(label(name, cell[name]) for name in others) for cell in cells({n: axes[n] for n in others})]
    return labelled_sheet(images, rows, [label(last, value) for value in axes[last]])
