"""Layers: each operation of a network, with its channel counts as affine functions of the widths."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx, nn

from widthwise.luts.spec import FREE, Geometry, LayerSpec
from widthwise.network.groups import Coupling
from widthwise.network.modules import NARROWABLE, is_depthwise
from widthwise.network.moves import Channels
from widthwise.network.tracing import callee, is_layer, kind_of, options_of, owner_path, shapes_of_node
from widthwise.network.widths import Affine, Widths

__all__ = ["Layer", "layers_of", "macs"]


@dataclass(frozen=True, slots=True)
class Layer:
    """One operation of a network.

    Args:
        name: of the operation in the traced graph; unique.
        path: module path it belongs to, in the user's own names.
        geometry: the operation without its channel counts.
        axes: (input, output) sizes of what has two widths; one size of what has one; empty where channels
            play no role.
        sources: names of the operations whose results it takes, the network's inputs aside.
        fused: names of the operations a runtime executes with it; see :mod:`widthwise.network.fusion`.
    """

    name: str
    path: str
    geometry: Geometry
    axes: tuple[Affine, ...]
    sources: tuple[str, ...] = ()
    fused: tuple[str, ...] = ()

    def spec(self, widths: Widths) -> LayerSpec:
        """The layer at these widths."""
        return LayerSpec(self.geometry, tuple(axis(widths) for axis in self.axes))

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups its latency depends on."""
        return tuple(sorted({group for axis in self.axes for group in axis.groups}))


def macs(spec: LayerSpec) -> int:
    """Multiply-accumulates of a convolution or linear layer; 0 for everything else, by convention."""
    geometry = spec.geometry
    kernel, groups = geometry.option("kernel"), geometry.option("groups")
    if isinstance(kernel, tuple):
        reached = geometry.inputs[0] if geometry.option("output_padding") is not None else geometry.outputs[0]
        spatial = math.prod(reached[2:]) * reached[0] * math.prod(kernel)
        if groups == "depthwise":
            return spatial * spec.channels[0]
        assert isinstance(groups, int)
        return spatial * spec.channels[0] // groups * spec.channels[1]
    if geometry.kind.startswith("conv"):  # a functional call, whose weight is an input
        spatial = math.prod(geometry.outputs[0][2:]) * geometry.outputs[0][0]
        return spatial * math.prod(geometry.inputs[1]) if len(geometry.inputs) > 1 else 0
    if geometry.option("bias") is not None and len(spec.channels) == 2:  # linear layers
        return math.prod(size or 1 for size in geometry.outputs[0]) * math.prod(spec.channels)
    return 0


def layers_of(graph: fx.GraphModule, coupling: Coupling, channels: Mapping[str, Channels]) -> tuple[Layer, ...]:
    """Every operation of a traced network that computes tensors, in order of execution.

    Args:
        channels: labels of each operation's result.
    """
    modules = dict(graph.named_modules())
    return tuple(_layer(node, modules, coupling, channels) for node in graph.graph.nodes if is_layer(node))


def _layer(
    node: fx.Node, modules: Mapping[str, nn.Module], coupling: Coupling, channels: Mapping[str, Channels]
) -> Layer:
    module = modules.get(str(node.target)) if node.op == "call_module" else None
    geometry = Geometry(
        kind_of(node, modules),
        tuple(_free_shape(source, channels) for source in node.all_input_nodes if shapes_of_node(source)),
        tuple(_free_shape(node, channels, index) for index in range(len(shapes_of_node(node)))),
        tuple(options_of(node, module)),
    )
    path = str(node.target) if module is not None else owner_path(node)
    sources = tuple(source.name for source in node.all_input_nodes if is_layer(source))
    return Layer(node.name, path, geometry, _axes(node, module, modules, coupling, channels), sources)


def _axes(
    node: fx.Node,
    module: nn.Module | None,
    modules: Mapping[str, nn.Module],
    coupling: Coupling,
    channels: Mapping[str, Channels],
) -> tuple[Affine, ...]:
    path = str(node.target)
    if isinstance(module, NARROWABLE) and path in coupling.outputs:
        outputs = coupling.affine(coupling.outputs[path])
        if path not in coupling.inputs or is_depthwise(module):
            return (outputs,)
        return (coupling.affine(coupling.inputs[path]), outputs)
    if callee(node, modules).startswith("cat") and node.name in channels:
        return (coupling.affine(channels[node.name].labels),)
    known = [channels[source.name] for source in node.all_input_nodes if source.name in channels]
    widest = max(known, key=lambda each: len(each.labels), default=None)
    return (coupling.affine(widest.labels),) if widest is not None and len(widest.labels) else ()


def _free_shape(node: fx.Node, channels: Mapping[str, Channels], index: int = 0) -> tuple[int, ...]:
    shape = shapes_of_node(node)[index]
    found = channels.get(node.name)
    if found is None or len(shape) <= found.axis:
        return shape
    return tuple(FREE if axis == found.axis else size for axis, size in enumerate(shape))
