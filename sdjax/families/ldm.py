"""The models of CompVis/latent-diffusion (arXiv 2112.10752), configured as its models/ldm/*/config.yaml are."""

from sdjax.diffusion.schedule import ScheduleConfig
from sdjax.families.config import Config
from sdjax.families.family import Family, Place
from sdjax.image import watermark
from sdjax.networks.labels.network import ClassConfig
from sdjax.networks.labels.part import CLASS_TABLE
from sdjax.networks.unet.config import UNetConfig
from sdjax.networks.unet.part import UNET
from sdjax.networks.vae.config import VAEConfig
from sdjax.networks.vae.part import KL_VAE

#: ImageNet's classes at 256 px: UNet 400,920,579 parameters, VQ f4 55,322,782, table 512,512. Class 1000 is the null.
CIN256_V2 = Config(
    name="cin256-v2",
    text=None,
    vae=VAEConfig(channels=(128, 256, 512), latent_channels=3, scaling=1.0, codes=8192),
    unet=UNetConfig(
        in_channels=3,
        out_channels=3,
        channels=(192, 384, 576, 960),
        attention=(False, True, True, True),
        heads=(1, 1, 1, 1),
        context_dim=512,
    ),
    schedule=ScheduleConfig(beta_start=0.0015, beta_end=0.0195),
    classes=ClassConfig(),
    size=256,
    guidance_scale=3.0,
)

#: The older model of ImageNet: UNet 394,984,196 parameters, VQ f8 67,717,295, table 512,000. It has no null class.
CIN256 = Config(
    name="cin256",
    text=None,
    vae=VAEConfig(
        channels=(128, 256, 256, 512),
        latent_channels=4,
        scaling=1.0,
        codes=16384,
        attention=(False, False, False, True),
    ),
    unet=UNetConfig(
        in_channels=4,
        out_channels=4,
        channels=(256, 512, 1024),
        attention=(True, True, True),
        heads=(8, 16, 32),
        context_dim=512,
    ),
    schedule=ScheduleConfig(beta_start=0.0015, beta_end=0.0195),
    classes=ClassConfig(classes=1000, null=False),
    size=256,
    guidance_scale=1.0,
)


def probes(config: Config) -> dict[str, tuple[int, ...]]:
    """Returns tensors of a single file of this config with their shapes, by which it is told from the others."""
    unet, classes = config.unet, config.classes
    return {
        "model.diffusion_model.input_blocks.0.0.weight": (unet.channels[0], unet.in_channels, 3, 3),
        "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight": (
            unet.channels[-1],
            unet.context_dim,
        ),
        "cond_stage_model.embedding.weight": (classes.classes, classes.width),
        "first_stage_model.quantize.embedding.weight": (config.vae.codes, config.vae.latent_channels),
    }


#: Latent diffusion conditioned on a class, which cross-attention sees as one token.
LDM_CLASSES = Family(
    name="ldm-classes",
    parts={
        "classes": Place(CLASS_TABLE, "class_embedding", "cond_stage_model", "class table"),
        "vae": Place(KL_VAE, "vae", "first_stage_model", "first stage"),
        "unet": Place(UNET, "unet", "model.diffusion_model", "UNet"),
    },
    towers=(),
    process="vp",
    concat=None,
    pipeline="",
    probes=probes,
    watermark=lambda config: watermark.V1,
    presets=(),
    others=(CIN256_V2, CIN256),
)
