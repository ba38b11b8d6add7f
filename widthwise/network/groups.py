"""Channel groups: which channel dimensions must be kept or removed together.

Classes of tied channels (:mod:`widthwise.network.ties`) that appear equally often in every dimension of the network
are interchangeable: they make one group, whose width is how many of them are kept. So every dimension has
``constant + Σ coefficient·width`` channels by construction. What comes out is a :class:`Coupling`: for each
narrowable module, which group and which channel of it every index of its input and output dimension belongs to. That
is all surgery, checks and the width algebra need.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from widthwise.network.ties import CONSTANT, Atoms, Ties
from widthwise.network.widths import Affine

__all__ = ["FIXED", "Coupling", "Group", "Labels", "Masks", "couple"]

Labels = npt.NDArray[np.int64]
"""One label per channel: ``group index · 2³² + channel of the group``, or ``FIXED``."""

FIXED = -1
"""Label of a channel that belongs to no prunable group."""

_SHIFT = 32

Masks = Sequence[npt.NDArray[np.bool_]]
"""For each group, whether each of its channels stays."""

_TOGETHER = "its channels can only be kept or removed all together"
_SINGLE = "it is a single channel"


@dataclass(frozen=True, slots=True)
class Group:
    """Channels that live and die together.

    Args:
        name: module path of the first layer that produces them; ``path#2``, … where a layer's channels belong to
            several groups.
        size: the dense width.
        producers: module paths of the convolutions and linear layers whose filters make these channels.
        locked: why the width may not change, or None where it may.
    """

    name: str
    size: int
    producers: tuple[str, ...]
    locked: str | None = None


@dataclass
class Coupling:
    """Groups, and the labels of every narrowable module's dimensions.

    Attributes:
        groups: in the order of the network.
        inputs: module path → labels of its input dimension (absent for norms: they have one dimension).
        outputs: module path → labels of its output dimension.
    """

    groups: list[Group] = field(default_factory=list)
    inputs: dict[str, Labels] = field(default_factory=dict)
    outputs: dict[str, Labels] = field(default_factory=dict)

    def lock(self, index: int, reason: str) -> None:
        """Fix the width of a group; the first reason stays."""
        group = self.groups[index]
        if group.locked is None:
            self.groups[index] = Group(group.name, group.size, group.producers, reason)

    def free(self, labels: Labels) -> Labels:
        """The labels with those of locked groups replaced by ``FIXED``."""
        if not len(labels) or not self.groups:
            return labels
        locked = np.array([group.locked is not None for group in self.groups])
        owners = labels >> _SHIFT
        return np.where((labels != FIXED) & locked[np.maximum(owners, 0)], FIXED, labels)

    def owners(self, labels: Labels) -> list[int]:
        """Indices of the groups that own any of these channels, ascending."""
        return [int(owner) for owner in np.unique(labels[labels != FIXED] >> _SHIFT)]

    def channel(self, labels: Labels) -> npt.NDArray[np.int64]:
        """For each label, the channel within its group."""
        return labels & ((1 << _SHIFT) - 1)

    def affine(self, labels: Labels) -> Affine:
        """The number of channels as a function of the widths."""
        labels = self.free(labels)
        terms = []
        for owner in self.owners(labels):
            group = self.groups[owner]
            terms.append((group.name, int(np.sum((labels != FIXED) & (labels >> _SHIFT == owner))) // group.size))
        return Affine(tuple(sorted(terms)), int(np.sum(labels == FIXED)))

    def stays(self, labels: Labels, masks: Masks) -> npt.NDArray[np.int64]:
        """Indices of a dimension that stay, ascending."""
        stays = np.ones(len(labels), dtype=bool)
        for owner in self.owners(labels):
            mine = (labels != FIXED) & (labels >> _SHIFT == owner)
            stays[mine] = masks[owner][self.channel(labels[mine])]
        return np.flatnonzero(stays)

    def indices(self, masks: Masks) -> dict[str, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Path of a narrowable module → the indices of its input and of its output dimension that stay.

        Modules of one dimension have it in both places.
        """
        outputs = {path: self.stays(labels, masks) for path, labels in self.outputs.items()}
        return {
            path: (self.stays(self.inputs[path], masks) if path in self.inputs else indices, indices)
            for path, indices in outputs.items()
        }


