"""LoRA: every kind, layout and model against formulas in float64; weights; what fits nothing. tests/parity has peft."""

import json
import logging
from dataclasses import replace

import jax
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

import sdjax
from sdjax.families.table import family_of
from sdjax.formats.tensors import read_tensors
from sdjax.weights.convert import operation_of
from tests.kinds import REFINER, SDXL, XL
from tests.loras import KINDS, RANK, delta, expected, factors, sites
from tests.narrow import LIKE_SD15, LIKE_SD21, random_params

MODELS = {"sd1": LIKE_SD15, "sd2": LIKE_SD21, "sdxl": XL, "sdxl-2": SDXL, "refiner": REFINER}


def model(config, dtype=np.float32):
    parts = {part: random_params(getattr(config, part), i) for i, part in enumerate(family_of(config).parts)}
    parts = jax.tree.map(lambda leaf: leaf.astype(dtype), parts)
    return sdjax.StableDiffusion(config, parts, None)


@pytest.fixture(scope="module")
def models():
    return {name: model(config) for name, config in MODELS.items()}


def text_prefix(site, one="lora_te_", two="lora_te2_"):
    return two if family_of(site.config).parts[site.part].folder.endswith("_2") else one


def kohya(site):
    prefix = "lora_unet_" if site.part == "unet" else text_prefix(site)
    return prefix + site.name.replace(".", "_")


def stability(site):
    return "lora_unet_" + site.single.replace(".", "_") if site.part == "unet" else kohya(site)


def draw(config, kind="lora", seed=0, parts=("unet", "text", "text_2"), where=lambda site: True):
    rng = np.random.default_rng(seed)
    found = {site: factors(kind, site.shape, rng) for site in sites(config, parts) if where(site)}
    if kind == "diff_b":
        found = {site: f for site, f in found.items() if not site.name.endswith((".to_q", ".to_k", ".to_v"))}
        found = {site: f for site, f in found.items() if "text_projection" not in site.name}
    return found


def named(by_site, name=kohya, rename=lambda ending: ending):
    return {f"{name(site)}.{rename(end)}": value for site, f in by_site.items() for end, value in f.items()}


def write(tmp_path, tensors, name="a.safetensors", metadata=None):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, path, metadata)
    return path


def check(sd, found, loras, tolerance=5e-6, mistake=""):
    """All parameters are those of the formulas, of the same shapes and dtypes; untouched ones are the same arrays."""
    wanted, own, before = expected(sd, loras, mistake), flatten_dict(found.params), flatten_dict(sd.params)
    assert own.keys() == before.keys()
    worst = 0.0
    for path, value in own.items():
        assert (value.shape, value.dtype) == (before[path].shape, before[path].dtype)
        if np.array_equal(wanted[path], np.asarray(before[path], np.float64)):
            assert value is before[path], path
        worst = max(worst, np.abs(np.asarray(value, np.float64) - wanted[path]).max())
    assert worst < tolerance, worst
    return worst


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


# ---- names


OLDEST = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out.0": "to_out"}
OLDEST_TEXT = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}


def oldest(prefix):
    """diffusers' names of 2023, of attentions alone."""

    def name(site):
        for table, middle in ((OLDEST, "processor."), (OLDEST_TEXT, "")):
            for now, then in table.items():
                if site.name.endswith(f".{now}") and "attn" in site.name:
                    before = site.name.removesuffix(now)
                    folder = "" if not prefix else "unet." if site.part == "unet" else text_prefix(site, *FOLDERS)
                    return f"{folder}{before}{middle}{then}_lora"
        return None

    return name


