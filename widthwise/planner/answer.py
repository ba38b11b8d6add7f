"""The allocator's answer: widths, what they come to, and what was proved."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator

from widthwise.planner.costs import Strict, as_tuple

__all__ = ["Answer", "Reached", "Status"]

Status = Literal["optimal", "feasible", "infeasible"]


class Reached(Strict):
    """What an answer makes of one limit.

    Args:
        name: of the limit.
        amount: of the answer's widths, recomputed exactly.
        most: allowed.
        least: no widths reach less of it, whatever becomes of the other limits.
    """

    name: str
    amount: float
    most: float
    least: float


class Answer(Strict):
    """What the solver found, and what it proved.

    Args:
        status: ``optimal`` (gap closed), ``feasible`` (stopped by the time limit), ``infeasible`` (no widths within the
            limits; ``widths`` are then the fastest ones, and ``bound`` is None where that is proven).
        widths: group → channels.
        latency_ms, importance: of these widths, recomputed exactly.
        bound: no widths within the limits have a higher importance than this; where the least latency was asked for,
            none has a lower latency.
        gap: what the answer may lack of the bound, relative to it.
        minimum_ms: the least latency any widths reach.
        seconds: how long solving took.
        binding: names of what stops the answer from being better (``latency``, ``importance`` or a limit's name): those
            with a price above zero in the proof.
        limits: what the answer makes of the problem's further limits.
        reason: why it is infeasible, None otherwise.
    """

    status: Status
    widths: dict[str, int]
    latency_ms: float
    importance: float
    bound: float | None
    gap: float | None
    minimum_ms: float
    seconds: float
    binding: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = ()
    limits: Annotated[tuple[Reached, ...], BeforeValidator(as_tuple)] = ()
    reason: str | None = None
