"""The table of names and the converter: complete, invertible, strict."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from sdjax.errors import SdjaxError
from sdjax.families.sd import EMOJI, EMOJI_VISION, SD15, SD21
from sdjax.networks.clip.config import VisionConfig
from sdjax.networks.table import make_rows, param_shapes
from sdjax.weights.convert import OPERATIONS, SPLIT, from_file_tensors, placed, report, to_file_tensors
from sdjax.weights.spellings import current_name, ema_name
from tests.narrow import NARROW, NARROW_V2, NARROW_VISION, random_params

MODULES = [getattr(c, part) for c in (NARROW, NARROW_V2, EMOJI) for part in ("text", "vae", "unet")]
MODULES += [NARROW_VISION, EMOJI_VISION]


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: x.dtype == y.dtype and np.array_equal(x, y), a, b))


@pytest.mark.parametrize("module", [*MODULES, SD15.text, SD15.vae, SD15.unet, SD21.text, SD21.unet], ids=repr)
def test_the_table_covers_every_parameter_once(module):
    rows = make_rows(module)
    assert sorted(row.path for row in rows) == sorted(flatten_dict(param_shapes(module)))
    names = [row.diffusers for row in rows]
    assert len(set(names)) == len(names)
    if isinstance(module, VisionConfig):
        return
    whole = [row.compvis for row in rows if row.compvis_operation not in SPLIT]
    split = [(row.compvis, row.compvis_operation) for row in rows if row.compvis_operation in SPLIT]
    assert None not in whole and len(set(whole)) == len(whole) and len(set(split)) == len(split)
    assert sorted(split) == sorted((name, part) for name in {name for name, _ in split} for part in SPLIT)


def test_compvis_names_of_sd21():
    """A sample of v2-1_768-ema-pruned.safetensors' names with their shapes; q, k and v are stacked."""
    prefix, shapes = "cond_stage_model.model.", flatten_dict(param_shapes(SD21.text))
    found = {row.compvis: OPERATIONS[row.compvis_operation][2](shapes[row.path].shape) for row in make_rows(SD21.text)}
    for name, shape in {
        "positional_embedding": (77, 1024),
        "token_embedding.weight": (49408, 1024),
        "ln_final.bias": (1024,),
        "transformer.resblocks.0.attn.in_proj_weight": (3072, 1024),
        "transformer.resblocks.22.attn.in_proj_bias": (3072,),
        "transformer.resblocks.22.attn.out_proj.weight": (1024, 1024),
        "transformer.resblocks.1.mlp.c_fc.weight": (4096, 1024),
        "transformer.resblocks.1.mlp.c_proj.weight": (1024, 4096),
        "transformer.resblocks.1.ln_2.weight": (1024,),
    }.items():
        assert found[prefix + name] == shape
    assert len(found) == 23 * 12 + 4 and {row.compvis_operation for row in make_rows(SD21.text)} >= set(SPLIT)
    linear = {row.compvis: row for row in make_rows(SD21.unet)}
    assert linear["model.diffusion_model.middle_block.1.proj_in.weight"].compvis_operation == "dense"


def test_ema_names_are_those_of_litema_and_unique():
    rows = make_rows(SD15.unet)
    assert ema_name("model.diffusion_model.input_blocks.0.0.weight") == "model_ema.diffusion_modelinput_blocks00weight"
    assert len({ema_name(row.compvis) for row in rows}) == len(rows) == 686


def test_compvis_names_of_sd15():
    """A sample of v1-5-pruned.safetensors' names, one of each kind, with its shapes."""
    names = {row.compvis: row for part in (SD15.text, SD15.vae, SD15.unet) for row in make_rows(part)}
    unet, vae = "model.diffusion_model.", "first_stage_model."
    for name in (
        unet + "input_blocks.3.0.op.weight",
        unet + "input_blocks.4.0.skip_connection.weight",
        unet + "input_blocks.11.0.in_layers.0.weight",
        unet + "middle_block.1.proj_in.weight",
        unet + "output_blocks.2.1.conv.weight",
        unet + "output_blocks.5.2.conv.weight",
        unet + "output_blocks.11.1.transformer_blocks.0.attn2.to_k.weight",
        unet + "out.2.bias",
        vae + "encoder.down.2.block.0.nin_shortcut.weight",
        vae + "decoder.up.3.upsample.conv.weight",
        vae + "decoder.up.0.block.0.nin_shortcut.weight",
        vae + "encoder.mid.attn_1.proj_out.weight",
        vae + "post_quant_conv.bias",
        "cond_stage_model.transformer.text_model.encoder.layers.11.self_attn.q_proj.weight",
        "cond_stage_model.transformer.text_model.final_layer_norm.bias",
    ):
        assert name in names, name
    assert unet + "output_blocks.12.0.in_layers.0.weight" not in names
    assert names[vae + "encoder.mid.attn_1.q.weight"].compvis_operation == "conv1x1"


@pytest.mark.parametrize("module", MODULES, ids=repr)
def test_round_trip_is_exact_and_keeps_dtypes(module):
    rows, expected = make_rows(module), param_shapes(module)
    layouts = ["diffusers", "compvis"] if rows[0].compvis else ["diffusers"]
    for layout, dtype in zip(layouts, (np.float32, np.float16), strict=False):
        params = random_params(module, dtype=dtype)
        tensors = to_file_tensors(params, rows, layout)
        assert all(value.flags.c_contiguous and value.dtype == dtype for value in tensors.values())
        assert same(params, from_file_tensors(tensors, rows, expected, layout))


