"""The names of the VAE's tensors in files."""

from collections.abc import Iterator

from sdjax.networks.rows import TensorRow, norm, res_block, weight
from sdjax.networks.vae.config import VAEConfig

# CompVis' names of a ResBlock's layers in the VAE, where it has no time
VAE_RES = ("norm1", "conv1", None, "norm2", "conv2", "nin_shortcut")


def vae_attention(path: str, diffusers: str, compvis: str, inside: str = "attn") -> Iterator[TensorRow]:
    """Yields the rows of an attention, which is Linear in diffusers' files and 1x1 convolutions in CompVis'.

    path: ours of what holds "norm" and `inside`.
    """
    yield from norm(f"{path}/norm", f"{diffusers}.group_norm", f"{compvis}.norm")
    names = ("q", "to_q", "q"), ("k", "to_k", "k"), ("v", "to_v", "v"), ("out", "to_out.0", "proj_out")
    for ours, theirs, old in names:
        there = f"{diffusers}.{theirs}", f"{compvis}.{old}"
        yield from weight(f"{path}/{inside}/{ours}", *there, "dense", compvis_operation="conv1x1")


def vae_middle(half: str, compvis: str, attention: bool) -> Iterator[TensorRow]:
    """Yields the rows of a half's middle."""
    for i in (0, 1):
        yield from res_block(
            f"{half}/mid/res_{i}", f"{half}.mid_block.resnets.{i}", f"{compvis}.mid.block_{i + 1}", VAE_RES, False
        )
    if attention:
        yield from vae_attention(f"{half}/mid", f"{half}.mid_block.attentions.0", f"{compvis}.mid.attn_1")


def vae_rows(config: VAEConfig, prefix: str = "first_stage_model") -> Iterator[TensorRow]:
    """Yields the rows of all tensors of the VAE. `prefix` is that of their names in single files."""
    channels, top = config.channels, len(config.channels) - 1
    for half in ("encoder", "decoder"):
        for layer in ("conv_in", "conv_out"):
            yield from weight(f"{half}/{layer}", f"{half}.{layer}", f"{prefix}.{half}.{layer}", "conv")
        yield from norm(f"{half}/norm_out", f"{half}.conv_norm_out", f"{prefix}.{half}.norm_out")
        yield from vae_middle(half, f"{prefix}.{half}", config.middle_attention)
    yield from weight("encoder/quant", "quant_conv", f"{prefix}.quant_conv", "conv1x1")
    yield from weight("decoder/post_quant", "post_quant_conv", f"{prefix}.post_quant_conv", "conv1x1")

    if config.codes:
        names = "quantize.embedding.weight", f"{prefix}.quantize.embedding.weight"
        yield TensorRow(("decoder", "codebook"), *names, "same", "same")

    width = channels[0]
    for level, wide in enumerate(channels):
        for i in range(config.blocks):
            names = f"encoder.down_blocks.{level}.resnets.{i}", f"{prefix}.encoder.down.{level}.block.{i}"
            yield from res_block(f"encoder/down_{level}_res_{i}", *names, VAE_RES, width != wide)
            if config.attends[level]:
                names = f"encoder.down_blocks.{level}.attentions.{i}", f"{prefix}.encoder.down.{level}.attn.{i}"
                yield from vae_attention(f"encoder/down_{level}_attn_{i}", *names)
            width = wide
        if level != top:
            names = f"encoder.down_blocks.{level}.downsamplers.0.conv", f"{prefix}.encoder.down.{level}.downsample.conv"
            yield from weight(f"encoder/down_{level}_downsample", *names, "conv")
    for level in range(top, -1, -1):
        for i in range(config.blocks + 1):
            names = f"decoder.up_blocks.{top - level}.resnets.{i}", f"{prefix}.decoder.up.{level}.block.{i}"
            yield from res_block(f"decoder/up_{level}_res_{i}", *names, VAE_RES, width != channels[level])
            if config.attends[level]:
                names = f"decoder.up_blocks.{top - level}.attentions.{i}", f"{prefix}.decoder.up.{level}.attn.{i}"
                yield from vae_attention(f"decoder/up_{level}_attn_{i}", *names)
            width = channels[level]
        if level != 0:
            names = f"decoder.up_blocks.{top - level}.upsamplers.0.conv", f"{prefix}.decoder.up.{level}.upsample.conv"
            yield from weight(f"decoder/up_{level}_upsample", *names, "conv")
