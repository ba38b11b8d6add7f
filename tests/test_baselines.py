"""The baselines of the allocation benchmark: within the budget, never above the optimum, right where that is known."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.allocation import exhaustive
from benchmarks.baselines import evolution as evolving
from benchmarks.baselines.__main__ import better_than_ours, cell, compare
from benchmarks.baselines.evolution import evolution, random_search
from benchmarks.baselines.halp import by_items, exactly, halp, halp_exact
from benchmarks.baselines.networks import Case, by_layer
from benchmarks.baselines.simple import fastnas, netadapt, uniform
from benchmarks.baselines.space import Space
from benchmarks.instances import random_problem, resnet50
from widthwise.network.network import Network
from widthwise.planner.allocation import build_problem
from widthwise.planner.importance import score
from widthwise.planner.predictor import LatencyPredictor
from widthwise.planner.problem import Problem
from widthwise.planner.solver import solve

BASELINES: dict[str, Callable[[Problem], dict[str, int] | None]] = {
    "uniform": uniform,
    "fastnas": fastnas,
    "netadapt": netadapt,
    "halp-1": partial(halp, steps=1),
    "halp-30": partial(halp, steps=30),
    "halp-exact-1": partial(halp_exact, steps=1),
    "halp-exact-30": partial(halp_exact, steps=30),
    "evolution": partial(evolution, calls=150),
    "random": partial(random_search, calls=150),
}
SEEDS = st.integers(0, 2**32 - 1)


def staircases(seed: int, *, coupled: bool = True) -> Problem:
    """A small chain whose latency never falls with a width: whole tiles, inputs with outputs, and a concatenation."""
    rng = np.random.default_rng(seed)
    names = [f"g{i}" for i in range(rng.integers(2, 5))]
    widths = {name: np.cumsum(rng.choice([2, 3, 5, 7, 11], rng.integers(1, 5))) for name in names}
    groups = {name: {"widths": w, "importance": np.cumsum(rng.uniform(0, 1, len(w)))} for name, w in widths.items()}
    tile = int(rng.choice([1, 3, 8]))
    tiles = {name: np.ceil(w / tile) for name, w in widths.items()}
    costs = [{"over": [name], "ms": tiles[name] * rng.uniform(0.1, 2)} for name in names]
    if coupled:
        costs += [
            {"over": [one, two], "ms": np.outer(tiles[one], tiles[two]) * rng.uniform(0.1, 2)}
            for one, two in itertools.pairwise(names)
        ]
        sums = np.unique(np.add.outer(widths[names[0]], widths[names[-1]]))
        costs.append({"over": [{"sum": [names[0], names[-1]]}], "sums": sums, "ms": np.ceil(sums / tile)})
    problem = Problem(budget_ms=1.0, groups=groups, costs=costs)
    dense_ms = problem.latency_ms({name: int(w[-1]) for name, w in widths.items()})
    return problem.model_copy(update={"budget_ms": dense_ms * rng.uniform(0.2, 1.1)})


@given(SEEDS)
@settings(max_examples=25, deadline=None)
def test_staircases_are_met_whenever_uniform_meets_them(seed: int) -> None:
    problem = staircases(seed)
    best, minimum_ms = exhaustive(problem)
    for name, baseline in BASELINES.items():
        widths = baseline(problem)
        assert (widths is None) == (minimum_ms > problem.budget_ms), name
        if widths is not None:
            assert problem.latency_ms(widths) <= problem.budget_ms, name
            assert problem.importance(widths) <= best + 1e-9, name


@given(SEEDS)
@settings(max_examples=25, deadline=None)
def test_whatever_the_costs_no_answer_is_over_the_budget_or_above_the_optimum(seed: int) -> None:
    problem = random_problem(np.random.default_rng(seed))
    best, _ = exhaustive(problem)
    for name, baseline in BASELINES.items():
        widths = baseline(problem)
        if widths is not None:
            assert problem.latency_ms(widths) <= problem.budget_ms, name
            assert problem.importance(widths) <= best + 1e-9, name


@given(SEEDS)
@settings(max_examples=50, deadline=None)
def test_arrays_price_as_the_problem_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    space = Space(random_problem(rng))
    choices = rng.integers(0, space.sizes, (7, len(space.sizes)))
    named = [space.named(choice) for choice in choices]
    assert space.latency_ms(choices) == pytest.approx([space.problem.latency_ms(widths) for widths in named])
    assert space.importance_of(choices) == pytest.approx([space.problem.importance(widths) for widths in named])
    assert space.calls == 7


@given(SEEDS)
@settings(max_examples=50, deadline=None)
def test_the_linear_latency_is_exact_where_nothing_is_coupled(seed: int) -> None:
    space = Space(staircases(seed, coupled=False))
    rng = np.random.default_rng(seed)
    before, after = rng.integers(0, space.sizes, (2, len(space.sizes)))
    changes = sum(space.changes_ms(before, group)[option] for group, option in enumerate(after))
    assert space.latency_ms(after[None])[0] == pytest.approx(space.latency_ms(before[None])[0] + changes)


def test_a_layer_is_priced_by_its_output_at_the_input_it_has() -> None:
    table = np.array([[1.0, 2.0, 5.0], [3.0, 7.0, 13.0]])
    problem = Problem(
        budget_ms=1.0,
        groups={"in": {"widths": [2, 3], "importance": [0, 1]}, "out": {"widths": [5, 7, 11], "importance": [0, 1, 2]}},
        costs=[{"over": ["in", "out"], "ms": table}],
    )
    space = Space(problem)
    assert space.changes_ms(np.array([1, 2]), 1).tolist() == [-10.0, -6.0, 0.0]
    assert space.changes_ms(np.array([0, 1]), 1).tolist() == [-1.0, 0.0, 3.0]
    assert space.changes_ms(np.array([1, 2]), 0).tolist() == [0.0, 0.0]


def knapsacks(seed: int, options: int, least: int = -2) -> tuple[list[np.ndarray], list[np.ndarray], int]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, options + 1, rng.integers(1, 5))
    units = [np.concatenate([[0], rng.integers(least, 9, size)]).cumsum() for size in sizes]
    values = [np.concatenate([[0.0], rng.uniform(0, 3, size)]).cumsum() for size in sizes]
    return units, values, int(rng.integers(0, 20))


def best_knapsack(units: list[np.ndarray], values: list[np.ndarray], capacity: int) -> float:
    worth = [-math.inf]
    for choice in itertools.product(*(range(len(u)) for u in units)):
        if sum(u[k] for u, k in zip(units, choice, strict=True)) <= capacity:
            worth.append(sum(v[k] for v, k in zip(values, choice, strict=True)))
    return max(worth)


@given(SEEDS)
@settings(max_examples=100, deadline=None)
def test_the_exact_knapsack_is_the_best_of_all_choices(seed: int) -> None:
    units, values, capacity = knapsacks(seed, 4)
    choice = exactly(units, values, capacity)
    assert sum(u[k] for u, k in zip(units, choice, strict=True)) <= capacity
    worth = sum(v[k] for v, k in zip(values, choice, strict=True))
    assert worth == pytest.approx(best_knapsack(units, values, capacity))


@given(SEEDS, st.integers(1, 4), st.sampled_from([-2, 0]))
@settings(max_examples=200, deadline=None)
def test_halps_knapsack_fits_and_is_best_where_each_group_has_one_item(seed: int, options: int, least: int) -> None:
    units, values, capacity = knapsacks(seed, options, least)
    choice = by_items(units, values, capacity)
    assert sum(u[k] for u, k in zip(units, choice, strict=True)) <= capacity
    worth, best = sum(v[k] for v, k in zip(values, choice, strict=True)), best_knapsack(units, values, capacity)
    assert worth == pytest.approx(best) if options == 1 and least == 0 else worth <= best + 1e-9


def test_halps_knapsack_does_not_look_past_a_dear_item() -> None:
    """The first item isn't worth its 4 units, so the second, which is free, is never reached."""
    units, values = [np.array([0, 4]), np.array([0, 4, 4])], [np.array([0.0, 2.0]), np.array([0.0, 1.0, 9.0])]
    assert by_items(units, values, 4).tolist() == [1, 0]
    assert exactly(units, values, 4).tolist() == [0, 2]


