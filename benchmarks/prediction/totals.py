"""All cells together, beside what is asked of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.prediction.cells import KINDS, apart_by

Figures = dict[str, Any]

_ASKED: dict[str, Callable[[Figures], bool]] = {
    "mean error ≤ 2 %": lambda found: round(found["mape"], 3) <= 0.02,
    "99 % within 5 %": lambda found: found["within_5"] >= 0.99,
    "worst ≤ 10 %": lambda found: round(found["worst"], 3) <= 0.1,
    "bias within ± 0.5 %": lambda found: abs(round(found["bias"], 3)) <= 0.005,
    "Spearman ≥ 0.99": lambda found: round(found["spearman"], 3) >= 0.99,
    "intervals cover 87 to 95 %": lambda found: 0.87 <= round(found["coverage"], 2) <= 0.95,
    "intervals ≤ 8 % wide": lambda found: round(found["interval_width"], 2) <= 0.08,
}
"""Of each cell, rounded as the table shows it."""


def totals(found: Sequence[Figures], records: Sequence[Figures]) -> Iterator[str]:
    """Rows of a Markdown table.

    Args:
        found: the scores of each cell.
        records: what was drawn and measured there, in the same order.
    """
    kinds = [[network["kind"] for network in record["networks"]] for record in records]
    within = {
        kind: sum(round(scores["by_kind"][kind]["within_5"] * drawn.count(kind))
                  for scores, drawn in zip(found, kinds, strict=True))
        for kind in KINDS
    }  # fmt: skip
    drawn = {kind: sum(of_cell.count(kind) for of_cell in kinds) for kind in KINDS}
    apart = [by for record in records for by in apart_by(record["networks"])]
    yield _row("networks within 5 % of what was predicted", sum(within.values()), sum(drawn.values()))
    for kind in KINDS:
        yield _row(f"{kind} ones", within[kind], drawn[kind])
    yield _row("within 5 % of themselves, measured again", sum(by <= 0.05 for by in apart), len(apart))
    for what, is_met in _ASKED.items():
        yield _row(f"cells: {what}", sum(map(is_met, found)), len(found))
    plans = [plan for record in records for plan in record.get("budgets", [])]
    first, best = (np.array(column) for column in zip(*[(p["attempts"][0], p["best"]) for p in plans], strict=True))
    yield _row("first plans within 5 % of their budget", int(np.sum(np.abs(first - 1) <= 0.05)), len(plans))
    yield f"| first plans over their budget | {min(first):.3f} to {max(first):.3f}, the median {np.median(first):.3f} |"
    ended = np.round(best, 3)
    yield _row("plans that end in 0.95 to 1.00", int(np.sum((ended >= 0.95) & (ended <= 1.0))), len(plans))
    yield _row("above", int(np.sum(ended > 1.0)), len(plans))


def _row(what: str, count: int, of: int) -> str:
    return f"| {what} | {count} of {of} ({count / of:.0%}) |"
