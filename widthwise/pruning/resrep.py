"""ResRep: a compactor behind each layer to narrow learns which of its channels can vanish; then it is merged away.

Source: Ding et al., ResRep: Lossless CNN Pruning via Decoupling Remembering and Forgetting, ICCV 2021 (2007.03260).
A compactor is a 1×1 convolution, at first the identity. The weights train as ever and remember; rows of compactors
chosen to go lose the objective's gradient and forget, pulled to zero by a group lasso that acts on all rows. A row at
zero is a channel that can be cut without a trace.

Two choices of rows: the plan's widths, raised to step by step (:class:`ToWidths`), or the paper's own greedy over all
layers until a share of the multiply-accumulates is reached (:class:`ToMacs`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from widthwise.luts.errors import BadInput
from widthwise.network.members import norm_after, producers_of
from widthwise.network.narrowing import narrow
from widthwise.network.network import Network
from widthwise.planner.plan import Plan
from widthwise.pruning.compactors import Compacted, Compactor, Site, insert, merge
from widthwise.pruning.constants import Folded, fold_constants
from widthwise.pruning.executor import Executor, difference_of, examples_of, narrowed_groups, own_copy, traced_for
from widthwise.pruning.parameters import by_decay
from widthwise.pruning.selection import ToMacs, ToWidths, least

__all__ = ["ResRep", "ToMacs", "ToWidths"]

MOMENTUM = 0.99
"""Of compactors: a row without the objective's gradient must fall steadily, and one with it must not be shaken off."""

MOST_LR = 0.01
"""Of compactors, the paper's. With that momentum they move ten times as far as other weights at the same rate: where
all else learns at 0.05, a ResNet-20 was at 76.5 % after an epoch with this limit, at 72.5 % without."""

_CPU = torch.device("cpu")
_LEAST_NORM = 1e-12
_NEAR_ZERO = 0.1
"""Share of the mean norm of channels that stay, below which a forgetting row that grows has passed zero."""


