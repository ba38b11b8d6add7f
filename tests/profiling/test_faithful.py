"""A runtime that does something else than it was asked to is found out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from widthwise.luts.errors import InvalidTarget
from widthwise.network.network import Network
from widthwise.profiling.faithful import busy_threads, output_error, require_faithful
from widthwise.profiling.profiler import candidate_for
from widthwise.profiling.runtimes import Candidate, NetworkSession
from widthwise.profiling.target import Target


class Session(NetworkSession):
    """Gives these outputs, on so many threads."""

    def __init__(self, outputs: tuple[torch.Tensor, ...] | None, threads: int = 1) -> None:
        self._outputs = outputs
        self._pool = ThreadPoolExecutor(threads)

    def run(self) -> float:
        list(self._pool.map(lambda _: _work(), range(self._pool._max_workers)))
        return 0.02

    def run_layers(self) -> float:
        return self.run()

    def read_layers(self) -> list[Sequence[float]]:
        return []

    def outputs(self) -> tuple[torch.Tensor, ...] | None:
        return self._outputs


def _work() -> None:
    matrix = torch.ones(256, 256)
    until = time.perf_counter() + 0.02
    while time.perf_counter() < until:
        matrix @ matrix  # lets other threads run


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def candidate() -> Candidate:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 7, 3), nn.ReLU(), nn.Conv2d(7, 5, 1)).eval()
    example = (torch.randn(1, 3, 11, 11),)
    network = Network.trace(model, example, name="small")
    return candidate_for(model, network, network.dense, example)


@pytest.fixture
def expected(candidate: Candidate) -> torch.Tensor:
    with torch.no_grad():
        return candidate.build()(*candidate.example)


def test_the_same_numbers_are_fine(candidate: Candidate, expected: torch.Tensor) -> None:
    require_faithful(Session((expected,)), candidate, Target.parse("fake:cpu"))
    require_faithful(Session(None), candidate, Target.parse("fake:cpu"))


@pytest.mark.parametrize("lowered", [torch.bfloat16, torch.float16])
def test_lowered_precision_is_found_out(
    candidate: Candidate, expected: torch.Tensor, lowered: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(require_faithful.__globals__["TOLERANCES"], "float32", 1e-4)  # one layer rounds but little
    with pytest.raises(InvalidTarget, match="lowers the precision silently"):
        require_faithful(Session((expected.to(lowered).float(),)), candidate, Target.parse("onnxruntime:cpu"))


def test_nothing_is_judged_where_half_precision_was_asked_for(candidate: Candidate, expected: torch.Tensor) -> None:
    require_faithful(Session((expected * 1.1,)), candidate, Target.parse("torch:cpu", dtype="bfloat16"))


@pytest.mark.parametrize("wrong", [lambda y: (y[:, :3],), lambda y: (y, y), lambda y: (y * float("nan"),)])
def test_another_network_is_found_out(candidate: Candidate, expected: torch.Tensor, wrong: object) -> None:
    with pytest.raises(InvalidTarget, match="or the exported network is another one"):
        require_faithful(Session(wrong(expected)), candidate, Target.parse("onnxruntime:cpu"))  # type: ignore[operator]


def test_the_error_is_relative_to_the_largest_output(candidate: Candidate, expected: torch.Tensor) -> None:
    off = expected.clone()
    off[0, 0, 0, 0] += 0.25 * expected.abs().max()
    assert output_error(Session((off,)), candidate) == pytest.approx(0.25, rel=1e-5)


def test_threads_that_were_not_asked_for_are_found_out(candidate: Candidate, expected: torch.Tensor) -> None:
    if busy_threads(_work) is None:
        pytest.skip("threads can't be counted here")
    assert busy_threads(_work) == 1
    session = Session((expected,), threads=2)
    require_faithful(session, candidate, Target.parse("onnxruntime:cpu", threads=2))
    with pytest.raises(InvalidTarget, match="ran on 2 threads: it ignores its thread setting"):
        require_faithful(session, candidate, Target.parse("onnxruntime:cpu"))
