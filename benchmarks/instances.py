"""Synthetic allocation problems shaped like well-known networks: the coupling is theirs, the latencies are made up.

A layer's latency is ``a · pad(c_in) · pad(c_out)`` (padding to a tile makes staircases, with a penalty at some
widths so that they are not monotone) plus a part for reading and writing, plus 2 % of noise. A group's importance
is concave and ascending, as sorted channel scores sum up, or with ``linear=True`` almost straight, which is the
hard case: nothing but the coupling then tells widths apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from widthwise.planner.problem import Problem

__all__ = [
    "NETWORKS",
    "chain",
    "densenet121",
    "googlenet",
    "mobilenet_v2",
    "random_problem",
    "residual",
    "resnet50",
]

Axis = str | list[str]


class _Builder:
    """Collects groups and layers; ``problem`` gives the allocation problem at a share of the dense latency."""

    def __init__(self, options: int, seed: int, linear: bool) -> None:
        self.options, self.linear = options, linear
        self.rng = np.random.default_rng(seed)
        self.groups: dict[str, dict[str, Any]] = {}
        self.costs: list[dict[str, Any]] = []

    def group(self, name: str, channels: int) -> str:
        count = min(self.options, channels // 4)
        widths = np.unique(np.round(np.linspace(channels / count, channels, count)).astype(int))
        power = self.rng.uniform(0.95, 1.0) if self.linear else self.rng.uniform(0.3, 0.8)
        importance = self.rng.uniform(0.5, 2.0) * (widths / channels) ** power
        self.groups[name] = {"widths": widths.tolist(), "importance": importance.tolist()}
        return name

    def conv(self, source: Axis, target: str, kernel: int, pixels: int) -> None:
        rows, columns = self._totals(source), np.array(self.groups[target]["widths"])
        work = np.outer(_pad(rows), _pad(columns)) * kernel**2 * pixels * 1e-8
        memory = np.add.outer(rows, columns) * pixels * 2e-7
        self._add([source, target], work + memory)

    def each(self, source: Axis, pixels: int, weight: float = 1.0) -> None:
        self._add([source], _pad(self._totals(source)) * pixels * weight * 4e-7)

    def problem(self, share: float) -> Problem:
        data: dict[str, Any] = {"groups": self.groups, "costs": self.costs, "fixed_ms": 0.1}
        dense = Problem(budget_ms=1.0, **data)
        dense_ms = dense.latency_ms({name: group["widths"][-1] for name, group in self.groups.items()})
        return Problem(budget_ms=share * dense_ms, **data)

    def _totals(self, axis: Axis) -> np.ndarray:
        totals = np.zeros(1, dtype=int)
        for name in [axis] if isinstance(axis, str) else axis:
            totals = np.unique(np.add.outer(totals, self.groups[name]["widths"]))
        return totals

    def _add(self, over: list[Axis], ms: np.ndarray) -> None:
        noisy = ms * self.rng.normal(1.0, 0.02, ms.shape).clip(0.9, 1.1)
        cost: dict[str, Any] = {"over": [a if isinstance(a, str) else {"sum": a} for a in over], "ms": noisy}
        if any(not isinstance(axis, str) for axis in over):
            cost["sums"] = self._totals(next(axis for axis in over if not isinstance(axis, str))).tolist()
        self.costs.append(cost)


def _pad(channels: np.ndarray, tile: int = 16) -> np.ndarray:
    """What a tiled kernel computes: whole tiles, and an eighth more where the last one is nearly empty."""
    padded = np.ceil(channels / tile) * tile
    return np.asarray(padded * np.where(channels % tile == 0, 1.0, 1.0 + 0.125 * (padded - channels) / tile))


def resnet50(options: int = 16, seed: int = 0, linear: bool = False, share: float = 0.5) -> Problem:
    """37 groups: the stem, four stage outputs that residual adds tie, two inner widths in each of 16 blocks."""
    net = _Builder(options, seed, linear)
    source = net.group("stem", 64)
    net.each(source, 112**2)
    for stage, blocks in enumerate((3, 4, 6, 3)):
        pixels, inner = (56 >> stage) ** 2, 64 << stage
        output = net.group(f"stage{stage}", inner * 4)
        net.conv(source, output, 1, pixels)
        for block in range(blocks):
            first, second = net.group(f"s{stage}b{block}a", inner), net.group(f"s{stage}b{block}b", inner)
            net.conv(source, first, 1, pixels)
            net.conv(first, second, 3, pixels)
            net.conv(second, output, 1, pixels)
            for name in (first, second, output):
                net.each(name, pixels)
            source = output
    net.each(source, 1, 1000)
    return net.problem(share)


def mobilenet_v2(options: int = 16, seed: int = 0, linear: bool = False, share: float = 0.5) -> Problem:
    """Inverted residuals: an expanded width in each block, outputs tied within a stage, depthwise layers between."""
    net = _Builder(options, seed, linear)
    source, pixels = net.group("stem", 32), 112**2
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    channels = 32
    for stage, (expand, width, blocks, stride) in enumerate(stages):
        output = net.group(f"stage{stage}", width)
        for block in range(blocks):
            inner = source
            if expand > 1:
                inner = net.group(f"s{stage}b{block}", channels * expand)
                net.conv(source, inner, 1, pixels)
            pixels //= stride**2 if block == 0 else 1
            net.each(inner, pixels, 9)
            net.conv(inner, output, 1, pixels)
            net.each(output, pixels)
            source, channels = output, width
    net.conv(source, net.group("last", 1280), 1, pixels)
    net.each("last", 1, 1000)
    return net.problem(share)


def googlenet(options: int = 16, seed: int = 0, linear: bool = False, share: float = 0.5) -> Problem:
    """Nine inception blocks: each layer of one reads the concatenation of the four branches before it."""
    net = _Builder(options, seed, linear)
    net.conv(net.group("stem1", 64), net.group("stem2", 64), 1, 56**2)
    net.conv("stem2", net.group("stem3", 192), 3, 56**2)
    source: Axis = "stem3"
    blocks = (
        (28, (64, 96, 128, 16, 32, 32)), (28, (128, 128, 192, 32, 96, 64)),
        (14, (192, 96, 208, 16, 48, 64)), (14, (160, 112, 224, 24, 64, 64)), (14, (128, 128, 256, 24, 64, 64)),
        (14, (112, 144, 288, 32, 64, 64)), (14, (256, 160, 320, 32, 128, 128)),
        (7, (256, 160, 320, 32, 128, 128)), (7, (384, 192, 384, 48, 128, 128)),
    )  # fmt: skip
    for index, (side, channels) in enumerate(blocks):
        one, three_in, three, five_in, five, pool = (net.group(f"i{index}.{n}", c) for n, c in enumerate(channels))
        for reader in (one, three_in, five_in, pool):
            net.conv(source, reader, 1, side**2)
        net.conv(three_in, three, 3, side**2)
        net.conv(five_in, five, 3, side**2)
        source = [one, three, five, pool]
        net.each(source, side**2)
    net.each(source, 1, 1000)
    return net.problem(share)


def densenet121(options: int = 8, seed: int = 0, linear: bool = False, share: float = 0.5) -> Problem:
    """58 dense layers: each reads the concatenation of everything before it in its block."""
    net = _Builder(options, seed, linear)
    source = [net.group("stem", 64)]
    for block, layers in enumerate((6, 12, 24, 16)):
        pixels = (56 >> block) ** 2
        for layer in range(layers):
            inner = net.group(f"b{block}l{layer}a", 128)
            net.each(source, pixels)
            net.conv(source, inner, 1, pixels)
            grown = net.group(f"b{block}l{layer}b", 32)
            net.conv(inner, grown, 3, pixels)
            source = [*source, grown]
        net.each(source, pixels)
        if block < 3:
            output = net.group(f"transition{block}", 128 << block)
            net.conv(source, output, 1, pixels)
            source = [output]
    net.each(source, 1, 1000)
    return net.problem(share)


def chain(groups: int, options: int = 16, seed: int = 0, linear: bool = False, share: float = 0.5) -> Problem:
    """A plain network of so many groups, each the next one's input; four stages of 128 to 1,024 channels."""
    net = _Builder(options, seed, linear)
    source = ""
    for index in range(groups):
        stage = 4 * index // groups
        target = net.group(f"g{index}", 128 << stage)
        if source:
            net.conv(source, target, 3, (56 >> stage) ** 2)
        net.each(target, (56 >> stage) ** 2)
        source = target
    net.each(source, 1, 1000)
    return net.problem(share)


