"""By how much what is timed slows down with the reference kernels.

A ratio takes it that a network slows down exactly as the reference does. On shared machines many slow down by half as
much (ONNX Runtime's and OpenVINO's larger networks) or as much (MobileNetV2, eager PyTorch), by the hour: a plain ratio
then corrects twice what it should, and what the reading itself is off goes into it in full. The blocks of one
interleaved run tell the exponent: latencies of each candidate against the readings beside them. That is the regression
estimator of a control variate (Lavenberg and Welch, Management Science 27, 1981), in the log domain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from widthwise.luts.measurement import Block, Conditions

__all__ = ["counted", "counting", "elasticity"]

_USUAL, _SPREAD = 1.0, 0.3
"""What is taken for granted (mean and standard deviation) before blocks tell."""

_NORMAL = 1.2533
"""Standard deviation over mean absolute deviation."""

_ROUNDS = 20
_CLOSE = 1e-6

_Array = npt.NDArray[np.float64]


def elasticity(candidates: Sequence[Sequence[Block]]) -> float:
    """By how many per cent the latencies of one interleaved run go up where the reference goes up by one.

    The least absolute deviation from lines of one slope, each candidate's at a height of its own, drawn towards 1 as
    far as the blocks leave it in doubt; 1 where the reference stood still.

    Args:
        candidates: the blocks of each, with the reference as it was read.

    Example:
        >>> round(elasticity([[Block(2.0, 1.0), Block(2.0 * 1.21, 1.1), Block(2.0 * 1.44, 1.2)]]), 6)
        2.0
    """
    taken = [np.log([(block.latency_ms, block.reference_ms) for block in blocks]) for blocks in candidates if blocks]
    latencies = [logarithms[:, 0] for logarithms in taken]
    readings = [logarithms[:, 1] - np.median(logarithms[:, 1]) for logarithms in taken]
    told = math.fsum(float(np.var(reading)) * len(reading) for reading in readings)
    freedom = sum(map(len, latencies)) - len(latencies) - 1
    if told < 1e-12 or freedom < 1:
        return _USUAL
    slope, left = _fitted(latencies, readings)
    variance = (_NORMAL * float(np.abs(left).sum()) / freedom) ** 2
    doubt = variance / told  # of the slope
    return max(0.0, (slope * _SPREAD**2 + _USUAL * doubt) / (_SPREAD**2 + doubt))


def counted(candidates: Sequence[Sequence[Block]]) -> list[list[Block]]:
    """The blocks of one interleaved run with the reference as it counts for what was timed, see :func:`counting`. The
    reading stays in their conditions.

    Example:
        >>> [[block, *_]] = counted([[Block(3.0, 1.0), Block(3.3, 1.21), Block(3.63, 1.4641)]])
        >>> round(block.reference_ms, 6), block.conditions.read_ms
        (1.1, 1.0)
    """
    counts_ms = counting(candidates)
    return [[_counted(block, counts_ms(block.reference_ms)) for block in blocks] for blocks in candidates]


def counting(candidates: Sequence[Sequence[Block]]) -> Callable[[float], float]:
    """What a reading of the reference, in ms, counts as in one interleaved run: around its median over the run, by
    :func:`elasticity`."""
    readings = [block.reference_ms for blocks in candidates for block in blocks]
    if not readings:
        return lambda read_ms: read_ms
    share, usual_ms = elasticity(candidates), float(np.median(readings))
    return lambda read_ms: float(usual_ms * (read_ms / usual_ms) ** share)


def _counted(block: Block, reference_ms: float) -> Block:
    conditions = replace(block.conditions or Conditions(), read_ms=block.reference_ms)
    return replace(block, reference_ms=reference_ms, conditions=conditions)


def _fitted(latencies: Sequence[_Array], readings: Sequence[_Array]) -> tuple[float, _Array]:
    """The slope, and what the lines leave; heights and slope in turns."""
    slope, along = _USUAL, np.concatenate(readings)
    for _ in range(_ROUNDS):
        pairs = zip(latencies, readings, strict=True)
        raised = np.concatenate([latency - np.median(latency - slope * reading) for latency, reading in pairs])
        before, slope = slope, _least_absolute(raised, along)
        if abs(slope - before) < _CLOSE:
            break
    return slope, raised - slope * along


def _least_absolute(values: _Array, along: _Array) -> float:
    """The slope through the origin that leaves the least absolute deviation: a weighted median of the ratios."""
    moved = np.abs(along) > 0
    slopes, weights = values[moved] / along[moved], np.abs(along[moved])
    order = np.argsort(slopes)
    reached = np.cumsum(weights[order])
    return float(slopes[order][np.searchsorted(reached, reached[-1] / 2)])
