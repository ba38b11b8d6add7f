"""What every runtime that executes PyTorch modules shares: where a model is put, and single layers built from specs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import fx, nn

from widthwise.luts.spec import FREE, Geometry, LayerSpec
from widthwise.network import narrowing
from widthwise.network.fusion import split_tail
from widthwise.network.network import Network
from widthwise.profiling.runtimes.base import UnsupportedLayer
from widthwise.profiling.target import Target

__all__ = ["REFERENCE_CONVOLUTIONS", "Placement", "build_layer", "square_convolution", "tensors", "with_stamps"]

REFERENCE_CONVOLUTIONS = ((64, 56), (512, 7))
"""(channels, size) of the 3×3 convolutions that make the reference on CPUs: one bound by arithmetic, with activations
that fit a private cache only in part; one by streaming 9 MB of weights.

Together they must leave the private caches as networks do. A reference inside the L2 cache keeps its pace when a
neighbour takes cache and memory, while a network takes twice as long; see ``benchmarks/reference.py``.
"""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Placement:
    """Device, dtype and memory format of models and their inputs.

    Example:
        >>> Placement.of(Target.parse("torch:cpu", dtype="bfloat16")).place(torch.zeros(1, 3)).dtype
        torch.bfloat16
    """

    device: torch.device
    dtype: torch.dtype
    memory_format: torch.memory_format

    @classmethod
    def of(cls, target: Target) -> Self:
        """As a target says."""
        layout = torch.channels_last if target.memory_format == "channels_last" else torch.contiguous_format
        return cls(torch.device(target.device), _DTYPES[target.dtype], layout)

    def deploy(self, model: nn.Module) -> nn.Module:
        """The model for inference here; the one given keeps its own weights, which it may share with the user's."""
        untouched = self.device.type == "cpu" and self.dtype is torch.float32
        if not untouched or self.memory_format is not torch.contiguous_format:
            model = copy.deepcopy(model)  # converting happens in place
        return model.eval().to(self.device, self.dtype).to(memory_format=self.memory_format)

    def place(self, tensor: torch.Tensor) -> torch.Tensor:
        """An input of such a model."""
        tensor = tensor.to(self.device, self.dtype if tensor.is_floating_point() else tensor.dtype)
        return tensor.to(memory_format=self.memory_format) if tensor.dim() == 4 else tensor


def with_stamps(graph: fx.GraphModule, network: Network, stamp: Callable[[], None]) -> fx.GraphModule:
    """The traced graph (changed), with a call of ``stamp`` after each of the network's layers."""
    names = {layer.name for layer in network.layers}
    for node in list(graph.graph.nodes):
        if node.name in names:
            with graph.graph.inserting_after(node):
                graph.graph.call_function(stamp)
    graph.recompile()
    return graph


def tensors(output: object) -> tuple[torch.Tensor, ...]:
    """What a model gave, one tensor or several in tuples, lists and dicts, as float32 on the CPU."""
    return tuple(tensor.detach().to("cpu", torch.float32) for tensor in narrowing.tensors(output))


def square_convolution(channels: int, size: int, *, batch: int = 1) -> LayerSpec:
    """A 3×3 convolution that keeps its shape."""
    shape = (batch, FREE, size, size)
    options = (
        ("kernel", (3, 3)), ("stride", (1, 1)), ("padding", (1, 1)), ("dilation", (1, 1)), ("groups", 1),
        ("bias", False),
    )  # fmt: skip
    return LayerSpec(Geometry("conv2d", (shape,), (shape,), options), (channels, channels))


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
    geometry, tail = split_tail(spec.geometry)
    generator = torch.Generator().manual_seed(0)
    first, last = (spec.channels[0], spec.channels[-1]) if spec.channels else (1, 1)
    inputs = [_random(shape, first, generator) for shape in geometry.inputs]
    inputs += [_random(shape, last, generator) for shape in spec.geometry.inputs[len(geometry.inputs) :]]
    module = _operation(LayerSpec(geometry, spec.channels))
    return (_WithTail(module, len(geometry.inputs), tail) if tail else module), inputs


class _WithTail(nn.Module):
    """An operation and what a runtime fuses into it; inputs beyond the operation's own are added."""

    def __init__(self, head: nn.Module, inputs: int, tail: Sequence[str]) -> None:
        super().__init__()
        self.head = head
        self._inputs = inputs
        self._kinds = [kind.partition("(")[0] for kind in tail]
        self._activations = nn.ModuleDict({kind: _activation(kind) for kind in self._kinds if kind != "add"})

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(*inputs[: self._inputs])
        added = iter(inputs[self._inputs :])
        for kind in self._kinds:
            result = result + next(added) if kind == "add" else self._activations[kind](result)
        return result


def _activation(kind: str) -> nn.Module:
    if kind not in _MODULES:
        raise UnsupportedLayer(f"a layer with a {kind} fused in can't be timed alone; it is timed in place")
    return _MODULES[kind]()


def _operation(spec: LayerSpec) -> nn.Module:
    geometry = spec.geometry
    if geometry.kind in _CONVOLUTIONS:
        return _convolution(spec)
    if geometry.kind == "linear":
        return nn.Linear(spec.channels[0], spec.channels[1], bias=bool(geometry.option("bias")))
    if geometry.kind == "batch_norm2d":
        return nn.BatchNorm2d(spec.channels[0])
    if geometry.kind in _MODULES:
        return _MODULES[geometry.kind]()
    if geometry.kind in ("add", "iadd") and len(geometry.inputs) == 2:
        return _Add()
    raise UnsupportedLayer(f"a {geometry.kind} layer can't be timed alone; it is timed in place")


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
