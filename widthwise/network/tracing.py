"""Tracing: a model as a ``torch.fx`` graph, and what one operation of it is in PyTorch's own terms."""

from __future__ import annotations

import io
import operator
import re
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from widthwise.luts.spec import Option
from widthwise.network.modules import NARROWABLE, is_depthwise

__all__ = [
    "RESHAPES",
    "callee",
    "is_layer",
    "kind_of",
    "options_of",
    "owner_path",
    "shapes_of_node",
    "trace_graph",
    "trace_shapes",
]

RESHAPES = frozenset(("flatten", "reshape", "view", "Flatten", "squeeze"))


def trace_graph(model: nn.Module) -> fx.GraphModule:
    """The model as a graph that shares its modules; subclasses of narrowable modules stay whole. Nothing is run.

    Raises whatever ``torch.fx`` raises on control flow that depends on data.
    """
    graph = _Tracer().trace(model)
    _settle_augmented(graph, dict(model.named_modules()))
    return fx.GraphModule(model, graph)


def trace_shapes(model: nn.Module, example: tuple[torch.Tensor, ...]) -> fx.GraphModule:
    """:func:`trace_graph`, run once so that every operation knows the shapes of its outputs.

    Raises whatever the model raises on these inputs.
    """
    from torch.fx.passes.shape_prop import ShapeProp

    graph = trace_graph(model)
    with torch.no_grad(), redirect_stderr(io.StringIO()):  # it prints tracebacks of what it raises
        ShapeProp(graph).propagate(*example)
    return graph


_AUGMENTED: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}

# fmt: off
_VIEWS = frozenset((
    "Identity", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "Flatten", "Unflatten",
    "chunk", "contiguous", "detach", "diagonal", "double", "dropout", "expand", "expand_as", "flatten", "float",
    "getitem", "half", "moveaxis", "movedim", "narrow", "permute", "ravel", "reshape", "reshape_as", "select", "split",
    "squeeze", "swapaxes", "swapdims", "t", "tensor_split", "to", "transpose", "type_as", "unbind", "unflatten",
    "unfold", "unsqueeze", "view", "view_as",
))
_VIEW_ATTRIBUTES = frozenset(("H", "T", "data", "mH", "mT", "real"))
# fmt: on
"""What may give a view of its first argument, or that itself."""


class _Augmented(fx.Proxy):
    """Knows ``y += z`` from ``y = y + z``, which ``torch.fx`` doesn't: the first also changes what shares its memory
    with ``y``."""

    def _augmented(self, operation: Any, other: Any) -> fx.Proxy:
        name = _AUGMENTED[operation].__name__
        return self.tracer.create_proxy("call_function", operation, (self, other), {}, name=name)

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self._augmented(operator.iadd, other)

    def __isub__(self, other: Any) -> fx.Proxy:
        return self._augmented(operator.isub, other)

    def __imul__(self, other: Any) -> fx.Proxy:
        return self._augmented(operator.imul, other)

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self._augmented(operator.itruediv, other)


class _Attribute(_Augmented, fx.proxy.Attribute):
    """``y.mT`` and the like, which may share the memory of ``y``."""


class _Proxy(_Augmented):
    def __getattr__(self, name: str) -> fx.proxy.Attribute:
        return _Attribute(self, name)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, NARROWABLE) or bool(super().is_leaf_module(m, module_qualified_name))

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


