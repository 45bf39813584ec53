"""Stable Diffusion 2's models that take more than text, as Stability's configs/stable-diffusion/*.yaml say."""

from dataclasses import replace

from sdjax.diffusion.schedule import ScheduleConfig
from sdjax.families.family import Place
from sdjax.families.probes import all_probes
from sdjax.families.sd import SD, SD15, SD21, SD21_BASE
from sdjax.image import watermark
from sdjax.networks.clip.config import NormalizerConfig, VisionConfig
from sdjax.networks.clip.part import CLIP_IMAGE, NORMALIZER
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

#: Text and a picture's embedding by OpenCLIP's ViT-H, with noise, 768 px. UNet 870,173,124 parameters.
SD21_UNCLIP_H = replace(
    SD21,
    name="sd21-unclip-h",
    unet=replace(SD21.unet, vector=2048),
    image=VisionConfig(width=1280, layers=32, mlp_width=5120, activation="gelu", projection=1024),
    normalizer=NormalizerConfig(1024),
    guidance_scale=10.0,
)

#: The same by OpenAI's ViT-L. UNet 869,517,764 parameters.
SD21_UNCLIP_L = replace(
    SD21_UNCLIP_H,
    name="sd21-unclip-l",
    unet=replace(SD21.unet, vector=1536),
    image=VisionConfig(),
    normalizer=NormalizerConfig(768),
)

#: A picture's embedding by OpenAI's ViT-L in place of a text. UNet 859,520,964 parameters.
SD_IMAGE_VARIATIONS = replace(SD15, name="sd-image-variations", text=None, image=VisionConfig())

#: The noise schedule of the x4 upscaler's small pictures, and the highest level that it was trained on.
LEVELS, MOST_LEVEL = ScheduleConfig(beta_start=0.0001, beta_end=0.02), 350

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

SD_UNCLIP = SD._replace(
    name="sd-unclip",
    parts=SD.parts
    | {
        "image": Place(CLIP_IMAGE, "image_encoder", "embedder", "image tower"),
        "normalizer": Place(NORMALIZER, "image_normalizer", "noise_augmentor", "statistics of embeddings"),
    },
    vector="picture",
    pipeline="StableUnCLIPImg2ImgPipeline",
    scale=10.0,
    presets=(),
    others=(SD21_UNCLIP_H, SD21_UNCLIP_L),
)

#: The same without an image tower: its embeddings come from a prior, which is not read.
SD_UNCLIP_PRIOR = SD_UNCLIP._replace(
    name="sd-unclip-prior",
    parts={part: place for part, place in SD_UNCLIP.parts.items() if part != "image"},
    pipeline="StableUnCLIPPipeline",
    others=(),
)

SD_VARIATIONS = SD._replace(
    name="sd-variations",
    parts={part: place for part, place in SD.parts.items() if part != "text"}
    | {"image": Place(CLIP_IMAGE, "image_encoder", "cond_stage_model", "image tower")},
    towers=(),
    pipeline="StableDiffusionImageVariationPipeline",
    probes=all_probes,
    watermark=lambda config: watermark.V1,
    presets=(),
    others=(SD_IMAGE_VARIATIONS,),
)
