"""How often the allocator finds the optimum, and how long it takes: ``python -m benchmarks.allocation``.

Small random problems are compared with trying all widths, as many again with further limits, bounds on widths and the
other objective; synthetic networks (``benchmarks/instances.py``) are timed, some of them with further limits.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import itertools
import math
import platform
import sys
from pathlib import Path

import numpy as np

from benchmarks import limited
from benchmarks.instances import NETWORKS, random_problem
from widthwise.planner.problem import Problem
from widthwise.planner.solver import solve

_TIMED = [
    ("resnet50", {"options": 16}),
    ("resnet50", {"options": 16, "linear": True}),
    ("resnet50", {"options": 64}),
    ("mobilenet_v2", {"options": 16}),
    ("mobilenet_v2", {"options": 16, "linear": True}),
    ("mobilenet_v2", {"options": 64}),
    ("googlenet", {"options": 16}),
    ("googlenet", {"options": 16, "linear": True}),
    ("densenet121", {"options": 8}),
    ("densenet121", {"options": 8, "linear": True}),
]


_LIMITED: list[tuple[str, dict[str, float], float | None]] = [
    ("resnet50", {}, 0.8),
    ("resnet50", {"parameters": 0.18}, None),
    ("resnet50", {"parameters": 0.19, "macs": 0.155}, None),
    ("resnet50", {"parameters": 0.065, "macs": 0.055}, 0.8),
    ("mobilenet_v2", {"parameters": 0.4, "macs": 0.3}, None),
    ("googlenet", {"parameters": 0.4, "macs": 0.35}, None),
]


def exhaustive(problem: Problem) -> tuple[float, float]:
    """The highest importance within the budget (-inf where nothing is) and the least latency, by trying all widths."""
    best, minimum_ms = -math.inf, math.inf
    for choice in itertools.product(*(group.widths for group in problem.groups.values())):
        widths = dict(zip(problem.groups, choice, strict=True))
        latency_ms = problem.latency_ms(widths)
        minimum_ms = min(minimum_ms, latency_ms)
        if latency_ms <= problem.budget_ms:
            best = max(best, problem.importance(widths))
    return best, minimum_ms


def agrees(problem: Problem) -> bool:
    """Whether the allocator's answer is the exhaustive one."""
    best, minimum_ms = exhaustive(problem)
    answer = solve(problem, relative_gap=1e-9)
    if not math.isclose(answer.minimum_ms, minimum_ms, rel_tol=1e-6):
        return False
    if best == -math.inf:
        return answer.status == "infeasible"
    within = answer.latency_ms <= problem.budget_ms
    return within and answer.status == "optimal" and math.isclose(answer.importance, best, rel_tol=1e-8, abs_tol=1e-8)


def agrees_within_limits(problem: Problem) -> bool:
    """As :func:`agrees`, of a problem with further limits or the other objective."""
    best, answer = limited.exhaustive(problem), solve(problem, relative_gap=1e-9)
    if math.isnan(best):
        return answer.status == "infeasible" and answer.bound is None
    value = answer.importance if problem.objective == "importance" else answer.latency_ms
    within = all(reached.amount <= reached.most for reached in answer.limits)
    return within and answer.status == "optimal" and math.isclose(value, best, rel_tol=1e-8, abs_tol=1e-8)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--problems", type=int, default=1000, help="random problems to compare")
    parser.add_argument("--share", type=float, default=0.5, help="budget as a share of the dense latency")
    arguments = parser.parse_args()

    versions = " ".join(f"{name} {importlib.metadata.version(name)}" for name in ("numpy", "scipy"))
    print(f"{datetime.date.today()} · {_processor()} · one thread · Python {platform.python_version()} {versions}")
    equal = sum(agrees(random_problem(np.random.default_rng(seed))) for seed in range(arguments.problems))
    print(f"random problems equal to trying all widths: {equal} of {arguments.problems}")
    seeds = (np.random.default_rng(seed) for seed in range(arguments.problems))
    equal = sum(agrees_within_limits(limited.random_limited(rng)) for rng in seeds)
    print(f"with further limits, bounds and both objectives: {equal} of {arguments.problems}\n")
    print(f"| instance | groups | costs | entries | budget | gap ≤ 1e-4 | s to 1e-4 | s to 1e-5 |\n{'|---' * 8}|")
    for name, options in _TIMED:
        problem = NETWORKS[name](share=arguments.share, **options)
        coarse, fine = solve(problem, relative_gap=1e-4), solve(problem, relative_gap=1e-5)
        label = f"{name} {options['options']} widths{', linear' if options.get('linear') else ''}"
        entries = sum(cost.ms.size for cost in problem.costs)
        reached = f"{coarse.gap:.0e}" if coarse.gap is not None else coarse.status
        print(
            f"| {label} | {len(problem.groups)} | {len(problem.costs)} | {entries:,} | {arguments.share:.0%} "
            f"| {reached} | {coarse.seconds:.1f} | {fine.seconds:.1f} |",
            flush=True,
        )
    print(f"\n| instance | limits beside latency | asked for | binding | gap ≤ 1e-4 | s to 1e-4 |\n{'|---' * 6}|")
    for name, limits, keep in _LIMITED:
        answer = solve(limited.network(name, limits=limits, keep=keep, options=16), relative_gap=1e-4)
        reached = f"{answer.gap:.0e}" if answer.gap is not None else answer.status
        asked = f"{arguments.share:.0%} of the latency" if keep is None else f"{keep:.0%} of the importance"
        shares = ", ".join(f"{share:.3g} of the {limit}" for limit, share in limits.items()) or "none"
        binding = ", ".join(answer.binding)
        print(f"| {name} 16 widths | {shares} | {asked} | {binding} | {reached} | {answer.seconds:.1f} |", flush=True)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if sys.platform == "linux" and cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
