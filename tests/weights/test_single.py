"""Single files: recognised, read strictly, written so that every tensor comes back byte for byte."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_dtypes import float8_e4m3fn
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from sdjax.errors import SdjaxError
from sdjax.families.sd import SD21, SD21_BASE
from sdjax.families.table import PRESETS, family_of
from sdjax.weights import single
from sdjax.weights.folder import read_folder, write_folder
from sdjax.weights.single import CANDIDATES, V_BIAS, detect, read_single, write_single
from sdjax.weights.spellings import VAE_ATTENTION, ema_name
from tests.narrow import NARROW, NARROW_INPAINT, NARROW_V2, file_tensors, random_model_params
from tests.weights.files import same, written

CONFIGS = [NARROW, NARROW_V2, NARROW_INPAINT]
UNET, TEXT, VAE = "model.diffusion_model.", "cond_stage_model.", "first_stage_model."


@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16], ids=["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_every_tensor_comes_back_byte_for_byte(config, dtype, tokenizer, tmp_path):
    """folder -> folder, folder -> single -> single, folder -> single -> folder -> single; by way of parameters."""
    params = random_model_params(config, dtype=dtype)
    write_folder(tmp_path / "a", config, params, tokenizer)
    found, params_a, _ = read_folder(tmp_path / "a")
    write_single(tmp_path / "a.safetensors", found, params_a)
    again, params_b = read_single(tmp_path / "a.safetensors", config=found)
    assert again == found and same(params, params_a) and same(params_a, params_b)

    write_folder(tmp_path / "b", again, params_b, tokenizer)
    write_folder(tmp_path / "c", found, params_a, tokenizer)
    for path in (tmp_path / "a").rglob("*.*"):
        for other in "bc":
            assert path.read_bytes() == (tmp_path / other / path.relative_to(tmp_path / "a")).read_bytes()
    found, params_c, _ = read_folder(tmp_path / "b")
    write_single(tmp_path / "b.safetensors", found, params_c)
    write_single(tmp_path / "c.safetensors", again, params_b)
    for other in "bc":
        assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / f"{other}.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a",
        "a.safetensors",
        "b",
        "b.safetensors",
        "c",
        "c.safetensors",
    ]


# ---- which model is it?


#: Those that differ in nothing that a file shows: tests/tasks/test_kinds.py has them.
TWINS = {"celeba256", "ffhq256", "lsun-beds256", "semantic-synthesis256", "semantic-synthesis512"}
TOLD_APART = [config for config in CANDIDATES if config.name not in TWINS]


@pytest.mark.parametrize("config", TOLD_APART, ids=lambda c: c.name)
def test_every_preset_is_recognised_from_names_and_shapes(config, caplog):
    tensors = file_tensors(config)
    if config in (SD21, SD21_BASE):
        spread = {"v": 0.12, "epsilon": 0.03}[config.schedule.prediction]
        tensors[V_BIAS] = np.random.default_rng(0).normal(size=320, scale=spread).astype(np.float16)
    assert detect(tensors) == config
    assert len(caplog.messages) == (config in (SD21, SD21_BASE))  # the guess is said, and only a guess
    other = {"v": "epsilon", "epsilon": "v"}[config.schedule.prediction]
    assert detect(tensors, other).schedule.prediction == other
    assert len(caplog.messages) == (config in (SD21, SD21_BASE))
    if caplog.messages:
        assert f'prediction="{other}"' in caplog.text and V_BIAS in caplog.text and "\n" not in caplog.messages[0]


def test_presets_differ_in_what_a_file_shows():
    assert {config.name for config in CANDIDATES} > {*PRESETS, "sd2-inpaint", "cin256-v2", "cin256"}
    for config in TOLD_APART:
        expected = {SD21, SD21_BASE} if config in (SD21, SD21_BASE) else {config}
        assert set(single.recognise(family_of(config).probes(config))) == expected


def test_other_models_are_refused_with_what_was_seen():
    sdxl = {
        f"{UNET}input_blocks.0.0.weight": np.zeros((320, 4, 3, 3)),
        "conditioner.embedders.1.model.ln_final.bias": np.zeros(1280),
    }
    with pytest.raises(SdjaxError, match=r"none of sd15.*input_blocks\.0\.0\.weight \[320, 4, 3, 3\]"):
        detect(sdxl, source="xl.safetensors")
    with pytest.raises(SdjaxError, match=r"it has none"):
        detect({"lora_unet_down.weight": np.zeros(3)})


def test_the_metadata_of_a_written_file_settle_the_prediction(tmp_path, monkeypatch, caplog):
    twin = replace(NARROW_V2, name="twin", schedule=NARROW.schedule)
    monkeypatch.setattr(single, "CANDIDATES", (twin, NARROW_V2))
    for config, other in ((twin, NARROW_V2), (NARROW_V2, twin)):
        path = tmp_path / f"{config.name}.safetensors"
        written(path, config)
        with safe_open(path, "numpy") as file:
            assert file.metadata()["modelspec.prediction_type"] == config.schedule.prediction
        assert read_single(path)[0] == config
        assert read_single(path, prediction=other.schedule.prediction)[0] == other
        assert not caplog.messages
        save_file(load_file(path), path)
        assert read_single(path)[0] == twin and "does not say" in caplog.text
        caplog.clear()
    with pytest.raises(SdjaxError, match="prediction is 'score', should be one of epsilon, v"):
        read_single(path, prediction="score")


# ---- what else is in files


def add_extras(tensors):
    """What the originals and their descendants hold besides: nothing of it is used, in no dtype."""
    extras = {
        f"{VAE}loss.discriminator.main.0.weight": 3,
        f"{VAE}loss.logvar": 0,
        "model_ema.decay": 0,
        "model_ema.num_updates": 0,
        "alphas_cumprod": 1000,
        "lvlb_weights": 1000,
        "denoiser.sigmas": 1000,
        f"{TEXT}transformer.text_model.embeddings.position_ids": 12,
        f"{TEXT}logit_scale": 0,
        f"{TEXT}model.logit_scale": 0,
        f"{TEXT}model.text_projection": 24,
        f"{TEXT}model.attn_mask": 12,
        f"{TEXT}transformer.text_projection.weight": 24,
        f"{TEXT}model.transformer.resblocks.2.attn.in_proj_weight": 72,
        f"{TEXT}model.transformer.resblocks.2.ln_1.bias": 24,
    }
    return tensors | {name: np.full((size,) if size else (), np.nan, np.float32) for name, size in extras.items()}


@pytest.mark.parametrize("config", [NARROW, NARROW_V2], ids=lambda c: c.name)
def test_known_extras_are_read_over_and_strangers_are_not(config, tmp_path):
    path = tmp_path / "a.safetensors"
    params = written(path, config, add_extras)
    assert same(params, read_single(path, config=config)[1])
    strangers = [
        f"{UNET}label_emb.0.0.weight",
        f"{TEXT}model.transformer.resblocks.3.ln_1.bias",
        f"{TEXT}model.transformer.resblocks.0.ls_1.gamma",
        f"{VAE}encoder.loss",
        f"{VAE}decoder.extra.weight",
    ]
    for stranger in strangers:
        written(path, config, lambda tensors, name=stranger: tensors | {name: np.zeros(1, np.float32)})
        with pytest.raises(SdjaxError, match=f"1 tensors do not fit the config: 1 unexpected: {re.escape(stranger)}$"):
            read_single(path, config=config)


OTHERS = [
    *("control_model.zero_convs.0.0.weight", "betas.1", "model_emas.decay", "xlogvar", "global_step", "epoch"),
    *(
        "embedding_manager.string_to_param_dict.*",
        "lora_unet_mid_block_attentions_0_proj_in.alpha",
        "lora_te_text.alpha",
    ),
    *("model_sampling.sigmas", "scaled_fp8", "cond_stage_key", "learned_conditioner.x", "optimizer.state.0.exp_avg"),
    *(f"{VAE}model_ema.decay", f"{VAE}model_ema.encoderconv_inbias", f"{VAE}discriminator.main.0.weight"),
]


@pytest.mark.parametrize("config", [NARROW, NARROW_V2], ids=lambda c: c.name)
def test_what_no_network_owns_is_left_out_and_counted(config, tmp_path, caplog):
    path = tmp_path / "a.safetensors"
    params = written(path, config, lambda tensors: tensors | {name: np.zeros(2, np.float32) for name in OTHERS})
    caplog.clear()
    assert same(params, read_single(path, config=config)[1])
    (line,) = caplog.messages
    assert f"{len(OTHERS)} tensors that no computation here needs are left out: betas.1, " in line and len(line) < 400
    for part in (f"{UNET}scaled_fp8", f"{UNET}input_blocks.0.0.scale_input"):  # of float8 files, known to be harmless
        written(path, config, lambda tensors, name=part: tensors | {name: np.zeros(0, np.float32)})
        caplog.clear()
        assert same(params, read_single(path, config=config)[1]) and not caplog.messages


@pytest.mark.parametrize("name", ["edm_vpred.sigma_max", "edm_mean", "edm_std", "latents_mean", "latents_std"])
def test_the_mark_of_another_computation_is_refused(name, tmp_path):
    written(tmp_path / "a.safetensors", NARROW, lambda tensors: tensors | {name: np.zeros(4, np.float32)})
    with pytest.raises(SdjaxError, match=f"holds {name}, so its model needs .* which is not supported"):
        read_single(tmp_path / "a.safetensors", config=NARROW)


def test_marks_of_v_prediction_and_of_zero_terminal_snr(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(single, "CANDIDATES", (NARROW,))
    path, mark = tmp_path / "a.safetensors", lambda *names: lambda t: t | {n: np.zeros(0, np.float32) for n in names}
    plain = lambda: save_file(mark(*names)(load_file(path)), path)  # without the metadata
    for names, prediction, zero in (
        ((), "epsilon", False),
        (("v_pred",), "v", False),
        (("v_pred", "ztsnr"), "v", True),
    ):
        written(path, NARROW)
        plain()
        schedule = read_single(path)[0].schedule
        assert (schedule.prediction, schedule.zero_terminal_snr) == (prediction, zero), names
    assert read_single(path, prediction="epsilon")[0].schedule.prediction == "epsilon", "what is asked for comes first"
    caplog.clear()
    names = ("ztsnr",)
    written(path, NARROW)
    plain()
    assert not read_single(path)[0].schedule.zero_terminal_snr and "ztsnr has no effect" in caplog.text
    zero = replace(NARROW, schedule=replace(NARROW.schedule, prediction="v", zero_terminal_snr=True))
    caplog.clear()
    params = written(path, zero)
    config, found = read_single(path)
    assert config == zero and same(found, params) and not caplog.messages, "what is written is read"


def test_scaled_float8(tmp_path):
    """ComfyUI's: the weight is the stored one times scale_weight."""
    path, name = tmp_path / "a.safetensors", f"{UNET}input_blocks.0.0"
    scale = np.array(0.25, np.float32)

    def stored(tensors):
        weight = (tensors[f"{name}.weight"].astype(np.float32) / scale).astype(float8_e4m3fn)
        return tensors | {
            f"{name}.weight": weight,
            f"{name}.scale_weight": scale,
            "scaled_fp8": np.zeros(0, np.float32),
        }

    params = written(path, NARROW, stored)
    ours, want = (tree["unet"]["conv_in"]["kernel"] for tree in (read_single(path, config=NARROW)[1], params))
    want = (np.asarray(want, np.float32) / scale).astype(float8_e4m3fn).astype(np.float32) * scale
    np.testing.assert_array_equal(np.asarray(ours, np.float32), want)
    assert ours.dtype == np.float16
    for value in (np.zeros(3, np.float32), np.float32(np.nan)):
        written(
            path, NARROW, lambda tensors, value=value: stored(tensors) | {f"{name}.scale_weight": np.asarray(value)}
        )
        with pytest.raises(SdjaxError, match=r"scale_weight .*should be one number"):
            read_single(path, config=NARROW)


