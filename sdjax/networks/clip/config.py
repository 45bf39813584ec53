"""The configuration of CLIP's two towers (arXiv 2103.00020)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TextConfig:
    """A CLIP text tower (arXiv 2103.00020): causal pre-LN transformer over BPE tokens."""

    vocab_size: int = 49408
    length: int = 77  # number of tokens that a prompt is padded to
    width: int = 768
    layers: int = 12  # number of layers that are run; OpenCLIP ViT-H has 24, and SD 2 runs 23 of them
    heads: int = 12
    mlp_width: int = 3072
    activation: str = "quick_gelu"  # or "gelu", the exact one
    bos_token: int = 49406
    eos_token: int = 49407
    pad_token: int = 49407
    back: int = 0  # 0: the states are the last layer's after the final LayerNorm; n: those before the n last layers
    projection: int | None = None  # width of the pooled embedding, the end token's state projected; None: there is none


@dataclass(frozen=True)
class NormalizerConfig:
    """The mean and the standard deviation of CLIP's embeddings of pictures, which unCLIP normalises them by."""

    width: int = 768


@dataclass(frozen=True)
class VisionConfig:
    """A CLIP image tower (ViT, arXiv 2103.00020)."""

    size: int = 224  # pixels a side of the picture
    patch: int = 14  # pixels a side of a patch
    width: int = 1024
    layers: int = 24
    heads: int = 16
    mlp_width: int = 4096
    activation: str = "quick_gelu"
    projection: int = 768  # width of the space that text and pictures share
