"""Folders as they come: .bin, variants, shards, old names; what save(dtype=...) writes."""

import json
import os
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

import sdjax
from sdjax.errors import SdjaxError
from sdjax.families.sd import SD
from sdjax.text.bpe import train_bpe
from sdjax.weights.folder import DIFFUSERS, TRANSFORMERS, read_folder, stems_of, weights_file
from tests.formats.assembler import SYSTEM, make_zip, save_zip
from tests.narrow import NARROW, NARROW_INPAINT, NARROW_V2, random_model_params
from tests.text.test_tokenizer import captions
from tests.weights import published


def cast(params, dtype):
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf).astype(dtype)), params)


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: x.dtype == y.dtype and np.array_equal(x, y), a, b))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_bpe(captions(), 580, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def model(tokenizer, tmp_path):
    """(folder, what it holds)."""
    sd = sdjax.StableDiffusion(NARROW, random_model_params(NARROW), tokenizer)
    sdjax.save(sd, tmp_path / "model")
    return tmp_path / "model", sd.params


def rewrite(folder, change=lambda part, tensors: tensors, bins=True, variant=""):
    """Every part's weights changed by `change`, as .bin or safetensors."""
    for part, place in SD.parts.items():
        subfolder, stems = place.folder, stems_of(place)
        old = folder / subfolder / "{}.{}".format(*stems[0])
        tensors = change(part, load_file(old))
        old.unlink()
        stem, suffix = stems[bins]
        path = folder / subfolder / f"{stem}{variant}.{suffix}"
        if bins:
            path.write_bytes(save_zip(tensors))
        else:
            save_file(tensors, path)


def older(part, tensors):
    """The names of diffusers 0.2 and transformers 4.20, and their index buffer."""
    if part == "vae":
        for now, then in ("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn"):
            tensors = {name.replace(f".{now}.", f".{then}."): value for name, value in tensors.items()}
    if part == "text":
        tensors["text_model.embeddings.position_ids"] = np.arange(12)[None]
    return tensors


def bare(part, tensors):
    """Text weights without `text_model.`, and the projection of CLIPTextModelWithProjection."""
    if part == "text":
        tensors = {name.removeprefix("text_model."): value for name, value in tensors.items()}
        tensors |= {"embeddings.position_ids": np.arange(12), "text_projection.weight": np.ones((4, 24), np.float32)}
    return tensors


@pytest.mark.parametrize("bins", [True, False], ids=["bin", "safetensors"])
@pytest.mark.parametrize("change", [older, bare])
def test_old_names_and_bins(model, change, bins):
    folder, params = model
    rewrite(folder, change, bins)
    assert same(read_folder(folder)[1], params)


def test_fp16_variants_are_taken_when_there_is_nothing_better(model):
    folder, params = model
    half = lambda part, tensors: {name: value.astype(np.float16) for name, value in tensors.items()}
    full = {path: path.read_bytes() for path in folder.rglob("*.safetensors")}
    for bins in (True, False):
        rewrite(folder, half, bins, ".fp16")
        for path, content in full.items():
            path.write_bytes(content)
    assert same(read_folder(folder)[1], params)
    for path in full:
        path.unlink()
    halves = cast(params, np.float16)
    assert same(read_folder(folder)[1], halves)
    for path in folder.rglob("*.fp16.safetensors"):
        path.unlink()
    assert same(read_folder(folder)[1], halves)


def test_the_order_of_preference():
    stem = "diffusion_pytorch_model"
    order = [
        f"{stem}.safetensors",
        f"{stem}.safetensors.index.json",
        f"{stem}.bin",
        f"{stem}.bin.index.json",
        f"{stem}.fp16.safetensors",
        f"{stem}.safetensors.index.fp16.json",
        f"{stem}.fp16.bin",
        f"{stem}.bin.index.fp16.json",
    ]
    for i, name in enumerate(order):
        assert weights_file({*order[i:], f"{stem}.non_ema.safetensors"}, DIFFUSERS) == name
    assert weights_file({"pytorch_model.bin", "model.fp16.safetensors"}, TRANSFORMERS) == "pytorch_model.bin"
    assert weights_file({"flax_model.msgpack", "model.onnx"}, TRANSFORMERS) is None


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_shards_of_bins(model, variant):
    folder, params = model
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    path.unlink()
    index, shards = {}, [f"diffusion_pytorch_model{variant}-0000{i + 1}-of-00003.bin" for i in range(3)]
    for i, shard in enumerate(shards):
        part = {name: tensors[name] for name in sorted(tensors)[i::3]}
        (folder / "unet" / shard).write_bytes(save_zip(part))
        index |= dict.fromkeys(part, shard)
    path = folder / "unet" / f"diffusion_pytorch_model.bin.index{variant}.json"
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": index}))
    assert same(read_folder(folder)[1], params)

    (folder / "unet" / shards[2]).write_bytes(save_zip(part | {sorted(tensors)[0]: tensors[sorted(tensors)[0]]}))
    with pytest.raises(SdjaxError, match="is there twice"):
        read_folder(folder)
    (folder / "unet" / shards[2]).unlink()
    with pytest.raises(SdjaxError, match=r"00003-of-00003\.bin: no such file"):
        read_folder(folder)
    for broken in ({}, {"a": 1}, [], {"a": ".."}, {"a": "../vae/a.bin"}):
        path.write_text(json.dumps({"weight_map": broken}))
        with pytest.raises(SdjaxError, match=str(path.parent)):
            read_folder(folder)


def test_nothing_in_a_bin_is_run(model, tmp_path):
    folder, _ = model
    rewrite(folder)
    (folder / "vae" / "diffusion_pytorch_model.bin").write_bytes(make_zip(SYSTEM))
    with pytest.raises(SdjaxError, match=r"vae/diffusion_pytorch_model\.bin: "):
        read_folder(folder)
    (folder / "vae" / "diffusion_pytorch_model.bin").unlink()
    with pytest.raises(SdjaxError, match=r"vae: no diffusion_pytorch_model\.safetensors there"):
        read_folder(folder)


@pytest.mark.parametrize(
    "config, like",
    [
        (NARROW, published.SD14),
        (NARROW, published.REALISTIC),
        (NARROW_V2, published.SD21),
        (NARROW_INPAINT, published.SD15_INPAINT),
    ],
    ids=["sd14", "later", "sd21", "inpaint"],
)
def test_a_published_folder_shrunk(config, like, tokenizer, tmp_path):
    """Published JSON files, .bin weights under old names; only the sizes are a narrow model's."""
    params = random_model_params(config)
    sdjax.save(sdjax.StableDiffusion(config, params, tokenizer), tmp_path / "a")
    rewrite(tmp_path / "a", older)
    sizes = {
        "block_out_channels",
        "attention_head_dim",
        "down_block_types",
        "up_block_types",
        "layers_per_block",
        "norm_num_groups",
        "cross_attention_dim",
        "sample_size",
        "hidden_size",
        "intermediate_size",
        "vocab_size",
        "num_attention_heads",
        "num_hidden_layers",
        "max_position_embeddings",
        "scaling_factor",
    }
    for name, content in like.items():
        path = tmp_path / "a" / name
        ours = {key: value for key, value in json.loads(path.read_text()).items() if key in sizes}
        if name != "unet/config.json":  # there num_attention_heads is null
            content = {key: value for key, value in content.items() if key != "num_attention_heads"}
            path.write_text(json.dumps(content | ours))
        else:
            path.write_text(json.dumps(content | ours | {"num_attention_heads": None}))
    sd = sdjax.load(tmp_path / "a")
    assert sd.config == replace(config, name="a") and same(sd.params, params)
    assert (sdjax.tokenize(sd, "a red apple")[0, 5:] == config.text.pad_token).all()


def test_a_model_that_cannot_be_replaced_stays(tokenizer, tmp_path, monkeypatch):
    sd = sdjax.StableDiffusion(NARROW, random_model_params(NARROW), tokenizer)
    sdjax.save(sd, tmp_path / "model")
    move = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: move(a, b) if Path(a).name != "new" else move("nowhere", b))
    with pytest.raises(SdjaxError, match="model: cannot be written"):
        sdjax.save(sd, tmp_path / "model")
    assert same(sdjax.load(tmp_path / "model").params, sd.params) and len([*tmp_path.iterdir()]) == 1
    with pytest.raises(SdjaxError, match="cannot be written"):
        sdjax.save(sd, "/proc/nothing/model")
    monkeypatch.setattr("safetensors.numpy.save_file", Mock(side_effect=SafetensorError("I/O error: no space")))
    for name in ("model", "model.safetensors"):
        with pytest.raises(SdjaxError, match=rf"{name}: cannot be written \(I/O error: no space\)"):
            sdjax.save(sd, tmp_path / name)
    assert same(sdjax.load(tmp_path / "model").params, sd.params) and len([*tmp_path.iterdir()]) == 1


