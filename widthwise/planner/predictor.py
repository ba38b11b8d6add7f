"""From a table to the latency of any width vector of a network, with an interval.

Layers come from their surfaces (:mod:`widthwise.planner.regressors`), their sum goes through a correction
chosen by cross-validation (:mod:`widthwise.planner.correction`), and the interval is conformal on whole networks, each
predicted without what its process measured (:mod:`widthwise.planner.intervals`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from widthwise.luts.errors import InvalidTable, MissingLayers
from widthwise.luts.peers import PACE_COUNTS, batches, on_scale, paces
from widthwise.luts.records import NetworkRecord, Role
from widthwise.luts.spec import Geometry
from widthwise.luts.store import Lut
from widthwise.luts.table import LatencyTable
from widthwise.network.fusion import as_timed
from widthwise.network.granularity import units_from
from widthwise.network.layers import Layer
from widthwise.network.network import Network
from widthwise.network.widths import AffineMap, Widths
from widthwise.planner.batches import SharedErrors
from widthwise.planner.correction import Correction, choose_correction, weighed
from widthwise.planner.doubts import disturbed_networks, doubt_of, doubts, doubts_between, unstable_share
from widthwise.planner.intervals import Intervals, folds, spread
from widthwise.planner.regressors import SurfaceRegressor
from widthwise.planner.stack import Stack

__all__ = ["LatencyPredictor", "Prediction", "Statistic"]

Statistic = Literal["median", "p90"]
"""Of the latencies of single runs."""

_STEPS_TO_A_FIXED_POINT = 20
"""Each leaves a share of what is missing, half of the radius: a tenth where intervals are ±20 %."""

_Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Prediction:
    """The latency of one width vector.

    Attributes:
        latency_ms: of one inference, on the scale of the table: the median, or the predictor's other statistic.
        interval_ms: (low, high) that holds the measured latency with 90 % confidence.
        extrapolated: layers whose widths lie outside what was measured.
        notes: what else a reader must know, in whole sentences.
        between: groups whose width is no multiple of what plans' widths are multiples of; the interval is that of such
            networks.
    """

    latency_ms: float
    interval_ms: tuple[float, float]
    extrapolated: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    between: tuple[str, ...] = ()


class LatencyPredictor:
    """Predicts one network from one table.

    Args:
        network: whose layers' geometries are in the table.
        table: the layers' measurements.
        records: measured networks of the same structure; nothing is fitted on those held out.
        tail: 90 % quantile of single runs over their median, of whole networks; None where that isn't known.
        units: group → what the widths that plans choose from are multiples of; 1 where not given.
        batches: network (id) → the dense one it was timed beside, see :func:`widthwise.luts.peers.batches`.
        aside: how many measured networks were set aside, which predictions say.

    Build it with :meth:`fit`.

    Attributes:
        dense_ms: what the dense network takes: its own measurements, and what the others tell of it.
        statistic: of single runs that latencies are, see :meth:`at`.
    """

    def __init__(
        self,
        network: Network,
        table: LatencyTable,
        records: Sequence[NetworkRecord],
        tail: float | None = None,
        units: Mapping[str, int] | None = None,
        batches: Mapping[int, int] | None = None,
        aside: int = 0,
    ) -> None:
        self.network = network
        self._batches = batches or {}
        self._aside = aside
        self._records = [record for record in records if record.role is not Role.VERIFY]
        self._table = table.without(_ids(record for record in self._records if record.role is Role.HOLDOUT))
        self._surfaces = {geometry: SurfaceRegressor(found) for geometry, found in self._table.surfaces.items()}
        self._by_geometry: dict[Geometry, list[Layer]] = {}
        for layer in network.layers:
            self._by_geometry.setdefault(layer.geometry, []).append(layer)
        self._layers = [layer for layers in self._by_geometry.values() for layer in layers]
        self._sizes = AffineMap([axis for layer in self._layers for axis in layer.axes], network.dense)
        self._units = dict(units or {})
        self._correct = Correction()
        fitted = [record for record in self._records if record.role is Role.FIT]
        fitted += [record for record in self._records if record.role is Role.DENSE][:1]  # timed again and again
        if usual := [record for record in fitted if not self.between(record.widths)]:
            fitted = usual
        if fitted:
            measured = np.array([record.latency_ms for record in fitted])
            self._correct = choose_correction(self.sums_ms([record.widths for record in fitted]), measured)
        self.statistic: Statistic = "median"
        self.tail = tail
        dense = np.array([record.latency_ms for record in self._records if record.role is Role.DENSE])
        self.dense_ms = weighed(dense, float(self.predict_many([network.dense])[0]))
        self._line = self._correct.at(self.dense_ms)

    @classmethod
    def fit(cls, lut: Lut, network: Network) -> LatencyPredictor:
        """A predictor of ``network`` from what the table holds; nothing is measured.

        Networks that were measured while the machine was disturbed are set aside, where they are a third at most and
        others tell of all layers. A batch of MobileNetV2s at the end of a table, its patience spent, was 8 to 23 % off;
        without it, errors on held-out ones were 3.1 instead of 3.7 %.

        Raises:
            MissingLayers: the table lacks some of the network's layers; names the command that measures them.
        """
        network = as_timed(network, lut)
        pace = paces(lut)
        records = [on_scale(record, pace) for record in lut.networks(network.signature)]
        table = LatencyTable.load(lut, {layer.geometry for layer in network.layers}).trimmed(lut.surplus_ms())
        table = table.paced(pace)
        held_out = _ids(record for record in records if record.role is Role.HOLDOUT)
        _require(network, table.without(held_out).surfaces, lut)
        samples = {record.id: lut.samples(record) for record in records}
        tails = [found for taken in samples.values() if (found := taken.tail) is not None]
        tail = float(np.median(tails)) if tails else None
        disturbed = disturbed_networks(records, samples)
        if len(table.without(disturbed | held_out)) < len(table):
            disturbed = set()
        kept = [record for record in records if record.id not in disturbed]
        table = table.without(disturbed)
        return cls(network, table, kept, tail, units_from(lut, network), batches(lut), len(disturbed))

    def at(self, statistic: Statistic) -> LatencyPredictor:
        """The same for another statistic of single runs: their median, or the latency that nine in ten stay below.

        All networks of a table share the ratio of the two: it is the machine's and the runtime's rather than the
        widths'. Intervals are those of the median, scaled.

        Raises:
            InvalidTable: the table has no whole network with enough single runs on record.
        """
        if statistic == self.statistic:
            return self
        if self.tail is None:
            raise InvalidTable(
                f"the table holds no network of {self.network.name} with the spread of its single runs; profile it "
                "further with `widthwise profile`, which keeps it"
            )
        factor = self.tail if statistic == "p90" else 1 / self.tail
        other = copy.copy(self)
        other.statistic = statistic
        other.dense_ms = self.dense_ms * factor
        other._correct = self._correct.times(factor)
        return other.around(other.dense_ms)

    def around(self, latency_ms: float) -> LatencyPredictor:
        """The same, with costs for the allocator (:meth:`surface_ms`, :attr:`fixed_ms`) that are within this latency
        exactly where predictions are.

        They add up to predictions near it; far from it they may add up to more. Others are around the dense latency.
        """
        other = copy.copy(self)
        other._line = self._correct.at(latency_ms)
        return other

    def counted_ms(self, latency_ms: float) -> float:
        """What the allocator's costs add up to where the prediction is ``latency_ms``."""
        line = self._correct.at(latency_ms)
        return latency_ms if line == self._line else float(self._line(np.array(line.sum_at(latency_ms))))

    def predicted_ms(self, counted_ms: float) -> float:
        """The prediction where the allocator's costs add up to ``counted_ms``: the inverse of :meth:`counted_ms`."""
        if len(self._correct.lines) == 1 or not math.isfinite(counted_ms):
            return counted_ms
        return float(self._correct(np.array(self._line.sum_at(counted_ms))))

    @property
    def correction(self) -> Correction:
        """What turns a sum of layers into a network."""
        return self._correct

    @cached_property
    def intervals(self) -> Intervals:
        """Errors on networks predicted without what their process measured; as many fits as there are folds."""
        told: list[tuple[NetworkRecord, float]] = []
        for fold in folds(self._records):
            away = _ids(fold)
            table = self._table.without(away)
            if len(table) < len(self._table):
                continue  # nothing else holds some of the layers
            kept = [record for record in self._records if record.id not in away and record.role is not Role.HOLDOUT]
            other = LatencyPredictor(self.network, table, kept, units=self._units)
            narrowed = [record for record in fold if record.role is not Role.DENSE]
            predicted_ms = other.predict_many([record.widths for record in narrowed])
            told += zip(narrowed, map(float, predicted_ms), strict=True)
        return self._intervals(told)

    def _intervals(self, told: Sequence[tuple[NetworkRecord, float]]) -> Intervals:
        """From records and what was predicted of them."""
        errors = {record.id: math.log(record.latency_ms / predicted_ms) for record, predicted_ms in told}
        doubts = {record.id: PACE_COUNTS * doubt_of(record) for record in self._records if record.role is Role.DENSE}
        shared = SharedErrors(errors, self._batches, doubts)
        kinds: dict[bool, list[float]] = {False: [], True: []}
        for record, predicted_ms in told:
            error = errors[record.id] - shared.without(record.id)
            kinds[bool(self.between(record.widths))].append(error / float(spread(predicted_ms / self.dense_ms)))
        return Intervals(np.array(kinds[False]), np.array(kinds[True]))

    @cached_property
    def _stack(self) -> Stack:
        return Stack([self._surfaces[layer.geometry] for layer in self._layers], [len(la.axes) for la in self._layers])

    @cached_property
    def _notes(self) -> tuple[str, ...]:
        processes = len({record.run for record in self._records})
        return doubts(len(self.intervals.on_grid), processes, unstable_share(self._table), self._aside)

    def radius(self, latency_ms: float) -> float:
        """Half-width of the interval around a predicted latency of a network at widths that plans choose from, in
        natural logarithms; 0.05 is about ±5 %."""
        return self.intervals.radius(latency_ms / self.dense_ms)

    def radius_at(self, confidence: float, latency_ms: float) -> float:
        """As :meth:`radius`, at another level; above 0 and below 1.

        Raises:
            BadInput: too few networks were measured for that level.
        """
        return self.intervals.radius_at(confidence, latency_ms / self.dense_ms, self.network.name)

    def surely_within_ms(self, budget_ms: float, confidence: float) -> float:
        """The greatest latency whose interval, at this level, ends within the budget.

        Raises:
            BadInput: too few networks were measured for that level.
        """
        latency_ms = budget_ms
        for _ in range(_STEPS_TO_A_FIXED_POINT):
            latency_ms = budget_ms * math.exp(-self.radius_at(confidence, latency_ms))
        return latency_ms

    def predict(self, widths: Widths) -> Prediction:
        """The latency at these widths (groups not named keep all channels).

        Raises:
            InvalidModel: a group is unknown, or a width impossible.
        """
        complete = self.network.require_widths(widths)
        latency_ms = float(self.predict_many([complete])[0])
        between = self.between(complete)
        notes = (*self._notes, *doubts_between(between, len(self.intervals.between)))
        radius = self.intervals.radius(latency_ms / self.dense_ms, between=bool(between))
        return Prediction(latency_ms, _around(latency_ms, radius), self._extrapolated(complete), notes, between)

    def between(self, widths: Widths) -> tuple[str, ...]:
        """Groups whose width is no multiple of what plans' widths are multiples of."""
        dense = self.network.dense
        return tuple(
            group
            for group, width in widths.items()
            if width % self._units.get(group, 1) and width != dense.get(group, width)
        )

    def predict_many(self, widths: Sequence[Widths]) -> _Array:
        """Latencies in ms of many complete width vectors, shape ``(n,)``."""
        return self._correct(self.sums_ms(widths))

    def interval_ms(self, latency_ms: float, confidence: float | None = None) -> tuple[float, float]:
        """The interval around a predicted latency of a network at widths that plans choose from; of 90 % confidence, or
        as told.

        Raises:
            BadInput: too few networks were measured for that level.
        """
        radius = self.radius(latency_ms) if confidence is None else self.radius_at(confidence, latency_ms)
        return _around(latency_ms, radius)

    def sums_ms(self, widths: Sequence[Widths]) -> _Array:
        """Σ layers before the correction, shape ``(n,)``."""
        if len(widths) == 1:
            return np.array([self._stack.latencies_ms(self._sizes(widths)[0]).sum()])
        total = np.zeros(len(widths))
        for geometry, layers, channels in self._channels(widths):
            _, first, inverse = np.unique(_as_one(channels), return_index=True, return_inverse=True)
            found = self._surfaces[geometry].predict(channels[first])[inverse]
            total += found.reshape(len(layers), len(widths)).sum(axis=0)
        return total

    def surface_ms(self, geometry: Geometry, channels: npt.NDArray[np.int64]) -> _Array:
        """Corrected latencies of layers of one geometry at ``(n, axes)`` channel counts, shape ``(n,)``.

        This is what the allocator counts: over all layers, and with :attr:`fixed_ms`, it adds up to :meth:`predict` for
        networks of about the latency that the predictor is :meth:`around`.
        """
        return self._line.scale * self._surfaces[geometry].predict(channels)

    def doubt_ms(self, geometry: Geometry, channels: npt.NDArray[np.int64]) -> _Array:
        """How uncertain :meth:`surface_ms` is, times how often the network has such a layer; shape ``(n,)``."""
        times = sum(layer.geometry == geometry for layer in self.network.layers)
        return times * self._surfaces[geometry].deviation(channels) * self.surface_ms(geometry, channels)

    @property
    def fixed_ms(self) -> float:
        """What no width changes."""
        return self._line.offset_ms

    def breakdown(self, widths: Widths) -> list[tuple[Layer, float]]:
        """Each layer with its corrected latency in ms."""
        complete = self.network.require_widths(widths)
        there = self.around(float(self.predict_many([complete])[0]))
        return [
            (layer, float(there.surface_ms(layer.geometry, _point(layer, complete))[0]))
            for layer in self.network.layers
        ]

    def totals(self, widths: Widths, *, by: str = "kind") -> dict[str, float]:
        """:meth:`breakdown` added up by ``kind`` of operation, by ``module`` (what holds the layer, in the user's own
        names) or by ``layer``; in ms, the largest first."""
        found: dict[str, float] = {}
        for layer, ms in self.breakdown(widths):
            module = layer.path.rpartition(".")[0] or layer.path
            name = {"kind": layer.geometry.kind, "module": module, "layer": layer.name}[by]
            found[name] = found.get(name, 0.0) + ms
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def _channels(self, widths: Sequence[Widths]) -> Iterator[tuple[Geometry, list[Layer], npt.NDArray[np.int64]]]:
        """Per geometry its layers, and the channel counts of the first at all width vectors, then the second's, …"""
        sizes, begin = self._sizes(widths), 0
        for geometry, layers in self._by_geometry.items():
            axes = len(layers[0].axes)
            end = begin + axes * len(layers)
            by_layer = sizes[:, begin:end].reshape(len(widths), len(layers), axes).swapaxes(0, 1)
            yield geometry, layers, by_layer.reshape(len(layers) * len(widths), axes)
            begin = end

    def _extrapolated(self, widths: Widths) -> tuple[str, ...]:
        found = self._stack.extrapolates(self._sizes([widths])[0])
        outside = {self._layers[place].name for place in np.flatnonzero(found)}
        return tuple(layer.name for layer in self.network.layers if layer.name in outside)


