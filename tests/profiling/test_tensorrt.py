"""TensorRT's reports brought back to layers, and its runtime against a stand-in: no GPU, no TensorRT."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.profiling import tensorrt_stub
from widthwise.luts.errors import InvalidModel, InvalidTarget
from widthwise.network.fusion import fused
from widthwise.network.network import Network
from widthwise.profiling.conformance import RuntimeConformance
from widthwise.profiling.profiler import candidate_for
from widthwise.profiling.runtimes import Runtime, UnsupportedLayer, open_runtime, tensorrt_runtime, torch_cuda
from widthwise.profiling.runtimes.reports import by_layer
from widthwise.profiling.runtimes.tensorrt_reports import kernels_from, require_precision
from widthwise.profiling.runtimes.torch_eager import TorchRuntime
from widthwise.profiling.runtimes.torch_layers import Placement
from widthwise.profiling.target import Target

OWNERS = {"conv1": 0, "relu": 0, "conv2": 1, "add": 1, "pool": 2, "left": 3, "right": 4, "cat": 5, "fc": 6}

_FP32 = "Row major linear FP32"
_FP16 = "Channel major FP16 format where channel % 8 == 0"


def _nodes(*names: str) -> str:
    return "\x1f".join(f"[ONNX Layer: {name}]" for name in names)


def _inspected(*layers: object) -> str:
    return json.dumps({"Layers": layers, "Bindings": ["input", "/op_fc/result"]})


def _convolution(tactic: str, form: str = _FP32, weights: str = "Float", **more: object) -> dict[str, object]:
    return {
        "Name": "/op_conv1/Conv + /op_relu/Relu",
        "LayerType": "CaskConvolution",
        "Inputs": [{"Name": "input", "Location": "Device", "Dimensions": [1, 3, 8, 8], "Format/Datatype": form}],
        "Outputs": [{"Name": "/op_relu/Relu_output_0", "Dimensions": [1, 8, 8, 8], "Format/Datatype": form}],
        "ParameterType": "Convolution",
        "Weights": {"Type": weights, "Count": 216},
        "TacticName": tactic,
        "Metadata": _nodes("/op_conv1/Conv", "/op_relu/Relu"),
    } | more


ENGINE = _inspected(
    _convolution("sm80_xmma_fprop_implicit_gemm_f32f32_f32f32_f32_nhwckrsc_nhwc_tilesize128x128x8_stage3"),
    {"Name": "__myl_ConvAdd_myl1_0", "LayerType": "kgen", "Metadata": _nodes("/op_add/Add", "/op_conv2/Conv")},
    {"Name": "__myl_Max_myl2_0", "LayerType": "kgen", "Outputs": [{"Name": "/op_pool/MaxPool_output_0"}]},
    {"Name": "/op_cat/Concat_/op_left/Conv_output_0 copy", "LayerType": "Reformat", "Metadata": _nodes("/op_cat/Cat")},
    "[trainStation1]",
)
REPORT = [
    ("Reformatting CopyNode for Input Tensor 0 to /op_conv1/Conv + /op_relu/Relu", 1.0),
    ("/op_conv1/Conv + /op_relu/Relu", 2.0),
    ("__myl_ConvAdd_myl1_0", 4.0),
    ("[trainStation1]", 8.0),
    ("__myl_Max_myl2_0", 16.0),
    ("Reformatting CopyNode for Output Tensor 0 to /op_pool/MaxPool", 32.0),
    ("/op_left/Conv || /op_right/Conv", 64.0),
    ("/op_cat/Concat_/op_left/Conv_output_0 copy", 128.0),
    ("{ForeignNode[onnx::MatMul_99 + /op_fc/Gemm.../op_fc/Add]}", 256.0),
]


def test_a_report_becomes_layers() -> None:
    kernels = kernels_from(REPORT, ENGINE)
    assert by_layer(kernels, OWNERS) == [3.0, 12.0, 48.0, 32.0, 32.0, 128.0, 256.0]
    assert [kernel.seconds for kernel in kernels if kernel.copies] == [1.0, 32.0, 128.0]


def test_a_join_belongs_to_its_convolution_whatever_its_order() -> None:
    """The addition is the second convolution's by the rules of fusion; TensorRT may join it to another."""
    owners = {"conv1": 0, "conv2": 1, "add": 1}
    (kernel,) = kernels_from([("PWN(/op_add/Add) + op_conv1.weight + /op_conv1/Conv", 1.0)], _inspected())
    assert kernel.owner(owners) == 0


