"""The best widths within all limits, with a proof.

Four steps, each exact: options that another one replaces at no loss go (``dominance``); message passing at the best
prices of what is limited (``prices``) bounds what any answer with a given option can reach (``bounds``); the best among
the options and pairs near that bound is found by dynamic programming (``fronts``), or, where the groups hang together
too closely for that, by a small integer program (``formulation``); where it does not yet prove all others worse, the
search widens to what might be better. The proof is then the larger of the search's bound and the bound of what was
left out. Most importance within limits and least latency that keeps enough are one problem with its amounts exchanged.

Source: the coupled allocation of MDP (Multi-Dimensional Pruning, CVPR 2025).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import numpy as np

from widthwise.planner.answer import Answer, Reached, Status
from widthwise.planner.bounds import Ascent, Mask, Reach
from widthwise.planner.dominance import undominated
from widthwise.planner.formulation import Limit, Model
from widthwise.planner.fronts import TooWide, eliminate
from widthwise.planner.graph import IMPORTANCE, LATENCY, Floats, Graph, Ints, merge
from widthwise.planner.prices import priced
from widthwise.planner.problem import Problem

__all__ = ["solve"]

_ROUNDING = 1e-11
"""Relative error allowed for in bounds that were added up in floats."""
_MINIMUM_GAP = 1e-7
_FIRST_PAIRS = 500
"""The first search has about this many pairs: few, as that is often enough and the next one has more."""
_FLOORS, _SWEEPS = 20, 5
_WIDEN = 4
_EXCLUSIONS = 20
_SHARE = 0.95
"""Of the tolerance that each part of the proof may use; the bound is the larger of them, so they don't add up."""
_HAIR = 1e-9
_TINY = 1e-9
"""Differences below this share of all importance (or latency) are the solver's tolerance."""


