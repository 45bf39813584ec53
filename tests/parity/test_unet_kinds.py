"""The UNet's further kinds against diffusers in float64: attention blocks without a context, ResBlocks between levels,
scale and shift, deep transformers, labels and vectors, attention to the text alone. Mistakes in them are caught."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers import UNet2DConditionModel, UNet2DModel  # noqa: E402

from sdjax.model.functions import unet_output  # noqa: E402
from sdjax.networks import rows  # noqa: E402
from sdjax.networks.unet import blocks, names, network  # noqa: E402
from sdjax.networks.unet.config import UNetConfig  # noqa: E402
from sdjax.nn import layers  # noqa: E402
from sdjax.weights import convert  # noqa: E402
from tests.parity import peers  # noqa: E402

pytestmark = pytest.mark.parity

LIMIT = 5e-6
PLAIN = UNetConfig(channels=(16, 32), blocks=1, attention=(False, True), heads=(2, 4), groups=8, context_dim=12)
ALONE = replace(PLAIN, cross=False)
KINDS = {
    "attention blocks": ALONE,
    "attention blocks, one head": replace(ALONE, heads=(1, 1), attention=(True, True)),
    "attention in the middle alone": replace(ALONE, attention=(False, False), in_channels=6, out_channels=3),
    "ResBlocks between levels": replace(ALONE, updown=True, attention=(True, True)),
    "scale and shift": replace(ALONE, scale_shift=True, updown=True, attention=(True, True)),
    "a deep transformer": replace(PLAIN, depth=(1, 3)),
    "labels": replace(PLAIN, labels=7, depth=(2, 2), attention=(True, True)),
    "a vector": replace(PLAIN, vector=10),
    "attention to the text alone": replace(PLAIN, self_attention=(False, True), attention=(True, True)),
}


def peer(config: UNetConfig) -> torch.nn.Module:
    shared = {
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "block_out_channels": config.channels,
        "layers_per_block": config.blocks,
        "norm_num_groups": config.groups,
        "norm_eps": 1e-5,
        "sample_size": 8,
        "resnet_time_scale_shift": "scale_shift" if config.scale_shift else "default",
    }
    if not config.cross:
        width = {channels // heads for channels, heads in zip(config.channels, config.heads, strict=True)}
        kinds = [("Attn" if flag else "") + "DownBlock2D" for flag in config.attention]
        if len(width) > 1:  # one head, as wide as each level
            pytest.skip("diffusers has one width of heads for all levels") if not all(config.attention) else None
        between = "resnet" if config.updown else "conv"
        module = UNet2DModel(
            down_block_types=kinds,
            up_block_types=[kind.replace("Down", "Up") for kind in kinds[::-1]],
            attention_head_dim=max(width) if len(width) == 1 else None,
            freq_shift=0,
            flip_sin_to_cos=True,
            add_attention=True,
            downsample_type=between,
            upsample_type=between,
            **shared,
        )
        middle = module.mid_block.attentions[0]
        if middle.group_norm is None:  # diffusers leaves it out with scale and shift, LDM does not
            middle.group_norm = torch.nn.GroupNorm(config.groups, config.channels[-1], eps=1e-5)
        return module
    kinds = [("CrossAttn" if flag else "") + "DownBlock2D" for flag in config.attention]
    alone = [not flag for flag in config.attends_itself]
    return UNet2DConditionModel(
        down_block_types=kinds,
        up_block_types=[kind.replace("Down", "Up") for kind in kinds[::-1]],
        attention_head_dim=list(config.heads),
        cross_attention_dim=config.context_dim,
        transformer_layers_per_block=list(config.depths),
        num_class_embeds=config.labels,
        class_embed_type="projection" if config.vector else None,
        projection_class_embeddings_input_dim=config.vector,
        only_cross_attention=alone,
        **shared,
    )


def unet_error(config: UNetConfig) -> float:
    module = peers.roughen(peer(config))
    params = peers.export(peers.file_tensors(module, "unet"), config)
    module, rng = module.double(), np.random.default_rng(1)
    x = rng.normal(size=(2, 8, 8, config.in_channels)).astype(np.float32)
    t, context = np.float32([3, 741]), rng.normal(size=(2, 5, config.context_dim)).astype(np.float32)
    vector = rng.normal(size=(2, config.vector)).astype(np.float32) if config.vector else None
    labels = np.float32([[2], [config.labels - 1]]) if config.labels else None
    arguments = [peers.nchw(x), torch.tensor(t, dtype=torch.float64)]
    if config.cross:
        arguments.append(torch.from_numpy(context).double())
    if config.vector:
        arguments.append(torch.from_numpy(vector).double())
    if config.labels:
        arguments.append(torch.from_numpy(labels[:, 0]).long())
    with torch.no_grad():
        want = peers.nhwc(module(*arguments).sample)
    given = vector if config.vector else labels
    found = unet_output(params, x, t, context if config.cross else None, config, vector=given)
    return peers.error(found, want)


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind):
    found = unet_error(KINDS[kind])
    print(f"error {found:.2e}")
    assert found <= LIMIT


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_computed_ahead_is_the_same(kind):
    """Keys, values and the time's shifts, as a walk has them."""
    config = KINDS[kind]
    params = peers.export(peers.file_tensors(peers.roughen(peer(config)), "unet"), config)
    rng = np.random.default_rng(1)
    x, context = rng.normal(size=(2, 8, 8, config.in_channels)), rng.normal(size=(2, 5, config.context_dim))
    x, context, t = x.astype(np.float32), context.astype(np.float32) if config.cross else None, np.float32([3, 741])
    vector = rng.normal(size=(2, config.vector)).astype(np.float32) if config.vector else None
    vector = np.float32([[2], [6]]) if config.labels else vector
    want = unet_output(params, x, t, context, config, vector=vector)
    keys = network.keys_values(params, context, np.dtype("float32"))
    shifts = network.time_shifts(params, t, config, np.dtype("float32"), vector)
    np.testing.assert_allclose(unet_output(params, x, shifts, keys, config), want, atol=1e-5)


