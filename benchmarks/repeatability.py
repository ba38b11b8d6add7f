"""Does a second profile say what the first said? ``python -m benchmarks.repeatability [--time 120] [--repeats 6]``

ResNet-18 is profiled again and again as the command does it, in fresh processes, into a table each; once on an
otherwise idle machine and once beside a process that runs a network without pause. Entries of successive tables are
compared: an entry is a layer with its shapes, and all its blocks, in ms as predictors read them, in terms of the dense
network beside it. After each profile the layers of the dense network are also timed with torch.utils.benchmark's
``blocked_autorange``, in a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import pairwise
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import caption, keep
from benchmarks.reference import disturb

MODEL = "torchvision:resnet18"
PHASES = ("idle", "one core loaded")
_SETTLE_S = 12.0
_SETTLED = (1, 2.5)
"""Half-widths of intervals, in %."""

Profile = dict[str, Any]
"""``ours``: layer with its shapes → [ms, stable, relative half-width]; ``dense``: the dense
network's layer → its shapes; ``theirs``: layer → ms; ``dropped``; ``seconds``."""


def run(time_s: float) -> Profile:
    """One profile, as the command makes it, and one round of ``blocked_autorange`` in a fresh process."""
    import torch

    from widthwise.luts import Estimator, Lut, Measurement, Status
    from widthwise.luts.peers import paces
    from widthwise.network.loading import load_model
    from widthwise.network.network import Network
    from widthwise.planner.proposal import Proposer
    from widthwise.profiling.target import Target
    from widthwise.profiling.workers import Job, profile_in_workers, workers_for

    example = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "device.lut"
        job = Job(MODEL, None, (example,), Target.parse("torch:cpu"), path, advise=Proposer)
        report = profile_in_workers(job, time_s=time_s, workers=workers_for(time_s))
        with Lut.open(path, readonly=True) as lut:
            blocks: dict[Any, list[Any]] = {}
            quiet_ms, pace = lut.quiet_reference_ms or 0.0, paces(lut)
            for record in lut.layers(estimator=Estimator.IN_PLACE):
                taken = lut.samples(record).blocks
                by = pace[record.network_id] if record.network_id is not None else 1.0
                blocks.setdefault(record.spec, []).extend(replace(b, latency_ms=b.latency_ms / by) for b in taken)
    network = Network.trace(load_model(MODEL), (example,), name=MODEL)
    entries = {spec: Measurement(tuple(taken), quiet_ms) for spec, taken in blocks.items()}
    ours = {
        str(spec): [entry.latency_ms, entry.status is Status.STABLE, entry.half_width]
        for spec, entry in entries.items()
    }
    dense = {layer.name: str(spec) for layer, spec in zip(network.layers, network.specs(network.dense), strict=True)}
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        theirs = fresh.submit(autorange).result()
    return {"ours": ours, "dense": dense, "theirs": theirs, "dropped": report.dropped, "seconds": report.seconds}


def autorange() -> dict[str, float]:
    """Each layer of the dense network as ``blocked_autorange`` times it, in ms; equal layers are timed once."""
    import torch
    from torch.utils.benchmark import Timer

    from widthwise.network.loading import load_model
    from widthwise.network.network import Network
    from widthwise.profiling.runtimes import UnsupportedLayer
    from widthwise.profiling.runtimes.torch_layers import build_layer

    torch.set_num_threads(1)
    network = Network.trace(load_model(MODEL), (torch.zeros(1, 3, 224, 224),), name=MODEL)
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
    """|relative difference| of entries: ours that are stable in both, those of them whose intervals are within 1 and
    within 2.5 % in both, ours of the dense network, and theirs."""

    def stable(key: str) -> bool:
        return key in after["ours"] and before["ours"][key][1] and after["ours"][key][1]

    ours = {key: abs(after["ours"][key][0] / entry[0] - 1) for key, entry in before["ours"].items() if stable(key)}
    doubt = {key: max(profile["ours"][key][2] for profile in (before, after)) for key in ours}
    settled = {
        f"widthwise, entries settled to {most:.3g} %": [ours[key] for key in ours if doubt[key] <= most / 100]
        for most in _SETTLED
    }
    dense = {name: ours[spec] for name, spec in before["dense"].items() if spec in ours}
    both = sorted(dense.keys() & before["theirs"].keys())
    return {
        "widthwise, all entries": list(ours.values()),
        **settled,
        "widthwise, dense layers": [dense[name] for name in both],
        "blocked_autorange, dense layers": [abs(after["theirs"][name] / before["theirs"][name] - 1) for name in both],
    }


def report(phase: str, profiles: list[Profile]) -> list[dict[str, Any]]:
    """Rows of the table: the median over pairs of profiles, and their least and greatest."""
    pairs = [differences(before, after) for before, after in pairwise(profiles)]
    entries = [entry for profile in profiles for entry in profile["ours"].values()]
    unstable = 1 - np.mean([stable for _, stable, _ in entries])
    rows = []
    for who in [who for who in pairs[0] if all(pair[who] for pair in pairs)]:  # nothing settles in a loud hour
        medians = [float(np.median(pair[who])) for pair in pairs]
        tails = [float(np.quantile(pair[who], 0.95)) for pair in pairs]
        count = int(np.median([len(pair[who]) for pair in pairs]))
        rows.append({"machine": phase, "who": who, "median": medians, "p95": tails, "unstable": float(unstable),
                     "entries": count})  # fmt: skip
        shown = " | ".join(f"{np.median(v):.2%} ({min(v):.2%} to {max(v):.2%})" for v in (medians, tails))
        share = f"{unstable:.1%}" if who.startswith("widthwise") else "–"
        print(f"| {phase} | {who} ({count:,}) | {shown} | {share} |", flush=True)
    return rows


def main() -> None:
    """Prints a Markdown table and keeps the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--time", type=float, default=120.0, help="seconds of each profile")
    parser.add_argument("--repeats", type=int, default=6, help="profiles in each phase; their successive pairs count")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    print("| machine | who | median difference | 95th percentile | unstable |\n|---|---|---|---|---|")
    rows: list[dict[str, Any]] = []
    for phase in PHASES:
        stop: Event = context.Event()
        neighbour = context.Process(target=disturb, args=("network", stop))
        if phase != "idle":
            neighbour.start()
            time.sleep(_SETTLE_S)
        profiles = [run(arguments.time) for _ in range(arguments.repeats)]
        stop.set()
        if phase != "idle":
            neighbour.join()
        rows += report(phase, profiles)
    print(f"\n{arguments.repeats} profiles of {MODEL} in each phase, {arguments.time:.0f} s each. {caption()}")
    keep("repeatability", rows)


if __name__ == "__main__":
    main()
