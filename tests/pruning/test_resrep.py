from __future__ import annotations

import copy
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from tests.pruning.nets import EXAMPLE, make, plan_for
from widthwise.luts.errors import BadInput, InvalidPlan
from widthwise.network.network import Network
from widthwise.pruning.compactors import Compactor
from widthwise.pruning.executor import difference_of
from widthwise.pruning.resrep import ResRep, ToMacs, ToWidths


def scramble(run: ResRep, seed: int = 0) -> None:
    """Compactors far from the identity."""
    generator = torch.Generator().manual_seed(seed)
    for module in run.model.modules():
        if isinstance(module, Compactor):
            module.weight.data += 0.3 * torch.randn(module.weight.shape, generator=generator)


def forget(run: ResRep) -> None:
    """The rows that will be cut at exactly zero."""
    norms = run.norms()
    for group, mask in run._last_choice(norms).items():
        for site in run._sites[group]:
            run._compactor(site).weight.data[site.member.positions[mask[site.member.channels]]] = 0.0


def compactors(run: ResRep) -> dict[str, Compactor]:
    return {name: module for name, module in run.model.named_modules() if isinstance(module, Compactor)}


@pytest.mark.parametrize("name", ["residual", "depthwise", "concat", "plain"])
def test_merged_is_what_the_compactors_compute(name: str) -> None:
    model = make(name)
    run = ResRep(model, plan_for(model), [EXAMPLE], steps=10)
    assert difference_of(model, run.model, [EXAMPLE]) < 1e-6  # identities change nothing
    scramble(run)
    assert difference_of(run.model, run.merged(), [EXAMPLE]) < 1e-5
    forget(run)
    small = run.finish()
    assert run.residual == 0.0
    if name == "concat":  # what norms make of silent channels is read by layers without a bias or a norm of their own
        assert run.folded.left == ("grow1", "grow2")
        return
    assert run.difference < 1e-5
    fresh = torch.randn(3, 3, 11, 11)
    assert difference_of(run.model, small, [fresh]) < 1e-5
    assert Network.trace(small, EXAMPLE).dense == plan_for(model).widths
    assert difference_of(model, make(name), [EXAMPLE]) == 0.0  # the dense model is as it was


def test_norms_without_scales_are_merged_too() -> None:
    model = make("residual")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.affine, module.weight, module.bias = False, None, None
    run = ResRep(model, plan_for(model), [EXAMPLE], steps=10)
    scramble(run)
    assert difference_of(run.model, run.merged(), [EXAMPLE]) < 1e-5
    forget(run)
    run.finish()
    assert run.difference < 1e-5


@pytest.mark.parametrize("name", ["residual", "depthwise", "concat", "plain"])
def test_merged_norms_normalise_in_train_mode_too(name: str) -> None:
    model = make(name)
    run = ResRep(model, plan_for(model), [EXAMPLE], steps=10)
    forget(run)
    small = run.finish()
    for module in small.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert torch.isfinite(module.weight).all()
            assert (module.running_var > 0).all()


def test_a_step_is_the_closed_form() -> None:
    model = make("plain")
    run = ResRep(model, plan_for(model, {"conv1": 6}), [EXAMPLE], steps=1000, lasso=0.25)
    (compactor,) = compactors(run).values()
    scramble(run)
    weight = compactor.weight.detach().clone()
    compactor.weight.grad = torch.ones_like(weight)
    run.before_step(0)  # before the first choice: lasso on all rows, no mask
    torch.testing.assert_close(compactor.weight.grad, 1 + 0.25 * weight / weight.norm(dim=1, keepdim=True))
    compactor.weight.grad = torch.ones_like(weight)
    run.before_step(400)  # all chosen
    gone = weight.norm(dim=1).argsort()[:7]
    expected = torch.ones_like(weight)
    expected[gone] = 0.0
    torch.testing.assert_close(compactor.weight.grad, expected + 0.25 * weight / weight.norm(dim=1, keepdim=True))
    assert run.masked["conv1"].nonzero().flatten().tolist() == sorted(gone.tolist())


def test_a_row_at_zero_gives_no_nan() -> None:
    model = make("plain")
    run = ResRep(model, plan_for(model, {"conv1": 6}), [EXAMPLE], steps=10)
    (compactor,) = compactors(run).values()
    compactor.weight.data[3] = 0.0
    compactor.weight.grad = torch.zeros_like(compactor.weight)
    run.before_step(0)
    assert torch.isfinite(compactor.weight.grad).all()
    assert (compactor.weight.grad[3] == 0).all()


def test_coupled_layers_choose_together() -> None:
    model = make("residual")
    run = ResRep(model, plan_for(model, {"stem": 6}), [EXAMPLE], steps=100, lasso=0.5)
    found = compactors(run)
    assert sorted(found) == ["bn.compactor", "bn2.compactor", "bn4.compactor"]
    scramble(run)
    stacked = torch.cat([compactor.weight.detach() for compactor in found.values()], 1)
    for compactor in found.values():
        compactor.weight.grad = torch.zeros_like(compactor.weight)
    run.before_step(50)
    least = stacked.norm(dim=1).argsort()[:7]
    assert sorted(least.tolist()) == run.masked["stem"].nonzero().flatten().tolist()
    pulled = torch.cat([compactor.weight.grad for compactor in found.values()], 1)
    torch.testing.assert_close(pulled, 0.5 * math.sqrt(3) * stacked / stacked.norm(dim=1, keepdim=True))


