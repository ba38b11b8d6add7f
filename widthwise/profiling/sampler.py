"""Which narrowed networks and which layers to time next.

One narrowed network gives a sample of every layer and one of the whole; so networks are drawn such that
their layers cover what the planner may choose: independent widths, widths scaled together, and corners
(groups at their least or full width, as budgets make them). The n-th network is a function of the seed and
n alone, so an interrupted run continues the same sequence.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from widthwise.luts.records import Role
from widthwise.luts.spec import Geometry, LayerSpec
from widthwise.network.network import Network

__all__ = ["Draw", "WidthSampler", "uncovered_specs"]

_HOLDOUT_EVERY = 5
_DENSE_EVERY = 11
"""The dense network comes again and again, so that what it took and what the others took were taken in equal moods of
the machine: they slow down unequally (MobileNetV2 by 12 % more than the references while a neighbour is busy)."""


@dataclass(frozen=True, slots=True)
class Draw:
    """A width vector and what it is for: fitting, (every fifth) only for checking, or the dense network."""

    widths: dict[str, int]
    role: Role


class WidthSampler:
    """Draws width vectors from the options of each group.

    Args:
        options: ascending widths per group, the dense one last; see :meth:`Network.options`.
    """

    def __init__(self, options: Mapping[str, Sequence[int]], *, seed: int = 0) -> None:
        self._options = options
        self._seed = seed

    def draw(self, index: int) -> Draw:
        """The ``index``-th network; number 0 and every eleventh from there is the dense one."""
        if index % _DENSE_EVERY == 0:
            return Draw({group: widths[-1] for group, widths in self._options.items()}, Role.DENSE)
        rng = random.Random(f"{self._seed}:{index}")
        style = (self._independent, self._scaled, self._corners)[index % 3]
        role = Role.HOLDOUT if index % _HOLDOUT_EVERY == 0 else Role.FIT
        return Draw(style(rng), role)

    def _independent(self, rng: random.Random) -> dict[str, int]:
        return {group: rng.choice(widths) for group, widths in self._options.items()}

    def _scaled(self, rng: random.Random) -> dict[str, int]:
        scale = rng.uniform(0.2, 1.0)
        return {
            group: min(widths, key=lambda width: abs(width - scale * math.exp(rng.gauss(0, 0.2)) * widths[-1]))
            for group, widths in self._options.items()
        }

    def _corners(self, rng: random.Random) -> dict[str, int]:
        return {
            group: rng.choice((widths[0], widths[-1], rng.choice(widths))) for group, widths in self._options.items()
        }


def uncovered_specs(
    network: Network, options: Mapping[str, Sequence[int]], measured: Iterable[LayerSpec], *, most: int
) -> list[LayerSpec]:
    """Grid points of two-width layers that lie farthest from any measured one, one geometry after the other.

    Distance is taken between logarithms of channel counts, where a latency surface is smooth.
    """
    near: dict[Geometry, list[tuple[int, ...]]] = {}
    for spec in measured:
        near.setdefault(spec.geometry, []).append(spec.channels)
    queues = [
        _farthest_first(geometry, points, near.get(geometry, []), most)
        for geometry, points in _grid_points(network, options).items()
    ]
    picked: list[LayerSpec] = []
    for rank in range(most):
        picked += [queue[rank] for queue in queues if rank < len(queue)]
    return picked[:most]


def _grid_points(network: Network, options: Mapping[str, Sequence[int]]) -> dict[Geometry, set[tuple[int, ...]]]:
    """Per geometry of layers with two widths: every (input, output) the planner may choose."""
    points: dict[Geometry, set[tuple[int, ...]]] = {}
    for layer in network.layers:
        groups = layer.groups
        if len(layer.axes) != 2 or not 1 <= len(groups) <= 2:
            continue
        rest = network.dense
        combinations: list[dict[str, int]] = [{}]
        for group in groups:
            combinations = [{**chosen, group: width} for chosen in combinations for width in options[group]]
        points.setdefault(layer.geometry, set()).update(
            tuple(axis(rest | chosen) for axis in layer.axes) for chosen in combinations
        )
    return points


def _farthest_first(
    geometry: Geometry, points: Collection[tuple[int, ...]], measured: Sequence[tuple[int, ...]], most: int
) -> list[LayerSpec]:
    def distance(a: tuple[int, ...], b: tuple[int, ...]) -> float:
        return math.dist([math.log(x) for x in a], [math.log(x) for x in b])

    gaps = {point: min((distance(point, other) for other in measured), default=math.inf) for point in sorted(points)}
    picked = []
    for _ in range(min(most, len(gaps))):
        farthest = max(gaps, key=lambda point: gaps[point])
        if gaps[farthest] <= 0:
            break
        picked.append(LayerSpec(geometry, farthest))
        gaps = {point: min(gap, distance(point, farthest)) for point, gap in gaps.items()}
    return picked
