"""Each construct is traced, and narrows correctly or is locked with its reason."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.conftest import randomised
from tests.network.constructs import CONSTRUCTS
from widthwise.luts.errors import InvalidModel, VerificationFailed
from widthwise.network.network import Network
from widthwise.network.proof import prove
from widthwise.network.ties import Ties

_OUTPUT = "it is the network's output"


@pytest.mark.parametrize("name", CONSTRUCTS)
def test_construct(name: str) -> None:
    case = CONSTRUCTS[name]
    torch.manual_seed(0)
    model = randomised(case.factory())
    example = [torch.randn(shape) for shape in case.inputs]
    network = Network.trace(model, example)
    assert network.dense == dict(case.free)
    locked = {group.name: group.locked for group in network.groups if group.locked not in (None, _OUTPUT)}
    assert locked.keys() == dict(case.locked).keys(), locked
    assert all(part in str(locked[group]) for group, part in case.locked.items()), locked
    proof = prove(model, network, example)
    assert not case.free or proof.effect > 1e-3


@pytest.mark.parametrize(
    ("name", "forgotten"),
    [
        ("chunk and concat (C2f)", "tie"),
        ("slices at half", "tie"),
        ("residual chain", "tie"),
        ("pixel shuffle", "tie"),
        ("slices at a written place", "fix"),
        ("convolution subclass that mixes", "fix"),
        ("rolled channels", "fix"),
        ("softmax over channels", "fix"),
    ],
)
def test_the_proof_or_the_trial_notices_a_forgotten_rule(
    name: str, forgotten: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without what ties or fixes channels no construct passes as what it is."""
    case = CONSTRUCTS[name]
    own = getattr(Ties, forgotten)

    def careless(self: Ties, *args: object) -> None:
        if (forgotten == "fix" and "output" in str(args[-1])) or (forgotten == "tie" and "reads" in str(args[-1])):
            own(self, *args)

    monkeypatch.setattr(Ties, forgotten, careless)
    torch.manual_seed(0)
    model = randomised(case.factory())
    example = [torch.randn(shape) for shape in case.inputs]
    network = Network.trace(model, example)
    try:
        prove(model, network, example)
    except (VerificationFailed, IndexError, AssertionError):
        return
    assert network.dense != dict(case.free)  # the trial has locked what the rules left open


def test_a_network_without_prunable_channels_is_refused_when_a_plan_is_asked_for() -> None:
    network = Network.trace(nn.Sequential(nn.Conv2d(3, 5, 1)), torch.zeros(1, 3, 4, 4), name="short")
    with pytest.raises(
        InvalidModel, match=r"short has no channels that may be removed \('0': it is the network's output"
    ):
        network.require_free()


def test_a_model_that_is_no_cnn_is_told_what_widthwise_is_for() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.out = nn.LSTM(6, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.lstm(x)[0])

    with pytest.raises(InvalidModel, match=r"no convolution: widthwise makes convolutional networks \(CNNs\) faster"):
        Network.trace(Recurrent(), torch.zeros(4, 2, 6)).require_free()
