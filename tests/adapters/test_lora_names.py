"""LoRA: every spelling of names in files, and those of the published models."""

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import sdjax
from tests.kinds import SDXL
from tests.lora_files import LAYOUTS, MODELS, check, down_up, draw, kohya, named, oldest, stability, write
from tests.loras import delta, sites
from tests.narrow import LIKE_SD15, LIKE_SD21


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl-2"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read(models, tmp_path, name, layout):
    spell, rename = LAYOUTS[layout]
    sd, by_site = models[name], draw(MODELS[name])
    if layout.startswith("peft"):  # one network a folder, whose names have no prefix
        by_site = {site: f for site, f in by_site.items() if site.part != "text_2"}
    by_site = {site: f for site, f in by_site.items() if spell(site)}
    assert len(by_site) > 20
    path = write(tmp_path, named(by_site, spell, rename or (lambda end: end)))
    check(sd, sdjax.add_lora(sd, path), [(by_site, 1, 1)])


def test_oldest_layout_of_the_unet_alone(models, tmp_path):
    by_site = {site: f for site, f in draw(LIKE_SD15, parts=("unet",)).items() if oldest(False)(site)}
    by_site = {site: {k: v for k, v in f.items() if k != "alpha"} for site, f in by_site.items()}
    path = write(tmp_path, named(by_site, oldest(False), down_up("")))
    check(models["sd1"], sdjax.add_lora(models["sd1"], path), [(by_site, 1, 1)])


def test_layouts_mixed_in_one_file(models, tmp_path):
    """lora.down and lora_A, CompVis' numbers and diffusers': diffusers reads a quarter of such a file."""
    by_site = draw(LIKE_SD15)
    halves = [dict([*by_site.items()][i::3]) for i in range(3)]
    tensors = named(halves[0], *LAYOUTS["diffusers"]) | named(halves[1], *LAYOUTS["diffusers lora.down"])
    path = write(tmp_path, tensors | named(halves[2], stability))
    check(models["sd1"], sdjax.add_lora(models["sd1"], path), [(by_site, 1, 1)])


@pytest.mark.parametrize("name, reshape", [("sd1", lambda v: v[..., 0, 0]), ("sd2", lambda v: v[..., None, None])])
def test_matrices_and_convolutions_of_1x1_are_the_same(models, tmp_path, name, reshape):
    """SD 1's proj_in [r, c, 1, 1], SD 2's [r, c], each as the other."""
    where = lambda site: site.name.endswith(("proj_in", "proj_out"))
    by_site = draw(MODELS[name], parts=("unet",), where=where)
    other = {site: {k: v if k == "alpha" else reshape(v) for k, v in f.items()} for site, f in by_site.items()}
    check(models[name], sdjax.add_lora(models[name], write(tmp_path, named(other))), [(by_site, 1, 1)])


def test_norms_biases_and_the_vector_of_sdxl(models, tmp_path):
    sd, rng = models["sdxl-2"], np.random.default_rng(0)
    before = flatten_dict(sd.params)
    tensors, wanted = {}, {}
    for name, path in (
        ("lora_unet_down_blocks_1_attentions_0_norm", ("unet", "down_1_attn_0", "norm")),
        ("lora_te1_text_model_encoder_layers_0_layer_norm1", ("text", "layer_0", "norm1", "norm")),
        ("lora_te2_text_model_final_layer_norm", ("text_2", "final_norm", "norm")),
    ):
        for end, leaf in (("w_norm", "scale"), ("b_norm", "bias")):
            tensors[f"{name}.{end}"] = rng.normal(size=before[*path, leaf].shape).astype(np.float32)
            wanted[*path, leaf] = np.asarray(before[*path, leaf]) + tensors[f"{name}.{end}"]
    for name in ("add_embedding_linear_1", "label_emb_0_2"):
        by_site = draw(
            SDXL, where=lambda s, name=name: name in (s.name.replace(".", "_"), str(s.single).replace(".", "_"))
        )
        ((site, f),) = by_site.items()
        tensors |= {f"lora_unet_{name}.{end}": value for end, value in f.items()}
        wanted[site.path] = np.asarray(before[site.path]) + delta(f, site.shape).T
    found = flatten_dict(sdjax.add_lora(sd, write(tmp_path, tensors)).params)
    assert {path for path in found if found[path] is not before[path]} == set(wanted)
    for path, value in wanted.items():
        np.testing.assert_allclose(found[path], value, atol=2e-6)


def test_sd2_has_no_last_text_layer(models, tmp_path):
    names = [site.name for site in sites(LIKE_SD21, ("text",))]
    assert any("layers.2." in name for name in names) and not any("layers.3." in name for name in names)


def test_the_published_names_fit_the_published_models():
    """kohya's own counts (networks/lora.py): of SD 1 192 layers of the UNet and 72 of the text tower, of SDXL 722."""
    from sdjax.adapters.lora_names import layers_by_name
    from sdjax.families.sd import SD15, SD21
    from sdjax.families.sdxl import SDXL as FULL

    inside = lambda s: ".attentions." in s.name or (s.part != "unet" and "text_projection" not in s.name)
    for config, unet, text in ((SD15, 192, 72), (SD21, 192, 138), (FULL, 722, 264)):
        found = [site for site in sites(config) if inside(site)]
        table = layers_by_name(config)
        assert sum(site.part == "unet" for site in found) == unet
        assert sum(site.part != "unet" for site in found) == text
        for site in found:
            for spell in (kohya, stability, *(spell for spell, _ in LAYOUTS.values())):
                name = spell(site)
                if name and not (site.part == "text_2" and name.startswith("base_model.")):
                    assert (table[name].part, table[name].name) == (site.part, site.name)
