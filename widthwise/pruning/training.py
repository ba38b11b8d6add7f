"""Training, evaluation and batch-norm recalibration of classifiers, on Hugging Face Accelerate.

The loop is thin on purpose: Accelerate places the model, shards the loaders and reduces the gradients, so the
same call trains on one CPU, one GPU or, under ``accelerate launch``, on many. What an executor adds goes in
through ``before_step`` (gradient surgery) and ``parameter_groups`` (its own optimizer settings).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from widthwise.luts.errors import InvalidModel, WidthwiseError
from widthwise.pruning.evaluation import (
    Evaluation,
    InvalidBatch,
    accelerated,
    batch_norms,
    borrowed_sampler,
    checked_logits,
    describe,
    evaluate,
    evaluate_on,
    pair,
    placed,
    recalibrate,
    shard,
    share_statistics,
)
from widthwise.pruning.parameters import by_decay
from widthwise.pruning.recipe import InvalidRecipe, Recipe

__all__ = [
    "EpochReport",
    "Evaluation",
    "History",
    "InvalidBatch",
    "InvalidRecipe",
    "Recipe",
    "TrainingDiverged",
    "evaluate",
    "recalibrate",
    "train",
]


class TrainingDiverged(WidthwiseError):
    """The loss or a weight is no longer finite; the model holds its weights of the end of the last good epoch.

    Attributes:
        history: the epochs that ended well.
    """

    def __init__(self, message: str, history: History) -> None:
        super().__init__(message)
        self.history = history


_FINE_TUNING = Recipe()


@dataclass(frozen=True)
class EpochReport:
    """One finished epoch.

    Args:
        epoch: counted from 1, of ``epochs``.
        loss: mean over the epoch's training examples of what was minimised.
        accuracy: top-1 on the training examples as they were met, augmented and in train mode.
        lr: of the epoch's last step.
        seconds: training and evaluation together.
        test: on the test loader, where one was given.
    """

    epoch: int
    epochs: int
    loss: float
    accuracy: float
    lr: float
    seconds: float
    test: Evaluation | None


@dataclass(frozen=True)
class History:
    """The reports of all finished epochs."""

    epochs: tuple[EpochReport, ...]

    @property
    def last(self) -> EpochReport:
        return self.epochs[-1]


class Loaders(Protocol):
    """Anything with ``train`` and ``test`` loaders, such as what ``load_data`` gives."""

    @property
    def train(self) -> DataLoader[Any]: ...
    @property
    def test(self) -> DataLoader[Any]: ...


def train(
    model: nn.Module,
    data: Loaders | tuple[DataLoader[Any], DataLoader[Any] | None] | DataLoader[Any],
    *,
    epochs: int,
    recipe: Recipe = _FINE_TUNING,
    before_step: Callable[[int], None] | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
    parameter_groups: Iterable[Mapping[str, Any]] | None = None,
    teacher: nn.Module | None = None,
) -> History:
    """Train a classifier in place; returns what each epoch reached.

    Model, teacher and loaders come back as they were given but for the weights: on their device, every module in
    the mode it was in, and with the loaders' own samplers. On a CPU equal seeds give equal weights.

    Args:
        model: maps images ``(N, C, H, W)`` to logits ``(N, classes)``.
        data: loaders of ``(images, labels)``; with a test loader every epoch ends with an evaluation.
        epochs: passes over the training loader.
        recipe: see :class:`Recipe`.
        before_step: called with the step's number (from 0) when its gradients are complete, unscaled and
            clipped, just before the optimizer uses them.
        on_epoch: called with each report, on every process.
        parameter_groups: as for ``torch.optim.SGD``, which takes what a group leaves out from the recipe.
            The schedule scales each group's own ``lr``. Parameters in no group are trained by the recipe.
        teacher: a trained network with the same outputs, to distil from (Hinton et al. 2015).

    Raises:
        InvalidRecipe: settings that don't fit the run or the device.
        InvalidModel: nothing to train, or an output that is no tensor of logits.
        InvalidBatch: no batches, no pairs, or labels outside the model's classes.
        TrainingDiverged: a loss or weight became infinite or NaN.

    Example:
        >>> history = train(model, load_data("digits"), epochs=10, recipe=Recipe(lr=0.1))  # doctest: +SKIP
        >>> history.last.test.accuracy  # doctest: +SKIP
        0.98
    """
    if epochs < 1:
        raise InvalidRecipe(f"epochs must be at least 1; got {epochs}")
    if recipe.warmup_epochs >= epochs:
        raise InvalidRecipe(f"warmup_epochs={recipe.warmup_epochs} leaves nothing of {epochs} epochs; lower it")
    if teacher is model:
        raise InvalidModel("the teacher is the model being trained; pass copy.deepcopy(model)")
    train_loader, test_loader = _split(data)
    groups = _groups(model, recipe, parameter_groups)
    with ExitStack() as stack:
        accelerator = stack.enter_context(accelerated(recipe.mixed_precision, recipe.seed))
        stack.enter_context(borrowed_sampler(train_loader))
        stack.enter_context(placed(model, accelerator.device))
        if teacher is not None:
            stack.enter_context(placed(teacher, accelerator.device)).eval()
        run = _Run.prepare(accelerator, model, recipe, groups, train_loader, teacher, before_step)
        return run.fit(epochs, test_loader, on_epoch)


@dataclass
class _Run:
    """One call of train: what its steps share."""

    accelerator: Any
    model: nn.Module
    wrapped: nn.Module
    optimizer: Any
    loader: Any
    recipe: Recipe
    teacher: nn.Module | None
    before_step: Callable[[int], None] | None
    reports: list[EpochReport] = field(default_factory=list)

    @classmethod
    def prepare(
        cls,
        accelerator: Any,
        model: nn.Module,
        recipe: Recipe,
        groups: list[dict[str, Any]],
        loader: DataLoader[Any],
        teacher: nn.Module | None,
        before_step: Callable[[int], None] | None,
    ) -> _Run:
        sgd = torch.optim.SGD(groups, recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
        for group in sgd.param_groups:
            group["initial_lr"] = group["lr"]
        # Accelerate marks and patches the module it prepares; the wrapper takes that instead of the caller's model.
        wrapped, optimizer = accelerator.prepare(_Wrapper(model), sgd)
        return cls(accelerator, model, wrapped, optimizer, shard(accelerator, loader), recipe, teacher, before_step)

    def fit(
        self, epochs: int, test_loader: DataLoader[Any] | None, on_epoch: Callable[[EpochReport], None] | None
    ) -> History:
        from accelerate.utils import set_seed

        good = copy.deepcopy(self.model.state_dict())
        try:
            for epoch in range(epochs):
                # Reseeding each epoch keeps evaluation and callbacks from changing what follows them.
                set_seed(self.recipe.seed + epoch)
                report = self.epoch(epoch, epochs, test_loader)
                good = copy.deepcopy(self.model.state_dict())
                self.reports.append(report)
                if on_epoch is not None:
                    on_epoch(report)
        except TrainingDiverged:
            self.model.load_state_dict(good)
            self.optimizer.zero_grad()
            raise
        return History(tuple(self.reports))

    def epoch(self, epoch: int, epochs: int, test_loader: DataLoader[Any] | None) -> EpochReport:
        started = time.perf_counter()
        self.wrapped.train()
        batches, window = len(self.loader), self.recipe.gradient_accumulation
        steps = math.ceil(batches / window)
        loss_sum = correct = examples = lr = 0.0
        for index, batch in enumerate(self.loader):
            ends = (index + 1) % window == 0 or index + 1 == batches
            share = min(window, batches - index // window * window)  # an epoch's last window may be shorter
            with nullcontext() if ends else self.accelerator.no_sync(self.wrapped):
                figures = self.backward(batch, share, f"in step {index // window + 1} of epoch {epoch + 1}")
            loss_sum, correct, examples = loss_sum + figures[0], correct + figures[1], examples + figures[2]
            if ends:
                step = epoch * steps + index // window
                lr = self.recipe.lr_at(step, steps, epochs)
                self.step(step, lr / self.recipe.lr)
        if not examples:
            raise InvalidBatch("the training loader gives no batches; check its data set, batch_size and drop_last")
        share_statistics(self.model)
        if not _finite(self.model):
            raise self.diverged(f"a weight became infinite or NaN at the end of epoch {epoch + 1}")
        test = None if test_loader is None else evaluate_on(self.accelerator, self.model, test_loader)
        seconds = time.perf_counter() - started
        return EpochReport(epoch + 1, epochs, loss_sum / examples, correct / examples, lr, seconds, test)

    def backward(self, batch: Any, share: int, where: str) -> list[float]:
        """Gradients of one batch; the sums of loss and of correct answers, and the examples, of all processes."""
        images, labels = pair(batch, self.accelerator.device)
        logits = checked_logits(self.wrapped(images), labels)
        loss = functional.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
        if self.teacher is not None:
            loss = torch.lerp(loss, self.distance(logits, images), self.recipe.distillation)
        correct = (logits.detach().argmax(1) == labels).float().sum()
        figures = torch.stack([loss.detach() * len(labels), correct, torch.full_like(correct, len(labels))])
        # Summed over the processes before it is judged, so that they all stop or none does.
        summed: list[float] = self.accelerator.reduce(figures, reduction="sum").tolist()
        if not math.isfinite(summed[0]):
            raise self.diverged(f"the loss became {summed[0]} {where}")
        self.accelerator.backward(loss / share)
        return summed

    def distance(self, logits: Tensor, images: Tensor) -> Tensor:
        """Kullback–Leibler divergence from the teacher's softened answer, times T² to keep the gradient's scale."""
        assert self.teacher is not None
        with torch.no_grad(), self.accelerator.autocast():
            target = self.teacher(images)
        if not (isinstance(target, Tensor) and target.shape == logits.shape):
            raise InvalidModel(f"the teacher's output {describe(target)} is not the model's {tuple(logits.shape)}")
        temperature = self.recipe.temperature
        student, soft = (functional.log_softmax(x.float() / temperature, 1) for x in (logits, target))
        return functional.kl_div(student, soft, log_target=True, reduction="batchmean") * temperature**2

    def step(self, step: int, lr_factor: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * lr_factor
        if self.recipe.clip_norm is None:
            self.accelerator.unscale_gradients(self.optimizer)
        else:
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            self.accelerator.clip_grad_norm_(parameters, self.recipe.clip_norm)
        if self.before_step is not None:
            self.before_step(step)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def diverged(self, what: str) -> TrainingDiverged:
        end = f"of the end of epoch {len(self.reports)}" if self.reports else "it came with"
        advice = f"lower lr (now {self.recipe.lr:g}), raise warmup_epochs, or set clip_norm"
        return TrainingDiverged(f"{what}; the model has the weights {end}. {advice}", History(tuple(self.reports)))


class _Wrapper(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Any:
        return self.model(images)


def _split(data: Any) -> tuple[DataLoader[Any], DataLoader[Any] | None]:
    if isinstance(data, tuple) and len(data) == 2:
        return data
    if hasattr(data, "train") and hasattr(data, "test"):
        return data.train, data.test
    return data, None


def _groups(model: nn.Module, recipe: Recipe, given: Iterable[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """SGD's parameter groups: the caller's, and the remaining parameters with and without weight decay."""
    groups = [{**group, "params": list(group["params"])} for group in given or ()]
    seen = [id(parameter) for group in groups for parameter in group["params"]]
    if len(seen) != len(set(seen)):
        raise InvalidRecipe("parameter_groups names a parameter twice; put each into one group")
    if not set(seen) <= {id(parameter) for parameter in model.parameters()}:
        raise InvalidRecipe("parameter_groups holds a parameter that is not the model's; pass the model it belongs to")
    groups += by_decay(model, without=[parameter for group in groups for parameter in group["params"]])
    groups = [group for group in groups if group["params"]]
    if not any(p.requires_grad for group in groups for p in group["params"]):
        raise InvalidModel("the model has no parameter to train; call requires_grad_(True) on those that should be")
    return groups


def _finite(model: nn.Module) -> bool:
    statistics = (buffer for norm in batch_norms(model) for buffer in norm.buffers(recurse=False))
    return all(bool(torch.isfinite(tensor).all()) for tensor in chain(model.parameters(), statistics))
