from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from widthwise.luts.errors import BadInput
from widthwise.network.modules import readings_of
from widthwise.network.network import Network
from widthwise.planner.importance import CRITERIA, Importance, fpgm_scores, gamma_scores, l1_scores, score
from widthwise.planner.responses import activation, taylor, wanda


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
    with pytest.raises(BadInput, match="there are magnitude, l1"):
        score(branches, network, "magic")


def test_the_filter_nearest_to_the_others_is_least_by_geometric_median() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 1, bias=False), nn.Conv2d(3, 2, 1))
    model[0].weight.data = torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])[:, :, None, None]
    scores = fpgm_scores(model, Network.trace(model, torch.zeros(1, 2, 3, 3)))["0"]
    assert scores.tolist() == pytest.approx([15 / (40 / 3), 10 / (40 / 3), 15 / (40 / 3)])


def normed() -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(1, 3, 1, bias=False), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1, bias=False), nn.Flatten()
    )
    model[1].weight.data = torch.tensor([0.5, -2.0, 1.0])
    model[1].bias.data = torch.tensor([0.25, 0.0, -1.0])
    return model.eval()


def test_gamma_takes_scales_and_where_there_are_none_filters() -> None:
    model = normed()
    scores = gamma_scores(model, Network.trace(model, torch.zeros(1, 1, 1, 1)))["0"]
    assert scores.tolist() == pytest.approx([0.5 / (3.5 / 3), 2.0 / (3.5 / 3), 1.0 / (3.5 / 3)])
    plain = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Conv2d(3, 2, 1))
    network = Network.trace(plain, torch.zeros(1, 1, 4, 4))
    assert gamma_scores(plain, network)["0"].tolist() == l1_scores(plain, network)["0"].tolist()


def test_taylor_is_the_first_order_of_the_loss() -> None:
    model = normed()
    network = Network.trace(model, torch.zeros(1, 1, 1, 1))
    images = torch.tensor([2.0]).view(1, 1, 1, 1)
    batches = [(images, torch.zeros(1, dtype=torch.long))]
    found = taylor(model, network, batches, loss=lambda output, _: output.sum())
    # Output: Σ v_c·(γ_c·x_c + β_c) with v the summed weights behind: first order of a channel = v_c·(γ_c·x_c + β_c)
    with torch.no_grad():
        through = model[1](model[0](images)).flatten() * model[2].weight.sum(0).flatten()
    assert found.scores["0"].tolist() == pytest.approx(through.abs().tolist(), rel=1e-4)
    assert found.criterion == "taylor" and model[1].weight.grad is None


def test_taylor_averages_batches_and_skips_broken_ones() -> None:
    model = normed()
    network = Network.trace(model, torch.zeros(1, 1, 1, 1))
    first, second = (torch.full((1, 1, 1, 1), value) for value in (1.0, 3.0))
    broken = torch.full((1, 1, 1, 1), math.inf)
    label = torch.zeros(1, dtype=torch.long)

    def at(*images: torch.Tensor) -> list[float]:
        batches = [(image, label) for image in images]
        return taylor(model, network, batches, loss=lambda output, _: output.sum()).scores["0"].tolist()

    each = np.array([at(first), at(second)])
    assert at(first, second) == pytest.approx(each.mean(0).tolist())
    assert at(first, broken) == pytest.approx(at(first))
    with pytest.raises(BadInput, match="taylor needs batches of images and labels with finite gradients"):
        at(broken)


def test_activation_is_what_readers_hear() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(8, 5)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -50.0, 3.0]).view(3, 1, 1, 1))
        model[0].bias.zero_()
        model[2].weight.copy_(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]).view(2, 3, 1, 1))
        model[2].bias.zero_()
    network = Network.trace(model, torch.zeros(1, 1, 2, 2).double())
    images = [torch.arange(1.0, 5.0).view(1, 1, 2, 2).double(), torch.full((1, 1, 2, 2), 7.5).double()]
    found = activation(model, network, [(image, torch.zeros(1, dtype=torch.long)) for image in images])
    assert found.scores["0"].tolist() == pytest.approx([0.75, 0.0, 2.25], abs=1e-9), "the second never passes its ReLU"
    assert (found.scores["0"] > 0).all()
    # behind the flattening a channel is read at four places; the mean over places times their number
    assert found.scores["2"].tolist() == pytest.approx([4 * 0.5, 4 * 1.5])
    assert found.criterion == "activation"
    with pytest.raises(BadInput, match="activation needs batches"):
        activation(model, network, [])


