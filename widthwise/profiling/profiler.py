"""Profiling a network on a device: from nothing to a table the planner can use.

Narrowed copies of the network are timed, whole and layer by layer in place, and some layers alone; a sampler says
which. Everything is committed as it is measured, and a later call with the same table continues the same sequence.
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
from widthwise.luts.peers import on_scale, paces
from widthwise.luts.records import BESIDE_DENSE, NetworkKey, Role
from widthwise.luts.spec import LayerSpec
from widthwise.luts.store import Lut
from widthwise.network.fusion import FUSED, fused
from widthwise.network.narrowing import leading, narrow
from widthwise.network.network import Network
from widthwise.profiling import device
from widthwise.profiling.faithful import require_faithful
from widthwise.profiling.gauge import REFERENCE
from widthwise.profiling.memory import cheap_collections, return_free_memory
from widthwise.profiling.runtimes import Candidate, NetworkSession, Runtime, Session, UnsupportedLayer, open_runtime
from widthwise.profiling.sampler import LEAST_NETWORKS, MOST_NETWORKS, Adviser, Batch, Draw, Sampler
from widthwise.profiling.schedule import Pace, Schedule
from widthwise.profiling.target import Target

__all__ = ["ProfileReport", "Profiler", "candidate_for", "open_table", "profile"]

DEFAULT_TIME_S = 240.0
_TOGETHER = 4
_TOGETHER_BYTES = 400e6
_LEAST_TOGETHER = 2
"""So many networks are interleaved beside the dense one, as long as their weights stay below this; or so few."""

_SINGLE_PACE = Pace(blocks=4, cap_s=0.2, visit_s=0.02)

_SINGLE_S = 0.4
"""A single layer takes so long at least; what it does take shows."""

_QUIETER = 0.02

Progress = Callable[[float, str], None]
"""Called with the share that is done (0–1) and what was just measured."""


@dataclass(frozen=True, slots=True)
class ProfileReport:
    """What a profiling call added to a table.

    Attributes:
        layers: layer measurements taken, in place and single.
        networks: networks timed, the dense one as often as it was.
        unstable: measurements of either that didn't settle.
        seconds: wall time of the call.
        waited_s: of these spent waiting for a disturbed machine to calm down, and on blocks it spoilt.
        timed_s: of these inside timed calls.
        dropped: blocks that were spoilt and taken again, by reason.
        dense_ms: latency of the dense network.
        skipped: kinds of layers this runtime can't time alone.
        steps: granularity of the groups, where it was found.
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
    steps: Mapping[str, int] = field(default_factory=dict)


