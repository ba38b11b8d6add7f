"""How long does a table take? ``python -m benchmarks.table_time [--time 240] [--next 60]``

ResNet-50 is profiled on one thread as the command does it, in fresh processes: how much of the time was spent inside
timed calls. Then ResNet-101, whose layers have the same geometries, into the same table and, for comparison, into an
empty one: how far the predictions are from ResNet-101s that neither has seen, each over the dense one's latency, and
whether a plan holds.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import caption, keep

FIRST, NEXT = "torchvision:resnet50", "torchvision:resnet101"
UNSEEN = 6
_DENSE_TIMES = 2
"""The dense network is measured beside them: its error is in all theirs."""

_BUDGET = "60%"


def profile(name: str, path: Path, time_s: float) -> dict[str, Any]:
    """As ``widthwise profile`` does it."""
    import torch

    from widthwise.planner.proposal import Proposer
    from widthwise.profiling.target import Target
    from widthwise.profiling.workers import Job, profile_in_workers, workers_for

    example = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    job = Job(name, None, (example,), Target.parse("torch:cpu"), path, advise=Proposer)
    report = profile_in_workers(job, time_s=time_s, workers=workers_for(time_s))
    return {"network": name, "seconds": report.seconds, "timed_share": report.timed_s / report.seconds,
            "waited_s": report.waited_s, "dropped": dict(report.dropped), "networks": report.networks,
            "layers": report.layers, "unstable": report.unstable / (report.layers + report.networks)}  # fmt: skip


def judge(paths: dict[str, Path]) -> list[dict[str, Any]]:
    """Errors of each table's predictor on networks timed here and now, and a plan's measured over its budget."""
    import torch

    import widthwise as ww
    from widthwise.luts import Lut
    from widthwise.network.loading import load_model
    from widthwise.network.network import Network
    from widthwise.planner.predictor import LatencyPredictor
    from widthwise.profiling.profiler import candidate_for
    from widthwise.profiling.runtimes import open_runtime
    from widthwise.profiling.schedule import Pace, Schedule
    from widthwise.profiling.target import Target

    torch.set_num_threads(1)
    model = load_model(NEXT)
    example = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    network = Network.trace(model, (example,), name=NEXT)
    rng = random.Random(20261125)
    unseen = [{g: rng.choice(w[len(w) // 4 :]) for g, w in network.options().items()} for _ in range(UNSEEN)]
    runtime = open_runtime(Target.parse("torch:cpu"))
    rows = []
    for label, path in paths.items():
        with runtime.active(), Lut.open(path, readonly=True) as lut:
            quiet_ms = lut.quiet_reference_ms or 0.0
            schedule = Schedule.on(runtime, quiet_ms=quiet_ms)
            schedule.warm_up()
            drawn = [network.dense] * _DENSE_TIMES + unseen
            sessions = [runtime.network(candidate_for(model, network, widths, (example,))) for widths in drawn]
            timings = schedule.measure(sessions, Pace(blocks=5, cap_s=2.0))
            measured_ms = np.array([timing.measurement(quiet_ms).latency_ms for timing in timings])
            predictor = LatencyPredictor.fit(lut, network)
            predicted_ms = np.array([predictor.predict(widths).latency_ms for widths in unseen])
            del sessions
        measured = measured_ms[_DENSE_TIMES:] / measured_ms[:_DENSE_TIMES].mean()
        errors = predicted_ms / predictor.dense_ms / measured - 1
        with Lut.open(path, readonly=True) as lut:
            plan = ww.plan(model, example, lut=lut, budget=_BUDGET, name=NEXT)
        found = ww.verify(plan, ww.apply(plan, model, example), example, lut=path, dense=model)
        rows.append(
            {
                "table": label,
                "errors": errors.tolist(),
                "mape": float(np.abs(errors).mean()),
                "measured_to_budget": found.measured_ms / plan.budget_ms,
            }
        )
    return rows


def main() -> None:
    """Prints two Markdown tables and keeps the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--time", type=float, default=240.0, help="seconds of profiling the first network")
    parser.add_argument("--next", type=float, default=60.0, help="seconds of profiling the next one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shared, fresh = Path(folder) / "shared.lut", Path(folder) / "fresh.lut"
        profiles = [
            profile(FIRST, shared, arguments.time) | {"table": "empty"},
            profile(NEXT, shared, arguments.next) | {"table": "that of ResNet-50"},
            profile(NEXT, fresh, arguments.next) | {"table": "empty"},
        ]
        print("| network | into a table | s | inside timed calls | networks | layers | unstable | dropped blocks |")
        print("|" + "---|" * 8)
        for row in profiles:
            print(f"| {row['network']} | {row['table']} | {row['seconds']:.0f} | {row['timed_share']:.0%} "
                  f"| {row['networks']} | {row['layers']} | {row['unstable']:.1%} | {row['dropped']} |")  # fmt: skip
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            verdicts = process.submit(judge, {"that of ResNet-50": shared, "empty": fresh}).result()
    print(f"\n| ResNet-101 after {arguments.next:.0f} s in a table | error on {UNSEEN} unseen networks "
          f"| plan for {_BUDGET}: measured ÷ budget |\n|---|---|---|")  # fmt: skip
    for row in verdicts:
        print(f"| {row['table']} | {row['mape']:.1%} | {row['measured_to_budget']:.3f} |")
    print(f"\n{caption()}")
    keep("table_time", {"profiles": profiles, "next": verdicts})


if __name__ == "__main__":
    main()
