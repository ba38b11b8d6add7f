from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

import widthwise as ww
from widthwise.luts.errors import BadInput
from widthwise.network.network import Network
from widthwise.planner import frontier as module
from widthwise.planner.frontier import frontier
from widthwise.planner.importance import score
from widthwise.planner.predictor import LatencyPredictor
from widthwise.planner.solver import solve


@pytest.fixture(scope="module")
def predictor(wide_table: Path, wide_network: Network) -> Iterator[LatencyPredictor]:
    with ww.Lut.open(wide_table, readonly=True) as lut:
        yield LatencyPredictor.fit(lut, wide_network)


def test_every_point_is_the_best_of_all_widths(
    fitted: LatencyPredictor, wide: nn.Module, wide_network: Network
) -> None:
    predictor = fitted
    importance = score(wide, wide_network)
    options = {group: (size // 4, size // 2, size) for group, size in wide_network.dense.items()}
    shares: list[float] = []
    found = frontier(predictor, importance, options, points=9, on_progress=shares.append)
    assert shares[-1] == 1.0 and len(found) > 4
    every = [dict(zip(options, chosen, strict=True)) for chosen in itertools.product(*options.values())]
    latencies = predictor.predict_many(every)
    assert found[0].latency_ms == pytest.approx(latencies.min())
    assert dict(found[-1].widths) == wide_network.dense and found[-1].importance == pytest.approx(1.0)
    for point in found:
        assert point.latency_ms == pytest.approx(predictor.predict(point.widths).latency_ms, rel=1e-9)
        best = max(
            importance.retained(widths)
            for widths, ms in zip(every, latencies, strict=True)
            if ms <= point.budget_ms * (1 + 1e-9)
        )
        assert point.importance == pytest.approx(best, rel=1e-4)
        assert point.latency_ms <= point.budget_ms * (1 + 1e-9)
    assert [point.importance for point in found] == sorted(point.importance for point in found)


def test_what_fits_into_less_is_not_asked_for_again(
    predictor: LatencyPredictor, wide: nn.Module, wide_network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    monkeypatch.setattr(
        module, "solve", lambda problem, **more: asked.append(problem.budget_ms) or solve(problem, **more)
    )
    options = {group: (size,) for group, size in wide_network.dense.items()}
    first = next(iter(options))
    options[first] = (options[first][0] // 2, options[first][0])
    found = frontier(predictor, score(wide, wide_network), options, points=12)
    assert [point.widths[first] for point in found] == list(options[first])
    assert [point.budget_ms for point in found] == pytest.approx([point.latency_ms for point in found])
    assert len(asked) == 3 and asked[0] == -math.inf  # the least latency, the dense network, and below it once


def test_one_point_is_no_frontier(predictor: LatencyPredictor, wide: nn.Module, wide_network: Network) -> None:
    with pytest.raises(BadInput, match="at least 2 points, got 1"):
        frontier(predictor, score(wide, wide_network), wide_network.options(), points=1)
