"""Does a plan deliver the latency it was asked for? ``python -m benchmarks.budgets [NETWORK …] [--time 240]``;
``--target torch-cudagraph:cuda --dtype float16 --memory-format channels_last --batch 8`` for a GPU.

Each network is profiled in a process of its own (for its peak memory), planned at 80, 60 and 40 % of its dense
latency, and measured in one interleaved run with the dense model. With ``--replan 2`` the measurement corrects the next
plan, at most twice. The pace is what the dense model took in that run over what it took while profiling, both as ratios
to the reference kernels; the measured latency is divided by it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import caption, keep

NETWORKS = ("resnet18", "resnet50", "vgg16_bn", "mobilenet_v2")
BUDGETS = ("80%", "60%", "40%")


def delivered(
    model: Any, example: Any, path: Path, *, name: str, budgets: Sequence[str], replan: int
) -> Iterator[dict[str, Any]]:
    """Plans for each budget from the table, measured and planned anew; the table gains every measurement."""
    import widthwise as ww
    from widthwise.luts.errors import InfeasibleBudget
    from widthwise.luts.store import Lut
    from widthwise.planner.closed_loop import best_of, close_loop

    for budget in budgets:
        try:
            with Lut.open(path, readonly=True) as lut:
                plan = ww.plan(model, example, lut=lut, budget=budget, name=name)
        except InfeasibleBudget as error:
            print(f"{name} at {budget}: {error}", flush=True)
            continue
        attempts = close_loop(plan, model, [example], path=path, rounds=replan)
        best, found = best_of(attempts), attempts[0].verification
        yield {
            "budget": budget,
            "dense_ms": plan.dense_ms,
            "pace": found.pace,
            "budget_ms": plan.budget_ms,
            "predicted_ms": plan.predicted_ms,
            "interval_ms": plan.interval_ms,
            "measured_ms": found.measured_ms,
            "measured_interval_ms": found.measured_interval_ms,
            "measured_to_budget": found.measured_ms / plan.budget_ms,
            "attempts": [attempt.share for attempt in attempts],
            "best": best.share,
            "best_importance": best.plan.importance,
            "gap": plan.gap,
            "solve_seconds": plan.certificate.seconds,
            "importance": plan.importance,
            "networks": plan.table.networks,
        }


def run(
    network: str,
    arguments: argparse.Namespace,
    options: dict[str, Any],
    results: multiprocessing.SimpleQueue[str],
) -> None:
    """Profiles one network and delivers all budgets."""
    import torch

    import widthwise as ww
    from widthwise.network.loading import load_model

    torch.set_num_threads(1)
    name = f"torchvision:{network}"
    model = load_model(name)
    example = torch.randn(arguments.batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        path = Path(folder) / "device.lut"
        ww.profile(model, example, path=path, time_s=arguments.time, name=name, **options).close()
        profile_seconds = time.perf_counter() - start
        found = delivered(model, example, path, name=name, budgets=arguments.budgets, replan=arguments.replan)
        rows = [{"network": network, "batch": arguments.batch, **options, **row} for row in found]
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    results.put(json.dumps([{**row, "profile_seconds": profile_seconds, "peak_gb": peak_gb} for row in rows]))


def main() -> None:
    """Prints a Markdown table and keeps the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--time", type=float, default=240.0, help="seconds of profiling a network")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--budgets", nargs="+", default=BUDGETS)
    parser.add_argument("--replan", type=int, default=0, help="new plans at most")
    parser.add_argument("--target", default="torch:cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--memory-format", default="contiguous")
    arguments = parser.parse_args()
    options = {name: getattr(arguments, name) for name in ("target", "dtype", "memory_format")}
    print("| network | budget | dense ms | budget ms | predicted ms | measured ms | measured ÷ budget | after re-plans "
          "| pace | gap | solve s | profile s | peak GiB |")  # fmt: skip
    print("|" + "---|" * 13)
    rows: list[dict[str, Any]] = []
    context = multiprocessing.get_context("spawn")
    for network in arguments.networks:
        results: multiprocessing.SimpleQueue[str] = context.SimpleQueue()
        process = context.Process(target=run, args=(network, arguments, options, results))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(f"{network} failed; see above")
        for row in json.loads(results.get()):
            rows.append(row)
            low, high = row["interval_ms"]
            predicted = f"{row['predicted_ms']:.4g} ({low:.4g} to {high:.4g})"
            again = f"**{row['best']:.3f}** ({len(row['attempts']) - 1})"
            print(
                f"| {row['network']} | {row['budget']} | {row['dense_ms']:.4g} | {row['budget_ms']:.4g} | {predicted} "
                f"| {row['measured_ms']:.4g} | {row['measured_to_budget']:.3f} | {again} | {row['pace']:.3f} "
                f"| {row['gap']:.0e} | {row['solve_seconds']:.1f} | {row['profile_seconds']:.0f} "
                f"| {row['peak_gb']:.2f} |",
                flush=True,
            )
    inside = sum(0.90 <= row["measured_to_budget"] <= 1.05 for row in rows)
    held = sum(0.95 <= row["best"] <= 1.0 for row in rows)
    print(f"\nFirst shot: {inside} of {len(rows)} within 0.90 to 1.05 of the budget; after at most {arguments.replan} "
          f"new plans {held} within 0.95 to 1.00. {caption()}")  # fmt: skip
    keep("budgets" if arguments.target == "torch:cpu" else f"budgets-{arguments.target.replace(':', '-')}", rows)


if __name__ == "__main__":
    main()
