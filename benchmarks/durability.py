"""Is anything measured ever lost? ``python -m benchmarks.durability [--kills 50] [--entries 10000] [--size 100000]``

A profiling run is killed (SIGKILL) at random moments, some while it starts, and continued into the same table, again
and again: what it was told is stored, whole networks and single layers, must be there with the same samples. Several
processes write one table at once. A large table is opened and queried in a fresh process; its pages are in the
system's cache, and Python's start and imports don't count. The profiler is the real one; its runtime is the fake
one, which takes no time and so commits as fast as the disk can. Linux and macOS only (fork).
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
import zlib
from collections import Counter
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

_TOLD = struct.Struct("<cqI")
"""What a child reports: kind, id, checksum."""

_KILL_COUNTS = ("killed", "networks", "single layers", "errors found", "runs that added", "killed inside a transaction")
_TO_REACH = {
    "large table": "open and query ≤ 0.2 s, ≤ 200 MB",
    "many writers": "none lost",
    "killed": "none lost, no errors, runs continue",
}
_QUIET_MS = 1.5
_GEOMETRIES = 100
_PER_NETWORK = 50


def kills(folder: Path, count: int) -> dict[str, Any]:
    """Kills a profiling run ``count`` times; everything acknowledged before must be there after."""
    import torch
    from torch import nn

    from widthwise.network.network import Network

    torch.set_num_threads(1)
    model = nn.Sequential(nn.Conv2d(3, 96, 3), nn.ReLU(), nn.Conv2d(96, 64, 3), nn.Flatten(), nn.Linear(64 * 49, 5))
    example = torch.zeros(1, 3, 11, 11)
    network = Network.trace(model.eval(), (example,), name="small")
    path, rng = folder / "killed.lut", random.Random(1)
    acknowledged: dict[tuple[bytes, int], int] = {}
    counted: Counter[str] = Counter(dict.fromkeys(_KILL_COUNTS, 0))
    lost: set[tuple[tuple[bytes, int], int]] = set()
    for index in range(count):
        before = len(acknowledged)
        told, killed = _killed_run(
            lambda: _profile(path, model, network, example),
            first=index % 4 != 0,
            after_s=rng.uniform(0.0, 0.6),
        )
        acknowledged |= told
        counted["killed"] += killed
        counted["runs that added"] += len(acknowledged) > before
        counted["killed inside a transaction"] += path.with_name(path.name + "-journal").exists()
        if path.exists():
            with Lut.open(path) as lut:
                counted["errors found"] += sum(finding.severity is Severity.ERROR for finding in check(lut))
                lost = acknowledged.items() - _stored(lut).items()
    counted["networks"] = sum(kind == b"n" for kind, _ in acknowledged)
    counted["single layers"] = sum(kind == b"l" for kind, _ in acknowledged)
    return {**counted, "lost": len(lost)}


def _stored(lut: Lut) -> dict[tuple[bytes, int], int]:
    """What the table holds: (kind, id) → checksum of the raw samples."""
    found = {(b"n", record.id): _checksum(lut.samples(record)) for record in lut.networks()}
    for record in lut.layers(estimator=Estimator.SINGLE):
        found[b"l", record.id] = _checksum(lut.samples(record))
    return found


def _checksum(measurement: Measurement) -> int:
    return zlib.crc32(repr([(block.latency_ms, block.reference_ms) for block in measurement.blocks]).encode())


def _profile(path: Path, model: Any, network: Any, example: Any) -> None:
    """Whole networks and single layers in turn, until the process is killed."""
    from widthwise.profiling.profiler import Profiler, open_table
    from widthwise.profiling.runtimes import open_runtime
    from widthwise.profiling.target import Target

    runtime = open_runtime(Target.parse("fake:cpu"))
    with open_table(path, runtime) as lut:
        while True:
            networks = len(lut.networks()) + 5
            Profiler(model, network, (example,), runtime=runtime, lut=lut).run(time_s=600, networks=networks)


def _killed_run(work: Callable[[], None], *, first: bool, after_s: float) -> tuple[dict[tuple[bytes, int], int], bool]:
    """What a forked child was told had been stored, and whether it was killed rather than ended by itself.

    It is killed ``after_s`` after its first measurement, or after its start where ``first`` is False.
    """
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
    told = os.read(read, _TOLD.size) if first else b""
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    while chunk := os.read(read, 1 << 16):
        told += chunk
    os.close(read)
    _, status = os.waitpid(child, 0)
    records = _TOLD.iter_unpack(told[: len(told) // _TOLD.size * _TOLD.size])
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    return {(kind, identifier): checksum for kind, identifier, checksum in records}, killed


def _acknowledging(write: int) -> None:
    """From now on each id, with a checksum, is written to the pipe once the call that stored it has returned."""
    add_network, add_layer = Lut.add_network, Lut.add_layer

    def network(lut: Lut, run: int, key: NetworkKey, measurement: Measurement, *args: Any, **options: Any) -> int:
        identifier = add_network(lut, run, key, measurement, *args, **options)
        os.write(write, _TOLD.pack(b"n", identifier, _checksum(measurement)))
        return identifier

    def layer(lut: Lut, run: int, spec: LayerSpec, estimator: Estimator, measurement: Measurement) -> None:
        add_layer(lut, run, spec, estimator, measurement)
        (last,) = lut._db.execute("SELECT MAX(id) FROM layers").fetchone()
        os.write(write, _TOLD.pack(b"l", last, _checksum(measurement)))

    Lut.add_network, Lut.add_layer = network, layer  # type: ignore[method-assign, assignment]


def _measurement(ms: float) -> Measurement:
    return Measurement(tuple(Block(ms * factor, _QUIET_MS) for factor in (1.0, 1.01, 1.03, 0.98)), _QUIET_MS)


def _spec(index: int) -> LayerSpec:
    shape = ((1, 0, 7 + index % _GEOMETRIES, 7),)
    return LayerSpec(Geometry("conv2d", shape, shape, (("kernel", (3, 3)),)), (1 + index % 97, 1 + index % 89))


def _new(path: Path) -> None:
    with Lut.create(path, target={"runtime": "made up"}, fingerprint={"cpu": "made up"}) as lut:
        lut.set_quiet_reference(_QUIET_MS)


def _write(path: Path, who: int, count: int) -> tuple[float, float]:
    """Stores entries nobody else stores; when it began and ended."""
    start = time.time()
    with Lut.open(path) as lut:
        run = lut.begin_run(f"writer {who}", {})
        for index in range(count):
            lut.add_layer(run, _spec(index), Estimator.SINGLE, _measurement(1 + who * count + index))
    return start, time.time()


def writers(folder: Path, processes: int, entries: int) -> dict[str, Any]:
    """Several processes at once, one transaction an entry, as profiling does."""
    path = folder / "shared.lut"
    _new(path)
    each = entries // processes
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        spans = [done.result() for done in [pool.submit(_write, path, who, each) for who in range(processes)]]
    wanted = {(_spec(index), float(1 + who * each + index)) for who in range(processes) for index in range(each)}
    with Lut.open(path, readonly=True) as lut:
        stored = {(record.spec, float(lut.samples(record).blocks[0].latency_ms)) for record in lut.layers()}
        errors = sum(finding.severity is Severity.ERROR for finding in check(lut))
    seconds = max(end for _, end in spans) - min(start for start, _ in spans)
    return {"writers": processes, "entries": len(wanted), "lost": len(wanted - stored), "errors found": errors,
            "entries a second": len(wanted) / seconds}  # fmt: skip


def _query(path: Path) -> dict[str, float]:
    """In a fresh process without torch: open, and read the surfaces of one network's 20 geometries; then of all."""
    import sys

    start = time.perf_counter()
    with Lut.open(path, readonly=True) as lut:
        some = LatencyTable.load(lut, [_spec(index).geometry for index in range(20)])
    seconds, peak_mb = time.perf_counter() - start, _peak_mb()
    start = time.perf_counter()
    with Lut.open(path, readonly=True) as lut:
        every = LatencyTable.load(lut)
    all_seconds, all_mb = time.perf_counter() - start, _peak_mb()
    with Lut.open(path, readonly=True) as lut:
        entries = lut.summary().layers
    assert "torch" not in sys.modules
    return {"entries": entries, "queried": sum(map(len, some)), "open and query s": seconds, "peak MB": peak_mb,
            "loaded": sum(map(len, every)), "load all s": all_seconds, "load all peak MB": all_mb}  # fmt: skip


def _peak_mb() -> float:
    """Of this process alone; ``ru_maxrss`` would start from what its parent had when it was forked."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) / 2**10 for line in status.read_text().splitlines() if "VmHWM" in line)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts in bytes


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
    print("| what | to reach | figures |\n|---|---|---|")
    rows = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measured: dict[str, Callable[[], dict[str, Any]]] = {
            "large table": lambda: large(folder, arguments.size),
            "many writers": lambda: writers(folder, arguments.writers, arguments.entries),
            "killed": lambda: kills(folder, arguments.kills),
        }
        for what, row in measured.items():
            rows[what] = row()
            figures = ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v:,}" for k, v in rows[what].items())
            print(f"| {what} | {_TO_REACH[what]} | {figures} |", flush=True)
    print(f"\n{caption()}")
    keep("durability", rows)


if __name__ == "__main__":
    main()
