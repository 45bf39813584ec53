"""Stable Diffusion 2's models that take more than text, as Stability's configs/stable-diffusion/*.yaml say."""

from dataclasses import replace

from sdjax.diffusion.schedule import ScheduleConfig
from sdjax.families.sd import SD, SD21, SD21_BASE
from sdjax.networks.vae.config import VAEConfig

#: Text and a depth map, 512 px. UNet 865,913,604 parameters.
SD2_DEPTH = replace(SD21_BASE, name="sd2-depth", unet=replace(SD21_BASE.unet, in_channels=5))

#: Text and a small picture with noise of a level, which is enlarged four times. UNet 473,398,020, VAE 55,325,927.
X4_UPSCALER = replace(
    SD21,
    name="x4-upscaler",
    vae=VAEConfig(channels=(128, 256, 512), scaling=0.08333),
    unet=replace(
        SD21.unet,
        in_channels=7,
        channels=(256, 512, 512, 1024),
        attention=(False, True, True, True),
        heads=(8, 8, 8, 8),
        self_attention=(False, False, False, True),
        labels=1000,
        upcast_attention=False,
    ),
    schedule=ScheduleConfig(beta_start=0.0001, beta_end=0.02, prediction="v"),
    size=512,
)

SD_DEPTH = SD._replace(
    name="sd-depth",
    concat="depth",
    scale=9.0,
    pipeline="StableDiffusionDepth2ImgPipeline",
    presets=(),
    others=(SD2_DEPTH,),
)

SD_UPSCALE = SD._replace(
    name="sd-upscale",
    concat="lowres",
    vector="level",
    scale=9.0,
    pipeline="StableDiffusionUpscalePipeline",
    presets=(),
    others=(X4_UPSCALER,),
)
