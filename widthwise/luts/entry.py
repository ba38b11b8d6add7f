"""What a table knows of each layer: all that was timed of it, and how far another profile may lie off.

The interval of one record is about its blocks, a handful, taken within seconds. Two profiles differ by more: on a
shared machine a batch norm of 20 µs takes 5 to 20 % longer in one network's runs than in the next one's, and five
blocks that happen to agree look settled. On six profiles of ResNet-18, two minutes each, intervals that entries' own
blocks gave for 95 % covered 77 % of the differences to the next profile. So doubt has three parts here: between
blocks, between the networks a layer was timed in, and in what the dense network beside them takes, by as much as
processes disagree on it. All are moderated: drawn towards what layers of the same kind and size scatter by in the whole
table, as few samples tell little of their own scatter (Smyth, "Linear models and empirical Bayes methods", Stat. Appl.
Genet. Mol. Biol. 3, 2004).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from widthwise.luts import rows
from widthwise.luts.errors import InvalidTable
from widthwise.luts.measurement import SETTLED_HALF_WIDTH, Measurement, Status
from widthwise.luts.peers import paces, scale_variances
from widthwise.luts.spec import LayerSpec
from widthwise.luts.store import Lut

__all__ = ["Entry", "entries"]

_PRIOR_BLOCKS = 8
_PRIOR_NETWORKS = 4
"""How many degrees of freedom the scatter of similar layers counts for, between blocks and between networks."""

_OF_A_MEDIAN = math.pi / 2
"""Variance of a median over that of a mean."""

_DEVIATIONS = 1.96
_MOST_DOUBT = math.log(1000)
_CLASSES = 2
"""Sizes to a factor of ten that count as different."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A layer with its shapes, as timed inside networks.

    Attributes:
        spec: which layer.
        latency_ms: median of all blocks, on the quiet device and in terms of the dense network beside them.
        low_ms, high_ms: 95 % interval of what it takes; what two profiles differ by, both of theirs together explain.
        status: ``stable`` where that is within ± 5 % and less than half of the blocks were taken on a disturbed
            machine.
        networks: in how many it was timed.
        blocks: how often.
    """

    spec: LayerSpec
    latency_ms: float
    low_ms: float
    high_ms: float
    status: Status
    networks: int
    blocks: int


def entries(lut: Lut) -> list[Entry]:
    """Every layer of a table that was timed inside a network, in the order in which they were first.

    Raises:
        InvalidTable: the file is damaged, or holds latencies that can't be.

    Example:
        >>> with Lut.open("device.lut", readonly=True) as lut:  # doctest: +SKIP
        ...     known = [entry for entry in entries(lut) if entry.status is Status.STABLE]
    """
    histories = list(_histories(lut))
    by_class: dict[tuple[str, int], list[_History]] = defaultdict(list)
    for history in histories:
        by_class[history.similar].append(history)
    anything = _Scatter.of(histories, None)
    usual = {similar: _Scatter.of(members, anything) for similar, members in by_class.items()}
    return [history.entry(usual[history.similar]) for history in histories]


@dataclass(frozen=True, slots=True)
class _History:
    """One layer.

    Attributes:
        taken: per network, the logarithms of its blocks' latencies.
        spoilt: how many blocks were.
        of_scale: variance that all of them share, of what the dense network beside them takes on the quiet device.
    """

    spec: LayerSpec
    taken: list[np.ndarray]
    spoilt: int
    of_scale: float

    @property
    def blocks(self) -> int:
        return sum(map(len, self.taken))

    @property
    def middle(self) -> float:
        return float(np.median(np.concatenate(self.taken)))

    @property
    def similar(self) -> tuple[str, int]:
        """Kind and size; layers that share both are expected to scatter alike."""
        return self.spec.geometry.kind, round(_CLASSES * self.middle / math.log(10))

    @property
    def within(self) -> tuple[float, int]:
        """Sum of squared deviations from each network's mean, and its degrees of freedom."""
        return sum(float(np.var(logs)) * len(logs) for logs in self.taken), self.blocks - len(self.taken)

    def between(self, of_blocks: float) -> float:
        """Variance between networks, beyond what that of blocks explains; needs two."""
        medians = [np.median(logs) for logs in self.taken]
        explained = _OF_A_MEDIAN * of_blocks * np.mean([1 / len(logs) for logs in self.taken])
        return max(0.0, float(np.var(medians, ddof=1) - explained))

    def entry(self, usual: _Scatter) -> Entry:
        squares, freedom = self.within
        of_blocks = (_PRIOR_BLOCKS * usual.of_blocks + squares) / (_PRIOR_BLOCKS + freedom)
        count = len(self.taken)
        own = self.between(of_blocks) if count > 1 else 0.0
        of_networks = (_PRIOR_NETWORKS * usual.of_networks + (count - 1) * own) / (_PRIOR_NETWORKS + count - 1)
        variance = _OF_A_MEDIAN * of_blocks / self.blocks + of_networks / count + self.of_scale
        doubt = min(_DEVIATIONS * math.sqrt(variance), _MOST_DOUBT)
        settled = doubt <= SETTLED_HALF_WIDTH and 2 * self.spoilt < self.blocks
        latency_ms, by = math.exp(self.middle), math.exp(doubt)
        return Entry(
            self.spec,
            latency_ms,
            latency_ms / by,
            latency_ms * by,
            Status.STABLE if settled else Status.UNSTABLE,
            count,
            self.blocks,
        )


