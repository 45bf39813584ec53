"""IP-Adapters against diffusers and transformers in float64: one call of the UNet, of either side of guidance; names of
published files; and mistakes, which are caught."""

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

import sdjax
from sdjax.families.sd import SD15
from sdjax.families.sdxl import SDXL
from sdjax.image.pixels import clip_pixels
from sdjax.model import image_prompt as module
from sdjax.networks.clip import network as clip
from sdjax.networks.clip.config import VisionConfig
from sdjax.networks.clip.fields import FIELDS
from sdjax.networks.image_prompt import names, network
from sdjax.networks.image_prompt.config import ImagePromptConfig
from sdjax.networks.unet.fields import write_unet
from sdjax.weights.spellings import current_name
from tests.narrow import file_shapes
from tests.parity import control_peers
from tests.parity import image_prompt_peers as peers
from tests.parity.peers import error

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("quick_compile")]

LIMIT = 5e-6


def pixels_of(name: str, pictures) -> np.ndarray:
    """As transformers' processor makes them: tests/parity/test_safety.py holds `clip_pixels` to it."""
    from PIL import Image

    return np.stack([clip_pixels(Image.fromarray(one), peers.TOWERS[name].size) for one in pictures])


def call_error(name: str, kind: str, count: int = 1, scale: float = 0.7, nothing: bool = False, **changes) -> float:
    sd, ours, peer = peers.model(name), peers.adapter(name, kind), peers.unet(name, (kind, 0))
    x, t, cond, _ = inputs = control_peers.inputs(name)
    pictures = peers.pictures(count)
    peers.set_scales(peer, [scale])
    expected = peers.output(peer, name, inputs, [peers.seen(name, kind, pixels_of(name, pictures), nothing)])
    asked = (ours, None if nothing else pictures)
    settings = {"image_prompt_scale": scale} | changes
    return error(sdjax.predict(sd, x, t, cond, image_prompt=asked, **settings), expected)


@pytest.mark.parametrize(("name", "kind"), peers.CASES)
def test_one_call(name, kind):
    sd, (x, t, cond, _) = peers.model(name), control_peers.inputs(name)
    one, two, nothing = call_error(name, kind), call_error(name, kind, 2), call_error(name, kind, nothing=True)
    print(f"one picture {one:.2e}, two {two:.2e}, none {nothing:.2e}")
    assert max(one, two, nothing) < LIMIT
    plain = sdjax.predict(sd, x, t, cond)
    off = sdjax.predict(
        sd, x, t, cond, image_prompt=(peers.adapter(name, kind), peers.pictures()), image_prompt_scale=0
    )
    np.testing.assert_allclose(off, plain, atol=1e-6)
    assert call_error(name, kind, scale=0.7, image_prompt_scale=0.0) > 1e-2


@pytest.mark.parametrize("name", peers.TOWERS)
def test_two_adapters(name):
    """Each with a scale and pictures of its own."""
    sd, peer = peers.model(name), peers.unet(name, ("base", 0), ("plus", 1))
    x, t, cond, _ = inputs = control_peers.inputs(name)
    first, second = peers.pictures(1), peers.pictures(2, 8)
    peers.set_scales(peer, [0.4, 1.3])
    given = [(kind, pixels_of(name, some)) for kind, some in (("base", first), ("plus", second))]
    expected = peers.output(peer, name, inputs, [peers.seen(name, *one) for one in given])
    asked = [(peers.adapter(name, "base"), first), (peers.adapter(name, "plus", 1), second)]
    assert error(sdjax.predict(sd, x, t, cond, image_prompt=asked, image_prompt_scale=[0.4, 1.3]), expected) < LIMIT
    assert error(sdjax.predict(sd, x, t, cond, image_prompt=asked, image_prompt_scale=[1.3, 0.4]), expected) > LIMIT


@pytest.mark.parametrize("name", peers.TOWERS)
def test_order_of_layers(name):
    """Ours are diffusers' attn_processors, in its numbers."""
    theirs = peers.attentions(control_peers.model(name)[1])
    ours = names.attentions_of(control_peers.MODELS[name].unet)
    assert [width for _, width in ours] == [width for _, width in theirs] and len(ours) == len(theirs)
    kinds = [name.split(".")[0].split("_")[0] for name, _ in theirs]
    assert [name.split("_")[0] for name, _ in ours] == kinds and kinds == sorted(kinds, key=["down", "up", "mid"].index)


