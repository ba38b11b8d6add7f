from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.pruning.nets import EXAMPLE, make, plan_for
from widthwise.luts.errors import BadInput, InvalidModel
from widthwise.network.network import Network
from widthwise.pruning.executor import difference_of
from widthwise.pruning.slimming import NetworkSlimming, global_widths


def scales(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: module.weight for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}


def test_a_step_is_the_sub_gradient_of_groups_to_narrow_only() -> None:
    model = make("residual")
    run = NetworkSlimming(model, plan_for(model, {"inner1": 5}), [EXAMPLE], sparsity=0.25)
    for scale in scales(run.model).values():
        scale.data[0] = -1.0
        scale.grad = torch.full_like(scale, 2.0)
    run.before_step(0)
    found = scales(run.model)
    assert found["bn1"].grad is not None and found["bn2"].grad is not None
    torch.testing.assert_close(found["bn1"].grad, torch.tensor([1.75] + [2.25] * 16))
    assert (found["bn2"].grad == 2.0).all()


def test_coupled_scales_are_pulled_together_and_none_outvotes_the_others() -> None:
    model = make("residual")
    run = NetworkSlimming(model, plan_for(model, {"stem": 6}), [EXAMPLE])
    found = scales(run.model)
    for path in ("bn", "bn2", "bn4"):
        found[path].grad = torch.zeros(13)
    run.before_step(0)
    assert all(bool((found[path].grad != 0).all()) for path in ("bn", "bn2", "bn4"))
    before = run.scores()["stem"]
    found["bn"].data *= 1000
    np.testing.assert_allclose(run.scores()["stem"], before, rtol=1e-5)
    expected = sum(found[path].detach().abs() / found[path].detach().abs().mean() for path in ("bn", "bn2", "bn4"))
    np.testing.assert_allclose(run.scores()["stem"], expected.numpy(), rtol=1e-5)


@pytest.mark.parametrize("name", ["residual", "depthwise", "concat"])
def test_scales_at_zero_can_be_cut(name: str) -> None:
    model = make(name)
    plan = plan_for(model)
    run = NetworkSlimming(model, plan, [EXAMPLE])
    small = run.finish()
    assert Network.trace(small, EXAMPLE).dense == plan.widths
    assert difference_of(model, make(name), [EXAMPLE]) == 0.0


@pytest.mark.parametrize(("name", "exact"), [("depthwise", ["project"]), ("concat", ["fc"])])
def test_what_removed_channels_emitted_is_folded_exactly(name: str, exact: list[str]) -> None:
    model = make(name)
    # Read by a 1×1 convolution behind depthwise norms; by a linear layer behind a concatenation and a mean.
    widths = {"depthwise": {"expand": 12}, "concat": {"grow2": 7}}[name]
    run = NetworkSlimming(model, plan_for(model, widths), [EXAMPLE])
    scores = run.scores()
    for group, members in run._norms.items():
        gone = np.argsort(-scores[group], kind="stable")[widths[group] :]
        for member in members:
            at = member.positions[torch.isin(member.channels, torch.from_numpy(gone.copy()))]
            run.model.get_submodule(member.path).weight.data[at] = 0.0
    small = run.finish()
    assert set(exact) <= set(run.folded.exact)
    assert not run.folded.left
    assert difference_of(run.model, small, [torch.randn(3, 3, 11, 11)]) < 1e-5


def test_a_padded_convolution_takes_the_shift_in_its_interior() -> None:
    model = make("residual")
    run = NetworkSlimming(model, plan_for(model, {"inner1": 9}), [EXAMPLE])
    small = run.finish()
    assert run.folded.interior == ("outer1",)
    dense = copy.deepcopy(run.model).eval()
    kept = np.sort(np.argsort(-run.scores()["inner1"], kind="stable")[:9])
    gone = np.setdiff1d(np.arange(17), kept)
    dense.bn1.weight.data[gone] = 0.0
    with torch.no_grad():
        expected = dense.bn2(dense.outer1(functional.relu(dense.bn1(dense.inner1(torch.ones(1, 13, 9, 9))))))
        got = small.bn2(small.outer1(functional.relu(small.bn1(small.inner1(torch.ones(1, 13, 9, 9))))))
    torch.testing.assert_close(expected[:, :, 2:-2, 2:-2], got[:, :, 2:-2, 2:-2])
    assert not torch.allclose(expected[:, :, 0, 0], got[:, :, 0, 0], atol=1e-4)


def test_the_papers_global_threshold() -> None:
    model = make("residual")
    network = Network.trace(model, EXAMPLE, name="tests")
    found = scales(model)
    found["bn1"].data = torch.arange(1.0, 18.0)
    found["bn3"].data = -torch.arange(18.0, 37.0)
    for path in ("bn", "bn2", "bn4"):
        found[path].data.fill_(100.0)
    # 49 channels; those above the 24th, which is |γ| = 25, stay
    widths = global_widths(model, network, 24 / 49 + 1e-9)
    assert widths == {"stem": 13, "inner1": 1, "inner2": 11}
    assert global_widths(model, network, 0.0) == network.dense
    with pytest.raises(BadInput, match="the share to remove must be 0 to below 1"):
        global_widths(model, network, 1.0)


def test_without_a_plan_a_share_of_all_channels_goes() -> None:
    model = make("residual")
    network = Network.trace(model, EXAMPLE, name="tests")
    run = NetworkSlimming.to_share(model, network, [EXAMPLE], 0.4)
    found = scales(run.model)
    for scale in found.values():
        scale.grad = torch.zeros_like(scale)
    run.before_step(0)
    assert all(bool((scale.grad != 0).all()) for scale in found.values())
    small = run.finish()
    assert Network.trace(small, EXAMPLE).dense == global_widths(run.model, network, 0.4) != network.dense


def test_sparse_training_separates_scales() -> None:
    model = make("residual").train()
    run = NetworkSlimming(model, plan_for(model, {"inner1": 9}), [EXAMPLE], sparsity=0.05)
    optimizer = torch.optim.SGD(run.parameter_groups(lr=0.05), lr=0.05, momentum=0.9)
    before = scales(run.model)["bn1"].detach().abs().sum()
    for step in range(60):
        generator = torch.Generator().manual_seed(step)
        images, labels = torch.randn(8, 3, 11, 11, generator=generator), torch.arange(8) % 5
        optimizer.zero_grad()
        functional.cross_entropy(run.model(images), labels).backward()
        run.before_step(step)
        optimizer.step()
    assert scales(run.model)["bn1"].detach().abs().sum() < 0.5 * before


def test_without_norms_the_alternatives_are_named() -> None:
    model = make("plain")
    with pytest.raises(InvalidModel, match=r"group 'conv1' of tests has none; take --method l1 .* or --method resrep"):
        NetworkSlimming(model, plan_for(model), [EXAMPLE])
    with pytest.raises(InvalidModel, match="needs batch norms with scales"):
        global_widths(model, Network.trace(model, EXAMPLE), 0.5)
    with pytest.raises(BadInput, match="sparsity must be 0 or above"):
        NetworkSlimming(make("residual"), plan_for(make("residual")), [EXAMPLE], sparsity=-1.0)
