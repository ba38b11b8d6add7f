"""Exporting, what ONNX Runtime and OpenVINO report, and what they refuse."""

from __future__ import annotations

import json
import math
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from widthwise.luts.errors import InvalidModel, InvalidTarget
from widthwise.network.fusion import fused
from widthwise.network.network import Network
from widthwise.profiling.conformance import SmallNet
from widthwise.profiling.profiler import candidate_for
from widthwise.profiling.runtimes import ENTRY_POINTS, open_runtime
from widthwise.profiling.runtimes.deployment import deployable, output_names, owners
from widthwise.profiling.runtimes.onnx_export import export_onnx
from widthwise.profiling.runtimes.onnx_runtime import runs_in
from widthwise.profiling.runtimes.reports import Kernel, LoneLayer, by_layer
from widthwise.profiling.target import Target

ONNX_TARGETS = ("onnxruntime:cpu", "openvino:cpu")
WIDTHS = {"stem": 8, "inner": 5, "right": 7}


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return SmallNet().eval()


@pytest.fixture
def example() -> torch.Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def network(model: nn.Module, example: torch.Tensor) -> Network:
    return fused(Network.trace(model, example))


def test_batch_norms_are_folded_and_operations_named(model: nn.Module, network: Network, example: torch.Tensor) -> None:
    graph = deployable(model, network)
    parts = dict(graph.named_modules())
    assert not any(isinstance(part, nn.BatchNorm2d) for part in parts.values())
    assert {f"op_{layer.name}" for layer in network.layers} <= parts.keys()
    with torch.no_grad():
        torch.testing.assert_close(graph(example), model(example), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fails", [False, True], ids=["TorchScript", "torch.export"])
def test_either_exporter_names_nodes_after_operations(
    fails: bool, model: nn.Module, network: Network, example: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx

    if fails:
        monkeypatch.setattr("widthwise.profiling.runtimes.onnx_export._by_torchscript", _raising("no"))
    graph = deployable(model, network)
    exported = onnx.load_from_string(export_onnx(graph, (example,), output_names(graph)))
    onnx.checker.check_model(exported)
    convolutions = [node for node in exported.graph.node if node.op_type == "Conv"]
    assert sorted(node.name.split("/")[1] for node in convolutions) == [
        "op_depthwise", "op_inner", "op_left", "op_mixed", "op_outer", "op_right", "op_stem",
    ]  # fmt: skip
    assert exported.graph.output[0].name.startswith("/op_head/")


def test_what_neither_exporter_takes_keeps_both_messages(
    example: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("widthwise.profiling.runtimes.onnx_export._by_torchscript", _raising("no such operator"))
    monkeypatch.setattr("widthwise.profiling.runtimes.onnx_export._by_dynamo", _raising("nor here"))
    message = "the TorchScript exporter says: no such operator; the torch.export exporter says: nor here"
    with pytest.raises(InvalidModel, match=message):
        export_onnx(nn.ReLU(), (example,))


def _raising(message: str) -> Any:
    def fail(*args: object) -> bytes:
        raise RuntimeError(message)

    return fail


@pytest.mark.parametrize("target", ONNX_TARGETS)
def test_a_kernel_of_each_layer_is_found(
    target: str, model: nn.Module, network: Network, example: torch.Tensor
) -> None:
    """At widths the blocked layouts take and at others; only what was done in place may take no time."""
    runtime = open_runtime(Target.parse(target))
    for widths in (network.dense, network.dense | WIDTHS):
        with runtime.active():
            session = runtime.network(candidate_for(model, network, widths, (example,)))
            kernels = _kernels(session)
        assert sum(by_layer(kernels, owners(network))) == pytest.approx(sum(kernel.seconds for kernel in kernels))
        owned = {kernel.owner(owners(network)) for kernel in kernels}
        convolutions = {i for i, layer in enumerate(network.layers) if layer.geometry.kind in ("conv2d", "linear")}
        assert convolutions <= owned


def _kernels(session: Any) -> list[Kernel]:
    recorded = session._runner.run_profiled()
    return recorded[1] if isinstance(recorded, tuple) else session._runner.read_profile()[0]


names = st.sampled_from(
    ["ReorderInput", "ReorderOutput_token_3", "/op_a/Conv_nchwc", "/op_b/Gemm", "/op_c/Relu", "Cast"]
)


@given(st.lists(st.tuples(names, st.integers(0, 1000)), min_size=1))
def test_no_kernel_is_lost(run: list[tuple[str, int]]) -> None:
    kernels = [Kernel((name,), micros * 1e-6, forward=name.startswith("ReorderInput")) for name, micros in run]
    owner_of = {"a": 0, "b": 1, "c": 1}
    if not any(kernel.owner(owner_of) is not None for kernel in kernels):
        with pytest.raises(ValueError, match="no kernel of the report names an operation"):
            by_layer(kernels, owner_of)
        return
    seconds = by_layer(kernels, owner_of)
    assert math.isclose(sum(seconds), sum(kernel.seconds for kernel in kernels), abs_tol=1e-12)
    own = sum(kernel.seconds for kernel in kernels if "op_a" in kernel.names[0])
    assert seconds[0] >= own - 1e-12


def test_copies_count_with_the_layer_they_serve() -> None:
    run = [
        Kernel(("/op_a/Conv_nchwc",), 7.0),
        Kernel(("ReorderOutput",), 2.0),
        Kernel(("ReorderInput",), 3.0, forward=True),
        Kernel(("/op_b/Conv_nchwc",), 11.0),
    ]
    assert by_layer(run, {"a": 0, "b": 1}) == [9.0, 14.0]


def test_a_profile_is_read_run_by_run() -> None:
    def node(name: str, micros: int) -> dict[str, object]:
        return {"cat": "Node", "name": name, "dur": micros}

    ended = {"cat": "Session", "name": "model_run", "dur": 99}
    fence = {"cat": "Node", "name": "/op_a/Conv_fence_before", "dur": 50}  # of older versions
    runs = runs_in([fence, node("/op_a/Conv_kernel_time", 5), ended, node("/op_a/Conv_kernel_time", 6), ended])
    assert [[kernel.seconds for kernel in run] for run in runs] == [[pytest.approx(5e-6)], [pytest.approx(6e-6)]]


def test_a_layer_alone_is_its_kernels_share_of_a_call() -> None:
    run = [Kernel(("ReorderInput",), 2.0, copies=True), Kernel(("Conv",), 6.0)]
    layer = LoneLayer(lambda: 20.0, calls_s=[10.0, 10.0], runs=[run, run])
    assert layer.run() == pytest.approx(20.0 * 6.0 / 10.0)


def test_one_call_in_which_the_core_was_away_does_not_decide_a_layers_share() -> None:
    slow = [Kernel(("Conv",), 900.0)]
    layer = LoneLayer(lambda: 20.0, calls_s=[10.0] * 7 + [5000.0], runs=[[Kernel(("Conv",), 6.0)]] * 7 + [slow])
    assert layer.run() == pytest.approx(20.0 * 6.0 / 10.0)


def test_a_kernel_shorter_than_the_reports_resolution_has_its_mean() -> None:
    runs = [[Kernel(("Conv",), micros * 1e-6)] for micros in (0, 0, 1, 0, 0, 1, 0, 0)]
    layer = LoneLayer(lambda: 8e-6, calls_s=[8e-6] * 8, runs=runs)
    assert layer.run() == pytest.approx(0.25e-6)


@pytest.mark.parametrize(("package", "target"), [("onnxruntime", "onnxruntime:cpu"), ("openvino", "openvino:cpu")])
def test_a_runtime_that_is_not_installed_names_the_command(
    package: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    extra = "onnx" if package == "onnxruntime" else "openvino"
    with pytest.raises(InvalidTarget, match=rf"needs the package {package}.*pip install 'widthwise\[{extra}\]'"):
        open_runtime(Target.parse(target))


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("onnxruntime:cpu", {"dtype": "bfloat16"}, "onnxruntime:cpu runs float32"),
        ("onnxruntime:cpu", {"memory_format": "channels_last"}, "chooses its memory layout itself"),
        ("openvino:cpu", {"memory_format": "channels_last"}, "chooses its memory layout itself"),
        ("openvino:toaster", {}, "OpenVINO finds no device TOASTER here; there are: openvino:cpu"),
    ],
)
def test_targets_they_have_not_got(target: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidTarget, match=message):
        open_runtime(Target.parse(target, **options))


@pytest.mark.parametrize("target", ONNX_TARGETS)
def test_an_operator_a_runtime_has_not_got_is_named_with_its_layer(target: str) -> None:
    import onnx

    runtime: Any = open_runtime(Target.parse(target))
    value = onnx.helper.make_tensor_value_info
    shape = [1, 3, 5, 5]
    node = onnx.helper.make_node("Mystery", ["x"], ["y"], name="/op_norm_1/Mystery", domain="nobody.knows")
    graph = onnx.helper.make_graph([node], "g", [value("x", 1, shape)], [value("y", 1, shape)])
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("nobody.knows", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    with pytest.raises(InvalidModel, match=r"can't run .*Mystery"):
        runtime._runner(model.SerializeToString(), (torch.zeros(shape),))


def test_precision_that_was_not_asked_for_is_refused() -> None:
    runtime: Any = open_runtime(Target.parse("openvino:cpu"))

    class Compiled:
        def get_property(self, name: str) -> Any:
            return type("Type", (), {"get_type_name": lambda self: "bf16"})() if "PRECISION" in name else 1

    with pytest.raises(InvalidTarget, match="computes in bf16 on CPU although float32 was asked for"):
        runtime._require_obedience(Compiled())


def test_thread_settings_that_were_ignored_are_refused() -> None:
    runtime: Any = open_runtime(Target.parse("openvino:cpu", threads=2))

    class Compiled:
        def get_property(self, name: str) -> Any:
            return type("Type", (), {"get_type_name": lambda self: "f32"})() if "PRECISION" in name else 7

    with pytest.raises(InvalidTarget, match="runs 7 threads although 2 were asked for"):
        runtime._require_obedience(Compiled())


class _EntryPoint:
    def __init__(self, name: str, value: str) -> None:
        self.name, self.value = name, value


def test_runtimes_of_others_are_found_by_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    place = "widthwise.profiling.runtimes.fake:FakeRuntime"
    others = [_EntryPoint("abacus:cpu", place), _EntryPoint("broken:cpu", "nowhere.at.all:Runtime")]
    monkeypatch.setattr(metadata, "entry_points", lambda group: others if group == ENTRY_POINTS else [])
    assert open_runtime(Target.parse("abacus:cpu")).versions() == {"fake": "1"}
    with pytest.raises(InvalidTarget, match=r"broken:cpu can't be loaded from nowhere\.at\.all:Runtime"):
        open_runtime(Target.parse("broken:cpu"))
    with pytest.raises(InvalidTarget, match="there are abacus:cpu, broken:cpu, fake:cpu"):
        open_runtime(Target.parse("slide-rule:cpu"))


@pytest.mark.parametrize("target", ONNX_TARGETS)
def test_profile_files_are_cleared_away(
    target: str,
    model: nn.Module,
    network: Network,
    example: torch.Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    runtime = open_runtime(Target.parse(target))
    with runtime.active():
        session = runtime.network(candidate_for(model, network, network.dense, (example,)))
        session.run_layers()
        json.dumps(session.read_layers())
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
