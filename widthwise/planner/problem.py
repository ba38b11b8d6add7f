"""The allocation problem as pure data: which widths, what each keeps, what each costs, and the limits.

A network's latency is a sum of costs, each a table over at most two widths (a layer's input and output), and so is
whatever else is limited: parameters, multiply-accumulates, memory, the latency on another device. The planner asks for
the widths of greatest importance within the limits, or for the fastest ones that keep enough. The formulation is that
of MDP (Multi-Dimensional Pruning, CVPR 2025); the JSON is what ``widthwise solve`` reads.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from widthwise.luts.errors import InvalidProblem
from widthwise.planner.answer import Answer
from widthwise.planner.costs import (
    Amount,
    Ascending,
    Channels,
    Cost,
    Strict,
    SumOver,
    TableOver,
    as_tuple,
    check_ascending,
    short,
)

__all__ = ["Amount", "Answer", "Cost", "GroupOptions", "Limit", "Problem", "SumOver", "WidthBounds"]

_MAX_FILE_BYTES = 256 * 2**20
_MAX_ENTRIES = 20_000_000
_MAX_NUMBERS = _MAX_ENTRIES + 5_000_000
"""A text with more commas than that is refused before it is parsed, which takes up to 40 bytes a number."""
_MAX_LIMITS = 32

_LATER: dict[str, Any] = {"limits": (), "objective": "importance", "keep": None, "bounds": {}, "budget_ms": math.inf}
"""Fields that a problem's JSON only has where they say something."""

Scores = Annotated[tuple[float, ...], BeforeValidator(as_tuple)]


class GroupOptions(Strict):
    """The widths a group may take and what each keeps.

    Args:
        widths: channels, ascending.
        importance: one number for each width; higher is better, in any unit common to all groups.
    """

    widths: Ascending
    importance: Scores

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_ascending("widths", self.widths)
        if len(self.importance) != len(self.widths):
            raise InvalidProblem(f"needs {len(self.widths)} importances, one a width, got {len(self.importance)}")
        return self


class WidthBounds(Strict):
    """Of a group's widths only those from ``min`` to ``max``, or exactly ``fixed``."""

    min: Channels | None = None
    max: Channels | None = None
    fixed: Channels | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise InvalidProblem(f"asks for widths of at least {self.min} and at most {self.max}: none are both")
        return self

    def allows(self, width: int) -> bool:
        """Whether a width is within."""
        low, high = self.min or 1, self.max or width
        return low <= width <= high and (self.fixed is None or width == self.fixed)

    def __str__(self) -> str:
        asked = (("of at least ", self.min), ("of at most ", self.max), ("", self.fixed))
        return " and ".join(f"{words}{number}" for words, number in asked if number is not None) or "of any number"


class Limit(Strict):
    """Something else that widths add up to, and how much of it there may be.

    Args:
        name: what it is, such as ``parameters``; unique in a problem.
        most: how much is allowed, in its unit.
        costs: what it adds up from.
        fixed: what no width changes.

    Example:
        >>> Limit(name="parameters", most=500, costs=[{"over": ["a"], "amount": [36, 72]}]).name
        'parameters'
    """

    name: Annotated[str, Field(min_length=1, max_length=200)]
    most: float
    costs: Annotated[tuple[Amount, ...], BeforeValidator(as_tuple)]
    fixed: float = 0.0


