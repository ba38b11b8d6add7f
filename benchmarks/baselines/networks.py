"""Real networks as allocation problems: profiled tables, L1 importance, one cost a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch

import widthwise as ww
from widthwise.luts import Lut
from widthwise.network.granularity import options_from
from widthwise.network.layers import Layer
from widthwise.network.loading import load_model
from widthwise.network.network import Network
from widthwise.planner.allocation import build_problem
from widthwise.planner.importance import Importance, score
from widthwise.planner.predictor import LatencyPredictor
from widthwise.planner.problem import Cost, Problem, SumOver

__all__ = ["NETWORKS", "Case", "by_layer", "profiled", "read"]

NETWORKS = ("resnet50", "mobilenet_v2", "efficientnet_b0", "googlenet", "densenet121")

Options = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Case:
    """A network on a table.

    Args:
        name: of the network.
        table: what it was measured on, and how many networks.
        predictor, importance, options: what :func:`widthwise.planner.allocation.build_problem` takes.
    """

    name: str
    table: Mapping[str, object]
    predictor: LatencyPredictor
    importance: Importance
    options: Options


def profiled(name: str, path: Path, *, target: str, time_s: float) -> None:
    """Measures a network into the table at ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    model, example = load_model(f"torchvision:{name}"), _example()
    with ww.profile(model, example, path=path, target=target, time_s=time_s, name=f"torchvision:{name}"):
        pass


def read(name: str, path: Path) -> Case:
    """The network, its predictor and its L1 importance from a table."""
    model = load_model(f"torchvision:{name}")
    network = Network.trace(model, (_example(),), name=f"torchvision:{name}")
    with Lut.open(path, readonly=True) as lut:
        networks = len(lut.networks(network.signature))
        table = {**lut.target, "cpu": lut.fingerprint.get("cpu"), "networks": networks}
        predictor, options = LatencyPredictor.fit(lut, network), options_from(lut, network)
    return Case(name, table, predictor, score(model, network), options)


def by_layer(case: Case) -> Problem:
    """The problem that :func:`widthwise.planner.allocation.build_problem` makes, one cost a layer, output width last.

    That one adds up all layers over the same two widths, whichever of them is the input; HALP has to know.
    """
    whole = build_problem(case.predictor, case.importance, case.predictor.dense_ms, case.options)
    costs, fixed_ms = [], case.predictor.fixed_ms
    for layer in case.predictor.network.layers:
        alone = build_problem(_only(case.predictor, layer), case.importance, case.predictor.dense_ms, case.options)  # type: ignore[arg-type]
        fixed_ms += alone.fixed_ms
        costs += [_output_last(cost, layer) for cost in alone.costs]
    return Problem(budget_ms=whole.budget_ms, fixed_ms=fixed_ms, groups=whole.groups, costs=tuple(costs))


def _only(predictor: LatencyPredictor, layer: Layer) -> SimpleNamespace:
    """A predictor of one layer, without the whole network's offset."""
    only = SimpleNamespace(network=SimpleNamespace(layers=[layer]), surface_ms=predictor.surface_ms, fixed_ms=0.0)
    only.around = lambda latency_ms: only
    return only


def _output_last(cost: Cost, layer: Layer) -> Cost:
    if len(cost.over) == 1 or isinstance(cost.over[0], SumOver) or cost.over[1] in layer.axes[-1].groups:
        return cost
    return Cost(over=cost.over[::-1], ms=cost.ms.T, sums=cost.sums)


def _example() -> torch.Tensor:
    return torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