@pytest.mark.parametrize(
    "lost, said",
    [
        ((VAE,), r"has no VAE \(no tensor first_stage_model\.\*\)"),
        ((TEXT,), r"has no text tower \(no tensor cond_stage_model\.\*\)"),
        (
            (TEXT, VAE),
            r"has no text tower and no VAE \(no tensor cond_stage_model\.\* and none first_stage_model\.\*\)",
        ),
        ((TEXT, UNET), r"has no text tower and no UNet"),
    ],
)
def test_a_file_without_a_network_says_so(lost, said, tmp_path, monkeypatch):
    monkeypatch.setattr(single, "CANDIDATES", (NARROW, NARROW_V2))
    written(
        tmp_path / "a.safetensors", NARROW, lambda tensors: {k: v for k, v in tensors.items() if not k.startswith(lost)}
    )
    with pytest.raises(SdjaxError, match=said):
        read_single(tmp_path / "a.safetensors")


@pytest.mark.parametrize("column", [1, 2], ids=["diffusers", "older"])
def test_vae_attention_in_every_spelling_and_shape(column, tmp_path):
    def change(tensors):
        found = {}
        for name, value in tensors.items():
            for row in VAE_ATTENTION:
                name = name.replace(f".attn_1.{row[0]}.", f".attn_1.{row[min(column, len(row) - 1)]}.")
            matrix = ".attn_1." in name and value.ndim == 4
            found[name] = np.ascontiguousarray(value[:, :, 0, 0]) if matrix else value
        assert len(found) == len(tensors) and set(found) != set(tensors)
        return found

    params = written(tmp_path / "a.safetensors", NARROW, change)
    assert same(params, read_single(tmp_path / "a.safetensors", config=NARROW)[1])


