"""Parameter counts of the presets, by eval_shape alone: nothing of full size is ever allocated."""

from dataclasses import replace

import jax
import pytest

from sdjax.families.sd import EMOJI, EMOJI_VISION, SD15, SD15_INPAINT, SD21, SD21_BASE
from sdjax.families.table import PRESETS, family_of
from sdjax.networks.table import param_shapes


def count(config) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(param_shapes(config)))


@pytest.mark.parametrize(
    ("config", "unet", "text"),
    [
        (SD15, 859_520_964, 123_060_480),
        (SD15_INPAINT, 859_535_364, 123_060_480),
        (SD21_BASE, 865_910_724, 340_387_840),
        (SD21, 865_910_724, 340_387_840),
    ],
)
def test_published_counts(config, unet, text):
    assert count(config.unet) == unet
    assert count(config.text) == text
    assert count(config.vae) == 83_653_863


def test_emoji_fits_its_budget():
    unet = count(EMOJI.unet)
    assert 6_000_000 <= unet <= 12_000_000
    whole = unet + count(EMOJI.text) + count(EMOJI.vae) + count(EMOJI_VISION)
    assert 2 * whole < 30_000_000  # bytes in float16


def test_configs_are_hashable_and_distinct():
    ordinary = [config for config in PRESETS.values() if config.few_steps is None]
    assert len({*ordinary}) == len(ordinary) == len(PRESETS) - 2
    assert {PRESETS["sdxl-turbo"], PRESETS["sd-turbo"]} < {*ordinary}  # another one's tensors, distilled


def test_the_watermark_is_the_family_s():
    from sdjax.image import watermark

    for config in PRESETS.values():
        assert family_of(config).watermark(config) == (
            watermark.V2 if config.name.startswith(("sd2", "sd-turbo")) else watermark.V1
        )
    wide = replace(SD15, text=replace(SD15.text, width=1024), unet=replace(SD15.unet, context_dim=1024))
    assert family_of(wide).watermark(wide) == watermark.V1, "the width of a text tower says nothing"
