"""What generate is asked for besides text: a line of text for each picture, and the Cond that it stands for.

A line is what --prompts-file has, and what a picture's `parameters` text says in the prompt's place: a class, a layout
as JSON, or the name of a map's file.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
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


def read_file(flag: str, path: str, read: Callable) -> Any:
    """Returns read(path). SdjaxError, which names the flag and the file, for what it cannot read."""
    from sdjax.data.picture import Unreadable

    try:
        return read(Path(path))
    except Unreadable as error:
        raise SdjaxError(f"{flag} {path}: {error}") from None


def read_files(flag: str, paths: list[str], read: Callable) -> Any:
    """Returns the arrays in some files as one, [B, ...]. SdjaxError: they are not of one size."""
    import numpy as np

    found = [read_file(flag, path, read) for path in paths]
    sizes = {array.shape[:2] for array in found}
    if len(sizes) > 1:
        raise SdjaxError(f"{flag}: {' and '.join(f'{w} x {h}' for h, w in sorted(sizes))} pixels, one size expected")
    return np.stack(found)


def read_map(path: Path):
    import numpy as np

    from sdjax.data.picture import decode_map, open_file

    return np.asarray(decode_map(open_file(path)), np.int32)


def read_depth(path: Path):
    from sdjax.data.picture import decode_depth

    return decode_depth(path)


def read_rgb(path: Path):
    from sdjax.data.picture import decode, open_file

    return decode(open_file(path))


def map_cond(sd, paths: list[str], options: Any):
    import sdjax

    return sdjax.encode_map(sd, read_files("map", paths, read_map))


def depth_cond(sd, paths: list[str], options: Any):
    import sdjax

    return sdjax.encode_depth(sd, read_files("depth", paths, read_depth), options.height, options.width)


def image_cond(sd, paths: list[str], options: Any):
    """The same picture for all lines has the noise of the first one's seed."""
    import sdjax

    pictures = [read_file("image", path, read_rgb) for path in paths]
    return sdjax.encode_picture(sd, pictures, options.noise_level or 0, options.seed)


def small_picture(sd, path: Path):
    """Returns the small picture of --lowres, cut down to sides that the model takes: float32 [1, h, w, 3]."""
    import numpy as np

    from sdjax.data.picture import to_pixels

    small, multiple = to_pixels(np.asarray(read_file("lowres", str(path), read_rgb))), sd.config.unet.factor
    height, width = (side - side % multiple for side in small.shape[:2])
    if not height or not width:
        raise SdjaxError(f"lowres {path}: at least {multiple} x {multiple} pixels expected")
    return small[None, :height, :width]


def with_negative(line: str) -> tuple[str, str | None]:
    """Returns (prompt, negative prompt) of a line of --prompts-file, which may end in " --negative TEXT"; None: it has
    none."""
    prompt, flag, negative = line.partition(NEGATIVE)
    return (prompt.rstrip(), negative.strip()) if flag else (line, None)


def check_negatives(path: Path, lines: list[str]) -> None:
    """SdjaxError, which names the file and the line: nothing stands before --negative, or nothing behind it.

    lines: those of --prompts-file that are not blank, without white space around them.
    """
    for place, line in enumerate(lines):
        prompt, flag, negative = f" {line} ".partition(NEGATIVE)
        if flag and not (prompt.strip() and negative.strip()):
            where = f"{path} line {number_of(path, place)}" if path.is_file() else path  # a pipe is read once
            wanting = "text behind" if prompt.strip() else "prompt before"
            raise SdjaxError(f"--prompts-file {where}: no {wanting} --negative")


def number_of(path: Path, place: int) -> int:
    """Returns the number in a file, from 1 on, of a line that is not blank. place: among these, from 0 on."""
    lines = path.read_text("utf-8").replace("\ufeff", "").splitlines()
    return [number for number, line in enumerate(lines, 1) if line.strip()][place]


NEGATIVE = " --negative "

#: What stands beside x: the flag -> the Cond of the files' names. The same words as in Family.concat, of which "lowres"
#: is made by its task.
BESIDE = {"map": map_cond, "depth": depth_cond, "image": image_cond}
FILES = (*BESIDE, "lowres")

KINDS = (
    Kind("class_table", "classes", class_lines, class_cond, "207,360"),
    Kind("layout", "layout", layout_lines, layout_cond, "boxes.json"),
)


def beside_of(config) -> str | None:
    """Returns the flag of what stands beside x, or None: nothing, or what the task makes itself."""
    from sdjax.families.table import family_of

    concat = "image" if config.image is not None else family_of(config).concat
    return concat if concat in FILES else None


def kind_of(config) -> Kind | None:
    """Returns the kind of condition that replaces the prompt, or None."""
    return next((kind for kind in KINDS if getattr(config, kind.part) is not None), None)


