"""The training runs: each is a job with a record of its own, so that what is finished is never done again."""

from __future__ import annotations

import functools
import itertools
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.executors.peers import PEERS, prune_with
from benchmarks.executors.setup import HERE, TASKS, WORK, Task, write
from widthwise.network.network import Network
from widthwise.network.weights import load_weights
from widthwise.planner.importance import score
from widthwise.planner.plan import Plan
from widthwise.pruning.data import Data, load_data
from widthwise.pruning.evolution import SearchSettings
from widthwise.pruning.filters import FilterPruning
from widthwise.pruning.methods import Effort, execute, steps_per_epoch
from widthwise.pruning.recipe import Recipe
from widthwise.pruning.resrep import MOMENTUM, MOST_LR, ResRep, ToMacs
from widthwise.pruning.training import evaluate, train

OURS = ("l1", "magnitude", "slimming", "resrep", "metapruning")
DISTILLED = tuple(f"{method}+distillation" for method in ("l1", "magnitude", "resrep"))
METHODS = ("longer", "uniform", *PEERS, *OURS, *DISTILLED)
"""``longer`` is the dense base trained for as many epochs more; ``uniform`` keeps the same share of every group."""

PAPER = "resrep-macs"
"""ResRep without a plan: half of the multiply-accumulates, in all groups by the paper's greedy."""

SEARCH = SearchSettings(population=20, iterations=6, parents=6, mutations=8, crossovers=8, recalibration_batches=10)


@dataclass(frozen=True)
class Job:
    """One training run; one that is longer than its task's has that in its name."""

    network: str
    method: str
    percent: int
    seed: int
    epochs: int

    @property
    def name(self) -> str:
        length = "" if self.epochs == TASKS[self.network].epochs else f"-e{self.epochs}"
        return f"{self.network}-{self.method}-{self.percent}-{self.seed}{length}"

    @property
    def done(self) -> bool:
        return (HERE / f"{self.name}.json").is_file()


def jobs(network: str, seeds: int, epochs: int | None = None) -> list[Job]:
    """All jobs of a network, the middle latency and the first seed first."""
    task = TASKS[network]
    epochs = epochs or task.epochs
    percents = sorted((int(percent) for percent in task.setup()), key=lambda percent: abs(percent - 50))
    found = [Job(network, "longer", 100, seed, epochs) for seed in range(seeds)]
    found += [
        Job(network, method, percent, seed, epochs)
        for seed, percent, method in itertools.product(range(seeds), percents, METHODS[1:])
    ]
    found += [Job(network, PAPER, 50, 0, epochs)]
    return sorted(found, key=lambda job: job.seed)


def recipe_for(seed: int) -> Recipe:
    """The same for every method."""
    return Recipe(lr=0.05, weight_decay=5e-4, seed=seed)


@functools.cache
def data_for(task: Task, folder: str, examples: int | None = None) -> Data:
    """Read once a process."""
    return load_data(f"{task.data}:{folder}" if folder else task.data, batch_size=128, limit=examples)


def train_base(task: Task, start: nn.Module, data: Data, epochs: int) -> dict[str, Any]:
    """The dense network that every job starts from."""
    from safetensors.torch import save_file

    began = time.perf_counter()
    history = train(start, data, epochs=epochs, recipe=Recipe(lr=0.05, weight_decay=5e-4))
    task.base.parent.mkdir(parents=True, exist_ok=True)
    save_file(start.state_dict(), task.base)
    assert history.last.test is not None
    return {"accuracy": history.last.test.accuracy, "epochs": epochs, "seconds": time.perf_counter() - began}


def run(job: Job, data: Data) -> None:
    """Trains and keeps the record."""
    task = TASKS[job.network]
    model = task.build()
    load_weights(model, task.base)
    began = time.perf_counter()
    figures = _trained(job, task, model.eval(), data)
    small = figures.pop("model")
    result = evaluate(small, data.test)
    network = Network.trace(small.cpu().eval(), task.example)
    record = {
        **asdict(job),
        "accuracy": result.accuracy,
        "loss": result.loss,
        "base_accuracy": evaluate(model, data.test).accuracy,
        "widths": network.dense,
        "parameters": network.parameters(network.dense),
        "macs": network.macs(network.dense),
        "seconds": time.perf_counter() - began,
        "trained_on": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        **figures,
    }
    write(job.name, record)


