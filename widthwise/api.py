"""The facade in one page: profile, predict, plan, apply, verify (and load, from :mod:`widthwise.pruning`)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from widthwise.luts.errors import BadInput, InvalidTable
from widthwise.luts.store import Lut
from widthwise.network.factories import is_trusted
from widthwise.network.loading import load_model
from widthwise.network.network import Network
from widthwise.network.weights import weights_fingerprint
from widthwise.planner import verification
from widthwise.planner.allocation import allocate
from widthwise.planner.closed_loop import best_of, close_loop
from widthwise.planner.demands import Demands, FurtherTable, Most, parse_keep
from widthwise.planner.importance import Criterion, Importance, score
from widthwise.planner.plan import Budget, Plan
from widthwise.planner.predictor import LatencyPredictor, Prediction, Statistic
from widthwise.planner.problem import WidthBounds
from widthwise.planner.proposal import Proposer
from widthwise.planner.verification import Verification
from widthwise.profiling import profiler
from widthwise.profiling.target import Target
from widthwise.pruning.filters import FilterPruning

__all__ = ["Also", "apply", "plan", "predict", "profile", "replan", "verify"]

Example = torch.Tensor | Sequence[torch.Tensor]
"""One input tensor, or one per input."""

Table = Lut | str | os.PathLike[str]
"""An open table or the path of one."""


@dataclass(frozen=True)
class Also:
    """A further table that a plan must hold on: another device, runtime, batch size or resolution.

    Args:
        lut: the table; the same one, where it holds the model at another input shape.
        budget: there; None where the plan's own is a share of the dense latency, which it then is here too.
        example: the input there; None where it is the plan's.
    """

    lut: Table
    budget: str | float | None = None
    example: Example | None = None


def profile(
    model: nn.Module,
    example: Example,
    *,
    path: str | os.PathLike[str],
    target: str = "torch:cpu",
    threads: int = 1,
    dtype: str = "float32",
    memory_format: str = "contiguous",
    time_s: float = profiler.DEFAULT_TIME_S,
    name: str = "",
    on_progress: Callable[[float, str], None] | None = None,
) -> Lut:
    """Measures a model's layers and narrowed copies of it into the table at ``path``; returns it, open for reading.

    A table that already holds measurements of this model is continued. Everything is committed as measured:
    an interrupted call has lost nothing.

    Args:
        target: ``RUNTIME:DEVICE``, such as ``torch:cpu`` or ``onnxruntime:cpu``; `widthwise device` lists them all.
        time_s: seconds to spend; more makes the table better, never invalid.
        name: what the model is called in the table, such as ``torchvision:resnet18``.

    Raises:
        InvalidModel: the model can't be traced on this example.
        InvalidTarget, InvalidTable, TableMismatch: see :func:`widthwise.profiling.profiler.profile`.
    """
    inputs = _inputs(example)
    network = Network.trace(model, inputs, name=name)
    profiler.profile(
        model,
        network,
        inputs,
        target=Target.parse(target, threads=threads, dtype=dtype, memory_format=memory_format),
        path=Path(path),
        time_s=time_s,
        adviser=Proposer(model, network),
        on_progress=on_progress,
    )
    return Lut.open(path, readonly=True)


def predict(
    model: nn.Module, example: Example, *, lut: Table, widths: Mapping[str, int] | None = None, name: str = ""
) -> Prediction:
    """The latency of the model narrowed to these widths (by default: as it is), from the table alone.

    Raises:
        MissingLayers: the table lacks layers of this model.
    """
    network = Network.trace(model, _inputs(example), name=name)
    with opened(lut) as table:
        return LatencyPredictor.fit(table, network).predict(widths or {})


def plan(
    model: nn.Module,
    example: Example,
    *,
    lut: Table,
    budget: str | float | None = None,
    budget_ms: float | None = None,
    importance: Criterion | Importance = "magnitude",
    name: str = "",
    time_limit_s: float = 60.0,
    keep: str | float | None = None,
    most: Mapping[str, str | float] | None = None,
    bounds: Mapping[str, WidthBounds] | None = None,
    confidence: float | None = None,
    also: Sequence[Also] = (),
    statistic: Statistic = "median",
) -> Plan:
    """The widths that keep the most importance within the budget, or the fastest that keep enough, with the proof.

    Args:
        budget: ``"20ms"``, ``"60%"`` of the dense latency, or milliseconds; or give ``budget_ms``; or ``keep``.
        importance: a criterion by name, a function of network and group, or one made of data by
            :func:`widthwise.planner.responses.taylor`.
        name: what to call the model in the plan, so that it can be rebuilt by name.
        keep: the share of importance to retain at the least latency, ``0.9`` or ``"90%"``, instead of a budget.
        most: further limits: ``parameters``, ``macs``, and in bytes ``weight_memory`` and ``activation_memory`` (what
            all layers write); each ``"5M"``, ``"20MB"``, a number, or a share of the dense network's, ``"50%"``.
        bounds: group → :class:`widthwise.planner.problem.WidthBounds`.
        confidence: meet budgets at the upper end of the interval of this level, such as 0.9.
        also: further tables the plan must hold on.
        statistic: what budgets are about: the ``median`` of single runs, or the ``p90`` that nine in ten stay below.

    Raises:
        BadInput: no budget, two, or one that can't be read; limits or bounds that can't be.
        MissingLayers: a table lacks layers of this model.
        InfeasibleBudget: names the least latency any widths reach, and what stands in the way.

    Example:
        >>> plan = ww.plan(model, example, lut="cpu.lut", budget="60%", most={"parameters": "5M"},
        ...                also=[ww.Also("phone.lut", "30ms")])  # doctest: +SKIP
    """
    if sum(asked is not None for asked in (budget, budget_ms, keep)) != 1:
        raise BadInput("give one of budget ('60%' or '20ms'), budget_ms and keep (the importance to, at least latency)")
    parsed = None if keep is not None else Budget.parse(str(budget if budget is not None else budget_ms))
    network = Network.trace(model, _inputs(example), name=name)
    with ExitStack() as stack:
        table = stack.enter_context(opened(lut))
        predictor = LatencyPredictor.fit(table, network).at(statistic)
        scores = importance if isinstance(importance, Importance) else score(model, network, importance)
        demands = Demands(
            most={limit: Most.parse(text) for limit, text in (most or {}).items()},
            bounds=bounds or {},
            keep=None if keep is None else parse_keep(keep),
            confidence=confidence,
            tables=[_further(entry, model, network, parsed, stack, statistic) for entry in also],
        )
        weights = weights_fingerprint(model)
        return allocate(predictor, scores, parsed, table, weights=weights, demands=demands, time_limit_s=time_limit_s)


def apply(plan: Plan, model: nn.Module, example: Example | None = None) -> nn.Module:
    """The narrow model: surgery only, proved numerically on ``example`` (random inputs by default).

    Raises:
        InvalidPlan: the plan is for another model.
        VerificationFailed: the narrow model isn't the pruned dense model.
    """
    return FilterPruning(model, plan, None if example is None else _inputs(example)).finish()


def verify(
    plan: Plan, small: nn.Module, example: Example, *, lut: Table, dense: nn.Module | None = None
) -> Verification:
    """Measures the narrow model against prediction and budget; see :mod:`widthwise.planner.verification`.

    Args:
        dense: timed in the same run. Rebuilt by name where the plan is of a library model.
    """
    if dense is None and ":" in plan.model and is_trusted(plan.model):
        dense = load_model(plan.model)
    path = lut.path if isinstance(lut, Lut) else Path(lut)
    return verification.verify(plan, small, _inputs(example), path=path, dense=dense)


def replan(
    plan: Plan,
    model: nn.Module,
    example: Example,
    *,
    lut: Table,
    rounds: int = 2,
    importance: Importance | None = None,
) -> tuple[Plan, Verification]:
    """The best of this plan and of at most ``rounds`` new ones, each measured; see
    :mod:`widthwise.planner.closed_loop`.

    Args:
        model: the dense model; its narrowed copies are timed beside it.
        importance: what the plan was made by, where that isn't made of weights alone.

    Raises:
        InvalidTable, TableMismatch: no table there, or one of another target or device than the plan's.
    """
    path = lut.path if isinstance(lut, Lut) else Path(lut)
    best = best_of(close_loop(plan, model, _inputs(example), path=path, importance=importance, rounds=rounds))
    return best.plan, best.verification


def _further(
    entry: Also,
    model: nn.Module,
    network: Network,
    budget: Budget | None,
    stack: ExitStack,
    statistic: Statistic,
) -> FurtherTable:
    own = budget if entry.budget is None else Budget.parse(entry.budget)
    if own is None or (entry.budget is None and not own.relative):
        raise BadInput(f"the further table {entry.lut} needs a budget of its own: TABLE:20ms or TABLE:60%")
    if entry.example is not None:
        network = Network.trace(model, _inputs(entry.example), name=network.name)
    table = stack.enter_context(opened(entry.lut))
    return FurtherTable(table, LatencyPredictor.fit(table, network).at(statistic), own)


@contextmanager
def opened(table: Table) -> Iterator[Lut]:
    """The table, opened for reading and closed again unless it was open already."""
    if isinstance(table, Lut):
        yield table
        return
    if not Path(table).exists():
        raise InvalidTable(
            f"no table {os.fspath(table)}; make one with `widthwise profile MODEL --lut {os.fspath(table)}`"
        )
    lut = Lut.open(table, readonly=True)
    try:
        yield lut
    finally:
        lut.close()


def _inputs(example: Example) -> tuple[torch.Tensor, ...]:
    return (example,) if isinstance(example, torch.Tensor) else tuple(example)
