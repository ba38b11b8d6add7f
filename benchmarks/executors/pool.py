"""Several training runs at a time, each in a process of its own."""

from __future__ import annotations

import argparse
import multiprocessing
import re
import time
from typing import Any

from benchmarks.executors import jobs as work
from benchmarks.executors.setup import TASKS

__all__ = ["run_all"]


def worker(queue: Any, data: str, examples: int | None, autotune: bool, until: float) -> None:
    """Takes jobs until there are none or the time is up."""
    import torch

    torch.set_num_threads(1)
    while time.time() < until:
        job = queue.get()
        if job is None:
            return
        torch.backends.cudnn.benchmark = autotune and job.method != "metapruning"  # its shapes change at every step
        try:
            work.run(job, work.data_for(TASKS[job.network], data, examples))
            print(f"{time.strftime('%H:%M:%S')} {job.name}", flush=True)
        except Exception as error:  # one job that fails must not take the others with it
            print(f"{job.name} failed: {type(error).__name__}: {error}", flush=True)


def run_all(arguments: argparse.Namespace) -> None:
    """All jobs without a record that one of the patterns names, in the patterns' order."""
    known = [job for name in arguments.networks for job in work.jobs(name, arguments.seeds, arguments.epochs)]
    named = [job for pattern in arguments.only for job in known if re.fullmatch(pattern, job.name)]
    todo = [job for job in dict.fromkeys(named) if not job.done]
    processes: int = arguments.jobs
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    for job in [*todo, *[None] * processes]:
        queue.put(job)
    what = (queue, arguments.data, arguments.examples, arguments.autotune, time.time() + arguments.limit)
    workers = [context.Process(target=worker, args=what) for _ in range(processes)]
    for process in workers:
        process.start()
    for process in workers:
        process.join()
