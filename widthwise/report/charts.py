"""The figures of the HTML report."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from widthwise.planner.plan import Plan

__all__ = ["channels", "errors", "latencies", "modules"]

_STRONG, _FAINT, _MEASURED = "#1f5fa8", "#c9d3df", "#c8582b"
_MOST_MODULES = 30
_ROW_PX, _MARGIN_PX = 22, 90


def latencies(plan: Plan, measured: Sequence[tuple[float, tuple[float, float]]] = ()) -> go.Figure:
    """Dense, predicted, measured and least latency, with their intervals, against the budget."""
    bars: list[tuple[str, float, tuple[float, float] | None, str]] = [
        ("dense", plan.dense_ms, None, _FAINT),
        ("predicted", plan.predicted_ms, plan.interval_ms, _STRONG),
        *(("measured", ms, interval_ms, _MEASURED) for ms, interval_ms in measured[-1:]),
        ("least reachable", plan.minimum_ms, None, _FAINT),
    ]
    figure = go.Figure()
    for name, ms, interval_ms, colour in bars:
        low, high = interval_ms or (ms, ms)
        reach = {"type": "data", "symmetric": False, "array": [high - ms], "arrayminus": [ms - low], "color": "#333"}
        figure.add_bar(
            y=[name], x=[ms], orientation="h", marker_color=colour, error_x=reach if interval_ms else None,
            hovertemplate=f"{name}: %{{x:.4g}} ms<extra></extra>",
        )  # fmt: skip
    asked = "budget" if plan.objective == "importance" else "predicted"
    text = f"{asked} {plan.budget_ms:.4g} ms"
    figure.add_vline(plan.budget_ms, line_dash="dash", annotation_text=text, annotation_position="top")
    return _styled(figure, len(bars) + 2, "ms")


def channels(plan: Plan) -> go.Figure:
    """Channels kept and removed of every group."""
    groups = list(plan.dense)
    names = _texts(groups)
    kept = [plan.widths[group] for group in groups]
    removed = [plan.dense[group] - plan.widths[group] for group in groups]
    figure = go.Figure()
    for name, values, colour in (("kept", kept, _STRONG), ("removed", removed, _FAINT)):
        figure.add_bar(
            y=names, x=values, name=name, orientation="h", marker_color=colour,
            hovertemplate=f"%{{y}}: %{{x}} {name}<extra></extra>",
        )  # fmt: skip
    figure.update_layout(barmode="stack")
    return _styled(figure, len(groups), "channels")


def modules(dense_ms: Mapping[str, float], planned_ms: Mapping[str, float]) -> go.Figure:
    """What every module takes before and after, the slowest first; beyond thirty the rest is one row."""
    first = sorted(dense_ms, key=lambda name: -dense_ms[name])
    named, rest = first[:_MOST_MODULES], first[_MOST_MODULES:]
    names = _texts(named) + ([f"{len(rest)} further modules"] if rest else [])
    figure = go.Figure()
    for label, found, colour in (("dense", dense_ms, _FAINT), ("planned", planned_ms, _STRONG)):
        values = [found.get(name, 0.0) for name in named]
        values += [math.fsum(found.get(name, 0.0) for name in rest)] if rest else []
        figure.add_bar(
            y=names, x=values, name=label, orientation="h", marker_color=colour,
            hovertemplate=f"%{{y}}: %{{x:.3g}} ms, {label}<extra></extra>",
        )  # fmt: skip
    figure.update_layout(barmode="group")
    return _styled(figure, 2 * len(names), "ms")


def errors(found: Sequence[float], radius: float) -> go.Figure:
    """How far networks measured from what others told of them, and the interval that follows."""
    percent = [100 * math.expm1(error) for error in found]
    figure = go.Figure(
        go.Histogram(x=percent, nbinsx=20, marker_color=_STRONG, hovertemplate="%{x} %: %{y} networks<extra></extra>")
    )
    for edge in (100 * math.expm1(-radius), 100 * math.expm1(radius)):
        figure.add_vline(edge, line_dash="dash", annotation_text=f"{edge:+.1f} %", annotation_position="top")
    return _styled(figure, 12, "measured over predicted, %").update_layout(yaxis_autorange=True, yaxis_title="networks")


def _styled(figure: go.Figure, rows: int, axis: str) -> go.Figure:
    return figure.update_layout(
        template="plotly_white",
        height=_MARGIN_PX + _ROW_PX * rows,
        margin={"l": 10, "r": 20, "t": 30, "b": 40},
        xaxis_title=axis,
        yaxis={"autorange": "reversed", "automargin": True, "ticksuffix": " "},
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "traceorder": "normal"},
        showlegend=len(figure.data) == 2,
    )


def _texts(names: Sequence[str]) -> list[str]:
    """Names as they are: Plotly takes labels for HTML."""
    return [html.escape(name, quote=False) for name in names]
