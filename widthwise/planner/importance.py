"""Importance: for each group, what each width keeps.

Scores say which channels of a group to keep; the curve built from them says what a width is worth, so that
the allocator can trade one group against another.

A group's curve is the logarithm of the share of its score mass that the best channels hold, weighted by the
number of layers that produce the group. Shares make groups comparable: filter norms differ between layers by
scale alone, which the next normalisation undoes. The logarithm is there because layers compose: what gets
through a network is the product, not the sum, of what each layer lets through, so a group must not be
emptied because others are full.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from widthwise.luts.errors import BadInput
from widthwise.network.groups import FIXED
from widthwise.network.members import Member, depthwise_of, norms_of, producers_of, readers_of
from widthwise.network.modules import filters_of, readings_of
from widthwise.network.network import Network
from widthwise.network.widths import Widths

__all__ = [
    "CRITERIA",
    "Criterion",
    "Importance",
    "from_weights",
    "importance_of",
    "l1_scores",
    "magnitude_scores",
    "score",
]

Scores = dict[str, npt.NDArray[np.float64]]
"""Group → one non-negative score per channel."""


@dataclass(frozen=True)
class Importance:
    """Scores of every free group, and what they make of widths.

    Args:
        criterion: how the scores were obtained.
        scores: group → one score per channel.
        weights: group → number of layers that produce it.

    Example:
        >>> importance = Importance("l1", {"a": np.array([1.0, 3.0])}, {"a": 1})
        >>> importance.kept("a", 1), round(importance.retained({"a": 1}), 2)
        ((1,), 0.75)
    """

    criterion: str
    scores: Mapping[str, npt.NDArray[np.float64]]
    weights: Mapping[str, float]

    def kept(self, group: str, width: int, among: Sequence[int] | None = None) -> tuple[int, ...]:
        """The best channels, of all or of some, ascending; among equals the first."""
        scores = self.scores[group]
        channels = np.arange(len(scores)) if among is None else np.sort(np.array(among, dtype=int))
        order = channels[np.argsort(-scores[channels], kind="stable")[:width]]
        return tuple(sorted(int(channel) for channel in order))

    def curve(self, group: str, widths: Sequence[int]) -> list[float]:
        """What each width is worth; the dense widths of all groups add up to 1.

        The sum over groups is 1 + the logarithm of :meth:`retained`, to first order what is retained itself, so a
        relative gap of the allocator means the same of both.
        """
        held = np.cumsum(-np.sort(-self.scores[group]))
        share = np.maximum(held[np.array(widths) - 1] / max(held[-1], 1e-30), 1e-12)
        return [self.weights[group] * (1 + math.log(value)) / self._total for value in share]

    def retained(self, widths: Widths) -> float:
        """The geometric mean over layers of the score share they keep: 1 for the dense network."""
        return math.exp(sum(self.curve(group, [widths[group]])[0] for group in self.scores) - 1)

    @property
    def _total(self) -> float:
        return sum(self.weights.values())


def _filter_scores(model: nn.Module, network: Network, measure: Callable[[torch.Tensor], torch.Tensor]) -> Scores:
    """A measure of each filter, relative to its layer's mean, averaged over the group's layers.

    Args:
        measure: filters (N, weights of one) → (N,).
    """
    coupling = network.coupling
    scores = {group.name: np.zeros(group.size) for group in network.free}
    for index, group in enumerate(network.groups):
        if group.locked is not None:
            continue
        for path in group.producers:
            norms = measure(filters_of(model.get_submodule(path))).double().cpu().numpy()
            labels = coupling.outputs[path]
            mine = (labels != FIXED) & (labels >> 32 == index)
            relative = norms[mine] / max(float(norms[mine].mean()), 1e-30)
            np.add.at(scores[group.name], coupling.channel(labels[mine]), relative / len(group.producers))
    return scores


def l1_scores(model: nn.Module, network: Network) -> Scores:
    """Sum of the absolute weights of each filter, relative to its layer's mean, averaged over the group's layers.

    Source: Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017 (1608.08710); coupled layers by
    averaging normalised norms, as DepGraph does.
    """
    return _filter_scores(model, network, lambda filters: filters.abs().sum(1))


def l2_scores(model: nn.Module, network: Network) -> Scores:
    """As :func:`l1_scores`, by the root of the sum of squares."""
    return _filter_scores(model, network, lambda filters: filters.square().sum(1).sqrt())


def std_scores(model: nn.Module, network: Network) -> Scores:
    """As :func:`l1_scores`, by the standard deviation of a filter's weights; of one weight, its size."""
    return _filter_scores(
        model, network, lambda filters: filters.std(1) if filters.shape[1] > 1 else filters.abs().flatten()
    )


def mean_scores(model: nn.Module, network: Network) -> Scores:
    """As :func:`l1_scores`, by the size of the mean of a filter's weights."""
    return _filter_scores(model, network, lambda filters: filters.mean(1).abs())


