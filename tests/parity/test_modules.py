"""Every network against its torch original: float32 on CPU against float64, limits of FACTS.md section 9.

Each limit is shown to be sharp enough: mistakes of the networks and of the table of names are injected, one at a
time, and every one is caught.
"""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from sdjax.families.sd import EMOJI, EMOJI_VISION
from tests.narrow import LIKE, NARROW, NARROW_V2, NARROW_VISION
from tests.parity import peers
from tests.parity.mistakes import MISTAKES, SMALL, TEXT, UNET, VAE

pytestmark = pytest.mark.parity

CONFIGS = pytest.mark.parametrize("config", [NARROW, NARROW_V2, EMOJI, *LIKE], ids=lambda config: config.name)


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


@pytest.mark.parametrize("size", [(9, 13), (5, 8), (1, 3), (18, 31)], ids=str)
@pytest.mark.parametrize("config", [NARROW, EMOJI, *LIKE], ids=lambda config: config.name)
def test_unet_of_any_size(config, size, record):
    """diffusers enlarges to the size of the skip that comes next."""
    record(peers.unet_error(config, size=size), UNET)


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
    record(peers.pooled_error(config), TEXT)


@pytest.mark.parametrize("config", [NARROW_VISION, EMOJI_VISION], ids=lambda config: str(config.size))
def test_vision(config, record):
    record(peers.vision_error(config), TEXT)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_caught(mistake, monkeypatch, quick_compile):
    patches, measure, limit = MISTAKES[mistake]
    for place, name, wrong in patches:
        monkeypatch.setattr(place, name, wrong)
    found = measure(SMALL)
    print(f"error {found:.2e}, limit {limit:.0e}")
    assert found > limit and np.isfinite(found)


def test_they_are_many():
    assert len(MISTAKES) >= 40
