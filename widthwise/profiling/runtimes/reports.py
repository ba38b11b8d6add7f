"""What runtimes report of their kernels, brought back to the network's layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from widthwise.profiling.runtimes.base import Session
from widthwise.profiling.runtimes.deployment import operation_in

__all__ = ["Kernel", "LoneLayer", "by_layer", "runs_for_a_share"]

_SHARE_S = 0.03
_SHARE_RUNS = (8, 60)
_RESOLUTION_S = 2e-6
"""Reports count whole µs."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel of one run.

    Args:
        names: what it is called, and whatever else names operations it computes; the first that does counts.
        seconds: it took.
        copies: whether it only moves data into another layout.
        forward: whether, where no operation is named, it serves what comes next rather than what came before.
    """

    names: tuple[str, ...]
    seconds: float
    copies: bool = False
    forward: bool = False

    def owner(self, owner_of: Mapping[str, int]) -> int | None:
        """Index of the layer it computes, where it names one."""
        owners = (owner_of.get(operation_in(name) or "") for name in self.names)
        return next((owner for owner in owners if owner is not None), None)


def by_layer(run: Sequence[Kernel], owner_of: Mapping[str, int]) -> list[float]:
    """Seconds per layer of one run; every kernel counts with exactly one layer.

    Args:
        run: in order of execution.
        owner_of: operation → index of its layer; see :func:`widthwise.profiling.runtimes.deployment.owners`.

    Example:
        >>> run = [
        ...     Kernel(("into blocks",), 1.0, copies=True, forward=True),
        ...     Kernel(("/op_conv/Conv_nchwc",), 5.0),
        ...     Kernel(("out of blocks",), 2.0, copies=True),
        ...     Kernel(("/op_fc/Gemm",), 3.0),
        ... ]
        >>> by_layer(run, {"conv": 0, "relu": 0, "fc": 1})
        [8.0, 3.0]
    """
    known = [kernel.owner(owner_of) for kernel in run]
    seconds = [0.0] * (max(owner_of.values()) + 1)
    for position, kernel in enumerate(run):
        before = next((owner for owner in known[position::-1] if owner is not None), None)
        after = next((owner for owner in known[position:] if owner is not None), None)
        first, second = (after, before) if kernel.forward else (before, after)
        owner = first if first is not None else second
        if owner is None:
            raise ValueError(f"no kernel of the report names an operation; the first is {run[0].names}")
        seconds[owner] += kernel.seconds
    return seconds


def runs_for_a_share(once_s: float) -> int:
    """How often a layer alone is profiled to learn which share of a call its kernels are."""
    least, most = _SHARE_RUNS
    return min(most, max(least, round(_SHARE_S / max(once_s, 1e-9))))


class LoneLayer(Session):
    """A call of a one-layer model, less what isn't the layer: the call itself, and copies between layouts, which a
    network makes once and not around each layer.

    The layer's share of a call is what its kernels report over a call that reports nothing: one that does takes half as
    long again where a layer takes 20 µs. A call in which the core was away doesn't count.

    Args:
        call: runs the model; seconds.
        calls_s: such calls, in turns with profiled ones.
        runs: what the kernels of the profiled ones took.
    """

    def __init__(self, call: Callable[[], float], calls_s: Sequence[float], runs: Sequence[Sequence[Kernel]]) -> None:
        self._call = call
        kernels_s = [sum(kernel.seconds for kernel in run if not kernel.copies) for run in runs]
        self._share = _undisturbed_mean(kernels_s) / _undisturbed_mean(calls_s)

    def run(self) -> float:
        return self._call() * self._share


def _undisturbed_mean(seconds: Sequence[float]) -> float:
    """Without what is beyond twice the median. A mean, since of a kernel shorter than 1 µs most reports say 0."""
    values = np.array(seconds)
    return float(values[values <= 2 * np.median(values) + _RESOLUTION_S].mean())
