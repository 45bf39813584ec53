"""SDXL and its relatives, configured as Stability's generative-models configs/inference/sd_xl_*.yaml are (arXiv
2307.01952)."""

from dataclasses import replace
from typing import Any

import numpy as np

from sdjax.families.config import Config
from sdjax.families.family import Family, Place, Tower
from sdjax.families.probes import Shapes, first_stage_probes, unet_probes
from sdjax.families.sd import SD, SD15
from sdjax.image import watermark
from sdjax.networks.clip.config import TextConfig
from sdjax.networks.clip.part import CLIP_TEXT_POOLED, CLIP_TEXT_XL
from sdjax.networks.unet.config import UNetConfig
from sdjax.networks.vae.part import KL_VAE_XL

#: SDXL base, 1024 px. UNet 2,567,463,684 parameters, towers 123,060,480 and 694,659,840.
SDXL = Config(
    name="sdxl",
    text=replace(SD15.text, back=1),
    text_2=TextConfig(
        width=1280, layers=32, heads=20, mlp_width=5120, activation="gelu", pad_token=0, back=1, projection=1280
    ),
    vae=replace(SD15.vae, scaling=0.13025, upcast=True),
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


#: Text and a mask. UNet 2,567,478,084 parameters.
SDXL_INPAINT = replace(SDXL, name="sdxl-inpaint", unet=replace(SDXL.unet, in_channels=9), guidance_scale=7.5)

#: The second expert, of the lowest 200 timesteps, and the second tower alone. UNet 2,259,526,660 parameters.
SDXL_REFINER = Config(
    name="sdxl-refiner",
    text=SDXL.text_2,
    vae=SDXL.vae,
    unet=UNetConfig(
        channels=(384, 768, 1536, 1536),
        attention=(False, True, True, False),
        heads=(6, 12, 24, 24),
        context_dim=1280,
        linear_projection=True,
        depth=(4, 4, 4, 4),
        vector=2560,
        added=True,
    ),
    size=1024,
    guidance_scale=5.0,
)

#: Distilled from SDXL for 1 to 4 steps of 512 px without guidance (Euler ancestral, trailing; generative-models'
#: turbo.py). No tensor of its file says so.
SDXL_TURBO = replace(SDXL, name="sdxl-turbo", size=512, guidance_scale=1.0, spacing="trailing", few_steps=4)


#: Smaller ones distilled from SDXL: segmind's SSD-1B and Vega. Their middles are one ResBlock.
SSD_1B = replace(
    SDXL,
    name="ssd-1b",
    unet=replace(SDXL.unet, depth=(1, 2, 4), depth_up=((1, 1, 1), (2, 1, 1), (4, 4, 10)), middle=False),
)
VEGA = replace(SDXL, name="segmind-vega", unet=replace(SDXL.unet, depth=(1, 1, 2), middle=False))


def tower_probe(name: str, text: TextConfig, tower: int) -> Shapes:
    return {f"conditioner.embedders.{tower}.{name}.token_embedding.weight": (text.vocab_size, text.width)}


def probes(config: Config) -> Shapes:
    """Returns name -> shape in the file of the tensors by which a single file of this config is recognised."""
    towers = tower_probe("transformer.text_model.embeddings", config.text, 0) | tower_probe("model", config.text_2, 1)
    return unet_probes(config) | first_stage_probes(config) | towers


def refiner_probes(config: Config) -> Shapes:
    return unet_probes(config) | first_stage_probes(config) | tower_probe("model", config.text, 0)


def unused(config: Config) -> dict[str, Any]:
    """Returns the tensors that the published files of SDXL hold and no computation needs: CLIP's own scale, and the
    first tower's positions."""
    towers = [config.text] if config.text_2 is None else [config.text, config.text_2]
    found: dict[str, Any] = {
        f"conditioner.embedders.{len(towers) - 1}.model.logit_scale": np.array(np.log(100.0), np.float32)
    }
    if config.text_2 is not None:
        name = "conditioner.embedders.0.transformer.text_model.embeddings.position_ids"
        found[name] = np.arange(config.text.length, dtype=np.int64)[None]
    return found


VAE = Place(KL_VAE_XL, "vae", "first_stage_model", "VAE")

SD_XL = Family(
    name="sdxl",
    parts={
        "text": Place(CLIP_TEXT_XL, "text_encoder", "conditioner.embedders.0", "first text tower"),
        "text_2": Place(CLIP_TEXT_POOLED, "text_encoder_2", "conditioner.embedders.1", "second text tower"),
        "vae": VAE,
        "unet": SD.parts["unet"],
    },
    towers=(Tower("text", "context"), Tower("text_2", "context")),
    process="vp",
    concat=None,
    pipeline="StableDiffusionXLPipeline",
    probes=probes,
    watermark=lambda config: watermark.V1,
    presets=(SDXL, SDXL_TURBO),
    others=(SSD_1B, VEGA),
    vector="sizes",
    scale=5.0,
    unused=unused,
)

SD_XL_INPAINT = SD_XL._replace(
    name="sdxl-inpaint",
    concat="mask",
    pipeline="StableDiffusionXLInpaintPipeline",
    presets=(SDXL_INPAINT,),
    others=(),
    scale=7.5,
)

#: One tower, the second of SDXL's, whose folder it keeps.
SD_XL_REFINER = SD_XL._replace(
    name="sdxl-refiner",
    parts=SD.parts
    | {"vae": VAE, "text": Place(CLIP_TEXT_POOLED, "text_encoder_2", "conditioner.embedders.0", "text tower")},
    towers=(Tower("text", "context"),),
    pipeline="StableDiffusionXLImg2ImgPipeline",
    probes=refiner_probes,
    presets=(SDXL_REFINER,),
    others=(),
)