def _ids(records: Iterable[NetworkRecord]) -> set[int]:
    return {record.id for record in records}


def _around(latency_ms: float, radius: float) -> tuple[float, float]:
    return latency_ms * math.exp(-radius), latency_ms * math.exp(radius)


def _point(layer: Layer, widths: Widths) -> npt.NDArray[np.int64]:
    return np.array([layer.spec(widths).channels], dtype=np.int64).reshape(1, -1)


def _as_one(channels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Rows of at most two channel counts as one number each."""
    return channels @ (1 << 32) ** np.arange(channels.shape[1], dtype=np.int64)


def _require(network: Network, present: Mapping[Geometry, object], lut: Lut) -> None:
    missing = [layer for layer in network.layers if layer.geometry not in present]
    if missing:
        raise MissingLayers(
            f"{lut.path} has {len(network.layers) - len(missing)} of the {len(network.layers)} layers of "
            f"{network.name}; the first missing is {missing[0].name!r} ({missing[0].geometry}). Measure them with "
            f"`widthwise profile {network.name} --input {' --input '.join(_shape(s) for s in network.inputs)} "
            f"--target {lut.target['runtime']}:{lut.target['device']} --lut {lut.path}`"
        )


def _shape(shape: tuple[int, ...]) -> str:
    return ",".join(map(str, shape))
