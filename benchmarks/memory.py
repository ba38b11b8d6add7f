"""What does asking for memory cost? ``python -m benchmarks.memory [NETWORK …] [--time 60]``

Fresh processes that give freed memory back (the default of glibc) and fresh processes that keep it
(``widthwise.keep_memory``) take turns, a few inferences each, on one thread.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from benchmarks.machine import caption, keep

NETWORKS = ("mobilenet_v2", "resnet18", "resnet50")
PROCESSES = 3
"""Of each kind: where a process puts its memory matters too."""

_SETTLE = 30
_RUNS = 3


def serve(network: str, kept: bool, pipe: Connection) -> None:
    """A process that times inferences whenever it is asked; sends (ms, page faults) of one."""
    import torch

    import widthwise as ww
    from widthwise.network.loading import load_model
    from widthwise.profiling.conditions import watch_host

    torch.set_num_threads(1)
    if kept and not ww.keep_memory():
        pipe.send(None)
        return
    model, example = load_model(f"torchvision:{network}"), torch.zeros(1, 3, 224, 224)
    with torch.inference_mode():
        for _ in range(_SETTLE):
            model(example)
        pipe.send("ready")
        while pipe.recv():
            model(example)
            finish, start = watch_host(1), time.perf_counter()
            for _ in range(_RUNS):
                model(example)
            pipe.send(((time.perf_counter() - start) * 1e3 / _RUNS, (finish().page_faults or 0) / _RUNS))


def compare(network: str, time_s: float) -> dict[str, Any]:
    """Rounds in which every process has its turn."""
    context = multiprocessing.get_context("spawn")
    pipes: list[tuple[bool, Connection]] = []
    for kept in (True, False) * PROCESSES:
        ours, theirs = context.Pipe()
        context.Process(target=serve, args=(network, kept, theirs), daemon=True).start()
        pipes.append((kept, ours))
        if ours.recv() is None:
            raise SystemExit("this C library can't be told to keep memory")
    rounds: dict[bool, list[list[float]]] = {True: [], False: []}
    faults: dict[bool, list[float]] = {True: [], False: []}
    end = time.perf_counter() + time_s
    while time.perf_counter() < end:
        taken: dict[bool, list[float]] = {True: [], False: []}
        for kept, pipe in random.sample(pipes, len(pipes)):
            pipe.send(True)
            latency_ms, pages = pipe.recv()
            taken[kept].append(latency_ms)
            faults[kept].append(pages)
        for kept in rounds:
            rounds[kept].append(taken[kept])
    for _, pipe in pipes:
        pipe.send(False)
    kept_ms, default_ms = (np.array(rounds[kept]) for kept in (True, False))
    ratios = np.median(kept_ms, axis=1) / np.median(default_ms, axis=1)
    return {
        "network": network,
        "rounds": len(ratios),
        "ratio": float(np.median(ratios)),
        "ratio_quartiles": np.quantile(ratios, [0.25, 0.75]).tolist(),
        "kept_ms": float(np.median(kept_ms)),
        "default_ms": float(np.median(default_ms)),
        "page_faults": [float(np.median(faults[kept])) for kept in (True, False)],
    }


def main() -> None:
    """Prints a Markdown table and keeps the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--time", type=float, default=60.0, help="seconds of each network")
    arguments = parser.parse_args()
    print(
        "| network | latency kept ÷ given back (quartiles over rounds) | page faults an inference, kept | given back |"
    )
    print("|---|---|---|---|")
    rows = []
    for network in arguments.networks:
        rows.append(row := compare(network, arguments.time))
        low, high = row["ratio_quartiles"]
        kept, default = row["page_faults"]
        print(f"| {network} | {row['ratio']:.2f} ({low:.2f} to {high:.2f}) | {kept:.0f} | {default:.0f} |", flush=True)
    print(f"\n{PROCESSES} processes of each kind in turns. {caption()}")
    keep("memory", rows)


if __name__ == "__main__":
    main()
