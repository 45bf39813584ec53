"""The public names of sdjax, as editors and type checkers read them. __init__.py imports each at its first use.

tests/test_public.py holds both files to the same names.
"""

from sdjax import pictures as pictures
from sdjax import sampling as sampling
from sdjax.adapters.embedding import add_embedding as add_embedding
from sdjax.conditioning.text import encode_prompt as encode_prompt
from sdjax.conditioning.text import tokenize as tokenize
from sdjax.devices.host import keep_programs as keep_programs
from sdjax.diffusion.tables import samplers as samplers
from sdjax.errors import SdjaxError as SdjaxError
from sdjax.image import watermark as watermark
from sdjax.model.functions import decode as decode
from sdjax.model.functions import encode as encode
from sdjax.model.functions import predict as predict
from sdjax.model.functions import vae_moments as vae_moments
from sdjax.model.load import create as create
from sdjax.model.load import load as load
from sdjax.model.load import save as save
from sdjax.model.value import StableDiffusion as StableDiffusion
from sdjax.tasks.attention_maps import attention_maps as attention_maps
from sdjax.tasks.attention_maps import attention_pictures as attention_pictures
from sdjax.tasks.attention_maps import prompt_words as prompt_words
from sdjax.tasks.image_to_image import img2img as img2img
from sdjax.tasks.image_to_image import inpaint as inpaint
from sdjax.tasks.image_to_image import outpaint as outpaint
from sdjax.tasks.program import load_program as load_program
from sdjax.tasks.program import save_program as save_program
from sdjax.tasks.safety import check_safety as check_safety
from sdjax.tasks.safety import load_safety_checker as load_safety_checker
from sdjax.tasks.stages import denoiser as denoiser
from sdjax.tasks.text_to_image import hires as hires
from sdjax.tasks.text_to_image import txt2img as txt2img
from sdjax.types import Cond as Cond
from sdjax.weights.clip import load_clip as load_clip
from sdjax.weights.clip import save_clip as save_clip

__all__ = [
    "Cond",
    "SdjaxError",
    "StableDiffusion",
    "add_embedding",
    "attention_maps",
    "attention_pictures",
    "check_safety",
    "create",
    "decode",
    "denoiser",
    "encode",
    "encode_prompt",
    "hires",
    "img2img",
    "inpaint",
    "keep_programs",
    "load",
    "load_clip",
    "load_program",
    "load_safety_checker",
    "outpaint",
    "pictures",
    "predict",
    "prompt_words",
    "samplers",
    "sampling",
    "save",
    "save_clip",
    "save_program",
    "tokenize",
    "txt2img",
    "vae_moments",
    "watermark",
]
