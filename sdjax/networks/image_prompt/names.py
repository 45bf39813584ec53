"""The names of an IP-Adapter's tensors in files, and the order in which its layers are numbered."""

from collections.abc import Iterator

from sdjax.networks.image_prompt.config import ImagePromptConfig
from sdjax.networks.rows import TensorRow, layer_norm, weight
from sdjax.networks.unet.config import UNetConfig
from sdjax.nn.transformer import block_name


def attentions_of(unet: UNetConfig) -> list[tuple[str, int]]:
    """Returns (name, width) of each cross-attention of a UNet as files of IP-Adapters number them.

    The order is diffusers' attn_processors': down, up, and the middle last.
    """
    found, levels = [], range(len(unet.channels))
    several = lambda name, depth, level: [(f"{name}/{block_name(n)}", unet.channels[level]) for n in range(depth)]
    for level in levels:
        for i in range(unet.blocks if unet.attention[level] else 0):
            found += several(f"down_{level}_attn_{i}", unet.depths[level], level)
    for level in reversed(levels):
        for i in range(unet.blocks + 1 if unet.attention[level] else 0):
            found += several(f"up_{level}_attn_{i}", unet.depths_up[level][i], level)
    return found + several("mid_attn", unet.depths[-1] if unet.middle else 0, -1)


def image_prompt_rows(config: ImagePromptConfig, prefix: str = "") -> Iterator[TensorRow]:
    """Yields the rows of all tensors of an IP-Adapter, in tencent-ailab's names; no other layout has it."""
    if config.plus:
        yield TensorRow(("tokens", "latents"), "image_proj.latents", None, "same", "same")
        for name in ("proj_in", "proj_out"):
            yield from weight(f"tokens/{name}", f"image_proj.{name}", None, "dense")
        yield from layer_norm("tokens/norm_out", "image_proj.norm_out", None)
        for i in range(config.blocks):
            ours, theirs = f"tokens/block_{i}", f"image_proj.layers.{i}"
            for number in (1, 2):
                yield from layer_norm(f"{ours}/norm{number}", f"{theirs}.0.norm{number}", None)
            yield from weight(f"{ours}/attention/q", f"{theirs}.0.to_q", None, "dense", bias=False)
            for head in "kv":
                yield from weight(f"{ours}/attention/{head}", f"{theirs}.0.to_kv", None, f"half {head}", bias=False)
            yield from weight(f"{ours}/attention/out", f"{theirs}.0.to_out", None, "dense", bias=False)
            yield from layer_norm(f"{ours}/norm3", f"{theirs}.1.0", None)
            for name, number in (("ff_in", 1), ("ff_out", 3)):
                yield from weight(f"{ours}/{name}", f"{theirs}.1.{number}", None, "dense", bias=False)
    else:
        yield from weight("tokens/proj", "image_proj.proj", None, "dense")
        yield from layer_norm("tokens/norm", "image_proj.norm", None)
    for i in range(len(config.layers)):
        for head in "kv":  # the even numbers are the self-attentions', which have nothing
            name = f"ip_adapter.{2 * i + 1}.to_{head}_ip"
            yield from weight(f"layer_{i}/{head}", name, None, "dense", bias=False)
