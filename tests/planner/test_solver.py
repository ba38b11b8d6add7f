"""The allocator against closed forms, and against trying all widths."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from widthwise.planner import fronts, solver
from widthwise.planner.bounds import Ascent
from widthwise.planner.dominance import undominated
from widthwise.planner.formulation import Model, Solution
from widthwise.planner.graph import IMPORTANCE, LATENCY, Graph, merge
from widthwise.planner.problem import Problem
from widthwise.planner.solver import solve


def every(problem: Problem) -> Iterator[tuple[float, float, dict[str, int]]]:
    """(latency, importance, widths) of all widths."""
    for choice in itertools.product(*(group.widths for group in problem.groups.values())):
        widths = dict(zip(problem.groups, choice, strict=True))
        yield problem.latency_ms(widths), problem.importance(widths), widths


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Small problems of every form; latencies in steps of 0.1, so that widths tie and sums of them round."""
    names = "abcd"[: draw(st.integers(1, 4))]
    groups = {name: _group(draw) for name in names}
    costs = [_cost(draw, names, groups) for _ in range(draw(st.integers(0, 5)))]
    problem = Problem(budget_ms=1.0, groups=groups, costs=costs, fixed_ms=draw(st.integers(-3, 5)) / 10)
    reached = problem.latency_ms({name: draw(st.sampled_from(group["widths"])) for name, group in groups.items()})
    budget_ms = max(reached * draw(st.sampled_from([1.0, 0.7, 0.95, 1.2])), 0.05)
    return Problem(budget_ms=budget_ms, groups=groups, costs=costs, fixed_ms=problem.fixed_ms)


def _group(draw: st.DrawFn) -> dict[str, Any]:
    widths = sorted(draw(st.sets(st.integers(1, 9), min_size=1, max_size=4)))
    return {"widths": widths, "importance": [draw(st.integers(-50, 99)) / 8 for _ in widths]}


def _cost(draw: st.DrawFn, names: str, groups: dict[str, Any]) -> dict[str, Any]:
    over: list[Any] = draw(st.lists(st.sampled_from(names), min_size=1, max_size=2))
    lengths = [len(groups[name]["widths"]) for name in over]
    cost: dict[str, Any] = {"over": over}
    if draw(st.booleans()):
        place = draw(st.integers(0, len(over) - 1))
        members, plus = draw(st.lists(st.sampled_from(names), min_size=1, max_size=5)), draw(st.integers(0, 2))
        over[place] = {"sum": members, "plus": plus}
        choices = itertools.product(*(groups[name]["widths"] for name in sorted(set(members))))
        counts = [members.count(name) for name in sorted(set(members))]
        cost["sums"] = sorted({plus + int(np.dot(counts, choice)) for choice in choices})
        lengths[place] = len(cost["sums"])
    entries = draw(st.lists(st.integers(0, 30), min_size=math.prod(lengths), max_size=math.prod(lengths)))
    cost["ms"] = np.reshape(entries, lengths) / 10
    return cost


@settings(deadline=None, max_examples=150)
@given(problems(), st.sampled_from([1, 500]), st.sampled_from([0, 20, 10_000]))
def test_equals_trying_all_widths(problem: Problem, first_pairs: int, most_rows: int) -> None:
    answer = _solve(problem, first_pairs, most_rows)
    fitting = [importance for ms, importance, _ in every(problem) if ms <= problem.budget_ms]
    assert answer.latency_ms == problem.latency_ms(answer.widths)
    assert answer.importance == problem.importance(answer.widths)
    assert answer.minimum_ms == pytest.approx(min(ms for ms, _, _ in every(problem)), rel=1e-6)
    if not fitting:
        assert (answer.status, answer.bound, answer.gap) == ("infeasible", None, None)
        assert answer.latency_ms == answer.minimum_ms > problem.budget_ms
    else:
        assert answer.status == "optimal"
        assert answer.latency_ms <= problem.budget_ms
        assert answer.importance == pytest.approx(max(fitting), rel=1e-8, abs=1e-8)
        assert answer.bound is not None and answer.bound >= max(fitting) - 1e-7
        assert answer.gap is not None and 0 <= answer.gap <= 1e-8


