"""A whole model as one value, and the pure functions over it: load, save, encode, predict, decode.

Two layers. The functions that take `sd` are the public ones: they check arguments. Below them `text_states`,
`unet_output`, `vae_posterior` and `vae_pixels` take parameters and a config; they are compiled once per shape, config
and dtype, and may be called inside other jitted functions.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.errors import SdjaxError
from sdjax.families.sd import DTYPES, NAMED, Config, TextConfig, UNetConfig, VAEConfig
from sdjax.files import writing
from sdjax.networks.clip.network import TextTower, pool_text
from sdjax.networks.unet.network import KeysValues, TimeShifts, UNet, keys_values
from sdjax.networks.vae.network import VAE
from sdjax.nn.layers import precise
from sdjax.nn.tiles import in_tiles
from sdjax.text import prompt
from sdjax.text import tokenizer as text
from sdjax.types import Array, Cond, Params
from sdjax.weights.convert import cast_params
from sdjax.weights.folder import read_folder, write_folder
from sdjax.weights.hub import fetch_folder, is_hub_id
from sdjax.weights.single import bundled_tokenizer, known_prediction, log, read_single, write_single

BUNDLED = ("emoji",)
FLOAT32 = jnp.dtype("float32")

#: the VAE's tiles, in latents: their side, by how much two overlap at least, and the positions up to which a picture
#: goes through in one piece (1024 x 1024 pixels at a factor of 8)
TILE, OVERLAP, UNTILED = 96, 16, 128 * 128


@dataclass(frozen=True, eq=False)
class StableDiffusion:
    """config (hashable), params {"text", "unet", "vae"} in the dtype they were stored in, tokenizer (or None), and the
    dtype of the computation; norms, softmax and the time embedding are always float32. embeddings: words of prompts
    and the vectors [n, D] that stand for them, see `sdjax.add_embedding`."""

    config: Config
    params: Params = field(repr=False)
    tokenizer: Any = field(repr=False)
    dtype: jnp.dtype = FLOAT32
    embeddings: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)


# ---- pure functions of parameters


@partial(jax.jit, static_argnames=("config", "dtype"))
def text_states(params: Params, ids: Array, config: TextConfig, dtype=FLOAT32, vectors: Array | None = None) -> Array:
    """Text parameters, int32 ids [B, L] -> float32 states [B, L, D] after the final LayerNorm. With fewer
    config.layers than the parameters have, the last ones are skipped. vectors [N, D]: see TextTower."""
    with precise(dtype):
        return TextTower(config, dtype).apply({"params": params}, ids, vectors)


def text_context(params: Params, tokens: prompt.Tokens, config: TextConfig, dtype=FLOAT32,
                 vectors: Array | None = None) -> Cond:
    """Text parameters, B prompts of P parts and K chunks -> Cond: the chunks' states one behind the other.

    Not one jitted function but two: what `prompt.emphasise` leaves alone is the tower's output to the bit.
    """
    rows = lambda a: a.reshape(-1, config.length)
    states = prompt.emphasise(text_states(params, rows(tokens.ids), config, dtype, vectors), rows(tokens.weights))
    b, p, k, length = tokens.ids.shape
    if p == 1:
        return Cond(states.reshape(b, k * length, -1))
    return Cond(states.reshape(b, p, k * length, -1), tokens.mix)


@partial(jax.jit, static_argnames="dtype")
def context_keys(params: Params, context: Array, dtype=FLOAT32) -> KeysValues:
    """UNet parameters, context [..., L, D] -> a context for `unet_output` with its share of the work done."""
    with precise(dtype):
        return keys_values(params, context, dtype)


@partial(jax.jit, static_argnames=("config", "dtype"))
def unet_output(params: Params, x: Array, t: Array | TimeShifts, context: Array | KeysValues, config: UNetConfig,
                dtype=FLOAT32) -> Array:
    """UNet parameters, x [B, h, w, C], t [B] or its shifts, context [B, L, D] or its `context_keys` -> float32
    [B, h, w, 4], the raw output."""
    with precise(dtype):
        return UNet(config, dtype).apply({"params": params}, x, t, context)


@partial(jax.jit, static_argnames=("config", "dtype"))
def vae_posterior(params: Params, pixels: Array, config: VAEConfig, dtype=FLOAT32) -> tuple[Array, Array]:
    """VAE parameters, pixels [B, H, W, 3] -> mean and log variance, unscaled float32 [B, h, w, 4] each."""
    def encode(pixels: Array) -> Array:
        return jnp.concatenate(VAE(config, dtype).apply({"params": params}, pixels, method="encode"), axis=-1)

    f = config.factor
    with precise(dtype):
        return tuple(jnp.split(in_tiles(encode, pixels, f * TILE, f * OVERLAP, f, f * f * UNTILED), 2, axis=-1))


@partial(jax.jit, static_argnames=("config", "dtype"))
def vae_pixels(params: Params, latents: Array, config: VAEConfig, dtype=FLOAT32) -> Array:
    """VAE parameters, scaled latents [B, h, w, 4] -> float32 pixels [B, H, W, 3], not clipped."""
    with precise(dtype):
        latents = latents.astype(jnp.float32) / config.scaling
        decode = lambda latents: VAE(config, dtype).apply({"params": params}, latents, method="decode")
        return in_tiles(decode, latents, TILE, OVERLAP, most=UNTILED)


@partial(jax.jit, static_argnames="shape")
def initial_noise(seeds: Array, shape: tuple[int, int, int]) -> Array:
    """normal(key(seed)) for every seed, uint32 [B] -> [B, *shape]: the same bits in any batch."""
    return jax.vmap(lambda seed: jax.random.normal(jax.random.key(seed), shape))(seeds)


@jax.jit
def posterior_sample(mean: Array, logvar: Array, seed: Array) -> Array:
    """mean + exp(logvar / 2) eps (arXiv 1312.6114); eps of image i is drawn from seed + i alone."""
    seeds = seed + jnp.arange(len(mean), dtype=jnp.uint32)
    return mean + jnp.exp(0.5 * logvar) * initial_noise(seeds, mean.shape[1:])


# ---- the public functions


def load(source: str | Path, dtype: str | None = None, prediction: str | None = None,
         prefer_ema: bool = False) -> StableDiffusion:
    """A model from a bundled name ("emoji"), a diffusers folder, one .safetensors or .ckpt file in CompVis' layout, or
    a hub id ("org/name"), whose files are downloaded once; offline (HF_HUB_OFFLINE=1) the cached ones are taken.

    `dtype` is the computation's: "float32" (None), "bfloat16" or "float16". Parameters stay in the files' dtype.
    `prediction`: "epsilon" or "v" instead of what the files say; an SD 2.x file does not, and a guess is logged.
    `prefer_ema`: the EMA copy of the UNet where a file holds both. Raises SdjaxError that names the file, field or
    tensor that does not fit.
    """
    dtype, prediction = FLOAT32 if dtype is None else known_dtype(dtype), known_prediction(prediction)
    path, name = find_source(source)
    if not path.is_dir():
        config, params = read_single(path, prediction, prefer_ema)
        return StableDiffusion(config, params, bundled_tokenizer(config.text), dtype)
    config, params, tokenizer = read_folder(path, name)
    if prefer_ema:
        log.warning("%s: a diffusers folder has one UNet, which is used; prefer_ema is for single files", source)
    if prediction:
        config = replace(config, schedule=replace(config.schedule, prediction=prediction))
    return StableDiffusion(config, params, tokenizer, dtype)


def find_source(source: str | Path) -> tuple[Path, str | None]:
    """(the folder or file that `source` means, the model's name if that is not the folder's)."""
    if not isinstance(source, (str, Path)):
        raise SdjaxError(f"source is {source!r}, should be a string or a path")
    path, name = Path(source), str(source)
    if name in BUNDLED and not (path / "model_index.json").is_file():
        return Path(__file__).parents[1] / "pretrained" / name, None
    with contextlib.suppress(OSError):  # too long a name, no permission
        if path.exists():
            return path, None
    if is_hub_id(name):
        return fetch_folder(name), name
    raise SdjaxError(f"{name[:200]}: no such folder or file; name a diffusers folder, a .safetensors or .ckpt "
                     f"file, a hub id (org/name), or one of {', '.join(BUNDLED)}")


def embed_phrases(sd: StableDiffusion, phrases: Sequence[str], projection: Array) -> Array:
    """Unit embeddings [N, D] of phrases, read literally, in the space of the CLIP image tower that `projection`
    ([width, D], `load_clip`'s "text_projection") belongs to (arXiv 2103.00020, section 2.4)."""
    eos = sd.config.text.eos_token
    pooled = lambda some: pool_text(encode_prompt(sd, some, syntax="plain").context, tokenize(sd, some), eos)
    words = [pooled(phrases[first : first + 256]) @ projection for first in range(0, len(phrases), 256)]
    words = jnp.concatenate(words)
    return words / jnp.linalg.norm(words, axis=1, keepdims=True)


def create(model: str | Path, seed: int = 0, without: str | None = None) -> StableDiffusion:
    """What training starts from: a preset's name in capitals (EMOJI, SD15, ...) gives random parameters, and CLIP's
    tokenizer or none; anything else is `load`ed, its parameters as float32.

    `without` "text", "vae" or "unet" leaves that part's random parameters to `initial_params`, and does nothing where
    they are loaded.
    """
    if str(model) not in NAMED:
        try:
            sd = load(model)
        except SdjaxError as error:
            raise SdjaxError(f"{error} (from nothing: {', '.join(NAMED)})") from None
        return replace(sd, params=jax.tree.map(lambda leaf: leaf.astype(jnp.float32), sd.params))
    config = NAMED[str(model)]
    initial = jax.jit(initial_params, static_argnums=(0, 1))
    params = {part: initial(config, part, np.uint32(seed)) for part in ("text", "vae", "unet") if part != without}
    tokenizer = bundled_tokenizer(config.text) if config.text.vocab_size == TextConfig().vocab_size else None
    return StableDiffusion(config, params, tokenizer)


def initial_params(config: Config, part: str, seed: Array) -> Params:
    """Random parameters of "text", "vae" or "unet"; can be traced, so that they come to be where they will lie."""
    key, side = jax.random.key(seed), 2 * config.unet.factor
    x, context = jnp.zeros((1, side, side, config.unet.in_channels)), jnp.zeros((1, 1, config.unet.context_dim))
    inputs = {
        "text": (TextTower(config.text), jnp.zeros((1, config.text.length), jnp.int32)),
        "vae": (VAE(config.vae), jnp.zeros((1, 8 * config.vae.factor, 8 * config.vae.factor, 3))),
        "unet": (UNet(config.unet), x, jnp.zeros(1), context),
    }
    module, *values = inputs[part]
    return module.init(jax.random.fold_in(key, list(inputs).index(part)), *values)["params"]


def save(sd: StableDiffusion, path: str | Path, dtype: str | None = None) -> None:
    """Writes `sd` as a diffusers folder, or to a name in .safetensors as one file in CompVis' layout; diffusers loads
    both. Parameters keep the dtype that they were loaded in, or are rounded to `dtype`: "float32", "bfloat16",
    "float16". A single file has no tokenizer.

    An older model folder or file at `path` is replaced, and what else lies in the folder stays; anything else there is
    refused with SdjaxError, and so are values that `dtype` cannot hold.
    """
    suffix = Path(path).suffix.lower()
    if dtype is not None:
        sd = replace(sd, params=cast_params(sd.params, known_dtype(dtype)))
    if sd.embeddings:
        log.warning("%s: is written without the embeddings %s", path, ", ".join(sd.embeddings))
    if suffix in (".ckpt", ".pt", ".pth", ".bin"):
        raise SdjaxError(f"{path}: {suffix} files are only read; give a name in .safetensors or a folder's")
    with writing(path):
        if suffix == ".safetensors":
            write_single(path, sd.config, sd.params)
        else:
            write_folder(path, sd.config, sd.params, sd.tokenizer)


def tokenize(sd: StableDiffusion, prompts: str | Sequence[str]) -> np.ndarray:
    """Prompts -> int32 [B, L]: start, tokens (cut to fit), end, padding."""
    if sd.tokenizer is None:
        raise SdjaxError("sd.tokenizer is None: this model came without a tokenizer")
    return text.tokenize(sd.tokenizer, sd.config.text, prompts)


def read_prompts(sd: StableDiffusion, prompts: str | Sequence[str], syntax: str = "a1111",
                 composed: bool = True) -> list[prompt.Prompt]:
    """`prompt.read_prompts` with the words of sd.embeddings; logs a line for each prompt that was not understood."""
    if sd.tokenizer is None:
        raise SdjaxError("sd.tokenizer is None: this model came without a tokenizer")
    ends = np.cumsum([sd.config.text.vocab_size, *(len(v) for v in sd.embeddings.values())])
    words = {word: range(*ends[i:i + 2]) for i, word in enumerate(sd.embeddings)}
    prompts = text.as_list(prompts)
    found = prompt.read_prompts(prompts, sd.tokenizer, sd.config.text, syntax, words, composed)
    for string, notes in {string: one.notes for string, one in zip(prompts, found, strict=True)}.items():
        if notes:
            log.warning("prompt %s: %s", repr(string if len(string) <= 80 else string[:77] + "..."), "; ".join(notes))
    return found


def prompt_tower(sd: StableDiffusion, clip_skip: int = 1) -> tuple[TextConfig, Array | None]:
    """The text tower's config without its last clip_skip - 1 layers, and the vectors of sd.embeddings."""
    config, vectors = sd.config.text, list(sd.embeddings.values())
    whole = isinstance(clip_skip, (int, np.integer)) and not isinstance(clip_skip, bool)
    if not whole or not 1 <= clip_skip <= config.layers:
        raise SdjaxError(f"clip_skip {clip_skip!r}: a whole number from 1, the last layer, to {config.layers}")
    return replace(config, layers=config.layers + 1 - int(clip_skip)), np.concatenate(vectors) if vectors else None


def encode_prompt(sd: StableDiffusion, prompts: str | Sequence[str], clip_skip: int = 1, syntax: str = "a1111") -> Cond:
    """Prompts -> Cond, whose context is float32 [B, L, D]: the text tower's last states after its final LayerNorm.

    `syntax`: "a1111", the web UI's as `text.prompt` has it, L = config.text.length times the number of chunks of the
    longest prompt; or "plain", no character is special and what is too long is cut. Where a prompt composes several
    with AND, context is [B, P, L, D] and mix [B, P] has their weights: for guidance, `predict` takes one at a time.
    `clip_skip`: 1 the last layer, 2 the last but one, and so on; the final LayerNorm always comes after it.
    What was cut or not understood is logged as a warning to "sdjax". SdjaxError: an unknown syntax, no such layer.
    """
    config, vectors = prompt_tower(sd, clip_skip)
    found = read_prompts(sd, prompts, syntax)
    if not found:
        return Cond(jnp.zeros((0, config.length, config.width)))
    return text_context(sd.params["text"], prompt.stack(found, config), config, sd.dtype, vectors)


def predict(sd: StableDiffusion, x: Array, t: Array, cond: Cond) -> Array:
    """The UNet's raw output (eps or v, config.schedule.prediction) as float32 [B, h, w, 4].

    x: noisy scaled latents [B, h, w, C], C = config.unet.in_channels (inpainting: latents, mask, masked latents);
    t: timesteps in [0, 999], int or float, [B] or one for all; cond.context: [B, L, D].
    """
    config = sd.config.unet
    if not isinstance(cond, Cond):
        raise SdjaxError(f"cond is {type(cond).__name__}: what sdjax.encode_prompt gives expected")
    x, context = images("x", x, config.in_channels, config.factor), jnp.asarray(cond.context)
    t = jnp.asarray(t)
    if t.shape not in ((), (len(x),)):
        raise SdjaxError(f"t has shape {list(t.shape)}, should be [{len(x)}] or one number")
    if context.ndim != 3 or len(context) != len(x) or context.shape[2] != config.context_dim:
        raise SdjaxError(f"cond.context has shape {list(context.shape)}, should be [{len(x)}, L, {config.context_dim}]")
    t = jnp.broadcast_to(t.astype(jnp.float32), len(x))
    return unet_output(sd.params["unet"], x, t, context, config, sd.dtype)


def vae_moments(sd: StableDiffusion, pixels: Array) -> tuple[Array, Array]:
    """pixels [B, H, W, 3] in [-1, 1], sides multiples of the VAE's factor -> posterior mean and log variance.

    Each float32 [B, h, w, 4], unscaled; the log variance is clamped to [-30, 20].
    """
    config = sd.config.vae
    return vae_posterior(sd.params["vae"], images("pixels", pixels, 3, config.factor), config, sd.dtype)


def encode(sd: StableDiffusion, pixels: Array, seed: int | None = None) -> Array:
    """pixels [B, H, W, 3] in [-1, 1] -> scaled latents [B, h, w, 4]: the posterior's mean, or with a seed a sample.

    Image i is sampled with seed + i and depends on nothing else in the batch.
    """
    mean, logvar = vae_moments(sd, pixels)
    if seed is not None:
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed <= 2**32 - len(mean):
            raise SdjaxError(f"seed is {seed!r}, should be None or an integer from 0 to {2**32 - len(mean)}")
        mean = posterior_sample(mean, logvar, np.uint32(seed))
    return mean * sd.config.vae.scaling


def decode(sd: StableDiffusion, latents: Array) -> Array:
    """Scaled latents [B, h, w, 4] -> float32 pixels [B, H, W, 3], about [-1, 1] and not clipped."""
    config = sd.config.vae
    return vae_pixels(sd.params["vae"], images("latents", latents, config.latent_channels, 1), config, sd.dtype)


# ---- arguments


def known_dtype(dtype: Any) -> jnp.dtype:
    with contextlib.suppress(TypeError):
        if (found := jnp.dtype(dtype)).name in DTYPES:
            return found
    raise SdjaxError(f"dtype is {dtype!r}, should be one of {', '.join(DTYPES)}")


def images(name: str, x: Any, channels: int, factor: int) -> Array:
    """`x` as an array after checking [B, H, W, channels] with sides that are multiples of `factor`."""
    x = x if x is None or isinstance(x, str) else jnp.asarray(x)
    if np.ndim(x) != 4 or x.shape[3] != channels:
        raise SdjaxError(f"{name} has shape {list(np.shape(x))}, should be [B, H, W, {channels}]")
    if 0 in x.shape or x.shape[1] % factor or x.shape[2] % factor:
        raise SdjaxError(f"{name} has shape {list(x.shape)}, its sides should be positive multiples of {factor}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise SdjaxError(f"{name} is {x.dtype}, should be floating point")
    return x
