"""Regenerates tests/data/references.npz: what torch computes in float64 for narrow models, for machines without torch.

    python -m tests.parity.make_references

The weights and inputs are tests/narrow.py's, drawn from frozen streams by name; tests/test_references.py compares.
"""

import warnings
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from sdjax.families.config import Config
from sdjax.weights.spellings import current_name
from tests.narrow import NARROW, NARROW_INPAINT, NARROW_V2, reference_inputs, reference_tensors
from tests.parity.peers import fields, nchw, nhwc

PATH = Path(__file__).parents[1] / "data" / "references.npz"


def filled(part: str, peer: torch.nn.Module, module) -> torch.nn.Module:
    """`peer` with the weights of `module`, in float64."""
    tensors = reference_tensors(part, module)
    names = {current_name(part, name): name for name in peer.state_dict() if not name.endswith("position_ids")}
    assert sorted(names) == sorted(tensors)
    peer.load_state_dict({names[name]: torch.from_numpy(value) for name, value in tensors.items()}, strict=False)
    return peer.double().eval().requires_grad_(False)


def outputs(config: Config) -> dict[str, np.ndarray]:
    given = reference_inputs(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        text = CLIPTextModel(CLIPTextConfig(**fields(config, "text_encoder/config.json")))
    text = filled("text", text, config.text)
    unet = filled("unet", UNet2DConditionModel(**fields(config, "unet/config.json")), config.unet)
    vae = filled("vae", AutoencoderKL(**fields(config, "vae/config.json")), config.vae)
    t, context = (torch.from_numpy(given[name]).double() for name in ("t", "context"))
    posterior = vae.encode(nchw(given["pixels"])).latent_dist
    return {
        "states": text(torch.from_numpy(given["ids"]).long()).last_hidden_state.numpy(),
        "predict": nhwc(unet(nchw(given["x"]), t, context).sample).numpy(),
        "mean": nhwc(posterior.mean).numpy(),
        "logvar": nhwc(posterior.logvar).numpy(),
        "decode": nhwc(vae.decode(nchw(given["latents"]) / config.vae.scaling).sample).numpy(),
    }


def compute() -> dict[str, np.ndarray]:
    """ "config/output" -> float32 array."""
    return {
        f"{config.name}/{name}": value.astype(np.float32)
        for config in (NARROW, NARROW_V2, NARROW_INPAINT)
        for name, value in outputs(config).items()
        if config is not NARROW_INPAINT or name == "predict"
    }


if __name__ == "__main__":
    np.savez_compressed(PATH, **compute())
    print(f"{PATH}: {PATH.stat().st_size:,} bytes")
