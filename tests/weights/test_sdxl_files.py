"""SDXL's files: the published lists of tensors, folders of the refiner, Turbo by its name, UNets and VAEs of their
own."""

import hashlib
import json
import logging
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

import sdjax
from sdjax.errors import SdjaxError
from sdjax.families.sdxl import SDXL as PUBLISHED
from sdjax.families.sdxl import SDXL_INPAINT, SDXL_REFINER, SDXL_TURBO, SSD_1B, VEGA
from sdjax.families.table import PRESETS, family_of
from sdjax.networks.table import make_rows, param_shapes
from sdjax.text.bpe import train_bpe
from sdjax.weights import single
from sdjax.weights.convert import operation_of, to_file_tensors
from sdjax.weights.single import model_rows
from tests.kinds import LCM, LCM_XL, REFINER, SDXL
from tests.narrow import file_tensors, random_params
from tests.text.test_tokenizer import captions

VOCABULARY = {"vocab_size": 580, "bos_token": 578, "eos_token": 579, "pad_token": 579}


def words(config):
    """A config whose towers know the words of a small tokenizer."""
    towers = {part: replace(tower, **VOCABULARY) for part in ("text", "text_2") if (tower := getattr(config, part))}
    return replace(config, **towers)


BASE, SECOND = words(SDXL), words(REFINER)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_bpe(captions(), 580, tmp_path_factory.mktemp("words") / "tokenizer")


def whole(config, tokenizer):
    params = {part: random_params(getattr(config, part), i) for i, part in enumerate(family_of(config).parts)}
    return sdjax.StableDiffusion(config, params, tokenizer)


@pytest.mark.parametrize(
    "config, count, digest",
    [
        (PUBLISHED, 2515, "2086c2ba91745f921763779e5e7d19ed40cf689f25c1dd929bb509a000f8cb6e"),
        (SDXL_REFINER, 1858, "654d6f478f8e71195c517ebcaf5327d0b28862e8abe9b34200f3e6eb3f7e8e93"),
    ],
)
def test_the_published_tensors_are_written_exactly(config, count, digest):
    """The digests are of the published files' lists, a line "name [shape]" for each tensor, in the names' order."""
    shapes = {part: flatten_dict(param_shapes(getattr(config, part))) for part in family_of(config).parts}
    found = {
        row.compvis: operation_of(row.compvis_operation)[2](shapes[row.path[0]][row.path[1:]].shape)
        for row in model_rows(config)
    } | {name: np.shape(value) for name, value in family_of(config).unused(config).items()}
    lines = "".join(f"{name} {list(shape)}\n" for name, shape in sorted(found.items()))
    assert (len(found), hashlib.sha256(lines.encode()).hexdigest()) == (count, digest)


@pytest.mark.parametrize("config", [PUBLISHED, SDXL_REFINER, SDXL_INPAINT, SSD_1B, VEGA])
def test_published_files_are_recognised(config):
    assert single.detect(file_tensors(config)) == config
    count = sum(leaf.size for leaf in jax.tree.leaves(param_shapes(config.unet)))
    assert (
        count
        == {
            "sdxl": 2_567_463_684,
            "sdxl-refiner": 2_259_526_660,
            "sdxl-inpaint": 2_567_478_084,
            "ssd-1b": 1_331_334_404,
            "segmind-vega": 745_225_604,
        }[config.name]
    )