def test_a_copy_into_the_first_kernel_counts_with_it() -> None:
    report = [("Reformatting CopyNode for Input Tensor 0 to __myl_Conv_myl0_0", 1.0), ("__myl_Conv_myl0_0", 2.0)]
    engine = _inspected({"Name": "__myl_Conv_myl0_0", "Metadata": _nodes("/op_conv2/Conv")})
    assert by_layer(kernels_from(report, engine), OWNERS)[1] == 3.0


def test_kernels_of_the_same_name_are_told_apart_by_their_order() -> None:
    same = [{"Name": "gemm", "Metadata": _nodes(f"/op_{name}/Conv")} for name in ("left", "right")]
    assert by_layer(kernels_from([("gemm", 1.0), ("gemm", 2.0)], _inspected(*same)), OWNERS)[3:5] == [1.0, 2.0]


_NAMES = st.sampled_from([name for name, _ in REPORT] + ["signal_0", "(Unnamed Layer* 3) [Constant]"])


@given(st.lists(st.tuples(_NAMES, st.floats(0, 1.0)), max_size=30))
def test_no_time_is_lost_or_invented(report: list[tuple[str, float]]) -> None:
    report = [("/op_conv1/Conv + /op_relu/Relu", 1.0), *report]
    kernels = kernels_from(report, ENGINE)
    total = sum(seconds for _, seconds in report)
    assert sum(kernel.seconds for kernel in kernels) == pytest.approx(total)
    assert sum(by_layer(kernels, OWNERS)) == pytest.approx(total)


@pytest.mark.parametrize(
    ("dtype", "layer"),
    [
        ("float32", _convolution("sm80_xmma_fprop_implicit_gemm_f32f32_f32f32_f32_nhwckrsc_nhwc_tilesize128x128x8")),
        ("float32", _convolution("ampere_scudnn_128x64_relu_xregs_large_nn_v1")),
        ("float16", _convolution("sm80_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc", _FP16, "Half")),
        ("bfloat16", _convolution("sm80_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwc", "BFloat16", "BFloat16")),
        ("float16", {"Name": "/op_pool/MaxPool", "Inputs": [{"Format/Datatype": _FP32}]}),
        ("float16", {"Name": "Reformatting CopyNode for Input Tensor 0 to /op_fc/Gemm", "Inputs": [{"Type": "FP32"}]}),
        ("float32", "/op_conv1/Conv"),
    ],
)
def test_the_precision_asked_for(dtype: str, layer: object) -> None:
    require_precision(_inspected(layer), Target.parse("tensorrt:cuda", dtype=dtype))


