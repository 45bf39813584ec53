"""Single files as others see them: diffusers' from_single_file, OpenCLIP's text tower written with torch's layers."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

import sdjax
from sdjax.families.sd import EMOJI, SD15, SD15_INPAINT, SD21
from sdjax.model import functions as model
from sdjax.networks.clip import names
from sdjax.networks.table import make_rows
from sdjax.text.bpe import train_bpe
from sdjax.weights import convert, spellings
from sdjax.weights.convert import to_file_tensors
from sdjax.weights.folder_json import folder_configs
from sdjax.weights.single import read_single, write_single
from sdjax.weights.spellings import current_name
from tests.narrow import NARROW, NARROW_INPAINT, NARROW_V2, file_tensors, random_model_params
from tests.parity.peers import error, fields, perturb, run
from tests.text.test_tokenizer import captions

pytestmark = pytest.mark.parity
TOWER = "cond_stage_model.model."


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    "config, pipeline",
    [
        (NARROW, diffusers.StableDiffusionPipeline),
        (NARROW_V2, diffusers.StableDiffusionPipeline),
        (NARROW_INPAINT, diffusers.StableDiffusionInpaintPipeline),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_diffusers_reads_our_folder_and_our_single_file(config, pipeline, dtype, tmp_path):
    """from_pretrained, and from_single_file, told by our folder what the narrow config is, get every tensor of it byte
    for byte."""
    sd = sdjax.StableDiffusion(
        config, random_model_params(config, dtype=jnp.dtype(dtype)), train_bpe(captions(), 580, tmp_path / "tokenizer")
    )
    sdjax.save(sd, tmp_path / "folder")
    sdjax.save(sd, tmp_path / "a.safetensors")
    torch_dtype = getattr(torch, dtype)
    for pipe in (
        pipeline.from_pretrained(tmp_path / "folder", torch_dtype=torch_dtype),
        pipeline.from_single_file(
            str(tmp_path / "a.safetensors"),
            config=str(tmp_path / "folder"),
            torch_dtype=torch_dtype,
            local_files_only=True,
        ),
    ):
        for part, module in (("text", pipe.text_encoder), ("vae", pipe.vae), ("unet", pipe.unet)):
            ours = to_file_tensors(sd.params[part], make_rows(getattr(config, part)))
            theirs = {
                current_name(part, name): value
                for name, value in module.state_dict().items()
                if not name.endswith("position_ids")
            }
            assert sorted(ours) == sorted(theirs)
            for name, value in ours.items():
                assert theirs[name].dtype == torch_dtype and value.dtype == dtype and value.shape == theirs[name].shape
                assert value.tobytes() == theirs[name].contiguous().view(torch.uint8).numpy().tobytes(), name


@pytest.mark.parametrize("config", [SD15, SD15_INPAINT, SD21, EMOJI], ids=lambda config: config.name)
def test_full_size_names_and_shapes_are_diffusers(config):
    """diffusers' own converters turn our names and shapes into those of its models; nothing is allocated."""
    file = {name: torch.empty(value.shape, device="meta") for name, value in file_tensors(config).items()}
    configs = folder_configs(config)
    with torch.device("meta"):
        peers = {
            "text": CLIPTextModel(CLIPTextConfig(**fields(config, "text_encoder/config.json"))),
            "vae": diffusers.AutoencoderKL(**fields(config, "vae/config.json")),
            "unet": diffusers.UNet2DConditionModel(**fields(config, "unet/config.json")),
        }
    to_text = (
        (lambda file: convert_open_clip_checkpoint(peers["text"], file))
        if config == SD21
        else (convert_ldm_clip_checkpoint)
    )
    theirs = {
        "text": to_text(file),
        "vae": convert_ldm_vae_checkpoint(file, configs["vae/config.json"]),
        "unet": convert_ldm_unet_checkpoint(file, configs["unet/config.json"]),
    }
    for part, peer in peers.items():
        shapes = lambda tensors, part=part: {
            current_name(part, name): value.shape
            for name, value in tensors.items()
            if not name.endswith("position_ids")
        }
        assert shapes(theirs[part]) == shapes(peer.state_dict())


class Block(nn.Module):
    """OpenCLIP's ResidualAttentionBlock, its parameters under OpenCLIP's names."""

    def __init__(self, width: int, heads: int, mlp_width: int):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, mlp_width), "c_proj": nn.Linear(mlp_width, width)})

    def forward(self, x, mask):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp["c_proj"](nn.functional.gelu(self.mlp["c_fc"](self.ln_2(x))))


