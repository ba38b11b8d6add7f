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
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
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
from widthwise.profiling.runtimes.torch_layers import Placement, build_layer, square_convolution, tensors, with_stamps
from widthwise.profiling.target import Target

__all__ = ["CudaGraphRuntime", "CudaRuntime", "Recent", "wall_s", "without_stamps"]

_REPEATS = 10
"""A single layer stands so often in its graph; events mark the first's begin and the last's end."""

_WARM_UP_CALLS = 3
_STREAMED = 2**25
"""Elements of 4 bytes the memory-bound reference reads, and writes: more than any GPU's L2 cache holds."""

_LAUNCHES = 256
_RECENT = 20
_LEAST_SHARE = 0.05


class _Stamps:
    """CUDA events between operations, recorded anew with every run."""

    def __init__(self, *, in_graph: bool) -> None:
        self._in_graph = in_graph
        self._events: list[torch.cuda.Event] = []
        self._next = 0

    def rewind(self) -> None:
        self._next = 0

    def record(self) -> None:
        if self._next == len(self._events):
            self._events.append(torch.cuda.Event(enable_timing=True, external=self._in_graph))  # type: ignore[no-untyped-call]
        self._events[self._next].record()
        self._next += 1

    def seconds(self) -> list[float]:
        """Between each event and the next; the GPU must have finished."""
        return [before.elapsed_time(after) * 1e-3 for before, after in pairwise(self._events[: self._next])]


class Recent:
    """The median of the last runs."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=_RECENT)

    def add(self, seconds: float) -> float:
        self._seconds.append(seconds)
        return seconds

    @property
    def seconds(self) -> float | None:
        return statistics.median(self._seconds) if self._seconds else None


def without_stamps(gaps_s: Sequence[float], whole_s: float | None) -> list[float]:
    """Layers without what their time stamps took: the same is taken off each, down to a twentieth, so that they sum to
    the whole network's time; unchanged where they sum to less.

    Example:
        >>> without_stamps([5.0, 2.0, 0.5], 4.0)
        [3.5, 0.5, 0.025]
    """
    if whole_s is None or sum(gaps_s) <= whole_s:
        return list(gaps_s)
    largest, taken = sorted(gaps_s, reverse=True), 0.0
    for count in range(1, len(largest) + 1):
        taken = (sum(largest[:count]) - whole_s) / count
        if count == len(largest) or taken >= largest[count]:
            break
    return [max(_LEAST_SHARE * gap, gap - taken) for gap in gaps_s]


def _captured(call: Callable[[], object]) -> tuple[torch.cuda.CUDAGraph, object]:
    """The call as a CUDA graph, and what it returned: tensors that every replay writes anew.

    Raises:
        InvalidTarget: it does what a graph can't hold.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.inference_mode():
        for _ in range(_WARM_UP_CALLS):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.inference_mode(), torch.cuda.graph(graph):
            output = call()
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise InvalidTarget(
            f"this model can't be captured in a CUDA graph ({reason}); graphs hold no transfers to the host and no "
            f"decisions on data; use the target torch:cuda"
        ) from error
    return graph, output


def wall_s(call: Callable[[], object]) -> float:
    """Seconds until the GPU has finished what ``call`` starts."""
    torch.cuda.synchronize()
    start = time.perf_counter_ns()
    call()
    torch.cuda.synchronize()
    return (time.perf_counter_ns() - start) * 1e-9


class _Kernels(Session):
    """A few kernels, timed on the GPU alone.

    Args:
        call: launches them; it stands ``_REPEATS`` times in one graph.
    """

    def __init__(self, call: Callable[[], object]) -> None:
        self._stamps = stamps = _Stamps(in_graph=True)

        def repeated() -> None:
            stamps.rewind()
            stamps.record()
            for _ in range(_REPEATS):
                call()
            stamps.record()

        self._kept_alive = call  # the graph reads its tensors
        self._graph, _ = _captured(repeated)

    def run(self) -> float:
        self._graph.replay()
        torch.cuda.synchronize()
        return self._stamps.seconds()[0] / _REPEATS


class _Launches(Session):
    """A chain of the smallest kernels launched one by one: bound by the host."""

    def __init__(self, device: torch.device) -> None:
        self._tensor = torch.zeros(32, device=device)

    def run(self) -> float:
        with torch.inference_mode():
            return wall_s(lambda: [self._tensor.relu() for _ in range(_LAUNCHES)])


class _Together(Session):
    """Sessions one after the other."""

    def __init__(self, *sessions: Session) -> None:
        self._sessions = sessions

    def run(self) -> float:
        return sum(session.run() for session in self._sessions)


class _CudaNetwork(PromptSession):
    """Eager calls."""

    def __init__(self, model: nn.Module, inputs: list[torch.Tensor], network: Network) -> None:
        super().__init__()
        self._model = model
        self._inputs = inputs
        self._whole = Recent()
        self._stamps = _Stamps(in_graph=False)
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
        self._stamps = stamps = _Stamps(in_graph=True)
        stamped = with_stamps(trace_runnable(model, network), network, stamps.record)

        def timed_layers() -> object:
            stamps.rewind()
            stamps.record()
            return stamped(*inputs)

        self._graph, self._output = _captured(lambda: model(*inputs))
        self._layers, _ = _captured(timed_layers)

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
                _Launches(self._placement.device), _Together(self._convolution(), _streaming(self._placement.device))
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
                return _Kernels(lambda: module(*placed))
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
            return References(self._convolution(), _streaming(self._placement.device))


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


def _streaming(device: torch.device) -> Session:
    source = torch.zeros(_STREAMED, device=device)
    target = torch.empty_like(source)
    return _Kernels(lambda: torch.add(source, 1.0, out=target))


def _uuid(properties: object) -> str | None:
    uuid = getattr(properties, "uuid", None)
    return f"GPU-{uuid}" if uuid is not None else None
