"""How long a proved frontier takes: ``python -m benchmarks.frontier [NETWORK …] [--points 20]``.

Networks are read from their tables in ``build/allocation``, which ``python -m benchmarks.baselines --time 240`` makes.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

from benchmarks.baselines.networks import NETWORKS, Case, read
from benchmarks.machine import caption, keep
from widthwise.planner.frontier import frontier


def timed(case: Case, points: int) -> dict[str, Any]:
    """One frontier: its points, and the seconds between them."""
    moments = [time.perf_counter()]
    cpu_s = -time.process_time()
    found = frontier(
        case.predictor,
        case.importance,
        case.options,
        points=points,
        time_limit_s=600,
        on_progress=lambda _: moments.append(time.perf_counter()),
    )
    cpu_s += time.process_time()
    steps = [after - before for before, after in itertools.pairwise(moments[1:])]
    return {
        "network": case.name,
        "table": case.table,
        "points": [{"latency_ms": p.latency_ms, "retained": p.importance, "gap": p.gap} for p in found],
        "seconds": moments[-1] - moments[0],
        "cpu_s": cpu_s,
        "slowest_s": max(steps),
        "widest_gap": max(point.gap for point in found),
    }


def main() -> None:
    """Prints a Markdown table and keeps the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--folder", type=Path, default=Path("build/allocation"), help="where NETWORK.lut lies")
    parser.add_argument("--points", type=int, default=20)
    arguments = parser.parse_args()
    print("| network | points | s | CPU s | slowest point, s | widest gap | from | to |\n" + "|---" * 8 + "|")
    rows = []
    for name in arguments.networks:
        path = arguments.folder / f"{name}.lut"
        if not path.exists():
            parser.error(f"{path} does not exist; `python -m benchmarks.baselines {name} --time 240` makes it")
        row = timed(read(name, path), arguments.points)
        ends = " | ".join(
            f"{p['latency_ms']:.4g} ms, {p['retained']:.3f}" for p in (row["points"][0], row["points"][-1])
        )
        print(
            f"| {name} | {len(row['points'])} | {row['seconds']:.1f} | {row['cpu_s']:.1f} | {row['slowest_s']:.1f} "
            f"| {row['widest_gap']:.0e} | {ends} |",
            flush=True,
        )
        rows.append(row)
    print(f"\n{caption()}")
    if all(row["table"]["runtime"] != "fake" for row in rows):
        keep("frontier", rows)


if __name__ == "__main__":
    main()
