"""Names of tensors that only some files have: older versions' spellings, and tensors that no computation here needs."""

import re
from collections.abc import Mapping
from typing import Any

from sdjax.errors import SdjaxError

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
        r"depth_model\..+",  # MiDaS, which makes SD 2's depth maps
        r"noise_augmentor\.(?!data_).+",  # the buffers of unCLIP's noise
        r"embedder\.model\.(?!visual\.).+",  # the text tower of unCLIP's CLIP
        r"low_scale_model\..+",  # the buffers of the x4 upscaler's own noise schedule
        r"cond_stage_model\.(encoder|decoder|quantize|quant_conv|post_quant_conv|loss)\..+",  # the first stage again
        r"model_ema\..+",  # the UNet again, see ema_name; with decay and num_updates
        r"first_stage_model\.loss\..+",  # LPIPS, discriminator, logvar
        r"(cond_stage_model|conditioner\.embedders\.\d)\..+\.position_ids",
        r"conditioner\.embedders\.\d\.model\.(logit_scale|attn_mask)",
        r"cond_stage_model\.(transformer\.|model\.)?(logit_scale|text_projection(\.weight)?)",  # CLIP's own loss
        r"cond_stage_model\.model\.attn_mask",  # the causal mask
        r"model\.diffusion_model\.(.+\.)?(scaled_fp8|scale_input)",  # of float8 files, beside the scale_weight
        r"cond_stage_model\.model\.transformer\.resblocks\.{text_layers}\..+",  # OpenCLIP's last block is not run
    ),
}

#: Tensors by which a file says that its model computes something that we do not have: pattern -> what it is.
REFUSED = {
    r"edm_vpred\..+|edm_mean|edm_std": "EDM's preconditioning (arXiv 2206.00364)",
    r"latents_mean|latents_std": "latents that are normalised channel by channel",
}

#: The names of a VAE's attention: CompVis' name, diffusers' name, and an older one.
VAE_ATTENTION = (
    ("q", "to_q", "query"),
    ("k", "to_k", "key"),
    ("v", "to_v", "value"),
    ("proj_out", "to_out.0", "proj_attn"),
    ("norm", "group_norm"),
)


def attention_names(block: str, layout: int) -> tuple[tuple[str, str], ...]:
    """Returns pairs (pattern, replacement) that bring the names of a VAE's attention to one layout.

    block: a pattern of the names' beginning.
    layout: the place in the rows of VAE_ATTENTION: 0 for CompVis, 1 for diffusers.
    """
    spelled = lambda names: "|".join(re.escape(name) for name in names if name != names[layout])
    return tuple((rf"^({block})\.(?:{spelled(row)})\.", rf"\1.{row[layout]}.") for row in VAE_ATTENTION)


#: part -> pairs of (pattern of another spelling, its replacement in the table's spelling).
OLD_NAMES = {
    "vae": attention_names(r"(?:encoder|decoder)\.(?:mid_block|(?:down|up)_blocks\.\d+)\.attentions\.\d+", 1),
    "unet": tuple(  # of attention blocks without a context
        (rf"^((?:mid_block|(?:down|up)_blocks\.\d+)\.attentions\.\d+)\.{old}\.", rf"\1.{new}.")
        for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))
    ),
    "text": ((r"^(?=embeddings\.|encoder\.|final_layer_norm\.)", "text_model."),),
    "safety": ((r"^vision_model\.vision_model\.", "vision_model."),),
    "single": (
        (r"^conditioner\.embedders\.0\.", "cond_stage_model."),  # SGM's spelling of SD 1 and 2
        (r"^(cond_stage_model\.transformer)\.(?=embeddings\.|encoder\.|final_layer_norm\.)", r"\1.text_model."),
        *attention_names(r"first_stage_model\.(?:encoder|decoder)\.(?:mid\.attn_1|(?:down|up)\.\d+\.attn\.\d+)", 0),
    ),
}


#: SDXL's single files keep SGM's names; the first stage's attention has the spellings that others have.
OLD_NAMES["xl"] = OLD_NAMES["single"][2:]


def current_name(part: str, name: str) -> str:
    """Returns the table's spelling of a name that may be an older one.

    part: "text", "vae" or "unet" for a diffusers folder, "vision" or "safety" for a CLIP, "single" for a single file.
    """
    for pattern, replacement in OLD_NAMES.get(part, ()):
        name = re.sub(pattern, replacement, name)
    return name


def renamed(tensors: Mapping[str, Any], part: str, source: Any) -> dict[str, Any]:
    """Returns a file's tensors by their names in the table's spelling. SdjaxError: one is there in two spellings."""
    found, before = {}, {}
    for name, value in tensors.items():
        if (current := current_name(part, name)) in found:
            raise SdjaxError(f"{source}: holds one tensor twice, as {before[current]} and as {name}")
        found[current], before[current] = value, name
    return found


def is_harmless(name: str, layout: str, text_layers: int = -1) -> bool:
    """Is `name` a tensor that files hold and no computation here needs?

    layout: "diffusers" or "compvis".
    text_layers: how many layers of the text tower are run.
    """
    patterns = (pattern.replace("{text_layers}", str(text_layers)) for pattern in HARMLESS[layout])
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def is_of_a_later_layer(name: str, text_layers: int) -> bool:
    """Is `name` a tensor of a layer of the text tower behind the `text_layers` that its config.json asks for?"""
    layer = re.match(r"text_model\.encoder\.layers\.(\d{1,4})\.", name)
    return layer is not None and 0 < text_layers <= int(layer[1])


def refused(name: str) -> str | None:
    """Returns what a tensor of this name says of its model, if that is something that we do not have."""
    return next((what for pattern, what in REFUSED.items() if re.fullmatch(pattern, name)), None)


def ema_name(name: str) -> str:
    """Returns the name of the EMA copy of CompVis' `model.*`. It has no dots, since LitEma registers buffers."""
    return "model_ema." + name.removeprefix("model.").replace(".", "")
