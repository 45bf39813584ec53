"""Tasks with ControlNets and T2I-Adapters: what is the same, what is refused, and that nothing is compiled again."""

import logging
from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest
from PIL import Image

import sdjax
from sdjax.errors import SdjaxError
from sdjax.model.control import Control, soft_weights
from sdjax.networks.control.config import ControlConfig
from sdjax.networks.t2i.config import AdapterConfig
from sdjax.tasks.options import TaskOptions
from sdjax.tasks.plans import plan_of
from sdjax.tasks.request_control import AskedControl, weights_of
from tests import kinds
from tests.narrow import random_params
from tests.tasks.test_generate import compilations
from tests.tiny import tiny

pytestmark = pytest.mark.usefixtures("quick_compile")

PICTURE = Image.fromarray((np.random.default_rng(0).uniform(size=(16, 16, 3)) * 255).astype(np.uint8))
OTHER = Image.fromarray(255 - np.asarray(PICTURE))


@cache
def net(seed: int = 0, **changes) -> Control:
    config = replace(ControlConfig(tiny().config.unet, (4, 6)), **changes)
    return Control(config, jax.tree.map(lambda leaf: 4 * leaf, random_params(config, seed)))


@cache
def adapter(kind: str = "full_adapter") -> Control:
    config = AdapterConfig(kind, channels=tiny().config.unet.channels, unshuffle=2)
    return Control(config, jax.tree.map(lambda leaf: 4 * leaf, random_params(config)))


def make(**options) -> np.ndarray:
    settings = {"steps": 5, "guidance_scale": 3.0, "output": "latents", "seed": 1} | options
    return sdjax.txt2img(tiny(), "cat", **settings)


def steered(**options) -> np.ndarray:
    return make(**{"control": net(), "control_image": PICTURE} | options)


def apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


@pytest.mark.parametrize("control", [net, adapter], ids=["ControlNet", "T2I-Adapter"])
def test_what_is_the_same(control):
    plain, found = make(), steered(control=control())
    assert apart(plain, found) > 1e-3
    assert apart(plain, steered(control=control(), control_scale=0)) < 1e-6
    assert apart(plain, steered(control=control(), control_interval=(0.5, 0.6))) < 1e-6, "no step is inside"
    assert apart(found, steered(control=control(), control_scale=[1.0] * control().config.residuals)) < 1e-5
    assert apart(found, steered(control=control(), control_interval=(0.0, 0.4))) > 1e-4
    broken = replace(control(), params=jax.tree.map(lambda leaf: leaf * np.nan, control().params))
    if control is net:  # its network does not run where it is off
        assert apart(plain, steered(control=broken, control_interval=(0.5, 0.6))) < 1e-6
        assert apart(plain, steered(control=broken, control_scale=0)) < 1e-6
    told = steered(control=control(), progress=lambda *_: None, control_interval=(0.2, 0.8))
    assert apart(told, steered(control=control(), control_interval=(0.2, 0.8))) < 1e-4, "a row at a time"


def test_an_interval_that_holds_no_step_is_told(caplog):
    with caplog.at_level(logging.WARNING, "sdjax"):
        steered(control_interval=(0.2, 0.8))
        assert not [line for line in caplog.messages if "control" in line]
        steered(control_interval=(0.5, 0.6), num_images=2)
    said = "control_interval 0.5 0.6: holds none of 5 steps, the control has no effect"
    assert [line for line in caplog.messages if "control" in line] == [said]


def test_several():
    """A list of controls is their sum, a picture for each image is its own, and an image is itself in any batch."""
    both = {"control": [net(), net(1)], "control_image": [PICTURE, OTHER]}
    assert apart(make(**both, control_scale=[1.0, 0.0]), steered()) < 1e-5
    assert (
        apart(make(**both, control_scale=[0.0, 0.5]), make(control=net(1), control_image=OTHER, control_scale=0.5))
        < 1e-5
    )
    assert apart(make(control=[net(), adapter()], control_image=[PICTURE, PICTURE]), steered()) > 1e-3
    two = make(num_images=2, control=net(), control_image=[PICTURE, OTHER])
    np.testing.assert_allclose(two[:1], steered(), atol=1e-4)
    np.testing.assert_allclose(two[1:], steered(control_image=OTHER, seed=2), atol=1e-4)


