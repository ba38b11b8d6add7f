"""One operation of a traced network as the rules see it: its arguments and the channels of the tensors it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import fx, nn

from widthwise.network.moves import Channels, Shape
from widthwise.network.ties import CONSTANT, Atoms, Ties
from widthwise.network.tracing import callee, shapes_of_node

__all__ = ["Call", "Results", "Rule", "Tensors"]

Results = list[Channels | None]
"""Channels of each tensor an operation gives; None where they are constant."""


class Tensors:
    """The channels of all results so far.

    Attributes:
        ties: what ties and fixes the atoms.
        single: name of an operation with one result → its channels.
        several: name of an operation with several results → theirs.
    """

    def __init__(self) -> None:
        self.ties = Ties()
        self.single: dict[str, Channels] = {}
        self.several: dict[str, Results] = {}

    def fix_sources(self, node: fx.Node, reason: str) -> None:
        """Everything that flows into an operation must stay."""
        for source in node.all_input_nodes:
            for channels in [self.single.get(source.name), *self.several.get(source.name, [])]:
                if channels is not None:
                    self.ties.fix(channels.labels, reason)


@dataclass(frozen=True)
class Call:
    """One operation.

    Args:
        node: in the traced graph.
        modules: of the network, by path.
        tensors: the channels of all results before it.
    """

    node: fx.Node
    modules: dict[str, nn.Module]
    tensors: Tensors

    @property
    def name(self) -> str:
        """Of the function, method or module class that is called."""
        return callee(self.node, self.modules)

    @property
    def module(self) -> nn.Module | None:
        """That is called, if it is one."""
        return self.modules[str(self.node.target)] if self.node.op == "call_module" else None

    @property
    def ties(self) -> Ties:
        """See :class:`Tensors`."""
        return self.tensors.ties

    @property
    def shapes(self) -> list[Shape]:
        """Of the results."""
        return shapes_of_node(self.node)

    @property
    def shape(self) -> Shape:
        """Of the first result."""
        return self.shapes[0]

    @property
    def sources(self) -> list[fx.Node]:
        """The operations whose tensors it takes."""
        return [source for source in self.node.all_input_nodes if shapes_of_node(source)]

    @property
    def source(self) -> fx.Node:
        """The first of them."""
        return self.sources[0]

    @property
    def before(self) -> Shape:
        """Shape of the first source."""
        return shapes_of_node(self.source)[0]

    @property
    def channels(self) -> Channels | None:
        """Of the first source; None where nothing can change."""
        return self.varying(self.source)

    def varying(self, source: fx.Node) -> Channels | None:
        """Channels of a tensor; None where nothing can change."""
        found = self.tensors.single.get(source.name)
        return found if found is not None and bool((found.labels != CONSTANT).any()) else None

    def arg(self, position: int, name: str, default: Any = None) -> Any:
        """An argument of a function or method by its place or name, or an attribute of the module."""
        if self.module is not None:
            return getattr(self.module, name, default)
        if name in self.node.kwargs:
            return self.node.kwargs[name]
        return self.node.args[position] if len(self.node.args) > position else default

    def varargs(self, name: str) -> list[Any]:
        """Sizes or axes given one by one, or as one list."""
        given = self.node.kwargs.get(name)
        if given is None:
            rest = self.node.args[1:]
            given = rest[0] if len(rest) == 1 and isinstance(rest[0], list | tuple) else rest
        return list(given) if isinstance(given, list | tuple) else [given]

    def fix(self, reason: str) -> None:
        """Everything that flows in must stay."""
        self.tensors.fix_sources(self.node, reason)

    def atoms(self, source: fx.Node, axis: int, size: int) -> Atoms | None:
        """The atoms of a source along an axis of the result, counted from the right as broadcasting does; None where it
        is broadcast there."""
        if source.name in self.tensors.several:
            return np.full(size, CONSTANT, dtype=np.int64)
        shape, found = shapes_of_node(source)[0], self.varying(source)
        own = axis - (len(self.shape) - len(shape))
        if own < 0 or shape[own] == 1 != size:
            return None
        if found is None or found.axis != own or shape[own] != size:
            return np.full(size, CONSTANT, dtype=np.int64)
        return found.labels

    def scalars(self) -> Iterator[fx.Node]:
        """Numbers computed by the network that are arguments of this operation."""
        for source in self.node.all_input_nodes:
            if not shapes_of_node(source):
                yield source

    def is_share(self, value: Any, parts: int) -> bool:
        """Whether a number computed by the network is its source's channel count divided by ``parts``."""
        if not isinstance(value, fx.Node):
            return False
        if parts != 1:
            named = getattr(value.target, "__name__", "") == "floordiv"
            return named and len(value.args) == 2 and bool(value.args[1] == parts) and self.is_share(value.args[0], 1)
        channels = self.channels
        if channels is None:
            return False
        if value.op == "call_method" and value.target == "size" and len(value.args) == 2:
            return self._same_axis(value.args[0], value.args[1], channels)
        if getattr(value.target, "__name__", "") == "getitem":
            sizes, index = value.args
            if isinstance(sizes, fx.Node) and isinstance(index, int) and sizes.args:
                method = sizes.op == "call_method" and sizes.target == "size" and len(sizes.args) == 1
                attribute = getattr(sizes.target, "__name__", "") == "getattr" and bool(sizes.args[1] == "shape")
                return (method or attribute) and self._same_axis(sizes.args[0], index, channels)
        return False

    def _same_axis(self, of: Any, index: Any, channels: Channels) -> bool:
        other = self.varying(of) if isinstance(of, fx.Node) and shapes_of_node(of) else None
        if other is None or not isinstance(index, int):
            return False
        rank = len(shapes_of_node(of)[0])
        return index % rank == other.axis and np.array_equal(other.labels, channels.labels)


Rule = Callable[[Call], Results | None]
"""What an operation does with channels; None where that isn't known, and all that flows in is to be fixed."""
