"""What a layer's latency rests on: features of its channel counts for the roofline, and places for the process.

Channel counts are ``(n, axes)`` throughout, with 0, 1 or 2 axes: what the layer takes in and gives, where that differs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist

__all__ = ["TILES", "Channels", "features", "matern", "matern_between", "matern_sum", "places"]

TILES = (8, 16)
_GATES = (4, 8, 16)
"""Kernels leave a faster path where channels aren't a multiple of one of these: 4 is that of ONNX Runtime's blocked
layout, 16 that of AVX-512. In middling ResNet-18s convolutions to 8, 24 or 40 channels took 6 % (PyTorch) to 22 % (ONNX
Runtime) longer than those to multiples of 16 tell."""

_APART = 0.35
"""For every gate between two channel counts, in the unit of logarithms: so far apart they tell less of each other."""

_ROWS = 256
"""So many points are correlated at a time: what lies between stays in the cache."""

_Array = npt.NDArray[np.float64]
Channels = npt.NDArray[np.int64]


def features(channels: Channels) -> _Array:
    """Launch, traffic per axis, work; work also with channels padded to the tiles kernels compute in, and once more for
    each gate that an axis misses; shape ``(n, features)``."""
    count, axes = channels.shape
    if not axes:
        return np.ones((count, 1))
    found = np.empty((count, 1 + axes + (axes == 2) + len(TILES) + axes * len(_GATES)))
    found[:, 0] = 1.0
    found[:, 1 : 1 + axes] = channels
    work = found[:, 1 : 1 + axes].prod(axis=1)
    at = 1 + axes
    if axes == 2:
        found[:, at] = work
        at += 1
    for tile in TILES:
        found[:, at] = _padded(channels, tile).prod(axis=1)
        at += 1
    found[:, at:] = _missed(channels).reshape(count, axes * len(_GATES)) * work[:, None]
    return found


def places(channels: Channels, tile: int | Channels) -> _Array:
    """Logarithms of counts padded to ``tile`` (one for all, or one per row as ``(n, 1)``), and apart by the gates they
    miss; shape ``(n, 2 * axes)``."""
    return np.concatenate([np.log(_padded(channels, tile)), _APART * _missed(channels).sum(axis=2)], axis=1)


def matern_between(a: _Array, b: _Array, length: float) -> _Array:
    """Matérn 5/2 correlation of all places with all others, shape ``(len(a), len(b))``."""
    scaled = cdist(a, b)
    for begin in range(0, len(a), _ROWS):
        scaled[begin : begin + _ROWS] = matern(scaled[begin : begin + _ROWS], length)
    return np.asarray(scaled)


def matern_sum(a: _Array, b: _Array, length: float, weights: _Array) -> _Array:
    """:func:`matern_between` times weights of the second places, shape ``(len(a),)``; never held as a whole."""
    found = np.empty(len(a))
    for begin in range(0, len(a), _ROWS):
        rows = slice(begin, begin + _ROWS)
        found[rows] = matern(cdist(a[rows], b), length) @ weights
    return found


def matern(distance: _Array, length: float) -> _Array:
    """Matérn 5/2 correlation at distances."""
    scaled = distance * (np.sqrt(5.0) / length)
    return np.asarray((1 + scaled * (1 + scaled / 3)) * np.exp(-scaled))


def _missed(channels: Channels) -> npt.NDArray[np.bool_]:
    """Whether each axis misses each gate, shape ``(n, axes, gates)``."""
    return np.asarray(channels[:, :, None] % np.array(_GATES) != 0)


def _padded(channels: Channels, tile: int | Channels) -> Channels:
    return -(-channels // tile) * tile