def _settle_augmented(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> None:
    """Leaves an augmented assignment in place where that changes what something else reads later; elsewhere it is the
    plain operation."""
    place = {node: index for index, node in enumerate(graph.nodes)}
    memory: dict[fx.Node, fx.Node] = {}  # node → the first that has its memory
    for node in graph.nodes:
        first = node.args[0] if node.args else None
        shares = isinstance(first, fx.Node) and _may_share(node, modules)
        memory[node] = memory[first] if shares and isinstance(first, fx.Node) else node
    for node in graph.nodes:
        if node.target not in _AUGMENTED:
            continue
        before = [other for other in graph.nodes if memory[other] is memory[node] and place[other] < place[node]]
        if not any(place[user] > place[node] for other in before for user in other.users):
            node.target = _AUGMENTED[node.target]


def _may_share(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether the result may have the memory of the first argument."""
    if node.op == "call_module" and getattr(modules[str(node.target)], "inplace", False):
        return True
    if node.op not in ("call_module", "call_function", "call_method"):
        return False
    name = callee(node, modules)
    in_place = name.endswith("_") and not name.endswith("__")
    if name == "getattr" and node.args[1] in _VIEW_ATTRIBUTES:
        return True
    return in_place or name in _VIEWS or node.target in _AUGMENTED or node.kwargs.get("inplace") is True


def is_layer(node: fx.Node) -> bool:
    """Whether a traced operation computes tensors, and so is timed."""
    return node.op in ("call_module", "call_function", "call_method") and bool(shapes_of_node(node))


def kind_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    """The operation's name in PyTorch's own terms, the same for ``nn.ReLU`` and ``torch.relu``."""
    name = callee(node, modules)
    name = str(getattr(_AUGMENTED.get(node.target), "__name__", name))
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.replace("ReLU", "Relu").replace("SiLU", "Silu")).lower()
    return snake.removesuffix("_") if not snake.startswith("_") else snake


def shapes_of_node(node: fx.Node) -> list[tuple[int, ...]]:
    """Shape of each tensor an operation gives; empty where it gives none."""
    meta = node.meta.get("tensor_meta")
    if meta is None:
        return []
    if hasattr(meta, "shape"):
        return [tuple(meta.shape)]
    metas = meta.values() if isinstance(meta, dict) else meta
    return [tuple(part.shape) for part in metas if hasattr(part, "shape")]


def callee(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    """Name of the function, method or module class that is called."""
    if node.op == "call_module":
        return type(modules[str(node.target)]).__name__
    if node.op == "call_method":
        return str(node.target)
    target: Callable[..., Any] | Any = node.target
    return str(getattr(target, "__name__", target))


def owner_path(node: fx.Node) -> str:
    """Path of the module an operation was written in."""
    stack = node.meta.get("nn_module_stack")
    return str(next(reversed(stack.values()))[0]) if stack else ""


def options_of(node: fx.Node, module: nn.Module | None) -> list[tuple[str, Option]]:
    """What else decides an operation, without its channel counts."""
    if isinstance(module, _ConvNd):
        transposed = [("output_padding", tuple(module.output_padding))] if isinstance(module, _ConvTransposeNd) else []
        return [
            *transposed,
            ("kernel", tuple(module.kernel_size)),
            ("stride", tuple(module.stride)),
            ("padding", module.padding if isinstance(module.padding, str) else tuple(module.padding)),
            ("dilation", tuple(module.dilation)),
            ("groups", "depthwise" if is_depthwise(module) else module.groups),
            ("bias", module.bias is not None),
        ]
    if isinstance(module, nn.Linear):
        return [("bias", module.bias is not None)]
    if isinstance(module, nn.GroupNorm):
        return [("channels_per_group", module.num_channels // module.num_groups)]
    if isinstance(module, NARROWABLE) and not (isinstance(module, nn.PReLU) and module.num_parameters == 1):
        return []
    if module is not None:
        return [("args", module.extra_repr())] if module.extra_repr() else []
    if str(getattr(node.target, "__name__", node.target)) in RESHAPES or node.target is operator.getitem:
        return []
    constants = [str(arg) for arg in node.args[1:] if isinstance(arg, int | float | bool | str)]
    constants += [str(arg) for arg in node.args[1:] if isinstance(arg, list | tuple) and not _nodes(arg)]
    constants += [f"{k}={v}" for k, v in sorted(node.kwargs.items()) if not isinstance(v, fx.Node) and not _nodes(v)]
    return [("args", ", ".join(constants))] if constants else []


def _nodes(value: Any) -> bool:
    return isinstance(value, list | tuple) and any(isinstance(part, fx.Node) for part in value)
