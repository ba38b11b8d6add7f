"""Latency surfaces: a layer's latency over its channel counts, one surface per geometry.

Mean: a non-negative least-squares roofline (launch + traffic + work, with channel counts padded to the
vector width, and what leaving the fast path adds), fitted on relative errors. Residual: a Gaussian process (Matérn 5/2
on the logarithm of the channel counts, padded to the likeliest tile, and on how well they are aligned) on the logarithm
of measured over mean. Measured points are thus kept to within their noise,
gaps are filled smoothly, and far from any point the roofline takes over. Monotonicity is not forced: cutting
channels can make a layer slower (Radu et al., IISWC 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.optimize import nnls

from widthwise.luts.table import Surface
from widthwise.planner.features import TILES, Channels, features, matern_between, matern_sum, places

__all__ = ["Process", "SurfaceRegressor"]

_FIRST = (0.8, 0.03)
"""Length scale and signal at which tiles are compared."""
_LENGTHS = (0.35, 0.8, 2.0)
"""Length scales tried, in natural logarithms of channel counts (0.7 = a factor of two)."""

_SIGNALS = (0.01, 0.03, 0.1, 0.3)
"""Standard deviations of log latency around the roofline that are tried. The largest is for geometries whose layers run
on different kernels: VGG-16's first convolution, from 3 channels, and its second are one geometry."""

_MOST_POINTS = 400
_LEAST_NOISE = 0.003
_DEFAULT_NOISE = 0.02
_SINGLE_NOISE = 0.03
"""Doubt about a single-layer timing carried over to in-place, beyond its own noise."""

_WARMER = (0.1, 0.1)
"""Logarithm of in-place over single that is expected before anything is measured, and its doubt."""

_Array = npt.NDArray[np.float64]


class SurfaceRegressor:
    """Fits one surface; see the module for the model.

    Single timings run with warmer caches than in a network; they are scaled by the ratio between the in-place surface
    and them before they are used to fill gaps. Where that surface is in doubt, the usual ratio counts for more.

    Args:
        samples: the measured points of one geometry, at least one.

    Attributes:
        low: least measured channel counts, shape ``(axes,)``.
        high: largest ones.
        roofline: what each feature costs in ms; times ``exp(offset)`` it is the mean.
        offset: of the logarithm.
        tile: that counts are padded to in places.
        places: of the points it rests on, shape ``(points, 2 * axes)``.
        process: around the mean; None where there are too few points for one.
    """

    def __init__(self, samples: Surface) -> None:
        placed = samples.in_place if samples.in_place.any() else np.ones(len(samples.latency_ms), bool)
        points, log_ms, noise = _pooled(samples.channels[placed], np.log(samples.latency_ms[placed]))
        self._fit(points, log_ms, noise)
        self.single_ratio: float | None = None
        if not placed.all():
            singles, log_single, single_noise = _pooled(samples.channels[~placed], np.log(samples.latency_ms[~placed]))
            shift = self._warmer(singles, log_single, single_noise)
            self.single_ratio = float(np.exp(-shift))
            fresh = ~(singles[:, None, :] == points[None, :, :]).all(-1).any(1)
            self._fit(
                np.concatenate([points, singles[fresh]]),
                np.concatenate([log_ms, log_single[fresh] + shift]),
                np.concatenate([noise, np.hypot(single_noise[fresh], _SINGLE_NOISE)]),
            )

    def predict(self, channels: Channels) -> _Array:
        """Latencies in ms at ``(m, axes)`` channel counts, shape ``(m,)``."""
        return np.exp(self._log_ms(channels))

    def deviation(self, channels: Channels) -> _Array:
        """Standard deviation of the logarithm of :meth:`predict`: the relative doubt."""
        fit = self.process
        if fit is None or not channels.shape[1]:
            return np.full(len(channels), _DEFAULT_NOISE)
        cross = fit.signal**2 * matern_between(places(channels, self.tile), self.places, fit.length)
        explained = np.einsum("ij,ji->i", cross, cho_solve(fit.factor, cross.T))
        return np.asarray(np.sqrt(np.maximum(fit.signal**2 - explained, 0.0)))

    def _fit(self, points: Channels, log_ms: _Array, noise: _Array) -> None:
        self.low, self.high = points.min(axis=0), points.max(axis=0)
        keep = _spread(points, _MOST_POINTS)
        points, log_ms, noise = points[keep], log_ms[keep], noise[keep]
        latency_ms = np.exp(log_ms)
        self.roofline, _ = nnls(features(points) / latency_ms[:, None], np.ones(len(latency_ms)))
        residual = log_ms - np.log(self._mean(points))
        self.offset = float(np.average(residual, weights=noise**-2))
        self.tile, self.process = _tiled(points, residual - self.offset, noise)
        self.places = places(points, self.tile)

    def _warmer(self, singles: Channels, log_single: _Array, noise: _Array) -> float:
        """Logarithm of in-place over single: what is usual, and what these say, who may all err alike."""
        doubt = self.deviation(singles) if self.process is not None else _SIGNALS[-1]
        weights = 1 / (doubt**2 + noise**2 + _SINGLE_NOISE**2)
        told = float(np.average(self._log_ms(singles) - log_single, weights=weights))
        usual, weight = _WARMER[0], _WARMER[1] ** -2
        return float((told * weights.max() + usual * weight) / (weights.max() + weight))

    def _mean(self, channels: Channels) -> _Array:
        return np.asarray(np.maximum(features(channels) @ self.roofline, 1e-9))

    def _log_ms(self, channels: Channels) -> _Array:
        mean = np.log(self._mean(channels)) + self.offset
        fit = self.process
        if fit is None or not channels.shape[1]:
            return mean
        return mean + fit.signal**2 * matern_sum(places(channels, self.tile), self.places, fit.length, fit.weights)


