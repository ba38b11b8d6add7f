"""Granularity: which widths are worth considering, read off a table.

Kernels work in tiles of channels, so a layer's latency is a staircase: the largest width of a step costs what the
others on it cost. Some kernels leave their fast path where a width isn't a multiple of something, so that fewer
channels take longer. Either way the widths worth considering are the right edges, and how far apart they lie is found
by timing (bisection where neighbouring widths differ), not assumed.

Steps are looked for along lines: one geometry, one axis, the other axis at its dense width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from widthwise.luts.measurement import Estimator
from widthwise.luts.spec import Geometry, LayerSpec
from widthwise.luts.store import Lut
from widthwise.network.joints import block_steps
from widthwise.network.network import Network

__all__ = ["Line", "Point", "group_steps", "lines_of", "next_widths", "options_from", "step_of", "units_from"]

_STEPS = (32, 16, 8, 4, 2)
_HIGHEST = 64
"""Steps are looked for up to this width, where one channel more is a large share of the latency."""

_COARSE = 8
_SAME = 0.02
"""Latencies that differ by less count as equal."""

_MOST_DOUBT = 0.05
"""Points less certain than this tell nothing. On a noisy machine the 16 channels of one of MobileNetV2's layers, each
known to a third, seemed all to differ: a step of 1, and half of the networks drawn from then on were at odd widths."""

_FLAT = 0.05
_LEAST_EVIDENCE = 2


@dataclass(frozen=True, slots=True)
class Point:
    """A measured latency in ms, and its relative half-width."""

    latency_ms: float
    half_width: float = 0.0


Points = Mapping[int, Point]
"""Width along a line → what was measured there."""


@dataclass(frozen=True, slots=True)
class Line:
    """Layers of one geometry that differ in one width.

    Args:
        geometry: with one or two free widths.
        axis: which of them varies.
        other: the one that doesn't; None where there is one only.
        dense: the width in the network.
    """

    geometry: Geometry
    axis: int
    other: int | None
    dense: int

    def spec(self, width: int) -> LayerSpec:
        """The layer at this width."""
        channels = (width,) if self.other is None else (width, self.other)
        return LayerSpec(self.geometry, channels if self.axis == 0 else channels[::-1])

    @property
    def kind(self) -> tuple[object, ...]:
        """Layers of one kind are computed by the same kernels: their steps are taken to be equal."""
        return (self.geometry.kind, self.geometry.option("kernel"), self.geometry.option("groups"), self.axis)

    def points(self, known: Mapping[LayerSpec, Point]) -> dict[int, Point]:
        """What is known along this line."""
        last = min(self.dense, _HIGHEST)
        return {width: known[spec] for width in range(1, last + 1) if (spec := self.spec(width)) in known}


def lines_of(network: Network, weight: Callable[[Geometry], float], *, most: int = 4) -> list[Line]:
    """The lines worth searching: for each kind of layer its heaviest geometry, of those whose input and output vary
    where there are such, the heaviest kinds first.

    Args:
        weight: of a geometry, such as its share of the network's latency.
        most: kinds of layers.
    """
    heaviest: dict[tuple[object, ...], tuple[int, float, list[Line]]] = {}
    for lines in _lines_by_layer(network):
        kind, heavy = lines[0].kind[:-1], weight(lines[0].geometry)
        if heavy and (len(lines), heavy) > heaviest.get(kind, (0, 0.0))[:2]:
            heaviest[kind] = (len(lines), heavy, lines)
    ranked = sorted(heaviest.values(), key=lambda found: -found[1])[:most]
    return [line for *_, lines in ranked for line in lines]


def _lines_by_layer(network: Network) -> Iterator[list[Line]]:
    for layer in network.layers:
        if not (layer.geometry.kind.startswith("conv") and layer.groups):
            continue
        channels = layer.spec(network.dense).channels
        lines = [
            Line(layer.geometry, axis, channels[1 - axis] if len(channels) > 1 else None, channels[axis])
            for axis in range(len(channels))
            if channels[axis] >= 2 * _COARSE and layer.axes[axis].groups
        ]
        if lines:
            yield lines


def next_widths(line: Line, points: Points) -> list[int]:
    """Widths to time next along a line: every eighth first, then the middle of the last gaps whose ends differ.

    Empty once there is nothing to find out. A function of what is known, so an interrupted search continues.

    Example:
        >>> g = Geometry("conv2d", ((1, 0, 7, 7),), ((1, 0, 7, 7),))
        >>> line = Line(g, 1, 64, 64)
        >>> next_widths(line, {})
        [32, 40, 48, 56, 64]
        >>> stairs = {width: Point(1.0 + (width - 1) // 8) for width in (32, 40, 48, 56, 64)}
        >>> next_widths(line, stairs)
        [60]
        >>> next_widths(line, stairs | {60: Point(8.0)})
        [58]
    """
    last = min(line.dense, _HIGHEST) // _COARSE * _COARSE
    coarse = [width for width in range(last // 2 // _COARSE * _COARSE, last + 1, _COARSE) if width]
    missing = [width for width in coarse if width not in points]
    if missing:
        return missing
    inside = sorted(width for width in points if last - _COARSE <= width <= last)
    return [
        (low + high) // 2 for low, high in pairwise(inside) if high - low > 1 and _differ(points[low], points[high])
    ]


def step_of(points: Points) -> int | None:
    """The largest step whose right edges no narrower measured width of the same step beats; None where too little is
    known.

    1 where every channel counts, as far as a fiftieth can be told apart. None also where the latency hardly depends on
    the width at all.

    Example:
        >>> stairs = {width: Point(1.0 + (width - 1) // 8) for width in (32, 40, 48, 56, 57, 58, 60, 64)}
        >>> step_of(stairs)
        8
        >>> step_of({width: Point(float(width**2)) for width in (32, 40, 48, 56, 57, 58, 60, 62, 63, 64)})
        1
    """
    points = {width: point for width, point in points.items() if point.half_width <= _MOST_DOUBT}
    latencies = [point.latency_ms for point in points.values()]
    if len(points) < _LEAST_EVIDENCE + 1 or max(latencies) <= (1 + _FLAT) * min(latencies):
        return None
    finest = None
    for step in _STEPS:
        edges = {width: -(-width // step) * step for width in points if width % step}
        known = [(points[width], points[edge]) for width, edge in edges.items() if edge in points]
        if len(known) < _LEAST_EVIDENCE:
            continue
        finest = step
        if all(edge.latency_ms <= inside.latency_ms or not _differ(inside, edge) for inside, edge in known):
            return step
    return 1 if finest is not None and finest < _COARSE else None


def group_steps(network: Network, known: Mapping[LayerSpec, Point]) -> dict[str, int]:
    """The step of each free group: the largest among the layers it widens, as far as lines through ``known`` tell; no
    finer than 8 unless they tell of all these layers.

    Groups about which nothing is known are left out.
    """
    steps: dict[tuple[object, ...], int] = {}
    for line in {line for lines in _lines_by_layer(network) for line in lines}:
        found = step_of(line.points(known))
        if found is not None:
            steps[line.kind] = max(found, steps.get(line.kind, 1))
    widened: dict[str, set[int | None]] = {}
    for layer in network.layers:
        for axis, size in enumerate(layer.axes):
            kind = Line(layer.geometry, axis, None, 0).kind
            if len(size.terms) == 1 and size.terms[0][1] == 1 and layer.geometry.kind.startswith("conv"):
                widened.setdefault(size.groups[0], set()).add(steps.get(kind))
    return {
        group: max(_COARSE if step is None else step for step in found)
        for group, found in widened.items()
        if found != {None}
    }


def options_from(lut: Lut, network: Network) -> dict[str, tuple[int, ...]]:
    """The widths worth considering, per free group: multiples of the steps this table knows, else of 8; whole blocks
    where those of a concatenation must be.

    Raises:
        InvalidModel: no group may change its width.
    """
    network.require_free()
    return network.options(_steps_from(lut, network), _firm_from(lut, network))


def units_from(lut: Lut, network: Network) -> dict[str, int]:
    """What all widths worth considering are multiples of, per free group, before its step is known and afterwards.

    Networks are timed from the first minute on, at multiples of 8, and steps come out on the way; those timed before
    are no networks at odd widths. Firm steps are known before.
    """
    firm = _firm_from(lut, network)
    known, unknown = network.steps(_steps_from(lut, network), firm), network.steps({}, firm)
    return {group: math.gcd(step, unknown[group]) for group, step in known.items()}


def _steps_from(lut: Lut, network: Network) -> dict[str, int]:
    known = {
        record.spec: Point(record.latency_ms, (record.high_ms - record.low_ms) / 2 / record.latency_ms)
        for record in lut.layers({layer.geometry for layer in network.layers}, estimator=Estimator.SINGLE)
    }
    return group_steps(network, known)


def _firm_from(lut: Lut, network: Network) -> dict[str, int]:
    return block_steps(network, lut.networks(network.signature)) or {}


def _differ(a: Point, b: Point) -> bool:
    doubt = min(_MOST_DOUBT, max(_SAME, a.half_width + b.half_width))
    return abs(math.log(a.latency_ms / b.latency_ms)) > doubt
