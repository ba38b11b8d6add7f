"""Training, evaluation and batch-norm recalibration of classifiers, on Hugging Face Accelerate.

The loop is thin on purpose: Accelerate places the model, shards the loaders and reduces the gradients, so the
same call trains on one CPU, one GPU or, under ``accelerate launch``, on many. What an executor adds goes in
through ``before_step`` (gradient surgery) and ``parameter_groups`` (its own optimizer settings), or by ``executor``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from torch import nn
from torch.utils.data import DataLoader

from widthwise.luts.errors import InvalidModel
from widthwise.pruning.batches import Batches
from widthwise.pruning.checkpoint import Checkpoint, CheckpointNotWritten, InvalidCheckpoint, run_of
from widthwise.pruning.distillation import require_layers, teaching
from widthwise.pruning.evaluation import Evaluation, InvalidBatch, accelerated, evaluate, placed, recalibrate
from widthwise.pruning.executor import Executor
from widthwise.pruning.history import EpochReport, History, TrainingDiverged
from widthwise.pruning.parameters import groups_of
from widthwise.pruning.recipe import InvalidRecipe, Recipe
from widthwise.pruning.run import Run

__all__ = [
    "CheckpointNotWritten",
    "EpochReport",
    "Evaluation",
    "History",
    "InvalidBatch",
    "InvalidCheckpoint",
    "InvalidRecipe",
    "Recipe",
    "TrainingDiverged",
    "evaluate",
    "recalibrate",
    "train",
]

_FINE_TUNING = Recipe()


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
    on_step: Callable[[int, int], None] | None = None,
    parameter_groups: Iterable[Mapping[str, Any]] | None = None,
    executor: Executor | None = None,
    teacher: nn.Module | None = None,
    attention_layers: Sequence[str] = (),
    checkpoint: str | Path | None = None,
    checkpoint_every: int | None = None,
) -> History:
    """Train a classifier in place; returns what each epoch reached.

    Model, teacher and loaders come back as they were given but for the weights: on their device, every module in
    the mode it was in, and with the loaders' own samplers. On a CPU equal seeds give equal weights.

    With a ``checkpoint``, a run that was killed goes on when it is started again with the same arguments and the model
    as it first came, and ends with the weights of a run that was not; one that had finished returns at once.

    Args:
        model: maps images ``(N, C, H, W)`` to logits ``(N, classes)``.
        data: loaders of ``(images, labels)``; with a test loader every epoch ends with an evaluation.
        epochs: passes over the training loader.
        recipe: see :class:`Recipe`.
        before_step: called with the step's number (from 0) when its gradients are complete, unscaled and
            clipped, just before the optimizer uses them.
        on_epoch: called with each report, on every process; not again for epochs that a checkpoint holds.
        on_step: called with the steps done and the steps of the whole run after each step, on every process.
        parameter_groups: as for ``torch.optim.SGD``, which takes what a group leaves out from the recipe.
            The schedule scales each group's own ``lr``. Parameters in no group are trained by the recipe.
        executor: whose ``model`` this is. It brings ``before_step`` and ``parameter_groups``, and its state is in the
            checkpoint.
        teacher: a trained network with the same outputs, to distil from (Hinton et al. 2015).
        attention_layers: paths of modules of model and teacher whose attention maps are to agree (Zagoruyko &
            Komodakis 2017), weighted by ``Recipe.attention``.
        checkpoint: file that the run's state is written to at the end of every epoch, and gone on from.
        checkpoint_every: steps after which it is written within an epoch, too. There the loader is begun anew, so
            another number gives other augmentation.

    Raises:
        InvalidRecipe: settings that don't fit the run, the device or each other.
        InvalidModel: nothing to train, or an output that is no tensor of logits.
        InvalidBatch: no batches, no pairs, or labels outside the model's classes.
        InvalidCheckpoint: the file is corrupt, no checkpoint, or that of another run.
        CheckpointNotWritten: the disk is full, for one; the previous checkpoint is whole.
        TrainingDiverged: a loss or weight became infinite or NaN.

    Example:
        >>> history = train(model, load_data("digits"), epochs=10, recipe=Recipe(lr=0.1))  # doctest: +SKIP
        >>> history.last.test.accuracy  # doctest: +SKIP
        0.98
    """
    _require_run(recipe, epochs, checkpoint, checkpoint_every)
    if teacher is model:
        raise InvalidModel("the teacher is the model being trained; pass copy.deepcopy(model)")
    require_layers(recipe, model, teacher, attention_layers)
    if executor is not None:
        before_step, parameter_groups = _brought_by(executor, model, recipe, before_step, parameter_groups)
    train_loader, test_loader = _split(data)
    groups = groups_of(model, parameter_groups)
    with ExitStack() as stack:
        accelerator = stack.enter_context(accelerated(recipe.mixed_precision, recipe.seed))
        stack.enter_context(placed(model, accelerator.device))
        batches = stack.enter_context(Batches.borrowed(accelerator, train_loader, recipe.seed))
        run = Run.prepare(accelerator, model, batches, epochs, recipe, groups)
        run.executor, run.before_step, run.on_step, run.on_epoch = executor, before_step, on_step, on_epoch
        if checkpoint is not None:
            names: dict[str, Any] = {"executor": None, "attention_layers": list(attention_layers)}
            if executor is not None:
                names["executor"] = {"method": type(executor).__name__, **executor.settings()}
            known = run_of(recipe, epochs, len(batches), model, run.optimizer, **names, teacher=teacher is not None)
            run.checkpoint, run.checkpoint_every = Checkpoint(Path(checkpoint), accelerator, known), checkpoint_every
        if teacher is not None:
            stack.enter_context(placed(teacher, accelerator.device)).eval()
            run.teaching = stack.enter_context(teaching(teacher, model, recipe, attention_layers, accelerator.autocast))
        return run.fit(test_loader)


def _require_run(recipe: Recipe, epochs: int, checkpoint: str | Path | None, every: int | None) -> None:
    if epochs < 1:
        raise InvalidRecipe(f"epochs must be at least 1; got {epochs}")
    if recipe.warmup_epochs >= epochs:
        raise InvalidRecipe(f"warmup_epochs={recipe.warmup_epochs} leaves nothing of {epochs} epochs; lower it")
    if every is not None and checkpoint is None:
        raise InvalidRecipe(f"checkpoint_every={every} needs checkpoint, the file to write to")
    if every is not None and every < 1:
        raise InvalidRecipe(f"checkpoint_every must be at least 1 step; got {every}")


def _brought_by(
    executor: Executor, model: nn.Module, recipe: Recipe, before_step: Any, groups: Any
) -> tuple[Callable[[int], None], list[dict[str, Any]]]:
    if model is not executor.model:
        raise InvalidModel("the model is not the executor's; pass executor.model")
    if before_step is not None or groups is not None:
        given = "before_step" if before_step is not None else "parameter_groups"
        raise InvalidRecipe(f"the executor brings its own {given}; leave it out, or leave out executor")
    return executor.before_step, executor.parameter_groups(lr=recipe.lr)


def _split(data: Any) -> tuple[DataLoader[Any], DataLoader[Any] | None]:
    if isinstance(data, tuple) and len(data) == 2:
        return data
    if hasattr(data, "train") and hasattr(data, "test"):
        return data.train, data.test
    return data, None
