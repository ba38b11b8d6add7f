"""What are folded constants and recalibrated norms worth? ``python -m benchmarks.folding --data FOLDER``

ResNet-20 and ResNet-56 of ``benchmarks.executors`` (make them with its ``base``) are cut to 70 and 50 % of every width,
by the L1 norm of their filters, and after a short Network Slimming run by their scales; then tested without training,
with neither remedy, with each alone, and with both. Folding takes a removed channel for what its norm gives when its
scale is zero, ``act(beta)``. Recalibration is on training images.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.executors.jobs import data_for
from benchmarks.executors.setup import TASKS, uniform_widths
from benchmarks.machine import caption, keep
from widthwise.network.loading import load_weights
from widthwise.network.members import norms_of
from widthwise.network.narrowing import Kept, narrow
from widthwise.network.network import Network
from widthwise.planner.importance import score
from widthwise.pruning.constants import fold_constants
from widthwise.pruning.data import Data
from widthwise.pruning.evaluation import evaluate, recalibrate
from widthwise.pruning.executor import own_copy
from widthwise.pruning.methods import steps_per_epoch
from widthwise.pruning.recipe import Recipe
from widthwise.pruning.slimming import NetworkSlimming
from widthwise.pruning.training import train

SHARES = (0.7, 0.5)
NAMES = ("neither", "folding", "recalibration", "both")
BATCHES = 20


def silenced(model: nn.Module, network: Network, kept: Kept) -> nn.Module:
    """A copy whose removed channels have a scale of zero in every norm."""
    dense = own_copy(model)
    for group, channels in kept.items():
        for member in norms_of(dense, network, group):
            gone = member.positions[~torch.isin(member.channels, torch.tensor(list(channels)))]
            scale = dense.get_submodule(member.path).weight
            assert isinstance(scale, Tensor)
            with torch.no_grad():
                scale[gone] = 0.0
    return dense


def accuracies(model: nn.Module, network: Network, kept: Kept, data: Data) -> dict[str, Any]:
    """Right after surgery, for each remedy; and to how many layers folding was exact, exact inside, or not possible."""
    images = next(iter(data.test))[0]
    found: dict[str, Any] = {}
    for name in NAMES:
        dense = silenced(model, network, kept)
        small = narrow(dense, network, kept)
        if name in ("folding", "both"):
            folded = fold_constants(dense, small, network, kept, [images])
            found["layers"] = {"exact": len(folded.exact), "interior": len(folded.interior), "left": len(folded.left)}
        if name in ("recalibration", "both"):
            recalibrate(small, data.train, BATCHES)
        found[name] = evaluate(small, data.test).accuracy
    return found


def slimmed(model: nn.Module, network: Network, data: Data, example: Tensor) -> NetworkSlimming:
    """After an epoch in which every scale is pulled as far as it could shrink by half of its initial one."""
    recipe = Recipe(lr=0.01)
    sparsity = 0.5 / recipe.reach(steps_per_epoch(data, recipe), 1)
    run = NetworkSlimming.to_share(model, network, [example], 0.5, sparsity=sparsity)
    train(run.model, data.train, epochs=1, recipe=recipe, executor=run)
    run.model.eval()
    return run


def measured(name: str, folder: str, tested: int, trained: int) -> list[dict[str, Any]]:
    """The rows of a network."""
    task = TASKS[name]
    model = task.build()
    load_weights(model, task.base)
    model.eval()
    data = data_for(task, folder, tested)
    network = Network.trace(model, task.example, name=name)
    run = slimmed(model, network, data_for(task, folder, trained), task.example)
    ranked = score(model, network, "l1")
    rows = []
    for ranking in ("l1", "slimming"):
        source = model if ranking == "l1" else run.model
        before = evaluate(source, data.test).accuracy
        for share in SHARES:
            widths = uniform_widths(network.dense, share)
            if ranking == "l1":
                kept = {group: list(ranked.kept(group, width)) for group, width in widths.items()}
            else:
                kept = {group: sorted(np.argsort(-run.scores()[group], kind="stable")[:width].tolist())
                        for group, width in widths.items()}  # fmt: skip
            row = {"network": name, "ranking": ranking, "share": share, "before": before,
                   **accuracies(source, network, kept, data)}  # fmt: skip
            rows.append(row)
            cells = " | ".join(f"{row[name]:.2%}" for name in ("before", *NAMES))
            layers = row["layers"]
            print(f"| {name} | {ranking} | {share:.0%} | {cells} | {layers['exact']} / {layers['interior']} / "
                  f"{layers['left']} |", flush=True)  # fmt: skip
    return rows


def main() -> None:
    """Prints a table and keeps the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", help="folder of the images")
    parser.add_argument("--networks", nargs="+", default=["resnet20", "resnet56"], choices=list(TASKS))
    parser.add_argument("--tested", type=int, default=2000, help="test images, and training images to recalibrate on")
    parser.add_argument("--trained", type=int, default=10000, help="training images of the Slimming run")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("| network | ranked by | widths | before | " + " | ".join(NAMES) + " | folded: exact / inside / not |")
    print("|" + "---|" * (5 + len(NAMES)))
    rows: list[dict[str, Any]] = []
    for name in arguments.networks:
        rows += measured(name, arguments.data, arguments.tested, arguments.trained)
    print(f"\n{caption()}; {arguments.tested} test images")
    keep("folding", {"tested": arguments.tested, "trained": arguments.trained, "batches": BATCHES, "rows": rows})


if __name__ == "__main__":
    main()
