"""Verification: does the narrow model take the time the plan promised?

The narrow and the dense model are timed in one interleaved run, on the scale of the plan's table, so that
the machine's mood of the day does not decide. The answer is three-valued: on a noisy machine "can't tell" is
an answer, with the reason.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import torch
from torch import nn

from widthwise.luts.errors import InvalidTable
from widthwise.luts.measurement import Measurement
from widthwise.luts.records import NetworkKey, Role
from widthwise.network.network import Network
from widthwise.planner.plan import Plan
from widthwise.profiling import device
from widthwise.profiling.profiler import candidate_for, open_table
from widthwise.profiling.runtimes import NetworkSession, Runtime, open_runtime
from widthwise.profiling.schedule import Pace, Schedule
from widthwise.profiling.target import Target

__all__ = ["Verdict", "Verification", "verify"]

_PACE = Pace(blocks=10, most_blocks=20, half_width=0.01, visit_s=0.1)


class Verdict(StrEnum):
    """Whether the measured latency is within the budget."""

    MEETS = "meets"
    MISSES = "misses"
    UNCLEAR = "can't tell"


@dataclass(frozen=True, slots=True)
class Verification:
    """Measured against predicted against budget; all in ms, on the scale of the table.

    Attributes:
        dense_ms: measured in the same run; the plan's own where the dense model wasn't at hand.
        measured_interval_ms: 95 % interval of the measured median.
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


def verify(
    plan: Plan,
    small: nn.Module,
    example: Sequence[torch.Tensor],
    *,
    path: Path,
    dense: nn.Module | None = None,
) -> Verification:
    """Measures the narrow model against the budget, and keeps the measurement in the table at ``path``.

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
        info = {"load": device.load_average(), "reference_ms": schedule.warm_up()}
        models = [small] if dense is None else [small, dense]
        sessions = [_session(runtime, model, example) for model in models]
        timings = schedule.measure(sessions, _PACE)
        kept = timings[0].measurement(quiet_ms)
        run = lut.begin_run(f"verify {plan.model}", runtime.versions(), info=info)
        lut.add_network(run, NetworkKey(plan.signature, plan.model, plan.widths), kept, role=Role.VERIFY)
        del sessions
        gc.collect()  # their graphs refer to themselves and would keep both models' weights
    scale_ms = plan.table.quiet_reference_ms  # the plan's own, should the table have been put on another since
    measured = timings[0].measurement(scale_ms)
    dense_ms = timings[1].measurement(scale_ms).latency_ms if dense is not None else plan.dense_ms
    verdict, reason = judge(measured, plan.budget_ms)
    return Verification(
        dense_ms=dense_ms,
        budget_ms=plan.budget_ms,
        predicted_ms=plan.predicted_ms,
        measured_ms=measured.latency_ms,
        measured_interval_ms=measured.interval_ms,
        raw_ms=measured.raw_ms,
        verdict=verdict,
        reason=reason,
    )


def judge(measured: Measurement, budget_ms: float) -> tuple[Verdict, str]:
    """The verdict on a measurement: decided only where its whole interval lies on one side of the budget."""
    low, high = measured.interval_ms
    share = measured.latency_ms / budget_ms - 1
    if high <= budget_ms:
        return Verdict.MEETS, f"measured {abs(share):.1%} below the budget"
    if low > budget_ms:
        return Verdict.MISSES, f"measured {share:.1%} above the budget; plan again for a lower one"
    return (
        Verdict.UNCLEAR,
        f"the measured interval {low:.4g} to {high:.4g} ms holds the budget; verify again on a quieter machine",
    )


def _session(runtime: Runtime, model: nn.Module, example: Sequence[torch.Tensor]) -> NetworkSession:
    network = Network.trace(model, example)
    return runtime.network(candidate_for(model, network, network.dense, example))
