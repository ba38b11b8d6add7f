"""Proof that a model narrows correctly: each group by itself, then all of them, at random widths and channels."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from widthwise.luts.errors import VerificationFailed
from widthwise.network.modules import CONVOLUTIONS, NARROWABLE, TRANSPOSED, dimensions
from widthwise.network.narrowing import (
    TOLERANCE,
    Kept,
    largest_difference,
    narrow,
    silenced_difference,
    silenced_outputs,
    tensors,
)
from widthwise.network.network import Network, trace_runnable

__all__ = ["Proof", "prove", "random_kept"]


@dataclass(frozen=True)
class Proof:
    """What was found.

    Args:
        groups: groups narrowed alone.
        together: times all of them were narrowed at once.
        difference: the largest between narrow and silenced outputs, relative to the largest output.
        effect: how far silencing moved the dense outputs when all groups were narrowed, likewise; a proof of a network
            whose outputs don't depend on its channels would show nothing.
    """

    groups: int
    together: int
    difference: float
    effect: float


def random_kept(network: Network, rng: random.Random) -> dict[str, list[int]]:
    """Random channels of every free group, at least one each."""
    return {group.name: sorted(rng.sample(range(group.size), rng.randint(1, group.size))) for group in network.free}


def prove(
    model: nn.Module,
    network: Network,
    example: Sequence[torch.Tensor],
    *,
    seed: int = 0,
    alone: int | None = None,
    together: int = 2,
) -> Proof:
    """Narrows one group after another, then all at once, and holds each narrow model against what was promised.

    Outputs must equal those of the dense model with the removed channels silenced; parameters, multiply-accumulates and
    the shape of every operation must be those :class:`Network` predicts; no module may end up without channels.

    Args:
        model: with weights under which a wrong index shows: no batch norm at its initial statistics.
        alone: groups to narrow alone, chosen at random; all by default.
        together: times to narrow all groups at once.

    Raises:
        VerificationFailed: names the groups that were narrowed, and what is wrong.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 7, 3), nn.ReLU(), nn.Conv2d(7, 5, 1)).eval()
        >>> example = torch.zeros(1, 3, 11, 11)
        >>> prove(model, Network.trace(model, example), [example]).difference < 1e-6
        True
    """
    rng, was_training = random.Random(seed), model.training
    try:
        dense = _Dense(model.eval(), network, example)
        names = [group.name for group in network.free if group.size > 1]
        chosen = names if alone is None else rng.sample(names, min(alone, len(names)))
        worst = effect = 0.0
        for name in chosen:
            size = network.dense[name]
            kept = {name: sorted(rng.sample(range(size), rng.randint(1, size - 1)))}
            worst = max(worst, dense.held(kept)[0])
        for _ in range(together if names else 0):
            kept = random_kept(network, rng)
            difference, moved = dense.held(kept)
            dense.compare_shapes(kept)
            worst, effect = max(worst, difference), max(effect, moved)
    finally:
        model.train(was_training)
    return Proof(len(chosen), together if names else 0, worst, effect)


class _Dense:
    """The dense model, against which narrow ones are held."""

    def __init__(self, model: nn.Module, network: Network, example: Sequence[torch.Tensor]) -> None:
        self._model, self._network, self._example = model, network, example
        self._graph = trace_runnable(model, network)
        self._outputs, macs = _run(model, example)
        self._uncounted = network.macs(network.dense) - macs  # functional calls, which nothing narrows

    def held(self, kept: Kept) -> tuple[float, float]:
        """The difference of one narrow model after all checks, and the effect of silencing."""
        network, what = self._network, _what(kept)
        small = narrow(self._model, network, kept, share=True)
        expected = silenced_outputs(self._graph, network, kept, self._example)
        try:
            got, macs = _run(small, self._example)
        except RuntimeError as error:
            raise VerificationFailed(f"narrowing {what} gives a model that doesn't run: {error}") from error
        difference = largest_difference(expected, got)
        if not difference <= TOLERANCE:
            difference = silenced_difference(self._model, small, network, kept, self._example)
        if not difference <= TOLERANCE:
            raise VerificationFailed(
                f"narrowing {what} changes the outputs by {difference:.2g}, more than {TOLERANCE:.0g}"
            )
        widths = network.dense | {name: len(channels) for name, channels in kept.items()}
        for name, predicted, real in (
            ("parameters", network.parameters(widths), sum(p.numel() for p in small.parameters())),
            ("multiply-accumulates", network.macs(widths), macs + self._uncounted),
        ):
            if predicted != real:
                raise VerificationFailed(f"narrowing {what}: {predicted:,} {name} were predicted, it has {real:,}")
        for path, module in small.named_modules():
            if isinstance(module, NARROWABLE) and min(dimensions(module)) < 1:
                raise VerificationFailed(f"narrowing {what} leaves {path!r} without channels")
        return difference, largest_difference(self._outputs, expected)

    def compare_shapes(self, kept: Kept) -> None:
        """Every operation gives the shape that was predicted."""
        network = self._network
        run = _Shapes(trace_runnable(narrow(self._model, network, kept, share=True), network))
        with torch.no_grad():
            run.run(*self._example)
        widths = network.dense | {name: len(channels) for name, channels in kept.items()}
        for layer in network.layers:
            channels, found = network.channels.get(layer.name), run.shapes.get(layer.name)
            if channels is None or found is None:
                continue
            size = network.coupling.affine(channels.labels)(widths)
            predicted = tuple(length or size for length in layer.geometry.outputs[0])
            if predicted != found:
                raise VerificationFailed(
                    f"narrowing {_what(kept)}: {layer.name!r} gives {found}, not {predicted} as predicted"
                )


def _what(kept: Kept) -> str:
    return repr(next(iter(kept))) if len(kept) == 1 else f"all {len(kept)} groups"


class _Shapes(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.shapes: dict[str, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            self.shapes[n.name] = tuple(result.shape)
        return result


def _run(model: nn.Module, example: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], int]:
    """Outputs, and the multiply-accumulates of the convolutions and linear layers that ran, from what they hold."""
    total = 0

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal total
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        reached = inputs[0] if isinstance(module, TRANSPOSED) else output
        total += reached.numel() * weight[0].numel()

    counted = [module for module in model.modules() if isinstance(module, (*CONVOLUTIONS, nn.Linear))]
    hooks = [module.register_forward_hook(count) for module in counted]
    try:
        with torch.no_grad():
            outputs = tensors(model(*example))
            return outputs, total
    finally:
        for hook in hooks:
            hook.remove()
