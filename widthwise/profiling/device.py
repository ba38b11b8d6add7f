"""The device under test: its fingerprint, and what on it makes timing unreliable."""

from __future__ import annotations

import hashlib
import os
import platform
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Hazard", "fingerprint", "hazards", "load_average"]

_CPUINFO = Path("/proc/cpuinfo")
_CPUFREQ = Path("/sys/devices/system/cpu/cpu0/cpufreq")
_ISA = ("sse4_2", "avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "neon", "asimd", "sve")
_BUSY_LOAD = 0.5


@dataclass(frozen=True, slots=True)
class Hazard:
    """Something that makes timing unreliable, with its remedy."""

    what: str
    found: str
    remedy: str


def fingerprint(versions: dict[str, str] | None = None) -> dict[str, str | int]:
    """What identifies this device, and (keys ``info.…``) what is only recorded.

    Args:
        versions: of the runtime; they identify too, since a new runtime has new latencies.
    """
    fields: dict[str, str | int] = {
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": _cpu_model(),
        "cpu_isa": " ".join(flag for flag in _ISA if flag in _cpu_flags()),
        "cpu_flags": hashlib.sha256(" ".join(sorted(_cpu_flags())).encode()).hexdigest()[:12],
        "cores": os.cpu_count() or 1,
        "info.governor": _read(_CPUFREQ / "scaling_governor") or "unknown",
        "info.kernel": platform.release(),
        "info.python": platform.python_version(),
    }
    for name, version in (versions or {}).items():
        fields[f"runtime.{name}"] = version
    return fields


def hazards(threads: int = 1) -> list[Hazard]:
    """What makes timing unreliable here and now; empty on a machine that is fit for measuring."""
    found = []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = load_average()
    if load is not None and load > _BUSY_LOAD:
        found.append(Hazard("other work", f"load average {load:.2f}", "stop other programs while profiling"))
    if threads > cores:
        found.append(
            Hazard("too few cores", f"{threads} threads on {cores} usable cores", f"profile with --threads {cores}")
        )
    elif threads == cores and cores > 1:
        found.append(
            Hazard("no spare core", f"all {cores} cores are timed", "profile fewer threads, or expect wider intervals")
        )
    governor = _read(_CPUFREQ / "scaling_governor")
    if governor and governor != "performance":
        found.append(Hazard("clock changes", f"governor {governor}", "sudo cpupower frequency-set -g performance"))
    if "hypervisor" in _cpu_flags():
        found.append(
            Hazard("virtual machine", "neighbours share the cores", "prefer bare metal; widthwise corrects slow drift")
        )
    if platform.system() != "Linux":
        found.append(Hazard("no pinning", platform.system(), "threads can't be pinned here; close other programs"))
    return found


def load_average() -> float | None:
    """Runnable processes over the last minute, where the system tells."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _cpu_model() -> str:
    for line in _read(_CPUINFO).splitlines():
        if line.startswith(("model name", "Model", "Hardware")):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _cpu_flags() -> frozenset[str]:
    for line in _read(_CPUINFO).splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
