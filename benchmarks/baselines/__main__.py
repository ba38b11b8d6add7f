"""What each way of allocating keeps within the same latency: ``python -m benchmarks.baselines [NETWORK …]``.

Networks are read from their tables in ``build/allocation`` (``--time 240`` profiles those that have none), and
planned for 70, 50 and 30 % of their dense latency by L1 importance. All methods see the same problem, and their
widths are priced again exactly: what they retain (1 for the dense network), and how much of the budget they use.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.baselines.evolution import evolution, random_search
from benchmarks.baselines.halp import halp, halp_exact
from benchmarks.baselines.networks import NETWORKS, by_layer, profiled, read
from benchmarks.baselines.simple import fastnas, netadapt, uniform
from benchmarks.machine import caption, keep
from widthwise.planner.problem import Answer, Problem
from widthwise.planner.solver import solve

MANY_CALLS = 10_000
"""What searches get besides, some hundred times ours."""

Method = Callable[[Problem], dict[str, int] | None]
METHODS: dict[str, Method] = {
    "uniform": uniform,
    "HALP, one shot": partial(halp, steps=1),
    "HALP, 30 steps": partial(halp, steps=30),
    "HALP, 30 steps, exact knapsack": partial(halp_exact, steps=30),
    "NetAdapt": netadapt,
    "FastNAS": fastnas,
}


def compare(problem: Problem) -> dict[str, Any]:
    """Every method's answer to one problem; ours first."""
    ours, calls = counted(problem)
    widths = ours.widths if ours.status != "infeasible" else None
    methods: dict[str, Method] = {
        **METHODS,
        "evolution, our calls": partial(evolution, calls=calls),
        f"evolution, {MANY_CALLS:,} calls": partial(evolution, calls=MANY_CALLS),
        f"random, {MANY_CALLS:,} calls": partial(random_search, calls=MANY_CALLS),
    }
    found = {"widthwise": priced(problem, widths, ours.seconds)}
    for name, method in methods.items():
        start = time.perf_counter()
        widths = method(problem)
        found[name] = priced(problem, widths, time.perf_counter() - start)
    about = {"budget_ms": problem.budget_ms, "minimum_ms": ours.minimum_ms, "gap": ours.gap, "calls": calls}
    return {**about, "methods": found}


def counted(problem: Problem) -> tuple[Answer, int]:
    """Our answer, and how many latencies it took.

    The allocator reads every entry of the cost tables once, and a latency of the whole network is one entry of each;
    what it prices while it searches comes on top.
    """
    with mock.patch.object(Problem, "latency_ms", autospec=True, side_effect=Problem.latency_ms) as asked:
        answer = solve(problem)
    entries = sum(cost.ms.size for cost in problem.costs)
    return answer, math.ceil(entries / max(len(problem.costs), 1)) + asked.call_count


def priced(problem: Problem, widths: dict[str, int] | None, seconds: float) -> dict[str, float | None]:
    """What widths retain and use of the budget, recomputed from the problem."""
    if widths is None:
        return {"retained": None, "used": None, "seconds": seconds}
    retained, used = math.exp(problem.importance(widths) - 1), problem.latency_ms(widths) / problem.budget_ms
    return {"retained": retained, "used": used, "seconds": seconds}


def cell(found: dict[str, float | None]) -> str:
    """A cell of the table; a dash where the budget isn't met."""
    return "–" if found["retained"] is None else f"{found['retained']:.3f} ({found['used']:.1%})"


def better_than_ours(rows: list[dict[str, Any]]) -> list[str]:
    """Answers that keep more than ours, which would refute its proof."""
    refuted = []
    for row in rows:
        ours = row["methods"]["widthwise"]["retained"] or 0.0
        for name, found in row["methods"].items():
            if (found["retained"] or 0.0) > ours:
                refuted.append(f"{row['network']} at {row['share']:.0%}: {name} keeps {found['retained']}, ours {ours}")
    return refuted


def main() -> None:
    """Prints a Markdown table and keeps the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.baselines", description=__doc__)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--folder", type=Path, default=Path("build/allocation"), help="where NETWORK.lut lies")
    parser.add_argument("--time", type=float, help="profile networks without a table for so many seconds each")
    parser.add_argument("--target", default="onnxruntime:cpu", help="what to profile them on")
    parser.add_argument("--budgets", nargs="+", type=float, default=(0.7, 0.5, 0.3), help="shares of the dense latency")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in arguments.networks:
        path = arguments.folder / f"{name}.lut"
        if not path.exists():
            if arguments.time is None:
                parser.error(f"{path} does not exist; --time 240 profiles {name} on {arguments.target} into it")
            profiled(name, path, target=arguments.target, time_s=arguments.time)
        case = read(name, path)
        dense = by_layer(case)
        about = {"network": name, "table": case.table, "dense_ms": case.predictor.dense_ms,
                 "groups": len(dense.groups), "layers": len(dense.costs)}  # fmt: skip
        for share in arguments.budgets:
            problem = dense.model_copy(update={"budget_ms": share * case.predictor.dense_ms})
            rows.append({**about, "share": share, **compare(problem)})
            show(rows[-1], head=len(rows) == 1)
    print(f"\nRetained (used of the budget). {caption()}")
    if all(row["table"]["runtime"] != "fake" for row in rows):
        keep("allocation-baselines", rows)
    if refuted := better_than_ours(rows):
        raise SystemExit("\n".join(refuted))


def show(row: dict[str, Any], *, head: bool) -> None:
    """One row of the table."""
    if head:
        columns = ["network", "budget", *row["methods"], "our calls", "our s"]
        print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    cells = " | ".join(cell(found) for found in row["methods"].values())
    least = f", least {row['minimum_ms']:.4g}" if row["gap"] is None else ""
    budget = f"{row['share']:.0%} ({row['budget_ms']:.4g} ms{least})"
    seconds = row["methods"]["widthwise"]["seconds"]
    print(f"| {row['network']} | {budget} | {cells} | {row['calls']:,} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
