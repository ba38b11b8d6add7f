"""What a training run reports: its finished epochs, the one in progress, and how it can end badly."""

from __future__ import annotations

from dataclasses import dataclass

from widthwise.luts.errors import WidthwiseError
from widthwise.pruning.evaluation import Evaluation

__all__ = ["EpochReport", "History", "Tally", "TrainingDiverged"]


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
        remaining_s: estimate of the seconds that the epochs left will take, from the mean of those finished; all of
            them, though ``Recipe.patience`` may end the run before.
    """

    epoch: int
    epochs: int
    loss: float
    accuracy: float
    lr: float
    seconds: float
    test: Evaluation | None
    remaining_s: float = 0.0

    @property
    def score(self) -> float:
        """What makes one epoch better than another: test accuracy, or else the lower loss."""
        return -self.loss if self.test is None else self.test.accuracy


@dataclass(frozen=True)
class History:
    """The reports of all finished epochs."""

    epochs: tuple[EpochReport, ...]

    @property
    def last(self) -> EpochReport:
        return self.epochs[-1]

    @property
    def best(self) -> EpochReport:
        """The first of those with the highest test accuracy, or without a test loader the lowest loss."""
        return max(self.epochs, key=lambda report: report.score)

    @property
    def stale(self) -> int:
        """Epochs since the best."""
        return self.last.epoch - self.best.epoch


class TrainingDiverged(WidthwiseError):
    """The loss or a weight is no longer finite; the model holds its weights of the end of the last good epoch.

    Attributes:
        history: the epochs that ended well.
    """

    def __init__(self, message: str, history: History) -> None:
        super().__init__(message)
        self.history = history

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.history)


@dataclass
class Tally:
    """What an epoch in progress has gathered, over all processes."""

    batches: int = 0
    loss: float = 0.0
    correct: float = 0.0
    examples: float = 0.0
    lr: float = 0.0
    seconds: float = 0.0

    def add(self, loss: float, correct: float, examples: float) -> None:
        self.batches += 1
        self.loss += loss
        self.correct += correct
        self.examples += examples

    def report(self, finished: tuple[EpochReport, ...], epochs: int, test: Evaluation | None) -> EpochReport:
        """This epoch's, after those finished."""
        epoch = len(finished) + 1
        mean_s = (sum(report.seconds for report in finished) + self.seconds) / epoch
        figures = self.loss / self.examples, self.correct / self.examples, self.lr, self.seconds
        return EpochReport(epoch, epochs, *figures, test, mean_s * (epochs - epoch))
