"""The names of CLIP's tensors in files."""

from collections.abc import Iterator

from sdjax.networks.clip.config import NormalizerConfig, TextConfig, VisionConfig
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


def open_clip_layers(layers: int, prefix: str, root: str = "text_model") -> Iterator[TensorRow]:
    """Yields the rows of a tower's layers with OpenCLIP's names in single files, where q, k, v are stacked.

    root: what transformers' names begin with.
    """
    for i in range(layers):
        ours, theirs, old = f"layer_{i}", f"{root}.encoder.layers.{i}", f"{prefix}.{i}"
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
    if config.projection:
        names = "text_projection.weight", f"{prefix}.text_projection"
        yield TensorRow(("projection", "kernel"), *names, "dense", "same")


def vision_rows(config: VisionConfig, prefix: str | None = None) -> Iterator[TensorRow]:
    """Yields the rows of an image tower: transformers' CLIPVisionModelWithProjection, which spells `pre_layrnorm`.

    prefix: of its names in single files, where they are OpenCLIP's; None: in none.
    """
    embeddings, visual = "vision_model.embeddings", prefix and f"{prefix}.model.visual"
    old = lambda name: join(visual, name)
    yield TensorRow(("class_embedding",), f"{embeddings}.class_embedding", old("class_embedding"), "same", "same")
    names = f"{embeddings}.position_embedding.weight", old("positional_embedding")
    yield TensorRow(("position_embedding",), *names, "same", "same")
    yield from weight("patch", f"{embeddings}.patch_embedding", old("conv1"), "conv", bias=False)
    yield from layer_norm("pre_norm", "vision_model.pre_layrnorm", old("ln_pre"))
    if visual:
        yield from open_clip_layers(config.layers, f"{visual}.transformer.resblocks", "vision_model")
    else:
        yield from clip_layers(config.layers, "vision_model", None)
    yield from layer_norm("post_norm", "vision_model.post_layernorm", old("ln_post"))
    yield TensorRow(("projection", "kernel"), "visual_projection.weight", old("proj"), "dense", "same")


def normalizer_rows(config: NormalizerConfig, prefix: str = "noise_augmentor") -> Iterator[TensorRow]:
    """Yields the rows of the statistics of embeddings."""
    for name in ("mean", "std"):
        yield TensorRow((name,), name, f"{prefix}.data_{name}", "same", "same")
