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
from scipy.spatial.distance import cdist

from widthwise.luts.table import Surface

__all__ = ["SurfaceRegressor"]

_TILES = (8, 16)
_GATES = (4, 8, 16)
"""Kernels leave a faster path where channels aren't a multiple of one of these: 4 is that of ONNX Runtime's blocked
layout, 16 that of AVX-512. In middling ResNet-18s convolutions to 8, 24 or 40 channels took 6 % (PyTorch) to 22 % (ONNX
Runtime) longer than those to multiples of 16 tell."""

_APART = 0.35
"""For every gate between two channel counts, in the unit of logarithms: so far apart they tell less of each other."""

_FIRST = (0.8, 0.03)
"""Length scale and signal at which tiles are compared."""
_LENGTHS = (0.35, 0.8, 2.0)
"""Length scales tried, in natural logarithms of channel counts (0.7 = a factor of two)."""

_SIGNALS = (0.01, 0.03, 0.1)
"""Standard deviations of log latency around the roofline that are tried."""

_MOST_POINTS = 400
_ROWS = 256
"""So many points are correlated at a time: what lies between stays in the cache."""

_LEAST_NOISE = 0.003
_DEFAULT_NOISE = 0.02
_SINGLE_NOISE = 0.03
"""Doubt about a single-layer timing carried over to in-place, beyond its own noise."""

_Array = npt.NDArray[np.float64]
_Channels = npt.NDArray[np.int64]


class SurfaceRegressor:
    """Fits one surface; see the module for the model.

    Single timings run with warmer caches than in a network; they are scaled by the median ratio between the
    in-place surface and them before they are used to fill gaps.

    Args:
        samples: the measured points of one geometry, at least one.
    """

    def __init__(self, samples: Surface) -> None:
        placed = samples.in_place if samples.in_place.any() else np.ones(len(samples.latency_ms), bool)
        points, log_ms, noise = _pooled(samples.channels[placed], np.log(samples.latency_ms[placed]))
        self._fit(points, log_ms, noise)
        self.single_ratio: float | None = None
        if not placed.all():
            singles, log_single, single_noise = _pooled(samples.channels[~placed], np.log(samples.latency_ms[~placed]))
            shift = float(np.median(self._log_mean(singles)[0] - log_single))
            self.single_ratio = float(np.exp(-shift))
            fresh = ~(singles[:, None, :] == points[None, :, :]).all(-1).any(1)
            self._fit(
                np.concatenate([points, singles[fresh]]),
                np.concatenate([log_ms, log_single[fresh] + shift]),
                np.concatenate([noise, np.hypot(single_noise[fresh], _SINGLE_NOISE)]),
            )

    def predict(self, channels: _Channels) -> _Array:
        """Latencies in ms at ``(m, axes)`` channel counts, shape ``(m,)``."""
        return np.exp(self._log_mean(channels)[0])

    def deviation(self, channels: _Channels) -> _Array:
        """Standard deviation of the logarithm of :meth:`predict`: the relative doubt."""
        cross, fit = self._log_mean(channels)[1], self._best
        if cross is None or fit is None:
            return np.full(len(channels), _DEFAULT_NOISE)
        explained = np.einsum("ij,ji->i", cross, cho_solve(fit.factor, cross.T))
        return np.asarray(np.sqrt(np.maximum(fit.signal**2 - explained, 0.0)))

    def extrapolates(self, channels: _Channels) -> npt.NDArray[np.bool_]:
        """Whether a point lies outside the measured range of any axis."""
        if not channels.shape[1]:
            return np.zeros(len(channels), dtype=bool)
        outside = (channels < self._low) | (channels > self._high)
        return np.asarray(outside.any(axis=1))

    def _fit(self, points: _Channels, log_ms: _Array, noise: _Array) -> None:
        keep = _spread(points, _MOST_POINTS)
        self._points, log_ms, noise = points[keep], log_ms[keep], noise[keep]
        self._low, self._high = points.min(axis=0), points.max(axis=0)
        latency_ms = np.exp(log_ms)
        self._roofline, _ = nnls(_features(self._points) / latency_ms[:, None], np.ones(len(latency_ms)))
        residual = log_ms - np.log(self._mean(self._points))
        self._offset = float(np.average(residual, weights=noise**-2))
        self._tile, self._best = _tiled(self._points, residual - self._offset, noise)
        self._places = _places(self._points, self._tile)

    def _mean(self, channels: _Channels) -> _Array:
        return np.asarray(np.maximum(_features(channels) @ self._roofline, 1e-9))

    def _log_mean(self, channels: _Channels) -> tuple[_Array, _Array | None]:
        """The logarithm of the latency, and the covariance with the measured points that it was made of."""
        mean = np.log(self._mean(channels)) + self._offset
        fit = self._best
        if not channels.shape[1] or fit is None:
            return mean, None
        cross = fit.signal**2 * _matern(_places(channels, self._tile), self._places, fit.length)
        return mean + cross @ fit.weights, cross


