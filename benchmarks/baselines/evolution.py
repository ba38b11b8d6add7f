"""Evolutionary and random search, with a given number of latencies asked for."""

from __future__ import annotations

import numpy as np

from benchmarks.baselines.simple import uniform
from benchmarks.baselines.space import Floats, Ints, Space
from widthwise.planner.problem import Problem

__all__ = ["evolution", "random_search"]

_POPULATION, _PARENTS, _OFFSPRING = 50, 10, 25
_MUTATION = 0.1


def evolution(problem: Problem, calls: int, seed: int = 0) -> dict[str, int] | None:
    """Mutations and crossovers of the best so far, for as many latencies as the predictor may be asked for.

    Source: the search of MetaPruning (Liu et al., ICCV 2019, 1903.10258): 50 a generation, the best 10 are parents, 25
    mutants whose groups each change with probability 0.1, 25 crossovers, what is over the budget is rejected.

    Adapted: importance stands for accuracy. The first generation is drawn around the uniform width that meets the
    budget, which is one of it and isn't counted, as draws over all widths hardly ever meet a tight one.

    Args:
        calls: latencies to ask for, those of rejected widths among them.
        seed: of the draws.
    """
    space, rng = Space(problem), np.random.default_rng(seed)
    start = _start(space)
    parents, scores = start[None], _scores(space, start[None])
    children = _around(space, rng, start, min(_POPULATION, calls - 1))
    while len(children):
        parents = np.concatenate([parents, children])
        scores = np.concatenate([scores, _scores(space, children)])
        parents, first = np.unique(parents, axis=0, return_index=True)
        best = np.argsort(-scores[first], kind="stable")[:_PARENTS]
        parents, scores = parents[best], scores[first][best]
        children = np.concatenate([_mutants(space, rng, parents), _crossovers(rng, parents)])[: calls - space.calls]
    return space.named(parents[0]) if scores[0] > -np.inf else None


def random_search(problem: Problem, calls: int, seed: int = 0) -> dict[str, int] | None:
    """The best of so many draws around the uniform width that meets the budget, that width among them."""
    space, rng = Space(problem), np.random.default_rng(seed)
    start = _start(space)
    drawn = np.concatenate([start[None], _around(space, rng, start, calls - 1)])
    scores = _scores(space, drawn)
    return space.named(drawn[scores.argmax()]) if scores.max() > -np.inf else None


def _start(space: Space) -> Ints:
    """The uniform width within the budget; without one, the narrowest."""
    widths = uniform(space.problem)
    if widths is None:
        return np.zeros(len(space.names), dtype=np.int64)
    return np.array([int(np.searchsorted(w, widths[n])) for n, w in zip(space.names, space.widths, strict=True)])


def _scores(space: Space, choices: Ints) -> Floats:
    """Importance, or -inf over the budget."""
    return np.where(space.latency_ms(choices) <= space.most_ms, space.importance_of(choices), -np.inf)


def _around(space: Space, rng: np.random.Generator, start: Ints, count: int) -> Ints:
    """Each group anywhere from its narrowest width to as far above the start as that is above the narrowest."""
    return rng.integers(0, np.minimum(2 * start + 1, space.sizes), (max(count, 0), len(start)))


def _mutants(space: Space, rng: np.random.Generator, parents: Ints) -> Ints:
    mutants = parents[rng.integers(len(parents), size=_OFFSPRING)]
    changed = rng.random(mutants.shape) < _MUTATION
    return np.where(changed, rng.integers(0, space.sizes, mutants.shape), mutants)


def _crossovers(rng: np.random.Generator, parents: Ints) -> Ints:
    mothers, fathers = (parents[rng.integers(len(parents), size=_OFFSPRING)] for _ in range(2))
    return np.where(rng.random(mothers.shape) < 0.5, mothers, fathers)
