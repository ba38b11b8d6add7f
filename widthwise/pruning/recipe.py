"""How to train: the settings, and the learning rate they give at every step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from widthwise.luts.errors import BadInput

__all__ = ["InvalidRecipe", "Recipe"]


class InvalidRecipe(BadInput, ValueError):
    """Settings that cannot be trained with."""


@dataclass(frozen=True)
class Recipe:
    """How to train: SGD with momentum, and a learning rate that follows a schedule step by step.

    The defaults fine-tune a network that is already trained; from scratch take ``lr=0.1``.

    Args:
        lr: the learning rate at its highest.
        momentum: of SGD.
        weight_decay: of weights; norm layers, biases and other one-dimensional parameters have none.
        schedule: ``cosine`` to 0, ``step`` (×0.1 at half and at three quarters of the run) or ``constant``.
        warmup_epochs: epochs of linear rise before the schedule; may be a fraction.
        label_smoothing: share of the target spread evenly over the classes, 0 to below 1.
        clip_norm: largest norm of a step's whole gradient; ``None`` doesn't clip.
        gradient_accumulation: batches per step; their gradients are averaged.
        mixed_precision: ``no``, ``fp16`` or ``bf16``; ``None`` takes what ``accelerate launch`` was told.
        distillation: with a teacher, the share of the loss that is its (the rest is the labels').
        temperature: what both logits are divided by before the student is compared with the teacher.
        attention: with a teacher and ``attention_layers``, the weight of attention transfer, added to the loss.
        ema: decay of a moving average of the weights, updated after every step; it is what is evaluated and what the
            model ends with. 0.999 forgets over about 1000 steps. ``None`` takes the weights as they are.
        patience: epochs without a better test accuracy (without a test loader: a lower loss) after which training
            stops; the model ends with the weights of the best epoch. ``None`` trains all epochs and keeps the last.
        seed: of everything random. Epoch e draws from ``seed + e`` only, whatever went before.

    Raises:
        InvalidRecipe: a value out of its range.

    Example:
        >>> [Recipe(lr=0.2, warmup_epochs=1).lr_at(step, steps_per_epoch=2, epochs=3) for step in (0, 1, 2, 4)]
        [0.1, 0.2, 0.2, 0.1]
    """

    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    warmup_epochs: float = 0
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    gradient_accumulation: int = 1
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    distillation: float = 0.5
    temperature: float = 4.0
    attention: float = 0.0
    ema: float | None = None
    patience: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        rules: dict[str, tuple[bool, str]] = {
            "lr": (0 < self.lr < math.inf, "above 0"),
            "momentum": (0 <= self.momentum < 1, "from 0 to below 1"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "0 or above"),
            "schedule": (self.schedule in ("cosine", "step", "constant"), "cosine, step or constant"),
            "warmup_epochs": (0 <= self.warmup_epochs < math.inf, "0 or above"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "from 0 to below 1"),
            "clip_norm": (self.clip_norm is None or 0 < self.clip_norm < math.inf, "above 0, or None"),
            "gradient_accumulation": (self.gradient_accumulation >= 1, "at least 1 batch"),
            "mixed_precision": (self.mixed_precision in ("no", "fp16", "bf16", None), "no, fp16, bf16 or None"),
            "distillation": (0 <= self.distillation <= 1, "from 0 to 1"),
            "temperature": (0 < self.temperature < math.inf, "above 0"),
            "attention": (0 <= self.attention < math.inf, "0 or above"),
            "ema": (self.ema is None or 0 < self.ema < 1, "above 0 and below 1, or None"),
            "patience": (self.patience is None or self.patience >= 1, "at least 1 epoch, or None"),
            "seed": (0 <= self.seed < 2**31, "from 0 to below 2**31"),
        }
        for name, (valid, range_) in rules.items():
            if not valid:
                raise InvalidRecipe(f"{name} must be {range_}; got {getattr(self, name)!r}")

    def lr_at(self, step: int, steps_per_epoch: int, epochs: int) -> float:
        """The learning rate of an optimizer step, counted from 0 over the whole run."""
        total, warmup = epochs * steps_per_epoch, round(self.warmup_epochs * steps_per_epoch)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        if self.schedule == "cosine":
            return self.lr * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))) / 2
        if self.schedule == "step":
            return self.lr * 0.1 ** ((2 * step >= total) + (4 * step >= 3 * total))
        return self.lr

    def reach(self, steps_per_epoch: int, epochs: int, *, momentum: float | None = None, start: float = 0.0) -> float:
        """How far a gradient of constant size 1 moves a parameter in a run: Σ lr / (1 − momentum).

        Sparsity terms pull with a constant gradient, so strength × reach is how much they can shrink a parameter: a
        strength of (what must go) / reach does in a short run what the papers' strengths do in their long ones.

        Args:
            steps_per_epoch: optimizer steps.
            epochs: of the whole run.
            momentum: of the parameter, where it has its own; by default the recipe's.
            start: share of the run after which the pull begins.

        Raises:
            InvalidRecipe: a momentum or start that is out of range.

        Example:
            >>> round(Recipe(lr=0.1, momentum=0.9, schedule="constant").reach(10, 2), 6)  # 20 · 0.1 / (1 − 0.9)
            20.0
            >>> round(Recipe(lr=0.1, momentum=0.0, schedule="cosine").reach(10, 2), 6)  # 0.1 · (20 + 1) / 2
            1.05
        """
        momentum = self.momentum if momentum is None else momentum
        if not 0 <= momentum < 1:
            raise InvalidRecipe(f"momentum must be from 0 to below 1; got {momentum!r}")
        if not 0 <= start <= 1:
            raise InvalidRecipe(f"start must be a share of the run, from 0 to 1; got {start!r}")
        steps = range(round(start * steps_per_epoch * epochs), steps_per_epoch * epochs)
        return math.fsum(self.lr_at(step, steps_per_epoch, epochs) for step in steps) / (1 - momentum)
