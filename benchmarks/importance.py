"""Which importance is worth what? ``python -m benchmarks.importance --data FOLDER [--network resnet56] [--epochs 2]``

The trained network of ``benchmarks.executors`` (make it with its ``base``, and its table with its ``setup``) is planned
at shares of its dense latency with every criterion, cut, and tested: batch norms recalibrated on training images, and
after ``--epochs`` of training, none by default. ``sensitivity`` is measured on training images that nothing else uses;
``random`` ranks channels at random, as a floor.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.executors.jobs import data_for, recipe_for
from benchmarks.executors.setup import TASKS
from benchmarks.machine import caption, keep
from widthwise.luts.errors import InfeasibleBudget
from widthwise.luts.store import Lut
from widthwise.network.narrowing import narrow
from widthwise.network.network import Network
from widthwise.network.weights import load_weights
from widthwise.planner.allocation import allocate
from widthwise.planner.importance import CRITERIA, Importance, score
from widthwise.planner.plan import Budget
from widthwise.planner.predictor import LatencyPredictor
from widthwise.planner.responses import activation, taylor, wanda
from widthwise.planner.sensitivity import sensitivity
from widthwise.pruning.evaluation import evaluate, recalibrate
from widthwise.pruning.holdout import hold_out
from widthwise.pruning.training import train

PERCENTS = (70, 50, 30)


def random_scores(network: Network, group: str) -> Any:
    """Near one, so that widths are as for equal channels, and in no order."""
    return 1 + 1e-3 * np.random.default_rng(sum(map(ord, group))).random(network.dense[group])


def importances(model: nn.Module, network: Network, data: Any) -> dict[str, Callable[[], Importance]]:
    """Every criterion, computed when asked for."""
    found: dict[str, Callable[[], Importance]] = {
        name: lambda name=name: score(model, network, name)  # type: ignore[misc]
        for name in CRITERIA
    }
    found["wanda"] = lambda: wanda(model, network, islice(data.train, 20))
    found["activation"] = lambda: activation(model, network, islice(data.train, 20))
    found["taylor"] = lambda: taylor(model, network, islice(data.train, 20))
    found["sensitivity"] = lambda: measured_sensitivity(model, network, data)
    found["random"] = lambda: score(model, network, random_scores)
    return found


def measured_sensitivity(model: nn.Module, network: Network, data: Any) -> Importance:
    """On a tenth of the training images, held out, at most 2,000."""
    train, held = hold_out(data.train)

    def loss_of(small: nn.Module) -> float:
        recalibrate(small, train, 5)
        return evaluate(small, list(islice(held, 16))).loss  # type: ignore[arg-type]

    return sensitivity(model, network, network.options(), loss_of, most=3)


def main() -> None:
    """Prints a table and keeps the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", help="folder of the images")
    parser.add_argument("--network", default="resnet56", choices=list(TASKS))
    parser.add_argument("--examples", type=int, help="of training and of testing")
    parser.add_argument("--epochs", type=int, default=0, help="of training after the cut")
    parser.add_argument("--percents", type=int, nargs="+", default=PERCENTS, help="of the dense latency")
    parser.add_argument("--only", nargs="+", help="criteria")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    task = TASKS[arguments.network]
    model = task.build()
    load_weights(model, task.base)
    model.eval()
    data = data_for(task, arguments.data, arguments.examples)
    base = evaluate(model, data.test)
    network = Network.trace(model, task.example, name=task.network)
    print(f"{task.network}: {base.accuracy:.2%}, loss {base.loss:.3f}, {base.examples} test images\n")
    print("| criterion | " + " | ".join(f"{percent} %: accuracy | loss" for percent in arguments.percents) + " |")
    print("|" + "---|" * (1 + 2 * len(arguments.percents)))
    rows: list[dict[str, Any]] = []
    with Lut.open(task.table, readonly=True) as lut:
        predictor = LatencyPredictor.fit(lut, network)
        for name, make in importances(model, network, data).items():
            if arguments.only and name not in arguments.only:
                continue
            importance, cells = make(), []
            for percent in arguments.percents:
                try:
                    plan = allocate(predictor, importance, Budget(percent / 100, relative=True), lut)
                except InfeasibleBudget:
                    cells.append("– | –")
                    continue
                small = narrow(model, network, plan.kept)
                if arguments.epochs:
                    train(small, data, epochs=arguments.epochs, recipe=recipe_for(0))
                else:
                    recalibrate(small, data.train, 20)
                found = evaluate(small, data.test)
                cells.append(f"{found.accuracy:.2%} | {found.loss:.3f}")
                rows.append({"criterion": name, "percent": percent, "accuracy": found.accuracy, "loss": found.loss,
                             "widths": plan.widths})  # fmt: skip
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print(f"\n{caption()}")
    trained = f"-{arguments.epochs}-epochs" if arguments.epochs else ""
    keep(f"importance-{task.network}{trained}", {"base": {"accuracy": base.accuracy, "loss": base.loss}, "rows": rows})


if __name__ == "__main__":
    main()
