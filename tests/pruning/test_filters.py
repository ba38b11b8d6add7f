from __future__ import annotations

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.pruning.nets import EXAMPLE, make, plan_for
from widthwise.luts.errors import BadInput
from widthwise.network.members import readers_of
from widthwise.network.network import Network
from widthwise.planner.importance import CRITERIA, score
from widthwise.pruning.filters import FilterPruning


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [("l1", [6.0, 2.0, 4.0]), ("l2", [20**0.5, 2**0.5, 8**0.5]), ("mean", [1.0, 0.5, 0.0]), ("std", [4.0, 0.0, 4.0])],
)
def test_criteria_are_closed_forms(criterion: str, expected: list[float]) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1, bias=False), torch.nn.Conv2d(3, 2, 1))
    filters = {"l1": [[-2, 4], [1, 1], [2, -2]], "l2": [[-2, 4], [1, 1], [2, -2]]}
    filters |= {"mean": [[-2, 4], [0, 1], [2, -2]], "std": [[0, 8], [1, 1], [-4, 4]]}
    model[0].weight.data = torch.tensor(filters[criterion], dtype=torch.float32)[:, :, None, None]
    found = score(model, Network.trace(model, torch.zeros(1, 2, 3, 3)), criterion).scores["0"]
    np.testing.assert_allclose(found, np.array(expected) / np.mean(expected), rtol=1e-6)


def test_another_criterion_chooses_anew() -> None:
    model = make("residual")
    plan = plan_for(model)
    runs = {criterion: FilterPruning(model, plan, [EXAMPLE], criterion=criterion) for criterion in CRITERIA}
    assert [runs[criterion].rescored for criterion in CRITERIA] == [criterion != "l1" for criterion in CRITERIA]
    assert all(Network.trace(run.finish(), EXAMPLE).dense == plan.widths for run in runs.values())


def steps(run: FilterPruning, optimizer: torch.optim.Optimizer, numbers: range) -> None:
    for step in numbers:
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(8, 3, 11, 11, generator=generator)
        optimizer.zero_grad()
        functional.cross_entropy(run.model(images), torch.arange(8) % 5).backward()
        run.before_step(step)
        optimizer.step()


@pytest.mark.parametrize("name", ["residual", "depthwise", "concat", "plain"])
def test_rounds_approach_the_plan_and_silenced_filters_stay_silent(name: str) -> None:
    model = make(name).train()
    plan = plan_for(model, share=0.4)
    run = FilterPruning(model, plan, [EXAMPLE], rounds=3, steps=12)
    optimizer = torch.optim.SGD(run.parameter_groups(lr=0.05), lr=0.05, momentum=0.9)
    kept, counts = [], []
    for begin in (0, 3, 6, 9):
        steps(run, optimizer, range(begin, begin + 3))
        kept.append({group: set(channels) for group, channels in run._kept.items()})
        counts.append(sum(map(len, run._kept.values())))
    assert counts[0] > counts[1] > counts[2] == counts[3] == sum(plan.widths.values())
    assert all(after[group] <= before[group] for before, after in pairwise(kept) for group in after)
    small = run.finish()
    assert Network.trace(small, EXAMPLE).dense == plan.widths
    assert run.difference < 1e-5


def test_silenced_filters_stay_silent_however_strongly_they_are_read() -> None:
    model = make("plain").train()
    run = FilterPruning(model, plan_for(model, share=0.4), [EXAMPLE], rounds=3, steps=12, criterion="magnitude")
    network = Network.trace(model, EXAMPLE)
    before = {group: set(channels) for group, channels in run._kept.items()}
    for group, size in network.dense.items():
        for reader in readers_of(network, group):
            places = zip(reader.positions.tolist(), reader.channels.tolist(), strict=True)
            silenced = [place for place, channel in places if channel not in before[group]]
            run.model.get_submodule(reader.path).weight.data[:, silenced] = 100.0 * size
    for step in range(12):
        run.before_step(step)
    assert sum(map(len, before.values())) > sum(map(len, run._kept.values()))
    assert all(set(run._kept[group]) <= before[group] for group in before)


def test_rounds_resume() -> None:
    model = make("residual").train()
    plan = plan_for(model, share=0.4)

    def fresh() -> tuple[FilterPruning, torch.optim.Optimizer]:
        run = FilterPruning(model, plan, [EXAMPLE], rounds=3, steps=12)
        return run, torch.optim.SGD(run.parameter_groups(lr=0.05), lr=0.05, momentum=0.9)

    whole, optimizer = fresh()
    steps(whole, optimizer, range(12))
    first, optimizer = fresh()
    steps(first, optimizer, range(5))
    saved = copy.deepcopy((first.state_dict(), optimizer.state_dict()))
    second, optimizer = fresh()
    second.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    steps(second, optimizer, range(5, 12))
    pairs = zip(whole.finish().state_dict().values(), second.finish().state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_rounds_need_the_steps_of_the_run() -> None:
    model = make("residual")
    with pytest.raises(BadInput, match="3 rounds need steps, the optimizer steps of the whole run, above 3"):
        FilterPruning(model, plan_for(model), [EXAMPLE], rounds=3)
