"""The HTML report of a plan: one file that needs no network and holds what a reader must know to trust the plan."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path

import plotly.graph_objects as go

from widthwise.luts.errors import BadInput
from widthwise.planner.plan import Plan
from widthwise.report import charts
from widthwise.report.evidence import Evidence
from widthwise.report.rows import Rows, interval_text, plan_rows, plan_title

__all__ = ["plan_page", "write_page"]

_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1c2733; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.4rem; }}
h2 {{ font-size: 1.1rem; margin: 2.2rem 0 .3rem; }}
p {{ max-width: 46rem; }}
p.lead {{ font-size: 1.1rem; }}
table {{ border-collapse: collapse; }}
td {{ padding: .15rem 1rem .15rem 0; vertical-align: top; }}
td:first-child {{ color: #5b6875; white-space: nowrap; }}
footer {{ color: #5b6875; margin-top: 3rem; font-size: .85rem; }}
</style>
</head>
<body>
"""


def plan_page(plan: Plan, evidence: Evidence | None = None) -> str:
    """The report as HTML, the same for the same arguments.

    Args:
        evidence: what a table tells beyond the plan; without it the plan's own sections only.

    Example:
        >>> page = plan_page(Plan.read("plan.json"))  # doctest: +SKIP
        >>> page.startswith("<!DOCTYPE html>")  # doctest: +SKIP
        True
    """
    measured = evidence.measured if evidence is not None else ()
    figures = [
        ("Latency", "Bars with whiskers are known within them.", charts.latencies(plan, measured)),
        ("Channels kept", "Of every group that may be narrowed, in the order of the network.", charts.channels(plan)),
    ]  # fmt: skip
    if evidence is not None:
        figures += _told(evidence)
    body = [f"<h1>{escape(plan_title(plan))}</h1>", f'<p class="lead">{escape(_lead(plan, evidence))}</p>']
    body.append(_table(_rows(plan, evidence)))
    for number, (title, text, figure) in enumerate(figures):
        body.append(f"<h2>{escape(title)}</h2><p>{escape(text)}</p>")
        body.append(_drawn(figure, f"figure-{number}", with_library=number == 0))
    made = f"Plan {plan.digest} of {plan.created}, made by widthwise {plan.widthwise}"
    body.append(f"<footer>{escape(made)}</footer>")
    return _HEAD.format(title=escape(plan_title(plan))) + "\n".join(body) + "\n</body>\n</html>\n"


def write_page(path: str | Path, plan: Plan, evidence: Evidence | None = None) -> None:
    """Writes :func:`plan_page` whole or not at all.

    Raises:
        BadInput: the place can't be written to.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(plan_page(plan, evidence), encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise BadInput(f"can't write the report to {path}: {error.strerror}; give another -o") from error


def _lead(plan: Plan, evidence: Evidence | None) -> str:
    """The plan in a sentence or two: what was asked, what is predicted, what was measured."""
    low, high = plan.interval_ms
    share = f"{plan.predicted_ms / plan.dense_ms:.0%} of the dense network's {plan.dense_ms:.4g} ms"
    text = f"Predicted to take {plan.predicted_ms:.4g} ms ({low:.4g} to {high:.4g}), {share}"
    text += "." if plan.objective == "latency" else f"; the budget is {plan.budget_ms:.4g} ms."
    if evidence is None:
        return text
    if not evidence.measured:
        return f"{text} Not measured yet: widthwise verify does that."
    ms, interval_ms = evidence.measured[-1]
    times = len(evidence.measured)
    again = f" The last of {times} measurements." if times > 1 else ""
    return f"{text} Measured: {interval_text(ms, interval_ms)}, {ms / plan.budget_ms:.3f} of the budget.{again}"


def _rows(plan: Plan, evidence: Evidence | None) -> Rows:
    if evidence is None:
        return plan_rows(plan)
    now = evidence.prediction
    rows = plan_rows(plan, evidence.network)
    rows.append(("predicted by the table as it is now", interval_text(now.latency_ms, now.interval_ms)))
    rows += [("extrapolated", ", ".join(now.extrapolated))] if now.extrapolated else []
    return rows + [("note", note) for note in now.notes if note not in plan.notes]


def _told(evidence: Evidence) -> list[tuple[str, str, go.Figure]]:
    figures = [
        (
            "Where the time goes",
            "Predicted, by the module that holds the layers, the slowest first.",
            charts.modules(evidence.dense_ms, evidence.planned_ms),
        )
    ]
    if evidence.errors:
        text = (
            f"{len(evidence.errors)} networks that this table measured, each predicted without itself and what was "
            "measured along with it; how far it was off is scaled to the size of this plan, since small networks err "
            "more. Nine in ten are to lie between the dashed lines: that is the interval."
        )
        figures.append(("How well it predicts", text, charts.errors(evidence.errors, evidence.radius)))
    return figures


def _table(rows: Rows) -> str:
    cells = "\n".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in rows)
    return f"<table>\n{cells}\n</table>"


def _drawn(figure: go.Figure, name: str, *, with_library: bool) -> str:
    drawn: str = figure.to_html(
        full_html=False,
        include_plotlyjs=with_library,
        div_id=name,
        config={"displayModeBar": False, "responsive": True},
    )
    return drawn