@given(SEEDS)
@settings(max_examples=25, deadline=None)
def test_one_shot_with_an_exact_knapsack_is_the_optimum_where_nothing_is_coupled(seed: int) -> None:
    problem = staircases(seed, coupled=False)
    widths = halp_exact(problem, steps=1)
    # Rounding each option up by one unit of 1e-4 of the budget may cost an option that just fits
    tighter = problem.model_copy(update={"budget_ms": problem.budget_ms * (1 - 1e-3)})
    if widths is not None:
        assert problem.importance(widths) >= exhaustive(tighter)[0] - 1e-9


@given(SEEDS)
@settings(max_examples=25, deadline=None)
def test_no_widths_within_the_budget_have_a_lower_threshold(seed: int) -> None:
    problem = staircases(seed)
    widths = fastnas(problem)
    best, dense = math.inf, {name: group.importance[-1] for name, group in problem.groups.items()}

    def worst(chosen: dict[str, int]) -> float:
        kept = ((g.importance[g.widths.index(chosen[name])], dense[name]) for name, g in problem.groups.items())
        return max(most - score for score, most in kept)

    for choice in itertools.product(*(group.widths for group in problem.groups.values())):
        chosen = dict(zip(problem.groups, choice, strict=True))
        if problem.latency_ms(chosen) <= problem.budget_ms * (1 - 1e-9):
            best = min(best, worst(chosen))
    assert (math.inf if widths is None else worst(widths)) <= best + 1e-9


