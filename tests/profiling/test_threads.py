"""Threads that spin on after a run, on cores that what is timed next needs."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits
from torch import nn

from widthwise.network.fusion import fused
from widthwise.network.network import Network
from widthwise.profiling.gauge import Gauge
from widthwise.profiling.profiler import candidate_for
from widthwise.profiling.runtimes import open_runtime, openmp
from widthwise.profiling.runtimes.base import References
from widthwise.profiling.runtimes.fake import FakeRuntime, World
from widthwise.profiling.runtimes.torch_eager import cpu_references
from widthwise.profiling.target import Target

linux = pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")


def threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def in_parallel() -> torch.Tensor:
    """Work that PyTorch shares among its threads."""
    return torch.arange(1 << 21, dtype=torch.float32).exp_()


def blas_threads() -> set[int]:
    """Of NumPy's and SciPy's linear algebra."""
    return {found["num_threads"] for found in threadpool_info() if found["user_api"] == "blas"}


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@linux
@pytest.mark.usefixtures("three_threads")
def test_openmp_lets_its_threads_go_and_makes_new_ones_for_the_next_work() -> None:
    expected = in_parallel()
    there = threads()
    openmp.let_go()
    until = time.monotonic() + 5
    while threads() > there - 2 and time.monotonic() < until:
        time.sleep(0.01)
    assert threads() <= there - 2, "three threads are two besides this one"
    assert torch.equal(in_parallel(), expected)
    assert threads() > there - 2


def test_the_gauge_lets_go_after_every_reading() -> None:
    kernels = FakeRuntime(Target.parse("fake:cpu"), World()).references()
    told: list[str] = []
    gauge = Gauge(References(kernels.compute, kernels.memory, let_go=lambda: told.append("let go")))
    gauge.read()
    gauge.glance()
    assert told == ["let go"] * 2


@pytest.mark.parametrize(("count", "own_threads", "lets_go"), [(1, True, False), (2, False, False), (2, True, True)])
def test_references_let_go_where_networks_have_threads_of_their_own(
    count: int, own_threads: bool, lets_go: bool
) -> None:
    references = cpu_references(count, own_threads=own_threads)
    assert (references.let_go is openmp.let_go) is lets_go


@pytest.mark.parametrize(
    ("target", "package", "lets_go"),
    [("onnxruntime:cpu", "onnxruntime", True), ("openvino:cpu", "openvino", True), ("torch:cpu", "torch", False)],
)
def test_only_references_beside_another_runtime_let_go(target: str, package: str, lets_go: bool) -> None:
    pytest.importorskip(package)
    references = open_runtime(Target.parse(target, threads=2)).references()
    assert (references.let_go is openmp.let_go) is lets_go


def test_sessions_of_onnxruntime_stop_spinning_after_a_run(wide: nn.Module, wide_example: torch.Tensor) -> None:
    pytest.importorskip("onnxruntime")
    runtime = open_runtime(Target.parse("onnxruntime:cpu", threads=2))
    network = fused(Network.trace(wide, (wide_example,)))
    session = runtime.network(candidate_for(wide, network, network.dense, (wide_example,)))
    options = session._runner._deployed.get_session_options()
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_linear_algebra_gets_no_more_threads_than_it_has_cores() -> None:
    """Two on one core wait for each other: a predictor took a hundred times as long to be fitted."""
    with threadpool_limits(3, user_api="blas"):
        before = blas_threads()
        with open_runtime(Target.parse("torch:cpu")).active():
            assert blas_threads() == {1}
        assert blas_threads() == before
