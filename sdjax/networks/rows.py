"""The one table of names: where each parameter lives here, in diffusers' files and in CompVis' files.

A Row is a whole fact about one tensor; the table is expanded from the config's block counts and read both ways.
We hold every 1x1 convolution as a Dense kernel [in, out]; files hold it as a convolution or as a Linear, which is
what the operation says:

    same      file value is ours               conv      file OIHW, ours HWIO
    dense     file [out, in], ours [in, out]   conv1x1   file [out, in, 1, 1], ours [in, out]
    split q, split k, split v                  one third of OpenCLIP's stacked [3 out, in] or [3 out], then as dense

SD 1.x single files hold transformers' CLIP names, SD 2.x ones OpenCLIP's (github.com/mlfoundations/open_clip).
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from sdjax.families.sd import TextConfig, UNetConfig, VAEConfig, VisionConfig


class Row(NamedTuple):
    path: tuple[str, ...]  # in our tree
    diffusers: str  # in a diffusers / transformers file
    compvis: str | None  # in a CompVis single file, its prefix included; None where that layout has no such tower
    operation: str  # "same" | "dense" | "conv" | "conv1x1"
    compvis_operation: str  # these and "split q" | "split k" | "split v"


#: The buffers that CompVis' DDPM and DDIM register: functions of the noise schedule.
SCHEDULE_BUFFERS = (
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2", "lvlb_weights", "logvar",
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
    "vae": ((r"\.query\.", ".to_q."), (r"\.key\.", ".to_k."), (r"\.value\.", ".to_v."),
            (r"\.proj_attn\.", ".to_out.0.")),
    "text": ((r"^(?=embeddings\.|encoder\.|final_layer_norm\.)", "text_model."),),
    "safety": ((r"^vision_model\.vision_model\.", "vision_model."),),
    "single": ((r"^conditioner\.embedders\.0\.", "cond_stage_model."),  # SGM's spelling of SD 1 and 2
               (r"^(cond_stage_model\.transformer)\.(?=embeddings\.|encoder\.|final_layer_norm\.)", r"\1.text_model.")),
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


def join(prefix: str | None, name: str) -> str | None:
    return None if prefix is None else f"{prefix}.{name}"


def weight(path: str, diffusers: str, compvis: str | None, operation: str, bias: bool = True,
           compvis_operation: str | None = None) -> Iterator[Row]:
    """The kernel and the bias of one layer; `path` is slash-separated."""
    head = tuple(path.split("/"))
    compvis_operation = compvis_operation or operation
    yield Row((*head, "kernel"), f"{diffusers}.weight", join(compvis, "weight"), operation, compvis_operation)
    if bias:
        yield Row((*head, "bias"), f"{diffusers}.bias", join(compvis, "bias"), "same", "same")


def norm(path: str, diffusers: str, compvis: str | None) -> Iterator[Row]:
    head = tuple(path.split("/"))
    yield Row((*head, "scale"), f"{diffusers}.weight", join(compvis, "weight"), "same", "same")
    yield Row((*head, "bias"), f"{diffusers}.bias", join(compvis, "bias"), "same", "same")


def layer_norm(path: str, diffusers: str, compvis: str | None) -> Iterator[Row]:
    return norm(f"{path}/norm", diffusers, compvis)  # our LayerNorm wraps flax's


# CompVis' names of a ResBlock's six layers, in the UNet and in the VAE (diffusers has one set for both)
UNET_RES = ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection")
VAE_RES = ("norm1", "conv1", None, "norm2", "conv2", "nin_shortcut")


def res_block(path: str, diffusers: str, compvis: str, names: tuple, shortcut: bool) -> Iterator[Row]:
    norm1, conv1, time, norm2, conv2, skip = names
    yield from norm(f"{path}/norm1", f"{diffusers}.norm1", f"{compvis}.{norm1}")
    yield from weight(f"{path}/conv1", f"{diffusers}.conv1", f"{compvis}.{conv1}", "conv")
    if time:
        yield from weight(f"{path}/time", f"{diffusers}.time_emb_proj", f"{compvis}.{time}", "dense")
    yield from norm(f"{path}/norm2", f"{diffusers}.norm2", f"{compvis}.{norm2}")
    yield from weight(f"{path}/conv2", f"{diffusers}.conv2", f"{compvis}.{conv2}", "conv")
    if shortcut:
        yield from weight(f"{path}/shortcut", f"{diffusers}.conv_shortcut", f"{compvis}.{skip}", "conv1x1")


def transformer(path: str, diffusers: str, compvis: str, linear: bool) -> Iterator[Row]:
    """One SpatialTransformer: both layouts use the same names inside."""
    project = "dense" if linear else "conv1x1"
    both = lambda name: (f"{diffusers}.{name}", f"{compvis}.{name}")
    inside = lambda name: both(f"transformer_blocks.0.{name}")
    yield from norm(f"{path}/norm", *both("norm"))
    yield from weight(f"{path}/proj_in", *both("proj_in"), project)
    for ours, theirs in (("self", "attn1"), ("cross", "attn2")):
        for head in "qkv":
            yield from weight(f"{path}/block/{ours}/{head}", *inside(f"{theirs}.to_{head}"), "dense", bias=False)
        yield from weight(f"{path}/block/{ours}/out", *inside(f"{theirs}.to_out.0"), "dense")
    yield from weight(f"{path}/block/ff_in", *inside("ff.net.0.proj"), "dense")
    yield from weight(f"{path}/block/ff_out", *inside("ff.net.2"), "dense")
    for i in (1, 2, 3):
        yield from layer_norm(f"{path}/block/norm{i}", *inside(f"norm{i}"))
    yield from weight(f"{path}/proj_out", *both("proj_out"), project)


def unet_rows(config: UNetConfig, prefix: str = "model.diffusion_model") -> Iterator[Row]:
    channels, top, linear = config.channels, len(config.channels) - 1, config.linear_projection
    yield from weight("time_in", "time_embedding.linear_1", f"{prefix}.time_embed.0", "dense")
    yield from weight("time_out", "time_embedding.linear_2", f"{prefix}.time_embed.2", "dense")
    yield from weight("conv_in", "conv_in", f"{prefix}.input_blocks.0.0", "conv")

    width, skips, n = channels[0], [channels[0]], 1  # channels of h, of the skips; CompVis' running block number
    for level, wide in enumerate(channels):
        for i in range(config.blocks):
            names = f"down_blocks.{level}.resnets.{i}", f"{prefix}.input_blocks.{n}.0"
            yield from res_block(f"down_{level}_res_{i}", *names, UNET_RES, width != wide)
            if config.attention[level]:
                names = f"down_blocks.{level}.attentions.{i}", f"{prefix}.input_blocks.{n}.1"
                yield from transformer(f"down_{level}_attn_{i}", *names, linear)
            width, n = wide, n + 1
            skips.append(width)
        if level != top:
            names = f"down_blocks.{level}.downsamplers.0.conv", f"{prefix}.input_blocks.{n}.0.op"
            yield from weight(f"down_{level}_downsample", *names, "conv")
            n += 1
            skips.append(width)

    yield from res_block("mid_res_0", "mid_block.resnets.0", f"{prefix}.middle_block.0", UNET_RES, False)
    yield from transformer("mid_attn", "mid_block.attentions.0", f"{prefix}.middle_block.1", linear)
    yield from res_block("mid_res_1", "mid_block.resnets.1", f"{prefix}.middle_block.2", UNET_RES, False)

    n = 0
    for level in range(top, -1, -1):
        wide, attention = channels[level], config.attention[level]
        for i in range(config.blocks + 1):
            names = f"up_blocks.{top - level}.resnets.{i}", f"{prefix}.output_blocks.{n}.0"
            yield from res_block(f"up_{level}_res_{i}", *names, UNET_RES, width + skips.pop() != wide)
            if attention:
                names = f"up_blocks.{top - level}.attentions.{i}", f"{prefix}.output_blocks.{n}.1"
                yield from transformer(f"up_{level}_attn_{i}", *names, linear)
            width, n = wide, n + 1
        if level != 0:
            last = f"{prefix}.output_blocks.{n - 1}.{2 if attention else 1}.conv"
            yield from weight(f"up_{level}_upsample", f"up_blocks.{top - level}.upsamplers.0.conv", last, "conv")

    yield from norm("norm_out", "conv_norm_out", f"{prefix}.out.0")
    yield from weight("conv_out", "conv_out", f"{prefix}.out.2", "conv")


def vae_middle(half: str, compvis: str) -> Iterator[Row]:
    """Its attention is Linear in diffusers' files and 1x1 convolutions in CompVis'."""
    for i in (0, 1):
        yield from res_block(f"{half}/mid/res_{i}", f"{half}.mid_block.resnets.{i}", f"{compvis}.mid.block_{i + 1}",
                             VAE_RES, False)
    attention = f"{half}.mid_block.attentions.0"
    yield from norm(f"{half}/mid/norm", f"{attention}.group_norm", f"{compvis}.mid.attn_1.norm")
    names = ("q", "to_q", "q"), ("k", "to_k", "k"), ("v", "to_v", "v"), ("out", "to_out.0", "proj_out")
    for ours, theirs, old in names:
        yield from weight(f"{half}/mid/attn/{ours}", f"{attention}.{theirs}", f"{compvis}.mid.attn_1.{old}", "dense",
                          compvis_operation="conv1x1")


def vae_rows(config: VAEConfig, prefix: str = "first_stage_model") -> Iterator[Row]:
    channels, top = config.channels, len(config.channels) - 1
    for half in ("encoder", "decoder"):
        for layer in ("conv_in", "conv_out"):
            yield from weight(f"{half}/{layer}", f"{half}.{layer}", f"{prefix}.{half}.{layer}", "conv")
        yield from norm(f"{half}/norm_out", f"{half}.conv_norm_out", f"{prefix}.{half}.norm_out")
        yield from vae_middle(half, f"{prefix}.{half}")
    yield from weight("encoder/quant", "quant_conv", f"{prefix}.quant_conv", "conv1x1")
    yield from weight("decoder/post_quant", "post_quant_conv", f"{prefix}.post_quant_conv", "conv1x1")

    width = channels[0]
    for level, wide in enumerate(channels):
        for i in range(config.blocks):
            names = f"encoder.down_blocks.{level}.resnets.{i}", f"{prefix}.encoder.down.{level}.block.{i}"
            yield from res_block(f"encoder/down_{level}_res_{i}", *names, VAE_RES, width != wide)
            width = wide
        if level != top:
            names = f"encoder.down_blocks.{level}.downsamplers.0.conv", f"{prefix}.encoder.down.{level}.downsample.conv"
            yield from weight(f"encoder/down_{level}_downsample", *names, "conv")
    for level in range(top, -1, -1):
        for i in range(config.blocks + 1):
            names = f"decoder.up_blocks.{top - level}.resnets.{i}", f"{prefix}.decoder.up.{level}.block.{i}"
            yield from res_block(f"decoder/up_{level}_res_{i}", *names, VAE_RES, width != channels[level])
            width = channels[level]
        if level != 0:
            names = f"decoder.up_blocks.{top - level}.upsamplers.0.conv", f"{prefix}.decoder.up.{level}.upsample.conv"
            yield from weight(f"decoder/up_{level}_upsample", *names, "conv")


def clip_layers(layers: int, root: str, prefix: str | None) -> Iterator[Row]:
    for i in range(layers):
        layer = f"{root}.encoder.layers.{i}"
        both = lambda name, layer=layer: (f"{layer}.{name}", join(prefix, f"{layer}.{name}"))
        for head in "qkv":
            yield from weight(f"layer_{i}/attn/{head}", *both(f"self_attn.{head}_proj"), "dense")
        yield from weight(f"layer_{i}/attn/out", *both("self_attn.out_proj"), "dense")
        for fc in ("fc1", "fc2"):
            yield from weight(f"layer_{i}/{fc}", *both(f"mlp.{fc}"), "dense")
        for j in (1, 2):
            yield from layer_norm(f"layer_{i}/norm{j}", *both(f"layer_norm{j}"))


def open_clip_layers(layers: int, prefix: str) -> Iterator[Row]:
    for i in range(layers):
        ours, theirs, old = f"layer_{i}", f"text_model.encoder.layers.{i}", f"{prefix}.{i}"
        for head in "qkv":
            for row in weight(f"{ours}/attn/{head}", f"{theirs}.self_attn.{head}_proj", f"{old}.attn.in_proj", "dense"):
                stacked = row.compvis.replace("in_proj.", "in_proj_")
                yield row._replace(compvis=stacked, compvis_operation=f"split {head}")
        for path, name, old_name in (("attn/out", "self_attn.out_proj", "attn.out_proj"),
                                     ("fc1", "mlp.fc1", "mlp.c_fc"), ("fc2", "mlp.fc2", "mlp.c_proj")):
            yield from weight(f"{ours}/{path}", f"{theirs}.{name}", f"{old}.{old_name}", "dense")
        for j in (1, 2):
            yield from layer_norm(f"{ours}/norm{j}", f"{theirs}.layer_norm{j}", f"{old}.ln_{j}")


def text_rows(config: TextConfig, prefix: str = "cond_stage_model") -> Iterator[Row]:
    """Towers with the exact gelu are OpenCLIP's, and hold its names in single files."""
    name = "text_model.embeddings.{}_embedding.weight"
    if open_clip := config.activation == "gelu":
        prefix = f"{prefix}.model"
        token, position, final = f"{prefix}.token_embedding.weight", f"{prefix}.positional_embedding", "ln_final"
    else:
        prefix = f"{prefix}.transformer"
        token, position = (f"{prefix}.{name.format(kind)}" for kind in ("token", "position"))
        final = "text_model.final_layer_norm"
    yield Row(("token_embedding", "embedding"), name.format("token"), token, "same", "same")
    yield Row(("position_embedding",), name.format("position"), position, "same", "same")
    if open_clip:
        yield from open_clip_layers(config.layers, f"{prefix}.transformer.resblocks")
    else:
        yield from clip_layers(config.layers, "text_model", prefix)
    yield from layer_norm("final_norm", "text_model.final_layer_norm", f"{prefix}.{final}")


def vision_rows(config: VisionConfig) -> Iterator[Row]:
    """transformers' CLIPVisionModelWithProjection, `pre_layrnorm` spelled as there."""
    embeddings = "vision_model.embeddings"
    yield Row(("class_embedding",), f"{embeddings}.class_embedding", None, "same", "same")
    yield Row(("position_embedding",), f"{embeddings}.position_embedding.weight", None, "same", "same")
    yield from weight("patch", f"{embeddings}.patch_embedding", None, "conv", bias=False)
    yield from layer_norm("pre_norm", "vision_model.pre_layrnorm", None)
    yield from clip_layers(config.layers, "vision_model", None)
    yield from layer_norm("post_norm", "vision_model.post_layernorm", None)
    yield from weight("projection", "visual_projection", None, "dense", bias=False)


ROWS = {TextConfig: text_rows, VisionConfig: vision_rows, VAEConfig: vae_rows, UNetConfig: unet_rows}


def make_rows(config: TextConfig | VisionConfig | VAEConfig | UNetConfig) -> list[Row]:
    """The table of the module that `config` describes."""
    return list(ROWS[type(config)](config))
