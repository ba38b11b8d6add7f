"""What a predictor reads: for each geometry, the measured points of its latency surface as arrays.

A snapshot in memory, taken from a :class:`~widthwise.luts.store.Lut`; it does not change when the file does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from widthwise.luts.errors import MissingLayers
from widthwise.luts.rows import Point
from widthwise.luts.schema import BadRow, translated
from widthwise.luts.spec import Geometry
from widthwise.luts.store import Lut

__all__ = ["LatencyTable", "Surface"]

_LEAST_LEFT = 0.5
"""Share of a layer's latency that is its own, however much recording it may have added."""

_NAMED = 5
"""How many missing geometries a message spells out."""


@dataclass(frozen=True, slots=True, eq=False)
class Surface:
    """The n measured points of one geometry, in the order they were stored.

    Attributes:
        geometry: whose points they are.
        channels: (n, axes), the widths.
        latency_ms: (n,), median of each measurement; less its share of a surplus once :meth:`trimmed`.
        network_id: (n,), the network the layer was timed in, -1 for none.
        in_place: (n,), whether it was timed inside a network.
        unstable: (n,), whether its interval is too wide to rely on.
    """

    geometry: Geometry
    channels: NDArray[np.int64]
    latency_ms: NDArray[np.float64]
    network_id: NDArray[np.int64]
    in_place: NDArray[np.bool_]
    unstable: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.latency_ms)

    def without(self, networks: Collection[int]) -> Surface:
        """The points that weren't timed in any of these networks (ids)."""
        kept = ~np.isin(self.network_id, np.array(sorted(networks), dtype=np.int64))
        return replace(
            self,
            channels=self.channels[kept],
            latency_ms=self.latency_ms[kept],
            network_id=self.network_id[kept],
            in_place=self.in_place[kept],
            unstable=self.unstable[kept],
        )

    def trimmed(self, surplus_ms: Mapping[int, float]) -> Surface:
        """Latencies less the surplus of the network (id) they were timed in; see :meth:`LatencyTable.trimmed`."""
        surplus = np.array([surplus_ms.get(network, 0.0) for network in self.network_id.tolist()])
        return replace(self, latency_ms=np.maximum(self.latency_ms - surplus, _LEAST_LEFT * self.latency_ms))

    def paced(self, pace: Mapping[int, float]) -> Surface:
        """Latencies divided by the pace of the network (id) they were timed in; see :meth:`LatencyTable.paced`."""
        by = np.array([pace.get(network, 1.0) for network in self.network_id.tolist()])
        return replace(self, latency_ms=self.latency_ms / by)

    @property
    def axes(self) -> int:
        """How many free widths the geometry has: 0, 1 or 2."""
        return int(self.channels.shape[1])


@dataclass(frozen=True, slots=True, eq=False)
class LatencyTable:
    """The surfaces of a table, by geometry.

    Example:
        >>> with Lut.open("device.lut", readonly=True) as lut:  # doctest: +SKIP
        ...     table = LatencyTable.load(lut)
        >>> table.surface(geometry).latency_ms  # doctest: +SKIP
        array([0.31, 0.29, ...])
    """

    surfaces: Mapping[Geometry, Surface]

    @classmethod
    def load(cls, lut: Lut, geometries: Collection[Geometry] | None = None) -> Self:
        """Read the surfaces of all geometries, or of some.

        Args:
            lut: the file.
            geometries: only these; those without a measurement are simply absent (see :meth:`missing`).

        Raises:
            InvalidTable: the file is damaged.
        """
        with translated(lut.path):
            return cls._of({g: _surface(g, points) for g, points in lut.points(geometries).items()})

    @classmethod
    def _of(cls, surfaces: Mapping[Geometry, Surface]) -> Self:
        return cls(MappingProxyType({geometry: surface for geometry, surface in surfaces.items() if len(surface)}))

    def without(self, networks: Collection[int]) -> Self:
        """What is left when the layers of some networks (ids) are left out, such as held-out ones."""
        return self._of({geometry: surface.without(networks) for geometry, surface in self.surfaces.items()})

    def trimmed(self, surplus_ms: Mapping[int, float]) -> Self:
        """Layers that add up to the networks they were timed in.

        Putting a layer on record takes time of its own, whatever the layer takes: 2 to 3 µs under ONNX Runtime, where
        EfficientNet-B0's layers exceed the network by 2 %, and those of one a fifth as fast by 32 %. Other runtimes
        leave out what lies between layers. Each layer bears the same.

        Args:
            surplus_ms: per network (id), see :meth:`Lut.surplus_ms`.
        """
        return self._of({geometry: surface.trimmed(surplus_ms) for geometry, surface in self.surfaces.items()})

    def paced(self, pace: Mapping[int, float]) -> Self:
        """Latencies divided by the pace of the network (id) they were timed in, where it has one.

        Args:
            pace: per network (id), see :func:`widthwise.luts.peers.paces`.
        """
        return self._of({geometry: surface.paced(pace) for geometry, surface in self.surfaces.items()})

    def missing(self, geometries: Collection[Geometry]) -> list[Geometry]:
        """Those of ``geometries`` without a single measurement, in the order given."""
        return [geometry for geometry in geometries if geometry not in self.surfaces]

    def surface(self, geometry: Geometry) -> Surface:
        """The measured points of ``geometry``.

        Raises:
            MissingLayers: there is none.
        """
        self.require([geometry])
        return self.surfaces[geometry]

    def require(self, geometries: Collection[Geometry]) -> None:
        """Do nothing where every geometry has measurements.

        Raises:
            MissingLayers: naming those that have none.
        """
        missing = self.missing(geometries)
        if missing:
            names = "; ".join(map(str, missing[:_NAMED])) + (" and more" if len(missing) > _NAMED else "")
            raise MissingLayers(
                f"the table has no measurement of {len(missing)} of {len(geometries)} layer shapes ({names}); "
                "profile this network into it: `widthwise profile MODEL --input … --lut FILE`"
            )

    def __iter__(self) -> Iterator[Surface]:
        return iter(self.surfaces.values())

    def __len__(self) -> int:
        return len(self.surfaces)


def _surface(geometry: Geometry, points: Sequence[Point]) -> Surface:
    try:
        values = np.array(points, dtype=np.float64).reshape(-1, 6)
    except (TypeError, ValueError) as error:
        raise BadRow(f"a layer of {geometry} is no measurement ({error})") from error
    widths, latency_ms = values[:, :2], values[:, 2]
    axes = int(np.count_nonzero(widths.any(axis=0)))
    if not (np.isfinite(latency_ms).all() and (latency_ms > 0).all()):
        raise BadRow(f"a layer of {geometry} has a latency that is no positive number of milliseconds")
    if not ((widths[:, :axes] > 0).all() and not widths[:, axes:].any()):
        raise BadRow(f"layers of {geometry} disagree on how many widths it has")
    return Surface(
        geometry,
        channels=widths[:, :axes].astype(np.int64),
        latency_ms=latency_ms.copy(),
        network_id=values[:, 3].astype(np.int64),
        in_place=values[:, 4] != 0,
        unstable=values[:, 5] != 0,
    )
