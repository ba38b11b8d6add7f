"""Layers: each operation of a network, with its channel counts as affine functions of the widths."""

from __future__ import annotations

import math
from dataclasses import dataclass

from widthwise.luts.spec import Geometry, LayerSpec
from widthwise.network.widths import Affine, Widths

__all__ = ["Layer", "macs"]


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
    if geometry.kind.startswith("conv"):
        spatial = math.prod(geometry.outputs[0][2:]) * geometry.outputs[0][0]
        kernel = geometry.option("kernel")
        groups = geometry.option("groups")
        if not isinstance(kernel, tuple):  # a functional call, whose weight is an input
            return spatial * math.prod(geometry.inputs[1]) if len(geometry.inputs) > 1 else 0
        if groups == "depthwise":
            return spatial * math.prod(kernel) * spec.channels[0]
        assert isinstance(groups, int)
        return spatial * math.prod(kernel) * spec.channels[0] // groups * spec.channels[1]
    if geometry.kind == "linear":
        return math.prod(size or 1 for size in geometry.outputs[0]) * math.prod(spec.channels)
    return 0