def fpgm_scores(model: nn.Module, network: Network) -> Scores:
    """As :func:`l1_scores`, by a filter's summed distance to its layer's others: the one nearest to their geometric
    median is the easiest to replace by them.

    Source: He et al., Filter Pruning via Geometric Median, CVPR 2019 (1811.00250).
    """
    return _filter_scores(model, network, lambda filters: torch.cdist(filters, filters).sum(1))


def gamma_scores(model: nn.Module, network: Network) -> Scores:
    """The scales of a group's batch norms, each relative to its norm's mean, averaged; of groups without norms,
    :func:`l1_scores`.

    Source: Liu et al., Network Slimming, ICCV 2017 (1708.06519).
    """
    scores = l1_scores(model, network)
    for group in network.free:
        members = norms_of(model, network, group.name)
        if not members:
            continue
        scores[group.name] = np.zeros(group.size)
        for member in members:
            scale = model.get_submodule(member.path).weight
            assert isinstance(scale, torch.Tensor)
            values = scale.detach().abs().double().cpu().numpy()[member.positions.numpy()]
            relative = values / max(float(values.mean()), 1e-30) / len(members)
            np.add.at(scores[group.name], member.channels.numpy(), relative)
    return scores


def magnitude_scores(model: nn.Module, network: Network) -> Scores:
    """The sum of squares of all weights that go with a channel: of the filters that make it, the scales of its norms,
    the depthwise filters it passes, and of what the layers that read it multiply it with.

    A filter's own norm says little where a batch norm follows, which undoes it; how strongly a channel is read is
    what its removal takes from the layers behind.

    Source: Fang et al., DepGraph, CVPR 2023 (2301.12900): the norm of a channel's group of parameters.
    """
    scores = {group.name: np.zeros(group.size) for group in network.free}
    for group in network.free:
        parts: list[tuple[Member, Callable[[nn.Module], torch.Tensor]]] = []
        parts += [(member, filters_of) for member in producers_of(network, group.name)]
        parts += [(member, filters_of) for member in depthwise_of(model, network, group.name)]
        parts += [(member, _scales_of) for member in norms_of(model, network, group.name)]
        parts += [(member, readings_of) for member in readers_of(network, group.name)]
        for member, weights_of in parts:
            weights = weights_of(model.get_submodule(member.path)).double()
            squares = weights.square().sum(1).cpu().numpy()[member.positions.numpy()]
            np.add.at(scores[group.name], member.channels.numpy(), squares)
    return scores


def _scales_of(norm: nn.Module) -> torch.Tensor:
    assert isinstance(norm.weight, torch.Tensor)
    return norm.weight.detach()[:, None]


CRITERIA: dict[str, Callable[[nn.Module, Network], Scores]] = {
    "magnitude": magnitude_scores,
    "l1": l1_scores,
    "l2": l2_scores,
    "fpgm": fpgm_scores,
    "gamma": gamma_scores,
    "std": std_scores,
    "mean": mean_scores,
}
"""Criterion name → scores of a model's channels, from its weights alone."""

Criterion = str | Callable[[Network, str], Sequence[float]]
"""One of :data:`CRITERIA`, or a function of the network and a group's name that gives one score per channel."""


def score(model: nn.Module, network: Network, criterion: Criterion = "magnitude") -> Importance:
    """The importance of a model's channels.

    Raises:
        BadInput: no such criterion, or scores that are negative, not finite, or of another number.

    Example:
        >>> score(model, network, lambda network, group: range(network.dense[group]))  # doctest: +SKIP
    """
    if callable(criterion):
        name = getattr(criterion, "__name__", type(criterion).__name__)
        own = {group.name: np.asarray(list(criterion(network, group.name)), dtype=float) for group in network.free}
        return importance_of(name, own, network)
    if criterion not in CRITERIA:
        raise BadInput(f"no importance criterion {criterion!r}; there are {', '.join(CRITERIA)}")
    return importance_of(criterion, CRITERIA[criterion](model, network), network)


def from_weights(criterion: str) -> str:
    """The criterion itself, or ``magnitude`` where it can't be had from weights alone."""
    return criterion if criterion in CRITERIA else "magnitude"


def importance_of(criterion: str, scores: Scores, network: Network) -> Importance:
    """An importance of these scores, every group weighing as many layers as produce it.

    Raises:
        BadInput: scores that are negative, not finite, or of another number than the group has channels.
    """
    for group in network.free:
        values = scores[group.name]
        if values.shape != (group.size,) or not (np.isfinite(values).all() and (values >= 0).all()):
            raise BadInput(
                f"{criterion} gives group {group.name!r} {len(values)} scores; it needs {group.size}, finite and not "
                "negative"
            )
    return Importance(criterion, scores, {group.name: max(1, len(group.producers)) for group in network.free})