class ResRep(Executor):
    """Compactors in the user's loop; :meth:`finish` merges them and cuts. No fine-tuning is needed afterwards.

    Coupled layers choose together: a channel's norm is that over its rows in all compactors of the group, and the lasso
    pulls them as one, by the root of their number times as much.

    Args:
        model: the dense, trained model; left as it is.
        plan: made for this model; its widths are met exactly.
        example: one tensor per input; random ones of the plan's shapes by default.
        steps: optimizer steps of the whole run. Channels are first chosen after 5 % of it, all of them by 40 %, anew
            every 1 %; a step count of the paper's length gives about its 200 steps between choices.
        lasso: λ, the pull on all rows; 1e-4 as in the paper, over 480 (ResNet-56) and 180 epochs (ResNet-50).
        forget: the pull on rows that forget, by default λ too, as in the paper. A shorter run needs more for them to
            reach zero, see :meth:`Recipe.reach`. Raising λ itself instead shrinks all rows alike: the next norm undoes
            their common scale, so the objective doesn't hold against it.

    Attributes:
        masked: group → which channels forget.
        at_rest: group → which of them have reached zero and stay there.
        residual: after :meth:`finish`, the largest norm of a removed channel relative to the mean of those kept; below
            1e-5 the cut is exact.
        difference: after :meth:`finish`, between what the compactors compute and what is returned, relative.

    Raises:
        InvalidPlan: the plan is for another model, or removes nothing.

    Example:
        >>> run = ResRep(model, plan, [images], steps=10 * len(loader))  # doctest: +SKIP
        >>> optimizer = torch.optim.SGD(run.parameter_groups(lr=0.01), lr=0.01, momentum=0.9)  # doctest: +SKIP
        >>> loss.backward(); run.before_step(step); optimizer.step()  # doctest: +SKIP
        >>> small = run.finish()  # doctest: +SKIP
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        example: Sequence[Tensor] | None = None,
        *,
        steps: int,
        lasso: float = 1e-4,
        forget: float | None = None,
    ) -> None:
        if steps < 1:
            raise BadInput(f"steps must be those of the whole run, at least 1; got {steps}")
        example = tuple(example) if example is not None else examples_of(plan)
        network = traced_for(plan, model, example)
        removed = {group: plan.dense[group] - width for group, width in narrowed_groups(plan).items()}
        start, end, every = steps // 20, 2 * steps // 5, max(1, steps // 100)
        self._begin(model, network, example, ToWidths(removed, start, end, every), list(removed), lasso, forget)

    @classmethod
    def to_macs(
        cls,
        model: nn.Module,
        network: Network,
        example: Sequence[Tensor],
        selection: ToMacs,
        *,
        lasso: float = 1e-4,
        forget: float | None = None,
    ) -> ResRep:
        """The paper's setting: no plan, all free groups, a share of the multiply-accumulates."""
        run = cls.__new__(cls)
        run._begin(model, network, tuple(example), selection, list(network.dense), lasso, forget)
        return run

    def _begin(
        self,
        model: nn.Module,
        network: Network,
        example: tuple[Tensor, ...],
        selection: ToWidths | ToMacs,
        groups: Sequence[str],
        lasso: float,
        forget: float | None,
    ) -> None:
        self.lasso, self.forget = lasso, lasso if forget is None else forget
        for name, value in (("lasso", self.lasso), ("forget", self.forget)):
            if not 0 <= value < float("inf"):
                raise BadInput(f"{name} must be 0 or above, got {value}")
        norms = norm_after(model, network)
        self._network, self._example = network, example
        self._selection = selection
        self._sites = {
            group: [Site(member.path, norms.get(member.path), member) for member in producers_of(network, group)]
            for group in groups
        }
        self._dense, self._device = model, _CPU
        self.model = own_copy(model)
        for site in {site.path: site for sites in self._sites.values() for site in sites}.values():
            insert(self.model, site)
        self.masked = {group: torch.zeros(network.dense[group], dtype=torch.bool) for group in groups}
        self.at_rest = {group: mask.clone() for group, mask in self.masked.items()}
        self._norms_before = {group: torch.full((network.dense[group],), torch.inf) for group in groups}
        self.residual = self.difference = float("nan")
        self.folded = Folded()

    def before_step(self, step: int) -> None:
        """Chooses anew which channels forget when that is due; then gradient resetting and lasso."""
        self._follow()
        if self._selection.due(step):
            chosen = self._selection.masked(self.norms(), _on(self.masked, _CPU), step)
            self.masked = _on(chosen, self._device)
        for group, sites in self._sites.items():
            # As a group lasso weighs groups by their size: n coupled rows are each pulled as one alone would be.
            norms = self._settled(group).clamp_min(_LEAST_NORM) / math.sqrt(len(sites))
            for site in sites:
                weight = self._compactor(site).weight
                if weight.grad is None:
                    continue
                rows, channels = site.member.positions, site.member.channels
                forgets = self.masked[group][channels][:, None]
                pull = weight.detach()[rows] / norms[channels].to(weight)[:, None]
                weight.grad[rows] = torch.where(forgets, self.forget * pull, weight.grad[rows] + self.lasso * pull)

    def _settled(self, group: str) -> Tensor:
        """The norms of a group's channels, those at rest at zero.

        The lasso pulls with the same force however near zero a row is, and momentum carries it past. Left alone it
        would swing about zero for the rest of a short run; so a row that forgets is put to rest when it has passed.
        """
        norms, masked = self._norms_of(group), self.masked[group]
        near = norms * (~masked).sum() < _NEAR_ZERO * (norms * ~masked).sum()
        rest = masked & (self.at_rest[group] | (near & (norms > self._norms_before[group])))
        self.at_rest[group] = rest
        self._norms_before[group] = norms
        with torch.no_grad():
            for site in self._sites[group]:
                weight = self._compactor(site).weight
                weight[site.member.positions] *= (~rest)[site.member.channels].to(weight)[:, None]
        return torch.where(rest, 0.0, norms)

    def norms(self) -> dict[str, Tensor]:
        """Group → the norm of each channel over its rows in all compactors of the group; on the CPU."""
        return {group: self._norms_of(group).cpu() for group in self._sites}

    def _norms_of(self, group: str) -> Tensor:
        squares = torch.zeros(self._network.dense[group], device=self._device)
        for site in self._sites[group]:
            rows = self._compactor(site).weight.detach()[site.member.positions]
            squares.index_add_(0, site.member.channels, rows.square().sum(1).float())
        return squares.sqrt()

    def _follow(self) -> None:
        """Goes where the model has gone, so that no step waits for another device."""
        device = next(self.model.parameters()).device
        if device == self._device:
            return
        self._device = device
        self._sites = {group: [site.to(device) for site in sites] for group, sites in self._sites.items()}
        for states in (self.masked, self.at_rest, self._norms_before):
            states.update(_on(states, device))

    def parameter_groups(self, lr: float | None = None) -> list[dict[str, Any]]:
        """Compactors with momentum 0.99 and no weight decay; norms and biases without weight decay.

        Args:
            lr: what the optimizer gets. It is doubled for biases, as the paper's code does, and for compactors it is at
                most the paper's 0.01. Without it all take the optimizer's.
        """
        compactors = [m.weight for m in self.model.modules() if isinstance(m, Compactor)]
        biases = [p for name, p in self.model.named_parameters() if name.endswith("bias")] if lr is not None else []
        groups: list[dict[str, Any]] = [{"params": compactors, "momentum": MOMENTUM, "weight_decay": 0.0}]
        if lr is not None:
            groups[0]["lr"] = min(lr, MOST_LR)
            groups += [{"params": biases, "weight_decay": 0.0, "lr": 2 * lr}] if biases else []
        return groups + by_decay(self.model, without=[*compactors, *biases])

    def finish(self) -> nn.Module:
        """The narrow model with compactors and norms merged into its layers; its norms stay, so that the architecture
        is the plan's and it can be trained on. ``model`` stays as it is."""
        self._follow()
        at_rest = _on(self.at_rest, _CPU)
        norms = {group: torch.where(at_rest[group], 0.0, values) for group, values in self.norms().items()}
        chosen = self._last_choice(norms)
        kept = {group: torch.nonzero(~mask).flatten().tolist() for group, mask in chosen.items()}
        left = [
            float(norms[group][mask].max() / norms[group][~mask].mean()) for group, mask in chosen.items() if mask.any()
        ]
        self.residual = max(left, default=0.0)
        merged = self.merged(kept)
        small = narrow(merged, self._network, kept)
        device = next(merged.parameters()).device
        example = [tensor.to(device) for tensor in self._example]
        self.folded = fold_constants(merged, small, self._network, kept, example)
        self.difference = difference_of(self.model, small, example)
        return small

    def merged(self, kept: Mapping[str, Sequence[int]] | None = None) -> nn.Module:
        """The dense architecture with compactors and norms merged into its layers; removed channels are at zero."""
        self._follow()
        merged = own_copy(self._dense)
        trained = {name.replace(".inner.", "."): tensor for name, tensor in self.model.state_dict().items()}
        device = next(self.model.parameters()).device
        merged.to(device)
        merged.load_state_dict({name: tensor for name, tensor in trained.items() if ".compactor." not in name})
        rows: dict[str, Tensor] = {}
        for group, sites in self._sites.items():
            for site in sites:
                matrix = rows.setdefault(site.path, self._compactor(site).weight.detach().clone())
                if kept is not None:
                    gone = ~torch.isin(site.member.channels, torch.tensor(list(kept[group]), device=self._device))
                    matrix[site.member.positions[gone]] = 0.0
        for site in {site.path: site for sites in self._sites.values() for site in sites}.values():
            merge(merged, site, rows[site.path])
        return merged

    def settings(self) -> dict[str, Any]:
        selection = self._selection
        chosen = asdict(selection) if isinstance(selection, ToWidths) else {"share": selection.share}
        return {"lasso": self.lasso, "forget": self.forget, **chosen}

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "masked": _on(self.masked, _CPU),
            "at_rest": _on(self.at_rest, _CPU),
            "norms_before": _on(self._norms_before, _CPU),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.masked = _on(state["masked"], self._device)
        self.at_rest = _on(state["at_rest"], self._device)
        self._norms_before = _on(state["norms_before"], self._device)

    def _last_choice(self, norms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if isinstance(self._selection, ToWidths):
            return {group: least(norms[group], count) for group, count in self._selection.removed.items()}
        return _on(self.masked, _CPU)

    def _compactor(self, site: Site) -> Compactor:
        compacted = self.model.get_submodule(site.path)
        assert isinstance(compacted, Compacted)
        return compacted.compactor


def _on(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}
