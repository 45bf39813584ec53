"""Mistakes in SDXL's towers, UNet and walk are seen by the limits that the other tests use."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import sdjax  # noqa: E402
from tests.parity.sdxl_mistakes import MISTAKES, context, output, pooled, walk  # noqa: E402
from tests.parity.sdxl_models import TEXT, UNET, WALK, xl  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("quick_compile")]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    pipe, folder = xl(tmp_path_factory.mktemp("base"))
    return pipe, sdjax.load(folder)


@pytest.mark.parametrize("measure, limit", [(context, TEXT), (pooled, TEXT), (output, UNET), (walk, WALK)])
def test_without_a_mistake(measure, limit, both):
    found = measure(*both)
    print(f"error {found:.1e}, limit {limit:.0e}")
    assert found < limit


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_caught(name, both, monkeypatch):
    mistake = MISTAKES[name]
    for place, what, wrong in mistake.patches:
        monkeypatch.setattr(place, what, wrong)
    with jax.disable_jit(bool(mistake.patches)):  # what is compiled does not see a patch
        found = mistake.measure(*both, **mistake.given)
    print(f"error {found:.1e}, limit {mistake.limit:.0e}")
    assert found > 1.2 * mistake.limit and np.isfinite(found)


def test_they_are_many():
    assert len(MISTAKES) >= 30
