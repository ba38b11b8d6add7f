"""What a table says of what it never saw: layers of other shapes, and networks of other structure.

A :class:`~widthwise.planner.regressors.SurfaceRegressor` knows one geometry over its channel counts and is what plans
rest on. Here one regressor learns over all geometries of a kind (:class:`ShapeRegressor`), and another from sums of
layers to whole networks (:class:`CompositionRegressor`). They are for estimates before anything of a network was
measured, with errors of 10 to 20 % a layer: which kernel a runtime picks is no function of the shape.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from widthwise.luts.errors import MissingLayers
from widthwise.luts.spec import LayerSpec
from widthwise.network.layers import macs

__all__ = ["CompositionRegressor", "ShapeRegressor", "shape_features"]

_TILES = ((128, 128), (128, 64), (64, 64), (128, 32), (256, 64))
"""(rows, columns) in which matrix kernels compute; a layer pays for whole ones."""

_VECTORS = (4, 8, 16, 32)
_PLANES = (2, 4)
"""Output pixels a Winograd kernel computes at once, in each direction."""

_LEAST_SAMPLES = 8
_TREES = 300
_TUNED_ON = 400
"""Samples on which the process's length scales are found; it is then fitted on up to ``_MOST_SAMPLES``."""

_MOST_SAMPLES = 3000
_LEAST_COMPOSED = 10
_REWEIGHTED = 10
_SMALL_ERROR = 0.01

_Array = npt.NDArray[np.float64]


class ShapeRegressor:
    """Latency of layers of one kind from their shapes: a Gaussian process and extremely randomised trees, averaged.

    Both learn the logarithm of the time per multiply-accumulate (per byte, where a kind has none) from
    :func:`shape_features`. Sources: Matérn 3/2 with a length scale for each feature (Rasmussen & Williams, 2006);
    Geurts et al., Extremely randomized trees, 2006; tile features as in NeuSight (ASPLOS 2025) and ANNETTE (2021).

    Args:
        specs: layers of one kind, at least 8.
        latency_ms: of each, above zero.

    Raises:
        MissingLayers: too few layers, or layers of several kinds.

    Example:
        >>> fit = ShapeRegressor(specs, latency_ms)  # doctest: +SKIP
        >>> fit.predict([LayerSpec(geometry, (64, 128))])  # doctest: +SKIP
        array([0.52])
    """

    def __init__(self, specs: Sequence[LayerSpec], latency_ms: _Array) -> None:
        from sklearn.ensemble import ExtraTreesRegressor

        kinds = sorted({spec.geometry.kind for spec in specs})
        if len(kinds) != 1 or len(specs) < _LEAST_SAMPLES:
            raise MissingLayers(
                f"needs at least {_LEAST_SAMPLES} measured layers of one kind to learn from shapes, got {len(specs)} "
                f"of {', '.join(kinds) or 'none'}; measure more with `widthwise profile`"
            )
        self.kind = kinds[0]
        features = shape_features(specs)
        self._center = features.mean(axis=0)
        self._varies = features.std(axis=0) > 1e-9
        self._scale = np.where(self._varies, features.std(axis=0), 1.0)
        rates = np.log(np.asarray(latency_ms, dtype=float)) - _work(specs)
        columns = self._columns(features)
        self._process = _process(columns, rates)
        few = len(specs) < 500
        self._trees = ExtraTreesRegressor(
            _TREES, min_samples_leaf=1 if few else 2, max_features=0.6, random_state=0, n_jobs=1
        ).fit(columns, rates)

    def predict(self, specs: Sequence[LayerSpec]) -> _Array:
        """Latencies in ms, shape ``(n,)``."""
        columns = self._columns(shape_features(specs))
        rates = (self._process.predict(columns) + self._trees.predict(columns)) / 2
        return np.asarray(np.exp(rates + _work(specs)))

    def _columns(self, features: _Array) -> _Array:
        return np.asarray(((features - self._center) / self._scale)[:, self._varies])


def shape_features(specs: Sequence[LayerSpec]) -> _Array:
    """Logarithms of sizes, work and traffic, what padding to tiles and vectors adds, and alignment; ``(n, features)``.

    Example:
        >>> from widthwise.luts.spec import Geometry
        >>> relu = Geometry("relu", ((1, 0, 7, 5),), ((1, 0, 7, 5),))
        >>> shape_features([LayerSpec(relu, (13,)), LayerSpec(relu, (16,))]).shape[0]
        2
    """
    return np.array([_features(spec) for spec in specs])


def _features(spec: LayerSpec) -> list[float]:
    geometry = spec.geometry
    inputs, outputs = _ends(spec)
    source, result = geometry.inputs[0] if geometry.inputs else (), geometry.outputs[0]
    batch = result[0] if result else 1
    plane_in, plane_out = math.prod(source[2:]), math.prod(result[2:])
    pixels = batch * plane_out
    kernel = geometry.option("kernel", 1)
    area = math.prod(kernel) if isinstance(kernel, tuple) else 1
    stride = geometry.option("stride", 1)
    step = math.prod(stride) if isinstance(stride, tuple) else 1
    side = math.sqrt(plane_out)
    sizes = [batch, inputs, outputs, plane_in, plane_out, pixels, area, step, macs(spec) + 1, _traffic(spec)]
    found = [math.log(max(1.0, float(size))) for size in sizes]
    found += [math.log(_padded(pixels, rows) * _padded(outputs, cols) / (pixels * outputs)) for rows, cols in _TILES]
    found += [math.log(_padded(count, vector) / count) for vector in _VECTORS for count in (inputs, outputs)]
    found += [2 * math.log(_padded(side, plane) / side) for plane in _PLANES]
    found += [float(count % vector == 0) for vector in _VECTORS[:2] for count in (inputs, outputs)]
    found.append(math.log(math.ceil(pixels / 128) * math.ceil(outputs / 128)))
    return found


