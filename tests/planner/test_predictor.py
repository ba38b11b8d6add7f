from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from widthwise.luts.errors import InvalidModel, InvalidTable, MissingLayers
from widthwise.luts.measurement import Block, Conditions, Measurement
from widthwise.luts.records import NetworkKey, Role
from widthwise.luts.store import Lut
from widthwise.network.network import Network
from widthwise.planner.correction import Correction, Line, choose_correction, weighed
from widthwise.planner.intervals import Intervals, conformal_radius, folds, spread
from widthwise.planner.predictor import LatencyPredictor
from widthwise.profiling.profiler import Profiler, open_table
from widthwise.profiling.runtimes.fake import FakeRuntime, World, staircase_ms
from widthwise.profiling.target import Target


@pytest.fixture(scope="module")
def predictor(wide_table: Path, wide_network: Network) -> LatencyPredictor:
    with Lut.open(wide_table, readonly=True) as lut:
        return LatencyPredictor.fit(lut, wide_network)


def random_widths(network: Network, rng: random.Random) -> dict[str, int]:
    return {group: rng.choice(options) for group, options in network.options().items()}


def test_predictions_come_close_to_the_known_truth(
    predictor: LatencyPredictor, wide_network: Network, fake_runtime: FakeRuntime
) -> None:
    """Networks drawn after the table was made, against the fake runtime's truth."""
    rng = random.Random(99)
    drawn = [random_widths(wide_network, rng) for _ in range(40)]
    truth = np.array([fake_runtime.true_ms(wide_network, widths) for widths in drawn])
    ratio = predictor.predict_many(drawn) / truth
    ratio /= np.median(ratio)  # the quiet reference is known only to its own noise
    assert np.abs(ratio - 1).mean() < 0.01
    assert np.abs(ratio - 1).max() < 0.05


def test_the_interval_covers_what_it_says(
    predictor: LatencyPredictor, wide_network: Network, fake_runtime: FakeRuntime
) -> None:
    """Of 200 fresh networks at least 80 % lie in the 90 % interval (12 networks calibrate it: it is coarse)."""
    rng = random.Random(7)
    drawn = [random_widths(wide_network, rng) for _ in range(200)]
    scale = predictor.dense_ms / fake_runtime.true_ms(wide_network, wide_network.dense)
    inside = 0
    for widths in drawn:
        low, high = predictor.predict(widths).interval_ms
        inside += low <= fake_runtime.true_ms(wide_network, widths) * scale <= high
    assert inside >= 160


def test_one_prediction_equals_many(predictor: LatencyPredictor, wide_network: Network) -> None:
    rng = random.Random(1)
    drawn = [random_widths(wide_network, rng) for _ in range(5)]
    assert predictor.predict_many(drawn) == pytest.approx([predictor.predict(w).latency_ms for w in drawn])


def test_the_breakdown_adds_up(predictor: LatencyPredictor, wide_network: Network) -> None:
    widths = {"conv1": 16, "conv5": 32}
    total = sum(ms for _, ms in predictor.breakdown(widths)) + predictor.fixed_ms
    assert total == pytest.approx(predictor.predict(widths).latency_ms)


def test_totals_by_kind_module_and_layer(predictor: LatencyPredictor) -> None:
    widths = {"conv1": 16}
    total = sum(ms for _, ms in predictor.breakdown(widths))
    for by in ("kind", "module", "layer"):
        found = predictor.totals(widths, by=by)
        assert sum(found.values()) == pytest.approx(total)
        assert list(found.values()) == sorted(found.values(), reverse=True)
    assert "conv2d" in predictor.totals(widths) and "fc" in predictor.totals(widths, by="layer")


def test_nine_runs_in_ten_stay_below_p90(predictor: LatencyPredictor, wide_network: Network) -> None:
    """The fake runtime's noise is 1 % and 2 % of its runs are slowed down: the rest's 0.9/0.98 quantile is 1.014."""
    assert predictor.tail == pytest.approx(1.014, abs=0.005)
    slow = predictor.at("p90")
    widths = {"conv1": 16, "conv5": 32}
    assert slow.predict(widths).latency_ms == pytest.approx(predictor.tail * predictor.predict(widths).latency_ms)
    assert slow.dense_ms == pytest.approx(predictor.tail * predictor.dense_ms)
    total = sum(ms for _, ms in slow.breakdown(widths)) + slow.fixed_ms
    assert total == pytest.approx(slow.predict(widths).latency_ms)
    assert slow.at("p90") is slow and predictor.at("median") is predictor
    back = slow.at("median").predict(widths).latency_ms
    assert back == pytest.approx(predictor.predict(widths).latency_ms)


