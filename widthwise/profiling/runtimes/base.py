"""The seam: all that widthwise asks of a runtime.

A runtime turns a narrowed network, one layer, or its reference kernels into a session; a session runs once
and says how long that took. Schedules, tables and planners know nothing else, so the fake runtime stands
in for hardware everywhere.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from widthwise.luts.errors import WidthwiseError
from widthwise.luts.measurement import Conditions
from widthwise.luts.spec import LayerSpec
from widthwise.network.network import Network
from widthwise.network.widths import Widths
from widthwise.profiling.conditions import watch_host
from widthwise.profiling.target import Target

__all__ = ["Candidate", "NetworkSession", "PromptSession", "References", "Runtime", "Session", "UnsupportedLayer"]


class UnsupportedLayer(WidthwiseError):
    """This runtime can't time this layer alone; in place it may well be timed."""


@dataclass(frozen=True)
class Candidate:
    """A narrowed network to be timed.

    Args:
        network: the dense network.
        widths: of every free group.
        build: makes the narrowed model; called once, when the runtime prepares it.
        example: one tensor per input.
    """

    network: Network
    widths: Widths
    build: Callable[[], nn.Module]
    example: tuple[torch.Tensor, ...]


class Session(ABC):
    """Something prepared and ready to run."""

    @abstractmethod
    def run(self) -> float:
        """Runs once; seconds of wall time, synchronised with the device."""


class NetworkSession(Session):
    """A whole network, which also reports its layers in place.

    Runs with layers on record are read later and together, because some runtimes (ONNX Runtime) give their report
    only when profiling ends.
    """

    @abstractmethod
    def run_layers(self) -> float:
        """Runs once with its layers on record; seconds of wall time."""

    @abstractmethod
    def read_layers(self) -> list[Sequence[float]]:
        """Of each :meth:`run_layers` since the last reading, seconds per layer in the order of ``network.layers``."""

    def outputs(self) -> tuple[torch.Tensor, ...] | None:
        """What the network computes for the candidate's example, as float32 on the CPU; None where nothing is computed.

        :mod:`widthwise.profiling.conformance` holds it against eager PyTorch.
        """
        return None


class PromptSession(NetworkSession):
    """A network whose layers are known as soon as it has run."""

    def __init__(self) -> None:
        self._reports: list[Sequence[float]] = []

    @abstractmethod
    def report(self) -> Sequence[float]:
        """Runs once; seconds per layer, in the order of ``network.layers``."""

    def run_layers(self) -> float:
        self._reports.append(self.report())
        return sum(self._reports[-1])

    def read_layers(self) -> list[Sequence[float]]:
        reports, self._reports = self._reports, []
        return reports


@dataclass(frozen=True)
class References:
    """Two constant, short kernels everything is measured against; together they are *the* reference.

    Attributes:
        compute: bound by the cores' arithmetic.
        memory: bound by the shared caches or memory.
        settling_runs: after other work their first runs are slower, by so many runs that don't count.
        let_go: called after each reading, so that none of their threads spins on beside what runs next.
    """

    compute: Session
    memory: Session
    settling_runs: int = 1
    let_go: Callable[[], None] = lambda: None


class Runtime(ABC):
    """Prepares sessions for one target.

    Attributes:
        fuses: whether its layers are fused ones, see :mod:`widthwise.network.fusion`; it is given networks accordingly.
    """

    fuses: ClassVar[bool] = False

    def __init__(self, target: Target) -> None:
        self.target = target

    def active(self) -> AbstractContextManager[None]:
        """While sessions are timed: sets process-wide state such as thread counts, and restores it."""
        return nullcontext()

    def pause(self, seconds: float) -> None:
        """Lets time pass without work."""
        time.sleep(seconds)

    def watch(self) -> Callable[[], Conditions]:
        """Begins to watch the machine; the call it gives ends that and says what happened since."""
        return watch_host(self.target.threads)

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Versions of whatever decides latencies here."""

    def device_fields(self) -> dict[str, str | int]:
        """What identifies the device beyond its CPU, such as a GPU; keys ``info.…`` are only recorded."""
        return {}

    @abstractmethod
    def references(self) -> References:
        """The reference kernels: short, constant work against which everything is measured."""

    @abstractmethod
    def network(self, candidate: Candidate) -> NetworkSession:
        """A narrowed network as a user would deploy it."""

    @abstractmethod
    def layer(self, spec: LayerSpec) -> Session:
        """One layer alone.

        Raises:
            UnsupportedLayer: this kind can't be built from its spec.
        """