def test_a_function_of_network_and_group() -> None:
    model = normed()
    network = Network.trace(model, torch.zeros(1, 1, 1, 1))

    def favourite(network: Network, group: str) -> range:
        return range(network.dense[group])

    found = score(model, network, favourite)
    assert (found.criterion, found.scores["0"].tolist()) == ("favourite", [0.0, 1.0, 2.0])
    with pytest.raises(BadInput, match="gives group '0' 2 scores; it needs 3, finite and not negative"):
        score(model, network, lambda network, group: [1.0, 2.0])
    with pytest.raises(BadInput, match="finite and not negative"):
        score(model, network, lambda network, group: [1.0, math.nan, 2.0])


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_scores_every_group(criterion: str, branches: nn.Module, network: Network) -> None:
    found = score(branches, network, criterion)
    assert {group: len(values) for group, values in found.scores.items()} == network.dense


class _Coupled(nn.Module):
    """A residual block whose branch is depthwise, read by a grouped, a transposed and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.mix = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
        self.up = nn.ConvTranspose2d(4, 5, 2, stride=2)
        self.head = nn.Linear(4 * 2 * 2, 7)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.mix(x)
        return self.up(x), self.head(torch.flatten(x, 1))


def test_magnitude_counts_every_weight_that_goes_with_a_channel() -> None:
    torch.manual_seed(0)
    model = _Coupled().double().eval()
    model.norm.weight.data.uniform_(0.5, 1.5)
    network = Network.trace(model, torch.zeros(1, 3, 2, 2).double())
    ((group, found),) = score(model, network, "magnitude").scores.items()
    assert group == "stem" and network.dense == {"stem": 4}
    for channel in range(4):
        removed = sum(
            float(weights.detach().square().sum())
            for weights in (
                model.stem.weight[channel],
                model.norm.weight[channel],
                model.mix.weight[channel],
                model.up.weight[channel],
                model.head.weight[:, 4 * channel : 4 * channel + 4],
            )
        )
        assert found[channel] == pytest.approx(removed)


def test_readers_of_grouped_convolutions_are_told_apart() -> None:
    torch.manual_seed(0)
    grouped = nn.Conv2d(6, 4, 3, groups=2)
    dense = torch.zeros(4, 6, 3, 3)
    dense[:2, :3], dense[2:, 3:] = grouped.weight.detach()[:2], grouped.weight.detach()[2:]
    squares = readings_of(grouped).square().sum(1)
    assert squares.tolist() == pytest.approx(dense.square().sum((0, 2, 3)).tolist())
    linear = nn.Linear(3, 2)
    assert readings_of(linear).tolist() == linear.weight.T.tolist()


def test_wanda_is_what_a_reader_would_lose() -> None:
    """With uncorrelated channels the energy of a reader's outputs without a channel falls by just that."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(), nn.Conv2d(2, 3, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -2.0]).view(2, 1, 1, 1))  # never open both at once
    network = Network.trace(model, torch.zeros(1, 1, 2, 2).double())
    images = torch.tensor([1.0, -3.0, 2.0, -0.5]).view(1, 1, 2, 2).double()
    found = wanda(model, network, [(images, torch.zeros(1))])
    with torch.no_grad():
        whole = model(images).square().sum()
        lost = []
        for channel in range(2):
            silenced = copy.deepcopy(model)
            silenced[0].weight[channel] = 0.0
            lost.append(float(whole - silenced(images).square().sum()))
    assert found.scores["0"].tolist() == pytest.approx([value / np.mean(lost) for value in lost])
    assert found.criterion == "wanda"
    with pytest.raises(BadInput, match="wanda needs batches"):
        wanda(model, network, [])


def test_the_best_of_some() -> None:
    importance = Importance("l1", {"a": np.array([3.0, 1.0, 4.0, 1.0, 5.0])}, {"a": 1})
    assert importance.kept("a", 2, among=[3, 0, 1]) == (0, 1)
