"""SDXL's configuration: counts, and names of its files' tensors. tests/parity/test_sdxl.py compares what it draws."""

import jax

from sdjax.families.sdxl import SDXL
from sdjax.families.table import family_of
from sdjax.networks.table import param_shapes
from sdjax.weights import single
from sdjax.weights.single import model_rows
from tests.narrow import file_tensors


def test_published_counts():
    count = lambda part: sum(leaf.size for leaf in jax.tree.leaves(param_shapes(part)))
    assert [count(getattr(SDXL, part)) for part in family_of(SDXL).parts] == [
        *(123_060_480, 694_659_840, 83_653_863, 2_567_463_684)
    ]


def test_a_single_file_has_the_published_tensors():
    """2,515 in the published file; position_ids and logit_scale, which nothing reads, are not among ours."""
    names = {row.compvis for row in model_rows(SDXL)}
    assert len(names) == 2513
    for name in (
        "conditioner.embedders.0.transformer.text_model.encoder.layers.11.mlp.fc2.weight",
        "conditioner.embedders.1.model.transformer.resblocks.31.attn.in_proj_weight",
        "conditioner.embedders.1.model.text_projection",
        "model.diffusion_model.label_emb.0.2.weight",
        "model.diffusion_model.middle_block.1.transformer_blocks.9.attn2.to_k.weight",
        "first_stage_model.decoder.up.3.block.2.conv2.bias",
    ):
        assert name in names
    assert single.detect(file_tensors(SDXL)) == SDXL
