"""The names of LPIPS' tensors in files."""

from sdjax.networks.lpips.network import DEPTHS
from sdjax.networks.rows import TensorRow


def lpips_rows() -> list[TensorRow]:
    """Returns the rows of VGG16's convolutions and of LPIPS' heads. torchvision numbers convolutions, ReLUs and
    poolings in one sequence."""
    rows, place, number = [], 0, 0
    for stage, depth in enumerate(DEPTHS):
        for _ in range(depth):
            rows += [
                TensorRow((f"conv_{number}", "kernel"), f"features.{place}.weight", None, "conv", "conv"),
                TensorRow((f"conv_{number}", "bias"), f"features.{place}.bias", None, "same", "same"),
            ]
            place, number = place + 2, number + 1
        rows.append(TensorRow((f"head_{stage}",), f"lin{stage}.model.1.weight", None, "conv1x1", "conv1x1"))
        place += 1
    return rows