def test_widths_between_the_steps_have_their_own_interval(predictor: LatencyPredictor, wide_network: Network) -> None:
    steps = wide_network.options()
    on_grid = {group: widths[len(widths) // 2] for group, widths in steps.items()}
    group = next(iter(on_grid))
    usual, odd = predictor.predict(on_grid), predictor.predict(on_grid | {group: on_grid[group] + 1})
    assert usual.between == () and odd.between == (group,)
    assert "between this target's steps" in odd.notes[-1] and "between" not in " ".join(usual.notes)
    assert odd.interval_ms[1] / odd.latency_ms >= usual.interval_ms[1] / usual.latency_ms
    assert len(predictor.intervals.between) >= 1


def test_intervals_of_two_kinds() -> None:
    known = Intervals(np.linspace(-0.02, 0.02, 21), np.array([0.01, -0.08]))
    assert known.radius(1.0) == pytest.approx(0.02) and known.radius(1.0, between=True) == pytest.approx(0.08)
    assert Intervals(np.array([0.1]), np.array([0.01])).radius(1.0, between=True) == pytest.approx(0.1), "never less"


def test_a_few_small_networks_do_not_make_all_intervals_wide() -> None:
    """Forty networks over all sizes that err by one over the square root of theirs: nine in ten are covered at any
    size, and near the dense one the interval is as wide as there, not as that of the small ones."""
    rng = np.random.default_rng(11)
    shares = np.geomspace(0.1, 1.0, 40)
    errors = rng.normal(0, 0.01, 40) / np.sqrt(shares)
    known, plain = Intervals(errors / spread(shares), np.array([])), conformal_radius(np.abs(errors), 0.9)
    assert known.radius(0.9) < 0.6 * plain and known.radius(0.11) > 1.2 * plain
    fresh = rng.normal(0, 0.01, (1000, 40)) / np.sqrt(shares)
    covered = (np.abs(fresh) <= [known.radius(share) for share in shares]).mean(axis=0)
    assert 0.85 < covered.mean() < 0.95 and np.ptp(covered) < 0.06
    assert known.radius(0.01) == known.radius(0.1) and known.radius(3.0) == known.radius(1.0)


@settings(deadline=None)
@given(share=st.floats(0.05, 1.2), level=st.floats(0.5, 0.9))
def test_what_surely_is_within_a_budget_ends_at_it(predictor: LatencyPredictor, share: float, level: float) -> None:
    budget_ms = share * predictor.dense_ms
    within_ms = predictor.surely_within_ms(budget_ms, level)
    assert predictor.interval_ms(within_ms, level)[1] == pytest.approx(budget_ms, rel=1e-12)


@pytest.mark.parametrize(("count", "aside"), [(1, True), (7, True), (60, False)])
def test_networks_from_a_disturbed_machine_are_set_aside(
    tmp_path: Path, wide_table: Path, wide_network: Network, predictor: LatencyPredictor, count: int, aside: bool
) -> None:
    """A few whose blocks were all spoilt, a third too slow; where they are many, they are what there is."""
    path = tmp_path / "t.lut"
    path.write_bytes(wide_table.read_bytes())
    rng = random.Random(5)
    with Lut.open(path) as lut:
        run = lut.begin_run("profile", {})
        quiet_ms = lut.quiet_reference_ms or 0.0

        def spoilt(latency_ms: float) -> Measurement:
            return Measurement((Block(1.33 * latency_ms, quiet_ms, Conditions(spoilt=1)),) * 5, quiet_ms)

        for _ in range(count):
            widths = wide_network.require_widths(random_widths(wide_network, rng))
            layers = [(layer.name, layer.spec(widths), spoilt(ms)) for layer, ms in predictor.breakdown(widths)]
            key = NetworkKey(wide_network.signature, wide_network.name, widths)
            lut.add_network(run, key, spoilt(predictor.predict(widths).latency_ms), layers, role=Role.FIT)
        found = LatencyPredictor.fit(lut, wide_network)
    drawn = [wide_network.require_widths(random_widths(wide_network, rng)) for _ in range(20)]
    change = found.predict_many(drawn) / predictor.predict_many(drawn)
    notes = [note for note in found.predict({}).notes if "set aside" in note]
    if aside:
        assert change == pytest.approx(1.0)
        assert notes == [
            f"{count} network{'s' * (count > 1)} measured while the machine was disturbed "
            f"{'are' if count > 1 else 'is'} set aside"
        ]
    else:
        assert change.min() > 1.01 and np.median(change) > 1.15 and notes == []


def test_networks_of_one_process_are_predicted_in_five_parts(wide_table: Path) -> None:
    with Lut.open(wide_table, readonly=True) as lut:
        parts = folds(lut.networks())
    assert [len(part) for part in parts] == [12] * 5
    assert all(record.role is not Role.DENSE for part in parts for record in part)


def test_nothing_to_predict(predictor: LatencyPredictor) -> None:
    """A process that was ended early may have measured the dense network alone."""
    assert predictor.predict_many([]).shape == (0,)


def test_p90_of_a_table_without_single_runs(wide_table: Path, wide_network: Network) -> None:
    with Lut.open(wide_table, readonly=True) as lut:
        predictor = LatencyPredictor.fit(lut, wide_network)
    predictor.tail = None
    with pytest.raises(InvalidTable, match="widthwise profile"):
        predictor.at("p90")


def test_extrapolation_is_named(predictor: LatencyPredictor) -> None:
    assert predictor.predict({}).extrapolated == ()
    outside = predictor.predict({"conv5": 1}).extrapolated
    assert "conv5" in outside and "fc" in outside and "conv1" not in outside


def test_unstable_measurements_reach_the_prediction(
    tmp_path: Path, wide: nn.Module, wide_network: Network, wide_example: torch.Tensor, predictor: LatencyPredictor
) -> None:
    runtime = FakeRuntime(Target.parse("fake:cpu"), World(noise=0.6, burst_rate=0.3))
    with open_table(tmp_path / "noisy.lut", runtime) as lut:
        Profiler(wide, wide_network, (wide_example,), runtime=runtime, lut=lut).run(time_s=5, networks=8)
        noisy = LatencyPredictor.fit(lut, wide_network).predict({})
    assert any("is unstable: profile longer" in note for note in noisy.notes)
    assert any("measured networks; 9 are needed" in note for note in noisy.notes)
    (note,) = predictor.predict({}).notes
    assert note.startswith("all networks were measured in 1 process, so the interval leaves out what differs")


def test_impossible_widths_are_refused(predictor: LatencyPredictor) -> None:
    with pytest.raises(InvalidModel, match="no prunable group 'x'"):
        predictor.predict({"x": 3})


def test_a_table_without_the_layers_names_the_command(wide_lut: Lut) -> None:
    other = Network.trace(nn.Conv2d(3, 7, 5), torch.zeros(1, 3, 9, 9), name="file.py:other")
    with pytest.raises(MissingLayers, match=r"widthwise profile file.py:other --input 1,3,9,9 --target fake:cpu --lut"):
        LatencyPredictor.fit(wide_lut, other)


@given(st.floats(0.5, 2.0), st.floats(0.1, 5.0) | st.floats(-2.0, -0.1), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_an_affine_correction_is_recovered(scale: float, offset_ms: float, seed: int) -> None:
    sums = np.random.default_rng(seed).uniform(5, 50, size=40)
    (found,) = choose_correction(sums, scale * sums + offset_ms).lines
    assert found.scale == pytest.approx(scale, rel=1e-6)
    assert found.offset_ms == pytest.approx(offset_ms, rel=1e-4)


@given(st.floats(0.8, 1.2), st.floats(1.1, 1.3), st.floats(14.0, 18.0), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_a_bend_is_recovered(scale: float, steeper: float, bend_ms: float, seed: int) -> None:
    sums = np.linspace(7.0, 50.0, 60)
    truth = Correction((Line(scale), Line(scale * steeper, scale * bend_ms * (1 - steeper))))
    noise = np.exp(np.random.default_rng(seed).normal(0, 1e-3, size=60))
    found = choose_correction(sums, truth(sums) * noise)
    assert np.abs(found(sums) / truth(sums) - 1).mean() < 0.01
    assert len(found.lines) == 2 or np.abs(truth(sums) / sums / scale - 1).max() < 0.1


@given(
    st.lists(st.tuples(st.floats(0.5, 2.0), st.floats(-3.0, 3.0)), min_size=1, max_size=3),
    st.floats(0.1, 50.0),
    st.floats(-5.0, 50.0),
)
def test_one_line_says_what_is_within_a_budget(
    lines: list[tuple[float, float]], sum_ms: float, budget_ms: float
) -> None:
    correction = Correction(tuple(Line(*line) for line in lines))
    exact = float(correction(np.array(sum_ms)))
    if abs(exact - budget_ms) > 1e-9:
        assert (exact <= budget_ms) == (correction.at(budget_ms)(np.array(sum_ms)) <= budget_ms)


def test_what_needs_no_bend_and_no_offset_gets_little_of_either() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        sums = rng.uniform(5, 50, size=40)
        found = choose_correction(sums, 1.03 * sums * np.exp(rng.normal(0, 0.01, 40)))
        assert np.abs(found(sums) / sums / 1.03 - 1).mean() < 0.007, "less than noise"


def test_a_line_takes_ten_networks() -> None:
    sums = np.linspace(5.0, 50.0, 10)
    (few,), (enough,) = (choose_correction(s, 1.1 * s - 1.0).lines for s in (sums[1:], sums))
    assert few.offset_ms == 0.0
    assert enough == Line(pytest.approx(1.1), pytest.approx(-1.0))


def test_a_few_networks_that_are_far_off_do_not_move_a_correction() -> None:
    """Four small ones of 32 were measured in a loud minute."""
    rng = np.random.default_rng(2)
    sums = np.geomspace(1.0, 10.0, 32)
    measured = (1.05 * sums - 0.2) * np.exp(rng.normal(0, 0.005, 32))
    measured[[1, 4, 6, 9]] *= 1.15
    found = choose_correction(sums, measured)
    assert np.abs(found(sums) / (1.05 * sums - 0.2) - 1).max() < 0.015


@given(st.floats(0.8, 1.25), st.floats(1.0, 100.0))
def test_the_dense_latency_lies_where_it_is_certain(ratio: float, predicted_ms: float) -> None:
    scatter = np.array([-2.0, 1.0, 0.0, -1.0, 2.0])
    calm, wild = (weighed(predicted_ms * ratio * np.exp(sd * scatter), predicted_ms) for sd in (1e-4, 0.1))
    assert calm == pytest.approx(predicted_ms * ratio, rel=1e-2)
    assert abs(np.log(wild / predicted_ms)) <= 0.1 * abs(np.log(ratio)) + 1e-9
    assert weighed(np.zeros(0), predicted_ms) == predicted_ms


def test_two_networks_are_enough_for_a_scale() -> None:
    (found,) = choose_correction(np.array([10.0, 20.0]), np.array([11.0, 22.0])).lines
    assert found == Line(pytest.approx(1.1))


@pytest.mark.parametrize(("n", "expected"), [(9, 9), (19, 18), (99, 90), (3, 3)])
def test_the_conformal_rank(n: int, expected: int) -> None:
    assert conformal_radius(np.arange(1.0, n + 1), 0.9) == expected


def test_the_conformal_guarantee() -> None:
    """Coverage over many draws of calibration sets is at least 90 %."""
    rng = np.random.default_rng(0)
    covered = [abs(rng.normal()) <= conformal_radius(np.abs(rng.normal(size=15)), 0.9) for _ in range(4000)]
    assert 0.89 <= np.mean(covered) <= 0.96


def test_the_fake_world_is_a_staircase(wide_network: Network) -> None:
    conv = next(layer for layer in wide_network.layers if layer.path == "conv5")
    at = [staircase_ms(conv.spec(wide_network.dense | {"conv5": width})) for width in (57, 60, 64, 65)]
    assert at[0] == at[1] == at[2] < at[3]