def _solve(problem: Problem, first_pairs: int, most_rows: int) -> Any:
    """Also with a first search so small that it must be widened, and by the integer program alone or here and there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solver, "_FIRST_PAIRS", first_pairs)
        patch.setattr(fronts, "_MAX_ROWS", most_rows)
        return solve(problem, relative_gap=1e-8)


@settings(deadline=None, max_examples=60)
@given(problems())
def test_dominated_options_are_never_needed(problem: Problem) -> None:
    for importance in (True, False):
        kept = undominated(problem, merge(problem), [IMPORTANCE, LATENCY] if importance else [LATENCY])
        groups = zip(problem.groups.items(), kept, strict=True)
        allowed = {name: {group.widths[i] for i in options} for (name, group), options in groups}
        left = [
            (ms, score) for ms, score, widths in every(problem) if all(widths[name] in allowed[name] for name in widths)
        ]
        for ms, score, _ in every(problem):
            assert any(m <= ms + 1e-9 and (s >= score or not importance) for m, s in left)


@settings(deadline=None, max_examples=60)
@given(problems(), st.sampled_from([0.0, 0.25, 3.0]))
def test_bounds_of_message_passing_hold(problem: Problem, price: float) -> None:
    kept = [np.arange(len(group.widths)) for group in problem.groups.values()]
    graph = Graph.of(problem, merge(problem), kept)
    ascent = Ascent(graph, np.array([1.0, 1.0]))
    ascent.sweep(1)
    ascent.reprice(np.array([1.0, price]))
    ascent.sweep(3)
    reach = ascent.reach()
    for ms, importance, widths in every(problem):
        energy = price * ms - importance + 1e-9
        choice = _choice(graph, [group.widths.index(widths[name]) for name, group in problem.groups.items()])
        assert ascent.bound <= energy
        assert all(low[option] <= energy for low, option in zip(reach.options, choice, strict=True))
        pairs = zip(graph.tables, reach.pairs, strict=True)
        assert all(low[choice[table.left], choice[table.right]] <= energy for table, low in pairs)


def _choice(graph: Graph, groups: list[int]) -> list[int]:
    """The options of all nodes that follow from those of the groups; also checks that the graph adds up."""
    choice = dict(enumerate(groups))
    for table in graph.tables:
        if table.total is not None and table.option is not None:
            choice[table.total] = int(table.option[choice[table.left], choice[table.right]])
    return [choice[n] for n in range(len(graph.nodes))]


def one(widths: list[int], importance: list[float]) -> dict[str, Any]:
    return {"widths": widths, "importance": importance}


COUPLED = {"a": one([2, 4], [1.0, 2.0]), "b": one([3, 9], [1.0, 3.0])}


def test_coupling_decides() -> None:
    # A layer costs in·out: narrow a and wide b keep 1 + 3 at 2·9 ms, the other way round 2 + 1 at 4·3 ms.
    costs = [{"over": ["a", "b"], "ms": [[6, 18], [12, 36]]}]
    answer = solve(Problem(budget_ms=18, groups=COUPLED, costs=costs))
    assert (answer.status, answer.widths, answer.latency_ms, answer.importance) == ("optimal", {"a": 2, "b": 9}, 18, 4)
    assert (answer.bound, answer.gap, answer.minimum_ms) == (4, 0, 6)
    answer = solve(Problem(budget_ms=17.999, groups=COUPLED, costs=costs))
    assert (answer.widths, answer.latency_ms, answer.importance) == ({"a": 4, "b": 3}, 12, 3)


def test_wider_may_be_faster() -> None:
    # The staircase: 5 channels take longer than 8.
    groups = {"a": one([4, 5, 8], [1, 2, 3])}
    answer = solve(Problem(budget_ms=2.5, groups=groups, costs=[{"over": ["a"], "ms": [1, 3, 2]}]))
    assert (answer.status, answer.widths, answer.minimum_ms) == ("optimal", {"a": 8}, 1)


def test_concatenation_counts_totals() -> None:
    # Only the total of a + a + b decides: 7, 13 with b = 9, 11 with a = 4, 17.
    cost = {"over": [{"sum": ["a", "a", "b"]}], "sums": [7, 11, 13, 17], "ms": [1.0, 9.0, 2.0, 3.0]}
    answer = solve(Problem(budget_ms=2.5, groups=COUPLED, costs=[cost], fixed_ms=0.25))
    assert (answer.status, answer.widths, answer.latency_ms) == ("optimal", {"a": 2, "b": 9}, 2.25)


def test_all_widest_fits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solver._Search, "improve", lambda self: pytest.fail("nothing was left to prove"))
    costs = [{"over": ["a", "b"], "ms": [[6, 18], [12, 36]]}]
    answer = solve(Problem(budget_ms=36, groups=COUPLED, costs=costs))
    assert (answer.status, answer.widths, answer.gap, answer.minimum_ms) == ("optimal", {"a": 4, "b": 9}, 0, 6)


def test_infeasible_gives_the_fastest() -> None:
    costs = [{"over": ["a", "b"], "ms": [[6, 18], [12, 5]]}]
    answer = solve(Problem(budget_ms=4.5, groups=COUPLED, costs=costs))
    assert (answer.status, answer.widths, answer.latency_ms) == ("infeasible", {"a": 4, "b": 9}, 5)
    assert (answer.minimum_ms, answer.importance, answer.bound, answer.gap) == (5, 5, None, None)


def test_budget_of_exactly_the_minimum() -> None:
    costs = [{"over": ["a", "b"], "ms": [[0.1, 0.2], [0.2, 0.4]]}, {"over": ["a"], "ms": [0.2, 0.1]}]
    answer = solve(Problem(budget_ms=math.fsum([0.1, 0.2]), groups=COUPLED, costs=costs))
    assert (answer.status, answer.importance) == ("optimal", 3)


def test_nothing_to_choose() -> None:
    answer = solve(Problem(budget_ms=1.0, groups={}, costs=[], fixed_ms=0.5))
    assert (answer.status, answer.widths, answer.latency_ms, answer.minimum_ms) == ("optimal", {}, 0.5, 0.5)
    answer = solve(Problem(budget_ms=0.25, groups={}, costs=[], fixed_ms=0.5))
    assert (answer.status, answer.minimum_ms) == ("infeasible", 0.5)


def test_group_in_no_cost_takes_its_best() -> None:
    groups = {**COUPLED, "free": one([1, 2, 3], [0.0, 7.0, 5.0])}
    answer = solve(Problem(budget_ms=1.0, groups=groups, costs=[{"over": ["a"], "ms": [1, 2]}]))
    assert answer.widths == {"a": 2, "b": 9, "free": 2}


@pytest.mark.parametrize("overshoots", [1, 30])
def test_a_hair_over_the_budget_is_never_returned(monkeypatch: pytest.MonkeyPatch, overshoots: int) -> None:
    """Where the integer program's tolerance lets too much through, the answer still keeps to the budget."""
    minimise, calls = Model.minimise, itertools.count()

    def sloppy(self: Model, *args: Any, **kwargs: Any) -> Solution:
        found = minimise(self, *args, **kwargs)
        return Solution(np.array([1, 1]), found.bound) if next(calls) < overshoots else found

    monkeypatch.setattr(Model, "minimise", sloppy)
    monkeypatch.setattr(fronts, "_MAX_ROWS", 0)
    groups = {"a": one([2, 3, 4], [1.0, 1.6, 2.0]), "b": one([3, 5, 9], [1.0, 2.5, 3.0])}
    cost = {"over": ["a", "b"], "ms": [[6, 11, 18], [10, 15, 27], [12, 20, 36]]}
    answer = solve(Problem(budget_ms=14, groups=groups, costs=[cost]))
    assert answer.latency_ms <= 14
    assert answer.bound is not None and answer.bound >= 3.5
    assert next(calls) > 0


