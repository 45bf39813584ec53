"""Models of classes: encoded, drawn, saved and read; what they refuse. Published ones are recognised by shapes."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import sdjax
from sdjax.errors import SdjaxError
from sdjax.families.ldm import CIN256, CIN256_V2
from sdjax.families.sd import SD15
from sdjax.networks.labels.network import ClassConfig
from sdjax.networks.table import param_shapes
from sdjax.types import Cond
from sdjax.weights import single
from tests.kinds import CLASSES as TINY
from tests.kinds import model
from tests.narrow import file_tensors

pytestmark = pytest.mark.usefixtures("quick_compile")

FEW = {"steps": 3, "output": "latents"}


def test_a_class_is_a_row_of_the_table():
    cond = sdjax.encode_classes(model(), [2, 0, 2])
    assert cond.context.shape == (3, 1, 16) and cond.vector is None
    np.testing.assert_array_equal(cond.context[:, 0], model().params["class_table"]["embedding"][np.array([2, 0, 2])])
    np.testing.assert_array_equal(sdjax.encode_classes(model(), np.int64(2)).context[0], cond.context[0])


def test_guidance_is_away_from_the_null_class():
    sd, cond, null = model(), sdjax.encode_classes(model(), [1, 4]), sdjax.encode_classes(model(), 5)
    want = sdjax.txt2img(sd, cond, negative_prompt=null, guidance_scale=3.0, **FEW)
    np.testing.assert_array_equal(sdjax.txt2img(sd, cond, **FEW), want)  # the model's own scale and null
    assert want.shape == (2, 8, 8, 3) and np.isfinite(want).all()
    alone = sdjax.txt2img(sd, sdjax.encode_classes(sd, 4), seed=1, **FEW)
    np.testing.assert_allclose(alone[0], want[1], atol=1e-5)
    other = sdjax.txt2img(sd, cond, negative_prompt=sdjax.encode_classes(sd, 0), **FEW)
    assert np.abs(other - want).max() > 1e-3
    walk = sdjax.txt2img(sd, cond, steps=3, output="trajectory", guidance_scale=1.0)
    x, t = walk.x[1], sdjax.sampling.sigma_to_t(sdjax.sampling.make_schedule(TINY.schedule), walk.sigma[1])
    predicted = sdjax.predict(sd, x, float(t), cond)
    x0 = sdjax.sampling.v_to_x0(x, predicted, walk.sigma[1])
    np.testing.assert_allclose(walk.x0[1], x0, atol=1e-3)
    (first, second) = sdjax.txt2img(sd, cond, steps=3)
    assert first.size == second.size == (16, 16)
    again = sdjax.img2img(sd, cond, np.zeros((16, 16, 3), np.float32), strength=0.7, **FEW)
    assert again.shape == (2, 8, 8, 3)


def test_a_model_without_a_null_is_guided_by_1_or_by_a_cond():
    sd = model(replace(TINY, name="no-null", class_table=ClassConfig(6, 16, null=False), guidance_scale=1.0))
    cond = sdjax.encode_classes(sd, [1, 5])
    assert sdjax.txt2img(sd, cond, **FEW).shape == (2, 8, 8, 3)
    with pytest.raises(SdjaxError, match="guidance_scale: no-null has no null, guide it by 1, or give a Cond"):
        sdjax.txt2img(sd, cond, guidance_scale=2.0, **FEW)
    sdjax.txt2img(sd, cond, guidance_scale=2.0, negative_prompt=sdjax.encode_classes(sd, 0), **FEW)


def test_refusals():
    sd = model()
    for call, match in [
        (lambda: sdjax.encode_classes(sd, 6), "classes 6: whole numbers from 0 to 5 for tiny-classes"),
        (lambda: sdjax.encode_classes(sd, [0, -1]), "classes -1"),
        (lambda: sdjax.encode_classes(sd, [True]), "classes True"),
        (lambda: sdjax.encode_classes(sd, "cat"), "classes 'cat'"),
        (lambda: sdjax.encode_classes(sd, [1.0]), r"classes 1\.0"),
        (
            lambda: sdjax.txt2img(sd, "cat", **FEW),
            r"prompt \['cat'\]: tiny-classes takes no text, give a Cond, as sdjax.encode_classes",
        ),
        (lambda: sdjax.encode_prompt(sd, "cat"), "prompt: tiny-classes takes no text"),
        (lambda: sdjax.encode_classes(sd, [[1], [1, 2]]), "classes is list: an array, or lists of one length"),
        (lambda: sdjax.encode_classes("emoji", 1), "sd is str: a model, as sdjax.load gives it"),
        (lambda: sdjax.txt2img(sd, sdjax.encode_classes(sd, 1), negative_prompt="dog", **FEW), "takes no text"),
        (lambda: sdjax.txt2img(sd, Cond(np.zeros((1, 1, 15))), **FEW), r"prompt\.context has shape \[1, 1, 15\]"),
    ]:
        with pytest.raises(SdjaxError, match=match) as caught:
            call()
        assert "\n" not in str(caught.value)
    from tests.tiny import tiny

    with pytest.raises(SdjaxError, match="classes: tiny takes none"):
        sdjax.encode_classes(tiny(), 1)


def test_one_file_both_ways(tmp_path, monkeypatch):
    monkeypatch.setattr(single, "CANDIDATES", (SD15, TINY))
    path = tmp_path / "classes.safetensors"
    sdjax.save(model(), path)
    tensors = load_file(path)
    assert tensors["cond_stage_model.embedding.weight"].shape == (6, 16)
    assert tensors["first_stage_model.quantize.embedding.weight"].shape == (11, 3)
    found = sdjax.load(path)
    assert found.config == TINY and found.tokenizer is None
    same = jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), found.params, model().params)
    assert jax.tree.all(same)
    assert sdjax.load(path, config="Tiny_Classes").config == TINY
    with pytest.raises(SdjaxError, match="config 'sd99': one of sd15, tiny-classes"):
        sdjax.load(path, config="sd99")
    with pytest.raises(SdjaxError, match=r"tensors do not fit the config: \d+ missing"):
        sdjax.load(path, config="sd15")
    with pytest.raises(SdjaxError, match="config 'sd15': emoji is a folder"):
        sdjax.load("emoji", config="sd15")
    cond = sdjax.encode_classes(found, [3])
    np.testing.assert_array_equal(
        sdjax.txt2img(found, cond, **FEW), sdjax.txt2img(model(), sdjax.encode_classes(model(), [3]), **FEW)
    )


@pytest.mark.parametrize("config", [CIN256_V2, CIN256], ids=lambda config: config.name)
def test_published_models_are_recognised(config):
    """By the names and shapes of CompVis' files; counts of the original classes."""
    counts = {"cin256-v2": (400_920_579, 55_322_782, 512_512), "cin256": (394_984_196, 67_717_295, 512_000)}
    count = lambda part: sum(leaf.size for leaf in jax.tree.leaves(param_shapes(part)))
    assert (count(config.unet), count(config.vae), count(config.class_table)) == counts[config.name]
    shapes = {name: value.shape for name, value in file_tensors(config).items()}
    assert single.recognise(shapes) == [config]
    abar = sdjax.sampling.make_schedule(config.schedule).alphas_cumprod[-1]
    assert abs(abar - 1.423e-4) < 1e-6
    assert (config.size // config.vae.factor, config.unet.factor) == ((64, 8) if config is CIN256_V2 else (32, 4))