FOLDERS = "text_encoder.", "text_encoder_2."
folder = lambda site: "unet." if site.part == "unet" else text_prefix(site, *FOLDERS)
down_up = lambda start: lambda end: end.replace("lora_", start)
a_b = lambda end: end.replace("lora_down", "lora_A").replace("lora_up", "lora_B")
LAYOUTS = {
    "kohya": (kohya, None),
    "kohya te1": (lambda s: kohya(s).replace("lora_te_", "lora_te1_"), None),
    "stability": (stability, None),
    "lycoris": (lambda s: kohya(s).replace("lora_unet_", "lycoris_"), None),
    "diffusers": (lambda s: folder(s) + s.name, a_b),
    "diffusers lora.down": (lambda s: folder(s) + s.name, down_up("lora.")),
    "diffusers lora_linear_layer": (lambda s: folder(s) + s.name, down_up("lora_linear_layer.")),
    "diffusers without a prefix": (lambda s: (folder(s) if s.part != "unet" else "") + s.name, a_b),
    "diffusers 2023": (oldest(True), down_up("")),
    "peft": (lambda s: "base_model.model." + s.name, a_b),
    "peft raw": (lambda s: "base_model.model." + s.name, lambda end: a_b(end).replace(".weight", ".default.weight")),
    "comfy": (lambda s: "diffusion_model." + s.single if s.part == "unet" else folder(s) + s.name, a_b),
    "compvis": (lambda s: "model.diffusion_model." + s.single if s.part == "unet" else folder(s) + s.name, a_b),
    "text without text_model": (lambda s: folder(s) + s.name.removeprefix("text_model."), a_b),
}


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


# ---- weights


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_weight_of_0_and_two_in_either_order(tmp_path, dtype):
    sd = model(LIKE_SD15, dtype)
    files = [
        write(tmp_path, named(draw(LIKE_SD15, kind, i)), f"{kind}.safetensors")
        for i, kind in enumerate(("lora", "dora"))
    ]
    none = sdjax.add_lora(sd, files[1], 0.0)
    assert all(a is b for a, b in zip(jax.tree.leaves(none.params), jax.tree.leaves(sd.params), strict=True))
    half = sdjax.add_lora(sd, files[0], 0.0, 1.0)
    assert jax.tree.leaves(half.params["unet"])[0] is jax.tree.leaves(sd.params["unet"])[0]
    assert any(a is not b for a, b in zip(*(jax.tree.leaves(s.params["text"]) for s in (half, sd)), strict=True))
    one = sdjax.add_lora(sdjax.add_lora(sd, files[0], 0.6), files[1], 0.4)
    two = sdjax.add_lora(sdjax.add_lora(sd, files[1], 0.4), files[0], 0.6)
    eps = float(ml_dtypes.finfo(dtype).eps)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(two.params), strict=True):
        np.testing.assert_allclose(*(np.asarray(leaf, np.float64) for leaf in (a, b)), rtol=eps, atol=eps)
    assert a.dtype == dtype


def test_a_merge_is_rounded_once(tmp_path):
    """In bfloat16 one LoRA and its half twice are the same to the bit: each is computed from the model's own values."""
    sd, by_site = model(LIKE_SD15, ml_dtypes.bfloat16), draw(LIKE_SD15)
    files = [write(tmp_path, named(by_site), f"{name}.safetensors") for name in "ab"]
    whole = sdjax.add_lora(sd, files[0], 1.0)
    halves = sdjax.add_lora(sdjax.add_lora(sd, files[0], 0.5), files[1], 0.5)
    wanted = {path: value.astype(ml_dtypes.bfloat16) for path, value in expected(sd, [(by_site, 1, 1)]).items()}
    different = total = 0
    for path, leaf in flatten_dict(whole.params).items():
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(flatten_dict(halves.params)[path]))
        different += (np.asarray(leaf) != wanted[path]).sum()
        total += leaf.size
    assert different < 1e-3 * total, "values that float32 puts beside the middle of two"


def test_50_sliders_moved_50_times_leave_nothing(models, tmp_path):
    sd, rng = models["sd1"], np.random.default_rng(0)
    where = lambda site: site.name.endswith("attn1.to_q")
    drawn = [draw(LIKE_SD15, "lora", i, ("unet",), where) for i in range(50)]
    files = [write(tmp_path, named(one), f"{i}.safetensors") for i, one in enumerate(drawn)]
    found, weights = sd, np.zeros(50)
    for i in range(50):
        found = sdjax.add_lora(found, files[i], 0.0)
    for move in range(50):
        weights[move] = rng.uniform(-1, 1)
        found = sdjax.add_lora(found, files[move], weights[move])
    assert len(found.merged.added) == 50
    straight = sd
    for file, weight in zip(files, weights, strict=True):
        straight = sdjax.add_lora(straight, file, weight)
    for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(straight.params), strict=True):
        np.testing.assert_array_equal(a, b)
    check(sd, found, [(one, w, w) for one, w in zip(drawn, weights, strict=True)], 2e-5)
    for file in files:
        found = sdjax.add_lora(found, file, 0.0)
    assert all(a is b for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(sd.params), strict=True))


