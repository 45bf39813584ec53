"""Tiny models of SD 1, SD 2 and SDXL with ControlNets and T2I-Adapters, ours and diffusers', with the same weights."""

from dataclasses import replace
from functools import cache

import numpy as np
import torch
from diffusers import ControlNetModel, T2IAdapter, UNet2DConditionModel

import sdjax
from sdjax.model.control import Control
from sdjax.networks.control.config import ControlConfig
from sdjax.networks.control.fields import write_control
from sdjax.networks.t2i.config import AdapterConfig
from sdjax.networks.t2i.part import write_adapter
from sdjax.networks.unet.fields import write_unet
from tests import kinds
from tests.parity.peers import export, file_tensors, nchw, nhwc, perturb, rng_normal
from tests.tiny import CONFIG

#: VAEs of these make a latent of 8 x 8 pixels, as the embedding of a published ControlNet does.
VAE8 = replace(CONFIG.vae, channels=(8, 8, 8, 8))
SD1 = replace(CONFIG, name="tiny-1", vae=VAE8, size=64, schedule=replace(CONFIG.schedule, prediction="epsilon"))
SD1 = replace(
    SD1, unet=replace(SD1.unet, channels=(8, 16, 16), blocks=2, attention=(True, True, False), heads=(2,) * 3)
)
SD2 = replace(SD1, name="tiny-2", schedule=replace(CONFIG.schedule, prediction="v"))
SD2 = replace(
    SD2, unet=replace(SD2.unet, channels=(8, 16, 24), heads=(1, 2, 3), linear_projection=True, upcast_attention=True)
)
XL = replace(kinds.SDXL, name="tiny-3", vae=VAE8, size=64)
XL = replace(
    XL,
    unet=replace(XL.unet, channels=(8, 16, 24), attention=(False, True, True), heads=(1, 2, 3), depth=(1, 2, 3)),
)
MODELS = {"SD 1": SD1, "SD 2": SD2, "SDXL": XL}
HINT = (4, 6, 8, 12)


def plain(fields: dict) -> dict:
    return {name: value for name, value in fields.items() if name[0] != "_"}


def control_config(config, **changes) -> ControlConfig:
    return replace(ControlConfig(config.unet, HINT), **changes)


def adapter_config(config, kind: str = "full_adapter", **changes) -> AdapterConfig:
    channels = config.unet.channels
    if kind == "full_adapter_xl":
        return replace(AdapterConfig(kind, 3, (*channels, channels[-1]), 2, 16), **changes)
    return replace(AdapterConfig(kind, 3, (*channels[:-1], *channels[-1:]), 2, 8), **changes)


@cache
def control(config: ControlConfig, seed: int = 0):
    """(ours, torch's in float64)."""
    torch.manual_seed(seed)
    peer = perturb(ControlNetModel(**plain(write_control(config))), seed)
    return Control(config, export(file_tensors(peer, "control"), config)), peer


@cache
def adapter(config: AdapterConfig):
    torch.manual_seed(0)
    peer = perturb(T2IAdapter(**plain(write_adapter(config))))
    return Control(config, export(file_tensors(peer, "adapter"), config)), peer


@cache
def model(name: str):
    """(ours, torch's UNet in float64)."""
    config = MODELS[name]
    torch.manual_seed(1)
    peer = perturb(UNet2DConditionModel(**plain(write_unet(config.unet))))
    sd = kinds.model(config)
    return replace(sd, params=sd.params | {"unet": export(file_tensors(peer, "unet"), config.unet)}), peer


@cache
def inputs(name: str, size: tuple[int, int] = (64, 48)):
    """(x, t, Cond, pictures in [0, 1]) of two."""
    config = MODELS[name]
    x = rng_normal(2, size[0] // 8, size[1] // 8, 4)
    cond = sdjax.Cond(context=rng_normal(2, 7, config.unet.context_dim, seed=1))
    if config.unet.vector:
        cond = cond._replace(vector=rng_normal(2, config.unet.vector, seed=2))
    pictures = np.random.default_rng(3).uniform(size=(2, *size, 3)).astype(np.float32)
    return x, np.float32([981.0, 17.0]), cond, pictures


class Added(torch.nn.Module):
    """Lets a peer take SDXL's vector as it is, in place of pooled text and numbers."""


def arguments(peer, name: str, inputs) -> dict:
    """torch's arguments for these inputs, without the picture. The vector takes the place of the features of sizes."""
    x, t, cond, _ = inputs
    found = {
        "sample": nchw(x),
        "timestep": torch.from_numpy(t).double(),
        "encoder_hidden_states": torch.from_numpy(cond.context).double(),
    }
    if cond.vector is not None:
        pooled = 10
        peer.add_time_proj.forward = lambda _: torch.from_numpy(cond.vector[:, pooled:]).double().reshape(-1, 256)
        text = torch.from_numpy(cond.vector[:, :pooled]).double()
        found["added_cond_kwargs"] = {"text_embeds": text, "time_ids": torch.zeros(len(x), 6).double()}
    return found


def residuals(peer, name: str, inputs, scale: float = 1.0, guess: bool = False) -> list[np.ndarray]:
    """What diffusers' ControlNet adds: one for each skip, then the middle's."""
    with torch.no_grad():
        given = arguments(peer, name, inputs)
        down, mid = peer(
            **given, controlnet_cond=nchw(inputs[3]), conditioning_scale=scale, guess_mode=guess, return_dict=False
        )
    return [nhwc(one).numpy() for one in (*down, mid)]


def output(unet, name: str, inputs, found: list[np.ndarray] | None = None, levels=None) -> torch.Tensor:
    """diffusers' output with what controls add."""
    given = arguments(unet, name, inputs)
    if found is not None:
        *down, mid = map(nchw, found)
        given |= {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
    if levels is not None:
        given["down_intrablock_additional_residuals"] = [nchw(one) for one in levels]
    with torch.no_grad():
        return nhwc(unet(**given).sample)
