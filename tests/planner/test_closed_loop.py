"""Plan, measure, correct: in a world of known truth."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import widthwise as ww
from widthwise.luts.records import Role
from widthwise.network.network import Network
from widthwise.planner import closed_loop as module
from widthwise.planner.allocation import allocate
from widthwise.planner.closed_loop import Attempt, best_of, close_loop
from widthwise.planner.plan import Budget, Plan
from widthwise.planner.predictor import LatencyPredictor
from widthwise.planner.verification import Verification


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
    place = attempts.index(best)
    before = f"made after {place} measured plans; the last took {attempts[place - 1].share:.3f} of the budget"
    assert before in best.plan.notes[-1]


def test_a_plan_that_leaves_much_of_its_budget_is_widened(
    wide: nn.Module, wide_example: torch.Tensor, table: Path
) -> None:
    first = planned(wide, wide_example, table)
    wasteful = first.model_copy(update={"budget_ms": 1.2 * first.predicted_ms})
    best = best_of(close_loop(wasteful, wide, [wide_example], path=table, rounds=2))
    assert best.plan.importance > first.importance
    assert 0.95 <= best.share <= 1.0


@dataclass
class Asked:
    """What the allocator was asked for once."""

    predictor: LatencyPredictor
    target_ms: float
    options: dict[str, list[int]]


Looped = Callable[..., tuple[list[Plan], list[Asked]]]


@pytest.fixture
def looped(wide: nn.Module, wide_example: torch.Tensor, table: Path, monkeypatch: pytest.MonkeyPatch) -> Looped:
    """Runs the loop with measurements that are given, (share of the budget, half-width) each, and an allocator that
    reaches every target with the first group one option narrower than last time; the plans measured, all asked."""
    first = planned(wide, wide_example, table)
    (measured,) = close_loop(first, wide, [wide_example], path=table, rounds=0)

    def loop(*taken: tuple[float, float], reach: float = 1.0) -> tuple[list[Plan], list[Asked]]:
        plans, asked = [first], list[Asked]()
        group = next(iter(first.dense))

        def verified(plan: Plan, *_: object, **__: object) -> Verification:
            if plan is not plans[-1]:
                plans.append(plan)
            share, doubt = taken[len(plans) - 1] if len(plans) <= len(taken) else (0.98, 0.01)
            ms = share * first.budget_ms
            interval_ms = ms * math.exp(-doubt), ms * math.exp(doubt)
            return replace(measured.verification, measured_ms=ms, measured_interval_ms=interval_ms)

        def allocated(
            predictor: LatencyPredictor,
            _: object,
            target: Budget,
            *__: object,
            options: dict[str, list[int]],
            **___: object,
        ) -> Plan:
            asked.append(Asked(predictor, target.value, options))
            predicted_ms = target.value * (1.0 if options == asked[0].options else reach)
            widths = plans[-1].widths | {group: plans[-1].widths[group] - 1}
            return first.model_copy(update={"widths": widths, "predicted_ms": predicted_ms})

        monkeypatch.setattr(module, "verify", verified)
        monkeypatch.setattr(module, "allocate", allocated)
        monkeypatch.setattr(module, "narrow", lambda *_: None)
        close_loop(first, wide, [wide_example], path=table, rounds=len(taken))
        return plans, asked

    return loop


def missed_by(asked: Asked, plan: Plan) -> float:
    """The miss of a plan's prediction that the target was scaled by."""
    return 0.98 * plan.budget_ms / asked.target_ms


def test_a_new_plan_aims_a_little_below_the_budget_by_what_the_last_prediction_missed(looped: Looped) -> None:
    plans, asked = looped((1.03, 0.01))
    predicted_ms = asked[0].predictor.predict(plans[0].widths).latency_ms
    assert missed_by(asked[0], plans[0]) == pytest.approx(1.03 * plans[0].budget_ms / predicted_ms)