def open_table(path: Path, runtime: Runtime) -> Lut:
    """The table at ``path`` for measuring with this runtime here, created when missing.

    Raises:
        InvalidTable: the file isn't a table.
        TableMismatch: the table is of another target or device.
    """
    fields = runtime.device_fields() | {"reference": REFERENCE}
    if runtime.fuses:
        fields["layers"] = FUSED
    here = device.fingerprint(runtime.versions(), fields)
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
        adviser: says what to time with some of the time; see :mod:`widthwise.planner.proposal`.
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
        adviser: Adviser | None = None,
        on_progress: Progress | None = None,
    ) -> None:
        self._model = model
        self._network = fused(network) if runtime.fuses else network
        self._example = example
        self._runtime = runtime
        self._lut = lut
        self._seed = seed
        self._schedule = Schedule.on(runtime, quiet_ms=lut.quiet_reference_ms, seed=seed)
        self._adviser = adviser
        self._on_progress = on_progress or (lambda share, text: None)
        self._layers = self._networks = self._unstable = 0
        self._skipped: set[str] = set()
        self._warm: NetworkSession | None = None
        self._warm_s = 0.0

    @cheap_collections()
    def run(self, *, time_s: float = DEFAULT_TIME_S, networks: int = MOST_NETWORKS) -> ProfileReport:
        """Measures until the time is over or nothing is left that is worth it.

        The dense network and two narrowed ones are measured in any case, however short the time.

        Args:
            networks: not more narrowed ones than these, counting those already in the table.
        """
        start = time.perf_counter()
        self._schedule.finish_by(start + time_s)
        quiet_ms = self._warm_up()
        if self._lut.quiet_reference_ms is None:
            self._lut.set_quiet_reference(quiet_ms)
        info = {"load": device.load_average(), "reference_ms": quiet_ms, BESIDE_DENSE: True}
        run = self._lut.begin_run(f"profile {self._network.name}", self._runtime.versions(), info=info)
        sampler = Sampler(
            self._network,
            self._lut,
            together=self._together(),
            networks=networks,
            seed=self._seed,
            adviser=self._adviser,
        )
        elapsed_s = time.perf_counter() - start
        each_s = {True: 0.0, False: _SINGLE_S}  # of networks in their slowest batch, and of single layers
        while batch := sampler.ask(elapsed_s / max(time_s, 1e-9), time_s - elapsed_s):
            kind, asked_s = bool(batch.networks), time.perf_counter() - start  # advice takes seconds, too
            if sampler.networks >= LEAST_NETWORKS:
                batch = batch.first(int((time_s - asked_s) / max(each_s[kind], 1e-9)))
            if not batch:
                break  # it would end late
            spared_s = self._warm_s if self._warm is not None and kind else 0.0  # later batches make their dense one
            sampler.tell(batch, self._time(run, batch))
            elapsed_s = time.perf_counter() - start
            each_s[kind] = max(each_s[kind], (elapsed_s - asked_s + spared_s) / len(batch))
            self._on_progress(
                min(elapsed_s / max(time_s, 1e-9), 1.0),
                f"{sampler.networks} networks" if batch.networks else f"{len(batch.layers)} single layers",
            )
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
            steps=dict(sampler.steps),
        )

    def _warm_up(self) -> float:
        dense = candidate_for(self._model, self._network, self._network.dense, self._example)
        began_s = time.perf_counter()
        self._warm = self._runtime.network(dense)
        self._warm_s = time.perf_counter() - began_s
        require_faithful(self._warm, dense, self._runtime.target)
        return self._schedule.warm_up(self._warm)

    def _session(self, draw: Draw) -> NetworkSession:
        """The first dense one is that of the warm-up: VGG-16's takes 5 s to make."""
        if draw.role is Role.DENSE and self._warm is not None:
            session, self._warm = self._warm, None
            return session
        return self._runtime.network(candidate_for(self._model, self._network, draw.widths, self._example))

    @property
    def _quiet_ms(self) -> float:
        quiet_ms = self._lut.quiet_reference_ms
        assert quiet_ms is not None
        return quiet_ms

    def _lower_quiet_reference(self) -> None:
        """A table begun on a disturbed machine is put on the scale of the quiet one, once that has been seen."""
        if self._schedule.quiet_ms < (1 - _QUIETER) * self._quiet_ms:
            self._lut.lower_quiet_reference(self._schedule.quiet_ms)

    def _dense_ms(self) -> float:
        records, pace = self._lut.networks(self._network.signature), paces(self._lut)
        return statistics.median(on_scale(record, pace).latency_ms for record in records if record.role is Role.DENSE)

    def _together(self) -> int:
        weights = sum(p.numel() * p.element_size() for p in self._model.parameters())
        return max(_LEAST_TOGETHER, min(_TOGETHER, int(_TOGETHER_BYTES / max(weights, 1))))

    def _time(self, run: int, batch: Batch) -> dict[LayerSpec, Measurement | None]:
        if not batch.networks:
            return self._time_layers(run, batch.layers)
        found = self._time_networks(run, batch.networks)
        gc.collect()
        if self._together() == _LEAST_TOGETHER:  # large
            return_free_memory()
        return found

    def _time_networks(self, run: int, draws: Sequence[Draw]) -> dict[LayerSpec, Measurement | None]:
        found: dict[LayerSpec, Measurement | None] = {}
        sessions = [self._session(draw) for draw in draws]
        for draw, timing in zip(draws, self._schedule.measure(sessions), strict=True):
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
            self._layers += len(layers)
            self._count([whole, *layers])
            found.update(zip(specs, layers, strict=True))
        return found

    def _time_layers(self, run: int, specs: Sequence[LayerSpec]) -> dict[LayerSpec, Measurement | None]:
        sessions: dict[LayerSpec, Session] = {}
        for spec in specs:
            try:
                sessions[spec] = self._runtime.layer(spec)
            except UnsupportedLayer:
                self._skipped.add(spec.geometry.kind)
        found: dict[LayerSpec, Measurement | None] = dict.fromkeys(specs)
        timings = self._schedule.measure(list(sessions.values()), _SINGLE_PACE)
        for spec, timing in zip(sessions, timings, strict=True):
            measurement = timing.measurement(self._quiet_ms)
            self._lut.add_layer(run, spec, Estimator.SINGLE, measurement)
            self._layers += 1
            self._count([measurement])
            found[spec] = measurement
        return found

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
    networks: int = MOST_NETWORKS,
    seed: int = 0,
    adviser: Adviser | None = None,
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
            model, network, example, runtime=runtime, lut=lut, seed=seed, adviser=adviser, on_progress=on_progress
        )
        return profiler.run(time_s=time_s, networks=networks)
