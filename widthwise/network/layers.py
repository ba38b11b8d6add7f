"""Layers: each operation of a traced network, with its channel counts as affine functions of the widths.

The network is traced with ``torch.fx``; channel labels then flow from operation to operation. That gives
the shape of what has no parameters (adds, concatenations, pools), and checks the dependency graph: where
the labels that arrive at a module aren't those its coupling says, the groups involved are locked, with the
reason, rather than narrowed to a wrong shape.
"""

from __future__ import annotations

import io
import math
import operator
import re
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from widthwise.luts.spec import FREE, Geometry, LayerSpec, Option
from widthwise.network.groups import FIXED, NARROWABLE, Coupling, Labels, is_depthwise
from widthwise.network.widths import Affine, Widths

__all__ = ["Channels", "Flow", "Layer", "is_layer", "kind_of"]

_PASSING_FUNCTIONS = frozenset(
    {
        "add",
        "iadd",
        "add_",
        "sub",
        "isub",
        "mul",
        "imul",
        "mul_",
        "truediv",
        "div",
        "relu",
        "relu_",
        "relu6",
        "hardtanh",
        "hardtanh_",
        "hardswish",
        "hardsigmoid",
        "sigmoid",
        "silu",
        "gelu",
        "elu",
        "leaky_relu",
        "tanh",
        "mish",
        "softplus",
        "dropout",
        "dropout_",
        "dropout2d",
        "feature_dropout",
        "max_pool1d",
        "max_pool2d",
        "max_pool3d",
        "avg_pool1d",
        "avg_pool2d",
        "avg_pool3d",
        "adaptive_avg_pool1d",
        "adaptive_avg_pool2d",
        "adaptive_avg_pool3d",
        "adaptive_max_pool2d",
        "interpolate",
        "mean",
        "clone",
        "contiguous",
        "float",
        "stochastic_depth",
        "boolean_dispatch",
        "clamp",
        "abs",
        "neg",
        "identity",
        "detach",
    }
)
"""Functions that keep channels apart and in order."""

_PASSING_MODULES = frozenset(
    f"torch.nn.modules.{name}" for name in ("activation", "pooling", "dropout", "padding", "upsampling", "linear")
)
_MIXING_MODULES = (nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin, nn.GLU, nn.MultiheadAttention, nn.Bilinear)
_RESHAPES = frozenset(("flatten", "reshape", "view", "Flatten", "squeeze"))


@dataclass(frozen=True, slots=True)
class Channels:
    """Where a tensor's channels are and to which groups they belong."""

    axis: int
    labels: Labels


