"""Names of tensors that only some files have: older versions' spellings, and tensors that no computation here needs."""

import re

#: The buffers that CompVis' DDPM and DDIM register. They are functions of the noise schedule.
SCHEDULE_BUFFERS = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "lvlb_weights",
    "logvar",
)

#: Tensors that files hold and no computation here needs: layout -> patterns of their whole names.
HARMLESS = {
    "diffusers": (
        r"(text|vision)_model\.embeddings\.position_ids",  # an index buffer of old versions
        r"text_projection\.weight",  # CLIPTextModelWithProjection has it; we use the states only
    ),
    "compvis": (
        *SCHEDULE_BUFFERS,
        r"scale_factor",  # the VAE's scaling; single.py compares it with the config's
        r"denoiser\.sigmas",  # SGM's schedule buffer
        r"model_ema\..+",  # the UNet again, see ema_name; with decay and num_updates
        r"first_stage_model\.loss\..+",  # LPIPS, discriminator, logvar
        r"cond_stage_model\..+\.position_ids",
        r"cond_stage_model\.(transformer\.|model\.)?(logit_scale|text_projection(\.weight)?)",  # CLIP's own loss
        r"cond_stage_model\.model\.attn_mask",  # the causal mask
        r"cond_stage_model\.model\.transformer\.resblocks\.{text_layers}\..+",  # OpenCLIP's last block is not run
    ),
}

#: part -> pairs of (pattern of an older spelling, its replacement in the table's spelling).
OLD_NAMES = {
    "vae": (
        (r"\.query\.", ".to_q."),
        (r"\.key\.", ".to_k."),
        (r"\.value\.", ".to_v."),
        (r"\.proj_attn\.", ".to_out.0."),
    ),
    "text": ((r"^(?=embeddings\.|encoder\.|final_layer_norm\.)", "text_model."),),
    "safety": ((r"^vision_model\.vision_model\.", "vision_model."),),
    "single": (
        (r"^conditioner\.embedders\.0\.", "cond_stage_model."),  # SGM's spelling of SD 1 and 2
        (r"^(cond_stage_model\.transformer)\.(?=embeddings\.|encoder\.|final_layer_norm\.)", r"\1.text_model."),
    ),
}


def current_name(part: str, name: str) -> str:
    """Returns the table's spelling of a name that may be an older one.

    part: "text", "vae" or "unet" for a diffusers folder, "vision" or "safety" for a CLIP, "single" for a single file.
    """
    for pattern, replacement in OLD_NAMES.get(part, ()):
        name = re.sub(pattern, replacement, name)
    return name


def is_harmless(name: str, layout: str, text_layers: int = -1) -> bool:
    """Is `name` a tensor that files hold and no computation here needs?

    layout: "diffusers" or "compvis".
    text_layers: how many layers of the text tower are run.
    """
    patterns = (pattern.replace("{text_layers}", str(text_layers)) for pattern in HARMLESS[layout])
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def ema_name(name: str) -> str:
    """Returns the name of the EMA copy of CompVis' `model.*`. It has no dots, since LitEma registers buffers."""
    return "model_ema." + name.removeprefix("model.").replace(".", "")
