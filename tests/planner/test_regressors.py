from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from widthwise.luts.spec import Geometry
from widthwise.luts.table import Surface
from widthwise.planner.regressors import SurfaceRegressor

CONV = Geometry("conv2d", ((1, 0, 14, 14),), ((1, 0, 14, 14),), (("groups", 1), ("kernel", (3, 3))))


def surface(
    channels: NDArray[np.int64], latency_ms: NDArray[np.float64], in_place: bool | NDArray[np.bool_] = True
) -> Surface:
    n = len(latency_ms)
    flags = np.full(n, in_place) if isinstance(in_place, bool) else in_place
    return Surface(CONV, channels, latency_ms, np.where(flags, 1, -1), flags, np.zeros(n, bool))


def drawn(n: int, seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(1, 33, size=(n, 2)) * 8


def roofline(channels: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray(0.05 + 1e-3 * channels.sum(1) + 4e-5 * channels.prod(1))


def test_a_roofline_is_recovered_from_few_points() -> None:
    fit = SurfaceRegressor(surface(drawn(12), roofline(drawn(12))))
    new = drawn(50, seed=1)
    assert np.abs(fit.predict(new) / roofline(new) - 1).max() < 0.01


def test_a_bump_is_learnt_from_the_residual() -> None:
    """A kernel switch: 15 % slower above 128 input channels, which no roofline has."""

    def truth(channels: NDArray[np.int64]) -> NDArray[np.float64]:
        return roofline(channels) * np.where(channels[:, 0] > 128, 1.15, 1.0)

    fit = SurfaceRegressor(surface(drawn(120), truth(drawn(120))))
    new = drawn(100, seed=1)
    assert np.abs(fit.predict(new) / truth(new) - 1).mean() < 0.02


def test_repeated_points_average_their_noise() -> None:
    rng = np.random.default_rng(0)
    channels = np.repeat(drawn(15), 12, axis=0)
    noisy = roofline(channels) * np.exp(rng.normal(0, 0.05, len(channels)))
    fit = SurfaceRegressor(surface(channels, noisy))
    assert np.abs(fit.predict(drawn(15)) / roofline(drawn(15)) - 1).mean() < 0.02


def test_singles_are_scaled_to_in_place() -> None:
    placed, alone = drawn(20), drawn(20, seed=3)
    latency = np.concatenate([roofline(placed), 0.8 * roofline(alone)])
    flags = np.arange(40) < 20
    fit = SurfaceRegressor(surface(np.concatenate([placed, alone]), latency, flags))
    assert fit.single_ratio == pytest.approx(0.8, abs=0.02)
    assert np.abs(fit.predict(alone) / roofline(alone) - 1).max() < 0.03


def test_few_singles_beside_a_surface_in_doubt_are_scaled_as_usual() -> None:
    """The first convolution of VGG-16, from 3 channels, and its second are one geometry with two kernels: no roofline
    fits both, so what it says of unseen widths is no measure for single timings there."""

    def known_ms(channels: NDArray[np.int64]) -> NDArray[np.float64]:
        padded = -(-channels // 16) * 16
        first = 0.03 * padded[:, 1] + np.where(channels[:, 1] % 16, 0.4, 0)
        return np.asarray(np.where(channels[:, 0] == 3, first, 0.0075 * padded.prod(axis=1)))

    placed = np.array([(3, 64), (64, 64), (3, 16), (16, 40), (16, 16), (64, 8), (3, 48), (48, 48), (3, 18), (18, 15)])
    alone = np.array([(64, 56), (40, 56)])
    latency = np.concatenate([known_ms(placed), 0.86 * known_ms(alone)])
    fit = SurfaceRegressor(surface(np.concatenate([placed, alone]), latency, np.arange(12) < 10))
    assert fit.single_ratio == pytest.approx(0.86, abs=0.08)
    assert fit.predict(alone) == pytest.approx(known_ms(alone), rel=0.12)


def test_the_measured_range_is_that_of_all_points() -> None:
    """Also where there are more than a fit takes."""
    channels = np.array([(a, b) for a in range(8, 248, 8) for b in range(8, 168, 8)])
    fit = SurfaceRegressor(surface(channels, roofline(channels)))
    assert len(fit.places) < len(channels)
    assert (fit.low.tolist(), fit.high.tolist()) == ([8, 8], [240, 160])
    for width in (8, 16, 24, 32):  # a fit leaves out one point in three
        more = np.concatenate([channels, [(width, 999)]])
        assert SurfaceRegressor(surface(more, roofline(more))).high.tolist() == [240, 999]


def test_doubt_grows_away_from_the_points() -> None:
    near = np.array([[64, 64], [72, 64], [64, 72], [80, 80]])
    rng = np.random.default_rng(0)
    fit = SurfaceRegressor(surface(near, roofline(near) * np.exp(rng.normal(0, 0.05, 4))))
    assert fit.deviation(np.array([[8, 256]]))[0] > fit.deviation(np.array([[64, 64]]))[0]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_very_few_points_still_give_positive_latencies(n: int) -> None:
    fit = SurfaceRegressor(surface(drawn(n), roofline(drawn(n))))
    assert (fit.predict(drawn(20, seed=5)) > 0).all()
    assert fit.predict(drawn(n)) == pytest.approx(roofline(drawn(n)), rel=0.05)


def test_layers_without_channels_have_one_latency() -> None:
    fit = SurfaceRegressor(surface(np.zeros((5, 0), dtype=np.int64), np.array([1.0, 1.1, 0.9, 1.0, 1.0])))
    assert fit.predict(np.zeros((2, 0), dtype=np.int64)) == pytest.approx([1.0, 1.0], rel=0.05)


def test_leaving_the_fast_path_is_learnt_and_told_apart() -> None:
    """Channels that aren't a multiple of four cost 1.4 times as much: aligned points stay what they are."""
    rng = np.random.default_rng(0)
    aligned = np.array([(a, b) for a in range(16, 129, 16) for b in range(16, 129, 16)])
    odd = rng.integers(16, 129, (12, 2))

    def known_ms(channels: np.ndarray) -> np.ndarray:
        work = channels[:, 0] * (-(-channels[:, 1] // 16) * 16)
        return np.asarray(0.01 + 1e-5 * work * np.where((channels % 4 != 0)[:, 0], 1.4, 1.0))

    channels = np.concatenate([aligned, odd])
    fit = SurfaceRegressor(surface(channels, known_ms(channels)))
    fresh = rng.integers(16, 129, (60, 2))
    assert np.abs(fit.predict(aligned) / known_ms(aligned) - 1).max() < 0.02
    assert np.abs(fit.predict(fresh) / known_ms(fresh) - 1).mean() < 0.06
    without = SurfaceRegressor(surface(aligned, known_ms(aligned)))
    assert np.abs(without.predict(fresh) / known_ms(fresh) - 1).mean() > 0.12
    unseen = without.deviation(fresh[fresh[:, 0] % 4 != 0])
    assert np.median(unseen) > 1.2 * np.median(without.deviation(aligned))
