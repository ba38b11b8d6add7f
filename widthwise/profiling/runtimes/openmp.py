"""OpenMP's threads, which PyTorch's work leaves spinning.

After PyTorch has run a kernel on several threads, OpenMP's workers wait for the next one at full speed for a while, on
the cores that whatever is timed next needs. On two cores a ResNet-18 at half of its widths took 8 to 10 ms right after
the reference kernels, under ONNX Runtime and under OpenVINO, and 5 ms otherwise.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

__all__ = ["let_go"]

_SOFT = 1
"""``omp_pause_soft``: threads end, and what they know stays (OpenMP 5.0, omp_pause_resource_all)."""

_MAPS = Path("/proc/self/maps")


def let_go() -> None:
    """Ends OpenMP's idle threads; the next parallel work makes new ones.

    Nothing happens where no OpenMP that can do so is loaded, or the system doesn't say (only Linux does).
    """
    for pause in _pauses():
        pause(_SOFT)


@cache
def _pauses() -> tuple[Callable[[int], int], ...]:
    """``omp_pause_resource_all`` of each OpenMP in this process."""
    if not _MAPS.exists():
        return ()
    paths = {line.split()[-1] for line in _MAPS.read_text().splitlines()}
    found = []
    for path in sorted(path for path in paths if re.search(r"omp[^/]*\.so", path)):
        try:
            library = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        except OSError:  # replaced on disk, or not a library
            continue
        if hasattr(library, "omp_pause_resource_all"):
            found.append(library.omp_pause_resource_all)
    return tuple(found)
