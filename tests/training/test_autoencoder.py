"""The VAE's loss: its terms, lambda against plain autodiff, what trains what, and no influence of how it is spread."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from sdjax.diffusion.noise import example_keys
from sdjax.networks.lpips.network import LPIPS, lpips, unit
from sdjax.networks.vae.network import VAE
from sdjax.training.autoencoder import (
    Other,
    Weights,
    further_noise,
    gaussian_kl,
    hinge,
    init_critic,
    random_parts,
    reconstruction,
    vae_loss,
    with_slope,
)
from sdjax.training.diffusion import latents_of
from sdjax.training.discriminator import PatchDiscriminator
from tests.narrow import NARROW, random_params

pytestmark = pytest.mark.usefixtures("quick_compile")
CONFIG = replace(NARROW.vae, channels=(8,), blocks=1)
SIZE, KEY = 24, jax.random.key(5)
WEIGHTS = Weights(kind="l2", kl=1e-3, perceptual=0.7, adversarial=0.5, start=3)
RNG = np.random.default_rng(0)
VAE_PARAMS, CRITIC = random_params(CONFIG), init_critic(1, SIZE)
VGG = LPIPS((4, 6, 8, 8, 8)).init(jax.random.key(2), jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 16, 16, 3)))["params"]


def batch(count=4, step=3):
    return {
        "pixels": RNG.uniform(-1, 1, (count, SIZE, SIZE, 3)).astype(np.float32),
        "index": np.arange(count, dtype=np.uint32) + 100,
        "step": np.full(count, step, np.int32),
    }


BATCH = batch()


def run(weights=WEIGHTS, params=None, data=BATCH, vgg=None, **options):
    """(loss, metrics, gradient)"""
    loss_fn = vae_loss(CONFIG, weights, vgg, **options)
    mean = lambda params: jax.tree.map(lambda x: x.mean(), loss_fn(params, data, KEY))
    trained = params or {"vae": VAE_PARAMS} | ({"critic": CRITIC} if weights.adversarial else {})
    (loss, metrics), gradient = jax.jit(jax.value_and_grad(mean, has_aux=True))(trained)
    return loss, metrics, gradient


@pytest.fixture(scope="module")
def whole():
    return run()


def reconstruct(params, data=BATCH):
    vae = VAE(CONFIG)
    mean, logvar = vae.apply({"params": params}, data["pixels"], method="encode")
    noise = jnp.stack([jax.random.normal(key, mean.shape[1:]) for key in example_keys(KEY, data["index"])])
    latents = latents_of(jnp.concatenate([mean, logvar], -1), noise)
    return vae.apply({"params": params}, latents, method="decode"), gaussian_kl(mean, logvar)


def nearly(a, b, tolerance=1e-4):
    flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    a, b = flat(a), flat(b)
    np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max())


def test_the_latents_of_another_vae():
    """Its encoder sees the picture reduced to as many latents; nothing but this VAE's encoder is moved by the term."""
    config = replace(CONFIG, channels=(8, 8))
    params, data = random_params(config), BATCH
    other = Other(replace(CONFIG, scaling=0.5), random_params(CONFIG))
    loss_fn = vae_loss(config, Weights(kl=0.0, like=2.0), other=other)
    losses, metrics = jax.jit(lambda p: loss_fn({"vae": p}, data, KEY))(params)
    small = data["pixels"].reshape(4, SIZE // 2, 2, SIZE // 2, 2, 3).mean((2, 4))
    theirs = VAE(other.config).apply({"params": other.params}, small, method="encode")[0]
    mine = VAE(config).apply({"params": params}, data["pixels"], method="encode")[0]
    apart = np.square(0.5 * np.asarray(mine - theirs)).mean((1, 2, 3))
    np.testing.assert_allclose(metrics["apart"], apart.mean(), rtol=1e-5)
    without = vae_loss(config, Weights(kl=0.0))({"vae": params}, data, KEY)[0]
    np.testing.assert_allclose(losses, without + 2 * apart, rtol=1e-5)
    moved = jax.grad(lambda p: loss_fn({"vae": p}, data, KEY)[1]["apart"])(params)
    assert {part for part, slope in moved.items() if any(np.any(x) for x in jax.tree.leaves(slope))} == {"encoder"}


def test_further_noise_of_the_latents():
    """Its spread is even in [0, e / scaling], a picture's own, and what the decoder is given."""
    keys, latents = example_keys(KEY, np.arange(500, dtype=np.uint32)), jnp.zeros((500, 8, 8, 4))
    noise = np.asarray(further_noise(keys, 0.5, latents))
    spread = np.sort(noise.std((1, 2, 3)))
    np.testing.assert_allclose(spread, np.linspace(0, 0.5, 500), atol=0.05)
    np.testing.assert_array_equal(further_noise(keys[7:8], 0.5, latents[:1])[0], noise[7])
    config, weights = replace(CONFIG, scaling=0.5), Weights(kind="l2", kl=0.0, noise=0.3)
    losses = vae_loss(config, weights)({"vae": VAE_PARAMS}, BATCH, KEY)[0]
    vae, keys = VAE(config), example_keys(KEY, BATCH["index"])
    mean, logvar = vae.apply({"params": VAE_PARAMS}, BATCH["pixels"], method="encode")
    drawn = jnp.stack([jax.random.normal(key, mean.shape[1:]) for key in keys])
    noised = latents_of(jnp.concatenate([mean, logvar], -1), drawn) + further_noise(keys, 0.3 / 0.5, mean)
    decoded = vae.apply({"params": VAE_PARAMS}, noised, method="decode")
    np.testing.assert_allclose(losses, reconstruction(BATCH["pixels"], decoded, "l2"), rtol=1e-4)


@pytest.mark.parametrize("kind, vgg", [("l1", None), ("l2", VGG)])
def test_without_a_discriminator(kind, vgg):
    def plain(params):
        decoded, kl = reconstruct(params["vae"])
        error = reconstruction(BATCH["pixels"], decoded, kind)
        error += 0.7 * lpips(VGG, BATCH["pixels"], decoded) if vgg else 0.0
        return (error + 1e-3 * kl / (SIZE * SIZE * 3)).mean()

    loss, metrics, gradient = run(replace(WEIGHTS, kind=kind, adversarial=0.0), vgg=vgg)
    want, slope = jax.jit(jax.value_and_grad(plain))({"vae": VAE_PARAMS})
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    nearly(gradient, slope)
    assert ("perceptual" in metrics) == bool(vgg)
    total = metrics["reconstruction"] + 0.7 * metrics.get("perceptual", 0) + 1e-3 * metrics["kl"] / 1728
    np.testing.assert_allclose(total, loss, rtol=1e-4)


def test_lpips_of_random_parts():
    """The same part of both pictures, another for each example, anywhere in the picture."""
    keys, places = example_keys(KEY, BATCH["index"]), np.stack(np.mgrid[:SIZE, :SIZE], -1)[None].repeat(4, 0)
    parts = np.concatenate([random_parts(jax.random.split(key, 4), 16, places)[0] for key in jax.random.split(KEY, 99)])
    corners = parts[:, 0, 0]
    np.testing.assert_array_equal(parts - corners[:, None, None], places[:1, :16, :16].repeat(len(parts), 0))
    assert {tuple(corner) for corner in corners.tolist()} == {(y, x) for y in range(9) for x in range(9)}
    _, metrics, _ = run(replace(WEIGHTS, side=16, adversarial=0.0), vgg=VGG)
    compared = random_parts(keys, 16, BATCH["pixels"], reconstruct(VAE_PARAMS)[0])
    np.testing.assert_allclose(metrics["perceptual"], lpips(VGG, *compared).mean(), rtol=1e-4)


def test_with_a_discriminator_lambda_is_compvis_s(whole):
    """Written out as there: two gradients by the last layer's parameters, of sums over a picture's values."""
    judge = lambda critic, pixels: PatchDiscriminator().apply({"params": critic}, pixels)

    def terms(params):
        decoded, kl = reconstruct(params["vae"])
        error = reconstruction(BATCH["pixels"], decoded, "l2")
        frozen = lax.stop_gradient(params["critic"])
        caution = hinge(judge(params["critic"], BATCH["pixels"]), judge(params["critic"], lax.stop_gradient(decoded)))
        return 1728 * error.mean(), 1e-3 * kl.mean(), -judge(frozen, decoded).mean(), caution.mean()

    params = {"vae": VAE_PARAMS, "critic": CRITIC}
    by_last = lambda k: optax.global_norm(
        jax.grad(lambda params: terms(params)[k])(params)["vae"]["decoder"]["conv_out"]
    )
    balance = jax.jit(lambda: jnp.clip(by_last(0) / (by_last(2) + 1e-4), 0, 1e4))()

    def plain(params):
        error, kl, doubt, caution = terms(params)
        return (error + kl + 0.5 * balance * doubt) / 1728 + caution

    loss, metrics, gradient = whole
    want, slope = jax.jit(jax.value_and_grad(plain))(params)
    np.testing.assert_allclose(metrics["adaptive_weight"], balance, rtol=1e-4)
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    nearly(gradient["vae"], slope["vae"])
    nearly(gradient["critic"], slope["critic"])
    assert 1 < balance < 1e4


def test_lambda_is_clipped():
    flat = jax.tree.map(lambda leaf: leaf * 0, CRITIC)  # judges nothing
    loss, metrics, gradient = run(params={"vae": VAE_PARAMS, "critic": flat})
    assert metrics["adaptive_weight"] == 1e4 and np.isfinite(loss)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_before_its_start_the_discriminator_does_nothing(whole):
    early = BATCH | {"step": np.full(4, 2, np.int32)}
    (loss, _, gradient), (want, _, slope) = run(data=early), run(replace(WEIGHTS, adversarial=0.0))
    np.testing.assert_allclose(loss, want, rtol=1e-6)
    nearly(gradient["vae"], slope["vae"])
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient["critic"]))
    assert any(leaf.any() for leaf in jax.tree.leaves(whole[2]["critic"]))


