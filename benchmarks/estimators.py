"""Which way of timing layers agrees with the network? ``python -m benchmarks.estimators [NETWORK …] [--narrowed 6]``

The dense network and narrowed copies are timed whole, layer by layer in place, and each of their layers alone in a loop
of its own; all as ratios to the same reference kernels, layers alone right after their network. Sums of layers are
divided by the whole. A sum may be off by a constant factor, which a correction removes; what counts is how much the
quotient varies among networks. "Alone, corrected": scaled per geometry by what the dense network's layer took in place
over alone, as the predictor does it.
"""

from __future__ import annotations

import argparse
import random
from typing import Any

import numpy as np

from benchmarks.machine import caption, keep

NETWORKS = ("resnet18", "mobilenet_v2", "resnet50")
ESTIMATORS = ("in place", "alone", "alone, corrected")


def quotients(name: str, narrowed: int) -> dict[str, list[float]]:
    """Σ layers over the whole, for each estimator, one number a network; the dense one first."""
    import torch

    from widthwise.network.loading import load_model
    from widthwise.network.network import Network
    from widthwise.profiling.profiler import candidate_for
    from widthwise.profiling.runtimes import UnsupportedLayer, open_runtime
    from widthwise.profiling.schedule import Pace, Schedule
    from widthwise.profiling.target import Target

    torch.set_num_threads(1)
    model = load_model(f"torchvision:{name}")
    example = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    network = Network.trace(model, (example,), name=name)
    rng = random.Random(20261126)
    options = network.options()
    drawn = [network.dense] + [{g: rng.choice(w) for g, w in options.items()} for _ in range(narrowed)]
    runtime = open_runtime(Target.parse("torch:cpu"))
    found: dict[str, list[float]] = {estimator: [] for estimator in ESTIMATORS}
    corrections: dict[Any, float] = {}
    with runtime.active():
        schedule = Schedule.on(runtime)
        schedule.warm_up()
        for widths in drawn:
            session = runtime.network(candidate_for(model, network, widths, (example,)))
            [timing] = schedule.measure([session], Pace(blocks=8, most_blocks=8))
            whole_ms = timing.measurement(1.0).latency_ms
            placed_ms = [layer.latency_ms for layer in timing.layer_measurements(1.0)]
            specs = network.specs(widths)
            sessions = {}
            for spec in specs:
                try:
                    sessions[spec] = runtime.layer(spec)
                except UnsupportedLayer:
                    continue
            singles = schedule.measure(list(sessions.values()), Pace(blocks=4, most_blocks=4, visit_s=0.02))
            alone = {spec: one.measurement(1.0).latency_ms for spec, one in zip(sessions, singles, strict=True)}
            alone_ms = [alone.get(spec, ms) for spec, ms in zip(specs, placed_ms, strict=True)]
            if not corrections:
                pairs: dict[Any, list[float]] = {}
                for spec, placed, single in zip(specs, placed_ms, alone_ms, strict=True):
                    pairs.setdefault(spec.geometry, []).append(placed / single)
                corrections = {geometry: float(np.median(ratios)) for geometry, ratios in pairs.items()}
            corrected = sum(corrections[spec.geometry] * ms for spec, ms in zip(specs, alone_ms, strict=True))
            sums = (sum(placed_ms), sum(alone_ms), corrected)
            for estimator, total in zip(ESTIMATORS, sums, strict=True):
                found[estimator].append(total / whole_ms)
    return found


def main() -> None:
    """Prints a Markdown table and keeps the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--narrowed", type=int, default=6, help="narrowed copies of each network")
    arguments = parser.parse_args()
    print("| network | layers timed | Σ layers ÷ dense network | ÷ narrowed: mean | spread (standard deviation) |")
    print("|---|---|---|---|---|")
    kept: dict[str, Any] = {}
    for name in arguments.networks:
        kept[name] = quotients(name, arguments.narrowed)
        for estimator, values in kept[name].items():
            narrow = np.array(values[1:])
            print(f"| {name} | {estimator} | {values[0]:.3f} | {narrow.mean():.3f} "
                  f"| {narrow.std(ddof=1) / narrow.mean():.1%} |", flush=True)  # fmt: skip
    print(f"\n{arguments.narrowed} narrowed copies of each network, 1 thread. {caption()}")
    keep("estimators", kept)


if __name__ == "__main__":
    main()
