"""The device under test: its fingerprint, and what on it makes timing unreliable."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from widthwise.profiling.memory import can_keep_memory
from widthwise.profiling.nvml import SLOWING, Gpu, GpuLost, GpuState, NoGpu, open_gpu, reasons_in

__all__ = ["Hazard", "fingerprint", "gpu_fields", "gpu_hazards", "hazards", "load_average"]

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


def fingerprint(
    versions: Mapping[str, str] | None = None, more: Mapping[str, str | int] | None = None
) -> dict[str, str | int]:
    """What identifies this device, and (keys ``info.…``) what is only recorded.

    Args:
        versions: of the runtime; they identify too, since a new runtime has new latencies.
        more: fields of devices beyond the CPU; see :meth:`Runtime.device_fields`.
    """
    fields: dict[str, str | int] = {
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": _cpu_model(),
        "cpu_isa": " ".join(flag for flag in _ISA if flag in _cpu_flags()),
        "cpu_flags": hashlib.sha256(" ".join(sorted(_cpu_flags())).encode()).hexdigest()[:12],
        "cores": os.cpu_count() or 1,
        "info.usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "info.governor": _read(_CPUFREQ / "scaling_governor") or "unknown",
        "info.kernel": platform.release(),
        "info.python": platform.python_version(),
    }
    fields.update(more or {})
    for name, version in (versions or {}).items():
        fields[f"runtime.{name}"] = version
    return fields


def gpu_fields() -> dict[str, str | int]:
    """The first GPU's part of a fingerprint; without one, why."""
    try:
        gpu = open_gpu()
        return gpu.identity() if isinstance(gpu, Gpu) else {"info.gpu": gpu.reason}
    except GpuLost as error:
        return {"info.gpu": str(error)}


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
    if not can_keep_memory():
        found.append(
            Hazard(
                "memory given back",
                "a C library other than glibc",
                "networks of many small layers vary more; preload jemalloc or tcmalloc for timing and for deployment",
            )
        )
    return found + _gpu_hazards()


def _gpu_hazards() -> list[Hazard]:
    try:
        gpu = open_gpu()
        if isinstance(gpu, NoGpu):
            return [Hazard("no GPU", gpu.reason, gpu.remedy)] if gpu.remedy else []
        return gpu_hazards(gpu.state())
    except GpuLost as error:
        return [Hazard("GPU lost", "it stopped answering", str(error).partition("; ")[2])]


def gpu_hazards(state: GpuState) -> list[Hazard]:
    """What about a GPU in this state makes timing unreliable.

    Example:
        >>> [hazard.what for hazard in gpu_hazards(GpuState(900, 1800, 0x40, 0, True, False))]
        ['GPU slowed down']
    """
    found = []
    if state.reasons is not None and state.reasons & SLOWING:
        clock = f" at {state.clock_mhz:.0f} MHz" if state.clock_mhz else ""
        remedy = "cool it, and check its power supply; `nvidia-smi -q -d PERFORMANCE` says more"
        found.append(Hazard("GPU slowed down", ", ".join(reasons_in(state.reasons & SLOWING)) + clock, remedy))
    if state.others:
        found.append(Hazard("GPU shared", f"{state.others} other processes compute on it", "stop them; see nvidia-smi"))
    if state.persistent is False:
        found.append(Hazard("GPU sleeps", "its driver unloads between processes", "sudo nvidia-smi -pm 1"))
    if state.partitioned:
        found.append(
            Hazard("GPU partitioned", "MIG instances share power and clocks", "give timing the whole GPU if you can")
        )
    if state.refused:
        found.append(
            Hazard("GPU readings refused", ", ".join(state.refused), "run as a user who may read them, or on the host")
        )
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
