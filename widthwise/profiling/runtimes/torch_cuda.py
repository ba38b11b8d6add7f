"""PyTorch on an NVIDIA GPU: eager calls (``torch:cuda``), or the same kernels replayed as one CUDA graph
(``torch-cudagraph:cuda``).

Which of the two decides what pruning is worth. An eager call launches its kernels one by one; at batch size 1 a fast
GPU waits for the next launch most of the time, and fewer channels change little. A graph is launched once.

Whole networks are timed from the call until the GPU has finished, on the host's clock, as their caller sees it. Layers
are timed in place by CUDA events recorded between operations; in a graph they are nodes of it (``external`` events in
PyTorch's words). Single layers and reference kernels are small, so they always run in graphs: otherwise their launches
would be timed.

An event between two operations costs what some operations cost: 2.5 µs in a graph on an H200, 9 µs of the host in eager
calls. So what a run with events takes longer than one without is taken off every layer equally, and the layers sum to
the whole.

Clocks: all latencies are ratios to reference kernels that ran on the GPU right before and after, so they are normalised
to one clock; blocks taken while the GPU was slowed down are dropped (see :mod:`widthwise.profiling.conditions`).
TF32, cuDNN's choice of algorithms and the like stay as PyTorch has them by default; what ``active`` sets it restores.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import ClassVar

import torch
from torch import nn

from widthwise.luts.errors import InvalidTarget
from widthwise.luts.measurement import Conditions
from widthwise.luts.spec import LayerSpec
from widthwise.network.network import Network, trace_runnable
from widthwise.profiling.conditions import watch_gpu, watch_host
from widthwise.profiling.memory import keep_memory
from widthwise.profiling.nvml import Gpu, open_gpu
from widthwise.profiling.runtimes.base import (
    Candidate,
    NetworkSession,
    PromptSession,
    References,
    Runtime,
    Session,
    UnsupportedLayer,
)
from widthwise.profiling.runtimes.cuda_timing import (
    Kernels,
    Launches,
    Recent,
    Stamps,
    Together,
    captured,
    streaming,
    wall_s,
    without_stamps,
)
from widthwise.profiling.runtimes.torch_layers import Placement, build_layer, square_convolution, tensors, with_stamps
from widthwise.profiling.target import Target

__all__ = ["CudaGraphRuntime", "CudaRuntime", "FusingCudaRuntime"]


class _CudaNetwork(PromptSession):
    """Eager calls."""

    def __init__(self, model: nn.Module, inputs: list[torch.Tensor], network: Network) -> None:
        super().__init__()
        self._model = model
        self._inputs = inputs
        self._whole = Recent()
        self._stamps = Stamps(in_graph=False)
        self._stamped = with_stamps(trace_runnable(model, network), network, self._stamps.record)

    def run(self) -> float:
        with torch.inference_mode():
            return self._whole.add(wall_s(lambda: self._model(*self._inputs)))

    def report(self) -> Sequence[float]:
        torch.cuda.synchronize()
        with torch.inference_mode():
            self._begin()
            self._stamped(*self._inputs)
        torch.cuda.synchronize()
        return without_stamps(self._stamps.seconds(), self._whole.seconds)

    def outputs(self) -> tuple[torch.Tensor, ...]:
        with torch.inference_mode():
            return tensors(self._model(*self._inputs))

    def _begin(self) -> None:
        self._stamps.rewind()
        self._stamps.record()


class _GraphNetwork(PromptSession):
    """Replays of a CUDA graph; a second one holds the events between layers."""

    def __init__(self, model: nn.Module, inputs: list[torch.Tensor], network: Network) -> None:
        super().__init__()
        self._kept_alive = model, inputs  # the graph reads their memory
        self._whole = Recent()
        self._stamps = stamps = Stamps(in_graph=True)
        stamped = with_stamps(trace_runnable(model, network), network, stamps.record)

        def timed_layers() -> object:
            stamps.rewind()
            stamps.record()
            return stamped(*inputs)

        self._graph, self._output = captured(lambda: model(*inputs))
        self._layers, _ = captured(timed_layers)

    def run(self) -> float:
        return self._whole.add(wall_s(self._graph.replay))

    def report(self) -> Sequence[float]:
        torch.cuda.synchronize()
        self._layers.replay()
        torch.cuda.synchronize()
        return without_stamps(self._stamps.seconds(), self._whole.seconds)

    def outputs(self) -> tuple[torch.Tensor, ...]:
        self._graph.replay()
        torch.cuda.synchronize()
        return tensors(self._output)


class CudaRuntime(Runtime):
    """The ``torch:cuda`` target: a call of ``model.eval()(x)`` under ``inference_mode`` until the GPU is done.

    Raises:
        InvalidTarget: no such GPU here, or a PyTorch without events in CUDA graphs.
    """

    _network: type[_CudaNetwork] | type[_GraphNetwork] = _CudaNetwork

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        name = f"{target.runtime}:{target.device}"
        if not torch.cuda.is_available():
            raise InvalidTarget(
                f"target {name} needs an NVIDIA GPU that PyTorch {torch.__version__} can use, and finds none; "
                f"`widthwise device` says what the driver sees; torch:cpu is always there"
            )
        try:
            self._placement = Placement.of(target)
            self._properties = torch.cuda.get_device_properties(self._placement.device)
        except (RuntimeError, AssertionError) as error:
            count = torch.cuda.device_count()
            raise InvalidTarget(f"no GPU {target.device}; there are {count}, counted from cuda:0") from error
        if "external" not in inspect.signature(torch.cuda.Event.__new__).parameters:
            raise InvalidTarget(
                f"target {name} needs PyTorch 2.9 or newer, for events in CUDA graphs; this is {torch.__version__}"
            )
        self._gpu = open_gpu(_uuid(self._properties), index=self._placement.device.index or 0)

    def versions(self) -> dict[str, str]:
        return {
            "torch": torch.__version__,
            "cuda": str(torch.version.cuda),
            "cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
        }

    def device_fields(self) -> dict[str, str | int]:
        major, minor = self._properties.major, self._properties.minor
        known: dict[str, str | int] = {
            "gpu": self._properties.name,
            "gpu_multiprocessors": self._properties.multi_processor_count,
            "gpu_capability": f"{major}.{minor}",
        }
        return known | (self._gpu.identity() if isinstance(self._gpu, Gpu) else {"info.nvml": self._gpu.reason})

    def watch(self) -> Callable[[], Conditions]:
        if isinstance(self._gpu, Gpu):
            return watch_gpu(self._gpu, self.target.threads)
        return watch_host(self.target.threads)

    @contextmanager
    def active(self) -> Iterator[None]:
        threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
        torch.set_num_threads(self.target.threads)
        torch.backends.cudnn.benchmark = False
        keep_memory()
        try:
            with torch.cuda.device(self._placement.device):
                yield
        finally:
            torch.backends.cudnn.benchmark = benchmark
            torch.set_num_threads(threads)

    def references(self) -> References:
        with torch.cuda.device(self._placement.device):
            return References(
                Launches(self._placement.device), Together(self._convolution(), streaming(self._placement.device))
            )

    def network(self, candidate: Candidate) -> NetworkSession:
        inputs = [self._placement.place(tensor) for tensor in candidate.example]
        with torch.cuda.device(self._placement.device):
            return self._network(self._placement.deploy(candidate.build()), inputs, candidate.network)

    def layer(self, spec: LayerSpec) -> Session:
        operation, inputs = build_layer(spec)
        module, placed = self._placement.deploy(operation), [self._placement.place(tensor) for tensor in inputs]
        try:
            with torch.cuda.device(self._placement.device):
                return Kernels(lambda: module(*placed))
        except InvalidTarget as error:
            raise UnsupportedLayer(f"{spec} can't be timed alone: {error}") from error

    def _convolution(self) -> Session:
        return self.layer(square_convolution(128, 56, batch=16))


class CudaGraphRuntime(CudaRuntime):
    """The ``torch-cudagraph:cuda`` target: a replay of the network captured in a CUDA graph, until the GPU is done.

    As ``torch.cuda.make_graphed_callables`` deploys it, or ``torch.compile(mode="reduce-overhead")`` beside compiling.
    """

    _network = _GraphNetwork

    def references(self) -> References:
        with torch.cuda.device(self._placement.device):
            return References(self._convolution(), streaming(self._placement.device))


class FusingCudaRuntime(Runtime):
    """What other libraries' runtimes on a GPU have in common: PyTorch watches the GPU and runs the references.

    Attributes:
        as_in: the runtime whose references these networks are like.
    """

    fuses = True
    as_in: ClassVar[type[CudaRuntime]] = CudaGraphRuntime

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self._torch = type(self).as_in(target)
        self._placement = Placement.of(target)

    def device_fields(self) -> dict[str, str | int]:
        return self._torch.device_fields() | {"info.exporter": f"torch {torch.__version__}"}

    def watch(self) -> Callable[[], Conditions]:
        return self._torch.watch()

    def active(self) -> AbstractContextManager[None]:
        return self._torch.active()

    def references(self) -> References:
        return self._torch.references()

    def _on_gpu(self) -> AbstractContextManager[None]:
        return torch.cuda.device(self._placement.device)


def _uuid(properties: object) -> str | None:
    uuid = getattr(properties, "uuid", None)
    return f"GPU-{uuid}" if uuid is not None else None