def _trained(job: Job, task: Task, model: nn.Module, data: Data) -> dict[str, Any]:
    epochs = job.epochs
    effort = Effort(epochs, recipe_for(job.seed), search=SEARCH, checkpoints=WORK / "checkpoints" / job.name)
    if job.method == "longer":
        train(model, data, epochs=epochs, recipe=effort.recipe)
        return {"model": model}
    if job.method == PAPER:
        return resrep_by_macs(model, job.percent / 100, data, effort, task.example)
    entry = task.setup()[str(job.percent)]
    if job.method in PEERS:
        return {"model": prune_with(job.method, model, entry["uniform_keeps"], data, effort, task.example)}
    plan = Plan.model_validate_json(json.dumps(entry["plan"]))
    if job.method == "uniform":
        plan = with_widths(plan, entry["uniform"])
        small = FilterPruning(model, plan, [task.example], criterion="l1").finish()
        before = evaluate(small, data.test).accuracy
        train(small, data, epochs=epochs, recipe=effort.recipe)
        return {"model": small, "before": before}
    method, _, distilled = job.method.partition("+")
    if distilled:
        teacher = task.build()
        load_weights(teacher, task.base)
        effort = replace(effort, teacher=teacher.eval())
    if method == "magnitude":
        method, plan = "l1", by_magnitude(plan, model, task)
    curve: list[float] = []
    latencies = latencies_of(task, model) if method == "metapruning" else {}
    applied = execute(
        method, model, plan, data, effort, **latencies,
        on_epoch=lambda _, report: curve.append(report.test.accuracy if report.test else float("nan")),
    )  # fmt: skip
    return {"model": applied.model, "curve": curve, "notes": list(applied.notes)}


def resrep_by_macs(model: nn.Module, share: float, data: Data, effort: Effort, example: torch.Tensor) -> dict[str, Any]:
    """The paper's setting, with a pull on rows that forget as strong as so short a run needs."""
    network = Network.trace(model, example)
    per_epoch = steps_per_epoch(data, effort.recipe)
    steps = per_epoch * effort.epochs
    chosen = ToMacs(network, share, start=steps // 20, every=max(1, steps // 100), more=8)
    reach = replace(effort.recipe, lr=MOST_LR).reach(per_epoch, effort.epochs, momentum=MOMENTUM, start=0.4)
    run = ResRep.to_macs(model, network, [example], chosen, forget=max(1e-4, 3 / reach))
    train(run.model, data, epochs=effort.epochs, recipe=effort.recipe, executor=run)
    small = run.finish()
    return {"model": small, "residual": run.residual}


def by_magnitude(plan: Plan, model: nn.Module, task: Task) -> Plan:
    """The plan at its widths, its channels chosen by the magnitude of all weights that go with them."""
    importance = score(model, Network.trace(model, task.example), "magnitude")
    kept = {group: list(importance.kept(group, width)) for group, width in plan.widths.items()}
    return plan.model_copy(update={"kept": kept, "criterion": importance.criterion})


def with_widths(plan: Plan, widths: dict[str, int]) -> Plan:
    """The plan at other widths, to be ranked anew by whoever uses it."""
    kept = {group: list(range(width)) for group, width in widths.items()}
    return plan.model_copy(update={"widths": widths, "kept": kept, "weights": "other"})


def latencies_of(task: Task, model: nn.Module) -> dict[str, Any]:
    """The predictor fitted from the network's table, and the widths worth considering."""
    from widthwise.luts.store import Lut
    from widthwise.network.granularity import options_from
    from widthwise.planner.predictor import LatencyPredictor

    with Lut.open(task.table, readonly=True) as lut:
        predictor = LatencyPredictor.fit(lut, Network.trace(model, task.example, name=task.network))
        return {"predictor": predictor, "options": options_from(lut, predictor.network)}


def records(network: str) -> list[dict[str, Any]]:
    """All kept records of a network."""
    found = []
    for path in sorted(HERE.glob(f"{network}-*.json")):
        found.append(json.loads(Path(path).read_text())["results"])
    return found
