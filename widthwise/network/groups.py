"""Channel groups: which channel dimensions must be kept or removed together.

The coupling is found by Torch-Pruning's dependency graph (DepGraph, CVPR 2023) and only this module knows
it. What comes out is a :class:`Coupling`: for each parametrised module, which group and which channel of
it every index of its input and output dimension belongs to. That is all surgery, checks and the width
algebra need.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from widthwise.luts.errors import InvalidModel

__all__ = ["FIXED", "NARROWABLE", "Coupling", "Group", "Labels", "couple", "is_depthwise"]

Labels = npt.NDArray[np.int64]
"""One label per channel: ``group index · 2³² + channel of the group``, or ``FIXED``."""

FIXED = -1
"""Label of a channel that belongs to no prunable group."""

_SHIFT = 32

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
NARROWABLE = (*_CONVOLUTIONS, nn.Linear, *_NORMS)
"""Modules whose parameters :mod:`widthwise.network.narrowing` can cut."""


@dataclass(frozen=True, slots=True)
class Group:
    """Channels that live and die together.

    Args:
        name: module path of the first layer that produces them.
        size: the dense width.
        producers: module paths of the convolutions and linear layers whose filters make these channels.
        locked: why the width may not change, or None where it may.
    """

    name: str
    size: int
    producers: tuple[str, ...]
    locked: str | None = None


@dataclass
class Coupling:
    """Groups, and the labels of every narrowable module's dimensions.

    Attributes:
        groups: in the order of the network.
        inputs: module path → labels of its input dimension (absent for norms: they have one dimension).
        outputs: module path → labels of its output dimension.
    """

    groups: list[Group] = field(default_factory=list)
    inputs: dict[str, Labels] = field(default_factory=dict)
    outputs: dict[str, Labels] = field(default_factory=dict)

    def lock(self, index: int, reason: str) -> None:
        """Fix the width of a group; the first reason stays."""
        group = self.groups[index]
        if group.locked is None:
            self.groups[index] = Group(group.name, group.size, group.producers, reason)

    def free(self, labels: Labels) -> Labels:
        """The labels with those of locked groups replaced by ``FIXED``."""
        if not len(labels) or not self.groups:
            return labels
        locked = np.array([group.locked is not None for group in self.groups])
        owners = labels >> _SHIFT
        return np.where((labels != FIXED) & locked[np.maximum(owners, 0)], FIXED, labels)

    def owners(self, labels: Labels) -> list[int]:
        """Indices of the groups that own any of these channels, ascending."""
        return [int(owner) for owner in np.unique(labels[labels != FIXED] >> _SHIFT)]

    def channel(self, labels: Labels) -> npt.NDArray[np.int64]:
        """For each label, the channel within its group."""
        return labels & ((1 << _SHIFT) - 1)


def is_depthwise(module: nn.Module) -> bool:
    """Whether a convolution has one filter set per input channel (with or without a multiplier)."""
    return isinstance(module, _CONVOLUTIONS) and module.groups == module.in_channels and module.groups > 1


def couple(model: nn.Module, example: tuple[torch.Tensor, ...]) -> Coupling:
    """The coupling of a model's channels; run it on a copy on the meta device to allocate nothing.

    Raises:
        InvalidModel: the dependency graph can't be built (the reason is in the message).
    """
    graph_groups = _dependency_groups(model, example)
    names = {module: name for name, module in model.named_modules()}
    coupling = Coupling()
    for name, module in model.named_modules():
        if isinstance(module, NARROWABLE):
            ins, outs = _dimensions(module)
            coupling.outputs[name] = np.full(outs, FIXED, dtype=np.int64)
            if not isinstance(module, _NORMS):
                coupling.inputs[name] = np.full(ins, FIXED, dtype=np.int64)
    order = {name: position for position, name in enumerate(names.values())}
    named = [(_producers(members, names, order), members) for members in graph_groups]
    for producers, members in sorted(named, key=lambda item: order[item[0][0]]):
        _add_group(coupling, producers, members, names)
    return coupling


@dataclass(frozen=True)
class _Member:
    """One dependency of a DepGraph group, in plain terms."""

    module: nn.Module
    is_output: bool
    indices: list[int]
    roots: list[int]
    is_operation: bool


def _dependency_groups(model: nn.Module, example: tuple[torch.Tensor, ...]) -> list[list[_Member]]:
    import torch_pruning

    required = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(True)  # DepGraph reads autograd's graph
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=example, verbose=False)
            return [list(_members(graph, group)) for group in graph.get_all_groups()]
    except Exception as error:  # the library raises whatever the model's construct trips over
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InvalidModel(
            f"the channel dependencies of {type(model).__name__} can't be traced ({reason}); "
            "check that the model runs in eval mode on this input shape"
        ) from error
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(required[name])


def _members(graph: object, group: object) -> Iterator[_Member]:
    for item in group:  # type: ignore[attr-defined]
        module = item.dep.target.module
        yield _Member(
            module=module,
            is_output=graph.is_out_channel_pruning_fn(item.dep.handler),  # type: ignore[attr-defined]
            indices=list(item.idxs),
            roots=list(item.root_idxs),
            is_operation=type(module).__module__.startswith("torch_pruning"),
        )


def _producers(members: list[_Member], names: dict[nn.Module, str], order: dict[str, int]) -> list[str]:
    """Layers that make a group's channels, in the order of the model; its root where there is none."""
    filters = (*_CONVOLUTIONS, nn.Linear)
    makers: list[nn.Module] = [
        m.module for m in members if m.is_output and isinstance(m.module, filters) and not is_depthwise(m.module)
    ]
    return sorted({names[module] for module in makers or [members[0].module]}, key=lambda name: order[name])


