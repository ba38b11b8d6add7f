from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from widthwise.luts.spec import Geometry
from widthwise.luts.table import Surface
from widthwise.planner.regressors import SurfaceRegressor
from widthwise.planner.stack import Stack

NORM = Geometry("batch_norm", ((1, 0, 14, 14),), ((1, 0, 14, 14),))


def fitted(rng: np.random.Generator, axes: int, count: int) -> SurfaceRegressor:
    """Rough enough that processes have something to say."""
    channels = rng.integers(1, 300, size=(count, axes))
    latency_ms = (0.01 + 1e-4 * channels.prod(axis=1)) * np.exp(rng.normal(0, 0.2, count))
    nothing = np.zeros(count, bool)
    return SurfaceRegressor(Surface(NORM, channels, latency_ms, np.ones(count, int), ~nothing, nothing))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 23)), min_size=1, max_size=7),
    st.integers(0, 2**32 - 1),
)
def test_a_stack_is_its_surfaces(layers: list[tuple[int, int]], seed: int) -> None:
    """Layers with few points have no process, those without channels nothing but a mean."""
    rng = np.random.default_rng(seed)
    surfaces = [fitted(rng, axes, count) for axes, count in layers]
    stack = Stack(surfaces, [axes for axes, _ in layers])
    each = [rng.integers(1, 400, size=(1, axes)) for axes, _ in layers]
    alone = [float(surface.predict(channels)[0]) for surface, channels in zip(surfaces, each, strict=True)]
    assert stack.latencies_ms(np.concatenate(each, axis=1)[0]) == pytest.approx(alone, rel=1e-12)


def test_points_outside_what_was_measured() -> None:
    rng = np.random.default_rng(0)
    surfaces = [fitted(rng, axes, 11) for axes in (2, 0, 1, 2)]
    low, high = surfaces[0].low, surfaces[0].high
    inside, beyond, between = [*low], int(surfaces[2].high[0]) + 1, [*surfaces[3].high]
    stack = Stack(surfaces, [2, 0, 1, 2])
    assert stack.extrapolates(np.array([*inside, beyond, *between])).tolist() == [False, False, True, False]
    below = np.array([low[0], low[1] - 1, surfaces[2].low[0], high[0], surfaces[3].high[1] + 1])
    assert stack.extrapolates(below).tolist() == [True, False, False, True]
