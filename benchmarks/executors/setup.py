"""What all methods share: a table and plans for each network, and the uniform width of the same measured latency."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.executors import networks
from benchmarks.machine import RESULTS, machine

HERE = RESULTS / "executors"
WORK = Path("build/executors")
TARGET = "onnxruntime:cpu"
_SHARES = 32
_ALIKE = 0.02
"""How far our latency and the uniform width's may lie apart."""

_ROUNDS = 4


@dataclass(frozen=True)
class Task:
    """A network, its data and the latencies asked for, in percent of the dense one."""

    network: str
    build: Callable[[], nn.Module]
    data: str
    shape: tuple[int, int, int]
    percents: tuple[int, ...]
    weights: str | None = None
    epochs: int = 10

    @property
    def example(self) -> torch.Tensor:
        return torch.randn(1, *self.shape, generator=torch.Generator().manual_seed(0))

    @property
    def table(self) -> Path:
        return WORK / f"{self.network}.lut"

    @property
    def base(self) -> Path:
        return WORK / f"{self.network}.safetensors"

    @property
    def found(self) -> Path:
        return HERE / f"setup-{self.network}.json"

    def setup(self) -> dict[str, Any]:
        """What ``setup`` found, by percent."""
        found: dict[str, Any] = json.loads(self.found.read_text())["results"]
        return found


TASKS = {
    task.network: task
    for task in (
        Task("resnet20", networks.resnet20, "cifar10-jpeg", (3, 32, 32), (70, 50, 40, 35), "resnet20"),
        Task("resnet56", networks.resnet56, "cifar10-jpeg", (3, 32, 32), (50,), "resnet56"),
        Task("vgg28", networks.vgg28, "fashion-mnist", (1, 28, 28), (70, 35), epochs=5),
        Task("mobilenet28", networks.mobilenet28, "fashion-mnist", (1, 28, 28), (50, 35), epochs=5),
    )
}


def published(task: Task, folder: Path) -> nn.Module:
    """The network with its published weights, which came as option A; or as it is initialised."""
    torch.manual_seed(0)
    if task.weights is None:
        return task.build()
    from safetensors.torch import load_file

    blocks = {"resnet20": 3, "resnet56": 9}[task.network]
    return networks.from_option_a(blocks, load_file(folder / f"{task.weights}.safetensors"))


