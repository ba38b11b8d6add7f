"""Random networks narrow correctly, or are locked."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, given, settings

from tests.network.random_nets import RandomNet, Step, steps
from widthwise.network.network import Network
from widthwise.network.proof import prove

_START = [Step("conv", 10, 1), Step("save", 0, 0)]


def hold(drawn: list[Step]) -> Network:
    model = RandomNet([*_START, *drawn]).eval()
    example = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(len(drawn)))
    network = Network.trace(model, example)
    prove(model, network, [example], alone=2, together=1)
    return network


@given(steps)
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
def test_random_networks_narrow_as_predicted(drawn: list[Step]) -> None:
    hold(drawn)