def _add_group(coupling: Coupling, producers: list[str], members: list[_Member], names: dict[nn.Module, str]) -> None:
    """Number a group's channels by its root's and write them on every member dimension."""
    index = len(coupling.groups)
    coupling.groups.append(Group(producers[0], len(members[0].roots), tuple(producers)))
    for member in members:
        if member.is_operation:
            continue
        name = names.get(member.module)
        if name is None or not isinstance(member.module, NARROWABLE):
            what = type(member.module).__name__ + (f" {name!r}" if name else "")
            coupling.lock(index, f"feeds {what}, which widthwise can't narrow")
            continue
        _write(coupling, index, name, member)


def _write(coupling: Coupling, index: int, name: str, member: _Member) -> None:
    module = member.module
    if isinstance(module, _CONVOLUTIONS) and module.groups > 1 and not is_depthwise(module):
        coupling.lock(index, f"touches the grouped convolution {name!r} ({module.groups} groups)")
    one_dimension = isinstance(module, _NORMS) or is_depthwise(module)
    labels = coupling.outputs[name] if member.is_output or one_dimension else coupling.inputs[name]
    _assign(coupling, index, labels, member, name)
    if is_depthwise(module) and name in coupling.inputs:
        multiplier = len(coupling.outputs[name]) // len(coupling.inputs[name])
        if multiplier > 1:
            coupling.lock(index, f"touches the depthwise convolution {name!r} with a channel multiplier")
        else:
            coupling.inputs[name] = coupling.outputs[name]


def _assign(coupling: Coupling, index: int, labels: Labels, member: _Member, name: str) -> None:
    indices, roots = np.array(member.indices), np.array(member.roots)
    if len(indices) != len(roots) or (len(indices) and indices.max() >= len(labels)):
        coupling.lock(index, f"its channels can't be followed through {name!r}")
        return
    fresh = (np.int64(index) << _SHIFT) | roots
    taken = (labels[indices] != FIXED) & (labels[indices] != fresh)
    if taken.any():
        for other in coupling.owners(labels[indices][taken]):
            coupling.lock(other, f"shares channels of {name!r} with another group")
            coupling.lock(index, f"shares channels of {name!r} with another group")
        return
    labels[indices] = fresh


def _dimensions(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, _CONVOLUTIONS):
        return module.in_channels, module.out_channels
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, _NORMS):
        return module.num_features, module.num_features
    raise TypeError(type(module).__name__)
