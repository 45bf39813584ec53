"""Losses against their formulas, and draws that belong to the example."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.diffusion.schedule import ScheduleConfig, make_schedule
from sdjax.training import diffusion
from sdjax.training.autoencoder import gaussian_kl, reconstruction
from sdjax.training.clip import clip_contrastive
from sdjax.training.diffusion import diffusion_loss, dropped, latents_of, noise_batch, on_text
from sdjax.types import Batch
from tests.narrow import NARROW, random_params

pytestmark = pytest.mark.usefixtures("quick_compile")
ABAR = jnp.asarray(make_schedule(ScheduleConfig()).alphas_cumprod, jnp.float32)
KEY = jax.random.key(3)
RNG = np.random.default_rng(0)
drop_captions = lambda context, null, index, key, rate: diffusion.drop_captions(
    context, null, dropped(index, key, rate)
)


def noise(index, prediction="epsilon", key=KEY, **options):
    """noise_batch on x0 = the posterior's unit noise, so that x0 can be told from x and the target."""
    index, seen = jnp.asarray(index), []
    keep = lambda unit: seen.append(unit) or unit
    return noise_batch(keep, (len(index), 4, 4, 4), index, key, ABAR, prediction, **options), seen[0]


def test_x_and_target_are_rotations_of_x0_and_eps():
    (x, t, eps, weight), x0 = noise(range(200))
    (x_too, _, v, _), _ = noise(range(200), "v")
    signal, sigma = (np.sqrt(a)[:, None, None, None] for a in (ABAR[t], 1 - ABAR[t]))
    np.testing.assert_array_equal(x, x_too)
    np.testing.assert_allclose(x, signal * x0 + sigma * eps, atol=1e-5)
    np.testing.assert_allclose(v, signal * eps - sigma * x0, atol=1e-5)
    np.testing.assert_allclose(signal * x - sigma * v, x0, atol=1e-5)  # the identity that makes v a prediction
    assert (weight == 1).all()
    assert abs(np.corrcoef(np.ravel(x0), np.ravel(eps))[0, 1]) < 0.05, "x0 and eps are not drawn apart"


def test_draws_are_standard():
    (_, t, eps, _), _ = noise(range(200))
    assert t.dtype == jnp.int32 and 0 <= t.min() < 20 and 980 < t.max() < 1000
    assert abs(t.mean() - 499.5) < 60 and abs(eps.mean()) < 0.03 and abs(eps.std() - 1) < 0.02


def test_logit_normal_timesteps():
    (_, t, _, _), _ = noise(range(4000), logit_normal=(0.8, 1.2))
    logit = np.log((t + 0.5) / (999.5 - t))
    assert t.dtype == jnp.int32 and t.min() >= 0 and t.max() <= 999
    assert abs(logit.mean() - 0.8) < 0.06 and abs(logit.std() - 1.2) < 0.05


def test_an_example_s_draws_depend_on_its_index_and_the_key_alone():
    (whole, x0), (some, x0_some) = noise([5, 6, 7, 8]), noise([8, 6])
    for name, a, b in [*zip(whole._fields, whole, some, strict=True), ("x0", x0, x0_some)]:
        np.testing.assert_array_equal(a[jnp.array([3, 1])], b, err_msg=name)
    assert len({float(value) for value in whole.target[:, 0, 0, 0]}) == 4
    other, x0_other = noise([5, 6, 7, 8], key=jax.random.fold_in(KEY, 1))
    assert (other.target != whole.target).all() and (x0_other != x0).all()


@pytest.mark.parametrize(
    "prediction, formula",
    [
        ("epsilon", lambda snr: np.minimum(snr, 5) / snr),
        ("v", lambda snr: np.minimum(snr, 5) / (snr + 1)),
        ("x0", lambda snr: np.minimum(snr, 5)),
    ],
)
def test_min_snr(prediction, formula):
    """arXiv 2303.09556: as a loss on x0 all weights are min(snr, 5)."""
    (_, t, _, weight), _ = noise(range(200), prediction, min_snr_gamma=5.0)
    abar = np.asarray(make_schedule(ScheduleConfig()).alphas_cumprod)[t]
    np.testing.assert_allclose(weight, formula(abar / (1 - abar)), rtol=1e-3)
    assert weight.min() < 0.1 and weight.max() > 0.8


def test_noise_offset_moves_whole_channels():
    (plain, _), (offset, _) = noise(range(300)), noise(range(300), noise_offset=0.1)
    moved = (offset.target - plain.target) / 0.1
    np.testing.assert_allclose(moved, moved[:, :1, :1].repeat(4, 1).repeat(4, 2), atol=1e-4)
    draws = np.asarray(moved[:, 0, 0])
    assert abs(draws.mean()) < 0.1 and abs(draws.std() - 1) < 0.1
    assert abs(np.corrcoef(draws.T) - np.eye(4)).max() < 0.2, "channels share their draw"
    assert abs(np.corrcoef(draws[1:, 0], draws[:-1, 0])[0, 1]) < 0.2, "examples share theirs"
    sigma = np.sqrt(1 - ABAR[plain.t])[:, None, None, None]
    np.testing.assert_allclose(offset.x - plain.x, sigma * 0.1 * moved, atol=1e-5)  # x is made with the moved noise
    some, _ = noise([7, 3], noise_offset=0.1)
    np.testing.assert_array_equal(some.target, offset.target[jnp.array([7, 3])])


def test_pure_noise_at_zero_terminal_snr():
    schedule = make_schedule(ScheduleConfig(prediction="v", zero_terminal_snr=True))
    last = jnp.asarray(schedule.alphas_cumprod[-1:], jnp.float32)
    found = noise_batch(lambda unit: unit + 100, (500, 2, 2, 4), jnp.arange(500), KEY, last, "v", 5.0)
    assert (found.weight == 0).all() and abs(found.x.mean()) < 0.1 and abs(found.x.std() - 1) < 0.1
    assert abs(found.target.mean() + 100) < 0.1  # v = -x0


