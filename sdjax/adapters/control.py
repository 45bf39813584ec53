"""Reads ControlNets and T2I-Adapters: diffusers folders, single files of either spelling, and hub ids.

control = sdjax.load_control("control_v11p_sd15_canny.pth")
images = sdjax.txt2img(sd, "a bird", control=control, control_image=sdjax.preprocess.canny(picture))

What a single file's shapes do not tell, the attention heads, comes from the model that is given or published.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sdjax.checks import check_model
from sdjax.errors import SdjaxError, log
from sdjax.families.table import PUBLISHED
from sdjax.model.control import Control
from sdjax.model.value import StableDiffusion
from sdjax.networks.control.config import ControlConfig
from sdjax.networks.control.part import CONTROLNET
from sdjax.networks.fields import Fields
from sdjax.networks.t2i.config import AdapterConfig
from sdjax.networks.t2i.part import T2I_ADAPTER
from sdjax.networks.table import make_rows, param_shapes
from sdjax.networks.unet.config import UNetConfig
from sdjax.types import Params
from sdjax.weights.convert import from_file_tensors
from sdjax.weights.folder import DIFFUSERS, read_weights
from sdjax.weights.hub import fetch_part, is_hub_id

CONTROL, DIFFERENCE = "control_model.", "difference"

#: Tensors by which a file says that it is another kind of control: pattern -> what it is.
OTHERS = {
    r"lora_controlnet|.+\.(up|down)": "a control-LoRA",
    r"(controlnet\.)?task_embedding|(controlnet_)?control_add_embedding\..+": "a ControlNet of several tasks (union)",
    r".*ip_adapter.*|image_proj\..+": "an IP-Adapter, which sdjax.load_image_prompt reads",
    r".*(double_blocks|single_transformer_blocks|transformer_blocks\.\d+\.ff_context).*": "a control for transformers",
    r"(lora_unet_|lora_te_).+": "a LoRA",
}

Shapes = Mapping[str, tuple[int, ...]]


def load_control(source: str | Path, sd: StableDiffusion | None = None) -> Control:
    """Reads a ControlNet for SD 1, SD 2 or SDXL, or a T2I-Adapter (full, light, sketch, for SDXL).

    source: a diffusers folder with config.json; a .safetensors, .pth, .ckpt or .bin file, of the control alone or, as
        the first ones, of a whole model; or a hub id.
    sd: the model that it steers. It tells the number of attention heads where a single file is for no published model,
        and a file of differences is added to it.
    SdjaxError: it is something else, or a tensor is missing, unexpected or of another shape.
    """
    if not isinstance(source, (str, Path)):
        raise SdjaxError(f"source is {type(source).__name__}: the name of a file or folder, or a hub id, expected")
    if sd is not None:
        check_model(sd)
    path = Path(source)
    if not path.exists():
        if not is_hub_id(str(source)):
            raise SdjaxError(f"{source}: no such file or folder")
        path = fetch_part(str(source))
    return read_folder(path) if path.is_dir() else read_file(path, sd)


def read_folder(folder: Path) -> Control:
    """Returns the control in a diffusers folder, whose config.json says which it is."""
    path = folder / "config.json"
    fields = Fields(path)
    parts = {"ControlNetModel": CONTROLNET, "T2IAdapter": T2I_ADAPTER}
    name = fields.values.get("_class_name")
    if name not in parts:
        raise SdjaxError(f"{path}: _class_name is {name!r}, should be one of {', '.join(parts)}")
    config = parts[name].read(fields)
    tensors = read_weights(folder, DIFFUSERS, "control")
    return Control(config, from_file_tensors(tensors, make_rows(config), param_shapes(config), source=str(folder)))


def read_file(path: Path, sd: StableDiffusion | None = None) -> Control:
    """Returns the control in a single file, which its tensors tell from others."""
    from sdjax.formats.tensors import read_checkpoint

    tensors = dict(read_checkpoint(path)[0])
    difference = tensors.pop(DIFFERENCE, None) is not None
    if any(name.startswith(CONTROL) for name in tensors):
        rest = [name for name in tensors if not name.startswith(CONTROL)]
        if rest:
            log.info("%s: holds a whole model beside the ControlNet; its %d tensors are left out", path, len(rest))
        tensors = {name: value for name, value in tensors.items() if name.startswith(CONTROL)}
    elif "input_hint_block.0.weight" in tensors:
        tensors = {CONTROL + name: value for name, value in tensors.items()}
    shapes = {name: tuple(np.shape(value)) for name, value in tensors.items()}
    for name in shapes:
        for pattern, what in OTHERS.items():
            if re.fullmatch(pattern, name):
                rest = "" if ", which" in what else ", which is not supported"
                raise SdjaxError(f"{path}: holds {name[:80]}, so it is {what}{rest}")
    if f"{CONTROL}input_hint_block.0.weight" in shapes:
        config, layout = control_config(compvis_levels(shapes, path), shapes, "compvis", path, sd), "compvis"
    elif "controlnet_cond_embedding.conv_in.weight" in shapes:
        config, layout = control_config(diffusers_levels(shapes), shapes, "diffusers", path, sd), "diffusers"
    elif any(re.fullmatch(r"(adapter\.)?body\.0\..+", name) for name in shapes):
        layout = "diffusers" if any(name.startswith("adapter.") for name in shapes) else "compvis"
        config = adapter_config(shapes, path, sd)
    else:
        raise SdjaxError(f"{path}: holds no ControlNet (input_hint_block.0.weight) and no T2I-Adapter (body.0)")
    params = from_file_tensors(tensors, make_rows(config), param_shapes(config), layout, str(path))
    return Control(config, added_to(params, sd, path) if difference else params)


def added_to(difference: Params, sd: StableDiffusion | None, path: Path) -> Params:
    """Returns a ControlNet's parameters from their differences to the UNet's. SdjaxError: there is no fitting UNet."""
    if sd is None:
        raise SdjaxError(f"{path}: holds differences to a model's UNet; give the model, sd")
    flat, base = flatten_dict(difference), flatten_dict(sd.params["unet"])
    for name in flat.keys() & base.keys():
        if flat[name].shape != base[name].shape:
            raise SdjaxError(f"{path}: {'/'.join(name)} has another shape than the UNet of sd {sd.config.name}")
    return unflatten_dict({name: leaf + base[name] if name in base else leaf for name, leaf in flat.items()})


# ---- what shapes tell


def count_of(shapes: Shapes, name: str) -> int:
    """Returns how many of name.format(0), name.format(1) ... there are."""
    count = 0
    while name.format(count) in shapes:
        count += 1
    return count


Level = list[tuple[int, int]]  # (channels, transformer blocks) of each ResBlock of a level


def compvis_levels(shapes: Shapes, path: Path) -> list[Level]:
    """Returns the levels of a ControlNet in CompVis' names."""
    levels: list[Level] = [[]]
    for n in range(1, count_of(shapes, CONTROL + "zero_convs.{}.0.weight")):
        start = f"{CONTROL}input_blocks.{n}"
        if f"{start}.0.op.weight" in shapes:
            levels.append([])
        elif (res := shapes.get(f"{start}.0.in_layers.2.weight")) is None:
            raise SdjaxError(f"{path}: has no {start}.0.in_layers.2.weight, nor {start}.0.op.weight")
        else:
            depth = count_of(shapes, start + ".1.transformer_blocks.{}.norm1.weight")
            levels[-1].append((res[0], depth))
    return levels


