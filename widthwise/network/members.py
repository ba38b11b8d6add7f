"""Where the channels of a group live in a model: its filters, its norms, and what follows them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import fx, nn

from widthwise.network.groups import FIXED, Labels
from widthwise.network.modules import is_depthwise
from widthwise.network.network import Network, trace_runnable

__all__ = ["Member", "depthwise_of", "norm_after", "norms_of", "producers_of", "readers_of"]

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Member:
    """A module that holds channels of a group.

    Args:
        path: of the module.
        positions: indices in its output dimension, or in its input dimension where it reads the group.
        channels: for each position, the channel of the group it is.
    """

    path: str
    positions: torch.Tensor
    channels: torch.Tensor

    def to(self, device: torch.device) -> Member:
        """The same with its tensors on a device."""
        return Member(self.path, self.positions.to(device), self.channels.to(device))


def producers_of(network: Network, group: str) -> list[Member]:
    """The convolutions and linear layers whose filters make a group's channels."""
    index = _index(network, group)
    members = (_member(network, path, index) for path in network.groups[index].producers)
    return [member for member in members if member is not None]


def readers_of(network: Network, group: str) -> list[Member]:
    """The convolutions and linear layers whose filters take a group's channels in; positions are those of their input.

    Depthwise convolutions, which pass each channel on, are not among them.
    """
    index, coupling = _index(network, group), network.coupling
    members = (
        _among(network, path, labels, index)
        for path, labels in coupling.inputs.items()
        if labels is not coupling.outputs[path]
    )
    return [member for member in members if member is not None]


def depthwise_of(model: nn.Module, network: Network, group: str) -> list[Member]:
    """The depthwise convolutions that pass a group's channels on, without a multiplier."""
    index, coupling = _index(network, group), network.coupling
    members = (
        _member(network, path, index)
        for path, labels in coupling.inputs.items()
        if labels is coupling.outputs[path] and is_depthwise(model.get_submodule(path))
    )
    return [member for member in members if member is not None]


def norms_of(model: nn.Module, network: Network, group: str) -> list[Member]:
    """The batch norms with a scale that hold channels of a group, in the order of the model."""
    index = _index(network, group)
    members = (
        _member(network, path, index)
        for path, module in model.named_modules()
        if isinstance(module, _NORMS) and module.affine and path in network.coupling.outputs
    )
    return [member for member in members if member is not None]


def norm_after(model: nn.Module, network: Network) -> dict[str, str]:
    """Path of a convolution or linear layer → path of the batch norm that alone reads its output, where there is one.

    Modules called more than once are left out.
    """
    graph = trace_runnable(model, network)
    calls: dict[str, list[fx.Node]] = {}
    for node in graph.graph.nodes:
        if node.op == "call_module":
            calls.setdefault(str(node.target), []).append(node)
    found = {}
    for path, nodes in calls.items():
        if path not in network.coupling.inputs or len(nodes) > 1 or len(nodes[0].users) != 1:
            continue
        user = next(iter(nodes[0].users))
        if user.op == "call_module" and len(calls[str(user.target)]) == 1:
            module = model.get_submodule(str(user.target))
            if isinstance(module, _NORMS) and module.track_running_stats:
                found[path] = str(user.target)
    return found


def _index(network: Network, group: str) -> int:
    return next(index for index, known in enumerate(network.groups) if known.name == group)


def _member(network: Network, path: str, index: int) -> Member | None:
    return _among(network, path, network.coupling.outputs[path], index)


def _among(network: Network, path: str, labels: Labels, index: int) -> Member | None:
    positions = np.flatnonzero((labels != FIXED) & (labels >> 32 == index))
    if not len(positions):
        return None
    channels = network.coupling.channel(labels[positions])
    return Member(path, torch.from_numpy(positions), torch.from_numpy(channels))
