"""The allocation problem as pure data: which widths, what each keeps, what each costs, and the budget.

A network's latency is a sum of costs, each a table over at most two widths (a layer's input and output);
the planner asks for the widths of greatest importance within the budget. The formulation is that of MDP
(Multi-Dimensional Pruning, CVPR 2025); the JSON is what ``widthwise solve`` reads.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    model_validator,
)

from widthwise.luts.errors import InvalidProblem

__all__ = ["Answer", "Cost", "GroupOptions", "Problem", "SumOver"]

_MAX_FILE_BYTES = 256 * 2**20
_MAX_OPTIONS = 4096
_MAX_ENTRIES = 20_000_000
_MAX_CHANNELS = 2**31 - 1
_MAX_AXES = 2


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _sequence(value: Any) -> Any:
    """Lists and arrays as tuples of Python numbers: JSON and numpy callers then meet the same strict types."""
    if isinstance(value, np.ndarray):
        return tuple(value.tolist())
    if isinstance(value, list | tuple):
        return tuple(item.item() if isinstance(item, np.generic) else item for item in value)
    return value


def _axis(value: Any) -> Any:
    if isinstance(value, dict):
        return SumOver(**value)
    if isinstance(value, str | SumOver):
        return value
    raise ValueError(f'needs a group\'s name or {{"sum": [names], "plus": channels}}, got {_short(value)}')


def _table(value: Any) -> NDArray[np.float64]:
    """A read-only 1-D or 2-D array of finite, non-negative ms."""
    array = value if isinstance(value, np.ndarray) else _from_rows(value)
    if array.dtype.kind not in "fiu" or array.ndim not in (1, 2):
        raise ValueError(f"needs a list or a matrix of numbers, got a {array.ndim}-D array of {array.dtype}")
    table = np.array(array, dtype=np.float64)
    wrong = np.argwhere(~(np.isfinite(table) & (table >= 0)))
    if len(wrong):
        at = tuple(wrong[0].tolist())
        raise ValueError(f"entry {list(at)} is {float(table[at])}, and a latency is a finite number of ms, at least 0")
    table.setflags(write=False)
    return table


def _from_rows(value: Any) -> NDArray[np.float64]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"needs a list or a matrix of numbers, got {_short(value)}")
    nested = any(isinstance(row, list | tuple) for row in value)
    rows: Any = value if nested else [value]
    lengths = {len(row) if isinstance(row, list | tuple) else 0 for row in rows}
    if len(lengths) > 1:
        raise ValueError(f"needs rows of equal length, got rows of {min(lengths)} and of {max(lengths)}")
    for item in (item for row in rows for item in row):
        if type(item) is not float and type(item) is not int and not isinstance(item, np.integer | np.floating):
            raise ValueError(f"needs numbers, got {_short(item)}")
    try:
        return np.array(value, dtype=np.float64)
    except OverflowError:
        raise ValueError("holds a number too large for a float, and a latency is a finite number of ms") from None


Table = Annotated[
    NDArray[np.float64],
    PlainValidator(_table),
    PlainSerializer(lambda table: table.tolist(), return_type=list[Any]),
]
Channels = Annotated[int, Field(ge=1, le=_MAX_CHANNELS)]
Ascending = Annotated[tuple[Channels, ...], BeforeValidator(_sequence), Field(min_length=1, max_length=_MAX_OPTIONS)]
Scores = Annotated[tuple[float, ...], BeforeValidator(_sequence)]
Names = Annotated[tuple[str, ...], BeforeValidator(_sequence), Field(min_length=1, max_length=_MAX_OPTIONS)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise InvalidProblem(_one_line(error)) from None


def _one_line(error: ValidationError) -> str:
    """The first complaint: where, what is needed, what was given."""
    first = error.errors(include_url=False)[0]
    where = "".join(f"[{_short(part)}]" if i else str(part) for i, part in enumerate(first["loc"]))
    if first["type"] == "value_error":
        message = str(first["ctx"]["error"])
    elif first["type"] in ("missing", "extra_forbidden"):
        message = {"missing": "is missing", "extra_forbidden": "is not a known field"}[first["type"]]
    else:
        message = f"{first['msg']}, got {_short(first['input'])}"
    return f"{where}: {message}" if where else message


class GroupOptions(_Strict):
    """The widths a group may take and what each keeps.

    Args:
        widths: channels, ascending.
        importance: one number for each width; higher is better, in any unit common to all groups.
    """

    widths: Ascending
    importance: Scores

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _check_ascending("widths", self.widths)
        if len(self.importance) != len(self.widths):
            raise InvalidProblem(f"needs {len(self.widths)} importances, one a width, got {len(self.importance)}")
        return self


class SumOver(_Strict):
    """The width of a concatenation: its members' (each as often as it is named) and ``plus`` constant channels."""

    sum: Names
    plus: Annotated[int, Field(ge=0, le=_MAX_CHANNELS)] = 0

    @cached_property
    def members(self) -> dict[str, int]:
        """Group → how often its channels occur in the concatenation."""
        return dict(Counter(self.sum))

    def __str__(self) -> str:
        parts = [*self.sum, str(self.plus)] if self.plus else self.sum
        return f"sum({'+'.join(parts)})"