def test_pictures_of_all_kinds():
    array = np.asarray(PICTURE)
    for same in (array, array.astype(np.float32) / 255, array[None], [array], PICTURE.convert("RGBA")):
        np.testing.assert_allclose(steered(control_image=same), steered(), atol=1e-5)
    large = PICTURE.resize((32, 24))
    assert steered(control_image=large).shape == steered().shape


def test_modes():
    plain, found = make(), {mode: steered(control_mode=mode) for mode in ("balanced", "prompt", "control")}
    everything = [plain, *found.values()]
    assert all(apart(a, b) > 1e-5 for i, a in enumerate(everything) for b in everything[:i])
    unguided = steered(control_mode="prompt", guidance_scale=1.0)
    np.testing.assert_allclose(steered(control_mode="control", guidance_scale=1.0), unguided, atol=1e-5)
    soft = soft_weights(net().config)
    assert len(soft) == net().config.residuals and np.isclose(soft[0], 0.1) and soft[-1] == 1
    twelve = soft_weights(ControlConfig())
    assert np.abs(twelve / 0.825 ** np.arange(12.0, -1, -1) - 1).max() < 0.007
    assert [*soft_weights(AdapterConfig())] == [0.25, 0.62, 0.825, 1.0]


def asked(interval: tuple[float, float]) -> AskedControl:
    return AskedControl(net(), np.zeros((1, 16, 16, 3)), np.ones(3), interval, False)


def steps_on(
    interval: tuple[float, float], steps: int, strength: float | None = None, sampler: str = "ddim"
) -> list[int]:
    plan = plan_of(tiny(), TaskOptions(steps=steps, sampler=sampler), strength)
    table = weights_of(asked(interval), plan)
    assert table.shape == (len(plan.levels), 3) and set(np.unique(table)) <= {0, 1}
    return np.flatnonzero(table[:, 0]).tolist()


def test_intervals():
    """diffusers' rule, in float64: 3/10 is at most 0.3, and step 6 of 10 ends at 0.7."""
    assert steps_on((0, 1), 10) == [*range(10)]
    assert steps_on((0.3, 0.7), 10) == [3, 4, 5, 6]
    assert steps_on((0.31, 0.69), 10) == [4, 5]
    assert steps_on((0.0, 0.3), 10) == [0, 1, 2], "webui would walk one more"
    assert steps_on((0.0, 0.5), 10, 0.4) == [6, 7], "of the four steps that run"
    assert steps_on((0.0, 0.5), 10, 0.4, "heun") == [6, 7], "steps are counted, not evaluations"
    assert steps_on((0.0, 0.5), 10, 0.4, "plms") == [6, 7]
    for steps in range(1, 60):
        want = [i for i in range(steps) if not (i / steps < 0.2 or (i + 1) / steps > 0.8)]
        assert steps_on((0.2, 0.8), steps) == want


def test_nothing_recompiles():
    both = {"control": [net(), adapter()], "control_image": [PICTURE, PICTURE]}
    others = {"control": [net(1), adapter()], "control_image": [OTHER, PICTURE]}
    make(**both)
    with compilations() as count:
        make(**both, control_scale=[0.3, 2.0])
        make(**both, control_scale=[[0.1] * net().config.residuals, [0.2, 0.3]])
        make(**both, control_interval=(0.2, 0.7))
        make(**both, control_interval=[(0, 0.5), (0.5, 1)], seed=5, guidance_scale=1.0)
        make(**both, control_mode="prompt")
        make(**both | others, steps=7, sampler="heun")
        assert not count


