"""Models of layouts, maps, maps with text, and nothing: encoded, drawn, saved and read; what they refuse."""

import jax
import numpy as np
import pytest

import sdjax
from sdjax.errors import SdjaxError
from sdjax.families.ldm import BEDS256, CELEBA256, CHURCHES256, FFHQ256, LAYOUT2IMG, SEMANTIC256, SEMANTIC512
from sdjax.networks.table import param_shapes
from sdjax.types import Cond
from sdjax.weights import single
from tests.kinds import CLASSES, KINDS, LAYOUT, MAP, PLAIN, TEXT_MAP, model
from tests.narrow import file_tensors

pytestmark = pytest.mark.usefixtures("quick_compile")

FEW = {"steps": 3, "output": "latents"}
BOXES = [[(1, 0.0, 0.25, 0.5, 1.0)], [(0, 0.5, 0.0, 1.0, 0.5), (3, 0.0, 0.5, 0.5, 1.0)]]
IDS = np.arange(512).reshape(2, 16, 16) // 50 % 5


def asked(config):
    """What two pictures of a model are asked for."""
    sd = model(config)
    if config.class_table:
        return sdjax.encode_classes(sd, [1, 4])
    if config.layout:
        return sdjax.encode_layout(sd, BOXES)
    return sdjax.encode_map(sd, IDS) if config.map else None


def draw(config, prompt, **options):
    many = {"num_images": 2} if prompt is None else {}
    return sdjax.txt2img(model(config), prompt, **FEW | many | options)


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_follow_what_is_asked_for_and_depend_on_nothing_else(kind):
    config = KINDS[kind]
    cond = asked(config)
    both = draw(config, cond)
    assert both.shape == (2, 8, 8, config.vae.latent_channels) and np.isfinite(both).all()
    second = cond if cond is None else jax.tree.map(lambda leaf: leaf[1:], cond)
    alone = draw(config, second, seed=1, num_images=1)
    np.testing.assert_allclose(alone[0], both[1], atol=1e-5)
    if cond is not None:
        swapped = draw(config, jax.tree.map(lambda leaf: leaf[::-1], cond))
        assert np.abs(swapped - both).max() > 1e-3
    x = np.ones((2, 8, 8, config.vae.latent_channels), np.float32)
    if config.text is None:
        walk = sdjax.txt2img(
            model(config),
            cond,
            **FEW | {"output": "trajectory", "guidance_scale": 1.0},
            num_images=2 if cond is None else 1,
        )
        t = float(sdjax.sampling.sigma_to_t(sdjax.sampling.make_schedule(config.schedule), walk.sigma[1]))
        predicted = sdjax.predict(model(config), walk.x[1], t, cond or Cond())
        np.testing.assert_allclose(walk.x0[1], sdjax.sampling.v_to_x0(walk.x[1], predicted, walk.sigma[1]), atol=1e-3)
    picture = np.zeros((16, 16, 3), np.float32)
    again = sdjax.img2img(model(config), second, picture, strength=0.7, **FEW)
    assert again.shape == x[:1].shape
    hole = sdjax.inpaint(model(config), second, picture, np.eye(16), **FEW)
    assert hole.shape == x[:1].shape and np.isfinite(hole).all()


def test_text_beside_a_map():
    sd, maps = model(TEXT_MAP), sdjax.encode_map(model(TEXT_MAP), IDS[:1])
    texts = sdjax.encode_prompt(sd, "cat") | maps
    assert np.abs(draw(TEXT_MAP, texts) - draw(TEXT_MAP, maps)).max() > 1e-3
    empty = draw(TEXT_MAP, sdjax.encode_prompt(sd, "") | maps)
    np.testing.assert_array_equal(draw(TEXT_MAP, maps), empty)  # without a context it is the empty prompt's
    assert np.abs(draw(TEXT_MAP, texts, negative_prompt="dog") - draw(TEXT_MAP, texts)).max() > 1e-3
    with pytest.raises(SdjaxError, match="sd tiny-text-map: takes a map, give a Cond, as sdjax"):
        draw(TEXT_MAP, "cat")
    with pytest.raises(SdjaxError, match="concat: both Conds have it"):
        maps | maps


def test_the_empty_layout_is_the_null():
    cond, null = asked(LAYOUT), sdjax.encode_layout(model(LAYOUT), [[]])
    want = draw(LAYOUT, cond, negative_prompt=null, guidance_scale=3.0)
    np.testing.assert_array_equal(draw(LAYOUT, cond), want)
    outside = sdjax.encode_layout(model(LAYOUT), BOXES[:1], crop=(0.6, 0.0, 1.0, 0.2))
    assert outside.context.shape == (1, 11, 16)
    np.testing.assert_array_equal(
        outside.context, sdjax.encode_layout(model(LAYOUT), [[]], crop=(0.6, 0.0, 1.0, 0.2)).context
    )


@pytest.mark.parametrize("kind", KINDS)
def test_files_both_ways(kind, tmp_path, monkeypatch):
    config = KINDS[kind]
    sd = model(config)
    monkeypatch.setattr(single, "CANDIDATES", tuple(KINDS.values()))
    if config.text is None:  # these letters are no tokenizer that could be written
        sdjax.save(sd, tmp_path / "folder")
        found = sdjax.load(tmp_path / "folder")
        assert found.config == config and found.config.guidance_scale == config.guidance_scale
        assert found.config.size == config.size and found.config.null == config.null
        assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), found.params, sd.params))
    sdjax.save(sd, tmp_path / "one.safetensors")
    found = sdjax.load(tmp_path / "one.safetensors")
    assert found.config == config and found.config.name == config.name
    assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), found.params, sd.params))


