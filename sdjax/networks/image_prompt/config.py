"""The configuration of an IP-Adapter."""

from dataclasses import dataclass

HEAD = 64  # width of a head of plus' attention, which no file says


@dataclass(frozen=True)
class ImagePromptConfig:
    """An IP-Adapter: makes tokens of what an image tower sees, and their keys and values for each cross-attention."""

    layers: tuple[int, ...]  # widths of the UNet's cross-attentions, in the order of `attentions_of`
    seen: int = 1024  # width of what it takes: the tower's embedding, or of plus the states before the last layer
    context_dim: int = 768  # width of a token, which is that of the UNet's context
    tokens: int = 4  # that a picture becomes
    plus: bool = False  # tokens are queries that attend to all patches; otherwise one layer makes them
    width: int = 768  # of plus, as all below
    blocks: int = 4
    heads: int = 12
    mlp_width: int = 3072
