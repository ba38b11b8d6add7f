"""Each construct is traced, and narrows correctly or is locked with its reason."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import randomised
from tests.network.constructs import CONSTRUCTS
from widthwise.network.network import Network
from widthwise.network.proof import prove

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
