from __future__ import annotations

import itertools
import random
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import widthwise as ww
from widthwise.luts.errors import BadInput, InfeasibleBudget, InvalidTable
from widthwise.luts.measurement import Block, Measurement
from widthwise.luts.records import Role
from widthwise.luts.store import Lut
from widthwise.network.network import Network
from widthwise.network.widths import Widths
from widthwise.planner import verification
from widthwise.planner.allocation import Budget, allocate, build_problem
from widthwise.planner.demands import Demands
from widthwise.planner.importance import score
from widthwise.planner.predictor import LatencyPredictor
from widthwise.planner.verification import Verdict, judge, relative
from widthwise.profiling.runtimes.fake import FakeRuntime, World


@pytest.fixture(scope="module")
def predictor(wide_table: Path, wide_network: Network) -> LatencyPredictor:
    with Lut.open(wide_table, readonly=True) as lut:
        return LatencyPredictor.fit(lut, wide_network)


def test_the_problem_prices_every_width_vector_as_the_predictor_does(
    predictor: LatencyPredictor, wide: nn.Module, wide_network: Network
) -> None:
    """Concatenation, residual and mean included; to rounding."""
    options = wide_network.options()
    problem = build_problem(predictor, score(wide, wide_network), 1.0, options)
    rng = random.Random(0)
    for _ in range(30):
        widths = {group: rng.choice(choices) for group, choices in options.items()}
        assert problem.latency_ms(widths) == pytest.approx(predictor.predict(widths).latency_ms, rel=1e-9)


def test_flatten_and_depthwise_are_priced_too(tmp_path: Path, branches: nn.Module, example: torch.Tensor) -> None:
    with ww.profile(branches, example, path=tmp_path / "t.lut", target="fake:cpu", time_s=2) as lut:
        network = Network.trace(branches, example)
        predictor = LatencyPredictor.fit(lut, network)
        options = network.options(dict.fromkeys(network.options(), 4))
        problem = build_problem(predictor, score(branches, network), 1.0, options)
        widths = {group: choices[0] for group, choices in options.items()}
        assert problem.latency_ms(widths) == pytest.approx(predictor.predict(widths).latency_ms, rel=1e-9)


@pytest.mark.parametrize("share", [0.6, 0.25])
def test_the_plan_is_the_best_of_all_width_vectors(
    fitted: LatencyPredictor, wide_lut: Lut, wide: nn.Module, wide_network: Network, share: float
) -> None:
    """Against brute force over a coarse grid."""
    options = wide_network.options(dict.fromkeys(wide_network.options(), 16), most=3)
    importance = score(wide, wide_network)
    vectors = [dict(zip(options, chosen, strict=True)) for chosen in itertools.product(*options.values())]
    latencies = fitted.predict_many(vectors)
    budget_ms = latencies.min() + share * (fitted.dense_ms - latencies.min())
    plan = allocate(fitted, importance, Budget(budget_ms, relative=False), wide_lut, options=options)
    feasible = [v for v, ms in zip(vectors, latencies, strict=True) if ms <= budget_ms]
    assert plan.importance == pytest.approx(max(importance.retained(widths) for widths in feasible), rel=1e-6)
    assert plan.predicted_ms == fitted.predict(plan.widths).latency_ms <= budget_ms
    assert plan.minimum_ms == pytest.approx(latencies.min(), rel=1e-6)
    assert (
        sum(ms for _, ms in fitted.breakdown(plan.widths))
        <= plan.predicted_ms - fitted.around(budget_ms).fixed_ms + 1e-9
    )


def test_the_fastest_network_that_keeps_enough_is_the_fastest_of_all(
    fitted: LatencyPredictor, wide_lut: Lut, wide: nn.Module, wide_network: Network
) -> None:
    options = wide_network.options(dict.fromkeys(wide_network.options(), 16), most=3)
    importance = score(wide, wide_network)
    vectors = [dict(zip(options, chosen, strict=True)) for chosen in itertools.product(*options.values())]
    for keep in (0.9, 0.3):
        plan = allocate(fitted, importance, None, wide_lut, options=options, demands=Demands(keep=keep))
        enough = [v for v in vectors if importance.retained(v) >= keep]
        assert plan.predicted_ms == pytest.approx(fitted.predict_many(enough).min(), rel=1e-5)
        assert plan.certificate.objective == pytest.approx(plan.predicted_ms)
        assert plan.certificate.bound <= plan.predicted_ms * (1 + 1e-9) and plan.certificate.gap <= 1e-4


