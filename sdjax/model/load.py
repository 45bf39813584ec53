"""Loading, creating and saving a model."""

import contextlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.errors import SdjaxError, did_you_mean, log
from sdjax.families.config import Config
from sdjax.families.sd import EMOJI, SD15
from sdjax.families.table import NAMED, family_of
from sdjax.files import writing
from sdjax.model.value import FLOAT32, StableDiffusion, known_dtype
from sdjax.networks.bert.config import BertTextConfig
from sdjax.networks.clip.config import TextConfig
from sdjax.networks.table import random_params
from sdjax.text.tokenizer import clip_tokenizer, load_tokenizer
from sdjax.types import Array, Params
from sdjax.weights.convert import cast_params
from sdjax.weights.folder import read_folder, read_tokenizer, write_folder
from sdjax.weights.folder_json import read_config
from sdjax.weights.hub import fetch_folder, is_hub_id
from sdjax.weights.parts import replaced
from sdjax.weights.single import known_prediction, named_config, read_single, write_single

BUNDLED = ("emoji",)

PLACES = (
    "text",
    "vae",
    "unet",
    "class_table",
    "layout",
    "map",
    "text_2",
    "image",
    "normalizer",
)  # in the order in which random parameters are drawn


# ---- the public functions


def load(
    source: str | Path,
    dtype: str | None = None,
    prediction: str | None = None,
    prefer_ema: bool = False,
    config: str | None = None,
    unet: str | Path | None = None,
    vae: str | Path | None = None,
    variant: str | None = None,
) -> StableDiffusion:
    """Loads a model.

    source: a bundled name ("emoji"), a diffusers folder, one .safetensors or .ckpt file in CompVis' layout, or a hub id
        ("org/name"), whose files are downloaded once; offline (HF_HUB_OFFLINE=1) the cached ones are used.
    dtype: of the computation, "float32" (None), "bfloat16" or "float16". Parameters stay in the files' dtype.
    prediction: "epsilon", "v" or "x0" instead of what the files say. A single SD 2.x file may not say; then it is
        guessed, and the guess is logged.
    prefer_ema: use the EMA copy of the UNet if a single file holds both. Files of latent diffusion (LDM) are always
        read so.
    config: the name of a single file's configuration, as "cin256-v2", where its tensors do not tell; or a diffusers
        folder of such a model, whose tokenizer is taken too. Without it a CompVis config.yaml or <stem>.yaml beside the
        file is read.
    unet, vae: files, or folders, whose UNet or VAE takes the place of the model's. What a published distilled UNet
        (Lightning, LCM) is made for becomes the model's own: its guidance scale and its timesteps.
    variant: of a folder's weights, "fp16", "bf16" or another part of their files' names; None prefers full precision,
        then fp16, then bf16, then whatever there is.
    SdjaxError: a file, field or tensor does not fit; the message names it.
    """
    log.info("loading %s", source)
    found = load_whole(source, dtype, prediction, prefer_ema, config, variant)
    for part, other in (("unet", unet), ("vae", vae)):
        if other is not None:
            whole, params = replaced(found.config, found.params, part, other)
            found = replace(found, config=whole, params=params)
    return replace(found, config=predicting(found.config, prediction)) if prediction else found


def predicting(config: Config, prediction: str) -> Config:
    """Returns the config of a model that predicts "epsilon", "v" or "x0"."""
    return replace(config, schedule=replace(config.schedule, prediction=prediction))


def load_whole(
    source: str | Path,
    dtype: str | None,
    prediction: str | None,
    prefer_ema: bool,
    config: str | None,
    variant: str | None,
) -> StableDiffusion:
    """Loads a model with its own parts; see `load`, which sets the prediction of a folder's."""
    dtype, prediction = FLOAT32 if dtype is None else known_dtype(dtype), known_prediction(prediction)
    if variant is not None and not (isinstance(variant, str) and re.fullmatch(r"[\w-]+", variant)):
        raise SdjaxError(f"variant is {variant!r}, should be a part of files' names, such as fp16")
    path, name = find_source(source, variant)
    if not path.is_dir():
        if variant is not None:
            raise SdjaxError(f"variant {variant!r}: {source} is one file, variants are for folders")
        known, tokenizer = (None, None) if config is None else described(config)
        found, params = read_single(path, prediction, prefer_ema, known)
        return StableDiffusion(found, params, tokenizer or bundled_tokenizer(found.text), dtype)
    if config is not None:
        raise SdjaxError(f"config {config!r}: {source} is a folder, whose JSON files are its configuration")
    config, params, tokenizer = read_folder(path, name, variant)
    if prefer_ema:
        log.warning("%s: a diffusers folder has one UNet, which is used; prefer_ema is for single files", source)
    return StableDiffusion(config, params, tokenizer, dtype)


