from __future__ import annotations

import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from tests.conftest import randomised
from widthwise.luts.errors import BadInput, InvalidModel, InvalidPlan
from widthwise.luts.store import Lut
from widthwise.network.narrowing import narrow, shapes_of
from widthwise.network.network import Network
from widthwise.planner.allocation import allocate
from widthwise.planner.importance import score
from widthwise.planner.plan import Budget, Plan
from widthwise.planner.predictor import LatencyPredictor
from widthwise.pruning.evaluation import recalibrate
from widthwise.pruning.evolution import EmptyWindow, InvalidSnapshot, SearchSettings
from widthwise.pruning.holdout import hold_out
from widthwise.pruning.metapruning import RATIOS, MetaPruning, _repeatable
from widthwise.pruning.pruning_net import HIDDEN, Generator, PruningNet
from widthwise.pruning.training import train

FEW = SearchSettings(population=6, iterations=2, parents=3, mutations=3, crossovers=2, recalibration_batches=2)


class Inverted(nn.Module):
    """An inverted residual block with norms everywhere, and a second one concatenated; prime sizes; takes 3×8×8."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 11, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(11)
        self.expand = nn.Conv2d(11, 23, 1, bias=False)
        self.expand_bn = nn.BatchNorm2d(23)
        self.depthwise = nn.Conv2d(23, 23, 3, padding=1, groups=23)
        self.depthwise_bn = nn.BatchNorm2d(23)
        self.project = nn.Conv2d(23, 11, 1, bias=False)
        self.project_bn = nn.BatchNorm2d(11)
        self.side = nn.Conv2d(11, 7, 3, padding=1)
        self.side_bn = nn.BatchNorm2d(7)
        self.head = nn.Linear(18, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem_bn(self.stem(x)))
        y = torch.relu(self.expand_bn(self.expand(x)))
        y = torch.relu(self.depthwise_bn(self.depthwise(y)))
        x = x + self.project_bn(self.project(y))
        x = torch.relu(torch.cat([x, self.side_bn(self.side(x))], 1))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads on tiny tensors wait for each other wherever cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def inverted() -> nn.Module:
    torch.manual_seed(0)
    return randomised(Inverted())


def net_of(model: nn.Module, network: Network, **settings: Any) -> PruningNet:
    return PruningNet(model, network, list(network.dense), score(model, network), **settings)


def scrambled(net: PruningNet) -> PruningNet:
    """Generators that depend on the ratios, so that a wrong one shows."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for made in net.generators.modules():
            if isinstance(made, nn.Linear):
                made.weight += 0.1 * torch.randn(made.weight.shape, generator=generator)
    return net


def some_widths(network: Network, rng: random.Random) -> dict[str, int]:
    return {group: rng.randint(1, size) for group, size in network.dense.items()}


def test_a_generator_makes_the_dense_weight_and_learns_the_ratios() -> None:
    weight = torch.randn(7, 5, 3, 3)
    warm, cold = Generator(3, weight), Generator(3, weight, warm_start=False)
    assert torch.equal(warm(torch.tensor([0.1, 0.4, 1.0])), weight)
    assert (warm.first.weight.shape, warm.second.weight.shape) == ((HIDDEN, 3), (7 * 5 * 3 * 3, HIDDEN))
    assert cold(torch.ones(3)).shape == weight.shape and not torch.allclose(cold(torch.ones(3)), weight)
    optimizer = torch.optim.SGD(warm.parameters(), 0.1)
    for _ in range(2):
        warm(torch.tensor([0.1, 0.4, 1.0])).square().sum().backward()
        optimizer.step()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in warm.parameters())


def test_layers_get_the_ratios_of_the_groups_they_touch(branches: nn.Module, network: Network) -> None:
    net = PruningNet(branches, network, ["inner", "left"], score(branches, network))
    assert {site.path: site.groups for site in net._sites} == {
        "inner": ("inner",),
        "outer": ("inner",),
        "left": ("left",),
        "mixed": ("left",),
    }
    names = [name for name, _ in net.body.named_parameters()]
    assert "stem.weight" in names and "inner.weight" not in names and "inner.bias" in names
    both = net_of(branches, network)
    assert next(site.groups for site in both._sites if site.path == "mixed") == ("left", "right", "mixed")
    assert next(site.groups for site in both._sites if site.path == "depthwise") == ("stem",)


