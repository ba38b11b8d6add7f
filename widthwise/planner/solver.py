"""The widths of greatest importance within a latency budget, with a proof.

Four steps, each exact: options that another one replaces at no loss go (``dominance``); message passing at the best
price of latency bounds what any answer with a given option can reach (``bounds``); the best among the options and
pairs near that bound is found by dynamic programming (``fronts``), or, where the groups hang together too closely for
that, by a small integer program (``formulation``); where it does not yet prove all others worse, the search widens
to what might be better. The proof is then the larger of the search's bound and the bound of what was left out.

Source: the coupled allocation of MDP (Multi-Dimensional Pruning, CVPR 2025).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Literal

from widthwise.planner.bounds import Ascent, Reach
from widthwise.planner.dominance import undominated
from widthwise.planner.formulation import Limit, Model
from widthwise.planner.fronts import TooWide, eliminate
from widthwise.planner.graph import Graph, Ints, merge
from widthwise.planner.problem import Answer, Problem

__all__ = ["solve"]

Status = Literal["optimal", "feasible", "infeasible"]

_ROUNDING = 1e-11
"""Relative error allowed for in bounds that were added up in floats."""
_MINIMUM_GAP = 1e-7
_FIRST_PAIRS = 500
"""The first search has about this many pairs: few, as that is often enough and the next one has more."""
_PRICES, _SWEEPS, _LAST_SWEEPS = 20, 5, 20
_PRICE_RATIO = 1.001
_PRICE_SPAN = 100.0
"""Messages at a price this many times higher have rounded too much away to be kept."""
_WIDEN = 4
_EXCLUSIONS = 20
_SHARE = 0.95
"""Of the tolerance that each part of the proof may use; the bound is the larger of them, so they don't add up."""
_HAIR = 1e-9
_TINY = 1e-9
"""Differences below this share of all importance are the solver's tolerance."""


def solve(problem: Problem, *, time_limit_s: float = 60.0, relative_gap: float = 1e-5) -> Answer:
    """The widths of greatest importance whose latency is within the budget.

    Deterministic and on one thread, unless the time limit stops it. Latency and importance in the answer are recomputed
    exactly from the problem, and the latency never exceeds the budget unless the status is ``infeasible``.

    Args:
        problem: what to choose from.
        time_limit_s: stop after about this long with the best widths and the bound found so far.
        relative_gap: how close to the optimum is close enough to be called optimal.

    Raises:
        InvalidProblem: concatenations so finely divided that the model would not fit in memory.

    Example:
        >>> problem = Problem(budget_ms=3.0, groups={"a": {"widths": [4, 8], "importance": [1.0, 2.0]}},
        ...                   costs=[{"over": ["a"], "ms": [0.5, 4.0]}])
        >>> answer = solve(problem)
        >>> answer.status, answer.widths, answer.minimum_ms
        ('optimal', {'a': 4}, 0.5)
    """
    started = time.perf_counter()
    search = _Search(problem, started + time_limit_s, relative_gap)
    search.minimise()
    search.offer(_best_options(problem))
    if search.bound > -math.inf and not search.closed:
        search.maximise()
    return search.answer(time.perf_counter() - started)


