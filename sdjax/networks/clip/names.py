"""The names of CLIP's tensors in files."""

from collections.abc import Iterator

from sdjax.networks.clip.config import TextConfig, VisionConfig
from sdjax.networks.rows import TensorRow, join, layer_norm, weight


def clip_layers(layers: int, root: str, prefix: str | None) -> Iterator[TensorRow]:
    """Yields the rows of a tower's layers with transformers' names, also in single files (prefix None: in none)."""
    for i in range(layers):
        layer = f"{root}.encoder.layers.{i}"
        both = lambda name, layer=layer: (f"{layer}.{name}", join(prefix, f"{layer}.{name}"))
        for head in "qkv":
            yield from weight(f"layer_{i}/attn/{head}", *both(f"self_attn.{head}_proj"), "dense")
        yield from weight(f"layer_{i}/attn/out", *both("self_attn.out_proj"), "dense")
        for fc in ("fc1", "fc2"):
            yield from weight(f"layer_{i}/{fc}", *both(f"mlp.{fc}"), "dense")
        for j in (1, 2):
            yield from layer_norm(f"layer_{i}/norm{j}", *both(f"layer_norm{j}"))


def open_clip_layers(layers: int, prefix: str) -> Iterator[TensorRow]:
    """Yields the rows of the text tower's layers with OpenCLIP's names in single files, where q, k, v are stacked."""
    for i in range(layers):
        ours, theirs, old = f"layer_{i}", f"text_model.encoder.layers.{i}", f"{prefix}.{i}"
        for head in "qkv":
            for row in weight(f"{ours}/attn/{head}", f"{theirs}.self_attn.{head}_proj", f"{old}.attn.in_proj", "dense"):
                stacked = row.compvis.replace("in_proj.", "in_proj_")
                yield row._replace(compvis=stacked, compvis_operation=f"split {head}")
        for path, name, old_name in (
            ("attn/out", "self_attn.out_proj", "attn.out_proj"),
            ("fc1", "mlp.fc1", "mlp.c_fc"),
            ("fc2", "mlp.fc2", "mlp.c_proj"),
        ):
            yield from weight(f"{ours}/{path}", f"{theirs}.{name}", f"{old}.{old_name}", "dense")
        for j in (1, 2):
            yield from layer_norm(f"{ours}/norm{j}", f"{theirs}.layer_norm{j}", f"{old}.ln_{j}")


def text_rows(config: TextConfig, prefix: str = "cond_stage_model") -> Iterator[TensorRow]:
    """Yields the rows of a text tower. A tower with the exact gelu is OpenCLIP's, and has its names in single files."""
    name = "text_model.embeddings.{}_embedding.weight"
    if open_clip := config.activation == "gelu":
        prefix = f"{prefix}.model"
        token, position, final = f"{prefix}.token_embedding.weight", f"{prefix}.positional_embedding", "ln_final"
    else:
        prefix = f"{prefix}.transformer"
        token, position = (f"{prefix}.{name.format(kind)}" for kind in ("token", "position"))
        final = "text_model.final_layer_norm"
    yield TensorRow(("token_embedding", "embedding"), name.format("token"), token, "same", "same")
    yield TensorRow(("position_embedding",), name.format("position"), position, "same", "same")
    if open_clip:
        yield from open_clip_layers(config.layers, f"{prefix}.transformer.resblocks")
    else:
        yield from clip_layers(config.layers, "text_model", prefix)
    yield from layer_norm("final_norm", "text_model.final_layer_norm", f"{prefix}.{final}")


def vision_rows(config: VisionConfig) -> Iterator[TensorRow]:
    """Yields the rows of an image tower: transformers' CLIPVisionModelWithProjection, which spells `pre_layrnorm`."""
    embeddings = "vision_model.embeddings"
    yield TensorRow(("class_embedding",), f"{embeddings}.class_embedding", None, "same", "same")
    yield TensorRow(("position_embedding",), f"{embeddings}.position_embedding.weight", None, "same", "same")
    yield from weight("patch", f"{embeddings}.patch_embedding", None, "conv", bias=False)
    yield from layer_norm("pre_norm", "vision_model.pre_layrnorm", None)
    yield from clip_layers(config.layers, "vision_model", None)
    yield from layer_norm("post_norm", "vision_model.post_layernorm", None)
    yield from weight("projection", "visual_projection", None, "dense", bias=False)
