from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from widthwise.luts.errors import BadInput
from widthwise.network.widths import Widths
from widthwise.pruning.candidates import Found, Space, crosses, mutants, neighbours, scaled
from widthwise.pruning.evolution import EmptyWindow, InvalidSnapshot, IterationReport, SearchSettings, search

GROUPS = {f"g{index}": size for index, size in enumerate((13, 17, 19, 23, 29, 31, 37))}
PLANTED = {"g0": 2, "g1": 15, "g2": 5, "g3": 19, "g4": 8, "g5": 30, "g6": 11}
SMALL = SearchSettings(population=20, iterations=8, parents=5, mutations=10, crossovers=7)


def latencies(widths: Sequence[Widths]) -> npt.NDArray[np.float64]:
    """Grows with every width, and not linearly."""
    return np.array([sum(width + 0.01 * width**2 for width in row.values()) for row in widths])


def window(low: float, high: float) -> Space:
    return Space({group: tuple(range(1, size + 1)) for group, size in GROUPS.items()}, latencies, low, high)


BUDGET = float(latencies([PLANTED])[0]) * 1.01
SPACE = window(0.97 * BUDGET, BUDGET)


def distance(widths: Widths) -> float:
    """Greatest at the planted widths."""
    return -sum(((width - PLANTED[group]) / GROUPS[group]) ** 2 for group, width in widths.items())


def a_start() -> dict[str, int]:
    """In the window, and far from the planted widths."""
    near = scaled(SPACE, np.random.default_rng(0), 30)
    return SPACE.widths(min(near, key=lambda genome: distance(SPACE.widths(genome))))


class Counting:
    """A fitness that keeps what it was asked."""

    def __init__(self, fitness: Callable[[Widths], float] = distance, until: int = 10**9) -> None:
        self.asked: list[dict[str, int]] = []
        self.fitness, self.until = fitness, until

    def __call__(self, widths: dict[str, int]) -> float:
        if len(self.asked) == self.until:
            raise KeyboardInterrupt
        self.asked.append(widths)
        return self.fitness(widths)


def test_every_candidate_is_in_the_window_and_new() -> None:
    fitness = Counting()
    result = search(SPACE, fitness, SMALL, start=a_start())
    asked = latencies(fitness.asked)
    assert ((asked >= SPACE.low_ms) & (asked <= SPACE.high_ms)).all()
    assert len({tuple(widths.items()) for widths in fitness.asked}) == len(fitness.asked) == 20 * 8
    assert result.evaluations == 160
    assert result.accuracy == max(map(distance, fitness.asked)) == distance(result.widths)


def test_the_search_begins_with_the_plan_and_its_neighbours() -> None:
    fitness, start = Counting(), a_start()
    result = search(SPACE, fitness, SearchSettings(population=20, iterations=1), start=start)
    moved = [sum(widths[group] != start[group] for group in start) for widths in fitness.asked]
    steps = [max(abs(widths[group] - start[group]) for group in start) for widths in fitness.asked]
    assert fitness.asked[0] == start and result.plan_accuracy == distance(start)
    assert set(moved[1:10]) <= {1, 2} and set(steps[1:10]) == {1}
    assert max(steps[10:]) > 1  # the others are random


def test_it_finds_a_planted_optimum_that_random_search_does_not() -> None:
    result = search(SPACE, distance, SearchSettings(), start=a_start())
    found = Found(SPACE, set(), attempts=50)
    rng = np.random.default_rng(1)
    found.draw(lambda count: scaled(SPACE, rng, count), result.evaluations)
    random = [distance(SPACE.widths(genome)) for genome in found.genomes]
    assert len(random) == result.evaluations == 1000
    assert result.accuracy > -0.02 > max(random)
    assert result.accuracy > 0.3 * max(random)


def test_reports_tell_of_the_best_and_the_median() -> None:
    reports: list[IterationReport] = []
    fitness = Counting()
    result = search(SPACE, fitness, SMALL, start=a_start(), on_progress=reports.append)
    assert tuple(reports) == result.history and [report.iteration for report in reports] == list(range(1, 9))
    second = list(map(distance, fitness.asked[20:40]))
    assert reports[1].median == pytest.approx(float(np.median(second)))
    assert reports[1].best == max(map(distance, fitness.asked[:40]))
    assert result.notes == ()


def test_an_interrupted_search_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = search(SPACE, distance, SMALL, start=a_start())
    cut_off, rest = Counting(until=70), Counting()
    with pytest.raises(KeyboardInterrupt):
        search(SPACE, cut_off, SMALL, start=a_start(), snapshot=tmp_path / "search.json")
    resumed = search(SPACE, rest, SMALL, start=a_start(), snapshot=tmp_path / "search.json")
    assert len(rest.asked) == 160 - 60  # three iterations were whole
    assert (resumed.widths, resumed.accuracy, resumed.history) == (whole.widths, whole.accuracy, whole.history)
    assert resumed.evaluations == whole.evaluations and resumed.plan_accuracy == whole.plan_accuracy
    assert [path.name for path in tmp_path.iterdir()] == ["search.json"]