@dataclass(frozen=True)
class Process:
    """A Gaussian process given its points: its length scale and signal, the factor of their covariance, and what each
    point weighs."""

    length: float
    signal: float
    factor: tuple[_Array, bool]
    weights: _Array


def _pooled(channels: Channels, log_ms: _Array) -> tuple[Channels, _Array, _Array]:
    """Repeated points averaged (median), with the standard error each deserves."""
    points, inverse = np.unique(channels, axis=0, return_inverse=True)
    inverse = inverse.reshape(-1)
    counts = np.bincount(inverse, minlength=len(points))
    medians = np.array([np.median(log_ms[inverse == index]) for index in range(len(points))])
    spare = len(log_ms) - len(points)
    deviations = np.abs(log_ms - medians[inverse])[counts[inverse] > 1]
    spread = 1.4826 * float(np.median(deviations)) * np.sqrt(2) if spare >= 8 and len(deviations) else _DEFAULT_NOISE
    return points, medians, np.maximum(spread, _LEAST_NOISE) / np.sqrt(counts)


def _tiled(points: Channels, residual: _Array, noise: _Array) -> tuple[int, Process | None]:
    """The likeliest tile at first scales, the finest among equals; then the process of highest likelihood."""
    if len(residual) < 3 or not points.shape[1]:
        return 1, None
    tiles = (1, *TILES)
    likelihoods = [_best(places(points, tile), residual, noise, _FIRST[:1], _FIRST[1:])[0] for tile in tiles]
    tile = tiles[int(np.argmax(np.array(likelihoods) - 1e-6 * np.arange(len(tiles))))]
    return tile, _best(places(points, tile), residual, noise, _LENGTHS, _SIGNALS)[1]


def _best(
    where: _Array, residual: _Array, noise: _Array, lengths: Sequence[float], signals: Sequence[float]
) -> tuple[float, Process | None]:
    """The highest marginal likelihood on a small grid, and the process that has it."""
    best: tuple[float, Process | None] = (-np.inf, None)
    for length in lengths:
        correlation = matern_between(where, where, length)
        for signal in signals:
            try:
                factor = cho_factor(signal**2 * correlation + np.diag(noise**2), lower=True)
            except LinAlgError:
                continue
            weights = cho_solve(factor, residual)
            likelihood = -0.5 * residual @ weights - float(np.log(np.diag(factor[0])).sum())
            if likelihood > best[0]:
                best = (likelihood, Process(length, signal, factor, weights))
    return best


def _spread(points: Channels, most: int) -> npt.NDArray[np.int64]:
    """Indices of at most ``most`` points, evenly over their order."""
    if len(points) <= most:
        return np.arange(len(points))
    return np.unique(np.linspace(0, len(points) - 1, most).astype(np.int64))
