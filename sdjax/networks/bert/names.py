"""The names of the transformer's tensors in files: CompVis', and diffusers' LDMBertModel."""

from collections.abc import Iterator

from sdjax.networks.bert.config import BertConfig
from sdjax.networks.rows import TensorRow, layer_norm, weight


def bert_rows(config: BertConfig, prefix: str = "cond_stage_model") -> Iterator[TensorRow]:
    """Yields the rows of all tensors. In CompVis' files layers 2 i are attentions, and 2 i + 1 the MLPs behind them."""
    both = lambda theirs, old: (f"model.{theirs}", f"{prefix}.transformer.{old}")
    yield TensorRow(("token_embedding", "embedding"), *both("embed_tokens.weight", "token_emb.weight"), "same", "same")
    yield TensorRow(("position_embedding",), *both("embed_positions.weight", "pos_emb.emb.weight"), "same", "same")
    for i in range(config.layers):
        theirs, attention, mlp = f"layers.{i}", f"attn_layers.layers.{2 * i}", f"attn_layers.layers.{2 * i + 1}"
        yield from layer_norm(f"layer_{i}/norm1", *both(f"{theirs}.self_attn_layer_norm", f"{attention}.0"))
        yield from layer_norm(f"layer_{i}/norm2", *both(f"{theirs}.final_layer_norm", f"{mlp}.0"))
        for head in "qkv":
            names = both(f"{theirs}.self_attn.{head}_proj", f"{attention}.1.to_{head}")
            yield from weight(f"layer_{i}/attn/{head}", *names, "dense", bias=False)
        yield from weight(
            f"layer_{i}/attn/out", *both(f"{theirs}.self_attn.out_proj", f"{attention}.1.to_out"), "dense"
        )
        for ours, old in (("fc1", "net.0.0"), ("fc2", "net.2")):
            yield from weight(f"layer_{i}/{ours}", *both(f"{theirs}.{ours}", f"{mlp}.1.{old}"), "dense")
    yield from layer_norm("final_norm", *both("layer_norm", "norm"))
    yield from weight("logits", "to_logits", f"{prefix}.transformer.to_logits", "dense")
