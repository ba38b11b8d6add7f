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

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from widthwise.luts.errors import InvalidPlan
from widthwise.network.network import Network
from widthwise.planner.plan import Plan

__all__ = ["Executor", "examples_of", "traced_for"]


class Executor(ABC):
    """Base of all methods.

    Attributes:
        model: what the training loop runs and optimises.
    """

    model: nn.Module

    def before_step(self, step: int) -> None:  # noqa: B027  (many methods have nothing to do here)
        """Called after ``backward`` and before ``optimizer.step``."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups for the optimizer, with the settings this method needs."""
        return [{"params": [parameter for parameter in self.model.parameters() if parameter.requires_grad]}]

    @abstractmethod
    def finish(self) -> nn.Module:
        """The narrow model, of exactly the plan's widths."""

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
