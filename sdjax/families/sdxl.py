"""SDXL, configured as Stability's generative-models configs/inference/sd_xl_base.yaml is (arXiv 2307.01952)."""

from dataclasses import replace

from sdjax.families.config import Config
from sdjax.families.family import Family, Place, Tower
from sdjax.families.probes import Shapes, first_stage_probes, unet_probes
from sdjax.families.sd import SD, SD15
from sdjax.image import watermark
from sdjax.networks.clip.config import TextConfig
from sdjax.networks.clip.part import CLIP_TEXT_POOLED, CLIP_TEXT_XL
from sdjax.networks.unet.config import UNetConfig

#: SDXL base, 1024 px. UNet 2,567,463,684 parameters, towers 123,060,480 and 694,659,840.
SDXL = Config(
    name="sdxl",
    text=replace(SD15.text, back=1),
    text_2=TextConfig(
        width=1280, layers=32, heads=20, mlp_width=5120, activation="gelu", pad_token=0, back=1, projection=1280
    ),
    vae=replace(SD15.vae, scaling=0.13025),
    unet=UNetConfig(
        channels=(320, 640, 1280),
        attention=(False, True, True),
        heads=(5, 10, 20),
        context_dim=2048,
        linear_projection=True,
        depth=(1, 2, 10),
        vector=2816,
        added=True,
    ),
    size=1024,
    guidance_scale=5.0,
    zero_negative=True,
)


def probes(config: Config) -> Shapes:
    """Returns name -> shape in the file of the tensors by which a single file of this config is recognised."""
    first, second = config.text, config.text_2
    names = "conditioner.embedders.0.transformer.text_model.embeddings", "conditioner.embedders.1.model"
    towers = {
        f"{names[0]}.token_embedding.weight": (first.vocab_size, first.width),
        f"{names[1]}.token_embedding.weight": (second.vocab_size, second.width),
    }
    return unet_probes(config) | first_stage_probes(config) | towers


SD_XL = Family(
    name="sdxl",
    parts={
        "text": Place(CLIP_TEXT_XL, "text_encoder", "conditioner.embedders.0", "first text tower"),
        "text_2": Place(CLIP_TEXT_POOLED, "text_encoder_2", "conditioner.embedders.1", "second text tower"),
        "vae": SD.parts["vae"],
        "unet": SD.parts["unet"],
    },
    towers=(Tower("text", "context"), Tower("text_2", "context")),
    process="vp",
    concat=None,
    pipeline="StableDiffusionXLPipeline",
    probes=probes,
    watermark=lambda config: watermark.V1,
    presets=(SDXL,),
    vector="sizes",
    scale=5.0,
)
