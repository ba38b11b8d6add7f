"""One network at one width vector: all its layers' surfaces in a handful of array operations.

A surface at a time, DenseNet-121's 84 geometries take 3.6 ms, nearly all of it the overhead of calls on short arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from widthwise.planner.features import features, matern, places
from widthwise.planner.regressors import SurfaceRegressor

__all__ = ["Stack"]

_Array = npt.NDArray[np.float64]


class Stack:
    """The surfaces of a network's layers, as :meth:`SurfaceRegressor.predict` has them, to rounding.

    Args:
        surfaces: of each layer.
        axes: how many channel counts each layer has.
    """

    def __init__(self, surfaces: Sequence[SurfaceRegressor], axes: Sequence[int]) -> None:
        begins = np.cumsum([0, *axes[:-1]])
        self._count = len(surfaces)
        self._parts = [
            _Part.of([surfaces[layer] for layer in layers.tolist()], layers, begins[layers, None] + np.arange(count))
            for count in sorted(set(axes))
            for layers in [np.flatnonzero(np.array(axes) == count)]
        ]

    def latencies_ms(self, sizes: npt.NDArray[np.int64]) -> _Array:
        """Each layer's latency, shape ``(layers,)``, from all their channel counts one after the other."""
        found = np.empty(self._count)
        for part in self._parts:
            found[part.layers] = part.latencies_ms(sizes[part.columns])
        return found

    def extrapolates(self, sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Whether each layer lies outside the measured range of any of its axes, shape ``(layers,)``."""
        found = np.zeros(self._count, dtype=bool)
        for part in self._parts:
            channels = sizes[part.columns]
            found[part.layers] = ((channels < part.low) | (channels > part.high)).any(axis=1)
        return found


class _Part(NamedTuple):
    """Layers with as many axes; the points of their processes, one after the other, in units of their length scales."""

    layers: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int64]
    low: npt.NDArray[np.int64]
    high: npt.NDArray[np.int64]
    roofline: _Array
    offset: _Array
    tile: npt.NDArray[np.int64]
    with_process: npt.NDArray[np.int64]
    scale: _Array
    counts: npt.NDArray[np.int64]
    points: _Array
    weights: _Array

    @classmethod
    def of(
        cls, surfaces: Sequence[SurfaceRegressor], layers: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]
    ) -> _Part:
        found = [
            (at, surface.places, surface.process)
            for at, surface in enumerate(surfaces)
            if surface.process is not None and columns.shape[1]
        ]
        scales = [1 / process.length for _, _, process in found]
        scaled = [(scale * points).T for scale, (_, points, _) in zip(scales, found, strict=True)]
        return cls(
            layers,
            columns,
            np.stack([surface.low for surface in surfaces]),
            np.stack([surface.high for surface in surfaces]),
            np.stack([surface.roofline for surface in surfaces]),
            np.array([surface.offset for surface in surfaces]),
            np.array([[surface.tile] for surface in surfaces]),
            np.array([at for at, _, _ in found], dtype=np.int64),
            np.array(scales).reshape(-1, 1),
            np.array([len(points) for _, points, _ in found], dtype=np.int64),
            np.concatenate([np.empty((2 * columns.shape[1], 0)), *scaled], axis=1),
            np.concatenate([np.empty(0), *(process.signal**2 * process.weights for _, _, process in found)]),
        )

    def latencies_ms(self, channels: npt.NDArray[np.int64]) -> _Array:
        log_ms = np.log(np.maximum((features(channels) * self.roofline).sum(axis=1), 1e-9)) + self.offset
        if len(self.with_process):
            log_ms[self.with_process] += self._told(places(channels, self.tile)[self.with_process] * self.scale)
        return np.asarray(np.exp(log_ms))

    def _told(self, at: _Array) -> _Array:
        """What the points say of their layers' places, shape ``(layers with a process,)``.

        Axis after axis, each as one long row: with all axes of a point side by side it takes three times as long.
        """
        squares = np.zeros_like(self.weights)
        for own, points in zip(at.T, self.points, strict=True):
            apart = np.repeat(own, self.counts)
            apart -= points
            apart *= apart
            squares += apart
        told = matern(np.sqrt(squares, out=squares), 1.0) * self.weights
        return np.add.reduceat(told, np.cumsum(self.counts) - self.counts)