def test_the_same_gradient_however_the_batch_is_spread(whole):
    """vmap with a named axis stands for pmap: two parts of the batch, each with its own copy of the parameters."""
    halves = jax.tree.map(lambda leaf: leaf.reshape(2, 2, *leaf.shape[1:]), BATCH)
    for average, equal in ((lambda tree: lax.pmean(tree, "data"), True), (lambda tree: tree, False)):
        loss_fn = vae_loss(CONFIG, WEIGHTS, average=average)
        params = {"vae": VAE_PARAMS, "critic": CRITIC}

        def step(data, loss_fn=loss_fn, params=params):
            mean = lambda params: jax.tree.map(lambda x: x.mean(), loss_fn(params, data, KEY))
            return lax.pmean(jax.value_and_grad(mean, has_aux=True)(params), "data")

        (loss, metrics), gradient = jax.tree.map(lambda x: x[0], jax.jit(jax.vmap(step, axis_name="data"))(halves))
        if equal:
            np.testing.assert_allclose(loss, whole[0], rtol=1e-5)
            nearly(metrics, whole[1])
            nearly(gradient, whole[2])
        else:  # the test can fail
            assert abs(metrics["adaptive_weight"] / whole[1]["adaptive_weight"] - 1) > 1e-4


def test_what_is_fixed_is_used_and_not_trained(whole):
    decoder = {"vae": {"decoder": VAE_PARAMS["decoder"]}, "critic": CRITIC}
    loss, _, gradient = run(params=decoder, fixed={"encoder": VAE_PARAMS["encoder"]})
    np.testing.assert_allclose(loss, whole[0], rtol=1e-6)
    assert set(gradient["vae"]) == {"decoder"}


