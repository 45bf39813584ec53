"""Names of tensors that only some files have: spellings of older versions, and tensors that no computation needs."""

import re

#: The buffers that CompVis' DDPM and DDIM register: functions of the noise schedule.
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

#: Tensors that files hold and no computation here needs, by layout: patterns of whole names.
HARMLESS = {
    "diffusers": (
        r"(text|vision)_model\.embeddings\.position_ids",  # an index buffer of old versions
        r"text_projection\.weight",  # of CLIPTextModelWithProjection, beside the states
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

#: Spellings of older files -> the table's, by part.
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
    """The table's spelling of a name that may be an older one; `part` is a diffusers folder's, or "single"."""
    for pattern, replacement in OLD_NAMES.get(part, ()):
        name = re.sub(pattern, replacement, name)
    return name


def is_harmless(name: str, layout: str, text_layers: int = -1) -> bool:
    """Is `name` a tensor that files hold and no computation needs? `text_layers`: how many layers are run."""
    patterns = (pattern.replace("{text_layers}", str(text_layers)) for pattern in HARMLESS[layout])
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def ema_name(name: str) -> str:
    """The name of the EMA copy of CompVis' `model.*`: without dots, since LitEma registers buffers."""
    return "model_ema." + name.removeprefix("model.").replace(".", "")