def staircases(seed: int, groups: int, options: int) -> Problem:
    """A chain with non-monotone staircases and noise."""
    rng = np.random.default_rng(seed)
    widths = np.arange(1, options + 1) * 3
    padded = np.ceil(widths / 8) * 8 + widths % 5
    data = {f"g{i}": one(widths.tolist(), np.sqrt(widths * rng.uniform(1, 3)).tolist()) for i in range(groups)}
    costs = [
        {"over": [f"g{i}", f"g{i + 1}"], "ms": np.outer(padded, padded) * rng.uniform(0.9, 1.1, (options, options))}
        for i in range(groups - 1)
    ]
    widest = dict.fromkeys(data, 3 * options)
    budget_ms = 0.4 * Problem(budget_ms=1, groups=data, costs=costs).latency_ms(widest)
    return Problem(budget_ms=budget_ms, groups=data, costs=costs)


def equal_blocks(blocks: int, options: int) -> Problem:
    """Interchangeable blocks around one shared group: every permutation of an answer is an answer."""
    rng = np.random.default_rng(11)
    widths = [5 * (i + 1) for i in range(options)]
    curve = np.log(np.arange(1, options + 1) / options).tolist()
    outer, inner = rng.uniform(1, 2, (2, options, options)) * np.outer(widths, widths)
    groups = {"shared": one(widths, curve)}
    costs = []
    for i in range(blocks):
        groups |= {f"a{i}": one(widths, curve), f"b{i}": one(widths, curve)}
        costs += [{"over": ["shared", f"a{i}"], "ms": outer}, {"over": [f"a{i}", f"b{i}"], "ms": inner}]
    dense_ms = Problem(budget_ms=1, groups=groups, costs=costs).latency_ms(dict.fromkeys(groups, widths[-1]))
    return Problem(budget_ms=0.61 * dense_ms, groups=groups, costs=costs)


