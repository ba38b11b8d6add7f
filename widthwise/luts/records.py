"""The nouns a table hands out: frozen rows, without their raw samples.

A record carries the derived statistics a reader needs; :meth:`widthwise.luts.store.Lut.samples` gives the
raw blocks behind it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from widthwise.luts.errors import InvalidSpec
from widthwise.luts.measurement import Estimator, Status
from widthwise.luts.spec import LayerSpec

__all__ = ["BESIDE_DENSE", "LayerRecord", "NetworkKey", "NetworkRecord", "Role", "RunRecord", "Scalar", "TableSummary"]

Scalar = str | int | float | bool | None
"""A value of a target, a fingerprint or a run's information."""

BESIDE_DENSE = "beside_dense"
"""In a run's information: true where its networks were timed in batches, in one interleaved run each, that begin with
the dense network."""


class Role(StrEnum):
    """What a whole-network sample is for."""

    DENSE = "dense"
    """The network as the user brought it."""
    FIT = "fit"
    """A narrowed copy the predictor may learn from."""
    HOLDOUT = "holdout"
    """A narrowed copy kept for the error estimate: never fitted, never used to decide when to stop."""
    VERIFY = "verify"
    """A plan that was built and measured."""


@dataclass(frozen=True, slots=True)
class NetworkKey:
    """Which network, at which widths.

    Args:
        signature: hash of the dense network's structure.
        model: the user's name for it, free text.
        widths: channel group → channels kept.

    Example:
        >>> NetworkKey("9f2c", "torchvision:resnet18", {"stem": 48}).widths["stem"]
        48
    """

    signature: str
    model: str
    widths: Mapping[str, int]

    def __post_init__(self) -> None:
        if not self.signature:
            raise InvalidSpec("a network needs a signature (the hash of its dense structure); got an empty one")
        # A copy: the key must not change when the caller goes on using its own mapping.
        widths = {str(group): int(width) for group, width in self.widths.items()}
        if any(width < 1 for width in widths.values()):
            raise InvalidSpec(f"widths must be positive, got {widths}")
        object.__setattr__(self, "widths", widths)

    def __hash__(self) -> int:
        return hash((self.signature, self.model, frozenset(self.widths.items())))


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """One measured layer; ``network_id`` and ``layer_name`` are None where it was timed on its own."""

    id: int
    spec: LayerSpec
    estimator: Estimator
    latency_ms: float
    low_ms: float
    high_ms: float
    status: Status
    blocks: int
    network_id: int | None
    layer_name: str | None
    run: int


@dataclass(frozen=True, slots=True)
class NetworkRecord:
    """One measured whole network."""

    id: int
    signature: str
    model: str
    widths: Mapping[str, int]
    role: Role
    latency_ms: float
    low_ms: float
    high_ms: float
    status: Status
    blocks: int
    run: int


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One session of measuring; ``uuid`` is what makes merging twice harmless. Times are UTC, ISO 8601."""

    id: int
    uuid: str
    purpose: str
    started_utc: str
    last_utc: str
    versions: Mapping[str, str]
    info: Mapping[str, Scalar]


@dataclass(frozen=True, slots=True)
class TableSummary:
    """Counts of what a table holds; ``seconds`` is the time from each run's start to its last measurement, added up."""

    layers: int
    networks: int
    unstable: int
    geometries: int
    runs: int
    seconds: float
