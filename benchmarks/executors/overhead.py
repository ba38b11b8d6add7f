"""What an executor adds to a training step: ``python -m benchmarks.executors.overhead [--batch 64]``

One step of each method and a plain one in turns, on ResNet-56 with half of every group to go; the median over the turns
of each step's ratio to the plain one of its turn.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.executors.networks import resnet56
from benchmarks.executors.plans import plan_by_hand
from benchmarks.machine import caption, keep
from widthwise.pruning import FilterPruning, NetworkSlimming, ResRep
from widthwise.pruning.executor import Executor


def stepper(model: nn.Module, groups: list[dict[str, Any]], run: Executor | None, batch: int) -> Callable[[int], float]:
    """A training step on random images; gives its seconds."""
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9, weight_decay=1e-4)
    images, labels = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))

    def step(number: int) -> float:
        model.train()
        start = time.perf_counter()
        optimizer.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        if run is not None:
            run.before_step(number)
        optimizer.step()
        return time.perf_counter() - start

    return step


def main() -> None:
    """Prints a table and keeps the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--turns", type=int, default=40)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dense = resnet56()
    example = torch.randn(1, 3, 32, 32)
    plan = plan_by_hand(dense, example, 0.5)
    steps = 10 * arguments.turns
    runs: dict[str, Executor] = {
        "l1, one shot": FilterPruning(dense, plan, [example]),
        "l1, 3 rounds": FilterPruning(dense, plan, [example], rounds=3, steps=steps),
        "slimming": NetworkSlimming(dense, plan, [example]),
        "resrep": ResRep(dense, plan, [example], steps=steps),
    }
    plain = stepper(dense, [{"params": list(dense.parameters())}], None, arguments.batch)
    steppers = {name: stepper(run.model, run.parameter_groups(), run, arguments.batch) for name, run in runs.items()}
    ratios: dict[str, list[float]] = {name: [] for name in steppers}
    for turn in range(arguments.turns):
        before = plain(turn)
        found = {name: step(turn * 10) for name, step in steppers.items()}
        base = (before + plain(turn)) / 2
        if turn >= 3:
            for name, seconds in found.items():
                ratios[name].append(seconds / base)
    print("| executor | step ÷ plain step: median | quartiles |\n|---|---|---|")
    for name, values in ratios.items():
        low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
        print(f"| {name} | {median:.2f} | {low:.2f} to {high:.2f} |")
    print(f"\nResNet-56, batch {arguments.batch}, one thread, {arguments.turns} turns. {caption()}")
    keep("executors-overhead", ratios)


if __name__ == "__main__":
    main()
