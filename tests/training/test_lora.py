"""LoRA in training: a layer computes what its files mean, what is trained, and how batches are weighted."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import sdjax
from sdjax.adapters.lora import Added, merge
from sdjax.data.order import Chosen
from sdjax.errors import SdjaxError
from sdjax.networks.clip.network import TextTower
from sdjax.networks.unet.network import UNet
from sdjax.nn.layers import Dense, conv3x3
from sdjax.training.lora import KINDS, TARGETS, Trained, changes, chosen_sites, initial_tree
from sdjax.training.lora_export import as_file, kohya_tensors, read_init, write_lora
from tests.kinds import SDXL, XL
from tests.lora_files import MODELS, model
from tests.loras import expected, sites
from tests.narrow import LIKE_SD15
from tests.tiny import CONFIG as TINY

pytestmark = pytest.mark.usefixtures("quick_compile")

RANK, ALPHA = 3, 1.5
PARTS = ("unet", "text")


def trained(sd, kind, targets="all", parts=PARTS, seed=0):
    """The layers, and factors of which none is zero any more."""
    chosen = chosen_sites(sd.config, targets, ALPHA, parts)
    rng = np.random.default_rng(seed)
    move = lambda leaf: (leaf + 0.1 * rng.normal(size=leaf.shape)).astype(np.float32)
    return chosen, jax.tree.map(move, initial_tree(kind, chosen, RANK, seed, sd.params))


def by_site(config, tree):
    """The factors as tests/loras.py takes them, under the names of kohya's and LyCORIS' files."""
    names = {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight"}
    found = {}
    for site in sites(config):
        if (f := tree.get(site.part, {}).get(site.name)) is not None:
            found[site] = {names.get(name, name): value for name, value in f.items()} | {"alpha": np.float32(ALPHA)}
    return found


# ---- a layer


SD = model(TINY)
CHOSEN = chosen_sites(TINY, "all", ALPHA, PARTS)
RNG = np.random.default_rng(1)
IDS, CONTEXT = RNG.integers(0, 290, (2, 8)), RNG.normal(size=(2, 8, 16)).astype(np.float32)
X, T = RNG.normal(size=(2, 8, 8, 4)).astype(np.float32), np.array([5, 700])


@jax.jit
def outputs(params, tree=None):
    """What the UNet and the text tower compute, with factors beside their layers if there are any."""
    more = lambda part: {} if tree is None else {"changes": changes(CHOSEN, tree, part)}
    apply = lambda network, part, *args: network.apply({"params": params[part]} | more(part), *args)
    return apply(UNet(TINY.unet), "unet", X, T, CONTEXT), apply(TextTower(TINY.text), "text", IDS)


@pytest.mark.parametrize("kind", KINDS)
def test_networks_with_factors_are_those_with_merged_weights(kind):
    """The UNet and the text tower, all layers; the merge is checked against formulas in tests/adapters/test_lora.py."""
    _, tree = trained(SD, kind)
    merged = merge(SD, [Added(as_file(SD, CHOSEN, tree, "x"), 1.0, 1.0)])
    before, wanted = outputs(SD.params), outputs(merged.params)
    begun = outputs(SD.params, initial_tree(kind, CHOSEN, RANK, 0, SD.params))
    for found, want, plain, first in zip(outputs(SD.params, tree), wanted, before, begun, strict=True):
        assert np.abs(found - want).max() < 1e-4 * np.abs(want - plain).max()
        np.testing.assert_allclose(first, plain, atol=2e-5)
    off = {part: {name: {k: 1.1 * v for k, v in f.items()} for name, f in own.items()} for part, own in tree.items()}
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(outputs(SD.params, off), wanted, strict=True))


@pytest.mark.parametrize("enlarge, stride", [(False, 1), (False, 2), (True, 1)])
def test_a_convolution_with_a_narrow_path(enlarge, stride):
    """Also where a function stands before it, as a norm does, and where it doubles the sides."""
    (site,) = [
        s for s in chosen_sites(LIKE_SD15, "all", ALPHA, ("unet",)) if s.layer.name.endswith("0.resnets.0.conv1")
    ][:1]
    rng = np.random.default_rng(0)
    f = {"down": rng.normal(size=(RANK, 16, 3, 3)), "up": rng.normal(size=(16, RANK, 1, 1))}
    f = {name: value.astype(np.float32) for name, value in f.items()}
    layer = conv3x3(16, None, jnp.float32, stride=stride, enlarge=enlarge)
    x, kernel = rng.normal(size=(2, 8, 8, 16)).astype(np.float32), rng.normal(size=(3, 3, 16, 16)).astype(np.float32)
    params = {"kernel": kernel, "bias": rng.normal(size=16).astype(np.float32)}
    change = ALPHA / RANK * np.einsum("rikl,or->klio", f["down"], f["up"][..., 0, 0])
    call = lambda variables, *rest: layer.apply(variables, x, *rest, method=lambda m, x, *r: m.of(16)(x, *r))
    more = (None,) if enlarge else (jax.nn.silu,)
    found = call({"params": params, "changes": {"change": Trained(f, None, site)}}, *more)
    np.testing.assert_allclose(found, call({"params": params | {"kernel": kernel + change}}, *more), atol=1e-3)


def test_dropout_is_of_the_example():
    """On average it is none, and an example's draws do not depend on the others of its batch."""
    site = chosen_sites(LIKE_SD15, "attention", ALPHA, ("unet",))[0]
    out, wide = site.shape
    rng = np.random.default_rng(0)
    f = {"down": rng.normal(size=(RANK, wide)), "up": rng.normal(size=(out, RANK))}
    f = {name: jnp.asarray(value, jnp.float32) for name, value in f.items()}
    x = jnp.asarray(rng.normal(size=(1, 5, wide)), jnp.float32).repeat(400, 0)
    params, keys = {"kernel": jnp.zeros((wide, out))}, jax.random.split(jax.random.key(0), 400)
    call = lambda keys, x: Dense(out, jnp.float32, False).apply(
        {"params": params, "changes": {"change": Trained(f, keys, site, 0.25)}}, x
    )
    whole = call(None, x)
    found = call(keys, x)
    np.testing.assert_allclose(found[7:9], call(keys[7:9], x[:2]), atol=1e-5)
    assert np.abs(found - whole).max() > 0.1 * np.abs(whole).max()
    assert np.abs(found.mean(0) - whole[0]).max() < 0.15 * np.abs(whole).max()