class Problem(Strict):
    """Choose one width for each group: greatest importance within the limits, or least latency keeping enough.

    Args:
        budget_ms: the latency to meet; not with the objective ``latency``, and else only to be left out with limits.
        groups: name → options.
        costs: latencies to add up; none is needed, and a group may occur in none.
        fixed_ms: latency that no width changes; below zero where sums of layers overstate small networks.
        limits: what else to stay within, at once.
        objective: ``importance`` (most of it within the limits) or ``latency`` (least of it that keeps ``keep``).
        keep: the importance to keep, summed over groups; with the objective ``latency`` only.
        bounds: group → which of its widths may be chosen.

    Raises:
        InvalidProblem: one line saying which group or cost, what was given and what is needed.

    Example:
        >>> problem = Problem(budget_ms=3.0, groups={"a": {"widths": [4, 8], "importance": [1.0, 2.0]}},
        ...                   costs=[{"over": ["a"], "ms": [0.5, 2.0]}], fixed_ms=0.25)
        >>> problem.latency_ms({"a": 8}), problem.importance({"a": 8})
        (2.25, 2.0)
    """

    budget_ms: Annotated[float, Field(gt=0)] = math.inf
    fixed_ms: float = 0.0
    groups: dict[str, GroupOptions]
    costs: Annotated[tuple[Cost, ...], BeforeValidator(as_tuple)]
    limits: Annotated[tuple[Limit, ...], BeforeValidator(as_tuple), Field(max_length=_MAX_LIMITS)] = ()
    objective: Literal["importance", "latency"] = "importance"
    keep: float | None = None
    bounds: dict[str, WidthBounds] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _check_objective(self)
        tables: dict[str, tuple[TableOver, ...]] = {"costs": self.costs}
        tables |= {f"limits[{short(limit.name)}]: costs": limit.costs for limit in self.limits}
        if len(tables) <= len(self.limits) or {"latency", "importance"} & {limit.name for limit in self.limits}:
            names = [limit.name for limit in self.limits]
            raise InvalidProblem(f"needs limits of different names, none latency or importance, got {short(names)}")
        entries = sum(cost.table.size for costs in tables.values() for cost in costs)
        if entries > _MAX_ENTRIES:
            raise InvalidProblem(f"needs at most {_MAX_ENTRIES:,} latencies over all costs, got {entries:,}")
        for where, costs in tables.items():
            for index, cost in enumerate(costs):
                _check_cost(f"{where}[{index}]", cost, self.groups)
            if not math.isfinite(sum(float(cost.table.max()) for cost in costs)):
                raise InvalidProblem("importances and latencies must be small enough to add up in a float")
        if not math.isfinite(sum(max(map(abs, group.importance)) for group in self.groups.values())):
            raise InvalidProblem("importances and latencies must be small enough to add up in a float")
        _check_bounds(self)
        return self

    @model_serializer(mode="wrap")
    def _said(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the fields that came after the first version where they say nothing."""
        return {name: value for name, value in handler(self).items() if getattr(self, name) != _LATER.get(name, ...)}

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """The problem in a JSON file.

        Raises:
            InvalidProblem: no such file, one over 256 MiB, or not a valid problem.
        """
        try:
            size = Path(path).stat().st_size
            if size > _MAX_FILE_BYTES:
                raise InvalidProblem(f"{path}: needs a file of at most {_MAX_FILE_BYTES:,} bytes, got {size:,}")
            return cls.parse(Path(path).read_bytes())
        except OSError as error:
            raise InvalidProblem(f"{path}: cannot be read ({error.strerror})") from error

    @classmethod
    def parse(cls, text: str | bytes) -> Self:
        """The problem in a JSON text; ``model_dump_json(exclude_none=True)`` is the way back.

        Raises:
            InvalidProblem: not JSON, a name given twice, more numbers than any problem has, or not a valid problem.
        """
        numbers = text.count("," if isinstance(text, str) else b",")  # type: ignore[arg-type]
        if numbers > _MAX_NUMBERS:
            raise InvalidProblem(f"needs at most {_MAX_ENTRIES:,} latencies over all costs, got {numbers:,} numbers")
        try:
            data = json.loads(text, object_pairs_hook=_unique)
        except InvalidProblem:
            raise
        except (ValueError, RecursionError) as error:
            raise InvalidProblem(f"not JSON: {error}") from None
        if not isinstance(data, dict):
            raise InvalidProblem(f"needs a JSON object with budget_ms, groups and costs, got {short(data)}")
        return cls(**data)

    def latency_ms(self, widths: Mapping[str, int]) -> float:
        """The exact latency of one width for each group: ``fixed_ms`` and one entry of every cost.

        Raises:
            InvalidProblem: a group is missing, unknown, or has no such width.
        """
        return self._total(self.fixed_ms, self.costs, widths)

    def importance(self, widths: Mapping[str, int]) -> float:
        """The exact importance of one width for each group: the sum over groups.

        Raises:
            InvalidProblem: a group is missing, unknown, or has no such width.
        """
        chosen = self._options(widths)
        return math.fsum(group.importance[chosen[name]] for name, group in self.groups.items())

    def amounts(self, widths: Mapping[str, int]) -> dict[str, float]:
        """The exact amount of every limit: its ``fixed`` and one entry of each of its costs.

        Raises:
            InvalidProblem: a group is missing, unknown, or has no such width.

        Example:
            >>> limit = {"name": "parameters", "most": 90, "fixed": 4, "costs": [{"over": ["a"], "amount": [36, 72]}]}
            >>> problem = Problem(groups={"a": {"widths": [4, 8], "importance": [1, 2]}}, costs=[], limits=[limit])
            >>> problem.amounts({"a": 8})
            {'parameters': 76.0}
        """
        return {limit.name: self._total(limit.fixed, limit.costs, widths) for limit in self.limits}

    @cached_property
    def allowed(self) -> dict[str, tuple[int, ...]]:
        """Group → indices of the widths its bounds allow, ascending."""
        free = WidthBounds()
        return {
            name: tuple(i for i, width in enumerate(group.widths) if self.bounds.get(name, free).allows(width))
            for name, group in self.groups.items()
        }

    @cached_property
    def _option_of(self) -> dict[str, dict[int, int]]:
        return {name: {width: i for i, width in enumerate(group.widths)} for name, group in self.groups.items()}

    def _options(self, widths: Mapping[str, int]) -> dict[str, int]:
        if strangers := set(widths) ^ set(self.groups):
            raise InvalidProblem(f"needs one width for each group; missing or unknown: {short(sorted(strangers))}")
        for name, width in widths.items():
            if width not in self._option_of[name]:
                raise InvalidProblem(f"group {short(name)} has no width {width}; it has {self.groups[name].widths}")
        return {name: self._option_of[name][width] for name, width in widths.items()}

    def _total(self, fixed: float, costs: tuple[TableOver, ...], widths: Mapping[str, int]) -> float:
        chosen = self._options(widths)
        return math.fsum([fixed, *(self._entry(cost, widths, chosen) for cost in costs)])

    @staticmethod
    def _entry(cost: TableOver, widths: Mapping[str, int], chosen: Mapping[str, int]) -> float:
        at = tuple(
            chosen[axis]
            if isinstance(axis, str)
            else cost.rows_of_sums[axis.plus + sum(widths[name] for name in axis.sum)]
            for axis in cost.over
        )
        return float(cost.table[at])


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise InvalidProblem(f"{short(twice)} is given twice in one JSON object")
    return data


def _check_objective(problem: Problem) -> None:
    budgeted = problem.budget_ms < math.inf
    if problem.objective == "latency" and (problem.keep is None or budgeted):
        raise InvalidProblem('the objective "latency" needs keep, the importance to keep, and no budget_ms')
    if problem.objective == "importance" and (problem.keep is not None or not (budgeted or problem.limits)):
        raise InvalidProblem('the objective "importance" needs budget_ms or limits, and no keep')


def _check_bounds(problem: Problem) -> None:
    if strangers := sorted(set(problem.bounds) - set(problem.groups)):
        raise InvalidProblem(
            f"bounds: names the unknown group {short(strangers[0])}; groups are {short(list(problem.groups))}"
        )
    for name, bounds in problem.bounds.items():
        if not problem.allowed[name]:
            widths = problem.groups[name].widths
            raise InvalidProblem(f"bounds[{short(name)}]: no width {bounds} among {short(list(widths))}")


def _check_cost(where: str, cost: TableOver, groups: Mapping[str, GroupOptions]) -> None:
    """Every axis names known groups and is as long as it must be."""
    for axis in cost.over:
        for name in [axis] if isinstance(axis, str) else axis.members:
            if name not in groups:
                raise InvalidProblem(f"{where}: {cost} names the unknown group {short(name)}")
    needed = tuple(len(groups[a].widths) if isinstance(a, str) else len(cost.sums or ()) for a in cost.over)
    if cost.table.shape != needed:
        raise InvalidProblem(f"{where}: {cost} needs {cost.field} of shape {needed}, got {cost.table.shape}")
    for axis in cost.over:
        if isinstance(axis, SumOver):
            _check_reachable(where, cost, axis, groups)


def _check_reachable(where: str, cost: TableOver, axis: SumOver, groups: Mapping[str, GroupOptions]) -> None:
    sums = np.array(cost.sums)
    totals = np.array([axis.plus])
    for name, times in axis.members.items():
        totals = np.unique(np.add.outer(totals, times * np.array(groups[name].widths)))
        if len(totals) > len(sums):  # the number of totals only grows from here: stop before it explodes
            raise InvalidProblem(f"{where}: {cost} needs every reachable total in sums, more than these {len(sums)}")
    missing = np.setdiff1d(totals, sums)
    if len(missing):
        raise InvalidProblem(f"{where}: {cost} needs every reachable total in sums, and {int(missing[0])} is missing")