def test_with_slope_is_autodiff():
    x = jnp.asarray(RNG.normal(size=(3, 4, 2)), jnp.float32)
    function = lambda x: jnp.sin(x).sum((1, 2)) ** 2
    of = lambda f: jax.value_and_grad(lambda x: (jnp.arange(1.0, 4.0) * f(x**2)).sum())(x)
    (value, slope), want = of(lambda x: with_slope(function, x)[0]), of(function)
    np.testing.assert_allclose(value, want[0], rtol=1e-6)
    np.testing.assert_allclose(slope, want[1], rtol=1e-5)


def test_lpips_is_a_distance_with_finite_slopes():
    distance = jax.jit(lambda a, b: lpips(VGG, a, b))
    a, b = BATCH["pixels"][:2], BATCH["pixels"][2:]
    assert (distance(a, a) == 0).all() and (distance(a, b) > 0).all()
    np.testing.assert_allclose(distance(a, b), distance(b, a), rtol=1e-5)
    assert np.isfinite(jax.grad(lambda a: distance(a, b).sum())(-jnp.ones_like(a))).all()
    zero = jnp.zeros((1, 1, 1, 3))
    assert (unit(zero) == 0).all() and (jax.grad(lambda h: unit(h).sum())(zero) == 0).all()


def test_bfloat16_is_near(whole):
    low, high = run(dtype="bfloat16"), whole
    assert low[0] != high[0] and abs(low[0] / high[0] - 1) < 0.02
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(low[2]))
