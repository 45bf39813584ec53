"""The JSON files of folders: published ones are read, what would change the computation or break it is refused."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from sdjax.diffusion.schedule import make_schedule
from sdjax.diffusion.tables import samplers
from sdjax.errors import SdjaxError
from sdjax.families.sd import SD15, SD15_INPAINT, SD21, SD21_BASE
from sdjax.tasks.options import TaskOptions
from sdjax.tasks.plans import plan_of
from sdjax.weights.folder_json import folder_configs, read_config
from tests.weights import published

VOCABULARY = {"!": 0, "<|startoftext|>": 49406, "<|endoftext|>": 49407}
BASE = replace(SD21_BASE.unet, upcast_attention=False)  # as its folder says; the preset computes no less precisely


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    (folder / "tokenizer").mkdir(exist_ok=True)
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(VOCABULARY))
    return folder


@pytest.mark.parametrize(
    "name, want",
    [
        ("SD14", SD15),
        ("SD15", SD15),
        ("SD15_INPAINT", SD15_INPAINT),
        ("SD21", SD21),
        ("REALISTIC", SD15),
        ("SD21_BASE", replace(SD21_BASE, name="a", unet=BASE)),
        ("DREAMLIKE", replace(SD15, name="a", size=640)),
        ("SD2_INPAINT", replace(SD21_BASE, name="a", unet=replace(BASE, in_channels=9))),
    ],
)
def test_published_folders(name, want, tmp_path):
    assert read_config(write(tmp_path / "a", getattr(published, name))) == want
    assert read_config(tmp_path / "a", "org/b") == (want if want.name != "a" else replace(want, name="org/b"))


@pytest.mark.parametrize("name", published.SCHEDULERS)
def test_any_schedulers_file_is_read(name, tmp_path):
    fields = {"_class_name": name, **published.SCHEDULERS[name]}
    assert read_config(write(tmp_path, published.changed(published.SD15, scheduler=fields))) == SD15


def test_a_whole_clips_config_is_its_text_towers(tmp_path):
    text = published.SD15["text_encoder/config.json"]
    fields = {"model_type": "clip", "text_config": text, "vision_config": {"hidden_size": 1024}, "projection_dim": 768}
    assert read_config(write(tmp_path, published.SD15 | {"text_encoder/config.json": fields})) == SD15


def test_missing_and_null_fields_are_their_defaults(tmp_path):
    files = json.loads(json.dumps(published.SD21))
    for name in ("use_linear_projection", "upcast_attention", "mid_block_type", "norm_eps", "num_class_embeds"):
        files["unet/config.json"][name] = None
    files["unet/config.json"] |= {"transformer_layers_per_block": [1] * 4, "only_cross_attention": [False] * 4}
    for name in ("act_fn", "norm_num_groups", "latent_channels"):
        del files["vae/config.json"][name]
    want = replace(SD21.unet, linear_projection=False, upcast_attention=False)
    assert read_config(write(tmp_path, files)).unet == want and read_config(tmp_path).vae == SD21.vae


@pytest.mark.parametrize("config", [SD15, SD15_INPAINT, SD21_BASE, SD21], ids=lambda c: c.name)
def test_what_we_write_we_read(config, tmp_path):
    files = {
        **folder_configs(config),
        "tokenizer/special_tokens_map.json": {"pad_token": "!" if config.text.pad_token == 0 else "<|endoftext|>"},
    }
    assert read_config(write(tmp_path, files)) == config


@pytest.mark.parametrize(
    "part, fields, match",
    [
        ("unet", {"block_out_channels": [320, 640, 1280]}, "down_block_types"),
        ("unet", {"block_out_channels": [320, 640, 1280, 1281]}, "norm_num_groups is 32, which does not divide"),
        ("unet", {"block_out_channels": [2**40] * 4}, "block_out_channels"),
        ("unet", {"block_out_channels": [True] * 4}, "block_out_channels"),
        ("unet", {"block_out_channels": [32] * 200}, "block_out_channels"),
        ("unet", {"block_out_channels": {}}, "block_out_channels"),
        ("unet", {"attention_head_dim": 7}, "attention_head_dim"),
        ("unet", {"attention_head_dim": [8, 0, 8, 8]}, "attention_head_dim"),
        ("unet", {"layers_per_block": 10**9}, "layers_per_block is 1000000000"),
        ("unet", {"in_channels": 0}, "in_channels is 0"),
        ("unet", {"in_channels": True}, "in_channels is True"),
        ("unet", {"norm_num_groups": -32}, "norm_num_groups"),
        ("unet", {"use_linear_projection": 1}, "use_linear_projection is 1"),
        ("unet", {"transformer_layers_per_block": [1, 2]}, "transformer_layers_per_block"),
        ("unet", {"time_cond_proj_dim": "256"}, "time_cond_proj_dim is '256', should be int"),
        ("unet", {"num_class_embeds": 1000}, "its UNet takes 4 channels, 7 expected"),
        ("unet", {"num_class_embeds": 1000, "class_embed_type": "projection"}, "class_embed_type is 'projection'"),
        ("unet", {"addition_embed_type": "text_time"}, "addition_embed_type"),
        ("vae", {"norm_num_groups": 48}, "norm_num_groups"),
        ("vae", {"scaling_factor": float("nan")}, "scaling_factor is nan"),
        ("vae", {"scaling_factor": -1}, "scaling_factor is -1"),
        ("vae", {"use_quant_conv": False}, "use_quant_conv"),
        ("text_encoder", {"num_attention_heads": 11}, "num_attention_heads is 11, which does not divide 768"),
        ("text_encoder", {"num_hidden_layers": 10**6}, "num_hidden_layers"),
        ("text_encoder", {"layer_norm_eps": 1e-6}, "layer_norm_eps"),
        ("scheduler", {"beta_end": float("inf")}, "beta_end"),
        ("scheduler", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ("scheduler", {"thresholding": True}, "thresholding"),
        ("scheduler", {"timestep_spacing": "quadratic"}, "timestep_spacing is 'quadratic', should be one of leading"),
        ("scheduler", {"trained_betas": [0.1] * 999}, "trained_betas should be a list of num_train_timesteps, 1000"),
        ("scheduler", {"trained_betas": [0.1] * 999 + [0]}, "trained_betas"),
        ("scheduler", {"trained_betas": "linear"}, "trained_betas"),
        ("unet", {"encoder_hid_dim": 768}, "encoder_hid_dim"),
        ("unet", {"sample_size": [64, 64, 64]}, "sample_size"),
        ("unet", {"sample_size": [64, 0]}, "sample_size"),
        ("model_index", {"_class_name": "StableDiffusionXLPipeline", "text_encoder_2": ["a", "B"]}, "text_encoder_2"),
    ],
)
def test_refusals(part, fields, match, tmp_path):
    with pytest.raises(SdjaxError, match=match) as caught:
        read_config(write(tmp_path, published.changed(published.SD15, **{part: fields})))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_are_no_objects(tmp_path):
    for content in ("[]", "{", "", '"a"', "[" * 100_000):
        write(tmp_path, published.SD15)
        (tmp_path / "vae" / "config.json").write_text(content)
        with pytest.raises(SdjaxError, match=r"vae/config\.json"):
            read_config(tmp_path)


NOTES = {
    "unet": [
        {"decay": 0.9999, "inv_gamma": 1.0, "min_decay": 0.0, "optimization_step": 9, "power": 0.667},
        {"trained_by": "someone"},
        {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5, "f": 6},
    ],
    "vae": [{"note": "better eyes"}],
}


@pytest.mark.parametrize("part, fields", [(part, fields) for part in NOTES for fields in NOTES[part]])
def test_fields_that_nobody_knows_are_named_in_one_line(part, fields, tmp_path, caplog):
    assert read_config(write(tmp_path, published.changed(published.SD15, **{part: fields}))) == SD15
    (line,) = caplog.messages
    assert f"{part}/config.json: fields that are not known here have no effect: {min(fields)}" in line
    assert ("and 1 more" in line) == (len(fields) == 6)


def test_fields_that_have_no_effect_here(tmp_path, caplog):
    def read(**parts):
        caplog.clear()
        return read_config(write(tmp_path, published.changed(published.SD15, **parts)))

    assert read(scheduler={"clip_sample": True}) == SD15 and "clip_sample has no effect" in caplog.text
    assert read(unet={"sample_size": [64, 64]}) == SD15 and read(unet={"sample_size": [64, 64]}).size == 512
    assert not caplog.messages
    assert read(unet={"sample_size": [64, 96]}).size == 768 and "longer side" in caplog.text
    (tmp_path / "unet" / "config.json").write_bytes(
        b"\xef\xbb\xbf" + json.dumps(published.SD15["unet/config.json"]).encode()
    )
    assert read_config(tmp_path) == SD15, "a byte order mark"


@pytest.mark.parametrize(
    "scheduler, spacing, want",
    [
        ("DDIMScheduler", "leading", None),  # its own: to name it is no choice
        ("DDIMScheduler", "trailing", "trailing"),
        ("PNDMScheduler", None, None),
        ("EulerDiscreteScheduler", "leading", "leading"),
        ("EulerDiscreteScheduler", "linspace", None),
        ("EulerAncestralDiscreteScheduler", "trailing", "trailing"),
        ("DPMSolverMultistepScheduler", "leading", "leading"),
        ("SomebodysScheduler", "leading", None),
    ],
)
def test_the_spacing_that_a_folder_chooses_is_the_models(scheduler, spacing, want, tmp_path):
    fields = {"_class_name": scheduler, "timestep_spacing": spacing}
    config = read_config(write(tmp_path / "a", published.changed(published.SD15, scheduler=fields)))
    assert config == SD15 and config.spacing == want
    assert read_config(write(tmp_path / "b", folder_configs(config))).spacing == want, "written, it is read again"
    plan = lambda sampler, **more: plan_of(
        SimpleNamespace(config=config), TaskOptions(sampler=sampler, steps=8, **more)
    )
    ways = samplers["euler"].spacings
    for sampler, given in (("euler", None), ("euler", "linspace"), ("ddim", None)):
        chosen = given or (want if want in samplers[sampler].spacings else None)
        first = plan(sampler, spacing=given).levels
        np.testing.assert_array_equal(
            first, plan_of(SimpleNamespace(config=SD15), TaskOptions(sampler=sampler, steps=8, spacing=chosen)).levels
        )
    assert set(ways) >= {"leading", "trailing", "linspace"}
    plan("euler", sigmas="karras")  # has no spacing: the folder's is no reason to refuse it


def test_trained_betas_are_the_schedule(tmp_path):
    betas = np.linspace(0.001, 0.02, 1000)
    fields = {"trained_betas": betas.tolist()}
    config = read_config(write(tmp_path / "a", published.changed(published.SD15, scheduler=fields)))
    np.testing.assert_array_equal(make_schedule(config.schedule).betas, betas)
    assert config != SD15 and read_config(write(tmp_path / "b", folder_configs(config))).schedule == config.schedule
    files = published.changed(published.SD15, scheduler=fields | {"beta_schedule": "linear"})
    assert read_config(write(tmp_path / "c", files)).schedule == config.schedule, "beta_schedule has no effect then"