first = lambda x: x[:, ::2, ::2]
mean = lambda x: x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).mean((2, 4))
twice = lambda x: x.repeat(2, axis=1).repeat(2, axis=2)
turned = convert.OPERATIONS | {"dense": (lambda a: a.T[::-1], *convert.OPERATIONS["dense"][1:])}
#: what is wrong -> (the kind that shows it, module, name, the wrong value)
MISTAKES = {
    "a pixel for the mean of four": (
        *("ResBlocks between levels", layers, "resized"),
        lambda x, way: first(x) if way == "down" else twice(x),
    ),
    "rows turned on the way up": (
        *("scale and shift", layers, "resized"),
        lambda x, way: mean(x) if way == "down" else twice(x)[:, ::-1],
    ),
    "another label": ("labels", blocks, "label_of", lambda vector: vector[:, 0].astype(int) - 1),
    "blocks in another order": ("a deep transformer", rows, "block_name", lambda i: ("block", "block_2", "block_1")[i]),
    "inputs of the projections turned": ("attention blocks", convert, "OPERATIONS", turned),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_caught(mistake, monkeypatch, quick_compile):
    kind, place, name, wrong = MISTAKES[mistake]
    unet_output.clear_cache()
    monkeypatch.setattr(place, name, wrong)
    found = unet_error(KINDS[kind])
    unet_output.clear_cache()
    assert found > LIMIT and np.isfinite(found)


def legacy(file: np.ndarray, heads: int) -> list[np.ndarray]:
    """q, k, v of CompVis' AttentionBlock as QKVAttentionLegacy splits them: [B heads, 3 width, T], then thirds."""
    return [part.reshape(-1, *file.shape[1:]) for part in np.split(file.reshape(heads, -1, *file.shape[1:]), 3, axis=1)]


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_stacked_attention_of_compvis(heads):
    """A file's qkv and our three kernels, both ways, as the original code splits them."""
    config, rng = replace(ALONE, heads=(heads, heads)), np.random.default_rng(0)
    found = {row.compvis: row for row in names.unet_rows(config, "p") if ".qkv." in row.compvis}
    weight, bias = rng.normal(size=(96, 32, 1)).astype(np.float32), rng.normal(size=96).astype(np.float32)
    assert {name.rsplit(".", 1)[1] for name in found} == {"weight", "bias"}
    for part, (kernel, offset) in enumerate(zip(legacy(weight, heads), legacy(bias, heads), strict=True)):
        ours = convert.operation_of(f"stacked {heads} {'qkv'[part]}")[0]
        np.testing.assert_array_equal(ours(weight), kernel[..., 0].T)
        np.testing.assert_array_equal(ours(bias), offset)
    parts = {f"stacked {heads} {p}": convert.operation_of(f"stacked {heads} {p}") for p in "qkv"}
    for value in (weight, bias):
        there = {name: to_file(to_ours(value)) for name, (to_ours, to_file, _) in parts.items()}
        np.testing.assert_array_equal(convert.stacked(there), value)
        shapes = {shape(to_ours(value).shape) for to_ours, _, shape in parts.values()}
        assert shapes == {value.shape}
