"""The `parameters` text of a PNG, as AUTOMATIC1111's web UI writes and reads it. `sdjax.tasks.options` and
`sdjax.tasks.parameters` say which option is which field.

    a red apple
    Negative prompt: blurry
    Steps: 20, Sampler: Euler a, Schedule type: Karras, CFG scale: 7.5, Seed: 1, Size: 64x64, Model hash: 5a9aa0a2ed, \
    Model: emoji, Version: sdjax 0.1.0

A value with a comma, a colon or a line break is written as a JSON string. Samplers and schedules have the web UI's
names; a rule turns each into ours ("DPM++ 2M SDE Karras" is dpmpp_2m_sde with karras sigmas). The web UI's pictures
cannot be reproduced from the text, because their noise is torch's.
"""

import json
import re
from typing import Any

from sdjax.checks import DTYPES
from sdjax.diffusion.schedule import SIGMAS

FIELD = re.compile(r'\s*(\w[\w \-/]*): *("(?:\\.|[^"\\])*"|[^,]*)(?:,|$)')
NEGATIVE, STEPS = "Negative prompt: ", "Steps:"
LATER = "Lines after the settings"  # a field's name that no line of settings has


def parameters_text(prompt: str, negative_prompt: str = "", **settings) -> str:
    """Returns the text for a prompt and its settings, for example parameters_text("a cat", Steps=20, CFG_scale=7.5).

    The settings are written in their order. "_" in a name becomes a space, and values of None are left out.
    """
    lines = [prompt, NEGATIVE + negative_prompt] if negative_prompt else [prompt]
    fields = {name.replace("_", " "): _quoted(value) for name, value in settings.items() if value is not None}
    return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in fields.items())])


def parse_parameters(text: str) -> tuple[str, str, dict[str, str]]:
    """Returns (prompt, negative prompt, the fields of the line of settings), as the web UI's own parser reads them.

    Lines are stripped. The last line is that of settings if it has at least three fields; else the last one that begins
    with "Steps:" is, and what follows it is the field LATER; else there is none. All from a line that begins with
    "Negative prompt:" on is negative.
    """
    lines = [line.strip() for line in re.sub(r"\r\n?", "\n", text.strip()).split("\n")]
    steps = [i for i, line in enumerate(lines) if line.startswith(STEPS)]
    at = len(lines) - 1 if len(FIELD.findall(lines[-1])) >= 3 else steps[-1] if steps else len(lines)
    later = "\n".join(lines[at + 1 :])
    fields = {name: _unquoted(value.strip()) for name, value in FIELD.findall(lines[at])} if at < len(lines) else {}
    lines = lines[:at]
    first = next((i for i, line in enumerate(lines) if line.startswith(NEGATIVE.rstrip())), at)
    negative = [line.removeprefix(NEGATIVE.rstrip()).strip() for line in lines[first:]]
    return "\n".join(lines[:first]), "\n".join(negative), fields | ({LATER: later} if later else {})


def _quoted(value: Any) -> str:
    """Returns a value as text, 7.0 as 7 like the web UI. Of several values, names go on lines of their own, and numbers
    on one line."""
    if isinstance(value, tuple):
        value = (" " if all(isinstance(one, (int, float)) for one in value) else "\n").join(map(str, value))
    value = repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:\n\r"]|^\s|\s$', value) else value


def _unquoted(value: str) -> str:
    try:
        return str(json.loads(value)) if value.startswith('"') else value
    except ValueError:
        return value


def plain_name(value: str) -> str:
    """Returns a name in lower case, + as p, and all between its words as underscores."""
    return re.sub(r"\W+", "_", value.lower().replace("+", "p"))


def read_sampler(value: str) -> dict[str, Any]:
    """Reads any spelling of a sampler's name into {"sampler"} and perhaps {"sigmas"}: its `plain_name`, "Karras" or
    another schedule taken off its end, k-diffusion's and ComfyUI's names as ours."""
    name, sigmas = plain_name(value).removeprefix("k_"), {}
    for schedule in SIGMAS:
        if name.endswith(f"_{schedule}"):
            name, sigmas = name.removesuffix(f"_{schedule}"), {"sigmas": schedule}
    name = name.removesuffix("_gpu").replace("dpm_2", "dpm2")
    name = name.removesuffix("_ancestral") + "_a" if name.endswith("_ancestral") else name
    return {"sampler": {"uni_pc": "unipc"}.get(name, name)} | sigmas


def read_schedule(value: str) -> dict[str, Any] | None:
    """Reads the web UI's "Schedule type" into {"sigmas"}, or {} for the sampler's own. None: we have no such type.

    ComfyUI's names of schedulers are read, too; its "beta" spreads timesteps as the web UI's spreads sigmas.
    """
    name = plain_name(value)
    if name in ("automatic", "uniform", "normal"):
        return {}
    return {"sigmas": name} if name in SIGMAS else None


#: What the web UI's "Automatic" means for a sampler of ours (since its version 1.9); for others it means "Uniform".
AUTOMATIC = {
    "dpmpp_2m": "Karras",
    "dpmpp_2m_sde": "Exponential",
    "dpmpp_3m_sde": "Exponential",
    "dpmpp_sde": "Karras",
    "dpmpp_2s_a": "Karras",
    "dpm2": "Karras",
    "dpm2_a": "Karras",
}


def read_interval(value: str) -> tuple[float, float]:
    """Reads "low high". ValueError: these are not two numbers."""
    low, high = map(float, value.split())
    return low, high


def read_pair(value: str) -> tuple[int, int]:
    """Reads "1024 1024". ValueError: these are not two whole numbers."""
    first, second = map(int, value.split())
    return first, second


def read_truth(value: str) -> bool:
    """Reads "True" or "False". ValueError: it is another word."""
    if value not in ("True", "False"):
        raise ValueError
    return value == "True"


def read_dtype(value: str) -> str:
    """Returns the name of a dtype in DTYPES. ValueError: it is another."""
    if value not in DTYPES:
        raise ValueError
    return value
