"""How the time to a proof grows: ``python -m benchmarks.growth [--groups 10 500] [--widths 8 32]``.

Synthetic networks (``benchmarks/instances.py``) from 10 to 500 groups, with 8, 16 and 32 widths each: chains, and
ResNets whose blocks share a stage's output. Each is solved to a gap of 1e-4 in a process of its own, whose peak memory
counts.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Callable
from typing import Any

from benchmarks.instances import chain, residual
from benchmarks.machine import caption, keep
from widthwise.planner.problem import Problem
from widthwise.planner.solver import solve

SHAPES: dict[str, Callable[..., Problem]] = {"chain": chain, "ResNet": residual}
_GAP = 1e-4


def run(shape: str, groups: int, widths: int, limit_s: float, results: multiprocessing.SimpleQueue[str]) -> None:
    """Solves one problem and says how long it took and how much memory."""
    problem = SHAPES[shape](groups, options=widths)
    start, cpu_start = time.perf_counter(), time.process_time()
    answer = solve(problem, relative_gap=_GAP, time_limit_s=limit_s)
    results.put(
        json.dumps(
            {
                "shape": shape,
                "groups": len(problem.groups),
                "widths": widths,
                "entries": sum(cost.ms.size for cost in problem.costs),
                "status": answer.status,
                "gap": answer.gap,
                "seconds": time.perf_counter() - start,
                "cpu_s": time.process_time() - cpu_start,
                "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
            }
        )
    )


def main() -> None:
    """Prints a Markdown table and keeps the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--groups", nargs="+", type=int, default=(10, 30, 100, 200, 300, 500))
    parser.add_argument("--widths", nargs="+", type=int, default=(8, 16, 32))
    parser.add_argument("--limit", type=float, default=300.0, help="seconds a problem may take")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    print("| shape | groups | widths | entries | gap | s | CPU s | peak GB |\n" + "|---" * 8 + "|")
    rows: list[dict[str, Any]] = []
    failed = 0
    for shape in arguments.shapes:
        for groups in arguments.groups:
            for widths in arguments.widths:
                results: multiprocessing.SimpleQueue[str] = context.SimpleQueue()
                process = context.Process(target=run, args=(shape, groups, widths, arguments.limit, results))
                process.start()
                process.join()
                if process.exitcode:
                    print(f"| {shape} | {groups} | {widths} | – | failed, see above | – | – | – |", flush=True)
                    failed += 1
                    continue
                rows.append(json.loads(results.get()))
                row = rows[-1]
                gap = f"{row['gap']:.0e}" if row["gap"] is not None else row["status"]
                print(
                    f"| {shape} | {row['groups']} | {widths} | {row['entries']:,} | {gap} | {row['seconds']:.1f} "
                    f"| {row['cpu_s']:.1f} | {row['peak_gb']:.2f} |",
                    flush=True,
                )
    print(f"\nPeak memory is the whole process's. {caption()}")
    if failed:
        raise SystemExit(f"{failed} of {failed + len(rows)} failed; nothing is kept")
    keep("growth", rows)


if __name__ == "__main__":
    main()
