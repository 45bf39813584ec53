"""ControlNets and T2I-Adapters against diffusers in float64: what they add, and the UNet's output with it. Mistakes are
caught, and the names and shapes of full-size ones are diffusers'."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, T2IAdapter

import sdjax
from sdjax.families.sd import SD15, SD21
from sdjax.families.sdxl import SDXL
from sdjax.model import control
from sdjax.networks.control import network
from sdjax.networks.control.config import ControlConfig
from sdjax.networks.control.fields import write_control
from sdjax.networks.t2i import network as t2i
from sdjax.networks.t2i.config import AdapterConfig
from sdjax.networks.t2i.part import write_adapter
from sdjax.networks.table import make_rows, param_shapes
from sdjax.networks.unet import blocks
from sdjax.weights.convert import OPERATIONS, to_file_tensors
from tests.parity import control_peers as peers
from tests.parity.peers import error

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("quick_compile")]

LIMIT = 5e-6


def added(name: str, found: control.Control, scale=1.0) -> list:
    """What ours adds in the model `name`: a list of arrays, as diffusers returns them."""
    x, t, cond, pictures = peers.inputs(name)
    weights = jnp.full(found.config.residuals, scale, jnp.float32)
    seen = control.look.__wrapped__(found.params, pictures, found.config, jnp.float32)
    rest = weights, x, t, cond.context, cond.vector, jnp.float32
    return jax.tree.leaves(control.residuals_of(found.config, found.params, seen, *rest))


def residual_error(name: str, scale: float = 1.0, **changes) -> float:
    found, peer = peers.control(peers.control_config(peers.MODELS[name], **changes))
    expected = peers.residuals(peer, name, peers.inputs(name), scale)
    pairs = zip(added(name, found, scale), expected, strict=True)
    return max(error(mine, torch.from_numpy(theirs)) for mine, theirs in pairs)


@pytest.mark.parametrize("name", peers.MODELS)
def test_residuals_and_output(name):
    found = residual_error(name, 0.7)
    (sd, unet), (ours, peer) = peers.model(name), peers.control(peers.control_config(peers.MODELS[name]))
    x, t, cond, pictures = given = peers.inputs(name)
    expected = peers.output(unet, name, given, peers.residuals(peer, name, given, 0.7))
    output = sdjax.predict(sd, x, t, cond, control=ours, control_image=pictures, control_scale=0.7)
    plain = sdjax.predict(sd, x, t, cond)
    print(f"residuals {found:.2e}, output {error(output, expected):.2e}, without {error(plain, expected):.2e}")
    assert max(found, error(output, expected)) < LIMIT < error(plain, expected)
    nothing = sdjax.predict(sd, x, t, cond, control=ours, control_image=pictures, control_scale=0.0)
    np.testing.assert_allclose(nothing, plain, atol=1e-6)
    each = sdjax.predict(
        sd, x, t, cond, control=ours, control_image=pictures, control_scale=[0.7] * ours.config.residuals
    )
    np.testing.assert_allclose(each, output, atol=1e-6)


@pytest.mark.parametrize("changes", [{"bgr": True}, {"pooled": True}, {"hint": (4, 6, 5, 7)}], ids=str)
def test_kinds(changes):
    assert residual_error("SD 1", **changes) < LIMIT


KINDS = {
    "full": ("SD 1", "full_adapter", (72, 56), {}),
    "sketch": ("SD 1", "full_adapter", (64, 48), {"picture_channels": 1, "blocks": 1}),
    "light": ("SD 1", "light_adapter", (72, 56), {"blocks": 4}),
    "SDXL": ("SDXL", "full_adapter_xl", (64, 96), {}),
}


def adapter_error(kind: str) -> tuple[float, float]:
    """(of the features, of the output; diffusers cannot add features to a first level without attention)."""
    name, sort, size, changes = KINDS[kind]
    (sd, unet), config = peers.model(name), peers.adapter_config(peers.MODELS[name], sort, **changes)
    (ours, peer), (x, t, cond, pictures) = peers.adapter(config), peers.inputs(name, size)
    pictures = pictures[..., : config.picture_channels]
    with torch.no_grad():
        expected = [peers.nhwc(one) for one in peer(peers.nchw(pictures))]
    found = control.look.__wrapped__(ours.params, pictures, config, jnp.float32).levels
    whole = peers.output(unet, name, (x, t, cond, pictures), levels=[one.numpy() for one in expected])
    output = sdjax.predict(sd, x, t, cond, control=ours, control_image=pictures)
    return max(error(a, b) for a, b in zip(found, expected, strict=True)), error(output, whole)


@pytest.mark.parametrize("kind", KINDS)
def test_adapters(kind):
    found = adapter_error(kind)
    print(f"features {found[0]:.2e}, output {found[1]:.2e}")
    assert max(found) < LIMIT


# ---- mistakes

original = {"down": blocks.Blocks.down, "embed": control.embed_hint, "conv": network.conv3x3, "dense": network.Dense}


def swapped(self, h, added=()):
    h, skips = original["down"](self, h, added)
    return h, [skips[0], skips[2], skips[1], *skips[3:]]


def twice(self, h, added=()):
    h, skips = original["down"](self, h, added)
    return 2 * h, skips


#: what is wrong -> (place, name, the wrong value)
MISTAKES = {
    "scale of the zero convolutions": (control, "for_images", lambda value, like: 1.01 * jnp.asarray(value)),
    "order of the residuals": (blocks.Blocks, "down", swapped),
    "no middle": (blocks.Blocks, "middle", lambda self, h: h),
    "the middle sees twice as much": (blocks.Blocks, "down", twice),
    "pixels in [-1, 1]": (control, "embed_hint", lambda p, x, *rest: original["embed"](p, 2 * x - 1, *rest)),
    "pixels in 0 .. 255": (control, "embed_hint", lambda p, x, *rest: original["embed"](p, 255 * x, *rest)),
    "blue, green, red": (control, "embed_hint", lambda p, x, *rest: original["embed"](p, x[..., ::-1], *rest)),
    "no picture": (control, "embed_hint", lambda *arguments: 0 * original["embed"](*arguments)),
    "rows and columns": (
        *(control, "embed_hint"),
        lambda p, x, *rest: original["embed"](p, x[:, ::-1], *rest),
    ),
    "padding of strided convolutions": (
        *(network, "conv3x3"),
        lambda *args, stride=1, **rest: original["conv"](
            *args, stride=stride, padding=((1, 1), (1, 1)) if stride == 1 else ((0, 1), (0, 1)), **rest
        ),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_caught(mistake, monkeypatch):
    place, name, wrong = MISTAKES[mistake]
    assert residual_error("SD 1") < LIMIT
    monkeypatch.setattr(place, name, wrong)
    found = residual_error("SD 1")
    print(f"{found:.2e}")
    assert found > LIMIT and np.isfinite(found)


@pytest.mark.parametrize("field", ["bgr", "pooled"])
def test_a_wrong_config_is_caught(field):
    found, peer = peers.control(peers.control_config(peers.MODELS["SD 1"], **{field: True}))
    found = replace(found, config=replace(found.config, **{field: False}))
    pairs = zip(added("SD 1", found), peers.residuals(peer, "SD 1", peers.inputs("SD 1")), strict=True)
    assert all(np.abs(np.asarray(mine) - theirs).max() > LIMIT * np.abs(theirs).max() for mine, theirs in pairs)


def turned(x, side):
    b, h, w, c = x.shape
    x = x.reshape(b, h // side, side, w // side, side, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // side, w // side, c * side * side)


ADAPTER_MISTAKES = {
    "channels of a square in another order": ("full", t2i, "unshuffled", turned),
    "a pixel for the mean of four": ("full", t2i, "halved", lambda x: x[:, ::2, ::2]),
    "a last row counted as half": (
        *("light", t2i, "halved"),
        lambda x: (
            jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
            .reshape(len(x), -(-x.shape[1] // 2), 2, -(-x.shape[2] // 2), 2, -1)
            .mean((2, 4))
        ),
    ),
    "levels of SDXL halved as others": ("SDXL", AdapterConfig, "halves", lambda self, level: level == 1),
}


@pytest.mark.parametrize("mistake", ADAPTER_MISTAKES)
def test_mistakes_of_adapters_are_caught(mistake, monkeypatch):
    kind, place, name, wrong = ADAPTER_MISTAKES[mistake]
    _, sort, size, changes = KINDS[kind]
    config = peers.adapter_config(peers.MODELS[KINDS[kind][0]], sort, **changes)
    ours, peer = peers.adapter(config)
    pictures = peers.inputs(KINDS[kind][0], size)[3]
    with torch.no_grad():
        expected = [peers.nhwc(one).numpy() for one in peer(peers.nchw(pictures))]
    monkeypatch.setattr(place, name, wrong)
    found = control.look.__wrapped__(ours.params, pictures, config, jnp.float32).levels
    same = [
        a.shape == b.shape and np.abs(a - b).max() < LIMIT * np.abs(b).max()
        for a, b in zip(found, expected, strict=True)
    ]
    assert not all(same)


@pytest.mark.parametrize("nested", [False, True])
def test_files_of_torch(nested, tmp_path):
    """.pth, in half precision, of the control alone or of a whole model as lllyasviel's first ones."""
    (sd, _), config = peers.model("SD 1"), peers.control_config(peers.MODELS["SD 1"])
    found, _ = peers.control(config)
    tensors = to_file_tensors(found.params, make_rows(config), "compvis")
    tensors = {name: torch.from_numpy(value).half() for name, value in tensors.items()}
    if nested:
        tensors = {"state_dict": tensors | {"model.diffusion_model.out.2.bias": torch.zeros(4)}, "global_step": 3}
    torch.save(tensors, tmp_path / "control.pth")
    read = sdjax.load_control(tmp_path / "control.pth", sd)
    assert read.config == config
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.float16)), read.params, found.params)


# ---- full size

FULL = {
    "SD 1": ControlConfig(SD15.unet),
    "SD 2": ControlConfig(SD21.unet),
    "SDXL": ControlConfig(SDXL.unet),
    "T2I": AdapterConfig(),
    "sketch": AdapterConfig(picture_channels=1),
    "light": AdapterConfig("light_adapter", blocks=4),
    "T2I for SDXL": AdapterConfig("full_adapter_xl", unshuffle=16),
}


@pytest.mark.parametrize("name", FULL)
def test_full_size(name):
    """Nothing is allocated: torch's module is on the meta device, ours are shapes."""
    config = FULL[name]
    with torch.device("meta"):
        if isinstance(config, ControlConfig):
            peer = ControlNetModel(**peers.plain(write_control(config)))
        else:
            peer = T2IAdapter(**peers.plain(write_adapter(config)))
    shapes = param_shapes(config)
    found = {}
    for row in make_rows(config):
        leaf = shapes
        for key in row.path:
            leaf = leaf[key]
        found[row.diffusers] = tuple(OPERATIONS[row.operation][2](leaf.shape))
    assert found == {key: tuple(value.shape) for key, value in peer.state_dict().items()}
    print(name, len(found), sum(map(np.prod, found.values())))
