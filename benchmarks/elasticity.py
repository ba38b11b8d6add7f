"""What is an elasticity of the reference worth? ``python -m benchmarks.elasticity [NETWORK …] [--target …]``

Ten networks at random widths, the same ones in three processes one after the other, each beside the dense network,
which is measured four times as often. Printed are the elasticities that the blocks told, process by process; how far
blocks lie from their network's mean; and how far the shares of the dense latency lie apart between two processes, in
the mean: by plain ratios to what the reference took, and as it counts. Both are from the same blocks.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.machine import caption, keep
from benchmarks.prediction.cells import Cell, Whole, apart, opened, random_widths
from widthwise.profiling.runtimes import open_runtime
from widthwise.profiling.schedule import Pace, Schedule
from widthwise.profiling.target import Target

NETWORKS = ("googlenet", "resnet50", "mobilenet_v2")
TARGETS = ("openvino:cpu", "onnxruntime:cpu")
COUNT = 10
PROCESSES = 3
DENSE_TIMES = 4
STEP = 16
PACE = Pace(blocks=8, most_blocks=12, half_width=0.0075, cap_s=2.0)
"""As held-out networks are measured by ``benchmarks.prediction``."""


def _taken(cell: Cell) -> list[list[list[float]]]:
    """Per session its blocks, as (latency, reference as it counts, as it was read) in ms; the dense ones first."""
    import torch

    from widthwise.network.fusion import fused
    from widthwise.profiling.profiler import candidate_for

    model, example, network = opened(cell)
    options = {group: range(min(STEP, size), size + 1, STEP) for group, size in network.dense.items()}
    runtime = open_runtime(Target.parse(cell.target, threads=cell.threads))
    timed = fused(network) if runtime.fuses else network
    widths = [random_widths(options, f"{cell.network} elasticity {index}") for index in range(COUNT)]
    with torch.inference_mode(), runtime.active():
        schedule = Schedule.on(runtime)
        dense, *others = (
            runtime.network(candidate_for(model, timed, chosen, (example,))) for chosen in (timed.dense, *widths)
        )
        schedule.warm_up(dense)
        timings = schedule.measure([Whole(session) for session in [dense] * DENSE_TIMES + others], PACE)
    return [[[b.latency_ms, b.reference_ms, b.read_ms] for b in timing.blocks] for timing in timings]


def compared(cell: Cell) -> dict[str, Any]:
    """All figures of a network on a target."""
    processes = [[np.array(blocks) for blocks in apart(_taken, cell)] for _ in range(PROCESSES)]
    return {
        "network": cell.network,
        "target": cell.target,
        "elasticities": [_told(sessions) for sessions in processes],
        "plain": _figures(processes, lambda blocks: blocks[:, 0] / blocks[:, 2]),
        "counted": _figures(processes, lambda blocks: blocks[:, 0] / blocks[:, 1]),
    }


def _told(sessions: Sequence[npt.NDArray[np.float64]]) -> float:
    """What was counted is a power of what was read: the exponent."""
    counted, read = (np.log(np.concatenate([blocks[:, column] for blocks in sessions])) for column in (1, 2))
    return float(np.polyfit(read, counted, 1)[0])


def _figures(
    processes: Sequence[Sequence[npt.NDArray[np.float64]]], ratio: Callable[[Any], npt.NDArray[np.float64]]
) -> dict[str, float]:
    scatter, shares = [], []
    for sessions in processes:
        ratios = [np.log(ratio(blocks)) for blocks in sessions]
        scatter += [np.abs(found - found.mean()) for found in ratios]
        medians = np.array([np.median(found) for found in ratios])
        shares.append(medians[DENSE_TIMES:] - medians[:DENSE_TIMES].mean())
    between = [np.abs(first - second).mean() for first, second in itertools.combinations(shares, 2)]
    return {"scatter": float(np.concatenate(scatter).mean()), "between": float(np.mean(between))}


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--target", nargs="+", default=TARGETS)
    asked = parser.parse_args()
    print("| network | target | elasticities | blocks, plain | as counted | between processes, plain | as counted |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    for network, target in itertools.product(asked.networks, asked.target):
        row = compared(Cell(network, target, 1, 0.0))
        rows.append(row)
        told = ", ".join(f"{exponent:.2f}" for exponent in row["elasticities"])
        figures = [f"{row[way][what]:.2%}" for what in ("scatter", "between") for way in ("plain", "counted")]
        print(f"| {network} | {target} | {told} | {' | '.join(figures)} |", flush=True)
        keep("elasticity", rows)
    print(f"\n{COUNT} networks in {PROCESSES} processes each. {caption()}")


if __name__ == "__main__":
    main()
