from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import widthwise as ww
from tests.conftest import wide_net
from tests.pruning.nets import ARCHITECTURES, EXAMPLE, make, plan_for
from widthwise.luts.errors import BadInput, InvalidModel, InvalidPlan, VerificationFailed
from widthwise.network.folder import ARCHITECTURE, WEIGHTS, read_architecture
from widthwise.network.narrowing import silenced_difference
from widthwise.network.network import Network
from widthwise.planner.plan import Plan, parent_of
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
    tmp_path: Path, plan: Plan, small: nn.Module, wide_example: torch.Tensor
) -> None:
    evil = tmp_path / "evil.py"
    evil.write_text("raise SystemExit('code ran')\ndef net(): pass")
    folder = save(tmp_path / "out", small, plan.model_copy(update={"model": f"{evil}:net"}))
    assert torch.equal(load(folder)(wide_example), small(wide_example)), "from the graph, without that code"
    _edit(folder, graph=None, no_graph="it calls mine.f")
    with pytest.raises(InvalidModel, match=r"no stored graph \(it calls mine.f\); if you trust that code, pass it"):
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


def _edit(folder: Path, **changes: Any) -> None:
    path = folder / ARCHITECTURE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modules": {"conv1": [3, 3000]}}, "is another architecture"),
        ({"modules": {"conv1": [3, 0]}}, "is another architecture"),
        ({"modules": {"nope": [3, 3]}}, "no narrowable module 'nope'"),
        ({"modules": {"conv1": [3]}}, "is corrupt: modules.conv1"),
        ({"hook": "code"}, "is corrupt: hook: Extra inputs"),
        ({"options": {"weights": 1}}, "is corrupt: options.weights"),
        ({"options": {"num_classes": 10**12}}, "is corrupt: options.num_classes"),
        ({"schema_version": 3}, "has schema version 3, this widthwise reads up to 2: upgrade"),
        ({"schema_version": "1"}, "is corrupt: schema_version"),
        ({"graph": {"modules": {}, "tensors": {}, "operations": [{"name": "x"}]}}, "is corrupt: graph.operations"),
    ],
)
def test_a_changed_architecture_says_so(
    tmp_path: Path, plan: Plan, small: nn.Module, changes: dict[str, Any], message: str
) -> None:
    folder = save(tmp_path / "out", small, plan)
    _edit(folder, **changes)
    with pytest.raises(InvalidModel, match=message):
        load(folder, model=wide_net)


