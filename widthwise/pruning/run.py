"""One run of training: its steps, and what of it goes into a checkpoint."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from widthwise.pruning.averaging import Average
from widthwise.pruning.batches import Batches
from widthwise.pruning.checkpoint import Checkpoint
from widthwise.pruning.distillation import Teaching
from widthwise.pruning.evaluation import (
    Evaluation,
    InvalidBatch,
    batch_norms,
    checked_logits,
    evaluate_on,
    pair,
    share_statistics,
)
from widthwise.pruning.executor import Executor
from widthwise.pruning.history import EpochReport, History, Tally, TrainingDiverged
from widthwise.pruning.recipe import Recipe

__all__ = ["Run"]


@dataclass
class Run:
    """One call of train: what its steps share, and what of it goes into a checkpoint."""

    accelerator: Any
    model: nn.Module
    wrapped: nn.Module
    optimizer: Any
    batches: Batches
    epochs: int
    recipe: Recipe
    average: Average | None
    executor: Executor | None = None
    teaching: Teaching | None = None
    before_step: Callable[[int], None] | None = None
    on_step: Callable[[int, int], None] | None = None
    on_epoch: Callable[[EpochReport], None] | None = None
    checkpoint: Checkpoint | None = None
    checkpoint_every: int | None = None
    reports: list[EpochReport] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    waiting: list[tuple[Tensor, str]] = field(default_factory=list)
    good: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Any] | None = None

    @classmethod
    def prepare(
        cls,
        accelerator: Any,
        model: nn.Module,
        batches: Batches,
        epochs: int,
        recipe: Recipe,
        groups: list[dict[str, Any]],
    ) -> Run:
        sgd = torch.optim.SGD(groups, recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
        for group in sgd.param_groups:
            group["initial_lr"] = group["lr"]
        average = None if recipe.ema is None else Average(model, recipe.ema)
        # Accelerate marks and patches the module it prepares; the wrapper takes that instead of the caller's model.
        wrapped, optimizer = accelerator.prepare(_Wrapper(model), sgd)
        return cls(accelerator, model, wrapped, optimizer, batches, epochs, recipe, average)

    @property
    def history(self) -> History:
        return History(tuple(self.reports))

    @property
    def lag(self) -> int:
        """Batches whose figures may wait."""
        return 0 if self.accelerator.device.type == "cpu" else 1

    @property
    def steps(self) -> int:
        """Optimizer steps per epoch."""
        return math.ceil(len(self.batches) / self.recipe.gradient_accumulation)

    def fit(self, test_loader: DataLoader[Any] | None) -> History:
        self.good = copy.deepcopy(self.weights())
        self.resume()
        try:
            while not self.over():
                report = self.epoch(test_loader)
                if self.on_epoch is not None:
                    self.on_epoch(report)
        except TrainingDiverged:
            self.take(self.good)
            self.optimizer.zero_grad()
            raise
        self.take(self.outcome() if self.best is None else self.best)
        return self.history

    def over(self) -> bool:
        patience = self.recipe.patience
        stopped = patience is not None and bool(self.reports) and self.history.stale >= patience
        return len(self.reports) == self.epochs or stopped

    def epoch(self, test_loader: DataLoader[Any] | None) -> EpochReport:
        started = time.perf_counter() - self.tally.seconds
        self.wrapped.train()
        while self.stretch(started):
            pass
        if not self.tally.examples:
            raise InvalidBatch("the training loader gives no batches; check its data set, batch_size and drop_last")
        self.require_finite(f"at the end of epoch {len(self.reports) + 1}")
        model = self.model if self.average is None else self.average.model
        test = None if test_loader is None else evaluate_on(self.accelerator, model, test_loader)
        self.tally.seconds = time.perf_counter() - started
        report = self.tally.report(tuple(self.reports), self.epochs, test)
        self.reports.append(report)
        self.tally = Tally()
        self.good = self.outcome()
        if self.recipe.patience is not None and self.history.best is report:
            self.best = self.good
        self.save()
        return report

    def stretch(self, started: float) -> bool:
        """Trains to the epoch's end, or to the next checkpoint within it: then there is more to do."""
        epoch, count, window = len(self.reports), len(self.batches), self.recipe.gradient_accumulation
        first = self.tally.batches
        for index, batch in enumerate(self.batches.of(epoch, first), first):
            ends = (index + 1) % window == 0 or index + 1 == count
            share = min(window, count - index // window * window)  # an epoch's last window may be shorter
            with nullcontext() if ends else self.accelerator.no_sync(self.wrapped):
                figures = self.backward(batch, share)
            self.judge(figures, f"in step {index // window + 1} of epoch {epoch + 1}")
            if ends:
                step = epoch * self.steps + index // window
                self.step(step)
                if self.checkpoint_every and (step + 1) % self.checkpoint_every == 0 and index + 1 < count:
                    self.judge()
                    self.require_finite(f"after step {index // window + 1} of epoch {epoch + 1}")
                    self.tally.seconds = time.perf_counter() - started
                    self.save()
                    return True
        self.judge()
        return False

    def backward(self, batch: Any, share: int) -> Tensor:
        """Gradients of one batch; the sums of loss and of correct answers, and the examples, of all processes."""
        images, labels, extremes = pair(batch, self.accelerator.device)
        logits = checked_logits(self.wrapped(images), labels, extremes)
        loss = functional.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
        if self.teaching is not None:
            loss = self.teaching.added_to(loss, logits, images)
        correct = (logits.detach().argmax(1) == labels).float().sum()
        figures = torch.stack([loss.detach() * len(labels), correct, torch.full_like(correct, len(labels))])
        self.accelerator.backward(loss / share)
        # Summed over the processes before it is judged, so that they all stop or none does.
        summed: Tensor = self.accelerator.reduce(figures, reduction="sum")
        return summed

    def judge(self, figures: Tensor | None = None, where: str = "") -> None:
        """Adds a batch's figures to the tally, on an accelerator those of the batch before: to read the newest would
        mean to wait for the device in every step. Without figures, all that are waiting.

        Raises:
            TrainingDiverged: the loss is no longer finite.
        """
        if figures is not None:
            self.waiting.append((figures, where))
        while len(self.waiting) > (self.lag if figures is not None else 0):
            found, place = self.waiting.pop(0)
            loss, correct, examples = found.tolist()
            if not math.isfinite(loss):
                self.waiting.clear()
                raise self.diverged(f"the loss became {loss} {place}")
            self.tally.add(loss, correct, examples)

    def step(self, step: int) -> None:
        self.tally.lr = self.recipe.lr_at(step, self.steps, self.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * (self.tally.lr / self.recipe.lr)
        if self.recipe.clip_norm is None:
            self.accelerator.unscale_gradients(self.optimizer)
        else:
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            self.accelerator.clip_grad_norm_(parameters, self.recipe.clip_norm)
        if self.before_step is not None:
            self.before_step(step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(self.model)
        if self.on_step is not None:
            self.on_step(step + 1, self.epochs * self.steps)

    def require_finite(self, where: str) -> None:
        """Every process judges the first one's statistics, so that they all stop or none does."""
        models = [self.model] if self.average is None else [self.model, self.average.model]
        for model in models:
            share_statistics(model)
        if not all(_finite(model) for model in models):
            raise self.diverged(f"a weight became infinite or NaN {where}")

    def diverged(self, what: str) -> TrainingDiverged:
        end = f"of the end of epoch {len(self.reports)}" if self.reports else "it came with"
        advice = f"lower lr (now {self.recipe.lr:g}), raise warmup_epochs, or set clip_norm"
        if self.checkpoint is not None and self.checkpoint.path.exists():
            advice += f"; the last checkpoint from before is {self.checkpoint.path}, give the new run another one"
        return TrainingDiverged(f"{what}; the model has the weights {end}. {advice}", self.history)

    def weights(self) -> dict[str, Any]:
        """What is trained: the model's weights, and what its executor has decided."""
        return {"model": self.model.state_dict()} if self.executor is None else self.executor.state_dict()

    def outcome(self) -> dict[str, Any]:
        """A copy of what training would end with now."""
        averaged = {} if self.average is None else {"model": self.average.model.state_dict()}
        return copy.deepcopy({**self.weights(), **averaged})

    def take(self, weights: dict[str, Any]) -> None:
        if self.executor is None:
            self.model.load_state_dict(weights["model"])
        else:
            self.executor.load_state_dict(weights)

    def save(self) -> None:
        if self.checkpoint is None:
            return
        self.checkpoint.write(
            {
                "weights": self.weights(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
                "average": None if self.average is None else self.average.state_dict(),
                "reports": [asdict(report) for report in self.reports],
                "tally": asdict(self.tally),
                "good": self.good if self.tally.batches else None,  # at an epoch's end it is what is above
                "best": self.best,
            }
        )

    def resume(self) -> None:
        state = None if self.checkpoint is None else self.checkpoint.read()
        if state is None:
            return
        assert self.checkpoint is not None
        try:
            self.restore(state)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            self.take(self.good)
            raise self.checkpoint.refusal(error) from error

    def restore(self, state: dict[str, Any]) -> None:
        tests = (report["test"] for report in state["reports"])
        reports = [
            EpochReport(**{**report, "test": test and Evaluation(**test)})
            for report, test in zip(state["reports"], tests, strict=True)
        ]
        tally = Tally(**state["tally"])
        if len(reports) > self.epochs or not 0 <= tally.batches < len(self.batches):
            raise ValueError(f"it holds {len(reports)} epochs and {tally.batches} batches")
        for weights in (state["good"], state["best"], state["weights"]):  # all of them, so that none fails later
            if weights is not None:
                self.take(weights)
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, values in self.optimizer.state.items():
            if any(isinstance(value, Tensor) and value.shape != parameter.shape for value in values.values()):
                raise ValueError("the optimizer's state is of other shapes")
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.reports, self.tally, self.best = reports, tally, state["best"]
        self.good = state["good"] if tally.batches else self.outcome()


class _Wrapper(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Any:
        return self.model(images)


def _finite(model: nn.Module) -> bool:
    statistics = (buffer for norm in batch_norms(model) for buffer in norm.buffers(recurse=False))
    return all(bool(torch.isfinite(tensor).all()) for tensor in chain(model.parameters(), statistics))