def test_file_shapes_are_torchs():
    tensors = to_file_tensors(random_params(EMOJI.unet), make_rows(EMOJI.unet))
    shape = lambda name: tensors[name].shape
    assert shape("conv_in.weight") == (48, 4, 3, 3)
    assert shape("down_blocks.1.resnets.0.conv_shortcut.weight") == (96, 48, 1, 1)
    assert shape("mid_block.attentions.0.proj_in.weight") == (160, 160, 1, 1)
    assert shape("time_embedding.linear_1.weight") == (192, 48)
    linear = to_file_tensors(random_params(NARROW_V2.unet), make_rows(NARROW_V2.unet))
    assert linear["mid_block.attentions.0.proj_in.weight"].shape == (32, 32)


def test_one_report_names_everything_that_is_wrong():
    rows, expected = make_rows(NARROW.vae), param_shapes(NARROW.vae)
    tensors = to_file_tensors(random_params(NARROW.vae), rows)
    del tensors["quant_conv.bias"]
    tensors["stranger.weight"] = np.zeros(3, np.float32)
    tensors["post_quant_conv.weight"] = np.zeros((4, 5), np.float32)
    tensors["decoder.conv_in.bias"] = np.full(24, np.nan, np.float32)
    tensors["encoder.conv_in.bias"] = np.zeros(8, np.int32)
    with pytest.raises(SdjaxError) as caught:
        from_file_tensors(tensors, rows, expected, source="vae.safetensors")
    message = str(caught.value)
    assert message.startswith("vae.safetensors: 5 tensors")
    for line in (
        "1 missing: quant_conv.bias",
        "1 unexpected: stranger.weight",
        "1 with NaN or infinite values: decoder.conv_in.bias",
        "1 not floating point: encoder.conv_in.bias int32",
        "1 of wrong shape: post_quant_conv.weight [4, 5], should be [4, 4, 1, 1]",
    ):
        assert line in message
    assert "\n" not in message
    with pytest.raises(SdjaxError, match="missing"):
        to_file_tensors({"encoder": {}}, rows)


def test_harmless_extras_and_old_names():
    module = NARROW.text
    rows, expected = make_rows(module), param_shapes(module)
    params = random_params(module)
    tensors = to_file_tensors(params, rows)
    bare = {name.removeprefix("text_model."): value for name, value in tensors.items()}
    bare["embeddings.position_ids"] = np.arange(12)
    named = {current_name("text", name): value for name, value in bare.items()}
    assert same(params, from_file_tensors(named, rows, expected))

    new = [row.diffusers for row in make_rows(NARROW.vae)]
    old = new
    for now, then in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        old = [name.replace(now, then) for name in old]
    renamed = [[current_name("vae", name) for name in names] for names in (old, new)]
    assert old != new and renamed == [new, new]


def test_the_image_towers_norm_is_misspelt_as_in_transformers():
    assert "vision_model.pre_layrnorm.weight" in [row.diffusers for row in make_rows(EMOJI_VISION)]


def test_placed_arrays_are_copies_and_compile_nothing(caplog):
    raw = np.zeros(64 + 4 * 31 * 41, np.uint8)
    aligned = (
        raw[-raw.ctypes.data % 64 :][: 4 * 31 * 41].view(np.float32).reshape(31, 41)
    )  # JAX would keep a view of it
    with jax.log_compiles():
        arrays = [placed(aligned), placed(aligned.T)]
    assert "Compiling" not in caplog.text
    aligned += 1
    assert [array.shape for array in arrays] == [(31, 41), (41, 31)] and not any(np.asarray(a).any() for a in arrays)


@pytest.mark.parametrize("count", [1, 3, 4, 700])
def test_a_report_is_short_and_the_log_has_all(count, caplog):
    names = [f"down_blocks.{i}.attentions.0.transformer_blocks.0.attn1.to_q.weight" for i in range(count)]
    problems = [("missing", name, "") for name in names] + [
        ("unexpected", "x" * 400, ""),
        ("of wrong shape", "y", " [3]"),
    ]
    with caplog.at_level("DEBUG", "sdjax"):
        line = report("a.safetensors", problems)
    assert line.startswith(f"a.safetensors: {count + 2} tensors do not fit the config: {count} missing: {names[0]}")
    assert len(line) < len("a.safetensors: ") + 400 + 130 and "\n" not in line and "1 of wrong shape: y [3]" in line
    assert ("..." in line) and (names[1] in line if 1 < count < 3 else True)
    assert all(name in caplog.text for name in names) and "x" * 400 in caplog.text


def test_a_matrix_may_be_a_convolution_of_one_pixel():
    """As strangers' converters leave them, both ways, in both layouts."""
    for config, layout in ((NARROW.vae, "diffusers"), (NARROW.vae, "compvis"), (NARROW.unet, "diffusers")):
        rows, params = make_rows(config), random_params(config)
        tensors, turned = to_file_tensors(params, rows, layout), {}
        for name, value in tensors.items():
            conv = value.ndim == 4 and value.shape[2:] == (1, 1)
            turned[name] = value[:, :, 0, 0] if conv else value[:, :, None, None] if value.ndim == 2 else value
        assert sum(turned[name].shape != tensors[name].shape for name in tensors) >= 8
        found = from_file_tensors(turned, rows, param_shapes(config), layout)
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), found, params))
    wrong = {name: value[..., None, None] if value.ndim == 2 else value for name, value in tensors.items()}
    wrong = {name: value.repeat(2, -1) if value.shape[2:] == (1, 1) else value for name, value in wrong.items()}
    with pytest.raises(SdjaxError, match="of wrong shape"):
        from_file_tensors(wrong, rows, param_shapes(config))