@pytest.mark.parametrize(
    ("taken", "weight"),
    [
        (((1.03, 0.01), (0.98 * 0.98 / 1.03, 0.01)), 0.5),
        (((1.05, 1e-6), (0.98 * 0.98 / 1.05, 0.2)), 0.01),
        (((1.05, 0.2), (0.98 * 0.98 / 1.05, 1e-6)), 0.99),
        (((1.4, 0.01), (0.95, 0.01)), 0.99),
    ],
    ids=["as sure", "first surer", "second surer", "second nearer"],
)
def test_measured_plans_count_by_their_doubt_and_their_distance(
    looped: Looped, taken: tuple[tuple[float, float], ...], weight: float
) -> None:
    """``weight`` is the second one's."""
    plans, asked = looped(*taken)
    last = asked[2]  # free and near for each new plan
    misses = [
        math.log(share * plan.budget_ms / last.predictor.predict(plan.widths).latency_ms)
        for plan, (share, _) in zip(plans, taken, strict=False)
    ]
    expected = math.exp((1 - weight) * misses[0] + weight * misses[1])
    assert missed_by(last, plans[0]) == pytest.approx(expected, rel=0.005)


def test_a_new_plan_stays_near_the_measured_one_that_came_nearest(looped: Looped) -> None:
    plans, asked = looped((0.6, 0.01), (1.01, 0.01))
    every, near = asked[2].options, asked[3].options
    for group, widths in every.items():
        assert plans[1].widths[group] in near[group]
        place = min(range(len(widths)), key=lambda index: abs(widths[index] - plans[1].widths[group]))
        assert set(near[group]) - {plans[1].widths[group]} <= set(widths[max(0, place - 1) : place + 2])
    assert any(len(near[group]) > 1 for group in near)


def test_where_no_near_widths_reach_the_target_it_looks_further(looped: Looped) -> None:
    plans, asked = looped((1.3, 0.01), reach=0.9)
    sizes = [max(map(len, each.options.values())) for each in asked[:4]]
    assert sizes[1] < sizes[2] < sizes[3] <= sizes[0], "free, then 1, 2 and 4 options either way"
    assert plans[1].predicted_ms > 0.95 * plans[0].budget_ms, "none came near, so the free one"


@pytest.mark.parametrize("given_up", [0.5, 0.02])
def test_a_plan_near_a_bad_one_says_what_it_gives_up_and_none_gives_up_much(
    wide: nn.Module, wide_example: torch.Tensor, table: Path, monkeypatch: pytest.MonkeyPatch, given_up: float
) -> None:
    """The measured plan has all channels but those of one group."""
    first = planned(wide, wide_example, table)
    lopsided = first.dense | {list(first.dense)[-1]: 8}
    kept = {group: list(range(width)) for group, width in lopsided.items()}
    bad = first.model_copy(update={"widths": lopsided, "kept": kept})
    (there,) = close_loop(bad, wide, [wide_example], path=table, rounds=0)
    slow = bad.model_copy(update={"budget_ms": there.verification.measured_ms / 1.02})
    made: list[Plan] = []

    def allocated(*arguments: Any, **named: Any) -> Plan:
        made.append(allocate(*arguments, **named))
        return made[-1]

    monkeypatch.setattr(module, "allocate", allocated)
    monkeypatch.setattr(module, "_GIVEN_UP", given_up)
    _, second = close_loop(slow, wide, [wide_example], path=table, rounds=1)
    found, free = second.plan.certificate, made[0].certificate
    assert found.bound == free.bound
    chosen = next(plan for plan in made if plan.widths == second.plan.widths)
    missed = second.plan.predicted_ms / chosen.predicted_ms
    assert second.plan.minimum_ms == pytest.approx(made[0].minimum_ms * missed), "of all widths, too"
    if given_up == 0.5:
        assert second.plan.widths == made[-1].widths != made[0].widths
        assert found.status == "feasible" and found.gap == pytest.approx((found.bound - found.objective) / found.bound)
        assert found.gap > 0.02
    else:
        assert second.plan.importance >= 0.98 * made[0].importance


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
