"""Verification: does the narrow model take the time the plan promised?

The narrow and the dense model are timed in one interleaved run, and the narrow one counts in terms of the dense one
as the plan's table knows it, so that the machine's mood of the day does not decide (duet benchmarking, Bulej et al.,
ICPE 2020). The answer is three-valued: on a noisy machine "can't tell" is an answer, with the reason.
"""

from __future__ import annotations

import gc
import math
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import torch
from torch import nn

from widthwise.luts.errors import InvalidTable
from widthwise.luts.measurement import Measurement
from widthwise.luts.peers import quiet_reading_ms
from widthwise.luts.records import BESIDE_DENSE, NetworkKey, NetworkRecord, Role
from widthwise.luts.store import Lut
from widthwise.network.fusion import fused
from widthwise.network.network import Network
from widthwise.planner.plan import Plan
from widthwise.profiling import device
from widthwise.profiling.faithful import require_faithful
from widthwise.profiling.profiler import candidate_for, open_table
from widthwise.profiling.runtimes import NetworkSession, Runtime, open_runtime
from widthwise.profiling.schedule import Pace, Schedule
from widthwise.profiling.target import Target

__all__ = ["Verdict", "Verification", "verified_ms", "verify"]

_PACE = Pace(blocks=10, most_blocks=40, half_width=0.005, cap_s=8.0)
_PACES = {"median": _PACE, "p90": replace(_PACE, visit_s=0.3, most_runs=60)}
"""The slowest tenth of runs takes more of them to know."""


class Verdict(StrEnum):
    """Whether the measured latency is within the budget."""

    MEETS = "meets"
    MISSES = "misses"
    UNCLEAR = "can't tell"


@dataclass(frozen=True, slots=True)
class Verification:
    """Measured against predicted against budget; all in ms, on the scale of the plan.

    Attributes:
        dense_ms: of the plan.
        pace: what the dense model took in this run over ``dense_ms``, both as ratios to the reference kernels times
            what these take undisturbed in their process; ``measured_ms`` is divided by it. None, and nothing divided,
            where the dense model wasn't at hand.
        measured_ms: the statistic that the plan's budget is about, the median of single runs or their 90 % quantile.
        measured_interval_ms: 95 % interval of the measured median, scaled; the dense model's doubt is in it.
        raw_ms: what a stopwatch said at that moment, uncorrected.
        reason: why the verdict is what it is.
    """

    dense_ms: float
    budget_ms: float
    predicted_ms: float
    measured_ms: float
    measured_interval_ms: tuple[float, float]
    raw_ms: float
    verdict: Verdict
    reason: str
    pace: float | None = None


def verify(
    plan: Plan,
    small: nn.Module,
    example: Sequence[torch.Tensor],
    *,
    path: Path,
    dense: nn.Module | None = None,
) -> Verification:
    """Measures the narrow model against the budget, and keeps what was measured, layers too, in the table at ``path``.

    Args:
        small: the narrow model.
        dense: the dense model, timed in the same run where given.

    Raises:
        InvalidTable, TableMismatch: no table there, or one of another target or device than the plan's.
    """
    if not path.exists():
        raise InvalidTable(f"no table {path}; verify with the table the plan was made from")
    runtime = open_runtime(Target.from_dict(dict(plan.table.target)))
    with closing(open_table(path, runtime)) as lut, runtime.active():
        quiet_ms = lut.quiet_reference_ms
        if quiet_ms is None:
            raise InvalidTable(f"{path} holds no measurements; make them with `widthwise profile`")
        schedule = Schedule.on(runtime, quiet_ms=quiet_ms)
        models = [small] if dense is None else [small, dense]
        networks = [_network(runtime, model, example) for model in models]
        sessions = [_session(runtime, model, network, example) for model, network in zip(models, networks, strict=True)]
        info = {"load": device.load_average(), "reference_ms": schedule.warm_up(sessions[-1])}
        timings = schedule.measure(sessions, _PACES[plan.statistic])
        run = lut.begin_run(f"verify {plan.model}", runtime.versions(), info=info | {BESIDE_DENSE: dense is not None})
        taken = list(zip((plan.widths, plan.dense), networks, timings, strict=False))
        for widths, network, timing in reversed(taken):  # the dense one first
            layers = network.layers, network.specs(network.dense), timing.layer_measurements(quiet_ms)
            named = [(layer.name, spec, timed) for layer, spec, timed in zip(*layers, strict=True)]
            key, whole = NetworkKey(plan.signature, plan.model, widths), timing.measurement(quiet_ms)
            lut.add_network(run, key, whole, named, role=Role.VERIFY)
        del sessions
        gc.collect()  # their graphs refer to themselves and would keep both models' weights
    scale_ms = quiet_reading_ms([block for timing in timings for block in timing.blocks])
    measured, pace = timings[0].measurement(scale_ms), None
    factor = _tail(measured, plan)
    latency_ms, interval_ms = measured.latency_ms * factor, _times(measured.interval_ms, factor)
    if dense is not None:
        again = timings[1].measurement(scale_ms)
        pace = again.latency_ms * _tail(again, plan) / plan.dense_ms
        latency_ms, interval_ms = _beside(measured, again, plan)
    verdict, reason = judge(latency_ms, interval_ms, plan.budget_ms)
    return Verification(
        dense_ms=plan.dense_ms,
        budget_ms=plan.budget_ms,
        predicted_ms=plan.predicted_ms,
        measured_ms=latency_ms,
        measured_interval_ms=interval_ms,
        raw_ms=measured.raw_ms,
        verdict=verdict,
        reason=reason,
        pace=pace,
    )


