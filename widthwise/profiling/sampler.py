"""What to time next: ask and tell.

One narrowed network gives a sample of every layer and one of the whole. So most of the time goes to networks: random
ones, drawn such that their layers cover what the planner may choose, and ones that an adviser plans with what the table
knows so far, because that is where plans will look. A few single layers find out the granularity of each kind of layer
(:mod:`widthwise.network.granularity`); the last ones go where the prediction is least certain. A random part of the
networks, a tenth at least, is held out: nothing is ever fitted on them.

What is asked for is a function of the seed and of what the table holds, so an interrupted run goes on as it would have.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from widthwise.luts.measurement import Estimator, Measurement
from widthwise.luts.records import Role
from widthwise.luts.spec import Geometry, LayerSpec
from widthwise.luts.store import Lut
from widthwise.network.granularity import Line, Point, group_steps, lines_of, next_widths
from widthwise.network.joints import BLOCK, block_probes, block_steps, joined_groups
from widthwise.network.network import LEAST_SHARE, Network

__all__ = [
    "LEAST_NETWORKS",
    "MOST_NETWORKS",
    "Adviser",
    "Batch",
    "Draw",
    "Sampler",
    "WidthSampler",
    "grid_points",
    "uncovered_specs",
]

MOST_NETWORKS = 100
LEAST_NETWORKS = 2
"""So many narrowed networks are measured in any case, beside the dense one."""

_KNOWN_NETWORKS = 24
"""A network whose layers a table knows from others needs no more: they find its correction and its interval."""

_ENOUGH_POINTS = 8
"""Timed so often, a geometry is known."""

_NETWORK_SHARE = 0.88
"""Share of the time in which networks are asked for; single layers get the rest."""

_STEPS_AFTER = 8
_STEPS_SHARE = 0.12
"""The search for steps begins after so many networks, which tell what weighs most, and takes at most this share."""

_SINGLES = 60
_SINGLES_TOGETHER = 6
_ADVICE_AFTER = 20

_ADVICE_S = 3.0
"""An adviser fits predictors, for 1 to 3 s for a ResNet-101; taken to be so long until one has been heard."""

_OFF_GRID = (4, 2)
"""Of every four networks the one with this remainder has widths of any kind: plans don't use them, but users may ask
what a network costs whose widths are no multiples of anything. On ONNX Runtime such a ResNet-18 takes 18 % longer than
what networks at multiples of 16 tell. One of six was too few for networks so slow that eight fit into the time: of the
one VGG-16 with such widths, an eighth of the dense one's latency, followed that larger ones take 9 % longer than they
do."""

_OFF_GRID_HELD_OUT = 4
"""One in so many of them is held out."""

_LEAST_SCALE = 0.15
"""Scaled networks keep so much of each width at least, or a share from there whose square root is spread evenly. Spread
evenly itself, from 0.2 on, 1 of 24 ResNet-18s took less than a fifth of the dense one's time, and the correction knew
nothing of small networks, which stay in the caches: it put those of a tenth 10 % too high (OpenVINO)."""

_GOLDEN = (math.sqrt(5) - 1) / 2
"""However many multiples of it are taken modulo one, they lie evenly. Drawn at random, six of seven ResNet-18s off the
grid took more than two fifths of the dense one's time, and small ones were predicted 3 to 10 % too low."""

_HELD_OUT = 10
"""One network in so many is held out, at random. Intervals don't rest on these alone, see
:mod:`widthwise.planner.intervals`; they stay unknown to every fit, for whoever wants to judge one."""


class Adviser(Protocol):
    """Somebody who knows what the table is for; see :mod:`widthwise.planner.proposal`."""

    def networks(self, lut: Lut, indices: Sequence[int], options: Mapping[str, Sequence[int]]) -> list[dict[str, int]]:
        """A width vector for each index."""

    def layers(self, lut: Lut, options: Mapping[str, Sequence[int]], *, most: int) -> list[LayerSpec]:
        """The layers whose latency is least certain, the worst first."""


@dataclass(frozen=True, slots=True)
class Draw:
    """A width vector and what it is for: fitting, only for checking, or the dense network; and whether its widths are
    any, not those worth considering."""

    widths: dict[str, int]
    role: Role
    off_grid: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """What to time against each other next: networks or single layers."""

    networks: tuple[Draw, ...] = ()
    layers: tuple[LayerSpec, ...] = ()

    def __len__(self) -> int:
        return len(self.networks) + len(self.layers)

    def first(self, count: int) -> Batch:
        """The first ``count`` of them, none where that leaves no layer, or no network beside the dense one."""
        count = count if count >= (2 if self.networks else 1) else 0
        return Batch(self.networks[:count], self.layers[:count])


