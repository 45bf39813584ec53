import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from sdjax.nn.kernels.backends import by_platform, devices_sharing, here


def mesh(*sizes, kind=AxisType.Auto):
    names = ("replica", "fsdp")[: len(sizes)]
    return jax.sharding.use_abstract_mesh(AbstractMesh(sizes, names, axis_types=(kind,) * len(sizes)))


@pytest.mark.parametrize("sizes, batch, devices", [((4,), 8, 4), ((2, 2), 8, 4), ((4,), 6, 1), ((1,), 3, 1)])
def test_devices_that_share_a_batch(sizes, batch, devices):
    assert devices_sharing(batch) == 1, "no mesh is set"
    with mesh(*sizes):
        assert devices_sharing(batch) == devices
    with mesh(*sizes, kind=AxisType.Explicit):
        assert devices_sharing(batch) == 1, "shapes are one device's already"


def test_what_is_the_default_is_traced_once():
    traced = []

    def whole(x):
        traced.append("whole")
        return x + 1

    def other(x):
        traced.append("other")
        return x + 2

    np.testing.assert_array_equal(jax.jit(lambda x: by_platform(x, default=whole, cpu=whole, tpu=whole))(1.0), 2.0)
    assert traced == ["whole"]
    np.testing.assert_array_equal(jax.jit(lambda x: by_platform(x, default=whole, cpu=other, tpu=whole))(1.0), 3.0)
    assert traced.count("whole") == 2 and "other" in traced
    assert by_platform(jnp.ones(2), default=whole).sum() == 4


def traced_ways(**chosen):
    """A jitted function of x that adds another number for each platform, and the list of those that were traced."""
    traced = []

    def way(name, number):
        return lambda x: traced.append(name) or x + number

    ways = {name: way(name, number) for name, number in chosen.items()}
    return jax.jit(lambda x: by_platform(x, **ways)), traced


def test_here_only_the_ways_of_this_process_are_traced(monkeypatch):
    """What is traced again for other platforms is not what was traced here."""
    f, traced = traced_ways(default=1.0, cpu=2.0, cuda=3.0, tpu=4.0)
    with here():
        assert f(0.0) == 2.0 and traced == ["cpu"]
    for platform, number in (("tpu", "4.0"), ("rocm", "1.0")):
        assert number in f.trace(0.0).lower(lowering_platforms=(platform,)).as_text()
    assert sorted(traced[1:]) == ["cpu", "cuda", "default", "tpu"]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    f, traced = traced_ways(default=1.0, cpu=2.0, cuda=3.0, tpu=4.0)
    with here():
        for platform, number in (("cuda", "3.0"), ("rocm", "1.0"), ("cpu", "2.0")):
            assert number in f.trace(0.0).lower(lowering_platforms=(platform,)).as_text()
    assert sorted(traced) == ["cpu", "cuda", "default"]
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    f, traced = traced_ways(default=1.0, cpu=2.0, tpu=4.0)
    with here():
        assert f(0.0) == 2.0 and "4.0" in f.trace(0.0).lower(lowering_platforms=("tpu",)).as_text()
    assert sorted(traced) == ["cpu", "tpu"]
    monkeypatch.setattr(jax, "default_backend", lambda: "abacus")
    f, traced = traced_ways(default=1.0, cpu=2.0)
    with here():
        assert f(0.0) == 2.0 and sorted(traced) == ["cpu", "default"]
