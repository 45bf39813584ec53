import pytest

from tests.lora_files import MODELS, model


@pytest.fixture(scope="module")
def models():
    return {name: model(config) for name, config in MODELS.items()}
