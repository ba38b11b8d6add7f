"""Every runtime, real or fake, keeps the promises of the seam."""

from __future__ import annotations

import pytest

from widthwise.luts.errors import InvalidTarget
from widthwise.luts.spec import Geometry, LayerSpec
from widthwise.network.network import Network
from widthwise.profiling.conformance import RuntimeConformance
from widthwise.profiling.runtimes import RUNTIMES, UnsupportedLayer, open_runtime
from widthwise.profiling.runtimes.torch_layers import build_layer
from widthwise.profiling.target import Target


class TestTorchCpu(RuntimeConformance):
    target = Target.parse("torch:cpu")


class TestTorchCpuChannelsLast(RuntimeConformance):
    target = Target.parse("torch:cpu", threads=2, memory_format="channels_last")


class TestTorchCpuBfloat16(RuntimeConformance):
    target = Target.parse("torch:cpu", dtype="bfloat16")


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


def test_all_runtimes_are_tried() -> None:
    tried = {f"{suite.target.runtime}:{suite.target.device}" for suite in RuntimeConformance.__subclasses__()}
    assert tried == set(RUNTIMES)


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


@pytest.mark.parametrize("text", ["tpu:0", "torch:mars"])
def test_targets_that_are_not_here(text: str) -> None:
    with pytest.raises(InvalidTarget):
        open_runtime(Target.parse(text))


def test_targets_survive_a_table() -> None:
    target = Target.parse("torch:cpu", threads=2, dtype="bfloat16")
    assert Target.from_dict(dict(target.as_dict())) == target
    with pytest.raises(InvalidTarget, match="can't be read"):
        Target.from_dict({"runtime": "torch"})