layout = lambda *boxes, **options: lambda: sdjax.encode_layout(model(LAYOUT), list(boxes), **options)


@pytest.mark.parametrize(
    "call, match",
    [
        (layout([(4, 0, 0, 1, 1)]), r"layouts\[0\]\[0\]: label 4, a whole number from 0 to 3 expected"),
        (layout([(1.0, 0, 0, 1, 1)]), "label 1.0, a whole number"),
        (layout([], [(1, 0, 0, 1, 1.5)]), r"layouts\[1\]\[0\]: box \(0, 0, 1, 1.5\), .* in \[0, 1\] expected"),
        (layout([(1, 0.5, 0, 0.5, 1)]), "x0 < x1 and y0 < y1"),
        (layout([(1, 0, 0, 1)]), r"\(label, x0, y0, x1, y1\) expected"),
        (layout([(1, 0, 0, 1, 1)] * 4), r"layouts\[0\]: 4 objects in the crop, at most 3"),
        (layout([], crop=(0, 0, 2, 1)), r"crop: box \(0, 0, 2, 1\)"),
        (lambda: sdjax.encode_layout(model(LAYOUT), "boxes"), "layouts 'boxes': a list with the objects"),
        (lambda: sdjax.encode_layout(model(MAP), [[]]), "layouts: tiny-map takes none"),
        (lambda: sdjax.encode_map(model(MAP), IDS + 1), "maps: id 5, 0 to 4 expected for tiny-map"),
        (lambda: sdjax.encode_map(model(MAP), IDS - 1), "maps: id -1"),
        (lambda: sdjax.encode_map(model(MAP), IDS * 1.0), "maps are float64: whole numbers"),
        (lambda: sdjax.encode_map(model(MAP), IDS[:, :15]), r"maps of shape \[2, 15, 16\]: .* multiples of 2"),
        (
            lambda: sdjax.encode_map(model(MAP), [[1, 2], [3]]),
            "maps is list: an array, or lists of one length, expected",
        ),
        (lambda: sdjax.encode_map("emoji", IDS), "sd is str: a model, as sdjax.load gives it, expected"),
        (lambda: sdjax.encode_layout("emoji", [[]]), "sd is str: a model"),
        (lambda: sdjax.encode_map(model(LAYOUT), IDS), "maps: tiny-layout takes none"),
        (lambda: draw(MAP, asked(MAP), height=32), "height 32: the channels of prompt.concat are of 16 pixels"),
        (lambda: draw(MAP, None), "sd tiny-map: takes a map, give a Cond, as sdjax.encode_map"),
        (lambda: draw(MAP, Cond()), "sd tiny-map: takes a map"),
        (lambda: draw(MAP, asked(MAP), guidance_scale=2.0), "guidance_scale: tiny-map has no null"),
        (lambda: draw(PLAIN, None, guidance_scale=2.0), "guidance_scale: tiny-nothing has no null"),
        (lambda: draw(PLAIN, "cat"), r"prompt \['cat'\]: tiny-nothing takes no text, give None"),
        (lambda: draw(PLAIN, None, negative_prompt="cat"), "negative_prompt 'cat': tiny-nothing takes no text"),
        (lambda: draw(PLAIN, asked(CLASSES)), r"prompt.context has shape \[2, 1, 16\]: tiny-nothing takes none"),
        (lambda: draw(CLASSES, None), "prompt None: tiny-classes takes a Cond, as sdjax.encode_classes"),
        (lambda: sdjax.hires(model(MAP), asked(MAP), steps=3), "sd tiny-map: takes a map beside x, hires does not"),
    ],
)
def test_refusals(call, match):
    with pytest.raises(SdjaxError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


COUNTS = {
    LAYOUT2IMG: (246_277_379, 55_322_782, 58_858_496),
    SEMANTIC256: (215_229_315, 55_322_782, 546),
    CELEBA256: (274_056_163, 55_322_782, 0),
    CHURCHES256: (294_966_916, 83_653_863, 0),
}


@pytest.mark.parametrize("config", COUNTS, ids=lambda config: config.name)
def test_published_models_have_the_published_numbers_of_parameters(config):
    count = lambda part: 0 if part is None else sum(leaf.size for leaf in jax.tree.leaves(param_shapes(part)))
    assert (count(config.unet), count(config.vae), count(config.layout or config.map)) == COUNTS[config]


def test_published_models_are_recognised_or_their_names_asked_for():
    for config in (LAYOUT2IMG, CHURCHES256):
        assert single.detect(file_tensors(config)) == config
    for twins in ((SEMANTIC256, SEMANTIC512), (CELEBA256, FFHQ256, BEDS256)):
        names = " or ".join(config.name for config in twins)
        with pytest.raises(SdjaxError, match=f"its tensors are those of {names}; `config` says which one it is"):
            single.detect(file_tensors(twins[0]))
        for config in twins:
            assert single.named_config(config.name.upper().replace("-", "_")) is config
