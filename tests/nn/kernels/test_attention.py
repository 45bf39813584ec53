"""Every way of attention against the formula, for the shapes that the presets use, and what each backend chooses."""

import re
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.experimental.pallas import tpu as pltpu

from sdjax.families.config import Config
from sdjax.families.sd import EMOJI, SD15, SD21, SD21_BASE
from sdjax.nn.kernels.attention import TABLE, Size, attention, blocked, blocked_large, choose, cudnn, flash, plain

F32 = jnp.dtype("float32")


def shapes(config: Config) -> set[tuple[int, int, int, int]]:
    """(heads, T, S, width of a head) of every attention but the text tower's, a picture at the model's own size."""
    latent = config.size // config.vae.factor
    found = {(1, latent**2, latent**2, config.vae.channels[-1])}
    levels = [i for i, attends in enumerate(config.unet.attention) if attends] + [len(config.unet.channels) - 1]
    for level in levels:
        t, heads = (latent >> level) ** 2, config.unet.heads[level]
        found |= {(heads, t, s, config.unet.channels[level] // heads) for s in (t, config.text.length)}
    return found


ALL = sorted({shape for config in (SD15, SD21_BASE, SD21, EMOJI) for shape in shapes(config)})


def draw(t, s, width, seed=0, dtype=np.float32):
    """q and k large enough that some weights are near 1."""
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(size=(1, length, 1, width)) for length in (t, s, s))
    return tuple(jnp.asarray(x, dtype) for x in (1.5 * q, 1.5 * k, v))


def formula(q, k, v):
    """In float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    logits = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bhts,bshd->bthd", weights / weights.sum(-1, keepdims=True), v)


def gradients(way, qkv, seed, rows):
    """Of sum(seed * y) over the first `rows` rows alone."""
    return jax.jit(jax.grad(lambda qkv: (seed * way(*qkv)[:, :rows]).sum()))(qkv)


def error(a, b):
    return float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max() / np.abs(np.asarray(b)).max())


@pytest.mark.parametrize("t, s, width", sorted({shape[1:] for shape in ALL}))
def test_this_backend_computes_the_formula(t, s, width):
    """Forward and backward. Rows do not know each other: two blocks of them are enough, 256 rows are checked."""
    t = min(t, 2**21 // s)
    q, k, v = draw(t, s, width)
    rows = min(t, 256)
    one = jax.jit(lambda q, k, v: attention(*(x[:, :, 0] for x in (q, k, v)), heads=1)[:, :, None])
    assert error(one(q, k, v)[:, -rows:], formula(q[:, -rows:], k, v)) < 5e-6
    seed = draw(rows, 1, width, seed=1)[0]
    ours, theirs = gradients(one, (q, k, v), seed, rows), gradients(plain, (q[:, :rows], k, v), seed, rows)
    assert error(ours[0][:, :rows], theirs[0]) < 5e-6 and not np.any(ours[0][:, rows:])
    assert error(ours[1], theirs[1]) < 5e-6 and error(ours[2], theirs[2]) < 5e-6


@pytest.mark.parametrize("way", [blocked, blocked_large])
@pytest.mark.parametrize("t, s, most", [(100, 77, 1000), (7, 300, 100), (64, 64, 2**14), (33, 5, 1)])
@pytest.mark.parametrize("dtype, limit", [(np.float32, 2e-6), (jnp.bfloat16, 2e-2)])
def test_blocks_of_any_size(way, t, s, most, dtype, limit):
    qkv = [jnp.concatenate([x, x[:, ::-1]], 2).repeat(2, 0) for x in draw(t, s, 8, dtype=dtype)]
    assert error(jax.jit(partial(way, most=most))(*qkv), formula(*qkv)) < limit
    seed = draw(t, 1, 8)[0]
    for ours, theirs in zip(
        gradients(partial(way, most=most), qkv, seed, t), gradients(plain, qkv, seed, t), strict=True
    ):
        assert error(ours, theirs) < 2 * limit


SMALL = ((128, 128, 128), (256, 256, 128))  # (most of a block, of a piece) for queries and for keys


@pytest.fixture(params=[None, 0, 1], ids=["as planned", "blocks", "pieces"])
def planned(request, monkeypatch):
    """The TPU kernels in Pallas' interpreter, with several blocks or pieces in a block, at small lengths too."""
    from sdjax.nn.kernels import flash as kernels

    if request.param is not None:
        most = SMALL[request.param]
        monkeypatch.setattr(
            kernels,
            "plan",
            lambda q, k: (kernels.blocks(q.shape[3], most[2], most[2]), kernels.blocks(k.shape[3], most[0], most[2])),
        )
    with pltpu.force_tpu_interpret_mode():
        yield


@pytest.mark.parametrize("t, s, width", [(200, 77, 40), (256, 600, 64), (300, 256, 160)])
def test_the_tpu_kernels_compute_the_formula(planned, t, s, width):
    """Forward and backward, two examples of two heads."""
    qkv = [jnp.concatenate([x, x[:, ::-1]], 2).repeat(2, 0) for x in draw(t, s, width)]
    assert error(jax.jit(flash)(*qkv), formula(*qkv)) < 2e-6
    seed = draw(t, 1, width, seed=1)[0]
    for ours, theirs in zip(gradients(flash, qkv, seed, t), gradients(plain, qkv, seed, t), strict=True):
        assert error(ours, theirs) < 5e-6


@pytest.mark.parametrize("planned", [0], indirect=True)
def test_the_tpu_kernels_in_bfloat16(planned):
    qkv, seed = draw(300, 400, 40, dtype=jnp.bfloat16), draw(300, 1, 40, seed=1)[0]
    assert error(jax.jit(flash)(*qkv), formula(*qkv)) < 1e-2
    full = [x.astype(jnp.float32) for x in qkv]
    for ours, theirs in zip(gradients(flash, qkv, seed, 300), gradients(plain, full, seed, 300), strict=True):
        assert ours.dtype == jnp.bfloat16 and error(ours, theirs) < 2e-2


@pytest.mark.parametrize(
    "length, most, piece",
    [
        (64, 512, 512),
        (4096, 8192, 512),
        (77, 128, 128),
        (9216, 4096, 512),
        (10816, 4096, 512),
        (1, 128, 128),
        (1025, 1024, 512),
    ],
)
def test_blocks_of_the_tpu_kernels(length, most, piece):
    from sdjax.nn.kernels.flash import blocks

    found = blocks(length, most, piece)
    assert found.count * found.block == length + found.padding and 0 <= found.padding < max(found.block, 1)
    assert found.block % found.piece == 0 and found.piece <= max(piece, 128)
    assert found.block == length or found.piece % 128 == 0


def test_causal_rows_see_what_is_before_them():
    q, k, v = (x[:, :, 0] for x in draw(77, 77, 16))
    y = attention(q, k, v, 2, causal=True)
    np.testing.assert_allclose(y[:, :40], attention(q[:, :40], k[:, :40], v[:, :40], 2, causal=True), atol=1e-6)
    np.testing.assert_allclose(y[:, -1], attention(q, k, v, 2)[:, -1], atol=1e-6)


def test_upcast_is_float32_arithmetic():
    q, k, v = (x[:, :, 0] for x in draw(8, 8, 8, dtype=jnp.float16))
    hot = attention(40 * q, 40 * k, v, 1, upcast=True)
    assert hot.dtype == jnp.float16 and np.isfinite(np.asarray(hot)).all()


@pytest.mark.parametrize("platform", TABLE)
@pytest.mark.parametrize("dtype", [F32, jnp.dtype("bfloat16"), jnp.dtype("float16")])
def test_all_logits_are_never_held_at_512_pixels(platform, dtype):
    for heads, t, s, width in ALL:
        for batch in (2, 16):
            size = Size(batch * heads, t, s, width, dtype, False)
            assert choose(platform, size) is not plain or size.logits <= 2**23
    assert choose(platform, Size(2 * 12, 77, 77, 64, dtype, True)) is plain


def test_what_each_backend_takes():
    wide, half = Size(2, 4096, 4096, 512, F32, False), Size(16, 4096, 4096, 40, jnp.dtype("bfloat16"), False)
    assert choose("cuda", half) is cudnn and choose("tpu", half) is flash and choose("cpu", half) is blocked
    assert choose("cuda", wide) is choose("default", wide) is choose("tpu", wide) is blocked_large
    assert choose("cuda", half._replace(width=512)) is blocked_large


def lowered(platform, dtype, width=40):
    x = jax.ShapeDtypeStruct((2, 1024, 8 * width), dtype)
    loss = lambda q, k, v: attention(q, k, v, 8).astype(jnp.float32).sum()
    return export.export(
        jax.jit(jax.grad(loss, (0, 1, 2))),
        platforms=[platform],
        disabled_checks=[export.DisabledSafetyCheck.custom_call(name) for name in CUDNN],
    )(x, x, x)


CUDNN = ("__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward")


def test_programs_lower_for_other_backends(monkeypatch):
    """cuDNN itself is absent here: JAX is told a version, and what it lowers to is looked at."""
    from jax._src.cudnn import fused_attention_stablehlo as checks

    calls = lambda exported: set(re.findall(r"custom_call @([\w$]+)", exported.mlir_module()))
    assert "tpu_custom_call" in calls(lowered("tpu", jnp.bfloat16))
    assert "tpu_custom_call" in calls(lowered("tpu", jnp.float32))
    assert not calls(lowered("cpu", jnp.bfloat16)) & {"tpu_custom_call", *CUDNN}
    monkeypatch.setattr(checks, "cuda_versions", SimpleNamespace(cudnn_get_version=lambda: 91000))
    assert not calls(lowered("cuda", jnp.float32)) & set(CUDNN)
    assert calls(lowered("cuda", jnp.bfloat16)) >= set(CUDNN)


def test_kernels_are_split_over_devices_by_batch():
    """What stands in for the kernel sees a quarter of the batch on each of four devices; the kernel lowers for four."""
    code = """
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_num_cpu_devices", 4)
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from sdjax.nn.kernels import attention
from sdjax.devices.layouts import on_mesh
mesh = Mesh(np.array(jax.devices()), "data")
split = NamedSharding(mesh, PartitionSpec("data"))
loss = lambda q, k, v: attention.flash(q, k, v).astype(jnp.float32).sum()
both = jax.jit(on_mesh(jax.value_and_grad(loss, (0, 1, 2)), mesh), in_shardings=split)
shape = jax.ShapeDtypeStruct((8, 256, 2, 40), jnp.bfloat16)
lowered = both.trace(shape, shape, shape).lower(lowering_platforms=("tpu",)).as_text()
assert lowered.count("tpu_custom_call") == 2 and "tensor<2x2x40x256xbf16>" in lowered
from sdjax.nn.kernels import flash as kernels
seen = []
def stand_in(q, k, v):
    seen.append(q.shape)
    logits = jnp.einsum("bhds,bhdt->bhst", k, q) * q.shape[2] ** -0.5
    lse = jax.nn.logsumexp(logits, 2, keepdims=True)
    return jnp.einsum("bhds,bhst->bhdt", v, jnp.exp(logits - lse)), lse
def stand_in_backward(q, k, v, y, lse, dy):
    return jax.vjp(lambda *qkv: stand_in(*qkv)[0], q, k, v)[1](dy)
kernels.forward, kernels.backward = stand_in, stand_in_backward
both = jax.jit(on_mesh(jax.value_and_grad(loss, (0, 1, 2)), mesh), in_shardings=split)
q, k, v = (jax.random.normal(jax.random.key(i), (8, 16, 2, 8)) for i in range(3))
value, grads = both(q, k, v)
assert (2, 2, 8, 16) in seen, seen
wanted, wanted_grads = jax.value_and_grad(lambda *qkv: attention.plain(*qkv).sum(), (0, 1, 2))(q, k, v)
np.testing.assert_allclose(value, wanted, rtol=1e-5)
for a, b in zip(grads, wanted_grads):
    assert a.sharding.is_equivalent_to(split, 4)
    np.testing.assert_allclose(a, b, atol=1e-5)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
