"""A plan: the widths that meet a budget, the channels kept, and everything one needs to trust it later."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from widthwise.luts.errors import BadInput, InvalidPlan
from widthwise.planner.problem import WidthBounds

__all__ = [
    "Budget",
    "Certificate",
    "FurtherLatency",
    "KeptLimit",
    "ParentPlan",
    "Plan",
    "TableReference",
    "parent_of",
]

SCHEMA_VERSION = 1
"""History: 1, first version."""

_MOST_BYTES = 64 * 2**20

_LATER: dict[str, Any] = {
    "objective": "importance",
    "keep": None,
    "confidence": None,
    "limits": [],
    "bounds": {},
    "further": [],
    "binding": [],
    "parent": None,
}
"""Fields that came after the first plans, and what they are where they say nothing: then they aren't written."""


@dataclass(frozen=True, slots=True)
class Budget:
    """The latency to meet: in ms, or as a share of the dense latency.

    Example:
        >>> Budget.parse("60%").ms(dense_ms=50.0)
        30.0
    """

    value: float
    relative: bool

    @classmethod
    def parse(cls, text: str | float) -> Budget:
        """``20``, ``20ms``, ``0.02s`` or ``60%``.

        Raises:
            BadInput: another form, or not above zero.
        """
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e-?[0-9]+)?)\s*(ms|s|%)?\s*", str(text).lower())
        if match is None:
            raise BadInput(f"{text!r} is no budget; give milliseconds or a share of the dense latency: 20ms or 60%")
        value = float(match[1])
        if not 0 < value < float("inf"):
            raise BadInput(f"the budget must be above zero, got {text!r}; `widthwise predict` shows the dense latency")
        if match[2] == "%":
            return cls(value / 100, relative=True)
        return cls(value * 1000 if match[2] == "s" else value, relative=False)

    def ms(self, dense_ms: float) -> float:
        """The budget in ms for a network of this dense latency."""
        return self.value * dense_ms if self.relative else self.value


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TableReference(_Data):
    """Which table a plan was made from."""

    target: dict[str, str | int]
    device: str
    quiet_reference_ms: float = Field(gt=0)
    networks: int = Field(ge=0)
    held_out: int = Field(ge=0)


class KeptLimit(_Data):
    """A limit beside the budget: of parameters, MACs, or bytes of memory.

    Attributes:
        amount: the plan's; ``dense`` the dense network's.
        most: allowed.
    """

    name: str
    amount: float = Field(ge=0)
    most: float = Field(gt=0)
    dense: float = Field(ge=0)


class FurtherLatency(_Data):
    """What a plan comes to on a further table: another device, runtime, batch size or resolution."""

    table: TableReference
    signature: str
    inputs: list[list[int]]
    dense_ms: float = Field(gt=0)
    budget_ms: float = Field(gt=0)
    predicted_ms: float = Field(gt=0)
    interval_ms: tuple[float, float]


class Certificate(_Data):
    """The proof: no widths among the options keep more than ``bound`` within the budget and all limits.

    ``gap`` is (bound - importance) / |bound|; 0 for a proven optimum. Of a plan of least latency, ``objective`` and
    ``bound`` are latencies in ms: no widths that keep enough are faster than ``bound``. A new plan of the closed loop
    stays near a measured one: ``bound`` is of all widths, and ``gap`` what that gives up of it.

    ``searched`` widths were chosen by measured accuracy, not by importance: ``objective`` is the importance they happen
    to keep, ``bound`` still the exact plan's (or the objective, should it lie above: a search may use widths the plan's
    options lack), so ``gap`` says what they give up of it and nothing of how good they are. ``seconds`` is the
    search's.
    """

    status: Literal["optimal", "feasible", "unchanged", "searched"]
    objective: float
    bound: float
    gap: float = Field(ge=0)
    seconds: float = Field(ge=0)


class ParentPlan(_Data):
    """The plan that made the model a further plan is for: that model's name and the plan's digest."""

    model: str
    digest: str


