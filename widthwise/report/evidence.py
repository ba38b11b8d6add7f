"""What a table tells of a plan beyond what the plan says itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from widthwise.luts.store import Lut
from widthwise.network.network import Network
from widthwise.planner.intervals import spread
from widthwise.planner.plan import Plan
from widthwise.planner.predictor import LatencyPredictor, Prediction
from widthwise.planner.verification import verified_ms

__all__ = ["Evidence"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a table as it is now tells of a plan.

    Attributes:
        network: the dense one.
        prediction: of the plan's widths.
        measured: (latency, interval) in ms of each verification of these widths on record, the newest last.
        dense_ms: module, in the user's names → what its layers take in the dense network, the largest first.
        planned_ms: the same in the plan's.
        errors: logarithms of measured over predicted, of measured networks at widths that plans choose from, each
            predicted without itself and what was measured along with it, and scaled to how far networks of the plan's
            size err (:mod:`widthwise.planner.intervals`).
        radius: half-width of the plan's interval, which follows from them, in logarithms.
    """

    network: Network
    prediction: Prediction
    measured: tuple[tuple[float, tuple[float, float]], ...]
    dense_ms: Mapping[str, float]
    planned_ms: Mapping[str, float]
    errors: tuple[float, ...]
    radius: float

    @classmethod
    def of(cls, plan: Plan, lut: Lut, network: Network) -> Evidence:
        """From the table; nothing is measured.

        Args:
            network: the dense network that the plan is for, as it was traced.

        Raises:
            TableMismatch: the table is of another target than the plan's.
            MissingLayers, InvalidTable: it lacks layers of the network, or the spread that p90 plans need.

        Example:
            >>> with Lut.open("device.lut", readonly=True) as lut:  # doctest: +SKIP
            ...     slowest = next(iter(Evidence.of(plan, lut, network).dense_ms))
        """
        lut.require_target(plan.table.target)
        predictor = LatencyPredictor.fit(lut, network).at(plan.statistic)
        prediction = predictor.predict(plan.widths)
        as_planned = predictor.intervals.on_grid * spread(prediction.latency_ms / predictor.dense_ms)
        return cls(
            network=network,
            prediction=prediction,
            measured=tuple(verified_ms(plan, lut)),
            dense_ms=predictor.totals(plan.dense, by="module"),
            planned_ms=predictor.totals(plan.widths, by="module"),
            errors=tuple(map(float, as_planned)),
            radius=predictor.radius(prediction.latency_ms),
        )