def test_a_finished_search_can_be_made_longer(tmp_path: Path) -> None:
    path = tmp_path / "search.json"
    search(SPACE, distance, SMALL, start=a_start(), snapshot=path)
    longer = SearchSettings(population=20, iterations=9, parents=5, mutations=10, crossovers=7)
    more = Counting()
    result = search(SPACE, more, longer, start=a_start(), snapshot=path)
    assert len(more.asked) == 20 and len(result.history) == 9


def _edited(path: Path, **changes: Any) -> str:
    return json.dumps(json.loads(path.read_text()) | changes)


def test_snapshots_that_are_none(tmp_path: Path) -> None:
    path, start = tmp_path / "search.json", a_start()
    settings = SearchSettings(population=3, iterations=1)
    search(SPACE, distance, settings, start=start, snapshot=path)
    good = path.read_text()
    texts = ["", good[:-40], "[]", _edited(path, seen=[]), _edited(path, seen=[[[99] * 7, 0.5]]), _edited(path, more=1)]
    for text in texts:
        path.write_text(text)
        with pytest.raises(InvalidSnapshot, match="delete it"):
            search(SPACE, distance, settings, start=start, snapshot=path)
        assert path.read_text() == text
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidSnapshot, match="delete it"):
        search(SPACE, distance, settings, start=start, snapshot=path)
    path.write_text(good)
    with pytest.raises(InvalidSnapshot, match="another search"):
        search(SPACE, distance, settings, start=start, snapshot=path, key="other weights")
    with pytest.raises(BadInput, match="can't write the snapshot"):
        search(SPACE, distance, settings, start=start, snapshot=tmp_path / "none" / "search.json")


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.2), (1e6, 2e6)])
def test_a_window_without_widths(low: float, high: float) -> None:
    fitness = Counting()
    with pytest.raises(EmptyWindow, match=r"no widths found between .* the narrowest take 7\.07 ms"):
        search(window(low, high), fitness, SearchSettings(attempts=3), start=a_start())
    assert fitness.asked == []


def test_too_few_widths_in_the_window_are_told() -> None:
    """A narrow space: 2 of its 9 width vectors are in the window, the start is not."""
    space = Space({"a": (1, 2, 3), "b": (1, 2, 3)}, lambda rows: np.array([float(r["a"] * r["b"]) for r in rows]), 6, 6)
    settings = SearchSettings(population=5, iterations=3, attempts=4)
    result = search(space, lambda widths: widths["a"] - 5.0, settings, start={"a": 1, "b": 3})
    assert result.widths == {"a": 3, "b": 2} and result.accuracy == -2.0 and result.plan_accuracy == -4.0
    assert result.evaluations == 3 and len(result.history) == 1
    told = " ".join(result.notes)
    assert "fewer than 5 new candidates" in told and "stopped after 1 iteration" in told and "outside" in told


def test_random_candidates_hit_even_a_narrow_window() -> None:
    found = scaled(window(0.999 * BUDGET, BUDGET), np.random.default_rng(2), 100)
    asked = latencies([SPACE.widths(genome) for genome in found])
    assert len(set(found)) > 15 and ((asked >= 0.999 * BUDGET) & (asked <= BUDGET)).all()


def test_mutants_and_crosses() -> None:
    rng = np.random.default_rng(3)
    parents = [(0,) * 7, tuple(size - 1 for size in GROUPS.values())]
    made = np.array(mutants(SPACE, parents[:1], 0.1, rng, 2000))
    assert 0.08 < (made != 0).mean() < 0.12 and (made < np.array(list(GROUPS.values()))).all()
    assert len(np.unique(made[:, 0])) == 13  # every option is met
    crossed = np.array(crosses(parents, rng, 2000))
    assert set(np.unique(crossed[:, 0])) == {0, 12} and 0.4 < (crossed[:, 0] == 12).mean() < 0.6


def test_neighbours_are_one_or_two_steps_away() -> None:
    space = Space({"a": (1, 2, 3), "b": (1, 5)}, latencies, 0, 1)
    assert sorted(neighbours(space, (1, 0))) == [(0, 0), (0, 1), (1, 1), (2, 0), (2, 1)]


def test_a_start_that_is_no_candidate() -> None:
    with pytest.raises(BadInput, match="'g0' must have one of the widths"):
        search(SPACE, distance, SMALL, start=a_start() | {"g0": 14})


def test_a_candidate_that_overflows_is_the_worst() -> None:
    start = a_start()
    settings = SearchSettings(population=3, iterations=1)
    result = search(SPACE, lambda widths: float("nan") if widths == start else 0.5, settings, start=start)
    assert result.accuracy == 0.5 and result.widths != start


@pytest.mark.parametrize(
    "wrong",
    [{"population": 0}, {"iterations": 0}, {"parents": 1}, {"mutation_rate": 0.0}, {"window": 1.0}, {"seed": -1}],
)
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=next(iter(wrong))):
        SearchSettings(**wrong)