def _ends(spec: LayerSpec) -> tuple[int, int]:
    """Channels that go in and come out, 1 where they play no role."""
    return (spec.channels[0], spec.channels[-1]) if spec.channels else (1, 1)


def _traffic(spec: LayerSpec) -> float:
    """Elements read and written, weights of convolutions and linear layers included."""
    inputs, outputs = _ends(spec)
    read = sum(math.prod(size or inputs for size in shape) for shape in spec.geometry.inputs)
    written = sum(math.prod(size or outputs for size in shape) for shape in spec.geometry.outputs)
    kernel = spec.geometry.option("kernel")
    weights = math.prod(kernel) * inputs * outputs if isinstance(kernel, tuple) and macs(spec) else 0
    return float(read + written + weights)


def _work(specs: Sequence[LayerSpec]) -> _Array:
    return np.log([float(macs(spec) or _traffic(spec)) for spec in specs])


def _padded(size: float, tile: int) -> float:
    return math.ceil(size / tile - 1e-9) * tile


def _process(columns: _Array, rates: _Array) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    scales = np.full(columns.shape[1], 3.0)
    kernel = ConstantKernel(1.0) * Matern(scales, (0.1, 100.0), nu=1.5) + WhiteKernel(0.01, (1e-5, 1.0))
    order = np.random.default_rng(0).permutation(len(rates))
    some, most = order[:_TUNED_ON], order[:_MOST_SAMPLES]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # at its limit a scale doesn't matter
        tuned = GaussianProcessRegressor(kernel, normalize_y=True).fit(columns[some], rates[some])
    return GaussianProcessRegressor(tuned.kernel_, optimizer=None, normalize_y=True).fit(columns[most], rates[most])


class CompositionRegressor:
    """Whole networks from the sums of their layers: ``a·Σ + d·layers + b``, then a smooth correction in the logarithm.

    For networks of different structure in one table. The line is fitted to the least mean relative error with terms
    that can't be negative; the correction is a Gaussian process on Σ, the number of layers and their quotient, so small
    that where there is nothing to learn it vanishes.

    Args:
        sums_ms: Σ layers of each network, at least 10 networks.
        layers: how many layers each has.
        measured_ms: the networks themselves.

    Raises:
        MissingLayers: too few networks.

    Example:
        >>> sums, layers = np.linspace(5.0, 50.0, 20), np.arange(20.0) + 10
        >>> fit = CompositionRegressor(sums, layers, 1.1 * sums + 0.02 * layers + 0.3)
        >>> round(float(fit.predict(np.array([30.0]), np.array([15.0]))[0]), 1)
        33.6
    """

    def __init__(self, sums_ms: _Array, layers: _Array, measured_ms: _Array) -> None:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

        if len(measured_ms) < _LEAST_COMPOSED:
            raise MissingLayers(
                f"needs at least {_LEAST_COMPOSED} measured networks to learn from, got {len(measured_ms)}; measure "
                "more with `widthwise profile`"
            )
        self._line = _least_relative(_terms(sums_ms, layers), measured_ms)
        features = _composition(sums_ms, layers)
        self._center, self._scale = features.mean(axis=0), features.std(axis=0) + 1e-9
        left = np.log(measured_ms / (_terms(sums_ms, layers) @ self._line))
        kernel = ConstantKernel(1e-3, (1e-5, 0.1)) * RBF(3.0, (0.7, 30.0)) + WhiteKernel(4e-4, (1e-5, 1e-2))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # at its limit a scale doesn't matter
            self._rest = GaussianProcessRegressor(kernel).fit((features - self._center) / self._scale, left)

    def predict(self, sums_ms: _Array, layers: _Array) -> _Array:
        """Latencies in ms, shape ``(n,)``."""
        features = (_composition(sums_ms, layers) - self._center) / self._scale
        return np.asarray((_terms(sums_ms, layers) @ self._line) * np.exp(self._rest.predict(features)))


def _terms(sums_ms: _Array, layers: _Array) -> _Array:
    return np.stack([sums_ms, layers, np.ones(len(sums_ms))], axis=1)


def _composition(sums_ms: _Array, layers: _Array) -> _Array:
    return np.log(np.stack([sums_ms, layers, sums_ms / layers], axis=1))


def _least_relative(terms: _Array, measured_ms: _Array) -> _Array:
    """Non-negative weights of the least mean relative error, by iteratively reweighted least squares."""
    relative = terms / measured_ms[:, None]
    weights = np.ones(len(measured_ms))
    for _ in range(_REWEIGHTED):
        found, _ = nnls(relative * np.sqrt(weights)[:, None], np.sqrt(weights))
        weights = 1 / np.maximum(np.abs(relative @ found - 1), _SMALL_ERROR)
    return np.asarray(found)