def test_what_else_lies_in_a_replaced_folder_stays(tokenizer, tmp_path, monkeypatch):
    sd = sdjax.StableDiffusion(NARROW, random_model_params(NARROW), tokenizer)
    sdjax.save(sd, tmp_path / "elsewhere" / "model")
    model = tmp_path / "model"
    model.symlink_to(tmp_path / "elsewhere" / "model")
    (model / "safety_checker").mkdir()
    for name in ("safety_checker/config.json", "notes.txt"):
        (model / name).write_text("mine")
    sdjax.save(sd, model, dtype="float16")
    assert model.is_symlink() and len([*tmp_path.iterdir()]) == 2 and len([*(tmp_path / "elsewhere").iterdir()]) == 1
    assert jax.tree.leaves(sdjax.load(model).params)[0].dtype == np.float16
    assert all((model / name).read_text() == "mine" for name in ("safety_checker/config.json", "notes.txt"))

    move = os.replace
    for interrupted in ("model", "new"):

        def stop(a, b, interrupted=interrupted):
            if interrupted == Path(a).name == "model":
                move(a, b)
            if Path(a).name == interrupted:
                raise KeyboardInterrupt
            move(a, b)

        monkeypatch.setattr(os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            sdjax.save(sd, model)
        monkeypatch.setattr(os, "replace", move)
        assert sdjax.load(model).config.name == "model" and (model / "notes.txt").read_text() == "mine"


# ---- save(dtype=...)


@pytest.mark.parametrize("name", ["model", "model.safetensors"])
def test_save_keeps_the_dtype_or_rounds_to_another(name, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("sdjax.weights.single.CANDIDATES", (NARROW,))
    params = random_model_params(NARROW, dtype=np.float16)
    params["vae"] = random_model_params(NARROW)["vae"]  # mixed, as many finetunes are
    sd = sdjax.StableDiffusion(NARROW, params, tokenizer)
    path = tmp_path / name
    sdjax.save(sd, path)
    assert same(sdjax.load(path, dtype="bfloat16").params, params)
    sdjax.save(sdjax.load(path, dtype="bfloat16"), path)
    assert same(sdjax.load(path).params, params)
    for dtype in ("bfloat16", "float32"):
        sdjax.save(sd, path, dtype=dtype)
        assert same(sdjax.load(path).params, cast(params, dtype))
    with pytest.raises(SdjaxError, match="dtype is 'int8'"):
        sdjax.save(sd, path, dtype="int8")
    params["unet"]["conv_in"]["bias"] = jnp.full(16, 1e5, jnp.float32)
    with pytest.raises(SdjaxError, match="float16 cannot hold values of unet/conv_in/bias"):
        sdjax.save(sd, path, dtype="float16")
    sdjax.save(sd, path, dtype="bfloat16")


@pytest.mark.parametrize("variant", ["bf16", "fp16", "ema", "my-mix"])
def test_a_folder_of_one_variant_only(model, variant):
    folder, params = model
    half = lambda part, tensors: {name: value.astype(np.float16) for name, value in tensors.items()}
    rewrite(folder, half, False, f".{variant}")
    halves = cast(params, np.float16)
    assert same(read_folder(folder)[1], halves)
    assert same(sdjax.load(folder, variant=variant).params, halves)
    for other in ("fp32", "bf17"):
        with pytest.raises(SdjaxError, match=f"variant '{other}': .* has no weights of that variant"):
            sdjax.load(folder, variant=other)


def test_a_variant_is_taken_where_it_is_and_others_elsewhere(model, tmp_path):
    folder, params = model
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    halves = {name: value.astype(np.float16) for name, value in load_file(path).items()}
    save_file(halves, path.with_name("diffusion_pytorch_model.fp16.safetensors"))
    plain, asked = sdjax.load(folder), sdjax.load(folder, variant="fp16")
    assert same(plain.params, params)
    assert same(asked.params, params | {"unet": cast(params["unet"], np.float16)})
    for wrong in ("", "../x", 3):
        with pytest.raises(SdjaxError, match="variant is"):
            sdjax.load(folder, variant=wrong)
    sdjax.save(plain, tmp_path / "one.safetensors")
    with pytest.raises(SdjaxError, match=r"variant 'fp16': .* is one file"):
        sdjax.load(tmp_path / "one.safetensors", variant="fp16")


BESIDE = {
    "vae": ["loss.logvar", "loss.discriminator.main.0.weight", "model_ema.decay"],
    "text": ["vision_model.post_layernorm.bias", "visual_projection.weight", "logit_scale", "lora_te.alpha"],
}


@pytest.mark.parametrize("part", BESIDE)
def test_what_no_network_owns_is_left_out_and_counted(model, part, caplog):
    folder, params = model
    more = {name: np.zeros(2, np.float32) for name in BESIDE[part]}
    rewrite(folder, lambda name, tensors: tensors | (more if name == part else {}), False)
    assert same(read_folder(folder)[1], params)
    (line,) = caplog.messages
    assert f"{len(more)} tensors that no computation here needs are left out: {min(more)}" in line


@pytest.mark.parametrize(
    "part, name",
    [
        *(("unet", "class_embedding.weight"), ("unet", "add_embedding.linear_1.bias"), ("unet", "lora.weight")),
        *(("vae", "encoder.extra.weight"), ("vae", "quant_conv.extra"), ("text", "text_model.extra.weight")),
    ],
)
def test_an_unknown_tensor_of_a_networks_own_is_refused(model, part, name):
    folder, _ = model
    rewrite(folder, lambda which, found: found | ({name: np.zeros(2, np.float32)} if which == part else {}), False)
    with pytest.raises(SdjaxError, match=f"1 unexpected: {name}$"):
        read_folder(folder)


@pytest.mark.parametrize("layers", [1, 2])
def test_fewer_layers_than_the_file_has(model, layers, caplog):
    """As people cut a text tower for clip skip: config.json says how many of its layers are run."""
    folder, params = model
    path = folder / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": layers}))
    config, found, _ = read_folder(folder)
    kept = {name: part for name, part in params["text"].items() if name != "layer_1" or layers == 2}
    assert config.text.layers == layers and same(found["text"], kept)
    assert ("tensors that no computation here needs" in caplog.text) == (layers < 2)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 3}))
    with pytest.raises(SdjaxError, match=r"missing: text_model\.encoder\.layers\.2\."):
        read_folder(folder)
