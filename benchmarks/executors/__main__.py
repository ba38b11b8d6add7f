"""What is each executor worth at equal measured latency? ``python -m benchmarks.executors base|setup|run|table``

``base NETWORK --data PATH``: the dense network, fine-tuned (from published weights) or trained.
``setup NETWORK``: a table, uniform widths, and for each a plan measured as fast; on the quiet target.
``run NETWORK --data PATH --seeds 2 --epochs 10 --jobs 1``: all training runs without a record, several at a time.
``table``: the records as Markdown.

Records are kept under ``benchmarks/results/executors``; a run that breaks off is gone on with by starting it again.
JPEG CIFAR-10 is named by its folder (train/<class>/*.jpg, test/<class>/*.jpg), Fashion-MNIST by none.
"""

from __future__ import annotations

import argparse
import itertools
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.executors import jobs as work
from benchmarks.executors.pool import run_all
from benchmarks.executors.setup import TASKS, prepare, published, write

LONG = 50
"""Epochs of the runs that ask what ResRep, whose paper trains for 480, is worth with more of them."""


def table() -> None:
    """Prints accuracy by network, method and latency."""
    for name, longer in itertools.product(TASKS, (False, True)):
        task = TASKS[name]
        rows = [row for row in work.records(name) if row["epochs"] == (LONG if longer else task.epochs)]
        if not rows:
            continue
        cells: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            cells[row["method"], row["percent"]].append(row)
        setup = task.setup()
        dense = cells.pop(("longer", 100), [])
        print(
            f"\n{name}: base {rows[0]['base_accuracy']:.2%}, trained {rows[0]['epochs']} epochs longer {_shown(dense)}"
        )
        percents = sorted((int(percent) for percent in setup), reverse=True)
        heads = [f"{percent} % ({setup[str(percent)]['measured_share']:.1%} measured)" for percent in percents]
        print(f"| method | {' | '.join(heads)} |\n|{'---|' * (1 + len(heads))}")
        for method in (*work.METHODS[1:], work.PAPER):
            print(f"| {method} | {' | '.join(_shown(cells[method, percent]) for percent in percents)} |")


def _shown(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "–"
    found = np.array([row["accuracy"] for row in rows]) * 100
    spread = f" ± {found.std(ddof=1):.2f}" if len(found) > 1 else ""
    return f"{found.mean():.2f}{spread} ({len(found)})"


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("base", "setup", "run", "table"))
    parser.add_argument("networks", nargs="*", default=list(TASKS))
    parser.add_argument("--data", default="", help="folder of the images, and of published weights")
    parser.add_argument("--weights", type=Path, help="folder of published weights")
    parser.add_argument("--epochs", type=int, help="10 on CIFAR-10, 5 on Fashion-MNIST, 10 for bases")
    parser.add_argument("--examples", type=int, help="of training and of testing, for a trial")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1, help="training runs at a time")
    parser.add_argument("--time", type=float, default=120.0, help="seconds of profiling (setup)")
    parser.add_argument("--autotune", action="store_true", help="cuDNN tries its kernels, on a GPU")
    parser.add_argument("--only", nargs="+", default=[".*"], metavar="PATTERN", help="of names of runs, in their order")
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds after which no run is begun")
    arguments = parser.parse_args()
    if arguments.what == "table":
        table()
    elif arguments.what == "run":
        run_all(arguments)
    for name in arguments.networks if arguments.what in ("base", "setup") else ():
        task = TASKS[name]
        if arguments.what == "setup":
            write(f"setup-{name}", prepare(task, arguments.time))
        elif not task.base.is_file():
            start = published(task, arguments.weights or Path())
            write(
                f"base-{name}",
                work.train_base(
                    task, start, work.data_for(task, arguments.data, arguments.examples), arguments.epochs or 10
                ),
            )


if __name__ == "__main__":
    main()
