"""Every error widthwise raises on purpose.

WidthwiseError                 base: the message says what was given, what is needed, what to do next
├── BadInput                   the request is wrong (the command exits 2)
│   ├── InvalidSpec            a layer description that cannot be
│   ├── InvalidTable           a LUT file that is corrupt, foreign or of a newer version
│   ├── TableMismatch          a LUT of another device or target; ``fields`` names the differences
│   ├── MissingLayers          a LUT without this network's layers
│   ├── InvalidProblem         an allocation problem that cannot be
│   ├── InvalidPlan            a plan file that is corrupt, or belongs to another model
│   ├── InvalidModel           a model, weight file or input shape that does not load or fit
│   ├── InvalidTarget          a target that is unknown or not installed
│   └── …                      of training: InvalidData, InvalidBatch, InvalidRecipe, InvalidCheckpoint,
│                              CheckpointNotWritten, InvalidSnapshot; beside what they belong to in ``pruning``
└── Unmet                      the request is well-formed but cannot be met (the command exits 1)
    ├── InfeasibleBudget       ``minimum_ms`` is the least latency any widths reach
    ├── VerificationFailed     the narrow model is not the pruned dense model
    └── EmptyWindow            a search found no widths in its latency window
"""

from __future__ import annotations

__all__ = [
    "BadInput",
    "InfeasibleBudget",
    "InvalidModel",
    "InvalidPlan",
    "InvalidProblem",
    "InvalidSpec",
    "InvalidTable",
    "InvalidTarget",
    "MissingLayers",
    "TableMismatch",
    "Unmet",
    "VerificationFailed",
    "WidthwiseError",
]


class WidthwiseError(Exception):
    """Base of all errors raised on purpose."""


class BadInput(WidthwiseError):
    """The request is wrong; commands exit 2."""


class Unmet(WidthwiseError):
    """The request is well-formed but cannot be met; commands exit 1."""


class InvalidSpec(BadInput, ValueError):
    """A layer description that cannot be."""


class InvalidTable(BadInput):
    """A LUT file that is corrupt, no LUT at all, or written by a newer version."""


class TableMismatch(BadInput):
    """A LUT of another device or target.

    Attributes:
        fields: ``{name: (in the table, here)}`` for each field that differs.
    """

    def __init__(self, message: str, fields: dict[str, tuple[object, object]]) -> None:
        super().__init__(message)
        self.fields = fields

    def __reduce__(self) -> tuple[object, ...]:  # errors cross processes
        return type(self), (str(self), self.fields)


class MissingLayers(BadInput):
    """A LUT without (some of) this network's layers."""


class InvalidProblem(BadInput, ValueError):
    """An allocation problem that cannot be."""


class InvalidPlan(BadInput):
    """A plan file that is corrupt, or belongs to another model."""


class InvalidModel(BadInput):
    """A model, weight file or input shape that does not load, trace or fit."""


class InvalidTarget(BadInput, ValueError):
    """A target that is unknown or not installed."""


class InfeasibleBudget(Unmet):
    """No widths meet the budget.

    Attributes:
        minimum_ms: the least latency any widths reach.
    """

    def __init__(self, message: str, minimum_ms: float) -> None:
        super().__init__(message)
        self.minimum_ms = minimum_ms

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.minimum_ms)


class VerificationFailed(Unmet):
    """The narrow model does not compute what the pruned dense model computes."""
