"""Every network against its torch original: float32 on CPU against float64, limits of FACTS.md section 9.

Each limit is shown to be sharp enough: a dozen single mistakes are injected and every one is caught.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from sdjax.config import EMOJI, EMOJI_VISION
from sdjax.nn import attention, clip, layers, unet, vae
from tests.narrow import NARROW, NARROW_V2, NARROW_VISION
from tests.parity import peers

pytestmark = pytest.mark.parity

CONFIGS = pytest.mark.parametrize("config", [NARROW, NARROW_V2, EMOJI], ids=lambda config: config.name)
UNET, TEXT, VAE = 5e-6, 5e-6, 1e-5


@pytest.fixture
def record(record_property):
    def check(value: float, limit: float):
        record_property("error", value)
        print(f"error {value:.2e}, limit {limit:.0e}")
        assert value <= limit

    return check


@CONFIGS
def test_unet(config, record):
    record(peers.unet_error(config), UNET)


@CONFIGS
def test_vae_encode(config, record):
    record(peers.encode_error(config), VAE)


@CONFIGS
def test_vae_decode(config, record):
    record(peers.decode_error(config), VAE)


@CONFIGS
def test_text(config, record):
    record(peers.text_error(config), TEXT)


@CONFIGS
def test_pooled_text(config, record):
    params, ids, _, pooled = peers.text_case(config)
    ours = clip.TextTower(config.text).apply({"params": params}, ids)
    record(peers.error(clip.pool_text(ours, ids, config.text.eos_token), pooled), TEXT)


@pytest.mark.parametrize("config", [NARROW_VISION, EMOJI_VISION], ids=lambda config: str(config.size))
def test_vision(config, record):
    record(peers.vision_error(config), TEXT)


# ---- injected mistakes: name -> (what to patch, which error must then pass its limit)


def changed(cls, **fixed):
    """A stand-in for module class `cls` that overrides constructor arguments where `when` holds."""
    when = fixed.pop("when", lambda kwargs: True)

    def make(*args, **kwargs):
        names = list(cls.__dataclass_fields__)
        kwargs = dict(zip(names, args, strict=False)) | kwargs
        return cls(**(kwargs | (fixed if when(kwargs) else {})))

    return make


def embedding(swap=False, divisor=0):
    def wrong(t, width):
        half = width // 2
        frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / (half - divisor))
        angles = t.astype(jnp.float32)[:, None] * frequencies
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)] if swap else [jnp.cos(angles), jnp.sin(angles)], -1)

    return wrong


def padded(wrong):
    def make(*args, **kwargs):
        if kwargs.get("stride") == 2:
            kwargs["padding"] = wrong
        return layers.conv3x3(*args, **kwargs)

    return make


SYMMETRIC, ASYMMETRIC = ((1, 1), (1, 1)), ((0, 1), (0, 1))
SMALL = replace(NARROW, unet=replace(NARROW.unet, channels=(16, 32), blocks=1, attention=(False, True), heads=(2, 4)),
                vae=replace(NARROW.vae, channels=(8, 16), blocks=1))
HALVED = replace(SMALL, unet=replace(SMALL.unet, heads=(1, 2)))
GELU = replace(SMALL, text=replace(SMALL.text, activation="gelu"))
QUICK = replace(NARROW_V2, text=replace(NARROW_V2.text, activation="quick_gelu"))
TANH = layers.ACTIVATIONS | {"gelu": lambda x: jax.nn.gelu(x, approximate=True)}
SMALL_EPS = changed(layers.LayerNorm, eps=1e-6)

MISTAKES = {
    "ResBlock eps 1e-6": ([(unet, "ResBlock", changed(layers.ResBlock, eps=1e-6))], peers.unet_error, UNET),
    "UNet's last norm eps 1e-6": ([(unet, "GroupNorm", changed(layers.GroupNorm, eps=1e-6))], peers.unet_error, UNET),
    "transformer GroupNorm eps 1e-5": ([(attention, "GroupNorm", changed(layers.GroupNorm, eps=1e-5))],
                                       peers.unet_error, UNET),
    "UNet LayerNorm eps 1e-6": ([(attention, "LayerNorm", SMALL_EPS)], peers.unet_error, UNET),
    "tanh gelu": ([(attention, "ACTIVATIONS", TANH)], peers.unet_error, UNET),
    "sin before cos": ([(unet, "timestep_embedding", embedding(swap=True))], peers.unet_error, UNET),
    "timestep divisor half - 1": ([(unet, "timestep_embedding", embedding(divisor=1))], peers.unet_error, UNET),
    "half the heads": ([], lambda config: peers.unet_error(config, HALVED), UNET),
    "UNet downsample padded right and bottom": ([(unet, "conv3x3", padded(ASYMMETRIC))], peers.unet_error, UNET),
    "encoder downsample padded on all sides": ([(vae, "conv3x3", padded(SYMMETRIC))], peers.encode_error, VAE),
    "encoder eps 1e-5": ([(vae, "ResBlock", changed(layers.ResBlock, eps=1e-5))], peers.encode_error, VAE),
    "decoder eps 1e-5": ([(vae, "ResBlock", changed(layers.ResBlock, eps=1e-5))], peers.decode_error, VAE),
    "VAE attention norm eps 1e-5": ([(vae, "GroupNorm", changed(layers.GroupNorm, eps=1e-5))], peers.decode_error, VAE),
    "gelu for quick_gelu": ([], lambda config: peers.text_error(config, GELU), TEXT),
    "quick_gelu for gelu": ([], lambda config: peers.text_error(NARROW_V2, QUICK), TEXT),
    "text LayerNorm eps 1e-6": ([(clip, "LayerNorm", SMALL_EPS)], peers.text_error, TEXT),
    "text not causal": ([(clip, "Attention", changed(attention.Attention, causal=False))], peers.text_error, TEXT),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_caught(mistake, monkeypatch):
    patches, measure, limit = MISTAKES[mistake]
    for place, name, wrong in patches:
        monkeypatch.setattr(place, name, wrong)
    found = measure(SMALL)
    print(f"error {found:.2e}, limit {limit:.0e}")
    assert found > limit and np.isfinite(found)
