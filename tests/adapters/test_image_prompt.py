"""load_image_prompt: files of both kinds, hub repositories, and what is no IP-Adapter is refused in one line."""

from dataclasses import replace

import jax
import numpy as np
import pytest

import sdjax
from sdjax.errors import SdjaxError
from sdjax.families.sd import SD15
from sdjax.families.sdxl import SDXL
from sdjax.formats.mapped import write_json, write_tensors
from sdjax.networks.clip.fields import write_image_tower
from sdjax.networks.image_prompt.config import ImagePromptConfig
from sdjax.networks.image_prompt.names import attentions_of
from sdjax.networks.table import make_rows
from sdjax.weights.convert import to_file_tensors
from tests.image_prompts import TOWER, image_prompt, write_image_prompt
from tests.narrow import file_shapes, random_params
from tests.tiny import tiny


def same(found, adapter) -> None:
    assert (found.config, found.vision) == (adapter.config, adapter.vision)
    jax.tree.map(np.testing.assert_array_equal, (found.params, found.tower), (adapter.params, adapter.tower))


@pytest.mark.parametrize("plus", [False, True], ids=["base", "plus"])
def test_files(plus, tmp_path):
    adapter = image_prompt(tiny(), plus)
    write_image_prompt(adapter, tmp_path)
    found = sdjax.load_image_prompt(tmp_path / "adapter.safetensors", tmp_path / "image_encoder")
    same(found, adapter)
    same(sdjax.load_image_prompt(str(tmp_path / "adapter.safetensors"), tmp_path), adapter)
    shared = sdjax.load_image_prompt(tmp_path / "adapter.safetensors", found)
    assert shared.tower is found.tower
    assert repr(found).startswith(f"<ImagePrompt {'plus' if plus else 'base'}: {3 if plus else 4} tokens a picture")


def test_published_files():
    """Widths and numbers of tencent-ailab's files, and their layers in diffusers' order: down, up, middle."""
    names = attentions_of(SD15.unet)
    assert [width for _, width in names] == [320] * 2 + [640] * 2 + [1280] * 5 + [640] * 3 + [320] * 3 + [1280]
    assert names[0][0] == "down_0_attn_0/block" and names[6][0] == "up_2_attn_0/block"
    assert names[-1][0] == "mid_attn/block" and len(names) == 16
    large = attentions_of(SDXL.unet)
    assert len(large) == 70 and [width for _, width in large] == [640] * 4 + [1280] * 50 + [640] * 6 + [1280] * 10

    base = file_shapes(ImagePromptConfig(tuple(width for _, width in names)))
    assert base["image_proj.proj.weight"] == (3072, 1024) and base["image_proj.norm.bias"] == (768,)
    assert base["ip_adapter.1.to_k_ip.weight"] == (320, 768) and base["ip_adapter.31.to_v_ip.weight"] == (1280, 768)
    assert len(base) == 4 + 32 and sum(map(np.prod, base.values())) == 22_319_616
    plus = file_shapes(ImagePromptConfig(tuple(width for _, width in names), 1280, 768, 16, True))
    assert plus["image_proj.latents"] == (1, 16, 768) and plus["image_proj.layers.3.0.to_kv.weight"] == (1536, 768)
    assert plus["image_proj.layers.0.1.1.weight"] == (3072, 768) and "image_proj.layers.0.1.1.bias" not in plus
    wide = ImagePromptConfig(tuple(width for _, width in large), 1280, 2048, 16, True, 1280, 4, 20, 5120)
    assert (
        file_shapes(wide)["image_proj.proj_out.weight"] == (2048, 1280) and len(file_shapes(wide)) == 7 + 4 * 11 + 140
    )


