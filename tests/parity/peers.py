"""torch peers of our modules, in float64, made hard to match: see `perturb`. Needs torch and diffusers."""

import warnings
from functools import cache, partial

import jax
import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from sdjax.families.config import Config
from sdjax.model import functions as model
from sdjax.networks.clip.config import TextConfig, VisionConfig
from sdjax.networks.clip.network import ImageTower, pool_text
from sdjax.networks.table import make_rows, param_shapes
from sdjax.weights.convert import from_file_tensors
from sdjax.weights.folder_json import folder_configs
from sdjax.weights.spellings import current_name

NAME_Q_OR_K = (".to_q.", ".to_k.", ".q_proj.", ".k_proj.")


def roughen(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Initial weights hide faults: norms are identities, biases 0, attention is uniform, last layers are zero.

    Adds N(0, 0.1) to every 1-D parameter, scales q and k weights by 3, draws zero tensors anew. Changes `module`.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if value.ndim <= 1:
                value += 0.1 * noise
            elif not value.any():
                value.copy_(noise / np.sqrt(value[0].numel()))
            elif any(key in name for key in NAME_Q_OR_K):
                value *= 3
    return module.float().eval().requires_grad_(False)


def perturb(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """`roughen`ed float32 parameters (what our converter gets), which compute in float64."""
    return roughen(module, seed).double()


def file_tensors(module: torch.nn.Module, part: str) -> dict[str, np.ndarray]:
    """What a file would hold of `module`."""
    return {current_name(part, name): value.float().numpy() for name, value in module.state_dict().items()}


def export(tensors: dict[str, np.ndarray], config) -> dict:
    """A file's tensors -> our parameters, through the production table."""
    return from_file_tensors(tensors, make_rows(config), param_shapes(config))


def error(ours, reference: torch.Tensor) -> float:
    """max |difference| / max |reference|."""
    ours, reference = np.asarray(ours, np.float64), reference.numpy()
    assert ours.shape == reference.shape
    return float(np.abs(ours - reference).max() / np.abs(reference).max())


def nchw(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(x)).double().permute(0, 3, 1, 2)


def nhwc(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 2, 3, 1)


def fields(config: Config, name: str) -> dict:
    return {key: value for key, value in folder_configs(config)[name].items() if key[0] != "_"}


def rng_normal(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@cache
def unet_case(config: Config, size: tuple[int, int] = (16, 16)):
    """(file tensors, inputs of ours, torch's output)."""
    torch.manual_seed(0)
    peer = perturb(UNet2DConditionModel(**fields(config, "unet/config.json")))
    unet = config.unet
    x, context = rng_normal(2, *size, unet.in_channels), rng_normal(2, 7, unet.context_dim, seed=1)
    t = np.array([981.0, 17.0], np.float32)
    reference = peer(nchw(x), torch.from_numpy(t).double(), torch.from_numpy(context).double()).sample
    return file_tensors(peer, "unet"), (x, t, context), nhwc(reference)


@cache
def vae_case(config: Config, size: int = 32):
    """(file tensors, pixels, latents, torch's mean, log variance and pixels)."""
    torch.manual_seed(0)
    peer, vae = perturb(AutoencoderKL(**fields(config, "vae/config.json"))), config.vae
    pixels = rng_normal(2, size, size, 3).clip(-1, 1)
    latents = rng_normal(2, size // vae.factor, size // vae.factor, vae.latent_channels)
    posterior = peer.encode(nchw(pixels)).latent_dist
    decoded = peer.decode(nchw(latents)).sample
    outputs = nhwc(posterior.mean), nhwc(posterior.logvar), nhwc(decoded)
    return file_tensors(peer, "vae"), pixels, latents, *outputs


@cache
def text_case(config: Config):
    """(file tensors, ids, torch's last states, torch's pooled state)."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = perturb(CLIPTextModel(CLIPTextConfig(**fields(config, "text_encoder/config.json"))))
    text: TextConfig = config.text
    ids = np.random.default_rng(0).integers(0, text.vocab_size - 2, (3, text.length)).astype(np.int32)
    ids[:, 0], ids[0, 5:], ids[1, 8:], ids[2, -1] = text.bos_token, text.pad_token, text.pad_token, text.eos_token
    ids[0, 5] = ids[1, 8] = text.eos_token
    out = peer(torch.from_numpy(ids).long())
    return file_tensors(peer, "text"), ids, out.last_hidden_state, out.pooler_output


def vision_peer(config: VisionConfig, seed: int) -> CLIPVisionModelWithProjection:
    """transformers' image tower of a config, with random parameters."""
    torch.manual_seed(seed)
    return perturb(
        CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=config.width,
                intermediate_size=config.mlp_width,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                image_size=config.size,
                patch_size=config.patch,
                hidden_act=config.activation,
                projection_dim=config.projection,
                layer_norm_eps=1e-5,
            )
        )
    )


@cache
def vision_case(config: VisionConfig):
    """(file tensors, pixels, torch's embedding)."""
    peer = vision_peer(config, 0)
    pixels = rng_normal(2, config.size, config.size, 3)
    return file_tensors(peer, "vision"), pixels, peer(nchw(pixels)).image_embeds


# Errors of ours; `ours` is a config that is wrong on purpose, for what we compute


def run(function, *args, config):
    """The production function, traced anew: the tests monkeypatch the modules' insides."""
    return jax.jit(partial(function.__wrapped__, config=config))(*args)


def unet_error(config: Config, ours: Config | None = None, size: tuple[int, int] = (16, 16)) -> float:
    tensors, inputs, reference = unet_case(config, size)
    params = export(tensors, config.unet)
    return error(run(model.unet_output, params, *inputs, config=(ours or config).unet), reference)


def encode_error(config: Config) -> float:
    tensors, pixels, _, mean, logvar, _ = vae_case(config)
    ours = run(model.vae_posterior, export(tensors, config.vae), pixels, config=config.vae)
    return max(error(ours[0], mean), error(ours[1], logvar))


def decode_error(config: Config, ours: Config | None = None) -> float:
    tensors, _, latents, *_, reference = vae_case(config)
    params, scaled = export(tensors, config.vae), latents * np.float32(config.vae.scaling)
    return error(run(model.vae_pixels, params, scaled, config=(ours or config).vae), reference)


def text_error(config: Config, ours: Config | None = None) -> float:
    tensors, ids, states, _ = text_case(config)
    return error(run(model.text_states, export(tensors, config.text), ids, config=(ours or config).text), states)


def pooled_error(config: Config) -> float:
    tensors, ids, _, pooled = text_case(config)
    states = run(model.text_states, export(tensors, config.text), ids, config=config.text)
    return error(pool_text(states, ids, config.text.eos_token), pooled)


def vision_error(config: VisionConfig) -> float:
    tensors, pixels, reference = vision_case(config)
    return error(ImageTower(config).apply({"params": export(tensors, config)}, pixels), reference)
