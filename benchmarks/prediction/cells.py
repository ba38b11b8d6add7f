"""A cell: one network on one target. Profiled, then held-out networks are drawn and measured twice; then plans are made
for budgets from the same table, measured and corrected.

Every step runs in a process of its own and leaves its result behind, so a run that breaks off is gone on with, and a
changed predictor can be judged on tables and measurements that were made before it.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.budgets import delivered
from benchmarks.machine import RESULTS, machine
from widthwise.profiling.runtimes.base import Session

HERE = RESULTS / "prediction"
WORK = Path("build/prediction")
KINDS = ("random, aligned", "random, odd", "planned")
BUDGETS = ("80%", "60%", "40%", "30%")
MEASURED = ("first_share", "second_share", "third_share", "fourth_share")
"""Of the dense network's latency, each from a process of its own; the last two only where the first two lie further
apart than :data:`NOISY`."""
NOISY = 0.02

USUAL_TIME_S = 240.0
_SEED = 20261126
_TOGETHER_BYTES = 300e6
_MOST_TOGETHER = 12
_DENSE_TIMES = 4
"""As often as any other network the dense one is measured, whose error all that are timed beside it share."""


@dataclass(frozen=True)
class Cell:
    """A network, a target, its threads, and the seconds of profiling."""

    network: str
    target: str
    threads: int
    time_s: float

    @property
    def name(self) -> str:
        return f"{self.network}-{self.target.replace(':', '-')}-{self.threads}-{self.time_s:.0f}s"

    @property
    def usual(self) -> Cell:
        """The same with the usual time, whose held-out networks tell about other times too."""
        return replace(self, time_s=USUAL_TIME_S)

    @property
    def table(self) -> Path:
        return WORK / f"{self.name}.lut"

    @property
    def record(self) -> Path:
        return HERE / f"{self.name}.json"


def complete(cell: Cell, each: int) -> None:
    """Does what is missing of a cell; ``each`` networks of every random kind, twice as many planned ones."""
    WORK.mkdir(parents=True, exist_ok=True)
    drafts = cell.table.with_suffix(".json")
    if not cell.table.is_file():
        print(f"{cell.name}: profiling", flush=True)
        apart(_profile, cell)
    if cell != cell.usual and cell.usual.record.is_file() and cell.usual.table.is_file():
        keep(cell, json.loads(cell.usual.record.read_text())["networks"], [])
        return
    networks = json.loads(drafts.read_text()) if drafts.is_file() else apart(_draw, cell, each)
    for place, measured in enumerate(MEASURED):
        if place >= 2 and noise(networks) <= NOISY:
            break
        if measured not in networks[0]:
            print(f"{cell.name}: measuring {len(networks)} networks", flush=True)
            for network, share in zip(networks, apart(_measure, cell, [n["widths"] for n in networks]), strict=True):
                network[measured] = share
            drafts.write_text(json.dumps(networks))
    plans = cell.table.with_suffix(".budgets.json")
    if not plans.is_file():
        print(f"{cell.name}: plans", flush=True)
        plans.write_text(json.dumps(apart(_deliver, cell)))
    keep(cell, networks, json.loads(plans.read_text()))


def noise(networks: Sequence[Mapping[str, Any]]) -> float:
    """How far the first two measurements of a network lie apart, in the mean."""
    return math.fsum(apart_by(networks)) / len(networks)


def repeatable(networks: Sequence[Mapping[str, Any]], within: float = 0.05) -> float:
    """The share of networks whose first two measurements lie no further apart than that."""
    return sum(by <= within for by in apart_by(networks)) / len(networks)


def apart_by(networks: Sequence[Mapping[str, Any]]) -> list[float]:
    """|first over second measurement - 1| of each network."""
    return [abs(n[MEASURED[0]] / n[MEASURED[1]] - 1) for n in networks]


def keep(cell: Cell, networks: Any, budgets: Any) -> None:
    """The record: what was drawn and measured, and what plans measured."""
    HERE.mkdir(parents=True, exist_ok=True)
    record = {"machine": machine(), "cell": vars(cell), "networks": networks, "budgets": budgets}
    cell.record.write_text(json.dumps(record) + "\n")


def opened(cell: Cell) -> tuple[Any, Any, Any]:
    """(model, example, network), the network as the user's; on one thread, or as many as the cell has."""
    import torch

    from widthwise.network.loading import load_model
    from widthwise.network.network import Network

    torch.set_num_threads(cell.threads)
    name = f"torchvision:{cell.network}"
    model = load_model(name)
    example = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    return model, example, Network.trace(model, example, name=name)


