"""Converts the JSON files of a diffusers folder to a Config and back.

Each network reads and writes its own config.json (`Part.read`, `Part.write`).
"""

# ruff: noqa: C408 (field names read best as keywords)

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdjax.checks import is_number, is_whole
from sdjax.diffusion.prediction import PREDICTIONS
from sdjax.diffusion.schedule import ScheduleConfig
from sdjax.errors import SdjaxError, log, prefixed
from sdjax.families.config import Config
from sdjax.families.distilled import named_distilled
from sdjax.families.family import Place
from sdjax.families.sd import SD
from sdjax.families.sd2 import LEVELS, MOST_LEVEL
from sdjax.families.sdxl import SD_XL, SD_XL_REFINER
from sdjax.families.table import FAMILIES, PUBLISHED, family_of, own_scale
from sdjax.networks.clip.part import CLIP_TEXT_POOLED
from sdjax.networks.fields import Fields, class_name

#: The pipelines that diffusers has. The model_index.json of others holds the model's own guidance scale as well.
OF_DIFFUSERS = (
    *("StableDiffusionPipeline", "StableDiffusionInpaintPipeline", "StableDiffusionDepth2ImgPipeline"),
    *("StableDiffusionUpscalePipeline", "LDMPipeline", "LDMSuperResolutionPipeline"),
    *("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"),
    *("LDMTextToImagePipeline", "StableUnCLIPImg2ImgPipeline", "StableUnCLIPPipeline"),
    "StableDiffusionImageVariationPipeline",
)
SCALE = "guidance_scale"
ZERO, SCORE = "force_zeros_for_empty_prompt", "requires_aesthetics_score"  # of SDXL and its refiner

KINDS = {prediction.diffusers: name for name, prediction in PREDICTIONS.items()}  # diffusers' name -> ours

#: Fields of the schedule that would change the computation, with the only value that is supported.
CHECKED = dict(beta_schedule="scaled_linear", thresholding=False)

#: The timestep_spacing of diffusers' schedulers whose file does not name one. To name another one is a choice.
OWN_SPACING = {
    **dict.fromkeys(("DDIMScheduler", "PNDMScheduler", "DDPMScheduler", "LCMScheduler", "TCDScheduler"), "leading"),
    **dict.fromkeys(("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"), "linspace"),
    **dict.fromkeys(("LMSDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"), "linspace"),
    **dict.fromkeys(("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"), "linspace"),
    **dict.fromkeys(("UniPCMultistepScheduler", "DEISMultistepScheduler"), "linspace"),
}
SPACINGS = ("leading", "trailing", "linspace")


def read_config(folder: str | Path, name: str | None = None) -> Config:
    """Returns the Config of a diffusers folder.

    If it equals a preset it has the preset's name, else it is called `name`, or as the folder is called. SdjaxError:
    names the file and the field that is not supported.
    """
    folder = Path(folder)
    index = Fields(folder / "model_index.json")
    pipeline, parts = pipeline_of(index)
    fields = {part: Fields(folder / place.folder / "config.json") for part, place in parts.items()}
    sample_size = take_sample_size(fields["unet"])
    found = {"text": None} | {
        part: place.part.read(fields[part], folder / tokenizer_folder(place)) for part, place in parts.items()
    }
    scheduler = Fields(folder / "scheduler" / "scheduler_config.json")
    spacing, schedule = take_spacing(scheduler), read_schedule(scheduler)
    context_dim = found["unet"].context_dim
    if found.get("text_2"):
        width = found["text"].width + found["text_2"].width
        if context_dim != width:
            raise SdjaxError(f"{folder}: unet cross_attention_dim {context_dim} is not the towers' width, {width}")
    for part, what in (("text", "text"), ("class_table", "class table's"), ("layout", "layout encoder's")):
        if found.get(part) and not found.get("text_2") and found["unet"].cross and context_dim != found[part].width:
            raise SdjaxError(
                f"{folder}: unet cross_attention_dim {context_dim} is not the {what} width {found[part].width}"
            )
    size = sample_size * found["vae"].factor
    config = Config(name or folder.name, **found, schedule=schedule, size=size, pipeline=pipeline, spacing=spacing)
    config = replace(config, zero_negative=index.values.pop(ZERO, False) is True)
    like = [preset for preset in PUBLISHED if (preset, preset.size) == (config, size)]
    same = [preset for preset in like if preset.few_steps is None]
    same = same or [preset for preset in like if preset.spacing == spacing]  # distilled, and of a size of its own
    if len(same) == 1:
        found = replace(same[0], pipeline=pipeline, spacing=spacing, zero_negative=config.zero_negative)
        return named_distilled(found, name or folder)
    with prefixed(f"{folder}: "):
        family_of(config)  # refuses networks that do not go together
    scale = index.take(SCALE, own_scale(config), float)
    return named_distilled(replace(config, guidance_scale=scale), name or folder)


