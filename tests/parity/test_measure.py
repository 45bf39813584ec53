"""The arithmetic that tests/devices/test_cost.py holds us to is what torch counts in diffusers' UNet."""

import diffusers
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sdjax.families.sd import SD15
from tests.devices.test_cost import COUNTED
from tests.parity.peers import fields

pytestmark = pytest.mark.parity


def test_torch_counts_as_much():
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**fields(SD15, "unet/config.json"))
        for side, count in zip((32, 64), COUNTED, strict=True):
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                unet(torch.zeros(2, 4, side, side), torch.zeros(2), torch.zeros(2, 77, 768))
            assert counter.get_total_flops() == count
