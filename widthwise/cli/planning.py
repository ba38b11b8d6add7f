"""Commands that compute: predict, plan, frontier, solve."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from widthwise.cli.common import (
    UNMET,
    Inputs,
    Json,
    LutPath,
    Model,
    Weights,
    emit,
    open_model,
    parse_inputs,
    progress,
    reported,
)
from widthwise.cli.limits import (
    AlsoTables,
    Confidence,
    Fixed,
    Keep,
    MaxActivationMemory,
    MaxMacs,
    MaxParameters,
    MaxWeightMemory,
    MaxWidths,
    MinWidths,
    Objective,
    StatisticOption,
    asked,
    statistic_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from widthwise.network.network import Network
    from widthwise.planner.importance import Importance
    from widthwise.planner.plan import Plan

__all__ = ["frontier", "plan", "predict", "solve"]

_FROM_DATA = ("wanda", "activation", "taylor", "sensitivity")
_BATCHES = 20
_ASKED = ("objective", "keep", "confidence", "limits", "bounds", "further", "binding")
"""Keys of `plan --json` that are there where something else than a budget was asked for."""


@reported
def predict(
    model: Model,
    inputs: Inputs,
    lut: LutPath,
    widths: Annotated[Path | None, typer.Option("--widths", help="JSON file: group → channels kept.")] = None,
    plan: Annotated[Path | None, typer.Option("--plan", help="Predict this plan's widths.")] = None,
    by: Annotated[str, typer.Option("--by", help="Break the latency down by kind, module or layer.")] = "kind",
    statistic: StatisticOption = "p50",
    as_json: Json = False,
) -> None:
    """Predict the latency of a network, dense or narrowed, from a table alone.

    Example: widthwise predict torchvision:resnet18 --input 1,3,224,224 --lut device.lut
    """
    from widthwise.luts.errors import BadInput

    if widths is not None and plan is not None:
        raise BadInput("give one of --widths and --plan")
    if by not in ("kind", "module", "layer"):
        raise BadInput(f"--by takes kind, module or layer, got {by!r}")
    example = parse_inputs(inputs)
    from widthwise.api import opened
    from widthwise.network.network import Network
    from widthwise.planner.predictor import LatencyPredictor
    from widthwise.report.terminal import prediction_table, show

    with opened(lut) as table:
        network = Network.trace(open_model(model, None), example, name=model)
        predictor = LatencyPredictor.fit(table, network).at(statistic_of(statistic))
    wanted = _widths(widths, plan)
    prediction, parts = predictor.predict(wanted), predictor.totals(wanted, by=by)
    if as_json:
        emit(
            {
                "predicted_ms": prediction.latency_ms,
                "interval_ms": prediction.interval_ms,
                "breakdown": parts,
                "extrapolated": prediction.extrapolated,
                "between": prediction.between,
                "notes": prediction.notes,
            }
        )
        return
    show(prediction_table(network, prediction, list(parts.items())))


@reported
def plan(
    model: Model,
    inputs: Inputs,
    lut: LutPath,
    budget: Annotated[str | None, typer.Option("--budget", help="20ms, or 60% of the dense latency.")] = None,
    importance: Annotated[
        str,
        typer.Option(
            "--importance",
            help="magnitude, l1, l2, fpgm, gamma, std, mean; wanda, activation, taylor, sensitivity with --data.",
        ),
    ] = "magnitude",
    data: Annotated[str | None, typer.Option("--data", help="For what needs images: digits, …")] = None,
    weights: Weights = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Where to write the plan.")] = None,
    time_limit: Annotated[float, typer.Option("--time-limit", help="Seconds for the solver.")] = 60.0,
    verify: Annotated[
        int | None, typer.Option("--verify", help="Measure the plan here, and so many better ones at most.")
    ] = None,
    objective: Objective = "importance",
    keep: Keep = None,
    max_parameters: MaxParameters = None,
    max_macs: MaxMacs = None,
    max_weight_memory: MaxWeightMemory = None,
    max_activation_memory: MaxActivationMemory = None,
    min_width: MinWidths = None,
    max_width: MaxWidths = None,
    fix: Fixed = None,
    confidence: Confidence = None,
    also: AlsoTables = None,
    statistic: StatisticOption = "p50",
    as_json: Json = False,
) -> None:
    """Choose every layer's channels: the most importance within the budget, with the proof.

    Example: widthwise plan torchvision:resnet18 --input 1,3,224,224 --lut device.lut --budget 60% -o plan.json
    """
    from widthwise.luts.errors import BadInput

    most = {"parameters": max_parameters, "macs": max_macs}
    most |= {"weight_memory": max_weight_memory, "activation_memory": max_activation_memory}
    demands = asked(
        objective=objective,
        budget=budget,
        keep=keep,
        most=most,
        min_width=min_width,
        max_width=max_width,
        fix=fix,
        confidence=confidence,
        also=also,
    )
    if (importance in _FROM_DATA) != (data is not None):
        raise BadInput(
            f"--importance {' or '.join(_FROM_DATA)} and --data go together: they ask what channels do on images"
        )
    if verify is not None and verify < 0:
        raise BadInput(f"--verify takes a number of further plans, at least 0, got {verify}")
    example = parse_inputs(inputs)
    from widthwise import api
    from widthwise.network.fusion import as_timed
    from widthwise.network.granularity import options_from
    from widthwise.network.network import Network
    from widthwise.planner.importance import score
    from widthwise.report.terminal import plan_table, show

    with api.opened(lut) as table:
        module = open_model(model, weights)
        network = Network.trace(module, example, name=model)
        options = options_from(table, as_timed(network, table))
        ranked = (
            score(module, network, importance)
            if data is None
            else _from_data(importance, module, network, data, options)
        )
        demands |= {"statistic": statistic_of(statistic), "time_limit_s": time_limit}
        made = api.plan(module, example, lut=table, importance=ranked, name=model, **demands)
    found = None
    if verify is not None:
        made, found = api.replan(made, module, example, lut=lut, rounds=verify, importance=ranked)
    if output is not None:
        made.write(output)
    if as_json:
        measured = {} if found is None else {"measured_ms": found.measured_ms, "verdict": found.verdict}
        emit({**_plan_keys(made), **measured})
    else:
        show(plan_table(made, network, verification=found))
        if output is not None:
            show(f"written to {output}; next: widthwise apply {output} {model} -o OUT/")


@reported
def frontier(
    model: Model,
    inputs: Inputs,
    lut: LutPath,
    importance: Annotated[str, typer.Option("--importance", help="How channels are ranked.")] = "magnitude",
    weights: Weights = None,
    points: Annotated[int, typer.Option("--points", help="Budgets between the least and the dense latency.")] = 20,
    as_json: Json = False,
) -> None:
    """Show what can be kept at every latency; each point is proved.

    Example: widthwise frontier torchvision:resnet18 --input 1,3,224,224 --lut device.lut
    """
    example = parse_inputs(inputs)
    from widthwise import api
    from widthwise.network.granularity import options_from
    from widthwise.network.network import Network
    from widthwise.planner.frontier import frontier as trace_frontier
    from widthwise.planner.importance import score
    from widthwise.planner.predictor import LatencyPredictor
    from widthwise.report.terminal import rows_table, show

    with api.opened(lut) as table, progress("frontier") as on_progress:
        module = open_model(model, weights)
        predictor = LatencyPredictor.fit(table, Network.trace(module, example, name=model))
        found = trace_frontier(
            predictor,
            score(module, predictor.network, importance),
            options_from(table, predictor.network),
            points=points,
            on_progress=lambda share: on_progress(share, ""),
        )
    if as_json:
        emit({"dense_ms": predictor.dense_ms, "points": [asdict(point) for point in found]})
        return
    rows = [
        (
            f"{point.latency_ms:.4g}",
            f"{point.latency_ms / predictor.dense_ms:.0%}",
            f"{point.importance:.3f}",
            f"{point.gap:.0e}",
        )
        for point in found
    ]
    show(rows_table(f"{model}: the frontier", ("ms", "of dense", f"{importance} retained", "gap"), rows))


@reported
def solve(
    problem: Annotated[Path, typer.Argument(help="The problem, see docs/architecture.md.")],
    time_limit: Annotated[float, typer.Option("--time-limit", help="Seconds.")] = 60.0,
    as_json: Json = False,
) -> None:
    """Solve an allocation problem given as data, to proven optimality.

    Example: widthwise solve problem.json --json
    """
    from widthwise.planner.problem import Problem
    from widthwise.planner.solver import solve as solve_exactly

    answer = solve_exactly(Problem.read(problem), time_limit_s=time_limit)
    data = answer.model_dump(mode="json")
    if as_json:
        emit(data)
    else:
        from widthwise.report.terminal import facts, show

        show(facts(str(problem), [(name, json.dumps(value)) for name, value in data.items()]))
    if answer.status == "infeasible":
        raise typer.Exit(UNMET)


def _from_data(
    importance: str, model: nn.Module, network: Network, data: str, options: Mapping[str, Sequence[int]]
) -> Importance:
    from itertools import islice

    from widthwise.planner.responses import activation, taylor, wanda
    from widthwise.planner.sensitivity import sensitivity
    from widthwise.pruning.data import load_data
    from widthwise.pruning.evaluation import evaluate, recalibrate
    from widthwise.pruning.holdout import hold_out

    shape = network.inputs[0]
    loaded = load_data(data, channels=shape[1], image_size=(shape[2], shape[3]))
    if importance != "sensitivity":
        measure = {"activation": activation, "taylor": taylor, "wanda": wanda}[importance]
        return measure(model, network, islice(loaded.train, _BATCHES))
    train, held = hold_out(loaded.train)

    def loss_of(small: nn.Module) -> float:
        recalibrate(small, train, _BATCHES)
        return evaluate(small, held).loss

    with progress("sensitivity") as on_progress:
        return sensitivity(model, network, options, loss_of, on_progress=lambda share: on_progress(share, ""))


def _plan_keys(made: Plan) -> dict[str, Any]:
    later = made.model_dump(mode="json", include=set(_ASKED))
    return {
        "dense_ms": made.dense_ms,
        "budget_ms": made.budget_ms,
        "predicted_ms": made.predicted_ms,
        "interval_ms": made.interval_ms,
        "minimum_ms": made.minimum_ms,
        "importance": made.importance,
        "gap": made.gap,
        "solve_seconds": made.certificate.seconds,
        "status": made.certificate.status,
        "statistic": made.statistic,
        "widths": made.widths,
        "notes": made.notes,
        **later,
    }


def _widths(widths: Path | None, plan: Path | None) -> dict[str, int]:
    from widthwise.luts.errors import BadInput
    from widthwise.planner.plan import Plan

    if plan is not None:
        return Plan.read(plan).widths
    if widths is None:
        return {}
    try:
        data = json.loads(widths.read_text())
    except ValueError as error:
        raise BadInput(f"{widths} is not JSON ({error}); give an object: group → channels kept") from error
    if not isinstance(data, dict) or not all(type(width) is int for width in data.values()):
        raise BadInput(f"{widths} must hold one object: group → channels kept")
    return data