def test_uniform_and_netadapt_by_hand() -> None:
    problem = Problem(
        budget_ms=61.0,
        groups={
            "a": {"widths": [2, 4, 6, 8, 10], "importance": [1, 2, 3, 4, 5]},
            "b": {"widths": [5, 10], "importance": [1, 9]},
        },
        costs=[{"over": ["a", "b"], "ms": np.outer([2, 4, 6, 8, 10], [5, 10])}],
    )
    assert uniform(problem) == {"a": 8, "b": 5}  # 40 ms: at 0.8 of the width, b takes its half
    assert netadapt(problem) == {"a": 6, "b": 10}  # only a can be narrowed without losing 8


def test_evolution_asks_for_no_more_latencies_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    spaces: list[Space] = []
    monkeypatch.setattr(evolving, "Space", lambda problem: spaces.append(Space(problem)) or spaces[-1])
    problem = resnet50(4)
    for calls in (1, 37, 263):
        assert evolution(problem, calls=calls) is not None
        assert spaces[-1].calls == calls
        random_search(problem, calls=calls)
        assert spaces[-1].calls == calls


def test_none_beats_the_allocator_on_a_resnet() -> None:
    problem = resnet50(6, share=0.5)
    ours = solve(problem)
    for name, baseline in BASELINES.items():
        widths = baseline(problem)
        assert widths is not None and problem.importance(widths) <= ours.importance * (1 + 1e-9), name


def test_the_comparison_prices_all_alike_and_tells_who_beats_us() -> None:
    problem = resnet50(3, share=0.6)
    row = {"network": "resnet50", "share": 0.6, **compare(problem)}
    found = row["methods"]["widthwise"]
    assert found["used"] <= 1.0 and row["calls"] > 10
    assert found["retained"] == pytest.approx(math.exp(solve(problem).importance - 1))
    assert better_than_ours([row]) == []
    row["methods"]["uniform"] = {"retained": found["retained"] * 1.001, "used": 1.0, "seconds": 0.0}
    assert "uniform keeps" in better_than_ours([row])[0]
    tight = compare(problem.model_copy(update={"budget_ms": row["minimum_ms"] * 0.9}))
    assert all(cell(found) == "–" for found in tight["methods"].values())


def test_a_problem_by_layer_is_the_problem(wide_lut, wide, wide_network: Network) -> None:  # type: ignore[no-untyped-def]
    predictor = LatencyPredictor.fit(wide_lut, wide_network)
    options = {group: (size // 4, size // 2, size) for group, size in wide_network.dense.items()}
    importance = score(wide, wide_network)
    whole = build_problem(predictor, importance, predictor.dense_ms, options)
    layered = by_layer(Case("wide", {}, predictor, importance, options))
    assert len(layered.costs) > len(whole.costs) and layered.groups == whole.groups
    rng = np.random.default_rng(0)
    for _ in range(20):
        widths = {group: int(rng.choice(sizes)) for group, sizes in options.items()}
        assert layered.latency_ms(widths) == pytest.approx(whole.latency_ms(widths))
    outputs = [cost.over[1] for cost in layered.costs if len(cost.over) == 2]
    convolutions = [
        layer for layer in predictor.network.layers if len({g for axis in layer.axes for g in axis.groups}) > 1
    ]
    assert all(isinstance(output, str) for output in outputs) and len(outputs) <= len(convolutions)
    stem, inner = wide_network.groups[0].name, wide_network.groups[1].name
    assert {(stem, inner), (inner, stem)} <= {cost.over for cost in layered.costs if len(cost.over) == 2}
