"""CompVis' yaml files: the published ones give the published configurations, and mistakes are refused in one line."""

import copy

import pytest
import yaml

from sdjax.errors import SdjaxError
from sdjax.families.sd import SD15, SD15_INPAINT, SD21
from sdjax.families.table import PUBLISHED
from sdjax.weights.compvis_yaml import read_yaml, yaml_beside
from sdjax.weights.single import described_beside
from tests.parity.ldm_models import MODELS

LDM = "ldm.modules.encoders.modules."


def stage(multipliers, z, codes=None, scale=None, attention=(), **ddconfig):
    """A first_stage_config, as the published yamls have it."""
    inner = {"double_z": not codes, "z_channels": z, "resolution": 256, "ch": 128, "ch_mult": multipliers}
    inner |= {"num_res_blocks": 2, "attn_resolutions": list(attention), "dropout": 0.0, **ddconfig}
    kind = "VQModelInterface" if codes else "AutoencoderKL"
    params = {"embed_dim": z, "ddconfig": inner} | ({"n_embed": codes} if codes else {})
    return {"target": f"ldm.models.autoencoder.{kind}", "params": params}


def whole(unet, first, cond, betas, image_size=64, **params):
    unet = {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": {"num_res_blocks": 2} | unet}
    start, end = betas
    params |= {"linear_start": start, "linear_end": end, "timesteps": 1000, "image_size": image_size}
    params |= {"unet_config": unet, "first_stage_config": first, "cond_stage_config": cond}
    return {"model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params}}


def unet(width, multipliers, factors, channels, **more):
    fields = {"in_channels": channels[0], "out_channels": channels[1], "model_channels": width}
    return fields | {"channel_mult": multipliers, "attention_resolutions": factors} | more


ST = {"use_spatial_transformer": True, "transformer_depth": 1}
F4, BETAS = stage([1, 2, 4], 3, 8192), (0.0015, 0.0195)
SD_STAGE = stage([1, 2, 4, 4], 4)
SD_UNET = {"num_heads": 8, "context_dim": 768, **ST}
PUBLISHED_YAMLS = {
    "cin256-v2": whole(
        unet(192, [1, 2, 3, 5], [8, 4, 2], (3, 3), num_heads=1, context_dim=512, **ST),
        F4,
        {"target": LDM + "ClassEmbedder", "params": {"n_classes": 1001, "embed_dim": 512, "key": "class_label"}},
        BETAS,
    ),
    "cin256": whole(
        unet(256, [1, 2, 4], [4, 2, 1], (4, 4), num_head_channels=32, context_dim=512, **ST),
        stage([1, 2, 2, 4], 4, 16384, attention=[32]),
        {"target": LDM + "ClassEmbedder", "params": {"embed_dim": 512}},
        BETAS,
        32,
    ),
    "layout2img-openimages256": whole(
        unet(
            128, [1, 2, 3, 4], [8, 4, 2], (3, 3), num_head_channels=32, context_dim=512, **ST | {"transformer_depth": 3}
        ),
        F4,
        {
            "target": LDM + "BERTEmbedder",
            "params": {"n_embed": 512, "n_layer": 16, "vocab_size": 8192, "max_seq_len": 92, "use_tokenizer": False},
        },
        (0.0015, 0.0205),
    ),
    "semantic-synthesis256": whole(
        unet(128, [1, 4, 8], [32, 16, 8], (6, 3), num_heads=8),
        F4,
        {"target": LDM + "SpatialRescaler", "params": {"n_stages": 2, "in_channels": 182, "out_channels": 3}},
        (0.0015, 0.0205),
        concat_mode=True,
    ),
    "text2img-large": whole(
        unet(320, [1, 2, 4, 4], [4, 2, 1], (4, 4), num_heads=8, context_dim=1280, **ST),
        SD_STAGE,
        {"target": LDM + "BERTEmbedder", "params": {"n_embed": 1280, "n_layer": 32}},
        (0.00085, 0.012),
        32,
        scale_factor=0.18215,
    ),
    "inpainting-big": whole(
        unet(256, [1, 2, 3, 4], [8, 4, 2], (7, 3), num_heads=8, resblock_updown=True),
        stage([1, 2, 4], 3, 8192, attn_type="none"),
        "__is_first_stage__",
        (0.0015, 0.0205),
        128,
    ),
    "bsr-sr": whole(
        unet(160, [1, 2, 2, 4], [16, 8], (6, 3), num_head_channels=32),
        F4,
        {"target": "torch.nn.Identity"},
        (0.0015, 0.0155),
        128,
    ),
    "lsun-churches256": whole(
        unet(
            *(192, [1, 2, 2, 4, 4], [1, 2, 4, 8], (4, 4)),
            num_heads=8,
            use_scale_shift_norm=True,
            resblock_updown=True,
        ),
        SD_STAGE,
        "__is_unconditional__",
        (0.0015, 0.0155),
        32,
        scale_factor=0.18215,
    ),
    "sd15": whole(
        unet(320, [1, 2, 4, 4], [4, 2, 1], (4, 4), **SD_UNET),
        SD_STAGE,
        {"target": LDM + "FrozenCLIPEmbedder"},
        (0.00085, 0.012),
        scale_factor=0.18215,
    ),
    "sd21": whole(
        unet(
            *(320, [1, 2, 4, 4], [4, 2, 1], (4, 4)),
            num_head_channels=64,
            use_linear_in_transformer=True,
            context_dim=1024,
            **ST,
        ),
        SD_STAGE,
        {"target": LDM + "FrozenOpenCLIPEmbedder", "params": {"freeze": True, "layer": "penultimate"}},
        (0.00085, 0.012),
        96,
        scale_factor=0.18215,
        parameterization="v",
    ),
}


@pytest.mark.parametrize("name", PUBLISHED_YAMLS)
def test_published_yamls_are_the_published_configurations(name, tmp_path):
    want = next(config for config in PUBLISHED if config.name == name)
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(PUBLISHED_YAMLS[name]))
    found = read_yaml(tmp_path / "model.yaml")
    assert (found, found.size, found.guidance_scale, found.name) == (want, want.size, want.guidance_scale, "model")
    assert described_beside(tmp_path / "model.ckpt").name == name


def test_which_yaml_belongs_to_a_file(tmp_path):
    assert yaml_beside(tmp_path / "a.ckpt") is None
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(PUBLISHED_YAMLS["sd15"]))
    assert described_beside(tmp_path / "a.ckpt").name == "sd15"
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(MODELS["tiny-map"]))
    assert described_beside(tmp_path / "a.ckpt").name == "a", "its own comes first"
    assert described_beside(tmp_path / "b.ckpt") == SD15