def pipeline_of(index: Fields) -> tuple[str, Mapping[str, Place]]:
    """Returns (the pipeline that a model_index.json names, the places of its family's networks).

    SdjaxError: no family has such a pipeline.
    """
    pipeline = str(index.values.get("_class_name", ""))
    if pipeline.startswith("StableDiffusionXL") and index.values.get("text_encoder_2") not in (None, [None, None]):
        first = index.values.get("text_encoder")  # the refiner has the second tower alone, whatever its pipeline is
        return pipeline, (SD_XL_REFINER if first in (None, [None, None]) else SD_XL).parts
    for family in FAMILIES:
        if family.pipeline == pipeline:
            return pipeline, family.parts
    if not pipeline.startswith(("StableDiffusion", "LatentConsistencyModel")) or "text_encoder_2" in index.values:
        others = ", ".join(family.pipeline for family in FAMILIES if family.pipeline[:6] != "Stable")
        raise SdjaxError(
            f"{index.path}: _class_name is {index.values.get('_class_name')!r}, "
            f"should be StableDiffusionPipeline (or its img2img, inpainting forms), or {others}"
        )
    return pipeline, SD.parts


def tokenizer_folder(place: Place) -> str:
    """Returns the folder of the tokenizer that belongs to a text tower's, tokenizer_2 to text_encoder_2."""
    return "tokenizer_2" if place.folder == "text_encoder_2" else "tokenizer"


def take_sample_size(fields: Fields) -> int:
    """Returns the side of the latents that a model was trained at. A list is [height, width]."""
    value = fields.values.get("sample_size")
    if isinstance(value, list) and len(value) == 2 and all(is_whole(side, 1) for side in value):
        if value[0] != value[1]:
            log.warning("%s: sample_size is %s; pictures are squares of the longer side by default", fields.path, value)
        fields.values["sample_size"] = max(value)
    return fields.take("sample_size", 64)


def take_spacing(fields: Fields) -> str | None:
    """Returns the timestep_spacing that a scheduler_config.json chooses, or None if it is its scheduler's own."""
    spacing = fields.values.pop("timestep_spacing", None)
    if spacing not in (None, *SPACINGS):
        raise SdjaxError(f"{fields.path}: timestep_spacing is {spacing!r}, should be one of {', '.join(SPACINGS)}")
    return None if spacing == OWN_SPACING.get(str(fields.values.get("_class_name")), "leading") else spacing


def take_betas(fields: Fields, timesteps: int) -> tuple[float, ...] | None:
    """Returns the trained_betas of a scheduler_config.json, or None."""
    betas = fields.values.pop("trained_betas", None)
    if betas is None:
        return None
    if not isinstance(betas, list) or len(betas) != timesteps or not all(is_number(b, 0, 0.999) and b for b in betas):
        raise SdjaxError(
            f"{fields.path}: trained_betas should be a list of num_train_timesteps, {timesteps}, numbers above 0 and "
            "up to 0.999"
        )
    return tuple(map(float, betas))


def read_schedule(fields: Fields) -> ScheduleConfig:
    """Returns the ScheduleConfig in scheduler_config.json. The scheduler's class does not matter, since the sampler is
    chosen at each call. SdjaxError: names the file and the field that is not supported."""
    prediction = fields.take("prediction_type", "epsilon", str)
    if prediction not in KINDS:
        raise SdjaxError(f"{fields.path}: prediction_type is {prediction!r}, should be one of {', '.join(KINDS)}")
    timesteps = fields.take("num_train_timesteps", 1000)
    betas = take_betas(fields, timesteps)
    if betas is None and "beta_schedule" not in fields.values:
        raise SdjaxError(f"{fields.path}: no beta_schedule, should be scaled_linear")
    zero_terminal_snr = fields.take("rescale_betas_zero_snr", False, bool)
    if zero_terminal_snr and prediction == "epsilon":
        raise SdjaxError(
            f"{fields.path}: rescale_betas_zero_snr is true with prediction_type 'epsilon', should be v_prediction"
        )
    config = ScheduleConfig(
        timesteps=timesteps,
        beta_start=fields.take("beta_start", 0.0001, float, 0.999),
        beta_end=fields.take("beta_end", 0.02, float, 0.999),
        prediction=KINDS[prediction],
        zero_terminal_snr=zero_terminal_snr,
        trained_betas=betas,
    )
    if fields.values.pop("clip_sample", False):
        log.warning("%s: clip_sample has no effect, x0 is not clipped: it is for models of pixels", fields.path)
    fields.finish(CHECKED if betas is None else {"thresholding": False})
    return config


