"""LoRA and its relatives (arXiv 2106.09685), merged into a model's parameters.

sd = sdjax.add_lora(sd, "style.safetensors")                             # a file, a peft or diffusers folder, a hub id
sd = sdjax.add_lora(sd, "style.safetensors", weight=0.6)                 # the same one again: its weight is replaced

The parameters keep their shapes and dtypes, so nothing is compiled again and a call costs what it did before. They are
computed from the model's own parameters, which the value remembers, in float32, and rounded once: a weight of 0 gives
them back to the bit, and moving a weight many times leaves nothing behind.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sdjax.adapters.embedding import with_word
from sdjax.adapters.lora_files import file_shape, find_files, key_of, read_lora
from sdjax.adapters.lora_kinds import Change, bias_difference, difference
from sdjax.checks import is_number
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
    if not isinstance(sd, StableDiffusion):
        raise SdjaxError(f"sd is {type(sd).__name__}: a model, as sdjax.load gives it, expected")
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
    for path, how in todo:
        leaves[path] = merged_leaf(sd.config, path, base[path], terms[path])
        made[path] = leaves[path], how
    found = replace(sd, params=unflatten_dict(leaves), merged=Merged(tuple(added), base, made))
    for one in added:
        for word, tensors in one.lora.words.items():
            found = with_word(found, tensors, f"{one.lora.source}: bundle_emb {word}", word)
    return found


def merged_leaf(config: Config, path: tuple[str, ...], base: Any, terms: Sequence[Term]) -> Any:
    """Returns a parameter with the terms of some LoRAs: base + sum of weight D, in float32, rounded once."""
    value = np.asarray(base)
    own = value.astype(np.float32, copy=False)
    total = None
    for term in terms:
        if term.kind == "bias":
            found = (bias_difference(term.change) * np.float32(term.weight)).reshape(own.shape)
        else:
            shape = file_shape(config, term.change.layer.part, term.row)
            found = difference(term.change, own, shape, operation_of(term.row.operation)[0], term.weight)
        total = found if total is None else np.add(total, found, out=total)
    total = np.add(total, own, out=total)
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = total.astype(value.dtype, copy=False)
        finite = np.isfinite(rounded.sum(dtype=np.float32)) or np.isfinite(rounded).all()  # the sum takes less time
    if not finite:
        sources = " and ".join(str(term.key[2]) for term in terms)
        raise SdjaxError(f"weight {sources}: {'/'.join(path)} becomes larger than {value.dtype.name} holds")
    return rounded if isinstance(base, np.ndarray) else placed_like(rounded, base)


def placed_like(value: np.ndarray, base: jax.Array) -> jax.Array:
    """Returns an array where another one lies. An array that is bound to no device is left unbound: programs that were
    compiled for one would be compiled again for the other."""
    return jax.device_put(value, base.sharding if getattr(base, "committed", False) else None)
