"""The files of a trained LoRA: kohya's layout, which the web UI, ComfyUI and sdjax.add_lora read, and diffusers'."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.adapters.lora_files import HEADER, Lora, changes_of, find_files, read_lora
from sdjax.adapters.lora_kinds import kind_of, matrix
from sdjax.errors import SdjaxError, prefixed
from sdjax.families.config import Config
from sdjax.families.table import family_of
from sdjax.files import written_whole
from sdjax.formats.mapped import write_tensors
from sdjax.model.value import StableDiffusion
from sdjax.training.lora import Site, Tree, all_sites, as_lora

#: The factors' names in kohya's and LyCORIS' files, where they are others than here.
ENDINGS = {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight"}

#: How the names of a folder's layers begin in kohya's files: of a model of one text tower, of one of two.
PREFIXES = {
    "unet": ("lora_unet_", "lora_unet_"),
    "text_encoder": ("lora_te_", "lora_te1_"),
    "text_encoder_2": ("lora_te2_", "lora_te2_"),
}

#: kohya's names of models, by the width of the context.
VERSIONS = {768: "sd_v1", 1024: "sd_v2", 2048: "sdxl_base_v1-0", 1280: "sdxl_refiner_v1-0"}


def kohya_name(config: Config, site: Site) -> str:
    """Returns a layer's name in kohya's files: diffusers' path, of SDXL's UNet Stability's."""
    xl = family_of(config).vector == "sizes"
    folder = family_of(config).parts[site.layer.part].folder
    name = site.single if xl and folder == "unet" and site.single else site.layer.name
    return PREFIXES[folder][xl] + name.replace(".", "_")


def kohya_tensors(config: Config, sites: Sequence[Site], tree: Tree) -> dict[str, np.ndarray]:
    """Returns the tensors of a LoRA by their names in kohya's files."""
    tensors = {}
    for site in sites:
        name, factors = kohya_name(config, site), tree[site.layer.part][site.layer.name]
        tensors |= {f"{name}.{ENDINGS.get(factor, factor)}": np.asarray(leaf) for factor, leaf in factors.items()}
        tensors[f"{name}.alpha"] = np.float32(site.alpha)
    return {name: np.array(value, np.float32, order="C") for name, value in tensors.items()}  # an alpha has no axes


