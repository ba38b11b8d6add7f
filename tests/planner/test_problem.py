"""The allocation problem as data: the fixed JSON, exact recomputation, and one readable line for each mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from widthwise.luts.errors import BadInput, InvalidProblem
from widthwise.planner.problem import Answer, Cost, GroupOptions, Problem, SumOver

DESIGN: dict[str, Any] = {
    "budget_ms": 12.0,
    "fixed_ms": 0.4,
    "groups": {
        "stem": {"widths": [16, 32], "importance": [0.5, 1.0]},
        "layer1": {"widths": [8, 16, 24], "importance": [0.2, 0.7, 0.9]},
        "head": {"widths": [5, 7], "importance": [0.0, 0.25]},
    },
    "costs": [
        {"over": ["stem"], "ms": [1.0, 2.0]},
        {"over": ["stem", "layer1"], "ms": [[1.0, 1.5, 2.0], [1.2, 1.9, 2.6]]},
        {
            "over": [{"sum": ["stem", "layer1"], "plus": 0}, "head"],
            "sums": [24, 32, 40, 48, 56],
            "ms": [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]],
        },
    ],
}
AB: dict[str, Any] = {
    "a": {"widths": [2, 3], "importance": [1, 2.5]},
    "b": {"widths": [5, 7, 11], "importance": [1, 2.5, 3]},
}


def problem(**changes: Any) -> Problem:
    return Problem(**{"budget_ms": 1.0, "groups": AB, "costs": [], **changes})


def test_design_example_adds_up() -> None:
    widths = {"stem": 32, "layer1": 16, "head": 7}
    parsed = Problem.parse(json.dumps(DESIGN))
    assert parsed.latency_ms(widths) == 0.4 + 2.0 + 1.9 + 8.0
    assert parsed.importance(widths) == 1.0 + 0.7 + 0.25


def test_json_round_trip() -> None:
    parsed = Problem.parse(json.dumps(DESIGN))
    text = parsed.model_dump_json(exclude_none=True)
    assert json.loads(text) == DESIGN
    assert Problem.parse(text) == parsed
    assert Problem(**DESIGN) == parsed
    assert problem() != parsed


def test_read(tmp_path: Path) -> None:
    path = tmp_path / "problem.json"
    path.write_text(json.dumps(DESIGN))
    assert Problem.read(path) == Problem(**DESIGN)


def test_answer_round_trip() -> None:
    answer = Answer(
        status="infeasible",
        widths={"a": 2},
        latency_ms=0.1,
        importance=-1.0,
        bound=None,
        gap=None,
        minimum_ms=0.1,
        seconds=0.0,
    )
    assert Answer.model_validate_json(answer.model_dump_json()) == answer


def test_sum_counts_members_as_often_as_named_and_allows_extra_totals() -> None:
    totals = [1, 10, 12, 14, 16, 18, 99]  # 2a + b + 1, and two that no widths reach
    ms = np.arange(3.0 * len(totals)).reshape(3, -1)
    made = problem(costs=[{"over": ["b", {"sum": ["a", "a", "b"], "plus": 1}], "sums": totals, "ms": ms}])
    assert made.latency_ms({"a": 3, "b": 7}) == ms[1, totals.index(14)]


def test_diagonal_and_sum_of_one() -> None:
    made = problem(
        costs=[
            {"over": ["a", "a"], "ms": [[1, 2], [3, 4]]},
            {"over": [{"sum": ["a"], "plus": 4}], "sums": [6, 7], "ms": [10, 20]},
        ]
    )
    assert made.latency_ms({"a": 3, "b": 5}) == 4 + 20


def test_numpy_and_nouns_are_accepted_and_tables_are_copied() -> None:
    ms = np.array([[1, 2], [3, 4]], dtype=np.float32)
    made = Problem(
        budget_ms=1,
        groups={"a": GroupOptions(widths=np.array([2, 3]), importance=[np.float32(1), 2])},
        costs=[Cost(over=["a", SumOver(sum=["a"])], sums=[np.int64(2), 3], ms=ms)],
    )
    ms[:] = 9
    assert made.latency_ms({"a": 2}) == 1
    assert not made.costs[0].ms.flags.writeable


def test_nothing_to_choose() -> None:
    empty = Problem(budget_ms=1.0, groups={}, costs=[], fixed_ms=0.25)
    assert (empty.latency_ms({}), empty.importance({})) == (0.25, 0)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"budget_ms": 0}, "budget_ms: Input should be greater than 0, got 0"),
        ({"budget_ms": -1.5}, "budget_ms: Input should be greater than 0, got -1.5"),
        ({"budget_ms": float("nan")}, "budget_ms: Input should be a finite number, got nan"),
        ({"budget_ms": float("inf")}, "budget_ms: Input should be a finite number, got inf"),
        ({"budget_ms": "1"}, "budget_ms: Input should be a valid number, got '1'"),
        ({"budget_ms": True}, "budget_ms: Input should be a valid number, got True"),
        ({"budget": 1}, "budget: is not a known field"),
        ({"fixed_ms": "much"}, "fixed_ms: Input should be a valid number, got 'much'"),
        ({"costs": 3}, "costs: Input should be a valid tuple, got 3"),
    ],
)
def test_bad_problems(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(InvalidProblem) as caught:
        problem(**changes)
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("widths", "importance", "line"),
    [
        ([4, 4], [1, 2], "groups['x\\n']: widths must ascend without repetition, got 4 before 4"),
        ([4, 3], [1, 2], "groups['x\\n']: widths must ascend without repetition, got 4 before 3"),
        ([0, 3], [1, 2], "groups['x\\n']: widths[0]: Input should be greater than or equal to 1, got 0"),
        ([-2, 3], [1, 2], "groups['x\\n']: widths[0]: Input should be greater than or equal to 1, got -2"),
        ([1.0, 3], [1, 2], "groups['x\\n']: widths[0]: Input should be a valid integer, got 1.0"),
        (
            [2**40],
            [1],
            "groups['x\\n']: widths[0]: Input should be less than or equal to 2147483647, got 1099511627776",
        ),
        ([], [], "groups['x\\n']: widths: Value should have at least 1 item after validation, not 0, got []"),
        ([1, 3], [1], "groups['x\\n']: needs 2 importances, one a width, got 1"),
        ([1, 3], [1, float("nan")], "groups['x\\n']: importance[1]: Input should be a finite number, got nan"),
        ([1], [10**400], "groups['x\\n']: importance[0]: Input should be a valid number, got 1" + "0" * 76 + "..."),
    ],
)
def test_bad_groups(widths: list[Any], importance: list[Any], line: str) -> None:
    with pytest.raises(InvalidProblem) as caught:
        problem(groups={"x\n": {"widths": widths, "importance": importance}})
    assert str(caught.value) == line


SUM_AB = {"sum": ["a", "b"]}
TOTALS = [7, 8, 9, 10, 13, 14]


@pytest.mark.parametrize(
    ("cost", "line"),
    [
        ({"over": ["a"], "ms": [1, False]}, "costs[0]: ms: needs numbers, got False"),
        ({"over": ["a"], "ms": [1, None]}, "costs[0]: ms: needs numbers, got None"),
        ({"over": ["a"], "ms": ["1", 2]}, "costs[0]: ms: needs numbers, got '1'"),
        ({"over": ["a"], "ms": "12"}, "costs[0]: ms: needs a list or a matrix of numbers, got '12'"),
        (
            {"over": ["a"], "ms": np.array([True, False])},
            "costs[0]: ms: needs a list or a matrix of numbers, got a 1-D array of bool",
        ),
        (
            {"over": ["a"], "ms": np.zeros((1, 1, 1))},
            "costs[0]: ms: needs a list or a matrix of numbers, got a 3-D array of float64",
        ),
        (
            {"over": ["a"], "ms": [1, 10**400]},
            "costs[0]: ms: holds a number too large for a float, and a latency is a finite number of ms",
        ),
        (
            {"over": ["a"], "ms": [1, float("nan")]},
            "costs[0]: ms: entry [1] is nan, and a latency is a finite number of ms, at least 0",
        ),
        (
            {"over": ["a", "b"], "ms": [[1, 2, 3], [1, -2, 3]]},
            "costs[0]: ms: entry [1, 1] is -2.0, and a latency is a finite number of ms, at least 0",
        ),
        (
            {"over": ["a", "b"], "ms": [[1, 2, 3], [1, 2]]},
            "costs[0]: ms: needs rows of equal length, got rows of 2 and of 3",
        ),
        ({"over": ["a", "b"], "ms": [1, [2]]}, "costs[0]: ms: needs rows of equal length, got rows of 0 and of 1"),
        ({"over": ["a"], "ms": []}, "costs[0]: cost over (a) needs ms of shape (2,), got (0,)"),
        ({"over": ["b", "a"], "ms": [[1] * 3] * 2}, "costs[0]: cost over (b, a) needs ms of shape (3, 2), got (2, 3)"),
        ({"over": ["a", "b"], "ms": [1, 2]}, "costs[0]: cost over (a, b) needs 2-D ms, got 1-D"),
        ({"over": ["a", "c"], "ms": [[1, 2]] * 2}, "costs[0]: cost over (a, c) names the unknown group 'c'"),
        (
            {"over": [], "ms": [1]},
            "costs[0]: needs one or two axes, at most one of them a sum, got cost over ()",
        ),
        (
            {"over": ["a", "a", "b"], "ms": [[1]]},
            "costs[0]: needs one or two axes, at most one of them a sum, got cost over (a, a, b)",
        ),
        (
            {"over": [SUM_AB, SUM_AB], "sums": TOTALS, "ms": [[1]]},
            "costs[0]: needs one or two axes, at most one of them a sum, got cost over (sum(a+b), sum(a+b))",
        ),
        (
            {"over": [3], "ms": [1]},
            'costs[0]: over[0]: needs a group\'s name or {"sum": [names], "plus": channels}, got 3',
        ),
        ({"over": ["a"]}, "costs[0]: ms: is missing"),
        ({"over": ["a"], "ms": [1, 2], "sums": [2, 3]}, "costs[0]: cost over (a) needs no sums"),
        ({"over": [SUM_AB], "ms": [1]}, "costs[0]: cost over (sum(a+b)) needs the reachable totals in sums"),
        (
            {"over": [SUM_AB], "sums": [7, 8, 9, 10, 14, 15], "ms": [1] * 6},
            "costs[0]: cost over (sum(a+b)) needs every reachable total in sums, and 13 is missing",
        ),
        (
            {"over": [{**SUM_AB, "plus": 1}], "sums": [8, 9], "ms": [1, 2]},
            "costs[0]: cost over (sum(a+b+1)) needs every reachable total in sums, more than these 2",
        ),
        (
            {"over": [SUM_AB], "sums": [7, 7, 9], "ms": [1] * 3},
            "costs[0]: sums must ascend without repetition, got 7 before 7",
        ),
        (
            {"over": [SUM_AB], "sums": TOTALS, "ms": [1]},
            "costs[0]: cost over (sum(a+b)) needs ms of shape (6,), got (1,)",
        ),
        (
            {"over": [{"sum": ["a", "z"]}], "sums": [7], "ms": [1]},
            "costs[0]: cost over (sum(a+z)) names the unknown group 'z'",
        ),
        (
            {"over": [{"sum": []}], "sums": [7], "ms": [1]},
            "costs[0]: over[0]: sum: Value should have at least 1 item after validation, not 0, got []",
        ),
        (
            {"over": [{"sum": ["a"], "plus": -1}], "sums": [7], "ms": [1]},
            "costs[0]: over[0]: plus: Input should be greater than or equal to 0, got -1",
        ),
    ],
)
def test_bad_costs(cost: dict[str, Any], line: str) -> None:
    with pytest.raises(InvalidProblem) as caught:
        problem(costs=[cost])
    assert str(caught.value) == line
    assert isinstance(caught.value, BadInput)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{", "not JSON: Expecting property name"),
        ("[" * 100_000, "not JSON: "),
        (b"\xff\xfe\x00", "not JSON: "),
        ("NaN", "needs a JSON object with budget_ms, groups and costs, got nan"),
        ("[1]", "needs a JSON object with budget_ms, groups and costs, got [1]"),
        ('{"budget_ms": 1, "budget_ms": 2}', "'budget_ms' is given twice in one JSON object"),
        ('{"budget_ms": 1}', "groups: is missing"),
    ],
)
def test_bad_texts(text: str | bytes, line: str) -> None:
    with pytest.raises(InvalidProblem) as caught:
        Problem.parse(text)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(InvalidProblem, match="cannot be read"):
        Problem.read(tmp_path / "none.json")
    huge = tmp_path / "huge.json"
    with huge.open("wb") as file:
        file.truncate(256 * 2**20 + 1)  # sparse: takes no room on disk
    with pytest.raises(InvalidProblem, match="at most 268,435,456 bytes, got 268,435,457"):
        Problem.read(huge)


def test_hostile_sizes() -> None:
    with pytest.raises(InvalidProblem, match="at most 4096 items"):
        problem(groups={"a": {"widths": range_list(4097), "importance": [1] * 4097}, "b": AB["b"]})
    wide = {"a": {"widths": np.arange(1, 4097), "importance": np.ones(4096)}}
    with pytest.raises(InvalidProblem, match="at most 20,000,000 latencies over all costs, got 33,554,432"):
        table = Cost(over=["a", "a"], ms=np.zeros((4096, 4096)))
        problem(groups=wide, costs=[table, table])
    many = {f"g{i}": {"widths": [1, 2**i + 1], "importance": [0, 1]} for i in range(30)}  # 2^30 totals
    with pytest.raises(InvalidProblem, match="more than these 4096"):
        problem(groups=many, costs=[{"over": [{"sum": list(many)}], "sums": range_list(4096), "ms": np.zeros(4096)}])
    with pytest.raises(InvalidProblem, match="small enough to add up"):
        problem(groups={name: {"widths": [1], "importance": [1e308]} for name in "ab"})


def range_list(count: int) -> list[int]:
    return list(range(1, count + 1))


@pytest.mark.parametrize(
    ("widths", "line"),
    [
        ({"a": 2}, "needs one width for each group; missing or unknown: ['b']"),
        ({"a": 2, "b": 5, "c": 1}, "needs one width for each group; missing or unknown: ['c']"),
        ({"a": 2, "b": 6}, "group 'b' has no width 6; it has (5, 7, 11)"),
    ],
)
def test_bad_widths(widths: dict[str, int], line: str) -> None:
    for method in (problem().latency_ms, problem().importance):
        with pytest.raises(InvalidProblem) as caught:
            method(widths)
        assert str(caught.value) == line
