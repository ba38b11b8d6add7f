from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from widthwise.luts.errors import BadInput
from widthwise.network.network import Network
from widthwise.planner.importance import Importance, l1_scores, score


def test_l1_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.Conv2d(3, 2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -6.0, 2.0]).reshape(3, 1, 1, 1))
    scores = l1_scores(model, Network.trace(model, torch.zeros(1, 1, 4, 4)))
    assert scores["0"].tolist() == pytest.approx([1 / 3, 2.0, 2 / 3])  # over the mean, 3


def test_coupled_layers_are_averaged_each_on_its_own_scale() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 3, 1)
            with torch.no_grad():
                self.a.weight.copy_(torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1))
                self.b.weight.copy_(torch.tensor([[300.0, 300.0], [100.0, 100.0]]).reshape(2, 2, 1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x)
            return self.c(x + self.b(x))

    network = Network.trace(Residual(), torch.zeros(1, 1, 4, 4))
    assert l1_scores(Residual(), network)["a"].tolist() == pytest.approx([1.0, 1.0])  # (0.5 + 1.5)/2 twice
    assert score(Residual(), network).weights == {"a": 2}


def test_kept_are_the_best_and_ascending() -> None:
    importance = Importance("l1", {"a": np.array([3.0, 1.0, 4.0, 1.0, 5.0])}, {"a": 1})
    assert importance.kept("a", 3) == (0, 2, 4)
    assert importance.kept("a", 4) == (0, 1, 2, 4), "among equals the first"


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=20))
def test_a_curve_rises_to_the_groups_weight_and_is_concave(scores: list[float]) -> None:
    importance = Importance("l1", {"a": np.array(scores)}, {"a": 2})
    curve = importance.curve("a", range(1, len(scores) + 1))
    steps = np.diff(curve)
    assert curve[-1] == pytest.approx(1.0)
    assert (steps >= -1e-12).all() and (np.diff(steps) <= 1e-9).all()


def test_what_is_retained_is_a_weighted_geometric_mean() -> None:
    importance = Importance("l1", {"a": np.array([1.0, 3.0]), "b": np.ones(4)}, {"a": 1, "b": 2})
    assert importance.retained({"a": 2, "b": 4}) == pytest.approx(1.0)
    assert importance.retained({"a": 1, "b": 2}) == pytest.approx((0.75 * 0.5 * 0.5) ** (1 / 3))
    assert importance.curve("a", [1]) == pytest.approx([(1 + math.log(0.75)) / 3])


def test_an_unknown_criterion_lists_those_there_are(branches: nn.Module, network: Network) -> None:
    with pytest.raises(BadInput, match="there are l1"):
        score(branches, network, "magic")