@pytest.mark.parametrize("config", [BASE, SECOND])
def test_a_single_file_equals_its_folder(config, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(single, "CANDIDATES", (*single.CANDIDATES, config))
    sd = whole(config, tokenizer)
    sdjax.save(sd, tmp_path / "folder")
    sdjax.save(sd, tmp_path / "one.safetensors")
    written = set(load_file(tmp_path / "one.safetensors"))
    assert written == {row.compvis for row in model_rows(config)} | {*family_of(config).unused(config)}
    for path in ("folder", "one.safetensors"):
        found = sdjax.load(tmp_path / path)
        assert found.config == config and found.config.zero_negative == config.zero_negative
        assert found.config.guidance_scale == 5.0 and found.config.unet == config.unet
        for part, tree in sd.params.items():
            jax.tree.map(np.testing.assert_array_equal, tree, found.params[part])
    names = {path.name for path in (tmp_path / "folder").iterdir()}
    assert ("text_encoder" in names, "tokenizer" in names) == (config is BASE, config is BASE)
    assert {"text_encoder_2", "tokenizer_2"} < names


def test_marks_of_v_prediction(tokenizer, tmp_path, monkeypatch):
    sdjax.save(whole(BASE, tokenizer), tmp_path / "one.safetensors")
    monkeypatch.setattr(single, "CANDIDATES", (*single.CANDIDATES, BASE))
    tensors = load_file(tmp_path / "one.safetensors")
    for marks, prediction, terminal in ((("v_pred",), "v", False), (("v_pred", "ztsnr"), "v", True)):
        save_file(tensors | {mark: np.zeros(0, np.float32) for mark in marks}, tmp_path / "marked.safetensors")
        schedule = sdjax.load(tmp_path / "marked.safetensors").config.schedule
        assert (schedule.prediction, schedule.zero_terminal_snr) == (prediction, terminal)
    save_file(tensors | {"edm_vpred.sigma_max": np.ones(1, np.float32)}, tmp_path / "edm.safetensors")
    with pytest.raises(SdjaxError, match="EDM's preconditioning"):
        sdjax.load(tmp_path / "edm.safetensors")


def test_turbo_is_named(tokenizer, tmp_path, monkeypatch, caplog):
    turbo = PRESETS["sdxl-turbo"]
    assert (turbo, SDXL_TURBO.size, turbo.guidance_scale, turbo.spacing, turbo.few_steps) == (
        PUBLISHED,
        512,
        1.0,
        "trailing",
        4,
    )
    assert PRESETS["sd-turbo"] == PRESETS["sd21-base"] and PRESETS["sd-turbo"].few_steps == 4
    monkeypatch.setattr(single, "CANDIDATES", (*single.CANDIDATES, BASE))
    with caplog.at_level(logging.WARNING, "sdjax"):
        for name, steps in (("sd_xl_turbo_1.0_fp16", 4), ("sdxl_lightning_8step", 8), ("tourbillon", None)):
            sdjax.save(whole(BASE, tokenizer), tmp_path / f"{name}.safetensors")
            config = sdjax.load(tmp_path / f"{name}.safetensors").config
            assert (config.few_steps, config.guidance_scale) == (steps, 1.0 if steps else 5.0)
            assert config.spacing == ("trailing" if steps else None)
    named = [line for line in caplog.messages if "by its name" in line]
    assert len(named) == 2 and "distilled for 1 to 4 steps: guidance_scale is 1 and spacing trailing" in named[0]


def test_the_vae_is_computed_in_float32_where_its_folder_asks_for_it(tokenizer, tmp_path):
    import jax.numpy as jnp

    sdjax.save(whole(BASE, tokenizer), tmp_path / "m")
    path = tmp_path / "m" / "vae" / "config.json"
    fields, latents = json.loads(path.read_text()), np.ones((1, 8, 8, 4), np.float32)
    assert fields["force_upcast"] is False
    plain = sdjax.load(tmp_path / "m", dtype="float16")
    for value in ({"force_upcast": True}, {}):  # missing, it is true, as for diffusers
        path.write_text(json.dumps({name: kept for name, kept in fields.items() if name != "force_upcast"} | value))
        sd = sdjax.load(tmp_path / "m", dtype="float16")
        assert sd.config.vae.upcast and sd.config.vae.computed_in(jnp.bfloat16) == jnp.bfloat16
        exact = sdjax.decode(replace(sd, dtype=jnp.dtype("float32")), latents)
        np.testing.assert_array_equal(sdjax.decode(sd, latents), exact)
        assert np.abs(sdjax.decode(plain, latents) - exact).max() > 0


# ---- parts of their own


def part_file(path, config, part, layout, prefix="", seed=7):
    """Writes a UNet's or a VAE's own file, and returns its parameters."""
    params, module = random_params(getattr(config, part), seed), getattr(config, part)
    place = family_of(config).parts[part]
    tensors = to_file_tensors(params, make_rows(module, prefix=place.prefix), layout)
    if layout == "compvis":
        tensors = {prefix + name.removeprefix(f"{place.prefix}."): value for name, value in tensors.items()}
    save_file(tensors, path)
    return params


@pytest.mark.parametrize("part", ["unet", "vae"])
@pytest.mark.parametrize("layout, prefixed", [("diffusers", False), ("compvis", False), ("compvis", True)])
def test_a_part_of_its_own(part, layout, prefixed, tokenizer, tmp_path):
    sd, place = whole(BASE, tokenizer), family_of(BASE).parts[part]
    sdjax.save(sd, tmp_path / "m")
    own = part_file(tmp_path / "own.safetensors", BASE, part, layout, f"{place.prefix}." if prefixed else "")
    found = sdjax.load(tmp_path / "m", **{part: tmp_path / "own.safetensors"})
    assert found.config == BASE
    jax.tree.map(np.testing.assert_array_equal, own, found.params[part])
    for other in {*sd.params} - {part}:
        jax.tree.map(np.testing.assert_array_equal, sd.params[other], found.params[other])


def test_parts_from_folders(tokenizer, tmp_path):
    sdjax.save(whole(BASE, tokenizer), tmp_path / "m")
    other = replace(whole(BASE, tokenizer), config=replace(BASE, vae=replace(BASE.vae, upcast=True)))
    other = replace(
        other, params=other.params | {"vae": random_params(BASE.vae, 9), "unet": random_params(BASE.unet, 8)}
    )
    sdjax.save(other, tmp_path / "other")
    found = sdjax.load(tmp_path / "m", vae=tmp_path / "other", unet=tmp_path / "other" / "unet")
    assert found.config == other.config
    for part in ("vae", "unet"):
        jax.tree.map(np.testing.assert_array_equal, other.params[part], found.params[part])


@pytest.mark.parametrize("layout", ["diffusers", "compvis"])
@pytest.mark.parametrize("lcm, base", [(LCM_XL, BASE), (LCM, None)])
def test_a_unet_that_takes_the_scale(lcm, base, layout, tokenizer, tmp_path):
    base = base or words(replace(LCM, unet=replace(LCM.unet, guidance=None)))
    sdjax.save(whole(replace(base, few_steps=None, guidance_scale=5.0), tokenizer), tmp_path / "m")
    part_file(tmp_path / "own.safetensors", lcm, "unet", layout)
    found = sdjax.load(tmp_path / "m", unet=tmp_path / "own.safetensors").config
    assert (found.unet, found.guidance_scale, found.few_steps) == (lcm.unet, 8.5, 8)


def test_lightning_s_unets_are_known_by_their_names(tokenizer, tmp_path):
    sdjax.save(whole(BASE, tokenizer), tmp_path / "m")
    for name, steps, prediction in (("4step_unet", 4, "epsilon"), ("1step_unet_x0", 1, "x0")):
        part_file(tmp_path / f"sdxl_lightning_{name}.safetensors", BASE, "unet", "diffusers")
        found = sdjax.load(tmp_path / "m", unet=tmp_path / f"sdxl_lightning_{name}.safetensors").config
        assert (found.few_steps, found.guidance_scale, found.spacing) == (steps, 1.0, "trailing")
        assert found.schedule.prediction == prediction


def test_parts_that_do_not_fit(tokenizer, tmp_path):
    sdjax.save(whole(BASE, tokenizer), tmp_path / "m")
    with pytest.raises(SdjaxError, match=r"unet .*none\.safetensors: no such file or folder"):
        sdjax.load(tmp_path / "m", unet=tmp_path / "none.safetensors")
    part_file(tmp_path / "unet.safetensors", BASE, "unet", "diffusers")
    with pytest.raises(SdjaxError, match=r"vae .*unet.safetensors: holds no VAE, neither decoder.mid_block"):
        sdjax.load(tmp_path / "m", vae=tmp_path / "unet.safetensors")
    wide = replace(BASE, unet=replace(BASE.unet, channels=(16, 24)))
    part_file(tmp_path / "wide.safetensors", wide, "unet", "compvis")
    with pytest.raises(SdjaxError, match=r"wide.safetensors: \d+ tensors do not fit the config"):
        sdjax.load(tmp_path / "m", unet=tmp_path / "wide.safetensors")


def test_folders_of_other_models(tokenizer, tmp_path):
    """A UNet for another context, and a VAE with other latents, are refused by name."""
    plain = replace(words(replace(LCM, unet=replace(LCM.unet, guidance=None))), few_steps=None, guidance_scale=5.0)
    three = replace(plain, vae=replace(plain.vae, latent_channels=3), unet=replace(plain.unet, in_channels=3))
    for name, config in (("base", BASE), ("refiner", SECOND), ("plain", plain)):
        sdjax.save(whole(config, tokenizer), tmp_path / name)
    for model, part, source, said in (
        ("base", "unet", "refiner", r"takes a context as wide as \d+; .* has \d+"),
        ("base", "unet", "plain", "takes a context as wide as"),
        ("plain", "unet", "base", "takes a context as wide as"),
    ):
        with pytest.raises(SdjaxError, match=rf"^{part} .*{source}: {said}"):
            sdjax.load(tmp_path / model, **{part: tmp_path / source})
    found, params = three.vae, random_params(three.vae)
    folder = tmp_path / "base" / "vae"
    other = json.loads((folder / "config.json").read_text()) | {"latent_channels": 3}
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text(json.dumps(other))
    save_file(to_file_tensors(params, make_rows(found)), tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(SdjaxError, match=r"^vae .*vae: has channels of latents, 3; base has 4"):
        sdjax.load(tmp_path / "base", vae=tmp_path / "vae")