def verified_ms(plan: Plan, lut: Lut) -> list[tuple[float, tuple[float, float]]]:
    """What earlier verifications in a table measured of a plan's widths, each beside the dense model: (latency,
    interval) in ms, as :class:`Verification` has them, the newest last.

    Example:
        >>> with Lut.open("device.lut", readonly=True) as lut:  # doctest: +SKIP
        ...     [(latency_ms, (low_ms, high_ms))] = verified_ms(plan, lut)
    """
    beside = {run.id for run in lut.runs() if run.info.get(BESIDE_DENSE)}
    runs: dict[int, list[NetworkRecord]] = defaultdict(list)
    for record in lut.networks(plan.signature):
        if record.role is Role.VERIFY and record.run in beside:
            runs[record.run].append(record)
    pairs = [records for records in runs.values() if len(records) == 2]  # a run that was cut short may lack one
    return [
        _beside(lut.samples(small), lut.samples(dense), plan)
        for dense, small in pairs  # as they are stored
        if small.widths == plan.widths and dense.widths == plan.dense
    ]


def _beside(small: Measurement, dense: Measurement, plan: Plan) -> tuple[float, tuple[float, float]]:
    """The statistic that the plan's budget is about, and its interval, on the scale of the plan."""
    latency_ms, interval_ms = relative(small, dense, plan.dense_ms)
    factor = _tail(small, plan) / _tail(dense, plan)
    return latency_ms * factor, _times(interval_ms, factor)


def _times(interval_ms: tuple[float, float], factor: float) -> tuple[float, float]:
    low, high = interval_ms
    return low * factor, high * factor


def _tail(measured: Measurement, plan: Plan) -> float:
    """What turns the median into the statistic that the plan's budget is about."""
    return 1.0 if plan.statistic == "median" else measured.tail or 1.0


def relative(small: Measurement, dense: Measurement, dense_ms: float) -> tuple[float, tuple[float, float]]:
    """The narrow model's latency where the dense one's is ``dense_ms``, with an interval for both their doubts.

    Example:
        >>> from widthwise.luts.measurement import Block
        >>> small, dense = (Measurement((Block(ms, 1.0),) * 4, 1.0) for ms in (3.0, 6.0))
        >>> relative(small, dense, 5.0)
        (2.5, (2.5, 2.5))
    """
    latency_ms = small.latency_ms / dense.latency_ms * dense_ms
    doubts = [
        math.hypot(*(math.log(measured.interval_ms[end] / measured.latency_ms) for measured in pair))
        for end, pair in ((0, (small, dense)), (1, (small, dense)))
    ]
    return latency_ms, (latency_ms * math.exp(-doubts[0]), latency_ms * math.exp(doubts[1]))


def judge(latency_ms: float, interval_ms: tuple[float, float], budget_ms: float) -> tuple[Verdict, str]:
    """The verdict on a measurement: decided only where its whole interval lies on one side of the budget."""
    low, high = interval_ms
    share = latency_ms / budget_ms - 1
    if high <= budget_ms:
        return Verdict.MEETS, f"measured {abs(share):.1%} below the budget"
    if low > budget_ms:
        return Verdict.MISSES, f"measured {share:.1%} above the budget; plan again for a lower one"
    return (
        Verdict.UNCLEAR,
        f"the measured interval {low:.4g} to {high:.4g} ms holds the budget; verify again on a quieter machine",
    )


def _network(runtime: Runtime, model: nn.Module, example: Sequence[torch.Tensor]) -> Network:
    network = Network.trace(model, example)
    return fused(network) if runtime.fuses else network


def _session(runtime: Runtime, model: nn.Module, network: Network, example: Sequence[torch.Tensor]) -> NetworkSession:
    candidate = candidate_for(model, network, network.dense, example)
    session = runtime.network(candidate)
    require_faithful(session, candidate, runtime.target)
    return session
