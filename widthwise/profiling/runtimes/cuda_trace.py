"""What ran on a GPU during a call, whoever launched it: from CUPTI, through PyTorch's profiler.

Libraries whose own reports stop at the launch (ONNX Runtime) say on the host's clock when each of their steps began;
the trace says on the same clock when each kernel was launched. A kernel belongs to the last step begun before that.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from widthwise.luts.errors import InvalidTarget

__all__ = ["GpuWork", "Step", "in_steps", "recorded", "work_in"]

_ON_GPU = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
_ON_HOST = frozenset({"cuda_runtime", "cuda_driver"})


@dataclass(frozen=True, slots=True)
class GpuWork:
    """One kernel, copy or fill; times in ns since 1970.

    Args:
        launched_ns: on the host; None where the trace doesn't say.
    """

    name: str
    launched_ns: int | None
    begin_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True)
class Step:
    """What a library says of itself: at ``begin_ns`` since 1970 it began with ``name``."""

    name: str
    begin_ns: int


def recorded(call: Callable[[], object]) -> list[GpuWork]:
    """What a call runs on the GPU, in order of execution; the call must wait for its end.

    Raises:
        InvalidTarget: nothing is recorded, because the driver doesn't let this process see its kernels.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns that each recording forgets the one before
        with profile(activities=[ProfilerActivity.CUDA]) as record:
            call()
    with tempfile.TemporaryDirectory(prefix="widthwise-") as folder:
        path = Path(folder) / "trace.json"
        record.export_chrome_trace(str(path))
        found = work_in(json.loads(path.read_text()))
    if not found:
        raise InvalidTarget(
            "PyTorch's profiler sees no kernels on this GPU, so layers can't be timed. If other programs profile it, "
            "end them; if the driver lets only administrators profile, run as one or set "
            "NVreg_RestrictProfilingToAdminUsers=0. The target torch:cuda needs no profiler"
        )
    return found


def work_in(trace: Mapping[str, Any]) -> list[GpuWork]:
    """The GPU's work in a trace as PyTorch exports it (Chrome's format, µs), in order of execution.

    Example:
        >>> launch = {"cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": 1.0, "args": {"correlation": 7}}
        >>> kernel = {"cat": "kernel", "name": "relu", "ts": 5.0, "dur": 3.0, "args": {"correlation": 7}}
        >>> work_in({"baseTimeNanoseconds": 100, "traceEvents": [launch, kernel]})
        [GpuWork(name='relu', launched_ns=1100, begin_ns=5100, end_ns=8100)]
    """
    base = int(trace.get("baseTimeNanoseconds", 0))
    events = [event for event in trace["traceEvents"] if event.get("ph", "X") == "X"]
    launches = {
        event["args"]["correlation"]: base + _ns(event["ts"])
        for event in events
        if event.get("cat") in _ON_HOST and "correlation" in event.get("args", {})
    }
    found = []
    for event in events:
        if event.get("cat") in _ON_GPU:
            begin = base + _ns(event["ts"])
            launched = launches.get(event["args"].get("correlation"))
            found.append(GpuWork(event["name"], launched, begin, begin + _ns(event["dur"])))
    return sorted(found, key=lambda work: work.begin_ns)


def in_steps(work: Sequence[GpuWork], steps: Sequence[Step], begin_ns: int) -> list[tuple[str, float]]:
    """Step and seconds of each piece of work: from the end of the piece before, or from ``begin_ns``, to its own.

    So a GPU that waits for a launch waits for the step that launches, and all seconds together last from the beginning
    to the end of the last piece.

    Args:
        steps: in order.

    Example:
        >>> work = [GpuWork("gemm", 120, 150, 250), GpuWork("relu", 220, 260, 300)]
        >>> [(name, round(s * 1e9)) for name, s in in_steps(work, [Step("fc", 100), Step("act", 210)], begin_ns=90)]
        [('fc', 160), ('act', 50)]
    """
    begun = [step.begin_ns for step in steps]
    found = []
    name = steps[0].name if steps else ""
    end_ns = begin_ns
    for piece in work:
        if piece.launched_ns is not None and steps:
            name = steps[max(0, bisect_right(begun, piece.launched_ns) - 1)].name
        found.append((name, max(0, piece.end_ns - end_ns) * 1e-9))
        end_ns = max(end_ns, piece.end_ns)
    return found


def _ns(micros: float | str) -> int:
    return round(float(micros) * 1000)
