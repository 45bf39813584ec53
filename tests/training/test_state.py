"""The train step against optax and against hand-made numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdjax.errors import SdjaxError
from sdjax.training.optimizer import make_optimizer
from sdjax.training.state import make_state, make_train_step, trained_params, update_ema

pytestmark = pytest.mark.usefixtures("quick_compile")


def quadratic(params, batch, key):
    """sum over w of (w - b)^2 / 2 an example: the gradient is w - mean(b)."""
    losses = 0.5 * jnp.square(params["w"] - batch).sum(1)
    return losses, {"draw": jax.random.uniform(key)}


def test_a_step_of_sgd_by_hand():
    w, batch = np.array([1.0, -2.0], np.float32), np.array([[0.0, 0.0], [1.0, 2.0]], np.float32)
    optimizer = optax.sgd(0.5)
    step = make_train_step(quadratic, optimizer, 0.9)
    state, metrics = step(make_state({"w": jnp.array(w)}, optimizer), batch, jax.random.key(0))
    gradient = w - np.array([0.5, 1.0])
    np.testing.assert_allclose(state.params["w"], w - 0.5 * gradient, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], (2.5 + 8.0) / 2, rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], np.sqrt((gradient**2).sum()), rtol=1e-6)
    np.testing.assert_allclose(state.ema["w"], w + (1 - 2 / 11) * (state.params["w"] - w), rtol=1e-6)
    assert state.step == 1 and state.step.dtype == jnp.int32
    draws = [float(metrics["draw"])] + [float(step(state, batch, jax.random.key(k))[1]["draw"]) for k in (0, 1)]
    assert len(set(draws)) == 3, "steps or keys draw the same"


@pytest.mark.parametrize(
    "name, reference",
    [
        ("adamw", lambda s: optax.adamw(s, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01)),
        ("lion", lambda s: optax.lion(s, weight_decay=0.01)),
        ("adafactor", optax.adafactor),
    ],
)
def test_optimizers_are_optax_s_after_clipping(name, reference):
    optimizer, schedule = make_optimizer(name, 0.1, 10, 2, "cosine")
    theirs, params = reference(schedule), {"w": jnp.array([3.0, 4.0])}
    state, other, hidden = make_state(params, optimizer), params, theirs.init(params)
    step = make_train_step(quadratic, optimizer, 0.0)
    for _ in range(3):
        state, metrics = step(state, jnp.zeros((2, 2)), jax.random.key(0))
        gradient = jax.tree.map(lambda g: g / jnp.maximum(optax.global_norm(g), 1.0), other)  # the gradient of w^2 / 2
        updates, hidden = theirs.update(gradient, hidden, other)
        other = optax.apply_updates(other, updates)
    np.testing.assert_allclose(state.params["w"], other["w"], rtol=1e-5)
    assert metrics["grad_norm"] > 1, "the norm is logged before clipping"
    np.testing.assert_array_equal(state.ema["w"], state.params["w"])  # decay 0 follows at once


def test_ema_warms_up():
    ema = {"w": jnp.zeros(())}
    for n in (1, 10, 100, 10**6):
        moved = update_ema(ema, {"w": jnp.ones(())}, jnp.int32(n), 0.999)["w"]
        np.testing.assert_allclose(moved, 1 - min(0.999, (1 + n) / (10 + n)), rtol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_parameters_of_any_file_train_in_float32(dtype):
    """As `load` returns them, many files' in float16: their Adam would be NaN from the second step on."""
    params = {"w": jnp.full(3, 0.5, dtype), "n": jnp.arange(3)}
    optimizer = optax.masked(optax.adam(1e-5), {"w": True, "n": False})
    loss = lambda params, batch, key: quadratic({"w": params["w"]}, batch, key)
    state = make_state({"w": params["w"]}, optax.adam(1e-5))
    step = make_train_step(loss, optax.adam(1e-5), 0.9999)
    for _ in range(5):
        state, metrics = step(state, jnp.zeros((1, 3)), jax.random.key(0))
        assert jnp.isfinite(metrics["loss"])
    assert {leaf.dtype.name for leaf in jax.tree.leaves((state.params, state.ema))} == {"float32"}
    assert (state.params["w"] < 0.5).all(), "steps of 1e-5, which are nothing to a 0.5 in float16"
    assert make_state(params, optimizer, ema=False).params["n"].dtype == jnp.int32


def test_ema_of_bfloat16_weights_is_float32_and_moves():
    later = update_ema({"w": jnp.ones(3)}, {"w": jnp.full(3, 1.0078125, jnp.bfloat16)}, jnp.int32(10**6), 0.9999)
    assert (later["w"] > 1).all() and (later["w"].astype(jnp.bfloat16) == 1).all()  # less than bfloat16 can tell


def test_the_ema_is_a_copy():
    """The step donates its state: no two leaves may share a buffer."""
    params = {"w": jnp.ones(3)}
    state = make_state(params, optax.sgd(0.1))
    assert state.ema["w"].unsafe_buffer_pointer() != params["w"].unsafe_buffer_pointer()


