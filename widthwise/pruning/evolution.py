"""Evolutionary search of widths: among those whose latency lies in a window, the ones of greatest fitness.

Source: Liu et al., MetaPruning, ICCV 2019 (1903.10258), and its code: each iteration keeps the best so far as parents,
mutates them, crosses them uniformly, fills up with random ones, and rejects what breaks the constraint; none is looked
at twice. Theirs is a range of FLOPs, here it is one of predicted latency, and the first population holds widths known
to be good, such as an exact plan's, and their neighbours.

Only the two functions passed in know of networks and tables. All that is random depends on the seed and the iteration,
so a search that was cut off goes on from its snapshot as if it had not been.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from widthwise.luts.errors import BadInput, Unmet
from widthwise.network.widths import Widths
from widthwise.pruning.candidates import Found, Genome, Space, crosses, mutants, neighbours, scaled

__all__ = ["EmptyWindow", "InvalidSnapshot", "IterationReport", "SearchResult", "SearchSettings", "search"]

_MOST_NEIGHBOURS = 2000
"""Of the start, priced to seed the first population; a large network has many more."""


class EmptyWindow(Unmet):
    """No widths found whose predicted latency lies in the window."""


class InvalidSnapshot(BadInput):
    """A snapshot that is corrupt, or of another search."""


@dataclass(frozen=True)
class SearchSettings:
    """How to search; the defaults are the paper's, where it has the setting.

    Args:
        population: candidates evaluated per iteration.
        iterations: populations, the first one included.
        parents: best candidates so far, from which new ones are made.
        mutations: of them per iteration.
        crossovers: per iteration; what is left of the population is random.
        mutation_rate: chance of each group to get another width.
        window: least latency of a candidate, as a share of the budget.
        recalibration_batches: training batches from which a candidate's norms are recalibrated.
        attempts: rounds of drawing after which fewer candidates are accepted.
        seed: of everything random.

    Raises:
        BadInput: a value out of its range.

    Example:
        >>> SearchSettings(population=20, iterations=5).parents
        10
    """

    population: int = 50
    iterations: int = 20
    parents: int = 10
    mutations: int = 25
    crossovers: int = 25
    mutation_rate: float = 0.1
    window: float = 0.97
    recalibration_batches: int = 100
    attempts: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        least = dict.fromkeys(("population", "iterations", "recalibration_batches", "attempts"), 1)
        least |= {"parents": 2, "mutations": 0, "crossovers": 0, "seed": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise BadInput(f"{name} must be at least {bound}, got {getattr(self, name)}")
        if not 0 < self.mutation_rate <= 1:
            raise BadInput(f"mutation_rate must be above 0 and at most 1, got {self.mutation_rate}")
        if not 0 <= self.window < 1:
            raise BadInput(f"window must be a share of the budget, 0 to below 1, got {self.window}")


@dataclass(frozen=True)
class IterationReport:
    """One finished iteration, counted from 1.

    Args:
        best: greatest fitness so far.
        median: of this iteration's candidates.
        evaluated: how many these were: the population, or as many as were found in the window.
    """

    iteration: int
    best: float
    median: float
    evaluated: int


@dataclass(frozen=True)
class SearchResult:
    """What was found.

    Args:
        widths: the best candidate's; in the window.
        accuracy: its fitness. The greatest of many measured on the same images, so it flatters: judge on others.
        plan_accuracy: fitness of the widths the search began with, whether or not they lie in the window.
        history: one report per iteration.
        evaluations: candidates whose fitness was measured.
        seconds: spent, those before an interruption included.
        notes: what a reader must know, in whole sentences.
    """

    widths: dict[str, int]
    accuracy: float
    plan_accuracy: float
    history: tuple[IterationReport, ...]
    evaluations: int
    seconds: float
    notes: tuple[str, ...] = ()


def search(
    space: Space,
    fitness: Callable[[dict[str, int]], float],
    settings: SearchSettings,
    *,
    start: Widths,
    key: str = "",
    on_progress: Callable[[IterationReport], None] | None = None,
    snapshot: Path | None = None,
) -> SearchResult:
    """The widths of greatest fitness in the window.

    Args:
        fitness: of one candidate; must not depend on which were looked at before it.
        start: widths known to be good, of the space's options; they and their neighbours begin the first population.
        key: names what the fitness depends on, so that no other search's snapshot is taken up.
        on_progress: called after each iteration.
        snapshot: file that is written after each iteration and taken up where it exists.

    Raises:
        EmptyWindow: no candidate was found.
        BadInput: the start is not made of the space's options, or the snapshot can't be written.
        InvalidSnapshot: it is corrupt, or of another search; it is left as it is.

    Example:
        >>> space = Space({"a": (1, 2, 3)}, lambda rows: np.array([float(row["a"]) for row in rows]), 1.0, 2.0)
        >>> settings = SearchSettings(population=2, iterations=1)
        >>> search(space, lambda widths: -widths["a"], settings, start={"a": 2}).widths
        {'a': 1}
    """
    run = _Search(space, fitness, settings, space.genome(start), _key(space, settings, start, key), snapshot)
    while len(run.history) < settings.iterations:
        started = time.perf_counter()
        candidates = run.candidates()
        if not candidates:
            break
        report = run.step(candidates, started)
        if on_progress is not None:
            on_progress(report)
    return run.result()


class _Snapshot(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: Literal[1] = 1
    key: str
    start_fitness: float
    seconds: float
    seen: list[tuple[list[int], float]]
    history: list[IterationReport]


@dataclass
class _Search:
    """One search: what its iterations share."""

    space: Space
    fitness: Callable[[dict[str, int]], float]
    settings: SearchSettings
    start: Genome
    key: str
    snapshot: Path | None
    seen: dict[Genome, float] = field(default_factory=dict)
    history: list[IterationReport] = field(default_factory=list)
    start_fitness: float | None = None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.snapshot is not None and self.snapshot.exists():
            self._resume(self.snapshot)

    def candidates(self) -> list[Genome]:
        """The next population.

        Raises:
            EmptyWindow: it would be the first one, and none was found.
        """
        settings = self.settings
        rng = np.random.default_rng([settings.seed, len(self.history)])
        found = Found(self.space, set(self.seen), settings.attempts)
        if self.history:
            parents = [genome for _, genome in self._ranked()[: settings.parents]]
            rate, room = settings.mutation_rate, settings.population
            found.draw(lambda count: mutants(self.space, parents, rate, rng, count), min(room, settings.mutations))
            room -= len(found.genomes)
            found.draw(lambda count: crosses(parents, rng, count), min(room, settings.crossovers))
        else:
            near = neighbours(self.space, self.start)
            found.add([self.start], 1)
            few = [near[at] for at in rng.permutation(len(near))[:_MOST_NEIGHBOURS]]
            found.add(few, max(0, settings.population // 2 - 1))
        found.draw(lambda count: scaled(self.space, rng, count), settings.population - len(found.genomes))
        if not found.genomes and not self.history:
            raise EmptyWindow(self._why_empty())
        return found.genomes

    def step(self, candidates: Sequence[Genome], started: float) -> IterationReport:
        """Evaluates a population.

        Args:
            started: when the search for it began, in seconds of the performance counter.
        """
        if self.start_fitness is None:
            self.start_fitness = self._measure(self.start)
        fits = [self.start_fitness if genome == self.start else self._measure(genome) for genome in candidates]
        self.seen |= dict(zip(candidates, fits, strict=True))
        report = IterationReport(
            len(self.history) + 1, max(self.seen.values()), float(np.median(fits)), len(candidates)
        )
        self.history.append(report)
        self.seconds += time.perf_counter() - started
        self._write()
        return report

    def result(self) -> SearchResult:
        best, genome = self._ranked()[0]
        assert self.start_fitness is not None
        return SearchResult(
            self.space.widths(genome),
            best,
            self.start_fitness,
            tuple(self.history),
            len(self.seen) + (self.start not in self.seen),
            self.seconds,
            tuple(self._notes()),
        )

    def _measure(self, genome: Genome) -> float:
        value = float(self.fitness(self.space.widths(genome)))
        return value if math.isfinite(value) else -1e30  # a candidate that overflows is the worst, not an error

    def _ranked(self) -> list[tuple[float, Genome]]:
        """All seen, the best first; among equals the smallest indices, whatever order they were met in."""
        return sorted(((fit, genome) for genome, fit in self.seen.items()), key=lambda item: (-item[0], item[1]))

    def _notes(self) -> list[str]:
        notes = []
        fewer = [report for report in self.history if report.evaluated < self.settings.population]
        if fewer:
            notes.append(
                f"in {len(fewer)} of {len(self.history)} iterations fewer than {self.settings.population} new "
                f"candidates were found in the window (the fewest: {min(report.evaluated for report in fewer)})"
            )
        if len(self.history) < self.settings.iterations:
            notes.append(f"stopped after {len(self.history)} iterations: no new candidates were found in the window")
        if self.start not in self.seen:
            notes.append("the widths it began with lie outside the window, so only their neighbours took part")
        return notes

    def _why_empty(self) -> str:
        least, most = self.space.latencies([(0,) * len(self.space.counts), tuple((self.space.counts - 1).tolist())])
        return (
            f"no widths found between {self.space.low_ms:.4g} and {self.space.high_ms:.4g} ms; the narrowest take "
            f"{least:.4g} ms, the widest {most:.4g} ms. Change the plan's budget, lower window (now "
            f"{self.settings.window:g} of the budget), raise attempts, or offer more widths per group"
        )

    def _write(self) -> None:
        if self.snapshot is None:
            return
        assert self.start_fitness is not None
        state = _Snapshot(
            key=self.key,
            start_fitness=self.start_fitness,
            seconds=self.seconds,
            seen=[(list(genome), fit) for genome, fit in self.seen.items()],
            history=self.history,
        )
        draft = self.snapshot.with_name(f".{self.snapshot.name}.{os.getpid()}")
        try:
            draft.write_text(state.model_dump_json(indent=1) + "\n")
            draft.replace(self.snapshot)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise BadInput(f"can't write the snapshot {self.snapshot}: {error.strerror}; give another path") from error

    def _resume(self, path: Path) -> None:
        remedy = "delete it to search anew, or give another path"
        try:
            state = _Snapshot.model_validate_json(path.read_text())
        except OSError as error:
            raise InvalidSnapshot(f"can't read the snapshot {path}: {error.strerror}; {remedy}") from error
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"])) or "JSON"
            raise InvalidSnapshot(
                f"{path} is no search's snapshot ({where}: {error.errors()[0]['msg']}); {remedy}"
            ) from error
        except ValueError as error:
            raise InvalidSnapshot(f"{path} is no search's snapshot ({error}); {remedy}") from error
        if state.key != self.key:
            raise InvalidSnapshot(
                f"{path} is of another search: its widths, window, settings, weights or data differ; {remedy}"
            )
        self.seen = {tuple(genome): fit for genome, fit in state.seen}
        counts = self.space.counts.tolist()
        if not self.seen or not all(
            len(genome) == len(counts) and all(0 <= gene < count for gene, count in zip(genome, counts, strict=True))
            for genome in self.seen
        ):
            raise InvalidSnapshot(f"{path} is corrupt: it holds candidates that can't be; {remedy}")
        self.history, self.seconds, self.start_fitness = list(state.history), state.seconds, state.start_fitness


def _key(space: Space, settings: SearchSettings, start: Widths, key: str) -> str:
    """All that candidates and their fitness depend on; how long to search is free to change on resuming."""
    kept = {name: value for name, value in asdict(settings).items() if name != "iterations"}
    options = {group: list(map(int, widths)) for group, widths in space.options.items()}
    window = (float(space.low_ms), float(space.high_ms))
    text = repr((kept, options, window, dict(start), key))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
