"""ONNX Runtime's nodes and the GPU's kernels brought together, and its CUDA runtime against a stand-in: no GPU."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from widthwise.luts.errors import InvalidTarget
from widthwise.network.fusion import fused
from widthwise.network.network import Network
from widthwise.profiling.conformance import RuntimeConformance
from widthwise.profiling.profiler import candidate_for
from widthwise.profiling.runtimes import cuda_trace, onnx_cuda, open_runtime, torch_cuda
from widthwise.profiling.runtimes.cuda_trace import GpuWork, Step, in_steps, work_in
from widthwise.profiling.runtimes.onnx_cuda import steps_in
from widthwise.profiling.runtimes.torch_eager import TorchRuntime
from widthwise.profiling.runtimes.torch_layers import Placement
from widthwise.profiling.target import Target

_PIECES = 200


def _event(cat: str, name: str, ts: float, dur: float = 1.0, **args: object) -> dict[str, object]:
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "args": args}


def test_a_trace_says_what_ran_and_when_it_was_launched() -> None:
    events = [
        {"ph": "s", "cat": "ac2g", "name": "ac2g", "ts": 1.0, "id": 3},
        _event("cuda_runtime", "cudaLaunchKernel", 10.0, correlation=3),
        _event("cuda_driver", "cuLaunchKernelEx", 12.5, correlation=4),
        _event("kernel", "later", 30.0, 5.0, correlation=4),
        _event("kernel", "sooner", 20.0, 7.25, correlation=3),
        _event("gpu_memset", "Memset (Device)", 40.0, 0.5, correlation=9),
        _event("cuda_sync", "Event Sync", 41.0),
    ]
    assert work_in({"traceEvents": events, "baseTimeNanoseconds": 10**18}) == [
        GpuWork("sooner", 10**18 + 10_000, 10**18 + 20_000, 10**18 + 27_250),
        GpuWork("later", 10**18 + 12_500, 10**18 + 30_000, 10**18 + 35_000),
        GpuWork("Memset (Device)", None, 10**18 + 40_000, 10**18 + 40_500),
    ]


def test_a_kernel_belongs_to_the_node_that_launched_it_not_to_the_one_the_host_is_at() -> None:
    steps = [Step("", 0), Step("conv", 100), Step("relu", 200), Step("fc", 300)]
    work = [
        GpuWork("transform", 110, 400, 500),
        GpuWork("gemm", 150, 500, 900),
        GpuWork("memset", None, 900, 950),
        GpuWork("relu", 210, 960, 1000),
        GpuWork("gemv", 310, 1000, 1500),
    ]
    assert in_steps(work, steps, begin_ns=50) == [
        ("conv", pytest.approx(450e-9)),
        ("conv", pytest.approx(400e-9)),
        ("conv", pytest.approx(50e-9)),
        ("relu", pytest.approx(50e-9)),
        ("fc", pytest.approx(500e-9)),
    ]


@given(
    st.lists(st.tuples(st.none() | st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 1000)), min_size=1),
    st.lists(st.integers(0, 10**6), max_size=9),
)
def test_all_seconds_together_last_until_the_end(pieces: list[tuple[int | None, int, int]], begun: list[int]) -> None:
    work = sorted(
        (GpuWork("k", launched, begin, begin + took) for launched, begin, took in pieces),
        key=lambda piece: piece.begin_ns,
    )
    found = in_steps(work, [Step(str(begin), begin) for begin in sorted(begun)], begin_ns=0)
    assert len(found) == len(work)
    assert all(seconds >= 0 for _, seconds in found)
    assert sum(seconds for _, seconds in found) == pytest.approx(1e-9 * max(piece.end_ns for piece in work))


def test_a_profile_of_several_runs() -> None:
    events = [
        _event("Session", "model_loading_array", 1),
        _event("Node", "/op_b/Gemm_kernel_time", 30, op_name="Gemm"),
        _event("Node", "/op_a/Conv_kernel_time", 20, op_name="Conv"),
        _event("Node", "/op_a/Conv_fence_before", 19),
        _event("Session", "model_run", 15),
        _event("Node", "/op_a/Conv_kernel_time", 60, op_name="Conv"),
        _event("Session", "model_run", 55),
    ]
    first, second = steps_in(events, start_ns=7)
    assert first == [Step("/op_a/Conv", 20_007), Step("/op_b/Gemm", 30_007)]
    assert second == [Step("/op_a/Conv", 60_007)]


def _work_of_a_call(call: Callable[[], object]) -> list[GpuWork]:
    """As if a GPU had been busy throughout the call, in pieces launched right as they ran."""
    begin = time.time_ns()
    call()
    took = time.time_ns() - begin
    edges = [begin + took * piece // _PIECES for piece in range(_PIECES + 1)]
    return [GpuWork("gemm", start, start, end) for start, end in pairwise(edges)]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's CPU provider in the place of its CUDA provider."""
    as_in = lambda target: TorchRuntime(Target("torch", "cpu", target.threads))  # noqa: E731
    of = lambda target: Placement.of(Target("torch", "cpu", dtype=target.dtype))  # noqa: E731
    monkeypatch.setattr(onnx_cuda.OnnxCudaRuntime, "as_in", as_in)
    monkeypatch.setattr(torch_cuda, "Placement", SimpleNamespace(of=of))
    monkeypatch.setattr(onnx_cuda.OnnxCudaRuntime, "_on_gpu", lambda runtime: nullcontext())
    monkeypatch.setattr(onnx_cuda, "_PROVIDER", "CPUExecutionProvider")
    monkeypatch.setattr(onnx_cuda, "recorded", _work_of_a_call)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)


