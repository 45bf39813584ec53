"""LoRA: weights, several at once, and what a merge leaves alone."""

from dataclasses import replace

import jax
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import sdjax
from sdjax.formats.tensors import read_tensors
from sdjax.weights.convert import operation_of
from tests.kinds import SDXL
from tests.lora_files import check, draw, model, named, write
from tests.loras import KINDS, expected, sites
from tests.narrow import LIKE_SD15


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_weight_of_0_and_two_in_either_order(tmp_path, dtype):
    sd = model(LIKE_SD15, dtype)
    files = [
        write(tmp_path, named(draw(LIKE_SD15, kind, i)), f"{kind}.safetensors")
        for i, kind in enumerate(("lora", "dora"))
    ]
    none = sdjax.add_lora(sd, files[1], 0.0)
    assert all(a is b for a, b in zip(jax.tree.leaves(none.params), jax.tree.leaves(sd.params), strict=True))
    half = sdjax.add_lora(sd, files[0], 0.0, 1.0)
    assert jax.tree.leaves(half.params["unet"])[0] is jax.tree.leaves(sd.params["unet"])[0]
    assert any(a is not b for a, b in zip(*(jax.tree.leaves(s.params["text"]) for s in (half, sd)), strict=True))
    one = sdjax.add_lora(sdjax.add_lora(sd, files[0], 0.6), files[1], 0.4)
    two = sdjax.add_lora(sdjax.add_lora(sd, files[1], 0.4), files[0], 0.6)
    eps = float(ml_dtypes.finfo(dtype).eps)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(two.params), strict=True):
        np.testing.assert_allclose(*(np.asarray(leaf, np.float64) for leaf in (a, b)), rtol=eps, atol=eps)
    assert a.dtype == dtype


def test_a_merge_is_rounded_once(tmp_path):
    """In bfloat16 one LoRA and its half twice are the same to the bit: each is computed from the model's own values."""
    sd, by_site = model(LIKE_SD15, ml_dtypes.bfloat16), draw(LIKE_SD15)
    files = [write(tmp_path, named(by_site), f"{name}.safetensors") for name in "ab"]
    whole = sdjax.add_lora(sd, files[0], 1.0)
    halves = sdjax.add_lora(sdjax.add_lora(sd, files[0], 0.5), files[1], 0.5)
    wanted = {path: value.astype(ml_dtypes.bfloat16) for path, value in expected(sd, [(by_site, 1, 1)]).items()}
    different = total = 0
    for path, leaf in flatten_dict(whole.params).items():
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(flatten_dict(halves.params)[path]))
        different += (np.asarray(leaf) != wanted[path]).sum()
        total += leaf.size
    assert different < 1e-3 * total, "values that float32 puts beside the middle of two"


def test_50_sliders_moved_50_times_leave_nothing(models, tmp_path):
    sd, rng = models["sd1"], np.random.default_rng(0)
    where = lambda site: site.name.endswith("attn1.to_q")
    drawn = [draw(LIKE_SD15, "lora", i, ("unet",), where) for i in range(50)]
    files = [write(tmp_path, named(one), f"{i}.safetensors") for i, one in enumerate(drawn)]
    found, weights = sd, np.zeros(50)
    for i in range(50):
        found = sdjax.add_lora(found, files[i], 0.0)
    for move in range(50):
        weights[move] = rng.uniform(-1, 1)
        found = sdjax.add_lora(found, files[move], weights[move])
    assert len(found.merged.added) == 50
    straight = sd
    for file, weight in zip(files, weights, strict=True):
        straight = sdjax.add_lora(straight, file, weight)
    for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(straight.params), strict=True):
        np.testing.assert_array_equal(a, b)
    check(sd, found, [(one, w, w) for one, w in zip(drawn, weights, strict=True)], 2e-5)
    for file in files:
        found = sdjax.add_lora(found, file, 0.0)
    assert all(a is b for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(sd.params), strict=True))


def test_nothing_is_compiled(models, tmp_path):
    """Neither by a merge nor by a call of the merged model."""
    sd = models["sd1"]
    files = [write(tmp_path, named(draw(LIKE_SD15, kind)), f"{kind}.safetensors") for kind in KINDS]
    x, cond = np.zeros((1, 8, 8, 4), np.float32), sdjax.Cond(np.zeros((1, 12, 24), np.float32))
    before, compiled = np.asarray(sdjax.predict(sd, x, 5, cond)), []
    listener = lambda name, *_, **__: compiled.append(name) if "compile" in name else None
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        for file in files:
            for weight in (0.1, 0.2):
                sd = sdjax.add_lora(sd, file, weight)
                after = np.asarray(sdjax.predict(sd, x, 5, cond))
        assert not compiled
        jax.jit(lambda x: x + 1)(np.zeros(977))
        assert compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    assert (before != after).any()


def test_parameters_that_were_replaced_are_the_models_own(models, tmp_path):
    sd, by_site = models["sd1"], draw(LIKE_SD15)
    path = write(tmp_path, named(by_site))
    once = sdjax.add_lora(sd, path)
    other = replace(once, params=jax.tree.map(lambda leaf: leaf * 2, once.params))
    check(other, sdjax.add_lora(other, path, 0.5), [(by_site, 0.5, 0.5)])
    assert len(sdjax.add_lora(other, path).merged.added) == 1
    (tmp_path / "b").mkdir()
    again = draw(LIKE_SD15, seed=7)
    write(tmp_path, named(again))
    check(sd, sdjax.add_lora(once, path), [(again, 1, 1)])  # the file was written anew


def test_the_words_in_a_file(models, tmp_path):
    from tests.text.test_prompt import Words

    sd, by_site = replace(models["sd1"], tokenizer=Words()), draw(LIKE_SD15)
    vectors = np.random.default_rng(0).normal(size=(2, 24)).astype(np.float32)
    tensors = named(by_site) | {"bundle_emb.zorp.string_to_param.*": vectors}
    found = sdjax.add_lora(sd, write(tmp_path, tensors))
    np.testing.assert_array_equal(found.embeddings["zorp"], vectors)
    two = models["sdxl-2"]
    sides = {"clip_l": np.ones((2, 16), np.float32), "clip_g": np.full((2, 12), 2, np.float32)}
    tensors = named(draw(SDXL)) | {f"bundle_emb.zorp.{name}": value for name, value in sides.items()}
    found = sdjax.add_lora(two, write(tmp_path, tensors))
    np.testing.assert_array_equal(found.embeddings["zorp"], np.concatenate([*sides.values()], 1))
    with pytest.raises(sdjax.SdjaxError, match=r"a\.safetensors: bundle_emb x: a has shape \[1, 7\]"):
        sdjax.add_lora(sd, write(tmp_path, named(by_site) | {"bundle_emb.x.a": np.ones((1, 7), np.float32)}))


def test_a_saved_model_is_the_merged_one(models, tmp_path):
    sd = models["sd1"]
    merged = sdjax.add_lora(sd, write(tmp_path, named(draw(LIKE_SD15))))
    sdjax.save(merged, tmp_path / "out.safetensors")
    tensors = read_tensors(tmp_path / "out.safetensors")
    for site in sites(LIKE_SD15):
        ours = operation_of(site.row.compvis_operation)[0](tensors[site.row.compvis])
        np.testing.assert_array_equal(ours, flatten_dict(merged.params)[site.path])
