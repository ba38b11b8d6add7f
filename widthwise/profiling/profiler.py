"""Profiling a network on a device: from nothing to a table the planner can use.

Narrowed copies of the network are timed, whole and layer by layer in place; what time is left goes to single
layers at grid points no copy came near. Everything is committed as it is measured, and a later call with the
same table continues the same sequence.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from widthwise.luts.errors import TableMismatch
from widthwise.luts.measurement import Estimator, Measurement, Status
from widthwise.luts.records import NetworkKey, Role
from widthwise.luts.spec import Geometry
from widthwise.luts.store import Lut
from widthwise.network.narrowing import leading, narrow
from widthwise.network.network import Network
from widthwise.profiling import device
from widthwise.profiling.gauge import REFERENCE
from widthwise.profiling.memory import cheap_collections, return_free_memory
from widthwise.profiling.runtimes import Candidate, Runtime, UnsupportedLayer, open_runtime
from widthwise.profiling.sampler import Draw, WidthSampler, uncovered_specs
from widthwise.profiling.schedule import Pace, Schedule
from widthwise.profiling.target import Target

__all__ = ["ProfileReport", "Profiler", "candidate_for", "open_table", "profile"]

DEFAULT_TIME_S = 240.0
_NETWORKS = 100
_NETWORK_SHARE = 0.88
"""Share of the time that goes to whole networks; single layers get the rest."""

_SINGLES = 60
_TOGETHER = 4
_TOGETHER_BYTES = 400e6
"""So many networks are interleaved, as long as their weights stay below this."""

_DENSE_PACE = Pace(blocks=6, half_width=0.005, cap_s=2.5)
_SINGLE_PACE = Pace(blocks=4, cap_s=0.2, visit_s=0.02)

_QUIETER = 0.02

_PROPOSALS_AFTER = 20
"""So many random networks come first; from then on every other batch is proposed, where somebody proposes."""

Propose = Callable[[Lut, Sequence[int]], list[dict[str, int]]]
"""Gives a width vector for each index, knowing the table so far."""

Progress = Callable[[float, str], None]
"""Called with the share that is done (0–1) and what was just measured."""


@dataclass(frozen=True, slots=True)
class ProfileReport:
    """What a profiling call added to a table.

    Attributes:
        layers: layer measurements taken, in place and single.
        networks: narrowed networks timed.
        unstable: measurements of either that didn't settle.
        seconds: wall time of the call.
        waited_s: of these spent waiting for a disturbed machine to calm down, and on blocks it spoilt.
        timed_s: of these inside timed calls.
        dropped: blocks that were spoilt and taken again, by reason.
        dense_ms: latency of the dense network.
        skipped: kinds of layers this runtime can't time alone.
    """

    layers: int
    networks: int
    unstable: int
    seconds: float
    waited_s: float
    dense_ms: float
    skipped: tuple[str, ...] = ()
    timed_s: float = 0.0
    dropped: Mapping[str, int] = field(default_factory=dict)


def open_table(path: Path, runtime: Runtime) -> Lut:
    """The table at ``path`` for measuring with this runtime here, created when missing.

    Raises:
        InvalidTable: the file isn't a table.
        TableMismatch: the table is of another target or device.
    """
    here = device.fingerprint(runtime.versions(), runtime.device_fields() | {"reference": REFERENCE})
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        return Lut.create(path, target=runtime.target.as_dict(), fingerprint=here)
    lut = Lut.open(path)
    try:
        lut.require_target(runtime.target.as_dict())
        lut.require_device(here)
    except TableMismatch:
        lut.close()
        raise
    return lut


def candidate_for(
    model: nn.Module, network: Network, widths: Mapping[str, int], example: Sequence[torch.Tensor]
) -> Candidate:
    """A narrowed copy of the model to be timed; which channels stay makes no difference to its latency."""

    def build() -> nn.Module:
        return narrow(model, network, leading(widths), share=True)

    return Candidate(network, widths, build, tuple(example))


class Profiler:
    """Measures one network into one table.

    Args:
        lut: open for writing, of this runtime's target and device.
        propose: chooses the widths of every other batch; see :mod:`widthwise.planner.proposal`.
        on_progress: told after every commit.
    """

    def __init__(
        self,
        model: nn.Module,
        network: Network,
        example: Sequence[torch.Tensor],
        *,
        runtime: Runtime,
        lut: Lut,
        seed: int = 0,
        propose: Propose | None = None,
        on_progress: Progress | None = None,
    ) -> None:
        self._model = model
        self._network = network
        self._example = example
        self._runtime = runtime
        self._lut = lut
        self._options = network.options()
        self._sampler = WidthSampler(self._options, seed=seed)
        self._schedule = Schedule.on(runtime, quiet_ms=lut.quiet_reference_ms, seed=seed)
        self._propose = propose
        self._on_progress = on_progress or (lambda share, text: None)
        self._layers = self._networks = self._unstable = 0
        self._skipped: set[str] = set()

    def run(self, *, time_s: float = DEFAULT_TIME_S, networks: int = _NETWORKS) -> ProfileReport:
        """Measures until the time is over or ``networks`` (counting those already in the table) are there.

        The dense network and two narrowed ones are measured in any case, however short the time.
        """
        start = time.perf_counter()
        quiet_ms = self._schedule.warm_up()
        if self._lut.quiet_reference_ms is None:
            self._lut.set_quiet_reference(quiet_ms)
        info = {"load": device.load_average(), "reference_ms": quiet_ms}
        run = self._lut.begin_run(f"profile {self._network.name}", self._runtime.versions(), info=info)
        with cheap_collections():
            self._time_networks(run, start, time_s * _NETWORK_SHARE, networks)
            self._time_singles(run, start, time_s)
        return_free_memory()
        self._lower_quiet_reference()
        self._on_progress(1.0, "done")
        return ProfileReport(
            layers=self._layers,
            networks=self._networks,
            unstable=self._unstable,
            seconds=time.perf_counter() - start,
            waited_s=self._schedule.waited_s,
            dense_ms=self._dense_ms(),
            skipped=tuple(sorted(self._skipped)),
            timed_s=self._schedule.timed_s,
            dropped=dict(self._schedule.dropped),
        )

    @property
    def _quiet_ms(self) -> float:
        quiet_ms = self._lut.quiet_reference_ms
        assert quiet_ms is not None
        return quiet_ms

    def _lower_quiet_reference(self) -> None:
        """A table begun on a disturbed machine is put on the scale of the quiet one, once that has been seen."""
        if self._schedule.quiet_ms < (1 - _QUIETER) * self._quiet_ms:
            self._lut.lower_quiet_reference(self._schedule.quiet_ms)

    def _measured_networks(self) -> int:
        return sum(record.role is not Role.VERIFY for record in self._lut.networks(self._network.signature))

    def _dense_ms(self) -> float:
        records = self._lut.networks(self._network.signature)
        return statistics.median(record.latency_ms for record in records if record.role is Role.DENSE)

    def _time_networks(self, run: int, start: float, until_s: float, networks: int) -> None:
        index = self._measured_networks()
        first = index
        together = self._together()
        while index < networks:
            elapsed = time.perf_counter() - start
            if elapsed >= until_s and index >= 3:
                break
            count = min(together, networks - index)
            self._time_batch(run, self._draws(range(index, index + count)))
            gc.collect()
            if together == 1:  # large
                return_free_memory()
            index += count
            done = max((time.perf_counter() - start) / max(until_s, 1e-9), (index - first) / max(1, networks - first))
            self._on_progress(min(done, 1.0) * _NETWORK_SHARE, f"{index} networks")

    def _draws(self, indices: Sequence[int]) -> list[Draw]:
        """What to time next: drawn at random, or proposed in every other batch."""
        draws = [self._sampler.draw(index) for index in indices]
        turn = indices[0] // len(indices) % 2 == 1
        if self._propose is None or indices[0] < _PROPOSALS_AFTER or not turn:
            return draws
        proposed = self._propose(self._lut, indices)
        return [
            draw if draw.role is Role.DENSE else Draw(widths, draw.role)
            for widths, draw in zip(proposed, draws, strict=True)
        ]

    def _together(self) -> int:
        weights = sum(p.numel() * p.element_size() for p in self._model.parameters())
        return max(1, min(_TOGETHER, int(_TOGETHER_BYTES / max(weights, 1))))

    def _time_batch(self, run: int, draws: Sequence[Draw]) -> None:
        sessions = [
            self._runtime.network(candidate_for(self._model, self._network, draw.widths, self._example))
            for draw in draws
        ]
        pace = _DENSE_PACE if draws[0].role is Role.DENSE else Pace()
        for draw, timing in zip(draws, self._schedule.measure(sessions, pace), strict=True):
            whole = timing.measurement(self._quiet_ms)
            layers = timing.layer_measurements(self._quiet_ms)
            specs = self._network.specs(draw.widths)
            named = [
                (layer.name, spec, measurement)
                for layer, spec, measurement in zip(self._network.layers, specs, layers, strict=True)
            ]
            key = NetworkKey(self._network.signature, self._network.name, draw.widths)
            self._lut.add_network(run, key, whole, named, role=draw.role)
            self._networks += 1
            self._count([whole, *layers])
            self._layers += len(layers)

    def _time_singles(self, run: int, start: float, until_s: float) -> None:
        measured = [record.spec for record in self._lut.layers(self._geometries())]
        specs = uncovered_specs(self._network, self._options, measured, most=_SINGLES)
        for done, spec in enumerate(specs):
            if time.perf_counter() - start >= until_s:
                break
            try:
                session = self._runtime.layer(spec)
            except UnsupportedLayer:
                self._skipped.add(spec.geometry.kind)
                continue
            measurement = self._schedule.measure([session], _SINGLE_PACE)[0].measurement(self._quiet_ms)
            self._lut.add_layer(run, spec, Estimator.SINGLE, measurement)
            self._layers += 1
            self._count([measurement])
            share = _NETWORK_SHARE + (1 - _NETWORK_SHARE) * (done + 1) / len(specs)
            self._on_progress(share, f"{done + 1} single layers")

    def _geometries(self) -> set[Geometry]:
        return {layer.geometry for layer in self._network.layers}

    def _count(self, measurements: Sequence[Measurement]) -> None:
        self._unstable += sum(measurement.status is Status.UNSTABLE for measurement in measurements)


def profile(
    model: nn.Module,
    network: Network,
    example: Sequence[torch.Tensor],
    *,
    target: Target,
    path: Path,
    time_s: float = DEFAULT_TIME_S,
    networks: int = _NETWORKS,
    seed: int = 0,
    propose: Propose | None = None,
    on_progress: Progress | None = None,
) -> ProfileReport:
    """Measures a network into the table at ``path``; see :class:`Profiler`.

    Raises:
        InvalidTarget: the runtime is unknown or can't run this target here.
        InvalidTable, TableMismatch: the file is no table, or one of another target or device.
    """
    runtime = open_runtime(target)
    with closing(open_table(path, runtime)) as lut, runtime.active():
        profiler = Profiler(
            model, network, example, runtime=runtime, lut=lut, seed=seed, propose=propose, on_progress=on_progress
        )
        return profiler.run(time_s=time_s, networks=networks)
