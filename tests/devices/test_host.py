"""What a process may hold."""

import mmap
from pathlib import Path

import pytest

from sdjax.devices.host import crowded, resident

LIMIT = Path("/proc/sys/vm/max_map_count")


@pytest.mark.skipif(not LIMIT.exists(), reason="not Linux")
def test_a_process_with_half_of_its_memory_maps_is_crowded():
    most = int(LIMIT.read_text())
    if most > 200_000:
        pytest.skip(f"this machine allows {most} memory maps")
    assert not crowded()
    kinds = mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE  # equal neighbours would be one map
    held = [mmap.mmap(-1, mmap.PAGESIZE, prot=kinds[i % 2]) for i in range(most // 2 + 10)]
    try:
        assert crowded()
    finally:
        for one in held:
            one.close()
    assert not crowded() and resident() > 10e6
