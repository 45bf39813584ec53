"""Reads LoRA files: of kohya, LyCORIS, diffusers, peft and the web UI; a file, a folder, or a hub id.

Every tensor has to find its layer in the model (lora_names.py). What fits nothing is counted in one line, which lists
names of both sides and says for which family of models the file was made, if that can be told.
"""

import difflib
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from sdjax.adapters.lora_kinds import Alpha, Change, check_change
from sdjax.adapters.lora_names import PREFIXES, Layer, factor_of, layers_by_name
from sdjax.errors import SdjaxError, log
from sdjax.families.config import Config
from sdjax.families.table import PUBLISHED, family_of
from sdjax.formats.tensors import read_checkpoint
from sdjax.networks.rows import TensorRow
from sdjax.networks.table import param_shapes
from sdjax.weights.convert import operation_of
from sdjax.weights.hub import fetch_lora, is_hub_id

#: The files of a folder: diffusers', and peft's, which stands beside adapter_config.json.
WEIGHTS = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")
ADAPTER, SETTINGS = ("adapter_model.safetensors", "adapter_model.bin"), "adapter_config.json"

HEADER = "lora_adapter_metadata"  # diffusers' key in the header of a safetensors file: peft's settings as JSON

BUNDLED = "bundle_emb."  # the web UI's: textual inversions inside of a LoRA file


class Lora(NamedTuple):
    """A LoRA file that was read for one model."""

    source: str  # as messages name it
    path: Path  # the file of the weights
    key: tuple  # where it lies, its size and its time: another key is another file
    changes: tuple[Change, ...]
    words: Mapping[str, Mapping[str, np.ndarray]]  # the textual inversions in it


class File(NamedTuple):
    """A file of weights and the settings of peft beside it."""

    path: Path
    settings: Path | None = None
    folder: str = ""  # of a whole model's folder: the network that it is for


def find_files(source: str | Path) -> list[File]:
    """Returns the files of a LoRA. SdjaxError: `source` names none."""
    if not isinstance(source, (str, Path)) or not str(source):
        raise SdjaxError(f"source is {source!r}: a LoRA file, a folder of one or a hub id (org/name) expected")
    path, shown = Path(source), str(source)[:200] if str(source).isprintable() else repr(source)[:200]
    try:
        there = path.is_file(), path.is_dir()
    except (OSError, ValueError):  # too long a name, no permission
        there = False, False
    if there[0]:
        return [File(path)]
    if not there[1] and len(str(source)) <= 200 and is_hub_id(str(source)):
        path = fetch_lora(str(source), (*WEIGHTS, *ADAPTER, SETTINGS))
        if path.is_file():
            return [File(path)]
    elif not there[1]:
        raise SdjaxError(f"{shown}: no such LoRA file or folder; a hub id is org/name")
    if weights := [path / name for name in WEIGHTS if (path / name).is_file()]:
        return [File(weights[0])]
    folders = ("", "unet", "text_encoder", "text_encoder_2")
    found = [peft_folder(path / folder, folder) for folder in folders if (path / folder / SETTINGS).is_file()]
    if not found:
        raise SdjaxError(f"{source}: holds neither {WEIGHTS[0]} nor {SETTINGS}, so is no folder of a LoRA; name a file")
    return found


def peft_folder(folder: Path, name: str) -> File:
    weights = [folder / own for own in ADAPTER if (folder / own).is_file()]
    if not weights:
        raise SdjaxError(f"{folder}: has {SETTINGS}, and no {ADAPTER[0]} beside it")
    return File(weights[0], folder / SETTINGS, name)


def key_of(files: list[File]) -> tuple:
    """Returns what tells these files from others, and from themselves after a change."""
    return tuple((str(file.path.resolve()), file.path.stat().st_size, file.path.stat().st_mtime_ns) for file in files)


def read_lora(config: Config, source: str | Path, files: list[File], strict: bool = True) -> Lora:
    """Reads the files of `find_files` for a model of `config`.

    SdjaxError: broken files, or tensors that fit nothing in the model; with strict=False these are logged in one line,
    and refused only if nothing fits.
    """
    tensors, settings, words = {}, {}, {}
    for file in files:
        found, metadata = read_checkpoint(file.path)
        for name, value in found.items():
            plain = name.removeprefix("base_model.model.")
            if file.folder and not plain.startswith(f"{file.folder}."):
                plain = f"{file.folder}.{plain}"
            tensors[plain if file.folder else name] = value
        settings |= peft_settings(file) if file.settings else header_settings(file.path, metadata)
    for name in [name for name in tensors if name.startswith(BUNDLED)]:
        word, _, rest = name.removeprefix(BUNDLED).partition(".")
        words.setdefault(word, {})[rest.removeprefix("string_to_param.")] = tensors.pop(name)
    changes, problems = changes_of(config, tensors, settings, str(source))
    if problems:
        line = report(config, str(source), problems, tensors)
        if strict or not (changes or words):
            raise SdjaxError(line)
        log.warning("%s; they are left out", line)
    return Lora(str(source), files[0].path, key_of(files), tuple(changes), words)


