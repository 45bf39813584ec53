"""LPIPS from files that torch wrote, against the distance written out in torch, in float64."""

import jax
import numpy as np
import pytest
import torch

from sdjax.errors import SdjaxError
from sdjax.networks.lpips import network as module
from sdjax.networks.lpips.network import lpips
from sdjax.weights.lpips import read_lpips
from tests.parity.peers import error, nchw

pytestmark = pytest.mark.parity
WIDTHS = (4, 6, 8, 10, 12)


class Peer(torch.nn.Module):
    """torchvision's vgg16().features up to relu5_3, cut behind the last ReLU of every stage, and the heads."""

    def __init__(self, widths=WIDTHS, classes=7):
        super().__init__()
        layers, width, self.taps = [], 3, []
        for stage, (wide, depth) in enumerate(zip(widths, (2, 2, 3, 3, 3), strict=True)):
            layers += [torch.nn.MaxPool2d(2, 2)] if stage else []
            for _ in range(depth):
                layers += [torch.nn.Conv2d(width, wide, 3, padding=1), torch.nn.ReLU()]
                width = wide
            self.taps.append(len(layers) - 1)
        self.features = torch.nn.Sequential(*layers)
        self.classifier = torch.nn.Sequential(torch.nn.Linear(4, classes))
        self.heads = [torch.rand(1, wide, 1, 1) for wide in widths]

    def files(self, folder):
        torch.save(self.state_dict(), folder / "vgg16.pth")
        torch.save({f"lin{i}.model.1.weight": head for i, head in enumerate(self.heads)}, folder / "vgg.pth")
        return folder / "vgg16.pth", folder / "vgg.pth"

    def forward(self, a, b):
        shift = torch.tensor([-0.030, -0.088, -0.188], dtype=a.dtype).view(1, 3, 1, 1)
        scale = torch.tensor([0.458, 0.448, 0.450], dtype=a.dtype).view(1, 3, 1, 1)
        a, b, total = (a - shift) / scale, (b - shift) / scale, 0
        for i, layer in enumerate(self.features):
            a, b = layer(a), layer(b)
            if i in self.taps:
                one, other = (x / (torch.sqrt((x**2).sum(1, keepdim=True)) + 1e-10) for x in (a, b))
                head = self.heads[self.taps.index(i)].to(a.dtype)
                total = total + torch.nn.functional.conv2d((one - other) ** 2, head).mean((2, 3))[:, 0]
        return total


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    torch.manual_seed(0)
    peer = Peer()
    params = read_lpips(*peer.files(tmp_path_factory.mktemp("lpips")), WIDTHS)
    a, b = np.random.default_rng(0).uniform(-1, 1, (2, 3, 37, 48, 3)).astype(np.float32)
    return peer.double(), params, a, b


def test_distance_and_slope(case):
    peer, params, a, b = case
    x = nchw(b).requires_grad_()
    want = peer(nchw(a), x)
    want.sum().backward()
    assert error(lpips(params, a, b), want.detach()) < 5e-6
    slope = jax.jit(jax.grad(lambda b: lpips(params, a, b).sum()))(b)
    want = x.grad.permute(0, 2, 3, 1).numpy()  # on average: where a ReLU or a maximum is undecided, float32 decides
    assert np.abs(slope - want).mean() < 2e-5 * np.abs(want).mean()


@pytest.mark.parametrize("name, value", [("SHIFT", (-0.03, -0.088, -0.18)), ("SCALE", (0.458, 0.448, 0.448))])
def test_a_wrong_constant_is_seen(case, name, value, monkeypatch):
    peer, params, a, b = case
    monkeypatch.setattr(module, name, value)
    assert error(lpips(params, a, b), peer(nchw(a), nchw(b)).detach()) > 1e-4


def test_files_that_do_not_fit(case, tmp_path):
    vgg, heads = Peer().files(tmp_path)
    with pytest.raises(SdjaxError, match=r"vgg\.pth: .*missing: features\.0\.weight"):
        read_lpips(heads, heads, WIDTHS)
    with pytest.raises(SdjaxError, match=r"vgg16\.pth: .*of wrong shape: features\.0\.weight.*\[64, 3, 3, 3\]"):
        read_lpips(vgg, heads)
    with pytest.raises(SdjaxError, match="missing: lin0"):
        read_lpips(vgg, vgg, WIDTHS)


def test_names_are_torchvision_s():
    """torchvision/models/vgg.py, configuration D: where its convolutions stand."""
    from sdjax.networks.lpips.names import lpips_rows

    places = [int(row.diffusers.split(".")[1]) for row in lpips_rows() if row.path[-1] == "kernel"]
    assert places == [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    assert places == [i for i, layer in enumerate(Peer().features) if isinstance(layer, torch.nn.Conv2d)]
