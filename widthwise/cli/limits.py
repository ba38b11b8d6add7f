"""What `widthwise plan` can be asked for beside a budget: its options, and what they say together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from widthwise.cli.common import parse_inputs

if TYPE_CHECKING:
    from widthwise.api import Also
    from widthwise.planner.predictor import Statistic

__all__ = [
    "AlsoTables",
    "Confidence",
    "Fixed",
    "Keep",
    "MaxActivationMemory",
    "MaxMacs",
    "MaxParameters",
    "MaxWeightMemory",
    "MaxWidths",
    "MinWidths",
    "Objective",
    "StatisticOption",
    "asked",
    "parse_also",
    "statistic_of",
]

_STATISTICS: dict[str, Statistic] = {"p50": "median", "p90": "p90"}
StatisticOption = Annotated[
    str, typer.Option("--statistic", help="What latencies are of single runs: p50, the median, or p90.")
]

Objective = Annotated[
    str, typer.Option("--objective", help="importance (most within the budget) or latency (least that keeps --keep).")
]
Keep = Annotated[
    str | None, typer.Option("--keep", help="With --objective latency: the share of importance to retain, 0.9 or 90%.")
]
MaxParameters = Annotated[str | None, typer.Option("--max-parameters", help="5M, or 50% of the dense network's.")]
MaxMacs = Annotated[str | None, typer.Option("--max-macs", help="Multiply-accumulates of an inference: 1G, or 50%.")]
MaxWeightMemory = Annotated[
    str | None, typer.Option("--max-weight-memory", help="Of all parameters in the table's dtype: 20MB, 20MiB, or 50%.")
]
MaxActivationMemory = Annotated[
    str | None, typer.Option("--max-activation-memory", help="Of all that the layers write together: 20MB, or 50%.")
]
MinWidths = Annotated[
    list[str] | None, typer.Option("--min-width", help="GROUP=CHANNELS, at least so many; repeatable.")
]
MaxWidths = Annotated[
    list[str] | None, typer.Option("--max-width", help="GROUP=CHANNELS, at most so many; repeatable.")
]
Fixed = Annotated[list[str] | None, typer.Option("--fix", help="GROUP=CHANNELS, exactly so many; repeatable.")]
Confidence = Annotated[
    float | None,
    typer.Option("--confidence", help="Meet budgets at the upper end of the interval of this level, such as 0.9."),
]
AlsoTables = Annotated[
    list[str] | None,
    typer.Option(
        "--also",
        help="TABLE[@SHAPE][:BUDGET], a further table to hold on, at another input shape if given; repeatable. "
        "A budget in % holds for all.",
    ),
]


def asked(
    *,
    objective: str,
    budget: str | None,
    keep: str | None,
    most: dict[str, str | None],
    min_width: list[str] | None,
    max_width: list[str] | None,
    fix: list[str] | None,
    confidence: float | None,
    also: list[str] | None,
) -> dict[str, Any]:
    """The options as arguments of :func:`widthwise.api.plan`, checked as far as they can be without the model.

    Raises:
        BadInput: what contradicts itself, is missing or can't be read.
    """
    from widthwise.luts.errors import BadInput
    from widthwise.planner.demands import Demands, Most, parse_bounds, parse_keep
    from widthwise.planner.plan import Budget

    if objective not in ("importance", "latency"):
        raise BadInput(f"--objective is importance or latency, not {objective!r}")
    if objective == "latency" and (keep is None or budget is not None):
        raise BadInput(
            "--objective latency needs --keep, the share of importance to retain, such as 90%, and no --budget"
        )
    if objective == "importance" and (keep is not None or budget is None):
        raise BadInput("give --budget, such as 20ms or 60%; --keep belongs to --objective latency")
    if budget is not None:
        Budget.parse(budget)
    limits = {name: text for name, text in most.items() if text is not None}
    bounds = parse_bounds(min_width or [], max_width or [], fix or [])
    Demands(
        most={name: Most.parse(text) for name, text in limits.items()},
        keep=None if keep is None else parse_keep(keep),
        confidence=confidence,
    )
    return {
        "budget": budget,
        "keep": keep,
        "most": limits,
        "bounds": bounds,
        "confidence": confidence,
        "also": [parse_also(text) for text in also or []],
    }


def parse_also(text: str) -> Also:
    """``TABLE``, ``TABLE:60%``, ``TABLE@8,3,224,224`` or ``TABLE@8,3,224,224:30ms``; several inputs by ``+``.

    Raises:
        BadInput: an empty name, or a shape that isn't one.
    """
    from widthwise.api import Also
    from widthwise.luts.errors import BadInput
    from widthwise.planner.plan import Budget

    place, colon, budget = text.rpartition(":")
    if not colon or "/" in budget or Path(text).exists():
        place, budget = text, ""
    if budget:
        Budget.parse(budget)
    name, _, shapes = place.partition("@") if not Path(place).exists() else (place, "", "")
    if not name:
        raise BadInput(f"{text!r} names no table; give TABLE, TABLE:BUDGET or TABLE@SHAPE:BUDGET")
    return Also(name, budget or None, parse_inputs(shapes.split("+")) if shapes else None)


def statistic_of(text: str) -> Statistic:
    """``p50`` or ``p90``.

    Raises:
        BadInput: another.
    """
    from widthwise.luts.errors import BadInput

    if text not in _STATISTICS:
        raise BadInput(f"--statistic takes {' or '.join(_STATISTICS)}, got {text!r}")
    return _STATISTICS[text]
