"""Models that take a depth map, a small picture, or LDM's mask beside x: drawn, in tiles, and what they refuse."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import sdjax
from sdjax.errors import SdjaxError
from sdjax.families.ldm import BSR_SR, INPAINTING_BIG, TEXT2IMG256, TEXT2IMG_LARGE
from sdjax.families.sd2 import SD2_DEPTH, SD21_UNCLIP_H, SD21_UNCLIP_L, SD_IMAGE_VARIATIONS, X4_UPSCALER
from sdjax.networks.table import param_shapes
from sdjax.nn.tiles import places
from sdjax.tasks import stages
from sdjax.types import Cond
from sdjax.weights import single
from tests.kinds import DEPTH, INPAINT, MAP, SR, UNCLIP, VARIATIONS, X4, model
from tests.narrow import file_tensors

pytestmark = pytest.mark.usefixtures("quick_compile")

FEW = {"steps": 3, "output": "latents"}
RNG = np.random.default_rng(0)
SMALL = RNG.uniform(-1, 1, (2, 8, 12, 3)).astype(np.float32)
PICTURES = RNG.uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)


def test_depth_is_stretched_map_by_map_whatever_its_scale():
    sd = model(DEPTH)
    maps = RNG.uniform(size=(2, 40, 50))
    cond = sdjax.encode_depth(sd, maps, 16, 16)
    assert cond.concat.shape == (2, 8, 8, 1) and cond.context is None
    np.testing.assert_allclose(cond.concat.min((1, 2, 3)), -1) and np.testing.assert_allclose(cond.concat.max(), 1)
    np.testing.assert_allclose(sdjax.encode_depth(sd, 7 + 300 * maps, 16, 16).concat, cond.concat, atol=1e-5)
    assert sdjax.encode_depth(sd, maps).concat.shape == (2, 20, 24, 1)
    assert (sdjax.encode_depth(sd, np.full((8, 8), 3)).concat == -1).all()
    pictures = sdjax.txt2img(sd, sdjax.encode_prompt(sd, ["cat", "dog"]) | cond, **FEW)
    assert pictures.shape == (2, 8, 8, 4)
    again = sdjax.img2img(
        sd, sdjax.encode_prompt(sd, "cat") | cond._replace(concat=cond.concat[:1]), PICTURES[0], **FEW
    )
    assert np.isfinite(again).all()


def test_upscale_draws_its_small_picture_s_noise_from_seed_plus_i():
    sd = model(X4)
    both = sdjax.upscale(sd, ["cat", "dog"], SMALL, 50, seed=4, **FEW)
    assert both.shape == (2, 8, 12, 4)
    alone = sdjax.upscale(sd, "dog", SMALL[1], 50, seed=5, **FEW)
    np.testing.assert_allclose(alone[0], both[1], atol=1e-5)
    many = sdjax.upscale(sd, "dog", SMALL[1], 50, seed=4, num_images=2, **FEW)
    np.testing.assert_allclose(many[1], both[1], atol=1e-5)
    assert np.abs(sdjax.upscale(sd, "dog", SMALL[1], 0, seed=5, **FEW) - alone).max() > 1e-3
    cond = sdjax.encode_prompt(sd, "dog") | sdjax.encode_lowres(sd, SMALL[1:], 50, seed=5)
    assert cond.vector.tolist() == [[50.0]]
    np.testing.assert_allclose(sdjax.txt2img(sd, cond, seed=5, **FEW), alone, atol=1e-5)


def in_tiles_of(tile, monkeypatch, picture, **options):
    """A picture enlarged with tiles of this side, which is compiled in."""
    stages.walk.clear_cache()
    monkeypatch.setattr(stages, "TILE", tile)
    monkeypatch.setattr(stages, "OVERLAP", tile // 2)
    found = sdjax.upscale(model(SR), None, picture, **FEW | options)
    stages.walk.clear_cache()
    return found


def test_large_pictures_go_in_tiles(monkeypatch):
    """One tile that holds the picture changes nothing; several have no seams."""
    whole = sdjax.upscale(model(SR), None, SMALL[:1], **FEW)
    np.testing.assert_array_equal(in_tiles_of(12, monkeypatch, SMALL[:1]), whole)
    assert np.abs(in_tiles_of(8, monkeypatch, SMALL[:1]) - whole).max() > 1e-4
    slope = np.linspace(-1, 1, 48, dtype=np.float32)[:, None, None] * np.ones((48, 40, 3), np.float32)
    found = in_tiles_of(24, monkeypatch, slope, steps=4, latents=np.zeros((1, 48, 40, 3), np.float32))[0]
    jumps = np.abs(np.diff(found, axis=0)).max((1, 2))
    seams = [edge + side for edge in (12, 24, 36) for side in (-1, 0)]  # where tiles begin and end
    elsewhere = [row for row in range(3, 44) if row not in seams]
    assert jumps[seams].max() <= jumps[elsewhere].max()


@pytest.mark.slow
def test_512_pixels_become_2048_without_seams():
    """The published tiles, 128 with an overlap of at least 64, on a smooth picture: no step across a seam is larger."""
    config = replace(SR, vae=replace(SR.vae, channels=(8, 8, 8)))
    slope = np.linspace(-1, 1, 512, dtype=np.float32)
    picture = np.stack([slope[:, None] * np.ones(512, np.float32), slope * np.ones((512, 1), np.float32)] * 2, -1)[
        ..., :3
    ]
    start = {"latents": np.zeros((1, 512, 512, 3), np.float32), "eta": 0.0}
    found = sdjax.upscale(model(config), None, picture, steps=4, output="latents", **start)[0]
    ends = {start + side for start in places(512, stages.TILE, stages.OVERLAP) for side in (0, stages.TILE)}
    for axis in (0, 1):
        jumps = np.abs(np.diff(found, axis=axis)).max((1 - axis, 2))
        seams = sorted({edge + side for edge in ends for side in (-1, 0)} & set(range(8, 503)))
        elsewhere = [row for row in range(8, 503) if row not in seams]
        assert len(seams) > 10 and jumps[seams].max() <= jumps[elsewhere].max()
    pixels = sdjax.upscale(model(config), None, picture, steps=2, output="pixels", **start)
    assert pixels.shape == (1, 2048, 2048, 3) and np.isfinite(pixels).all()


def test_ldm_s_mask_stands_behind_the_latents_in_its_own_range():
    sd = model(INPAINT)
    masks = np.zeros((2, 16, 16))
    masks[:, 4:11, 3:9] = 1
    cond = sdjax.encode_mask(sd, PICTURES, masks)
    assert cond.concat.shape == (2, 8, 8, 4) and set(np.unique(cond.concat[..., 3])) == {-1.0, 1.0}
    np.testing.assert_array_equal(cond.concat[..., 3] > 0, masks[:, ::2, ::2] > 0)
    hole = np.where(masks[..., None] > 0, -1, PICTURES).astype(np.float32)
    np.testing.assert_allclose(cond.concat[..., :3], sdjax.encode(sd, hole), atol=1e-6)
    want = sdjax.txt2img(sd, cond, **FEW)
    np.testing.assert_allclose(sdjax.inpaint(sd, None, PICTURES, masks, **FEW), want, atol=1e-5)
    pixels = sdjax.inpaint(sd, None, PICTURES, masks, steps=2, output="pixels")
    np.testing.assert_array_equal(pixels[masks == 0], PICTURES[masks == 0])


def test_pictures_as_vectors_and_as_contexts():
    sd, pictures = model(UNCLIP), [Image.fromarray(np.uint8(127.5 * (picture + 1))) for picture in PICTURES]
    cond = sdjax.encode_picture(sd, pictures, 200, seed=3)
    assert cond.vector.shape == (2, 12) and cond.context is None
    np.testing.assert_allclose(sdjax.encode_picture(sd, pictures[1], 200, seed=4).vector[0], cond.vector[1], atol=1e-5)
    both = sdjax.txt2img(sd, cond, **FEW)
    null = sdjax.encode_prompt(sd, "")._replace(vector=np.zeros((1, 12), np.float32))
    np.testing.assert_array_equal(sdjax.txt2img(sd, cond, negative_prompt=null, **FEW), both)
    with_text = sdjax.txt2img(sd, sdjax.encode_prompt(sd, ["cat", "dog"]) | cond, **FEW)
    assert np.abs(with_text - both).max() > 1e-4
    plain = sdjax.denoiser(sd, sdjax.encode_prompt(sd, ["", ""]) | cond, sdjax.encode_prompt(sd, ["", ""]), 3.0)
    assert np.isfinite(plain(np.ones((2, 8, 8, 4), np.float32), np.float32(2.0))).all()
    sd = model(VARIATIONS)
    cond = sdjax.encode_picture(sd, PICTURES)
    assert cond.context.shape == (2, 1, 6) and cond.vector is None
    want = sdjax.txt2img(sd, cond, negative_prompt=Cond(np.zeros((1, 1, 6), np.float32)), **FEW)
    np.testing.assert_array_equal(sdjax.txt2img(sd, cond, **FEW), want)


def test_mistakes_would_be_seen():
    """The order and the range of LDM's mask, and depth that is not stretched, move the prediction."""
    sd, masks = model(INPAINT), np.zeros((2, 16, 16))
    masks[:, :8] = 1
    right, x = sdjax.encode_mask(sd, PICTURES, masks).concat, np.ones((2, 8, 8, 3), np.float32)
    predict = lambda sd, x, concat, cond: np.asarray(sdjax.predict(sd, x, 500.0, cond._replace(concat=concat)))
    want = predict(sd, x, right, Cond())
    order = np.concatenate([right[..., 3:], right[..., :3]], -1)
    scale = np.concatenate([right[..., :3], (right[..., 3:] + 1) / 2], -1)
    for wrong in (order, scale):
        assert np.abs(predict(sd, x, wrong, Cond()) - want).max() > 1e-3 * np.abs(want).max()
    sd, depth = model(DEPTH), RNG.uniform(3, 4, (2, 16, 16))
    text, x = sdjax.encode_prompt(sd, ["cat", "dog"]), np.ones((2, 8, 8, 4), np.float32)
    want = predict(sd, x, sdjax.encode_depth(sd, depth).concat, text)
    plain = depth[:, ::2, ::2, None].astype(np.float32)
    assert np.abs(predict(sd, x, plain, text) - want).max() > 1e-3 * np.abs(want).max()


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda: sdjax.encode_depth(model(MAP), np.ones((8, 8))), "depth: tiny-map takes none"),
        (lambda: sdjax.encode_depth(model(DEPTH), np.ones((8, 8, 3, 1))), "depth is float64 of shape"),
        (lambda: sdjax.encode_depth(model(DEPTH), [[1, 2], [3]]), "depth is list: an array, or lists of one length"),
        (lambda: sdjax.encode_depth("emoji", np.ones((8, 8))), "sd is str: a model, as sdjax.load gives it"),
        (lambda: sdjax.encode_mask("emoji", PICTURES, np.ones((16, 16))), "sd is str: a model"),
        (lambda: sdjax.encode_lowres("emoji", SMALL), "sd is str: a model"),
        (lambda: sdjax.encode_picture("emoji", PICTURES), "sd is str: a model"),
        (lambda: sdjax.encode_picture(model(UNCLIP), []), r"pixels \[\]: at least one expected"),
        (lambda: sdjax.encode_depth(model(DEPTH), np.full((8, 8), np.nan)), "depth has NaN"),
        (lambda: sdjax.encode_depth(model(DEPTH), np.ones((8, 8)), height=7), "height 7: a positive multiple of 2"),
        (lambda: sdjax.txt2img(model(DEPTH), "cat", **FEW), "sd tiny-depth: takes a depth map, give a Cond"),
        (lambda: sdjax.encode_lowres(model(X4), SMALL, 351), "noise_level 351: a whole number from 0 to 350"),
        (lambda: sdjax.encode_lowres(model(SR), SMALL, 99), "noise_level 99: tiny-sr takes none"),
        (lambda: sdjax.upscale(model(SR), None, SMALL, 99), "noise_level 99: tiny-sr takes none"),
        (lambda: sdjax.encode_picture(model(VARIATIONS), PICTURES, 500), "noise_level 500: tiny-variations takes none"),
        (lambda: sdjax.encode_lowres(model(DEPTH), SMALL), "pictures: tiny-depth takes no small pictures"),
        (
            lambda: sdjax.upscale(model(DEPTH), "cat", SMALL),
            "pictures: tiny-depth takes no small pictures, use img2img",
        ),
        (lambda: sdjax.upscale(model(X4), "cat", SMALL, height=64), "height 64: None, it follows from"),
        (lambda: sdjax.upscale(model(SR), "cat", SMALL, **FEW), r"prompt \['cat', 'cat'\]: tiny-sr takes no text"),
        (
            lambda: sdjax.txt2img(model(X4), sdjax.encode_prompt(model(X4), "cat")._replace(concat=SMALL[:1]), **FEW),
            r"prompt.vector has shape \[\], should be \[B, 1\]",
        ),
        (lambda: sdjax.encode_picture(model(DEPTH), PICTURES), "pixels: tiny-depth takes no pictures"),
        (lambda: sdjax.encode_picture(model(UNCLIP), PICTURES, 1000), "noise_level 1000: a whole number from 0 to 999"),
        (lambda: sdjax.txt2img(model(UNCLIP), "cat", **FEW), "sd tiny-unclip: takes a picture, give a Cond"),
        (lambda: sdjax.txt2img(model(VARIATIONS), "cat", **FEW), "takes no text, give a Cond, as sdjax.encode_picture"),
        (lambda: sdjax.encode_mask(model(DEPTH), PICTURES, np.ones((16, 16))), "masks: tiny-depth takes none"),
        (
            lambda: sdjax.txt2img(model(INPAINT), None, **FEW),
            "sd tiny-inpaint: an inpainting model .7 channels., use inpaint",
        ),
        (lambda: sdjax.txt2img(model(INPAINT), Cond(), **FEW), "use inpaint"),
    ],
)
def test_refusals(call, match):
    with pytest.raises(SdjaxError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_published_models_are_counted_and_recognised():
    import jax

    counts = {
        SD2_DEPTH: (865_913_604, 83_653_863, 340_387_840),
        X4_UPSCALER: (473_398_020, 55_325_927, 340_387_840),
        INPAINTING_BIG: (387_245_827, 53_219_486, 0),
        BSR_SR: (113_622_563, 55_322_782, 0),
        TEXT2IMG_LARGE: (872_300_484, 83_653_863, 581_994_042),
        TEXT2IMG256: (403_623_939, 55_322_782, 186_154_682),
    }
    scales = {SD2_DEPTH: 9, X4_UPSCALER: 9, INPAINTING_BIG: 1, BSR_SR: 1, TEXT2IMG_LARGE: 5, TEXT2IMG256: 5}
    count = lambda part: 0 if part is None else sum(leaf.size for leaf in jax.tree.leaves(param_shapes(part)))
    for config, want in counts.items():
        assert (count(config.unet), count(config.vae), count(config.text)) == want, config.name
        assert single.detect(file_tensors(config)) == config, config.name
        assert config.guidance_scale == scales[config]
    unets = {SD21_UNCLIP_H: 870_173_124, SD21_UNCLIP_L: 869_517_764, SD_IMAGE_VARIATIONS: 859_520_964}
    for config, want in unets.items():
        assert count(config.unet) == want and single.detect(file_tensors(config)) == config, config.name