def diffusers_levels(shapes: Shapes) -> list[Level]:
    """Returns the levels of a ControlNet in diffusers' names."""
    levels: list[Level] = []
    while f"down_blocks.{len(levels)}.resnets.0.conv1.weight" in shapes:
        start, level = f"down_blocks.{len(levels)}", []
        for i in range(count_of(shapes, start + ".resnets.{}.conv1.weight")):
            depth = count_of(shapes, f"{start}.attentions.{i}.transformer_blocks." + "{}.norm1.weight")
            level.append((shapes[f"{start}.resnets.{i}.conv1.weight"][0], depth))
        levels.append(level)
    return levels


#: What else tells a ControlNet's config, by its names in both layouts.
NAMES = {
    "compvis": {
        "conv_in": f"{CONTROL}input_blocks.0.0.weight",
        "vector": f"{CONTROL}label_emb.0.0.weight",
        "middle": f"{CONTROL}middle_block.1.norm.weight",
        "hint": CONTROL + "input_hint_block.{}.weight",
        "proj": r"control_model\..+\.1\.proj_in\.weight",
    },
    "diffusers": {
        "conv_in": "conv_in.weight",
        "vector": "add_embedding.linear_1.weight",
        "middle": "mid_block.attentions.0.norm.weight",
        "hint": "controlnet_cond_embedding.blocks.{}.weight",
        "proj": r".+\.attentions\.\d+\.proj_in\.weight",
    },
}


