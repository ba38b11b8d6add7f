"""Tables over widths: what a layer costs, in ms or in anything else, at every choice of the one or two widths it has.

All numbers of a problem enter here, so here they are checked: finite, at least 0, in tables that fit their widths.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any, Self

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

__all__ = [
    "Amount",
    "Ascending",
    "Axes",
    "Channels",
    "Cost",
    "Strict",
    "SumOver",
    "TableOver",
    "as_tuple",
    "check_ascending",
    "short",
]

MAX_OPTIONS = 4096
_MAX_CHANNELS = 2**31 - 1
_MAX_AXES = 2


def short(value: Any) -> str:
    """A value in at most 80 characters of ASCII, for messages."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def as_tuple(value: Any) -> Any:
    """Lists and arrays as tuples of Python numbers: JSON and numpy callers then meet the same strict types."""
    if isinstance(value, np.ndarray):
        return tuple(value.tolist())
    if isinstance(value, list | tuple):
        return tuple(item.item() if isinstance(item, np.generic) else item for item in value)
    return value


def check_ascending(what: str, numbers: Iterable[int]) -> None:
    """Raises InvalidProblem where a number isn't greater than the one before it."""
    for before, after in pairwise(numbers):
        if before >= after:
            raise InvalidProblem(f"{what} must ascend without repetition, got {before} before {after}")


def _axis(value: Any) -> Any:
    if isinstance(value, dict):
        return SumOver(**value)
    if isinstance(value, str | SumOver):
        return value
    raise ValueError(f'needs a group\'s name or {{"sum": [names], "plus": channels}}, got {short(value)}')


def _table(what: str) -> PlainValidator:
    """A read-only 1-D or 2-D array of finite, non-negative numbers."""

    def validate(value: Any) -> NDArray[np.float64]:
        array = value if isinstance(value, np.ndarray) else _from_rows(value, what)
        if array.dtype.kind not in "fiu" or array.ndim not in (1, 2):
            raise ValueError(f"needs a list or a matrix of numbers, got a {array.ndim}-D array of {array.dtype}")
        table = np.array(array, dtype=np.float64)
        wrong = np.argwhere(~(np.isfinite(table) & (table >= 0)))
        if len(wrong):
            at = tuple(wrong[0].tolist())
            raise ValueError(f"entry {list(at)} is {float(table[at])}, and {what}, at least 0")
        table.setflags(write=False)
        return table

    return PlainValidator(validate)


def _from_rows(value: Any, what: str) -> NDArray[np.float64]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"needs a list or a matrix of numbers, got {short(value)}")
    nested = any(isinstance(row, list | tuple) for row in value)
    rows: Any = value if nested else [value]
    lengths = {len(row) if isinstance(row, list | tuple) else 0 for row in rows}
    if len(lengths) > 1:
        raise ValueError(f"needs rows of equal length, got rows of {min(lengths)} and of {max(lengths)}")
    for item in (item for row in rows for item in row):
        if type(item) is not float and type(item) is not int and not isinstance(item, np.integer | np.floating):
            raise ValueError(f"needs numbers, got {short(item)}")
    try:
        return np.array(value, dtype=np.float64)
    except OverflowError:
        raise ValueError(f"holds a number too large for a float, and {what}") from None


_AS_LISTS = PlainSerializer(lambda table: table.tolist(), return_type=list[Any])
Channels = Annotated[int, Field(ge=1, le=_MAX_CHANNELS)]
Ascending = Annotated[tuple[Channels, ...], BeforeValidator(as_tuple), Field(min_length=1, max_length=MAX_OPTIONS)]
Names = Annotated[tuple[str, ...], BeforeValidator(as_tuple), Field(min_length=1, max_length=MAX_OPTIONS)]


class Strict(BaseModel):
    """Frozen data that knows all its fields; what is wrong with it is said in one line."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise InvalidProblem(_one_line(error)) from None


def _one_line(error: ValidationError) -> str:
    """The first complaint: where, what is needed, what was given."""
    first = error.errors(include_url=False)[0]
    where = "".join(f"[{short(part)}]" if i else str(part) for i, part in enumerate(first["loc"]))
    if first["type"] == "value_error":
        message = str(first["ctx"]["error"])
    elif first["type"] in ("missing", "extra_forbidden"):
        message = {"missing": "is missing", "extra_forbidden": "is not a known field"}[first["type"]]
    else:
        message = f"{first['msg']}, got {short(first['input'])}"
    return f"{where}: {message}" if where else message


class SumOver(Strict):
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


Axes = Annotated[tuple[Annotated[str | SumOver, BeforeValidator(_axis)], ...], BeforeValidator(as_tuple)]


class TableOver(Strict):
    """A table over one or two widths; its subclasses name what the table holds.

    Args:
        over: the table's axes: group names, at most one of them a :class:`SumOver` instead.
        sums: the totals of the sum's axis, ascending; all reachable ones, others are allowed.
    """

    over: Axes
    sums: Ascending | None = None

    @property
    @abstractmethod
    def table(self) -> NDArray[np.float64]:
        """``(axis,)`` or ``(axis, axis)``; a group's axis runs over its widths, a sum's over ``sums``."""

    @property
    @abstractmethod
    def field(self) -> str:
        """What the table is called in the JSON."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        summed = sum(isinstance(axis, SumOver) for axis in self.over)
        if not 1 <= len(self.over) <= _MAX_AXES or summed > 1:
            raise InvalidProblem(f"needs one or two axes, at most one of them a sum, got {self}")
        if self.table.ndim != len(self.over):
            raise InvalidProblem(f"{self} needs {len(self.over)}-D {self.field}, got {self.table.ndim}-D")
        if summed != (self.sums is not None):
            raise InvalidProblem(f"{self} needs {'the reachable totals in sums' if summed else 'no sums'}")
        check_ascending("sums", self.sums or ())
        return self

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TableOver):
            return NotImplemented
        same = type(self) is type(other) and self.over == other.over and self.sums == other.sums
        return same and np.array_equal(self.table, other.table)

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        text = ", ".join(map(str, self.over))
        return f"cost over ({text if len(text) <= 80 else text[:77] + '...'})".encode("unicode_escape").decode()

    @cached_property
    def rows_of_sums(self) -> dict[int, int]:
        """Total → its index on the sum's axis."""
        return {total: row for row, total in enumerate(self.sums or ())}


class Cost(TableOver):
    """A latency that depends on one or two widths: ``ms`` is its table."""

    ms: Annotated[NDArray[np.float64], _table("a latency is a finite number of ms"), _AS_LISTS]

    @property
    def table(self) -> NDArray[np.float64]:
        """The latencies in ms."""
        return self.ms

    @property
    def field(self) -> str:
        """``ms``."""
        return "ms"


class Amount(TableOver):
    """What a limit counts, where it depends on one or two widths: ``amount`` is its table, in the limit's unit."""

    amount: Annotated[NDArray[np.float64], _table("an amount is a finite number"), _AS_LISTS]

    @property
    def table(self) -> NDArray[np.float64]:
        """The amounts."""
        return self.amount

    @property
    def field(self) -> str:
        """``amount``."""
        return "amount"
