"""LoRAs that prompts name: tags, folders, shares of a request, and the same pictures as add_lora's."""

import logging
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

import sdjax
from sdjax.adapters import lora
from sdjax.model.value import StableDiffusion
from sdjax.tasks import engine
from sdjax.tasks.networks import find_network, hashes_text
from sdjax.text.syntax import Tag, cut_tags
from sdjax.weights.hashes import lora_hash
from tests.kinds import REFINER, SDXL, model
from tests.loras import factors, sites
from tests.tiny import Letters, tiny

pytestmark = pytest.mark.usefixtures("quick_compile")

FAST = {"steps": 2, "sampler": "euler", "output": "latents", "guidance_scale": 3.0}


def write(path, config, seed, metadata=None, parts=("unet", "text", "text_2"), **more):
    rng, tensors = np.random.default_rng(seed), dict(more)
    for site in sites(config, parts):
        prefix = {"unet": "unet.", "text": "text_encoder.", "text_2": "text_encoder_2."}[site.part]
        if site.part == "text" and config is REFINER:
            prefix = "text_encoder_2."
        for end, value in factors("lora", site.shape, rng).items():
            end = end.replace("lora_down", "lora_A").replace("lora_up", "lora_B")
            tensors[f"{prefix}{site.name}.{end}"] = np.ascontiguousarray(value)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """one.safetensors, deep/two.safetensors, which calls itself second, and a folder `three`."""
    folder = tmp_path_factory.mktemp("loras")
    config = tiny().config
    write(folder / "one.safetensors", config, 1)
    write(folder / "deep" / "two.safetensors", config, 2, {"ss_output_name": "second"})
    write(folder / "three" / "pytorch_lora_weights.safetensors", config, 3)
    return folder


def draw(prompt, sd=None, **options):
    return np.asarray(sdjax.txt2img(sd or tiny(), prompt, **FAST | options))


@pytest.mark.parametrize(
    "prompt, text, tags",
    [
        ("a cat", "a cat", []),
        ("a <lora:x> cat", "a  cat", [("x", 1, 1)]),
        ("a cat<lora:x:0.5>", "a cat", [("x", 0.5, 0.5)]),
        ("<lora:x:0.5:-0.25>", "", [("x", -0.25, 0.5)]),
        ("<lora:x:te=0.5>", "", [("x", 0.5, 0.5)]),
        ("<lora:x:unet=0.5>", "", [("x", 0.5, 1)]),
        ("<lora:x: unet = .5 :te=2>", "", [("x", 0.5, 2)]),
        ("<lyco:a b/c.d:1e-1> <lora:y:0>", " ", [("a b/c.d", 0.1, 0.1), ("y", 0, 0)]),
        ("a < b <hypernet:x:1> <lora>", "a < b <hypernet:x:1> <lora>", []),
    ],
)
def test_tags(prompt, text, tags):
    assert cut_tags(prompt) == (text, [Tag(*tag) for tag in tags])


@pytest.mark.parametrize(
    "tag", ["<lora:x:a>", "<lora:x:nan>", "<lora::1>", "<lora:x:1:1:8>", "<lora:x:dyn=4>", "<lora:>"]
)
def test_tags_that_are_wrong(tag, folder):
    with pytest.raises(sdjax.SdjaxError, match=f"^prompt: {tag}: "):
        draw(f"a {tag}", lora_folder=folder)


def test_a_tag_is_add_lora(folder):
    """The tag is cut out; weights, sums, scales and the model's own LoRAs are add_lora's."""
    one, two = folder / "one.safetensors", folder / "deep" / "two.safetensors"
    sd, options = tiny(), {"lora_folder": folder}
    plain = draw("ab")
    once = draw("ab", sdjax.add_lora(sd, one, 0.4, 0.7))
    assert (plain != once).any()
    np.testing.assert_array_equal(draw("a<lora:one:0.7:0.4>b", **options), once)
    np.testing.assert_array_equal(draw("ab<lora:one:0.35:0.2>", lora_folder=str(folder), lora_scale=2.0), once)
    np.testing.assert_allclose(draw("ab<lora:one:0.3:0.2><lora:one:0.4:0.2>", **options), once, atol=1e-6)
    both = sdjax.add_lora(sdjax.add_lora(sd, one, 0.4, 0.7), two, 0.3)
    np.testing.assert_array_equal(draw("<lora:one:0.7:0.4>ab<lora:second:0.3>", **options), draw("ab", both))
    np.testing.assert_array_equal(
        draw("ab<lora:two:0.3>", sdjax.add_lora(sd, one, 0.4, 0.7), **options), draw("ab", both)
    )
    np.testing.assert_array_equal(draw("ab", both, lora_scale=0.0), plain)
    np.testing.assert_array_equal(draw("ab<lora:one:0>", **options), plain)
    np.testing.assert_array_equal(draw("ab<lora:three>", **options), draw("ab", sdjax.add_lora(sd, folder / "three")))
    assert sd.merged is None


def test_prompts_of_the_same_loras_share_a_batch(folder, monkeypatch):
    """And each picture is what it is alone; each model is merged once, also over many calls."""
    sd, options = replace(tiny()), {"lora_folder": folder}
    prompts = ["a<lora:one>", "b", "c<lora:two>", "d<lora:one>", "e"]
    alone = [draw(prompt, sd, seed=i, **options)[0] for i, prompt in enumerate(prompts)]
    chunks, merged, steps = [], [], []
    chunk, merge = engine.draw_chunk, lora.merge
    monkeypatch.setattr(engine, "draw_chunk", lambda *a: chunks.append(len(a[4].seeds)) or chunk(*a))
    monkeypatch.setattr(lora, "merge", lambda *a: merged.append(1) or merge(*a))
    together = draw(prompts, sd, progress=lambda *step: steps.append(step), **options)
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert chunks == [2, 2, 1] and len(merged) == 2 and steps == [(i + 1, 6) for i in range(6)]
    for seed in range(3):
        draw("a<lora:two>", sd, seed=seed, **options)
    assert len(merged) == 2, "the last one is kept"
    draw("a", sd)
    assert sd not in lora.LAST


