"""float16 and bfloat16: near float32, finite, and the parts that stay float32 do (read off the traced programs)."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdjax
from sdjax.model import functions as model
from sdjax.networks.clip.network import TextTower
from sdjax.networks.table import param_shapes
from sdjax.networks.unet.network import UNet
from sdjax.networks.vae.network import VAE
from sdjax.nn.kernels.attention import attention
from sdjax.text.bpe import train_bpe
from sdjax.types import Cond
from tests.narrow import NARROW, NARROW_V2, reference_inputs
from tests.test_references import load
from tests.text.test_tokenizer import captions
from tests.tiny import tiny

pytestmark = pytest.mark.usefixtures("quick_compile")

# max |difference to float32| / max |float32|, the larger of NARROW's and NARROW_V2's as measured; twice that is allowed
MEASURED = {
    "float16": {"states": 1.3e-3, "predict": 3.2e-3, "mean": 1.7e-3, "decode": 2.8e-3},
    "bfloat16": {"states": 1.4e-2, "predict": 1.9e-2, "mean": 1.8e-2, "decode": 2.3e-2},
}
HALVES = pytest.mark.parametrize("dtype", ["float16", "bfloat16"])


def outputs(sd):
    given = reference_inputs(sd.config)
    return {
        "states": model.text_states(sd.params["text"], given["ids"], sd.config.text, sd.dtype),
        "predict": sdjax.predict(sd, given["x"], given["t"], Cond(given["context"])),
        "mean": sdjax.vae_moments(sd, given["pixels"])[0],
        "decode": sdjax.decode(sd, given["latents"]),
    }


@pytest.fixture(scope="module", params=[NARROW, NARROW_V2], ids=lambda config: config.name)
def folder(request, tmp_path_factory):
    """(a saved model, what it computes in float32)."""
    path = tmp_path_factory.mktemp("dtypes")
    sd = replace(load(request.param), tokenizer=train_bpe(captions(), 580, path / "tokenizer"))
    sdjax.save(sd, path / "model")
    return path / "model", outputs(sd)


@HALVES
def test_half_precision_is_near_float32(folder, dtype):
    path, full = folder
    sd = sdjax.load(path, dtype=dtype)
    assert sd.dtype == jnp.dtype(dtype) and all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(sd.params))
    for name, value in outputs(sd).items():
        assert value.dtype == jnp.float32 and np.isfinite(value).all()
        error = float(jnp.abs(value - full[name]).max() / jnp.abs(full[name]).max())
        assert 0 < error < 2 * MEASURED[dtype][name], (name, error)


# ---- what the programs do


def equations(jaxpr):
    """All equations, those of inner programs included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def traced(part, config, dtype, **arguments):
    """The equations of one module's program."""
    module = {"text": TextTower, "unet": UNet, "vae": VAE}[part](getattr(config, part), jnp.dtype(dtype))
    given, params = reference_inputs(config), param_shapes(getattr(config, part))
    inputs = {"text": ("ids",), "unet": ("x", "t", "context"), "vae": ("pixels",)}[part]
    call = lambda params, *values: module.apply({"params": params}, *values)
    return list(equations(jax.make_jaxpr(call)(params, *(given[name] for name in inputs)).jaxpr))


def dtypes(equation):
    return [str(value.aval.dtype) for value in equation.invars if jnp.issubdtype(value.aval.dtype, jnp.floating)]


