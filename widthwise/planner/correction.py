"""What turns a sum of layers into a whole network: a factor or a line, chosen by cross-validation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Correction", "choose_correction", "weighed"]

_FOLDS = 5

_LEAST_SHARE = 0.8
"""A line that puts the smallest network below this share of what it took is no correction."""

_OWN = 0.01
"""How far, in logarithms, a network's latency lies from what all others tell of it, noise aside."""

_DENSE_NOISE = 0.03
"""Of a single measurement, where there is only one."""

_Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Correction:
    """``scale·Σ layers + offset_ms``.

    The offset is what no layer holds (above zero), or what layers take less in small networks, whose weights and
    activations stay in the caches (below zero: 1.0 ms of MobileNetV2's 10.7 ms on a CPU with large caches).

    Example:
        >>> Correction(1.1, 0.5)(10.0)
        11.5
    """

    scale: float = 1.0
    offset_ms: float = 0.0

    def __call__(self, total_ms: float) -> float:
        return self.scale * total_ms + self.offset_ms


def choose_correction(sums_ms: _Array, measured_ms: _Array) -> Correction:
    """a·Σ or a·Σ + b: the simpler one unless the other's cross-validated relative error is less by more than 5 %.

    Σ itself is no candidate: its error may be within 5 % of the least and all of one sign (1 % on one table), which
    plans then inherit.

    Args:
        sums_ms: Σ layers, one per network.
        measured_ms: the networks themselves.
    """
    fits = (_fit_scale, _fit_line)
    errors = []
    for fit in fits:
        folds = []
        for fold in range(_FOLDS):
            out = np.arange(len(sums_ms)) % _FOLDS == fold
            if out.any() and (~out).sum() >= 3:
                correct = fit(sums_ms[~out], measured_ms[~out])
                folds.append(np.abs((correct.scale * sums_ms[out] + correct.offset_ms) / measured_ms[out] - 1))
        errors.append(float(np.mean(np.concatenate(folds))) if folds else math.inf)
    if not math.isfinite(min(errors)):
        return _fit_scale(sums_ms, measured_ms)
    best = next(index for index, error in enumerate(errors) if error <= 1.05 * min(errors))
    return fits[best](sums_ms, measured_ms)


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


def _fit_scale(sums_ms: _Array, measured_ms: _Array) -> Correction:
    return Correction(float(np.median(measured_ms / sums_ms)))


def _fit_line(sums_ms: _Array, measured_ms: _Array) -> Correction:
    design = np.stack([sums_ms, np.ones(len(sums_ms))], axis=1) / measured_ms[:, None]
    (scale, offset_ms), *_ = np.linalg.lstsq(design, np.ones(len(sums_ms)), rcond=None)
    if scale <= 0 or scale * sums_ms.min() + offset_ms < _LEAST_SHARE * measured_ms.min():
        return _fit_scale(sums_ms, measured_ms)
    return Correction(float(scale), float(offset_ms))