def control_config(
    levels: list[Level], shapes: Shapes, layout: str, path: Path, sd: StableDiffusion | None
) -> ControlConfig:
    """Returns the config of a ControlNet in a single file.

    SdjaxError: its levels are of no UNet, or the number of heads is known of no model.
    """
    names = NAMES[layout]
    hint, conv_in = hint_channels(shapes, layout), shapes.get(names["conv_in"], ())
    even = all(len(level) == len(levels[0]) and len(set(level)) == 1 for level in levels)
    if not levels or not levels[0] or not even or len(conv_in) != 4:
        raise SdjaxError(f"{path}: its blocks are those of no UNet: {levels}")
    context = next((shape[1] for name, shape in sorted(shapes.items()) if name.endswith("attn2.to_k.weight")), None)
    if context is None:
        raise SdjaxError(f"{path}: has no cross-attention (attn2.to_k.weight)")
    depth = tuple(level[0][1] for level in levels)
    middle = names["middle"] in shapes
    inside = count_of(shapes, names["middle"].replace("norm.weight", "transformer_blocks.{}.norm1.weight"))
    if middle and inside != max(depth[-1], 1) and depth[-1]:
        raise SdjaxError(f"{path}: its middle has {inside} transformer blocks, its last level {depth[-1]}")
    depth = (*depth[:-1], inside) if middle else depth
    depth = tuple(max(one, 1) for one in depth)
    proj = next(shape for name, shape in sorted(shapes.items()) if re.fullmatch(names["proj"], name))
    vector = shapes.get(names["vector"])
    unet = UNetConfig(
        in_channels=conv_in[1],
        channels=tuple(level[0][0] for level in levels),
        blocks=len(levels[0]),
        attention=tuple(level[0][1] > 0 for level in levels),
        context_dim=context,
        linear_projection=len(proj) == 2,
        depth=() if set(depth) == {1} else depth,
        middle=middle,
        vector=vector and vector[1],
        added=vector is not None,
    )
    unet = with_heads(unet, path, sd)
    pooled = "shuffle" in path.stem.lower()
    if pooled:
        log.info("%s: its residuals are averaged over pixels, as its name says that it is for shuffled pictures", path)
    return ControlConfig(unet, hint, shapes[names["hint"].format(0)][1] if layout == "compvis" else 3, False, pooled)


def with_heads(unet: UNetConfig, path: Path, sd: StableDiffusion | None) -> UNetConfig:
    """Returns the config with the heads, groups and upcasting of the UNet that it copies: of sd, or a published one."""
    like = lambda known: (known.channels, known.context_dim) == (unet.channels, unet.context_dim)
    known = [config.unet for config in PUBLISHED if config.unet.cross]
    known = [one for one in ([sd.config.unet] if sd else []) + known if like(one)]
    if not known:
        raise SdjaxError(
            f"{path}: its shapes, channels {list(unet.channels)} and contexts of {unet.context_dim}, are of no "
            "published model, and do not say how many attention heads it has; give the model, sd"
        )
    return replace(unet, heads=known[0].heads, groups=known[0].groups, upcast_attention=known[0].upcast_attention)


def hint_channels(shapes: Shapes, layout: str) -> tuple[int, ...]:
    """Returns the channels of a ControlNet's picture embedding."""
    if layout == "diffusers":
        name, first = NAMES[layout]["hint"], shapes["controlnet_cond_embedding.conv_in.weight"][0]
        return (first, *(shapes[name.format(i)][0] for i in range(1, count_of(shapes, name), 2)))
    numbers = [i for i in range(0, 64, 2) if f"{CONTROL}input_hint_block.{i}.weight" in shapes]
    widths = [shapes[f"{CONTROL}input_hint_block.{i}.weight"][0] for i in numbers]
    return (widths[0], *widths[2:-1:2])


def adapter_config(shapes: Shapes, path: Path, sd: StableDiffusion | None) -> AdapterConfig:
    """Returns the config of a T2I-Adapter in a single file. SdjaxError: it is of no known kind."""
    plain = {name.removeprefix("adapter."): shape for name, shape in shapes.items()}
    diffusers = len(plain) and any(name.startswith("adapter.") for name in shapes)
    light = "conv_in.weight" not in plain
    first = plain.get("body.0.in_conv.weight" if light else "conv_in.weight", (0, 0))
    sizes = {channels * side**2: (channels, side) for side in (2, 4, 8, 16) for channels in (1, 3)}
    if first[1] not in sizes:
        raise SdjaxError(f"{path}: a T2I-Adapter that takes {first[1]} channels is of no known kind")
    picture, side = sizes[first[1]]
    if light:
        count = count_of(plain, "body.{}.out_conv.weight")
        inner = "body.0.resnets.{}.block1.weight" if diffusers else "body.0.body.{}.block1.weight"
        widths = tuple(plain[f"body.{i}.out_conv.weight"][0] for i in range(count))
        return AdapterConfig("light_adapter", picture, widths, count_of(plain, inner), side)
    large = side == 16 or (sd is not None and side == 2 * sd.config.vae.factor)
    kind = "full_adapter_xl" if large else "full_adapter"
    if diffusers:
        blocks = count_of(plain, "body.0.resnets.{}.block1.weight")
        widths = tuple(
            plain[f"body.{i}.resnets.0.block1.weight"][0]
            for i in range(count_of(plain, "body.{}.resnets.0.block1.weight"))
        )
        return AdapterConfig(kind, picture, widths, blocks, side)
    widths = [plain[f"body.{i}.block1.weight"][0] for i in range(count_of(plain, "body.{}.block1.weight"))]
    starts = [i for i in range(1, len(widths)) if f"body.{i}.in_conv.weight" in plain]
    blocks = starts[0] if starts else len(widths)
    if blocks < 1 or len(widths) % blocks:
        raise SdjaxError(f"{path}: a T2I-Adapter of {len(widths)} blocks, which begin new levels at {starts}")
    return AdapterConfig(kind, picture, tuple(widths[::blocks]), blocks, side)
