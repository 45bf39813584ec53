"""The names of the UNet's tensors in files."""

from collections.abc import Iterator
from functools import partial

from sdjax.networks.rows import TensorRow, attention_block, norm, res_block, transformer, weight
from sdjax.networks.unet.config import UNetConfig

# CompVis' names of a ResBlock's six layers in the UNet; the VAE has others (diffusers has one set for both)
UNET_RES = ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection")


def attend_rows(
    config: UNetConfig, path: str, level: int, diffusers: str, compvis: str, depth: int
) -> Iterator[TensorRow]:
    if not config.cross:
        return attention_block(path, diffusers, compvis, config.heads[level])
    first = "self" if config.attends_itself[level] else "text"
    return transformer(path, diffusers, compvis, config.linear_projection, depth, first)


def resize_rows(config: UNetConfig, path: str, diffusers: str, compvis: str, conv: str) -> Iterator[TensorRow]:
    """Of a layer between two levels: a ResBlock, or the one convolution that CompVis calls `conv`."""
    if config.updown:
        return res_block(path, diffusers, compvis, UNET_RES, False)
    return weight(path, f"{diffusers}.conv", f"{compvis}.{conv}", "conv")


def encoder_rows(config: UNetConfig, prefix: str) -> Iterator[TensorRow]:
    """Yields the rows of a UNet's time embedding, way down and middle, which a ControlNet has as well."""
    channels, top = config.channels, len(config.channels) - 1
    attend, resize = partial(attend_rows, config), partial(resize_rows, config)

    yield from weight("time_in", "time_embedding.linear_1", f"{prefix}.time_embed.0", "dense")
    yield from weight("time_out", "time_embedding.linear_2", f"{prefix}.time_embed.2", "dense")
    if config.guidance:
        names = "time_embedding.cond_proj", f"{prefix}.time_embed.cond_proj"
        yield from weight("guidance_in", *names, "dense", bias=False)
    if config.labels:
        yield TensorRow(("label", "embedding"), "class_embedding.weight", f"{prefix}.label_emb.weight", "same", "same")
    if config.vector:
        for ours, theirs, number in (("label_in", "linear_1", 0), ("label_out", "linear_2", 2)):
            kind = "add_embedding" if config.added else "class_embedding"
            yield from weight(ours, f"{kind}.{theirs}", f"{prefix}.label_emb.0.{number}", "dense")
    yield from weight("conv_in", "conv_in", f"{prefix}.input_blocks.0.0", "conv")

    width, n = channels[0], 1  # channels of h; CompVis' block number
    for level, wide in enumerate(channels):
        for i in range(config.blocks):
            names = f"down_blocks.{level}.resnets.{i}", f"{prefix}.input_blocks.{n}.0"
            yield from res_block(f"down_{level}_res_{i}", *names, UNET_RES, width != wide)
            if config.attention[level]:
                names = f"down_blocks.{level}.attentions.{i}", f"{prefix}.input_blocks.{n}.1"
                yield from attend(f"down_{level}_attn_{i}", level, *names, config.depths[level])
            width, n = wide, n + 1
        if level != top:
            names = f"down_blocks.{level}.downsamplers.0", f"{prefix}.input_blocks.{n}.0"
            yield from resize(f"down_{level}_downsample", *names, "op")
            n += 1

    yield from res_block("mid_res_0", "mid_block.resnets.0", f"{prefix}.middle_block.0", UNET_RES, False)
    if config.middle:
        names = "mid_block.attentions.0", f"{prefix}.middle_block.1"
        yield from attend("mid_attn", -1, *names, config.depths[-1])
        yield from res_block("mid_res_1", "mid_block.resnets.1", f"{prefix}.middle_block.2", UNET_RES, False)


def unet_rows(config: UNetConfig, prefix: str = "model.diffusion_model") -> Iterator[TensorRow]:
    """Yields the rows of all tensors of the UNet. `prefix` is that of their names in single files."""
    channels, top = config.channels, len(config.channels) - 1
    attend, resize = partial(attend_rows, config), partial(resize_rows, config)
    yield from encoder_rows(config, prefix)

    width, skips, n = channels[-1], [*config.skip_channels], 0
    for level in range(top, -1, -1):
        wide, attention = channels[level], config.attention[level]
        for i in range(config.blocks + 1):
            names = f"up_blocks.{top - level}.resnets.{i}", f"{prefix}.output_blocks.{n}.0"
            yield from res_block(f"up_{level}_res_{i}", *names, UNET_RES, width + skips.pop() != wide)
            if attention:
                names = f"up_blocks.{top - level}.attentions.{i}", f"{prefix}.output_blocks.{n}.1"
                yield from attend(f"up_{level}_attn_{i}", level, *names, config.depths_up[level][i])
            width, n = wide, n + 1
        if level != 0:
            last = f"{prefix}.output_blocks.{n - 1}.{2 if attention else 1}"
            yield from resize(f"up_{level}_upsample", f"up_blocks.{top - level}.upsamplers.0", last, "conv")

    yield from norm("norm_out", "conv_norm_out", f"{prefix}.out.0")
    yield from weight("conv_out", "conv_out", f"{prefix}.out.2", "conv")