class Sampler:
    """Asked for a batch again and again, and told what came out.

    Args:
        lut: what is in it already isn't asked for again.
        together: so many narrowed networks are timed against each other, and against the dense one.
        networks: not more narrowed ones than these in all.

    Attributes:
        networks: how many narrowed ones have been timed, those already in the table included.
        options: the widths worth considering, per group; finer or coarser once the steps are known.
        steps: granularity found so far, per group.

    Example:
        >>> sampler = Sampler(network, lut)  # doctest: +SKIP
        >>> while batch := sampler.ask(share_of_the_time()):  # doctest: +SKIP
        ...     sampler.tell(batch, measured(batch))
    """

    def __init__(
        self,
        network: Network,
        lut: Lut,
        *,
        together: int = 4,
        networks: int = MOST_NETWORKS,
        seed: int = 0,
        adviser: Adviser | None = None,
    ) -> None:
        self._network = network
        self._lut = lut
        self._together = together
        self._seed = seed
        self._adviser = adviser if network.free else None
        self._advice_s = _ADVICE_S
        own = lut.networks(network.signature)
        self.networks = sum(record.role in (Role.FIT, Role.HOLDOUT) for record in own)
        self._weights: dict[Geometry, float] = {}
        self._singles: dict[LayerSpec, Point] = {}
        self._refused: set[Geometry] = set()
        self._lines: list[Line] | None = None
        mine = {record.id for record in own}
        points: Counter[Geometry] = Counter()
        for record in lut.layers({layer.geometry for layer in network.layers}):
            if record.estimator is Estimator.SINGLE:
                width = (record.high_ms - record.low_ms) / 2 / record.latency_ms
                self._singles[record.spec] = Point(record.latency_ms, width)
            else:
                points[record.spec.geometry] += record.network_id not in mine
                self._weigh(record.spec.geometry, record.latency_ms)
        known = all(points[layer.geometry] >= _ENOUGH_POINTS for layer in network.layers)
        self._most_networks = min(networks, _KNOWN_NETWORKS) if known else networks
        self._rest: list[LayerSpec] | None = None
        self._searching_since: float | None = None
        self._firm: dict[str, int] | None = None
        self._set_steps()

    def ask(self, share: float, left_s: float = math.inf) -> Batch | None:
        """What to time next, ``share`` of the time being over and ``left_s`` being left; None when there is nothing
        left that is worth it."""
        if self.networks < min(LEAST_NETWORKS, self._most_networks):
            return self._ask_networks()
        if share < _NETWORK_SHARE:
            if self.networks >= _STEPS_AFTER and (probes := self._ask_steps(share)):
                return Batch(layers=tuple(probes))
            if self.networks < self._most_networks:
                return self._ask_networks()
        return self._ask_singles(left_s) if share < 1 else None

    def tell(self, batch: Batch, layers: Mapping[LayerSpec, Measurement | None]) -> None:
        """What came out: of single layers their measurements, None where the runtime can't time one alone; of
        networks, those of their layers."""
        self.networks += sum(draw.role is not Role.DENSE for draw in batch.networks)
        for spec, measurement in layers.items():
            if measurement is None:
                self._refused.add(spec.geometry)
            elif batch.networks:
                self._weigh(spec.geometry, measurement.latency_ms)
            else:
                self._singles[spec] = Point(measurement.latency_ms, measurement.half_width)

    def _weigh(self, geometry: Geometry, latency_ms: float) -> None:
        self._weights[geometry] = max(self._weights.get(geometry, 0.0), latency_ms)

    def _ask_networks(self) -> Batch:
        """The dense network and some narrowed ones, which count in terms of it; see :mod:`widthwise.luts.peers`."""
        if self._firm is None:
            self._set_steps()
        sampler = WidthSampler(self.options, seed=self._seed)
        first = self.networks
        indices = range(first, min(first + self._together, self._most_networks))
        probes = dict(enumerate(block_probes(self._network)))
        draws = [
            Draw(probes[index], Role.FIT, off_grid=True) if index in probes else sampler.draw(index)
            for index in indices
        ]
        turn = first // self._together % 2 == 1
        if self._adviser is not None and first >= _ADVICE_AFTER and turn:
            began_s = time.perf_counter()
            planned = self._adviser.networks(self._lut, indices, self.options)
            self._advice_s = time.perf_counter() - began_s
            draws = [
                draw if draw.off_grid else Draw(widths, draw.role) for widths, draw in zip(planned, draws, strict=True)
            ]
        return Batch(networks=(Draw(self._network.dense, Role.DENSE), *draws))

    def _ask_steps(self, share: float) -> list[LayerSpec]:
        """Probes of the first line about which something is left to find out."""
        if self._lines is None or self._searching_since is None:
            self._searching_since = share
            self._lines = lines_of(self._network, lambda geometry: self._weights.get(geometry, 0.0))
        while self._lines and share - self._searching_since < _STEPS_SHARE:
            line = self._lines[0]
            probes = [line.spec(width) for width in next_widths(line, line.points(self._singles))]
            if probes and line.geometry not in self._refused:
                return probes
            self._lines = self._lines[1:]
            self._set_steps()
        self._lines = []
        return []

    def _set_steps(self) -> None:
        if self._firm is None:
            self._firm = block_steps(self._network, self._lut.networks(self._network.signature))
            if self._firm is None and self.networks >= LEAST_NETWORKS:
                self._firm = {}  # a table from before they were probed
        cautious = dict.fromkeys(joined_groups(self._network), BLOCK)
        firm = cautious if self._firm is None else self._firm
        self.steps = group_steps(self._network, self._singles) | (self._firm or {})
        self.options = self._network.options(self.steps, firm)

    def _ask_singles(self, left_s: float) -> Batch | None:
        if self._rest is None:
            if self._adviser is not None and left_s <= self._advice_s:
                return None  # the time would be over before the advice is heard
            self._set_steps()
            self._rest = self._uncertain()
        picked = [spec for spec in self._rest if spec.geometry not in self._refused][:_SINGLES_TOGETHER]
        self._rest = [spec for spec in self._rest if spec not in picked]
        return Batch(layers=tuple(picked)) if picked else None

    def _uncertain(self) -> list[LayerSpec]:
        if self._adviser is not None:
            return self._adviser.layers(self._lut, self.options, most=_SINGLES)
        measured = [record.spec for record in self._lut.layers({layer.geometry for layer in self._network.layers})]
        return uncovered_specs(self._network, self.options, measured, most=_SINGLES)


