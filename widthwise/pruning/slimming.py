"""Network Slimming: train with an L1 pull on the norms' scales, keep each group's largest, fine-tune.

Source: Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017 (1708.06519). The pull
is a sub-gradient added after ``backward``; the plan's widths take the place of the paper's global threshold, which
:func:`global_widths` gives for those who have no plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from widthwise.luts.errors import BadInput, InvalidModel
from widthwise.network.members import Member, norms_of
from widthwise.network.narrowing import narrow
from widthwise.network.network import Network
from widthwise.planner.plan import Plan
from widthwise.pruning.constants import Folded, fold_constants
from widthwise.pruning.executor import Executor, examples_of, narrowed_groups, own_copy, traced_for
from widthwise.pruning.parameters import by_decay

__all__ = ["NetworkSlimming", "global_widths", "scale_scores"]


class NetworkSlimming(Executor):
    """Sparse training of scales in the user's loop; :meth:`finish` cuts. Fine-tune what it returns.

    Groups that the plan keeps whole aren't pulled. Coupled norms are one group: a channel's score is the sum of its
    scales, each relative to its norm's mean, so no norm outvotes the others.

    Args:
        model: the dense model; left as it is.
        plan: made for this model; its widths are met exactly, the channels are chosen at the end.
        example: one tensor per input; random ones of the plan's shapes by default.
        sparsity: s, the weight of Σ|γ|; the paper takes 1e-4 for VGG and 1e-5 for ResNets, over 160 epochs at a
            learning rate of 0.1. Shorter runs need more: see :meth:`Recipe.reach`.

    Attributes:
        folded: after :meth:`finish`, which layers took over what removed channels still emitted.

    Raises:
        InvalidPlan: the plan is for another model, or removes nothing.
        InvalidModel: a group to narrow has no batch norm.

    Example:
        >>> run = NetworkSlimming(model, plan, [images])  # doctest: +SKIP
        >>> loss.backward(); run.before_step(step); optimizer.step()  # doctest: +SKIP
        >>> small = run.finish()  # doctest: +SKIP
    """

    def __init__(
        self, model: nn.Module, plan: Plan, example: Sequence[Tensor] | None = None, *, sparsity: float = 1e-4
    ) -> None:
        example = tuple(example) if example is not None else examples_of(plan)
        network = traced_for(plan, model, example)
        norms = {group: _require_norms(model, network, group, plan.model) for group in narrowed_groups(plan)}
        self._begin(model, network, example, norms, sparsity)
        self._widths: dict[str, int] | float = dict(plan.widths)

    @classmethod
    def to_share(
        cls, model: nn.Module, network: Network, example: Sequence[Tensor], share: float, *, sparsity: float = 1e-4
    ) -> NetworkSlimming:
        """The paper's setting, without a plan: all prunable scales are pulled, and :meth:`finish` removes the share of
        channels that :func:`global_widths` says; groups without norms stay whole."""
        global_widths(model, network, share)  # refuses what can't be done before anything is trained
        run = cls.__new__(cls)
        members = {group.name: norms_of(model, network, group.name) for group in network.free}
        run._begin(
            model, network, tuple(example), {group: found for group, found in members.items() if found}, sparsity
        )
        run._widths = share
        return run

    def _begin(
        self,
        model: nn.Module,
        network: Network,
        example: tuple[Tensor, ...],
        norms: Mapping[str, list[Member]],
        sparsity: float,
    ) -> None:
        if not 0 <= sparsity < float("inf"):
            raise BadInput(f"sparsity must be 0 or above, got {sparsity}")
        self._example, self._network, self._norms = example, network, dict(norms)
        self.model = own_copy(model)
        self.sparsity = sparsity
        self.folded = Folded()

    def settings(self) -> dict[str, Any]:
        return {"widths": self._widths, "sparsity": self.sparsity}

    def before_step(self, step: int) -> None:
        """Adds ``s·sign(γ)`` to the gradients of the scales of all groups to narrow."""
        for members in self._norms.values():
            for member in members:
                scale = self.model.get_submodule(member.path).weight
                assert isinstance(scale, Tensor)
                if scale.grad is not None:
                    at = member.positions.to(scale.device)
                    scale.grad[at] += self.sparsity * torch.sign(scale.detach()[at])

    def parameter_groups(self, lr: float | None = None) -> list[dict[str, Any]]:
        """Weight decay on the scales too, as in the paper; none on biases."""
        scales = [
            parameter
            for module in self.model.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            for name, parameter in module.named_parameters(recurse=False)
            if name == "weight"
        ]
        return [{"params": scales}, *by_decay(self.model, without=scales)]

    def scores(self) -> dict[str, npt.NDArray[np.float64]]:
        """Group to narrow → one score per channel."""
        return {
            group: scale_scores(self.model, members, self._network.dense[group])
            for group, members in self._norms.items()
        }

    def _largest(self) -> dict[str, npt.NDArray[np.float64]]:
        dense = self._network.dense
        return {group: _largest_scales(self.model, members, dense[group]) for group, members in self._norms.items()}

    def finish(self) -> nn.Module:
        """The narrow model; the constants that removed channels emitted are folded into the layers that read them.

        The trained ``model`` stays as it is.
        """
        if isinstance(self._widths, float):
            widths, scores = global_widths(self.model, self._network, self._widths), self._largest()
        else:
            widths, scores = self._widths, self.scores()
        kept = {
            group: sorted(np.argsort(-values, kind="stable")[: widths[group]].tolist())
            for group, values in scores.items()
        }
        dense = own_copy(self.model)
        for group, members in self._norms.items():
            for member in members:
                gone = member.positions[~torch.isin(member.channels, torch.tensor(kept[group]))]
                scale = dense.get_submodule(member.path).weight
                assert isinstance(scale, Tensor)
                with torch.no_grad():
                    scale[gone.to(scale.device)] = 0.0
        small = narrow(dense, self._network, kept)
        example = [tensor.to(next(dense.parameters()).device) for tensor in self._example]
        self.folded = fold_constants(dense, small, self._network, kept, example)
        return small


def scale_scores(model: nn.Module, members: Sequence[Member], size: int) -> npt.NDArray[np.float64]:
    """The sum over a group's norms of |γ|, each relative to its norm's mean."""
    scores = np.zeros(size)
    for channels, values in _scales(model, members):
        np.add.at(scores, channels, values / max(float(values.mean()), 1e-30))
    return scores


def global_widths(model: nn.Module, network: Network, share: float, *, least: int = 1) -> dict[str, int]:
    """The paper's own rule, without a plan: one threshold on |γ| over all prunable norms.

    Args:
        share: of all prunable channels to remove, 0 to below 1.
        least: channels every group keeps.

    Raises:
        BadInput: a share out of its range.
        InvalidModel: no prunable group has a batch norm.

    Example:
        >>> widths = global_widths(model, network, 0.7)  # doctest: +SKIP
    """
    if not 0 <= share < 1:
        raise BadInput(f"the share to remove must be 0 to below 1, got {share}")
    norms = {group.name: norms_of(model, network, group.name) for group in network.free}
    scales: dict[str, npt.NDArray[np.float64]] = {
        group: _largest_scales(model, members, network.dense[group]) for group, members in norms.items() if members
    }
    if not scales:
        raise InvalidModel(_without_norms(network.name, "the model"))
    pooled = np.sort(np.concatenate(list(scales.values())))
    threshold = pooled[int(len(pooled) * share)] if share else -1.0
    widths: Mapping[str, int] = {group: max(least, int((values > threshold).sum())) for group, values in scales.items()}
    return network.dense | dict(widths)


def _largest_scales(model: nn.Module, members: Sequence[Member], size: int) -> npt.NDArray[np.float64]:
    """Each channel's largest |γ|: it lives while one of its norms lets it through."""
    largest = np.zeros(size)
    for channels, values in _scales(model, members):
        np.maximum.at(largest, channels, values)
    return largest


def _scales(
    model: nn.Module, members: Sequence[Member]
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]]:
    """Of each norm, the channels it holds and their |γ|."""
    for member in members:
        scale = model.get_submodule(member.path).weight
        assert isinstance(scale, Tensor)
        values = scale.detach()[member.positions.to(scale.device)].abs().double().cpu().numpy()
        yield member.channels.numpy(), values


def _require_norms(model: nn.Module, network: Network, group: str, name: str) -> list[Member]:
    members = norms_of(model, network, group)
    if not members:
        raise InvalidModel(_without_norms(name, f"group {group!r}"))
    return members


def _without_norms(name: str, what: str) -> str:
    return (
        f"Network Slimming needs batch norms with scales, and {what} of {name} has none; take --method l1 "
        f"(FilterPruning) or --method resrep (ResRep), which need none"
    )