def flagged_lines(options: Any) -> list[str] | None:
    """Returns the lines that the options' flags give, or None if there is no such flag."""
    names = (*(kind.flag for kind in KINDS), *FILES)
    given = [name for name in names if getattr(options, name) is not None]
    if len(given) > 1:
        raise SdjaxError(f"--{given[1]}: instead of --{given[0]}, not beside it")
    kind = next((kind for kind in KINDS if kind.flag in given), None)
    return kind and kind.lines(getattr(options, kind.flag))


def lines_of(config, options: Any, lines: list[str] | None) -> list[str]:
    """Returns a line for each picture that a model is asked for. lines: those of --prompts-file, or None.

    A model without text that takes a file beside x takes the files' names as its lines.
    SdjaxError: the model does not take what the options give.
    """
    flagged, kind, beside = flagged_lines(options), kind_of(config), beside_of(config)
    takes = {kind.flag if kind else None, beside}
    for name in (*(one.flag for one in KINDS), *FILES):
        if getattr(options, name) is not None and name not in takes:
            flag = kind.flag if kind else beside
            asked = "a prompt" if config.text is not None else f"--{flag}" if flag else "nothing"
            raise SdjaxError(f"{name} {getattr(options, name)}: {config.name} takes none, give {asked}")
    file = beside and getattr(options, beside)
    if config.text is not None:
        if beside and file is None:
            raise SdjaxError(f"{beside}: {config.name} takes one, a file's name expected")
        lines = list(options.prompt) if lines is None else lines
        return lines or ([""] if beside else refuse_no_prompt())
    lines = flagged if lines is None else lines
    lines = list(options.prompt) if lines is None else lines
    if beside == "lowres" and any(lines):
        raise SdjaxError(f"prompt {lines[0][:80]!r}: {config.name} takes none")
    if file and any(lines):
        raise SdjaxError(f"{beside} {file}: stands for the prompt, not with one beside it, {lines[0][:80]!r}")
    lines = [str(file)] if file else lines
    if not takes - {None} and any(lines):
        raise SdjaxError(f"prompt {lines[0][:80]!r}: {config.name} takes none")
    if takes - {None} and not any(lines):
        flag, what = (kind.flag, kind.what) if kind else (beside, "FILE")
        raise SdjaxError(f"{flag}: {config.name} takes it in place of a prompt, as --{flag} {what}")
    return lines or [""]


def check_model(config, options: Any, axes: Mapping[str, Sequence[Any]]) -> None:
    """SdjaxError: the options say what this model does not take, or leave out what it needs, beside the prompt.

    axes: those of --grid.
    """
    from sdjax.families.table import family_of

    name, family = config.name, family_of(config)
    if family.concat == "mask" and options.mask is None and options.outpaint is None:
        raise SdjaxError(f"--mask: {name} is an inpainting model, give --init-image and --mask, or --outpaint")
    if config.text is None and options.negative_prompt:
        raise SdjaxError(f"--negative-prompt {options.negative_prompt!r}: {name} takes no text")
    if options.noise_level is not None and family.vector is None:
        raise SdjaxError(f"--noise-level {options.noise_level}: {name} takes none")
    for scale in axes.get("guidance_scale", [options.guidance_scale]):
        if scale not in (None, 1) and not config.null:
            raise SdjaxError(f"--guidance-scale {scale}: {name} has no null, guide it by 1")


def check_one_size(config, options: Any, size: tuple[int, int], beside: tuple[int, int]) -> None:
    """SdjaxError: the pictures are of a `size` (width, height) other than what stands beside them, of --map or
    --depth."""
    if size == beside or options.init_image is None:
        return
    first = f"--init-image {options.init_image}" if options.outpaint is None else f"--outpaint {options.outpaint}"
    sides = [f"{width} x {height}" for width, height in (size, beside)]
    raise SdjaxError(f"{first}: makes pictures of {sides[0]} pixels, --{beside_of(config)} is of {sides[1]}")


def refuse_no_prompt():
    raise SdjaxError("PROMPT: one expected: what to draw, in quotes")


def asked(sd, lines: list[str], options: Any):
    """Returns what a task is called with for these lines: prompts, a Cond, or None for a model that takes nothing."""
    import sdjax

    config, kind, beside = sd.config, kind_of(sd.config), beside_of(sd.config)
    try:
        if config.text is not None:
            if beside not in BESIDE:
                return lines
            files = [str(getattr(options, beside))] * len(lines)
            text = sdjax.encode_prompt(sd, lines, options.clip_skip, options.syntax)
            return text | BESIDE[beside](sd, files, options)
        if beside in BESIDE:
            return BESIDE[beside](sd, lines, options)
        return kind.cond(sd, lines) if kind else None
    except SdjaxError as error:  # the builders' arguments are `layouts` and `maps`
        raise SdjaxError(re.sub(r"^(layout|map)s\b", r"\1", str(error))) from None
