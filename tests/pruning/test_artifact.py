from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import widthwise as ww
from tests.conftest import wide_net
from widthwise.luts.errors import BadInput, InvalidModel, InvalidPlan, VerificationFailed
from widthwise.network.narrowing import silenced_difference
from widthwise.network.network import Network
from widthwise.planner.plan import Plan
from widthwise.pruning.artifact import load, save
from widthwise.pruning.filters import FilterPruning


@pytest.fixture(scope="module")
def plan(wide_table: Path, wide: nn.Module, wide_example: torch.Tensor) -> Plan:
    return ww.plan(wide, wide_example, lut=wide_table, budget="50%", name="tests/conftest.py:wide_net")


@pytest.fixture
def small(plan: Plan, wide: nn.Module) -> nn.Module:
    return ww.apply(plan, wide)


def test_the_narrow_model_has_the_plans_widths(plan: Plan, small: nn.Module, wide_example: torch.Tensor) -> None:
    assert Network.trace(small, wide_example).dense == plan.widths
    assert sum(plan.widths.values()) < sum(plan.dense.values())


def test_the_narrow_model_is_the_silenced_dense_one(
    plan: Plan, small: nn.Module, wide: nn.Module, wide_network: Network
) -> None:
    fresh = torch.randn(3, 3, 16, 16)
    assert silenced_difference(wide, small, wide_network, plan.kept, [fresh]) < 1e-5


def test_a_folder_gives_the_model_back(
    tmp_path: Path, plan: Plan, small: nn.Module, wide_example: torch.Tensor
) -> None:
    folder = save(tmp_path / "out", small, plan)
    assert sorted(path.name for path in folder.iterdir()) == ["architecture.json", "model.safetensors", "plan.json"]
    again = load(folder, model=wide_net)
    assert not again.training
    assert torch.equal(again(wide_example), small.eval()(wide_example))
    assert Plan.read(folder / "plan.json") == plan


def test_a_folder_never_chooses_what_code_runs(
    tmp_path: Path, plan: Plan, small: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = tmp_path / "evil.py"
    evil.write_text("raise SystemExit('code ran')\ndef net(): pass")
    folder = save(tmp_path / "out", small, plan.model_copy(update={"model": f"{evil}:net"}))
    with pytest.raises(InvalidModel, match="if you trust that code, pass it"):
        load(folder)


def test_library_models_are_rebuilt_by_name(tmp_path: Path, plan: Plan) -> None:
    from widthwise.network.loading import load_model
    from widthwise.network.narrowing import narrow

    model = load_model("torchvision:squeezenet1_1")
    example = torch.randn(1, 3, 64, 64)
    network = Network.trace(model, example)
    small = narrow(model, network, {group.name: range(max(1, group.size // 2)) for group in network.free})
    folder = save(tmp_path / "out", small, plan.model_copy(update={"model": "torchvision:squeezenet1_1"}))
    assert torch.equal(load(folder)(example), small(example))


def test_saving_twice_replaces_but_other_files_are_safe(tmp_path: Path, plan: Plan, small: nn.Module) -> None:
    save(tmp_path / "out", small, plan)
    save(tmp_path / "out", small, plan)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(BadInput, match="holds other files; give an empty or new folder"):
        save(tmp_path / "mine", small, plan)
    with pytest.raises(BadInput, match="is a file"):
        save(tmp_path / "mine" / "thesis.txt", small, plan)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"


def test_corrupt_folders_say_so(tmp_path: Path, plan: Plan, small: nn.Module) -> None:
    with pytest.raises(InvalidModel, match="is no pruned model"):
        load(tmp_path)
    folder = save(tmp_path / "out", small, plan)
    whole = json.loads((folder / "architecture.json").read_text())
    for text, message in (
        ("{", "is corrupt"),
        (json.dumps(whole | {"modules": {"conv1": [3, 3000]}}), "is another architecture"),
        (json.dumps(whole | {"modules": {"nope": [3, 3]}}), "no narrowable module 'nope'"),
        (json.dumps(whole | {"modules": {"conv1": [3, 0]}}), "is another architecture"),
        (json.dumps(whole | {"hook": "code"}), "is corrupt"),
    ):
        (folder / "architecture.json").write_text(text)
        with pytest.raises(InvalidModel, match=message):
            load(folder, model=wide_net)
    (folder / "architecture.json").write_text(json.dumps(whole))
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(InvalidModel, match="can't be read as weights"):
        load(folder, model=wide_net)


def test_other_weights_are_ranked_anew_at_the_plans_widths(plan: Plan, wide: nn.Module) -> None:
    assert not FilterPruning(wide, plan).rescored
    other = wide_net()
    with torch.no_grad():
        other.conv2.weight[0] += 100.0
    run = FilterPruning(other, plan)
    assert run.rescored
    width = plan.widths["conv2"]
    assert run.finish().conv2.out_channels == width
    assert float(run.finish().conv2.weight[0].detach().mean()) > 50, "the filter made large is kept, as the first"


def test_a_plan_for_another_model_is_refused(plan: Plan, branches: nn.Module, example: torch.Tensor) -> None:
    with pytest.raises(InvalidPlan, match="made for inputs of shape"):
        ww.apply(plan, branches, example)
    with pytest.raises(InvalidPlan, match=r"this model is another one \(group"):
        ww.apply(plan, nn.Sequential(nn.Conv2d(3, 7, 3), nn.Conv2d(7, 5, 1)))


def test_a_wrong_surgery_is_never_handed_out(plan: Plan, wide: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("widthwise.pruning.filters.silenced_difference", lambda *_: 0.01)
    with pytest.raises(VerificationFailed, match=r"differs from the pruned dense model by 0\.01"):
        ww.apply(plan, wide)


def test_the_executors_interface_in_a_plain_loop(plan: Plan, wide: nn.Module) -> None:
    run = FilterPruning(wide, plan)
    optimizer = torch.optim.SGD(run.parameter_groups(), lr=0.1)
    before = run.model.conv1.weight.clone()
    run.model.train()
    for step in range(2):
        loss = run.model(torch.randn(4, 3, 16, 16)).square().mean()
        loss.backward()
        run.before_step(step)
        optimizer.step()
        optimizer.zero_grad()
    assert not torch.equal(run.finish().conv1.weight, before)
    again = FilterPruning(wide, plan)
    again.load_state_dict(run.state_dict())
    assert torch.equal(again.model.conv1.weight, run.model.conv1.weight)
