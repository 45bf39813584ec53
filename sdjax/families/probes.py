"""What tells the files of different configurations apart: names and shapes of a few tensors."""

from sdjax.families.config import Config
from sdjax.networks.bert.config import BertTextConfig

Shapes = dict[str, tuple[int, ...]]


def unet_probes(config: Config) -> Shapes:
    """Returns the shapes of the UNet's first convolution and of an attention in its middle, by their names in files."""
    unet, prefix = config.unet, "model.diffusion_model"
    wide, middle = unet.channels[-1], f"{prefix}.middle_block.1"
    found = {f"{prefix}.input_blocks.0.0.weight": (unet.channels[0], unet.in_channels, 3, 3)}
    if unet.vector:
        found[f"{prefix}.label_emb.0.0.weight"] = (4 * unet.channels[0], unet.vector)
    if unet.labels:
        found[f"{prefix}.label_emb.weight"] = (unet.labels, 4 * unet.channels[0])
    if not unet.cross:
        return found | {f"{middle}.qkv.weight": (3 * wide, wide, 1)}
    if unet.added:  # told by how deep they are: that of a smaller one is part of a larger one
        level = max(level for level, attends in enumerate(unet.attention) if attends)
        blocks = f"{prefix}.input_blocks.{level * (unet.blocks + 1) + 1}.1.transformer_blocks"
        for block in range(unet.depths[level]):
            found[f"{blocks}.{block}.attn2.to_k.weight"] = (unet.channels[level], unet.context_dim)
    if unet.middle:
        found[f"{middle}.transformer_blocks.0.attn2.to_k.weight"] = (wide, unet.context_dim)
    return found


def first_stage_probes(config: Config) -> Shapes:
    """Returns the shape of the codebook, or of a KL autoencoder's first convolution, by its name in files."""
    vae, prefix = config.vae, "first_stage_model"
    if vae.codes:
        return {f"{prefix}.quantize.embedding.weight": (vae.codes, vae.latent_channels)}
    return {f"{prefix}.encoder.conv_in.weight": (vae.channels[0], 3, 3, 3)}


def condition_probes(config: Config) -> Shapes:
    """Returns the shapes of tensors of the networks that make conditions other than text, by their names in files."""
    found, prefix = {}, "cond_stage_model"
    if table := config.class_table:
        found[f"{prefix}.embedding.weight"] = (table.classes, table.width)
    if layout := config.layout:
        found[f"{prefix}.transformer.token_emb.weight"] = (layout.vocab_size, layout.width)
        found[f"{prefix}.transformer.pos_emb.emb.weight"] = (layout.length, layout.width)
    if isinstance(text := config.text, BertTextConfig):
        found[f"{prefix}.transformer.token_emb.weight"] = (text.vocab_size, text.width)
        found[f"{prefix}.transformer.pos_emb.emb.weight"] = (text.length, text.width)
    if image := config.image:
        tower = "embedder" if config.text else prefix
        found[f"{tower}.model.visual.proj"] = (image.width, image.projection)
    if maps := config.map:
        found[f"{prefix}.channel_mapper.weight"] = (maps.channels, maps.classes, 1, 1)
    return found


def all_probes(config: Config) -> Shapes:
    """Returns tensors of a single file of this config with their shapes, by which it is told from the others."""
    return unet_probes(config) | first_stage_probes(config) | condition_probes(config)
