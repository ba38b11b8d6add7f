"""Allocation: from a predictor, an importance and what is asked for to a plan with its proof.

This module turns a network into an allocation problem (cost tables over widths, widths over importance),
hands it to the exact solver and makes a plan of the answer. See DESIGN §4.3 for the problem as data.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from widthwise.luts.errors import BadInput, InfeasibleBudget, Unmet
from widthwise.luts.records import Role
from widthwise.luts.store import Lut
from widthwise.network.granularity import options_from
from widthwise.network.network import Network
from widthwise.planner.demands import Demands, FurtherTable, amount, as_limit
from widthwise.planner.importance import Importance
from widthwise.planner.plan import (
    Budget,
    Certificate,
    FurtherLatency,
    KeptLimit,
    Plan,
    TableReference,
    parent_of,
)
from widthwise.planner.predictor import LatencyPredictor
from widthwise.planner.problem import Answer, Cost, GroupOptions, Limit, Problem
from widthwise.planner.solver import solve
from widthwise.planner.tabulation import Tabulation

__all__ = ["allocate", "build_problem"]

RELATIVE_GAP = 1e-5
_Options = Mapping[str, Sequence[int]]


def allocate(
    predictor: LatencyPredictor,
    importance: Importance,
    budget: Budget | None,
    lut: Lut,
    *,
    weights: str = "",
    options: _Options | None = None,
    demands: Demands | None = None,
    time_limit_s: float = 60.0,
) -> Plan:
    """The plan of greatest importance whose predicted latency is within the budget, or the fastest that keeps enough.

    Args:
        budget: of the latency; None where ``demands.keep`` asks for the fastest widths instead.
        weights: hash of the weights the importance was taken from.
        options: widths to choose from; by default multiples of the granularity the table knows.
        demands: what else to keep to.

    Raises:
        BadInput: both or none of ``budget`` and ``demands.keep``, or demands that can't be.
        InfeasibleBudget: names the least latency any widths reach, and what stands in the way.
    """
    request = _Request(predictor, importance, budget, lut, options, demands or Demands())
    answer = solve(request.problem, time_limit_s=time_limit_s, relative_gap=RELATIVE_GAP)
    if request.dense_will_do:
        unchanged = Certificate(status="unchanged", objective=1.0, bound=1.0, gap=0.0, seconds=0.0)
        return request.plan(answer, request.network.dense, unchanged, weights)
    request.require_feasible(answer)
    assert answer.bound is not None and answer.gap is not None
    found, bound, gap = answer.importance, answer.bound, answer.gap
    if request.problem.objective == "latency":
        found, bound = (request.counting.predicted_ms(ms) for ms in (answer.latency_ms, answer.bound))
        gap = max(gap, found / bound - 1 if bound > 0 else 0.0)
    status: Literal["optimal", "feasible"] = "optimal" if answer.status == "optimal" else "feasible"
    certificate = Certificate(status=status, objective=found, bound=bound, gap=gap, seconds=answer.seconds)
    return request.plan(answer, dict(answer.widths), certificate, weights)


def build_problem(predictor: LatencyPredictor, importance: Importance, budget_ms: float, options: _Options) -> Problem:
    """The allocation problem of a network; its latencies are :meth:`LatencyPredictor.predict`'s to rounding, near the
    budget at least (:meth:`LatencyPredictor.around`)."""
    tables = _latencies(predictor.around(budget_ms), options)
    return Problem(
        budget_ms=budget_ms, fixed_ms=tables.fixed, groups=_groups(importance, options), costs=_costs(tables)
    )


class _Request:
    """What is asked of the solver, and a plan of what it says."""

    def __init__(
        self,
        predictor: LatencyPredictor,
        importance: Importance,
        budget: Budget | None,
        lut: Lut,
        options: _Options | None,
        demands: Demands,
    ) -> None:
        if (budget is None) == (demands.keep is None):
            raise BadInput("give a budget, or what to keep at the least latency (--objective latency --keep), not both")
        self.predictor, self.importance, self.lut, self.demands = predictor, importance, lut, demands
        self.network, self.dense_ms = predictor.network, predictor.dense_ms
        self.dtype = str(lut.target.get("dtype", "float32"))
        self.budget_ms = None if budget is None else budget.ms(self.dense_ms)
        self.options = demands.options(self.network, options or options_from(lut, self.network))
        self.limits = demands.limits(self.network, self.options, self.dtype)
        self.further = [_further_limit(table, self.options, demands.confidence) for table in demands.tables]
        self._check_tables()
        self.counting = predictor.around(self._within_ms)
        self.problem = self._problem()

    @property
    def _within_ms(self) -> float:
        """What predictions must be within; the dense latency where there is no budget."""
        if self.budget_ms is None:
            return self.dense_ms
        return _within(self.predictor, self.budget_ms, self.demands.confidence)

    @property
    def dense_will_do(self) -> bool:
        """Whether the dense network is within the budget, and within all else."""
        if self.budget_ms is None or self._within_ms < self.dense_ms:
            return False
        dense = self.network.dense
        if any(dense[group] not in widths for group, widths in self.options.items()):
            return False
        if any(
            table.predictor.dense_ms > limit.most
            for table, limit in zip(self.demands.tables, self.further, strict=True)
        ):
            return False
        return all(limit.most >= self._amount(limit, dense) for limit in self.limits)

    def require_feasible(self, answer: Answer) -> None:
        """Raises InfeasibleBudget where the answer says so; Unmet where time ran out."""
        if answer.status != "infeasible":
            return
        budget_ms, least_ms = self.budget_ms, self._surely_ms(self.counting.predicted_ms(answer.minimum_ms))
        if budget_ms is not None and least_ms > budget_ms:
            sure = f" with {self.demands.confidence:.6g} confidence" if self.demands.confidence is not None else ""
            raise InfeasibleBudget(
                f"no widths bring {self.network.name} to {budget_ms:.4g} ms{sure}: the least it reaches is "
                f"{least_ms:.4g} ms ({least_ms / self.dense_ms:.0%} of the dense {self.dense_ms:.4g} ms); "
                "raise the budget",
                least_ms,
            )
        if answer.bound is not None:
            raise Unmet(f"{self.network.name}: {answer.reason}; raise the time limit")
        if self.demands.keep is not None and answer.reason and "keep an importance" in answer.reason:
            most = math.exp(-1.0 + math.fsum(max(group.importance) for group in self.problem.groups.values()))
            raise InfeasibleBudget(
                f"no widths of {self.network.name} retain {self.demands.keep:.6g}: within the bounds on widths the "
                f"most is {most:.4g}; keep less",
                least_ms,
            )
        raise InfeasibleBudget(f"{self.network.name}: {answer.reason}; loosen one of them", least_ms)

    def plan(self, answer: Answer, widths: Mapping[str, int], certificate: Certificate, weights: str) -> Plan:
        """The plan of these widths."""
        from widthwise import __version__

        network, demands = self.network, self.demands
        prediction = self.predictor.predict(widths)
        return Plan(
            widthwise=__version__,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            model=network.name,
            signature=network.signature,
            weights=weights,
            inputs=[list(shape) for shape in network.inputs],
            dense_ms=self.dense_ms,
            budget_ms=self.budget_ms or prediction.latency_ms,
            predicted_ms=prediction.latency_ms,
            interval_ms=self.predictor.interval_ms(prediction.latency_ms, demands.confidence),
            minimum_ms=self.counting.predicted_ms(answer.minimum_ms),
            criterion=self.importance.criterion,
            importance=self.importance.retained(widths),
            certificate=certificate,
            table=_reference(self.lut, network),
            dense=network.dense,
            widths=dict(widths),
            kept={group: list(self.importance.kept(group, width)) for group, width in widths.items()},
            notes=self._notes(widths, certificate),
            objective=self.problem.objective,
            keep=demands.keep,
            confidence=demands.confidence,
            limits=[
                KeptLimit(
                    name=limit.name,
                    amount=self._amount(limit, widths),
                    most=limit.most,
                    dense=self._amount(limit, network.dense),
                )
                for limit in self.limits
            ],
            bounds=dict(demands.bounds),
            further=[_further_latency(table, widths, demands.confidence) for table in demands.tables],
            binding=list(answer.binding) if certificate.status != "unchanged" else [],
            parent=parent_of(network.name),
            statistic=self.predictor.statistic,
        )

    def _problem(self) -> Problem:
        tables = _latencies(self.counting, self.options)
        groups = _groups(self.importance, self.options)
        common: dict[str, Any] = {"fixed_ms": tables.fixed, "groups": groups, "costs": _costs(tables)}
        common["limits"] = (*self.limits, *self.further)
        if self.budget_ms is None:
            assert self.demands.keep is not None
            # A hair less, so that the dense network keeps all of itself whatever its shares add up to in floats.
            keep = 1 + math.log(self.demands.keep) - 1e-12
            return Problem(objective="latency", keep=keep, **common)
        return Problem(budget_ms=self._within_ms, **common)

    def _surely_ms(self, predicted_ms: float) -> float:
        """What must be within the budget where this is predicted."""
        confidence = self.demands.confidence
        return predicted_ms if confidence is None else self.predictor.interval_ms(predicted_ms, confidence)[1]

    def _amount(self, limit: Limit, widths: Mapping[str, int]) -> float:
        return amount(limit.name, self.network, widths, self.dtype)

    def _notes(self, widths: Mapping[str, int], certificate: Certificate) -> list[str]:
        prediction, notes = self.predictor.predict(widths), []
        if certificate.status == "unchanged":
            notes.append(f"the dense network already meets the budget ({self.dense_ms:.3g} ms): every channel is kept")
        if prediction.extrapolated:
            first = prediction.extrapolated[0]
            notes.append(f"extrapolated for {len(prediction.extrapolated)} layers, the first {first!r}")
        return [*notes, *prediction.notes]

    def _check_tables(self) -> None:
        """Further tables are of this model: the same groups of the same sizes, and no two limits of one name."""
        for table in self.demands.tables:
            if table.predictor.network.dense != self.network.dense:
                raise BadInput(f"{table.lut.path} is of another model: its groups aren't those of {self.network.name}")
        names = [limit.name for limit in self.further]
        if len(set(names)) < len(names):
            raise BadInput("a further table is named twice on the same input shape; name each once, with one budget")


def _further_limit(table: FurtherTable, options: _Options, confidence: float | None) -> Limit:
    """The latency on a further table as a limit."""
    predictor = table.predictor
    shapes = "+".join(",".join(map(str, shape)) for shape in predictor.network.inputs)
    budget_ms = _within(predictor, table.budget.ms(predictor.dense_ms), confidence)
    tables = _latencies(predictor.around(budget_ms), options)
    return as_limit(f"latency on {table.lut.path} @ {shapes}"[-200:], budget_ms, tables)


def _further_latency(table: FurtherTable, widths: Mapping[str, int], confidence: float | None) -> FurtherLatency:
    predictor = table.predictor
    latency_ms = predictor.predict(widths).latency_ms
    return FurtherLatency(
        table=_reference(table.lut, predictor.network),
        signature=predictor.network.signature,
        inputs=[list(shape) for shape in predictor.network.inputs],
        dense_ms=predictor.dense_ms,
        budget_ms=table.budget.ms(predictor.dense_ms),
        predicted_ms=latency_ms,
        interval_ms=predictor.interval_ms(latency_ms, confidence),
    )


def _within(predictor: LatencyPredictor, budget_ms: float, confidence: float | None) -> float:
    """The greatest latency whose interval's upper end is within the budget."""
    return budget_ms if confidence is None else predictor.surely_within_ms(budget_ms, confidence)


def _latencies(predictor: LatencyPredictor, options: _Options) -> Tabulation:
    tables = Tabulation(options)
    tables.fixed = predictor.fixed_ms
    for layer in predictor.network.layers:
        tables.add(layer.axes, partial(predictor.surface_ms, layer.geometry))
    return tables


def _costs(tables: Tabulation) -> tuple[Cost, ...]:
    return tuple(Cost(over=found.over, ms=found.table, sums=found.sums) for found in tables.tables())


def _groups(importance: Importance, options: _Options) -> dict[str, GroupOptions]:
    return {
        group: GroupOptions(widths=tuple(widths), importance=tuple(importance.curve(group, widths)))
        for group, widths in options.items()
    }


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
