"""What do runs that record layers cost those between? ``python -m benchmarks.back_to_back [NETWORK …] [--target …]``

The dense network and four at random widths. Each is run again and again, then in turns with runs that have its layers
on record, then again and again, …, twelve times each way. Printed is by how much the median of the second way is
slower: its median over the twelve, and the quartiles.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.machine import caption, keep
from benchmarks.prediction.cells import Cell, apart, opened, random_widths
from widthwise.profiling.runtimes import open_runtime
from widthwise.profiling.target import Target

NETWORKS = ("mobilenet_v2", "efficientnet_b0", "resnet18")
TARGETS = ("onnxruntime:cpu", "openvino:cpu", "torch:cpu")
COUNT = 4
TIMES = 12
STEP = 16
VISIT_S = 0.1


def _taken(cell: Cell) -> list[dict[str, Any]]:
    import torch

    from widthwise.network.fusion import fused
    from widthwise.profiling.profiler import candidate_for

    model, example, network = opened(cell)
    options = {group: range(min(STEP, size), size + 1, STEP) for group, size in network.dense.items()}
    runtime = open_runtime(Target.parse(cell.target, threads=cell.threads))
    timed = fused(network) if runtime.fuses else network
    drawn = [random_widths(options, f"{cell.network} back to back {index}") for index in range(COUNT)]
    found = []
    with torch.inference_mode(), runtime.active():
        for widths in (timed.dense, *drawn):
            session = runtime.network(candidate_for(model, timed, widths, (example,)))
            session.run(), session.run_layers()
            runs = max(4, min(20, round(VISIT_S / session.run())))

            def turn(session: Any = session) -> float:
                session.run_layers()
                return float(session.run())

            pairs = [(_median_ms(session.run, runs), _median_ms(turn, runs)) for _ in range(TIMES)]
            alone, turns = np.array(pairs).T
            low, middle, high = np.quantile(turns / alone, (0.25, 0.5, 0.75)) - 1
            found.append({"ms": float(np.median(alone)), "slower": float(middle), "quartiles": [low, high]})
    return found


def _median_ms(run: Callable[[], float], runs: int) -> float:
    for _ in range(runs // 2):
        run()
    return float(np.median([run() for _ in range(runs)])) * 1e3


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--target", nargs="+", default=TARGETS)
    arguments = parser.parse_args()
    cells = [Cell(network, target, 1, 0.0) for target in arguments.target for network in arguments.networks]
    rows = []
    print("| network | target | dense ms | in turns slower by | of its latency: slower by |\n|---|---|---|---|---|")
    for cell in cells:
        dense, *others = found = apart(_taken, cell)
        rows.append({"network": cell.network, "target": cell.target, "networks": found})
        shares = "; ".join(
            f"{one['ms'] / dense['ms']:.2f}: {_shown(one)}" for one in sorted(others, key=lambda one: -one["ms"])
        )
        print(f"| {cell.network} | {cell.target} | {dense['ms']:.1f} | {_shown(dense)} | {shares} |", flush=True)
    keep("back_to_back", rows)
    print(f"\n{caption()}")


def _shown(one: dict[str, Any]) -> str:
    low, high = one["quartiles"]
    return f"{one['slower']:.1%} ({low:.1%} to {high:.1%})"


if __name__ == "__main__":
    main()