def image_processor(size: int) -> dict[str, Any]:
    """Returns the content of CLIP's preprocessor_config.json: resize the shorter side, crop the centre, normalise."""
    from sdjax.image.pixels import CLIP_MEAN, CLIP_STD

    return dict(
        image_processor_type="CLIPImageProcessor",
        crop_size=dict(height=size, width=size),
        do_center_crop=True,
        do_convert_rgb=True,
        do_normalize=True,
        do_rescale=True,
        do_resize=True,
        image_mean=list(CLIP_MEAN),
        image_std=list(CLIP_STD),
        resample=3,
        rescale_factor=1 / 255,
        size=dict(shortest_edge=size),
    )


def folder_configs(config: Config) -> dict[str, dict[str, Any]]:
    """Returns path -> content of every JSON file of a diffusers folder, except the tokenizer's.

    The class in model_index.json is the one that the model was loaded with, or else its family's.
    """
    family, schedule = family_of(config), config.schedule
    # "leading" is a choice only of a scheduler whose own spacing is another one: see take_spacing
    scheduler_class = "EulerDiscreteScheduler" if config.spacing == "leading" else "DDIMScheduler"
    sizes = {"unet": dict(sample_size=config.size // config.vae.factor), "vae": dict(sample_size=config.size)}
    written = {
        part: place.part.write(getattr(config, part)) | sizes.get(part, {}) for part, place in family.parts.items()
    }
    parts = {f"{family.parts[part].folder}/config.json": content for part, content in written.items()}
    index = class_name(config.pipeline or family.pipeline) | dict(scheduler=["diffusers", scheduler_class])
    if family.concat == "depth":
        index |= dict(depth_estimator=[None, None], feature_extractor=[None, None])
    elif family.pipeline.startswith("StableDiffusionXL"):
        index |= dict(feature_extractor=[None, None], image_encoder=[None, None])
    elif family.pipeline.startswith("StableDiffusion"):
        index |= dict(
            feature_extractor=[None, None],
            image_encoder=[None, None],
            requires_safety_checker=False,
            safety_checker=[None, None],
        )
    if family.vector == "sizes":
        index[ZERO] = config.zero_negative
        if len(family.towers) == 1:
            index[SCORE] = True
        index |= {name: [None, None] for name in ("text_encoder", "tokenizer")}
    for part, place in family.parts.items():
        if part == "text" and place.folder == "bert":
            index |= dict(bert=["latent_diffusion", "LDMBertModel"], tokenizer=["transformers", "BertTokenizer"])
        elif part in ("text", "text_2"):
            kind = "CLIPTextModelWithProjection" if place.part is CLIP_TEXT_POOLED else "CLIPTextModel"
            index[place.folder] = ["transformers", kind]
            index[tokenizer_folder(place)] = ["transformers", "CLIPTokenizer"]
        elif part == "image":
            index |= dict(
                image_encoder=["transformers", "CLIPVisionModelWithProjection"],
                feature_extractor=["transformers", "CLIPImageProcessor"],
            )
        else:
            library = {"unet": "diffusers", "vae": "diffusers", "normalizer": "stable_diffusion"}.get(part, "sdjax")
            index[place.folder] = [library, written[part]["_class_name"]]
    if family.pipeline not in OF_DIFFUSERS:
        index[SCALE] = config.guidance_scale
    index = dict(sorted(index.items()))
    scheduler = (
        class_name(scheduler_class)
        | CHECKED
        | dict(
            num_train_timesteps=schedule.timesteps,
            beta_start=schedule.beta_start,
            beta_end=schedule.beta_end,
            prediction_type=PREDICTIONS[schedule.prediction].diffusers,
            steps_offset=1,
            set_alpha_to_one=False,
            clip_sample=False,
            trained_betas=schedule.trained_betas,
            rescale_betas_zero_snr=schedule.zero_terminal_snr,
            timestep_spacing=config.spacing or ("trailing" if schedule.zero_terminal_snr else "leading"),
        )
    )
    if config.image is not None:
        parts["feature_extractor/preprocessor_config.json"] = image_processor(config.image.size)
    if family.vector == "picture":
        index["image_noising_scheduler"] = ["diffusers", "DDPMScheduler"]
        noising = dict(beta_schedule="squaredcos_cap_v2", num_train_timesteps=1000, clip_sample=True)
        parts["image_noising_scheduler/scheduler_config.json"] = class_name("DDPMScheduler") | noising
    files = {"model_index.json": index, **parts, "scheduler/scheduler_config.json": scheduler}
    if family.vector == "level":
        index["low_res_scheduler"], index["max_noise_level"] = ["diffusers", "DDPMScheduler"], MOST_LEVEL
        betas = dict(beta_start=LEVELS.beta_start, beta_end=LEVELS.beta_end, num_train_timesteps=LEVELS.timesteps)
        files["low_res_scheduler/scheduler_config.json"] = (
            class_name("DDPMScheduler") | CHECKED | betas | dict(clip_sample=True)
        )
    return files