@dataclass(frozen=True)
class _Process:
    length: float
    signal: float
    factor: tuple[_Array, bool]
    weights: _Array


def _pooled(channels: _Channels, log_ms: _Array) -> tuple[_Channels, _Array, _Array]:
    """Repeated points averaged (median), with the standard error each deserves."""
    points, inverse = np.unique(channels, axis=0, return_inverse=True)
    inverse = inverse.reshape(-1)
    counts = np.bincount(inverse, minlength=len(points))
    medians = np.array([np.median(log_ms[inverse == index]) for index in range(len(points))])
    spare = len(log_ms) - len(points)
    deviations = np.abs(log_ms - medians[inverse])[counts[inverse] > 1]
    spread = 1.4826 * float(np.median(deviations)) * np.sqrt(2) if spare >= 8 and len(deviations) else _DEFAULT_NOISE
    return points, medians, np.maximum(spread, _LEAST_NOISE) / np.sqrt(counts)


def _features(channels: _Channels) -> _Array:
    """Launch, traffic per axis, work; work also with channels padded to the tiles kernels compute in, and once more for
    each gate that an axis misses."""
    count, axes = channels.shape
    if not axes:
        return np.ones((count, 1))
    features = np.empty((count, 1 + axes + (axes == 2) + len(_TILES) + axes * len(_GATES)))
    features[:, 0] = 1.0
    features[:, 1 : 1 + axes] = channels
    work = features[:, 1 : 1 + axes].prod(axis=1)
    at = 1 + axes
    if axes == 2:
        features[:, at] = work
        at += 1
    for tile in _TILES:
        features[:, at] = _padded(channels, tile).prod(axis=1)
        at += 1
    features[:, at:] = _missed(channels).reshape(count, axes * len(_GATES)) * work[:, None]
    return features


def _missed(channels: _Channels) -> npt.NDArray[np.bool_]:
    """Whether each axis misses each gate, shape ``(n, axes, gates)``."""
    return np.asarray(channels[:, :, None] % np.array(_GATES) != 0)


def _padded(channels: _Channels, tile: int) -> _Channels:
    return -(-channels // tile) * tile


def _places(channels: _Channels, tile: int) -> _Array:
    """Where points lie for the process: logarithms of padded counts, and apart by the gates they miss."""
    return np.concatenate([np.log(_padded(channels, tile)), _APART * _missed(channels).sum(axis=2)], axis=1)


def _matern(a: _Array, b: _Array, length: float) -> _Array:
    """Matérn 5/2 correlation between log channel counts."""
    scaled = cdist(a, b)
    for begin in range(0, len(a), _ROWS):
        part = scaled[begin : begin + _ROWS]
        part *= np.sqrt(5.0) / length
        part[:] = (1 + part * (1 + part / 3)) * np.exp(-part)
    return np.asarray(scaled)


def _tiled(points: _Channels, residual: _Array, noise: _Array) -> tuple[int, _Process | None]:
    """The likeliest tile at first scales, the finest among equals; then the process of highest likelihood."""
    if len(residual) < 3 or not points.shape[1]:
        return 1, None
    tiles = (1, *_TILES)
    likelihoods = [_best(_places(points, tile), residual, noise, _FIRST[:1], _FIRST[1:])[0] for tile in tiles]
    tile = tiles[int(np.argmax(np.array(likelihoods) - 1e-6 * np.arange(len(tiles))))]
    return tile, _best(_places(points, tile), residual, noise, _LENGTHS, _SIGNALS)[1]


def _best(
    places: _Array, residual: _Array, noise: _Array, lengths: Sequence[float], signals: Sequence[float]
) -> tuple[float, _Process | None]:
    """The highest marginal likelihood on a small grid, and the process that has it."""
    best: tuple[float, _Process | None] = (-np.inf, None)
    for length in lengths:
        correlation = _matern(places, places, length)
        for signal in signals:
            try:
                factor = cho_factor(signal**2 * correlation + np.diag(noise**2), lower=True)
            except LinAlgError:
                continue
            weights = cho_solve(factor, residual)
            likelihood = -0.5 * residual @ weights - float(np.log(np.diag(factor[0])).sum())
            if likelihood > best[0]:
                best = (likelihood, _Process(length, signal, factor, weights))
    return best


def _spread(points: _Channels, most: int) -> npt.NDArray[np.int64]:
    """Indices of at most ``most`` points, evenly over their order."""
    if len(points) <= most:
        return np.arange(len(points))
    return np.unique(np.linspace(0, len(points) - 1, most).astype(np.int64))
