"""NVIDIA GPUs as their driver sees them: clocks, why they were lowered, and who else computes there.

Read through NVML by its bindings, ``nvidia-ml-py``. No driver, no library, no GPU and no permission are normal states,
each said with its remedy; a reading this driver or GPU doesn't give is None.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from widthwise.luts.errors import Unmet

__all__ = ["SLOWING", "Gpu", "GpuLost", "GpuState", "NoGpu", "open_gpu", "reasons_in"]

_REASONS = {
    0x1: "idle",
    0x2: "application clocks",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "thermal slowdown (driver)",
    0x40: "thermal slowdown (hardware)",
    0x80: "power brake",
    0x100: "display clocks",
}
"""Bits of NVML's clock event reasons, once called throttle reasons."""

SLOWING = 0x8 | 0x20 | 0x40 | 0x80
"""The reasons that mean a GPU out of its usual state; a power cap is usual on a GPU that is busy."""

_T = TypeVar("_T")


class GpuLost(Unmet):
    """The GPU stopped answering its driver."""


@dataclass(frozen=True, slots=True)
class NoGpu:
    """Why there is nothing to read, and what would help; ``remedy`` is empty where nothing is amiss."""

    reason: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class GpuState:
    """A GPU at one moment; None is what its driver doesn't tell.

    Attributes:
        clock_mhz: of the multiprocessors.
        most_clock_mhz: the highest they can have.
        reasons: bits saying why the clock is what it is; see :func:`reasons_in`.
        others: other processes that hold a compute context.
        persistent: whether the driver stays loaded between processes.
        partitioned: whether the GPU is split into instances (MIG).
        refused: readings that were refused for want of permission.
    """

    clock_mhz: float | None
    most_clock_mhz: float | None
    reasons: int | None
    others: int | None
    persistent: bool | None
    partitioned: bool | None
    refused: tuple[str, ...] = ()

    @property
    def clock_share(self) -> float | None:
        """The clock over its highest."""
        return self.clock_mhz / self.most_clock_mhz if self.clock_mhz and self.most_clock_mhz else None


def reasons_in(bits: int) -> list[str]:
    """The names of clock event reasons.

    Example:
        >>> reasons_in(0x4 | 0x40)
        ['power cap', 'thermal slowdown (hardware)']
    """
    return [name for bit, name in _REASONS.items() if bits & bit]


def open_gpu(uuid: str | None = None, *, index: int = 0) -> Gpu | NoGpu:
    """The GPU with this identity, else the ``index``-th the driver sees, or why there is none.

    Raises:
        GpuLost: it is there and doesn't answer.
    """
    try:
        import pynvml
    except ImportError:
        return NoGpu("nvidia-ml-py is not installed", "pip install nvidia-ml-py")
    try:
        pynvml.nvmlInit()
        if index >= pynvml.nvmlDeviceGetCount() and uuid is None:
            return NoGpu(f"the driver sees no GPU number {index}", "check the cabling and `nvidia-smi -L`")
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid) if uuid else pynvml.nvmlDeviceGetHandleByIndex(index)
    except pynvml.NVMLError as error:
        return _absent(error, pynvml)
    return Gpu(pynvml, handle)


def _absent(error: Exception, pynvml: Any) -> NoGpu:
    code = getattr(error, "value", None)
    if code == pynvml.NVML_ERROR_GPU_IS_LOST:
        raise GpuLost(_LOST) from error
    known = {
        pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: NoGpu("no NVIDIA driver here"),
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED: NoGpu(
            "the NVIDIA driver is installed but not loaded", "sudo modprobe nvidia, or restart"
        ),
        pynvml.NVML_ERROR_NO_PERMISSION: NoGpu(
            "the NVIDIA driver may not be used by this user",
            "join the group that owns /dev/nvidia*, or start the container with its GPUs",
        ),
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: NoGpu(
            "the NVIDIA driver was updated and its old version still runs", "restart"
        ),
    }
    return known.get(code, NoGpu(f"the NVIDIA driver answers: {error}", "see what `nvidia-smi` says"))


_LOST = (
    "the GPU stopped answering its driver (NVML: GPU is lost); what was measured is kept; restart the machine, "
    "and check the GPU's power and seating if it happens again"
)


class Gpu:
    """One GPU, made by :func:`open_gpu`."""

    def __init__(self, pynvml: Any, handle: Any) -> None:
        self._nvml = pynvml
        self._handle = handle
        self._refused: set[str] = set()

    def identity(self) -> dict[str, str | int]:
        """What a table says of this GPU, in the terms of :func:`widthwise.profiling.device.fingerprint`."""
        memory = self._reading("memory", lambda: self._nvml.nvmlDeviceGetMemoryInfo(self._handle).total)
        fields: dict[str, str | int | None] = {
            "gpu": self._reading("name", lambda: self._nvml.nvmlDeviceGetName(self._handle)),
            "gpu_memory_mib": memory // 2**20 if memory else None,
            "gpu_most_clock_mhz": self._most_clock_mhz(),
            "info.gpu_uuid": self._reading("uuid", lambda: self._nvml.nvmlDeviceGetUUID(self._handle)),
            "info.gpu_driver": self._reading("driver version", self._nvml.nvmlSystemGetDriverVersion),
        }
        return {name: value for name, value in fields.items() if value is not None}

    def state(self) -> GpuState:
        """Now.

        Raises:
            GpuLost: it doesn't answer.
        """
        nvml, handle = self._nvml, self._handle
        mig = self._reading("partitioning", lambda: nvml.nvmlDeviceGetMigMode(handle)[0])
        persistence = self._reading("persistence", lambda: nvml.nvmlDeviceGetPersistenceMode(handle))
        return GpuState(
            clock_mhz=self._reading("clock", lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
            most_clock_mhz=self._most_clock_mhz(),
            reasons=self._reasons(),
            others=self._reading("processes", self._others),
            persistent=None if persistence is None else persistence == nvml.NVML_FEATURE_ENABLED,
            partitioned=None if mig is None else mig == nvml.NVML_DEVICE_MIG_ENABLE,
            refused=tuple(sorted(self._refused)),
        )

    def _most_clock_mhz(self) -> int | None:
        return self._reading(
            "highest clock", lambda: int(self._nvml.nvmlDeviceGetMaxClockInfo(self._handle, self._nvml.NVML_CLOCK_SM))
        )

    def _reasons(self) -> int | None:
        new = self._reading("reasons", lambda: int(self._nvml.nvmlDeviceGetCurrentClocksEventReasons(self._handle)))
        if new is not None:
            return new
        return self._reading("reasons", lambda: int(self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle)))

    def _others(self) -> int:
        processes = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        ours = (os.getpid(), os.getppid())  # a worker's parent opened the target too
        return sum(process.pid not in ours for process in processes)

    def _reading(self, name: str, read: Callable[[], _T]) -> _T | None:
        try:
            return read()
        except self._nvml.NVMLError as error:
            if error.value == self._nvml.NVML_ERROR_GPU_IS_LOST:
                raise GpuLost(_LOST) from error
            if error.value == self._nvml.NVML_ERROR_NO_PERMISSION:
                self._refused.add(name)
            return None
