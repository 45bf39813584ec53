"""A tokenizer for the models of this folder."""

import pytest

from sdjax.text.bpe import train_bpe
from tests.text.test_tokenizer import captions


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_bpe(captions(), 580, tmp_path_factory.mktemp("tokenizer"))
