"""What a plan must keep to beside its budget: parameters, MACs, memory, widths, further tables, and how surely.

Each is a linear limit of the allocation problem, so the plan is the best one within all of them at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from widthwise.luts.errors import BadInput, InvalidProblem
from widthwise.luts.spec import LayerSpec
from widthwise.luts.store import Lut
from widthwise.network.fusion import fused
from widthwise.network.layers import Layer, macs
from widthwise.network.network import Network
from widthwise.planner.plan import Budget, Plan
from widthwise.planner.predictor import LatencyPredictor
from widthwise.planner.problem import Amount, Limit, WidthBounds
from widthwise.planner.tabulation import Tabulation

__all__ = ["COUNTED", "Demands", "FurtherTable", "Most", "amount", "as_limit", "parse_bounds", "parse_keep"]

_Array = npt.NDArray[np.float64]
_Options = Mapping[str, Sequence[int]]
_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9}
_UNITS |= {"kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}
_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}

COUNTED = ("parameters", "macs", "weight_memory", "activation_memory")
"""Names of the limits beside latencies; memory is in bytes."""


@dataclass(frozen=True, slots=True)
class Most:
    """An upper limit: an amount, or a share of the dense network's.

    Example:
        >>> Most.parse("5M").of(dense=11e6), Most.parse("50%").of(dense=11e6), Most.parse("1.5MiB").of(dense=9e9)
        (5000000.0, 5500000.0, 1572864.0)
    """

    value: float
    relative: bool = False

    @classmethod
    def parse(cls, text: str | float) -> Most:
        """``5000000``, ``5M``, ``20MB``, ``20MiB`` or ``50%``.

        Raises:
            BadInput: another form, or not above zero.
        """
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([kmg]?(?:i?b)?|%)\s*", str(text).lower())
        known = match is not None and (match[2] == "%" or match[2] in _UNITS)
        value = float(match[1]) if match is not None else 0.0
        if not known or match is None or not 0 < value < math.inf:
            raise BadInput(
                f"{text!r} is no upper limit; give a number above zero or a share of the dense: 5M, 20MB, 50%"
            )
        return cls(value / 100, relative=True) if match[2] == "%" else cls(value * _UNITS[match[2]])

    def of(self, dense: float) -> float:
        """The limit for a network whose dense amount is this."""
        return self.value * dense if self.relative else self.value


@dataclass(frozen=True)
class FurtherTable:
    """Another table a plan must hold on, and how long it may take there.

    Args:
        lut: the table, open.
        predictor: of the same model, perhaps on another input shape, from that table.
        budget: there.
    """

    lut: Lut
    predictor: LatencyPredictor
    budget: Budget


@dataclass(frozen=True)
class Demands:
    """What a plan must keep to beside its budget.

    Args:
        most: limits by their names in :data:`COUNTED`.
        bounds: group → bounds of its width; a fixed width need not be among those usually considered.
        keep: with it the plan is the fastest one that retains this much (above 0, at most 1) instead of the one that
            retains the most within a budget.
        confidence: above 0 and below 1; latency budgets then hold at the upper end of the interval of this level.
        tables: further tables, with a budget each.

    Raises:
        BadInput: a name, share or level that isn't one.
    """

    most: Mapping[str, Most] = field(default_factory=dict)
    bounds: Mapping[str, WidthBounds] = field(default_factory=dict)
    keep: float | None = None
    confidence: float | None = None
    tables: Sequence[FurtherTable] = ()

    def __post_init__(self) -> None:
        if strangers := sorted(set(self.most) - set(COUNTED)):
            raise BadInput(f"no limit is called {strangers[0]!r}; there are {', '.join(COUNTED)}")
        if self.keep is not None and not 0 < self.keep <= 1:
            raise BadInput(f"what to keep must be above 0 and at most 1 (or 100%), got {self.keep:g}")
        if self.confidence is not None and not 0 < self.confidence < 1:
            raise BadInput(f"a confidence must be above 0 and below 1, such as 0.9, got {self.confidence:g}")

    @classmethod
    def of(cls, plan: Plan) -> Demands:
        """What a plan was made to keep to, but for its further tables, which it names without holding them."""
        most = {limit.name: Most(limit.most) for limit in plan.limits}
        return cls(most=most, bounds=plan.bounds, keep=plan.keep, confidence=plan.confidence)

    def options(self, network: Network, options: _Options) -> dict[str, tuple[int, ...]]:
        """The widths to choose from that the bounds allow.

        Raises:
            InvalidModel: bounds name no group of the network, or a width it can't have.
            BadInput: bounds leave a group no width.
        """
        for group, bounds in self.bounds.items():
            for width in (bounds.min, bounds.max, bounds.fixed):
                network.require_widths({group: width} if width is not None else {})
            network.require_widths({group: 1})
        allowed = {}
        for group, widths in options.items():
            own = self.bounds.get(group, WidthBounds())
            wanted = {own.fixed} if own.fixed is not None else set(widths)
            allowed[group] = tuple(sorted(width for width in wanted if own.allows(width)))
            if not allowed[group]:
                known = ", ".join(map(str, widths))
                raise BadInput(
                    f"group {group!r} has no width {own}: it is planned in steps, {known}; give bounds that hold one "
                    f"of them, or any width with --fix {group}=WIDTH"
                )
        return allowed

    def limits(self, network: Network, options: _Options, dtype: str) -> list[Limit]:
        """The limits on parameters, MACs and memory, over these options.

        Args:
            dtype: of weights and activations, such as ``float32``.
        """
        found = []
        for name, most in self.most.items():
            dense = amount(name, network, network.dense, dtype)
            found.append(as_limit(name, most.of(dense), _counted(name, network, options, dtype)))
        return found


def amount(name: str, network: Network, widths: Mapping[str, int], dtype: str) -> float:
    """How much of what a limit counts a network has at these widths; ``name`` is one of :data:`COUNTED`.

    Activation memory is what all layers write, as deployed runtimes fuse them: what training keeps, and more than
    inference holds at any one moment. That peak would be a limit for each moment instead of one.
    """
    tables = _counted(name, network, {group: (width,) for group, width in widths.items()}, dtype)
    return tables.fixed + math.fsum(float(table.table.item()) for table in tables.tables())


def as_limit(name: str, most: float, tables: Tabulation) -> Limit:
    """The limit on what was tabulated."""
    costs = tuple(Amount(over=found.over, amount=found.table, sums=found.sums) for found in tables.tables())
    return Limit(name=name, most=most, costs=costs, fixed=tables.fixed)


def parse_keep(text: str | float) -> float:
    """``0.9`` or ``90%``.

    Raises:
        BadInput: another form.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(%?)\s*", str(text))
    if match is None:
        raise BadInput(f"{text!r} is no share; give one above 0 and at most 1, such as 0.9 or 90%")
    return float(match[1]) / (100 if match[2] else 1)