class Cost(_Strict):
    """A latency that depends on one or two widths.

    Args:
        over: the axes of ``ms``: group names, at most one of them a :class:`SumOver` instead.
        ms: latencies, ``(axis,)`` or ``(axis, axis)``; a group's axis runs over its widths, a sum's over ``sums``.
        sums: the totals of the sum's axis, ascending; all reachable ones, others are allowed.
    """

    over: Annotated[tuple[Annotated[str | SumOver, BeforeValidator(_axis)], ...], BeforeValidator(_sequence)]
    ms: Table
    sums: Ascending | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        summed = sum(isinstance(axis, SumOver) for axis in self.over)
        if not 1 <= len(self.over) <= _MAX_AXES or summed > 1:
            raise InvalidProblem(f"needs one or two axes, at most one of them a sum, got {self}")
        if self.ms.ndim != len(self.over):
            raise InvalidProblem(f"{self} needs {len(self.over)}-D ms, got {self.ms.ndim}-D")
        if summed != (self.sums is not None):
            raise InvalidProblem(f"{self} needs {'the reachable totals in sums' if summed else 'no sums'}")
        _check_ascending("sums", self.sums or ())
        return self

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Cost):
            return NotImplemented
        return self.over == other.over and self.sums == other.sums and np.array_equal(self.ms, other.ms)

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        text = ", ".join(map(str, self.over))
        return f"cost over ({text if len(text) <= 80 else text[:77] + '...'})".encode("unicode_escape").decode()

    @cached_property
    def rows_of_sums(self) -> dict[int, int]:
        """Total → its index on the sum's axis."""
        return {total: row for row, total in enumerate(self.sums or ())}


