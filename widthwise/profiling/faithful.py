"""Does a runtime do what it was asked to? Some lower the precision or take more threads without a word.

A table made so would be a table of another target. Outputs are held against eager PyTorch's, and the threads that
worked are counted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from widthwise.luts.errors import InvalidTarget
from widthwise.profiling.runtimes.base import Candidate, NetworkSession
from widthwise.profiling.runtimes.torch_layers import tensors
from widthwise.profiling.target import Target

__all__ = ["TOLERANCES", "busy_threads", "output_error", "require_faithful"]

TOLERANCES = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2}
"""Largest error of a small network's outputs over the largest output, by dtype."""

_TF32 = 1e-2
"""GPUs multiply float32 in TF32 by default, and so does PyTorch's cuDNN."""

_TASKS = Path("/proc/self/task")
_WATCH_S = 0.1
_MOST_RUNS = 50
_BUSY_SHARE = 0.2


def require_faithful(session: NetworkSession, candidate: Candidate, target: Target) -> None:
    """Do nothing where the session computes what it should on as many threads as it may.

    In half precision the errors of deep networks differ too much from one to another to be judged; there, only the
    threads are.

    Raises:
        InvalidTarget: says what is different, and what may help.
    """
    if session.outputs() is None:
        return  # it only pretends to run
    busy = busy_threads(session.run) if target.device == "cpu" else None
    if busy is not None and busy > target.threads:
        raise InvalidTarget(
            f"{target} ran on {busy} threads: it ignores its thread setting. Look for OMP_NUM_THREADS and the like in "
            f"your environment, or profile with --threads {busy}"
        )
    error = output_error(session, candidate) if target.dtype == "float32" else None
    tolerance = TOLERANCES["float32"] if target.device == "cpu" else _TF32
    if error is not None and not error <= tolerance:
        raise InvalidTarget(
            f"{target} computes other numbers than PyTorch for {candidate.network.name}: outputs differ by {error:.1e} "
            f"of the largest, where {tolerance:.0e} is the most for float32. Either it lowers the precision silently "
            "(look for fast-math, bf16 or TF32 settings in its configuration), or the exported network is another one"
        )


def output_error(session: NetworkSession, candidate: Candidate) -> float | None:
    """Largest difference to eager PyTorch's outputs over their largest; infinite where their shapes differ.

    None where the runtime computes nothing, or PyTorch itself gives no finite numbers.
    """
    outputs = session.outputs()
    if outputs is None:
        return None
    with torch.inference_mode():
        expected = tensors(candidate.build().eval()(*candidate.example))
    if [output.shape for output in outputs] != [tensor.shape for tensor in expected]:
        return float("inf")
    largest = max(float(tensor.abs().max()) for tensor in expected)
    if not torch.isfinite(torch.tensor(largest)) or largest == 0:
        return None
    return max(float((output - tensor).abs().max()) / largest for output, tensor in zip(outputs, expected, strict=True))


def busy_threads(run: Callable[[], object]) -> int | None:
    """How many threads of this process worked while ``run`` was repeated for a moment; None where that can't be seen.

    Example:
        >>> busy_threads(lambda: sum(range(200_000))) in (1, None)
        True
    """
    before = _on_core_ns()
    start = time.perf_counter()
    runs = 0
    while runs < _MOST_RUNS and time.perf_counter() - start < _WATCH_S:
        run()
        runs += 1
    elapsed_ns = (time.perf_counter() - start) * 1e9
    after = _on_core_ns()
    if not after:
        return None
    spent = [spent_ns - before.get(thread, 0) for thread, spent_ns in after.items()]
    return sum(spent_ns > _BUSY_SHARE * elapsed_ns for spent_ns in spent)


def _on_core_ns() -> dict[str, int]:
    """Nanoseconds each thread of this process has been on a core."""
    times = {}
    with suppress(OSError):
        for thread in os.listdir(_TASKS):
            with suppress(OSError, ValueError, IndexError):  # a thread that has just ended
                times[thread] = int((_TASKS / thread / "schedstat").read_text().split()[0])
    return times
