"""Regressors for what a table never saw."""

from __future__ import annotations

import math

import numpy as np
import pytest

from widthwise.luts.errors import MissingLayers
from widthwise.luts.spec import Geometry, LayerSpec
from widthwise.planner.transfer import CompositionRegressor, ShapeRegressor, shape_features


def convolution(batch: int, inputs: int, outputs: int, size: int) -> LayerSpec:
    options = (("dilation", (1, 1)), ("groups", 1), ("kernel", (3, 3)), ("padding", (1, 1)), ("stride", (1, 1)))
    geometry = Geometry("conv2d", ((batch, 0, size, size),), ((batch, 0, size, size),), options)
    return LayerSpec(geometry, (inputs, outputs))


def drawn(count: int, seed: int) -> list[LayerSpec]:
    rng = np.random.default_rng(seed)
    return [
        convolution(*(int(math.exp(rng.uniform(math.log(low), math.log(high)))) for low, high in ranges))
        for _ in range(count)
        for ranges in [((1, 16), (3, 500), (3, 500), (5, 60))]
    ]


def known_ms(specs: list[LayerSpec]) -> np.ndarray:
    """A device that computes in tiles of 16 channels."""
    work = [
        spec.geometry.outputs[0][0]
        * spec.geometry.outputs[0][2] ** 2
        * 9
        * spec.channels[0]
        * (-(-spec.channels[1] // 16) * 16)
        for spec in specs
    ]
    return np.array([0.02 + 1e-7 * units for units in work])


def test_shapes_it_never_saw() -> None:
    seen, unseen = drawn(150, 1), drawn(80, 2)
    fit = ShapeRegressor(seen, known_ms(seen))
    errors = np.abs(fit.predict(unseen) / known_ms(unseen) - 1)
    by_work = np.array([math.prod(spec.channels) * spec.geometry.outputs[0][2] ** 2 for spec in unseen], dtype=float)
    naive = known_ms(unseen) / by_work
    assert errors.mean() < 0.08
    assert errors.mean() < 0.2 * np.abs(np.median(naive) / naive - 1).mean()


def test_more_rows_are_better() -> None:
    unseen = drawn(80, 2)
    few, many = (ShapeRegressor(drawn(n, 3), known_ms(drawn(n, 3))) for n in (20, 200))
    error = [np.abs(fit.predict(unseen) / known_ms(unseen) - 1).mean() for fit in (few, many)]
    assert error[1] < 0.6 * error[0]


def test_features_know_tiles_and_alignment() -> None:
    aligned, beyond = shape_features([convolution(1, 16, 32, 7), convolution(1, 16, 33, 7)])
    assert (aligned != beyond).sum() > 5
    relu = Geometry("relu", ((1, 0, 7, 5),), ((1, 0, 7, 5),))
    assert np.isfinite(
        shape_features([LayerSpec(relu, (13,)), LayerSpec(Geometry("mean", ((1, 5),), ((1,),)), ())])
    ).all()


@pytest.mark.parametrize(
    "specs", [[], drawn(7, 0), [*drawn(9, 0), LayerSpec(Geometry("relu", ((1, 0),), ((1, 0),)), (3,))]]
)
def test_too_little_to_learn_from(specs: list[LayerSpec]) -> None:
    with pytest.raises(MissingLayers, match="widthwise profile"):
        ShapeRegressor(specs, np.ones(len(specs)))


def test_a_line_is_found_exactly() -> None:
    rng = np.random.default_rng(0)
    sums, layers = rng.uniform(5, 80, 30), rng.integers(10, 120, 30).astype(float)
    measured = 1.07 * sums + 0.031 * layers + 0.7
    fit = CompositionRegressor(sums[:20], layers[:20], measured[:20])
    assert np.abs(fit.predict(sums[20:], layers[20:]) / measured[20:] - 1).max() < 0.005


def test_an_outlier_does_not_decide() -> None:
    rng = np.random.default_rng(1)
    sums, layers = rng.uniform(5, 80, 40), np.full(40, 50.0)
    measured = 1.2 * sums + 0.5
    measured[3] *= 4
    fit = CompositionRegressor(sums, layers, measured)
    left = np.delete(np.arange(40), 3)
    assert np.median(np.abs(fit.predict(sums, layers)[left] / measured[left] - 1)) < 0.02


def test_too_few_networks() -> None:
    with pytest.raises(MissingLayers, match="at least 10"):
        CompositionRegressor(np.ones(9), np.ones(9), np.ones(9))
