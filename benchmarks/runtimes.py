"""Runtimes compared: ``python -m benchmarks.runtimes sums|plans [NETWORK …] [--runtimes R …] [--time 90]``

``sums``: do a runtime's layers add up to its network? Randomly narrowed copies (odd widths among them) are prepared as
they would be deployed and run whole and with layers on record in turns. Σ layers over the whole, and what preparing and
recording one network takes (export, load, one run on record).

``plans``: what is a plan worth on another runtime than it was made for? The same network is profiled on every runtime,
planned for half of its dense latency there, and all plans are measured on every runtime beside the dense network.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import caption, keep

NETWORKS = ("resnet18", "mobilenet_v2", "efficientnet_b0", "googlenet")
RUNTIMES = ("torch:cpu", "torch-compile:cpu", "onnxruntime:cpu", "openvino:cpu")
BUDGET = "50%"
_RUNS = 15


def loaded(name: str, target: str) -> tuple[Any, Any, Any, Any]:
    """Model, example, the network as the target times it, and its runtime."""
    import torch

    from widthwise.network.fusion import fused
    from widthwise.network.loading import load_model
    from widthwise.network.network import Network
    from widthwise.profiling.runtimes import open_runtime
    from widthwise.profiling.target import Target

    torch.set_num_threads(1)
    model = load_model(f"torchvision:{name}")
    example = (torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)),)
    network = Network.trace(model, example, name=f"torchvision:{name}")
    runtime = open_runtime(Target.parse(target))
    return model, example, fused(network) if runtime.fuses else network, runtime


def sums(name: str, target: str, narrowed: int) -> dict[str, Any]:
    """Σ layers over the whole of each narrowed copy, seconds to prepare and record it, and how many layers it has."""
    from widthwise.profiling.profiler import candidate_for

    model, example, network, runtime = loaded(name, target)
    rng = random.Random(20261126)
    quotients, seconds = [], []
    with runtime.active():
        for index in range(narrowed + 1):  # the first only warms up
            scale = rng.uniform(0.3, 1.0)
            step = rng.choice((1, 8))
            widths = {
                group: min(dense, max(1, round(scale * rng.uniform(0.7, 1.3) * dense / step)) * step)
                for group, dense in network.dense.items()
            }
            start = time.perf_counter()
            session = runtime.network(candidate_for(model, network, widths, example))
            session.run_layers()
            session.read_layers()
            seconds.append(time.perf_counter() - start)
            for _ in range(3):
                session.run()
                session.run_layers()
            session.read_layers()
            whole = []
            for _ in range(_RUNS):
                whole.append(session.run())
                session.run_layers()
            layers = np.array(session.read_layers())
            quotients.append(float(np.median(layers, axis=0).sum() / np.median(whole)))
            del session
            if not index:
                quotients.clear()
                seconds.clear()
    return {"network": name, "runtime": target, "quotients": quotients, "prepare_s": seconds,
            "layers": len(network.layers)}  # fmt: skip


def plan_for(name: str, target: str, time_s: float, path: str) -> dict[str, Any]:
    """A plan for half of the dense latency on this runtime."""
    import widthwise as ww
    from widthwise.luts import Estimator
    from widthwise.network.granularity import Point, group_steps

    model, example, network, _ = loaded(name, target)
    with ww.profile(model, example, path=path, target=target, time_s=time_s, name=f"torchvision:{name}") as lut:
        plan = ww.plan(model, example, lut=lut, budget=BUDGET, name=f"torchvision:{name}")
        singles = lut.layers({layer.geometry for layer in network.layers}, estimator=Estimator.SINGLE)
        known = {record.spec: Point(record.latency_ms) for record in singles}
        steps = Counter(group_steps(network, known).values())
        return {"widths": plan.widths, "importance": plan.importance, "dense_ms": plan.dense_ms,
                "networks": plan.table.networks, "steps": dict(steps)}  # fmt: skip


def measured(name: str, target: str, plans: Sequence[Mapping[str, int]]) -> list[float]:
    """Each plan's latency over the dense one's on this runtime, in one interleaved run."""
    from widthwise.profiling.profiler import candidate_for
    from widthwise.profiling.schedule import Pace, Schedule

    model, example, network, runtime = loaded(name, target)
    with runtime.active():
        schedule = Schedule.on(runtime)
        sessions = [
            runtime.network(candidate_for(model, network, widths, example)) for widths in (network.dense, *plans)
        ]
        schedule.warm_up(sessions[0])
        timings = schedule.measure(sessions, Pace(blocks=10, most_blocks=20, half_width=0.005, cap_s=4.0))
        latencies = [timing.measurement(1.0).latency_ms for timing in timings]
    return [latency / latencies[0] for latency in latencies[1:]]


def in_a_process(function: Any, *arguments: Any) -> Any:
    """What the function gives when a fresh process calls it."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(function, *arguments).result()