class Plan(_Data):
    """Widths, the channels kept, the prediction and where it all comes from.

    Attributes:
        model: the user's name for the model; ``signature`` is the hash of its structure.
        weights: hash of the weights the channels were chosen from.
        widths: free group → channels kept; ``dense`` the original ones; ``kept`` which.
        budget_ms: for the statistic named, on the scale of the table; of a plan of least latency, what was predicted.
        interval_ms: holds the measured latency with 90 % confidence, or with that of ``confidence``.
        minimum_ms: the least latency any widths reach.
        importance: what the plan retains, 1 for the dense network.
        objective: what was asked for, the most importance or the least latency that retains ``keep``.
        confidence: the budgets hold at the upper end of the interval of this level; None where at the prediction.
        limits: what else the plan was kept within, and ``bounds`` of single widths.
        further: predictions on further tables, each with its budget.
        binding: what stops the plan from being better: ``latency``, ``importance``, or the name of a limit.
        parent: where the model was narrowed before; "dense" then means what that plan left.
    """

    schema_version: Literal[1] = 1
    widthwise: str
    created: str
    model: str
    signature: str
    weights: str
    inputs: list[list[int]]
    statistic: Literal["median", "p90"] = "median"
    dense_ms: float = Field(gt=0)
    budget_ms: float = Field(gt=0)
    predicted_ms: float = Field(gt=0)
    interval_ms: tuple[float, float]
    minimum_ms: float = Field(gt=0)
    criterion: str
    importance: float = Field(ge=0, le=1.0000001)
    certificate: Certificate
    table: TableReference
    dense: dict[str, int]
    widths: dict[str, int]
    kept: dict[str, list[int]]
    notes: list[str] = []
    objective: Literal["importance", "latency"] = "importance"
    keep: float | None = Field(default=None, gt=0, le=1)
    confidence: float | None = Field(default=None, gt=0, lt=1)
    limits: list[KeptLimit] = []
    bounds: dict[str, WidthBounds] = {}
    further: list[FurtherLatency] = []
    binding: list[str] = []
    parent: ParentPlan | None = None

    @model_serializer(mode="wrap")
    def _said(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without later fields that say nothing, so that earlier versions read what they can."""
        return {name: value for name, value in handler(self).items() if getattr(self, name) != _LATER.get(name, ...)}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if set(self.widths) != set(self.dense) or set(self.kept) != set(self.widths):
            raise ValueError("widths, dense and kept must name the same groups")
        for group, width in self.widths.items():
            channels = self.kept[group]
            if not 1 <= width <= self.dense[group] or len(channels) != width:
                raise ValueError(f"group {group!r} must keep as many channels as its width says, 1 to the dense width")
            if channels != sorted(set(channels)) or channels[0] < 0 or channels[-1] >= self.dense[group]:
                raise ValueError(f"group {group!r} must keep distinct ascending channels of its {self.dense[group]}")
        return self

    @property
    def gap(self) -> float:
        """Of the certificate."""
        return self.certificate.gap

    @property
    def digest(self) -> str:
        """Hash of all that isn't a default, so that fields added later don't change it."""
        data = json.dumps(self.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
        return hashlib.sha256(data.encode()).hexdigest()[:16]

    def write(self, path: str | Path) -> None:
        """Writes the plan as JSON, whole or not at all.

        Raises:
            BadInput: the place can't be written to.
        """
        path = Path(path)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            draft.write_text(self.model_dump_json(indent=1) + "\n")
            draft.replace(path)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise BadInput(f"can't write the plan to {path}: {error.strerror}; give another -o") from error

    @classmethod
    def read(cls, path: str | Path) -> Plan:
        """The plan of a file.

        Raises:
            InvalidPlan: missing, not a plan, corrupt, or of a newer version.
        """
        path = Path(path)
        try:
            if path.stat().st_size > _MOST_BYTES:
                raise InvalidPlan(f"{path} is larger than any plan; make one with `widthwise plan`")
            data = json.loads(path.read_text())
            json.dumps(data, ensure_ascii=False).encode()  # refuses halves of characters, which no file can hold
        except OSError as error:
            raise InvalidPlan(
                f"can't read the plan {path}: {error.strerror}; make one with `widthwise plan`"
            ) from error
        except (ValueError, RecursionError) as error:
            raise InvalidPlan(f"{path} is not JSON ({error}); make a plan with `widthwise plan`") from error
        version = data.get("schema_version") if isinstance(data, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise InvalidPlan(
                f"{path} has schema version {version}, this widthwise reads up to {SCHEMA_VERSION}: upgrade"
            )
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "plan"
            raise InvalidPlan(
                f"{path} is not a valid plan ({where}: {first['msg']}); make one with `widthwise plan`"
            ) from error


def parent_of(model: str) -> ParentPlan | None:
    """What a plan for this ``MODEL`` builds on: the last plan of a pruned model's folder, for others nothing.

    Raises:
        InvalidPlan: the folder's plan is missing or corrupt.
    """
    from widthwise.network.folder import PLAN, own_file
    from widthwise.network.loading import folder_in

    folder = folder_in(model)
    if folder is None or not (folder / PLAN).is_file():
        return None
    before = Plan.read(own_file(folder, PLAN))
    return ParentPlan(model=before.model, digest=before.digest)
