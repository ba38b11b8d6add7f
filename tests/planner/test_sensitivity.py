from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from widthwise.luts.errors import BadInput
from widthwise.network.network import Network
from widthwise.planner.sensitivity import Sensitivity, sensitivity


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 7, 1), nn.ReLU(), nn.Conv2d(7, 11, 1), nn.ReLU(), nn.Conv2d(11, 5, 1))


def loss_of(model: nn.Module) -> float:
    """2 for the dense model; a missing channel of the first layer costs 0.5, of the second 0.125."""
    first, second = model[0].out_channels, model[2].out_channels  # type: ignore[index,union-attr]
    return 2.0 + 0.5 * (7 - int(first)) + 0.125 * (11 - int(second))  # type: ignore[arg-type]


def test_curves_are_what_each_group_alone_costs(model: nn.Sequential) -> None:
    network = Network.trace(model, torch.zeros(1, 3, 4, 4))
    shares: list[float] = []
    found = sensitivity(model, network, {"0": (2, 5, 7), "2": (3, 11)}, loss_of, on_progress=shares.append)
    assert found.rise == {"0": {2: 2.5, 5: 1.0}, "2": {3: 1.0}}
    assert found.curve("0", [2, 3, 5, 6, 7]) == pytest.approx([-2.0, -1.5, -0.5, 0.0, 0.5])
    assert sum(found.curve(group, [size])[0] for group, size in network.dense.items()) == pytest.approx(1.0)
    assert found.retained({"0": 6, "2": 7}) == pytest.approx(math.exp(-0.5 - 0.5))
    assert shares == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert found.curve("2", [1])[0] == pytest.approx(0.5 - (1 + math.log(3)))


def test_only_some_widths_are_measured_and_gains_count_as_nothing(model: nn.Sequential) -> None:
    network = Network.trace(model, torch.zeros(1, 3, 4, 4))
    seen: list[nn.Module] = []

    def better(narrowed: nn.Module) -> float:
        seen.append(narrowed)
        return 1.0 / len(seen)

    found = sensitivity(model, network, {"0": range(1, 8), "2": range(1, 12)}, better, most=3)
    assert {group: len(rise) for group, rise in found.rise.items()} == {"0": 3, "2": 3}
    assert {value for rise in found.rise.values() for value in rise.values()} == {0.0}
    assert set(found.rise["2"]) >= {1, 10}


def test_a_loss_that_is_not_finite_is_named(model: nn.Sequential) -> None:
    network = Network.trace(model, torch.zeros(1, 3, 4, 4))
    with pytest.raises(BadInput, match="the loss of the dense model is nan"):
        sensitivity(model, network, network.options(), lambda _: math.nan)
    with pytest.raises(BadInput, match="group '0' at 1 channels is inf"):
        sensitivity(model, network, {"0": (1, 7), "2": (11,)}, lambda small: math.inf if small is not model else 1.0)


def test_channels_are_kept_by_the_criterion() -> None:
    found = Sensitivity("sensitivity", {"a": np.array([1.0, 3.0, 2.0])}, {"a": 1}, {"a": {1: 1.0}})
    assert found.kept("a", 2) == (1, 2)
