"""Channels flowing through a traced network, from operation to operation.

Each filter makes an atom (:mod:`widthwise.network.ties`); each operation says where the atoms go, ties those that must
be kept or removed together, and fixes those whose removal it would not bear. What isn't known to keep channels apart
fixes whatever flows into it, with the reason: a network is never narrowed on a guess.
"""

from __future__ import annotations

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from widthwise.network.calls import Call, Results, Tensors
from widthwise.network.groups import Dimensions
from widthwise.network.modules import NARROWABLE, dimensions, is_depthwise, is_plain
from widthwise.network.moves import Channels, constant
from widthwise.network.rules import meet, rule_for, why_not
from widthwise.network.subclasses import Subclasses
from widthwise.network.ties import Atoms
from widthwise.network.tracing import shapes_of_node

__all__ = ["Flow"]


class Flow:
    """Channels flowing through a traced network.

    Args:
        graph: traced module whose nodes carry ``tensor_meta`` (from ``ShapeProp``).

    Attributes:
        tensors: the channels of every result, as atoms, and what ties them.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        self.tensors = Tensors()
        self._ties = self.tensors.ties
        self._modules = dict(graph.named_modules())
        self._inputs: dict[str, Atoms] = {}
        self._outputs: dict[str, Atoms] = {}
        self._subclasses = Subclasses()
        for path, module in self._modules.items():
            if isinstance(module, NARROWABLE):
                self._open(path, module)
        self._fix_shared_parameters()
        for node in graph.graph.nodes:
            self._follow(node)

    def fix_reader(self, node: fx.Node, reason: str) -> None:
        """The channels of the module that an operation calls must stay."""
        self._fix_module(str(node.target), reason)

    def dimensions(self) -> Dimensions:
        """The atoms of everything that has channels."""
        producers = [
            path
            for path in self._outputs
            if isinstance(self._modules[path], _ConvNd | nn.Linear) and not is_depthwise(self._modules[path])
        ]
        tensors = [channels.labels for channels in self.tensors.single.values()]
        return Dimensions(self._inputs, self._outputs, producers, tensors)

    def _open(self, path: str, module: nn.Module) -> None:
        """Atoms of a module's dimensions, and what ties them."""
        inputs, outputs = dimensions(module)
        self._outputs[path] = self._ties.fresh(outputs)
        if isinstance(module, _ConvNd | nn.Linear):
            self._inputs[path] = self._ties.fresh(inputs)
        if isinstance(module, _ConvNd) and is_depthwise(module):
            self._ties.tie(self._outputs[path].reshape(inputs, -1), self._inputs[path][:, None], "")
            if inputs == outputs:
                self._inputs[path] = self._outputs[path]
        elif isinstance(module, _ConvNd):
            for atoms in (self._inputs[path], self._outputs[path]):
                rows = atoms.reshape(module.groups, -1)  # each convolution group keeps the same places
                self._ties.tie(rows, rows[:1], "")
        elif isinstance(module, nn.GroupNorm):
            rows = self._outputs[path].reshape(
                module.num_groups, -1
            )  # the statistics of the others stay what they were
            self._ties.tie(rows, rows[:, :1], "")
            if module.num_groups == 1:
                self._fix_module(path, f"{path!r} computes its statistics over all channels")
        if not is_plain(module):
            remedy = "torch.nn.utils.parametrize.remove_parametrizations or remove_weight_norm make it plain"
            self._fix_module(path, f"the weight of {path!r} is computed from other tensors ({remedy})")
        elif reason := self._subclasses.objection(module):
            self._fix_module(path, f"{path!r} is a {type(module).__name__}, {reason}")

    def _fix_module(self, path: str, reason: str) -> None:
        for side in (self._inputs, self._outputs):
            if path in side:
                self._ties.fix(side[path], reason)

    def _fix_shared_parameters(self) -> None:
        owners: dict[int, str] = {}
        for path in self._outputs:
            for parameter in self._modules[path]._parameters.values():
                owner = owners.setdefault(id(parameter), path)
                if parameter is not None and owner != path:
                    for each in (path, owner):
                        self._fix_module(each, f"{owner!r} and {path!r} share a parameter")

    def _follow(self, node: fx.Node) -> None:
        shapes = shapes_of_node(node)
        if node.op == "output":
            self.tensors.fix_sources(node, "it is the network's output")
        elif node.op == "get_attr":
            owner = str(node.target).rpartition(".")[0]
            if owner in self._outputs:
                self._fix_module(owner, f"{owner!r} is used otherwise than by calling it")
        elif node.op == "placeholder":
            if len(shapes) == 1:
                self.tensors.single[node.name] = constant(shapes[0])
        elif shapes:
            found = self._through(Call(node, self._modules, self.tensors))
            if hasattr(node.meta["tensor_meta"], "shape"):
                self.tensors.single[node.name] = found[0] or constant(shapes[0])
            else:
                self.tensors.several[node.name] = found

    def _through(self, call: Call) -> Results:
        if not call.sources:
            return [None] * len(call.shapes)
        module = call.module
        if isinstance(module, NARROWABLE):
            if isinstance(module, nn.PReLU) and module.num_parameters == 1:
                return meet(call) or [None]
            return [self._through_narrowable(call, str(call.node.target), module)]
        rule = rule_for(call)
        found = rule(call) if rule else None
        if found is None:
            call.fix(why_not(call.name))
            return [None] * len(call.shapes)
        return found

    def _through_narrowable(self, call: Call, path: str, module: nn.Module) -> Channels | None:
        axis = len(call.before) - 1 if isinstance(module, nn.Linear) else 1
        expected = self._inputs.get(path, self._outputs[path])
        if len(call.before) <= axis or call.before[axis] != len(expected) or len(call.shape) <= axis:
            call.fix(f"its channels can't be followed through {path!r}")
            self._fix_module(path, f"its channels can't be followed through {path!r}")
            return None
        arriving = call.channels
        if arriving is not None and arriving.axis != axis:
            call.fix(f"its channels lie on axis {arriving.axis} where {path!r} reads axis {axis}")
            arriving = None
        atoms = arriving.labels if arriving is not None else constant(call.before).labels * 0
        if arriving is None:
            self._ties.fix(expected, f"{path!r} reads channels that can't change")
        else:
            self._ties.tie(expected, atoms, f"{path!r} reads channels that can't change")
        return Channels(axis, self._outputs[path])
