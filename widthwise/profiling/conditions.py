"""What the host did while something was timed, read from the system without special rights.

Sources: wall against CPU time, ``getrusage`` (involuntary context switches, page faults), ``/proc/stat`` (time stolen
by a hypervisor), the load average and cpufreq's current clock; for GPUs NVML. What a system doesn't tell is None.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from widthwise.luts.measurement import Conditions
from widthwise.profiling.nvml import SLOWING, Gpu

__all__ = ["is_contaminated", "watch_gpu", "watch_host"]

_LEAST_CPU_SHARE = 0.95
"""A timed thread that got less of the wall time was kept waiting."""

_ENOUGH_CPU_SHARE = 0.75
"""But the median of many runs shrugs off a few that were kept waiting; then this is enough."""

_MANY = 5
_MOST_STEAL_SHARE = 0.05

_LEAST_CLOCK_SHARE = 0.75
"""A GPU whose multiprocessors run below this share of their highest clock isn't at its usual pace (nvbench's rule)."""

_LONG_ENOUGH_S = 0.02
"""Shares of less wall time than this are worth nothing: clocks tick in milliseconds."""

_STAT = Path("/proc/stat")
_CLOCK = "/sys/devices/system/cpu/cpu{}/cpufreq/scaling_cur_freq"
_STEAL = 7
"""Position of stolen time among the numbers of a ``cpu`` line."""


def watch_host(threads: int) -> Callable[[], Conditions]:
    """Begins to watch; the call it gives ends that and says what happened since.

    Args:
        threads: that are timed. CPU time is compared with wall time for one thread only: the workers of a pool
            may rightly wait for each other.

    Example:
        >>> finish = watch_host(1)
        >>> _ = sum(range(10**6))
        >>> finish().switches is None or finish().switches >= 0
        True
    """
    wall_s, cpu_s, before, (stolen, ticks) = time.perf_counter(), time.thread_time(), _usage(), _ticks()

    def finish() -> Conditions:
        elapsed_s, used_s = time.perf_counter() - wall_s, time.thread_time() - cpu_s
        (switches, faults), (stolen_now, ticks_now) = _usage(), _ticks()
        return Conditions(
            cpu_share=used_s / elapsed_s if threads == 1 and elapsed_s >= _LONG_ENOUGH_S else None,
            switches=switches - before[0] if switches is not None and before[0] is not None else None,
            page_faults=faults - before[1] if faults is not None and before[1] is not None else None,
            steal_share=(stolen_now - stolen) / (ticks_now - ticks) if ticks_now > ticks else None,
            load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
            clock_mhz=_clock_mhz(),
        )

    return finish


def watch_gpu(gpu: Gpu, threads: int) -> Callable[[], Conditions]:
    """:func:`watch_host`, and what the GPU's driver says when it ends: its clock is that of work just done.

    Raises:
        GpuLost: (the call it gives) the GPU doesn't answer.
    """
    finish_host = watch_host(threads)

    def finish() -> Conditions:
        host, state = finish_host(), gpu.state()
        return replace(
            host,
            clock_mhz=state.clock_mhz,
            clock_share=state.clock_share,
            slowed_by=state.reasons,
            gpu_others=state.others,
        )

    return finish


def is_contaminated(conditions: Conditions, runs: int) -> bool:
    """Whether others took the core away while a block of so many runs was taken, or the GPU was slowed down."""
    least = _LEAST_CPU_SHARE if runs < _MANY else _ENOUGH_CPU_SHARE
    waited = conditions.cpu_share is not None and conditions.cpu_share < least
    stolen = conditions.steal_share is not None and conditions.steal_share > _MOST_STEAL_SHARE
    slow = conditions.clock_share is not None and conditions.clock_share < _LEAST_CLOCK_SHARE
    return waited or stolen or slow or bool((conditions.slowed_by or 0) & SLOWING)


def _usage() -> tuple[int, int] | tuple[None, None]:
    """(involuntary switches, page faults) of this thread so far."""
    try:
        import resource
    except ImportError:  # Windows
        return None, None
    usage = resource.getrusage(getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF))
    return usage.ru_nivcsw, usage.ru_minflt


def _ticks() -> tuple[int, int]:
    """(stolen, all) clock ticks of all cores since the system started."""
    try:
        numbers = [int(text) for text in _STAT.read_text().partition("\n")[0].split()[1:]]
        return (numbers[_STEAL], sum(numbers[: _STEAL + 1]))
    except (OSError, ValueError, IndexError):
        return 0, 0


def _clock_mhz() -> float | None:
    if not hasattr(os, "sched_getaffinity"):
        return None
    try:
        return int(Path(_CLOCK.format(min(os.sched_getaffinity(0)))).read_text()) / 1e3
    except (OSError, ValueError):
        return None
