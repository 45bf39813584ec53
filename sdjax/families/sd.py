"""What a Stable Diffusion is made of: one frozen, hashable dataclass a module, and the presets.

A config says everything that the parameters' shapes and the computation depend on, and nothing about
devices, dtypes or files. Presets carry what they cost: parameter counts are pinned in tests/test_config.py.
"""

from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class TextConfig:
    """A CLIP text tower (arXiv 2103.00020): causal pre-LN transformer over BPE tokens."""

    vocab_size: int = 49408
    length: int = 77  # tokens a prompt is padded to
    width: int = 768
    layers: int = 12  # layers that are run; OpenCLIP ViT-H has 24 and SD 2 runs 23
    heads: int = 12
    mlp_width: int = 3072
    activation: str = "quick_gelu"  # or "gelu", the exact one
    bos_token: int = 49406
    eos_token: int = 49407
    pad_token: int = 49407


@dataclass(frozen=True)
class VisionConfig:
    """A CLIP image tower (ViT, arXiv 2103.00020); `projection` is the width of the shared space."""

    size: int = 224  # pixels a side
    patch: int = 14
    width: int = 1024
    layers: int = 24
    heads: int = 16
    mlp_width: int = 4096
    activation: str = "quick_gelu"
    projection: int = 768


@dataclass(frozen=True)
class VAEConfig:
    """AutoencoderKL (arXiv 2112.10752): f = 2 ** (len(channels) - 1) pixels a latent side."""

    channels: tuple[int, ...] = (128, 256, 512, 512)
    blocks: int = 2  # ResBlocks a level in the encoder; the decoder has one more
    latent_channels: int = 4
    groups: int = 32
    scaling: float = 0.18215  # latents = scaling * posterior sample

    @property
    def factor(self) -> int:
        return 2 ** (len(self.channels) - 1)


@dataclass(frozen=True)
class UNetConfig:
    """The denoising UNet: ResBlocks with time embedding, spatial transformers with cross-attention."""

    in_channels: int = 4  # 9 for inpainting: latent, mask, masked image's latent
    out_channels: int = 4
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    blocks: int = 2  # ResBlocks a level on the way down; one more on the way up
    attention: tuple[bool, ...] = (True, True, True, False)  # a transformer after each ResBlock of the level?
    heads: tuple[int, ...] = (8, 8, 8, 8)  # heads a level; the middle block uses the last level's
    context_dim: int = 768
    groups: int = 32
    linear_projection: bool = False  # files hold proj_in / proj_out as Linear (v2) or 1x1 conv (v1)
    upcast_attention: bool = False  # q k^T in float32 whatever the dtype (v2.1 overflows float16)

    @property
    def factor(self) -> int:
        """Latent sides must be multiples of this."""
        return 2 ** (len(self.channels) - 1)


@dataclass(frozen=True)
class ScheduleConfig:
    """The forward process and how samplers walk it back by default."""

    timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    prediction: str = "epsilon"  # or "v", arXiv 2202.00512, or "x0"
    zero_terminal_snr: bool = False  # the last timestep is pure noise (arXiv 2305.08891); needs prediction "v"


@dataclass(frozen=True)
class Config:
    """A whole model. `size` is the picture side in pixels that it was trained at."""

    name: str = "sd15"
    text: TextConfig = field(default_factory=TextConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    size: int = 512
    guidance_scale: float = field(default=7.5, compare=False)  # as published; what guidance_scale=None means

    @property
    def multiple(self) -> int:
        """A picture's sides are multiples of so many pixels."""
        return self.vae.factor * self.unet.factor


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

#: The bundled small model, 64 px, trained by train/ on emoji: see sdjax/pretrained/emoji/README.md.
EMOJI = Config(
    name="emoji",
    text=TextConfig(vocab_size=4000, length=32, width=192, layers=4, heads=6, mlp_width=768,
                    bos_token=3998, eos_token=3999, pad_token=3999),
    vae=VAEConfig(channels=(24, 48, 64), blocks=1, groups=8, scaling=0.37916),
    unet=UNetConfig(channels=(48, 96, 160), blocks=1, attention=(False, True, True), heads=(2, 3, 5),
                    context_dim=192, groups=16),
    schedule=ScheduleConfig(prediction="v"),
    size=64,
    guidance_scale=4.0,
)

#: The image tower that was trained beside EMOJI's text tower; used to rank captions and to evaluate.
EMOJI_VISION = VisionConfig(size=64, patch=8, width=128, layers=4, heads=4, mlp_width=512, projection=192)

DTYPES = ("float32", "bfloat16", "float16")  # of the computation

PRESETS = {config.name: config for config in (SD15, SD15_INPAINT, SD21_BASE, SD21, EMOJI)}

#: By the names that training scripts' --model takes: SD15, SD21 ... SD15_INPAINT's UNet is for sampling only.
NAMED = {name.upper().replace("-", "_"): config for name, config in PRESETS.items()}
