"""The fields of the web UI's txt2img and img2img, with its defaults (its modules/processing.py and api/models.py)."""

from typing import Any

from sdjax.web.fields import LIST, LONGEST, OBJECT, ROWS, Field, number, one_of, text, truth, whole

SEEDS = 2**32
MOST_SIDE = 2**15
MOST_PICTURES = 100  # of one request
STEPS = 1000

SEED = whole(-1, SEEDS - 1)
SIDE = whole(1, MOST_SIDE)

#: Fields of both.
SHARED = (
    Field("prompt", text(), "", "prompt"),
    Field("negative_prompt", text(), "", "negative_prompt"),
    Field("styles", LIST, []),
    Field("seed", SEED, -1, "seed"),
    Field("subseed", SEED, -1, "variation_seed"),
    Field("subseed_strength", number(0, 1), 0, "variation_strength"),
    Field("seed_resize_from_h", whole(-1, MOST_SIDE), -1),
    Field("seed_resize_from_w", whole(-1, MOST_SIDE), -1),
    Field("sampler_name", text(100), None, "sampler"),
    Field("sampler_index", text(100), "Euler"),
    Field("scheduler", text(100), None, "sigmas"),
    Field("batch_size", whole(1, MOST_PICTURES), 1),
    Field("n_iter", whole(1, MOST_PICTURES), 1),
    Field("steps", whole(1, STEPS), 50, "steps"),
    Field("cfg_scale", number(), 7.0, "guidance_scale"),
    Field("width", SIDE, None, "width"),
    Field("height", SIDE, None, "height"),
    Field("restore_faces", truth(), None),
    Field("tiling", truth(), None),
    Field("do_not_save_samples", truth(), False),
    Field("do_not_save_grid", truth(), False),
    Field("eta", number(0, 1), None, "eta"),
    Field("denoising_strength", number(0, 1), 0.75, "strength"),
    *(Field(name, number(), None) for name in ("s_min_uncond", "s_churn", "s_tmax", "s_tmin", "s_noise")),
    Field("override_settings", OBJECT, {}),
    Field("override_settings_restore_afterwards", truth(), True),
    Field("refiner_checkpoint", text(1000), None),
    Field("refiner_switch_at", number(), None),
    Field("disable_extra_networks", truth(), False),
    Field("comments", OBJECT, {}),
    Field("script_name", text(1000), None),
    Field("script_args", LIST, []),
    Field("send_images", truth(), True),
    Field("save_images", truth(), False),
    Field("alwayson_scripts", OBJECT, {}),
    Field("force_task_id", text(200), None),
    Field("infotext", text(4 * LONGEST), None),
)

TXT2IMG = (
    *SHARED,
    Field("enable_hr", truth(), False),
    Field("firstphase_width", whole(0, MOST_SIDE), 0),
    Field("firstphase_height", whole(0, MOST_SIDE), 0),
    Field("hr_scale", number(1, 16), 2.0, "scale"),
    Field("hr_upscaler", text(100), None, "upscale"),
    Field("hr_second_pass_steps", whole(0, STEPS), 0, "hires_steps"),
    Field("hr_resize_x", whole(0, MOST_SIDE), 0),
    Field("hr_resize_y", whole(0, MOST_SIDE), 0),
    Field("hr_checkpoint_name", text(1000), None),
    Field("hr_sampler_name", text(100), None),
    Field("hr_scheduler", text(100), None),
    Field("hr_prompt", text(), ""),
    Field("hr_negative_prompt", text(), ""),
)

IMG2IMG = (
    *SHARED,
    Field("init_images", LIST, None, "image"),
    Field("resize_mode", one_of([0, 1, 2]), 0),
    Field("image_cfg_scale", number(), None),
    Field("mask", text(2**26), None, "mask"),
    Field("mask_blur_x", number(0, MOST_SIDE), 4),
    Field("mask_blur_y", number(0, MOST_SIDE), 4),
    Field("mask_blur", number(0, MOST_SIDE), 4, "feather"),
    Field("mask_round", truth(), True),
    Field("inpainting_fill", one_of([0, 1, 2, 3]), 0),
    Field("inpaint_full_res", truth(), True),
    Field("inpaint_full_res_padding", whole(0, MOST_SIDE), 0),
    Field("inpainting_mask_invert", truth(), False),
    Field("initial_noise_multiplier", number(), None),
    Field("latent_mask", text(2**26), None),
    Field("include_init_images", truth(), False),
)

#: What a request may set for itself alone, and /options for all.
SETTINGS = (
    Field("sd_model_checkpoint", text(1000), None),
    Field("CLIP_stop_at_last_layers", whole(1, 64), 1, "clip_skip"),
)


#: Rows of OPTIONS that a text may have and no request sets so: other files, and what SETTINGS sets.
NOT_OF_TEXTS = ("lora_folder", "num_images", "refiner_start", "image_prompt_scale", "clip_skip")


def others_of(found: dict[str, Any]) -> dict[str, Any]:
    """Returns the options of a `parameters` text that no field sets, as spacing and guidance_rescale."""
    fields = {field.option for field in TXT2IMG}
    told = (name for name, row in ROWS.items() if row.text is not None and name not in (*fields, *NOT_OF_TEXTS))
    return {name: found[name] for name in told if name in found}


def settings_of_text(found: dict[str, Any]) -> dict[str, Any]:
    """Returns the values of SETTINGS in a `parameters` text, but for the model."""
    skip = found.get("sdxl_clip_skip", found.get("clip_skip"))
    return {} if skip is None else {"CLIP_stop_at_last_layers": skip}


def texts_of(found: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields that a `parameters` text sets: those that the request does not set itself.

    found: the arguments that the text stands for, see `sdjax.tasks.parameters.understand`.
    """
    names = {field.option: field.name for field in TXT2IMG if field.option and field.name != "sampler_name"}
    values = {names[option]: value for option, value in found.items() if option in names}
    if (sampler := found.get("sampler")) is not None:
        values["sampler_name"] = sampler
        values["scheduler"] = found.get("sigmas", "uniform")
    if "hires" in found:
        values |= {"enable_hr": True, "hr_scale": found["hires"]}
        values |= {"hr_second_pass_steps": found.get("hires_steps", 0)}
        values |= {"hr_upscaler": {"pixels": "Lanczos"}.get(found.get("hires_upscale"), "Latent")}
    return {name: value for name, value in values.items() if given.get(name) is None}
