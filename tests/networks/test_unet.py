"""What the UNet's shortcuts leave as it was."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.model.functions import context_keys, unet_output
from sdjax.tasks.stages import unet_ahead
from tests.narrow import NARROW, random_params

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_keys_and_values_may_come_ready_made(dtype):
    config, params, dtype = NARROW.unet, random_params(NARROW.unet), jnp.dtype(dtype)
    rng = np.random.default_rng(0)
    x, context = rng.normal(size=(2, 8, 8, 4)).astype(np.float32), rng.normal(size=(2, 5, 24)).astype(np.float32)
    ready = context_keys(params, context, dtype)
    crosses = {f"{name}/block" for name, part in params.items() if "block" in part}
    assert set(ready) == crosses and len(crosses) == 11
    out = [unet_output(params, x, jnp.ones(2), c, config, dtype) for c in (context, ready)]
    np.testing.assert_allclose(*out, atol=1e-6 if dtype == jnp.float32 else 0.01)
    assert np.abs(out[0] - unet_output(params, x, jnp.ones(2), 2 * context, config, dtype)).max() > 1e-3


def test_keys_and_values_of_composed_prompts():
    """Any axes before the tokens: [B, P, L, D]."""
    context = np.random.default_rng(0).normal(size=(2, 3, 5, 24)).astype(np.float32)
    ready = context_keys(random_params(NARROW.unet), context)
    assert {leaf.shape[:3] for leaf in jax.tree.leaves(ready)} == {(2, 3, 5)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameters_and_times_may_come_ready_made(dtype):
    """Of several steps at once; nothing of them is computed, or cast, a second time."""
    config, params, dtype = NARROW.unet, random_params(NARROW.unet), jnp.dtype(dtype)
    rng = np.random.default_rng(0)
    x, context = rng.normal(size=(2, 8, 8, 4)).astype(np.float32), rng.normal(size=(2, 5, 24)).astype(np.float32)
    steps = jnp.array([981.0, 500.5, 1.0])
    ready, shifts = unet_ahead(params, steps, config=NARROW, dtype=dtype)
    rows = lambda first, end: jax.tree.map(lambda leaf: leaf[first:end], shifts)
    out = [
        unet_output(params, x, steps[1:], context, config, dtype),
        unet_output(ready, x, rows(1, 3), context, config, dtype),
    ]
    np.testing.assert_allclose(*out, atol=1e-6 if dtype == jnp.float32 else 0.01)
    assert np.abs(out[0] - unet_output(ready, x, rows(0, 2), context, config, dtype)).max() > 1e-3
    without = {
        name: {key: leaf for key, leaf in part.items() if key != "time"}
        for name, part in ready.items()
        if name not in ("time_in", "time_out")
    }
    np.testing.assert_array_equal(unet_output(without, x, rows(1, 3), context, config, dtype), out[1])
    traced = str(jax.make_jaxpr(lambda *args: unet_output(*args, config, dtype))(ready, x, rows(1, 3), context))
    kernels = {leaf.shape for leaf in jax.tree.leaves(ready) if leaf.ndim > 1}
    name = {"float32": "f32", "bfloat16": "bf16"}[dtype.name]
    cast = {f":{name}[{','.join(map(str, shape))}] = convert_element_type" for shape in kernels}
    assert not any(line in traced for line in cast)
