"""Tiny IP-Adapters and image towers, ours and diffusers' and transformers', from the same files."""

import copy
from functools import cache

import numpy as np
import torch

import sdjax
from sdjax.adapters import image_prompt
from sdjax.model.image_prompt import ImagePrompt
from sdjax.networks.clip.config import VisionConfig
from sdjax.networks.table import make_rows, param_shapes
from sdjax.weights.convert import from_file_tensors
from tests.parity import control_peers as peers
from tests.parity.peers import export, file_tensors, nchw, nhwc, vision_peer

#: ViT-H/14 in small, and another width for bigG, so that embedding and states differ in width
TOWERS = {
    "SD 1": VisionConfig(size=28, patch=7, width=24, layers=3, heads=3, mlp_width=48, activation="gelu", projection=16),
    "SDXL": VisionConfig(
        size=28, patch=14, width=32, layers=2, heads=2, mlp_width=40, activation="gelu", projection=20
    ),
}
PLUS = {"heads": 2, "width": 48, "tokens": 6, "blocks": 4}
#: (name of the model, of the kind) of all cases
CASES = [(name, kind) for name in TOWERS for kind in ("base", "plus")]


@cache
def tower(name: str):
    """(ours, transformers' in float64)."""
    config = TOWERS[name]
    peer = vision_peer(config, 3)
    return export(file_tensors(peer, "vision"), config), peer


def attentions(unet) -> list[tuple[str, int]]:
    """(name, width) of each cross-attention, in the order in which diffusers has them."""
    processors = unet.attn_processors
    modules = dict(unet.named_modules())
    return [
        (name, modules[name.removesuffix(".processor")].to_q.out_features)
        for name in processors
        if name.endswith("attn2.processor")
    ]


@cache
def tensors(name: str, kind: str, seed: int = 0) -> dict[str, np.ndarray]:
    """What a file of tencent-ailab's holds, for the model `name`."""
    rng, found = np.random.default_rng(seed), {}
    _, unet = peers.model(name)
    vision, context = TOWERS[name], peers.MODELS[name].unet.context_dim

    def matrix(key: str, out: int, inside: int, bias: bool = False) -> None:
        found[f"{key}.weight"] = rng.normal(size=(out, inside)) / np.sqrt(inside)
        if bias:
            found[f"{key}.bias"] = 0.3 * rng.normal(size=out)

    def norm(key: str, width: int) -> None:
        found[f"{key}.weight"], found[f"{key}.bias"] = 1 + 0.2 * rng.normal(size=width), 0.3 * rng.normal(size=width)

    if kind == "base":
        matrix("image_proj.proj", 4 * context, vision.projection, True)
        norm("image_proj.norm", context)
    else:
        width, inner = PLUS["width"], PLUS["heads"] * 64
        found["image_proj.latents"] = rng.normal(size=(1, PLUS["tokens"], width))
        matrix("image_proj.proj_in", width, vision.width, True)
        matrix("image_proj.proj_out", context, width, True)
        norm("image_proj.norm_out", context)
        for i in range(PLUS["blocks"]):
            layer = f"image_proj.layers.{i}"
            norm(f"{layer}.0.norm1", width)
            norm(f"{layer}.0.norm2", width)
            matrix(f"{layer}.0.to_q", inner, width)
            matrix(f"{layer}.0.to_kv", 2 * inner, width)
            matrix(f"{layer}.0.to_out", width, inner)
            norm(f"{layer}.1.0", width)
            matrix(f"{layer}.1.1", 4 * width, width)
            matrix(f"{layer}.1.3", width, 4 * width)
    for number, (_, width) in enumerate(attentions(unet)):
        for head in "kv":
            matrix(f"ip_adapter.{2 * number + 1}.to_{head}_ip", width, context)
    return {key: value.astype(np.float32) for key, value in found.items()}


@cache
def adapter(name: str, kind: str, seed: int = 0) -> ImagePrompt:
    """Ours."""
    found = tensors(name, kind, seed)
    config = image_prompt.config_of({key: value.shape for key, value in found.items()}, "file")
    params = from_file_tensors(found, make_rows(config), param_shapes(config))
    return ImagePrompt(config, params, TOWERS[name], tower(name)[0])


def nested(found: dict[str, np.ndarray]) -> dict[str, dict[str, torch.Tensor]]:
    """The two dicts of a .bin file."""
    parts = {part: {} for part in ("image_proj", "ip_adapter")}
    for key, value in found.items():
        part, _, rest = key.partition(".")
        parts[part][rest] = torch.from_numpy(value)
    return parts


@cache
def unet(name: str, *kinds: tuple[str, int]):
    """diffusers' UNet with the adapters (kind, seed) in it, float64."""
    peer = copy.deepcopy(peers.model(name)[1])
    files = [nested(tensors(name, kind, seed)) for kind, seed in kinds]
    peer.register_to_config(sample_size=64)  # which pipelines look at
    peer._load_ip_adapter_weights(files, low_cpu_mem_usage=False)
    return peer.double().eval().requires_grad_(False)


def set_scales(peer, scales: list[float]) -> None:
    for processor in peer.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = list(scales)


def pictures(count: int = 1, seed: int = 7) -> list[np.ndarray]:
    """uint8 [H, W, 3], of odd sizes."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (41 + 6 * i, 37 - 4 * i, 3), dtype=np.uint8) for i in range(count)]


def seen(name: str, kind: str, pixels: np.ndarray, nothing: bool = False) -> torch.Tensor:
    """What diffusers' encode_image makes of `clip_pixels`: [1, K, D], or [1, K, T, D]."""
    peer, pixels = tower(name)[1], nchw(pixels)
    with torch.no_grad():
        if kind == "plus":
            found = peer(torch.zeros_like(pixels) if nothing else pixels, output_hidden_states=True).hidden_states[-2]
        else:
            found = peer(pixels).image_embeds
            found = torch.zeros_like(found) if nothing else found
    return found[None]


def output(peer, name: str, inputs, embeds: list[torch.Tensor]) -> torch.Tensor:
    """diffusers' output, with embeddings of each adapter, of one image."""
    given = peers.arguments(peer, name, inputs)
    count = len(inputs[0])
    given.setdefault("added_cond_kwargs", {})
    given["added_cond_kwargs"]["image_embeds"] = [one.repeat_interleave(count, 0) for one in embeds]
    with torch.no_grad():
        return nhwc(peer(**given).sample)


def model(name: str) -> sdjax.StableDiffusion:
    return peers.model(name)[0]