def test_weights_are_made_from_the_shares_of_channels_kept(branches: nn.Module, network: Network) -> None:
    net = scrambled(net_of(branches, network))
    made = net.weights({"left": 3, "right": 2, "mixed": 5})["mixed"]
    generator = net.generators[[site.path for site in net._sites].index("mixed")]
    assert torch.equal(made, generator(torch.tensor([3 / 7, 2 / 11, 5 / 19])))
    assert not torch.allclose(made, generator(torch.tensor([2 / 11, 3 / 7, 5 / 19])))


@pytest.mark.parametrize("warm_start", [True, False])
@pytest.mark.parametrize("kind", ["branches", "inverted"])
def test_cropping_equals_the_materialised_model(kind: str, warm_start: bool, request: pytest.FixtureRequest) -> None:
    """Residual, depthwise, concatenation and flatten, at random widths; in eval and in train mode."""
    model: nn.Module = request.getfixturevalue(kind)
    network = Network.trace(model, torch.zeros(1, 3, 8, 8))
    net = scrambled(net_of(model, network, warm_start=warm_start))
    x, rng = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(2)), random.Random(0)
    for _ in range(6):
        widths = some_widths(network, rng)
        small = net.materialise(widths)
        assert shapes_of(small) == shapes_of(narrow(model, network, {g: range(w) for g, w in widths.items()}))
        for training in (False, True):
            net.train(training)
            small.train(training)
            with torch.no_grad():
                assert torch.allclose(net.at(widths, x), small(x), atol=1e-5, rtol=1e-4)
    depthwise = net.body.get_submodule("depthwise")
    assert depthwise.groups == depthwise.in_channels > 7


def test_a_warm_start_gives_the_narrowed_trained_model(inverted: nn.Module) -> None:
    network = Network.trace(inverted, torch.zeros(1, 3, 8, 8))
    net, x = net_of(inverted, network).eval(), torch.randn(2, 3, 8, 8)
    widths = some_widths(network, random.Random(1))
    small = narrow(inverted, network, net.kept(widths))
    with torch.no_grad():
        assert torch.equal(net.at({}, x), inverted(x))
        assert torch.allclose(net.at(widths, x), small(x), atol=1e-6)
    assert {name: tensor.requires_grad for name, tensor in net.materialise(widths).named_parameters()} == {
        name: tensor.requires_grad for name, tensor in small.named_parameters()
    }


def test_a_cold_start_has_norms_without_scale(inverted: nn.Module) -> None:
    network = Network.trace(inverted, torch.zeros(1, 3, 8, 8))
    net = net_of(inverted, network, warm_start=False)
    assert not any(p.requires_grad for name, p in net.body.named_parameters() if "_bn." in name)
    assert net.body.get_parameter("stem_bn.weight").eq(1).all() and net.body.get_parameter("stem_bn.bias").eq(0).all()
    small = net.materialise({"stem": 3})
    assert all(parameter.requires_grad for parameter in small.parameters())
    again = net_of(inverted, network, warm_start=False)
    assert all(torch.equal(one, two) for one, two in zip(net.parameters(), again.parameters(), strict=True))
    other = net_of(inverted, network, warm_start=False, seed=1)
    assert not torch.equal(next(net.generators.parameters()), next(other.generators.parameters()))


def test_statistics_of_cropped_norms_come_back(inverted: nn.Module) -> None:
    network = Network.trace(inverted, torch.zeros(1, 3, 8, 8))
    net = net_of(inverted, network).train()
    before = net.body.get_buffer("stem_bn.running_mean").clone()
    widths = {"stem": 4}
    net.at(widths, torch.randn(5, 3, 8, 8)).sum().backward()
    changed = net.body.get_buffer("stem_bn.running_mean") != before
    assert torch.nonzero(changed).flatten().tolist() == list(net.kept(widths)["stem"])
    assert net.body.get_buffer("stem_bn.num_batches_tracked") == 1
    assert net.body.get_submodule("stem_bn").num_features == 11


