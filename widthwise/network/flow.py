"""Channel labels flowing through a traced network, from operation to operation.

That gives the shape of what has no parameters (adds, concatenations, pools), and checks the dependency graph: where
the labels that arrive at a module aren't those its coupling says, the groups involved are locked, with the reason,
rather than narrowed to a wrong shape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import fx, nn

from widthwise.luts.spec import FREE, Geometry
from widthwise.network.groups import FIXED, NARROWABLE, Coupling, Labels, is_depthwise
from widthwise.network.layers import Layer
from widthwise.network.tracing import RESHAPES, callee, is_layer, kind_of, options_of, owner_path, shapes_of_node
from widthwise.network.widths import Affine

__all__ = ["Channels", "Flow"]

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


@dataclass(frozen=True, slots=True)
class Channels:
    """Where a tensor's channels are and to which groups they belong."""

    axis: int
    labels: Labels


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
        self._lock_uncalled()
        while True:
            before = self._locked()
            self._run()
            if self._locked() == before:
                break

    def _lock_uncalled(self) -> None:
        """Modules whose parameters are used otherwise than by calling them aren't followed."""
        called = {str(node.target) for node in self._graph.graph.nodes if node.op == "call_module"}
        for side in (self._coupling.inputs, self._coupling.outputs):
            for path, labels in side.items():
                if path not in called:
                    self._lock(labels, f"{path!r} isn't called as a module")

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
        shapes = shapes_of_node(node)
        if len(shapes) != 1:
            self._lock_inputs(node, f"flows into {node.target!s}, which isn't followed")
            return None
        shape = shapes[0]
        if node.op == "get_attr":
            return None  # a parameter: its axes are no channels of a tensor that flows
        if node.op == "placeholder":
            return _fixed(shape)
        if node.op == "call_module":
            module = self._modules[str(node.target)]
            if isinstance(module, NARROWABLE):
                return self._through_narrowable(node, str(node.target), module, shape)
        name = callee(node, self._modules)
        if name in RESHAPES:
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
        outputs = self._coupling.free(self._coupling.outputs[path])
        if len(self._coupling.owners(expected)) > 1 and len(self._coupling.owners(outputs)) > 1:
            self._lock(outputs, f"{path!r} has sums of groups at both ends, which no cost table holds")
        return Channels(axis, self._coupling.free(outputs))

    def _through_reshape(self, node: fx.Node, shape: tuple[int, ...]) -> Channels:
        source = node.all_input_nodes[0]
        before = shapes_of_node(source)[0]
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
        arriving = [self._labels(source) for source in node.all_input_nodes if shapes_of_node(source)]
        full = [labels for labels in arriving if len(labels) == shape[1]]
        agree = bool(full) and all(np.array_equal(labels, full[0]) for labels in full)
        if not agree or any(len(labels) not in (0, 1, shape[1]) for labels in arriving):
            self._lock_inputs(node, f"meets other channels in {node.name!r}")
            return _fixed(shape)
        return Channels(1, full[0])

    def _labels(self, source: Any, axis: int = 1) -> Labels:
        """Labels of a tensor along ``axis``; those of a tensor whose channels lie elsewhere are fixed."""
        shapes = shapes_of_node(source) if isinstance(source, fx.Node) else []
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
            tuple(self._free_shape(source) for source in node.all_input_nodes if shapes_of_node(source)),
            tuple(self._free_shape(node, index) for index in range(len(shapes_of_node(node)))),
            tuple(options_of(node, module)),
        )
        path = str(node.target) if module is not None else owner_path(node)
        sources = tuple(source.name for source in node.all_input_nodes if is_layer(source))
        return Layer(node.name, path, geometry, self._axes(node, module), sources)

    def _axes(self, node: fx.Node, module: nn.Module | None) -> tuple[Affine, ...]:
        if isinstance(module, NARROWABLE):
            path = str(node.target)
            outputs = self.affine(self._coupling.outputs[path])
            if path not in self._coupling.inputs or is_depthwise(module):
                return (outputs,)
            return (self.affine(self._coupling.inputs[path]), outputs)
        if callee(node, self._modules).startswith("cat") and node.name in self.channels:
            return (self.affine(self.channels[node.name].labels),)
        known = [self.channels[s.name] for s in node.all_input_nodes if s.name in self.channels]
        widest = max(known, key=lambda channels: len(channels.labels), default=None)
        return (self.affine(widest.labels),) if widest is not None and len(widest.labels) else ()

    def _free_shape(self, node: fx.Node, index: int = 0) -> tuple[int, ...]:
        shape = shapes_of_node(node)[index]
        found = self.channels.get(node.name)
        if found is None or len(shape) <= found.axis:
            return shape
        return tuple(FREE if axis == found.axis else size for axis, size in enumerate(shape))


def _fixed(shape: tuple[int, ...]) -> Channels:
    return Channels(1, np.full(shape[1] if len(shape) >= 2 else 0, FIXED, dtype=np.int64))


def _reduces_channels(node: fx.Node, name: str) -> bool:
    """Whether a mean runs over the channel or batch axis (or over all axes)."""
    if name != "mean":
        return False
    dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    dims = [dims] if isinstance(dims, int) else dims
    rank = len(shapes_of_node(node.all_input_nodes[0])[0])
    return not isinstance(dims, list | tuple) or any(not isinstance(d, int) or d % rank < 2 for d in dims)