def residual(groups: int, options: int = 16, seed: int = 0, linear: bool = False, share: float = 0.5) -> Problem:
    """A ResNet of about so many groups: bottleneck blocks of two inner widths, spread over up to four stages."""
    stages = min(4, (groups - 1) // 3)
    blocks = (groups - 1 - stages) // 2
    net = _Builder(options, seed, linear)
    source = net.group("stem", 128)
    for stage in range(stages):
        pixels, inner = (56 >> stage) ** 2, 128 << stage
        output = net.group(f"stage{stage}", inner * 4)
        net.conv(source, output, 1, pixels)
        for block in range(blocks * stage // stages, blocks * (stage + 1) // stages):
            first, second = net.group(f"b{block}a", inner), net.group(f"b{block}b", inner)
            net.conv(source, first, 1, pixels)
            net.conv(first, second, 3, pixels)
            net.conv(second, output, 1, pixels)
            for name in (first, second, output):
                net.each(name, pixels)
            source = output
    net.each(source, 1, 1000)
    return net.problem(share)


NETWORKS: dict[str, Callable[..., Problem]] = {
    "resnet50": resnet50,
    "mobilenet_v2": mobilenet_v2,
    "googlenet": googlenet,
    "densenet121": densenet121,
}


def random_problem(rng: np.random.Generator) -> Problem:
    """A small problem of any form: single, paired and summed widths, with repetition; some of them infeasible.

    Latencies are multiples of 0.1 in half of them, so that many widths tie and sums round.
    """
    names = [f"g{i}" for i in range(rng.integers(1, 6))]
    groups: dict[str, Any] = {}
    for name in names:
        count = int(rng.integers(1, 5))
        widths = np.sort(rng.choice(np.arange(1, 12), count, replace=False))
        groups[name] = {"widths": widths, "importance": np.round(rng.normal(1.0, 1.0, count), int(rng.integers(1, 9)))}
    digits = 1 if rng.random() < 0.5 else 9
    costs: Any = []
    for _ in range(rng.integers(0, 8)):
        over: list[Any] = list(rng.choice(names, rng.integers(1, 3)))
        cost: dict[str, Any] = {"over": over}
        lengths = [len(groups[name]["widths"]) for name in over]
        if rng.random() < 0.5:
            place, plus = int(rng.integers(len(over))), int(rng.integers(0, 3))
            members = [str(name) for name in rng.choice(names, rng.integers(1, 5))]
            totals = np.array([plus])
            for name in set(members):
                totals = np.unique(np.add.outer(totals, members.count(name) * groups[name]["widths"]))
            over[place] = {"sum": members, "plus": plus}
            cost["sums"] = totals
            lengths[place] = len(totals)
        cost["over"] = [axis if isinstance(axis, dict) else str(axis) for axis in over]
        cost["ms"] = np.round(rng.uniform(0, 2, lengths), digits)
        costs.append(cost)
    problem = Problem(budget_ms=1.0, groups=groups, costs=costs, fixed_ms=float(np.round(rng.uniform(0, 1), digits)))
    reached = problem.latency_ms({name: int(rng.choice(group["widths"])) for name, group in groups.items()})
    return problem.model_copy(update={"budget_ms": max(reached * float(rng.choice([0.6, 0.9, 1.0, 1.1])), 0.01)})