class WidthSampler:
    """Draws width vectors from the options of each group.

    Args:
        options: ascending widths per group, the dense one last; see :meth:`Network.options`.
    """

    def __init__(self, options: Mapping[str, Sequence[int]], *, seed: int = 0) -> None:
        self._options = options
        self._seed = seed

    def draw(self, index: int) -> Draw:
        """The ``index``-th narrowed network."""
        rng = random.Random(f"{self._seed}:{index}")
        every, place = _OFF_GRID
        if index % every == place:
            role = Role.HOLDOUT if index // every % _OFF_GRID_HELD_OUT == 1 else Role.FIT
            return Draw(self._any(rng, self._scale("any", index // every)), role, off_grid=True)
        return Draw(self._on_grid(rng, index), Role.HOLDOUT if self._is_held_out(index) else Role.FIT)

    def _is_held_out(self, index: int) -> bool:
        """One at random of each stretch of networks, those off the grid aside."""
        stretch = index // _HELD_OUT
        every, place = _OFF_GRID
        stretched = range(stretch * _HELD_OUT, (stretch + 1) * _HELD_OUT)
        rest = [other for other in stretched if other % every != place]
        return index == random.Random(f"{self._seed}:holdout:{stretch}").choice(rest)

    def _on_grid(self, rng: random.Random, index: int) -> dict[str, int]:
        """Of six networks three are scaled: the others, of many groups, all take about half of the dense one's time."""
        pair, place = divmod(index, 2 * _OFF_GRID[0])
        if place in (1, 5, 7):
            return self._scaled(rng, self._scale("scaled", 3 * pair + (1, 5, 7).index(place)))
        return self._independent(rng) if place == 0 else self._corners(rng)

    def _scale(self, style: str, count: int) -> float:
        """The ``count``-th share of each width that scaled networks of a style keep, dense ones being 1."""
        place = (random.Random(f"{self._seed}:{style}").random() + count * _GOLDEN) % 1
        root = math.sqrt(_LEAST_SCALE)
        return (root + (1 - root) * place) ** 2

    def _independent(self, rng: random.Random) -> dict[str, int]:
        return {group: rng.choice(widths) for group, widths in self._options.items()}

    def _scaled(self, rng: random.Random, scale: float) -> dict[str, int]:
        return {
            group: min(widths, key=lambda width: abs(width - scale * math.exp(rng.gauss(0, 0.2)) * widths[-1]))
            for group, widths in self._options.items()
        }

    def _any(self, rng: random.Random, scale: float) -> dict[str, int]:
        """Down to the least share of each width, which may be less than one step; what would be outside is drawn anew.

        DenseNet-121's growths of 32 channels stayed at 16, its step, or above. Of ten held-out networks those with most
        growths at 4 to 15 then took 10 to 16 % longer than predicted, those with few 1 to 3 %. And while what was drawn
        above the dense width was cut to it, a fifth to a half of the groups of large networks had it: what large layers
        take between steps had been seen at one of their two widths alone. That is a part of why such networks were told
        3 to 7 % too high (GoogLeNet on ONNX Runtime, ResNet-18 on OpenVINO); see docs/architecture.md for what is left.
        """
        found = {}
        for group, widths in self._options.items():
            shares = (scale * math.exp(rng.gauss(0, 0.3)) for _ in itertools.count())
            share = next(share for share in shares if LEAST_SHARE <= share <= 1)
            found[group] = max(math.ceil(LEAST_SHARE * widths[-1]), round(share * widths[-1]))
        return found

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
        for geometry, points in grid_points(network, options).items()
    ]
    picked: list[LayerSpec] = []
    for rank in range(most):
        picked += [queue[rank] for queue in queues if rank < len(queue)]
    return picked[:most]


def grid_points(network: Network, options: Mapping[str, Sequence[int]]) -> dict[Geometry, set[tuple[int, ...]]]:
    """Per geometry of layers with two widths: every (input, output) that options allow."""
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
