"""The four methods by name, each from a plan and data to a narrow, trained model.

What a method does with so many epochs is a convention and lives here: L1 prunes at once and retrains; Network Slimming
trains with sparsity for 30 % of them and fine-tunes the rest; ResRep trains with compactors throughout; MetaPruning
trains its PruningNet for half of them, searches, and fine-tunes the dense model's weights at the widths found. In a
loop of your own use the executors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Subset

from widthwise.luts.errors import BadInput
from widthwise.planner.plan import Plan
from widthwise.planner.predictor import LatencyPredictor
from widthwise.pruning.data import Data
from widthwise.pruning.evaluation import accelerated, recalibrate
from widthwise.pruning.evolution import SearchSettings
from widthwise.pruning.executor import Executor
from widthwise.pruning.filters import FilterPruning
from widthwise.pruning.holdout import hold_out
from widthwise.pruning.images import Images
from widthwise.pruning.metapruning import MetaPruning
from widthwise.pruning.recipe import InvalidRecipe, Recipe
from widthwise.pruning.resrep import MOMENTUM, MOST_LR, ResRep
from widthwise.pruning.slimming import NetworkSlimming
from widthwise.pruning.training import EpochReport, History, train

__all__ = ["METHODS", "Applied", "Effort", "execute", "steps_per_epoch"]

METHODS = ("l1", "slimming", "resrep", "metapruning")

_SLIMMING_SHARE = 0.3
"""Of the epochs, spent on sparsity. ResNet-20 at half its latency, ten epochs: 76.9 % with 0.5, 82.5 % with 0.3, 82.1 %
with 0.2."""

_SLIMMING_REACH = 0.3
"""How far the sub-gradient alone could move a scale over the sparse epochs; the paper's runs reach about 1. As above:
82.5 % with 0.3, 81.9 % with 0.1, 76.1 % with 1."""

_RESREP_REACH = 3.0
"""How far the pull on rows that forget could move them after the last were chosen; rows begin with norm 1."""

_LEAST_STRENGTH = 1e-4


@dataclass(frozen=True)
class Effort:
    """How long and how to train.

    Args:
        epochs: passes over the training data, all phases of a method together.
        recipe: see :class:`Recipe`; each phase has its own schedule over its epochs.
        rounds: of L1 filter pruning, see :class:`FilterPruning`.
        search: of MetaPruning.
        teacher: a model to distil from in every phase.
        checkpoints: folder where a run that breaks off is continued from.
    """

    epochs: int
    recipe: Recipe = field(default_factory=Recipe)
    rounds: int = 1
    search: SearchSettings = field(default_factory=SearchSettings)
    teacher: nn.Module | None = None
    checkpoints: Path | None = None


@dataclass(frozen=True)
class Applied:
    """What a method made.

    Args:
        model: of exactly the widths of ``plan``.
        plan: the one that was given, or the one MetaPruning found.
        histories: of each phase of training.
        notes: what the user should know.
    """

    model: nn.Module
    plan: Plan
    histories: tuple[History, ...] = ()
    notes: tuple[str, ...] = ()


Progress = Callable[[str, EpochReport], None]
"""Called after every epoch with the phase's name."""

Share = Callable[[float], None]
"""Called after every step with the share of all epochs that is done."""


def execute(
    method: str,
    model: nn.Module,
    plan: Plan,
    data: Data,
    effort: Effort,
    *,
    predictor: LatencyPredictor | None = None,
    options: Mapping[str, Sequence[int]] | None = None,
    on_epoch: Progress | None = None,
    on_share: Share | None = None,
) -> Applied:
    """The narrow model of a plan, trained.

    Args:
        method: one of :data:`METHODS`.
        model: the dense, trained model; left as it is.
        predictor: of the plan's table; MetaPruning needs it.
        options: widths MetaPruning chooses from, see :func:`widthwise.network.granularity.options_from`.

    Raises:
        BadInput: no such method, too few epochs for its phases, or no predictor for MetaPruning.

    Example:
        >>> applied = execute("resrep", model, plan, data, Effort(epochs=10))  # doctest: +SKIP
    """
    if method not in METHODS:
        raise BadInput(f"no method {method!r}; there are {', '.join(METHODS)}")
    least = {"slimming": 2, "metapruning": 2}.get(method, 1)
    if effort.epochs < least:
        raise InvalidRecipe(f"{method} needs at least {least} epochs, one for each of its phases; got {effort.epochs}")
    run = _Run(model, plan, data, effort, on_epoch, on_share)
    if method == "metapruning":
        if predictor is None:
            raise BadInput("metapruning searches by predicted latency; give the plan's table with --lut")
        return run.metapruning(predictor, options)
    return {"l1": run.filters, "slimming": run.slimming, "resrep": run.resrep}[method]()


def steps_per_epoch(data: Data, recipe: Recipe) -> int:
    """Optimizer steps of an epoch, the batches of all processes taken together."""
    with accelerated() as accelerator:
        batches = math.ceil(len(data.train) / int(accelerator.num_processes))
    return math.ceil(batches / recipe.gradient_accumulation)


