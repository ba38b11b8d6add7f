"""What an executor is: it turns a plan and a model into a narrower model, inside the user's training loop.

    run = FilterPruning(model, plan, example)
    for step, (x, y) in enumerate(loader):
        loss = criterion(run.model(x), y)
        loss.backward()
        run.before_step(step)
        optimizer.step(); optimizer.zero_grad()
    small = run.finish()

Methods differ in what they do between construction and :meth:`Executor.finish`; all end with exactly the
plan's widths.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from widthwise.luts.errors import InvalidPlan
from widthwise.network.narrowing import tensors
from widthwise.network.network import Network
from widthwise.planner.plan import Plan
from widthwise.pruning.evaluation import in_eval_mode
from widthwise.pruning.parameters import by_decay

__all__ = ["Executor", "difference_of", "examples_of", "narrowed_groups", "own_copy", "traced_for"]


class Executor(ABC):
    """Base of all methods.

    Attributes:
        model: what the training loop runs and optimises.
    """

    model: nn.Module

    def before_step(self, step: int) -> None:  # noqa: B027  (many methods have nothing to do here)
        """Called after ``backward`` and before ``optimizer.step``."""

    def parameter_groups(self, lr: float | None = None) -> list[dict[str, Any]]:
        """Parameter groups for the optimizer, with the settings this method needs; norms and biases don't decay.

        Args:
            lr: what the optimizer gets, for methods that need multiples of it.
        """
        return by_decay(self.model)

    @abstractmethod
    def finish(self) -> nn.Module:
        """The narrow model, of exactly the plan's widths."""

    def settings(self) -> dict[str, Any]:
        """What must be equal for a run to go on from another's state: plain values by name."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides the optimizer's state."""
        return {"model": self.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from :meth:`state_dict`."""
        self.model.load_state_dict(state["model"])


def examples_of(plan: Plan) -> tuple[torch.Tensor, ...]:
    """Random inputs of the shapes the plan was made for, always the same."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, generator=generator) for shape in plan.inputs)


def own_copy(model: nn.Module) -> nn.Module:
    """A copy with its own weights, all of them trainable as they were."""
    return copy.deepcopy(model)


def narrowed_groups(plan: Plan) -> dict[str, int]:
    """The groups that lose channels, and their widths.

    Raises:
        InvalidPlan: none does.
    """
    narrowed = {group: width for group, width in plan.widths.items() if width < plan.dense[group]}
    if not narrowed:
        raise InvalidPlan(
            f"the plan keeps every channel of {plan.model}: there is nothing to prune; plan for a smaller budget"
        )
    return narrowed


def difference_of(model: nn.Module, other: nn.Module, example: Sequence[torch.Tensor]) -> float:
    """Largest difference between what two models give for this input, relative to the first's largest; in eval mode."""
    with in_eval_mode(model), in_eval_mode(other), torch.no_grad():
        expected, got = model(*example), other(*example)
    pairs = list(zip(tensors(expected), tensors(got), strict=True))
    scale = max((float(one.abs().max()) for one, _ in pairs), default=0.0)
    worst = max((float((one - two).abs().max()) for one, two in pairs), default=0.0)
    return worst / max(scale, 1e-30)


def traced_for(plan: Plan, model: nn.Module, example: Sequence[torch.Tensor]) -> Network:
    """The model's network, if the plan is one for it.

    Raises:
        InvalidPlan: the plan was made for another model or another input shape.
        InvalidModel: the model can't be traced.
    """
    shapes = [list(tensor.shape) for tensor in example]
    if shapes != plan.inputs:
        raise InvalidPlan(f"the plan was made for inputs of shape {plan.inputs}, these are {shapes}")
    network = Network.trace(model, example, name=plan.model)
    if network.signature != plan.signature:
        odd = sorted(set(network.dense.items()) ^ set(plan.dense.items()))
        what = f"group {odd[0][0]!r} differs" if odd else "its layers differ"
        raise InvalidPlan(
            f"the plan was made for {plan.model}, this model is another one ({what}); plan for it with `widthwise plan`"
        )
    return network
