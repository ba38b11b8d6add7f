from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.pruning.nets import EXAMPLE, make, plan_for
from widthwise.network.network import Network
from widthwise.planner.plan import Plan
from widthwise.pruning import Executor, FilterPruning, NetworkSlimming, ResRep

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

EXECUTORS: dict[str, Callable[[nn.Module, Plan], Executor]] = {
    "l1": lambda model, plan: FilterPruning(model, plan),
    "l1 in rounds": lambda model, plan: FilterPruning(model, plan, rounds=2, steps=6),
    "slimming": lambda model, plan: NetworkSlimming(model, plan),
    "resrep": lambda model, plan: ResRep(model, plan, steps=6),
}


@pytest.mark.parametrize("method", EXECUTORS)
@pytest.mark.parametrize("name", ["residual", "depthwise"])
def test_an_executor_follows_its_model_to_the_gpu(method: str, name: str) -> None:
    model = make(name).train()
    plan = plan_for(model)
    run = EXECUTORS[method](model, plan)
    run.model.cuda()
    optimizer = torch.optim.SGD(run.parameter_groups(lr=0.05), lr=0.05, momentum=0.9)
    for step in range(6):
        optimizer.zero_grad()
        images = torch.randn(8, 3, 11, 11, device="cuda")
        functional.cross_entropy(run.model(images), torch.arange(8, device="cuda") % 5).backward()
        run.before_step(step)
        optimizer.step()
    small = run.finish()
    assert next(small.parameters()).is_cuda
    assert Network.trace(small.cpu(), EXAMPLE).dense == plan.widths
