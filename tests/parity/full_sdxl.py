"""SDXL in full size on one CPU: sdjax's UNets and text towers beside diffusers', with random float32 weights.

    python tests/parity/full_sdxl.py [--folder DIR] [--only base refiner text]
    python tests/parity/full_sdxl.py --speed [--batch 2] [--calls 3]

Both do not fit into 24 GB together: the weights (10.3 GB) are written to one file, which is mapped into memory, and
each side reads it in a process of its own and writes what it computes. The limit is 5e-6 of the largest number.
With --speed each side's base UNet runs alone, in the order A B A B: diffusers eager, sdjax compiled.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

LIMIT = 5e-6
PROMPTS = ["a photo of an astronaut riding a horse on mars", "a red apple"]
SIZES = {"base": [100.0, 700, 3, 5, 1024, 768], "refiner": [100.0, 700, 3, 5, 7.5]}
DOWN, CROSS, UP, CROSS_UP = "DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"
ADDED = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256, "use_linear_projection": True}
UNETS = {
    "base": ADDED
    | {
        "block_out_channels": [320, 640, 1280],
        "down_block_types": [DOWN, CROSS, CROSS],
        "up_block_types": [CROSS_UP, CROSS_UP, UP],
        "attention_head_dim": [5, 10, 20],
        "transformer_layers_per_block": [1, 2, 10],
        "cross_attention_dim": 2048,
        "projection_class_embeddings_input_dim": 2816,
    },
    "refiner": ADDED
    | {
        "block_out_channels": [384, 768, 1536, 1536],
        "down_block_types": [DOWN, CROSS, CROSS, DOWN],
        "up_block_types": [UP, CROSS_UP, CROSS_UP, UP],
        "attention_head_dim": [6, 12, 24, 24],
        "transformer_layers_per_block": 4,
        "cross_attention_dim": 1280,
        "projection_class_embeddings_input_dim": 2560,
    },
}
TOWER = {"vocab_size": 49408, "max_position_embeddings": 77, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
TOWERS = {
    "text": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    | {"hidden_act": "quick_gelu", "projection_dim": 768},
    "text_2": {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
    | {"hidden_act": "gelu", "projection_dim": 1280},
}
PARTS = {"base": ["base"], "refiner": ["refiner"], "text": ["text", "text_2"]}


def inputs(part: str, batch: int = 1) -> dict[str, np.ndarray]:
    """What both sides are given."""
    draw, shape = np.random.default_rng(7).standard_normal, UNETS.get(part, UNETS["base"])
    found = {
        "x": draw((batch, 64, 64, 4)),
        "context": draw((batch, 77, shape["cross_attention_dim"])),
        "pooled": draw((batch, 1280)),
    }
    return {name: value.astype(np.float32) for name, value in found.items()} | {"t": np.float32([501] * batch)}


# ---- torch's side


def module(part: str):
    """diffusers' or transformers' module, without memory."""
    import diffusers
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    with torch.device("meta"):
        if part in UNETS:
            return diffusers.UNet2DConditionModel(sample_size=64, **UNETS[part]).eval()
        kind = CLIPTextModel if part == "text" else CLIPTextModelWithProjection
        return kind(CLIPTextConfig(**TOWER | TOWERS[part])).eval()


def write_weights(part: str, path: Path) -> None:
    """Random weights of torch's own spread, made hard to match as tests/parity/peers.py does, tensor by tensor."""
    import torch

    shapes = {
        name: tuple(value.shape) for name, value in module(part).state_dict().items() if value.dtype.is_floating_point
    }
    header, at = {}, 0
    for name, shape in shapes.items():
        end = at + 4 * math.prod(shape)
        header[name], at = {"dtype": "F32", "shape": shape, "data_offsets": [at, end]}, end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    data = np.memmap(path, np.float32, "r+", 8 + len(text), (at // 4,))
    generator = torch.Generator().manual_seed(0)
    for name, shape in shapes.items():
        begin, end = (offset // 4 for offset in header[name]["data_offsets"])
        value = torch.from_numpy(data[begin:end])
        if len(shape) > 1:
            keen = any(key in name for key in (".to_q.", ".to_k.", ".q_proj.", ".k_proj."))
            spread = (3 if keen else 1) / math.sqrt(math.prod(shape[1:]))
            value.uniform_(-spread, spread, generator=generator)
        else:
            value.normal_(float("norm" in name and name.endswith("weight")), 0.1, generator=generator)
    data.flush()
    print(f"{part}: {at // 4:,} parameters in {len(shapes)} tensors", flush=True)


def filled(part: str, path: Path, own: bool = False):
    """The module with the file's weights, mapped, or in memory of its own."""
    from safetensors.torch import load_file

    found, tensors = module(part), load_file(path)
    if own:
        tensors = {name: value.clone() for name, value in tensors.items()}
    missing = found.load_state_dict(tensors, strict=False, assign=True)
    assert not missing.unexpected_keys and all("position_ids" in name for name in missing.missing_keys), missing
    return found


def given_to_torch(part: str, batch: int = 1):
    import torch

    given = {name: torch.from_numpy(value) for name, value in inputs(part, batch).items()}
    added = {"text_embeds": given["pooled"], "time_ids": torch.tensor([SIZES[part]] * batch)}
    return (given["x"].permute(0, 3, 1, 2), given["t"], given["context"]), {"added_cond_kwargs": added}


def torch_unet(part: str, folder: Path) -> dict[str, np.ndarray]:
    import torch

    args, kwargs = given_to_torch(part)
    with torch.inference_mode():
        return {
            "output": filled(part, folder / f"{part}.safetensors")(*args, **kwargs).sample.permute(0, 2, 3, 1).numpy()
        }


def torch_text(folder: Path) -> dict[str, np.ndarray]:
    """The context of both towers and the second one's pooled embedding, in float64."""
    import torch

    from sdjax.text.tokenizer import clip_tokenizer

    words, states = clip_tokenizer()(PROMPTS, add_special_tokens=False)["input_ids"], []
    for part, pad in (("text", 49407), ("text_2", 0)):
        ids = torch.full((len(PROMPTS), 77), pad)
        for row, found in zip(ids, words, strict=True):
            row[: len(found) + 2] = torch.tensor([49406, *found, 49407])
        peer = filled(part, folder / f"{part}.safetensors")
        for each in peer.modules():
            if hasattr(each, "position_ids"):  # a buffer, in no file
                each.position_ids = torch.arange(77)[None]
        with torch.inference_mode():
            out = peer.double()(ids, output_hidden_states=True)
        states.append(out.hidden_states[-2])
        del peer
    return {"context": torch.cat(states, -1).numpy(), "pooled": out.text_embeds.numpy()}


# ---- our side


def preset(part: str):
    from sdjax.families import sdxl

    return sdxl.SDXL_REFINER if part == "refiner" else sdxl.SDXL


def params(part: str, folder: Path):
    from sdjax.formats.tensors import read_tensors
    from sdjax.networks.table import make_rows, param_shapes
    from sdjax.weights.convert import from_file_tensors

    config, path = getattr(preset(part), part if part in TOWERS else "unet"), folder / f"{part}.safetensors"
    tensors = read_tensors(path)
    if part in TOWERS:
        from sdjax.weights.spellings import renamed

        tensors = renamed(tensors, "text", path)
    own = ("text_model.", "text_projection.") if part in TOWERS else ("",)
    return from_file_tensors(tensors, make_rows(config), param_shapes(config), own=own)


def features(numbers) -> np.ndarray:
    """The sizes as the vector has them: 256 features a number, cosines before sines."""
    angles = np.float64(numbers)[:, None] * np.exp(-np.log(1e4) * np.arange(128) / 128)
    return np.concatenate([np.cos(angles), np.sin(angles)], 1).reshape(-1).astype(np.float32)


def given_to_sdjax(part: str, batch: int = 1):
    given = inputs(part, batch)
    vector = np.concatenate([given["pooled"], np.tile(features(SIZES[part]), (batch, 1))], 1)
    return (given["x"], given["t"], given["context"], preset(part).unet), {"vector": vector}


def sdjax_unet(part: str, folder: Path) -> dict[str, np.ndarray]:
    from sdjax.model.functions import unet_output

    args, kwargs = given_to_sdjax(part)
    return {"output": np.asarray(unet_output(params(part, folder), *args, **kwargs))}


def sdjax_text(folder: Path) -> dict[str, np.ndarray]:
    import sdjax
    from sdjax.text.tokenizer import clip_tokenizer

    towers = {part: params(part, folder) for part in TOWERS}
    cond = sdjax.encode_prompt(sdjax.StableDiffusion(preset("base"), towers, clip_tokenizer()), PROMPTS)
    return {"context": np.asarray(cond.context), "pooled": np.asarray(cond.vector)[:, :1280]}


# ---- speed


def seconds(side: str, folder: Path, batch: int, calls: int) -> list[float]:
    """Of each call of the base UNet after the first one."""
    if side == "torch":
        import torch

        peer, (args, kwargs) = filled("base", folder / "base.safetensors", own=True), given_to_torch("base", batch)
        torch.inference_mode().__enter__()
        call = lambda: peer(*args, **kwargs).sample
    else:
        from sdjax.model.functions import unet_output

        weights, (args, kwargs) = params("base", folder), given_to_sdjax("base", batch)
        call = lambda: unet_output(weights, *args, **kwargs).block_until_ready()
    found = []
    for _ in range(calls + 1):
        begun = time.monotonic()
        call()
        found.append(time.monotonic() - begun)
    return found[1:]


# ---- the processes


def child(*arguments) -> str:
    """Runs a step in a process of its own; returns what it prints."""
    command = [sys.executable, __file__, "--step", *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"{' '.join(map(str, arguments))}: exit status {run.returncode}\n{run.stderr[-2000:]}")
    return run.stdout


def step(name: str, part: str, folder: Path, *more: str) -> None:
    begun = time.monotonic()
    if name == "weights":
        return write_weights(part, folder / f"{part}.safetensors")
    if name == "speed":
        batch, calls = map(int, more)
        return print(json.dumps(seconds(part, folder, batch, calls)))
    functions = {"torch": (torch_unet, torch_text), "sdjax": (sdjax_unet, sdjax_text)}[name]
    found = functions[1](folder) if part == "text" else functions[0](part, folder)
    np.savez(folder / f"{part}-{name}.npz", **found)
    return print(f"{name} {time.monotonic() - begun:.0f} s", flush=True)


def compare(part: str, folder: Path, keep: bool) -> bool:
    for name in PARTS[part]:
        if not (folder / f"{name}.safetensors").exists():
            print(child("weights", name, folder), end="", flush=True)
    for side in ("torch", "sdjax"):
        print(f"{part}: {child(side, part, folder)}", end="", flush=True)
    ours, theirs = (np.load(folder / f"{part}-{side}.npz") for side in ("sdjax", "torch"))
    good = True
    for name in theirs.files:
        a, b = (side[name].astype(np.float64) for side in (ours, theirs))
        error = np.abs(a - b).max() / np.abs(b).max()
        good = good and a.shape == b.shape and bool(error < LIMIT)
        print(f"{part} {name} {list(b.shape)}: {error:.2e} of {np.abs(b).max():.3g}, limit {LIMIT:.0e}", flush=True)
    for name in PARTS[part] * (not keep):
        (folder / f"{name}.safetensors").unlink()
    return good


def speed(folder: Path, batch: int, calls: int) -> None:
    if not (folder / "base.safetensors").exists():
        print(child("weights", "base", folder), end="", flush=True)
    found = {"sdjax": [], "torch": []}
    for side in ("sdjax", "torch") * 2:
        times = json.loads(child("speed", side, folder, batch, calls))
        found[side].append(statistics.median(times))
        print(f"{side}: {', '.join(f'{value:.2f}' for value in times)} s", flush=True)
    ours, theirs = (min(found[side]) for side in ("sdjax", "torch"))
    print(f"a call of {batch}: sdjax {ours:.2f} s, diffusers {theirs:.2f} s, {theirs / ours:.2f} times as fast")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--folder", type=Path, help="where weights and outputs are written; a temporary one if left out"
    )
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--keep", action="store_true", help="leave the weights there")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--calls", type=int, default=3)
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        name, part, folder, *more = options.step
        return step(name, part, Path(folder), *more)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        if options.speed:
            return speed(folder, options.batch, options.calls)
        good = [compare(part, folder, options.keep) for part in options.only]
    sys.exit(0 if all(good) else "a limit is passed")


if __name__ == "__main__":
    main()
