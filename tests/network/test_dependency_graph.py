"""Groups held against an independent source: Torch-Pruning's dependency graph (DepGraph, CVPR 2023)."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from widthwise.network.loading import load_model
from widthwise.network.modules import is_depthwise
from widthwise.network.network import Network


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "googlenet", "squeezenet1_1"])
def test_groups_are_those_of_the_dependency_graph(name: str) -> None:
    """Which layers make a group's channels, and how many there are."""
    tp = pytest.importorskip("torch_pruning")
    model = load_model(f"torchvision:{name}")
    example = torch.zeros(1, 3, 64, 64)
    network = Network.trace(model, example)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = tp.DependencyGraph().build_dependency(model, example_inputs=example)
    names = {module: path for path, module in model.named_modules()}
    theirs = set()
    for group in graph.get_all_groups():
        makers = {
            names[item.dep.target.module]
            for item in group
            if graph.is_out_channel_pruning_fn(item.dep.handler)
            and isinstance(item.dep.target.module, nn.Conv2d | nn.Linear)
            and not is_depthwise(item.dep.target.module)
        }
        theirs.add((frozenset(makers), len(group[0].idxs)))
    assert {(frozenset(group.producers), group.size) for group in network.groups} == theirs