def diffusers_tensors(
    config: Config, sites: Sequence[Site], tree: Tree
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
    """Returns the tensors of a LoRA by diffusers' and peft's names, and peft's settings of each folder.

    LoHa and LoKr, which diffusers does not read, are written as the LoRA of a higher rank that they are equal to.
    """
    tensors, settings = {}, {}
    for site in sites:
        factors, folder = tree[site.layer.part][site.layer.name], family_of(config).parts[site.layer.part].folder
        rank = kind_of(factors).rank(factors)
        down, up = as_lora(factors, site.shape, 1.0 if rank is None else site.alpha / rank)
        name = f"{folder}.{site.layer.name}"
        tensors |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
        if "dora_scale" in factors:
            m = np.asarray(factors["dora_scale"])
            ending = "" if folder == "unet" else ".weight"  # without it transformers leaves a text tower's out
            tensors[f"{name}.lora_magnitude_vector{ending}"] = m.reshape(-1) if m.ndim == 2 else m.swapaxes(0, 1)
        own = settings.setdefault(folder, {"ranks": {}, "dora": "dora_scale" in factors})
        own["ranks"][site.layer.name.removeprefix("text_model.")] = len(down)  # which transformers has no more since 5
    return {name: np.array(value, np.float32, order="C") for name, value in tensors.items()}, settings


def peft_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns peft's settings of a folder: every layer's alpha is its rank, since `up` has the scale in it."""
    ranks = settings["ranks"]
    usual = max(ranks.values(), key=[*ranks.values()].count)
    others = {name: rank for name, rank in ranks.items() if rank != usual}
    return {
        "peft_type": "LORA",
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(ranks),
        "use_dora": settings["dora"],
        "use_rslora": False,
        "bias": "none",
    }


def write_lora(
    folder: Path, name: str, sd: StableDiffusion, sites: Sequence[Site], tree: Tree, metadata: Mapping[str, Any]
) -> Path:
    """Writes folder/<name>.safetensors and folder/diffusers/pytorch_lora_weights.safetensors; returns the first one.

    metadata: the values of kohya's ss_ fields, without "ss_".
    """
    tensors = kohya_tensors(sd.config, sites, tree)
    said = {f"ss_{key}": value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    said |= {"ss_output_name": name, "ss_base_model_version": VERSIONS.get(sd.config.unet.context_dim, sd.config.name)}
    path = folder / f"{name}.safetensors"
    with written_whole(path) as scratch:
        write_tensors(scratch, tensors, said)
        data = scratch.read_bytes()
        digest = hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
        write_tensors(scratch, tensors, said | {"sshs_model_hash": digest, "sshs_legacy_hash": digest[:8]})
    found, settings = diffusers_tensors(sd.config, sites, tree)
    header = {f"{folder}.{key}": value for folder, own in settings.items() for key, value in peft_settings(own).items()}
    with written_whole(folder / "diffusers" / "pytorch_lora_weights.safetensors") as scratch:
        write_tensors(scratch, found, {"format": "pt", HEADER: json.dumps(header, sort_keys=True)})
    return path


def as_file(sd: StableDiffusion, sites: Sequence[Site], tree: Tree, name: str) -> Lora:
    """Returns a LoRA in training as `read_lora` would read its file."""
    found, problems = changes_of(sd.config, kohya_tensors(sd.config, sites, tree), {}, name)
    assert not problems, problems
    return Lora(name, Path(name), (name,), tuple(found), {})


# ---- from a file on


def read_init(sd: StableDiffusion, source: Path, kind: str, parts: tuple[str, ...]) -> tuple[list[Site], Tree]:
    """Returns the layers and the factors of a LoRA file that training goes on from. Its ranks and alphas stay.

    kind: what the file has to be. parts: of the model that are trained; the file may change no others.
    SdjaxError: it is another kind, changes other parts, or more than weights.
    """
    with prefixed("init "):
        lora = read_lora(sd.config, source, find_files(source))
    sites = {(site.layer.part, site.layer.name): site for site in all_sites(sd.config, 1.0, text_and_unet(sd))}
    found, tree = [], {}
    for change in lora.changes:
        layer, factors = change.layer, {name: value for name, value in change.factors.items() if name != "alpha"}
        if layer.part not in parts:
            raise SdjaxError(f"init {source}: changes the text tower too; give `text_learning_rate` with it")
        site = sites.get((layer.part, layer.name))
        of = kind_in(factors)
        if site is None or of is None or (of != kind and not {of, kind} <= {"lora", "locon"}):
            what = f"is {of}" if of else f"has {', '.join(sorted(factors))}"
            raise SdjaxError(f"init {source}: {layer.name} {what}, `kind` is {kind}")
        rank = kind_of(factors).rank(factors)
        own = float(change.factors["alpha"].reshape(-1)[0]) if "alpha" in change.factors else 0.0
        if change.alpha is not None and not own:
            own = change.alpha.alpha / (np.sqrt(rank) / rank if change.alpha.root and rank else 1)
        found.append(site._replace(alpha=own or float(rank or 1)))
        if "magnitude" in factors:
            factors["dora_scale"] = factors.pop("magnitude").reshape(-1, *[1] * (len(site.shape) - 1))
        if "up" in factors and "mid" not in factors:  # a matrix may be stored as a convolution of 1 x 1
            ones = [1] * len(site.shape[2:])
            factors["down"] = factors["down"].reshape(-1, *site.shape[1:])
            factors["up"] = matrix(factors["up"]).reshape(site.shape[0], -1, *ones)
        tree.setdefault(layer.part, {})[layer.name] = factors
    if lora.words or not found or {*parts} - {*tree}:
        lacking = "holds embeddings" if lora.words else f"changes nothing in {' and '.join({*parts} - {*tree})}"
        raise SdjaxError(f"init {source}: {lacking}")
    return found, tree


def text_and_unet(sd: StableDiffusion) -> tuple[str, ...]:
    return tuple(part for part in family_of(sd.config).parts if part in ("unet", "text", "text_2"))


def kind_in(factors: Mapping[str, Any]) -> str | None:
    """Returns which kind of `sdjax.training.lora.KINDS` a layer's factors are, or None."""
    names = {*factors}
    for kind, own, extra in (
        ("lora", {"down", "up"}, set()),
        ("locon", {"down", "up", "mid"}, set()),
        ("dora", {"down", "up", "dora_scale"}, set()),
        ("dora", {"down", "up", "magnitude"}, set()),
        ("loha", {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}, set()),
        ("lokr", {"lokr_w1"}, {"lokr_w2", "lokr_w2_a", "lokr_w2_b"}),
    ):
        if own <= names and names <= own | extra:
            return kind
    return None
