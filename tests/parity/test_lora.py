"""LoRA against peft, diffusers and LyCORIS, where they are right. Their own mistakes are told in tests/adapters."""

import warnings

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from flax.traverse_util import flatten_dict
from safetensors.torch import save_file

import sdjax
from sdjax.networks.table import make_rows
from sdjax.weights.convert import operation_of
from tests.narrow import NARROW
from tests.parity.peers import export, fields, file_tensors, roughen

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.parity

LINEAR = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]
ALL = [*LINEAR, "proj_in", "proj_out", "conv1", "conv2", "conv_in", "conv_shortcut", "time_emb_proj"]


def unet():
    """A narrow UNet of diffusers with random weights."""
    torch.manual_seed(0)
    return roughen(UNet2DConditionModel(**fields(NARROW, "unet/config.json")))


def ours(module) -> sdjax.StableDiffusion:
    return sdjax.StableDiffusion(NARROW, {"unet": export(file_tensors(module, "unet"), NARROW.unet)}, None)


def weights_of(sd) -> dict[str, np.ndarray]:
    """Our parameters under diffusers' names and in its layout."""
    flat = flatten_dict(sd.params["unet"])
    return {row.diffusers: operation_of(row.operation)[1](np.asarray(flat[row.path])) for row in make_rows(NARROW.unet)}


def randomise(module) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in module.named_parameters():
            if any(key in name for key in ("lora_", "hada_", "lokr_")) and "magnitude" not in name:
                value.copy_(0.2 * torch.randn(value.shape, generator=generator))
            elif "magnitude" in name:
                value.mul_(1 + 0.2 * torch.randn(value.shape, generator=generator))


def compare(sd, module) -> None:
    """All weights are those of a merged torch module."""
    wanted, worst = module.state_dict(), 0.0
    for name, value in weights_of(sd).items():
        reference = wanted[name].double().numpy().reshape(value.shape)
        worst = max(worst, np.abs(np.asarray(value, np.float64) - reference).max())
    assert worst < 5e-6, worst