@dataclass(frozen=True)
class Dimensions:
    """Atoms of every channel dimension of a network.

    Args:
        inputs: module path → atoms of its input dimension; absent where it is the same as the output's.
        outputs: module path → atoms of its output dimension.
        producers: paths of the modules that make atoms, in the order of the model.
        tensors: atoms of the results of operations.
    """

    inputs: Mapping[str, Atoms]
    outputs: Mapping[str, Atoms]
    producers: Sequence[str]
    tensors: Iterable[Atoms]


def couple(ties: Ties, dimensions: Dimensions) -> tuple[Coupling, Labels]:
    """The coupling, and the label of every atom."""
    classes, reasons = ties.classes()
    fixed = np.zeros(int(classes.max()) + 1, dtype=bool)
    fixed[list(reasons)] = True
    patterns = _patterns(classes, len(fixed), dimensions)
    coupling, label_of_class = Coupling(), np.full(len(fixed), FIXED, dtype=np.int64)
    for group, members in _groups(_found(classes, fixed, reasons, patterns, dimensions)):
        if group.locked is None:
            label_of_class[members] = (len(coupling.groups) << _SHIFT) | np.arange(len(members))
        coupling.groups.append(group)
    labels = label_of_class[classes]
    labels[CONSTANT] = FIXED
    coupling.outputs.update({path: labels[atoms] for path, atoms in dimensions.outputs.items()})
    coupling.inputs.update({path: labels[atoms] for path, atoms in dimensions.inputs.items()})
    for path, atoms in dimensions.inputs.items():  # one array where it is one dimension
        if np.array_equal(atoms, dimensions.outputs[path]):
            coupling.inputs[path] = coupling.outputs[path]
    return coupling, labels


def _patterns(classes: npt.NDArray[np.int64], count: int, dimensions: Dimensions) -> npt.NDArray[np.uint64]:
    """A hash per class of how often it appears in each dimension."""
    patterns = np.zeros(count, dtype=np.uint64)
    seen: set[bytes] = set()
    for atoms in [*dimensions.inputs.values(), *dimensions.outputs.values(), *dimensions.tensors]:
        if (key := atoms.tobytes()) in seen:
            continue
        seen.add(key)
        present, often = np.unique(classes[atoms], return_counts=True)
        patterns[present] += _mixed(often.astype(np.uint64) + (np.uint64(len(seen)) << np.uint64(_SHIFT)))
    return patterns


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Splitmix64: 64 well-mixed bits for each number."""
    values = values * np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@dataclass
class _Found:
    """Classes that appear alike; ``positions`` of their channels in the first producer."""

    locked: str | None
    members: npt.NDArray[np.int64]
    positions: int
    producers: list[str] = field(default_factory=list)


def _found(
    classes: npt.NDArray[np.int64],
    fixed: npt.NDArray[np.bool_],
    reasons: Mapping[int, str],
    patterns: npt.NDArray[np.uint64],
    dimensions: Dimensions,
) -> list[_Found]:
    """What makes one group each; fixed channels are put together by producer and reason."""
    found: dict[object, _Found] = {}
    owner: dict[int, object] = {}
    for path in dimensions.producers:
        made = classes[dimensions.outputs[path]]
        keys: dict[object, list[int]] = {}
        for each in made[np.sort(np.unique(made, return_index=True)[1])]:
            key: object = (path, reasons[int(each)]) if fixed[each] else int(patterns[each])
            keys.setdefault(owner.setdefault(int(each), key), []).append(int(each))
        for key, mine in keys.items():
            reason = key[1] if isinstance(key, tuple) else None
            known = found.setdefault(key, _Found(reason, np.array(mine), int(np.isin(made, mine).sum())))
            known.producers.append(path)
    return list(found.values())


def _groups(found: Sequence[_Found]) -> list[tuple[Group, npt.NDArray[np.int64]]]:
    """Every group with its classes in the order of its first producer, and named after it; those of one producer are
    numbered, the ones that may be narrowed first."""
    position = {path: index for index, path in enumerate(dict.fromkeys(each.producers[0] for each in found))}
    groups = []
    taken: Counter[str] = Counter()
    for each in sorted(found, key=lambda each: (position[each.producers[0]], each.locked is not None)):
        first, locked = each.producers[0], each.locked
        taken[first] += 1
        name = first if taken[first] == 1 else f"{first}#{taken[first]}"
        if locked is None and len(each.members) == 1:
            locked = _TOGETHER if each.positions > 1 else _SINGLE
        size = len(each.members) if each.locked is None else each.positions
        groups.append((Group(name, size, tuple(each.producers), locked), each.members))
    return groups
