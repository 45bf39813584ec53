"""load_control: every layout of a file reads to the same parameters, and what is no control is refused in one line."""

from dataclasses import replace

import jax
import numpy as np
import pytest

import sdjax
from sdjax.errors import SdjaxError
from sdjax.families.sd import SD15, SD21
from sdjax.families.sdxl import SDXL
from sdjax.formats.mapped import write_json, write_tensors
from sdjax.model.control import Control
from sdjax.networks.control.config import ControlConfig
from sdjax.networks.control.fields import write_control
from sdjax.networks.t2i.config import AdapterConfig
from sdjax.networks.t2i.part import write_adapter
from sdjax.networks.table import make_rows
from sdjax.weights.convert import to_file_tensors
from tests import kinds
from tests.narrow import file_shapes, random_model_params, random_params
from tests.tiny import CONFIG

UNET = replace(CONFIG.unet, channels=(8, 16, 24), blocks=2, attention=(True, True, False), heads=(2, 2, 4))
SD = sdjax.StableDiffusion(replace(CONFIG, unet=UNET), random_model_params(replace(CONFIG, unet=UNET)), None)
XL = kinds.model(replace(kinds.SDXL, unet=replace(kinds.SDXL.unet, channels=(8, 16), depth=(1, 2))))
NETS = {
    "SD 1": (ControlConfig(UNET, (4, 6, 8)), SD),
    "SD 2": (ControlConfig(replace(UNET, linear_projection=True, upcast_attention=True), (4, 6, 8)), None),
    "SDXL": (ControlConfig(XL.config.unet, (4, 6, 8)), XL),
    "SDXL small": (ControlConfig(replace(XL.config.unet, depth=(), middle=False), (4, 6, 8)), XL),
}
ADAPTERS = {
    "full": AdapterConfig(channels=(8, 16, 24, 24)),
    "sketch": AdapterConfig(picture_channels=1, channels=(8, 16, 24, 24)),
    "light": AdapterConfig("light_adapter", channels=(8, 16, 24, 24), blocks=4),
    "SDXL": AdapterConfig("full_adapter_xl", channels=(8, 16, 24, 24), unshuffle=16),
}


def model_for(name: str) -> sdjax.StableDiffusion:
    config, sd = NETS[name]
    return sd or replace(SD, config=replace(SD.config, unet=config.unet))


def same(found: Control, config, params) -> None:
    assert found.config == config
    jax.tree.map(np.testing.assert_array_equal, found.params, params)


def in_folder(place, config, params, dtype=np.float32, name="diffusion_pytorch_model.safetensors"):
    place.mkdir()
    write_json(place / "config.json", (write_control if isinstance(config, ControlConfig) else write_adapter)(config))
    tensors = to_file_tensors(params, make_rows(config))
    write_tensors(place / name, {key: value.astype(dtype) for key, value in tensors.items()})
    return place


@pytest.mark.parametrize("name", NETS)
def test_layouts_of_controlnets(name, tmp_path):
    config, sd = NETS[name][0], model_for(name)
    params = random_params(config, dtype=np.float16)
    same(sdjax.load_control(in_folder(tmp_path / "folder", config, params, np.float16)), config, params)
    half = in_folder(tmp_path / "half", config, params, np.float16, "diffusion_pytorch_model.fp16.safetensors")
    same(sdjax.load_control(half), config, params)
    compvis = to_file_tensors(params, make_rows(config), "compvis")
    plain = {key.removeprefix("control_model."): value for key, value in compvis.items()}
    assert not set(plain) & set(compvis)
    whole = compvis | {"model.diffusion_model.out.2.bias": np.zeros(4, np.float16), "betas": np.zeros(9, np.float16)}
    diffusers = to_file_tensors(params, make_rows(config))
    for number, tensors in enumerate((compvis, plain, whole, diffusers)):
        path = tmp_path / f"{number}.safetensors"
        write_tensors(path, tensors)
        same(sdjax.load_control(path, sd), config, params)
    write_tensors(tmp_path / "control_shuffle.safetensors", plain)
    same(sdjax.load_control(tmp_path / "control_shuffle.safetensors", sd), replace(config, pooled=True), params)