def test_what_can_not_be_generated(branches: nn.Module, network: Network) -> None:
    with pytest.raises(InvalidModel, match="no prunable group 'none'"):
        PruningNet(branches, network, ["none"], score(branches, network))
    tied = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1), nn.Flatten(), nn.Linear(12, 2))
    traced = Network.trace(tied, torch.zeros(1, 3, 2, 2))
    tied[2].weight = tied[0].weight
    with pytest.raises(InvalidModel, match="'0' and '2' share one weight"):
        net_of(tied, traced)
    computed = nn.Sequential(nn.Conv2d(3, 7, 1), nn.ReLU(), nn.Conv2d(7, 5, 1))
    traced = Network.trace(computed, torch.zeros(1, 3, 2, 2))
    importance = score(computed, traced)
    torch.nn.utils.parametrizations.weight_norm(computed[0])
    with pytest.raises(InvalidModel, match="'0' is no plain parameter"):
        PruningNet(computed, traced, list(traced.dense), importance)


@pytest.fixture(scope="module")
def made(wide_table: Path, wide: nn.Module, wide_network: Network) -> Iterator[tuple[Plan, LatencyPredictor]]:
    with Lut.open(wide_table, readonly=True) as lut:
        predictor = LatencyPredictor.fit(lut, wide_network)
        yield allocate(predictor, score(wide, wide_network), Budget.parse("60%"), lut, weights="w"), predictor


@pytest.fixture
def run(wide: nn.Module, wide_example: Tensor, made: tuple[Plan, LatencyPredictor]) -> MetaPruning:
    return MetaPruning(wide, made[0], [wide_example], predictor=made[1], seed=3)


@pytest.fixture(scope="module")
def loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Classes that differ in the mean of a channel."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(10).repeat(7)
    images = torch.randn(70, 3, 16, 16, generator=generator)
    images[:, 0] += labels[:, None, None] / 3
    loader = DataLoader(TensorDataset(images, labels), 13, shuffle=True, generator=torch.Generator().manual_seed(1))
    return hold_out(loader, 0.3)


def test_widths_are_drawn_uniformly_and_from_seed_and_step_alone(run: MetaPruning) -> None:
    drawn = [run.drawn(step) for step in range(3000)]
    assert drawn == [run.drawn(step) for step in range(3000)]
    assert len(RATIOS) == 31 and (RATIOS[0], RATIOS[1], RATIOS[-1]) == (0.1, 0.13, 1.0)
    for group, size in run.plan.dense.items():
        met = torch.tensor([widths[group] for widths in drawn]).double()
        expected = torch.tensor([max(1, round(size * ratio)) for ratio in RATIOS]).double()
        assert set(met.tolist()) == set(expected.tolist())
        assert met.mean() / size == pytest.approx(float(expected.mean()) / size, abs=0.02)
    pairs = torch.corrcoef(torch.tensor([[widths["conv1"], widths["conv2"]] for widths in drawn]).double().T)
    assert abs(float(pairs[0, 1])) < 0.06


def step_of(run: MetaPruning, optimizer: torch.optim.Optimizer, step: int, x: Tensor, y: Tensor) -> float:
    loss = functional.cross_entropy(run.model(x), y)
    optimizer.zero_grad()
    loss.backward()
    run.before_step(step)
    optimizer.step()
    return loss.item()


