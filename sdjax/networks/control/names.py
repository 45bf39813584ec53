"""The names of a ControlNet's tensors in files: diffusers', and those of lllyasviel's cldm.py."""

from collections.abc import Iterator

from sdjax.networks.control.config import ControlConfig
from sdjax.networks.rows import TensorRow, weight
from sdjax.networks.unet.names import encoder_rows


def control_rows(config: ControlConfig, prefix: str = "control_model") -> Iterator[TensorRow]:
    """Yields the rows of all tensors of a ControlNet. `prefix` is that of their names in single files."""
    yield from encoder_rows(config.unet, prefix)
    count = 2 * (len(config.hint) - 1)  # convolutions between the first and the last
    ours = ("conv_in", *(f"conv_{i}" for i in range(count)), "conv_out")
    theirs = ("conv_in", *(f"blocks.{i}" for i in range(count)), "conv_out")
    for i, (path, name) in enumerate(zip(ours, theirs, strict=True)):
        names = f"controlnet_cond_embedding.{name}", f"{prefix}.input_hint_block.{2 * i}"
        yield from weight(f"hint/{path}", *names, "conv")
    for i in range(len(config.unet.skip_channels)):
        yield from weight(f"zero_{i}", f"controlnet_down_blocks.{i}", f"{prefix}.zero_convs.{i}.0", "conv1x1")
    yield from weight("zero_mid", "controlnet_mid_block", f"{prefix}.middle_block_out.0", "conv1x1")
