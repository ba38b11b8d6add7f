"""Further limits, least latency that keeps enough, and bounds on widths, against trying all widths."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.planner.test_solver import _cost, problems
from widthwise.luts.errors import InvalidProblem
from widthwise.planner import fronts, solver
from widthwise.planner.formulation import Model
from widthwise.planner.incomparable import incomparable
from widthwise.planner.problem import Problem, WidthBounds
from widthwise.planner.solver import solve

AB: dict[str, Any] = {
    "a": {"widths": [2, 3, 5], "importance": [1.0, 2.0, 4.0]},
    "b": {"widths": [7, 11, 13], "importance": [1.0, 3.0, 4.0]},
}
MS = [{"over": ["a"], "ms": [1.0, 2.0, 3.0]}, {"over": ["b"], "ms": [1.0, 2.0, 4.0]}]
WEIGHTS = {
    "name": "parameters",
    "most": 40,
    "fixed": 4,
    "costs": [{"over": ["a", "b"], "amount": [[14, 22, 26], [21, 33, 39], [35, 55, 65]]}],
}


def limited(**changes: Any) -> Problem:
    return Problem(**{"budget_ms": 6.0, "groups": AB, "costs": MS, "limits": [WEIGHTS], **changes})


@st.composite
def limited_problems(draw: st.DrawFn) -> Problem:
    """Any small problem with one to three limits, and bounds and the other objective in some."""
    base = draw(problems())
    groups = {name: {"widths": list(g.widths), "importance": list(g.importance)} for name, g in base.groups.items()}
    names = "".join(groups)
    some = {name: draw(st.sampled_from(group["widths"])) for name, group in groups.items()}
    limits = []
    for i in range(draw(st.integers(1, 3))):
        costs = [_cost(draw, names, groups) for _ in range(draw(st.integers(0, 3)))]
        for cost in costs:
            cost["amount"] = cost.pop("ms")
        limit = {"name": f"limit{i}", "most": 0.0, "costs": costs, "fixed": draw(st.integers(-3, 5)) / 10}
        reached = Problem(groups=groups, costs=[], limits=[limit]).amounts(some)[f"limit{i}"]
        limits.append(limit | {"most": reached + draw(st.sampled_from([0.0, 0.0, 0.5, 3.0, -0.2]))})
    bounds = {name: WidthBounds(min=some[name]) for name in groups if draw(st.integers(0, 4)) == 0}
    data: dict[str, Any] = {"groups": groups, "costs": base.costs, "fixed_ms": base.fixed_ms}
    data |= {"limits": limits, "bounds": bounds}
    if draw(st.booleans()):
        keep = base.importance(some) + draw(st.sampled_from([0.0, 0.0, -1.0, 0.5]))
        return Problem(objective="latency", keep=keep, **data)
    return Problem(budget_ms=base.budget_ms, **data)


def best_of_all(problem: Problem) -> float | None:
    """The highest importance or the least latency within everything, or None."""
    found = []
    options = [[group.widths[i] for i in problem.allowed[name]] for name, group in problem.groups.items()]
    for choice in itertools.product(*options):
        widths = dict(zip(problem.groups, choice, strict=True))
        amounts, ms, importance = problem.amounts(widths), problem.latency_ms(widths), problem.importance(widths)
        if all(amounts[limit.name] <= limit.most for limit in problem.limits):
            if problem.objective == "importance" and ms <= problem.budget_ms:
                found.append(-importance)
            if problem.objective == "latency" and importance >= (problem.keep or 0.0):
                found.append(ms)
    if not found:
        return None
    return min(found) if problem.objective == "latency" else -min(found)


@settings(deadline=None, max_examples=60)
@given(limited_problems(), st.sampled_from([1, 500]), st.sampled_from([0, 20, 10_000]))
def test_equals_trying_all_widths(problem: Problem, first_pairs: int, most_rows: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solver, "_FIRST_PAIRS", first_pairs)
        patch.setattr(fronts, "_MAX_ROWS", most_rows)
        answer = solve(problem, relative_gap=1e-8)
    best = best_of_all(problem)
    assert answer.latency_ms == problem.latency_ms(answer.widths)
    assert {reached.name: reached.amount for reached in answer.limits} == problem.amounts(answer.widths)
    assert all(reached.least <= reached.amount for reached in answer.limits)
    if best is None:
        assert (answer.status, answer.bound) == ("infeasible", None)
        assert answer.reason
        return
    assert (answer.status, answer.reason) == ("optimal", None)
    value = answer.importance if problem.objective == "importance" else answer.latency_ms
    assert value == pytest.approx(best, rel=1e-8, abs=1e-8)
    assert all(reached.amount <= reached.most for reached in answer.limits)
    assert all(problem.bounds[name].allows(answer.widths[name]) for name in problem.bounds)
    assert answer.bound == pytest.approx(best, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("worth", [0.0, 0.125])
@pytest.mark.filterwarnings("error")
def test_a_limit_of_nothing_and_widths_worth_nothing(worth: float) -> None:
    """No scale can be taken from either; found by the test above."""
    groups = {"a": {"widths": [1, 2, 3, 4], "importance": [0.0, 0.0, 0.0, worth]}}
    limit = {"name": "limit", "most": 0.0, "costs": [{"over": ["a"], "amount": [0.0, 0.0, 0.1, 0.0]}]}
    costs = [{"over": ["a"], "ms": [0.1, 0.1, 0.0, 0.1]}]
    answer = solve(Problem(budget_ms=0.07, groups=groups, costs=costs, limits=[limit]))
    assert answer.status == "infeasible" and answer.reason is not None and "not all together" in answer.reason
    answer = solve(Problem(budget_ms=0.1, groups=groups, costs=costs, limits=[limit]))
    assert (answer.status, answer.importance, answer.gap) == ("optimal", worth, 0.0)


def test_the_limit_decides_and_says_so() -> None:
    # Within 6 ms a = 5, b = 11 keeps 7, but has 59 parameters; a = 3, b = 13 keeps 6 and has 43.
    assert solve(limited(limits=[])).widths == {"a": 5, "b": 11}
    answer = solve(limited(limits=[WEIGHTS | {"most": 45}]))
    assert (answer.status, answer.widths, answer.importance) == ("optimal", {"a": 3, "b": 13}, 6.0)
    assert answer.binding == ("parameters",)
    assert answer.limits[0].model_dump() == {"name": "parameters", "amount": 43, "most": 45, "least": 18}


def test_least_latency_that_keeps_enough() -> None:
    answer = solve(Problem(objective="latency", keep=6.0, groups=AB, costs=MS))
    assert (answer.status, answer.widths, answer.latency_ms) == ("optimal", {"a": 5, "b": 11}, 5.0)
    assert (answer.importance, answer.minimum_ms) == (7.0, 2.0)
    assert answer.bound is not None and answer.gap is not None
    assert 5.0 * (1 - 1e-5) <= answer.bound <= 5.0 and answer.gap == pytest.approx(5.0 / answer.bound - 1, abs=1e-9)
    with_limit = solve(Problem(objective="latency", keep=6.0, groups=AB, costs=MS, limits=[WEIGHTS | {"most": 50}]))
    assert (with_limit.widths, with_limit.latency_ms) == ({"a": 3, "b": 13}, 6.0)
    everything = solve(Problem(objective="latency", keep=8.0, groups=AB, costs=MS))
    assert (everything.status, everything.widths) == ("optimal", {"a": 5, "b": 13})
    nothing = solve(Problem(objective="latency", keep=-9.0, groups=AB, costs=MS))
    assert (nothing.latency_ms, nothing.binding) == (2.0, ())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"budget_ms": 1.5}, "no widths reach latency of at most 1.5 (the least is 2)"),
        ({"limits": [WEIGHTS | {"most": 17}]}, "no widths reach parameters of at most 17 (the least is 18)"),
        (
            {"budget_ms": 1.5, "limits": [WEIGHTS | {"most": 17}]},
            "no widths reach latency of at most 1.5 (the least is 2) nor parameters of at most 17 (the least is 18)",
        ),
        (
            {"budget_ms": None, "objective": "latency", "keep": 8.5},
            "no widths keep an importance of 8.5: the most is 8",
        ),
        (
            {"budget_ms": 1.0, "costs": [{"over": ["a"], "ms": [3.0, 2.0, 1.0]}], "limits": [WEIGHTS | {"most": 30}]},
            "each of latency, parameters can be met alone, not all together; "
            "within the others the least latency is 2 ms",
        ),
    ],
)
def test_infeasible_says_what_stands_in_the_way(changes: dict[str, Any], reason: str) -> None:
    kept = {name: value for name, value in changes.items() if value is not None}
    base = limited().model_dump() if "budget_ms" not in changes or changes["budget_ms"] else None
    data = {"groups": AB, "costs": MS, "limits": [WEIGHTS]} | ({"budget_ms": 6.0} if base else {}) | kept
    answer = solve(Problem(**data))
    assert (answer.status, answer.bound, answer.gap, answer.reason) == ("infeasible", None, None, reason)


def test_bounds_hold_even_where_they_cost() -> None:
    answer = solve(limited(limits=[], bounds={"a": {"fixed": 2}, "b": {"min": 8, "max": 12}}))
    assert answer.widths == {"a": 2, "b": 11}
    assert solve(limited(limits=[], bounds={"a": {"min": 5}})).minimum_ms == 4.0


def test_later_fields_are_written_where_they_say_something() -> None:
    made = limited(bounds={"a": {"min": 3}})
    text = made.model_dump_json(exclude_none=True)
    assert Problem.parse(text) == made
    assert set(json.loads(text)) == {"budget_ms", "fixed_ms", "groups", "costs", "limits", "bounds"}
    fastest = Problem(objective="latency", keep=6.0, groups=AB, costs=MS)
    assert set(json.loads(fastest.model_dump_json())) == {"fixed_ms", "groups", "costs", "objective", "keep"}
    assert Problem.parse(fastest.model_dump_json()) == fastest


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"objective": "speed"}, "objective: Input should be 'importance' or 'latency', got 'speed'"),
        ({"objective": "latency"}, 'the objective "latency" needs keep, the importance to keep, and no budget_ms'),
        ({"keep": 1.0}, 'the objective "importance" needs budget_ms or limits, and no keep'),
        ({"bounds": {"c": {"min": 2}}}, "bounds: names the unknown group 'c'; groups are ['a', 'b']"),
        ({"bounds": {"a": {"min": 6}}}, "bounds['a']: no width of at least 6 among [2, 3, 5]"),
        ({"bounds": {"a": {"fixed": 4}}}, "bounds['a']: no width 4 among [2, 3, 5]"),
        (
            {"bounds": {"a": {"min": 5, "max": 3}}},
            "bounds['a']: asks for widths of at least 5 and at most 3: none are both",
        ),
        ({"bounds": {"a": {"min": 0}}}, "bounds['a']: min: Input should be greater than or equal to 1, got 0"),
        ({"limits": [WEIGHTS, WEIGHTS]}, "needs limits of different names, none latency or importance, got ['param"),
        ({"limits": [WEIGHTS | {"name": "latency"}]}, "needs limits of different names, none latency or importance"),
        ({"limits": [WEIGHTS | {"most": math.nan}]}, "limits[0]: most: Input should be a finite number, got nan"),
        (
            {"limits": [WEIGHTS | {"costs": [{"over": ["a"], "amount": [1, -2, 3]}]}]},
            "limits[0]: costs[0]: amount: entry [1] is -2.0, and an amount is a finite number, at least 0",
        ),
        (
            {"limits": [WEIGHTS | {"costs": [{"over": ["c"], "amount": [1]}]}]},
            "limits['parameters']: costs[0]: cost over (c) names the unknown group 'c'",
        ),
        (
            {"limits": [WEIGHTS | {"costs": [{"over": ["a"], "ms": [1, 2, 3]}]}]},
            "limits[0]: costs[0]: amount: is missing",
        ),
    ],
)
def test_bad_limits(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(InvalidProblem) as caught:
        limited(**changes)
    assert str(caught.value).startswith(line)


def test_too_many_numbers_are_refused_before_they_are_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("was parsed"))
    with pytest.raises(InvalidProblem, match="at most 20,000,000 latencies over all costs, got 25,000,001 numbers"):
        Problem.parse(b"[" + b"," * 25_000_001)


def staircases(seed: int) -> Problem:
    """A chain of 12 groups whose latency and parameters both bind."""
    rng = np.random.default_rng(seed)
    widths = np.arange(1, 9) * 3
    padded = np.ceil(widths / 8) * 8 + widths % 5
    curves = [np.sqrt(widths * rng.uniform(1, 3)) for _ in range(12)]
    groups = {f"g{i}": {"widths": widths.tolist(), "importance": curve.tolist()} for i, curve in enumerate(curves)}
    pairs = [[f"g{i}", f"g{i + 1}"] for i in range(11)]
    costs = [{"over": pair, "ms": np.outer(padded, padded) * rng.uniform(0.9, 1.1, (8, 8))} for pair in pairs]
    weigh = [{"over": pair, "amount": np.outer(widths, widths) * rng.choice([1, 5])} for pair in pairs]
    dense = dict.fromkeys(groups, 24)
    whole = Problem(groups=groups, costs=costs, limits=[{"name": "w", "most": 1.0, "costs": weigh}])
    limit = whole.limits[0].model_copy(update={"most": 0.3 * whole.amounts(dense)["w"]})
    return Problem(budget_ms=0.4 * whole.latency_ms(dense), groups=groups, costs=costs, limits=[limit])


def test_two_binding_limits_need_no_integer_program(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = staircases(3)
    with monkeypatch.context() as patch:
        patch.setattr(fronts, "_MAX_PAIRS_OF_SEVERAL", 0)
        by_program = solve(problem, relative_gap=1e-6)
    monkeypatch.setattr(Model, "minimise", lambda *_, **__: pytest.fail("went to the integer program"))
    first, second = (solve(problem, relative_gap=1e-6) for _ in range(2))
    assert first.model_dump(exclude={"seconds"}) == second.model_dump(exclude={"seconds"})
    assert (first.status, first.binding) == ("optimal", ("latency", "w"))
    assert first.importance == pytest.approx(by_program.importance, rel=2e-6)


def test_the_time_limit_gives_the_true_gap() -> None:
    best, hurried = solve(staircases(5)), solve(staircases(5), time_limit_s=0.0)
    if hurried.status == "feasible":
        assert hurried.importance <= best.importance
    assert hurried.bound is not None and best.bound is not None and hurried.bound >= best.importance


@settings(deadline=None, max_examples=80)
@given(st.integers(1, 4), st.integers(1, 60), st.integers(0, 2**32), st.integers(1, 3), st.sampled_from([0, 10**6]))
def test_rows_that_go_are_replaced(amounts: int, rows: int, seed: int, keys: int, few: int) -> None:
    rng = np.random.default_rng(seed)
    table, gains, key = rng.integers(0, 9, (amounts, rows)), rng.integers(0, 9, rows), rng.integers(0, keys, rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("widthwise.planner.incomparable._FEW", few)
        left = incomparable(key, table.astype(float), gains.astype(float))
    better = (table[:, :, None] <= table[:, None, :]).all(axis=0) & (gains[:, None] >= gains) & (key[:, None] == key)
    assert better[left].any(axis=0).all()
    if amounts == 2:
        assert better[np.ix_(left, left)].sum() == len(left)
