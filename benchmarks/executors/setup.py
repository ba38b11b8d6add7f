"""What all methods share: a table and plans for each network, and the uniform width of the same measured latency."""

from __future__ import annotations

import json
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
        Task("vgg28", networks.vgg28, "fashion-mnist", (1, 28, 28), (70, 50, 35), epochs=5),
        Task("mobilenet28", networks.mobilenet28, "fashion-mnist", (1, 28, 28), (70, 50, 35), epochs=5),
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
    """Profiles, plans what has no plan yet, and finds for each the uniform width that is measured as fast."""
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
    found: dict[str, Any] = {}
    with ww.profile(model, task.example, path=task.table, target=TARGET, time_s=time_s, name=name) as lut:
        for percent in task.percents:
            if str(percent) in before:
                continue
            try:
                plan = ww.plan(model, task.example, lut=lut, budget=f"{percent}%", name=name)
            except InfeasibleBudget as error:
                print(f"{task.network} at {percent} %: {error}", flush=True)
                continue
            found[str(percent)] = {"plan": json.loads(plan.model_dump_json())}
    if not found:
        return before
    uniform = [uniform_widths(network.dense, kept / _SHARES) for kept in range(_SHARES // 8, _SHARES)]
    planned = [entry["plan"]["widths"] for entry in found.values()]
    shares = latencies(model, task.example, [*planned, *uniform])
    for entry, share in zip(found.values(), shares, strict=False):
        fast = [index for index, other in enumerate(shares[len(planned) :]) if other <= 1.02 * share]
        widest = max(fast, default=0)
        entry |= {
            "measured_share": share,
            "uniform": uniform[widest],
            "uniform_keeps": (widest + _SHARES // 8) / _SHARES,
            "uniform_share": shares[len(planned) + widest],
        }
    return before | found


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