def _profile(cell: Cell) -> None:
    """As ``widthwise profile`` does it: the time is shared among fresh processes, one a minute, up to four."""
    from widthwise.planner.proposal import Proposer
    from widthwise.profiling.target import Target
    from widthwise.profiling.workers import Job, profile_in_workers, workers_for

    _, example, network = opened(cell)
    draft = cell.table.with_suffix(".draft")
    draft.unlink(missing_ok=True)
    target = Target.parse(cell.target, threads=cell.threads)
    job = Job(network.name, None, (example,), target, draft, advise=Proposer)
    profile_in_workers(job, time_s=cell.time_s, workers=workers_for(cell.time_s))
    draft.rename(cell.table)


def _draw(cell: Cell, each: int) -> list[dict[str, Any]]:
    from widthwise.luts.store import Lut
    from widthwise.network.fusion import as_timed
    from widthwise.network.granularity import options_from
    from widthwise.planner.proposal import Proposer

    model, _, network = opened(cell)
    with Lut.open(cell.table, readonly=True) as lut:
        options = options_from(lut, as_timed(network, lut))
        planned = Proposer(model, network, seed=_SEED).networks(lut, range(2 * each), options)
    aligned = [random_widths(options, f"{cell.network} aligned {index}") for index in range(each)]
    every = {group: range(max(1, size // 8), size + 1) for group, size in network.dense.items()}
    odd = [random_widths(every, f"{cell.network} odd {index}") for index in range(each)]
    drawn = zip(KINDS, (aligned, odd, planned), strict=True)
    return [{"kind": kind, "widths": widths} for kind, found in drawn for widths in found]


def random_widths(options: Mapping[str, Sequence[int]], seed: str) -> dict[str, int]:
    """Each group's width around a share common to all, so that small networks and large ones come up alike."""
    rng = random.Random(seed)
    share = rng.uniform(0.2, 1.0)
    return {
        group: min(widths, key=lambda width: abs(width - share * rng.lognormvariate(0, 0.3) * widths[-1]))
        for group, widths in options.items()
    }


def _measure(cell: Cell, widths: Sequence[Mapping[str, int]]) -> list[float]:
    """Each network's latency over the dense one's, in interleaved runs beside it."""
    import torch

    from widthwise.luts.store import Lut
    from widthwise.network.fusion import fused
    from widthwise.profiling.profiler import candidate_for
    from widthwise.profiling.runtimes import open_runtime
    from widthwise.profiling.schedule import Pace, Schedule
    from widthwise.profiling.target import Target

    model, example, network = opened(cell)
    with Lut.open(cell.table, readonly=True) as lut:
        quiet_ms = lut.quiet_reference_ms
        target = Target.from_dict(dict(lut.target))
    runtime = open_runtime(target)
    timed = fused(network) if runtime.fuses else network
    size = sum(tensor.numel() * 4 for tensor in model.parameters())
    together = int(min(_MOST_TOGETHER, max(2, _TOGETHER_BYTES // size)))
    found: list[float] = []
    with torch.inference_mode(), runtime.active():
        schedule = Schedule.on(runtime, quiet_ms=quiet_ms)
        dense = runtime.network(candidate_for(model, timed, timed.dense, (example,)))
        schedule.warm_up(dense)
        for begin in range(0, len(widths), together):
            part = widths[begin : begin + together]
            sessions = [runtime.network(candidate_for(model, timed, chosen, (example,))) for chosen in part]
            pace = Pace(blocks=8, most_blocks=12, half_width=0.0075, cap_s=2.0)
            timings = schedule.measure([Whole(session) for session in [dense] * _DENSE_TIMES + sessions], pace)
            taken = [timing.measurement(1.0).latency_ms for timing in timings]
            dense_ms = math.fsum(taken[:_DENSE_TIMES]) / _DENSE_TIMES
            found += [ms / dense_ms for ms in taken[_DENSE_TIMES:]]
    return found


class Whole(Session):
    """A network without a record of its layers."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def run(self) -> float:
        return float(self._session.run())


def _deliver(cell: Cell) -> list[dict[str, Any]]:
    """Budgets, each at most twice planned anew, on a copy of the table."""
    model, example, network = opened(cell)
    copied = cell.table.with_suffix(".delivered")
    shutil.copy(cell.table, copied)
    return list(delivered(model, example, copied, name=network.name, budgets=BUDGETS, replan=2))


def _answer(queue: Any, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    queue.put(json.dumps(work(*arguments)))


def apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns, from a fresh process."""
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.SimpleQueue[str] = context.SimpleQueue()
    process = context.Process(target=_answer, args=(queue, work, arguments))
    process.start()
    while process.is_alive() and queue.empty():
        process.join(0.2)
    if queue.empty():
        raise SystemExit(f"{work.__name__.strip('_')} of {arguments[0].name} failed; see above")
    answer = json.loads(queue.get())
    process.join()
    return answer
