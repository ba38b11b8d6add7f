from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import widthwise as ww
from widthwise.luts.spec import LayerSpec
from widthwise.luts.store import Lut
from widthwise.network.network import Network
from widthwise.planner.predictor import LatencyPredictor
from widthwise.planner.proposal import Proposer
from widthwise.profiling.sampler import grid_points


def test_proposals_are_plans_for_budgets_of_all_sizes(wide_lut: Lut, wide: nn.Module, wide_network: Network) -> None:
    options = wide_network.options()
    proposed = Proposer(wide, wide_network).networks(wide_lut, range(12), options)
    assert all(width in options[group] for widths in proposed for group, width in widths.items())
    predictor = LatencyPredictor.fit(wide_lut, wide_network)
    shares = predictor.predict_many(proposed) / predictor.dense_ms
    assert shares.min() < 0.5 and shares.max() > 0.6 and (shares < 0.95).all()
    assert Proposer(wide, wide_network).networks(wide_lut, range(12), options) == proposed


def test_single_layers_go_where_a_plan_would_be_least_certain(
    wide_lut: Lut, wide: nn.Module, wide_network: Network
) -> None:
    options = wide_network.options()
    specs = Proposer(wide, wide_network).layers(wide_lut, options, most=9)
    predictor = LatencyPredictor.fit(wide_lut, wide_network)

    def doubt_ms(spec: LayerSpec) -> float:
        return float(predictor.doubt_ms(spec.geometry, np.array([spec.channels]))[0])

    doubts = [doubt_ms(spec) for spec in specs]
    assert doubts == sorted(doubts, reverse=True) and len(set(specs)) == 9
    for geometry, points in grid_points(wide_network, options).items():
        assert doubts[0] >= max(doubt_ms(LayerSpec(geometry, point)) for point in points) * (1 - 1e-9)


def test_a_network_without_prunable_channels_is_only_measured(tmp_path: Path) -> None:
    model = nn.Conv2d(3, 7, 3)
    with ww.profile(model, torch.zeros(1, 3, 9, 9), path=tmp_path / "t.lut", target="fake:cpu", time_s=1) as lut:
        assert ww.predict(model, torch.zeros(1, 3, 9, 9), lut=lut).latency_ms == pytest.approx(
            lut.networks()[0].latency_ms, rel=0.1
        )
