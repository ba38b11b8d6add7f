"""The command that changes a model: apply."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from widthwise.cli.common import Json, Model, Weights, emit, note, open_model, progress, reported

if TYPE_CHECKING:
    from torch import nn

    from widthwise.planner.plan import Plan
    from widthwise.pruning.data import Data
    from widthwise.pruning.methods import Applied, Effort
    from widthwise.pruning.training import EpochReport

__all__ = ["apply"]


@reported
def apply(
    plan: Annotated[Path, typer.Argument(help="The plan.")],
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the narrow model.")],
    weights: Weights = None,
    method: Annotated[str, typer.Option("--method", help="l1, slimming, resrep or metapruning.")] = "l1",
    data: Annotated[
        str | None, typer.Option("--data", help="digits, fashion-mnist[:PATH], cifar10-jpeg:PATH, …")
    ] = None,
    epochs: Annotated[int, typer.Option("--epochs", help="Epochs of training in all, with --data.")] = 0,
    lr: Annotated[float, typer.Option("--lr", help="Learning rate, at its highest.")] = 0.01,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Images per step.")] = 64,
    seed: Annotated[int, typer.Option("--seed", help="Of everything random.")] = 0,
    distill: Annotated[bool, typer.Option("--distill", help="Learn from the dense model too.")] = False,
    rounds: Annotated[int, typer.Option("--rounds", help="Steps of l1, with retraining between them.")] = 1,
    lut: Annotated[Path | None, typer.Option("--lut", help="The plan's table; metapruning needs it.")] = None,
    checkpoints: Annotated[
        Path | None, typer.Option("--checkpoints", help="Folder; the same command again goes on from there.")
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option("--export", help="onnx or pt2: also write it as such; repeat for both."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make the narrow model of a plan, train it if data is given, and save it without pickle.

    Example: widthwise apply plan.json torchvision:resnet18 --weights resnet18.safetensors -o small/
    """
    from widthwise.luts.errors import BadInput
    from widthwise.pruning.methods import METHODS, Effort

    if method not in METHODS:
        raise BadInput(f"no method {method!r}; there are {', '.join(METHODS)}")
    if epochs < 0 or (epochs and data is None):
        raise BadInput("--epochs needs --data and a number of at least 0")
    if (method != "l1" or rounds != 1) and not epochs:
        raise BadInput(f"{method} prunes by training: give --data and --epochs (l1 in one round needs neither)")
    from widthwise.planner.plan import Plan
    from widthwise.pruning import artifact
    from widthwise.pruning.executor import examples_of
    from widthwise.pruning.export import export, require_exporters
    from widthwise.pruning.recipe import Recipe

    loaded = Plan.read(plan)
    artifact.require_writable(output)
    require_exporters(formats or ())
    dense = open_model(model, weights)
    effort = Effort(
        epochs, Recipe(lr=lr, seed=seed), rounds=rounds, teacher=dense if distill else None, checkpoints=checkpoints
    )
    small, final, answer = _applied(method, dense, loaded, data, batch_size, effort, lut)
    if int(os.environ.get("RANK", "0")) == 0:  # under accelerate launch every process gets here
        artifact.save(output, small, final)
        exports = [asdict(made) for made in export(small, examples_of(final), output, formats or ())]
        _answer({"output": str(output), **answer, **({"exports": exports} if exports else {})}, final, as_json)


def _applied(
    method: str, dense: nn.Module, plan: Plan, data: str | None, batch_size: int, effort: Effort, lut: Path | None
) -> tuple[nn.Module, Plan, dict[str, Any]]:
    """The narrow model, its plan, and the figures to show."""
    from widthwise.pruning.filters import FilterPruning

    figures: dict[str, Any] = {}
    small = None
    if method == "l1" and effort.rounds == 1:
        run = FilterPruning(dense, plan)
        small = run.finish()
        figures["difference"] = run.difference
        if run.rescored:
            note(
                "widthwise: the plan was made from other weights; channels were ranked anew by these, at the plan's "
                "widths"
            )
    if data is None:
        assert small is not None  # other methods were refused without data
        return small, plan, figures
    from widthwise.pruning.data import load_data
    from widthwise.pruning.training import evaluate

    shape = plan.inputs[0]
    loaded = load_data(
        data, batch_size=batch_size, channels=shape[1], image_size=(shape[2], shape[3]), seed=effort.recipe.seed
    )
    figures["accuracy_dense"] = evaluate(dense, loaded.test).accuracy
    if small is not None:
        figures["accuracy_before"] = evaluate(small, loaded.test).accuracy
    if effort.epochs:
        applied = _trained(method, dense, plan, loaded, effort, lut)
        small, plan = applied.model, applied.plan
        for line in applied.notes:
            note(f"widthwise: {line}")
    assert small is not None
    figures["accuracy"] = evaluate(small, loaded.test).accuracy
    return small, plan, figures


def _trained(method: str, dense: nn.Module, plan: Plan, data: Data, effort: Effort, lut: Path | None) -> Applied:
    from widthwise.pruning.methods import execute

    share, text = 0.0, ""

    def on_share(done: float) -> None:
        nonlocal share
        share = done
        on_progress(share, text)

    def on_epoch(phase: str, report: EpochReport) -> None:
        nonlocal text
        accuracy = f"accuracy {report.test.accuracy:.2%}" if report.test is not None else f"loss {report.loss:.3g}"
        left = f", {report.remaining_s / 60:.0f} min left" if report.remaining_s >= 60 else ""
        text = f"{phase}: {accuracy}{left}"
        on_progress(share, text)

    with progress(method) as on_progress:
        latencies = {} if lut is None else _latencies(dense, plan, lut)
        return execute(method, dense, plan, data, effort, on_epoch=on_epoch, on_share=on_share, **latencies)


def _latencies(dense: nn.Module, plan: Plan, lut: Path) -> dict[str, Any]:
    from widthwise.api import opened
    from widthwise.network.granularity import options_from
    from widthwise.planner.predictor import LatencyPredictor
    from widthwise.pruning.executor import examples_of, traced_for

    network = traced_for(plan, dense, examples_of(plan))
    with opened(lut) as table:
        predictor = LatencyPredictor.fit(table, network).at(plan.statistic)
        return {"predictor": predictor, "options": options_from(table, predictor.network)}


def _answer(answer: dict[str, Any], plan: Plan, as_json: bool) -> None:
    if as_json:
        emit(answer)
        return
    from widthwise.report.terminal import facts, show

    rows = []
    if "difference" in answer:
        rows.append(
            ("proof", f"narrow = dense with removed channels silenced, to {answer['difference']:.1g} (relative)")
        )
    names = {"accuracy_dense": "accuracy, dense", "accuracy_before": "right after surgery", "accuracy": "accuracy"}
    rows += [(title, f"{answer[name]:.2%}") for name, title in names.items() if name in answer]
    for made in answer.get("exports", ()):
        batch = "any batch size" if made["dynamic_batch"] else "this batch size only"
        opset = f", opset {made['opset']}" if made["opset"] else ""
        rows.append((made["file"], f"as PyTorch to {made['difference']:.1g} (relative), {batch}{opset}"))
    rows.append(("reload", f"widthwise.load({answer['output']!r})"))
    show(facts(f"{plan.model} → {answer['output']}", rows))
