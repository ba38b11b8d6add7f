"""By how much what is timed slows down with the references: closed forms, doubt, and what it is worth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from widthwise.luts.measurement import Block, Conditions
from widthwise.profiling.elasticity import counted, elasticity
from widthwise.profiling.runtimes.base import References, Session
from widthwise.profiling.schedule import Pace, Schedule

READINGS = (1.0, 1.03, 1.1, 1.21, 1.05)


def blocks(latency_ms: float, exponent: float, readings: tuple[float, ...] = READINGS) -> list[Block]:
    return [Block(latency_ms * reading**exponent, reading) for reading in readings]


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 1.3])
def test_an_exact_power_is_found_whatever_the_candidates_take(exponent: float) -> None:
    assert elasticity([blocks(7.0, exponent), blocks(0.31, exponent)]) == pytest.approx(exponent, abs=1e-9)


def test_blocks_that_tell_nothing_leave_the_ratio() -> None:
    assert elasticity([[Block(2.0, 1.0), Block(2.2, 1.0), Block(1.9, 1.0)]]) == 1.0
    assert elasticity([[Block(2.0, 1.0)], [Block(3.0, 1.4)], []]) == 1.0
    assert elasticity([]) == 1.0


def test_two_blocks_do_not_fit_themselves() -> None:
    assert elasticity([[Block(2.0, 1.0), Block(2.0, 1.2)]]) == 1.0


def test_doubt_draws_towards_the_ratio() -> None:
    rng = np.random.default_rng(3)

    def told(count: int) -> float:
        readings = np.exp(0.02 * rng.standard_normal(count))
        return elasticity([[Block(r**0.4 * math.exp(0.02 * rng.standard_normal()), r) for r in readings]])

    few, many = [told(6) for _ in range(60)], [told(600) for _ in range(20)]
    assert np.mean(many) == pytest.approx(0.4, abs=0.07)
    assert np.mean(few) > 0.65 and max(few) < 1.6 and np.std(few) < 0.3


def test_a_block_that_was_disturbed_does_not_decide() -> None:
    usual = [*blocks(3.0, 0.5), *blocks(3.0, 0.5)]
    assert elasticity([[*usual, Block(3.0 * 1.3, 1.15)]]) == pytest.approx(0.5, abs=0.15)


@given(
    exponent=st.floats(0, 2),
    scale=st.floats(1e-3, 1e3),
    unit=st.floats(1e-2, 1e2),
    noise=st.lists(st.floats(-0.05, 0.05), min_size=5, max_size=5),
)
def test_units_do_not_matter(exponent: float, scale: float, unit: float, noise: list[float]) -> None:
    taken = [
        Block(b.latency_ms * math.exp(e), b.reference_ms) for b, e in zip(blocks(1.0, exponent), noise, strict=True)
    ]
    other = [Block(b.latency_ms * scale, b.reference_ms * unit) for b in taken]
    assert elasticity([taken]) == pytest.approx(elasticity([other]), abs=1e-6)
    assert elasticity([taken]) >= 0


def test_the_reading_stays_on_record() -> None:
    conditions = Conditions(load=0.5, spoilt=1)
    [low, middle, high], nothing = counted([[Block(3.0, 1.0, conditions), Block(3.3, 1.21), Block(3.63, 1.4641)], []])
    assert [b.reference_ms for b in (low, middle, high)] == pytest.approx([1.1, 1.21, 1.331])
    assert low.conditions == Conditions(load=0.5, spoilt=1, read_ms=1.0) and nothing == []
    assert Conditions.from_dict(low.conditions.as_dict()) == low.conditions
    assert counted([[], []]) == [[], []]


class _Slowed(Session):
    """Work on a machine whose pace wanders by a quarter; slowed down by a power of it."""

    def __init__(self, clock: list[float], quiet_s: float, power: float) -> None:
        self._clock, self._quiet_s, self._power = clock, quiet_s, power

    def run(self) -> float:
        pace = 1.05 + 0.05 * math.sin(self._clock[0] / 0.37)
        spent_s = self._quiet_s * pace**self._power
        self._clock[0] += spent_s
        return spent_s


def test_what_slows_down_half_as_much_is_not_corrected_twice() -> None:
    clock = [0.0]
    reference = _Slowed(clock, 0.001, 1.0)
    schedule = Schedule(References(reference, reference), quiet_ms=1.0)
    sessions = [_Slowed(clock, quiet_s, 0.5) for quiet_s in (0.003, 0.0071)]
    pace = Pace(blocks=12, most_blocks=12, visit_s=0.0)
    timings = schedule.measure(sessions, pace)
    for timing in timings:
        found = timing.measurement(1.0)
        plain = [b.latency_ms / b.conditions.read_ms for b in timing.blocks if b.conditions and b.conditions.read_ms]
        assert np.ptp(found.ratios) / np.median(found.ratios) < 0.2 * np.ptp(plain) / np.median(plain)
    first_ms, second_ms = (timing.measurement(1.0).latency_ms for timing in timings)
    assert first_ms / second_ms == pytest.approx(3.0 / 7.1, rel=0.002)
