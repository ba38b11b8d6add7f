"""Is anything measured ever lost? ``python -m benchmarks.durability [--kills 50] [--entries 10000] [--size 100000]``

A profiling run is killed (SIGKILL) at random moments and continued, again and again into one table; several processes
write one table at once; and a large table is opened and queried in a fresh process. Linux and macOS only (fork). The
profiler is the real one; its runtime is the fake one, which takes no time and so commits as fast as the disk can.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import struct
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.machine import caption, keep
from widthwise.luts import (
    Block,
    Estimator,
    Geometry,
    LatencyTable,
    LayerSpec,
    Lut,
    Measurement,
    NetworkKey,
    Role,
    Severity,
    check,
)

_ID = struct.Struct("<cq")
_QUIET_MS = 1.5
_GEOMETRIES = 50
_PER_NETWORK = 50


def kills(folder: Path, count: int) -> dict[str, Any]:
    """Kills a profiling run ``count`` times; everything acknowledged before must be there after."""
    import torch
    from torch import nn

    from widthwise.network.network import Network

    torch.set_num_threads(1)
    model = nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 16, 3), nn.Flatten(), nn.Linear(16 * 49, 5))
    example = torch.zeros(1, 3, 11, 11)
    network = Network.trace(model.eval(), (example,), name="small")
    path, rng = folder / "killed.lut", random.Random(1)
    acknowledged: set[tuple[bytes, int]] = set()
    lost = unclean = resumed = in_transaction = 0
    for _ in range(count):
        before = len(acknowledged)
        acknowledged |= _killed_run(path, rng.uniform(0.02, 1.0), lambda: _profile(path, model, network, example))
        in_transaction += path.with_name(path.name + "-journal").exists()
        with Lut.open(path) as lut:
            unclean += any(finding.severity is Severity.ERROR for finding in check(lut))
            stored = {(b"n", record.id) for record in lut.networks()} | {(b"l", record.id) for record in lut.layers()}
        lost += len(acknowledged - stored)
        resumed += len(acknowledged) > before
    return {"kills": count, "measurements": len(acknowledged), "lost": lost, "checks clean": count - unclean,
            "runs that added": resumed, "killed inside a transaction": in_transaction}  # fmt: skip


def _profile(path: Path, model: Any, network: Any, example: Any) -> None:
    from widthwise.profiling.profiler import Profiler, open_table
    from widthwise.profiling.runtimes import open_runtime
    from widthwise.profiling.target import Target

    runtime = open_runtime(Target.parse("fake:cpu"))
    with open_table(path, runtime) as lut:
        Profiler(model, network, (example,), runtime=runtime, lut=lut).run(time_s=600, networks=10**6)


def _killed_run(path: Path, after_s: float, work: Callable[[], None]) -> set[tuple[bytes, int]]:
    """Ids that a forked child was told had been stored, until it was killed ``after_s`` after its first."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        _acknowledging(write)
        try:
            work()
        finally:
            os._exit(1)
    os.close(write)
    told = os.read(read, _ID.size)
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    while chunk := os.read(read, 1 << 16):
        told += chunk
    os.close(read)
    os.waitpid(child, 0)
    return set(_ID.iter_unpack(told[: len(told) // _ID.size * _ID.size]))


def _acknowledging(write: int) -> None:
    """From now on each id is written to the pipe once the call that stored it has returned."""
    add_network, add_layer = Lut.add_network, Lut.add_layer

    def network(lut: Lut, *args: Any, **options: Any) -> int:
        identifier = add_network(lut, *args, **options)
        os.write(write, _ID.pack(b"n", identifier))
        return identifier

    def layer(lut: Lut, *args: Any, **options: Any) -> None:
        add_layer(lut, *args, **options)
        (last,) = lut._db.execute("SELECT MAX(id) FROM layers").fetchone()
        os.write(write, _ID.pack(b"l", last))

    Lut.add_network, Lut.add_layer = network, layer  # type: ignore[method-assign, assignment]


def _measurement(ms: float) -> Measurement:
    return Measurement(tuple(Block(ms * factor, _QUIET_MS) for factor in (1.0, 1.01, 1.03, 0.98)), _QUIET_MS)


def _spec(index: int) -> LayerSpec:
    shape = ((1, 0, 7 + index % _GEOMETRIES, 7),)
    return LayerSpec(Geometry("conv2d", shape, shape, (("kernel", (3, 3)),)), (1 + index % 97, 1 + index % 89))


def _new(path: Path) -> None:
    with Lut.create(path, target={"runtime": "made up"}, fingerprint={"cpu": "made up"}) as lut:
        lut.set_quiet_reference(_QUIET_MS)


def _write(path: Path, who: int, count: int) -> None:
    with Lut.open(path) as lut:
        run = lut.begin_run(f"writer {who}", {})
        for index in range(count):
            lut.add_layer(run, _spec(index), Estimator.SINGLE, _measurement(1 + index))


def writers(folder: Path, processes: int, entries: int) -> dict[str, Any]:
    """Several processes at once, one transaction an entry, as profiling does."""
    path = folder / "shared.lut"
    _new(path)
    each = entries // processes
    start = time.perf_counter()
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        for done in [pool.submit(_write, path, who, each) for who in range(processes)]:
            done.result()
    seconds = time.perf_counter() - start
    with Lut.open(path, readonly=True) as lut:
        stored, errors = lut.summary().layers, sum(f.severity is Severity.ERROR for f in check(lut))
    return {"writers": processes, "entries": each * processes, "lost": each * processes - stored,
            "check errors": errors, "seconds": seconds}  # fmt: skip


def _query(path: Path) -> dict[str, float]:
    """In a fresh process without torch: open, count, and read the surfaces of one network's 20 geometries, then all."""
    import resource
    import sys

    start = time.perf_counter()
    with Lut.open(path, readonly=True) as lut:
        summary = lut.summary()
        some = LatencyTable.load(lut, [_spec(index).geometry for index in range(20)])
    seconds = time.perf_counter() - start
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    with Lut.open(path, readonly=True) as lut:
        start = time.perf_counter()
        every = LatencyTable.load(lut)
        all_seconds = time.perf_counter() - start
    all_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    assert "torch" not in sys.modules
    return {"entries": summary.layers, "queried": sum(map(len, some)), "open and query s": seconds, "peak MB": peak_mb,
            "loaded": sum(map(len, every)), "load all s": all_seconds, "load all peak MB": all_mb}  # fmt: skip


def large(folder: Path, size: int) -> dict[str, Any]:
    """A table of ``size`` layer entries, in networks of 50 layers."""
    path = folder / "large.lut"
    _new(path)
    with Lut.open(path) as lut:
        run = lut.begin_run("make", {})
        for first in range(0, size, _PER_NETWORK):
            layers = [(f"l{i}", _spec(first + i), _measurement(1 + i)) for i in range(_PER_NETWORK)]
            lut.add_network(run, NetworkKey("s", "m", {"a": 1 + first}), _measurement(70), layers, role=Role.FIT)
    found = []
    for _ in range(3):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
            found.append(fresh.submit(_query, path).result())
    return {**sorted(found, key=lambda row: row["open and query s"])[1], "file MB": path.stat().st_size / 2**20}


def main() -> None:
    """Prints a Markdown table and keeps the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--entries", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=100_000)
    arguments = parser.parse_args()
    print("| what | figures |\n|---|---|")
    rows = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for what, row in (
            ("large table", lambda: large(folder, arguments.size)),
            ("many writers", lambda: writers(folder, arguments.writers, arguments.entries)),
            ("killed", lambda: kills(folder, arguments.kills)),
        ):
            rows[what] = row()
            figures = ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v:,}" for k, v in rows[what].items())
            print(f"| {what} | {figures} |", flush=True)
    print(f"\n{caption()}")
    keep("durability", rows)


if __name__ == "__main__":
    main()