def test_equal_blocks_need_no_integer_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """A branch-and-bound search tries their permutations one by one; the rows of the fronts coincide instead."""
    small = equal_blocks(2, 4)
    best = max(importance for ms, importance, _ in every(small) if ms <= small.budget_ms)
    monkeypatch.setattr(solver._Search, "_solve", lambda *_: pytest.fail("went to the integer program"))
    assert solve(small, relative_gap=1e-9).importance == pytest.approx(best, rel=1e-8)
    answer = solve(equal_blocks(12, 12), relative_gap=1e-6)
    assert answer.status == "optimal"


def test_only_the_rows_that_stay_have_to_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub with many blocks pairs far more rows than remain of them; the pairs come in parts."""
    problem = equal_blocks(4, 8)
    graph = Graph.of(problem, merge(problem), [np.arange(8)] * len(problem.groups))
    ascent = Ascent(graph, np.array([1.0, 0.005]))
    ascent.sweep(4)
    energy, pairs = ascent.bound + 5.0, []

    def front() -> fronts.Front:
        within = ascent.reach().within(energy)
        return fronts.eliminate(ascent, *within, limits={LATENCY: problem.budget_ms}, energy=energy, loss=0.1)

    whole = front()
    chunks = fronts._chunks
    monkeypatch.setattr(fronts, "_chunks", lambda counts: pairs.append(int(counts.sum())) or chunks(counts))
    monkeypatch.setattr(fronts, "_MAX_ROWS", 900)
    monkeypatch.setattr(fronts, "_CHUNK", 60)
    parts = front()
    assert max(pairs) > 2 * 900
    assert parts.least == pytest.approx(whole.least, abs=1e-9)
    assert parts.choice is not None
    with monkeypatch.context() as patch, pytest.raises(fronts.TooWide):
        patch.setattr(fronts, "_MAX_PAIRS", 600)
        front()


@settings(deadline=None, max_examples=100)
@given(
    problems(),
    st.sampled_from([0.0, 0.3, 2.0]),
    st.sampled_from([1e-6, 0.4, 3.0]),
    st.integers(1, 8),
    st.sampled_from([2, 7, 4_000_000]),
)
def test_fronts_lose_no_more_than_they_say(
    problem: Problem, price: float, loss: float, sweeps: int, chunk: int
) -> None:
    """The bound of the rows holds for all choices within reach, and the best row is that close to it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fronts, "_CHUNK", chunk)
        patch.setattr(fronts, "_FEW", chunk)
        check_front(problem, price, loss, sweeps)


