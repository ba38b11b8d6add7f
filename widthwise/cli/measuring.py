"""Commands that touch the device: profile, verify, device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from widthwise.cli.common import (
    UNMET,
    Inputs,
    Json,
    LutPath,
    Model,
    Weights,
    emit,
    note,
    open_dense,
    open_model,
    parse_duration,
    parse_inputs,
    progress,
    reported,
)

__all__ = ["device", "profile", "verify"]

TargetName = Annotated[str, typer.Option("--target", help="RUNTIME:DEVICE; `widthwise device` lists them.")]
Threads = Annotated[int, typer.Option("--threads", help="Intra-op threads.")]


@reported
def profile(
    model: Model,
    inputs: Inputs,
    lut: LutPath,
    target: TargetName = "torch:cpu",
    threads: Threads = 1,
    dtype: Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16.")] = "float32",
    memory_format: Annotated[str, typer.Option("--memory-format", help="contiguous or channels_last.")] = "contiguous",
    time: Annotated[str, typer.Option("--time", help="How long to measure: 90s, 3m.")] = "4m",
    workers: Annotated[
        int, typer.Option("--workers", min=0, help="Fresh processes to share the time among; 0: one a minute, up to 4.")
    ] = 0,
    weights: Weights = None,
    as_json: Json = False,
) -> None:
    """Measure a network's layers on this device into a lookup table. Run again to continue or refine it.

    Example: widthwise profile torchvision:resnet18 --input 1,3,224,224 --target torch:cpu --threads 1 --lut device.lut
    """
    time_s = parse_duration(time)
    example = parse_inputs(inputs)
    from widthwise.network.network import Network
    from widthwise.planner.proposal import Proposer
    from widthwise.profiling import profiler
    from widthwise.profiling.target import Target
    from widthwise.profiling.workers import Job, profile_in_workers, workers_for
    from widthwise.report.terminal import facts, show

    where = Target.parse(target, threads=threads, dtype=dtype, memory_format=memory_format)
    module = open_model(model, weights)
    network = Network.trace(module, example, name=model)
    if not network.free:
        note(f"widthwise: {model} has no prunable channels; its latency is measured, but no plan can change it")
    processes = workers or workers_for(time_s)
    with progress(f"profiling {model}") as on_progress:
        if processes == 1:
            report = profiler.profile(
                module,
                network,
                example,
                target=where,
                path=lut,
                time_s=time_s,
                adviser=Proposer(module, network),
                on_progress=on_progress,
            )
        else:
            del module  # the workers make their own; only one model is held at a time
            job = Job(model, weights, example, where, lut, advise=Proposer)
            report = profile_in_workers(job, time_s=time_s, workers=processes, on_progress=on_progress)
    if as_json:
        emit({**asdict(report), "lut": str(lut)})
        return
    rows = [
        ("dense", f"{report.dense_ms:.4g} ms"),
        ("measured", f"{report.networks} networks and {report.layers} layers in {report.seconds:.0f} s"),
        ("unstable", f"{report.unstable} measurements didn't settle"),
        ("taken again", _counts(report.dropped) or "no block"),
        ("granularity", _steps(report.steps)),
        ("next", f"widthwise plan {model} --input {' --input '.join(inputs)} --lut {lut} --budget 60% -o plan.json"),
    ]
    show(facts(f"{model} on {where} → {lut}", rows))


def _steps(steps: Mapping[str, int]) -> str:
    groups = Counter(steps.values())
    return ", ".join(f"{step} channels ({count} groups)" for step, count in sorted(groups.items())) or "8, by default"


def _counts(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{count} blocks ({reason})" for reason, count in reasons.items())


@reported
def verify(
    plan: Annotated[Path, typer.Argument(help="The plan.")],
    lut: LutPath,
    model: Annotated[str | None, typer.Argument(help="The dense model; by default the plan's own.")] = None,
    weights: Weights = None,
    replan: Annotated[int, typer.Option("--replan", help="New plans at most, until one measures within.")] = 0,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Where to write the best plan.")] = None,
    as_json: Json = False,
) -> None:
    """Measure a plan against its prediction and its budget, in one interleaved run with the dense model.

    With --replan N what was measured corrects the next plan, until one is within the budget and near it.

    Example: widthwise verify plan.json --lut device.lut --replan 2 -o better.json
    """
    from widthwise.luts.errors import BadInput

    if replan < 0 or (replan and output is None):
        raise BadInput("--replan takes a number of new plans, at least 0, and needs -o for the best of them")
    from widthwise.planner.closed_loop import Attempt, best_of, close_loop
    from widthwise.planner.plan import Plan
    from widthwise.planner.verification import Verdict
    from widthwise.pruning.executor import examples_of, traced_for
    from widthwise.report.terminal import show, verification_table

    loaded = Plan.read(plan)
    dense = open_dense(loaded, plan, model, weights, "verify")
    example = examples_of(loaded)
    traced_for(loaded, dense, example)

    def on_attempt(attempt: Attempt) -> None:
        if replan:
            note(f"widthwise: measured {attempt.share:.3f} of the budget, retained {attempt.plan.importance:.3f}")

    attempts = close_loop(loaded, dense, example, path=lut, rounds=replan, on_attempt=on_attempt)
    best = best_of(attempts)
    if output is not None:
        best.plan.write(output)
    if as_json:
        emit({**asdict(best.verification), "attempts": [attempt.share for attempt in attempts]})
    else:
        show(verification_table(best.verification))
    if best.verification.verdict is Verdict.MISSES:
        raise typer.Exit(UNMET)


@reported
def device(threads: Threads = 1, as_json: Json = False) -> None:
    """Show what would be fingerprinted here, which targets can run, and what makes timing unreliable.

    Example: widthwise device
    """
    from widthwise.profiling.device import fingerprint, gpu_fields, hazards
    from widthwise.profiling.runtimes import targets_here
    from widthwise.report.terminal import facts, rows_table, show

    found, fields = hazards(threads), fingerprint(more=gpu_fields())
    if as_json:
        emit({"fingerprint": fields, "targets": targets_here(), "hazards": [asdict(hazard) for hazard in found]})
        return
    show(facts("device", [(name, str(value)) for name, value in fields.items()]))
    show(facts("targets", list(targets_here().items())))
    rows = [(hazard.what, hazard.found, hazard.remedy) for hazard in found]
    show(
        rows_table("what makes timing unreliable here", ("what", "found", "remedy"), rows) if rows else "fit for timing"
    )