class OpenClipText(nn.Module):
    """As Stability's FrozenOpenCLIPEmbedder runs it with layer="penultimate": one block more is held than run."""

    def __init__(self, text):
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(text.length, text.width) * 0.1)
        self.text_projection = nn.Parameter(torch.randn(text.width, text.width))
        self.logit_scale = nn.Parameter(torch.tensor(4.6))
        self.token_embedding = nn.Embedding(text.vocab_size, text.width)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(
            Block(text.width, text.heads, text.mlp_width) for _ in range(text.layers + 1)
        )
        self.ln_final = nn.LayerNorm(text.width)

    def forward(self, ids):
        x = self.token_embedding(ids) + self.positional_embedding
        mask = torch.full((ids.shape[1],) * 2, -torch.inf, dtype=x.dtype).triu(1)
        for block in self.transformer.resblocks[:-1]:
            x = block(x, mask)
        return self.ln_final(x)


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    """(a single file with OpenCLIP's tower in it, ids, the tower's states in float64)."""
    text, path = NARROW_V2.text, tmp_path_factory.mktemp("single") / "a.safetensors"
    torch.manual_seed(0)
    peer = perturb(OpenClipText(text))
    with torch.no_grad():  # perturb knows diffusers' names: here q and k are the first two thirds
        for block in peer.transformer.resblocks:
            block.attn.in_proj_weight[: 2 * text.width] *= 3
    write_single(path, NARROW_V2, random_model_params(NARROW_V2))
    tensors = {name: value for name, value in load_file(path).items() if not name.startswith("cond_stage_model.")}
    save_file(tensors | {TOWER + name: value.float() for name, value in peer.state_dict().items()}, path)
    ids = np.random.default_rng(0).integers(0, text.vocab_size, (3, text.length)).astype(np.int32)
    return path, ids, peer(torch.from_numpy(ids).long())


def tower_error(path, ids, reference):
    _, params = read_single(path, config=NARROW_V2)
    return error(run(model.text_states, params["text"], ids, config=NARROW_V2.text), reference)


def test_the_tower_of_an_sd2_file_is_openclips(tower):
    assert tower_error(*tower) < 5e-6


def test_reading_and_writing_an_sd2_file_keeps_what_is_run(tower, tmp_path):
    config, params = read_single(tower[0], config=NARROW_V2)
    write_single(tmp_path / "b.safetensors", config, params)
    before, after = load_file(tower[0]), load_file(tmp_path / "b.safetensors")
    block = f"{TOWER}transformer.resblocks.{config.text.layers}."
    extras = {name for name in before if name.startswith(block)} | {f"{TOWER}text_projection", f"{TOWER}logit_scale"}
    assert set(before) - set(after) == extras and len(extras) == 14
    assert all(
        value.numpy().tobytes() == before[name].numpy().tobytes()
        for name, value in after.items()
        if name != "scale_factor"
    )


@pytest.mark.parametrize("mistake", ["q and k", "k and v", "ln_1 and ln_2", "no transpose", "interleaved"])
def test_mistakes_in_the_openclip_table_are_caught(mistake, tower, monkeypatch):
    swap = {"q and k": ("split q", "split k"), "k and v": ("split k", "split v")}.get(mistake)
    operations, rows = dict(convert.OPERATIONS), names.open_clip_layers
    if swap:
        operations |= {swap[0]: operations[swap[1]], swap[1]: operations[swap[0]]}
    elif mistake == "no transpose":
        split, *rest = operations["split v"]
        operations["split v"] = (lambda a: split(a).T, *rest)
    elif mistake == "interleaved":
        operations |= {name: (lambda a, i=i: a[i::3].T, *operations[name][1:]) for i, name in enumerate(convert.SPLIT)}
    else:
        trade = {"ln_1": "ln_2", "ln_2": "ln_1"}
        monkeypatch.setattr(
            names,
            "open_clip_layers",
            lambda *args: [
                row._replace(compvis=".".join(trade.get(word, word) for word in row.compvis.split(".")))
                for row in rows(*args)
            ],
        )
    monkeypatch.setattr(convert, "OPERATIONS", operations)
    assert tower_error(*tower) > 5e-5


def test_the_ema_copy_is_the_one_diffusers_extracts(tmp_path):
    """diffusers' own conversion of a file with both UNets, with and without extract_ema."""
    path, one, two = tmp_path / "a.safetensors", random_model_params(NARROW), random_model_params(NARROW, seed=9)
    write_single(path, NARROW, one)
    other = to_file_tensors(two["unet"], make_rows(NARROW.unet), "compvis")
    tensors = load_file(path) | {spellings.ema_name(name): torch.tensor(value) for name, value in other.items()}
    save_file(tensors, path)
    for ema, want in ((False, one), (True, two)):
        unet = read_single(path, config=NARROW, prefer_ema=ema)[1]["unet"]
        assert jax.tree.all(jax.tree.map(np.array_equal, unet, want["unet"]))
        theirs = convert_ldm_unet_checkpoint(dict(tensors), folder_configs(NARROW)["unet/config.json"], extract_ema=ema)
        ours = to_file_tensors(unet, make_rows(NARROW.unet))
        assert sorted(ours) == sorted(theirs)
        assert all(np.array_equal(ours[name], value.numpy()) for name, value in theirs.items())


def test_a_ckpt_that_torch_saved_is_the_same_model(tmp_path):
    write_single(tmp_path / "a.safetensors", NARROW, random_model_params(NARROW))
    tensors = load_file(tmp_path / "a.safetensors")
    torch.save({"state_dict": tensors, "global_step": 470000}, tmp_path / "a.ckpt")
    from_ckpt, plain = (read_single(tmp_path / name, config=NARROW) for name in ("a.ckpt", "a.safetensors"))
    assert from_ckpt[0] == plain[0]
    assert jax.tree.all(jax.tree.map(np.array_equal, from_ckpt[1], plain[1]))