def batch() -> tuple[Tensor, Tensor]:
    x = torch.randn(11, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    return x, torch.arange(11) % 10


def test_each_step_runs_at_its_widths(run: MetaPruning) -> None:
    run.model.train()
    (x, y), optimizer = batch(), torch.optim.SGD(run.parameter_groups(), 0.01)
    assert run.model.widths == run.drawn(0)
    step_of(run, optimizer, 0, x, y)
    assert run.model.widths == run.drawn(1) != run.drawn(0)
    run.model.eval()
    with torch.no_grad():
        assert torch.equal(run.model(x), run.model.at(run.plan.widths, x))


def test_training_changes_the_pruning_net_alone_and_lowers_the_loss(run: MetaPruning, wide: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in wide.state_dict().items()}
    run.model.train()
    (x, y), optimizer = batch(), torch.optim.SGD(run.parameter_groups(lr=0.02), 0.02, momentum=0.9)
    run.drawn = lambda step: run.plan.widths  # type: ignore[method-assign]
    run.model.widths = dict(run.plan.widths)
    losses = [step_of(run, optimizer, step, x, y) for step in range(4)]
    assert losses[1] < losses[0] and losses[3] < losses[1]
    assert all(torch.equal(before[name], tensor) for name, tensor in wide.state_dict().items())
    assert all(parameter.grad is not None for parameter in run.model.parameters())


def test_the_built_in_loop_trains_it(
    run: MetaPruning, loaders: tuple[DataLoader[Any], DataLoader[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[dict[str, int]] = []
    at = run.model.at
    monkeypatch.setattr(run.model, "at", lambda widths, *x: (met.append(dict(widths)), at(widths, *x))[1])
    history = train(run.model, loaders, epochs=2, before_step=run.before_step, parameter_groups=run.parameter_groups())
    steps = len(loaders[0])
    epoch = [run.drawn(step) for step in range(steps)]
    assert met[:steps] == epoch and met[steps] == run.plan.widths
    assert run.model.widths == run.drawn(2 * steps)
    assert history.epochs[1].loss < history.epochs[0].loss


def test_only_weights_decay(run: MetaPruning) -> None:
    decayed, plain = run.parameter_groups()
    assert plain["weight_decay"] == 0.0 and "weight_decay" not in decayed
    names = {id(parameter): name for name, parameter in run.model.named_parameters()}
    assert all(name.endswith(("first.weight", "second.weight")) for p in decayed["params"] for name in [names[id(p)]])
    assert len(decayed["params"]) == 2 * len(run.model.generators)
    assert len(decayed["params"]) + len(plain["params"]) == len(names)


def test_a_resumed_run_is_the_same(wide: nn.Module, wide_example: Tensor, made: tuple[Plan, LatencyPredictor]) -> None:
    def fresh(seed: int = 3) -> tuple[MetaPruning, torch.optim.Optimizer]:
        run = MetaPruning(wide, made[0], [wide_example], predictor=made[1], seed=seed)
        run.model.train()
        return run, torch.optim.SGD(run.parameter_groups(), 0.01)

    x, y = batch()
    whole, optimizer = fresh()
    for step in range(4):
        step_of(whole, optimizer, step, x, y)
    first, optimizer = fresh()
    for step in range(2):
        step_of(first, optimizer, step, x, y)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    resumed, optimizer = fresh()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for step in range(2, 4):
        step_of(resumed, optimizer, step, x, y)
    assert resumed.model.widths == whole.model.widths
    pairs = zip(whole.model.state_dict().items(), resumed.model.state_dict().items(), strict=True)
    assert all(one[0] == two[0] and torch.equal(one[1], two[1]) for one, two in pairs)


def test_finish_has_the_plans_widths_before_a_search(run: MetaPruning, wide: nn.Module, wide_network: Network) -> None:
    small, expected = run.finish(), narrow(wide, wide_network, run.plan.kept)
    assert all(torch.equal(one, two) for one, two in zip(small.parameters(), expected.parameters(), strict=True))
    anew = run.finish(start="scratch")
    assert shapes_of(anew) == shapes_of(small)
    assert not torch.equal(anew.conv2.weight, small.conv2.weight)


def test_a_plan_within_further_limits_is_refused(wide: nn.Module, made: tuple[Plan, LatencyPredictor]) -> None:
    plan, predictor = made
    for changed in ({"confidence": 0.9}, {"bounds": {"conv1": {"min": 2}}}):
        limited = Plan.model_validate(plan.model_dump() | changed)
        with pytest.raises(BadInput, match=f"also keeps to {next(iter(changed))}"):
            MetaPruning(wide, limited, predictor=predictor)


def test_what_training_continues_from(run: MetaPruning, wide: nn.Module, wide_network: Network) -> None:
    with torch.no_grad():
        for generator in run.model.generators:
            generator.second.bias += 1.0  # type: ignore[union-attr, operator]
    dense, generated = run.finish(), run.finish(start="generated")
    expected = narrow(wide, wide_network, run.plan.kept)
    assert torch.equal(dense.conv2.weight, expected.conv2.weight)
    assert torch.allclose(generated.conv2.weight, expected.conv2.weight + 1.0)
    with pytest.raises(BadInput, match="dense, generated, scratch"):
        run.finish(start="warm")  # type: ignore[arg-type]


def test_a_generated_weight_moves_as_an_ordinary_one_would() -> None:
    torch.manual_seed(0)
    weight, target = torch.randn(5, 3, 1, 1), torch.randn(5, 3, 1, 1)
    generator = Generator(2, weight)
    ratios = torch.full((2,), 0.5)
    optimizer = torch.optim.SGD(generator.parameters(), lr=0.1 / generator.gain)
    (generator(ratios) * target).sum().backward()
    optimizer.step()
    assert generator.gain > 1.5
    assert torch.allclose(generator(ratios), weight - 0.1 * target, atol=1e-6)


def test_generators_learn_slower_than_the_rest(run: MetaPruning) -> None:
    rates = {id(p): group.get("lr") for group in run.parameter_groups(lr=0.05) for p in group["params"]}
    assert set(rates) == {id(p) for p in run.model.parameters() if p.requires_grad}
    made = {id(p) for p in run.model.generators.parameters()}
    assert all(rate == (pytest.approx(0.05 / run.model.gain) if key in made else None) for key, rate in rates.items())


def test_the_search_finds_widths_and_makes_their_plan(
    run: MetaPruning, loaders: tuple[DataLoader[Any], DataLoader[Any]], made: tuple[Plan, LatencyPredictor]
) -> None:
    exact, predictor = made
    reports: list[Any] = []
    result = run.search(*loaders, settings=FEW, on_progress=reports.append)
    plan = run.plan
    assert plan.widths == result.widths and len(reports) == 2 and result.evaluations == 12
    assert 0.97 * exact.budget_ms <= plan.predicted_ms <= exact.budget_ms
    assert plan.predicted_ms == predictor.predict(plan.widths).latency_ms
    assert result.accuracy == result.history[-1].best >= result.plan_accuracy
    certificate = plan.certificate
    assert certificate.status == "searched"
    assert certificate.bound == max(certificate.objective, exact.certificate.bound)
    assert certificate.gap == pytest.approx((certificate.bound - certificate.objective) / abs(certificate.bound))
    assert plan.importance == pytest.approx(torch.tensor(certificate.objective - 1).exp().item(), rel=1e-5)
    assert "found by evolutionary search, 12 evaluations" in plan.notes[0]
    assert (plan.budget_ms, plan.signature, plan.weights) == (exact.budget_ms, exact.signature, "w")
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    small = run.finish()
    recalibrate(small, loaders[0], 2)
    assert shapes_of(small)["conv2"][1] == plan.widths["conv2"]
    state = run.state_dict()
    run._use(exact)
    run.load_state_dict(state)
    assert run.plan == plan and run.model.resting == plan.widths


def test_a_search_is_repeatable_and_resumes(
    run: MetaPruning, loaders: tuple[DataLoader[Any], DataLoader[Any]], tmp_path: Path
) -> None:
    order = torch.Generator().manual_seed(0)
    loaders[0].generator.set_state(order.get_state())  # type: ignore[union-attr]
    whole = run.search(*loaders, settings=FEW)
    assert torch.equal(loaders[0].generator.get_state(), order.get_state())  # type: ignore[union-attr]
    path = tmp_path / "search.json"

    def stop(report: Any) -> None:
        raise KeyboardInterrupt

    torch.rand(3)
    next(iter(loaders[0]))
    with pytest.raises(KeyboardInterrupt):
        run.search(*loaders, settings=FEW, snapshot=path, on_progress=stop)
    resumed = run.search(*loaders, settings=FEW, snapshot=path)
    assert (resumed.widths, resumed.history) == (whole.widths, whole.history)
    with torch.no_grad():
        next(run.model.generators.parameters()).add_(0.5)
    with pytest.raises(InvalidSnapshot, match="another search"):
        run.search(*loaders, settings=FEW, snapshot=path)


def test_every_candidate_meets_the_same_batches() -> None:
    data = TensorDataset(torch.arange(29.0))
    for generator in (None, torch.Generator().manual_seed(7)):
        loader = DataLoader(data, 5, shuffle=True, generator=generator)
        before, orders = torch.get_rng_state(), []
        for _ in range(2):
            with _repeatable((loader,), seed=3):
                orders.append([[float(x) for x in batch[0]] for batch in loader])
            assert torch.equal(torch.get_rng_state(), before)
            if generator is not None:
                torch.rand(1, generator=generator)
        assert orders[0] == orders[1]


def test_options_of_a_table_bound_the_search(
    wide: nn.Module,
    wide_network: Network,
    wide_example: Tensor,
    made: tuple[Plan, LatencyPredictor],
    loaders: tuple[DataLoader[Any], DataLoader[Any]],
) -> None:
    options = wide_network.options()
    run = MetaPruning(wide, made[0], [wide_example], predictor=made[1], options=options)
    result = run.search(*loaders, settings=FEW)
    assert all(width in {*options[group], made[0].widths[group]} for group, width in result.widths.items())
    with pytest.raises(InvalidModel, match="no prunable group"):
        MetaPruning(wide, made[0], [wide_example], predictor=made[1], options={"none": [1]})
    with pytest.raises(InvalidModel, match="can keep 1 to 32"):
        MetaPruning(wide, made[0], [wide_example], predictor=made[1], options={"conv1": [8, 33]})


def test_a_budget_that_no_widths_meet(
    wide: nn.Module,
    wide_example: Tensor,
    made: tuple[Plan, LatencyPredictor],
    loaders: tuple[DataLoader[Any], DataLoader[Any]],
) -> None:
    tight = made[0].model_copy(update={"budget_ms": made[0].minimum_ms / 50})
    run = MetaPruning(wide, tight, [wide_example], predictor=made[1])
    with pytest.raises(EmptyWindow, match="Change the plan's budget"):
        run.search(*loaders, settings=SearchSettings(population=6, attempts=2))
    assert run.plan is tight and run.result is None


def test_what_does_not_fit_together(
    run: MetaPruning,
    wide: nn.Module,
    wide_example: Tensor,
    branches: nn.Module,
    example: Tensor,
    made: tuple[Plan, LatencyPredictor],
) -> None:
    plan, predictor = made
    with pytest.raises(InvalidPlan, match="inputs of shape"):
        MetaPruning(branches, plan, [example], predictor=predictor)
    with pytest.raises(BadInput, match="ratios"):
        MetaPruning(wide, plan, [wide_example], predictor=predictor, ratios=[0.0, 1.0])
    with pytest.raises(BadInput, match="seed"):
        MetaPruning(wide, plan, [wide_example], predictor=predictor, seed=-1)
    whole = plan.model_copy(update={"widths": plan.dense})
    with pytest.raises(InvalidPlan, match="nothing to prune"):
        MetaPruning(wide, whole, [wide_example], predictor=predictor)
    other = plan.model_copy(update={"budget_ms": 99.0}).model_dump_json()
    with pytest.raises(InvalidPlan, match="begun with"):
        run.load_state_dict(run.state_dict() | {"plan": other})
    for state in ({"model": {}}, run.state_dict() | {"plan": "{}"}):
        with pytest.raises(InvalidPlan, match="none of MetaPruning's"):
            run.load_state_dict(state)


def test_holding_out_is_stratified_and_disjoint() -> None:
    labels = torch.tensor([0] * 20 + [1] * 10 + [2])
    data = TensorDataset(torch.arange(31.0)[:, None], labels)
    train, held = hold_out(DataLoader(data, 7, shuffle=True), 0.2, seed=1)
    kept, out = ([float(x) for x, _ in loader.dataset] for loader in (train, held))
    assert sorted(kept + out) == list(range(31)) and not set(kept) & set(out)
    assert [int(label) for _, label in held.dataset] == [0] * 4 + [1] * 2
    assert [x.flatten().tolist() for x, _ in held] == [x.flatten().tolist() for x, _ in held]
    plain = TensorDataset(torch.arange(31.0)[:, None] + 100, labels)
    assert min(float(x) for x, _ in hold_out(DataLoader(data, 7), 0.2, plain=plain)[1].dataset) >= 100


@pytest.mark.parametrize(
    ("loader", "share", "wrong"),
    [
        (DataLoader(TensorDataset(torch.zeros(5, 2), torch.zeros(5).long())), 1.0, "share"),
        (DataLoader(TensorDataset(torch.zeros(1, 2), torch.zeros(1).long())), 0.5, "length of 2"),
        (DataLoader(TensorDataset(torch.zeros(3, 2), torch.arange(3))), 0.5, "one example only"),
    ],
)
def test_what_can_not_be_held_out(loader: DataLoader[Any], share: float, wrong: str) -> None:
    with pytest.raises(BadInput, match=wrong):
        hold_out(loader, share)
