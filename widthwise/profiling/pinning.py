"""Pinning: the timed threads stay on the cores they began on.

A thread that moves leaves its caches behind. Cores are chosen by how idle they are, one hardware thread of each
physical core first.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["choose_cores", "pinned"]

_LOOK_S = 0.1
_STAT = Path("/proc/stat")
_SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
_IDLE = (3, 4)
"""Positions of idle and I/O waiting time among the numbers of a ``cpuN`` line."""


@contextmanager
def pinned(threads: int) -> Iterator[tuple[int, ...]]:
    """Keeps all threads of this process on ``threads`` cores; gives the cores, none where that can't be done.

    Example:
        >>> with pinned(1) as cores:
        ...     len(cores) in (0, 1)
        True
    """
    if not hasattr(os, "sched_setaffinity"):  # macOS, Windows
        yield ()
        return
    before = os.sched_getaffinity(0)
    if threads >= len(before):
        yield tuple(sorted(before))
        return
    cores = choose_cores(threads, before, _idle_shares(before), {core: _siblings(core) for core in before})
    _place(cores)
    try:
        yield cores
    finally:
        _place(before)


def choose_cores(
    count: int, allowed: Collection[int], idle: Mapping[int, float], siblings: Mapping[int, Collection[int]]
) -> tuple[int, ...]:
    """The ``count`` idlest of the allowed cores; one that shares a physical core with a chosen one comes last.

    Idleness counts in tenths, so that equals are taken in order and the choice repeats itself.

    Example:
        >>> choose_cores(2, {0, 1, 2, 3}, {0: 0.2, 1: 1.0, 2: 0.98, 3: 1.0}, {1: {1, 3}, 3: {1, 3}})
        (1, 2)
    """
    chosen: list[int] = []
    while len(chosen) < count:
        taken = {sibling for core in chosen for sibling in siblings.get(core, ())}
        rest = [core for core in allowed if core not in chosen]
        chosen.append(min(rest, key=lambda core: (core in taken, -round(idle.get(core, 0.0), 1), core)))
    return tuple(sorted(chosen))


def _place(cores: Collection[int]) -> None:
    """Moves every thread of this process; affinity belongs to threads, and pools of workers may exist already."""
    try:
        threads = [int(name) for name in os.listdir("/proc/self/task")]
    except (OSError, ValueError):
        threads = [0]
    for thread in threads:
        with suppress(OSError):  # a thread that has just ended
            os.sched_setaffinity(thread, cores)


def _idle_shares(cores: Collection[int]) -> dict[int, float]:
    before = _times()
    time.sleep(_LOOK_S)
    after = _times()
    shares = {}
    for core in cores:
        if core in before and core in after:
            idle, total = (now - then for now, then in zip(after[core], before[core], strict=True))
            shares[core] = idle / total if total else 1.0
    return shares


def _times() -> dict[int, tuple[int, int]]:
    """(idle, all) clock ticks of each core."""
    times = {}
    with suppress(OSError, ValueError, IndexError):
        for line in _STAT.read_text().splitlines():
            name, *numbers = line.split()
            if name.startswith("cpu") and name != "cpu":
                ticks = [int(number) for number in numbers]
                times[int(name[3:])] = (sum(ticks[i] for i in _IDLE), sum(ticks[:8]))
    return times


def _siblings(core: int) -> set[int]:
    """Hardware threads of the same physical core, itself included; from ``0,4`` or ``0-1``."""
    found = {core}
    with suppress(OSError, ValueError):
        for part in Path(_SIBLINGS.format(core)).read_text().strip().split(","):
            low, _, high = part.partition("-")
            found |= set(range(int(low), int(high or low) + 1))
    return found
