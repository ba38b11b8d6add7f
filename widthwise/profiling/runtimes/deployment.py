"""Networks as they are deployed: batch norms folded, and one submodule for each operation, named after it.

Exporters write the names of submodules into what they export, and runtimes into what they report; that is how a
kernel's time finds its way back to the network's layers.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from widthwise.luts.errors import InvalidModel, InvalidTarget
from widthwise.network.network import Network, trace_runnable
from widthwise.profiling.memory import keep_memory
from widthwise.profiling.pinning import pinned
from widthwise.profiling.target import Target

__all__ = ["deployable", "operation_in", "output_names", "owners", "refusal", "require_package", "steady_process"]

_PREFIX = "op_"
_NAMED = re.compile(rf"(?:^|[/.]){_PREFIX}(\w+?)(?=[/.]|$)")

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class _Call(nn.Module):
    """A function or method as a module."""

    def __init__(self, node: fx.Node) -> None:
        super().__init__()
        self._target: Any = node.target
        self._is_method = node.op == "call_method"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self._is_method:
            return getattr(args[0], self._target)(*args[1:], **kwargs)
        return self._target(*args, **kwargs)


def deployable(model: nn.Module, network: Network) -> fx.GraphModule:
    """The model in eval mode, as a graph that calls one submodule for each operation.

    Args:
        model: dense or narrowed; its weights are shared, or copied where a batch norm is folded into them.
        network: of the model, with fused layers.

    Raises:
        InvalidModel: the model is another one than was traced.
    """
    traced = trace_runnable(model.eval(), network)
    modules = dict(traced.named_modules())
    parts: dict[str, Any] = {}
    nodes = {node.name: node for node in traced.graph.nodes}
    members = set(owners(network))
    for node in nodes.values():
        if node.op == "get_attr":
            parts[str(node.target)] = _attribute(traced, str(node.target))
        elif node.name in members:
            is_module = node.op == "call_module"
            parts[_PREFIX + node.name] = modules[str(node.target)] if is_module else _Call(node)
            node.op, node.target = "call_module", _PREFIX + node.name
            node.meta.pop("nn_module_stack", None)  # the newer exporter would take names from there
        elif node.op == "call_module":
            parts[str(node.target)] = modules[str(node.target)]
    for layer in network.layers:
        _fold(layer.fused, parts, nodes)
    return fx.GraphModule(parts, traced.graph).eval()


def owners(network: Network) -> dict[str, int]:
    """Operation → index of the layer it belongs to."""
    return {name: index for index, layer in enumerate(network.layers) for name in layer.fused or (layer.name,)}


def output_names(graph: fx.GraphModule) -> list[str]:
    """A name for each tensor the graph gives, after the operation it comes from; none where that isn't said."""
    results: list[fx.Node] = []
    fx.node.map_arg(graph.graph.output_node().args[0], results.append)
    if len({result.name for result in results}) < len(results):
        return []
    return [f"/{result.target}/result" for result in results]


def operation_in(text: str) -> str | None:
    """The operation a name given by an exporter or a runtime speaks of.

    Example:
        >>> operation_in("/op_layer1_0_conv1/Conv_output_0_nchwc"), operation_in("ReorderInput")
        ('layer1_0_conv1', None)
    """
    found = _NAMED.search(text)
    return found[1] if found else None


def require_package(name: str, extra: str, target: Target) -> ModuleType:
    """The package a target needs.

    Raises:
        InvalidTarget: it isn't installed; names the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InvalidTarget(
            f"target {target.runtime}:{target.device} needs the package {name}, which can't be imported ({error}); "
            f"install it with: pip install 'widthwise[{extra}]'"
        ) from error


def refusal(runtime: str, error: Exception) -> InvalidModel:
    """What a runtime said of a network it doesn't take, and of which layer.

    Example:
        >>> refusal("onnxruntime", ValueError("no implementation for node '/op_norm_1/Mystery'")).args[0]
        "onnxruntime can't run layer 'norm_1' of this network: no implementation for node '/op_norm_1/Mystery'"
    """
    text = " ".join(str(error).split())
    operation = next(filter(None, map(operation_in, re.findall(r"[\w/.]+", text))), None)
    where = f"layer {operation!r} of this network" if operation else "this network"
    return InvalidModel(f"{runtime} can't run {where}: {text[:300]}")


@contextmanager
def steady_process(threads: int) -> Iterator[None]:
    """This process as timing on a CPU wants it: pinned, with so many threads, and keeping memory (that stays).

    NumPy and SciPy get as many threads as there are cores for them: two on one core wait for each other, and the
    predictor that says what to time next took 19 s to be fitted instead of 0.2 s.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    keep_memory()
    try:
        with pinned(threads), threadpool_limits(threads, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


def _fold(members: Sequence[str], parts: dict[str, Any], nodes: dict[str, fx.Node]) -> None:
    """A batch norm right after a convolution goes into its weights."""
    if len(members) < 2:
        return
    convolution, norm = (parts.get(_PREFIX + name) for name in members[:2])
    if isinstance(convolution, _CONVOLUTIONS) and isinstance(norm, _BATCH_NORMS):
        parts[_PREFIX + members[0]] = fuse_conv_bn_eval(convolution, norm)
        node = nodes[members[1]]
        node.replace_all_uses_with(nodes[members[0]])
        node.graph.erase_node(node)


def _attribute(module: nn.Module, path: str) -> Any:
    value: Any = module
    for name in path.split("."):
        value = getattr(value, name)
    return value
