"""What is said of a plan, a prediction or a verification: rows of names and values, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Sequence

from widthwise.network.network import Network
from widthwise.planner.plan import FurtherLatency, KeptLimit, Plan
from widthwise.planner.predictor import Prediction
from widthwise.planner.verification import Verification
from widthwise.profiling.target import Target

__all__ = ["Rows", "interval_text", "plan_rows", "plan_title", "prediction_rows", "verification_rows"]

Rows = list[tuple[str, str]]


def prediction_rows(prediction: Prediction, breakdown: Sequence[tuple[str, float]]) -> Rows:
    """A prediction and the share of each kind of layer."""
    total = sum(ms for _, ms in breakdown)
    rows = [("predicted", interval_text(prediction.latency_ms, prediction.interval_ms))]
    rows += [(f"  {kind}", f"{ms:.3g} ms  ({ms / total:.0%})") for kind, ms in breakdown]
    rows += [("extrapolated", ", ".join(prediction.extrapolated[:5]))] if prediction.extrapolated else []
    return rows + [("note", note) for note in prediction.notes]


def plan_rows(
    plan: Plan,
    network: Network | None = None,
    *,
    verification: Verification | None = None,
    profile_seconds: float | None = None,
) -> Rows:
    """A plan: latencies, what it costs and keeps, and its proof; not the channels kept."""
    rows = [("latencies", "what 90 % of single runs stay below")] if plan.statistic == "p90" else []
    rows += [
        ("dense", f"{plan.dense_ms:.4g} ms"),
        *_asked(plan),
        ("predicted", interval_text(plan.predicted_ms, plan.interval_ms)),
    ]
    if verification is not None:
        rows.append(("measured", _measured(verification)))
    rows.append(("least reachable", f"{plan.minimum_ms:.4g} ms"))
    rows += [_further(further) for further in plan.further]
    rows += [_limit(limit) for limit in plan.limits]
    if plan.limits or plan.further or plan.objective == "latency":
        rows.append(("what binds", ", ".join(plan.binding) or "nothing"))
    if network is not None:
        rows.append(("MACs", _change(network.macs(plan.dense), network.macs(plan.widths))))
        rows.append(("parameters", _change(network.parameters(plan.dense), network.parameters(plan.widths))))
    rows.append((f"{plan.criterion} retained", f"{plan.importance:.3f}"))
    certificate = plan.certificate
    rows.append(
        ("certificate", f"{certificate.status}, gap {certificate.gap:.1g}, solved in {certificate.seconds:.2f} s")
    )
    if profile_seconds is not None:
        rows.append(("profiling", f"{profile_seconds:.0f} s"))
    return rows + [("note", note) for note in plan.notes]


def verification_rows(verification: Verification) -> Rows:
    """Measured against predicted against budget."""
    return [
        ("dense", _dense(verification)),
        ("budget", f"{verification.budget_ms:.4g} ms"),
        ("predicted", f"{verification.predicted_ms:.4g} ms"),
        ("measured", _measured(verification)),
        ("verdict", f"{verification.verdict}: {verification.reason}"),
    ]


def plan_title(plan: Plan) -> str:
    """The model, the target and the device."""
    return f"{plan.model} on {Target.from_dict(dict(plan.table.target))}; {plan.table.device}"


def interval_text(latency_ms: float, interval_ms: tuple[float, float]) -> str:
    """``12.3 ms  (11.9 to 12.8)``."""
    low, high = interval_ms
    return f"{latency_ms:.4g} ms  ({low:.4g} to {high:.4g})"


def _asked(plan: Plan) -> list[tuple[str, str]]:
    sure = f", at {plan.confidence:.4g} confidence" if plan.confidence is not None else ""
    if plan.objective == "latency":
        return [("asked for", f"the least latency that retains {plan.keep:.4g}{sure}")]
    return [("budget", f"{plan.budget_ms:.4g} ms  ({plan.budget_ms / plan.dense_ms:.0%} of dense{sure})")]


def _further(further: FurtherLatency) -> tuple[str, str]:
    shapes = " and ".join("×".join(map(str, shape)) for shape in further.inputs)
    found = interval_text(further.predicted_ms, further.interval_ms)
    target = Target.from_dict(dict(further.table.target))
    return f"on {target}, {shapes}", f"{found}, budget {further.budget_ms:.4g} ms"


def _limit(limit: KeptLimit) -> tuple[str, str]:
    share = f"{limit.amount / limit.dense:.0%} of dense" if limit.dense else "none in the dense network"
    return limit.name.replace("_", " "), f"{_count(int(limit.amount))} of at most {_count(int(limit.most))}  ({share})"


def _dense(verification: Verification) -> str:
    known = f"{verification.dense_ms:.4g} ms"
    if verification.pace is None:
        return f"{known}; not measured again: give the model to have this machine's pace divided out"
    return f"{known}; in this run it took {verification.pace:.3f} times that, which is divided out"


def _measured(verification: Verification) -> str:
    return (
        f"{interval_text(verification.measured_ms, verification.measured_interval_ms)}, "
        f"{verification.measured_ms / verification.budget_ms:.3f} of the budget"
    )


def _change(before: int, after: int) -> str:
    return f"{_count(before)} → {_count(after)}  ({after / before:.0%})"


def _count(number: int) -> str:
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)