def described(config: str | Path) -> tuple[Config, Any]:
    """Returns the Config that `config` names, a published one or a diffusers folder's, and the folder's tokenizer."""
    if not (isinstance(config, (str, Path)) and (Path(config) / "model_index.json").is_file()):
        return named_config(config), None
    found = read_config(config)
    return found, read_tokenizer(Path(config), found)


def find_source(source: str | Path, variant: str | None = None) -> tuple[Path, str | None]:
    """Returns (the folder or file that `source` names, the model's name if it is not the folder's).

    A hub id is downloaded. SdjaxError: `source` names nothing.
    """
    if not isinstance(source, (str, Path)):
        raise SdjaxError(f"source is {source!r}, should be a string or a path")
    path, name = Path(source), str(source)
    if name in BUNDLED and not (path / "model_index.json").is_file():
        return Path(__file__).parents[1] / "pretrained" / name, None
    with contextlib.suppress(OSError):  # too long a name, no permission
        if path.exists():
            return path, None
    if is_hub_id(name):
        return fetch_folder(name, variant), name
    raise SdjaxError(
        f"{name[:200]}: no such folder or file; name a diffusers folder, a .safetensors or .ckpt "
        f"file, a hub id (org/name), or one of {', '.join(BUNDLED)}{did_you_mean(name, BUNDLED)}"
    )


def create(
    model: str | Path,
    seed: int = 0,
    without: str | None = None,
    config: str | None = None,
    unet: str | Path | None = None,
    vae: str | Path | None = None,
    keep_dtype: bool = False,
) -> StableDiffusion:
    """Returns the model that training starts from, with float32 parameters.

    model: a preset's name in capitals (EMOJI, SD15, ...) gives random parameters and, if its vocabulary is CLIP's,
        CLIP's tokenizer, else none; anything else is loaded with `load`.
    seed: of random parameters.
    without: "text", "vae" or "unet" leaves out that part's random parameters, which `initial_params` can make later;
        it changes nothing for a model that is loaded.
    config, unet, vae: see `load`.
    keep_dtype: leave a loaded model's parameters in the dtypes of its files, where they are not trained.
    """
    if str(model) not in NAMED:
        try:
            sd = load(model, config=config, unet=unet, vae=vae)
        except SdjaxError as error:
            raise SdjaxError(f"{error} (from nothing: {', '.join(NAMED)})") from None
        if keep_dtype:
            return sd
        return replace(sd, params=jax.tree.map(lambda leaf: leaf.astype(jnp.float32), sd.params))
    for name, part in (("unet", unet), ("vae", vae)):
        if part is not None:
            raise SdjaxError(f"{name} {part}: takes the place of a loaded model's, {model} is made from nothing")
    config = NAMED[str(model)]
    initial = jax.jit(initial_params, static_argnums=(0, 1))
    params = {part: initial(config, part, np.uint32(seed)) for part in family_of(config).parts if part != without}
    tokenizer = bundled_tokenizer(config.text) if config.text.vocab_size == TextConfig().vocab_size else None
    return StableDiffusion(config, params, tokenizer)


def initial_params(config: Config, part: str, seed: Array) -> Params:
    """Returns random parameters of one of PLACES. Traceable, so that each device can make its own share."""
    place = PLACES.index(part)
    return random_params(getattr(config, part), jax.random.fold_in(jax.random.key(seed), place))


def save(sd: StableDiffusion, path: str | Path, dtype: str | None = None) -> None:
    """Writes a model; diffusers loads both forms.

    path: a folder, or a name in .safetensors for one file in CompVis' layout, which holds no tokenizer. An older model
        at `path` is replaced, and other files in its folder stay.
    dtype: round the parameters to "float32", "bfloat16" or "float16"; None keeps the dtype that they were loaded in.
    SdjaxError: something else than a model is at `path`, or `dtype` cannot hold a value.
    """
    suffix = Path(path).suffix.lower()
    if dtype is not None:
        sd = replace(sd, params=cast_params(sd.params, known_dtype(dtype)))
    if sd.embeddings:
        log.warning("%s: is written without the embeddings %s", path, ", ".join(sd.embeddings))
    if suffix in (".ckpt", ".pt", ".pth", ".bin"):
        raise SdjaxError(f"{path}: {suffix} files are only read; give a name in .safetensors or a folder's")
    with writing(path):
        if suffix == ".safetensors":
            write_single(path, sd.config, sd.params)
        else:
            write_folder(path, sd.config, sd.params, sd.tokenizer)


# ---- arguments


def bundled_tokenizer(text: TextConfig | BertTextConfig | None):
    """Returns the tokenizer of a model that came without one, by its vocabulary: CLIP's, the emoji model's, or None."""
    if not isinstance(text, TextConfig):
        return None
    if text.vocab_size == SD15.text.vocab_size:
        return clip_tokenizer()
    folder = Path(__file__).parents[1] / "pretrained" / "emoji" / "tokenizer"
    return load_tokenizer(folder) if text.vocab_size == EMOJI.text.vocab_size and folder.is_dir() else None
