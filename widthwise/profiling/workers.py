"""Profiling in several processes, one after the other.

Where a process puts its memory changes what its layers take; a table made by one process holds that process's luck.
So the time is shared among workers that start afresh and continue each other's table. A worker builds the model
itself, from its name: nothing is handed over but plain data.
"""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import nn

from widthwise.luts.errors import WidthwiseError
from widthwise.network.loading import load_model
from widthwise.network.network import Network
from widthwise.profiling.profiler import Profiler, ProfileReport, Progress, open_table
from widthwise.profiling.runtimes import open_runtime
from widthwise.profiling.sampler import Adviser
from widthwise.profiling.target import Target

__all__ = ["Job", "WorkerDied", "profile_in_workers", "workers_for"]

_MOST_WORKERS = 4
_WORTH_A_WORKER_S = 60.0
_ENDING_S = 0.5
"""What the last of them takes to end; with it, 240 s are not 240.2."""


class WorkerDied(WidthwiseError):
    """A worker ended without a word: killed, or out of memory."""


@dataclass(frozen=True, slots=True)
class Job:
    """What every worker is told.

    Args:
        model: as on the command line; see :func:`widthwise.network.loading.load_model`.
        weights: a file, or None.
        example: one tensor per input.
        advise: makes the adviser of a model and its network; must be importable by name.
    """

    model: str
    weights: Path | None
    example: tuple[torch.Tensor, ...]
    target: Target
    path: Path
    advise: Callable[[nn.Module, Network], Adviser] | None = None
    seed: int = 0


def workers_for(time_s: float) -> int:
    """How many workers a profile of this length is shared among: one a minute, four at most.

    Example:
        >>> workers_for(20.0), workers_for(130.0), workers_for(3600.0)
        (1, 2, 4)
    """
    return max(1, min(_MOST_WORKERS, int(time_s // _WORTH_A_WORKER_S)))


def profile_in_workers(
    job: Job, *, time_s: float, workers: int, on_progress: Progress = lambda share, text: None
) -> ProfileReport:
    """Profiles in ``workers`` processes, each for an equal share of what is left of the time.

    Their starting up and ending count: the whole takes ``time_s``, a few seconds more where that is shorter than both.

    Raises:
        WorkerDied: names the signal or exit code; what was measured until then is in the table.
        WidthwiseError: whatever a worker raises; see :func:`widthwise.profiling.profiler.profile`.
    """
    start = time.perf_counter()
    open_table(job.path, open_runtime(job.target)).close()  # bad input is known before a process is started
    reports: list[ProfileReport] = []
    for index in range(workers):
        left_s = time_s - _ENDING_S - (time.perf_counter() - start)

        def progress(share: float, text: str, index: int = index) -> None:
            on_progress((index + share) / workers, text)

        reports.append(_in_a_process(job, max(0.0, left_s / (workers - index)), progress))
    return _together(reports, time.perf_counter() - start)


def _in_a_process(job: Job, time_s: float, on_progress: Progress) -> ProfileReport:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(job, time_s, time.time(), theirs), daemon=True)
    process.start()
    theirs.close()  # so that the worker's death ends the reading
    try:
        while True:
            message = ours.recv()
            if isinstance(message, ProfileReport):
                return message
            if isinstance(message, WidthwiseError):
                raise message
            on_progress(*message)
    except EOFError:
        process.join()
        raise WorkerDied(
            f"a profiling worker ended with exit code {process.exitcode} (negative: a signal; -9 often means that "
            f"memory ran out); what it measured is in {job.path}; run the same command again to continue"
        ) from None
    finally:  # also on Ctrl-C: every measurement is committed as it is made
        process.terminate()
        process.join()
        ours.close()


def _work(job: Job, time_s: float, started: float, report_to: Connection) -> None:
    """A worker's life; ``started`` is the epoch time at which its share of time began."""
    try:
        model = load_model(job.model, job.weights)
        network = Network.trace(model, job.example, name=job.model)
        adviser = job.advise(model, network) if job.advise else None
        runtime = open_runtime(job.target)

        def on_progress(share: float, text: str) -> None:
            report_to.send((share, text))

        with open_table(job.path, runtime) as lut, runtime.active():
            profiler = Profiler(
                model,
                network,
                job.example,
                runtime=runtime,
                lut=lut,
                seed=job.seed,
                adviser=adviser,
                on_progress=on_progress,
            )
            report_to.send(profiler.run(time_s=max(0.0, time_s - (time.time() - started))))
    except WidthwiseError as error:
        report_to.send(error)
    except (KeyboardInterrupt, BrokenPipeError):
        pass  # the parent was interrupted too, and says so, or is gone
    finally:
        report_to.close()


def _together(reports: Sequence[ProfileReport], seconds: float) -> ProfileReport:
    dropped: Counter[str] = Counter()
    for report in reports:
        dropped.update(report.dropped)
    return replace(
        reports[0],
        layers=sum(report.layers for report in reports),
        networks=sum(report.networks for report in reports),
        unstable=sum(report.unstable for report in reports),
        waited_s=sum(report.waited_s for report in reports),
        timed_s=sum(report.timed_s for report in reports),
        skipped=tuple(sorted({kind for report in reports for kind in report.skipped})),
        dropped=dict(dropped),
        seconds=seconds,
    )
