"""Every runtime, real or fake, keeps the promises of the seam."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from widthwise.luts.errors import InvalidTarget
from widthwise.luts.spec import Geometry, LayerSpec
from widthwise.network.network import Network
from widthwise.profiling.profiler import candidate_for
from widthwise.profiling.runtimes import RUNTIMES, Runtime, UnsupportedLayer, open_runtime
from widthwise.profiling.runtimes.torch_eager import build_layer
from widthwise.profiling.target import Target

TARGETS = [Target.parse("torch:cpu"), Target.parse("torch:cpu", dtype="bfloat16"), Target.parse("fake:cpu")]


@pytest.fixture(params=TARGETS, ids=str)
def runtime(request: pytest.FixtureRequest) -> Runtime:
    return open_runtime(request.param)


def test_all_runtimes_are_tried() -> None:
    assert {target.runtime for target in TARGETS} == set(RUNTIMES)


def test_sessions_report_positive_seconds(
    runtime: Runtime, branches: nn.Module, network: Network, example: torch.Tensor
) -> None:
    references = runtime.references()
    assert references.compute.run() > 0
    assert references.memory.run() > 0
    session = runtime.network(candidate_for(branches, network, network.dense | {"stem": 5}, (example,)))
    assert session.run() > 0
    layers = session.run_layers()
    assert len(layers) == len(network.layers)
    assert all(seconds > 0 for seconds in layers)


def test_every_dense_convolution_can_be_timed_alone(runtime: Runtime, network: Network) -> None:
    for layer, spec in zip(network.layers, network.specs(network.dense), strict=True):
        if layer.geometry.kind == "conv2d":
            assert runtime.layer(spec).run() > 0


def test_preparing_leaves_the_users_model_alone(
    runtime: Runtime, branches: nn.Module, network: Network, example: torch.Tensor
) -> None:
    before = branches(example)
    runtime.network(candidate_for(branches, network, network.dense, (example,))).run()
    assert torch.equal(branches(example), before)
    assert all(parameter.dtype == torch.float32 for parameter in branches.parameters())


def test_versions_are_named(runtime: Runtime) -> None:
    assert all(runtime.versions().values())


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