def test_differences(tmp_path):
    config = NETS["SD 1"][0]
    params = random_params(config)
    shared = params.keys() & SD.params["unet"].keys()
    assert {"conv_in", "mid_attn", "time_in"} <= shared and not {"hint", "zero_0", "zero_mid"} & shared
    less = {
        key: jax.tree.map(lambda a, b: a - b, part, SD.params["unet"][key]) if key in shared else part
        for key, part in params.items()
    }
    tensors = to_file_tensors(less, make_rows(config), "compvis") | {"difference": np.zeros(1, np.float32)}
    write_tensors(tmp_path / "diff.safetensors", tensors)
    found = sdjax.load_control(tmp_path / "diff.safetensors", SD)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found.params, params)
    with pytest.raises(SdjaxError, match=r"diff.safetensors: .*sd"):
        sdjax.load_control(tmp_path / "diff.safetensors")
    write_tensors(tmp_path / "plain.safetensors", {k: v for k, v in tensors.items() if k != "difference"})
    same(sdjax.load_control(tmp_path / "plain.safetensors", SD), config, less)


@pytest.mark.parametrize("name", ADAPTERS)
def test_layouts_of_adapters(name, tmp_path):
    config = ADAPTERS[name]
    params = random_params(config)
    same(sdjax.load_control(in_folder(tmp_path / "folder", config, params)), config, params)
    for layout in ("diffusers", "compvis"):
        write_tensors(tmp_path / f"{layout}.safetensors", to_file_tensors(params, make_rows(config), layout))
        same(sdjax.load_control(tmp_path / f"{layout}.safetensors"), config, params)


def shapes_of(config, layout: str) -> dict[str, np.ndarray]:
    """Names and shapes of a file; nothing is allocated."""
    return {name: np.broadcast_to(np.float16(0), shape) for name, shape in file_shapes(config, layout).items()}


@pytest.mark.parametrize("config", [SD15, SD21, SDXL], ids=lambda config: config.name)
@pytest.mark.parametrize("layout", ["diffusers", "compvis"])
def test_published_files_are_recognised_without_a_model(config, layout, monkeypatch, tmp_path):
    from sdjax.adapters import control
    from sdjax.formats import tensors

    (tmp_path / "file.safetensors").touch()
    unet = ControlConfig(config.unet)
    monkeypatch.setattr(tensors, "read_checkpoint", lambda path: (shapes_of(unet, layout), {}))
    monkeypatch.setattr(control, "from_file_tensors", lambda tensors, rows, *rest: {row.path: None for row in rows})
    assert control.load_control(tmp_path / "file.safetensors").config == unet


def test_names_of_published_files():
    """Of lllyasviel's control_sd15_canny.pth: 340 tensors, twelve zero convolutions, an embedding of eight."""
    found = shapes_of(ControlConfig(SD15.unet), "compvis")
    assert len(found) == 340 and all(name.startswith("control_model.") for name in found)
    assert sum(value.size for value in found.values()) == 361_279_120
    hint = ((16, 3), (16, 16), (32, 16), (32, 32), (96, 32), (96, 96), (256, 96), (320, 256))
    for i, shape in enumerate(hint):
        assert found[f"control_model.input_hint_block.{2 * i}.weight"].shape == (*shape, 3, 3)
    zeros = [320] * 4 + [640] * 3 + [1280] * 5
    for i, width in enumerate(zeros):
        assert found[f"control_model.zero_convs.{i}.0.weight"].shape == (width, width, 1, 1)
    assert "control_model.zero_convs.12.0.weight" not in found
    assert found["control_model.middle_block_out.0.weight"].shape == (1280, 1280, 1, 1)
    assert found["control_model.input_blocks.3.0.op.weight"].shape == (320, 320, 3, 3)
    assert ControlConfig(SDXL.unet).residuals == 10
    t2i = shapes_of(AdapterConfig(), "compvis")
    assert t2i["conv_in.weight"].shape == (320, 192, 3, 3) and t2i["body.2.in_conv.weight"].shape == (640, 320, 1, 1)
    assert "body.7.block2.bias" in t2i and "body.6.in_conv.weight" not in t2i
    light = shapes_of(AdapterConfig("light_adapter", blocks=4), "compvis")
    assert light["body.0.in_conv.weight"].shape == (80, 192, 1, 1) and "body.3.body.3.block2.weight" in light


