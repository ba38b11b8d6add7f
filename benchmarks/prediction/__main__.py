"""Is the predicted time the measured time? ``python -m benchmarks.prediction [NETWORK …] [--target onnxruntime:cpu …]``

A cell is a network on a target. It is profiled (four minutes), then networks are drawn that nothing was fitted on: a
quarter at random widths that are multiples of the steps found, a quarter at any widths, half as a planner would choose
them. Each is measured twice, in two processes, beside the dense network, and twice more where the two lie more than 2 %
apart. The table gives the predictions' errors against the mean, how many of all single measurements the interval covers
and its width, the difference between the first two measurements (noise) and how many networks lie within 5 % of
themselves, and the errors of what others predict with, fitted on the same measurements. A second table: plans for 80,
60, 40 and 30 % of the dense latency from the same table, measured over budget at first and after at most two new plans.
With ``--time 30 60 120 480`` the table is made in other times and judged by the networks of the four minutes' cell.
``--table`` prints what is on record, predicted anew where the tables under ``build/prediction`` are still there. The
last table counts, over all cells of four minutes, what is as asked.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from typing import Any

from benchmarks.machine import caption
from benchmarks.prediction.baselines import BASELINES
from benchmarks.prediction.cells import HERE, USUAL_TIME_S, Cell, complete, repeatable
from benchmarks.prediction.scores import scored
from benchmarks.prediction.totals import totals

NETWORKS = ("resnet18", "resnet50", "vgg16_bn", "mobilenet_v2", "efficientnet_b0", "googlenet", "densenet121")
TARGETS = ("torch:cpu", "onnxruntime:cpu", "openvino:cpu")


def recorded() -> Iterator[Cell]:
    """Cells with a record."""
    for path in sorted(path for path in HERE.glob("*.json") if not path.stem.endswith(".scores")):
        yield Cell(**json.loads(path.read_text())["cell"])


def figures(cell: Cell) -> dict[str, Any]:
    """Scored anew, or as they were kept."""
    kept = cell.record.with_suffix(".scores.json")
    if cell.table.is_file():
        kept.write_text(json.dumps(scored(cell), indent=1) + "\n")
    return dict(json.loads(kept.read_text()))


def line(cell: Cell, found: dict[str, Any]) -> str:
    """A row of the table."""
    itself = repeatable(json.loads(cell.record.read_text())["networks"])
    ours = [f"{found['mape']:.1%}", f"{found['within_5']:.0%}", f"{found['worst']:.1%}", f"{found['bias']:+.1%}",
            f"{found['spearman']:.3f}", f"{found['coverage']:.0%}", f"{found['interval_width']:.0%}",
            f"{found['noise']:.1%}", f"{itself:.0%}",
            *(f"{found['baselines'][name]['mape']:.0%}" for name in BASELINES)]  # fmt: skip
    return f"| {cell.network} | {on(cell)} | {cell.time_s:.0f} | {' | '.join(ours)} |"


def on(cell: Cell) -> str:
    """The target, and its threads where there are several."""
    return cell.target + (f", {cell.threads} threads" if cell.threads > 1 else "")


def plan_lines(cell: Cell) -> list[str]:
    """Rows of the table of budgets."""
    rows = json.loads(cell.record.read_text()).get("budgets", [])
    return [
        f"| {cell.network} | {on(cell)} | {row['budget']} | {row['attempts'][0]:.3f} | **{row['best']:.3f}** "
        f"| {len(row['attempts']) - 1} |"
        for row in rows
    ]


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--target", nargs="+", default=TARGETS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--time", nargs="+", type=float, default=[USUAL_TIME_S], help="seconds of profiling")
    parser.add_argument("--each", type=int, default=10, help="networks of each random kind")
    parser.add_argument("--table", action="store_true", help="only print what is on record")
    arguments = parser.parse_args()
    heads = ["network", "target", "profiled s", "MAPE", "within 5 %", "worst", "bias", "Spearman", "coverage", "width",
             "noise", "itself within 5 %", *BASELINES]  # fmt: skip
    cells = list(recorded()) if arguments.table else [
        Cell(network, target, arguments.threads, time_s)
        for target, network, time_s in itertools.product(arguments.target, arguments.networks, arguments.time)
    ]  # fmt: skip
    rows, all_found, plans = [], [], []
    for cell in cells:
        if not arguments.table:
            complete(cell, arguments.each)
        all_found.append(figures(cell))
        rows.append(line(cell, all_found[-1]))
        plans += plan_lines(cell)
        print(rows[-1], flush=True)
    print("\n| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|\n" + "\n".join(rows))
    slowest = {key: max(found[key] for found in all_found) for key in ("fit_s", "one_ms", "ten_thousand_s")}
    fit_s, one_ms, many_s = slowest.values()
    print(f"\nAt most {fit_s:.1f} s to fit, {one_ms:.1f} ms for one prediction, {many_s:.1f} s for 10,000 in one call.")
    print("\n| network | target | budget | first ÷ budget | after new plans | new plans |\n" + "|---" * 6 + "|")
    print("\n".join(plans))
    usual = [(found, json.loads(cell.record.read_text())) for cell, found in zip(cells, all_found, strict=True)
             if cell.time_s == USUAL_TIME_S]  # fmt: skip
    if usual:
        print("\n| of all cells | |\n|---|---|\n" + "\n".join(totals(*zip(*usual, strict=True))))
    print(f"\nThe last columns: mean error of what others predict with. {caption()}")


if __name__ == "__main__":
    main()