@dataclass
class _Run:
    model: nn.Module
    plan: Plan
    data: Data
    effort: Effort
    on_epoch: Progress | None = None
    on_share: Share | None = None
    epochs_done: int = 0

    def filters(self) -> Applied:
        run = FilterPruning(
            self.model,
            self.plan,
            rounds=self.effort.rounds,
            steps=self.effort.epochs * self._steps,
            example=self._example,
        )
        notes = ["channels were ranked anew by this model's weights"] if run.rescored else []
        history = self._train("retraining", run.model, self.effort.epochs, run)
        return Applied(run.finish(), self.plan, (history,), tuple(notes))

    def slimming(self) -> Applied:
        sparse = max(1, round(self.effort.epochs * _SLIMMING_SHARE))
        reach = self.effort.recipe.reach(self._steps, sparse)
        run = NetworkSlimming(
            self.model, self.plan, sparsity=max(_LEAST_STRENGTH, _SLIMMING_REACH / reach), example=self._example
        )
        first = self._train("sparse training", run.model, sparse, run)
        small = run.finish()
        recalibrate(small, self.data.train)
        second = self._train("fine-tuning", small, self.effort.epochs - sparse)
        notes = [f"constants of removed channels were left to recalibration behind {len(run.folded.left)} layers"]
        return Applied(small, self.plan, (first, second), tuple(notes if run.folded.left else []))

    def resrep(self) -> Applied:
        recipe = replace(self.effort.recipe, lr=min(self.effort.recipe.lr, MOST_LR))
        reach = recipe.reach(self._steps, self.effort.epochs, momentum=MOMENTUM, start=0.4)
        run = ResRep(
            self.model,
            self.plan,
            steps=self.effort.epochs * self._steps,
            forget=max(_LEAST_STRENGTH, _RESREP_REACH / reach),
            example=self._example,
        )
        history = self._train("compactors", run.model, self.effort.epochs, run)
        small = run.finish()
        notes = []
        if run.residual > 1e-2:
            notes.append(
                f"removed channels still held {run.residual:.0%} of the others' norm, outputs moved by "
                f"{run.difference:.1%}: train longer"
            )
        return Applied(small, self.plan, (history,), tuple(notes))

    def metapruning(self, predictor: LatencyPredictor, options: Mapping[str, Sequence[int]] | None) -> Applied:
        first, rest = self.effort.epochs // 2, self.effort.epochs - self.effort.epochs // 2
        seed = self.effort.recipe.seed
        run = MetaPruning(self.model, self.plan, predictor=predictor, seed=seed, options=options, example=self._example)
        train_loader, validation = hold_out(self.data.train, seed=seed, plain=_plain(self.data.train.dataset))
        history = self._train("PruningNet", run.model, first, run, replace(self.data, train=train_loader))
        found = run.search(
            train_loader, validation, settings=self.effort.search, snapshot=self._checkpoint("search", ".json")
        )
        small = run.finish()
        recalibrate(small, self.data.train)
        second = self._train("fine-tuning", small, rest)
        note = f"of {found.evaluations} networks searched the best scored {found.accuracy:.2%}, the exact plan "
        return Applied(small, run.plan, (history, second), (f"{note}{found.plan_accuracy:.2%}, both untrained",))

    @property
    def _example(self) -> Sequence[torch.Tensor] | None:
        """Real images in the plan's shape, where they fit: channels that are constant show best on them."""
        (shape, *more) = self.plan.inputs
        if more or tuple(shape[1:]) != self.data.sample_shape:
            return None
        images = next(iter(self.data.test))[0]
        repeats = math.ceil(shape[0] / len(images))
        return [images.repeat(repeats, 1, 1, 1)[: shape[0]]]

    @property
    def _steps(self) -> int:
        return steps_per_epoch(self.data, self.effort.recipe)

    def _checkpoint(self, phase: str, suffix: str = ".pt") -> Path | None:
        folder = self.effort.checkpoints
        return None if folder is None else folder / f"{phase.replace(' ', '-')}{suffix}"

    def _train(
        self, phase: str, model: nn.Module, epochs: int, executor: Executor | None = None, data: Data | None = None
    ) -> History:
        options: dict[str, Any] = {}
        if self.on_epoch is not None:
            tell = self.on_epoch
            options["on_epoch"] = lambda report: tell(phase, report)
        if self.on_share is not None:
            show, before, total = self.on_share, self.epochs_done, self.effort.epochs
            options["on_step"] = lambda step, steps: show((before + step / steps * epochs) / total)
        self.epochs_done += epochs
        return train(
            model,
            data or self.data,
            epochs=epochs,
            recipe=self.effort.recipe,
            executor=executor,
            teacher=self.effort.teacher,
            checkpoint=self._checkpoint(phase),
            **options,
        )


def _plain(dataset: Any) -> Any:
    """The same examples without augmentation, where they can be had."""
    if isinstance(dataset, Subset) and isinstance(dataset.dataset, Images):
        return Subset(dataset.dataset.plain, dataset.indices)
    return None
