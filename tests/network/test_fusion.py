"""Fused layers: what deployed runtimes execute as one kernel."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from widthwise.network.fusion import as_timed, fused, split_tail
from widthwise.network.layers import Layer
from widthwise.network.network import Network


class Block(nn.Module):
    """A residual block with a projection, and what surrounds it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 13, 3, padding=1, bias=False)
        self.first = nn.Conv2d(13, 17, 3, stride=2, padding=1, bias=False)
        self.first_bn = nn.BatchNorm2d(17)
        self.second = nn.Conv2d(17, 19, 3, padding=1, bias=False)
        self.second_bn = nn.BatchNorm2d(19)
        self.projection = nn.Conv2d(13, 19, 1, stride=2, bias=False)
        self.projection_bn = nn.BatchNorm2d(19)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(19, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = torch.relu(self.first_bn(self.first(x)))
        y = self.second_bn(self.second(y)) + self.projection_bn(self.projection(x))
        y = torch.relu(y).mean((2, 3))
        return self.head(self.drop(y))


def layers_of(model: nn.Module, *shape: int) -> dict[str, Layer]:
    network = fused(Network.trace(model, torch.zeros(shape)))
    return {layer.name: layer for layer in network.layers}


def test_a_residual_block_is_what_runtimes_make_of_it() -> None:
    layers = layers_of(Block(), 1, 3, 7, 7)
    tails = {name: split_tail(layer.geometry)[1] for name, layer in layers.items()}
    assert tails == {
        "stem": (),
        "first": ("relu",),
        "second": ("add", "relu"),  # the addition's first argument, as ONNX Runtime and OpenVINO have it
        "projection": (),
        "mean": (),
        "head": (),
    }
    assert layers["second"].geometry.inputs == ((1, 0, 4, 4), (1, 0, 4, 4))
    assert layers["second"].fused == ("second", "second_bn", "add", "relu_1")
    assert layers["mean"].fused == ("mean", "drop")
    assert layers["first"].geometry.option("bias") is True  # the batch norm's
    assert layers["stem"].geometry.option("bias") is False


def test_every_operation_belongs_to_exactly_one_layer(network: Network) -> None:
    members = [name for layer in fused(network).layers for name in layer.fused]
    assert sorted(members) == sorted(layer.name for layer in network.layers)


def test_shapes_counts_and_signature_stay(network: Network) -> None:
    together = fused(network)
    assert together.signature == network.signature
    assert together.macs(network.dense) == network.macs(network.dense)
    assert together.parameters(network.dense) == network.parameters(network.dense)
    assert fused(together) is together


class Shared(nn.Module):
    """Results needed twice, and an activation that is a product."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 7, 1)
        self.other = nn.Conv2d(7, 7, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        x = x * torch.sigmoid(x)
        return torch.relu(x) + self.other(x).flatten(2).mean(2)[:, :, None, None]


def test_what_is_needed_twice_stays_apart() -> None:
    layers = layers_of(Shared(), 1, 3, 5, 5)
    assert {"conv", "sigmoid", "mul", "relu", "other"} <= layers.keys()
    assert all(not split_tail(layer.geometry)[1] for name, layer in layers.items() if name != "other")


@pytest.mark.parametrize(("kind", "tails"), [("fused", ("relu",)), (None, ())])
def test_a_table_says_which_layers_it_times(kind: str | None, tails: tuple[str, ...]) -> None:
    class Table:
        fingerprint = {"layers": kind} if kind else {}

    network = Network.trace(nn.Sequential(nn.Conv2d(3, 7, 1), nn.ReLU()), torch.zeros(1, 3, 5, 5))
    assert split_tail(as_timed(network, Table()).layers[0].geometry)[1] == tails  # type: ignore[arg-type]