class _Search:
    """The best widths and the best bounds so far.

    Attributes:
        best: widths of the highest importance known within the budget, or None.
        importance: theirs (-inf without any).
        bound: no widths within the budget have a higher importance (-inf: there are none within it).
        fastest: widths of the least latency known.
        minimum_ms: their latency.
    """

    def __init__(self, problem: Problem, deadline: float, relative_gap: float) -> None:
        self.problem, self.terms = problem, merge(problem)
        self.deadline, self.relative_gap = deadline, relative_gap
        self.names = list(problem.groups)
        self.best: dict[str, int] | None = None
        self.importance = -math.inf
        self.bound = problem.importance(_best_options(problem))
        self.unit = math.fsum(max(map(abs, group.importance)) for group in problem.groups.values())
        self.fastest: dict[str, int] = {}
        self.minimum_ms = math.inf

    @property
    def gap(self) -> float:
        """How far the best widths may be from the optimum, relative to the bound."""
        missing = self.bound - self.importance
        return missing / max(abs(self.bound), _TINY * self.unit) if missing > _TINY * self.unit else 0.0

    @property
    def closed(self) -> bool:
        return self.best is not None and self.gap <= self.relative_gap

    @property
    def left_s(self) -> float:
        return self.deadline - time.perf_counter()

    def offer(self, widths: dict[str, int]) -> float:
        """Remember these widths if they are the best or the fastest so far; their latency."""
        ms, importance = self.problem.latency_ms(widths), self.problem.importance(widths)
        if ms < self.minimum_ms:
            self.fastest, self.minimum_ms = widths, ms
        if ms <= self.problem.budget_ms and importance > self.importance:
            self.best, self.importance = widths, importance
        return ms

    def minimise(self) -> None:
        """Find the fastest widths; where they miss the budget, that settles the bound."""
        kept = undominated(self.problem, self.terms, importance=False)
        self.offer(self._widths(kept, [0] * len(kept)))
        floor_ms = self.minimum_ms
        if any(len(options) > 1 for options in kept):
            floor_ms = self._floor_ms(kept)
        if floor_ms > self.problem.budget_ms:
            self.bound = -math.inf

    def _floor_ms(self, kept: Sequence[Ints]) -> float:
        graph = Graph.of(self.problem, self.terms, kept)
        ascent, before = Ascent(graph, 1.0, 0.0), -math.inf
        for _ in range(_PRICES):
            ascent.sweep(_SWEEPS)
            self.offer(self._widths(kept, ascent.choice))
            if ascent.bound >= self.minimum_ms * (1 - _MINIMUM_GAP / 10) or self.left_s < 0:
                return min(ascent.bound, self.minimum_ms)
            if ascent.bound <= before * (1 + _MINIMUM_GAP):
                break
            before = ascent.bound
        # What cannot beat the fastest widths known is left out, so a program without an answer proves these.
        masks = ascent.reach().within(self.minimum_ms * (1 + _ROUNDING))
        model = Model(graph, len(kept), *masks)
        solution = model.minimise(model.ms, [], relative_gap=_MINIMUM_GAP / 2, time_limit_s=self.left_s)
        if solution.options is not None:
            self.offer(self._widths(kept, solution.options))
        return min(self.minimum_ms, max(ascent.bound, solution.bound + graph.constant_ms))

    def maximise(self) -> None:
        """Close the gap between the best widths and the bound."""
        kept = undominated(self.problem, self.terms, importance=True)
        graph = Graph.of(self.problem, self.terms, kept)
        ascent = self._priced(graph, kept)
        reach = ascent.reach()
        worth = ascent.price * self.problem.budget_ms
        margin = _ROUNDING * (worth + self.unit)
        self.bound = min(self.bound, worth - ascent.bound + margin)
        pairs = _FIRST_PAIRS
        while not self.closed and self.left_s > 0:
            # Choices at or below the target need not be looked at: the best widths are known to be as good.
            target = self.importance + _SHARE * self._tolerance
            level = max(worth - reach.nearest(pairs) + margin, target)
            energy = worth - level + margin
            bound = self._eliminate(ascent, reach, energy, kept)
            if bound is None:
                bound = self._solve(Model(graph, len(kept), *reach.within(energy)), graph, kept)
            self.bound = min(self.bound, max(bound, level, self.importance))
            if level == target:
                return
            pairs *= _WIDEN

    @property
    def _tolerance(self) -> float:
        """How much importance may be missing; both numbers move towards the optimum, so the smaller one is safe."""
        known = min(abs(self.bound), abs(self.importance)) if self.best is not None else 0.0
        return self.relative_gap * known

    def _priced(self, graph: Graph, kept: Sequence[Ints]) -> Ascent:
        """Message passing at (nearly) the price of latency whose bound is the least."""
        budget_ms = self.problem.budget_ms
        spread = -math.fsum(float(node.importance.min()) for node in graph.nodes)
        ascent = Ascent(graph, spread / budget_ms, 1.0)
        low, high, highest, best = 0.0, math.inf, 0.0, (math.inf, ascent.price)
        for _ in range(_PRICES):
            ascent.sweep(_SWEEPS)
            highest = max(highest, ascent.price)
            best = min(best, (ascent.price * budget_ms - ascent.bound, ascent.price))
            if self.offer(self._widths(kept, ascent.choice)) > budget_ms:
                low = ascent.price
            else:
                high = ascent.price
            if high < low * _PRICE_RATIO or self.left_s < 0:
                break
            bracketed = low > 0 and high < math.inf
            ascent.reprice(math.sqrt(low * high) if bracketed else low * 4 or high / 4)
        if highest > _PRICE_SPAN * best[1]:
            ascent = Ascent(graph, best[1], 1.0)
        else:
            ascent.reprice(best[1])
        ascent.sweep(_LAST_SWEEPS)
        return ascent

    def _eliminate(self, ascent: Ascent, reach: Reach, energy: float, kept: Sequence[Ints]) -> float | None:
        """Offer the best widths of at most this energy; none are better than the result (None: can't tell)."""
        budget_ms = self.problem.budget_ms
        hair_ms = _ROUNDING * budget_ms
        try:
            front = eliminate(
                ascent,
                *reach.within(energy),
                budget_ms=budget_ms - ascent.graph.constant_ms + hair_ms,
                energy=energy,
                loss=max(_SHARE * self._tolerance, _TINY * self.unit) / 2,
            )
        except TooWide:
            return None
        if front.choice is not None and self.offer(self._widths(kept, front.choice)) > budget_ms:
            return None  # by a rounding error; to rule out single choices is the integer program's business
        return front.importance

    def _solve(self, model: Model, graph: Graph, kept: Sequence[Ints]) -> float:
        """Offer the model's best widths; no widths in it are better than the result."""
        limits = [Limit(model.ms, self.problem.budget_ms - graph.constant_ms)]
        bound = math.inf
        worst = self.importance if self.best is not None else -self.unit
        gap = (
            _SHARE * self._tolerance / max(graph.constant_importance - worst, _TINY * self.unit)
        )  # HiGHS counts from there
        for attempt in range(_EXCLUSIONS + 2):
            solution = model.minimise(-model.importance, limits, relative_gap=gap, time_limit_s=self.left_s)
            bound = min(bound, graph.constant_importance - solution.bound)
            if solution.options is None or self.left_s < 0:
                break
            if self.offer(self._widths(kept, solution.options)) <= self.problem.budget_ms:
                break
            # HiGHS took a hair too much. That choice alone is ruled out, which keeps the proof; if there
            # are many such choices, the budget gives way by more than HiGHS's tolerance.
            limits.append(model.excluding(solution.options))
            if attempt == _EXCLUSIONS:
                limits[0] = Limit(model.ms, limits[0].value - _HAIR * self.problem.budget_ms)
        return bound

    def _widths(self, kept: Sequence[Ints], choice: Sequence[int] | Ints) -> dict[str, int]:
        """The widths of a choice among the kept options; what follows the groups in it is passed over."""
        groups = zip(self.problem.groups.items(), kept, choice, strict=False)
        return {name: group.widths[options[option]] for (name, group), options, option in groups}

    def answer(self, seconds: float) -> Answer:
        """What the search knows."""
        found = self.best is not None
        widths = self.fastest if self.best is None else self.best
        bound = self.importance if self.gap == 0.0 else self.bound
        status: Status = "infeasible" if not found else "optimal" if self.closed else "feasible"
        return Answer(
            status=status,
            widths=widths,
            latency_ms=self.problem.latency_ms(widths),
            importance=self.problem.importance(widths),
            bound=bound if bound > -math.inf else None,
            gap=self.gap if found else None,
            minimum_ms=self.minimum_ms,
            seconds=seconds,
        )


def _best_options(problem: Problem) -> dict[str, int]:
    """The widest of each group's most important options."""
    return {name: max(zip(group.importance, group.widths, strict=True))[1] for name, group in problem.groups.items()}
