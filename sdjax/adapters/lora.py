"""LoRA and its relatives (arXiv 2106.09685), merged into a model's parameters.

sd = sdjax.add_lora(sd, "style.safetensors")                             # a file, a peft or diffusers folder, a hub id
sd = sdjax.add_lora(sd, "style.safetensors", weight=0.6)                 # the same one again: its weight is replaced

The parameters keep their shapes and dtypes, so nothing is compiled again and a call costs what it did before. They are
computed from the model's own parameters, which the value remembers, in float32, and rounded once: a weight of 0 gives
them back to the bit, and moving a weight many times leaves nothing behind.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sdjax.adapters.embedding import with_word
from sdjax.adapters.lora_files import Lora, file_shape, find_files, key_of, read_lora
from sdjax.adapters.lora_kinds import Change, bias_difference, difference
from sdjax.checks import check_model, is_number
from sdjax.errors import SdjaxError
from sdjax.families.config import Config
from sdjax.model.value import Added, Merged, StableDiffusion
from sdjax.networks.rows import TensorRow
from sdjax.weights.convert import operation_of


def add_lora(
    sd: StableDiffusion,
    source: str | Path,
    weight: float = 1.0,
    text_weight: float | None = None,
    strict: bool = True,
) -> StableDiffusion:
    """Returns a model like `sd` with a LoRA merged into its parameters, of the same shapes and dtypes.

    source: a file (.safetensors, .pt, .bin, .ckpt) of kohya's, LyCORIS', diffusers' or peft's names; a peft folder
        (adapter_config.json); a diffusers folder (pytorch_lora_weights.safetensors); or a hub id of one. LoRA, LoCon,
        LoHa, LoKr, DoRA, whole differences, norms, biases, and textual inversions inside of it (bundle_emb) are read.
    weight: of the UNet's changes; any number, 0 changes nothing.
    text_weight: of the text towers'; None: `weight`.
    strict: refuse a file of which something fits nothing in the model; False logs it and takes the rest.
    Several LoRAs add up. A source that was added before gets the new weights: all are merged again from the model's own
    parameters. If sd.params were replaced since, the new ones are the model's own.
    SdjaxError: no such file, a broken one, one for other models, a weight that is no number.
    """
    check_model(sd)
    text_weight = weight if text_weight is None else text_weight
    for name, value in (("weight", weight), ("text_weight", text_weight)):
        if not is_number(value):
            raise SdjaxError(f"{name} {value!r}: a finite number expected")
    if not isinstance(strict, bool):
        raise SdjaxError(f"strict {strict!r}: True or False expected")
    files, before = find_files(source), record_of(sd).added
    key = key_of(files)
    lora = next((one.lora for one in before if one.lora.key == key), None)
    lora = lora or read_lora(sd.config, source, files, strict)
    here = [lora.path.resolve() == one.lora.path.resolve() for one in before]
    new = Added(lora, float(weight), float(text_weight))
    added = [new if same else one for one, same in zip(before, here, strict=True)]
    return merge(sd, added if any(here) else [*added, new])


class Term(NamedTuple):
    """What one LoRA adds to one parameter."""

    key: tuple  # tells it from others
    change: Change
    row: TensorRow
    kind: str  # "weight" or "bias"
    weight: float


def record_of(sd: StableDiffusion) -> Merged:
    """Returns what was merged into a model; nothing if its parameters are no longer those that were merged."""
    record = sd.merged
    if record is None or not record.made:
        return record or Merged()
    own = flatten_dict(sd.params)
    return record if all(own.get(path) is leaf for path, (leaf, _) in record.made.items()) else Merged()


def merge(sd: StableDiffusion, added: Sequence[Added]) -> StableDiffusion:
    """Returns a model with exactly these LoRAs merged into its own parameters. Leaves that none changes are shared."""
    record, leaves = record_of(sd), flatten_dict(sd.params)
    terms: dict[tuple[str, ...], list[Term]] = {}
    for one in added:
        for change in one.lora.changes:
            weight = one.weight if change.layer.part == "unet" else one.text_weight
            for kind, row in change.rows():
                if weight:
                    term = Term((one.lora.key, kind, weight), change, row, kind, weight)
                    terms.setdefault((change.layer.part, *row.path), []).append(term)
    base, made, todo = {}, {}, []
    for path in {**record.made, **terms}:
        own = record.base.get(path, leaves[path])
        how = tuple(term.key for term in terms.get(path, ()))
        if not how:
            leaves[path] = own
        elif path in record.made and record.made[path][1] == how:
            base[path], made[path] = own, record.made[path]
        else:
            base[path] = own
            todo.append((path, how))
    job = lambda path: merged_leaf(sd.config, path, base[path], terms[path])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for (path, how), leaf in zip(todo, pool.map(job, (path for path, _ in todo)), strict=True):
            leaves[path], made[path] = leaf, (leaf, how)
    found = replace(sd, params=unflatten_dict(leaves), merged=Merged(tuple(added), base, made))
    return words_added(found, [one.lora for one in added])


def merged_leaf(config: Config, path: tuple[str, ...], base: Any, terms: Sequence[Term]) -> Any:
    """Returns a parameter with the terms of some LoRAs: base + sum of weight D, in float32, rounded once."""
    value = np.asarray(base)
    own, total = value.astype(np.float32, copy=False), None
    with np.errstate(over="ignore", invalid="ignore"):  # what becomes infinite is refused
        for term in terms:
            if term.kind == "bias":
                found = (bias_difference(term.change) * np.float32(term.weight)).reshape(own.shape)
            else:
                shape = file_shape(config, term.change.layer.part, term.row)
                found = difference(term.change, own, shape, operation_of(term.row.operation)[0], term.weight)
            total = found if total is None else np.add(total, found, out=total)
        rounded = np.add(total, own, out=total).astype(value.dtype, copy=False)
        finite = np.isfinite(rounded.sum(dtype=np.float32)) or np.isfinite(rounded).all()  # the sum takes less time
    if not finite:
        sources = " and ".join(str(term.weight) for term in terms)
        raise SdjaxError(f"weight {sources}: {'/'.join(path)} becomes larger than {value.dtype.name} holds")
    return rounded if isinstance(base, np.ndarray) else placed_like(rounded, base)


# ---- LoRAs that prompts name: tasks/networks.py


class Named(Protocol):
    """What a prompt names."""

    path: Path
    weight: float
    text_weight: float


#: model -> (what was asked for last, the model merged with it). A model that is gone leaves it.
LAST: "WeakKeyDictionary[StableDiffusion, tuple[tuple, StableDiffusion]]" = WeakKeyDictionary()


def merged_for(sd: StableDiffusion, named: Sequence[Named], scale: float) -> StableDiffusion:
    """Returns a model with its own LoRAs and those that a prompt names, all their weights times `scale`.

    A LoRA that is named twice, or is the model's own already, gets the sum of the weights. The last result for a model
    is kept, so that many calls with the same LoRAs merge once.
    """
    if not named and scale == 1:
        return sd
    found = {one.lora.key: one for one in record_of(sd).added}
    for one in named:
        lora = known_lora(sd.config, one.path)
        old = found.get(lora.key, Added(lora, 0.0, 0.0))
        found[lora.key] = Added(lora, old.weight + one.weight, old.text_weight + one.text_weight)
    added = [Added(one.lora, scale * one.weight, scale * one.text_weight) for one in found.values()]
    how = tuple((one.lora.key, one.weight, one.text_weight) for one in added)
    if sd not in LAST or LAST[sd][0] != how:
        forget(sd)
        LAST[sd] = how, merge(sd, added)
    return LAST[sd][1]


def forget(sd: StableDiffusion) -> None:
    """Lets go of what `merged_for` keeps of a model."""
    LAST.pop(sd, None)


def with_words(sd: StableDiffusion, named: Sequence[Named]) -> StableDiffusion:
    """Returns a model with the textual inversions inside of the LoRAs that a prompt names, and nothing else of them."""
    return words_added(sd, [known_lora(sd.config, one.path) for one in named])


def known_lora(config: Config, path: Path) -> Lora:
    """Returns a LoRA that fits the model, read once."""
    files = find_files(path)
    return kept_lora(config, str(path), key_of(files))


@lru_cache(maxsize=8)
def kept_lora(config: Config, path: str, key: tuple) -> Lora:
    return read_lora(config, path, find_files(path))


def words_added(sd: StableDiffusion, loras: Sequence[Lora]) -> StableDiffusion:
    """Returns a model with the textual inversions inside of LoRAs."""
    for lora in loras:
        for word, tensors in lora.words.items():
            sd = with_word(sd, tensors, f"{lora.source}: bundle_emb {word}", word)
    return sd


def placed_like(value: np.ndarray, base: jax.Array) -> jax.Array:
    """Returns an array where another one lies. An array that is bound to no device is left unbound: programs that were
    compiled for one would be compiled again for the other."""
    return jax.device_put(value, base.sharding if getattr(base, "committed", False) else None)
