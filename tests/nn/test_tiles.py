import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import sdjax
from sdjax.image.pixels import pil_to_pixels
from sdjax.model import functions as model
from sdjax.nn.tiles import in_tiles, places, window
from tests.scripts import EMOJI64, ROOT


@given(st.integers(1, 200), st.integers(2, 64), st.data())
def test_tiles_cover_a_side_and_overlap(side, tile, data):
    overlap, tile = data.draw(st.integers(0, tile - 1)), min(tile, side)
    overlap = min(overlap, tile - 1)
    starts = places(side, tile, overlap)
    assert starts[0] == 0 and starts[-1] == side - tile
    assert all(0 < step <= tile - overlap for step in np.diff(starts))
    assert len(starts) == 1 or len(starts) == -(-(side - overlap) // (tile - overlap))


@pytest.mark.parametrize("shape", [(1, 8, 8, 2), (2, 21, 40, 2), (1, 5, 64, 2)])
def test_what_is_local_comes_out_as_of_the_whole(shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    double = lambda x: jnp.sin(x).repeat(2, 1).repeat(2, 2)
    np.testing.assert_allclose(jax.jit(lambda x: in_tiles(double, x, 16, 4))(x), double(x), atol=1e-6)
    if shape[1] % 4 == 0:
        halve = lambda x: x[:, ::4, ::4].repeat(3, 3)
        np.testing.assert_allclose(in_tiles(halve, x, 16, 4, unit=4), halve(x), atol=1e-6)


def test_seams_fade():
    """A function that adds another number to each tile leaves no step larger than its share of the overlap."""
    x = np.zeros((1, 8, 40, 1), np.float32)
    x[0, :, :, 0] = np.arange(40)
    steps = np.diff(in_tiles(lambda x: jnp.broadcast_to(x.mean(), x.shape), x, 16, 8)[0, 0, :, 0])
    assert np.abs(steps).max() <= 16 / 8 + 1e-5


def test_windows_are_never_zero():
    assert window(16, 8, True, True).min() > 0 and (window(16, 8, False, False) == 1).all()


def test_a_large_picture_through_a_trained_vae(monkeypatch):
    """12 drawings side by side, whole and in tiles of 24 latents: apart by what no eye sees."""
    sd, size = sdjax.load(EMOJI64), 64
    paths = sorted((ROOT / "tests" / "data" / "emoji300").glob("*.webp"))[:12]
    pictures = np.concatenate([pil_to_pixels(Image.open(path), (size, size)) for path in paths])
    pixels = pictures.reshape(3, 4, size, size, 3).swapaxes(1, 2).reshape(1, 3 * size, 4 * size, 3)
    vae, config = sd.params["vae"], sd.config.vae
    encode, decode = (
        lambda x, f=function: jax.jit(lambda vae, x: f.__wrapped__(vae, x, config))(vae, x)
        for function in (model.vae_posterior, model.vae_pixels)
    )
    mean, _ = encode(pixels)
    latents = mean * sd.config.vae.scaling
    whole = decode(latents)
    np.testing.assert_array_equal(whole, sdjax.decode(sd, latents))
    for name, value in {"TILE": 24, "OVERLAP": 8, "UNTILED": 32 * 32}.items():
        monkeypatch.setattr(model, name, value)
    error = lambda a, b: float(jnp.sqrt(jnp.mean((a - b) ** 2)))
    assert 0 < error(decode(latents), whole) < 0.05  # of 2: PSNR 32 dB
    assert 0 < error(encode(pixels)[0], mean) < 0.1 * float(jnp.std(mean))
