"""The `parameters` text of a PNG, as AUTOMATIC1111's web UI writes and reads it, <-> the arguments of txt2img.

    a red apple
    Negative prompt: blurry
    Steps: 20, Sampler: euler_a, Schedule type: Karras, CFG scale: 7.5, Seed: 1, Size: 64x64, Model: emoji

A value with a comma, a colon or a line break stands as a JSON string. Sampler names of the web UI become ours by one
rule ("DPM++ 2M SDE Karras" is dpmpp_2m_sde with karras sigmas). The web UI's pictures themselves cannot come out again:
its noise is torch's.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from sdjax.checks import DTYPES
from sdjax.errors import SdjaxError

FIELD = re.compile(r'\s*(\w[\w \-/]*): *("(?:\\.|[^"\\])*"|[^,]*)(?:,|$)')
NEGATIVE = "Negative prompt: "


def parameters_text(prompt: str, negative_prompt: str = "", **settings) -> str:
    """The text for `settings`, in their order; "_" in a name becomes a space and None is left out:
    parameters_text("a cat", Steps=20, CFG_scale=7.5)."""
    lines = [prompt, NEGATIVE + negative_prompt] if negative_prompt else [prompt]
    fields = {name.replace("_", " "): _quoted(value) for name, value in settings.items() if value is not None}
    return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in fields.items())])


def parse_parameters(text: str) -> tuple[str, str, dict[str, str]]:
    """(prompt, negative prompt, the last line's fields): the inverse, as long as no line of the prompt begins with
    "Negative prompt: ". A last line without "Steps: " belongs to the prompt."""
    *lines, last = text.split("\n")
    fields = {name: _unquoted(value.strip()) for name, value in FIELD.findall(last)}
    if "Steps" not in fields:
        lines, fields = [*lines, last], {}
    at = next((i for i, line in enumerate(lines) if line.startswith(NEGATIVE.rstrip())), len(lines))
    negative = "\n".join(lines[at:])[len(NEGATIVE) :]
    return "\n".join(lines[:at]), negative, fields


def describe(
    arguments: Mapping[str, Any], seed: int, size: tuple[int, int], model: str, source: str | None = None
) -> str:
    """The parameters text of one picture of `size` = (width, height) that a task drew with `arguments` from `seed`.

    `arguments`: txt2img's, and img2img's and inpaint's; init_image, mask, safety_checker and embedding, a tuple, are
    files' names. `model` is the model's name, `source` what sdjax.load was given, where that is another.
    """
    karras = arguments.get("sigmas", "default") == "karras"
    others = {
        field: value
        for field, (name, _, default) in OTHERS.items()
        if (value := arguments.get(name, default)) != default
    }
    return parameters_text(
        arguments["prompt"],
        arguments.get("negative_prompt", ""),
        Steps=arguments["steps"],
        Sampler=arguments["sampler"],
        Schedule_type="Karras" if karras else None,
        CFG_scale=arguments["guidance_scale"],
        Seed=seed,
        Size=f"{size[0]}x{size[1]}",
        Model=model,
        **others,
        Source=source if source != model else None,
    )


def read_parameters(path: str | Path) -> str:
    """The `parameters` text of a picture; SdjaxError naming the file when there is none."""
    try:
        with Image.open(path) as image:
            text = image.info.get("parameters")
    except Exception as error:  # decoders raise what they like
        reason = getattr(error, "strerror", None) or error
        raise SdjaxError(f"{path}: not a readable picture ({reason})") from None
    if not isinstance(text, str) or not text.strip():
        raise SdjaxError(f"{path}: no `parameters` text there; a PNG of sample/generate.py or of a web UI has one")
    return text


def understand(text: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Parameters text -> (arguments of txt2img, the fields that are none of them).

    Raises SdjaxError naming the field whose value cannot be one.
    """
    prompt, negative, fields = parse_parameters(text)
    if not fields:
        raise SdjaxError("no line of settings that begins with `Steps: `")
    arguments: dict[str, Any] = {"prompt": prompt, "negative_prompt": negative}
    rest = {}
    for name, value in fields.items():
        try:
            found = READERS.get(name, lambda value: None)(value)
        except ValueError:
            raise SdjaxError(f"{name}: {value!r} cannot be read") from None
        if found is None:
            rest[name] = value
        else:
            arguments |= found
    return arguments, rest


def _quoted(value: Any) -> str:
    """7.0 as 7, as the web UI writes it; of several values, names stand on lines and numbers beside each other."""
    if isinstance(value, tuple):
        value = (" " if all(isinstance(one, (int, float)) for one in value) else "\n").join(map(str, value))
    value = repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:\n"]|^\s|\s$', value) else value


def _unquoted(value: str) -> str:
    try:
        return str(json.loads(value)) if value.startswith('"') else value
    except ValueError:
        return value


def _sampler(value: str) -> dict[str, Any]:
    """Any spelling of a sampler's name: lower case, + as p, spaces as underscores, "Karras" apart."""
    name = re.sub(r"^k_|\W+", lambda m: "" if m[0] == "k_" else "_", value.lower().replace("+", "p"))
    plain = name.removesuffix("_karras")
    return {"sampler": plain} | ({"sigmas": "karras"} if plain != name else {})


def _schedule_type(value: str) -> dict[str, Any] | None:
    return {"karras": {"sigmas": "karras"}, "automatic": {}, "uniform": {}}.get(value.lower())


def _size(value: str) -> dict[str, Any]:
    width, height = value.split("x")
    return {"width": int(width), "height": int(height)}


def _interval(value: str) -> tuple[float, float]:
    low, high = map(float, value.split())
    return low, high


def _dtype(value: str) -> str:
    if value not in DTYPES:
        raise ValueError
    return value


#: field -> (argument, type, the value that is not written)
OTHERS: dict[str, tuple[str, Callable[[str], Any], Any]] = {
    "Eta": ("eta", float, None),
    "Timestep spacing": ("spacing", str, None),
    "Prompt syntax": ("syntax", str, "a1111"),
    "Clip skip": ("clip_skip", int, 1),
    "Variation seed": ("variation_seed", int, 0),
    "Variation seed strength": ("variation_strength", float, 0.0),
    "Guidance rescale": ("guidance_rescale", float, 0.0),
    "Guidance interval": ("guidance_interval", _interval, None),
    "Embeddings": ("embedding", lambda value: tuple(value.split("\n")), ()),
    "Denoising strength": ("strength", float, None),
    "Init image": ("init_image", str, None),
    "Mask": ("mask", str, None),
    "Feather": ("feather", float, 0.0),
    "Safety checker": ("safety_checker", str, None),
    "Watermark": ("watermark", "True".__eq__, False),
    "Dtype": ("dtype", _dtype, "float32"),
}
READERS: dict[str, Callable[[str], dict[str, Any] | None]] = {
    "Steps": lambda value: {"steps": int(value)},
    "Sampler": _sampler,
    "Schedule type": _schedule_type,
    "CFG scale": lambda value: {"guidance_scale": float(value)},
    "Seed": lambda value: {"seed": int(value)},
    "Size": _size,
    **{field: lambda value, name=name, kind=kind: {name: kind(value)} for field, (name, kind, _) in OTHERS.items()},
}
