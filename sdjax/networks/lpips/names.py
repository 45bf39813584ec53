"""The names of LPIPS' tensors in files."""

from sdjax.networks.lpips.network import DEPTHS
from sdjax.networks.rows import Row


def lpips_rows() -> list[Row]:
    """Returns the rows of VGG16's convolutions and of LPIPS' heads. torchvision numbers convolutions, ReLUs and
    poolings in one sequence."""
    rows, place, number = [], 0, 0
    for stage, depth in enumerate(DEPTHS):
        for _ in range(depth):
            rows += [
                Row((f"conv_{number}", "kernel"), f"features.{place}.weight", None, "conv", "conv"),
                Row((f"conv_{number}", "bias"), f"features.{place}.bias", None, "same", "same"),
            ]
            place, number = place + 2, number + 1
        rows.append(Row((f"head_{stage}",), f"lin{stage}.model.1.weight", None, "conv1x1", "conv1x1"))
        place += 1
    return rows