def test_one_report_for_the_whole_file(tmp_path, caplog):
    def spoil(tensors):
        del tensors[f"{UNET}out.2.bias"], tensors[f"{VAE}quant_conv.weight"]
        tensors[f"{TEXT}model.transformer.resblocks.1.attn.in_proj_bias"] = np.full(72, np.inf, np.float32)
        tensors[f"{TEXT}model.transformer.resblocks.0.attn.in_proj_weight"] = np.zeros((24, 72), np.float32)
        tensors[f"{UNET}time_embed.0.bias"] = np.zeros(64, np.int32)

    caplog.set_level("DEBUG", "sdjax")
    written(tmp_path / "a.safetensors", NARROW_V2, spoil)
    with pytest.raises(SdjaxError) as caught:
        read_single(tmp_path / "a.safetensors", config=NARROW_V2)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "a.safetensors") + ": 9 tensors do not fit") and "\n" not in message
    for text in (
        f"2 missing: {VAE}quant_conv.weight ...",  # of several, the first: four kinds in 400 characters
        "1 not floating point: ",
        "3 of wrong shape: ",
        "3 with NaN or infinite values: ",
    ):
        assert text in message
    for name in (f"{UNET}out.2.bias", f"{VAE}quant_conv.weight", "resblocks.1.attn.in_proj_bias", "time_embed.0.bias"):
        assert name in caplog.text


