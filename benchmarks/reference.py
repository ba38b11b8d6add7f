"""Which reference kernel slows down as a network does? ``python -m benchmarks.reference``

Candidates and networks are timed in turns, on an undisturbed machine and beside a process that streams memory and
one that runs a network. For each candidate: how far the ratio network ÷ reference moves from its quiet value.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event

import numpy as np
import torch

from benchmarks.machine import caption, keep
from widthwise.network.loading import load_model
from widthwise.profiling.runtimes.torch_eager import TorchRuntime
from widthwise.profiling.runtimes.torch_layers import square_convolution
from widthwise.profiling.target import Target

NETWORKS = ("torchvision:resnet18", "torchvision:mobilenet_v2")
KERNELS = {"32×28²": (32, 28), "64×56²": (64, 56), "512×7²": (512, 7)}
PHASES = ("quiet", "memory", "quiet", "network", "quiet", "memory")
ROUNDS = 12
_SETTLE_S = 12.0


def disturb(kind: str, stop: Event) -> None:
    """A neighbour that streams memory, or runs a network, until told to stop or left alone."""
    torch.set_num_threads(1)
    parent = os.getppid()
    with torch.inference_mode():
        if kind == "memory":
            a, b = torch.randn(8_000_000), torch.randn(8_000_000)
            while not stop.is_set() and os.getppid() == parent:
                a.add_(b)
        model, x = load_model(NETWORKS[0]), torch.randn(1, 3, 224, 224)
        while not stop.is_set() and os.getppid() == parent:
            model(x)


def timed(run: Callable[[], object], times: int) -> float:
    """Median seconds of a run, after one that doesn't count."""
    run()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def main() -> None:
    """Prints a Markdown table and keeps the figures."""
    torch.set_num_threads(1)
    runtime = TorchRuntime(Target.parse("torch:cpu"))
    kernels = {name: runtime.layer(square_convolution(*kernel)) for name, kernel in KERNELS.items()}
    networks = {name: load_model(name) for name in NETWORKS}
    x = torch.randn(1, 3, 224, 224)
    rows: list[dict[str, float | str]] = []
    context = multiprocessing.get_context("spawn")
    with torch.inference_mode():
        for phase in PHASES:
            stop = context.Event()
            neighbour = context.Process(target=disturb, args=(phase, stop))
            if phase != "quiet":
                neighbour.start()
                time.sleep(_SETTLE_S)
            for _ in range(ROUNDS):
                row: dict[str, float | str] = {"phase": phase}
                row |= {name: timed(session.run, 3) for name, session in kernels.items()}
                row |= {name: timed(lambda model=model: model(x), 2) for name, model in networks.items()}  # type: ignore[misc]
                rows.append(row)
            stop.set()
            if phase != "quiet":
                neighbour.join()
    report(rows)


def report(rows: list[dict[str, float | str]]) -> None:
    """How far each ratio moves from its quiet median."""
    choices = [*([name] for name in KERNELS), ["64×56²", "512×7²"]]
    print("| reference | " + " | ".join(f"{name}: mean, p90 drift" for name in NETWORKS) + " |")
    print("|---" * (len(NETWORKS) + 1) + "|")
    results = {}
    for choice in choices:
        reference = np.array([sum(float(row[name]) for name in choice) for row in rows])
        cells = []
        for network in NETWORKS:
            ratio = np.array([float(row[network]) for row in rows]) / reference
            quiet = np.median(ratio[[row["phase"] == "quiet" for row in rows]])
            drift = np.abs(np.log(ratio / quiet))
            results[f"{'+'.join(choice)} {network}"] = [float(drift.mean()), float(np.quantile(drift, 0.9))]
            cells.append(f"{drift.mean():.1%}, {np.quantile(drift, 0.9):.1%}")
        print(f"| {' + '.join(choice)} | {' | '.join(cells)} |")
    print(f"\n{caption()}")
    keep("reference", results)


if __name__ == "__main__":
    main()