def test_other_yamls_are_not_read(tmp_path, caplog):
    for content in ({"learning_rate": 1}, [1, 2], None, {"model": {"params": {"unet_config": {}}}}, {"model": 3}):
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
        assert described_beside(tmp_path / "a.ckpt") is None
    assert "config.yaml: does not describe a model of latent diffusion, and is not read" in caplog.text
    assert SD21 != SD15_INPAINT


def changed(path, value, name="tiny-classes"):
    """A yaml with another value at a path of keys."""
    content = copy.deepcopy(MODELS[name])
    place = content["model"]["params"]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return yaml.safe_dump(content)


U, F, C = ("unet_config", "params"), ("first_stage_config", "params"), ("cond_stage_config", "params")


@pytest.mark.parametrize(
    "text, said",
    [
        ("a: [", "not a readable yaml"),
        ("!!python/object/apply:os.system [ls]", "not a readable yaml"),
        (changed((*U, "channel_mult"), "wide"), "unet_config: channel_mult is"),
        (changed((*U, "model_channels"), -3), "unet_config: model_channels is -3"),
        (changed((*U, "use_new_attention_order"), True), "use_new_attention_order is True, should be False"),
        (changed((*U, "num_head_channels"), 33), "num_head_channels is 33, which does not divide"),
        (changed((*U, "in_channels"), 5), "its UNet takes 5 channels"),
        (changed((*U, "use_spatial_transformer"), False), "use_spatial_transformer is False, which does not go with"),
        (changed(("parameterization",), "flow"), "parameterization is 'flow'"),
        (changed(("beta_schedule",), "cosine"), "beta_schedule is 'cosine', should be 'linear'"),
        (changed(("linear_start",), "small"), "linear_start is 'small', should be float"),
        (changed(("first_stage_config", "target"), "ldm.models.autoencoder.Other"), "target is 'Other'"),
        (changed((*F, "embed_dim"), 5), "embed_dim is not z_channels, 3"),
        (changed(("cond_stage_config", "target"), LDM + "Other"), "target is 'Other', should be one of ClassEmbedder"),
        (changed(("cond_stage_config",), "__other__"), "cond_stage_config is '__other__'"),
        (changed(("cond_stage_config",), 3), "cond_stage_config is '3', should have a target and params"),
        (changed((*C, "method"), "nearest", "tiny-map"), "method is 'nearest', should be 'bilinear'"),
        (changed((*C, "in_channels"), True, "tiny-map"), "in_channels is True"),
    ],
)
def test_refusals(text, said, tmp_path):
    path = tmp_path / "model.yaml"
    path.write_text(text)
    with pytest.raises(SdjaxError) as caught:
        read_yaml(path)
    message = str(caught.value)
    assert said in message and message.startswith(str(path)) and "\n" not in message
