"""What a plan must keep to beside its budget, on the fake runtime and against closed forms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import widthwise as ww
from widthwise.luts.errors import BadInput, InfeasibleBudget, InvalidModel
from widthwise.luts.store import Lut
from widthwise.network.network import Network
from widthwise.planner.allocation import allocate
from widthwise.planner.demands import COUNTED, Demands, FurtherTable, Most, amount, parse_bounds, parse_keep
from widthwise.planner.importance import Importance, score
from widthwise.planner.plan import Budget, Plan
from widthwise.planner.predictor import LatencyPredictor
from widthwise.planner.problem import WidthBounds


@pytest.fixture(scope="module")
def lut(wide_table: Path) -> Iterator[Lut]:
    with Lut.open(wide_table, readonly=True) as lut:
        yield lut


@pytest.fixture(scope="module")
def predictor(lut: Lut, wide_network: Network) -> LatencyPredictor:
    return LatencyPredictor.fit(lut, wide_network)


@pytest.fixture(scope="module")
def importance(wide: nn.Module, wide_network: Network) -> Importance:
    return score(wide, wide_network)


def test_amounts_are_those_of_the_narrow_network() -> None:
    model = nn.Sequential(nn.Conv2d(3, 7, 3, padding=1), nn.ReLU(), nn.Conv2d(7, 5, 1, bias=False))
    network = Network.trace(model, torch.zeros(2, 3, 11, 13))
    pixels = 2 * 11 * 13
    widths = {"0": 4}
    assert amount("parameters", network, widths, "float32") == 4 * 27 + 4 + 5 * 4 == network.parameters(widths)
    assert amount("weight_memory", network, widths, "bfloat16") == 2 * network.parameters(widths)
    assert amount("macs", network, widths, "float32") == pixels * (27 * 4 + 4 * 5) == network.macs(widths)
    # The first convolution with its activation writes 4 channels, the second 5.
    assert amount("activation_memory", network, widths, "float16") == 2 * pixels * (4 + 5)


@pytest.mark.parametrize("name", COUNTED)
def test_the_plan_is_the_best_within_a_limit(
    predictor: LatencyPredictor, importance: Importance, lut: Lut, wide_network: Network, name: str
) -> None:
    """Concatenation and residual included; against trying all widths of a coarse grid."""
    options = wide_network.options(dict.fromkeys(wide_network.options(), 16), most=3)
    demands = Demands(most={name: Most.parse("55%")})
    plan = allocate(predictor, importance, Budget.parse("80%"), lut, options=options, demands=demands)
    vectors = [dict(zip(options, chosen, strict=True)) for chosen in itertools.product(*options.values())]
    latencies = predictor.predict_many(vectors)
    fast = [v for v, ms in zip(vectors, latencies, strict=True) if ms <= plan.budget_ms]
    most = 0.55 * amount(name, wide_network, wide_network.dense, "float32")
    best = max(importance.retained(v) for v in fast if amount(name, wide_network, v, "float32") <= most)
    assert plan.importance == pytest.approx(best, rel=1e-5)
    assert [limit.name for limit in plan.limits] == [name]
    assert plan.limits[0].amount == amount(name, wide_network, plan.widths, "float32") <= plan.limits[0].most == most
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


def test_least_latency_retains_what_is_kept(predictor: LatencyPredictor, importance: Importance, lut: Lut) -> None:
    plan = allocate(predictor, importance, None, lut, demands=Demands(keep=0.8))
    assert plan.importance >= 0.8 and plan.objective == "latency" and plan.keep == 0.8
    assert plan.certificate.objective == pytest.approx(plan.predicted_ms) and plan.budget_ms == plan.predicted_ms
    most = allocate(predictor, importance, Budget(plan.predicted_ms * 0.999, relative=False), lut)
    assert most.importance < 0.8
    dense = allocate(predictor, importance, None, lut, demands=Demands(keep=1.0))
    assert dense.importance == pytest.approx(1.0)


def test_confidence_puts_the_upper_end_within_the_budget(
    predictor: LatencyPredictor, importance: Importance, lut: Lut
) -> None:
    known = len(predictor.intervals.on_grid)
    level = known / (known + 1) - 1e-6
    plan = allocate(predictor, importance, Budget.parse("60%"), lut, demands=Demands(confidence=level))
    share = plan.predicted_ms / predictor.dense_ms
    radius = float(max(abs(predictor.intervals.on_grid))) / math.sqrt(share)
    assert plan.interval_ms[1] <= plan.budget_ms * (1 + 1e-12)
    assert plan.interval_ms[1] == pytest.approx(plan.predicted_ms * math.exp(radius))
    assert plan.confidence == level
    with pytest.raises(BadInput, match=r"needs 999 measured networks .* profile longer"):
        allocate(predictor, importance, Budget.parse("60%"), lut, demands=Demands(confidence=0.999))
    just_dense = Budget(predictor.dense_ms * 1.0000001, relative=False)
    assert allocate(predictor, importance, just_dense, lut).certificate.status == "unchanged"
    surely = allocate(predictor, importance, just_dense, lut, demands=Demands(confidence=level))
    assert surely.certificate.status == "optimal"


def test_bounds_hold_and_a_fixed_width_may_lie_between_the_steps(
    predictor: LatencyPredictor, importance: Importance, lut: Lut
) -> None:
    first, second, *_ = predictor.network.dense
    bounds = {first: WidthBounds(fixed=13), second: WidthBounds(max=40)}
    plan = allocate(predictor, importance, Budget.parse("110%"), lut, demands=Demands(bounds=bounds))
    assert plan.widths[first] == 13 and plan.widths[second] <= 40 and plan.certificate.status == "optimal"
    for wrong, error, message in (
        ({"nowhere": WidthBounds(min=2)}, InvalidModel, "has no prunable group 'nowhere'"),
        ({first: WidthBounds(max=10**6)}, InvalidModel, "can keep 1 to"),
        ({first: WidthBounds(max=1)}, BadInput, f"--fix {first}=WIDTH"),
    ):
        with pytest.raises(error, match=message):
            allocate(predictor, importance, Budget.parse("60%"), lut, demands=Demands(bounds=wrong))


def test_infeasible_names_the_limit(predictor: LatencyPredictor, importance: Importance, lut: Lut) -> None:
    few = Demands(most={"parameters": Most(10.0)})
    with pytest.raises(InfeasibleBudget, match=r"no widths reach parameters of at most 10 \(the least is"):
        allocate(predictor, importance, Budget.parse("60%"), lut, demands=few)
    narrow = Demands(keep=0.99, bounds={next(iter(predictor.network.dense)): WidthBounds(fixed=2)})
    with pytest.raises(InfeasibleBudget, match="within the bounds on widths the most is 0"):
        allocate(predictor, importance, None, lut, demands=narrow)


def test_a_plan_holds_on_further_tables(
    predictor: LatencyPredictor, importance: Importance, lut: Lut, wide: nn.Module, wide_example: torch.Tensor
) -> None:
    further = FurtherTable(lut, predictor, Budget.parse("45%"))
    plan = allocate(predictor, importance, Budget.parse("60%"), lut, demands=Demands(tables=[further]))
    (found,) = plan.further
    assert found.predicted_ms <= found.budget_ms == pytest.approx(0.45 * found.dense_ms)
    assert plan.importance == pytest.approx(
        allocate(predictor, importance, Budget.parse("45%"), lut).importance, rel=1e-4
    )
    with pytest.raises(BadInput, match="named twice"):
        allocate(predictor, importance, Budget.parse("60%"), lut, demands=Demands(tables=[further, further]))
    with pytest.raises(BadInput, match="needs a budget of its own"):
        ww.plan(wide, wide_example, lut=lut, budget="3ms", also=[ww.Also(lut)])
    with pytest.raises(BadInput, match="plan anew"):
        ww.replan(plan, wide, wide_example, lut=lut)


@pytest.mark.parametrize("text", ["", "5X", "-3", "0", "nan", "5MM", "1e999"])
def test_what_is_no_limit(text: str) -> None:
    with pytest.raises(BadInput, match="is no upper limit"):
        Most.parse(text)


def test_texts() -> None:
    assert [Most.parse(text).value for text in ("5M", "1.5k", "20MB", "2KiB", "7", "50%")] == [
        5e6,
        1.5e3,
        2e7,
        2048,
        7,
        0.5,
    ]
    assert (parse_keep("90%"), parse_keep(0.5)) == (0.9, 0.5)
    for wrong in (["a"], ["=3"], ["a=x"], ["a=3", "a=4"]):
        with pytest.raises(BadInput):
            parse_bounds(wrong, [], [])
    with pytest.raises(BadInput, match="group 'a': asks for widths of at least 9 and at most 4"):
        parse_bounds(["a=9"], ["a=4"], [])
    for wrong in ({"keep": 1.5}, {"keep": 0.0}, {"confidence": 1.0}, {"most": {"time": Most(1.0)}}):
        with pytest.raises(BadInput):
            Demands(**wrong)  # type: ignore[arg-type]
