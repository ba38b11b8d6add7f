"""Does a second profile say what the first said? ``python -m benchmarks.repeatability [--time 120] [--repeats 6]``

ResNet-18 is profiled again and again as the command does it, in fresh processes, into a table each; once on an
otherwise idle machine and once beside a process that runs a network without pause. Entries of successive tables are
compared: an entry is a layer with its shapes and all its blocks, in terms of the dense network beside it
(``widthwise.luts.entry``); those that are stable in both are to agree, and intervals of all are to cover the next
profile. In ms each table has a scale of its own, what it saw of the quiet machine; in shares of the dense network, as
budgets are given, it has none. After each profile the layers of the dense network are also timed with
torch.utils.benchmark's ``blocked_autorange``, in a process of its own; both are held against each other on layers whose
entries are stable.
Tables stay under ``build/repeatability``; ``--table`` judges those again, and keeps the figures of both phases.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import caption, keep
from benchmarks.reference import disturb

MODEL = "torchvision:resnet18"
TABLES = Path(__file__).parents[1] / "build/repeatability"
PHASES = ("idle", "one core loaded")
_SETTLE_S = 12.0

Profile = dict[str, Any]
"""``ours``: layer with its shapes → [ms, low, high, stable]; ``dense_ms``; ``dense``: the dense network's layer → its
shapes; ``theirs``: layer → ms."""


def measure(time_s: float, name: str) -> None:
    """One profile, as the command makes it, into a table of that name, and one round of ``blocked_autorange`` in a
    fresh process."""
    from widthwise.planner.proposal import Proposer
    from widthwise.profiling.target import Target
    from widthwise.profiling.workers import Job, profile_in_workers, workers_for

    path = TABLES / f"{name}.lut"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    job = Job(MODEL, None, (example(),), Target.parse("torch:cpu"), path, advise=Proposer)
    profile_in_workers(job, time_s=time_s, workers=workers_for(time_s))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        path.with_suffix(".json").write_text(json.dumps(fresh.submit(autorange).result()))


def read(name: str) -> Profile:
    """What such a table says."""
    from widthwise.luts import Lut, Role, Status, entries
    from widthwise.luts.peers import on_scale, paces

    path = TABLES / f"{name}.lut"
    with Lut.open(path, readonly=True) as lut:
        ours = {
            str(entry.spec): [entry.latency_ms, entry.low_ms, entry.high_ms, entry.status is Status.STABLE]
            for entry in entries(lut)
        }
        pace = paces(lut)
        dense_ms = [on_scale(record, pace).latency_ms for record in lut.networks() if record.role is Role.DENSE]
    network = traced()
    dense = {layer.name: str(spec) for layer, spec in zip(network.layers, network.specs(network.dense), strict=True)}
    theirs = json.loads(path.with_suffix(".json").read_text())
    return {"ours": ours, "dense_ms": float(np.median(dense_ms)), "dense": dense, "theirs": theirs}


def example() -> Any:
    """An input."""
    import torch

    return torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def traced() -> Any:
    """The network."""
    from widthwise.network.loading import load_model
    from widthwise.network.network import Network

    return Network.trace(load_model(MODEL), (example(),), name=MODEL)


def autorange() -> dict[str, float]:
    """Each layer of the dense network as ``blocked_autorange`` times it, in ms; equal layers are timed once."""
    import torch
    from torch.utils.benchmark import Timer

    from widthwise.profiling.runtimes import UnsupportedLayer
    from widthwise.profiling.runtimes.torch_layers import build_layer

    torch.set_num_threads(1)
    network = traced()
    found: dict[Any, float | None] = {}
    names: dict[str, float] = {}
    with torch.inference_mode():
        for layer, spec in zip(network.layers, network.specs(network.dense), strict=True):
            if spec not in found:
                try:
                    module, inputs = build_layer(spec)
                except UnsupportedLayer:
                    found[spec] = None
                else:
                    timer = Timer("module(*inputs)", globals={"module": module.eval(), "inputs": inputs}, num_threads=1)
                    found[spec] = timer.blocked_autorange().median * 1e3
            if (ms := found[spec]) is not None:
                names[layer.name] = ms
    return names


def differences(before: Profile, after: Profile) -> dict[str, list[float]]:
    """|relative difference| of entries that both have: of stable ones, of all, and of the dense network's layers whose
    entries are stable, ours and theirs."""
    both = sorted(before["ours"].keys() & after["ours"].keys())
    stable = [key for key in both if before["ours"][key][3] and after["ours"][key][3]]
    names = sorted(name for name, spec in before["dense"].items() if spec in stable and name in before["theirs"])
    layers = [before["dense"][name] for name in names]

    def apart(keys: list[str], scale: float = 1.0) -> list[float]:
        return [abs(after["ours"][key][0] / before["ours"][key][0] * scale - 1) for key in keys]

    def theirs(scale: float = 1.0) -> list[float]:
        return [abs(after["theirs"][name] / before["theirs"][name] * scale - 1) for name in names]

    of_dense = before["dense_ms"] / after["dense_ms"]
    of_all = sum(before["theirs"].values()) / sum(after["theirs"].values())
    return {
        "widthwise, stable entries": apart(stable),
        "widthwise, stable entries, shares of the dense network": apart(stable, of_dense),
        "widthwise, all entries": apart(both),
        "widthwise, dense layers": apart(layers),
        "blocked_autorange, dense layers": theirs(),
        "widthwise, dense layers, shares of the dense network": apart(layers, of_dense),
        "blocked_autorange, dense layers, shares of their sum": theirs(of_all),
    }


def covered(before: Profile, after: Profile) -> float:
    """How many entries of all that both have differ by no more than both intervals explain."""
    both = before["ours"].keys() & after["ours"].keys()
    logs = {key: np.log([profile["ours"][key][:3] for profile in (before, after)]) for key in both}
    doubts = {key: float(np.hypot(*(log[:, 2] - log[:, 0]))) for key, log in logs.items()}
    return float(np.mean([abs(log[1, 0] - log[0, 0]) <= doubts[key] for key, log in logs.items()]))


def report(phase: str, profiles: list[Profile]) -> list[dict[str, Any]]:
    """Rows of the table: the median over pairs of profiles, and their least and greatest."""
    pairs = [differences(before, after) for before, after in pairwise(profiles)]
    known = [entry for profile in profiles for entry in profile["ours"].values()]
    unstable = float(np.mean([not stable for *_, stable in known]))
    time_unstable = sum(ms for ms, *_, stable in known if not stable) / sum(ms for ms, *_ in known)
    coverage = float(np.mean([covered(before, after) for before, after in pairwise(profiles)]))
    rows = []
    for who in pairs[0]:
        found = [pair[who] for pair in pairs if pair[who]]  # nothing may be stable in a loud hour
        if not found:
            print(f"| {phase} | {who} (0) | – | – |", flush=True)
            continue
        medians = [float(np.median(pair)) for pair in found]
        tails = [float(np.quantile(pair, 0.95)) for pair in found]
        count = int(np.median([len(pair[who]) for pair in pairs]))
        rows.append({"machine": phase, "who": who, "median": medians, "p95": tails, "entries": count,
                     "unstable": unstable, "time_unstable": time_unstable, "coverage": coverage})  # fmt: skip
        shown = " | ".join(f"{np.median(v):.2%} ({min(v):.2%} to {max(v):.2%})" for v in (medians, tails))
        print(f"| {phase} | {who} ({count:,}) | {shown} |", flush=True)
    print(
        f"\n{phase}: {unstable:.0%} of all entries are unstable, {time_unstable:.0%} of their time; intervals cover "
        f"{coverage:.0%} of what the next profile says.\n",
        flush=True,
    )
    return rows


def judged(phase: str, repeats: int) -> list[dict[str, Any]]:
    """Rows of the table for profiles that are there."""
    return report(phase, [read(f"{phase} {number}") for number in range(repeats)])


def main() -> None:
    """Prints a Markdown table and keeps the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--time", type=float, default=120.0, help="seconds of each profile")
    parser.add_argument("--repeats", type=int, default=6, help="profiles in each phase; their successive pairs count")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=PHASES)
    parser.add_argument("--table", action="store_true", help="only judge the profiles of the last run again")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    print("| machine | who | median difference | 95th percentile |\n|---|---|---|---|")
    rows: list[dict[str, Any]] = []
    for phase in arguments.phases:
        if arguments.table:
            rows += judged(phase, arguments.repeats)
            continue
        stop: Event = context.Event()
        neighbour = context.Process(target=disturb, args=("network", stop))
        if phase != "idle":
            neighbour.start()
            time.sleep(_SETTLE_S)
        for number in range(arguments.repeats):
            measure(arguments.time, f"{phase} {number}")
        stop.set()
        if phase != "idle":
            neighbour.join()
        rows += judged(phase, arguments.repeats)
    print(f"\n{arguments.repeats} profiles of {MODEL} in each phase, {arguments.time:.0f} s each. {caption()}")
    if arguments.phases == PHASES:
        keep("repeatability", rows)


if __name__ == "__main__":
    main()