@dataclass(frozen=True, slots=True)
class Layer:
    """One operation of a network.

    Args:
        name: of the operation in the traced graph; unique.
        path: module path it belongs to, in the user's own names.
        geometry: the operation without its channel counts.
        axes: (input, output) sizes of what has two widths; one size of what has one; empty where channels
            play no role.
    """

    name: str
    path: str
    geometry: Geometry
    axes: tuple[Affine, ...]

    def spec(self, widths: Widths) -> LayerSpec:
        """The layer at these widths."""
        return LayerSpec(self.geometry, tuple(axis(widths) for axis in self.axes))

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups its latency depends on."""
        return tuple(sorted({group for axis in self.axes for group in axis.groups}))


def is_layer(node: fx.Node) -> bool:
    """Whether a traced operation computes tensors, and so is timed."""
    return node.op in ("call_module", "call_function", "call_method") and bool(_shapes(node))


def kind_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    """The operation's name in PyTorch's own terms, the same for ``nn.ReLU`` and ``torch.relu``."""
    name = _callee(node, modules)
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.replace("ReLU", "Relu").replace("SiLU", "Silu")).lower()
    return snake.removesuffix("_") if not snake.startswith("_") else snake


class Flow:
    """Channel labels flowing through a traced network.

    Args:
        graph: traced module whose nodes carry ``tensor_meta`` (from ``ShapeProp``).
        coupling: the groups; those where the graph disagrees get locked.

    After construction :attr:`channels` maps node name → :class:`Channels`.
    """

    def __init__(self, graph: fx.GraphModule, coupling: Coupling) -> None:
        self._graph = graph
        self._coupling = coupling
        self._modules = dict(graph.named_modules())
        self.channels: dict[str, Channels] = {}
        while True:
            before = self._locked()
            self._run()
            if self._locked() == before:
                break

    def _locked(self) -> int:
        return sum(group.locked is not None for group in self._coupling.groups)

    def _run(self) -> None:
        self.channels = {}
        for node in self._graph.graph.nodes:
            if node.op == "output":
                for source in node.all_input_nodes:
                    self._lock(self._labels(source), "it is the network's output")
                continue
            found = self._through(node)
            if found is not None:
                self.channels[node.name] = found
                self._require_affine(node, found.labels)

    def _through(self, node: fx.Node) -> Channels | None:
        shapes = _shapes(node)
        if len(shapes) != 1:
            self._lock_inputs(node, f"flows into {node.target!s}, which isn't followed")
            return None
        shape = shapes[0]
        if node.op == "placeholder" or node.op == "get_attr":
            return _fixed(shape)
        if node.op == "call_module":
            module = self._modules[str(node.target)]
            if isinstance(module, NARROWABLE):
                return self._through_narrowable(node, str(node.target), module, shape)
        name = _callee(node, self._modules)
        if name in _RESHAPES:
            return self._through_reshape(node, shape)
        if name in ("cat", "concat", "concatenate"):
            return self._through_cat(node, shape)
        if self._passes(node, name):
            return self._through_passing(node, shape)
        self._lock_inputs(node, f"flows into {name!r}, which may mix or move channels")
        return _fixed(shape)

    def _passes(self, node: fx.Node, name: str) -> bool:
        if node.op != "call_module":
            return name in _PASSING_FUNCTIONS and not _reduces_channels(node, name)
        module = self._modules[str(node.target)]
        return (
            type(module).__module__ in _PASSING_MODULES
            and not isinstance(module, _MIXING_MODULES)
            and not any(True for _ in module.parameters())
        )

    def _through_narrowable(self, node: fx.Node, path: str, module: nn.Module, shape: tuple[int, ...]) -> Channels:
        axis = len(shape) - 1 if isinstance(module, nn.Linear) else 1
        arriving = self._labels(node.all_input_nodes[0], axis)
        expected = self._coupling.free(self._coupling.inputs.get(path, self._coupling.outputs[path]))
        if len(arriving) != len(expected) or not np.array_equal(arriving, expected):
            reason = f"its channels can't be followed through {path!r}"
            self._lock(arriving, reason)
            self._lock(expected, reason)
        return Channels(axis, self._coupling.free(self._coupling.outputs[path]))

    def _through_reshape(self, node: fx.Node, shape: tuple[int, ...]) -> Channels:
        source = node.all_input_nodes[0]
        before = _shapes(source)[0]
        labels = self._labels(source)
        if before == shape or (len(shape) >= 2 and shape[:2] == before[:2] and math.prod(shape) == math.prod(before)):
            return Channels(1, labels)
        if len(shape) == 2 and len(before) > 2 and shape == (before[0], math.prod(before[1:])):
            return Channels(1, np.repeat(labels, math.prod(before[2:])))
        self._lock_inputs(node, f"is reshaped from {before} to {shape}, which isn't followed")
        return _fixed(shape)

    def _through_cat(self, node: fx.Node, shape: tuple[int, ...]) -> Channels:
        axis = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        parts = node.args[0] if node.args else node.kwargs["tensors"]
        if axis in (1, 1 - len(shape)) and isinstance(parts, list | tuple):
            return Channels(1, np.concatenate([self._labels(part) for part in parts]))
        self._lock_inputs(node, "is concatenated along another axis than the channels")
        return _fixed(shape)

    def _through_passing(self, node: fx.Node, shape: tuple[int, ...]) -> Channels:
        """What keeps channels apart; several inputs must agree channel by channel."""
        if len(shape) < 2:
            self._lock_inputs(node, f"loses its channel axis in {node.target!s}")
            return _fixed(shape)
        arriving = [self._labels(source) for source in node.all_input_nodes if _shapes(source)]
        full = [labels for labels in arriving if len(labels) == shape[1]]
        agree = bool(full) and all(np.array_equal(labels, full[0]) for labels in full)
        if not agree or any(len(labels) not in (0, 1, shape[1]) for labels in arriving):
            self._lock_inputs(node, f"meets other channels in {node.name!r}")
            return _fixed(shape)
        return Channels(1, full[0])

    def _labels(self, source: Any, axis: int = 1) -> Labels:
        """Labels of a tensor along ``axis``; those of a tensor whose channels lie elsewhere are fixed."""
        shapes = _shapes(source) if isinstance(source, fx.Node) else []
        if len(shapes) != 1:
            return np.zeros(0, dtype=np.int64)
        found = self.channels.get(source.name)
        if found is not None and found.axis == axis:
            return self._coupling.free(found.labels)
        if found is not None:
            self._lock(found.labels, f"its channels lie on axis {found.axis} where axis {axis} is read")
        return np.full(shapes[0][axis] if len(shapes[0]) > axis else 0, FIXED, dtype=np.int64)

    def _lock(self, labels: Labels, reason: str) -> None:
        for owner in self._coupling.owners(labels):
            self._coupling.lock(owner, reason)

    def _lock_inputs(self, node: fx.Node, reason: str) -> None:
        for source in node.all_input_nodes:
            found = self.channels.get(source.name)
            if found is not None:
                self._lock(found.labels, reason)

    def _require_affine(self, node: fx.Node, labels: Labels) -> None:
        """Each channel of a group must appear equally often, else the size is no function of the width."""
        for owner in self._coupling.owners(self._coupling.free(labels)):
            mine = labels[(labels != FIXED) & (labels >> 32 == owner)]
            counts = np.bincount(self._coupling.channel(mine), minlength=self._coupling.groups[owner].size)
            if counts.min() != counts.max():
                self._coupling.lock(owner, f"only part of its channels reach {node.name!r}")

    def affine(self, labels: Labels) -> Affine:
        """The number of channels as a function of the widths."""
        labels = self._coupling.free(labels)
        terms = []
        for owner in self._coupling.owners(labels):
            group = self._coupling.groups[owner]
            terms.append((group.name, int(np.sum((labels != FIXED) & (labels >> 32 == owner))) // group.size))
        return Affine(tuple(sorted(terms)), int(np.sum(labels == FIXED)))

    def layers(self) -> tuple[Layer, ...]:
        """Every operation that computes tensors, in order of execution."""
        return tuple(self._layer(node) for node in self._graph.graph.nodes if is_layer(node))

    def _layer(self, node: fx.Node) -> Layer:
        module = self._modules.get(str(node.target)) if node.op == "call_module" else None
        geometry = Geometry(
            kind_of(node, self._modules),
            tuple(self._free_shape(source) for source in node.all_input_nodes if _shapes(source)),
            tuple(self._free_shape(node, index) for index in range(len(_shapes(node)))),
            tuple(_options(node, module)),
        )
        path = str(node.target) if module is not None else _owner(node)
        return Layer(node.name, path, geometry, self._axes(node, module))

    def _axes(self, node: fx.Node, module: nn.Module | None) -> tuple[Affine, ...]:
        if isinstance(module, NARROWABLE):
            path = str(node.target)
            outputs = self.affine(self._coupling.outputs[path])
            if path not in self._coupling.inputs or is_depthwise(module):
                return (outputs,)
            return (self.affine(self._coupling.inputs[path]), outputs)
        if _callee(node, self._modules).startswith("cat") and node.name in self.channels:
            return (self.affine(self.channels[node.name].labels),)
        known = [self.channels[s.name] for s in node.all_input_nodes if s.name in self.channels]
        widest = max(known, key=lambda channels: len(channels.labels), default=None)
        return (self.affine(widest.labels),) if widest is not None and len(widest.labels) else ()

    def _free_shape(self, node: fx.Node, index: int = 0) -> tuple[int, ...]:
        shape = _shapes(node)[index]
        found = self.channels.get(node.name)
        if found is None or len(shape) <= found.axis:
            return shape
        return tuple(FREE if axis == found.axis else size for axis, size in enumerate(shape))


def _fixed(shape: tuple[int, ...]) -> Channels:
    return Channels(1, np.full(shape[1] if len(shape) >= 2 else 0, FIXED, dtype=np.int64))


def _shapes(node: fx.Node) -> list[tuple[int, ...]]:
    meta = node.meta.get("tensor_meta")
    if meta is None:
        return []
    if hasattr(meta, "shape"):
        return [tuple(meta.shape)]
    metas = meta.values() if isinstance(meta, dict) else meta
    return [tuple(part.shape) for part in metas if hasattr(part, "shape")]


def _callee(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    if node.op == "call_module":
        return type(modules[str(node.target)]).__name__
    if node.op == "call_method":
        return str(node.target)
    target: Callable[..., Any] | Any = node.target
    return str(getattr(target, "__name__", target))


def _owner(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack")
    return str(next(reversed(stack.values()))[0]) if stack else ""


def _reduces_channels(node: fx.Node, name: str) -> bool:
    """Whether a mean runs over the channel or batch axis (or over all axes)."""
    if name != "mean":
        return False
    dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    dims = [dims] if isinstance(dims, int) else dims
    rank = len(_shapes(node.all_input_nodes[0])[0])
    return not isinstance(dims, list | tuple) or any(not isinstance(d, int) or d % rank < 2 for d in dims)


def _options(node: fx.Node, module: nn.Module | None) -> list[tuple[str, Option]]:
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return [
            ("kernel", tuple(module.kernel_size)),
            ("stride", tuple(module.stride)),
            ("padding", module.padding if isinstance(module.padding, str) else tuple(module.padding)),
            ("dilation", tuple(module.dilation)),
            ("groups", "depthwise" if is_depthwise(module) else module.groups),
            ("bias", module.bias is not None),
        ]
    if isinstance(module, nn.Linear):
        return [("bias", module.bias is not None)]
    if isinstance(module, NARROWABLE):
        return []
    if module is not None:
        return [("args", module.extra_repr())] if module.extra_repr() else []
    if str(getattr(node.target, "__name__", node.target)) in _RESHAPES or node.target is operator.getitem:
        return []
    constants = [str(arg) for arg in node.args[1:] if isinstance(arg, int | float | bool | str)]
    constants += [str(arg) for arg in node.args[1:] if isinstance(arg, list | tuple) and not _nodes(arg)]
    constants += [f"{k}={v}" for k, v in sorted(node.kwargs.items()) if not isinstance(v, fx.Node) and not _nodes(v)]
    return [("args", ", ".join(constants))] if constants else []


def _nodes(value: Any) -> bool:
    return isinstance(value, list | tuple) and any(isinstance(part, fx.Node) for part in value)


def macs(spec: LayerSpec) -> int:
    """Multiply-accumulates of a convolution or linear layer; 0 for everything else, by convention."""
    geometry = spec.geometry
    if geometry.kind.startswith("conv"):
        spatial = math.prod(geometry.outputs[0][2:]) * geometry.outputs[0][0]
        kernel = geometry.option("kernel")
        groups = geometry.option("groups")
        assert isinstance(kernel, tuple)
        if groups == "depthwise":
            return spatial * math.prod(kernel) * spec.channels[0]
        assert isinstance(groups, int)
        return spatial * math.prod(kernel) * spec.channels[0] // groups * spec.channels[1]
    if geometry.kind == "linear":
        return math.prod(size or 1 for size in geometry.outputs[0]) * math.prod(spec.channels)
    return 0


def trace_graph(model: nn.Module, example: tuple[torch.Tensor, ...]) -> fx.GraphModule:
    """The model as an ``fx`` graph with shapes; subclasses of narrowable modules stay whole.

    Raises whatever ``torch.fx`` raises on control flow that depends on data.
    """
    graph = fx.GraphModule(model, _Tracer().trace(model))
    from torch.fx.passes.shape_prop import ShapeProp

    with torch.no_grad(), redirect_stderr(io.StringIO()):  # it prints tracebacks of what it raises
        ShapeProp(graph).propagate(*example)
    return graph


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, NARROWABLE) or bool(super().is_leaf_module(m, module_qualified_name))
