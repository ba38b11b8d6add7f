"""Every runtime, real or fake, keeps the promises of the seam."""

from __future__ import annotations

from fnmatch import fnmatch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from widthwise.luts.errors import InvalidTarget
from widthwise.luts.spec import Geometry, LayerSpec
from widthwise.network.network import Network
from widthwise.profiling.conformance import RuntimeConformance
from widthwise.profiling.runtimes import RUNTIMES, UnsupportedLayer, open_runtime
from widthwise.profiling.runtimes.cuda_timing import without_stamps
from widthwise.profiling.runtimes.torch_layers import build_layer
from widthwise.profiling.target import Target


class TestTorchCpu(RuntimeConformance):
    target = Target.parse("torch:cpu")


class TestTorchCpuChannelsLast(RuntimeConformance):
    target = Target.parse("torch:cpu", threads=2, memory_format="channels_last")


class TestTorchCpuBfloat16(RuntimeConformance):
    target = Target.parse("torch:cpu", dtype="bfloat16")


class TestTorchCompile(RuntimeConformance):
    target = Target.parse("torch-compile:cpu")


class TestOnnxRuntime(RuntimeConformance):
    target = Target.parse("onnxruntime:cpu")


class TestOnnxRuntimeTwoThreads(RuntimeConformance):
    target = Target.parse("onnxruntime:cpu", threads=2)


class TestOpenVino(RuntimeConformance):
    target = Target.parse("openvino:cpu")


class TestOpenVinoTwoThreads(RuntimeConformance):
    target = Target.parse("openvino:cpu", threads=2)


class TestOpenVinoBfloat16(RuntimeConformance):
    target = Target.parse("openvino:cpu", dtype="bfloat16")


class TestFake(RuntimeConformance):
    target = Target.parse("fake:cpu")


class TestTorchCuda(RuntimeConformance):
    target = Target.parse("torch:cuda")


class TestTorchCudaHalf(RuntimeConformance):
    target = Target.parse("torch:cuda", dtype="float16", memory_format="channels_last")


class TestTorchCudaBfloat16(RuntimeConformance):
    target = Target.parse("torch:cuda", dtype="bfloat16")


class TestCudaGraph(RuntimeConformance):
    target = Target.parse("torch-cudagraph:cuda")


class TestCudaGraphHalf(RuntimeConformance):
    target = Target.parse("torch-cudagraph:cuda", dtype="float16", memory_format="channels_last")


class TestOnnxRuntimeCuda(RuntimeConformance):
    target = Target.parse("onnxruntime:cuda")


class TestOnnxRuntimeCudaHalf(RuntimeConformance):
    target = Target.parse("onnxruntime:cuda", dtype="float16", memory_format="channels_last")


class TestTensorRt(RuntimeConformance):
    target = Target.parse("tensorrt:cuda")


class TestTensorRtHalf(RuntimeConformance):
    target = Target.parse("tensorrt:cuda", dtype="float16")


class TestTensorRtBfloat16(RuntimeConformance):
    target = Target.parse("tensorrt:cuda", dtype="bfloat16")


def test_all_runtimes_are_tried() -> None:
    tried = {f"{suite.target.runtime}:{suite.target.device}" for suite in RuntimeConformance.__subclasses__()}
    assert {next(name for name in RUNTIMES if fnmatch(target, name)) for target in tried} == set(RUNTIMES)


def test_layers_built_from_specs_have_their_shapes(network: Network) -> None:
    built = 0
    for spec in network.specs({"stem": 2, "inner": 3, "left": 5, "right": 7, "mixed": 11}):
        try:
            module, inputs = build_layer(spec)
        except UnsupportedLayer:
            continue
        output = module.eval()(*inputs)
        expected = tuple(size or spec.channels[-1] for size in spec.geometry.outputs[0])
        assert tuple(output.shape) == expected
        built += 1
    assert built >= 8


def test_an_unknown_kind_is_unsupported_not_zero() -> None:
    with pytest.raises(UnsupportedLayer, match="a foo layer can't be timed alone"):
        build_layer(LayerSpec(Geometry("foo", ((1, 0),), ((1, 0),)), (3,)))


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "a target is RUNTIME:DEVICE"),
        ("torch:cpu", {"threads": 0}, "threads must be at least 1, got 0"),
        ("torch:cpu", {"dtype": "int8"}, "dtype must be one of float32, bfloat16, float16, got 'int8'"),
    ],
)
def test_impossible_targets(text: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidTarget, match=message):
        Target.parse(text, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    "text", ["torch:cuda", "torch:cuda:1", "torch-cudagraph:cuda", "onnxruntime:cuda", "tensorrt:cuda"]
)
def test_a_gpu_target_without_a_gpu_says_what_helps(text: str) -> None:
    with pytest.raises(InvalidTarget, match=f"target {text} needs an NVIDIA GPU .* `widthwise device` .* torch:cpu"):
        open_runtime(Target.parse(text))


@given(st.lists(st.floats(1.0, 1e3), min_size=1, max_size=40), st.floats(0.3, 1.5))
def test_what_events_took_is_taken_off_every_layer_alike(gaps: list[float], share: float) -> None:
    whole = share * sum(gaps)
    layers = without_stamps(gaps, whole)
    taken = [gap - layer for gap, layer in zip(gaps, layers, strict=True)]
    assert all(0.05 * gap <= layer <= gap for gap, layer in zip(gaps, layers, strict=True))
    if share >= 1:
        assert layers == gaps
        return
    most = max(taken)  # whoever lost less was at its least
    assert all(
        loss == pytest.approx(most) or layer == pytest.approx(0.05 * gap)
        for gap, layer, loss in zip(gaps, layers, taken, strict=True)
    )
    at_least = sum(layer for gap, layer in zip(gaps, layers, strict=True) if layer > 0.0501 * gap)
    assert at_least <= whole * (1 + 1e-9)
    assert sum(layers) >= whole * (1 - 1e-9)


def test_without_a_whole_run_layers_stay_as_they_are() -> None:
    assert without_stamps([3.0, 1.0], None) == [3.0, 1.0]


@pytest.mark.parametrize("text", ["tpu:0", "torch:mars"])
def test_targets_that_are_not_here(text: str) -> None:
    with pytest.raises(InvalidTarget):
        open_runtime(Target.parse(text))


def test_targets_survive_a_table() -> None:
    target = Target.parse("torch:cpu", threads=2, dtype="bfloat16")
    assert Target.from_dict(dict(target.as_dict())) == target
    with pytest.raises(InvalidTarget, match="can't be read"):
        Target.from_dict({"runtime": "torch"})
