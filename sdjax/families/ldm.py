"""The models of CompVis/latent-diffusion (arXiv 2112.10752), configured as its models/ldm/*/config.yaml are.

The comments give parameter counts: UNet, first stage, what makes the condition.
"""

from dataclasses import replace

from sdjax.diffusion.schedule import ScheduleConfig
from sdjax.families.config import Config
from sdjax.families.family import Family, Mask, Place, Tower
from sdjax.families.probes import all_probes
from sdjax.image import watermark
from sdjax.networks.bert.config import BertTextConfig, LayoutConfig
from sdjax.networks.bert.part import BERT_TEXT, LAYOUT_TOWER
from sdjax.networks.labels.network import ClassConfig
from sdjax.networks.labels.part import CLASS_TABLE
from sdjax.networks.maps.network import MapConfig
from sdjax.networks.maps.part import MAP_RESCALER
from sdjax.networks.unet.config import UNetConfig
from sdjax.networks.unet.part import UNET
from sdjax.networks.vae.config import VAEConfig
from sdjax.networks.vae.part import KL_VAE


def unet(width: int, multipliers: tuple[int, ...], factors: tuple[int, ...], heads: int | str, **fields) -> UNetConfig:
    """Returns the UNet of a yaml's model_channels, channel_mult and attention_resolutions, which are factors.

    heads: num_heads; "32": as many as are 32 wide, num_head_channels.
    """
    channels = tuple(width * multiplier for multiplier in multipliers)
    return UNetConfig(
        channels=channels,
        attention=tuple(2**level in factors for level in range(len(channels))),
        heads=tuple(wide // int(heads) if isinstance(heads, str) else heads for wide in channels),
        **{"in_channels": 3, "out_channels": 3} | fields,
    )


VQ_F4 = VAEConfig(channels=(128, 256, 512), latent_channels=3, scaling=1.0, codes=8192)
SCHEDULE = ScheduleConfig(beta_start=0.0015, beta_end=0.0195)

#: ImageNet's classes at 256 px; class 1000 is the null. 400,920,579; 55,322,782; 512,512.
CIN256_V2 = Config(
    name="cin256-v2",
    text=None,
    vae=VQ_F4,
    unet=unet(192, (1, 2, 3, 5), (8, 4, 2), 1, context_dim=512),
    schedule=SCHEDULE,
    class_table=ClassConfig(),
    size=256,
    guidance_scale=3.0,
)

#: The older model of ImageNet, without a null class. 394,984,196; 67,717,295; 512,000.
CIN256 = replace(
    CIN256_V2,
    name="cin256",
    vae=VAEConfig(
        channels=(128, 256, 256, 512),
        latent_channels=4,
        scaling=1.0,
        codes=16384,
        attention=(False, False, False, True),
    ),
    unet=unet(256, (1, 2, 4), (4, 2, 1), "32", context_dim=512, in_channels=4, out_channels=4),
    class_table=ClassConfig(classes=1000, null=False),
    guidance_scale=1.0,
)

#: Boxes of Open Images' things. 246,277,379; 55,322,782; 58,858,496.
LAYOUT2IMG = replace(
    CIN256_V2,
    name="layout2img-openimages256",
    unet=unet(128, (1, 2, 3, 4), (8, 4, 2), "32", context_dim=512, depth=(3, 3, 3, 3)),
    schedule=replace(SCHEDULE, beta_end=0.0205),
    class_table=None,
    layout=LayoutConfig(),
    guidance_scale=1.0,
)

#: Semantic maps of landscapes. 215,229,315; 55,322,782; 546.
SEMANTIC256 = replace(
    LAYOUT2IMG,
    name="semantic-synthesis256",
    unet=unet(128, (1, 4, 8), (32, 16, 8), 8, cross=False, in_channels=6),
    layout=None,
    map=MapConfig(),
)
SEMANTIC512 = replace(SEMANTIC256, name="semantic-synthesis512", size=512)

#: Faces, and bedrooms: conditioned on nothing. 274,056,163; 55,322,782.
CELEBA256 = replace(
    CIN256_V2,
    name="celeba256",
    unet=unet(224, (1, 2, 3, 4), (8, 4, 2), "32", cross=False),
    class_table=None,
    guidance_scale=1.0,
)
FFHQ256, BEDS256 = replace(CELEBA256, name="ffhq256"), replace(CELEBA256, name="lsun-beds256")

#: Churches; its file holds the scaling of the latents. 294,966,916; 83,653,863.
CHURCHES256 = replace(
    CELEBA256,
    name="lsun-churches256",
    vae=VAEConfig(scaling=0.18215),
    unet=unet(
        *(192, (1, 2, 2, 4, 4), (1, 2, 4, 8), 8),
        cross=False,
        in_channels=4,
        out_channels=4,
        updown=True,
        scale_shift=True,
    ),
    schedule=replace(SCHEDULE, beta_end=0.0155),
)

#: Text, as BERT's word pieces. 872,300,484; 83,653,863; 581,994,042.
TEXT2IMG_LARGE = replace(
    CIN256_V2,
    name="text2img-large",
    text=BertTextConfig(),
    vae=VAEConfig(),
    unet=unet(320, (1, 2, 4, 4), (4, 2, 1), 8, context_dim=1280, in_channels=4, out_channels=4),
    schedule=ScheduleConfig(),
    class_table=None,
    guidance_scale=5.0,
)

#: The same, smaller. 403,623,939; 55,322,782; 186,154,682.
TEXT2IMG256 = replace(
    CIN256_V2,
    name="text2img256",
    text=BertTextConfig(width=640),
    unet=unet(192, (1, 2, 3, 5), (8, 4, 2), "32", context_dim=640),
    class_table=None,
    guidance_scale=5.0,
)

#: A mask and the rest of the picture. 387,245,827; 53,219,486.
INPAINTING_BIG = replace(
    CELEBA256,
    name="inpainting-big",
    vae=replace(VQ_F4, middle_attention=False),
    unet=unet(256, (1, 2, 3, 4), (8, 4, 2), 8, cross=False, in_channels=7, updown=True),
    schedule=replace(SCHEDULE, beta_end=0.0205),
    size=512,
)

#: A small picture, which is enlarged four times. 113,622,563; 55,322,782.
BSR_SR = replace(
    CELEBA256,
    name="bsr-sr",
    unet=unet(160, (1, 2, 2, 4), (16, 8), "32", cross=False, in_channels=6),
    schedule=replace(SCHEDULE, beta_end=0.0155),
    size=512,
)

#: Latent diffusion conditioned on nothing.
LDM = Family(
    name="ldm",
    parts={
        "vae": Place(KL_VAE, "vqvae", "first_stage_model", "first stage"),
        "unet": Place(UNET, "unet", "model.diffusion_model", "UNet"),
    },
    towers=(),
    process="vp",
    concat=None,
    pipeline="LDMPipeline",
    probes=all_probes,
    watermark=lambda config: watermark.V1,
    presets=(),
    others=(CELEBA256, FFHQ256, BEDS256, CHURCHES256),
    ema=True,
)

#: Conditioned on a class, which cross-attention sees as one token. diffusers has no folder for it and the next two.
LDM_CLASSES = LDM._replace(
    name="ldm-classes",
    parts=LDM.parts | {"class_table": Place(CLASS_TABLE, "class_table", "cond_stage_model", "class table")},
    pipeline="LDMClassPipeline",
    others=(CIN256_V2, CIN256),
)

#: Conditioned on a layout, which cross-attention sees as tokens.
LDM_LAYOUT = LDM._replace(
    name="ldm-layout",
    parts=LDM.parts | {"layout": Place(LAYOUT_TOWER, "layout_tower", "cond_stage_model", "encoder of layouts")},
    pipeline="LDMLayoutPipeline",
    others=(LAYOUT2IMG,),
)

#: Conditioned on a semantic map, which stands beside x.
LDM_MAP = LDM._replace(
    name="ldm-map",
    parts=LDM.parts | {"map": Place(MAP_RESCALER, "map_rescaler", "cond_stage_model", "rescaler of maps")},
    concat="map",
    pipeline="LDMMapPipeline",
    others=(SEMANTIC256, SEMANTIC512),
)

#: Conditioned on text.
LDM_TEXT = LDM._replace(
    name="ldm-text",
    parts=LDM.parts | {"text": Place(BERT_TEXT, "bert", "cond_stage_model", "text encoder")},
    towers=(Tower("text", "context"),),
    pipeline="LDMTextToImagePipeline",
    scale=5.0,
    others=(TEXT2IMG_LARGE, TEXT2IMG256),
)

#: Conditioned on a mask and the rest of the picture, in LDM's own order and range.
LDM_INPAINT = LDM._replace(
    name="ldm-inpaint",
    concat="mask",
    mask=Mask(hole=-1.0, kept=-1.0, first=False),
    pipeline="LDMInpaintPipeline",
    others=(INPAINTING_BIG,),
)

#: Conditioned on a small picture, which stands beside x as it is.
LDM_LOWRES = LDM._replace(name="ldm-lowres", concat="lowres", pipeline="LDMSuperResolutionPipeline", others=(BSR_SR,))
