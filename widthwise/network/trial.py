"""A trial of the widths algebra: the model's own code, run narrow on the meta device, must give the shapes predicted.

The rules know what operations do with channels; code may also write sizes down as numbers, compute them, or branch on
them. Where a narrow run stops or comes out another size, what flows in there is fixed, and the groups are made anew.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import fx

from widthwise.network.flow import Flow
from widthwise.network.groups import Coupling, couple
from widthwise.network.modules import cut
from widthwise.network.moves import Channels
from widthwise.network.tracing import shapes_of_node

__all__ = ["followed"]

_TRIALS = 64
"""Most places a network is mended at before all its groups are fixed."""


def followed(graph: fx.GraphModule) -> tuple[Coupling, dict[str, Channels]]:
    """The coupling of a traced network on the meta device, and the labels of each operation's result."""
    flow = Flow(graph)
    for trial in range(_TRIALS):
        coupling, labels = couple(flow.tensors.ties, flow.dimensions())
        channels = {name: Channels(each.axis, labels[each.labels]) for name, each in flow.tensors.single.items()}
        _lock_sums_at_both_ends(coupling)
        failed = _first_failure(graph, coupling, channels, random.Random(trial))
        if failed is None:
            return coupling, channels
        node, why = failed
        flow.tensors.fix_sources(node, why)
        flow.fix_reader(node, why)
    for index in range(len(coupling.groups)):
        coupling.lock(index, f"the code doesn't run at other widths in more than {_TRIALS} places")
    return coupling, channels


def _lock_sums_at_both_ends(coupling: Coupling) -> None:
    """Cost tables hold one sum of groups; two equal ones are one axis."""
    for path, inputs in coupling.inputs.items():
        before, after = coupling.affine(inputs), coupling.affine(coupling.outputs[path])
        if len(before.groups) > 1 and len(after.groups) > 1 and before != after:
            for owner in coupling.owners(coupling.free(coupling.outputs[path])):
                coupling.lock(owner, f"{path!r} has sums of groups at both ends, which no cost table holds")


def _first_failure(
    graph: fx.GraphModule, coupling: Coupling, channels: Mapping[str, Channels], rng: random.Random
) -> tuple[fx.Node, str] | None:
    masks = []
    for group in coupling.groups:
        mask = np.ones(group.size, dtype=bool)
        if group.locked is None:
            mask[rng.randint(1, group.size) :] = False
        masks.append(mask)
    if all(mask.all() for mask in masks):
        return None
    memo: dict[int, object] = {id(tensor): tensor for tensor in [*graph.parameters(), *graph.buffers()]}
    small = {}
    for path, (inputs, outputs) in coupling.indices(masks).items():
        module = graph.get_submodule(path)
        small[path] = copy.deepcopy(module, memo)
        cut(small[path], inputs, outputs)
    run = _Narrow(graph, small, coupling, channels, masks)
    try:
        with torch.no_grad():
            run.run()
    except _Failure as failure:
        return failure.node, failure.why
    return None


class _Failure(Exception):
    def __init__(self, node: fx.Node, why: str) -> None:
        super().__init__(why)
        self.node, self.why = node, why


class _Narrow(fx.Interpreter):
    """Runs a graph with some modules replaced, and compares every shape."""

    def __init__(
        self,
        graph: fx.GraphModule,
        small: Mapping[str, torch.nn.Module],
        coupling: Coupling,
        channels: Mapping[str, Channels],
        masks: list[Any],
    ) -> None:
        super().__init__(graph)
        self._nodes = {str(node.target): node for node in graph.graph.nodes if node.op == "placeholder"}
        self._small, self._coupling, self._channels, self._masks = small, coupling, channels, masks

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        node = self._nodes[str(target)]
        meta = node.meta.get("tensor_meta")
        if meta is None or not hasattr(meta, "shape"):
            raise _Failure(node, f"the input {node.name!r} is no tensor")
        return torch.empty(meta.shape, dtype=meta.dtype, device="meta")

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target in self._small:
            return self._small[target](*args, **kwargs)
        return super().call_module(target, args, kwargs)

    def run_node(self, n: fx.Node) -> Any:
        try:
            result = super().run_node(n)
        except _Failure:
            raise
        except Exception as error:  # whatever the model's code raises
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise _Failure(n, f"{n.name!r} doesn't run at other widths ({reason})") from error
        if n.name in self._channels and isinstance(result, torch.Tensor):
            expected = list(shapes_of_node(n)[0])
            found = self._channels[n.name]
            if found.axis < len(expected):
                expected[found.axis] = len(self._coupling.stays(self._coupling.free(found.labels), self._masks))
            if list(result.shape) != expected:
                what = f"gives {tuple(result.shape)} where {tuple(expected)} was expected"
                raise _Failure(n, f"{n.name!r} {what} at other widths: its code holds sizes as numbers")
        return result