@pytest.mark.parametrize("budget", ["80%", "60%", "40%"])
def test_plans_meet_their_budget_in_the_fake_world(
    wide_table: Path, wide: nn.Module, wide_example: torch.Tensor, budget: str, tmp_path: Path
) -> None:
    copy = tmp_path / "wide.lut"
    copy.write_bytes(wide_table.read_bytes())
    plan = ww.plan(wide, wide_example, lut=copy, budget=budget)
    assert plan.predicted_ms <= plan.budget_ms
    assert plan.gap <= 1e-4
    assert plan.interval_ms[0] < plan.predicted_ms < plan.interval_ms[1]
    found = ww.verify(plan, ww.apply(plan, wide), wide_example, lut=copy, dense=wide)
    assert 0.9 < found.measured_ms / plan.budget_ms < 1.05
    with Lut.open(copy, readonly=True) as lut:
        kept = [record for record in lut.networks(plan.signature) if record.role is Role.VERIFY]
        assert [dict(record.widths) for record in kept] == [plan.dense, plan.widths]


def test_a_budget_the_dense_network_meets_keeps_everything(
    wide_table: Path, wide: nn.Module, wide_example: torch.Tensor
) -> None:
    plan = ww.plan(wide, wide_example, lut=wide_table, budget="110%")
    assert plan.widths == plan.dense
    assert plan.certificate.status == "unchanged"
    assert "already meets the budget" in plan.notes[0]


def test_an_unreachable_budget_names_the_least(wide_table: Path, wide: nn.Module, wide_example: torch.Tensor) -> None:
    with pytest.raises(InfeasibleBudget, match="the least it reaches is") as raised:
        ww.plan(wide, wide_example, lut=wide_table, budget_ms=1e-4)
    again = ww.plan(wide, wide_example, lut=wide_table, budget_ms=raised.value.minimum_ms * 1.0001)
    assert again.predicted_ms <= raised.value.minimum_ms * 1.0001


def test_one_budget_is_needed(wide_table: Path, wide: nn.Module, wide_example: torch.Tensor) -> None:
    with pytest.raises(BadInput, match="give one of budget"):
        ww.plan(wide, wide_example, lut=wide_table)
    with pytest.raises(InvalidTable, match="make one with `widthwise profile"):
        ww.plan(wide, wide_example, lut="nowhere.lut", budget="60%")


def test_planning_is_deterministic(wide_table: Path, wide: nn.Module, wide_example: torch.Tensor) -> None:
    plans = [ww.plan(wide, wide_example, lut=wide_table, budget="50%") for _ in range(2)]
    assert plans[0].widths == plans[1].widths and plans[0].kept == plans[1].kept


def test_verdicts_are_three_valued() -> None:
    assert judge(10.0, (9.7, 10.3), 12.0)[0] is Verdict.MEETS
    assert judge(10.0, (9.7, 10.3), 8.0)[0] is Verdict.MISSES
    verdict, reason = judge(10.0, (9.7, 10.3), 10.0)
    assert verdict is Verdict.UNCLEAR and "verify again on a quieter machine" in reason


def test_the_doubts_of_both_models_add_up_in_quadrature() -> None:
    def measured(*latencies_ms: float) -> Measurement:
        return Measurement(tuple(Block(ms, 1.0) for ms in latencies_ms), 1.0)

    small, dense = measured(3.0, 3.0, 3.0, 3.0), measured(5.7, 6.0, 6.0, 6.3)
    latency_ms, (low_ms, high_ms) = relative(small, dense, 12.0)
    assert latency_ms == pytest.approx(6.0)
    assert latency_ms / low_ms == pytest.approx(6.0 / dense.interval_ms[0])
    assert high_ms / latency_ms == pytest.approx(dense.interval_ms[1] / 6.0)
    assert relative(dense, dense, 6.0)[1][1] / 6.0 == pytest.approx((dense.interval_ms[1] / 6.0) ** 2**0.5)


class _SlowerNetworks(FakeRuntime):
    """Since the table was made, something slows networks down that leaves the reference kernels alone."""

    def true_ms(self, network: ww.Network, widths: Widths) -> float:
        return 1.3 * super().true_ms(network, widths)


def test_verifying_divides_out_what_slows_the_dense_model_too(
    tmp_path: Path, wide_table: Path, wide: nn.Module, wide_example: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = shutil.copy(wide_table, tmp_path / "t.lut")
    plan = ww.plan(wide, wide_example, lut=table, budget="60%")
    small = ww.apply(plan, wide, wide_example)
    monkeypatch.setattr(verification, "open_runtime", lambda target: _SlowerNetworks(target, World(seed=8)))
    beside_dense = ww.verify(plan, small, wide_example, lut=table, dense=wide)
    assert beside_dense.pace == pytest.approx(1.3, rel=0.03)
    assert beside_dense.measured_ms == pytest.approx(plan.predicted_ms, rel=0.05)
    alone = ww.verify(plan, small, wide_example, lut=table)
    assert alone.pace is None and alone.measured_ms == pytest.approx(1.3 * plan.predicted_ms, rel=0.05)
    assert alone.verdict is Verdict.MISSES