CONFIGS = {
    "lora": lambda: peft.LoraConfig(r=4, lora_alpha=6, target_modules=ALL),
    "rslora": lambda: peft.LoraConfig(r=4, lora_alpha=6, target_modules=ALL, use_rslora=True),
    "patterns": lambda: peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=ALL,
        rank_pattern={"attn1.to_q": 3, "conv_in": 5},
        alpha_pattern={"attn1.to_q": 9, "down_blocks.0.resnets.0.conv1": 2},
    ),
    "dora": lambda: peft.LoraConfig(r=4, lora_alpha=6, target_modules=ALL, use_dora=True),
    "loha": lambda: peft.LoHaConfig(r=4, alpha=6, target_modules=ALL),
    "loha-t": lambda: peft.LoHaConfig(r=4, alpha=6, target_modules=ALL, use_effective_conv2d=True),
    "lokr": lambda: peft.LoKrConfig(r=4, alpha=6, target_modules=ALL),
    "lokr-both": lambda: peft.LoKrConfig(r=2, alpha=3, target_modules=ALL, decompose_both=True),
    "lokr-t": lambda: peft.LoKrConfig(r=2, alpha=3, target_modules=ALL, use_effective_conv2d=True),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_folder_of_peft(tmp_path, kind):
    base = unet()
    sd = ours(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(base, CONFIGS[kind]())
        randomise(model)
        model.save_pretrained(tmp_path)
        merged = model.merge_and_unload()
    found = sdjax.add_lora(sd, tmp_path)
    changed = sum(
        not np.array_equal(a, b) for a, b in zip(weights_of(sd).values(), weights_of(found).values(), strict=True)
    )
    assert changed > 60
    compare(found, merged)


@pytest.mark.parametrize("rs", [False, True])
def test_a_folder_of_diffusers(tmp_path, rs):
    """save_lora_adapter writes the settings into the header; the weights fold as peft has them."""
    base = unet()
    sd = ours(base)
    base.add_adapter(
        peft.LoraConfig(r=4, lora_alpha=6, target_modules=LINEAR, use_rslora=rs, alpha_pattern={"to_q": 2})
    )
    randomise(base)
    base.save_lora_adapter(tmp_path)
    base.fuse_lora()
    base.unload_lora()
    compare(sdjax.add_lora(sd, tmp_path), base)


def lycoris_factors(module, name: str) -> dict[str, torch.Tensor]:
    return {f"lora_unet_{name.replace('.', '_')}.{end}": value for end, value in module.state_dict().items()}


LYCORIS = {
    "locon": ("LoConModule", {}),
    "locon-t": ("LoConModule", {"use_tucker": True}),
    "loha": ("LohaModule", {}),
    "loha-t": ("LohaModule", {"use_tucker": True}),
    "lokr": ("LokrModule", {"factor": 4}),
    "lokr-both": ("LokrModule", {"factor": 2, "decompose_both": True}),
    "dora": ("LoConModule", {"weight_decompose": True}),
    "dora-in": ("LoConModule", {"weight_decompose": True, "wd_on_out": False}),
    "full": ("FullModule", {}),
}


@pytest.mark.parametrize("kind", LYCORIS)
def test_files_of_lycoris(tmp_path, kind):
    """LyCORIS' own modules: their state dicts, and what their forward passes compute."""
    modules = pytest.importorskip("lycoris.modules")
    classes = {
        name: getattr(__import__(f"lycoris.modules.{file}", fromlist=[name]), name) for name, file in FILES.items()
    }
    assert modules
    base = unet()
    sd, wanted, tensors = ours(base), {}, {}
    cls, options = LYCORIS[kind]
    torch.manual_seed(3)
    for name, layer in base.named_modules():
        if not isinstance(layer, torch.nn.Linear | torch.nn.Conv2d) or not any(name.endswith(end) for end in ALL):
            continue
        extra = {} if cls == "FullModule" else {"lora_dim": 2, "alpha": 3.0}
        module = classes[cls](f"lora_unet_{name.replace('.', '_')}", layer, 1.0, **extra, **options)
        with torch.no_grad():
            for key, value in module.named_parameters():
                value.copy_(value * 1.1 if "dora" in key else 0.3 * torch.randn(value.shape))
        x = torch.eye(layer.in_features) if isinstance(layer, torch.nn.Linear) else impulses(layer)
        before = layer(x) - layer(0 * x)
        module.apply_to()
        after = layer(x) - layer(0 * x)
        module.restore()
        wanted[name] = kernel_of(layer, after - before)
        tensors |= lycoris_factors(module, name)
    save_file({name: value.contiguous() for name, value in tensors.items()}, tmp_path / "a.safetensors")
    found, own = weights_of(sdjax.add_lora(sd, tmp_path / "a.safetensors")), weights_of(sd)
    for name, difference in wanted.items():
        ours_is = np.asarray(found[f"{name}.weight"], np.float64) - np.asarray(own[f"{name}.weight"], np.float64)
        np.testing.assert_allclose(
            ours_is.reshape(difference.shape), difference.detach().numpy(), atol=1e-5, err_msg=name
        )


FILES = {"LoConModule": "locon", "LohaModule": "loha", "LokrModule": "lokr", "FullModule": "full"}


def impulses(layer: torch.nn.Conv2d) -> torch.Tensor:
    """One picture for each input channel, with a one in the middle."""
    side = 2 * layer.kernel_size[0] + 1
    x = torch.zeros(layer.in_channels, layer.in_channels, side, side)
    x[range(layer.in_channels), range(layer.in_channels), side // 2, side // 2] = 1
    return x


def kernel_of(layer: torch.nn.Module, outputs: torch.Tensor) -> torch.Tensor:
    """The weight of a layer whose outputs for unit inputs these are."""
    if isinstance(layer, torch.nn.Linear):
        return outputs.T
    k = layer.kernel_size[0]
    middle = outputs.shape[-1] // 2
    patch = outputs[:, :, middle - k // 2 : middle + k // 2 + 1, middle - k // 2 : middle + k // 2 + 1]
    return patch.flip(2, 3).transpose(0, 1)


@pytest.mark.parametrize("name", ["a.pt", "a.bin", "a.ckpt"])
def test_pickles(tmp_path, name):
    """torch.save's files, of bfloat16 tensors."""
    sd = ours(unet())
    layer = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    width = weights_of(sd)[f"{layer}.weight"].shape
    up, down = torch.randn(width[0], 2).bfloat16(), torch.randn(2, width[1]).bfloat16()
    torch.save({f"unet.{layer}.lora_A.weight": down, f"unet.{layer}.lora_B.weight": up}, tmp_path / name)
    change = weights_of(sdjax.add_lora(sd, tmp_path / name))[f"{layer}.weight"] - weights_of(sd)[f"{layer}.weight"]
    np.testing.assert_allclose(change, (up.double() @ down.double()).numpy(), atol=5e-6)