# ---- mistakes

original = {
    "look": module.look.__wrapped__,
    "order": names.attentions_of,
    "tokens": module.picture_tokens,
    "clip": module.clip_pixels,
}


def down_middle_up(unet):
    found = original["order"](unet)
    return sorted(found, key=lambda one: ["down", "mid", "up"].index(one[0].split("_")[0]))


def swapped(unet):
    """Two of one width change places."""
    found = original["order"](unet)
    places = [i for i, one in enumerate(found) if one[1] == found[-1][1]]
    found[places[0]], found[places[-1]] = found[places[-1]], found[places[0]]
    return found


def retraced(name: str):
    """A function without jit's cache of what was right."""
    return getattr(module, name).__wrapped__


#: what is wrong -> (kind, without a picture?, module, name, the wrong value)
MISTAKES = {
    "two layers exchanged": ("base", False, module, "attentions_of", swapped),
    "tokens backwards": (
        *("base", False, module, "picture_tokens"),
        lambda params, seen, config, dtype: original["tokens"](params, seen[:, ::-1], config, dtype),
    ),
    "keys for values": (
        *("plus", False, module, "picture_keys"),
        lambda *given: [(v, k) for k, v in module.keys_of_tokens(*given)],
    ),
    "scale in the keys": (
        *("plus", False, module, "picture_keys"),
        lambda params, tokens, scale, *rest: [
            (k * scale, v) for k, v in module.keys_of_tokens(params, tokens, np.float32(1), *rest)
        ],
    ),
    "no scale": (
        *("base", False, module, "picture_keys"),
        lambda params, tokens, scale, *rest: module.keys_of_tokens(params, tokens, np.float32(1), *rest),
    ),
    "plus sees the last states": (
        *("plus", False, module, "ImageTower"),
        lambda config, dtype: Late(config, dtype),
    ),
    "plus sees them after a norm": (
        *("plus", False, module, "ImageTower"),
        lambda config, dtype: Normed(config, dtype),
    ),
    "half of to_kv exchanged": (
        *("plus", False, module, "tokens_of"),
        lambda params, *rest: network.tokens_of(exchanged(params), *rest),
    ),
    "plus without a final norm": ("plus", False, network, "LayerNorm", lambda name: NoNorm(name)),
    "zeros for plus without a picture": (
        *("plus", True, module, "look"),
        lambda *given: 0 * original["look"](*given),
    ),
    "zero tokens for base without a picture": (
        *("base", True, module, "picture_tokens"),
        lambda *given: 0 * original["tokens"](*given),
    ),
    "the picture's corner": (
        *("base", False, module, "clip_pixels"),
        lambda image, size: original["clip"](image.crop((0, 0, image.width, image.width - 5)), size),
    ),
}


class Late:
    def __init__(self, config, dtype):
        self.net = clip.ImageTower(config, dtype)

    def apply(self, variables, pixels, back):
        _, kept = self.net.apply(variables, pixels, capture_intermediates=True, mutable=["intermediates"])
        layers = kept["intermediates"]
        last = max((name for name in layers if name.startswith("layer_")), key=lambda name: int(name[6:]))
        return layers[last]["__call__"][0]


class Normed(Late):
    def apply(self, variables, pixels, back):
        states = self.net.apply(variables, pixels, back=back)
        return clip.LayerNorm().apply({"params": variables["params"]["post_norm"]}, states)


class NoNorm:
    def __init__(self, name):
        self.norm = clip.LayerNorm(name=name) if name != "norm_out" else lambda x: x

    def __call__(self, x):
        return self.norm(x)


def exchanged(params):
    blocks = {
        name: part | {"attention": part["attention"] | {"k": part["attention"]["v"], "v": part["attention"]["k"]}}
        if name.startswith("block_")
        else part
        for name, part in params["tokens"].items()
    }
    return params | {"tokens": blocks}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_caught(mistake, monkeypatch):
    kind, nothing, place, name, wrong = MISTAKES[mistake]
    for function in ("look", "picture_tokens", "picture_keys"):
        monkeypatch.setattr(module, function, retraced(function))
    assert call_error("SD 1", kind, nothing=nothing) < LIMIT
    monkeypatch.setattr(place, name, wrong)
    found = call_error("SD 1", kind, nothing=nothing)
    print(f"{found:.2e}")
    assert found > LIMIT and np.isfinite(found)