def prepare(task: Task, time_s: float) -> dict[str, Any]:
    """Profiles, finds for each percentage the uniform width that takes about as long, and plans what takes no longer.

    Uniform widths step from plateau to plateau of the runtime, plans don't; so the uniform width is chosen first.
    Entries that are as fast as their uniform width are kept as they are.
    """
    import widthwise as ww
    from widthwise.luts.errors import InfeasibleBudget
    from widthwise.network.network import Network
    from widthwise.network.weights import load_weights

    torch.set_num_threads(1)
    WORK.mkdir(parents=True, exist_ok=True)
    model = task.build()
    load_weights(model, task.base)
    name = f"benchmarks/executors/networks.py:{task.network}"
    network = Network.trace(model, task.example, name=name)
    before = task.setup() if task.found.is_file() else {}
    kept = {percent: entry for percent, entry in before.items() if _fair(entry) and int(percent) in task.percents}
    todo = [percent for percent in task.percents if str(percent) not in kept]
    if not todo:
        return kept
    known = {percent: before[str(percent)] for percent in todo if str(percent) in before}
    uniform = (
        {kept / _SHARES: uniform_widths(network.dense, kept / _SHARES) for kept in range(_SHARES // 8, _SHARES)}
        if len(known) < len(todo)
        else {entry["uniform_keeps"]: entry["uniform"] for entry in known.values()}
    )
    measure = functools.partial(latencies, model, task.example)
    shares = dict(zip(uniform, measure(list(uniform.values())), strict=True))
    with ww.profile(model, task.example, path=task.table, target=TARGET, time_s=time_s, name=name) as lut:
        plan_for = functools.partial(ww.plan, model, task.example, lut=lut, name=name, importance="l1")
        for percent in todo:
            keeps = known[percent]["uniform_keeps"] if percent in known else _nearest(shares, percent / 100)
            try:
                entry = _as_fast(uniform[keeps], shares[keeps], plan_for, measure)
            except InfeasibleBudget as error:
                print(f"{task.network} at {percent} %: {error}", flush=True)
                continue
            kept[str(percent)] = entry | {"uniform": uniform[keeps], "uniform_keeps": keeps}
    return kept


def _fair(entry: Mapping[str, Any]) -> bool:
    return bool(abs(entry["measured_share"] / entry["uniform_share"] - 1) <= _ALIKE)


def _nearest(shares: Mapping[float, float], share: float) -> float:
    """Of the uniform widths the one whose latency is nearest to a share of the dense one, at its widest."""
    nearest = min(shares.values(), key=lambda other: abs(math.log(other / share)))
    return max(keeps for keeps, other in shares.items() if other <= (1 + _ALIKE) * nearest)


def _as_fast(
    uniform: Mapping[str, int],
    share: float,
    plan_for: Callable[..., Any],
    measure: Callable[[Sequence[Mapping[str, int]]], list[float]],
) -> dict[str, Any]:
    """The plan measured nearest to the uniform width's latency, of a few whose budgets are corrected."""
    tried: list[dict[str, Any]] = []
    for _ in range(_ROUNDS):
        plan = plan_for(budget=f"{share:.4%}")
        ours, theirs = measure([plan.widths, uniform])
        print(f"asked for {share:.1%}: ours {ours:.1%}, uniform {theirs:.1%}", flush=True)
        tried.append({"plan": json.loads(plan.model_dump_json()), "measured_share": ours, "uniform_share": theirs})
        if _fair(tried[-1]):
            break
        share *= theirs / ours
    return min(tried, key=lambda entry: abs(math.log(entry["measured_share"] / entry["uniform_share"])))


def uniform_widths(dense: Mapping[str, int], keeps: float) -> dict[str, int]:
    """The same share of every group, as Torch-Pruning rounds it: what is left of ``size`` when ``int`` is pruned."""
    return {group: max(1, int(size * keeps)) for group, size in dense.items()}


def latencies(model: nn.Module, example: torch.Tensor, plans: Sequence[Mapping[str, int]]) -> list[float]:
    """Each narrowed network's measured latency over the dense one's, in interleaved runs beside it."""
    from widthwise.network.fusion import fused
    from widthwise.network.network import Network
    from widthwise.profiling.profiler import candidate_for
    from widthwise.profiling.runtimes import open_runtime
    from widthwise.profiling.schedule import Pace, Schedule
    from widthwise.profiling.target import Target

    runtime = open_runtime(Target.parse(TARGET))
    network = fused(Network.trace(model, example, name="dense"))
    shares: list[float] = []
    with runtime.active():
        schedule = Schedule.on(runtime)
        dense = runtime.network(candidate_for(model, network, network.dense, (example,)))
        schedule.warm_up(dense)
        for begin in range(0, len(plans), 15):
            part = plans[begin : begin + 15]
            sessions = [runtime.network(candidate_for(model, network, widths, (example,))) for widths in part]
            pace = Pace(blocks=8, most_blocks=12, half_width=0.01, cap_s=2.0)
            timings = [t.measurement(1.0).latency_ms for t in schedule.measure([dense, *sessions], pace)]
            shares += [latency / timings[0] for latency in timings[1:]]
    return shares


def write(name: str, data: Any) -> None:
    """Keeps results beside the machine's description."""
    HERE.mkdir(parents=True, exist_ok=True)
    draft = HERE / f".{name}.json"
    draft.write_text(json.dumps({"machine": machine(), "results": data}, indent=1) + "\n")
    draft.replace(HERE / f"{name}.json")
