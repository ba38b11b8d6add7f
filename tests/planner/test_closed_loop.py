"""Plan, measure, correct: in a world of known truth."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import widthwise as ww
from widthwise.luts.records import Role
from widthwise.network.network import Network
from widthwise.planner import closed_loop as module
from widthwise.planner.closed_loop import Attempt, best_of, close_loop
from widthwise.planner.plan import Budget, Plan
from widthwise.planner.predictor import LatencyPredictor


@pytest.fixture
def table(wide_table: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(wide_table, tmp_path / "own.lut"))


def planned(wide: nn.Module, example: torch.Tensor, table: Path, budget: str = "60%") -> Plan:
    return ww.plan(wide, example, lut=table, budget=budget, name="tests/conftest.py:wide_net")


def test_a_plan_that_misses_is_replaced_by_one_that_holds(
    wide: nn.Module, wide_example: torch.Tensor, table: Path
) -> None:
    first = planned(wide, wide_example, table)
    slow = first.model_copy(update={"budget_ms": 0.8 * first.predicted_ms})
    told: list[Attempt] = []
    attempts = close_loop(slow, wide, [wide_example], path=table, rounds=3, on_attempt=told.append)
    assert told == attempts and 2 <= len(attempts) <= 4
    assert attempts[0].share == pytest.approx(1.25, abs=0.05)
    best = best_of(attempts)
    assert 0.94 <= best.share <= 1.0, "widths of so small a network come in steps of 1 to 5 %"
    assert best.plan.budget_ms == slow.budget_ms and best.plan.dense_ms == slow.dense_ms
    assert best.plan.predicted_ms == pytest.approx(best.verification.measured_ms, rel=0.02)
    assert "made after 1 measured plans; the last took 1.2" in best.plan.notes[-1]


def test_a_plan_that_leaves_much_of_its_budget_is_widened(
    wide: nn.Module, wide_example: torch.Tensor, table: Path
) -> None:
    first = planned(wide, wide_example, table)
    wasteful = first.model_copy(update={"budget_ms": 1.2 * first.predicted_ms})
    best = best_of(close_loop(wasteful, wide, [wide_example], path=table, rounds=2))
    assert best.plan.importance > first.importance
    assert 0.95 <= best.share <= 1.0


@pytest.mark.parametrize(
    ("shares", "aim"), [([0.9], 0.99), ([1.02], 0.97), ([1.02, 1.01], 0.96), ([1.5], 0.96), ([1.5, 0.9], 0.96)]
)
def test_every_plan_above_its_budget_lowers_what_the_next_aims_at(
    wide: nn.Module,
    wide_example: torch.Tensor,
    table: Path,
    monkeypatch: pytest.MonkeyPatch,
    shares: list[float],
    aim: float,
) -> None:
    """The last one's layers are known by then; the next would choose what the predictor underrates elsewhere."""
    first = planned(wide, wide_example, table)
    (measured,) = close_loop(first, wide, [wide_example], path=table, rounds=0)
    verifications = iter([replace(measured.verification, measured_ms=share * first.budget_ms) for share in shares])
    plans, aimed_at = [first], list[float]()
    group, width = next(iter(first.dense.items()))

    def allocated(predictor: LatencyPredictor, importance: object, target: Budget, *_: object, **__: object) -> Plan:
        missed = shares[len(aimed_at)] * first.budget_ms / predictor.predict(plans[-1].widths).latency_ms
        aimed_at.append(target.value * missed / first.budget_ms)
        plans.append(first.model_copy(update={"widths": first.widths | {group: width - len(plans)}}))
        return plans[-1]

    monkeypatch.setattr(module, "verify", lambda *_, **__: next(verifications))
    monkeypatch.setattr(module, "allocate", allocated)
    monkeypatch.setattr(module, "narrow", lambda *_: None)
    with pytest.raises(StopIteration):
        close_loop(first, wide, [wide_example], path=table, rounds=9)
    assert aimed_at[-1] == pytest.approx(aim)


def test_what_is_measured_is_kept_with_its_layers(wide: nn.Module, wide_example: torch.Tensor, table: Path) -> None:
    plan = planned(wide, wide_example, table)
    with ww.Lut.open(table, readonly=True) as lut:
        before = len(list(lut.layers()))
    close_loop(plan, wide, [wide_example], path=table, rounds=0)
    with ww.Lut.open(table, readonly=True) as lut:
        kept = [record for record in lut.networks(plan.signature) if record.role is Role.VERIFY]
        after = list(lut.layers())
    assert [record.widths for record in kept] == [plan.dense, plan.widths], "which counts in terms of the dense one"
    layers = Network.trace(wide, wide_example).layers
    assert len(after) - before == 2 * len(layers)
    assert {layer.geometry for layer in layers} >= {record.spec.geometry for record in after[before:]}


def test_a_budget_no_widths_reach_ends_with_the_nearest(
    wide: nn.Module, wide_example: torch.Tensor, table: Path
) -> None:
    first = planned(wide, wide_example, table)
    hopeless = first.model_copy(update={"budget_ms": 0.01 * first.dense_ms})
    attempts = close_loop(hopeless, wide, [wide_example], path=table, rounds=3)
    assert len(attempts) == 1 and not best_of(attempts).meets


def test_the_best_is_the_most_important_within_the_budget(
    wide: nn.Module, wide_example: torch.Tensor, table: Path
) -> None:
    plan = planned(wide, wide_example, table)
    (attempt,) = close_loop(plan, wide, [wide_example], path=table, rounds=0)

    def at(share: float, importance: float) -> Attempt:
        verification = replace(attempt.verification, measured_ms=share * plan.budget_ms)
        return Attempt(plan.model_copy(update={"importance": importance}), verification)

    assert best_of([at(1.01, 0.9), at(0.97, 0.7), at(0.99, 0.8)]) == at(0.99, 0.8)
    assert best_of([at(1.2, 0.9), at(1.05, 0.7)]) == at(1.05, 0.7)
