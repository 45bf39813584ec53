import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from sdjax.nn.backends import by_platform, devices_sharing


def mesh(*sizes, kind=AxisType.Auto):
    names = ("replica", "fsdp")[:len(sizes)]
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