def test_other_tasks():
    """A control moves them. (A scale of 0 is no control: above.)"""
    pixels = np.random.default_rng(2).uniform(-1, 1, (16, 16, 3)).astype(np.float32)
    mask = np.zeros((16, 16), np.float32)
    mask[4:12, 4:12] = 1
    settings = {"steps": 4, "output": "latents", "guidance_scale": 3.0}
    control = {"control": net(), "control_image": PICTURE}
    for sd, task, arguments in (
        (tiny(), sdjax.img2img, (pixels,)),
        (tiny(), sdjax.inpaint, (pixels, mask)),
        (tiny(9), sdjax.inpaint, (pixels, mask)),
        (tiny(), sdjax.hires, (1.5,)),
    ):
        off, found = (task(sd, "cat", *arguments, **settings, **control, control_scale=scale) for scale in (0.0, 1.0))
        assert apart(off, found) > 1e-3


def test_a_model_of_sdxl():
    sd = kinds.model(kinds.SDXL)
    config = ControlConfig(sd.config.unet, (4, 6))
    control = Control(config, jax.tree.map(lambda leaf: 4 * leaf, random_params(config)))
    settings = {"steps": 3, "output": "latents"}
    plain = sdjax.txt2img(sd, "cat", **settings)
    found = sdjax.txt2img(sd, "cat", **settings, control=control, control_image=PICTURE, control_interval=(0, 0.7))
    assert apart(plain, found) > 1e-4


FLOATS = np.asarray(PICTURE, np.float32)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"control_scale": 0.5}, "control_scale: needs a control"),
        ({"control_image": PICTURE}, "control_image: needs a control"),
        ({"control": "canny.pth", "control_image": PICTURE}, "control is str: what sdjax.load_control gives"),
        ({"control": net()}, "control_image None"),
        ({"control": net(), "control_image": "p.png"}, "control_image is str"),
        ({"control": net(), "control_image": FLOATS}, "control_image has values from"),
        (
            {"control": net(), "control_image": FLOATS / 127.5 - 1},
            r"control_image has values from -.*floats in \[0, 1\]",
        ),
        ({"control": net(), "control_image": FLOATS.astype(np.int32)}, "control_image is int32"),
        ({"control": net(), "control_image": np.zeros((16, 16, 4), np.uint8)}, "control_image of shape"),
        ({"control": net(), "control_image": [PICTURE] * 3}, "control_image: 3 for 1 pictures"),
        ({"control": [net()] * 2, "control_image": PICTURE}, "control_image: one for 2 controls"),
        ({"control": [net()] * 2, "control_image": [PICTURE]}, "control_image: 1 for 2 controls"),
        ({"control": net(), "control_image": PICTURE, "control_scale": "x"}, "control_scale 'x'"),
        (
            {"control": net(), "control_image": PICTURE, "control_scale": [1, 2]},
            r"control_scale \[1, 2\]: a number, or",
        ),
        ({"control": net(), "control_image": PICTURE, "control_interval": (0.5, 0.2)}, "control_interval"),
        ({"control": net(), "control_image": PICTURE, "control_interval": (0, 2)}, "control_interval"),
        ({"control": net(), "control_image": PICTURE, "control_mode": "promt"}, "control_mode 'promt'.*prompt"),
        ({"control": net(hint=(4, 6, 8)), "control_image": PICTURE}, "control: makes 1 latent of 4 pixels"),
        ({"control": adapter(), "control_image": PICTURE, "height": 17}, "height"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_what_is_refused(options, said):
    with pytest.raises(SdjaxError, match=said) as refused:
        make(**options)
    assert "\n" not in str(refused.value)


def test_controls_of_other_models_are_refused():
    unet = tiny().config.unet
    for changes, said in (
        ({"channels": (8, 24)}, "channels"),
        ({"blocks": 2}, "blocks"),
        ({"context_dim": 12}, "context of width 12"),
        ({"vector": 7}, "vector of width 7"),
        ({"in_channels": 5}, "takes 5 channels"),
    ):
        config = ControlConfig(replace(unet, **changes), (4, 6))
        with pytest.raises(SdjaxError, match=f"control: .*{said}"):
            make(control=Control(config, {}), control_image=PICTURE)
    with pytest.raises(SdjaxError, match="features of"):
        make(control=Control(AdapterConfig(channels=(8, 16, 16), unshuffle=2), {}), control_image=PICTURE)


def test_repr():
    assert repr(net()).startswith("<Control ControlNet: ") and "float32" in repr(adapter())
