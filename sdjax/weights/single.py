"""Reads and writes a model as one file in CompVis' layout, as Stability and the model-sharing sites distribute it.

The names and shapes of four tensors tell which model it is (`Family.probes`). They differ between all presets except SD
2.x base and 768-v. These two differ in what the UNet predicts, which comes from `prediction`, else from the file's
ModelSpec metadata, else from a guess. What no shape shows (heads, VAE scaling, schedule) is taken from the recognised
preset.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from sdjax.diffusion.prediction import PREDICTIONS
from sdjax.diffusion.schedule import ScheduleConfig, make_schedule
from sdjax.errors import SdjaxError, log
from sdjax.families.config import Config
from sdjax.families.distilled import named_distilled
from sdjax.families.sd import SD
from sdjax.families.table import PUBLISHED, family_of
from sdjax.files import written_whole
from sdjax.formats.mapped import write_tensors
from sdjax.networks.rows import TensorRow
from sdjax.networks.table import make_rows, param_shapes
from sdjax.types import Params
from sdjax.weights.compvis_yaml import read_yaml, yaml_beside
from sdjax.weights.convert import from_file_tensors, to_file_tensors
from sdjax.weights.spellings import ema_name, renamed

PREDICTION_KEY = "modelspec.prediction_type"  # github.com/Stability-AI/ModelSpec, in a safetensors file's metadata

#: The configs that a file can be recognised as.
CANDIDATES = PUBLISHED

#: Tensors that tell SDXL's files, which keep the names of SGM's networks, from files of one text tower and no vector.
XL_TOWERS, XL_VECTOR = "conditioner.embedders.", "model.diffusion_model.label_emb.0."

UNET = f"{SD.parts['unet'].prefix}."

#: ComfyUI's test (comfy/supported_models.py, SD20.model_type): in SD 2's v-models this bias has a larger deviation.
V_BIAS, V_SPREAD = UNET + "output_blocks.11.1.transformer_blocks.0.norm1.bias", 0.09


#: Empty tensors that mark a model of v-prediction, and one of zero terminal SNR (ComfyUI's comfy/supported_models.py).
MARKS = ("v_pred", "ztsnr")


def known_prediction(prediction: str | None) -> str | None:
    """Returns `prediction` as it is. SdjaxError: it is neither None nor a name in PREDICTIONS."""
    if prediction not in (None, *PREDICTIONS):
        raise SdjaxError(f"prediction is {prediction!r}, should be one of {', '.join(PREDICTIONS)}")
    return prediction


def named_config(name: str) -> Config:
    """Returns a published configuration by its name; case, - and _ do not matter. SdjaxError: there is none."""
    plain = lambda text: text.lower().replace("_", "-")
    found = {plain(config.name): config for config in CANDIDATES}
    if not isinstance(name, str) or plain(name) not in found:
        raise SdjaxError(f"config {name!r}: one of {', '.join(sorted(found))}")
    return found[plain(name)]


def model_rows(config: Config) -> list[TensorRow]:
    """Returns the rows of all parts of a model. Their paths begin with the part's name."""
    parts = (
        (part, make_rows(getattr(config, part), prefix=place.prefix)) for part, place in family_of(config).parts.items()
    )
    return [row._replace(path=(part, *row.path)) for part, rows in parts for row in rows]


def recognise(shapes: Mapping[str, tuple[int, ...]]) -> list[Config]:
    """Returns the candidates that a file with these tensor shapes, by name, may be: none, one or several.

    Where a candidate has all that another one asks for and more, the other is left out. Several are SD 2.x, which
    differ in what they predict, and those models of LDM that differ in nothing but their pictures.
    """
    candidates = [config for config in CANDIDATES if config.few_steps is None]  # others have another one's tensors
    asked = {config: set(family_of(config).probes(config).items()) for config in candidates}
    found = [config for config in candidates if asked[config] <= set(shapes.items())]
    return [config for config in found if not any(asked[config] < asked[other] for other in found)]


def detect(tensors: Mapping[str, np.ndarray], prediction: str | None = None, source: str | Path = "the file") -> Config:
    """Returns the Config of a single file's tensors, and logs one line if it had to guess the prediction.

    prediction: what the UNet predicts, if it is known.
    source: what messages call the file.
    SdjaxError: it is none of the CANDIDATES, or one of several that only the caller can tell apart.
    """
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    if not (found := recognise(shapes)):
        refuse_part(shapes, source)
        asked = sorted({name for config in CANDIDATES for name in family_of(config).probes(config)})
        seen = ", ".join(f"{name} {list(shapes[name])}" for name in asked if name in shapes)
        raise SdjaxError(
            f"{source}: holds none of {', '.join(config.name for config in CANDIDATES)} in CompVis' "
            f"layout; of the tensors that tell them apart it has {seen or 'none'}"
        )
    if len({config.schedule.prediction for config in found}) < len(found):
        names = " or ".join(config.name for config in found)
        raise SdjaxError(f"{source}: its tensors are those of {names}; `config` says which one it is")
    if prediction is None and len(found) > 1:
        spread = np.std(np.asarray(tensors[V_BIAS], np.float32)) if V_BIAS in tensors else 0.0
        prediction = "v" if spread > V_SPREAD else "epsilon"
        other = "v" if prediction == "epsilon" else "epsilon"
        log.warning(
            '%s: an SD 2.x file does not say what it predicts; taken as prediction="%s", since the standard '
            'deviation of %s is %.3f (v-models: above %s). If pictures are wrong, pass prediction="%s"',
            source,
            prediction,
            V_BIAS,
            spread,
            V_SPREAD,
            other,
        )
    return predicting(found, prediction)


