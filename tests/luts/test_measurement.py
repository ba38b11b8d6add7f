from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from widthwise.luts import Block, Conditions, InvalidSpec, Measurement, Status, summarise

positive = st.floats(1e-6, 1e6)
measurements = st.builds(
    Measurement, st.lists(st.builds(Block, positive, positive), min_size=1, max_size=9).map(tuple), positive
)


def of(*latencies: float, quiet: float = 1.0) -> Measurement:
    return Measurement(tuple(Block(ms, 1.0) for ms in latencies), quiet)


def test_the_latency_is_the_median_ratio_on_the_quiet_scale() -> None:
    m = Measurement((Block(6.0, 2.0), Block(10.0, 2.0), Block(14.0, 2.0)), quiet_reference_ms=3.0)
    assert m.latency_ms == 15.0
    assert m.raw_ms == 10.0
    assert m.ratios.tolist() == [3.0, 5.0, 7.0]


def test_a_slow_spell_cancels_out() -> None:
    quiet = of(5.0, 5.0, 5.0, quiet=2.0)
    disturbed = Measurement(tuple(Block(5.0 * k, 1.0 * k) for k in (2.0, 4.0, 8.0)), 2.0)
    assert disturbed.latency_ms == quiet.latency_ms == 10.0
    assert disturbed.status is Status.STABLE


def test_few_blocks_give_their_range_and_are_unstable() -> None:
    m = of(2.0, 3.0, quiet=5.0)
    assert m.interval_ms == (10.0, 15.0)
    assert m.latency_ms == 12.5
    assert m.half_width == 0.2
    assert m.status is Status.UNSTABLE
    assert of(7.0).interval_ms == (7.0, 7.0)


def test_equal_blocks_have_no_doubt() -> None:
    m = of(7.0, 7.0, 7.0)
    assert m.interval_ms == (7.0, 7.0)
    assert m.status is Status.STABLE


def test_scattered_blocks_are_unstable() -> None:
    assert of(1.0, 2.0, 3.0, 5.0, 7.0).status is Status.UNSTABLE


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    samples = [of(*(10 + rng.normal(size=21))) for _ in range(400)]
    inside = [s.low_ms <= 10 <= s.high_ms for s in summarise(samples)]
    assert 0.88 < np.mean(inside) < 0.99


@given(st.lists(measurements, max_size=6))
def test_together_and_one_by_one_agree_to_the_bit(batch: list[Measurement]) -> None:
    for m, s in zip(batch, summarise(batch), strict=True):
        assert (s.latency_ms, s.low_ms, s.high_ms, s.blocks) == (m.latency_ms, *m.interval_ms, len(m.blocks))
        assert s.status is m.status


@given(measurements, st.randoms())
def test_the_order_of_blocks_does_not_matter(m: Measurement, random: object) -> None:
    blocks = list(m.blocks)
    random.shuffle(blocks)  # type: ignore[attr-defined]
    assert summarise([Measurement(tuple(blocks), m.quiet_reference_ms)]) == summarise([m])


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_no_time_is_not_a_time(value: float) -> None:
    with pytest.raises(InvalidSpec, match="latency_ms must be a positive number"):
        Block(value, 1.0)
    with pytest.raises(InvalidSpec, match="reference_ms must be a positive number"):
        Block(1.0, value)
    with pytest.raises(InvalidSpec, match="quiet_reference_ms must be positive"):
        Measurement((Block(1.0, 1.0),), value)


def test_no_blocks_are_no_measurement() -> None:
    with pytest.raises(InvalidSpec, match="at least one block"):
        Measurement((), 1.0)


def test_half_of_the_blocks_spoilt_is_unstable_however_well_they_agree() -> None:
    spoilt = Block(2.0, 1.0, Conditions(spoilt=1))
    settled = Measurement((Block(2.0, 1.0),) * 3 + (spoilt,) * 2, 1.0)
    assert settled.status is Status.STABLE and settled.spoilt == 2
    doubtful = Measurement((Block(2.0, 1.0),) * 2 + (spoilt,) * 2, 1.0)
    assert doubtful.half_width == 0 and doubtful.status is Status.UNSTABLE
    assert [summary.status for summary in summarise([settled, doubtful])] == [settled.status, doubtful.status]