def test_corrupt_files_say_so(tmp_path: Path, plan: Plan, small: nn.Module) -> None:
    with pytest.raises(InvalidModel, match="is no pruned model"):
        load(tmp_path)
    folder = save(tmp_path / "out", small, plan)
    weights, architecture = (folder / WEIGHTS).read_bytes(), (folder / ARCHITECTURE).read_text()
    for text in ("{", "[]", "null", "[" * 100_000):
        (folder / ARCHITECTURE).write_text(text)
        with pytest.raises(InvalidModel, match=r"architecture\.json is corrupt"):
            load(folder)
    with (folder / ARCHITECTURE).open("w") as file:
        file.truncate(2**30)  # takes no room on the disk
    with pytest.raises(InvalidModel, match="larger than any architecture"):
        load(folder)
    (folder / ARCHITECTURE).write_text(architecture)
    for content in (b"", weights[:7], weights[: len(weights) // 2], b"\xff" * 100, weights + b"more"):
        (folder / WEIGHTS).write_bytes(content)
        for model in (None, wide_net):
            with pytest.raises(InvalidModel, match="can't be read as weights"):
                load(folder, model=model)
    (folder / WEIGHTS).unlink()
    with pytest.raises(InvalidModel, match="no weight file"):
        load(folder)


def test_weights_of_other_shapes_say_which(tmp_path: Path, plan: Plan, small: nn.Module) -> None:
    from safetensors.torch import load_file, save_file

    folder = save(tmp_path / "out", small, plan)
    state = load_file(folder / WEIGHTS)
    save_file(state | {"conv2.weight": torch.zeros(2, 3, 3, 3)}, folder / WEIGHTS)
    for model in (None, wide_net):
        with pytest.raises(InvalidModel, match=r"another shape for 'conv2\.weight'"):
            load(folder, model=model)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
@pytest.mark.parametrize("name", [WEIGHTS, ARCHITECTURE])
def test_links_out_of_the_folder_are_refused(tmp_path: Path, plan: Plan, small: nn.Module, name: str) -> None:
    folder = save(tmp_path / "out", small, plan)
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(InvalidModel, match=rf"{name} is a link out of its folder"):
        load(folder)
    (tmp_path / name).rename(folder / f"own-{name}")
    (folder / name).unlink()
    (folder / name).symlink_to(f"own-{name}")
    assert isinstance(load(folder), nn.Module), "links within it are taken"


def test_a_first_versions_folder_still_loads(
    tmp_path: Path, plan: Plan, small: nn.Module, wide_example: torch.Tensor
) -> None:
    folder = save(tmp_path / "out", small, plan)
    whole = json.loads((folder / ARCHITECTURE).read_text())
    first = {name: whole[name] for name in ("model", "inputs", "modules", "torch")} | {"schema_version": 1}
    (folder / ARCHITECTURE).write_text(json.dumps(first))
    assert torch.equal(load(folder, model=wide_net)(wide_example), small(wide_example))


def test_what_is_no_factory_is_refused(tmp_path: Path, plan: Plan, small: nn.Module, wide: nn.Module) -> None:
    folder = save(tmp_path / "out", small, plan)
    with pytest.raises(InvalidModel, match="takes a function that builds the dense model, not a _Wide"):
        load(folder, model=wide)
    with pytest.raises(InvalidModel, match="the factory gave a int"):
        load(folder, model=lambda: 3)  # type: ignore[arg-type,return-value]


class _Shared(nn.Module):
    """One convolution run twice, and two that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 11, 3, padding=1)
        self.twice = nn.Conv2d(11, 11, 3, padding=1)
        self.left, self.right = nn.Conv2d(11, 7, 1), nn.Conv2d(11, 7, 1)
        self.right.weight = self.left.weight
        self.fc = nn.Linear(7, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.twice(torch.relu(self.twice(x))))
        return self.fc((self.left(x) + self.right(x)).mean((2, 3)))


def _shared() -> nn.Module:
    torch.manual_seed(3)
    return _Shared().eval()


_FACTORIES = {name: partial(make, name) for name in ARCHITECTURES} | {"shared": _shared}


@given(name=st.sampled_from(sorted(_FACTORIES)), seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_save_then_load_is_the_identity(name: str, seed: int) -> None:
    model, random = _FACTORIES[name](), Random(seed)
    groups = Network.trace(model, EXAMPLE).dense
    plan = plan_for(model, {group: random.randint(1, size) for group, size in groups.items()})
    small = ww.apply(plan, model, EXAMPLE)
    with TemporaryDirectory() as place, torch.no_grad():
        folder = save(Path(place) / "out", small, plan)
        expected = small(EXAMPLE)
        assert torch.equal(load(folder)(EXAMPLE), expected), "from the graph"
        assert torch.equal(load(folder, model=_FACTORIES[name])(EXAMPLE), expected), "from the factory"


def test_more_classes_than_the_library_builds_are_remembered(tmp_path: Path, plan: Plan) -> None:
    from torchvision import models

    torch.manual_seed(0)
    model = models.squeezenet1_1(num_classes=1009).eval()
    example = torch.randn(1, 3, 64, 64)
    folder = save(tmp_path / "out", model, plan.model_copy(update={"model": "torchvision:squeezenet1_1"}))
    _edit(folder, graph=None)
    assert read_architecture(folder).options == {"num_classes": 1009}
    assert torch.equal(load(folder)(example), model(example))


def test_a_library_model_that_changed_comes_from_the_graph(
    tmp_path: Path, plan: Plan, small: nn.Module, wide_example: torch.Tensor
) -> None:
    folder = save(tmp_path / "out", small, plan.model_copy(update={"model": "torchvision:resnet18"}))
    with pytest.warns(UserWarning, match="isn't what it was when .* rebuilt from the stored graph"):
        again = load(folder)
    assert torch.equal(again(wide_example), small(wide_example))
    _edit(folder, graph=None, versions={"torchvision": "0.0.1", "torch": torch.__version__.partition("+")[0]})
    with pytest.raises(InvalidModel, match=r"another architecture.*\(written with torchvision 0\.0\.1, here "):
        load(folder)


def test_a_plan_builds_on_the_one_before(tmp_path: Path) -> None:
    model = make("residual")
    first = plan_for(model, {"inner1": 11, "stem": 9})
    folder = save(tmp_path / "one", ww.apply(first, model, EXAMPLE), first)
    between = load(folder)
    second = plan_for(between, {"inner1": 5}).model_copy(
        update={"model": str(folder), "parent": parent_of(str(folder))}
    )
    assert second.parent is not None and second.parent.digest == first.digest
    small = ww.apply(second, between, EXAMPLE)
    further = save(tmp_path / "two", small, second)
    assert read_architecture(further).plans == [first.digest, second.digest]
    assert read_architecture(further).model == first.model
    assert Plan.read(further / "plan-1.json") == first
    for again in (load(further), load(further, model=partial(make, "residual"))):
        assert torch.equal(again(EXAMPLE), small(EXAMPLE)) and again.inner1.out_channels == 5
    third = plan_for(small, {"stem": 3}).model_copy(update={"model": str(further), "parent": parent_of(str(further))})
    save(further, ww.apply(third, small, EXAMPLE), third)  # over the folder it was made from
    assert [path.name for path in sorted(further.glob("plan*.json"))] == ["plan-1.json", "plan-2.json", "plan.json"]
    with pytest.raises(BadInput, match="builds on another plan than"):
        save(tmp_path / "late", small, third)
    with pytest.raises(BadInput, match="a pruned model that isn't there"):
        save(tmp_path / "late", small, third.model_copy(update={"model": str(tmp_path / "gone")}))


def test_a_plans_digest_is_of_what_it_says(plan: Plan, tmp_path: Path) -> None:
    plan.write(tmp_path / "plan.json")
    assert Plan.read(tmp_path / "plan.json").digest == plan.digest
    assert plan.model_copy(update={"budget_ms": plan.budget_ms * 2}).digest != plan.digest
    assert plan.model_copy(update={"parent": None}).digest == plan.digest


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