@pytest.mark.parametrize(
    ("dtype", "layer", "other"),
    [
        ("float32", _convolution("sm80_xmma_fprop_implicit_gemm_f32f32_tf32f32_f32_nhwckrsc_nhwc_tilesize1"), "TF32"),
        ("float32", _convolution("sm80_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc"), "float16"),
        ("float32", _convolution("", weights="Half"), "float16"),
        ("float16", _convolution("", form=_FP32, weights="Half"), "float32"),
        ("float16", _convolution("sm80_xmma_fprop_implicit_gemm_i8i8_i8i32_f32_nchw", _FP16, "Half"), "int8"),
        ("float16", _convolution("", Inputs=[{"DataType": "Float", "Format": "Channel major"}]), "float32"),
        ("bfloat16", {"Name": "m", "Metadata": _nodes("/op_fc/Gemm"), "Inputs": [{"DataType": "Half"}]}, "float16"),
    ],
)
def test_another_precision_is_said(dtype: str, layer: dict[str, object], other: str) -> None:
    with pytest.raises(InvalidTarget, match=f"in {other} although {dtype} was asked for"):
        require_precision(_inspected(layer), Target.parse("tensorrt:cuda", dtype=dtype))


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The stand-in, with the CPU in place of the GPU."""
    module = tensorrt_stub.tensorrt()
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(
        torch_cuda.FusingCudaRuntime, "as_in", lambda target: TorchRuntime(Target("torch", "cpu", target.threads))
    )
    monkeypatch.setattr(
        torch_cuda,
        "Placement",
        SimpleNamespace(of=lambda target: Placement.of(Target("torch", "cpu", dtype=target.dtype))),
    )
    monkeypatch.setattr(tensorrt_runtime.TensorRtRuntime, "_on_gpu", lambda runtime: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(tensorrt_runtime, "_stream", tensorrt_stub.Stream)
    return module


@pytest.mark.usefixtures("trt")
class TestOnAStandIn(RuntimeConformance):
    target = Target.parse("tensorrt:cuda")


@pytest.mark.usefixtures("trt")
class TestHalfOnAStandIn(RuntimeConformance):
    target = Target.parse("tensorrt:cuda", dtype="float16")


def _open(dtype: str = "float32") -> Any:
    return open_runtime(Target.parse("tensorrt:cuda", dtype=dtype))


def _prepare(runtime: Runtime, model: nn.Module, example: torch.Tensor) -> None:
    network = fused(Network.trace(model, example))
    runtime.network(candidate_for(model, network, network.dense, (example,)))


def test_engines_are_strongly_typed_detailed_and_share_timings(
    trt: Any, branches: nn.Module, example: torch.Tensor
) -> None:
    runtime = _open()
    for _ in range(3):
        _prepare(runtime, branches, example)
    built = runtime._builder._builder.built
    assert {network.flags for network, _ in built} == {1 << 1}
    assert {config.profiling_verbosity for _, config in built} == {"detailed"}
    assert not any(config.flags for _, config in built)
    assert [config._cache.known for _, config in built] == [b"", b".", b".."]


def test_a_refused_operation_is_named(trt: Any, branches: nn.Module, example: torch.Tensor) -> None:
    trt.OnnxParser.refused = ("Concat",)
    with pytest.raises(
        InvalidModel, match=r"TensorRT can't run layer 'cat' of this network: /op_cat/Concat: In node 3"
    ):
        _prepare(_open(), branches, example)


def test_what_the_builder_says_is_kept(trt: Any, branches: nn.Module, example: torch.Tensor) -> None:
    trt.Builder.broken = "Error Code 10: Could not find any implementation for node /op_left/Conv + PWN(/op_relu/Relu)."
    with pytest.raises(InvalidModel, match=r"can't run layer 'left' of this network: Error Code 10"):
        _prepare(_open(), branches, example)


def test_a_layer_it_refuses_alone_may_still_be_timed_in_place(trt: Any, network: Network) -> None:
    trt.Builder.broken = "Error Code 4"
    with pytest.raises(UnsupportedLayer, match="can't be timed alone: TensorRT can't run this network: Error Code 4"):
        _open().layer(fused(network).specs(network.dense)[0])


def test_a_lone_layer_is_timed_without_copies(trt: Any, network: Network) -> None:
    spec = next(spec for spec in fused(network).specs(network.dense) if spec.geometry.kind == "conv2d")
    assert _open().layer(spec).run() >= tensorrt_stub.KERNEL_MS * 1e-3


def test_an_engine_in_another_precision_is_refused(
    trt: Any, monkeypatch: pytest.MonkeyPatch, branches: nn.Module, example: torch.Tensor
) -> None:
    monkeypatch.setitem(tensorrt_stub._FORMATS, "HALF", _FP32)
    with pytest.raises(InvalidTarget, match="in float32 although float16 was asked for"):
        _prepare(_open("float16"), branches, example)


def test_an_old_tensorrt_is_refused(trt: Any) -> None:
    trt.__version__ = "8.6.1"
    with pytest.raises(InvalidTarget, match=r"needs TensorRT 10 or newer; this is 8\.6\.1"):
        _open()


def test_without_the_package_the_command_is_named(trt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(InvalidTarget, match=r"pip install 'widthwise\[tensorrt\]'"):
        _open()


def test_its_memory_layout_is_its_own(trt: Any) -> None:
    with pytest.raises(InvalidTarget, match="chooses its memory layout itself"):
        open_runtime(Target.parse("tensorrt:cuda", memory_format="channels_last"))
