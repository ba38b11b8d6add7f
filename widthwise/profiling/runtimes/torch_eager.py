"""Eager PyTorch on the CPU: what ``model.eval()(x)`` under ``inference_mode`` takes.

Layers are timed in place by time stamps that are compiled into the traced graph between operations; a stamp
costs about a tenth of a microsecond, so the layers sum to the network without a profiler's overhead.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import pairwise
from typing import ClassVar

import torch
from torch import nn

from widthwise.luts.errors import InvalidTarget
from widthwise.luts.spec import LayerSpec
from widthwise.network.network import Network, trace_runnable
from widthwise.profiling.runtimes import openmp
from widthwise.profiling.runtimes.base import (
    Candidate,
    NetworkSession,
    PromptSession,
    References,
    Runtime,
    Session,
)
from widthwise.profiling.runtimes.deployment import steady_process
from widthwise.profiling.runtimes.torch_layers import (
    REFERENCE_CONVOLUTIONS,
    Placement,
    build_layer,
    square_convolution,
    tensors,
    with_stamps,
)
from widthwise.profiling.target import Target

__all__ = ["FusingCpuRuntime", "TorchRuntime", "cpu_references"]


def cpu_references(threads: int, *, own_threads: bool = False) -> References:
    """The reference kernels of every target on a CPU, whatever runs its networks.

    Args:
        own_threads: networks run on other threads than these kernels.

    A reference must not depend on what ran before it. In their third run after a full ResNet-18 and after one a quarter
    as wide these kernels differ by 2 %; OpenVINO's own for the same convolutions, which live in the private caches,
    by 7 %, and they need six runs to forget.
    """
    references = TorchRuntime(Target("torch", "cpu", threads)).references()
    references = replace(references, settling_runs=2)
    return replace(references, let_go=openmp.let_go) if own_threads and threads > 1 else references


class FusingCpuRuntime(Runtime):
    """What runtimes that fuse layers have in common on a CPU: a steady process, and the references of all of them.

    Attributes:
        own_threads: whether its networks run on other threads than PyTorch's.
    """

    fuses = True
    own_threads: ClassVar[bool] = True

    def active(self) -> AbstractContextManager[None]:
        return steady_process(self.target.threads)

    def references(self) -> References:
        return cpu_references(self.target.threads, own_threads=self.own_threads)


class TorchRuntime(Runtime):
    """The ``torch:cpu`` target.

    Raises:
        InvalidTarget: the dtype has no CPU kernels.
    """

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        if target.dtype == "float16":
            raise InvalidTarget("torch:cpu runs float32 or bfloat16; float16 convolutions have no fast CPU kernels")
        self._placement = Placement.of(target)

    def versions(self) -> dict[str, str]:
        return {"torch": torch.__version__}

    def references(self) -> References:
        compute, memory = (self.layer(square_convolution(*kernel)) for kernel in REFERENCE_CONVOLUTIONS)
        return References(compute, memory)

    def active(self) -> AbstractContextManager[None]:
        return steady_process(self.target.threads)

    def network(self, candidate: Candidate) -> NetworkSession:
        inputs = [self._placement.place(tensor) for tensor in candidate.example]
        return _EagerNetwork(self._placement.deploy(candidate.build()), inputs, candidate.network)

    def layer(self, spec: LayerSpec) -> Session:
        operation, inputs = build_layer(spec)
        return _EagerLayer(self._placement.deploy(operation), [self._placement.place(tensor) for tensor in inputs])


class _EagerLayer(Session):
    def __init__(self, model: nn.Module, inputs: list[torch.Tensor]) -> None:
        self._model = model
        self._inputs = inputs

    def run(self) -> float:
        with torch.inference_mode():
            start = time.perf_counter_ns()
            self._model(*self._inputs)
            return (time.perf_counter_ns() - start) * 1e-9


class _EagerNetwork(_EagerLayer, PromptSession):
    def __init__(self, model: nn.Module, inputs: list[torch.Tensor], network: Network) -> None:
        super().__init__(model, inputs)
        PromptSession.__init__(self)
        self._stamps: list[int] = []
        self._stamped = with_stamps(
            trace_runnable(model, network), network, lambda: self._stamps.append(time.perf_counter_ns())
        )

    def outputs(self) -> tuple[torch.Tensor, ...]:
        with torch.inference_mode():
            return tensors(self._model(*self._inputs))

    def report(self) -> Sequence[float]:
        stamps = self._stamps
        stamps.clear()
        with torch.inference_mode():
            stamps.append(time.perf_counter_ns())
            self._stamped(*self._inputs)
        return [(after - before) * 1e-9 for before, after in pairwise(stamps)]
