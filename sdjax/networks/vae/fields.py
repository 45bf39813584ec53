"""The VAE's config.json <-> VAEConfig."""

# ruff: noqa: C408 (field names read best as keywords)

from typing import Any

from sdjax.errors import SdjaxError
from sdjax.networks.fields import MOST_LAYERS, Fields, class_name
from sdjax.networks.vae.config import VAEConfig

#: Fields that would change the computation, with the only value that is supported (also what a missing one means).
CHECKED = dict(
    in_channels=3,
    out_channels=3,
    act_fn="silu",
    shift_factor=None,
    latents_mean=None,
    latents_std=None,
    use_quant_conv=True,
    use_post_quant_conv=True,
    mid_block_add_attention=True,
)

#: Fields without influence here.
IGNORED = {"sample_size", "force_upcast"}


def read_vae(fields: Fields, *_: Any) -> VAEConfig:
    """Returns the VAEConfig in a config.json. SdjaxError: names the file and the field that is not supported."""
    channels = fields.take_list("block_out_channels", (64,))
    for name, only in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if set(fields.take_list(name, only, len(channels))) != {only}:
            raise SdjaxError(f"{fields.path}: {name} should be {only} at every level")
    config = VAEConfig(
        channels,
        fields.take("layers_per_block", 1, most=MOST_LAYERS),
        fields.take("latent_channels", 4),
        fields.take("norm_num_groups", 32),
        fields.take("scaling_factor", 0.18215, float),
    )
    fields.divides("norm_num_groups", config.groups, channels)
    fields.finish(CHECKED, IGNORED)
    return config


def write_vae(config: VAEConfig) -> dict[str, Any]:
    """Returns the content of the VAE's config.json, without sample_size, which the caller adds."""
    levels = len(config.channels)
    return (
        class_name("AutoencoderKL")
        | CHECKED
        | dict(
            block_out_channels=config.channels,
            layers_per_block=config.blocks,
            latent_channels=config.latent_channels,
            norm_num_groups=config.groups,
            scaling_factor=config.scaling,
            down_block_types=["DownEncoderBlock2D"] * levels,
            up_block_types=["UpDecoderBlock2D"] * levels,
        )
    )