ONE = np.zeros((4, 4), np.float32)
KEY = "ip_adapter.1.to_k_ip.weight"


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"a": ONE}, "no IP-Adapter: .*it has none"),
        ({KEY: ONE, "ip_adapter.2.to_k_ip.weight": ONE}, r"no IP-Adapter: .*numbers them \[1, 2\]"),
        ({KEY: ONE}, "neither a base nor a plus"),
        ({KEY: ONE, "image_proj.proj.weight": np.zeros((7, 3), np.float32)}, "makes 7 numbers, no tokens of 4"),
        ({KEY: ONE, "image_proj.proj.3.weight": ONE}, "a full-face IP-Adapter, which is not supported"),
        ({KEY: ONE, "ip_adapter.0.to_q_lora.up.weight": ONE}, "a FaceID"),
        ({KEY: ONE, "image_proj.perceiver_resampler.proj_in.weight": ONE}, "a FaceID plus"),
        ({KEY: ONE, "image_proj.proj.weight": ONE}, "do not fit the config: .*missing"),
    ],
)
def test_other_files_are_refused(tensors, said, tmp_path):
    write_tensors(tmp_path / "file.safetensors", tensors)
    with pytest.raises(SdjaxError, match=f"file.safetensors: .*{said}") as refused:
        sdjax.load_image_prompt(tmp_path / "file.safetensors", tmp_path)
    assert "\n" not in str(refused.value)


def test_what_does_not_fit_is_refused(tmp_path):
    adapter = image_prompt(tiny())
    write_image_prompt(adapter, tmp_path)
    file, folder = tmp_path / "adapter.safetensors", tmp_path / "image_encoder"
    lost = {k: v for k, v in to_file_tensors(adapter.params, make_rows(adapter.config)).items() if "7.to_v" not in k}
    write_tensors(tmp_path / "lost.safetensors", lost)
    for arguments, said in (
        ((tmp_path / "lost.safetensors", folder), "1 missing: ip_adapter.7.to_v_ip.weight"),
        ((tmp_path, folder), "name the IP-Adapter's file"),
        ((file, file), "image_encoder .*a folder with config.json"),
        ((file, tmp_path / "nowhere" / "at" / "all"), "nowhere.*no such file or folder"),
        ((3, folder), "source is int"),
        ((file, 3), "image_encoder is int"),
    ):
        with pytest.raises(SdjaxError, match=said):
            sdjax.load_image_prompt(*arguments)
    other = replace(TOWER, projection=6)
    write_json(folder / "config.json", write_image_tower(other))
    with pytest.raises(SdjaxError, match=r"visual_projection\.weight"):
        sdjax.load_image_prompt(file, folder)
    write_tensors(folder / "model.safetensors", to_file_tensors(random_params(other), make_rows(other)))
    with pytest.raises(SdjaxError, match=r"image_encoder .*gives embeddings of 6, .* takes 10; ViT-H/14"):
        sdjax.load_image_prompt(file, folder)
    with pytest.raises(SdjaxError, match=r"an IP-Adapter, which sdjax.load_image_prompt reads"):
        sdjax.load_control(file)


def test_hub_ids(monkeypatch, tmp_path):
    """A file and a folder inside of a repository: only what is named is downloaded."""
    import huggingface_hub

    from sdjax.weights import hub

    adapter = image_prompt(tiny())
    (tmp_path / "models").mkdir()
    write_image_prompt(adapter, tmp_path / "models")
    names = {f"models/{name}" for name in ("adapter.safetensors", "a.bin", "image_encoder/pytorch_model.bin")}
    names |= {f"models/image_encoder/{name}" for name in ("config.json", "model.safetensors")}
    asked = []
    monkeypatch.setattr(hub, "list_files", lambda repo: names)
    download = lambda repo, allow_patterns: asked.append((repo, allow_patterns)) or str(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    same(sdjax.load_image_prompt("org/name/models/adapter.safetensors", "org/name/models/image_encoder"), adapter)
    tower = ["models/image_encoder/config.json", "models/image_encoder/model.safetensors"]
    assert asked == [("org/name", ["models/adapter.safetensors"]), ("org/name", tower)]
    for source in ("org/name/models/b.bin", "org/name/models"):
        with pytest.raises(SdjaxError, match=f"{source}: org/name on the hub has no such file"):
            sdjax.load_image_prompt(source, tmp_path)
    for source in ("org/name", "a.bin", "/no/such/file.bin", "org/name/../x"):
        with pytest.raises(SdjaxError, match=f"{source}: no such file or folder"):
            sdjax.load_image_prompt(source, tmp_path)
