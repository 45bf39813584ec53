"""A generation program in a file gives txt2img's pictures."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sample import compile as script
from sdjax.errors import SdjaxError
from sdjax.model.load import load
from sdjax.tasks import program
from sdjax.tasks.program import load_program, save_program
from sdjax.tasks.text_to_image import txt2img
from tests.tiny import tiny

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "tiny.sdjax"
    save_program(tiny(), path, steps=5, num_images=2, platforms=("cpu", "tpu", "cuda"))
    return path


def test_it_draws_what_txt2img_draws(path, monkeypatch):
    loaded = load_program(path)
    monkeypatch.setattr(program, "image_program", None)  # nothing of the model is traced any more
    for options in ({}, {"seed": 7, "guidance_scale": 3.0}, {"sampler": "euler_a", "negative_prompt": "dog"}):
        ours = loaded(tiny(), "cat", **options)
        theirs = txt2img(tiny(), "cat", steps=5, num_images=2, output="pixels", **options)
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
    assert ours.shape == (2, 16, 16, 3) and np.ptp(ours) > 0.1
    np.testing.assert_array_equal(loaded(tiny(), "cat", output="pixels"), loaded(tiny(), "cat"))
    pair = loaded(tiny(), ["cat", "dog"], seed=7, num_images=1)
    np.testing.assert_allclose(pair, txt2img(tiny(), ["cat", "dog"], steps=5, seed=7, output="pixels"), atol=2e-5)


def test_one_program_serves_other_parameters(path):
    other = replace(tiny(), params=jax.tree.map(lambda leaf: -leaf, tiny().params))
    assert np.abs(load_program(path)(other, "cat") - load_program(path)(tiny(), "cat")).max() > 0.01


def changed(**parts):
    return replace(tiny(), config=replace(tiny().config, name="other", **parts))


def test_refusals(path, tmp_path):
    loaded = load_program(path)
    half = replace(tiny(), params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tiny().params))
    (tmp_path / "no.sdjax").write_bytes(b"PK")
    (tmp_path / "cut.sdjax").write_bytes(path.read_bytes()[:3000])
    save_program(tiny(), tmp_path / "tpu.sdjax", steps=5, platforms=["tpu"])
    for call, match in [
        (lambda: loaded(tiny(), "cat", steps=50), "steps 50: takes 128 rows, .* has 32"),
        (lambda: loaded(tiny(), "cat", flavour=1), "flavour"),
        (lambda: loaded(tiny(), "cat", output="pil"), "output: .*has no other than 'pixels'"),
        (lambda: loaded(tiny(), "cat", progress=print), "progress: .*tiny.sdjax has no other than None"),
        (lambda: loaded(tiny(), "cat", latents=np.zeros((2, 8, 8, 4))), "latents: "),
        (lambda: loaded(tiny(), "cat", width=32), "width: .*no other than 16"),
        (lambda: loaded(tiny(), ["cat"] * 3), "3 prompts, .*2 pictures at once"),
        (lambda: loaded(tiny(), "cat AND dog"), "AND"),
        (lambda: save_program(tiny(9), tmp_path / "no.sdjax"), "sd tiny: programs are of models that take text alone"),
        (lambda: loaded(half, "cat"), "made for tiny, whose parameters have other dtypes"),
        (lambda: loaded(replace(tiny(), dtype=jnp.dtype("bfloat16")), "cat"), "dtype 'float32', tiny has 'bfloat16'"),
        (
            lambda: loaded(changed(schedule=replace(tiny().config.schedule, prediction="epsilon")), "cat"),
            "made for tiny with schedule.prediction 'v', other has 'epsilon'",
        ),
        (lambda: loaded(changed(vae=replace(tiny().config.vae, scaling=0.5)), "cat"), "vae.scaling .* other has 0.5"),
        (lambda: loaded(replace(tiny(), embeddings={"zorp": np.zeros((1, 16), np.float32)}), "zorp"), "add_embedding"),
        (lambda: loaded(tiny(), 5), "prompts is int"),
        (lambda: loaded(tiny(), "a cat and some more letters"), "longer than"),
        (lambda: load_program(tmp_path / "nowhere"), "cannot be read"),
        (lambda: load_program(tmp_path / "no.sdjax"), "not a program"),
        (lambda: load_program(tmp_path / "cut.sdjax"), "not a program"),
        (lambda: load_program(tmp_path / "tpu.sdjax"), "for tpu, not for cpu"),
        (lambda: save_program(tiny(), path, platforms=["abacus"]), "platforms abacus"),
        (lambda: save_program(tiny(), path, platforms=None), "platforms None: some of cpu"),
        (lambda: save_program(tiny(), path, platforms=[1]), r"platforms \[1\]: some of cpu"),
        (lambda: save_program(tiny(), path, platforms="cpu"), "platforms 'cpu': some of cpu"),
        (lambda: save_program("emoji", path), "sd is str: a model"),
        (lambda: save_program(tiny(), None), "path is NoneType: the name of a file expected"),
        (lambda: load_program(None), "path is NoneType: the name of a file expected"),
        (lambda: save_program(tiny(), tmp_path / "no.sdjax" / "a.sdjax"), r"a\.sdjax: cannot be written"),
    ]:
        with pytest.raises(SdjaxError, match=match):
            call()


def test_a_program_is_written_whole_or_not_at_all(path, tmp_path, monkeypatch):
    made = tmp_path / "made.sdjax"
    made.write_bytes(path.read_bytes())
    monkeypatch.setattr(program, "export_program", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_program(tiny(), made)
    assert made.read_bytes() == path.read_bytes() and [*tmp_path.iterdir()] == [made]


def test_the_script(place, tmp_path, capsys):
    """And a model with CLIP's kind of tokenizer, at another size than its own."""
    options = script.Options(tmp_path / "model.sdjax", model=str(place / "model"), steps=3, height=16)
    script.main(options)
    assert "MB for cpu" in capsys.readouterr().out
    sd, prompt = load(place / "model"), "a (red:1.2) apple"
    ours = load_program(tmp_path / "model.sdjax")(sd, prompt, seed=3)
    np.testing.assert_allclose(ours, txt2img(sd, prompt, steps=3, seed=3, height=16, output="pixels"), atol=2e-5)
    with pytest.raises(SdjaxError, match="--model: nowhere"):
        script.main(replace(options, model="nowhere"))


def test_a_dtype_given_by_its_name(tmp_path):
    save_program(replace(tiny(), dtype="float32"), tmp_path / "named.sdjax", steps=5)
    assert load_program(tmp_path / "named.sdjax")(tiny(), "cat").shape == (1, 16, 16, 3)
