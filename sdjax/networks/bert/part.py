"""The encoders of texts and of layouts as Parts."""

# ruff: noqa: C408 (field names read best as keywords)

from pathlib import Path
from typing import Any

import jax.numpy as jnp

from sdjax.errors import SdjaxError
from sdjax.networks.bert.config import BertTextConfig, LayoutConfig
from sdjax.networks.bert.names import bert_rows
from sdjax.networks.bert.network import Bert
from sdjax.networks.fields import MOST_LAYERS, Fields, class_name, plain_fields
from sdjax.networks.part import Part, example
from sdjax.text.tokenizer import word_piece_ids

ids = lambda config: (example(1, config.length, dtype=jnp.int32),)

#: Fields of LDMBertModel's config.json with the only value that is supported, and those without influence.
CHECKED = dict(activation_function="gelu", scale_embedding=False)
IGNORED = {"architectures", "classifier_dropout", "dropout", "attention_dropout", "activation_dropout", "init_std",
           "encoder_layerdrop", "model_type", "num_hidden_layers", "torch_dtype", "dtype", "transformers_version",
           "use_cache"}  # fmt: skip


def read_text(fields: Fields, tokenizer: Path) -> BertTextConfig:
    """Returns the BertTextConfig in an LDMBertModel's config.json. The folder `tokenizer` has its special tokens."""
    start, end, padding = word_piece_ids(tokenizer)
    width = fields.take("d_model", 1280)
    if fields.take("encoder_ffn_dim", 4 * width) != 4 * width:
        raise SdjaxError(f"{fields.path}: encoder_ffn_dim should be 4 d_model, {4 * width}")
    config = BertTextConfig(
        vocab_size=fields.take("vocab_size", 30522),
        length=fields.take("max_position_embeddings", 77),
        width=width,
        layers=fields.take("encoder_layers", 32, most=MOST_LAYERS),
        heads=fields.take("encoder_attention_heads", 8),
        head_width=fields.take("head_dim", 64),
        bos_token=start,
        eos_token=end,
        pad_token=padding,
    )
    fields.values.pop("pad_token_id", None)
    fields.finish(CHECKED, IGNORED)
    return config


def write_text(config: BertTextConfig) -> dict[str, Any]:
    """Returns the content of an LDMBertModel's config.json."""
    return (
        class_name("LDMBertModel")
        | CHECKED
        | dict(
            architectures=["LDMBertModel"],
            model_type="ldmbert",
            vocab_size=config.vocab_size,
            max_position_embeddings=config.length,
            d_model=config.width,
            encoder_layers=config.layers,
            encoder_ffn_dim=4 * config.width,
            encoder_attention_heads=config.heads,
            head_dim=config.head_width,
            pad_token_id=config.pad_token,
        )
    )


BERT_TEXT = Part(BertTextConfig, Bert, ids, bert_rows, read_text, write_text)

LAYOUT_TOWER = Part(LayoutConfig, Bert, ids, bert_rows, *plain_fields(LayoutConfig, "LayoutTransformer"))
