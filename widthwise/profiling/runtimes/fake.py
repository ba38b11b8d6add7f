"""A runtime whose truth is known: staircase costs, drift, noise and bursts, all seeded.

Nothing is executed and no real time passes: a session advances a virtual clock by its true latency, slowed
by the drift of the moment, and reports that with noise. Profiling, prediction and planning are tested
against :meth:`FakeRuntime.true_ms`; the command line takes it as ``--target fake:cpu``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from widthwise.luts.measurement import Conditions
from widthwise.luts.spec import Geometry, LayerSpec
from widthwise.network.layers import Layer, macs
from widthwise.network.network import Network
from widthwise.network.widths import Widths
from widthwise.profiling.gauge import Reading
from widthwise.profiling.runtimes.base import Candidate, NetworkSession, PromptSession, References, Runtime, Session
from widthwise.profiling.target import Target

__all__ = ["FakeRuntime", "World", "staircase_ms"]

_TILE = 8
_MEMORY_SHARE = 0.2


def _square(channels: int, size: int) -> LayerSpec:
    shape = ((1, 0, size, size),)
    options = (("groups", 1), ("kernel", (3, 3)), ("padding", (1, 1)), ("stride", (1, 1)))
    return LayerSpec(Geometry("conv2d", shape, shape, options), (channels, channels))


_REFERENCES = (_square(32, 28), _square(128, 7))


@dataclass(frozen=True)
class World:
    """What disturbs the fake measurements.

    Args:
        drift: amplitude of the slow, common slowdown (0.1 = up to 10 %).
        drift_period_s: its period in virtual seconds.
        noise: standard deviation of the log of every single run.
        burst_rate: share of runs that are hit by a neighbour.
        burst: slowdown of such a run, as if its core had been taken away for a while.
        memory_drift: amplitude of a slowdown that hits memory-bound work only: the memory-bound reference in full,
            networks and layers by a fifth (as much as real ones, see :mod:`widthwise.profiling.gauge`).
        memory_period_s: its period in virtual seconds.
        single_factor: a layer timed alone over the same layer in place (caches are warmer alone).
        overhead_ms: what a network takes beyond its layers.
        block: what reads a concatenation whose parts aren't all multiples of it takes ``torn`` times as long.
        torn: see ``block``.
        seed: of everything random.
    """

    drift: float = 0.1
    drift_period_s: float = 7.0
    noise: float = 0.01
    burst_rate: float = 0.02
    burst: float = 1.5
    memory_drift: float = 0.0
    memory_period_s: float = 23.0
    single_factor: float = 0.85
    overhead_ms: float = 0.02
    block: int = 1
    torn: float = 1.3
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
        self._stolen_s = 0.0
        self._rng = np.random.default_rng(self.world.seed)

    def pause(self, seconds: float) -> None:
        self.now_s += seconds

    def versions(self) -> dict[str, str]:
        return {"fake": "1"}

    def references(self) -> References:
        compute_ms, memory_ms = map(staircase_ms, _REFERENCES)
        return References(_FakeLayer(self, compute_ms, memory=0.0), _FakeLayer(self, memory_ms, memory=1.0))

    @property
    def quiet_reference_ms(self) -> float:
        """What the references take undisturbed."""
        return Reading(*map(staircase_ms, _REFERENCES)).latency_ms

    def watch(self) -> Callable[[], Conditions]:
        began_s, stolen_s = self.now_s, self._stolen_s

        def finish() -> Conditions:
            elapsed_s = self.now_s - began_s
            return Conditions(cpu_share=1 - (self._stolen_s - stolen_s) / elapsed_s if elapsed_s else None)

        return finish

    def network(self, candidate: Candidate) -> NetworkSession:
        return _FakeNetwork(self, candidate.network, candidate.widths)

    def layer(self, spec: LayerSpec) -> Session:
        return _FakeLayer(self, staircase_ms(spec) * self.world.single_factor)

    def true_ms(self, network: Network, widths: Widths) -> float:
        """The undisturbed latency of a whole network."""
        return sum(self.layers_ms(network, widths)) + self.world.overhead_ms

    def layers_ms(self, network: Network, widths: Widths) -> list[float]:
        """The undisturbed latencies of its layers in place."""
        return [
            staircase_ms(layer.spec(widths)) * (self.world.torn if self._is_torn(layer, widths) else 1)
            for layer in network.layers
        ]

    def _is_torn(self, layer: Layer, widths: Widths) -> bool:
        concatenated = [size for size in layer.axes if size.joins]
        parts = [widths[group] * times for size in concatenated for group, times in size.terms]
        return any(part % self.world.block for part in [*parts, *(size.constant for size in concatenated)])

    def elapse(self, latency_ms: float, memory: float = _MEMORY_SHARE) -> float:
        """Lets virtual time pass for a run of this true latency; the disturbed seconds it took.

        Args:
            memory: share of the run that is bound by memory.
        """
        world = self.world
        slowdown = 1 + world.drift * _wave(self.now_s / world.drift_period_s)
        slowdown *= 1 + memory * world.memory_drift * _wave(self.now_s / world.memory_period_s)
        seconds = latency_ms * 1e-3 * slowdown * math.exp(world.noise * self._rng.standard_normal())
        if self._rng.random() < world.burst_rate:
            self._stolen_s += seconds * (world.burst - 1)
            seconds *= world.burst
        self.now_s += seconds
        return seconds


def _wave(periods: float) -> float:
    """Between 0 and 1, 0 at whole periods."""
    return 0.5 - 0.5 * math.cos(2 * math.pi * periods)


class _FakeLayer(Session):
    def __init__(self, runtime: FakeRuntime, latency_ms: float, memory: float = _MEMORY_SHARE) -> None:
        self._runtime = runtime
        self._latency_ms = latency_ms
        self._memory = memory

    def run(self) -> float:
        return self._runtime.elapse(self._latency_ms, self._memory)


class _FakeNetwork(PromptSession):
    def __init__(self, runtime: FakeRuntime, network: Network, widths: Widths) -> None:
        super().__init__()
        self._runtime = runtime
        self._layers_ms = runtime.layers_ms(network, widths)
        self._whole_ms = runtime.true_ms(network, widths)

    def run(self) -> float:
        return self._runtime.elapse(self._whole_ms)

    def report(self) -> Sequence[float]:
        return [self._runtime.elapse(latency_ms) for latency_ms in self._layers_ms]