@given(st.integers(1, 3000), st.integers(2, 40), st.data())
@settings(max_examples=30, deadline=None)
def test_quotas_rise_to_the_plans(steps: int, size: int, data: st.DataObject) -> None:
    removed = data.draw(st.integers(1, size - 1))
    selection = ToWidths({"a": removed}, steps // 20, 2 * steps // 5, max(1, steps // 100))
    norms = {"a": torch.rand(size)}
    masked, counts = {"a": torch.zeros(size, dtype=torch.bool)}, []
    for step in range(steps):
        if selection.due(step):
            masked = selection.masked(norms, masked, step)
            counts.append(int(masked["a"].sum()))
    assert counts == sorted(counts)
    assert counts[-1] == removed
    assert not masked["a"][norms["a"].argsort(stable=True)[removed:]].any() or len(norms["a"].unique()) < size


def test_the_papers_greedy_stops_at_its_cost_and_grows_by_granularity() -> None:
    model = make("residual")
    network = Network.trace(model, EXAMPLE, name="tests")
    selection = ToMacs(network, 0.35, start=0, every=1, more=4)
    generator = torch.Generator().manual_seed(1)
    norms = {group: torch.rand(size, generator=generator) for group, size in network.dense.items()}
    masked = {group: torch.zeros(size, dtype=torch.bool) for group, size in network.dense.items()}
    counts = []
    for step in range(30):
        masked = selection.masked(norms, masked, step)
        counts.append(sum(int(mask.sum()) for mask in masked.values()))
    assert [after - before for before, after in pairwise(counts)][:3] == [4, 4, 4]
    widths = {group: int((~mask).sum()) for group, mask in masked.items()}
    assert network.macs(widths) <= 0.35 * network.macs(network.dense)
    assert counts[-1] == counts[-2]
    chosen = [float(norms[group][channel]) for group, mask in masked.items() for channel in mask.nonzero().flatten()]
    spared = [float(norms[group][channel]) for group, mask in masked.items() for channel in (~mask).nonzero().flatten()]
    assert max(chosen) < min(spared)


def test_without_a_plan_the_masked_rows_are_cut() -> None:
    model = make("residual")
    network = Network.trace(model, EXAMPLE, name="tests")
    run = ResRep.to_macs(model, network, [EXAMPLE], ToMacs(network, 0.6, start=0, every=1))
    for step in range(30):
        run.before_step(step)
    forget(run)
    small = run.finish()
    widths = Network.trace(small, EXAMPLE).dense
    assert network.macs(widths) <= 0.6 * network.macs(network.dense)
    assert run.difference < 1e-5


def trained(run: ResRep, steps: range, lr: float = 0.05) -> torch.optim.SGD:
    optimizer = torch.optim.SGD(run.parameter_groups(lr=lr), lr=lr, momentum=0.9)
    step_on(run, optimizer, steps)
    return optimizer


def step_on(run: ResRep, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(8, 3, 11, 11, generator=generator)
        labels = torch.randint(0, 5, (8,), generator=generator)
        optimizer.zero_grad()
        functional.cross_entropy(run.model(images), labels).backward()
        run.before_step(step)
        optimizer.step()


def test_sparsity_appears_and_the_rest_stays() -> None:
    model = make("residual").train()
    run = ResRep(model, plan_for(model, {"inner1": 9}), [EXAMPLE], steps=300, forget=0.02)
    optimizer = torch.optim.SGD(run.parameter_groups(lr=0.05), lr=0.05, momentum=0.9)
    for step in range(300):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 + math.cos(math.pi * step / 300)) / 2
        step_on(run, optimizer, range(step, step + 1))
    norms = run.norms()["inner1"].sort().values
    assert norms[:8].max() < 1e-2
    assert norms[8:].min() > 0.2
    assert int(run.masked["inner1"].sum()) == 8
    assert run.at_rest["inner1"].equal(run.masked["inner1"])
    run.finish()
    assert run.residual == 0.0
    assert run.difference < 1e-2


def test_a_resumed_run_is_the_uninterrupted_one() -> None:
    model = make("residual").train()
    plan = plan_for(model)
    whole = ResRep(model, plan, [EXAMPLE], steps=20)
    trained(whole, range(20))
    first = ResRep(model, plan, [EXAMPLE], steps=20)
    optimizer = trained(first, range(9))
    saved = copy.deepcopy((first.state_dict(), optimizer.state_dict()))
    second = ResRep(model, plan, [EXAMPLE], steps=20)
    second.load_state_dict(saved[0])
    optimizer = torch.optim.SGD(second.parameter_groups(lr=0.05), lr=0.05, momentum=0.9)
    optimizer.load_state_dict(saved[1])
    step_on(second, optimizer, range(9, 20))
    pairs = zip(whole.model.state_dict().values(), second.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_compactors_have_their_own_settings() -> None:
    model = make("residual")
    run = ResRep(model, plan_for(model), [EXAMPLE], steps=10)
    first, biases, *rest = run.parameter_groups(lr=0.1)
    assert (first["momentum"], first["weight_decay"], first["lr"]) == (0.99, 0.0, 0.01)
    assert len(first["params"]) == len(compactors(run))
    assert (biases["lr"], biases["weight_decay"]) == (0.2, 0.0)
    every = [id(parameter) for group in (first, biases, *rest) for parameter in group["params"]]
    assert len(every) == len(set(every)) == len(list(run.model.parameters()))


def test_bad_settings_and_plans_that_remove_nothing() -> None:
    model = make("residual")
    with pytest.raises(BadInput, match="steps must be those of the whole run"):
        ResRep(model, plan_for(model), [EXAMPLE], steps=0)
    with pytest.raises(BadInput, match="lasso must be 0 or above"):
        ResRep(model, plan_for(model), [EXAMPLE], steps=10, lasso=float("nan"))
    with pytest.raises(InvalidPlan, match="there is nothing to prune; plan for a smaller budget"):
        ResRep(model, plan_for(model, share=1.0), [EXAMPLE], steps=10)