def changes_of(
    config: Config, tensors: Mapping[str, np.ndarray], settings: Mapping[str, Any], source: str
) -> tuple[list[Change], list[tuple[str, str]]]:
    """Returns the changes of the model's layers, and (name, what is wrong with it) of each tensor that fits nothing.

    SdjaxError: two tensors are for one place.
    """
    table = layers_by_name(config)
    factors: dict[Layer, dict[str, np.ndarray]] = {}
    names: dict[Layer, dict[str, str]] = {}
    problems = []
    for name, value in tensors.items():
        split = factor_of(name)
        layer = split and table.get(split[0])
        if not layer:
            problems.append((name, ""))
        elif not jnp.issubdtype(value.dtype, jnp.floating) and not (split[1] == "alpha" and value.dtype.kind in "iu"):
            problems.append((name, f" is {value.dtype}, should be floating point"))
        elif (other := names.setdefault(layer, {}).get(split[1])) is not None:
            raise SdjaxError(f"{source}: changes one layer twice, as {other} and as {name}")
        else:
            names[layer][split[1]] = name
            with np.errstate(over="ignore"):  # what becomes infinite is refused
                factors.setdefault(layer, {})[split[1]] = np.asarray(value, np.float32)
    changes = []
    for layer, own in factors.items():
        change = Change(layer, own, names[layer], alpha_of(settings, layer, config, source))
        try:
            check_change(change, file_shapes(config, layer))
        except SdjaxError as error:
            problems += [(name, f" ({error})" if i == 0 else "") for i, name in enumerate(names[layer].values())]
        else:
            changes.append(change)
    return changes, problems


def file_shapes(config: Config, layer: Layer) -> dict[str, tuple[int, ...] | None]:
    """Returns the shapes of a layer's weight and bias as files hold them; None: it has none."""
    rows = {"weight": layer.weight, "bias": layer.bias}
    return {kind: row and file_shape(config, layer.part, row) for kind, row in rows.items()}


def file_shape(config: Config, part: str, row: TensorRow) -> tuple[int, ...]:
    ours = flat_shapes(getattr(config, part))[row.path]
    return tuple(operation_of(row.operation)[2](ours))


@lru_cache(maxsize=32)
def flat_shapes(config: Any) -> dict[tuple[str, ...], tuple[int, ...]]:
    return {path: leaf.shape for path, leaf in flatten_dict(param_shapes(config)).items()}


# ---- settings of peft: alpha, where no tensor says it