class Problem(_Strict):
    """Choose one width for each group: greatest importance, latency within the budget.

    Args:
        budget_ms: the latency to meet.
        groups: name → options.
        costs: latencies to add up; none is needed, and a group may occur in none.
        fixed_ms: latency that no width changes; below zero where sums of layers overstate small networks.

    Raises:
        InvalidProblem: one line saying which group or cost, what was given and what is needed.

    Example:
        >>> problem = Problem(budget_ms=3.0, groups={"a": {"widths": [4, 8], "importance": [1.0, 2.0]}},
        ...                   costs=[{"over": ["a"], "ms": [0.5, 2.0]}], fixed_ms=0.25)
        >>> problem.latency_ms({"a": 8}), problem.importance({"a": 8})
        (2.25, 2.0)
    """

    budget_ms: Annotated[float, Field(gt=0)]
    fixed_ms: float = 0.0
    groups: dict[str, GroupOptions]
    costs: Annotated[tuple[Cost, ...], BeforeValidator(_sequence)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        entries = sum(cost.ms.size for cost in self.costs)
        if entries > _MAX_ENTRIES:
            raise InvalidProblem(f"needs at most {_MAX_ENTRIES:,} latencies over all costs, got {entries:,}")
        for index, cost in enumerate(self.costs):
            _check_cost(f"costs[{index}]", cost, self.groups)
        largest = [max(map(abs, group.importance)) for group in self.groups.values()]
        if not math.isfinite(sum(largest)) or not math.isfinite(sum(float(c.ms.max()) for c in self.costs)):
            raise InvalidProblem("importances and latencies must be small enough to add up in a float")
        return self

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
            InvalidProblem: not JSON, a name given twice, or not a valid problem.
        """
        try:
            data = json.loads(text, object_pairs_hook=_unique)
        except InvalidProblem:
            raise
        except (ValueError, RecursionError) as error:
            raise InvalidProblem(f"not JSON: {error}") from None
        if not isinstance(data, dict):
            raise InvalidProblem(f"needs a JSON object with budget_ms, groups and costs, got {_short(data)}")
        return cls(**data)

    def latency_ms(self, widths: Mapping[str, int]) -> float:
        """The exact latency of one width for each group: ``fixed_ms`` and one entry of every cost.

        Raises:
            InvalidProblem: a group is missing, unknown, or has no such width.
        """
        chosen = self._options(widths)
        return math.fsum([self.fixed_ms, *(self._entry(cost, widths, chosen) for cost in self.costs)])

    def importance(self, widths: Mapping[str, int]) -> float:
        """The exact importance of one width for each group: the sum over groups.

        Raises:
            InvalidProblem: a group is missing, unknown, or has no such width.
        """
        chosen = self._options(widths)
        return math.fsum(group.importance[chosen[name]] for name, group in self.groups.items())

    @cached_property
    def _option_of(self) -> dict[str, dict[int, int]]:
        return {name: {width: i for i, width in enumerate(group.widths)} for name, group in self.groups.items()}

    def _options(self, widths: Mapping[str, int]) -> dict[str, int]:
        if strangers := set(widths) ^ set(self.groups):
            raise InvalidProblem(f"needs one width for each group; missing or unknown: {_short(sorted(strangers))}")
        for name, width in widths.items():
            if width not in self._option_of[name]:
                raise InvalidProblem(f"group {_short(name)} has no width {width}; it has {self.groups[name].widths}")
        return {name: self._option_of[name][width] for name, width in widths.items()}

    @staticmethod
    def _entry(cost: Cost, widths: Mapping[str, int], chosen: Mapping[str, int]) -> float:
        at = tuple(
            chosen[axis]
            if isinstance(axis, str)
            else cost.rows_of_sums[axis.plus + sum(widths[name] for name in axis.sum)]
            for axis in cost.over
        )
        return float(cost.ms[at])


class Answer(_Strict):
    """What the solver found, and what it proved.

    Args:
        status: ``optimal`` (gap closed), ``feasible`` (stopped by the time limit), ``infeasible`` (no widths within the
            budget; ``widths`` are then the fastest ones, and ``bound`` is None where that is proven).
        widths: group → channels.
        latency_ms, importance: of these widths, recomputed exactly.
        bound: no widths within the budget have a higher importance than this.
        gap: (bound - importance) / \\|bound\\|.
        minimum_ms: the least latency any widths reach.
        seconds: how long solving took.
    """

    status: Literal["optimal", "feasible", "infeasible"]
    widths: dict[str, int]
    latency_ms: float
    importance: float
    bound: float | None
    gap: float | None
    minimum_ms: float
    seconds: float


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise InvalidProblem(f"{_short(twice)} is given twice in one JSON object")
    return data


def _check_ascending(what: str, numbers: Iterable[int]) -> None:
    for before, after in pairwise(numbers):
        if before >= after:
            raise InvalidProblem(f"{what} must ascend without repetition, got {before} before {after}")


def _check_cost(where: str, cost: Cost, groups: Mapping[str, GroupOptions]) -> None:
    """Every axis names known groups and is as long as it must be."""
    for axis in cost.over:
        for name in [axis] if isinstance(axis, str) else axis.members:
            if name not in groups:
                raise InvalidProblem(f"{where}: {cost} names the unknown group {_short(name)}")
    needed = tuple(len(groups[a].widths) if isinstance(a, str) else len(cost.sums or ()) for a in cost.over)
    if cost.ms.shape != needed:
        raise InvalidProblem(f"{where}: {cost} needs ms of shape {needed}, got {cost.ms.shape}")
    for axis in cost.over:
        if isinstance(axis, SumOver):
            _check_reachable(where, cost, axis, groups)


def _check_reachable(where: str, cost: Cost, axis: SumOver, groups: Mapping[str, GroupOptions]) -> None:
    sums = np.array(cost.sums)
    totals = np.array([axis.plus])
    for name, times in axis.members.items():
        totals = np.unique(np.add.outer(totals, times * np.array(groups[name].widths)))
        if len(totals) > len(sums):  # the number of totals only grows from here: stop before it explodes
            raise InvalidProblem(f"{where}: {cost} needs every reachable total in sums, more than these {len(sums)}")
    missing = np.setdiff1d(totals, sums)
    if len(missing):
        raise InvalidProblem(f"{where}: {cost} needs every reachable total in sums, and {int(missing[0])} is missing")
