"""Allocation: from a predictor, an importance and a budget to a plan with its proof.

This module turns a network into an allocation problem (cost tables over widths, widths over importance),
hands it to the exact solver and makes a plan of the answer. See DESIGN §4.3 for the problem as data.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from widthwise.luts.errors import InfeasibleBudget
from widthwise.luts.records import Role
from widthwise.luts.store import Lut
from widthwise.network.granularity import options_from
from widthwise.network.layers import Layer
from widthwise.network.network import Network
from widthwise.network.widths import Affine
from widthwise.planner.importance import Importance
from widthwise.planner.plan import Budget, Certificate, Plan, TableReference, parent_of
from widthwise.planner.predictor import LatencyPredictor
from widthwise.planner.problem import Answer, Cost, GroupOptions, Problem, SumOver
from widthwise.planner.solver import solve

__all__ = ["allocate", "build_problem"]

RELATIVE_GAP = 1e-5
_Array = npt.NDArray[np.float64]
_Options = Mapping[str, Sequence[int]]


def allocate(
    predictor: LatencyPredictor,
    importance: Importance,
    budget: Budget,
    lut: Lut,
    *,
    weights: str = "",
    options: _Options | None = None,
    time_limit_s: float = 60.0,
) -> Plan:
    """The plan of greatest importance whose predicted latency is within the budget.

    Args:
        weights: hash of the weights the importance was taken from.
        options: widths to choose from; by default multiples of the granularity the table knows.

    Raises:
        InfeasibleBudget: names the least latency any widths reach.
    """
    from widthwise import __version__

    network = predictor.network
    options = options or options_from(lut, network)
    dense_ms = predictor.dense_ms
    budget_ms = budget.ms(dense_ms)
    problem = build_problem(predictor, importance, budget_ms, options)
    answer = solve(problem, time_limit_s=time_limit_s, relative_gap=RELATIVE_GAP)
    notes: list[str] = []
    if dense_ms <= budget_ms:
        widths, certificate = (
            network.dense,
            Certificate(status="unchanged", objective=1.0, bound=1.0, gap=0.0, seconds=0.0),
        )
        notes.append(f"the dense network already meets the budget ({dense_ms:.3g} ms): every channel is kept")
    else:
        widths, certificate = _require_feasible(answer, network, budget_ms, dense_ms)
    prediction = predictor.predict(widths)
    if prediction.extrapolated:
        notes.append(
            f"extrapolated for {len(prediction.extrapolated)} layers, the first {prediction.extrapolated[0]!r}"
        )
    notes += prediction.notes
    return Plan(
        widthwise=__version__,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        model=network.name,
        signature=network.signature,
        weights=weights,
        inputs=[list(shape) for shape in network.inputs],
        dense_ms=dense_ms,
        budget_ms=budget_ms,
        predicted_ms=prediction.latency_ms,
        interval_ms=prediction.interval_ms,
        minimum_ms=answer.minimum_ms,
        criterion=importance.criterion,
        importance=importance.retained(widths),
        certificate=certificate,
        table=_reference(lut, network),
        dense=network.dense,
        widths=widths,
        kept={group: list(importance.kept(group, width)) for group, width in widths.items()},
        notes=notes,
        parent=parent_of(network.name),
    )


def build_problem(predictor: LatencyPredictor, importance: Importance, budget_ms: float, options: _Options) -> Problem:
    """The allocation problem of a network; its latencies are :meth:`LatencyPredictor.predict`'s to rounding."""
    tables = _Tables(predictor, options)
    for layer in predictor.network.layers:
        tables.add(layer)
    return Problem(
        budget_ms=budget_ms,
        fixed_ms=tables.fixed_ms,
        groups={
            group: GroupOptions(widths=tuple(widths), importance=tuple(importance.curve(group, widths)))
            for group, widths in options.items()
        },
        costs=tables.costs(),
    )


@dataclass(frozen=True, slots=True)
class _Axis:
    """One side of a cost table: a group, or a sum of groups; ``entries`` are the widths or totals it runs over."""

    groups: tuple[str, ...]
    plus: int
    entries: tuple[int, ...]

    @property
    def key(self) -> tuple[tuple[str, ...], int]:
        return self.groups, self.plus

    @property
    def over(self) -> str | SumOver:
        return self.groups[0] if len(self.groups) == 1 else SumOver(sum=self.groups, plus=self.plus)


