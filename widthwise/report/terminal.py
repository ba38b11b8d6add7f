"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from widthwise.luts.entry import Entry
from widthwise.luts.measurement import SETTLED_HALF_WIDTH, Status
from widthwise.network.network import Network
from widthwise.planner.plan import Plan
from widthwise.planner.predictor import Prediction
from widthwise.planner.verification import Verification
from widthwise.report.rows import plan_rows, plan_title, prediction_rows, verification_rows

__all__ = ["entries_table", "facts", "plan_table", "prediction_table", "rows_table", "show", "verification_table"]


def show(*renderables: RenderableType, console: Console | None = None) -> None:
    """Prints to standard output."""
    (console or Console()).print(*renderables)


def facts(title: str, rows: Iterable[tuple[str, str]]) -> Table:
    """A two-column table of names and values."""
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column()
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    return table


def rows_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table with a header; numbers are right-aligned from the second column on."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for position, name in enumerate(header):
        table.add_column(name, justify="left" if position == 0 else "right")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def entries_table(entries: Sequence[Entry]) -> tuple[Table, str]:
    """Layers and how well each is known, the longest first, and how many are."""
    rows = [
        (str(e.spec), f"{e.latency_ms:.4g}", f"{e.low_ms:.4g} to {e.high_ms:.4g}", f"{e.networks:,}", e.status.value)
        for e in sorted(entries, key=lambda entry: -entry.latency_ms)
    ]
    known = [entry.latency_ms for entry in entries if entry.status is Status.STABLE]
    share = sum(known) / (sum(entry.latency_ms for entry in entries) or 1.0)
    told = (
        f"{len(known):,} of {len(entries):,} layers, {share:.0%} of their time, are known by themselves to "
        f"± {SETTLED_HALF_WIDTH:.0%}: another profile would say the same. Predictions rest on all of them together."
    )
    return rows_table("layers", ("layer", "ms", "95 % interval", "networks", "status"), rows), told


def prediction_table(network: Network, prediction: Prediction, breakdown: Sequence[tuple[str, float]]) -> Table:
    """A prediction and the share of each kind of layer."""
    return facts(network.name, prediction_rows(prediction, breakdown))


def plan_table(
    plan: Plan,
    network: Network | None = None,
    *,
    verification: Verification | None = None,
    profile_seconds: float | None = None,
) -> Table:
    """A plan in full: latencies, what it costs and keeps, its proof, and the channels kept per group."""
    rows = plan_rows(plan, network, verification=verification, profile_seconds=profile_seconds)
    return facts(plan_title(plan), [*rows, ("channels kept", _kept(plan.widths, plan.dense))])


def verification_table(verification: Verification) -> Table:
    """Measured against predicted against budget."""
    return facts("verification", verification_rows(verification))


def _kept(widths: Mapping[str, int], dense: Mapping[str, int]) -> str:
    return ", ".join(f"{group} {width}/{dense[group]}" for group, width in widths.items())
