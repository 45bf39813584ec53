"""LoRA: every kind and model against formulas in float64; alpha; dtypes of files. tests/parity has peft."""

import json

import ml_dtypes
import numpy as np
import pytest

import sdjax
from tests.lora_files import LAYOUTS, MODELS, check, draw, kohya, named, stability, write
from tests.loras import KINDS, RANK
from tests.narrow import LIKE_SD15


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_its_formula(models, tmp_path, name, kind):
    sd, by_site = models[name], draw(MODELS[name], kind)
    path = write(tmp_path, named(by_site, stability if name == "sdxl" else kohya))
    check(sd, sdjax.add_lora(sd, path, 0.7, 1.3), [(by_site, 0.7, 1.3)])
    assert sd.merged is None


@pytest.mark.parametrize(
    "kind, mistake",
    [
        ("lora", "alpha ignored"),
        ("lora", "flattened wrong"),
        ("locon", "mid ignored"),
        ("loha", "alpha ignored"),
        ("lokr-a", "alpha twice"),
        ("lokr-ab", "alpha ignored"),
        ("dora", "alpha ignored"),
    ],
)
def test_mistakes_are_noticed(models, tmp_path, kind, mistake):
    sd, by_site = models["sd1"], draw(LIKE_SD15, kind)
    found = sdjax.add_lora(sd, write(tmp_path, named(by_site)))
    with pytest.raises(AssertionError):
        check(sd, found, [(by_site, 1, 1)], 1e-3, mistake)


def test_the_axis_of_dora_is_noticed(models, tmp_path):
    """Of square layers, where both axes would fit."""
    sd = models["sd1"]
    for kind in ("dora", "dora-in"):
        by_site = draw(LIKE_SD15, kind, where=lambda site: site.shape[0] == site.shape[1])
        assert by_site
        found = sdjax.add_lora(sd, write(tmp_path, named(by_site)))
        check(sd, found, [(by_site, 1, 1)])
        swapped = {s: f | {"dora_scale": np.swapaxes(f["dora_scale"], 0, 1)} for s, f in by_site.items()}
        with pytest.raises(AssertionError):
            check(sd, found, [(swapped, 1, 1)], 1e-3)


# ---- alpha


def test_alpha_of_none_zero_and_of_a_header(models, tmp_path):
    sd, by_site = models["sd1"], draw(LIKE_SD15, parts=("unet", "text"))
    plain = {site: {k: v for k, v in f.items() if k != "alpha"} for site, f in by_site.items()}
    spell, rename = LAYOUTS["diffusers"]
    zero = {site: f | {"alpha": np.zeros((), np.float32)} for site, f in by_site.items()}
    for given in (plain, zero):
        check(sd, sdjax.add_lora(sd, write(tmp_path, named(given))), [(plain, 1, 1)])

    special = "down_blocks.0.attentions.0.proj_in"
    header = {"unet.r": RANK, "unet.lora_alpha": 6, "text_encoder.r": RANK, "text_encoder.lora_alpha": 1.5}
    header |= {"unet.alpha_pattern": {special: 0.75}, "unet.rank_pattern": {special: RANK}, "unet.use_rslora": False}
    path = write(tmp_path, named(plain, spell, rename), metadata={"lora_adapter_metadata": json.dumps(header)})
    alpha = lambda s: 0.75 if s.name == special else 6 if s.part == "unet" else 1.5
    check(sd, sdjax.add_lora(sd, path), [({s: f | {"alpha": np.float32(alpha(s))} for s, f in plain.items()}, 1, 1)])


def test_a_peft_folder(models, tmp_path):
    """rsLoRA, alpha_pattern by the end of a name, magnitudes of DoRA as peft has them; then the folders of a model."""
    sd, by_site = models["sd1"], draw(LIKE_SD15, "dora", parts=("unet",))
    plain = {site: {k: v for k, v in f.items() if k != "alpha"} for site, f in by_site.items()}
    spell, rename = LAYOUTS["peft"]

    def of_peft(f):
        m = f["dora_scale"]
        m = m.reshape(-1) if m.ndim == 2 or m.shape[1:] == (1,) else m.reshape(1, -1, 1, 1)
        return {k: v for k, v in f.items() if k != "dora_scale"} | {"lora_magnitude_vector": m}

    tensors = named({site: of_peft(f) for site, f in plain.items()}, spell, rename)
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": 4, "use_rslora": True, "use_dora": True}
    settings |= {"alpha_pattern": {"attn1.to_q": 2, "^conv_in": 7}, "rank_pattern": {}}
    write(tmp_path / "peft", tensors, "adapter_model.safetensors")
    (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps(settings))
    root = RANK / np.sqrt(RANK)  # what the formula divides by RANK

    def alpha(site):
        own = 7 if site.name == "conv_in" else 2 if site.name.endswith("attn1.to_q") else 4
        return np.float64(own * root)

    wanted = {site: f | {"alpha": alpha(site)} for site, f in plain.items()}
    check(sd, sdjax.add_lora(sd, tmp_path / "peft", 0.5), [(wanted, 0.5, 0.5)])

    text = draw(LIKE_SD15, parts=("text",))
    text = {site: {k: v for k, v in f.items() if k != "alpha"} for site, f in text.items()}
    (tmp_path / "whole").mkdir()
    (tmp_path / "peft").rename(tmp_path / "whole" / "unet")
    write(tmp_path / "whole" / "text_encoder", named(text, spell, rename), "adapter_model.safetensors")
    (tmp_path / "whole" / "text_encoder" / "adapter_config.json").write_text('{"r": 3, "lora_alpha": 3}')
    check(sd, sdjax.add_lora(sd, tmp_path / "whole"), [(wanted | text, 1, 1)])


def test_a_diffusers_folder(models, tmp_path):
    by_site = draw(LIKE_SD15)
    write(tmp_path / "lora", named(by_site, *LAYOUTS["diffusers"]), "pytorch_lora_weights.safetensors")
    check(models["sd1"], sdjax.add_lora(models["sd1"], str(tmp_path / "lora")), [(by_site, 1, 1)])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_dtypes_of_files(models, tmp_path, dtype):
    by_site = draw(LIKE_SD15)
    stored = {site: {k: v.astype(dtype) for k, v in f.items()} for site, f in by_site.items()}
    check(models["sd1"], sdjax.add_lora(models["sd1"], write(tmp_path, named(stored))), [(stored, 1, 1)])