def check_front(problem: Problem, price: float, loss: float, sweeps: int) -> None:
    graph = Graph.of(problem, merge(problem), [np.arange(len(group.widths)) for group in problem.groups.values()])
    ascent = Ascent(graph, np.array([1.0, price]))
    ascent.sweep(sweeps)
    energy = ascent.bound + 2.0
    within = ascent.reach().within(energy)
    hair = 1e-9
    limits = {LATENCY: problem.budget_ms + hair}
    front = fronts.eliminate(ascent, *within, limits=limits, energy=energy + hair, loss=loss)
    names, of_widths = list(problem.groups), {}
    for ms, importance, widths in every(problem):
        of_widths[tuple(widths.values())] = (ms, importance)
        if ms <= problem.budget_ms and price * ms - importance <= energy:
            assert importance <= -front.least + 1e-7
    if front.choice is not None:
        chosen = tuple(problem.groups[name].widths[i] for name, i in zip(names, front.choice, strict=False))
        ms, importance = of_widths[chosen]
        assert ms <= problem.budget_ms + 2 * hair
        assert -front.least - loss - 1e-7 <= importance <= -front.least + 1e-7


def test_deterministic() -> None:
    first, second = (solve(staircases(3, 12, 9)).model_dump(exclude={"seconds"}) for _ in range(2))
    assert first == second
    assert first["status"] == "optimal"


def test_order_of_groups_does_not_matter() -> None:
    problem = staircases(5, 9, 7)
    names = list(problem.groups)[::-1]
    reversed_ = Problem(
        budget_ms=problem.budget_ms, groups={name: problem.groups[name] for name in names}, costs=problem.costs[::-1]
    )
    one_way, other_way = solve(problem, relative_gap=1e-9), solve(reversed_, relative_gap=1e-9)
    assert one_way.importance == pytest.approx(other_way.importance, rel=1e-8)
    assert one_way.minimum_ms == pytest.approx(other_way.minimum_ms, rel=1e-6)


def test_time_limit_still_gives_widths_and_a_bound() -> None:
    problem = staircases(7, 12, 9)
    best = solve(problem)
    hurried = solve(problem, time_limit_s=0.0)
    assert hurried.status == "feasible"
    assert hurried.latency_ms <= problem.budget_ms
    assert hurried.bound is not None and best.bound is not None
    assert hurried.importance <= best.importance <= best.bound <= hurried.bound
    assert hurried.gap == (hurried.bound - hurried.importance) / hurried.bound
    assert hurried.minimum_ms >= best.minimum_ms * (1 - 1e-6)


def test_dense_block_shares_partial_totals() -> None:
    """Sums that grow out of each other add one node each, however their members are listed."""
    names = ["a", "b", "c", "d"]
    groups = {name: one([2, 5], [1, 2]) for name in names}
    totals = [sorted({2 * (n - k) + 5 * k for k in range(n + 1)}) for n in range(5)]
    costs = [{"over": [{"sum": names[:n][::-1]}], "sums": totals[n], "ms": totals[n]} for n in (4, 2, 3)]
    problem = Problem(budget_ms=30, groups=groups, costs=costs)
    graph = Graph.of(problem, merge(problem), [np.arange(2)] * 4)
    assert len(graph.nodes) == 4 + 3
    # 9·k ms for k wide groups among all, less where they come late: d is in one sum, c in two.
    assert solve(problem).widths == {"a": 2, "b": 2, "c": 5, "d": 5}


def test_a_chain_of_very_many_groups() -> None:
    names = [f"g{index}" for index in range(520)]
    groups = {name: one([4, 8], [1.0, 2.0 + index % 7]) for index, name in enumerate(names)}
    costs = [{"over": [a, b], "ms": [[1.0, 2.0], [2.0, 3.5]]} for a, b in itertools.pairwise(names)]
    answer = solve(Problem(budget_ms=1040.0, groups=groups, costs=costs), relative_gap=1e-3)
    assert answer.status == "optimal"
    assert answer.latency_ms <= 1040.0
