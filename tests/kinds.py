"""Tiny models of every kind of condition, with random weights."""

from dataclasses import replace
from functools import cache

import sdjax
from sdjax.families import sdxl
from sdjax.families.table import family_of
from sdjax.networks.bert.config import LayoutConfig
from sdjax.networks.clip.config import NormalizerConfig, VisionConfig
from sdjax.networks.labels.network import ClassConfig
from sdjax.networks.maps.network import MapConfig
from tests.narrow import NARROW, random_params
from tests.tiny import CONFIG, Letters

LATENTS = replace(CONFIG.vae, latent_channels=3, codes=11, scaling=1.0)
UNET = replace(CONFIG.unet, in_channels=3, out_channels=3)
PLAIN = replace(
    CONFIG,
    name="tiny-nothing",
    text=None,
    vae=LATENTS,
    unet=replace(UNET, cross=False, context_dim=768),
    guidance_scale=1.0,
)
CLASSES = replace(PLAIN, name="tiny-classes", unet=UNET, class_table=ClassConfig(6, 16), guidance_scale=3.0)
LAYOUT = replace(
    PLAIN,
    name="tiny-layout",
    unet=UNET,
    layout=LayoutConfig(vocab_size=26, length=11, width=16, layers=1, heads=2, head_width=4, labels=4, null=True),
    guidance_scale=3.0,
)
MAP = replace(PLAIN, name="tiny-map", unet=replace(PLAIN.unet, in_channels=6), map=MapConfig(5, 3, 2))
TEXT_MAP = replace(CONFIG, name="tiny-text-map", unet=replace(CONFIG.unet, in_channels=7), map=MapConfig(5, 3, 2))

DEPTH = replace(CONFIG, name="tiny-depth", unet=replace(CONFIG.unet, in_channels=5), guidance_scale=9.0)
X4 = replace(
    CONFIG,
    name="tiny-x4",
    unet=replace(CONFIG.unet, in_channels=7, labels=400, self_attention=(False, False)),
    guidance_scale=9.0,
)
SR = replace(PLAIN, name="tiny-sr", unet=replace(PLAIN.unet, in_channels=6))
INPAINT = replace(PLAIN, name="tiny-inpaint", unet=replace(PLAIN.unet, in_channels=7))
IMAGE = VisionConfig(size=16, patch=4, width=8, layers=1, heads=2, mlp_width=16, projection=6)
UNCLIP = replace(
    CONFIG,
    name="tiny-unclip",
    unet=replace(CONFIG.unet, vector=12),
    image=IMAGE,
    normalizer=NormalizerConfig(6),
    guidance_scale=10.0,
)
VARIATIONS = replace(CONFIG, name="tiny-variations", text=None, unet=replace(CONFIG.unet, context_dim=6), image=IMAGE)
BESIDE = {config.name.removeprefix("tiny-"): config for config in (DEPTH, X4, SR, INPAINT, UNCLIP, VARIATIONS)}

KINDS = {config.name.removeprefix("tiny-"): config for config in (PLAIN, CLASSES, LAYOUT, MAP, TEXT_MAP)}


TEXT = replace(NARROW.text, back=1)
XL = replace(
    sdxl.SDXL,
    name="tiny-xl",
    text=TEXT,
    text_2=replace(TEXT, width=16, heads=2, mlp_width=32, activation="gelu", pad_token=0, projection=20),
    vae=replace(NARROW.vae, channels=(8,), blocks=1),
    unet=replace(
        sdxl.SDXL.unet,
        channels=(8,),
        blocks=1,
        attention=(True,),
        heads=(2,),
        depth=(1,),
        groups=4,
        context_dim=24 + 16,
        vector=20 + 6 * 256,
    ),
    size=16,
)


@cache
def model(config=CLASSES) -> sdjax.StableDiffusion:
    parts = {part: random_params(getattr(config, part)) for part in family_of(config).parts}
    return sdjax.StableDiffusion(config, parts, Letters() if config.text else None)


SECOND = replace(CONFIG.text, width=12, heads=2, mlp_width=20, activation="gelu", back=1, layers=2, projection=10)
SDXL = replace(
    CONFIG,
    name="tiny-sdxl",
    text=replace(CONFIG.text, back=1, layers=2),
    text_2=SECOND,
    unet=replace(CONFIG.unet, context_dim=28, vector=10 + 6 * 256, added=True),
    schedule=replace(CONFIG.schedule, prediction="epsilon"),
    guidance_scale=5.0,
    zero_negative=True,
)
REFINER = replace(
    SDXL,
    name="tiny-refiner",
    text=SECOND,
    text_2=None,
    unet=replace(SDXL.unet, context_dim=12, vector=10 + 5 * 256),
    zero_negative=False,
)
SDXL_INPAINT = replace(SDXL, name="tiny-sdxl-inpaint", unet=replace(SDXL.unet, in_channels=9))
LCM = replace(CONFIG, name="tiny-lcm", unet=replace(CONFIG.unet, guidance=16), guidance_scale=8.5, few_steps=8)
LCM_XL = replace(SDXL, name="tiny-lcm-xl", unet=replace(SDXL.unet, guidance=16), guidance_scale=8.5, few_steps=8)