def parse_bounds(least: Sequence[str], most: Sequence[str], fixed: Sequence[str]) -> dict[str, WidthBounds]:
    """Bounds of texts ``GROUP=CHANNELS``; what several say of one group is put together.

    Raises:
        BadInput: another form, a group told twice, or bounds that contradict each other.

    Example:
        >>> parse_bounds(["a=16"], ["a=48"], ["b=7"])["a"]
        WidthBounds(min=16, max=48, fixed=None)
    """
    found: dict[str, dict[str, int]] = {}
    for kind, texts in (("min", least), ("max", most), ("fixed", fixed)):
        for text in texts:
            group, _, number = text.rpartition("=")
            if not group or not number.strip().isdecimal():
                raise BadInput(f"{text!r} is no bound; give a group and its channels: layer1.0.conv1=16")
            if kind in found.setdefault(group, {}):
                raise BadInput(f"group {group!r} is given two bounds of one kind, the second by {text!r}; give one")
            found[group][kind] = int(number)
    bounds = {}
    for group, own in found.items():
        try:
            bounds[group] = WidthBounds(**own)
        except InvalidProblem as error:
            raise BadInput(f"group {group!r}: {error}") from None
    return bounds


def _counted(name: str, network: Network, options: _Options, dtype: str) -> Tabulation:
    tables = Tabulation(options)
    bytes_each = 1 if name in ("parameters", "macs") else _BYTES[dtype]
    if name in ("parameters", "weight_memory"):
        for shape in network.tensors:
            tables.add(shape, lambda sizes: sizes.prod(axis=1) * bytes_each)
        return tables
    for layer in fused(network).layers:
        count = macs if name == "macs" else _written
        tables.add(layer.axes, _of_each(count, layer, bytes_each))
    return tables


def _of_each(count: Callable[[LayerSpec], int], layer: Layer, factor: int) -> Callable[[npt.NDArray[np.int64]], _Array]:
    def values(channels: npt.NDArray[np.int64]) -> _Array:
        specs = (LayerSpec(layer.geometry, tuple(point)) for point in channels.tolist())
        return np.array([factor * count(spec) for spec in specs], dtype=np.float64)

    return values


def _written(spec: LayerSpec) -> int:
    """Elements of a layer's outputs."""
    own = spec.channels[-1] if spec.channels else 1
    return sum(math.prod(size or own for size in shape) for shape in spec.geometry.outputs)
