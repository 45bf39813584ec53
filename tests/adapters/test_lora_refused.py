"""LoRA: what fits nothing is refused by name; hub ids."""

import logging
from dataclasses import replace

import numpy as np
import pytest

import sdjax
from tests.lora_files import LAYOUTS, check, draw, model, named, write
from tests.narrow import LIKE_SD15


def lines(sd, path, match, **options):
    with pytest.raises(sdjax.SdjaxError, match=match) as caught:
        sdjax.add_lora(sd, path, **options)
    said = str(caught.value)
    assert "\n" not in said and len(said) < 1500
    return said


@pytest.mark.parametrize(
    "change, match",
    [
        (
            lambda t, n: t | {"lora_unet_nowhere.alpha": t[f"{n}.alpha"]},
            "1 of its .* tensors fit nothing in like-sd15: lora_unet_nowhere.alpha",
        ),
        (lambda t, n: t | {f"{n}.lora_down.weight": np.ones((3, 5), np.float32)}, r"has shape \[\d+, 5\], should be"),
        (lambda t, n: t | {f"{n}.lora_up.weight": np.ones((16, 7), np.float32)}, "do not go together: alpha"),
        (lambda t, n: {k: v for k, v in t.items() if k != f"{n}.lora_up.weight"}, "has down, and no up"),
        (lambda t, n: t | {f"{n}.lora_up.weight": np.ones((24, 3), np.int32)}, "is int32, should be floating point"),
        (lambda t, n: t | {f"{n}.alpha": np.ones(2, np.float32)}, r"alpha has shape \[2\], should be one number"),
        (lambda t, n: t | {f"{n}.alpha": np.array(np.nan, np.float32)}, "alpha is empty or has NaN"),
        (lambda t, n: t | {f"{n}.hada_w1_a": np.ones((2, 3), np.float32)}, "which are of several kinds"),
        (lambda t, n: t | {f"{n}.dora_scale": np.ones((1, 3), np.float32)}, r"magnitudes of shape \[1, 3\]"),
        (lambda t, n: t | {f"{n}.diff_b": np.ones(3, np.float32)}, "the layer has no bias"),
        (lambda t, n: t | {f"{n}.lora_A.weight": t[f"{n}.lora_down.weight"]}, "changes one layer twice, as"),
        (lambda t, n: t | {f"{n}.oft_blocks": np.ones(3, np.float32)}, "fit nothing"),
        (lambda t, n: t | {f"{n}.lora_up.weight": np.ones((), np.float32)}, "do not go together"),
    ],
)
def test_what_fits_nothing_is_refused(models, tmp_path, change, match):
    by_site = draw(LIKE_SD15)
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_q"
    assert f"{name}.alpha" in named(by_site)
    said = lines(models["sd1"], write(tmp_path, change(named(by_site), name)), match)
    assert "a.safetensors" in said


def test_the_nearest_names_are_listed(models, tmp_path):
    bad = {"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_qq.alpha": np.ones((), np.float32)}
    path = write(tmp_path, named(draw(LIKE_SD15)) | bad)
    said = lines(models["sd1"], path, "fit nothing")
    assert "nearest names here: lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_q" in said


def test_strict_false_logs_it_and_takes_the_rest(models, tmp_path, caplog):
    by_site = draw(LIKE_SD15)
    path = write(tmp_path, named(by_site) | {"lora_unet_nowhere.alpha": np.ones((), np.float32)})
    with caplog.at_level(logging.WARNING, logger="sdjax"):
        check(models["sd1"], sdjax.add_lora(models["sd1"], path, strict=False), [(by_site, 1, 1)])
    assert len(caplog.records) == 1 and "lora_unet_nowhere.alpha" in caplog.text
    lines(models["sd1"], write(tmp_path, {"x.alpha": np.ones(1, np.float32)}), "1 of its 1 tensors", strict=False)


#: A key's factor of the published shapes, for a file of each family.
WIDTHS = {"SD 1": 768, "SD 2": 1024, "SDXL": 2048}


@pytest.mark.parametrize("made, own", [(a, b) for a in WIDTHS for b in WIDTHS if a != b])
def test_a_file_for_another_family_is_named(tmp_path, made, own):
    config = replace(LIKE_SD15, unet=replace(LIKE_SD15.unet, context_dim=WIDTHS[own]))
    name = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{name}.lora_down.weight": np.ones((2, WIDTHS[made]), np.float32)}
    path = write(tmp_path, tensors | {f"{name}.lora_up.weight": np.ones((24, 2), np.float32)})
    sd = sdjax.StableDiffusion(config, {}, None)
    lines(sd, path, rf"a\.safetensors: made for {made}, not for {own}; 2 of its 2 tensors")


@pytest.mark.parametrize(
    "names, match",
    [
        (["lora_unet_double_blocks_0_img_attn_qkv.alpha"], "made for a model with a transformer"),
        (["transformer.single_blocks.0.lora_A.weight"], "made for a model with a transformer"),
        (["emb_params"], "made for textual inversion, which sdjax.add_embedding takes"),
        (["model.diffusion_model.out.2.weight"], "made for a whole model"),
    ],
)
def test_other_files_are_named(models, tmp_path, names, match):
    lines(models["sd1"], write(tmp_path, {name: np.ones((2, 2), np.float32) for name in names}), match)


