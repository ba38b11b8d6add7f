"""What turns a sum of layers into a whole network: a line, or two, chosen by cross-validation.

The allocator adds up, so it needs one line. The least of rising lines is within a budget exactly where the right one of
them is, so one line per budget is all that it needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Correction", "Line", "choose_correction", "weighed"]

_FOLDS = 5

_FOR_A_LINE = 10
"""From fewer networks only a factor is taken: a line through eight VGG-16s was 3 % off where the factor was 2 %."""

_LEAST_SHARE = 0.8
"""A line that puts the smallest network below this share of what it took is no correction."""

_BENDS = np.linspace(0.1, 0.6, 11)
"""Quantiles of the sums at which a bend is tried."""

_LEAST_BELOW, _LEAST_ABOVE = 3, 5
"""Networks on either side of a bend."""

_OWN = 0.01
"""How far, in logarithms, a network's latency lies from what all others tell of it, noise aside."""

_DENSE_NOISE = 0.03
"""Of a single measurement, where there is only one."""

_ROUNDS = 20
_SMALL_ERROR = 0.004

_Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Line:
    """``scale·Σ layers + offset_ms``, with a scale above zero.

    The offset is what no layer holds (above zero), or what layers take less in small networks, whose weights and
    activations stay in the caches (below zero: 1.0 ms of MobileNetV2's 10.7 ms on a CPU with large caches).
    """

    scale: float = 1.0
    offset_ms: float = 0.0

    def __call__(self, sums_ms: _Array) -> _Array:
        return self.scale * sums_ms + self.offset_ms

    def sum_at(self, latency_ms: float) -> float:
        """The Σ layers that gives this latency."""
        return (latency_ms - self.offset_ms) / self.scale


@dataclass(frozen=True, slots=True)
class Correction:
    """The least of one or two lines.

    With two, the first holds from the bend on, and the second, which is steeper, below: small networks stay in the
    caches, and only they. EfficientNet-B0's layers exceed it by 16 % at a fifth of its latency on ONNX Runtime, and
    from two fifths on by nothing.

    Example:
        >>> bent = Correction((Line(1.0), Line(1.5, -2.0)))
        >>> float(bent(np.array(10.0))), float(bent(np.array(2.0)))
        (10.0, 1.0)
        >>> bent.at(1.0)
        Line(scale=1.5, offset_ms=-2.0)
    """

    lines: tuple[Line, ...] = (Line(),)

    def __call__(self, sums_ms: _Array) -> _Array:
        return np.asarray(np.min([line(sums_ms) for line in self.lines], axis=0))

    def at(self, latency_ms: float) -> Line:
        """The line that is within this latency exactly where the least of all is."""
        return max(self.lines, key=lambda line: line.sum_at(latency_ms))

    def times(self, factor: float) -> Correction:
        """Of latencies that are greater by a factor."""
        return Correction(tuple(Line(line.scale * factor, line.offset_ms * factor) for line in self.lines))


def choose_correction(sums_ms: _Array, measured_ms: _Array) -> Correction:
    """a·Σ + b of the least mean relative error, or two lines where theirs is less by 5 % in cross-validation; for a
    handful of networks a·Σ.

    Neither Σ itself nor a factor alone is a candidate for more than that: each may be within 5 % of the least error and
    err to one side, for all networks or for small ones, which plans then inherit.

    Args:
        sums_ms: Σ layers, one per network.
        measured_ms: the networks themselves.
    """
    if len(sums_ms) < _FOR_A_LINE:
        return _fit_scale(sums_ms, measured_ms)
    line, bent = (_error(fit, sums_ms, measured_ms) for fit in (_fit_line, _fit_bent))
    return (_fit_bent if 1.05 * bent < line else _fit_line)(sums_ms, measured_ms)


def weighed(measured_ms: _Array, predicted_ms: float) -> float:
    """One network's latency from its measurements and its prediction, each as much as it is certain.

    All budgets and verifications are shares of the dense network, and on a noisy machine its five measurements lay 10 %
    apart while forty networks told it to 1 %.

    Example:
        >>> weighed(np.array([10.0, 11.0]), 10.0) < weighed(np.array([10.49, 10.51]), 10.0) < 10.5
        True
    """
    if not len(measured_ms):
        return predicted_ms
    errors = np.log(measured_ms / predicted_ms)
    noise = max(float(np.std(errors, ddof=1)), 1e-3) if len(errors) > 1 else _DENSE_NOISE
    weight = _OWN**2 / (_OWN**2 + noise**2 / len(errors))
    return predicted_ms * math.exp(weight * float(np.median(errors)))


def _error(fit: Callable[[_Array, _Array], Correction], sums_ms: _Array, measured_ms: _Array) -> float:
    """Mean relative error on networks that weren't fitted; infinite where there are too few for that."""
    errors = []
    for fold in range(_FOLDS):
        out = np.arange(len(sums_ms)) % _FOLDS == fold
        if out.any() and (~out).sum() >= 3:
            errors.append(np.abs(fit(sums_ms[~out], measured_ms[~out])(sums_ms[out]) / measured_ms[out] - 1))
    return float(np.mean(np.concatenate(errors))) if errors else math.inf


def _fit_scale(sums_ms: _Array, measured_ms: _Array) -> Correction:
    return Correction((Line(float(np.median(measured_ms / sums_ms))),))


def _fit_line(sums_ms: _Array, measured_ms: _Array) -> Correction:
    design = np.stack([sums_ms, np.ones(len(sums_ms))], axis=1) / measured_ms[:, None]
    scale, offset_ms = _least_absolute(design, np.ones(len(sums_ms)))
    if scale <= 0 or scale * sums_ms.min() + offset_ms < _LEAST_SHARE * measured_ms.min():
        return _fit_scale(sums_ms, measured_ms)
    return Correction((Line(float(scale), float(offset_ms)),))


def _fit_bent(sums_ms: _Array, measured_ms: _Array) -> Correction:
    """A factor from the bend on, and below it a steeper line that meets it there."""
    best, least = _fit_scale(sums_ms, measured_ms), math.inf
    for bend_ms in np.unique(np.quantile(sums_ms, _BENDS)):
        below = sums_ms < bend_ms
        if below.sum() < _LEAST_BELOW or (~below).sum() < _LEAST_ABOVE:
            continue
        scale = float(np.median((measured_ms / sums_ms)[~below]))
        before = (sums_ms[below] - bend_ms) / measured_ms[below]
        (steeper,) = _least_absolute(before[:, None], 1 - scale * bend_ms / measured_ms[below])
        found = Correction((Line(scale), Line(float(steeper), float((scale - steeper) * bend_ms))))
        error = float(np.mean(np.abs(found(sums_ms) / measured_ms - 1)))
        if steeper > scale and found(sums_ms.min()) >= _LEAST_SHARE * measured_ms.min() and error < least:
            best, least = found, error
    return best


def _least_absolute(design: _Array, target: _Array) -> _Array:
    """What leaves the least mean absolute error, by iteratively reweighted least squares.

    Small networks in a loud minute were 8 to 13 % off, and their squares moved the line for all others.
    """
    weights = np.ones(len(target))
    for _ in range(_ROUNDS):
        roots = np.sqrt(weights)
        found, *_ = np.linalg.lstsq(design * roots[:, None], target * roots, rcond=None)
        weights = 1 / np.maximum(np.abs(design @ found - target), _SMALL_ERROR)
    return np.asarray(found)