def test_the_ema_copy(tmp_path, caplog):
    def add_ema(tensors):
        return tensors | {ema_name(name): value + 1 for name, value in tensors.items() if name.startswith(UNET)}

    path = tmp_path / "a.safetensors"
    params = written(path, NARROW, add_ema)
    caplog.clear()
    _, plain = read_single(path, config=NARROW)
    _, ema = read_single(path, config=NARROW, prefer_ema=True)
    assert same(plain, params) and not caplog.messages
    assert same(ema, params | {"unet": jax.tree.map(lambda leaf: leaf + 1, params["unet"])})

    lost = ema_name(f"{UNET}out.2.bias")
    written(path, NARROW, lambda tensors: {k: v for k, v in add_ema(tensors).items() if k != lost})
    with pytest.raises(SdjaxError, match=f"1 tensors do not fit the config: 1 missing: {lost}$"):
        read_single(path, config=NARROW, prefer_ema=True)
    written(path, NARROW)
    assert same(read_single(path, config=NARROW, prefer_ema=True)[1], params) and "has no EMA copy" in caplog.text


@pytest.mark.parametrize(
    "config, new, old",
    [
        (NARROW_V2, TEXT, "conditioner.embedders.0."),
        (NARROW, TEXT, "conditioner.embedders.0."),
        (NARROW, f"{TEXT}transformer.text_model.", f"{TEXT}transformer."),
    ],
)
def test_other_spellings(config, new, old, tmp_path):
    rename = lambda tensors: {name.replace(new, old): value for name, value in tensors.items()}
    params = written(tmp_path / "a.safetensors", config, rename)
    assert same(params, read_single(tmp_path / "a.safetensors", config=config)[1])
    written(tmp_path / "a.safetensors", config, lambda tensors: tensors | rename(tensors))
    with pytest.raises(SdjaxError, match=rf"holds one tensor twice, as ({new}.* and as {old}|{old}.* and as {new})"):
        read_single(tmp_path / "a.safetensors", config=config)


def test_scale_factor_and_betas(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(single, "CANDIDATES", (NARROW,))
    path, buffer = tmp_path / "a.safetensors", lambda name, value: lambda t: t | {name: np.asarray(value)}
    other = replace(NARROW, vae=replace(NARROW.vae, scaling=0.75))
    written(path, other)
    assert load_file(path)["scale_factor"] == 0.75 and read_single(path)[0] == other
    written(path, NARROW)
    assert "scale_factor" not in load_file(path) and read_single(path)[0] == NARROW
    written(path, NARROW, buffer("scale_factor", np.float16(0.5002)))
    assert read_single(path)[0] == NARROW
    written(path, NARROW, buffer("scale_factor", np.float32(np.nan)))
    with pytest.raises(SdjaxError, match="scale_factor is nan"):
        read_single(path)
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    written(path, NARROW, buffer("betas", betas.astype(np.float16)))
    assert read_single(path)[0] == NARROW and not caplog.messages
    written(path, NARROW, buffer("betas", np.linspace(0.0001, 0.02, 1000)))
    assert read_single(path)[0] == NARROW and "another noise schedule" in caplog.text