@HALVES
@pytest.mark.parametrize("part", ["text", "unet", "vae"])
@pytest.mark.parametrize("config", [NARROW, NARROW_V2], ids=lambda config: config.name)
def test_what_stays_float32(config, part, dtype):
    """Norms (rsqrt and the sums before it), softmax (exp, and the logits before it), the time embedding (cos, sin and
    its two layers); v2's q k^T. Convolutions and the other products are in the dtype that was asked for."""
    found = traced(part, config, dtype)
    names = {equation.primitive.name for equation in found}
    assert {"rsqrt", "exp", "dot_general"} <= names
    for equation in found:
        if equation.primitive.name in ("rsqrt", "exp", "cos", "sin", "reduce_sum", "reduce_max", "square"):
            assert set(dtypes(equation)) == {"float32"}, equation
        if equation.primitive.name == "conv_general_dilated":
            assert dtypes(equation) == [dtype] * 2
    products = [equation for equation in found if equation.primitive.name == "dot_general"]
    batched = lambda equation: bool(equation.params["dimension_numbers"][1][0])  # of attention: no weights in them
    wide_out = lambda equation: str(equation.outvars[0].aval.dtype) == "float32"
    logits = [equation for equation in products if batched(equation) and wide_out(equation)]
    values = [equation for equation in products if batched(equation) and not wide_out(equation)]
    assert logits and len(logits) == len(values)
    upcast = part == "unet" and config.unet.upcast_attention
    assert all(dtypes(equation) == ["float32" if upcast else dtype] * 2 for equation in logits)
    assert all(dtypes(equation) == [dtype] * 2 for equation in values)
    wide = [equation for equation in products if not batched(equation) and "float32" in dtypes(equation)]
    assert len(wide) == (2 if part == "unet" else 0)  # the time embedding's
    assert all(len(equation.invars[0].aval.shape) == 2 for equation in wide)


def test_this_test_can_fail(monkeypatch):
    wrong = lambda q, k, v, heads, causal=False, upcast=False: attention(q, k, v, heads, causal, False)
    monkeypatch.setattr("sdjax.nn.transformer.attention", wrong)
    with pytest.raises(AssertionError):
        test_what_stays_float32(NARROW_V2, "unet", "float16")


@pytest.mark.parametrize("upcast", [True, False])
def test_large_logits_do_not_overflow(upcast):
    """Entries near 40 at head width 64 make logits of 12,800 and products of 102,400, above float16's 65,504."""
    draw = lambda seed: 40 * jax.random.normal(jax.random.key(seed), (1, 8, 128))
    q, k, v = draw(0), draw(1), draw(2)
    half = attention(*(x.astype(jnp.float16) for x in (q, k, v)), 2, upcast=upcast)
    assert half.dtype == jnp.float16 and np.isfinite(half).all()
    flat = jnp.full((1, 8, 128), 40, jnp.float16)
    assert np.isfinite(attention(flat, flat, flat, 2, upcast=upcast)).all()


@HALVES
@pytest.mark.parametrize("folder", [NARROW], indirect=True, ids=["narrow"])
def test_pictures_in_half_precision(folder, dtype):
    path, _ = folder
    full, half = (
        sdjax.txt2img(sdjax.load(path, dtype=dtype), "a red apple", steps=4, seed=1, output="pixels")
        for dtype in ("float32", dtype)
    )
    assert half.dtype == np.float32 and np.isfinite(half).all() and np.abs(half - full).mean() < 0.05


@pytest.mark.parametrize("stored, folder", [("float16", NARROW), ("bfloat16", NARROW_V2)], indirect=["folder"])
def test_stored_halves_compute_in_float32(folder, tmp_path, stored):
    """A float16 file at dtype float32 is its values, computed with in float32."""
    path, _ = folder
    sdjax.save(sdjax.load(path), tmp_path / "half", dtype=stored)
    sd = sdjax.load(tmp_path / "half")
    wide = replace(sd, params=jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float32), sd.params))
    found = outputs(sd)
    for name, value in outputs(wide).items():
        np.testing.assert_allclose(found[name], value, atol=2e-6 * np.abs(value).max())


def test_the_repr_has_both_dtypes():
    """What is computed in, and what the files held: a notebook's first question."""
    text = repr(replace(tiny(), params=jax.tree.map(lambda leaf: leaf.astype("float16"), tiny().params)))
    assert "parameters in float16, computes in float32>" in text
    mixed = tiny().params | {"vae": jax.tree.map(lambda leaf: leaf.astype("bfloat16"), tiny().params["vae"])}
    assert "parameters in bfloat16/float32, " in repr(replace(tiny(), params=mixed))
    assert "no parameters in no, " in repr(replace(tiny(), params={}))
