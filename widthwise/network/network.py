"""A network as data: channel groups, layers, and everything a width vector implies.

:meth:`Network.trace` is the only step that looks at a model; all else is arithmetic on frozen data.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import fx, nn

from widthwise.luts.errors import InvalidModel
from widthwise.luts.spec import LayerSpec
from widthwise.network.groups import Coupling, Group
from widthwise.network.layers import Layer, layers_of, macs
from widthwise.network.modules import TRANSPOSED, is_depthwise
from widthwise.network.moves import Channels
from widthwise.network.tracing import trace_graph, trace_shapes
from widthwise.network.trial import followed
from widthwise.network.widths import Affine, Widths, grid

__all__ = ["LEAST_SHARE", "Network", "meta_copy", "trace_runnable"]

LEAST_SHARE = 0.125
"""Of each group's channels that networks keep."""

_STEP = 8
"""Between widths of groups whose granularity isn't known."""

_CHOICES = 4
"""Least number of widths a group is given: steps are found on wide layers and say little about narrow ones."""


@dataclass(frozen=True)
class Network:
    """What the planner knows of a model.

    Attributes:
        name: what the user calls the model, such as ``torchvision:resnet18``.
        inputs: shape of each input tensor.
        layers: operations in order of execution.
        coupling: groups and the labels of each module's dimensions.
        channels: labels of each operation's output, by its name.
        tensors: (parameter shape as sizes, per parameter or buffer) for exact counts.
        signature: hash of the structure: equal for the same architecture on the same input shapes, whatever its name,
            and whether its layers are fused or not.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 7, 3), nn.ReLU(), nn.Conv2d(7, 5, 1))
        >>> network = Network.trace(model, torch.zeros(1, 3, 11, 11))
        >>> network.dense, network.macs({"0": 2})
        ({'0': 7}, 5184)
    """

    name: str
    inputs: tuple[tuple[int, ...], ...]
    layers: tuple[Layer, ...]
    coupling: Coupling = field(repr=False)
    channels: Mapping[str, Channels] = field(repr=False)
    tensors: tuple[tuple[Affine, ...], ...] = field(repr=False)
    signature: str

    @classmethod
    def trace(cls, model: nn.Module, example: torch.Tensor | Sequence[torch.Tensor], *, name: str = "") -> Network:
        """The network of a model, traced in eval mode; the model itself is left as it is.

        Args:
            example: one input tensor, or one per input.

        Raises:
            InvalidModel: the model can't be traced on these inputs.
        """
        inputs = (example,) if isinstance(example, torch.Tensor) else tuple(example)
        name = name or type(model).__name__
        copied = meta_copy(model).eval()
        example_meta = tuple(tensor.detach().to("meta") for tensor in inputs)
        try:
            graph = trace_shapes(copied, example_meta)
        except Exception as error:  # torch.fx and the model raise what they like
            reason = _reason(error)
            if _traces_in_training(copied, example_meta):
                reason += " (in train mode it can be; its forward must run in eval mode too)"
            raise InvalidModel(_untraceable(name, inputs, reason)) from error
        if not graph.graph.output_node().all_input_nodes:
            raise InvalidModel(_untraceable(name, inputs, "its output holds no tensor in eval mode"))
        coupling, channels = followed(graph)
        shapes = tuple(tuple(tensor.shape) for tensor in inputs)
        layers = layers_of(graph, coupling, channels)
        return cls(
            name=name,
            inputs=shapes,
            layers=layers,
            coupling=coupling,
            channels=channels,
            tensors=tuple(_tensor_sizes(copied, coupling)),
            signature=_signature(shapes, layers, coupling),
        )

    @property
    def groups(self) -> tuple[Group, ...]:
        """All groups, locked ones included."""
        return tuple(self.coupling.groups)

    @cached_property
    def free(self) -> tuple[Group, ...]:
        """Groups whose width may change."""
        return tuple(group for group in self.coupling.groups if group.locked is None)

    @property
    def dense(self) -> dict[str, int]:
        """The original widths."""
        return {group.name: group.size for group in self.free}

    def options(
        self,
        steps: Mapping[str, int] | None = None,
        firm: Mapping[str, int] | None = None,
        *,
        floor: float = LEAST_SHARE,
        most: int = 16,
    ) -> dict[str, tuple[int, ...]]:
        """Widths to choose from, per free group: multiples of its step or of a quarter of the dense width, whichever is
        finer, and at least ``floor`` of the dense width.

        Args:
            steps: of groups where they are known, see :mod:`widthwise.network.granularity`; 8 for the others.
            firm: steps that hold however few widths they leave, see :mod:`widthwise.network.joints`.
        """
        stride = self.steps(steps, firm)
        return {
            group.name: grid(group.size, stride[group.name], minimum=int(np.ceil(floor * group.size)), most=most)
            for group in self.free
        }

    def steps(self, known: Mapping[str, int] | None = None, firm: Mapping[str, int] | None = None) -> dict[str, int]:
        """What the widths of :meth:`options` are multiples of, per free group: its step where that is known, else 8; a
        quarter of the dense width where that is finer, but no less than a firm step."""
        usual = {
            group.name: min((known or {}).get(group.name, _STEP), max(1, group.size // _CHOICES)) for group in self.free
        }
        return {group: max(step, (firm or {}).get(group, 1)) for group, step in usual.items()}

    def require_free(self) -> None:
        """Nothing, where some group may change its width.

        Raises:
            InvalidModel: none may; says why, and where the model is no CNN what widthwise is for.
        """
        if self.free:
            return
        what = f"{self.name} has no channels that may be removed"
        if not any("conv" in layer.geometry.kind for layer in self.layers):
            raise InvalidModel(
                f"{what}, and no convolution: widthwise makes convolutional networks (CNNs) faster by removing channels"
            )
        reasons = dict.fromkeys(f"{group.name!r}: {group.locked}" for group in self.groups)
        raise InvalidModel(f"{what} ({'; '.join(list(reasons)[:3])}); a plan needs one group at least that may change")

    def require_widths(self, widths: Widths) -> dict[str, int]:
        """The widths completed with the dense ones.

        Raises:
            InvalidModel: a group is unknown, or a width is not between 1 and the dense one.
        """
        dense = self.dense
        for group, width in widths.items():
            if group not in dense:
                known = ", ".join(list(dense)[:6])
                raise InvalidModel(f"{self.name} has no prunable group {group!r}; its groups are {known}, …")
            if not 1 <= width <= dense[group]:
                raise InvalidModel(f"group {group!r} can keep 1 to {dense[group]} channels, not {width}")
        return dense | {group: int(width) for group, width in widths.items()}

    def specs(self, widths: Widths) -> list[LayerSpec]:
        """Every layer at these widths, in order of execution."""
        return [layer.spec(widths) for layer in self.layers]

    def macs(self, widths: Widths) -> int:
        """Multiply-accumulates of one inference in convolutions and linear layers."""
        return sum(macs(spec) for spec in self.specs(widths))

    def parameters(self, widths: Widths) -> int:
        """Number of parameters."""
        return sum(int(np.prod([size(widths) for size in shape], dtype=np.int64)) for shape in self.tensors)


def trace_runnable(model: nn.Module, network: Network) -> fx.GraphModule:
    """A (narrowed) copy of the network's model as a graph whose operations are ``network.layers``.

    Parameters are shared with ``model``. Shapes are not propagated: nothing is run.

    Raises:
        InvalidModel: the model is another one than was traced.
    """
    graph = trace_graph(model)
    present = {node.name for node in graph.graph.nodes}
    missing = [layer.name for layer in network.layers if layer.name not in present]
    if missing:
        raise InvalidModel(f"this model is not {network.name}: it has no operation {missing[0]!r}")
    return graph


def meta_copy(model: nn.Module) -> nn.Module:
    """A copy on the meta device that allocates no weights."""
    memo: dict[int, object] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = (
            nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
        )
    return copy.deepcopy(model, memo)


def _signature(inputs: tuple[tuple[int, ...], ...], layers: Sequence[Layer], coupling: Coupling) -> str:
    digest = hashlib.sha256(repr(inputs).encode())
    for layer in layers:
        digest.update(f"{layer.geometry.key}{layer.axes}".encode())
    dense = {group.name: group.size for group in coupling.groups if group.locked is None}
    digest.update(repr(sorted(dense.items())).encode())
    return digest.hexdigest()[:16]


def _tensor_sizes(model: nn.Module, coupling: Coupling) -> list[tuple[Affine, ...]]:
    sizes = []
    modules = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        path, _, leaf = name.rpartition(".")
        shape = [Affine((), size) for size in parameter.shape]
        if path in coupling.outputs and leaf in ("weight", "bias"):
            if leaf == "weight" and len(shape) > 1:
                shape[:2] = _weight_sizes(modules[path], coupling, path)
            elif shape[0].constant == len(coupling.outputs[path]):
                shape[0] = coupling.affine(coupling.outputs[path])
        sizes.append(tuple(shape))
    return sizes


def _weight_sizes(module: nn.Module, coupling: Coupling, path: str) -> list[Affine]:
    rows, columns = coupling.outputs[path], coupling.inputs[path]
    if isinstance(module, TRANSPOSED):
        rows, columns = columns, rows
    groups = int(str(getattr(module, "groups", 1)))
    if is_depthwise(module):
        return [coupling.affine(rows), Affine((), len(columns) // groups)]
    return [coupling.affine(rows), coupling.affine(columns[: len(columns) // groups])]


def _traces_in_training(copied: nn.Module, example: tuple[torch.Tensor, ...]) -> bool:
    try:
        return bool(trace_shapes(copied.train(), example).graph.output_node().all_input_nodes)
    except Exception:  # as above: it can't be traced at all
        return False


_ADVICE = {"item assignment": "instead of assigning to a part of a tensor, multiply it by a mask or use torch.cat"}
"""Part of a reason → how the model can be written so that it is traced."""


def _reason(error: Exception) -> str:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return reason.split(". ")[0].rstrip(".")


def _untraceable(name: str, inputs: tuple[torch.Tensor, ...], reason: str) -> str:
    shapes = " and ".join("×".join(map(str, tensor.shape)) for tensor in inputs)
    advice = "".join(f"; {found}" for part, found in _ADVICE.items() if part in reason)
    return (
        f"{name} can't be traced on input {shapes}: {reason}{advice}. widthwise needs a CNN that runs in eval mode on "
        "this input shape and whose control flow doesn't depend on the data"
    )
