"""Stable Diffusion 1.x and 2.x: the networks that they are made of, and the published configurations.

A config holds everything that the parameters' shapes and the computation depend on, and nothing about devices or
dtypes. The comments give the presets' parameter counts, which tests/families/test_sd.py checks.
"""

from dataclasses import replace

from sdjax.diffusion.schedule import ScheduleConfig
from sdjax.families.config import Config
from sdjax.families.family import Family, Place, Tower
from sdjax.families.probes import all_probes
from sdjax.image import watermark
from sdjax.networks.clip.config import TextConfig, VisionConfig
from sdjax.networks.clip.part import CLIP_TEXT
from sdjax.networks.maps.part import MAP_RESCALER
from sdjax.networks.unet.config import UNetConfig
from sdjax.networks.unet.part import UNET
from sdjax.networks.vae.config import VAEConfig
from sdjax.networks.vae.part import KL_VAE

#: SD 1.x. UNet 859,520,964, VAE 83,653,863, text 123,060,480 parameters.
SD15 = Config()

#: SD 1.5 inpainting, 9 input channels. UNet 859,535,364 parameters.
SD15_INPAINT = replace(SD15, name="sd15-inpaint", unet=replace(SD15.unet, in_channels=9))

#: SD 2.1 base, 512 px, epsilon. UNet 865,910,724, text 340,387,840 parameters (23 of 24 layers).
SD21_BASE = Config(
    name="sd21-base",
    text=TextConfig(width=1024, layers=23, heads=16, mlp_width=4096, activation="gelu", pad_token=0),
    unet=UNetConfig(heads=(5, 10, 20, 20), context_dim=1024, linear_projection=True, upcast_attention=True),
    guidance_scale=9.0,
)

#: SD 2.1, 768 px, v-prediction.
SD21 = replace(SD21_BASE, name="sd21", size=768, schedule=ScheduleConfig(prediction="v"))

#: SD 2.1 distilled for 1 to 4 steps of 512 px without guidance: Euler ancestral, trailing (Stability's turbo.py).
SD_TURBO = replace(SD21_BASE, name="sd-turbo", guidance_scale=1.0, spacing="trailing", few_steps=4)

#: The small model that comes with the package, 128 px, trained on emoji: see sdjax/pretrained/emoji/README.md.
EMOJI = Config(
    name="emoji",
    text=TextConfig(
        vocab_size=4000,
        length=32,
        width=192,
        layers=4,
        heads=6,
        mlp_width=768,
        bos_token=3998,
        eos_token=3999,
        pad_token=3999,
    ),
    vae=VAEConfig(channels=(16, 32, 64, 128), blocks=1, groups=8, scaling=0.39109),
    unet=UNetConfig(
        channels=(48, 96, 160), blocks=1, attention=(False, True, True), heads=(2, 3, 5), context_dim=192, groups=16
    ),
    schedule=ScheduleConfig(prediction="v"),
    size=128,
    guidance_scale=4.0,
)

#: The small model of earlier packages, 64 px, whose files are still read.
EMOJI_64 = replace(EMOJI, name="emoji-64", vae=VAEConfig((24, 48, 64), 1, groups=8, scaling=0.37916), size=64)

#: The image tower that was trained together with EMOJI's text tower. It is used to rank captions and to evaluate.
EMOJI_VISION = VisionConfig(size=64, patch=8, width=128, layers=4, heads=4, mlp_width=512, projection=192)


def probes(config: Config) -> dict[str, tuple[int, ...]]:
    """Returns name -> shape in the file of the tensors by which a single file of this config is recognised."""
    text = config.text
    tower = "model." if text.activation == "gelu" else "transformer.text_model.embeddings."
    return all_probes(config) | {f"cond_stage_model.{tower}token_embedding.weight": (text.vocab_size, text.width)}


def watermark_of(config: Config) -> bytes:
    """Returns what CompVis' script for SD 1 and Stability's for SD 2, whose text tower is OpenCLIP's, write."""
    return watermark.V2 if config.text.activation == "gelu" else watermark.V1


SD = Family(
    name="sd",
    parts={
        "text": Place(CLIP_TEXT, "text_encoder", "cond_stage_model", "text tower"),
        "vae": Place(KL_VAE, "vae", "first_stage_model", "VAE"),
        "unet": Place(UNET, "unet", "model.diffusion_model", "UNet"),
    },
    towers=(Tower("text", "context"),),
    process="vp",
    concat=None,
    pipeline="StableDiffusionPipeline",
    probes=probes,
    watermark=watermark_of,
    presets=(SD15, SD21_BASE, SD21, SD_TURBO, EMOJI),
    others=(EMOJI_64,),
)

#: Inpainting models: their UNet takes a mask and the masked picture's latents in addition to x.
SD_INPAINT = SD._replace(
    name="sd-inpaint",
    concat="mask",
    pipeline="StableDiffusionInpaintPipeline",
    presets=(SD15_INPAINT,),
    others=(replace(SD21_BASE, name="sd2-inpaint", unet=replace(SD21_BASE.unet, in_channels=9)),),
)

#: A text model that was trained on to follow semantic maps, which stand beside x.
SD_MAP = SD._replace(
    name="sd-map",
    parts=SD.parts | {"map": Place(MAP_RESCALER, "map_rescaler", "cond_stage_model", "rescaler of maps")},
    concat="map",
    pipeline="StableDiffusionMapPipeline",
    presets=(),
    others=(),
)