class _Tables:
    """Cost tables, those over the same widths added up."""

    def __init__(self, predictor: LatencyPredictor, options: _Options) -> None:
        self._predictor = predictor
        self._options = options
        self._sums: dict[tuple[object, ...], tuple[tuple[_Axis, ...], _Array]] = {}
        self.fixed_ms = predictor.fixed_ms

    def add(self, layer: Layer) -> None:
        """Counts a layer's latency where its widths say."""
        sizes = [self._axis(axis) for axis in layer.axes]
        varying = {axis.key: axis for axis in sizes if axis is not None}
        axes = tuple(sorted(varying.values(), key=lambda axis: (len(axis.groups) == 1, axis.key)))
        shape = tuple(len(axis.entries) for axis in axes)
        columns = []
        for affine, axis in zip(layer.axes, sizes, strict=True):
            if axis is None:
                columns.append(np.full(shape, affine.constant, dtype=np.int64))
            else:
                place = [1] * len(axes)
                position = [other.key for other in axes].index(axis.key)
                place[position] = -1
                own = self._sizes(affine, axis)
                columns.append(np.broadcast_to(own.reshape(place), shape))
        count = math.prod(shape)
        channels = np.stack([column.reshape(count) for column in columns], axis=1) if columns else np.zeros((1, 0), int)
        table = self._predictor.surface_ms(layer.geometry, channels).reshape(shape)
        if not axes:
            self.fixed_ms += float(table)
            return
        key = tuple(axis.key for axis in axes)
        known = self._sums.get(key)
        self._sums[key] = (axes, table if known is None else known[1] + table)

    def costs(self) -> tuple[Cost, ...]:
        return tuple(
            Cost(
                over=tuple(axis.over for axis in axes),
                ms=table,
                sums=next((axis.entries for axis in axes if len(axis.groups) > 1), None),
            )
            for axes, table in self._sums.values()
        )

    def _axis(self, affine: Affine) -> _Axis | None:
        """None where nothing varies. Single groups are told apart by name alone, whatever multiplies them."""
        if not affine.terms:
            return None
        if len(affine.terms) == 1:
            group = affine.groups[0]
            return _Axis((group,), 0, tuple(self._options[group]))
        repeated = tuple(group for group, coefficient in affine.terms for _ in range(coefficient))
        totals = {affine.constant}
        for group, coefficient in affine.terms:
            totals = {total + coefficient * width for total in totals for width in self._options[group]}
        return _Axis(repeated, affine.constant, tuple(sorted(totals)))

    def _sizes(self, affine: Affine, axis: _Axis) -> npt.NDArray[np.int64]:
        entries = np.array(axis.entries, dtype=np.int64)
        if len(affine.terms) > 1:
            return entries
        return entries * affine.terms[0][1] + affine.constant


def _require_feasible(
    answer: Answer, network: Network, budget_ms: float, dense_ms: float
) -> tuple[dict[str, int], Certificate]:
    if answer.status == "infeasible":
        raise InfeasibleBudget(
            f"no widths bring {network.name} to {budget_ms:.4g} ms: the least it reaches is {answer.minimum_ms:.4g} ms "
            f"({answer.minimum_ms / dense_ms:.0%} of the dense {dense_ms:.4g} ms); raise the budget",
            answer.minimum_ms,
        )
    assert answer.bound is not None and answer.gap is not None
    return dict(answer.widths), Certificate(
        status=answer.status, objective=answer.importance, bound=answer.bound, gap=answer.gap, seconds=answer.seconds
    )


def _reference(lut: Lut, network: Network) -> TableReference:
    records = lut.networks(network.signature)
    quiet_ms = lut.quiet_reference_ms
    assert quiet_ms is not None
    return TableReference(
        target={name: value for name, value in lut.target.items() if isinstance(value, str | int)},
        device=str(lut.fingerprint.get("cpu", "unknown")),
        quiet_reference_ms=quiet_ms,
        networks=len(records),
        held_out=sum(record.role is Role.HOLDOUT for record in records),
    )