@pytest.mark.parametrize("name", peers.TOWERS)
def test_layers_in_another_order_are_refused(name, monkeypatch):
    """Of a file that numbers the middle before the way up the widths fit no model."""
    monkeypatch.setattr(module, "attentions_of", down_middle_up)
    with pytest.raises(sdjax.SdjaxError, match="image_prompt: is for 1"):
        call_error(name, "base")


@pytest.mark.parametrize(("name", "kind"), peers.CASES)
def test_files(name, kind, tmp_path):
    """.safetensors and .bin, float16 too, with the tower in a folder that transformers wrote."""
    from safetensors.numpy import save_file

    found = peers.tensors(name, kind)
    peers.tower(name)[1].float().save_pretrained(tmp_path / "image_encoder")
    peers.tower(name)[1].double()
    save_file(found, tmp_path / "adapter.safetensors")
    torch.save(peers.nested(found), tmp_path / "adapter.bin")
    half = {key: value.astype(np.float16) for key, value in found.items()}
    torch.save(peers.nested(half), tmp_path / "half.bin")
    x, t, cond, _ = control_peers.inputs(name)
    want = sdjax.predict(peers.model(name), x, t, cond, image_prompt=(peers.adapter(name, kind), peers.pictures()))
    for file, limit in (("adapter.safetensors", 0), ("adapter.bin", 0), ("half.bin", 0.02)):
        loaded = sdjax.load_image_prompt(tmp_path / file, tmp_path)
        assert loaded.config == peers.adapter(name, kind).config and loaded.vision == peers.TOWERS[name]
        got = sdjax.predict(peers.model(name), x, t, cond, image_prompt=(loaded, peers.pictures()))
        np.testing.assert_allclose(got, want, atol=limit)


# ---- full size

LARGE = {
    "ViT-H/14": VisionConfig(224, 14, 1280, 32, 16, 5120, "gelu", 1024),
    "bigG": VisionConfig(224, 14, 1664, 48, 16, 8192, "gelu", 1280),
}


@pytest.mark.parametrize("name", LARGE)
def test_full_towers(name):
    """Nothing is allocated: transformers' module is on the meta device, ours are shapes."""
    config = LARGE[name]
    fields = {theirs: getattr(config, ours) for ours, theirs in FIELDS.items()}
    with torch.device("meta"):
        peer = CLIPVisionModelWithProjection(CLIPVisionConfig(**fields))
    want = {name: tuple(value.shape) for name, value in peer.state_dict().items() if "position_ids" not in name}
    assert file_shapes(config) == {current_name("vision", name): shape for name, shape in want.items()}


@pytest.mark.parametrize(("unet", "kind"), [(SD15, "base"), (SD15, "plus"), (SDXL, "base"), (SDXL, "plus")], ids=str)
def test_full_adapters(unet, kind):
    """diffusers takes tensors of these names and shapes into its own UNet."""
    layers = tuple(width for _, width in names.attentions_of(unet.unet))
    context, large = unet.unet.context_dim, unet is SDXL
    config = ImagePromptConfig(layers, 1280 if large else 1024, context)
    if kind == "plus":
        shape = (1280, 4, 20, 5120) if large else (768, 4, 12, 3072)
        config = ImagePromptConfig(layers, 1280, context, 16, True, *shape)
    tensors = {key: torch.empty(shape, device="meta") for key, shape in file_shapes(config).items()}
    files = {"image_proj": {}, "ip_adapter": {}}
    for key, value in tensors.items():
        part, _, rest = key.partition(".")
        files[part][rest] = value
    with torch.device("meta"):
        peer = UNet2DConditionModel(**control_peers.plain(write_unet(unet.unet)))
        peer._load_ip_adapter_weights([files], low_cpu_mem_usage=False)
    count = sum(value.numel() for value in tensors.values())
    theirs = [value for name, value in peer.named_parameters() if "_ip." in name or "encoder_hid_proj" in name]
    print(kind, count)
    assert sum(value.numel() for value in theirs) == count