def test_nothing_is_compiled(models, tmp_path):
    """Neither by a merge nor by a call of the merged model."""
    sd = models["sd1"]
    files = [write(tmp_path, named(draw(LIKE_SD15, kind)), f"{kind}.safetensors") for kind in KINDS]
    x, cond = np.zeros((1, 8, 8, 4), np.float32), sdjax.Cond(np.zeros((1, 12, 24), np.float32))
    before, compiled = np.asarray(sdjax.predict(sd, x, 5, cond)), []
    listener = lambda name, *_, **__: compiled.append(name) if "compile" in name else None
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        for file in files:
            for weight in (0.1, 0.2):
                sd = sdjax.add_lora(sd, file, weight)
                after = np.asarray(sdjax.predict(sd, x, 5, cond))
        assert not compiled
        jax.jit(lambda x: x + 1)(np.zeros(977))
        assert compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    assert (before != after).any()


def test_parameters_that_were_replaced_are_the_models_own(models, tmp_path):
    sd, by_site = models["sd1"], draw(LIKE_SD15)
    path = write(tmp_path, named(by_site))
    once = sdjax.add_lora(sd, path)
    other = replace(once, params=jax.tree.map(lambda leaf: leaf * 2, once.params))
    check(other, sdjax.add_lora(other, path, 0.5), [(by_site, 0.5, 0.5)])
    assert len(sdjax.add_lora(other, path).merged.added) == 1
    (tmp_path / "b").mkdir()
    again = draw(LIKE_SD15, seed=7)
    write(tmp_path, named(again))
    check(sd, sdjax.add_lora(once, path), [(again, 1, 1)])  # the file was written anew


def test_the_words_in_a_file(models, tmp_path):
    from tests.text.test_prompt import Words

    sd, by_site = replace(models["sd1"], tokenizer=Words()), draw(LIKE_SD15)
    vectors = np.random.default_rng(0).normal(size=(2, 24)).astype(np.float32)
    tensors = named(by_site) | {"bundle_emb.zorp.string_to_param.*": vectors}
    found = sdjax.add_lora(sd, write(tmp_path, tensors))
    np.testing.assert_array_equal(found.embeddings["zorp"], vectors)
    two = models["sdxl-2"]
    sides = {"clip_l": np.ones((2, 16), np.float32), "clip_g": np.full((2, 12), 2, np.float32)}
    tensors = named(draw(SDXL)) | {f"bundle_emb.zorp.{name}": value for name, value in sides.items()}
    found = sdjax.add_lora(two, write(tmp_path, tensors))
    np.testing.assert_array_equal(found.embeddings["zorp"], np.concatenate([*sides.values()], 1))
    with pytest.raises(sdjax.SdjaxError, match=r"a\.safetensors: bundle_emb x: a has shape \[1, 7\]"):
        sdjax.add_lora(sd, write(tmp_path, named(by_site) | {"bundle_emb.x.a": np.ones((1, 7), np.float32)}))


# ---- refusals


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


def test_a_saved_model_is_the_merged_one(models, tmp_path):
    sd = models["sd1"]
    merged = sdjax.add_lora(sd, write(tmp_path, named(draw(LIKE_SD15))))
    sdjax.save(merged, tmp_path / "out.safetensors")
    tensors = read_tensors(tmp_path / "out.safetensors")
    for site in sites(LIKE_SD15):
        ours = operation_of(site.row.compvis_operation)[0](tensors[site.row.compvis])
        np.testing.assert_array_equal(ours, flatten_dict(merged.params)[site.path])


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