def peft_settings(file: File) -> dict[str, Any]:
    """Returns {folder: settings} of an adapter_config.json. SdjaxError: it is broken, or says what we do not have."""
    try:
        found = json.loads(file.settings.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        raise SdjaxError(f"{file.settings}: not readable JSON") from None
    return {file.folder: checked_settings(found, str(file.settings))}


def header_settings(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Returns {folder: settings} of a safetensors file's header: {} if it has none. SdjaxError: they are broken."""
    if HEADER not in metadata:
        return {}
    try:
        found = json.loads(metadata[HEADER])
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise SdjaxError(f"{path}: {HEADER} in its header is not a JSON object")
    folders: dict[str, dict[str, Any]] = {}
    for name, value in found.items():
        folder, _, key = name.partition(".")
        folder, key = (folder, key) if folder in PREFIXES else ("", name)  # a network's own save has no folders
        folders.setdefault(folder, {})[key] = value
    return {folder: checked_settings(own, f"{path}: {HEADER} {folder}".rstrip()) for folder, own in folders.items()}


def checked_settings(found: Any, source: str) -> dict[str, Any]:
    """Returns r, lora_alpha, use_rslora, rank_pattern and alpha_pattern of peft's settings, which are checked."""
    if not isinstance(found, dict):
        raise SdjaxError(f"{source}: a JSON object expected")
    kind = found.get("peft_type", "LORA")
    if kind not in ("LORA", "LOHA", "LOKR"):
        raise SdjaxError(f"{source}: peft_type is {str(kind)[:40]!r}, should be LORA, LOHA or LOKR")
    if found.get("fan_in_fan_out"):
        raise SdjaxError(f"{source}: fan_in_fan_out is for layers that these models have not")
    own = {"r": found.get("r", 8), "alpha": found.get("lora_alpha", found.get("alpha", 8))}
    own |= {name: found.get(name) or {} for name in ("rank_pattern", "alpha_pattern")}
    own |= {"root": found.get("use_rslora", False) is True, "lokr": kind == "LOKR"}
    number = lambda value: isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e9
    for name, value in own.items():
        many = value if isinstance(value, dict) else {name: value}
        for key, one in many.items():
            if not isinstance(one, bool) and not number(one):
                raise SdjaxError(f"{source}: {name} has {key[:80]!r}: {str(one)[:40]}, should be a number")
            if isinstance(value, dict) and not re.fullmatch(r"\^?[\w.]+", key):
                raise SdjaxError(f"{source}: {name} has {key[:80]!r}, should be names of layers")
    return own


def alpha_of(settings: Mapping[str, Any], layer: Layer, config: Config, source: str) -> Alpha | None:
    """Returns what the settings say of a layer's scale, or None if there are none for it."""
    place = family_of(config).parts[layer.part]
    own = settings.get(place.folder, settings.get(""))
    if own is None:
        return None
    value = lambda name: next((v for k, v in own[f"{name}_pattern"].items() if matches(k, layer.name)), None)
    alpha, rank = value("alpha"), value("rank")
    return Alpha(
        own["alpha"] if alpha is None else alpha,
        own["root"],
        (own["r"] if rank is None else rank) if own["lokr"] else None,
    )


def matches(pattern: str, name: str) -> bool:
    """Does a key of rank_pattern or alpha_pattern mean a layer: its name, or the end of it after a dot?"""
    plain = pattern.removeprefix("^")
    return name == plain or (plain == pattern and name.endswith(f".{pattern}"))


# ---- what fits nothing


#: Beginnings of names by which a file says what else it is made for.
OTHERS = {
    r"lora_transformer_|transformer\.|lora_unet_(single|double)_blocks|(diffusion_model\.)?(single|double)_blocks|"
    r"lora_unet_joint_blocks|lora_te3_|text_encoder_3": "a model with a transformer in the UNet's place (SD 3, Flux)",
    r".*(oft_blocks|oft_diag|oft_R)": "OFT, which is not supported",
    r".*\.(a1|a2|b1|b2)\.weight$": "GLoRA, which is not supported",
    r".*\.on_input$": "IA3, which is not supported",
    r".*(emb_params|string_to_param|clip_[lg])$": "textual inversion, which sdjax.add_embedding takes",
    r"(model\.diffusion_model|first_stage_model|cond_stage_model|conditioner)\.": "a whole model, see sdjax.load",
}

ATTENTION = re.compile(r"attn2[._](?:processor[._])?to_k")
FAMILIES = {768: "SD 1", 1024: "SD 2", 2048: "SDXL", 1280: "SDXL's refiner"}
SHOWN = 3


def report(config: Config, source: str, problems: list[tuple[str, str]], tensors: Mapping[str, np.ndarray]) -> str:
    """Returns one line about the tensors that fit nothing: some of them, the nearest names here, and what the file is
    made for if that can be told. The log has all at DEBUG."""
    log.debug("%s: what fits nothing: %s", source, "; ".join(f"{name}{said}" for name, said in problems))
    problems = sorted(problems, key=lambda problem: not problem[1])  # those first of which there is something to say
    short = lambda text, most: text if len(text) <= most else f"{text[: most - 3]}..."
    shown = ", ".join(short(name, 120) + short(said, 200) for name, said in problems[:SHOWN])
    table, near = layers_by_name(config), []
    for name, _ in problems[:SHOWN]:
        layer = (factor_of(name) or (name,))[0]
        near += difflib.get_close_matches(layer, table, n=2, cutoff=0.4) if layer not in table else []
    here = [*dict.fromkeys(near)] or [name for name in table if name.startswith("lora_")][:2]
    what = made_for(config, tensors)
    return (
        f"{source}: {f'made for {what}; ' if what else ''}{len(problems)} of its {len(tensors)} tensors fit nothing in "
        f"{config.name}: {shown}{' ...' if len(problems) > SHOWN else ''}; the nearest names here: "
        f"{', '.join(here[:SHOWN])} ..."
    )


def made_for(config: Config, tensors: Mapping[str, np.ndarray]) -> str | None:
    """Returns the family of models that a LoRA's tensors were made for, in words, or None if it is this one or unknown.

    The width of the context tells it, which the keys of the cross-attentions take.
    """
    for pattern, what in OTHERS.items():
        if any(re.match(pattern, name) for name in tensors) and not any("lora_" in name for name in tensors):
            return what
        if pattern.startswith("lora_transformer") and any(re.match(pattern, name) for name in tensors):
            return what
    for name, value in tensors.items():
        found = factor_of(name)
        if found and found[1] in ("down", "hada_w1_b", "diff") and ATTENTION.search(found[0]) and value.ndim >= 2:
            width = value.shape[1]
            if width != config.unet.context_dim and width in {known.unet.context_dim for known in PUBLISHED}:
                own = FAMILIES.get(config.unet.context_dim)
                return f"{FAMILIES.get(width, f'a context of {width} numbers')}" + (f", not for {own}" if own else "")
    two = any(name.startswith(("lora_te2_", "text_encoder_2.")) for name in tensors)
    return "SDXL" if two and "text_encoder_2" not in {p.folder for p in family_of(config).parts.values()} else None
