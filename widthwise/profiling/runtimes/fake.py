"""A runtime whose truth is known: staircase costs, drift, noise and bursts, all seeded.

Nothing is executed and no real time passes: a session advances a virtual clock by its true latency, slowed
by the drift of the moment, and reports that with noise. Profiling, prediction and planning are tested
against :meth:`FakeRuntime.true_ms`; the command line takes it as ``--target fake:cpu``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from widthwise.luts.spec import Geometry, LayerSpec
from widthwise.network.layers import macs
from widthwise.network.network import Network
from widthwise.network.widths import Widths
from widthwise.profiling.runtimes.base import Candidate, NetworkSession, Runtime, Session
from widthwise.profiling.target import Target

__all__ = ["FakeRuntime", "World", "staircase_ms"]

_TILE = 8
_REFERENCE = LayerSpec(
    Geometry(
        "conv2d",
        ((1, 0, 28, 28),),
        ((1, 0, 28, 28),),
        (("groups", 1), ("kernel", (3, 3)), ("padding", (1, 1)), ("stride", (1, 1))),
    ),
    (32, 32),
)


@dataclass(frozen=True)
class World:
    """What disturbs the fake measurements.

    Args:
        drift: amplitude of the slow, common slowdown (0.1 = up to 10 %).
        drift_period_s: its period in virtual seconds.
        noise: standard deviation of the log of every single run.
        burst_rate: share of runs that are hit by a neighbour.
        burst: slowdown of such a run.
        single_factor: a layer timed alone over the same layer in place (caches are warmer alone).
        overhead_ms: what a network takes beyond its layers.
        seed: of everything random.
    """

    drift: float = 0.1
    drift_period_s: float = 7.0
    noise: float = 0.01
    burst_rate: float = 0.02
    burst: float = 1.5
    single_factor: float = 0.85
    overhead_ms: float = 0.02
    seed: int = 0


def staircase_ms(spec: LayerSpec) -> float:
    """True latency of a layer in place: padded work at 10 GMAC/s, plus 8 GB/s of traffic, plus a launch."""
    padded = tuple(-(-channels // _TILE) * _TILE for channels in spec.channels)
    work = macs(LayerSpec(spec.geometry, padded)) if padded else 0
    traffic = sum(
        4 * math.prod(size or (padded[-1] if padded else 1) for size in shape)
        for shape in (*spec.geometry.inputs, *spec.geometry.outputs)
    )
    return work / 10e6 + traffic / 8e6 + 0.002


class FakeRuntime(Runtime):
    """Deterministic for a :class:`World`; sessions share one virtual clock."""

    def __init__(self, target: Target, world: World | None = None) -> None:
        super().__init__(target)
        self.world = world or World()
        self.now_s = 0.0
        self._rng = np.random.default_rng(self.world.seed)

    def pause(self, seconds: float) -> None:
        self.now_s += seconds

    def versions(self) -> dict[str, str]:
        return {"fake": "1"}

    def reference(self) -> Session:
        return _FakeLayer(self, staircase_ms(_REFERENCE))

    def network(self, candidate: Candidate) -> NetworkSession:
        return _FakeNetwork(self, candidate.network, candidate.widths)

    def layer(self, spec: LayerSpec) -> Session:
        return _FakeLayer(self, staircase_ms(spec) * self.world.single_factor)

    def true_ms(self, network: Network, widths: Widths) -> float:
        """The undisturbed latency of a whole network."""
        return sum(staircase_ms(spec) for spec in network.specs(widths)) + self.world.overhead_ms

    def elapse(self, latency_ms: float) -> float:
        """Lets virtual time pass for a run of this true latency; the disturbed seconds it took."""
        world = self.world
        phase = 2 * math.pi * self.now_s / world.drift_period_s
        slowdown = 1 + world.drift * (0.5 - 0.5 * math.cos(phase))
        if self._rng.random() < world.burst_rate:
            slowdown *= world.burst
        seconds = latency_ms * 1e-3 * slowdown * math.exp(world.noise * self._rng.standard_normal())
        self.now_s += seconds
        return seconds


class _FakeLayer(Session):
    def __init__(self, runtime: FakeRuntime, latency_ms: float) -> None:
        self._runtime = runtime
        self._latency_ms = latency_ms

    def run(self) -> float:
        return self._runtime.elapse(self._latency_ms)


class _FakeNetwork(NetworkSession):
    def __init__(self, runtime: FakeRuntime, network: Network, widths: Widths) -> None:
        self._runtime = runtime
        self._layers_ms = [staircase_ms(spec) for spec in network.specs(widths)]
        self._whole_ms = runtime.true_ms(network, widths)

    def run(self) -> float:
        return self._runtime.elapse(self._whole_ms)

    def run_layers(self) -> Sequence[float]:
        return [self._runtime.elapse(latency_ms) for latency_ms in self._layers_ms]
