"""Fusion: the layers of a network as deployed runtimes execute them.

Eager PyTorch runs convolution, batch norm, addition and activation one by one. ONNX Runtime, OpenVINO, TensorRT and
inductor fold the batch norm into the convolution's weights and run the rest as one kernel. For them a layer is that
kernel: its geometry is the convolution's with a ``tail``, such as ``add+relu``.

The rules are the runtimes' common ground and look at the graph alone, so that a table can be planned from where its
runtime isn't installed. Where a runtime fuses less (ONNX Runtime at widths its blocked layout doesn't take), the
kernels of one layer add up; nothing is lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from widthwise.luts.spec import Geometry, Option
from widthwise.luts.store import Lut
from widthwise.network.layers import Layer
from widthwise.network.network import Network
from widthwise.network.tracing import RESHAPES

__all__ = ["FUSED", "as_timed", "fused", "split_tail"]

FUSED = "fused"
"""Value of ``layers`` in the fingerprint of tables whose layers are fused ones."""

_TAIL = "tail"
_ACTIVATIONS = frozenset(
    ("relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "silu", "sigmoid", "gelu", "elu", "leaky_relu", "tanh")
)
_ADDITIONS = ("add", "iadd")
_NO_WORK = RESHAPES | {
    "contiguous",
    "detach",
    "dropout",
    "dropout2d",
    "feature_dropout",
    "getitem",
    "identity",
    "stochastic_depth",
}
"""They change no number, or nothing at all when a network is deployed."""


def as_timed(network: Network, lut: Lut) -> Network:
    """The network with the layers this table times."""
    return fused(network) if lut.fingerprint.get("layers") == FUSED else network


def fused(network: Network) -> Network:
    """The same network with layers fused; the signature stays.

    * A batch norm after a convolution is folded into its weights.
    * An addition joins the convolution that feeds it first (in the order of its arguments), an activation whatever
      feeds it, provided nothing else needs the result between.
    * Dropouts, reshapes and the like take no time and go with what feeds them.

    Example:
        >>> from torch import nn, zeros
        >>> model = nn.Sequential(nn.Conv2d(3, 7, 3, bias=False), nn.BatchNorm2d(7), nn.ReLU())
        >>> [str(layer.geometry) for layer in fused(Network.trace(model, zeros(1, 3, 5, 5))).layers]
        ['conv2d 1×3×5×5→1×C×3×3 bias=True dilation=1×1 groups=1 kernel=3×3 padding=0×0 stride=1×1 tail=relu']
    """
    if any(layer.fused for layer in network.layers):
        return network
    return replace(network, layers=tuple(chain.layer() for chain in _chains(network.layers)))


def split_tail(geometry: Geometry) -> tuple[Geometry, tuple[str, ...]]:
    """The operation a fused geometry begins with, and the kinds of what follows it.

    Example:
        >>> g = Geometry("conv2d", ((1, 0, 7, 7), (1, 0, 7, 7)), ((1, 0, 7, 7),), (("tail", "add+relu"),))
        >>> split_tail(g) == (Geometry("conv2d", ((1, 0, 7, 7),), ((1, 0, 7, 7),)), ("add", "relu"))
        True
    """
    tail = tuple(filter(None, str(geometry.option(_TAIL, "")).split("+")))
    inputs = geometry.inputs[: len(geometry.inputs) - tail.count("add")]
    options = tuple((name, value) for name, value in geometry.options if name != _TAIL)
    return Geometry(geometry.kind, inputs, geometry.outputs, options), tail


@dataclass
class _Chain:
    """An operation and what is fused into it; ``last`` is the operation whose result leaves the kernel."""

    head: Layer
    last: str
    members: list[str]
    folded: bool = False
    tail: list[str] = field(default_factory=list)
    added: list[tuple[int, ...]] = field(default_factory=list)

    @property
    def is_convolution(self) -> bool:
        return self.head.geometry.kind.startswith("conv")

    def join(self, layer: Layer) -> None:
        self.members.append(layer.name)
        self.last = layer.name

    def layer(self) -> Layer:
        geometry = self.head.geometry
        options: dict[str, Option] = dict(geometry.options)
        if self.folded:
            options["bias"] = True
        if self.tail:
            options[_TAIL] = "+".join(self.tail)
        inputs = (*geometry.inputs, *self.added)
        geometry = Geometry(geometry.kind, inputs, geometry.outputs, tuple(options.items()))
        return replace(self.head, geometry=geometry, fused=tuple(self.members))


def _chains(layers: Iterable[Layer]) -> list[_Chain]:
    layers = list(layers)
    uses = Counter(source for layer in layers for source in layer.sources)
    chains: list[_Chain] = []
    by_member: dict[str, _Chain] = {}
    for layer in layers:
        chain = _joined(layer, by_member, uses)
        if chain is None:
            chain = _Chain(layer, layer.name, [layer.name])
            chains.append(chain)
        by_member[layer.name] = chain
    return chains


def _joined(layer: Layer, by_member: dict[str, _Chain], uses: Counter[str]) -> _Chain | None:
    """The chain this operation was added to, if any takes it."""
    kind, sources = layer.geometry.kind, layer.sources
    if len(sources) == 1 and kind in _NO_WORK:
        chain = by_member[sources[0]]
        if chain.last == sources[0] and uses[sources[0]] == 1:
            chain.join(layer)
        else:
            chain.members.append(layer.name)
        return chain
    open_ended = [by_member[s] for s in sources if by_member[s].last == s and uses[s] == 1]
    if len(sources) == 1 and open_ended:
        chain = open_ended[0]
        if kind in _ACTIVATIONS:
            chain.tail.append(_label(layer.geometry))
            chain.join(layer)
            return chain
        if kind.startswith("batch_norm") and chain.is_convolution and not (chain.tail or chain.folded):
            chain.folded = True
            chain.join(layer)
            return chain
    shapes = layer.geometry.inputs
    if kind in _ADDITIONS and len(sources) == len(shapes) == 2 and shapes[0] == shapes[1]:
        taker = next((chain for chain in open_ended if chain.is_convolution and not chain.tail), None)
        if taker is not None:
            taker.tail.append("add")
            taker.added.append(shapes[0])
            taker.join(layer)
            return taker
    return None


def _label(geometry: Geometry) -> str:
    arguments = str(geometry.option("args", "")).replace("inplace=True", "").strip(", ")
    return f"{geometry.kind}({arguments})" if arguments else geometry.kind
