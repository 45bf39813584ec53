"""What generate is asked for besides text: a line of text for each picture, and the Cond that it stands for.

A line is what --prompts-file has, and what a picture's `parameters` text says in the prompt's place: a class, a layout
as JSON, or the name of a map's file.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from sdjax.errors import SdjaxError


class Kind(NamedTuple):
    """A kind of condition that replaces the prompt."""

    part: str  # the field of Config that says that a model takes it
    flag: str
    lines: Callable[[Any], list[str]]  # the flag's value -> a line for each picture; SdjaxError names the flag
    cond: Callable[[Any, list[str]], Any]  # (model, lines) -> Cond
    what: str  # what a line is, for messages


def class_lines(value: str) -> list[str]:
    lines = [part.strip() for part in value.split(",")]
    if not all(line.isdecimal() for line in lines):
        raise SdjaxError(f"--classes {value}: whole numbers with commas between them, as 207,360")
    return lines


def class_cond(sd, lines: list[str]):
    import sdjax

    for line in lines:
        if not line.strip().isdecimal():
            raise SdjaxError(f"prompt {line[:80]!r}: {sd.config.name} takes classes, whole numbers, see `classes`")
    return sdjax.encode_classes(sd, [int(line) for line in lines])


def layout_lines(path: Path) -> list[str]:
    """A file holds one layout, a list of [label, x0, y0, x1, y1], or a list of layouts."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SdjaxError(f"--layout {path}: not readable JSON ({getattr(error, 'strerror', None) or error})") from None
    if not isinstance(content, list) or not all(isinstance(one, list) for one in content):
        raise SdjaxError(f"--layout {path}: a list of [label, x0, y0, x1, y1], or a list of such lists, expected")
    one = not content or (bool(content[0]) and not isinstance(content[0][0], list))
    return [json.dumps(layout) for layout in ([content] if one else content)]


def layout_cond(sd, lines: list[str]):
    import sdjax

    layouts = []
    for line in lines:
        try:
            layouts.append(json.loads(line))
        except (ValueError, RecursionError):
            raise SdjaxError(
                f"prompt {line[:80]!r}: {sd.config.name} takes layouts, as [[label, x0, y0, x1, y1]], see `layout`"
            ) from None
    return sdjax.encode_layout(sd, layouts)


def read_maps(lines: list[str]):
    """Returns the ids in the files of some maps, int32 [B, H, W]."""
    import numpy as np

    from sdjax.data.picture import Unreadable, decode_map, open_file

    found = []
    for line in lines:
        try:
            found.append(np.asarray(decode_map(open_file(Path(line))), np.int32))
        except Unreadable as error:
            raise SdjaxError(f"map {line}: {error}") from None
    sizes = {ids.shape for ids in found}
    if len(sizes) > 1:
        raise SdjaxError(f"map: {' and '.join(f'{w} x {h}' for h, w in sorted(sizes))} pixels, one size expected")
    return np.stack(found)


def map_cond(sd, lines: list[str]):
    import sdjax

    return sdjax.encode_map(sd, read_maps(lines))


KINDS = (
    Kind("class_table", "classes", class_lines, class_cond, "207,360"),
    Kind("layout", "layout", layout_lines, layout_cond, "boxes.json"),
    Kind("map", "map", lambda path: [str(path)], map_cond, "map.png"),
)


def flagged_lines(options: Any) -> list[str] | None:
    """Returns the lines that the options' flags give, or None if there is no such flag."""
    given = [kind for kind in KINDS if getattr(options, kind.flag) is not None]
    if len(given) > 1:
        raise SdjaxError(f"--{given[1].flag}: instead of --{given[0].flag}, not beside it")
    return given[0].lines(getattr(options, given[0].flag)) if given else None


def lines_of(config, options: Any, lines: list[str] | None) -> list[str]:
    """Returns a line for each picture that a model is asked for. lines: those of --prompts-file, or None.

    SdjaxError: the model does not take what the options give.
    """
    flagged = flagged_lines(options)
    taken = [kind for kind in KINDS if getattr(config, kind.part) is not None]
    for kind in KINDS:
        if getattr(options, kind.flag) is not None and kind not in taken:
            asked = "a prompt" if config.text is not None else f"--{taken[0].flag}" if taken else "nothing"
            raise SdjaxError(f"{kind.flag} {getattr(options, kind.flag)}: {config.name} takes none, give {asked}")
    if config.text is not None:
        if options.map is None and config.map is not None:
            raise SdjaxError(f"map: {config.name} takes one, give a PNG of ids")
        lines = list(options.prompt) if lines is None else lines
        return lines or ([""] if options.map else refuse_no_prompt())
    lines = flagged if lines is None else lines
    lines = list(options.prompt) if lines is None else lines
    if not taken and any(lines):
        raise SdjaxError(f"prompt {lines[0][:80]!r}: {config.name} takes none")
    if taken and not lines:
        raise SdjaxError(f"{taken[0].flag}: {config.name} takes it in place of a prompt, as --{taken[0].flag} "
                         f"{taken[0].what}")  # fmt: skip
    return lines or [""]


def refuse_no_prompt():
    raise SdjaxError("PROMPT: one expected: what to draw, in quotes")


def asked(sd, lines: list[str], options: Any):
    """Returns what a task is called with for these lines: prompts, a Cond, or None for a model that takes nothing."""
    import sdjax

    config = sd.config
    try:
        if config.text is not None:
            if config.map is None:
                return lines
            text = sdjax.encode_prompt(sd, lines, options.clip_skip, options.syntax)
            return text | map_cond(sd, [str(options.map)] * len(lines))
        taken = [kind for kind in KINDS if getattr(config, kind.part) is not None]
        return taken[0].cond(sd, lines) if taken else None
    except SdjaxError as error:  # the builders' arguments are `layouts` and `maps`
        raise SdjaxError(re.sub(r"^(layout|map)s\b", r"\1", str(error))) from None
