"""Candidates of a search: width vectors as options per group, which of them lie in a latency window, and new ones.

Pure but for the generator of random numbers; :mod:`widthwise.pruning.evolution` puts them together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations, product

import numpy as np
import numpy.typing as npt

from widthwise.luts.errors import BadInput
from widthwise.network.widths import Widths

__all__ = ["Found", "Genome", "Space", "crosses", "mutants", "neighbours", "scaled"]

Genome = tuple[int, ...]
"""For each group, the index of one of its options."""

_HALVINGS = 12
_WIDEST = 10.0
"""Random ratios, at least 0.1, are scaled by up to this: then all of them are 1 or more."""

_LEAST_RATIO = 0.1

_LEAST_DRAW = 16
"""Drawing and pricing a few at once costs hardly more than one."""


@dataclass(frozen=True)
class Space:
    """Where to search.

    Args:
        options: group → its widths, ascending.
        predict: latencies in ms of many width vectors.
        low_ms: the window's lower end.
        high_ms: its upper end, the budget.
    """

    options: Mapping[str, Sequence[int]]
    predict: Callable[[Sequence[Widths]], npt.NDArray[np.float64]]
    low_ms: float
    high_ms: float

    def widths(self, genome: Genome) -> dict[str, int]:
        return {group: options[gene] for (group, options), gene in zip(self.options.items(), genome, strict=True)}

    def genome(self, widths: Widths) -> Genome:
        """The genome of these widths.

        Raises:
            BadInput: a group has no width here, or one that is none of its options.
        """
        for group, options in self.options.items():
            if widths.get(group) not in options:
                raise BadInput(f"group {group!r} must have one of the widths {list(options)}, got {widths.get(group)}")
        return tuple(list(options).index(widths[group]) for group, options in self.options.items())

    @cached_property
    def counts(self) -> npt.NDArray[np.int64]:
        """How many options each group has."""
        return np.array([len(options) for options in self.options.values()])

    def latencies(self, genomes: Sequence[Genome]) -> npt.NDArray[np.float64]:
        return self.predict([self.widths(genome) for genome in genomes]) if genomes else np.zeros(0)

    def inside(self, genomes: Sequence[Genome]) -> list[Genome]:
        """Those whose latency lies in the window, in their order."""
        fits = [self.low_ms <= ms <= self.high_ms for ms in self.latencies(genomes)]
        return [genome for genome, fit in zip(genomes, fits, strict=True) if fit]

    def nearest(self, ratios: npt.NDArray[np.float64]) -> list[Genome]:
        """For each row of ratios, the options nearest to these shares of the widest ones."""
        columns = [
            np.abs(np.asarray(options)[None] - ratios[:, [at]] * options[-1]).argmin(1)
            for at, options in enumerate(self.options.values())
        ]
        return [tuple(row) for row in np.stack(columns, 1).tolist()]


@dataclass
class Found:
    """Collects distinct genomes of the window that weren't seen before.

    Args:
        known: those seen before; grows by what is added.
        attempts: rounds of drawing after which fewer are accepted.
    """

    space: Space
    known: set[Genome]
    attempts: int
    genomes: list[Genome] = field(default_factory=list)

    def add(self, genomes: Iterable[Genome], most: int) -> int:
        """Adds up to so many of these; returns how many."""
        fresh = [genome for genome in dict.fromkeys(genomes) if genome not in self.known]
        chosen = self.space.inside(fresh)[:most]
        self.known.update(chosen)
        self.genomes += chosen
        return len(chosen)

    def draw(self, make: Callable[[int], Iterable[Genome]], count: int) -> None:
        """Adds ``count`` of what ``make`` gives, or fewer once the attempts are spent."""
        for _ in range(self.attempts):
            if count < 1:
                return
            count -= self.add(make(max(count, _LEAST_DRAW)), count)


def neighbours(space: Space, genome: Genome) -> list[Genome]:
    """One or two groups moved a step up or down."""
    moves = list(product(range(len(genome)), (-1, 1)))
    near = []
    for chosen in [*((move,) for move in moves), *combinations(moves, 2)]:
        moved = list(genome)
        for at, step in chosen:
            moved[at] += step
        if tuple(moved) != genome and all(0 <= gene < count for gene, count in zip(moved, space.counts, strict=True)):
            near.append(tuple(moved))
    return near


def mutants(space: Space, parents: Sequence[Genome], rate: float, rng: np.random.Generator, count: int) -> list[Genome]:
    """Each gene of a random parent replaced, with the chance given, by another one."""
    chosen = np.array(parents)[rng.integers(len(parents), size=count)]
    moved = (chosen + rng.integers(1, np.maximum(space.counts, 2), size=chosen.shape)) % space.counts
    return _rows(np.where(rng.random(chosen.shape) < rate, moved, chosen))


def crosses(parents: Sequence[Genome], rng: np.random.Generator, count: int) -> list[Genome]:
    """Each gene from one of two random parents, with equal chance."""
    pool = np.array(parents)
    first, second = pool[rng.integers(len(pool), size=count)], pool[rng.integers(len(pool), size=count)]
    return _rows(np.where(rng.random(first.shape) < 0.5, first, second))


def scaled(space: Space, rng: np.random.Generator, count: int) -> list[Genome]:
    """Random ratios, scaled by bisection until their latency falls into the window; those that jump over it are raised
    by one step of one group where that hits it. What remains outside is left to the caller to reject."""
    ratios = rng.uniform(_LEAST_RATIO, 1.0, (count, len(space.counts)))
    low, high = np.zeros(count), np.full(count, _WIDEST)
    found: dict[int, Genome] = {}
    below = space.nearest(np.zeros_like(ratios))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        genomes = space.nearest(ratios * middle[:, None])
        for row, (genome, ms) in enumerate(zip(genomes, space.latencies(genomes).tolist(), strict=True)):
            if row in found:
                continue
            if space.low_ms <= ms <= space.high_ms:
                found[row] = genome
            elif ms > space.high_ms:
                high[row] = middle[row]
            else:
                low[row], below[row] = middle[row], genome
        if len(found) == count:
            break
    raised = {genome for row in set(range(count)) - set(found) for genome in _raised(space, below[row])}
    hits = set(space.inside(sorted(raised)))
    for row in set(range(count)) - set(found):
        chances = [genome for genome in _raised(space, below[row]) if genome in hits]
        if chances:
            found[row] = chances[rng.integers(len(chances))]
    return [found[row] for row in sorted(found)]


def _raised(space: Space, genome: Genome) -> list[Genome]:
    """One group a step wider."""
    last = space.counts - 1
    return [(*genome[:at], gene + 1, *genome[at + 1 :]) for at, gene in enumerate(genome) if gene < last[at]]


def _rows(genomes: npt.NDArray[np.int64]) -> list[Genome]:
    return [tuple(row) for row in genomes.tolist()]