def test_targets():
    """kohya's own counts of SD 1: 192 and 72 layers; attention is q, k, v and out of each."""
    from sdjax.families.sd import SD15

    count = lambda config, targets, *parts: len(chosen_sites(config, targets, 1, parts))
    assert [count(SD15, "linear", part) for part in PARTS] == [192, 72]
    assert count(SD15, "attention", "unet") == 16 * 8 and count(SD15, "attention", "text") == 12 * 4
    names = {site.layer.name for site in chosen_sites(SD15, "all", 1, ("unet",))}
    assert {"down_blocks.0.downsamplers.0.conv", "mid_block.resnets.0.time_emb_proj"} <= names
    assert "conv_in" not in names and "time_embedding.linear_1" not in names
    assert {*TARGETS} == {"attention", "linear", "all"}


# ---- files


@pytest.mark.parametrize("name, kind", [("sd2", "locon"), *(("sdxl-2", kind) for kind in KINDS)])
def test_both_files_are_the_formula(tmp_path, name, kind):
    sd = model(MODELS[name])
    parts = ("unet", "text") if sd.config.text_2 is None else ("unet", "text", "text_2")
    chosen, tree = trained(sd, kind, parts=parts)
    path = write_lora(tmp_path / "export", "style", sd, chosen, tree, {"network_dim": "3"})
    assert [p.name for p in (tmp_path / "export").glob("*.safetensors")] == ["style.safetensors"] and path.is_file()
    wanted = expected(sd, [(by_site(sd.config, tree), 1, 1)])
    for source in (path, tmp_path / "export" / "diffusers"):
        found = flatten_dict(sdjax.add_lora(sd, source).params)
        worst = max(np.abs(np.asarray(found[key], np.float64) - value).max() for key, value in wanted.items())
        assert worst < 1e-5, (source, worst)
    changed = sum(bool((value != np.asarray(flatten_dict(sd.params)[key])).any()) for key, value in wanted.items())
    assert changed == len(chosen)


