"""Importance from data: what channels do on images, and what the loss says of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from widthwise.luts.errors import BadInput
from widthwise.network.members import Member, norms_of, producers_of, readers_of
from widthwise.network.modules import filters_of, readings_of
from widthwise.network.network import Network
from widthwise.planner.importance import Importance, importance_of

__all__ = ["activation", "taylor", "wanda"]

_FLOOR = 1e-12
"""A channel that does nothing still counts for something, so that no group can be emptied for nothing."""

_Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]


def activation(model: nn.Module, network: Network, batches: _Batches) -> Importance:
    """How large a channel is where it is read: the mean of its absolute value at the input of the layers that take it.

    Behind norms and activations, so that a channel whose ReLU never opens counts for nothing however large its filter.
    For each reading layer relative to the group's mean there, averaged over the layers. The model is in eval mode
    meanwhile and stays as it is.

    Args:
        batches: images and labels (which aren't used); some ten are enough.

    Source: mean activation, as compared by Molchanov et al., ICLR 2017 (1611.06440).

    Raises:
        BadInput: no batches, or activations that aren't finite.

    Example:
        >>> importance = activation(model, network, islice(loader, 10))  # doctest: +SKIP
    """
    return _as_read("activation", model, network, batches, lambda values: values.abs(), lambda module: 1.0)


def wanda(model: nn.Module, network: Network, batches: _Batches) -> Importance:
    """How much of a channel arrives: the mean of its square at the input of the layers that take it, times the sum of
    squares of the weights they multiply it with.

    To first order what a layer's outputs lose in energy without the channel. For each reading layer relative to the
    group's mean there, averaged over the layers. The model is in eval mode meanwhile and stays as it is.

    Args:
        batches: images and labels (which aren't used); some ten are enough.

    Source: Sun et al., Wanda, ICLR 2024 (2306.11695), whose score of a weight is its size times the norm of its input;
    by channel as in An et al., FLAP, AAAI 2024 (2312.11983).

    Raises:
        BadInput: no batches, or activations that aren't finite.

    Example:
        >>> importance = wanda(model, network, islice(loader, 10))  # doctest: +SKIP
    """
    return _as_read(
        "wanda", model, network, batches, torch.square,
        lambda module: readings_of(module).double().square().sum(1).cpu().numpy(),
    )  # fmt: skip


def _as_read(
    criterion: str,
    model: nn.Module,
    network: Network,
    batches: _Batches,
    measure: Callable[[torch.Tensor], torch.Tensor],
    weigh: Callable[[nn.Module], float | npt.NDArray[np.float64]],
) -> Importance:
    """The mean of a measure of a channel's values where it is read, times each reader's weight for it."""
    copied = copy.deepcopy(model).eval()
    readers = {group.name: readers_of(network, group.name) for group in network.free}
    sizes: dict[str, npt.NDArray[np.float64]] = {}

    def watch(path: str, axis: int) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            flat = measure(inputs[0].detach().double()).movedim(axis, 0).flatten(1).mean(1).cpu().numpy()
            sizes[path] = sizes.get(path, 0.0) + flat

        return hook

    used = 0
    with ExitStack() as hooks, torch.no_grad():
        for path in {member.path for members in readers.values() for member in members}:
            module = copied.get_submodule(path)
            hook = watch(path, -1 if isinstance(module, nn.Linear) else 1)
            hooks.callback(module.register_forward_pre_hook(hook).remove)
        for images, _ in batches:
            copied(images.to(next(copied.parameters()).device))
            used += 1
    if not used:
        raise BadInput(f"{criterion} needs batches of images; it got none")
    scores = {}
    for group in network.free:
        scores[group.name] = np.full(group.size, _FLOOR)
        for member in readers[group.name]:
            values = (sizes[member.path] * weigh(copied.get_submodule(member.path)))[member.positions.numpy()]
            relative = values / max(float(values.mean()), 1e-30) / len(readers[group.name])
            np.add.at(scores[group.name], member.channels.numpy(), relative)
    return importance_of(criterion, scores, network)


def taylor(
    model: nn.Module,
    network: Network,
    batches: _Batches,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = functional.cross_entropy,
) -> Importance:
    """How much the loss would change without a channel, to first order: ``|Σ γ·∂L/∂γ + β·∂L/∂β|`` over a group's norms,
    or ``|Σ w·∂L/∂w|`` over its filters where it has none; averaged over the batches.

    The members of a group are summed with their signs before the absolute value is taken: they go together. Batches
    whose gradients aren't finite are skipped. The model is in eval mode meanwhile and stays as it is.

    Args:
        batches: images and labels; some ten are enough.
        loss: of the model's output and the labels.

    Source: Shen et al., HALP, NeurIPS 2022 (2110.10811); Molchanov et al., CVPR 2019 (1906.10771).

    Raises:
        BadInput: no batches, or none with finite gradients.

    Example:
        >>> importance = taylor(model, network, islice(loader, 10))  # doctest: +SKIP
    """
    copied = copy.deepcopy(model).eval().requires_grad_(True)
    members = {group.name: _summed_over(copied, network, group.name) for group in network.free}
    total = {group.name: np.zeros(group.size) for group in network.free}
    used = 0
    for images, labels in batches:
        copied.zero_grad()
        device = next(copied.parameters()).device
        loss(copied(images.to(device)), labels.to(device)).backward()  # type: ignore[no-untyped-call]
        found = {group: _signed(parts, network.dense[group]) for group, parts in members.items()}
        if all(np.isfinite(values).all() for values in found.values()):
            used += 1
            for group, values in found.items():
                total[group] += np.abs(values)
    if not used:
        raise BadInput("taylor needs batches of images and labels with finite gradients; it got none")
    scores = {group: values / used + _FLOOR for group, values in total.items()}
    return importance_of("taylor", scores, network)


_Part = tuple[nn.Module, nn.Parameter, Member]


def _summed_over(model: nn.Module, network: Network, group: str) -> list[_Part]:
    """The parameters whose products with their gradients make a group's score."""
    norms = norms_of(model, network, group)
    names = ("weight", "bias") if norms else ("weight",)
    parts = []
    for member in norms or producers_of(network, group):
        for name in names:
            module = model.get_submodule(member.path)
            parameter = getattr(module, name)
            if parameter is not None:
                parts.append((module, parameter, member))
    return parts


def _signed(parts: Sequence[_Part], size: int) -> npt.NDArray[np.float64]:
    sums = np.zeros(size)
    for module, parameter, member in parts:
        if parameter.grad is not None:
            product = parameter.detach() * parameter.grad
            each = filters_of(module, product).sum(1) if product.ndim > 1 else product
            np.add.at(sums, member.channels.numpy(), each.double().cpu().numpy()[member.positions.numpy()])
    return sums