ONE = np.zeros((4, 4), np.float32)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"a": ONE}, "holds no ControlNet"),
        ({"lora_controlnet": ONE, "input_blocks.1.0.in_layers.2.up": ONE}, "a control-LoRA"),
        ({"ip_adapter.1.to_k_ip.weight": ONE, "image_proj.proj.weight": ONE}, "an IP-Adapter"),
        ({"task_embedding": ONE}, "several tasks"),
        ({"lora_unet_down_blocks_0.lora_up.weight": ONE}, "a LoRA"),
        ({"conv_in.weight": np.zeros((8, 7, 3, 3), np.float32), "body.0.block1.weight": ONE}, "takes 7 channels"),
    ],
)
def test_other_files_are_refused(tensors, said, tmp_path):
    write_tensors(tmp_path / "file.safetensors", tensors)
    with pytest.raises(SdjaxError, match=f"file.safetensors: .*{said}") as refused:
        sdjax.load_control(tmp_path / "file.safetensors")
    assert "\n" not in str(refused.value)


def test_what_does_not_fit_is_refused(tmp_path):
    config = NETS["SD 1"][0]
    params = random_params(config)
    compvis = to_file_tensors(params, make_rows(config), "compvis")
    write_tensors(tmp_path / "file.safetensors", compvis)
    with pytest.raises(SdjaxError, match=r"file.safetensors: .*heads.*sd"):
        sdjax.load_control(tmp_path / "file.safetensors")
    lost = "control_model.middle_block_out.0.bias"
    write_tensors(tmp_path / "lost.safetensors", {key: value for key, value in compvis.items() if key != lost})
    with pytest.raises(SdjaxError, match=r"1 missing: control_model.middle_block_out.0.bias"):
        sdjax.load_control(tmp_path / "lost.safetensors", SD)
    folder = in_folder(tmp_path / "folder", config, params)
    write_json(folder / "config.json", write_control(config) | {"conditioning_embedding_out_channels": [4, 6]})
    with pytest.raises(SdjaxError, match=r"folder: .*tensors do not fit the config"):
        sdjax.load_control(folder)
    for changes, said in (
        ({"_class_name": "UNet2DConditionModel"}, "_class_name"),
        ({"controlnet_conditioning_channel_order": "rbg"}, "channel_order"),
        ({"conditioning_embedding_out_channels": [4]}, "two or more"),
        ({"encoder_hid_dim": 7}, "encoder_hid_dim"),
    ):
        write_json(folder / "config.json", write_control(config) | changes)
        with pytest.raises(SdjaxError, match=f"config.json: {said}|{said}"):
            sdjax.load_control(folder)
    for source, said in ((3, "source is int"), (tmp_path / "no" / "such" / "file", "no such file")):
        with pytest.raises(SdjaxError, match=said):
            sdjax.load_control(source)
    with pytest.raises(SdjaxError, match=r"sd is str: a model, as sdjax.load gives it, expected"):
        sdjax.load_control(folder, "t")


def test_hub_ids(monkeypatch, tmp_path):
    """Of one network's repository only config.json and the weights are downloaded."""
    import huggingface_hub

    from sdjax.weights import hub

    config = NETS["SD 1"][0]
    params, asked = random_params(config), []
    folder = in_folder(tmp_path / "folder", config, params)
    names = {path.name for path in folder.iterdir()} | {"README.md", "images/a.png", "diffusion_pytorch_model.bin"}
    monkeypatch.setattr(hub, "list_files", lambda repo: names)
    download = lambda repo, allow_patterns: asked.append((repo, allow_patterns)) or str(folder)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    same(sdjax.load_control("org/name"), config, params)
    assert asked == [("org/name", ["config.json", "diffusion_pytorch_model.safetensors"])]
    monkeypatch.setattr(hub, "list_files", lambda repo: {"a.pth", "README.md"})
    with pytest.raises(SdjaxError, match=r"org/name: .*no config.json.*a.pth"):
        sdjax.load_control("org/name")
