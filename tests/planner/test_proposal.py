from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import widthwise as ww
from widthwise.luts.records import Role
from widthwise.luts.store import Lut
from widthwise.network.network import Network
from widthwise.planner.predictor import LatencyPredictor
from widthwise.planner.proposal import Proposer
from widthwise.profiling.profiler import Profiler, open_table
from widthwise.profiling.runtimes.fake import FakeRuntime
from widthwise.profiling.sampler import WidthSampler
from widthwise.profiling.target import Target


def test_proposals_are_plans_for_budgets_of_all_sizes(wide_lut: Lut, wide: nn.Module, wide_network: Network) -> None:
    proposed = Proposer(wide, wide_network)(wide_lut, range(12))
    options = wide_network.options()
    assert all(width in options[group] for widths in proposed for group, width in widths.items())
    predictor = LatencyPredictor.fit(wide_lut, wide_network)
    shares = predictor.predict_many(proposed) / predictor.dense_ms
    assert shares.min() < 0.5 and shares.max() > 0.6 and (shares < 0.95).all()
    assert Proposer(wide, wide_network)(wide_lut, range(12)) == proposed


def test_every_other_batch_is_proposed_once_the_table_knows_enough(
    tmp_path: Path, wide: nn.Module, wide_network: Network, wide_example: torch.Tensor
) -> None:
    asked: list[list[int]] = []

    def propose(lut: Lut, indices: list[int]) -> list[dict[str, int]]:
        asked.append(list(indices))
        return [wide_network.dense | {"conv2": 8} for _ in indices]

    runtime = FakeRuntime(Target.parse("fake:cpu"))
    with open_table(tmp_path / "t.lut", runtime) as lut:
        profiler = Profiler(wide, wide_network, (wide_example,), runtime=runtime, lut=lut, propose=propose)
        profiler.run(time_s=60, networks=32)
        records = lut.networks(wide_network.signature)
    assert asked == [[20, 21, 22, 23], [28, 29, 30, 31]]
    sampler = WidthSampler(wide_network.options())
    for index, record in enumerate(records):
        drawn = sampler.draw(index)
        assert record.role is drawn.role, "planned networks are held out as often as random ones"
        planned = index in (20, 21, 23, 28, 29, 30, 31)  # 22 is the dense network's turn
        assert dict(record.widths) == (wide_network.dense | {"conv2": 8} if planned else drawn.widths)
    assert records[20].role is Role.HOLDOUT


def test_a_network_without_prunable_channels_is_only_measured(tmp_path: Path) -> None:
    model = nn.Conv2d(3, 7, 3)
    with ww.profile(model, torch.zeros(1, 3, 9, 9), path=tmp_path / "t.lut", target="fake:cpu", time_s=1) as lut:
        assert ww.predict(model, torch.zeros(1, 3, 9, 9), lut=lut).latency_ms == pytest.approx(
            lut.networks()[0].latency_ms, rel=0.1
        )
