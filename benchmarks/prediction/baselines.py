"""What others predict latency with, fitted on the same table as ours.

Each takes the network, the layers' surfaces and the measured networks that may be learnt from, and gives a function
from width vectors to milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from widthwise.luts.spec import Geometry, LayerSpec
from widthwise.luts.table import Surface
from widthwise.network.layers import macs
from widthwise.network.network import Network

__all__ = ["BASELINES"]

_Array = npt.NDArray[np.float64]
_Widths = Sequence[Mapping[str, int]]
_Predict = Callable[[_Widths], _Array]
_MOST_POINTS = 300


def flops(network: Network, surfaces: Mapping[Geometry, Surface], widths: _Widths, measured_ms: _Array) -> _Predict:
    """Proportional to the multiply-accumulates, as pruning by FLOPs supposes."""
    scale = float(np.median(measured_ms / _macs(network, widths)))
    return lambda asked: scale * _macs(network, asked)


def curve(network: Network, surfaces: Mapping[Geometry, Surface], widths: _Widths, measured_ms: _Array) -> _Predict:
    """Interpolated over the multiply-accumulates of the measured networks."""
    counts = _macs(network, widths)
    order = np.argsort(counts)
    return lambda asked: np.interp(_macs(network, asked), counts[order], measured_ms[order])


def convolutions(
    network: Network, surfaces: Mapping[Geometry, Surface], widths: _Widths, measured_ms: _Array
) -> _Predict:
    """The sum of convolutions and linear layers alone, each interpolated as ours are, times a constant."""
    from widthwise.planner.regressors import SurfaceRegressor

    fits = {g: SurfaceRegressor(s) for g, s in surfaces.items() if g.kind.startswith("conv") or g.kind == "linear"}
    return _scaled(network, {geometry: fit.predict for geometry, fit in fits.items()}, widths, measured_ms)


def rbf(network: Network, surfaces: Mapping[Geometry, Surface], widths: _Widths, measured_ms: _Array) -> _Predict:
    """All layers, each a cubic radial basis function through its points; the plain sum."""
    from scipy.interpolate import RBFInterpolator

    def fit(surface: Surface) -> Callable[[npt.NDArray[np.int64]], _Array]:
        points, inverse = np.unique(surface.channels, axis=0, return_inverse=True)
        values = np.bincount(inverse.reshape(-1), surface.latency_ms) / np.bincount(inverse.reshape(-1))
        if points.shape[1] == 0 or len(points) <= points.shape[1] + 1:
            mean = float(values.mean())
            return lambda channels: np.full(len(channels), mean)
        chosen = np.unique(np.linspace(0, len(points) - 1, _MOST_POINTS).astype(int))
        try:
            found = RBFInterpolator(points[chosen], values[chosen], kernel="cubic")
        except np.linalg.LinAlgError:  # all points on a line
            found = RBFInterpolator(points[chosen], values[chosen], kernel="cubic", degree=0, smoothing=1e-6)
        return lambda channels: np.asarray(found(channels))

    fits = {geometry: fit(surface) for geometry, surface in surfaces.items()}
    return lambda asked: _sums(network, fits, asked)


def regressor(network: Network, surfaces: Mapping[Geometry, Surface], widths: _Widths, measured_ms: _Array) -> _Predict:
    """One random forest for all kinds of layers, on shapes, work and traffic; the sum times a constant."""
    from sklearn.ensemble import RandomForestRegressor

    kinds = sorted({geometry.kind for geometry in surfaces})

    def features(geometry: Geometry, channels: npt.NDArray[np.int64]) -> _Array:
        return np.array([_features(LayerSpec(geometry, tuple(map(int, row))), kinds) for row in channels])

    rows = np.concatenate([features(geometry, surface.channels) for geometry, surface in surfaces.items()])
    target = np.log(np.concatenate([surface.latency_ms for surface in surfaces.values()]))
    forest = RandomForestRegressor(100, min_samples_leaf=2, random_state=0, n_jobs=1).fit(rows, target)
    fits = {
        geometry: (lambda channels, geometry=geometry: np.exp(forest.predict(features(geometry, channels))))
        for geometry in surfaces
    }
    return _scaled(network, fits, widths, measured_ms)


BASELINES: dict[str, Callable[..., _Predict]] = {
    "FLOPs": flops,
    "1-D over FLOPs": curve,
    "convolutions only": convolutions,
    "cubic RBF": rbf,
    "one forest": regressor,
}


def _macs(network: Network, widths: _Widths) -> _Array:
    return np.array([network.macs(chosen) for chosen in widths], dtype=float)


def _features(spec: LayerSpec, kinds: Sequence[str]) -> list[float]:
    geometry = spec.geometry
    inputs, outputs = (spec.channels[0], spec.channels[-1]) if spec.channels else (1, 1)
    read = sum(float(np.prod([size or inputs for size in shape])) for shape in geometry.inputs)
    written = sum(float(np.prod([size or outputs for size in shape])) for shape in geometry.outputs)
    kind = [float(geometry.kind == other) for other in kinds]
    return [*kind, inputs, outputs, read, written, float(macs(spec))]


def _scaled(network: Network, fits: Mapping[Geometry, Any], widths: _Widths, measured_ms: _Array) -> _Predict:
    scale = float(np.median(measured_ms / _sums(network, fits, widths)))
    return lambda asked: scale * _sums(network, fits, asked)


def _sums(network: Network, fits: Mapping[Geometry, Any], widths: _Widths) -> _Array:
    total = np.zeros(len(widths))
    for layer in network.layers:
        if layer.geometry in fits:
            channels = np.array([layer.spec(chosen).channels for chosen in widths], dtype=np.int64)
            points, inverse = np.unique(channels.reshape(len(widths), -1), axis=0, return_inverse=True)
            total += fits[layer.geometry](points)[inverse.reshape(-1)]
    return total