@pytest.mark.parametrize(
    "options, match",
    [
        ({"weight": "1"}, "weight '1': a finite number"),
        ({"weight": float("nan")}, "weight nan"),
        ({"weight": True}, "weight True"),
        ({"text_weight": float("inf")}, "text_weight inf"),
        ({"strict": 1}, "strict 1: True or False"),
    ],
)
def test_arguments(models, tmp_path, options, match):
    lines(models["sd1"], write(tmp_path, named(draw(LIKE_SD15))), match, **options)


@pytest.mark.parametrize(
    "source, match",
    [
        *(
            (None, "source is None"),
            ("nowhere.safetensors", "no such LoRA file"),
            (3, "source is 3"),
            ("", "source is ''"),
        ),
        *(
            ("x" * 5000, "xxx: no such LoRA file"),
            ("a\0b", r"'a\\x00b': no such LoRA file"),
            ("a/b/c", "a/b/c: no such"),
        ),
    ],
)
def test_sources(models, source, match):
    lines(models["sd1"], source, match)
    with pytest.raises(sdjax.SdjaxError, match="sd is int"):
        sdjax.add_lora(3, "a")


@pytest.mark.parametrize(
    "content, match",
    [
        ("{", "adapter_config.json: not readable JSON"),
        ("[]", "a JSON object expected"),
        ('{"peft_type": "OFT"}', "peft_type is 'OFT', should be LORA, LOHA or LOKR"),
        ('{"lora_alpha": "a"}', "alpha has 'alpha': a, should be a number"),
        ('{"alpha_pattern": {"(a+)+$": 1}}', "alpha_pattern has .* should be names of layers"),
        ('{"alpha_pattern": {"a": "b"}}', "alpha_pattern has 'a': b, should be a number"),
        ('{"fan_in_fan_out": true}', "fan_in_fan_out"),
    ],
)
def test_settings_of_peft_that_are_wrong(models, tmp_path, content, match):
    (tmp_path / "adapter_config.json").write_text(content)
    lines(models["sd1"], tmp_path, r"has adapter_config.json, and no adapter_model.safetensors")
    write(tmp_path, named(draw(LIKE_SD15), *LAYOUTS["peft"]), "adapter_model.safetensors")
    lines(models["sd1"], tmp_path, match)
    (tmp_path / "adapter_config.json").unlink()
    lines(models["sd1"], tmp_path, "holds neither pytorch_lora_weights.safetensors nor adapter_config.json")


def test_headers_that_are_wrong(models, tmp_path):
    for header in ("{", "3", '{"unet.lora_alpha": "x"}'):
        path = write(tmp_path, named(draw(LIKE_SD15)), metadata={"lora_adapter_metadata": header})
        lines(models["sd1"], path, r"a\.safetensors: lora_adapter_metadata")


def test_a_value_that_float16_does_not_hold(tmp_path):
    path = write(tmp_path, named(draw(LIKE_SD15)))
    lines(model(LIKE_SD15, np.float16), path, "becomes larger than float16 holds", weight=1e7)


@pytest.mark.parametrize("names", [("pytorch_lora_weights.safetensors",), ("style.safetensors",)])
def test_a_hub_id(models, tmp_path, monkeypatch, caplog, names):
    """Without the network: what the hub lists, then what is in the cache when it does not answer."""
    by_site, asked = draw(LIKE_SD15), []
    for name in names:
        write(tmp_path, named(by_site), name)

    def download(repo, allow_patterns=None, local_files_only=False):
        asked.append((repo, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr("sdjax.weights.hub.list_files", lambda repo: {*names, "README.md", "pictures/a.png"})
    check(models["sd1"], sdjax.add_lora(models["sd1"], "org/name"), [(by_site, 1, 1)])
    assert asked == [("org/name", [*names])]

    def silent(repo):
        raise sdjax.SdjaxError("the hub did not answer")

    monkeypatch.setattr("sdjax.weights.hub.list_files", silent)
    with caplog.at_level(logging.WARNING, logger="sdjax"):
        check(models["sd1"], sdjax.add_lora(models["sd1"], "org/name"), [(by_site, 1, 1)])
    assert "taken from the cache" in caplog.text
    monkeypatch.setattr("sdjax.weights.hub.list_files", lambda repo: {"a.safetensors", "b.safetensors"})
    lines(models["sd1"], "org/name", "org/name: holds none of pytorch_lora_weights.safetensors")
    monkeypatch.setattr("sdjax.weights.hub.list_files", silent)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: 1 / 0)
    lines(models["sd1"], "org/name", "not in the cache, and the hub did not answer")


@pytest.mark.parametrize("weight", [1.0, 1e300])
def test_factors_that_float32_does_not_hold(models, tmp_path, recwarn, weight):
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_q"
    tensors = {f"{name}.lora_down.weight": np.full((3, 32), 1e30, np.float32)}
    path = write(tmp_path, tensors | {f"{name}.lora_up.weight": np.full((32, 3), 1e30, np.float32)})
    lines(models["sd1"], path, "weight .* becomes larger than float32 holds", weight=weight)
    double = {key: value.astype(np.float64) * 1e200 for key, value in tensors.items()}
    lines(models["sd1"], write(tmp_path, double), "down is empty or has NaN or infinite values")
    assert not recwarn