def refuse_part(shapes: Mapping[str, tuple[int, ...]], source: str | Path) -> None:
    """SdjaxError if a file has some networks of a candidate and lacks others, as a UNet's or a VAE's own file does."""
    inside = lambda name, place: name.startswith(f"{place.prefix}.")
    absent = [place for place in SD.parts.values() if not any(inside(name, place) for name in shapes)]
    present = [place for place in SD.parts.values() if place not in absent]
    for config in CANDIDATES if absent and present else ():
        probes = family_of(config).probes(config).items()
        asked = [(name, shape) for name, shape in probes if any(inside(name, place) for place in present)]
        if asked and all(shapes.get(name) == shape for name, shape in asked):
            raise SdjaxError(
                f"{source}: has no {' and no '.join(place.label for place in absent)} (no tensor "
                f"{' and none '.join(f'{place.prefix}.*' for place in absent)}); a file of a whole model is needed"
            )


def take_marks(tensors: dict[str, np.ndarray]) -> set[str]:
    """Removes and returns the empty tensors by which a file says how its UNet was trained: v_pred, ztsnr (ComfyUI's
    names)."""
    return {name for name in MARKS if tensors.pop(name, None) is not None}


def unscaled(tensors: Mapping[str, np.ndarray], source: str | Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a file of scaled float8 with their scales applied: weight * scale_weight, as float16.

    Others are returned as they are. SdjaxError: a scale that is no number, or without its weight.
    """
    found = dict(tensors)
    for name in [name for name in tensors if name.endswith(".scale_weight")]:
        weight, scale = name.removesuffix("scale_weight") + "weight", np.asarray(found.pop(name), np.float32)
        if weight not in found or scale.size != 1 or not np.isfinite(scale).all():
            raise SdjaxError(f"{source}: {name} {list(scale.shape)} should be one number, for a {weight} beside it")
        value = np.asarray(found[weight], np.float32) * scale.reshape(())
        with np.errstate(over="ignore"):
            half = value.astype(np.float16)
        found[weight] = half if np.isfinite(half).all() else value
    return found


def predicting(found: list[Config], prediction: str | None) -> Config:
    """Returns the candidate with this prediction, or else the first one with its prediction replaced. None keeps the
    first one's."""
    prediction = prediction or found[0].schedule.prediction
    config = next((config for config in found if config.schedule.prediction == prediction), found[0])
    return replace(config, schedule=replace(config.schedule, prediction=prediction))


def read_scale(tensors: Mapping[str, np.ndarray], config: Config, source: Path) -> Config:
    """Returns the config with the VAE scaling of CompVis' buffer `scale_factor`, if the file has it. A difference
    within 0.1% is the rounding of a small dtype and is ignored."""
    scale = np.asarray(tensors.get("scale_factor", config.vae.scaling), np.float64)
    if scale.shape != () or not np.isfinite(scale) or scale <= 0:
        raise SdjaxError(f"{source}: scale_factor is {scale.tolist()}, should be one positive number")
    if np.isclose(scale, config.vae.scaling, rtol=1e-3):
        return config
    return replace(config, vae=replace(config.vae, scaling=float(scale)))


def add_statistics(tensors: dict[str, np.ndarray], config: Config, source: Path) -> None:
    """Adds unCLIP's statistics of embeddings, which no single file holds: those of ViT-H are mean 0 and deviation 1.

    SdjaxError: others are unknown.
    """
    if config.normalizer is None:
        return
    names = [f"{family_of(config).parts['normalizer'].prefix}.data_{name}" for name in ("mean", "std")]
    if all(name in tensors for name in names):
        return
    if config.normalizer.width != 1024:
        raise SdjaxError(
            f"{source}: the statistics of its embeddings are not in it; load diffusers' folder of the model"
        )
    for name, value in zip(names, (0, 1), strict=True):
        tensors[name] = np.full((1, 1024), value, np.float32)


def check_betas(tensors: Mapping[str, np.ndarray], schedule: ScheduleConfig, source: Path) -> None:
    """Logs one line if the file's noise schedule differs from `schedule`, the one that is used."""
    ours = make_schedule(schedule).betas
    betas = np.asarray(tensors.get("betas", ours), np.float64)
    if betas.shape != ours.shape or not np.allclose(betas, ours, rtol=0.02, atol=0):
        log.warning("%s: its buffer `betas` is another noise schedule than %s; it is not used", source, schedule)


def described_beside(path: Path) -> Config | None:
    """Returns the Config that a yaml beside a file describes, as the published one that it equals, or None."""
    found = yaml_beside(path)
    config = found and read_yaml(found)
    if config is None:
        return None
    same = [candidate for candidate in CANDIDATES if (candidate, candidate.size) == (config, config.size)]
    name = path.stem if found.stem == "config" else found.stem
    return same[0] if len(same) == 1 else replace(config, name=name)


def read_single(
    path: str | Path, prediction: str | None = None, prefer_ema: bool = False, config: Config | None = None
) -> tuple[Config, Params]:
    """Returns (config, params {"text", "vae", "unet"}) of a .safetensors or .ckpt file, in the file's dtypes.

    prediction: "epsilon", "v" or "x0", overrules the file and the preset.
    prefer_ema: take the UNet from the EMA copy `model_ema.*` if the file has one. Files of latent diffusion (LDM) are
        always read so, as the official scripts do.
    config: the model's Config, for files that are no preset; None recognises it.
    SdjaxError: one report of everything that does not fit.
    """
    from sdjax.formats.tensors import read_checkpoint

    path, prediction = Path(path), known_prediction(prediction)
    found, metadata = read_checkpoint(path)
    of_xl = all(any(name.startswith(prefix) for name in found) for prefix in (XL_TOWERS, XL_VECTOR))
    kind = "xl" if of_xl else "single"
    tensors = renamed(unscaled(found, path), kind, path)
    marks, stored = take_marks(tensors), metadata.get(PREDICTION_KEY)
    prediction = prediction or ("v" if "v_pred" in marks else stored if stored in PREDICTIONS else None)
    config = config or described_beside(path)
    if config is None:
        config = named_distilled(detect(tensors, prediction, path), path)
    elif prediction:
        config = replace(config, schedule=replace(config.schedule, prediction=prediction))
    if "ztsnr" in marks and config.schedule.prediction == "v":
        config = replace(config, schedule=replace(config.schedule, zero_terminal_snr=True))
    elif "ztsnr" in marks:
        log.warning("%s: its mark ztsnr has no effect on a model that predicts epsilon", path)
    config = read_scale(tensors, config, path)
    check_betas(tensors, config.schedule, path)

    add_statistics(tensors, config, path)
    if config.image and config.text is None:  # a whole CLIP, of which the text tower is not asked
        whole = [name for name in tensors if name.startswith("cond_stage_model.model.") and ".visual." not in name]
        tensors = {name: value for name, value in tensors.items() if name not in set(whole)}
    rows = model_rows(config)
    has_ema = any(name.startswith(ema_name(UNET)) for name in tensors)
    if prefer_ema and not has_ema:
        log.warning("%s: has no EMA copy (model_ema.*); its only UNet is used", path)
    elif has_ema and (prefer_ema or family_of(config).ema):
        for row in rows:
            if row.path[0] == "unet":
                tensors.pop(row.compvis, None)
        rows = [row._replace(compvis=ema_name(row.compvis)) if row.path[0] == "unet" else row for row in rows]
    parts = family_of(config).parts
    expected = {part: param_shapes(getattr(config, part)) for part in parts}
    own = tuple(f"{place.prefix}.{start}" for place in parts.values() for start in place.part.own_in_single)
    layers = -1 if config.text is None else config.text.layers
    return config, from_file_tensors(tensors, rows, expected, "compvis", str(path), layers, own)


def write_single(path: str | Path, config: Config, params: Params) -> None:
    """Writes a model as one .safetensors file in CompVis' layout, whole or not at all. Values keep their dtype.

    It writes the UNet, the VAE and those layers of the text tower that are run. It does not write OpenCLIP's last
    block, text_projection and logit_scale, which SD 2 does not use and no reader needs, nor an EMA copy, nor schedule
    buffers. The metadata hold the prediction. `scale_factor` is written if the VAE's scaling is not the preset's. It
    logs one line if reading the file would give another config, because the model's is no preset's.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise SdjaxError(f"{path}: exists and is no file; name a new .safetensors file")
    tensors = to_file_tensors(params, model_rows(config), "compvis") | family_of(config).unused(config)
    found = recognise(family_of(config).probes(config))
    preset = predicting(found, config.schedule.prediction) if found else None  # what reading the file will give
    if preset and config.schedule.zero_terminal_snr and config.schedule.prediction == "v":
        preset = replace(preset, schedule=replace(preset.schedule, zero_terminal_snr=True))
        tensors |= {mark: np.zeros(0, np.float32) for mark in MARKS}
    if preset is None or preset.vae.scaling != config.vae.scaling:
        tensors["scale_factor"] = np.asarray(config.vae.scaling, np.float32)
    if (
        preset is None
        or preset.size != config.size
        or replace(preset, vae=replace(preset.vae, scaling=config.vae.scaling)) != config
    ):
        log.warning("%s: a single file does not hold this model's config, which is no preset's; a folder does", path)
    with written_whole(path) as scratch:
        write_tensors(scratch, tensors, {PREDICTION_KEY: config.schedule.prediction})
