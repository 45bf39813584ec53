"""A random narrow model: saved, loaded, run. tests/parity compares the numbers with torch."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdjax
from sdjax.families.sd import EMOJI
from sdjax.model import functions as model
from sdjax.model import load
from sdjax.text.bpe import train_bpe
from sdjax.types import Cond
from sdjax.weights.folder_json import folder_configs, read_config
from tests.narrow import NARROW, NARROW_V2, random_model_params
from tests.text.test_tokenizer import captions

pytestmark = pytest.mark.usefixtures("quick_compile")
TINY = replace(
    NARROW,
    name="tiny",
    size=16,
    text=replace(NARROW.text, layers=1),
    vae=replace(NARROW.vae, channels=(8, 16), blocks=1),
    unet=replace(NARROW.unet, channels=(16, 32), blocks=1, attention=(False, True), heads=(2, 4)),
)
TINY_V2 = replace(
    TINY, unet=replace(TINY.unet, linear_projection=True), text=NARROW_V2.text, schedule=NARROW_V2.schedule
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_bpe(captions(), 580, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def sd(tokenizer):
    return sdjax.StableDiffusion(TINY, random_model_params(TINY), tokenizer)


@pytest.fixture
def folder(sd, tmp_path):
    sdjax.save(sd, tmp_path / "model")
    return tmp_path / "model"


def edit(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def equal(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: x.dtype == y.dtype and np.array_equal(x, y), a, b))


@pytest.mark.parametrize("config, dtype", [(TINY, np.float32), (TINY_V2, np.float16), (TINY_V2, jnp.bfloat16)])
def test_a_saved_model_loads_the_same(config, dtype, tokenizer, tmp_path):
    sd = sdjax.StableDiffusion(config, random_model_params(config, dtype=dtype), tokenizer)
    sdjax.save(sd, tmp_path / "narrow")
    again = sdjax.load(tmp_path / "narrow")
    assert again.config == replace(config, name="narrow") and again.dtype == jnp.float32
    assert equal(sd.params, again.params)
    prompts = ["a red apple", "", "😀 " * 20]
    ids = sdjax.tokenize(again, prompts)
    assert (ids == sdjax.tokenize(sd, prompts)).all() and ids.shape == (3, 12)
    assert (ids[1, 2:] == config.text.pad_token).all()


def test_presets_are_recognised(tmp_path, tokenizer):
    config = replace(EMOJI, text=replace(EMOJI.text, vocab_size=580, bos_token=578, eos_token=579, pad_token=579))
    for name, content in folder_configs(config).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "tokenizer").mkdir()
    vocabulary = {"<|startoftext|>": 578, "<|endoftext|>": 579}
    (tmp_path / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary))
    assert read_config(tmp_path) == replace(config, name=tmp_path.name)
    vocabulary = {"<|startoftext|>": 3998, "<|endoftext|>": 3999}
    (tmp_path / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary))
    edit(tmp_path / "text_encoder" / "config.json", vocab_size=4000)
    assert read_config(tmp_path) == EMOJI


def test_saving_replaces_models_only_and_leaves_nothing_behind(sd, folder):
    sdjax.save(sd, folder)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    (folder.parent / "letters").mkdir()
    (folder.parent / "letters" / "mum.txt").write_text("dear")
    with pytest.raises(sdjax.SdjaxError, match="letters"):
        sdjax.save(sd, folder.parent / "letters")
    with pytest.raises(sdjax.SdjaxError, match="params do not fit"):
        sdjax.save(replace(sd, params=sd.params | {"vae": {}}), folder)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["letters", "model"]
    assert equal(sdjax.load(folder).params, sd.params)


def test_shapes_and_scaling(sd):
    rng = np.random.default_rng(0)
    pixels = rng.uniform(-1, 1, (2, 8, 4, 3)).astype(np.float32)
    mean, logvar = sdjax.vae_moments(sd, pixels)
    assert mean.shape == logvar.shape == (2, 4, 2, 4) and mean.dtype == jnp.float32
    latents = sdjax.encode(sd, pixels)
    np.testing.assert_array_equal(latents, mean * 0.5)
    assert sdjax.decode(sd, latents).shape == pixels.shape
    cond = sdjax.encode_prompt(sd, ["a", "b"])
    assert cond.context.shape == (2, 12, 24) and cond.context.dtype == jnp.float32
    x = rng.normal(size=(2, 4, 2, 4)).astype(np.float32)
    out = sdjax.predict(sd, x, np.array([10, 10]), cond)
    assert out.shape == x.shape and out.dtype == jnp.float32
    np.testing.assert_array_equal(out, sdjax.predict(sd, x, 10.0, cond))


def test_image_i_is_sampled_with_seed_plus_i(sd):
    pixels = np.random.default_rng(1).uniform(-1, 1, (2, 8, 4, 3)).astype(np.float32)
    last, first = sdjax.encode(sd, pixels, seed=7), sdjax.encode(sd, pixels[::-1], seed=8)
    np.testing.assert_array_equal(last[1], first[0])
    mean, logvar = (np.asarray(m)[1] for m in sdjax.vae_moments(sd, pixels))
    eps = (np.asarray(last)[1] / 0.5 - mean) / np.exp(0.5 * logvar)
    np.testing.assert_allclose(eps, jax.random.normal(jax.random.key(8), (4, 2, 4)), atol=1e-5)


def test_a_second_call_does_not_compile_again(sd):
    cond = sdjax.encode_prompt(sd, ["a", "b"])
    x = np.zeros((2, 4, 2, 4), np.float32)
    sdjax.predict(sd, x, [1, 2], cond)
    before = model.unet_output._cache_size()
    sdjax.predict(replace(sd), x + 1, [500, 3], cond)
    sdjax.predict(sd, x, 3.5, cond)
    assert model.unet_output._cache_size() == before


def test_bfloat16_stays_near_float32(sd, folder):
    half = sdjax.load(folder, dtype="bfloat16")
    cond = sdjax.encode_prompt(sd, ["a", "b"])
    x = np.random.default_rng(2).normal(size=(2, 4, 2, 4)).astype(np.float32)
    full, low = sdjax.predict(sd, x, 500, cond), sdjax.predict(half, x, 500, cond)
    assert low.dtype == jnp.float32 and 0 < jnp.abs(full - low).max() < 0.05 * jnp.abs(full).max()


def test_argument_errors(sd, tmp_path):
    cond, x = Cond(np.zeros((1, 12, 24), np.float32)), np.zeros((1, 4, 4, 4), np.float32)
    for call, match in [
        (lambda: sdjax.predict(sd, x[0], [1], cond), "x has shape"),
        (lambda: sdjax.predict(sd, x[..., :3], [1], cond), r"should be \[B, H, W, 4\]"),
        (lambda: sdjax.predict(sd, x[:, :0], [1], cond), "positive multiples of 1"),
        (lambda: sdjax.predict(sd, x, [1, 2], cond), "t has shape"),
        (lambda: sdjax.predict(sd, x, None, cond), "t None: timesteps expected"),
        (lambda: sdjax.predict(sd, x, "5", cond), "t '5': timesteps expected"),
        (lambda: sdjax.predict(sd, x, [1], cond, control_image=x), "control_image: needs a control"),
        (lambda: sdjax.predict(sd, x, [1], cond, control_scale=0.3), "control_scale: needs a control"),
        (lambda: sdjax.predict(sd, x, [1], Cond(cond.context[..., :3])), "cond.context"),
        (lambda: sdjax.vae_moments(sd, np.zeros((1, 9, 8, 3), np.float32)), "multiples of 2"),
        (lambda: sdjax.encode(sd, np.zeros((1, 8, 8, 3), np.uint8)), "uint8"),
        (lambda: sdjax.encode(sd, np.zeros((1, 8, 8, 3), np.float32), seed=-1), "seed is -1"),
        (lambda: sdjax.decode(sd, np.zeros((1, 8, 8, 3), np.float32)), "latents has shape"),
        (lambda: sdjax.decode(sd, "x"), r"latents has shape \[\], should be"),
        (lambda: sdjax.predict(sd, np.zeros((1, 8, 8, 4), np.float32), 5, "a cat"), "cond is str: what sdjax.encode"),
        (lambda: sdjax.tokenize(replace(sd, tokenizer=None), "a"), "without a tokenizer"),
        (lambda: sdjax.tokenize(sd, [1]), r"prompts\[0\]"),
        (lambda: sdjax.load(tmp_path / "nowhere"), "no such folder or file"),
        (lambda: sdjax.load(__file__), r"test_functions\.py"),
        (lambda: sdjax.load(tmp_path, dtype="float8"), "dtype is 'float8'"),
        (lambda: sdjax.load(tmp_path), "model_index.json"),
        (lambda: sdjax.save(sd, "a.ckpt"), "only read"),
    ]:
        with pytest.raises(sdjax.SdjaxError, match=match) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, fields, match",
    [
        ("unet/config.json", {"center_input_sample": True}, "center_input_sample is True, only False"),
        ("unet/config.json", {"cross_attention_norm": "group_norm"}, "cross_attention_norm is 'group_norm'"),
        ("unet/config.json", {"norm_eps": 1e-6}, "norm_eps"),
        ("unet/config.json", {"up_block_types": ["UpBlock2D"] * 2}, "up_block_types"),
        ("unet/config.json", {"cross_attention_dim": 48}, "not the text width"),
        ("unet/config.json", {"in_channels": "four"}, "in_channels is 'four'"),
        ("vae/config.json", {"shift_factor": 0.1}, "shift_factor"),
        ("text_encoder/config.json", {"hidden_act": "relu"}, "hidden_act"),
        ("text_encoder/config.json", {"vocab_size": 300}, "ids go up to 579"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "linear"}, "beta_schedule is 'linear'"),
        ("scheduler/scheduler_config.json", {"prediction_type": "score"}, "prediction_type"),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "should be v_prediction"),
        ("model_index.json", {"_class_name": "FluxPipeline"}, "FluxPipeline"),
    ],
)
def test_config_fields_that_would_change_the_result_are_refused(folder, name, fields, match):
    edit(folder / name, **fields)
    with pytest.raises(sdjax.SdjaxError, match=match) as caught:
        sdjax.load(folder)
    assert name.split("/")[0] in str(caught.value) or match in ("ids go up to 579", "not the text width")


def test_fields_that_change_nothing_are_read_over(folder, sd):
    edit(folder / "unet/config.json", _private=5, dropout=0.1, new_option=None, encoder_hid_dim=None)
    edit(folder / "text_encoder/config.json", torch_dtype="float16", bos_token_id=0, eos_token_id=2, pad_token_id=1)
    assert sdjax.load(folder).config == replace(sd.config, name="model")


def test_zero_terminal_snr_is_kept(folder, sd):
    schedule = replace(sd.config.schedule, prediction="v", zero_terminal_snr=True)
    sdjax.save(replace(sd, config=replace(sd.config, schedule=schedule)), folder)
    fields = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    assert fields["rescale_betas_zero_snr"] is True and fields["timestep_spacing"] == "trailing"
    assert sdjax.load(folder).config.schedule == schedule


def test_broken_files_are_named(folder):
    (folder / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"\x08" + bytes(30))
    with pytest.raises(sdjax.SdjaxError, match=r"vae/diffusion_pytorch_model\.safetensors"):
        sdjax.load(folder)
    (folder / "unet" / "config.json").write_text("{")
    with pytest.raises(sdjax.SdjaxError, match=r"unet/config\.json"):
        sdjax.load(folder)


def test_sharded_files(folder, sd):
    from safetensors.numpy import load_file, save_file

    stem = folder / "unet" / "diffusion_pytorch_model"
    tensors = load_file(f"{stem}.safetensors")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    names, index = sorted(tensors), {}
    for i in range(2):
        shard = f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names[i::2]}, folder / "unet" / shard)
        index |= dict.fromkeys(names[i::2], shard)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": index}))
    assert equal(sdjax.load(folder).params, sd.params)
    path.write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    with pytest.raises(sdjax.SdjaxError, match="not a plain file name"):
        sdjax.load(folder)


def test_a_data_folder_of_the_bundled_name_is_no_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "emoji" / "pictures").mkdir(parents=True)
    assert load.find_source("emoji")[0].parent.name == "pretrained"
    (tmp_path / "emoji" / "model_index.json").touch()
    assert load.find_source("emoji") == (Path("emoji"), None)


def test_a_model_is_shown_without_its_parameters():
    sd = sdjax.StableDiffusion(NARROW, random_model_params(NARROW), None)
    assert len(repr(sd)) < 200 and NARROW.name in repr(sd) and "Array" not in repr(sd) and "\n" not in repr(sd)


def test_a_model_keeps_the_class_that_it_came_with(folder, tmp_path):
    """diffusers' image-to-image pipeline of the same networks; a model from elsewhere gets its family's class."""
    index = lambda path: json.loads((path / "model_index.json").read_text())["_class_name"]
    shutil.copytree(folder, tmp_path / "given")
    change = lambda name: json.loads((tmp_path / "given" / "model_index.json").read_text()) | {"_class_name": name}
    (tmp_path / "given" / "model_index.json").write_text(json.dumps(change("StableDiffusionImg2ImgPipeline")))
    sd = sdjax.load(tmp_path / "given")
    sdjax.save(sd, tmp_path / "saved")
    assert index(tmp_path / "saved") == "StableDiffusionImg2ImgPipeline"
    for channels, name in ((4, "StableDiffusionPipeline"), (9, "StableDiffusionInpaintPipeline")):
        config = replace(NARROW, unet=replace(NARROW.unet, in_channels=channels))
        assert folder_configs(config)["model_index.json"]["_class_name"] == name