def report_sums(networks: Sequence[str], runtimes: Sequence[str], narrowed: int) -> list[dict[str, Any]]:
    """Prints and gives the table of sums."""
    print("| network | runtime | layers | Σ layers ÷ whole: mean | least | greatest | standard deviation "
          "| s to prepare and record a network | ms a layer |\n|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    rows = []
    for name in networks:
        for target in runtimes:
            row = in_a_process(sums, name, target, narrowed)
            rows.append(row)
            found, prepare_s = np.array(row["quotients"]), float(np.median(row["prepare_s"]))
            print(
                f"| {name} | {target} | {row['layers']} | {found.mean():.3f} | {found.min():.3f} | {found.max():.3f} "
                f"| {found.std():.1%} | {prepare_s:.2f} | {prepare_s / row['layers'] * 1e3:.1f} |",
                flush=True,
            )
    return rows


def report_plans(networks: Sequence[str], runtimes: Sequence[str], time_s: float) -> list[dict[str, Any]]:
    """Prints and gives the table of plans."""
    titles = ["network", f"planned for {BUDGET} on", "steps found (groups)", "magnitude retained"]
    titles += [f"÷ dense on {runtime}" for runtime in runtimes]
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    rows = []
    for name in networks:
        with tempfile.TemporaryDirectory() as folder:
            plans = [
                in_a_process(plan_for, name, target, time_s, str(Path(folder) / f"{index}.lut"))
                for index, target in enumerate(runtimes)
            ]
        columns = [in_a_process(measured, name, target, [plan["widths"] for plan in plans]) for target in runtimes]
        for index, (target, plan) in enumerate(zip(runtimes, plans, strict=True)):
            shares = [column[index] for column in columns]
            rows.append(
                {"network": name, "planned_for": target, **plan, "measured": dict(zip(runtimes, shares, strict=True))}
            )
            cells = " | ".join(
                f"**{share:.3f}**" if runtime == target else f"{share:.3f}"
                for runtime, share in zip(runtimes, shares, strict=True)
            )
            steps = ", ".join(f"{step} ({groups})" for step, groups in sorted(plan["steps"].items())) or "none"
            made_for = f"{target} ({plan['dense_ms']:.3g} ms)"
            print(f"| {name} | {made_for} | {steps} | {plan['importance']:.3f} | {cells} |", flush=True)
    return rows


def main() -> None:
    """Prints a Markdown table and keeps the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("sums", "plans"))
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--runtimes", nargs="+", default=RUNTIMES)
    parser.add_argument("--narrowed", type=int, default=20, help="narrowed copies of each network")
    parser.add_argument("--time", type=float, default=90.0, help="seconds of profiling for a plan")
    arguments = parser.parse_args()
    if arguments.what == "sums":
        rows = report_sums(arguments.networks, arguments.runtimes, arguments.narrowed)
    else:
        rows = report_plans(arguments.networks, arguments.runtimes, arguments.time)
    print(f"\n{caption()}")
    keep(f"runtimes-{arguments.what}", rows)


if __name__ == "__main__":
    main()