def test_courses_of_the_learning_rate():
    for decay, half, end in [("constant", 0.2, 0.2), ("cosine", 0.1, 0.0), ("linear", 0.1, 0.0)]:
        _, schedule = make_optimizer("adamw", 0.2, 110, 10, decay)
        np.testing.assert_allclose([schedule(n) for n in (0, 5, 10, 60, 110)], [0, 0.1, 0.2, half, end], atol=1e-6)
        _, cold = make_optimizer("adamw", 0.2, 100, 0, decay)
        np.testing.assert_allclose([cold(0), cold(50)], [0.2, half], atol=1e-6)


def test_parts_of_a_batch_add_up_to_the_whole():
    batch = jnp.asarray(np.random.default_rng(0).normal(size=(12, 2)), jnp.float32)
    optimizer, found = optax.sgd(0.1, momentum=0.0), []
    for parts in (1, 2, 3, 12):
        step = make_train_step(quadratic, optimizer, 0.9, accumulate=parts)
        state, metrics = jax.jit(step)(make_state({"w": jnp.array([3.0, -1.0])}, optimizer), batch, jax.random.key(0))
        found.append(np.concatenate([*jax.tree.leaves(state.opt_state), metrics["loss"][None], metrics["draw"][None]]))
        np.testing.assert_allclose(found[-1], found[0], rtol=1e-6)
    np.testing.assert_allclose(found[0][:2], np.array([3.0, -1.0]) - batch.mean(0), rtol=1e-5)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_changes_nothing(where):
    """The gradient alone: sqrt's at 0 is infinite, its value is not."""

    def loss_fn(params, batch, key):
        root = jnp.sqrt(jnp.abs(params["w"]).sum() * batch[:, 0]) if where == "gradient" else batch[:, 0]
        return jnp.square(params["w"]).sum() + root, {}

    optimizer, schedule = make_optimizer("adamw", 0.1, 100, 10, "constant")
    step = jax.jit(make_train_step(loss_fn, optimizer, 0.9, accumulate=2, schedule=schedule))
    good, poison = jnp.ones((4, 1)), jnp.ones((4, 1)).at[2].set(0.0 if where == "gradient" else jnp.nan)
    state, metrics = step(make_state({"w": jnp.array([1.0, 2.0])}, optimizer), good, jax.random.key(0))
    assert metrics["bad"] == 0 and metrics["learning_rate"] == 0
    for n in (1, 2):
        after, metrics = step(state, poison, jax.random.key(0))
        for name in ("params", "opt_state", "ema"):
            jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(state, name))
        assert after.step == n + 1 and after.skipped == n and after.bad == metrics["bad"] == n
        finite = {name for name in ("loss", "grad_norm") if np.isfinite(metrics[name])}
        assert finite == {"loss" if where == "gradient" else "grad_norm"}
        state = after
    state, metrics = step(state, good, jax.random.key(0))
    assert state.bad == metrics["bad"] == 0 and (state.params["w"] != after.params["w"]).all()
    np.testing.assert_allclose(metrics["learning_rate"], 0.01, rtol=1e-6)  # of the second update, not the fourth step


def test_no_ema_is_no_copy():
    state = make_state({"w": jnp.ones(3)}, optax.sgd(0.1), ema=False)
    assert state.ema is None and trained_params(state) is state.params
    state, _ = make_train_step(quadratic, optax.sgd(0.1), 0.0)(state, jnp.zeros((1, 3)), jax.random.key(0))
    assert state.ema is None


def test_unknown_names_list_the_known():
    with pytest.raises(SdjaxError, match="optimizer adam: expected one of adamw, adafactor, lion, muon"):
        make_optimizer("adam", 0.1, 10, 2, "cosine")
    with pytest.raises(SdjaxError, match="decay step: expected one of constant, cosine, linear"):
        make_optimizer("adamw", 0.1, 10, 2, "step")


def test_muon_orthogonalises_kernels_and_leaves_the_rest_to_adam():
    """Whatever the gradient's singular values, a step along a kernel has all of them alike, as do convolutions'."""
    key = jax.random.key(0)
    kernel = jax.random.normal(key, (12, 6)) * jnp.array([100.0, 10.0, 1.0, 1.0, 0.3, 0.1])
    params = {
        "dense": {"kernel": jnp.zeros((12, 6)), "bias": jnp.zeros(6)},
        "conv": {"kernel": jnp.zeros((3, 2, 2, 6))},
    }
    gradient = {
        "dense": {"kernel": kernel, "bias": jnp.arange(1.0, 7.0)},
        "conv": {"kernel": kernel.reshape(3, 2, 2, 6)},
    }
    optimizer, _ = make_optimizer("muon", 0.1, 10, 0, "constant", clip=1e9)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    spectrum = np.linalg.svd(updates["dense"]["kernel"], compute_uv=False)
    assert spectrum.max() / spectrum.min() < 2.5 < 100 < np.linalg.cond(kernel)
    rms = np.sqrt(np.square(updates["dense"]["kernel"]).mean())
    assert 0.1 < rms / (0.1 * 0.2) < 1.5  # Adam's usual size, arXiv 2502.16982
    flat = updates["conv"]["kernel"].reshape(12, 6)
    np.testing.assert_allclose(flat, updates["dense"]["kernel"], rtol=1e-4, atol=1e-6)
    adam = optax.nadamw(0.1, weight_decay=0.0)
    expected, _ = adam.update(gradient["dense"]["bias"], adam.init(params["dense"]["bias"]), params["dense"]["bias"])
    np.testing.assert_allclose(updates["dense"]["bias"], expected, rtol=1e-5)