def test_other_tasks_take_tags(folder):
    sd, picture = sdjax.add_lora(tiny(), folder / "one.safetensors"), np.zeros((16, 16, 3), np.float32)
    options = FAST | {"seed": 3}
    tagged = options | {"lora_folder": folder}
    for task, extra in ((sdjax.img2img, {"image": picture}), (sdjax.hires, {"scale": 2.0})):
        found = task(tiny(), "ab<lora:one>", **extra, **tagged)
        np.testing.assert_array_equal(found, task(sd, "ab", **extra, **options))
    two = sdjax.hires(tiny(), ["ab<lora:one>", "ab"], **tagged)
    np.testing.assert_allclose(two[0], sdjax.hires(sd, "ab", **options)[0], atol=1e-5)


def test_sdxl_with_two_towers_and_a_refiner(tmp_path):
    """The refiner gets the prompt without its tags, and no LoRA."""
    sd, refiner = model(SDXL), model(REFINER)
    one = write(tmp_path / "one.safetensors", SDXL, 1)
    options = {"refiner": refiner, "refiner_start": 0.5}
    wanted = draw(["ab", "cd"], sdjax.add_lora(sd, one, 0.5), **options)
    found = draw(["ab<lora:one:0.5>", "x", "cd<lora:one:0.5>"], sd, lora_folder=tmp_path, **options)
    np.testing.assert_allclose(found[0], wanted[0], atol=1e-5)
    np.testing.assert_allclose(found[1], draw("x", sd, seed=1, **options)[0], atol=1e-5)
    assert (found[0] != draw("ab", sd, **options)[0]).any()


def test_words_inside_of_a_lora(tmp_path):
    sd = StableDiffusion(tiny().config, tiny().params, Letters())
    words = {"bundle_emb.zorp.string_to_param.*": np.ones((2, 16), np.float32)}
    one = write(tmp_path / "one.safetensors", tiny().config, 1, **words)
    found = draw("a zorp <lora:one>", sd, lora_folder=tmp_path)
    np.testing.assert_array_equal(found, draw("a zorp ", sdjax.add_lora(sd, one)))
    assert (found != draw("a zorq <lora:one>", sd, lora_folder=tmp_path)).any()


def test_where_tags_are_text(folder, caplog):
    with caplog.at_level(logging.WARNING, logger="sdjax"):
        draw("ab", negative_prompt="b<lora:one>", lora_folder=folder)
        sdjax.encode_prompt(tiny(), "b<lora:one>")
    assert caplog.text.count("<lora:...> is read as text here") == 2
    with pytest.raises(sdjax.SdjaxError, match="lora_folder None: the folder that holds <lora:one> of a prompt"):
        draw("b<lora:one>")
    draw("b<lora:one>", syntax="plain")


@pytest.mark.parametrize(
    "prompt, options, match",
    [
        ("<lora:onne>", {}, r"prompt: <lora:onne> is not in lora_folder .*; there are one"),
        ("<lora:../one>", {}, "is not in lora_folder"),
        ("a", {"lora_folder": "nowhere"}, "lora_folder 'nowhere': a folder that is there"),
        ("a", {"lora_folder": 3}, "lora_folder 3: a folder"),
        ("a", {"lora_scale": "1"}, "lora_scale '1': a finite number"),
    ],
)
def test_refusals(folder, prompt, options, match):
    with pytest.raises(sdjax.SdjaxError, match=match) as caught:
        draw(prompt, **{"lora_folder": folder} | options)
    assert "\n" not in str(caught.value)


def test_names_that_two_files_have(tmp_path):
    for name in ("a/x.safetensors", "b/x.safetensors"):
        write(tmp_path / name, tiny().config, 1)
    with pytest.raises(sdjax.SdjaxError, match=r"<lora:x> may be .* and .*; give the name with its folder, as a/x"):
        find_network(tmp_path, "x")
    assert find_network(tmp_path, "b/x") == tmp_path / "b" / "x.safetensors"
    (tmp_path / "broken.safetensors").write_bytes(b"{")
    with pytest.raises(sdjax.SdjaxError, match="is not in"):
        find_network(tmp_path, "y")


def test_hashes(tmp_path):
    """Of the content behind the header: other metadata change nothing."""
    import hashlib

    tensors = {"a": np.arange(4, dtype=np.float32)}
    for name, metadata in (("a", None), ("b", {"x": "y" * 100})):
        save_file(tensors, tmp_path / f"{name}.safetensors", metadata)
    wanted = hashlib.sha256(tensors["a"].tobytes()).hexdigest()[:12]
    assert lora_hash(tmp_path / "a.safetensors") == lora_hash(tmp_path / "b.safetensors") == wanted
    (tmp_path / "c.pt").write_bytes(b"abc")
    assert lora_hash(tmp_path / "c.pt") == hashlib.sha256(b"abc").hexdigest()[:12]
    assert hashes_text([("n", tmp_path / "a.safetensors"), ("m", tmp_path)]) == f"n: {wanted}, m: {wanted}"
    assert hashes_text([]) is None
