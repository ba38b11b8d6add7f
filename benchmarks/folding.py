"""What are folded constants and recalibrated norms worth? ``python -m benchmarks.folding --data FOLDER``

ResNet-20 and ResNet-56 of ``benchmarks.executors`` (make them with its ``base``) are cut to 70 and 50 % of every width
and tested without further training, with neither remedy, with each alone, and with both. Three ways to come there:

    live       channels of least L1 norm go from the trained network, at work as they are
    slimming   channels of least scale go after a short Network Slimming run
    settled    as live, after a short training in which their scales are held at zero while they still emit
               ``act(beta)``: what a long Slimming run ends with

Folding takes a removed channel for what its norm gives when its scale is zero. Recalibration is on training images.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.executors.jobs import data_for
from benchmarks.executors.setup import TASKS, uniform_widths
from benchmarks.machine import caption, keep
from widthwise.network.members import norms_of
from widthwise.network.narrowing import Kept, narrow
from widthwise.network.network import Network
from widthwise.network.weights import load_weights
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
    """After an epoch in which every scale is pulled as far as it could shrink by a fifth of its initial one."""
    recipe = Recipe(lr=0.01)
    sparsity = 0.2 / recipe.reach(steps_per_epoch(data, recipe), 1)
    run = NetworkSlimming.to_share(model, network, [example], 0.5, sparsity=sparsity)
    train(run.model, data.train, epochs=1, recipe=recipe, executor=run)
    run.model.eval()
    return run


def settled(model: nn.Module, network: Network, kept: Kept, data: Data) -> nn.Module:
    """After an epoch with the scales of removed channels at zero; their shifts learn on."""
    dense = silenced(model, network, kept)
    scales = [module.weight for module in dense.modules() if isinstance(module, nn.BatchNorm2d)]
    at_zero = [scale.detach() == 0 for scale in scales]

    def hold(_: int) -> None:
        for scale, zero in zip(scales, at_zero, strict=True):
            assert scale.grad is not None
            scale.grad[zero] = 0.0

    train(dense, data.train, epochs=1, recipe=Recipe(lr=0.01), before_step=hold)
    return dense.eval()


def measured(name: str, folder: str, tested: int, trained: int) -> list[dict[str, Any]]:
    """The rows of a network."""
    task = TASKS[name]
    model = task.build()
    load_weights(model, task.base)
    model.eval()
    data, more = data_for(task, folder, tested), data_for(task, folder, trained)
    network = Network.trace(model, task.example, name=name)
    run = slimmed(model, network, more, task.example)
    ranked, scales = score(model, network, "l1"), run.scores()
    rows = []
    for share in SHARES:
        widths = uniform_widths(network.dense, share)
        kept = {group: list(ranked.kept(group, width)) for group, width in widths.items()}
        largest = {
            group: sorted(np.argsort(-scales[group], kind="stable")[:width].tolist()) for group, width in widths.items()
        }
        for way, source, chosen in (
            ("live", model, kept),
            ("slimming", run.model, largest),
            ("settled", settled(model, network, kept, more), kept),
        ):
            row = {"network": name, "way": way, "share": share, "before": evaluate(source, data.test).accuracy}
            rows.append(row | accuracies(source, network, chosen, data))
            print(line(rows[-1]), flush=True)
    return rows


def line(row: Mapping[str, Any]) -> str:
    """Of the printed table."""
    cells = " | ".join(f"{row[name]:.2%}" for name in ("before", *NAMES))
    folded = " / ".join(str(count) for count in row["layers"].values())
    return f"| {row['network']} | {row['way']} | {row['share']:.0%} | {cells} | {folded} |"


def main() -> None:
    """Prints a table and keeps the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", help="folder of the images")
    parser.add_argument("--networks", nargs="+", default=["resnet20", "resnet56"], choices=list(TASKS))
    parser.add_argument("--tested", type=int, default=2000, help="test images, and training images to recalibrate on")
    parser.add_argument("--trained", type=int, default=10000, help="training images of an epoch")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("| network | way | widths | before | " + " | ".join(NAMES) + " | folded: exact / inside / not |")
    print("|" + "---|" * (5 + len(NAMES)))
    rows: list[dict[str, Any]] = []
    for name in arguments.networks:
        rows += measured(name, arguments.data, arguments.tested, arguments.trained)
    print(f"\n{caption()}; {arguments.tested} test images")
    keep("folding", {"tested": arguments.tested, "trained": arguments.trained, "batches": BATCHES, "rows": rows})


if __name__ == "__main__":
    main()
