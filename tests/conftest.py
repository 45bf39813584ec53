import jax
import pytest


@pytest.fixture(scope="module")
def quick_compile():
    """XLA without its expensive passes: a third of the time for tests that compile more than they run."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
