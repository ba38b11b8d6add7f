"""What takes a GPU how long: by CUDA events between operations, by graphs of small kernels, by the host's clock."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch

from widthwise.luts.errors import InvalidTarget
from widthwise.profiling.runtimes.base import Session

__all__ = ["Kernels", "Launches", "Recent", "Stamps", "Together", "captured", "streaming", "wall_s", "without_stamps"]

_REPEATS = 10
"""A single layer stands so often in its graph; events mark the first's begin and the last's end."""

_WARM_UP_CALLS = 3
_STREAMED = 2**25
"""Elements of 4 bytes the memory-bound reference reads, and writes: more than any GPU's L2 cache holds."""

_LAUNCHES = 256
_RECENT = 20
_LEAST_SHARE = 0.05


class Stamps:
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


def captured(call: Callable[[], object]) -> tuple[torch.cuda.CUDAGraph, object]:
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


class Kernels(Session):
    """A few kernels, timed on the GPU alone.

    Args:
        call: launches them; it stands ``_REPEATS`` times in one graph.
    """

    def __init__(self, call: Callable[[], object]) -> None:
        self._stamps = stamps = Stamps(in_graph=True)

        def repeated() -> None:
            stamps.rewind()
            stamps.record()
            for _ in range(_REPEATS):
                call()
            stamps.record()

        self._kept_alive = call  # the graph reads its tensors
        self._graph, _ = captured(repeated)

    def run(self) -> float:
        self._graph.replay()
        torch.cuda.synchronize()
        return self._stamps.seconds()[0] / _REPEATS


class Launches(Session):
    """A chain of the smallest kernels launched one by one: bound by the host."""

    def __init__(self, device: torch.device) -> None:
        self._tensor = torch.zeros(32, device=device)

    def run(self) -> float:
        with torch.inference_mode():
            return wall_s(lambda: [self._tensor.relu() for _ in range(_LAUNCHES)])


class Together(Session):
    """Sessions one after the other."""

    def __init__(self, *sessions: Session) -> None:
        self._sessions = sessions

    def run(self) -> float:
        return sum(session.run() for session in self._sessions)


def streaming(device: torch.device) -> Session:
    source = torch.zeros(_STREAMED, device=device)
    target = torch.empty_like(source)
    return Kernels(lambda: torch.add(source, 1.0, out=target))
