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
)
CHECKED_KL = CHECKED | dict(
    shift_factor=None,
    latents_mean=None,
    latents_std=None,
    use_quant_conv=True,
    use_post_quant_conv=True,
)
CHECKED_VQ = CHECKED | dict(norm_type="group", lookup_from_codebook=False)

#: Fields without influence here.
IGNORED = {"sample_size", "force_upcast"}

KL, VQ = "AutoencoderKL", "VQModel"  # diffusers' classes


def read_vae(fields: Fields, *_: Any, upcasts: bool = False) -> VAEConfig:
    """Returns the VAEConfig in a config.json. SdjaxError: names the file and the field that is not supported.

    upcasts: does force_upcast mean something, as in diffusers' pipelines of SDXL alone? Missing, it means True.
    """
    quantised = fields.values.get("_class_name") == VQ
    channels = fields.take_list("block_out_channels", (64,))
    attention = take_attention(fields, len(channels))
    latents = fields.take("latent_channels", 3 if quantised else 4)
    codes = None
    if quantised:
        codes, width = fields.take("num_vq_embeddings", 256), fields.take("vq_embed_dim", latents)
        if width != latents:
            raise SdjaxError(f"{fields.path}: vq_embed_dim is {width}, should be latent_channels, {latents}")
    config = VAEConfig(
        channels,
        fields.take("layers_per_block", 1, most=MOST_LAYERS),
        latents,
        fields.take("norm_num_groups", 32),
        fields.take("scaling_factor", 1.0 if quantised else 0.18215, float),  # latent diffusion does not scale a VQ
        attention if any(attention) else (),
        fields.take("mid_block_add_attention", True, bool),
        codes,
        upcasts and fields.take("force_upcast", True, bool),
    )
    fields.divides("norm_num_groups", config.groups, channels)
    fields.finish(CHECKED_VQ if quantised else CHECKED_KL, IGNORED)
    return config


def take_attention(fields: Fields, levels: int) -> tuple[bool, ...]:
    """Returns whether each level attends, from the names of the blocks. SdjaxError: other blocks."""
    down, up = "DownEncoderBlock2D", "UpDecoderBlock2D"
    found = fields.take_list("down_block_types", (down,), levels if "down_block_types" in fields.values else None)
    back = fields.take_list("up_block_types", (up,), levels if "up_block_types" in fields.values else None)
    for name, only, kinds in (("down_block_types", down, found), ("up_block_types", up, back)):
        if not set(kinds) <= {only, f"Attn{only}"}:
            raise SdjaxError(f"{fields.path}: {name} should be {only} or Attn{only} at every level")
    found, back = (kinds if len(kinds) == levels else kinds * levels for kinds in (found, back))
    attention = tuple(kind.startswith("Attn") for kind in found)
    if attention != tuple(kind.startswith("Attn") for kind in reversed(back)):
        raise SdjaxError(f"{fields.path}: up_block_types should attend where down_block_types do")
    return attention


def write_vae(config: VAEConfig, upcasts: bool = False) -> dict[str, Any]:
    """Returns the content of the VAE's config.json, without sample_size, which the caller adds."""
    kinds = lambda block: [("Attn" if attends else "") + block for attends in config.attends]
    own = CHECKED_VQ | dict(num_vq_embeddings=config.codes, vq_embed_dim=config.latent_channels)
    return (
        class_name(VQ if config.codes else KL)
        | (own if config.codes else CHECKED_KL)
        | dict(
            mid_block_add_attention=config.middle_attention,
            block_out_channels=config.channels,
            layers_per_block=config.blocks,
            latent_channels=config.latent_channels,
            norm_num_groups=config.groups,
            scaling_factor=config.scaling,
            down_block_types=kinds("DownEncoderBlock2D"),
            up_block_types=kinds("UpDecoderBlock2D")[::-1],
        )
        | (dict(force_upcast=config.upcast) if upcasts else {})
    )
