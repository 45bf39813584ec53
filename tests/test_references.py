"""The networks against numbers that torch computed once (tests/parity/make_references.py); torch is not needed here."""

from pathlib import Path

import numpy as np
import pytest

import sdjax
from sdjax.model.functions import text_states
from sdjax.networks.table import make_rows, param_shapes
from sdjax.types import Cond
from sdjax.weights.convert import from_file_tensors
from tests.narrow import NARROW, NARROW_INPAINT, NARROW_V2, reference_inputs, reference_tensors

pytestmark = pytest.mark.usefixtures("quick_compile")

PATH = Path(__file__).parent / "data" / "references.npz"
LIMITS = {"states": 5e-6, "predict": 5e-6, "mean": 1e-5, "logvar": 1e-5, "decode": 1e-5}  # FACTS.md section 9


def load(config, parts=("text", "unet", "vae")):
    """The model that torch was given, through the table of names."""
    params = {}
    for part in parts:
        module = getattr(config, part)
        params[part] = from_file_tensors(reference_tensors(part, module), make_rows(module), param_shapes(module))
    return sdjax.StableDiffusion(config, params, None)


def check(config, name, value):
    with np.load(PATH) as file:
        want = file[f"{config.name}/{name}"]
    error = np.abs(np.asarray(value, np.float64) - want).max() / np.abs(want).max()
    assert value.shape == want.shape and error <= LIMITS[name], f"{name} {error:.1e}"


@pytest.mark.parametrize("config", [NARROW, NARROW_V2], ids=lambda config: config.name)
def test_narrow_models(config):
    sd, given = load(config), reference_inputs(config)
    check(config, "states", text_states(sd.params["text"], given["ids"], config.text))
    check(config, "predict", sdjax.predict(sd, given["x"], given["t"], Cond(given["context"])))
    mean, logvar = sdjax.vae_moments(sd, given["pixels"])
    check(config, "mean", mean)
    check(config, "logvar", logvar)
    check(config, "decode", sdjax.decode(sd, given["latents"]))


def test_nine_channels():
    sd, given = load(NARROW_INPAINT, ["unet"]), reference_inputs(NARROW_INPAINT)
    check(NARROW_INPAINT, "predict", sdjax.predict(sd, given["x"], given["t"], Cond(given["context"])))


def test_the_references_are_small_and_would_show_a_mistake():
    assert PATH.stat().st_size < 200_000
    sd, given = load(NARROW, ["text"]), reference_inputs(NARROW)
    sd.params["text"]["layer_0"]["attn"]["q"]["bias"] += 1e-3
    with pytest.raises(AssertionError, match="states"):
        check(NARROW, "states", text_states(sd.params["text"], given["ids"], NARROW.text))
