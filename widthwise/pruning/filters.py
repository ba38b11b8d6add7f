"""Filter pruning: keep the filters of largest norm, drop the rest, then retrain briefly.

Source: Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017 (1608.08710). The plan says how many filters each
group keeps; coupled layers share one choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from widthwise.luts.errors import BadInput, VerificationFailed
from widthwise.network.members import Member, norms_of, producers_of
from widthwise.network.narrowing import TOLERANCE, Kept, narrow, silenced_difference
from widthwise.network.weights import weights_fingerprint
from widthwise.planner.importance import from_weights, score
from widthwise.planner.plan import Plan
from widthwise.pruning.executor import Executor, examples_of, own_copy, traced_for

__all__ = ["FilterPruning"]


class FilterPruning(Executor):
    """One shot, or in rounds with training between them.

    One shot: the surgery is done on construction; training afterwards is the short retraining of the paper. In rounds:
    filters are silenced step by step, ranked anew each time by what training has made of the rest, and cut by
    :meth:`finish`; a silenced filter stays so. Of a run's ``steps`` the last part, as long as each other, retrains.

    Every surgery is proved on ``example``: the narrow model must compute what the dense one computes with the
    removed channels silenced.

    Args:
        model: the dense model; left as it is.
        plan: made for this model. Where its channels were chosen from other weights, by another criterion or in
            rounds, they are chosen anew from this model's, at the plan's widths.
        example: one tensor per input; random ones of the plan's shapes by default.
        criterion: how filters are ranked, of :data:`widthwise.planner.importance.CRITERIA`; by default the plan's, or
            magnitude where that one needs more than weights.
        rounds: steps in which the plan's widths are approached, all groups alike.
        steps: optimizer steps of the whole run; needed for more than one round.

    Attributes:
        difference: largest relative difference found by the proof.
        rescored: whether the channels were chosen anew.

    Raises:
        InvalidPlan: the plan is for another model.
        VerificationFailed: the proof found a difference above 1e-4.

    Example:
        >>> run = FilterPruning(model, plan, [images], rounds=3, steps=9 * len(loader))  # doctest: +SKIP
        >>> loss.backward(); run.before_step(step); optimizer.step()  # doctest: +SKIP
        >>> small = run.finish()  # doctest: +SKIP
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        example: Sequence[torch.Tensor] | None = None,
        *,
        criterion: str | None = None,
        rounds: int = 1,
        steps: int | None = None,
    ) -> None:
        if rounds < 1 or (rounds > 1 and (steps is None or steps <= rounds)):
            raise BadInput(f"{rounds} rounds need steps, the optimizer steps of the whole run, above {max(rounds, 1)}")
        self._example = tuple(example) if example is not None else examples_of(plan)
        self._network = traced_for(plan, model, self._example)
        self._plan, self._rounds, self._criterion = plan, rounds, criterion or from_weights(plan.criterion)
        self._every = 1 if steps is None else steps // (rounds + 1)
        other_weights = bool(plan.weights) and weights_fingerprint(model) != plan.weights
        self.rescored = other_weights or rounds > 1 or criterion not in (None, plan.criterion)
        self.difference = float("nan")
        self.round = 1
        if rounds == 1:
            kept = self._best(model, plan.widths) if self.rescored else plan.kept
            self.model = self._cut(model, kept)
        else:
            self.model = own_copy(model)
            self._kept: Kept = {group: range(size) for group, size in plan.dense.items()}
            self._silence()

    def before_step(self, step: int) -> None:
        """In rounds: silences the next filters when that is due, and keeps silenced ones silent."""
        if self._rounds == 1:
            return
        due = min(self._rounds, step // self._every + 1)
        while self.round < due:
            self.round += 1
            self._silence()
        self._keep_silent()

    def finish(self) -> nn.Module:
        if self._rounds == 1:
            return self.model
        if self.round < self._rounds:
            self.round = self._rounds
            self._silence()
        self._keep_silent()
        return self._cut(self.model, self._kept)

    def settings(self) -> dict[str, Any]:
        return {"widths": dict(self._plan.widths), "criterion": self._criterion, "rounds": self._rounds,
                "every": self._every}  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"model": self.model.state_dict(), "round": self.round}
        if self._rounds > 1:
            state["kept"] = {group: list(channels) for group, channels in self._kept.items()}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.round = int(state["round"])
        if self._rounds > 1:
            self._kept = state["kept"]

    def _best(self, model: nn.Module, widths: dict[str, int]) -> dict[str, tuple[int, ...]]:
        importance = score(model, self._network, self._criterion)
        return {group: importance.kept(group, width) for group, width in widths.items()}

    def _cut(self, model: nn.Module, kept: Kept) -> nn.Module:
        example = [tensor.to(next(model.parameters()).device) for tensor in self._example]
        small = narrow(model, self._network, kept)
        self.difference = silenced_difference(model, small, self._network, kept, example)
        if not self.difference <= TOLERANCE:
            raise VerificationFailed(
                f"the narrow {self._plan.model} differs from the pruned dense model by {self.difference:.2g} "
                f"(allowed: {TOLERANCE:g}); this is a defect of widthwise or a construct it misreads: please report it"
            )
        return small

    def _silence(self) -> None:
        """Ranks what still speaks and silences down to this round's widths."""
        share = self.round / self._rounds
        widths = {
            group: dense - round(share * (dense - self._plan.widths[group]))
            for group, dense in self._plan.dense.items()
        }
        importance = score(self.model, self._network, self._criterion)
        self._kept = {group: importance.kept(group, width, among=self._kept[group]) for group, width in widths.items()}
        self._keep_silent()

    def _keep_silent(self) -> None:
        """Filters and norms of silenced channels at zero, whatever momentum would make of them."""
        with torch.no_grad():
            for group, channels in self._kept.items():
                if len(channels) == self._plan.dense[group]:
                    continue
                kept = torch.tensor(list(channels))
                for member in self._members(group):
                    module = self.model.get_submodule(member.path)
                    gone = member.positions[~torch.isin(member.channels, kept)]
                    for parameter in (module.weight, module.bias):
                        if isinstance(parameter, nn.Parameter):
                            at = gone.to(parameter.device)
                            parameter[at] = 0.0
                            if parameter.grad is not None:
                                parameter.grad[at] = 0.0

    def _members(self, group: str) -> list[Member]:
        return [*producers_of(self._network, group), *norms_of(self.model, self._network, group)]
