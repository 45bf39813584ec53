"""The names of the transformer's tensors in CompVis' files; our folders use the same ones without the prefix."""

from collections.abc import Iterator

from sdjax.networks.bert.config import BertConfig
from sdjax.networks.rows import TensorRow, layer_norm, weight


def bert_rows(config: BertConfig, prefix: str = "cond_stage_model") -> Iterator[TensorRow]:
    """Yields the rows of all tensors. Layers 2 i are attentions, layers 2 i + 1 the MLPs behind them."""
    both = lambda name: (f"transformer.{name}", f"{prefix}.transformer.{name}")
    yield TensorRow(("token_embedding", "embedding"), *both("token_emb.weight"), "same", "same")
    yield TensorRow(("position_embedding",), *both("pos_emb.emb.weight"), "same", "same")
    for i in range(config.layers):
        for j, norm in ((2 * i, "norm1"), (2 * i + 1, "norm2")):
            yield from layer_norm(f"layer_{i}/{norm}", *both(f"attn_layers.layers.{j}.0"))
        for head in "qkv":
            names = both(f"attn_layers.layers.{2 * i}.1.to_{head}")
            yield from weight(f"layer_{i}/attn/{head}", *names, "dense", bias=False)
        yield from weight(f"layer_{i}/attn/out", *both(f"attn_layers.layers.{2 * i}.1.to_out"), "dense")
        for ours, theirs in (("fc1", "net.0.0"), ("fc2", "net.2")):
            yield from weight(f"layer_{i}/{ours}", *both(f"attn_layers.layers.{2 * i + 1}.1.{theirs}"), "dense")
    yield from layer_norm("final_norm", *both("norm"))
    yield from weight("logits", *both("to_logits"), "dense")