def test_the_header_and_the_names(tmp_path):
    from safetensors import safe_open

    sd = model(SDXL)
    chosen, tree = trained(sd, "lora", "attention", ("unet", "text", "text_2"))
    path = write_lora(tmp_path, "style", sd, chosen, tree, {"network_dim": "3", "network_args": {"algo": "lora"}})
    with safe_open(path, "numpy") as file:
        said, names = file.metadata(), {*file.keys()}
    assert said["ss_output_name"] == "style" and said["ss_network_args"] == '{"algo": "lora"}'
    assert len(said["sshs_model_hash"]) == 64
    from sdjax.weights.hashes import lora_hash

    assert said["sshs_model_hash"].startswith(lora_hash(path))
    begins = (
        "lora_unet_input_blocks_",
        "lora_unet_middle_block_",
        "lora_unet_output_blocks_",
        "lora_te1_",
        "lora_te2_",
    )
    assert all(name.startswith(begins) for name in names) and len(names) == 3 * len(chosen)
    assert all(any(name.startswith(begin) for name in names) for begin in begins)
    assert all(
        name.startswith(("lora_unet_", "lora_te_"))
        for name in kohya_tensors(LIKE_SD15, *trained(model(LIKE_SD15), "lora"))
    )


@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_on_from_a_file(tmp_path, kind):
    sd = model(LIKE_SD15)
    chosen, tree = trained(sd, kind)
    path = write_lora(tmp_path, "style", sd, chosen, tree, {})
    found, again = read_init(sd, path, kind, PARTS)
    assert {site.layer.name: site.alpha for site in found} == {site.layer.name: ALPHA for site in chosen}
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    other = "loha" if kind != "loha" else "lora"
    with pytest.raises(
        SdjaxError, match=rf"init .*style.safetensors: .* is {'lo' if kind != 'dora' else 'dora'}.*`kind` is {other}"
    ):
        read_init(sd, path, other, PARTS)
    with pytest.raises(SdjaxError, match="changes the text tower too; give `text_learning_rate`"):
        read_init(sd, path, kind, ("unet",))


# ---- batches with a prior


class Rows:
    """Stands for a Table: a batch that says where its examples are from."""

    def __init__(self, number):
        self.number, self.files = number, [f"{number}-{i}" for i in range(100)]

    def batch(self, chosen, index):
        from sdjax.types import Batch

        return Batch(np.full(len(chosen.rows), self.number), None, index, np.asarray(chosen.rows))


def test_half_of_a_batch_is_the_prior(place):
    from sdjax.commands.train_lora import Options
    from sdjax.training.pictures import Prior, Stream

    class Source:
        groups = (range(7),)
        repeated = staticmethod(np.asarray)

    options = Options(place / "pictures", place / "out", batch_size=8, prior=place / "pictures", prior_weight=0.5)
    stream = Stream(options, Rows(0), [np.arange(20)], Rows(1), Prior(Source(), 0.5))
    seen = [stream.batch(step) for step in range(10)]
    for batch in seen:
        np.testing.assert_array_equal(batch.moments, [0, 1] * 4)
        np.testing.assert_array_equal(batch.weight, [2, 1] * 4)
        losses = np.arange(8.0)
        assert (batch.weight * losses).mean() == losses[::2].mean() + 0.5 * losses[1::2].mean()
        assert batch.context is None and (np.diff(batch.index) == 1).all()
    own = np.concatenate([batch.given[::2] for batch in seen[:5]])
    assert sorted(own) == list(range(20))
    assert len(stream.names(0)) == 8 and isinstance(stream.choose(0), Chosen)


def test_a_rate_of_its_own_for_text_towers(place):
    from sdjax.commands.train_lora import Options

    plain = Options(place / "pictures", place / "out", learning_rate=1e-2)
    own = replace(plain, text_learning_rate=1e-3)
    params = {"unet": {"a": jnp.ones(3)}, "text": {"a": jnp.ones(3)}}
    updates = []
    for options in (plain, own):
        optimizer, _ = options.make_optimizer()
        updates.append(optimizer.update(params, optimizer.init(params), params)[0])
    np.testing.assert_array_equal(updates[0]["unet"]["a"], updates[1]["unet"]["a"])
    np.testing.assert_allclose(updates[0]["text"]["a"] * 0.1, updates[1]["text"]["a"], rtol=1e-6)


def test_sdxl_s_models_have_what_they_need():
    for config in (SDXL, XL):
        assert chosen_sites(config, "attention", 1, ("unet", "text", "text_2"))
