"""What a layer is: the key of a lookup table.

A :class:`LayerSpec` is a :class:`Geometry` (everything about a layer that does not change when channels
are pruned) plus the free channel counts. Two layers of any networks with equal specs are the same layer
to a table; layers with equal geometries share one latency surface over their channel counts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from widthwise.luts.errors import InvalidSpec

__all__ = ["FREE", "Geometry", "LayerSpec", "Option"]

FREE = 0
"""Stands in a geometry's shape where the channel count goes."""

Option = int | float | bool | str | tuple[int, ...]

_MAX_AXES = 2


@dataclass(frozen=True, slots=True)
class Geometry:
    """A layer without its channel counts.

    Args:
        kind: the operation, in PyTorch's own term: ``conv2d``, ``linear``, ``batch_norm``, ``relu``, ``add``, …
        inputs: shape of each input tensor, with ``FREE`` at the channel axis.
        outputs: shape of each output tensor, likewise.
        options: what else decides the operation (kernel, stride, groups, …), sorted by name.

    Example:
        >>> g = Geometry("relu", ((1, FREE, 7, 5),), ((1, FREE, 7, 5),))
        >>> Geometry.parse(g.key) == g
        True
    """

    kind: str
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]
    options: tuple[tuple[str, Option], ...] = ()

    def __post_init__(self) -> None:
        if not self.kind:
            raise InvalidSpec("a geometry needs a kind, such as 'conv2d'; got an empty one")
        if list(self.options) != sorted(self.options, key=lambda item: item[0]):
            object.__setattr__(self, "options", tuple(sorted(self.options, key=lambda item: item[0])))
        if len({name for name, _ in self.options}) < len(self.options):
            raise InvalidSpec(f"a geometry's options must have different names, got {self.options}")
        if any(isinstance(value, float) and not math.isfinite(value) for _, value in self.options):
            raise InvalidSpec(f"a geometry's options must be finite numbers, got {self.options}")

    @property
    def key(self) -> str:
        """Canonical JSON: equal geometries have equal keys, and :meth:`parse` gives the geometry back."""
        return json.dumps([self.kind, self.inputs, self.outputs, dict(self.options)], separators=(",", ":"))

    @classmethod
    def parse(cls, key: str) -> Geometry:
        """The geometry a :attr:`key` was made from.

        Raises:
            InvalidSpec: the text is not such a key.
        """
        try:
            kind, inputs, outputs, options = json.loads(key)
            return cls(
                str(kind),
                tuple(_shape(shape) for shape in inputs),
                tuple(_shape(shape) for shape in outputs),
                tuple((str(name), _option(value)) for name, value in options.items()),
            )
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise InvalidSpec(f"not a geometry key: {key[:120]!r} ({error})") from error

    def option(self, name: str, default: Option | None = None) -> Option | None:
        """The option called ``name``, or ``default``."""
        return dict(self.options).get(name, default)

    def __str__(self) -> str:
        shapes = "→".join("+".join("×".join(str(n or "C") for n in s) for s in side) for side in self._sides())
        options = " ".join(f"{name}={_show(value)}" for name, value in self.options)
        return f"{self.kind} {shapes} {options}".rstrip()

    def _sides(self) -> Iterator[tuple[tuple[int, ...], ...]]:
        yield self.inputs
        yield self.outputs


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """A layer with concrete channel counts; with the target it is a table's key.

    ``channels`` holds one number where input and output widths are tied (batch norm, relu, add, depthwise
    convolution, concatenation: the total), two (input, output) where they are free of each other (dense
    convolution, linear), none where the layer has no prunable width.

    Example:
        >>> spec = LayerSpec(Geometry("relu", ((1, 0, 7, 5),), ((1, 0, 7, 5),)), (13,))
        >>> str(spec)
        'relu 1×C×7×5→1×C×7×5 [13]'
    """

    geometry: Geometry
    channels: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.channels) > _MAX_AXES or (self.channels and min(self.channels) < 1):
            raise InvalidSpec(f"channels must be at most {_MAX_AXES} positive numbers, got {self.channels}")

    def __str__(self) -> str:
        return f"{self.geometry} [{'→'.join(map(str, self.channels))}]"


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in value)


def _option(value: Any) -> Option:
    if isinstance(value, list):
        return tuple(int(n) for n in value)
    if isinstance(value, int | float | bool | str):
        return value
    raise TypeError(f"an option is a number, a text or a list of integers, not {value!r}")


def _show(value: Option) -> str:
    return "×".join(map(str, value)) if isinstance(value, tuple) else str(value)
