"""The public names of sdjax, as editors and type checkers read them. __init__.py imports each at its first use.

tests/test_public.py holds both files to the same names.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, overload

import numpy as np
from PIL.Image import Image

from sdjax import pictures as pictures
from sdjax import sampling as sampling
from sdjax.adapters.control import load_control as load_control
from sdjax.adapters.embedding import add_embedding as add_embedding
from sdjax.adapters.image_prompt import load_image_prompt as load_image_prompt
from sdjax.adapters.lora import add_lora as add_lora
from sdjax.conditioning.classes import encode_classes as encode_classes
from sdjax.conditioning.depth import encode_depth as encode_depth
from sdjax.conditioning.layouts import encode_layout as encode_layout
from sdjax.conditioning.lowres import encode_lowres as encode_lowres
from sdjax.conditioning.maps import encode_map as encode_map
from sdjax.conditioning.masks import encode_mask as encode_mask
from sdjax.conditioning.pictures import encode_picture as encode_picture
from sdjax.conditioning.text import tokenize as tokenize
from sdjax.conditioning.towers import encode_prompt as encode_prompt
from sdjax.devices.host import keep_programs as keep_programs
from sdjax.diffusion.tables import Sampler
from sdjax.diffusion.tables import samplers as samplers
from sdjax.errors import SdjaxError as SdjaxError
from sdjax.image import preprocess as preprocess
from sdjax.image import watermark as watermark
from sdjax.model.control import Control as Control
from sdjax.model.functions import decode as decode
from sdjax.model.functions import encode as encode
from sdjax.model.functions import predict as predict
from sdjax.model.functions import vae_moments as vae_moments
from sdjax.model.image_prompt import ImagePrompt as ImagePrompt
from sdjax.model.load import create as create
from sdjax.model.load import load as load
from sdjax.model.load import save as save
from sdjax.model.value import StableDiffusion as StableDiffusion
from sdjax.tasks.attention_maps import attention_maps as attention_maps
from sdjax.tasks.attention_maps import attention_pictures as attention_pictures
from sdjax.tasks.attention_maps import prompt_words as prompt_words
from sdjax.tasks.engine import Trajectory
from sdjax.tasks.program import load_program as load_program
from sdjax.tasks.program import save_program as save_program
from sdjax.tasks.safety import check_safety as check_safety
from sdjax.tasks.safety import load_safety_checker as load_safety_checker
from sdjax.tasks.stages import denoiser as denoiser
from sdjax.types import Arrays
from sdjax.types import Cond as Cond
from sdjax.weights.clip import load_clip as load_clip
from sdjax.weights.clip import save_clip as save_clip

# ---- the tasks: what they return depends on `output`; tests/test_public.py holds _Options to the table OPTIONS

_Picture = Image | Sequence[Image] | Arrays
_Mask = Image | Sequence[Image] | Arrays
_Pil = Literal["pil"]
_Array = Literal["pixels", "latents"]
_Walk = Literal["trajectory"]
_Prompt = str | Sequence[str] | Cond | None

class _Options(TypedDict, total=False):
    negative_prompt: str | Sequence[str] | Cond
    steps: int
    sampler: str | Sampler
    guidance_scale: float | Sequence[float] | Callable[[int], float] | None
    eta: float | None
    seed: int
    num_images: int
    height: int | None
    width: int | None
    latents: Any
    progress: Callable[[int, int], None] | None
    sigmas: str
    spacing: str | None
    clip_skip: int
    syntax: str
    preview: Callable[[int, list[int], list], None] | None
    preview_every: int
    finished: Callable[[list[int], Any], None] | None
    guidance_rescale: float
    guidance_interval: tuple[float, float] | None
    guidance_fn: Callable | None
    variation_seed: int
    variation_strength: float
    prompt_2: str | Sequence[str] | None
    negative_prompt_2: str | None
    original_size: tuple[int, int] | None
    crop: tuple[int, int]
    target_size: tuple[int, int] | None
    negative_original_size: tuple[int, int] | None
    negative_crop: tuple[int, int] | None
    negative_target_size: tuple[int, int] | None
    aesthetic_score: float
    negative_aesthetic_score: float
    zero_negative: bool | None
    refiner: StableDiffusion | None
    refiner_start: float
    refiner_cond: Cond | None
    refiner_negative: Cond | None
    lora_folder: str | Path | None
    lora_scale: float
    control: Control | Sequence[Control] | None
    control_image: Any
    control_scale: float | Sequence[float | Sequence[float]]
    control_interval: tuple[float, float] | Sequence[tuple[float, float]]
    control_mode: str | Sequence[str]
    image_prompt: tuple[ImagePrompt, Any] | Sequence[tuple[ImagePrompt, Any]] | None
    image_prompt_scale: float | Sequence[float]

@overload
def txt2img(
    sd: StableDiffusion, prompt: _Prompt, *, output: _Pil = ..., **options: Unpack[_Options]
) -> list[Image]: ...
@overload
def txt2img(sd: StableDiffusion, prompt: _Prompt, *, output: _Array, **options: Unpack[_Options]) -> np.ndarray: ...
@overload
def txt2img(sd: StableDiffusion, prompt: _Prompt, *, output: _Walk, **options: Unpack[_Options]) -> Trajectory: ...
@overload
def hires(
    sd: StableDiffusion,
    prompt: _Prompt,
    scale: float = 2.0,
    strength: float = 0.6,
    upscale: str = "latents",
    hires_steps: int | None = None,
    *,
    output: _Pil = ...,
    **options: Unpack[_Options],
) -> list[Image]: ...
@overload
def hires(
    sd: StableDiffusion,
    prompt: _Prompt,
    scale: float = 2.0,
    strength: float = 0.6,
    upscale: str = "latents",
    hires_steps: int | None = None,
    *,
    output: _Array,
    **options: Unpack[_Options],
) -> np.ndarray: ...
@overload
def hires(
    sd: StableDiffusion,
    prompt: _Prompt,
    scale: float = 2.0,
    strength: float = 0.6,
    upscale: str = "latents",
    hires_steps: int | None = None,
    *,
    output: _Walk,
    **options: Unpack[_Options],
) -> Trajectory: ...
@overload
def img2img(
    sd: StableDiffusion,
    prompt: _Prompt,
    image: _Picture,
    strength: float = 0.75,
    *,
    output: _Pil = ...,
    **options: Unpack[_Options],
) -> list[Image]: ...
@overload
def img2img(
    sd: StableDiffusion,
    prompt: _Prompt,
    image: _Picture,
    strength: float = 0.75,
    *,
    output: _Array,
    **options: Unpack[_Options],
) -> np.ndarray: ...
@overload
def img2img(
    sd: StableDiffusion,
    prompt: _Prompt,
    image: _Picture,
    strength: float = 0.75,
    *,
    output: _Walk,
    **options: Unpack[_Options],
) -> Trajectory: ...
@overload
def upscale(
    sd: StableDiffusion,
    prompt: _Prompt,
    pictures: _Picture,
    noise_level: int = 20,
    *,
    output: _Pil = ...,
    **options: Unpack[_Options],
) -> list[Image]: ...
@overload
def upscale(
    sd: StableDiffusion,
    prompt: _Prompt,
    pictures: _Picture,
    noise_level: int = 20,
    *,
    output: _Array,
    **options: Unpack[_Options],
) -> np.ndarray: ...
@overload
def upscale(
    sd: StableDiffusion,
    prompt: _Prompt,
    pictures: _Picture,
    noise_level: int = 20,
    *,
    output: _Walk,
    **options: Unpack[_Options],
) -> Trajectory: ...
@overload
def inpaint(
    sd: StableDiffusion,
    prompt: _Prompt,
    image: _Picture,
    mask: _Mask,
    strength: float = 1.0,
    feather: float = 0.0,
    mask_cells: str = "corner",
    *,
    output: _Pil = ...,
    **options: Unpack[_Options],
) -> list[Image]: ...
@overload
def inpaint(
    sd: StableDiffusion,
    prompt: _Prompt,
    image: _Picture,
    mask: _Mask,
    strength: float = 1.0,
    feather: float = 0.0,
    mask_cells: str = "corner",
    *,
    output: _Array,
    **options: Unpack[_Options],
) -> np.ndarray: ...
@overload
def inpaint(
    sd: StableDiffusion,
    prompt: _Prompt,
    image: _Picture,
    mask: _Mask,
    strength: float = 1.0,
    feather: float = 0.0,
    mask_cells: str = "corner",
    *,
    output: _Walk,
    **options: Unpack[_Options],
) -> Trajectory: ...
@overload
def outpaint(
    sd: StableDiffusion,
    prompt: _Prompt,
    image: _Picture,
    left: int = 0,
    right: int = 0,
    top: int = 0,
    bottom: int = 0,
    strength: float = 1.0,
    feather: float = 0.0,
    mask_cells: str = "corner",
    *,
    output: _Pil = ...,
    **options: Unpack[_Options],
) -> list[Image]: ...
@overload
def outpaint(
    sd: StableDiffusion,
    prompt: _Prompt,
    image: _Picture,
    left: int = 0,
    right: int = 0,
    top: int = 0,
    bottom: int = 0,
    strength: float = 1.0,
    feather: float = 0.0,
    mask_cells: str = "corner",
    *,
    output: _Array,
    **options: Unpack[_Options],
) -> np.ndarray: ...
@overload
def outpaint(
    sd: StableDiffusion,
    prompt: _Prompt,
    image: _Picture,
    left: int = 0,
    right: int = 0,
    top: int = 0,
    bottom: int = 0,
    strength: float = 1.0,
    feather: float = 0.0,
    mask_cells: str = "corner",
    *,
    output: _Walk,
    **options: Unpack[_Options],
) -> Trajectory: ...

__all__ = [
    "Cond",
    "Control",
    "ImagePrompt",
    "SdjaxError",
    "StableDiffusion",
    "add_embedding",
    "add_lora",
    "attention_maps",
    "attention_pictures",
    "check_safety",
    "create",
    "decode",
    "denoiser",
    "encode",
    "encode_classes",
    "encode_depth",
    "encode_layout",
    "encode_lowres",
    "encode_map",
    "encode_mask",
    "encode_picture",
    "encode_prompt",
    "hires",
    "img2img",
    "inpaint",
    "keep_programs",
    "load",
    "load_clip",
    "load_control",
    "load_image_prompt",
    "load_program",
    "load_safety_checker",
    "outpaint",
    "pictures",
    "predict",
    "preprocess",
    "prompt_words",
    "samplers",
    "sampling",
    "save",
    "save_clip",
    "save_program",
    "tokenize",
    "txt2img",
    "upscale",
    "vae_moments",
    "watermark",
]
