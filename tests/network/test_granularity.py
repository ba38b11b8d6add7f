"""Steps of latency staircases, found by bisection."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from widthwise.luts.spec import Geometry
from widthwise.luts.store import Lut
from widthwise.network.granularity import Line, Point, group_steps, lines_of, next_widths, step_of, units_from
from widthwise.network.network import Network

CONV = Geometry("conv2d", ((1, 0, 7, 7),), ((1, 0, 7, 7),), (("groups", 1), ("kernel", (3, 3))))


def searched(latency_ms: Callable[[int], float], *, dense: int = 128, noise: float = 0.0) -> dict[int, Point]:
    """All that bisection times."""
    rng, line, points = random.Random(0), Line(CONV, 1, 64, dense), dict[int, Point]()
    while widths := next_widths(line, points):
        assert not set(widths) & set(points)
        points |= {width: Point(latency_ms(width) * (1 + rng.uniform(-noise, noise)), noise) for width in widths}
    return points


def staircase(step: int) -> Callable[[int], float]:
    return lambda width: 0.1 + -(-width // step) * step


@pytest.mark.parametrize("step", [4, 8, 16, 32])
@pytest.mark.parametrize("noise", [0.0, 0.005])
def test_stairs_are_found(step: int, noise: float) -> None:
    points = searched(staircase(step), noise=noise)
    assert step_of(points) == step
    assert len(points) <= 13, "every eighth width, and a bisection of the last eight"


def test_a_slope_has_no_steps() -> None:
    assert step_of(searched(lambda width: width**2)) == 1
    assert step_of(searched(float)) == 2, "63 and 64 channels differ by less than a fiftieth"


def test_a_latency_that_does_not_depend_on_the_width_tells_nothing() -> None:
    assert step_of(searched(lambda width: 3.0)) is None
    assert step_of({}) is None
    assert step_of({width: Point(float(width)) for width in (32, 40, 48, 56, 64)}) is None, "nothing finer was timed"


def test_off_the_fast_path_fewer_channels_take_longer() -> None:
    """Four times slower unless the width is a multiple of four, as in runtimes with a blocked layout."""
    assert step_of(searched(lambda width: width * (1.0 if width % 4 == 0 else 4.0))) == 4


@given(st.integers(16, 300), st.integers(0, 3))
def test_bisection_ends(dense: int, which: int) -> None:
    functions: list[Callable[[int], float]] = [staircase(8), float, lambda width: 3.0, lambda width: 1.0 + width % 3]
    points = searched(functions[which], dense=dense)
    assert all(0 < width <= min(dense, 64) for width in points)


def test_groups_take_the_largest_step_of_the_layers_they_widen(wide_network: Network) -> None:
    lines = lines_of(wide_network, lambda geometry: 1.0)
    known = {
        line.spec(width): point for line in lines for width, point in searched(staircase(8), dense=line.dense).items()
    }
    steps = group_steps(wide_network, known)
    assert steps and set(steps.values()) == {8}
    assert group_steps(wide_network, {}) == {}
    options = wide_network.options(dict.fromkeys(steps, 4))
    assert all(width % 4 == 0 for group in steps for width in options[group])


def test_steps_are_finer_than_eight_only_where_all_layers_tell(wide_network: Network) -> None:
    lines = lines_of(wide_network, lambda geometry: 1.0)

    def told(of: list[Line]) -> dict[str, int]:
        specs = {line.spec(width) for line in of for width in searched(staircase(4), dense=line.dense)}
        return group_steps(wide_network, {spec: Point(math.prod(map(staircase(4), spec.channels))) for spec in specs})

    assert set(told(lines).values()) == {4}
    readers = [line for line in lines if line.axis == 0]
    assert readers and set(told(readers).values()) == {8}, "what writes the channels may have larger steps"


def test_points_in_doubt_tell_nothing() -> None:
    """A staircase of 16 on a machine so noisy that neighbours differ by a third: no step of 1."""
    rng = random.Random(1)
    noisy = {width: Point((16 + width // 17) * rng.uniform(0.7, 1.4), 0.3) for width in range(8, 65)}
    assert step_of(noisy) is None
    quiet = {width: Point(float(-(-width // 16)), 0.01) for width in (32, 40, 48, 56, 60, 62, 63, 64)}
    assert step_of(quiet) == 16
    assert step_of(quiet | {57: Point(7.0, 0.3), 58: Point(2.0, 0.4)}) == 16


@pytest.mark.parametrize("step", [1, 2, 4, 16, 32])
def test_networks_timed_before_steps_were_known_are_usual_ones(
    step: int, wide_network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = dict.fromkeys(wide_network.dense, step)
    monkeypatch.setattr("widthwise.network.granularity.group_steps", lambda network, points: known)
    with Lut.create(tmp_path / "t.lut", target={}, fingerprint={}) as lut:
        units = units_from(lut, wide_network)
    for options in (wide_network.options(), wide_network.options(known)):
        for group, widths in options.items():
            assert all(width % units[group] == 0 for width in widths[:-1]), (group, widths)
    finest = {group: min(step, 8, size // 4) for group, size in wide_network.dense.items()}
    assert all(1 <= units[group] <= finest[group] for group in units)
    assert units["conv1"] == finest["conv1"], "no finer than needed"