def solve(problem: Problem, *, time_limit_s: float = 60.0, relative_gap: float = 1e-5) -> Answer:
    """The widths of greatest importance within the limits, or the fastest ones that keep enough.

    Deterministic and on one thread, unless the time limit stops it. Latency, importance and the limits' amounts in the
    answer are recomputed exactly from the problem, and none is beyond its limit unless the status is ``infeasible``.

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
    search.offer(_best_options(problem))
    search.find_least()
    if search.bound < math.inf and not search.closed:
        search.improve()
    return search.answer(started)


class _Search:
    """The best widths and the best bounds so far.

    Amounts are numbered as in :mod:`widthwise.planner.graph`; of each, the goal included, less is better.

    Attributes:
        goal: the amount to have least of.
        limits: amount → how much of it there may be; the goal isn't among them.
        best: widths of the least goal known within the limits, or None.
        value: their goal (inf without any).
        bound: no widths within the limits have less of the goal (inf: there are none within them).
        least: amount → the least of it known, whatever becomes of the others; ``floors`` bounds it from below.
        fastest: widths of the least latency known.
        binding: limited amounts with a price in the proof.
    """

    def __init__(self, problem: Problem, deadline: float, relative_gap: float) -> None:
        self.problem, self.terms = problem, merge(problem)
        self.deadline, self.relative_gap = deadline, relative_gap
        self.goal = IMPORTANCE if problem.objective == "importance" else LATENCY
        keep = -math.inf if problem.keep is None else problem.keep
        self.most = np.array([-keep, problem.budget_ms, *(limit.most for limit in problem.limits)])
        self.limits = {n: float(most) for n, most in enumerate(self.most) if most < math.inf and n != self.goal}
        self.best: dict[str, int] | None = None
        self.value, self.bound = math.inf, -math.inf
        self.least, self.floors = np.full(len(self.most), math.inf), np.full(len(self.most), -math.inf)
        self.fastest: dict[str, int] = {}
        self.binding: list[int] = []
        scale = (
            math.fsum(max(map(abs, group.importance)) for group in problem.groups.values())
            if self.goal == IMPORTANCE
            else abs(problem.fixed_ms) + math.fsum(float(cost.ms.max()) for cost in problem.costs)
        )
        self.unit = scale if scale > 0 else 1.0  # where all widths are worth the same

    @property
    def gap(self) -> float:
        """How far the best widths may be from the optimum, relative to the bound."""
        missing = self.value - self.bound
        return missing / max(abs(self.bound), _TINY * self.unit) if missing > _TINY * self.unit else 0.0

    @property
    def closed(self) -> bool:
        return self.best is not None and self.gap <= self.relative_gap

    @property
    def left_s(self) -> float:
        return self.deadline - time.perf_counter()

    def offer(self, widths: dict[str, int]) -> Floats:
        """Remember these widths if they are the best or the fastest so far; their amounts."""
        problem = self.problem
        others = problem.amounts(widths) if problem.limits else {}
        amounts = np.array([-problem.importance(widths), problem.latency_ms(widths), *others.values()])
        if amounts[LATENCY] < self.least[LATENCY]:
            self.fastest = widths
        self.least = np.minimum(self.least, amounts)
        if amounts[self.goal] < self.value and all(amounts[n] <= most for n, most in self.limits.items()):
            self.best, self.value = widths, float(amounts[self.goal])
        return amounts

    def find_least(self) -> None:
        """Find the least of each amount alone; where one misses its limit, that settles the bound."""
        self.floors[IMPORTANCE] = self.least[IMPORTANCE]
        for amount in sorted({LATENCY, *self.limits} - {IMPORTANCE}):
            kept = undominated(self.problem, self.terms, [amount])
            self.offer(self._widths(kept, [0] * len(kept)))
            single = all(len(options) == 1 for options in kept)
            self.floors[amount] = self.least[amount] if single else self._floor(amount, kept)
        self.bound = float(self.floors[self.goal])
        if any(self.floors[n] > most for n, most in self.limits.items()):
            self.bound = math.inf

    def _floor(self, amount: int, kept: Sequence[Ints]) -> float:
        graph = Graph.of(self.problem, self.terms, kept)
        ascent, before = Ascent(graph, np.eye(len(self.most))[amount]), -math.inf
        for _ in range(_FLOORS):
            ascent.sweep(_SWEEPS)
            self.offer(self._widths(kept, ascent.choice))
            if ascent.bound >= self.least[amount] * (1 - _MINIMUM_GAP / 10) or self.left_s < 0:
                return float(min(ascent.bound, self.least[amount]))
            if ascent.bound <= before * (1 + _MINIMUM_GAP):
                break
            before = ascent.bound
        # What cannot beat the least known is left out, so a program without an answer proves that.
        masks = ascent.reach().within(float(self.least[amount]) * (1 + _ROUNDING))
        model = Model(graph, len(kept), *masks)
        solution = model.minimise(model.amounts[amount], [], relative_gap=_MINIMUM_GAP / 2, time_limit_s=self.left_s)
        if solution.options is not None:
            self.offer(self._widths(kept, solution.options))
        return float(min(self.least[amount], max(ascent.bound, solution.bound + graph.constants[amount])))

    def improve(self) -> None:
        """Close the gap between the best widths and the bound."""
        kept = self._affordable(undominated(self.problem, self.terms, sorted({self.goal, *self.limits})))
        graph = Graph.of(self.problem, self.terms, kept)
        ascent = priced(
            graph,
            self.goal,
            self.limits,
            lambda choice: self.offer(self._widths(kept, choice)),
            lambda: self.left_s < 0,
        )
        self.binding = [n for n in self.limits if ascent.prices[n] > 0]
        reach = ascent.reach()
        worth = math.fsum(ascent.prices[n] * most for n, most in self.limits.items())
        margin = _ROUNDING * (math.fsum(abs(ascent.prices[n] * most) for n, most in self.limits.items()) + self.unit)
        self.bound = max(self.bound, ascent.bound - worth - margin)
        pairs = _FIRST_PAIRS
        while not self.closed and self.left_s > 0:
            # Choices at or above the target need not be looked at: the best widths are known to be as good.
            target = self.value - _SHARE * self._tolerance
            level = min(reach.nearest(pairs) - worth - margin, target)
            bound = self._search_within(ascent, reach, level + worth + margin, kept)
            self.bound = max(self.bound, min(bound, level, self.value))
            if level == target:
                return
            pairs *= _WIDEN

    def _affordable(self, kept: Sequence[Ints]) -> list[Ints]:
        """The options less those that alone give up more importance than may be."""
        room = self.limits.get(IMPORTANCE, math.inf) - self.floors[IMPORTANCE] + _HAIR * self.unit
        scores = [
            np.array(group.importance)[own] for group, own in zip(self.problem.groups.values(), kept, strict=True)
        ]
        return [own[score.max() - score <= room] for own, score in zip(kept, scores, strict=True)]

    @property
    def _tolerance(self) -> float:
        """How much may be missing; both numbers move towards the optimum, so the smaller one is safe."""
        known = min(abs(self.bound), abs(self.value)) if self.best is not None else 0.0
        return self.relative_gap * known

    def _search_within(self, ascent: Ascent, reach: Reach, energy: float, kept: Sequence[Ints]) -> float:
        """Offer the best widths of at most this energy; none within the limits are better than the result."""
        masks = reach.within(energy)
        binding = {n: most for n, most in self.limits.items() if n in self.binding}
        for limits in [binding, self.limits] if 0 < len(binding) < len(self.limits) else [self.limits]:
            bound = self._eliminate(ascent, masks, energy, kept, limits)
            if bound is not None:
                return bound
        return self._solve(Model(ascent.graph, len(kept), *masks), ascent.graph, kept)

    def _eliminate(
        self,
        ascent: Ascent,
        masks: tuple[list[Mask], list[Mask]],
        energy: float,
        kept: Sequence[Ints],
        limits: Mapping[int, float],
    ) -> float | None:
        """The bound of the best widths of at most this energy, which are offered (None: can't tell)."""
        try:
            front = eliminate(
                ascent,
                *masks,
                limits={n: most + _ROUNDING * abs(most) for n, most in limits.items()},
                energy=energy,
                loss=max(_SHARE * self._tolerance, _TINY * self.unit) / 2,
                late=lambda: self.left_s < 0,
            )
        except TooWide:
            return None
        if front.choice is not None:
            amounts = self.offer(self._widths(kept, front.choice))
            if any(amounts[n] > most for n, most in self.limits.items()):
                return None  # by a rounding error, or in a limit left out
        return front.least

    def _solve(self, model: Model, graph: Graph, kept: Sequence[Ints]) -> float:
        """Offer the model's best widths; no widths in it are better than the result."""
        limits = [Limit(model.amounts[n], most - graph.constants[n]) for n, most in self.limits.items()]
        constant = float(graph.constants[self.goal])
        bound = -math.inf
        known = self.value - constant if self.best is not None else 2 * self.unit
        gap = _SHARE * self._tolerance / max(known, _TINY * self.unit)  # HiGHS counts from the constant
        for attempt in range(_EXCLUSIONS + 2):
            solution = model.minimise(model.amounts[self.goal], limits, relative_gap=gap, time_limit_s=self.left_s)
            bound = max(bound, constant + solution.bound)
            if solution.options is None or self.left_s < 0:
                break
            amounts = self.offer(self._widths(kept, solution.options))
            if all(amounts[n] <= most for n, most in self.limits.items()):
                break
            # HiGHS took a hair too much. That choice alone is ruled out, which keeps the proof; if there
            # are many such choices, the limits give way by more than HiGHS's tolerance.
            limits.append(model.excluding(solution.options))
            if attempt == _EXCLUSIONS:
                for i, most in enumerate(self.limits.values()):
                    limits[i] = Limit(limits[i].coefficients, limits[i].value - _HAIR * abs(most))
        return bound

    def _widths(self, kept: Sequence[Ints], choice: Sequence[int] | Ints) -> dict[str, int]:
        """The widths of a choice among the kept options; what follows the groups in it is passed over."""
        groups = zip(self.problem.groups.items(), kept, choice, strict=False)
        return {name: group.widths[options[option]] for (name, group), options, option in groups}

    def answer(self, started: float) -> Answer:
        """What the search knows."""
        found = self.best is not None
        widths = self.fastest if self.best is None else self.best
        sign = -1 if self.goal == IMPORTANCE else 1
        status: Status = "infeasible" if not found else "optimal" if self.closed else "feasible"
        names = ["importance", "latency", *(limit.name for limit in self.problem.limits)]
        amounts = self.problem.amounts(widths)
        return Answer(
            status=status,
            widths=widths,
            latency_ms=self.problem.latency_ms(widths),
            importance=self.problem.importance(widths),
            bound=None if self.bound == math.inf else sign * (self.value if self.gap == 0.0 else self.bound),
            gap=self.gap if found else None,
            minimum_ms=float(self.least[LATENCY]),
            binding=tuple(names[n] for n in self.binding) if found else (),
            limits=tuple(
                Reached(name=limit.name, amount=amounts[limit.name], most=limit.most, least=float(least))
                for limit, least in zip(self.problem.limits, self.least[LATENCY + 1 :], strict=True)
            ),
            reason=None if found else self._reason(names),
            seconds=time.perf_counter() - started,
        )

    def _reason(self, names: Sequence[str]) -> str:
        """Why no widths were found."""
        missed = [n for n, most in self.limits.items() if self.floors[n] > most]
        if IMPORTANCE in missed:
            return f"no widths keep an importance of {self.problem.keep:.6g}: the most is {-self.least[IMPORTANCE]:.6g}"
        if missed:
            parts = (f"{names[n]} of at most {self.most[n]:.6g} (the least is {self.least[n]:.6g})" for n in missed)
            return f"no widths reach {' nor '.join(parts)}"
        if self.bound < math.inf:
            return "no widths within the limits were found in the time given"
        return f"each of {', '.join(names[n] for n in self.limits)} can be met alone, not all together{self._nearest()}"

    def _nearest(self) -> str:
        """The least latency within the other limits, where latency is one of them."""
        if LATENCY not in self.limits or self.left_s < 0:
            return ""
        free = {"budget_ms": math.inf, "objective": "latency", "keep": -self.unit}
        within = solve(self.problem.model_copy(update=free), time_limit_s=self.left_s, relative_gap=_MINIMUM_GAP)
        return (
            ""
            if within.status == "infeasible"
            else f"; within the others the least latency is {within.latency_ms:.6g} ms"
        )


def _best_options(problem: Problem) -> dict[str, int]:
    """The widest of each group's most important options that its bounds allow."""
    return {
        name: max((group.importance[option], group.widths[option]) for option in problem.allowed[name])[1]
        for name, group in problem.groups.items()
    }