@dataclass(frozen=True, slots=True)
class _Scatter:
    """Variances of logarithms among similar layers, between blocks and between networks."""

    of_blocks: float
    of_networks: float

    @classmethod
    def of(cls, histories: Sequence[_History], anything: _Scatter | None) -> _Scatter:
        """That of these, or where they can't tell, of ``anything``; without which it is taken for twice the interval
        that still counts as settled."""
        pooled = [squares / freedom for squares, freedom in (h.within for h in histories) if freedom > 0]
        unknown = anything or cls(*[(2 * SETTLED_HALF_WIDTH / _DEVIATIONS) ** 2] * 2)
        of_blocks = float(np.median(pooled)) if pooled else unknown.of_blocks
        told = [(history.between(of_blocks), len(history.taken) - 1) for history in histories if len(history.taken) > 1]
        if sum(freedom for _, freedom in told) <= _PRIOR_NETWORKS:
            return cls(of_blocks, unknown.of_networks)
        variances, freedoms = zip(*told, strict=True)
        return cls(of_blocks, float(np.average(variances, weights=freedoms)))


def _histories(lut: Lut) -> Iterator[_History]:
    pace, of_scale = paces(lut), scale_variances(lut)
    taken: dict[LayerSpec, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    spoilt: dict[LayerSpec, int] = defaultdict(int)
    for spec, network, timed in _timed(lut):
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            logs = np.log(timed.ratios * timed.quiet_reference_ms / pace.get(network, 1.0))
        if not (np.isfinite(logs).all() and math.isfinite(of_scale.get(network, 0.0))):
            raise InvalidTable(
                f"{lut.path}: {spec} can't have taken what is on record; run `widthwise luts check {lut.path}`"
            )
        taken[spec][network] += logs.tolist()
        spoilt[spec] += timed.spoilt
    for spec, networks in taken.items():
        shared = float(np.mean([of_scale.get(network, 0.0) for network in networks]))
        yield _History(spec, list(map(np.array, networks.values())), spoilt[spec], shared)


def _timed(lut: Lut) -> Iterable[tuple[LayerSpec, int, Measurement]]:
    with lut.reading() as db:
        quiet_ms = lut.quiet_reference_ms
        if quiet_ms is None:
            return
        geometries = rows.select_geometries(db)
        for record, timed in rows.select_timed_layers(db, geometries, quiet_ms, "network IS NOT NULL"):
            if record.network_id is not None:
                yield record.spec, record.network_id, timed
