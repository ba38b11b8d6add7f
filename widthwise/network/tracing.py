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
    return fx.GraphModule(model, _Tracer().trace(model))


def trace_shapes(model: nn.Module, example: tuple[torch.Tensor, ...]) -> fx.GraphModule:
    """:func:`trace_graph`, run once so that every operation knows the shapes of its outputs.

    Raises whatever the model raises on these inputs.
    """
    from torch.fx.passes.shape_prop import ShapeProp

    graph = trace_graph(model)
    with torch.no_grad(), redirect_stderr(io.StringIO()):  # it prints tracebacks of what it raises
        ShapeProp(graph).propagate(*example)
    return graph


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, NARROWABLE) or bool(super().is_leaf_module(m, module_qualified_name))


def is_layer(node: fx.Node) -> bool:
    """Whether a traced operation computes tensors, and so is timed."""
    return node.op in ("call_module", "call_function", "call_method") and bool(shapes_of_node(node))


def kind_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    """The operation's name in PyTorch's own terms, the same for ``nn.ReLU`` and ``torch.relu``."""
    name = callee(node, modules)
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
