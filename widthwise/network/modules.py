"""Modules that can be narrowed: their channel dimensions, and how their parameters are cut."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

__all__ = [
    "CONVOLUTIONS",
    "NARROWABLE",
    "TRANSPOSED",
    "Indices",
    "cut",
    "cuts",
    "dimensions",
    "filters_of",
    "first_places",
    "is_depthwise",
    "readings_of",
    "sizes",
]

Indices = npt.NDArray[np.int64]
"""Places in one dimension of a tensor."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
TRANSPOSED = _ConvTransposeNd
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)

NARROWABLE = (*CONVOLUTIONS, nn.Linear, *_BATCH_NORMS, *_INSTANCE_NORMS, nn.GroupNorm, nn.PReLU)
"""Modules whose parameters :func:`cut` can cut. All but convolutions and linear layers have one dimension."""


def is_depthwise(module: nn.Module) -> bool:
    """Whether a convolution has one filter set per input channel (with or without a multiplier)."""
    return isinstance(module, _ConvNd) and module.groups == module.in_channels and module.groups > 1


def dimensions(module: nn.Module) -> tuple[int, int]:
    """(input, output) channels of a narrowable module; twice the same where it has one dimension.

    Raises:
        TypeError: the module isn't one of :data:`NARROWABLE`.
    """
    if isinstance(module, _ConvNd):
        return module.in_channels, module.out_channels
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, (*_BATCH_NORMS, *_INSTANCE_NORMS)):
        return module.num_features, module.num_features
    if isinstance(module, nn.GroupNorm):
        return module.num_channels, module.num_channels
    if isinstance(module, nn.PReLU):
        return module.num_parameters, module.num_parameters
    raise TypeError(type(module).__name__)


def is_plain(module: nn.Module) -> bool:
    """Whether its parameters are its own tensors, which can be cut: not reparametrised, normed or frozen into views."""
    if parametrize.is_parametrized(module):
        return False
    weighted = isinstance(module, (_ConvNd, nn.Linear, nn.PReLU))
    return not weighted or module._parameters.get("weight") is not None


def filters_of(module: nn.Module, values: torch.Tensor | None = None) -> torch.Tensor:
    """The weight of a convolution or linear layer, or values of its shape, as ``(outputs, weights of one filter)``."""
    weight = module.weight if values is None else values
    assert isinstance(weight, torch.Tensor)
    weight = weight.detach()
    if isinstance(module, _ConvTransposeNd):  # stored as (inputs, outputs of a convolution group, …)
        groups = module.groups
        parts = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        return parts.transpose(1, 2).reshape(module.out_channels, -1)
    return weight.flatten(1)


def readings_of(module: nn.Module) -> torch.Tensor:
    """The weight of a convolution or linear layer as ``(inputs, weights that multiply one)``."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    weight = weight.detach()
    if isinstance(module, _ConvTransposeNd):
        return weight.flatten(1)
    if isinstance(module, _ConvNd):  # stored as (outputs, inputs of a convolution group, …)
        groups = module.groups
        parts = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        return parts.transpose(1, 2).reshape(module.in_channels, -1)
    return weight.T


def cut(module: nn.Module, inputs: Indices, outputs: Indices) -> None:
    """Keeps these indices of a narrowable module's dimensions, ascending, and says so in its attributes.

    Of a grouped convolution as many must stay in each convolution group, at the same places; of a group norm whole
    groups.
    """
    for name, (rows, columns) in cuts(module, inputs, outputs).items():
        _replace(module, name, rows, columns)
    for name, size in sizes(module, inputs, outputs).items():
        setattr(module, name, size)


def first_places(module: nn.Module, inputs: int, outputs: int) -> tuple[Indices, Indices]:
    """The first so many indices of a module's dimensions; of a grouped convolution the first of each of its groups.

    Raises:
        ValueError: a grouped convolution can't have so many.
    """
    sizes = dimensions(module)
    parts = module.groups if isinstance(module, _ConvNd) and not is_depthwise(module) else 1
    if inputs % parts or outputs % parts:
        raise ValueError(f"{parts} convolution groups can't share {inputs} and {outputs} channels evenly")
    first, second = (
        np.concatenate([np.arange(count // parts) + part * (size // parts) for part in range(parts)])
        for count, size in zip((inputs, outputs), sizes, strict=True)
    )
    return first, second


def cuts(module: nn.Module, inputs: Indices, outputs: Indices) -> dict[str, tuple[Indices, Indices | None]]:
    """Name of a tensor → the indices of its first two axes that stay, None for all; see :func:`cut`."""
    if isinstance(module, nn.Linear):
        return {"weight": (outputs, inputs), "bias": (outputs, None)}
    if isinstance(module, _ConvNd):
        transposed = isinstance(module, _ConvTransposeNd)
        rows, columns = (inputs, outputs) if transposed else (outputs, inputs)
        size = (module.out_channels if transposed else module.in_channels) // module.groups
        within = None if is_depthwise(module) else columns[columns < size]  # the same places in each convolution group
        return {"weight": (rows, within), "bias": (outputs, None)}
    return {
        name: (outputs, None) for name in ("weight", "bias", "running_mean", "running_var") if hasattr(module, name)
    }


def sizes(module: nn.Module, inputs: Indices, outputs: Indices) -> dict[str, int]:
    """The attributes that say how many channels a module has, once it is cut; see :func:`cut`."""
    if isinstance(module, nn.Linear):
        return {"in_features": len(inputs), "out_features": len(outputs)}
    if isinstance(module, _ConvNd):
        groups = len(inputs) if is_depthwise(module) else module.groups
        return {"in_channels": len(inputs), "out_channels": len(outputs), "groups": groups}
    if isinstance(module, nn.GroupNorm):
        per_group = module.num_channels // module.num_groups
        return {"num_groups": len(outputs) // per_group, "num_channels": len(outputs)}
    return {"num_parameters" if isinstance(module, nn.PReLU) else "num_features": len(outputs)}


def _replace(module: nn.Module, name: str, rows: Indices, columns: Indices | None = None) -> None:
    tensor = getattr(module, name)
    if tensor is None:
        return
    narrow = tensor.detach()
    for axis, indices in enumerate((rows, columns)):
        if indices is not None and len(indices) < narrow.shape[axis]:
            narrow = _select(narrow, axis, indices)
    if narrow.shape == tensor.shape:
        return
    if narrow.untyped_storage().nbytes() > narrow.numel() * narrow.element_size():  # a view; would keep what was cut
        narrow = narrow.clone(memory_format=torch.contiguous_format)
    if isinstance(tensor, nn.Parameter):
        setattr(module, name, nn.Parameter(narrow, requires_grad=tensor.requires_grad))
    else:
        setattr(module, name, narrow)


def _select(tensor: torch.Tensor, axis: int, indices: Indices) -> torch.Tensor:
    """These ascending indices of an axis; leading ones as a view, so that a large weight is copied only once."""
    count = len(indices)
    if int(indices[-1]) == count - 1:
        return tensor.narrow(axis, 0, count)
    return tensor.index_select(axis, torch.from_numpy(indices).to(tensor.device))
