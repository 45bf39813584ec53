"""The configurations of latent diffusion's transformer of tokens: for texts, and for layouts."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class BertConfig:
    """An encoder over tokens: `BERTEmbedder` in CompVis `encoders/modules.py`."""

    vocab_size: int = 8192
    length: int = 92  # positions that it has embeddings for
    width: int = 512
    layers: int = 16
    heads: int = 8
    head_width: int = 64  # heads times this is the attention's inner width, whatever `width` is


@dataclass(frozen=True)
class BertTextConfig(BertConfig):
    """An encoder of texts, which bert-base-uncased's tokenizer splits."""

    vocab_size: int = 30522
    length: int = 77
    width: int = 1280
    layers: int = 32
    bos_token: int = 101  # [CLS]
    eos_token: int = 102  # [SEP]
    pad_token: int = 0


@dataclass(frozen=True)
class LayoutConfig(BertConfig):
    """An encoder of layouts. An object is three tokens: its label, its top left and its bottom right corner.

    Two more tokens are the corners of the crop. Labels and corners share the vocabulary, whose last token is an absent
    object's.
    """

    labels: int | None = None  # labels are below it; None: all tokens but the last one may be labels
    null: bool = False  # was the empty layout put in place of dropped ones in training?

    @property
    def objects(self) -> int:
        """The number of objects that a layout may have."""
        return (self.length - 2) // 3

    @property
    def grid(self) -> int:
        """The number of places of corners along a side."""
        return math.isqrt(self.vocab_size)

    @property
    def absent(self) -> int:
        """The token of an absent object, which takes it three times."""
        return self.vocab_size - 1
