from __future__ import annotations

import numpy as np
import pytest

from widthwise.planner.batches import SharedErrors

BATCHES = {10 * dense + place: 10 * dense for dense in range(40) for place in range(5)}
NETWORKS = [network for network in BATCHES if network % 10]


def errors(shared: float, own: float, seed: int = 3) -> dict[int, float]:
    """Of four networks in each batch, with parts of these standard deviations."""
    rng = np.random.default_rng(seed)
    batch = rng.normal(0.0, shared, 40)
    return {network: batch[network // 10] + rng.normal(0.0, own) for network in NETWORKS}


def left(found: dict[int, float], doubt: float) -> float:
    """Standard deviation of what remains of the errors."""
    told = SharedErrors(found, BATCHES, dict.fromkeys(set(BATCHES.values()), doubt))
    return float(np.std([error - told.without(network) for network, error in found.items()]))


def test_what_the_dense_network_explains_is_taken_off() -> None:
    """Four fifths of the variance is shared; the three others tell it to own²/3, so own²·(1 + about 1/3) is left."""
    found = errors(shared=0.04, own=0.02)
    assert np.std(list(found.values())) == pytest.approx(np.hypot(0.04, 0.02), rel=0.15)
    assert left(found, 0.04) == pytest.approx(0.02 * np.sqrt(1 + 1 / 3), rel=0.1)


def test_what_it_does_not_explain_stays() -> None:
    found = errors(shared=0.04, own=0.02)
    assert left(found, 0.004) > 0.88 * np.std(list(found.values()))


def test_errors_of_their_own_stay() -> None:
    found = errors(shared=0.0, own=0.02)
    assert left(found, 0.01) == pytest.approx(0.02, rel=0.1)


def test_it_is_told_by_others() -> None:
    """Two agree that their batch is off; the third has what they say taken off, not what it says itself."""
    found = {1: 0.05, 2: 0.05, 3: 0.0, 11: -0.05, 12: -0.05, 13: -0.05}
    batches = {network: network // 10 for network in found}
    told = SharedErrors(found, batches, {0: 0.05, 1: 0.05})
    assert told.without(3) > 1.5 * told.without(1) > 0


@pytest.mark.parametrize("network", [7, 11, 21])
def test_nothing_is_taken_off_where_nothing_is_told(network: int) -> None:
    """Of a network in no batch, one alone in its batch, and one whose dense network is beyond doubt."""
    found = {7: 0.1, 11: 0.2, 21: -0.1, 22: -0.2, 31: 0.0, 32: 0.1}
    told = SharedErrors(found, {11: 10, 21: 20, 22: 20, 31: 30, 32: 30}, {10: 0.1, 20: 0.0, 30: 0.1})
    assert told.without(network) == 0.0


def test_of_nothing() -> None:
    assert SharedErrors({}, {}, {}).without(1) == 0.0
