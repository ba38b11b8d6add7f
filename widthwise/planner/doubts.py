"""What is in doubt: measurements that are set aside, and what a reader of a prediction must know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from widthwise.luts.measurement import Measurement
from widthwise.luts.records import NetworkRecord, Role
from widthwise.luts.table import LatencyTable
from widthwise.planner.intervals import LEAST_CALIBRATION, LEAST_PROCESSES

__all__ = ["disturbed_networks", "doubt_of", "doubts", "doubts_between", "unstable_share"]

_NOTED_SHARE = 0.1
"""Of the layer time that is unstable."""

_MOST_ASIDE = 1 / 3

_DEVIATIONS = 1.96
"""Half of a 95 % interval holds so many standard deviations."""


def disturbed_networks(records: Sequence[NetworkRecord], samples: Mapping[int, Measurement]) -> set[int]:
    """Networks measured while the machine was disturbed; none where they are more than a third.

    Those that were verified count as they are: a new plan starts from them.
    """
    profiled = [record for record in records if record.role is not Role.VERIFY]
    found = {record.id for record in profiled if samples[record.id].disturbed}
    return found if len(found) <= _MOST_ASIDE * len(profiled) else set()


def doubt_of(record: NetworkRecord) -> float:
    """Standard deviation of the logarithm of its latency, from its 95 % interval."""
    return (record.high_ms - record.low_ms) / 2 / record.latency_ms / _DEVIATIONS


def unstable_share(table: LatencyTable) -> float:
    """Share of the layer time of a table that is unstable."""
    total_ms = sum(float(surface.latency_ms.sum()) for surface in table.surfaces.values())
    return sum(float(surface.latency_ms[surface.unstable].sum()) for surface in table.surfaces.values()) / total_ms


def doubts(told: int, processes: int, unstable: float, aside: int) -> tuple[str, ...]:
    """Of any prediction.

    Args:
        told: how many networks the interval rests on.
        processes: in how many these were measured.
        unstable: the :func:`unstable_share`.
        aside: how many networks were set aside.
    """
    notes = []
    if told < LEAST_CALIBRATION:
        notes.append(
            f"the interval rests on {told} measured networks; {LEAST_CALIBRATION} are needed for 90 % confidence: "
            "profile longer"
        )
    elif processes < LEAST_PROCESSES:
        notes.append(
            f"all networks were measured in {processes} process{'es' if processes > 1 else ''}, so the interval leaves "
            "out what differs from one process to the next: `widthwise profile` starts one for each minute of --time"
        )
    if unstable > _NOTED_SHARE:
        notes.append(
            f"{unstable:.0%} of the layer time it rests on is unstable: profile longer, or on a quieter machine"
        )
    if aside:
        notes.append(
            f"{aside} network{'s' if aside > 1 else ''} measured while the machine was disturbed "
            f"{'are' if aside > 1 else 'is'} set aside"
        )
    return tuple(notes)


def doubts_between(between: Sequence[str], told: int) -> tuple[str, ...]:
    """Of a prediction at widths between the steps; ``told`` is how many such networks its interval rests on."""
    if not between:
        return ()
    return (
        f"{between[0]!r} and {len(between) - 1} more groups have widths between this target's steps, which plans don't "
        f"use; the interval rests on {told} measured networks of that kind",
    )