def test_x0_is_a_target_too():
    (_, _, target, _), x0 = noise(range(20), "x0")
    np.testing.assert_array_equal(target, x0)


def test_captions_are_dropped_by_example_and_rate():
    null, index = jnp.zeros((3, 2)), jnp.arange(4000)
    context = jnp.ones((4000, 3, 2))
    out = drop_captions(context, null, index, KEY, 0.1)
    dropped = np.asarray((out == 0).all((1, 2)))
    assert (dropped | np.asarray((out == 1).all((1, 2)))).all() and abs(dropped.mean() - 0.1) < 0.02
    order = np.random.default_rng(0).permutation(4000)[:50]
    np.testing.assert_array_equal(drop_captions(context[:50], null, index[order], KEY, 0.1), out[order])
    assert (drop_captions(context, null, index, jax.random.key(4), 0.1) != out).any()
    assert (drop_captions(context, null, index, KEY, 0.0) == 1).all()
    assert (drop_captions(context, null, index, KEY, 1.0) == 0).all()


def test_no_key_is_drawn_from_twice(monkeypatch):
    """A single uniform per key: what decides a dropped caption is no other example's time or noise."""
    used, index = [], jnp.arange(8)
    note = lambda draw: lambda key, *args: used.append(jax.random.key_data(key)) or draw(key, *args)
    for name in ("normal", "randint", "bernoulli"):
        monkeypatch.setattr(jax.random, name, note(getattr(jax.random, name)))
    with jax.disable_jit():
        for i in index:
            monkeypatch.setattr(jax, "vmap", lambda f: lambda *a: jnp.stack([f(*row) for row in zip(*a, strict=True)]))
            noise([i], noise_offset=0.1)
            drop_captions(jnp.ones((1, 3, 2)), jnp.zeros((3, 2)), jnp.array([i]), KEY, 0.5)
    assert len(used) == 8 * 5 and len({tuple(np.asarray(key).tolist()) for key in used}) == 8 * 5


def test_posterior_sample_and_kl_in_closed_form():
    mean, logvar = RNG.normal(size=(2, 3, 2, 2, 4)).astype(np.float32)
    unit = RNG.normal(size=mean.shape).astype(np.float32)
    moments = np.concatenate([mean, logvar], -1)
    np.testing.assert_allclose(latents_of(moments, unit), mean + np.exp(logvar / 2) * unit, rtol=1e-5)
    sigma = np.exp(logvar.astype(float) / 2)  # KL(N(m, s) || N(0, 1)) = (m^2 + s^2 - 1) / 2 - ln s
    np.testing.assert_allclose(
        gaussian_kl(mean, logvar), ((mean**2 + sigma**2 - 1) / 2 - np.log(sigma)).sum((1, 2, 3)), rtol=1e-4
    )
    assert (gaussian_kl(jnp.zeros((2, 2, 2, 4)), jnp.zeros((2, 2, 2, 4))) == 0).all()


def test_remat_and_bfloat16_change_no_more_than_they_say():
    """remat: the same loss and gradient. bfloat16: of the computation alone, the gradient is float32 and near."""
    unet = replace(NARROW.unet, channels=(16,), blocks=1, attention=(False,), heads=(2,))
    config, params = replace(NARROW, unet=unet), random_params(unet)
    batch = Batch(
        RNG.normal(size=(2, 4, 4, 8)).astype(np.float16),
        RNG.normal(size=(2, 3, 24)).astype(np.float16),
        np.arange(2, dtype=np.uint32),
    )

    def run(**options):
        loss_fn = diffusion_loss(config, on_text(np.zeros((3, 24), np.float32)), **options)
        loss, gradient = jax.jit(jax.value_and_grad(lambda p: loss_fn(p, batch, KEY)[0].mean()))(params)
        return loss, np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)])

    (loss, plain), (again, remat), (rounded, low) = run(), run(remat=True), run(dtype="bfloat16")
    np.testing.assert_allclose(again, loss, rtol=1e-6)
    np.testing.assert_allclose(remat, plain, atol=1e-5 * np.abs(plain).max())
    assert low.dtype == np.float32 and 1e-4 < np.abs(low - plain).max() / np.abs(plain).max() < 0.1
    assert rounded != loss and abs(rounded / loss - 1) < 0.02


def test_reconstruction():
    a, b = RNG.normal(size=(2, 3, 4, 4, 3))
    np.testing.assert_allclose(reconstruction(a, b, "l1"), np.abs(a - b).mean((1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(reconstruction(a, b, "l2"), ((a - b) ** 2).mean((1, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize("logit_scale", [np.log(10.0), 8.0])
def test_contrastive(logit_scale):
    """Figure 3 of CLIP (arXiv 2103.00020), written out; the temperature is held at 1 / 100."""
    image, text = RNG.normal(size=(2, 5, 7))
    scale = min(np.exp(logit_scale), 100)
    cosine = np.array([[i @ t / np.sqrt((i @ i) * (t @ t)) for t in text] for i in image])
    cross = lambda rows: [np.log(np.exp(scale * row).sum()) - scale * row[k] for k, row in enumerate(rows)]
    want = (np.array(cross(cosine)) + np.array(cross(cosine.T))) / 2
    losses, found = clip_contrastive(image, text, logit_scale)
    np.testing.assert_allclose(losses, want, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(found, cosine.argmax(1) == np.arange(5))
    losses, found = clip_contrastive(text, text, logit_scale)
    assert losses.mean() < want.mean() and found.all()
