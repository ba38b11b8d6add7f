"""L1 filter pruning: keep the filters of largest L1 norm, drop the rest, then retrain briefly.

Source: Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017 (1608.08710). The plan says how many
filters each group keeps; coupled layers share one choice.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from widthwise.luts.errors import VerificationFailed
from widthwise.network.loading import weights_fingerprint
from widthwise.network.narrowing import TOLERANCE, Kept, narrow, silenced_difference
from widthwise.network.network import Network
from widthwise.planner.importance import score
from widthwise.planner.plan import Plan
from widthwise.pruning.executor import Executor, examples_of, traced_for

__all__ = ["FilterPruning"]


class FilterPruning(Executor):
    """One-shot: the surgery is done on construction, training afterwards is the short retraining of the paper.

    Every surgery is proved on ``example``: the narrow model must compute what the dense one computes with the
    removed channels silenced.

    Args:
        model: the dense model; left as it is.
        plan: made for this model. Where its channels were chosen from other weights, they are chosen anew
            from this model's, at the plan's widths.
        example: one tensor per input; random ones of the plan's shapes by default.

    Attributes:
        difference: largest relative difference found by the proof.
        rescored: whether the channels were chosen anew.

    Raises:
        InvalidPlan: the plan is for another model.
        VerificationFailed: the proof found a difference above 1e-4.
    """

    def __init__(self, model: nn.Module, plan: Plan, example: Sequence[torch.Tensor] | None = None) -> None:
        example = tuple(example) if example is not None else examples_of(plan)
        network = traced_for(plan, model, example)
        self.rescored = bool(plan.weights) and weights_fingerprint(model) != plan.weights
        kept = _rescored(model, network, plan) if self.rescored else plan.kept
        self.model = narrow(model, network, kept)
        self.difference = silenced_difference(model, self.model, network, kept, example)
        if not self.difference <= TOLERANCE:
            raise VerificationFailed(
                f"the narrow {plan.model} differs from the pruned dense model by {self.difference:.2g} "
                f"(allowed: {TOLERANCE:g}); this is a defect of widthwise or a construct it misreads: please report it"
            )

    def finish(self) -> nn.Module:
        return self.model


def _rescored(model: nn.Module, network: Network, plan: Plan) -> Kept:
    importance = score(model, network, plan.criterion)
    return {group: importance.kept(group, width) for group, width in plan.widths.items()}
