"""Eager PyTorch on the CPU: what ``model.eval()(x)`` under ``inference_mode`` takes.

Layers are timed in place by time stamps that are compiled into the traced graph between operations; a stamp
costs about a tenth of a microsecond, so the layers sum to the network without a profiler's overhead.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import fx, nn

from widthwise.luts.errors import InvalidTarget
from widthwise.luts.spec import FREE, Geometry, LayerSpec
from widthwise.network.network import Network, trace_runnable
from widthwise.profiling.memory import keep_memory
from widthwise.profiling.pinning import pinned
from widthwise.profiling.runtimes.base import (
    Candidate,
    NetworkSession,
    References,
    Runtime,
    Session,
    UnsupportedLayer,
)
from widthwise.profiling.target import Target

__all__ = ["TorchRuntime"]

_REFERENCE_KERNELS = ((64, 56), (512, 7))
"""(channels, size) of the 3×3 convolutions that make the reference: one bound by arithmetic, with activations that
fit a private cache only in part; one by streaming 9 MB of weights.

Together they must leave the private caches as networks do. A reference inside the L2 cache keeps its pace when a
neighbour takes cache and memory, while a network takes twice as long; see ``benchmarks/reference.py``.
"""


class TorchRuntime(Runtime):
    """The ``torch:cpu`` target.

    Raises:
        InvalidTarget: the device isn't ``cpu``, or the dtype has no CPU kernels.
    """

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        if target.device != "cpu":
            raise InvalidTarget(f"target torch:{target.device} is not supported yet; use torch:cpu")
        if target.dtype == "float16":
            raise InvalidTarget("torch:cpu runs float32 or bfloat16; float16 convolutions have no fast CPU kernels")

    @property
    def _dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.target.dtype == "bfloat16" else torch.float32

    @property
    def _memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.target.memory_format == "channels_last" else torch.contiguous_format

    def versions(self) -> dict[str, str]:
        return {"torch": torch.__version__}

    def references(self) -> References:
        return References(*(self.layer(_square_convolution(*kernel)) for kernel in _REFERENCE_KERNELS))

    @contextmanager
    def active(self) -> Iterator[None]:
        threads = torch.get_num_threads()
        torch.set_num_threads(self.target.threads)
        keep_memory()
        try:
            with pinned(self.target.threads):
                yield
        finally:
            torch.set_num_threads(threads)

    def network(self, candidate: Candidate) -> NetworkSession:
        model = self._deploy(candidate.build())
        return _EagerNetwork(model, [self._input(tensor) for tensor in candidate.example], candidate.network)

    def layer(self, spec: LayerSpec) -> Session:
        operation, inputs = build_layer(spec)
        return _EagerLayer(self._deploy(operation), [self._input(tensor) for tensor in inputs])

    def _deploy(self, model: nn.Module) -> nn.Module:
        if self._dtype is not torch.float32 or self._memory_format is not torch.contiguous_format:
            model = copy.deepcopy(model)  # converting happens in place, and the model may share its weights
        return model.eval().to(self._dtype).to(memory_format=self._memory_format)

    def _input(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point():
            tensor = tensor.to(self._dtype)
        return tensor.to(memory_format=self._memory_format) if tensor.dim() == 4 else tensor


def _square_convolution(channels: int, size: int) -> LayerSpec:
    shape = (1, FREE, size, size)
    options = (
        ("kernel", (3, 3)), ("stride", (1, 1)), ("padding", (1, 1)), ("dilation", (1, 1)), ("groups", 1),
        ("bias", False),
    )  # fmt: skip
    return LayerSpec(Geometry("conv2d", (shape,), (shape,), options), (channels, channels))


class _EagerLayer(Session):
    def __init__(self, model: nn.Module, inputs: list[torch.Tensor]) -> None:
        self._model = model
        self._inputs = inputs

    def run(self) -> float:
        with torch.inference_mode():
            start = time.perf_counter_ns()
            self._model(*self._inputs)
            return (time.perf_counter_ns() - start) * 1e-9


class _EagerNetwork(_EagerLayer, NetworkSession):
    def __init__(self, model: nn.Module, inputs: list[torch.Tensor], network: Network) -> None:
        super().__init__(model, inputs)
        self._stamps: list[int] = []
        self._stamped = _with_stamps(trace_runnable(model, network), network, self._stamps)

    def run_layers(self) -> Sequence[float]:
        stamps = self._stamps
        stamps.clear()
        with torch.inference_mode():
            stamps.append(time.perf_counter_ns())
            self._stamped(*self._inputs)
        return [(after - before) * 1e-9 for before, after in pairwise(stamps)]


def _with_stamps(graph: fx.GraphModule, network: Network, stamps: list[int]) -> fx.GraphModule:
    def stamp() -> None:
        stamps.append(time.perf_counter_ns())

    names = {layer.name for layer in network.layers}
    for node in list(graph.graph.nodes):
        if node.name in names:
            with graph.graph.inserting_after(node):
                graph.graph.call_function(stamp)
    graph.recompile()
    return graph


_MODULES: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
}
_CONVOLUTIONS: dict[str, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {
    "conv1d": nn.Conv1d,
    "conv2d": nn.Conv2d,
    "conv3d": nn.Conv3d,
}


class _Add(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a + b


def build_layer(spec: LayerSpec) -> tuple[nn.Module, list[torch.Tensor]]:
    """The layer as a module with random weights, and inputs of its shapes.

    Raises:
        UnsupportedLayer: the kind can't be built from its spec.
    """
    geometry = spec.geometry
    generator = torch.Generator().manual_seed(0)
    inputs = [_random(shape, spec.channels[0] if spec.channels else 1, generator) for shape in geometry.inputs]
    if geometry.kind in _CONVOLUTIONS:
        return _convolution(spec), inputs
    if geometry.kind == "linear":
        return nn.Linear(spec.channels[0], spec.channels[1], bias=bool(geometry.option("bias"))), inputs
    if geometry.kind == "batch_norm2d":
        return nn.BatchNorm2d(spec.channels[0]), inputs
    if geometry.kind in _MODULES:
        return _MODULES[geometry.kind](), inputs
    if geometry.kind in ("add", "iadd") and len(inputs) == 2:
        return _Add(), inputs
    raise UnsupportedLayer(f"a {geometry.kind} layer can't be timed alone in eager PyTorch; it is timed in place")


def _convolution(spec: LayerSpec) -> nn.Module:
    geometry = spec.geometry
    options = dict(geometry.options)
    depthwise = options["groups"] == "depthwise"
    inputs, outputs = spec.channels * 2 if depthwise else spec.channels
    return _CONVOLUTIONS[geometry.kind](
        inputs,
        outputs,
        kernel_size=options["kernel"],  # type: ignore[arg-type]
        stride=options["stride"],  # type: ignore[arg-type]
        padding=options["padding"],  # type: ignore[arg-type]
        dilation=options["dilation"],  # type: ignore[arg-type]
        groups=inputs if depthwise else int(str(options["groups"])),
        bias=bool(options["bias"]),
    )


def _random(shape: tuple[int, ...], channels: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn([size or channels for size in shape], generator=generator)
