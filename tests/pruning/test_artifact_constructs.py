"""A narrow network of every construct reloads from its folder: by its factory, and from the graph where one is kept."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.conftest import randomised
from tests.network.constructs import CONSTRUCTS
from tests.pruning.nets import plan_of
from widthwise.luts.errors import InvalidModel, WidthwiseError
from widthwise.network.narrowing import narrow, resize, tensors
from widthwise.network.network import Network
from widthwise.pruning.artifact import load, save

PRUNABLE = [name for name, case in CONSTRUCTS.items() if case.free]
NO_GRAPH = {"convolution subclass", "flipped channels"}
"""Constructs whose graph isn't kept as data; the folder then asks for the factory."""


@pytest.mark.parametrize("name", PRUNABLE)
def test_reloads(name: str) -> None:
    case = CONSTRUCTS[name]
    torch.manual_seed(0)
    model = randomised(case.factory())
    example = [torch.randn(shape) for shape in case.inputs]
    network = Network.trace(model, example, name="tests")
    plan = plan_of(network, model)
    small = narrow(model, network, plan.kept).eval()
    with torch.no_grad(), tempfile.TemporaryDirectory() as place:
        expected = tensors(small(*example))
        folder = save(Path(place) / "out", small, plan)
        assert same(expected, tensors(load(folder, model=case.factory)(*example)))
        if name in NO_GRAPH:
            with pytest.raises(WidthwiseError, match="model="):
                load(folder)
        else:
            assert same(expected, tensors(load(folder)(*example)))


def same(expected: list[torch.Tensor], got: list[torch.Tensor]) -> bool:
    return len(expected) == len(got) and all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


def test_convolution_groups_share_channels_evenly() -> None:
    model = nn.Sequential(nn.Conv2d(21, 15, 1, groups=3))
    with pytest.raises(InvalidModel, match="3 convolution groups can't share 12 and 10 channels evenly"):
        resize(model, {"0": (12, 10)})
    assert resize(model, {"0": (12, 9)})[0].weight.shape == (9, 4, 1, 1)  # type: ignore[index]