@pytest.mark.usefixtures("stand_in")
class TestOnAStandIn(RuntimeConformance):
    target = Target.parse("onnxruntime:cuda")


@pytest.mark.usefixtures("stand_in")
class TestChannelsLastOnAStandIn(RuntimeConformance):
    target = Target.parse("onnxruntime:cuda", threads=2, memory_format="channels_last")


@pytest.mark.usefixtures("stand_in")
def test_pieces_find_the_layer_whose_node_the_runtime_was_at(branches: nn.Module, example: torch.Tensor) -> None:
    """Against the clock of a real session: every convolution was at work while the call lasted."""
    runtime = open_runtime(Target.parse("onnxruntime:cuda"))
    network = fused(Network.trace(branches, example))
    session = runtime.network(candidate_for(branches, network, network.dense, (example,)))
    for _ in range(10):
        session.run()
        session.run_layers()
    reports = session.read_layers()
    convolutions = [i for i, layer in enumerate(network.layers) if layer.geometry.kind == "conv2d"]
    assert all(any(report[index] > 0 for report in reports) for index in convolutions)


@pytest.mark.usefixtures("stand_in")
def test_a_build_without_gpus_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_cuda, "_PROVIDER", "CUDAExecutionProvider")
    with pytest.raises(InvalidTarget, match=r"build for GPUs; this one has .*pip install 'widthwise\[onnx-gpu\]'"):
        open_runtime(Target.parse("onnxruntime:cuda"))


@pytest.mark.usefixtures("stand_in")
def test_a_provider_that_fell_back_to_the_cpu_is_refused(
    branches: nn.Module, example: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = open_runtime(Target.parse("onnxruntime:cuda"))
    network = fused(Network.trace(branches, example))
    monkeypatch.setattr(onnx_cuda, "_PROVIDER", "CUDAExecutionProvider")
    with (
        pytest.warns(UserWarning),
        pytest.raises(InvalidTarget, match="can't load its CUDA provider and fell back to the CPU"),
    ):
        runtime.network(candidate_for(branches, network, network.dense, (example,)))


@pytest.mark.usefixtures("stand_in")
def test_bfloat16_is_refused() -> None:
    with pytest.raises(InvalidTarget, match="float32 or float16"):
        open_runtime(Target.parse("onnxruntime:cuda", dtype="bfloat16"))


@pytest.mark.usefixtures("stand_in")
def test_without_the_package_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InvalidTarget, match=r"pip install 'widthwise\[onnx-gpu\]'"):
        open_runtime(Target.parse("onnxruntime:cuda"))


def test_a_gpu_whose_kernels_cannot_be_seen_says_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    class Blind:
        def __init__(self, activities: Any) -> None: ...

        def __enter__(self) -> Blind:
            return self

        def __exit__(self, *_: object) -> None: ...

        def export_chrome_trace(self, path: str) -> None:
            with open(path, "w") as file:
                json.dump({"traceEvents": []}, file)

    monkeypatch.setattr(cuda_trace, "profile", Blind)
    with pytest.raises(InvalidTarget, match=r"sees no kernels on this GPU.*torch:cuda needs no profiler"):
        cuda_trace.recorded(lambda: None)
