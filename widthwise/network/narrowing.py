"""Surgery: a narrower model from a model and the channels each group keeps, and the proof that it is right.

Cutting is indexing: every parameter of a narrowable module keeps the indices whose label is fixed or kept.
The proof runs the dense model with the removed channels silenced (zeroed wherever they appear) and compares
outputs; see :func:`silenced_difference`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn

from widthwise.luts.errors import InvalidModel, VerificationFailed
from widthwise.network.modules import NARROWABLE, Indices, cut, dimensions, first_places
from widthwise.network.network import Network, trace_runnable

__all__ = [
    "TOLERANCE",
    "Indices",
    "Kept",
    "ModuleShape",
    "kept_indices",
    "largest_difference",
    "leading",
    "narrow",
    "resize",
    "shapes_of",
    "silenced_difference",
    "silenced_outputs",
    "tensors",
]

Kept = Mapping[str, Sequence[int]]
"""Channels each group keeps, ascending; groups not named keep all."""

ModuleShape = tuple[int, int]
"""(input, output) channels of a narrowable module."""

TOLERANCE = 1e-4
"""Largest allowed difference between narrow and silenced outputs, relative to the largest output."""


def leading(widths: Mapping[str, int]) -> dict[str, range]:
    """Keeps the first channels of each group: enough where only shapes matter, as in timing."""
    return {group: range(width) for group, width in widths.items()}


def narrow(model: nn.Module, network: Network, kept: Kept, *, share: bool = False) -> nn.Module:
    """A narrower copy of the model; the model itself is left as it is.

    Args:
        kept: channels to keep, per group.
        share: let tensors that nothing was cut from be shared with ``model``, to save memory.

    Raises:
        InvalidModel: a group is unknown or locked, or would keep no or unknown channels.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 7, 3), nn.ReLU(), nn.Conv2d(7, 5, 1))
        >>> small = narrow(model, Network.trace(model, torch.zeros(1, 3, 11, 11)), {"0": [1, 4]})
        >>> small[0].weight.shape, small[2].weight.shape
        (torch.Size([2, 3, 3, 3]), torch.Size([5, 2, 1, 1]))
    """
    indices = kept_indices(network, kept)
    small = _shallow_weights(model)
    for path, module in small.named_modules():
        if path in indices:
            cut(module, *indices[path])
    return small if share else _with_own_weights(small, model)


def kept_indices(network: Network, kept: Kept) -> dict[str, tuple[Indices, Indices]]:
    """Path of a narrowable module → the indices of its input and of its output dimension that stay, ascending.

    Norms have one dimension: it stands in both places.

    Raises:
        InvalidModel: as :func:`narrow`.
    """
    return network.coupling.indices(_masks(network, kept))


def shapes_of(model: nn.Module) -> dict[str, ModuleShape]:
    """(input, output) channels of every narrowable module: what :func:`resize` needs to rebuild the model."""
    return {path: dimensions(module) for path, module in model.named_modules() if isinstance(module, NARROWABLE)}


def resize(model: nn.Module, shapes: Mapping[str, ModuleShape]) -> nn.Module:
    """Cuts the model's modules to these shapes, in place, without tracing; weights are to be loaded after.

    Raises:
        InvalidModel: a module is missing, or is narrower than asked.
    """
    present = shapes_of(model)
    for path, (inputs, outputs) in shapes.items():
        if path not in present:
            raise InvalidModel(f"this model is another architecture: it has no narrowable module {path!r}")
        if not (1 <= inputs <= present[path][0] and 1 <= outputs <= present[path][1]):
            raise InvalidModel(
                f"this model is another architecture: {path!r} has {present[path]} channels, "
                f"the pruned one {(inputs, outputs)}"
            )
        if (inputs, outputs) != present[path]:
            module = model.get_submodule(path)
            try:
                cut(module, *first_places(module, inputs, outputs))
            except ValueError as error:
                raise InvalidModel(f"this model is another architecture: of {path!r}, {error}") from error
    return model


def silenced_difference(
    model: nn.Module, small: nn.Module, network: Network, kept: Kept, example: Sequence[torch.Tensor]
) -> float:
    """Largest difference between the narrow model and the dense one with the removed channels zeroed.

    Every operation's output is multiplied by its mask, so a channel is silent wherever it appears, whatever
    biases, norms or activations would make of it. Relative to the largest output; in eval mode. What exceeds the
    tolerance is computed again in double precision: there a deep network's amplified rounding is gone, and a wrong cut
    as wrong as before.

    Raises:
        VerificationFailed: the narrow model doesn't run, or its outputs have other shapes.
    """
    found = _difference(model, small, network, kept, example)
    if found <= TOLERANCE:
        return found
    exact = [tensor.double() if tensor.is_floating_point() else tensor for tensor in example]
    try:
        return _difference(copy.deepcopy(model).double(), copy.deepcopy(small).double(), network, kept, exact)
    except (RuntimeError, VerificationFailed):  # code that insists on another precision
        return found


def _difference(
    model: nn.Module, small: nn.Module, network: Network, kept: Kept, example: Sequence[torch.Tensor]
) -> float:
    was_training = (model.training, small.training)
    model.eval()
    small.eval()
    try:
        expected = silenced_outputs(trace_runnable(model, network), network, kept, example)
        with torch.no_grad():
            try:
                got = tensors(small(*example))
            except RuntimeError as error:
                raise VerificationFailed(f"the narrow model doesn't run: {error}") from error
    finally:
        model.train(was_training[0])
        small.train(was_training[1])
    return largest_difference(expected, got)


def silenced_outputs(
    graph: fx.GraphModule, network: Network, kept: Kept, example: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """The outputs of a traced dense model with the removed channels zeroed; see :func:`silenced_difference`."""
    with torch.no_grad():
        return tensors(_Silencing(graph, network, kept).run(*(tensor.clone() for tensor in example)))


def largest_difference(expected: Sequence[torch.Tensor], got: Sequence[torch.Tensor]) -> float:
    """Largest difference between outputs, relative to the largest of ``expected``.

    Raises:
        VerificationFailed: the shapes differ.
    """
    if [t.shape for t in expected] != [t.shape for t in got]:
        raise VerificationFailed(
            f"the narrow model gives outputs of shape {[tuple(t.shape) for t in got]}, "
            f"the dense one {[tuple(t.shape) for t in expected]}"
        )
    scale = max((float(t.abs().max()) for t in expected if t.numel()), default=0.0)
    worst = max((float((a - b).abs().max()) for a, b in zip(expected, got, strict=True) if a.numel()), default=0.0)
    return worst / scale if scale > 0 else worst


class _Silencing(fx.Interpreter):
    """Runs a graph with removed channels zeroed after every operation: in place, so that what is a view of a tensor
    stays one (an operation in place on ``y.view(…)`` also changes ``y``); parameters are left alone."""

    def __init__(self, graph: fx.GraphModule, network: Network, kept: Kept) -> None:
        super().__init__(graph)
        masks = _masks(network, kept)
        self._owned = {tensor.untyped_storage().data_ptr() for tensor in [*graph.parameters(), *graph.buffers()]}
        self._removed: dict[str, tuple[int, Indices]] = {}
        for name, channels in network.channels.items():
            keep = network.coupling.stays(network.coupling.free(channels.labels), masks)
            removed = np.setdiff1d(np.arange(len(channels.labels)), keep)
            if len(removed):
                self._removed[name] = (channels.axis, removed)

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name in self._removed:
            axis, removed = self._removed[n.name]
            places = torch.from_numpy(removed).to(result.device)
            storage = result.untyped_storage()
            if storage.data_ptr() in self._owned or result.numel() * result.element_size() > storage.nbytes():
                return result.index_fill(axis, places, 0.0)  # a parameter, or expanded
            result.index_fill_(axis, places, 0.0)
        return result


def _masks(network: Network, kept: Kept) -> list[npt.NDArray[np.bool_]]:
    masks = [np.ones(group.size, dtype=bool) for group in network.groups]
    positions = {group.name: index for index, group in enumerate(network.groups)}
    for name, channels in kept.items():
        if name not in positions:
            raise InvalidModel(f"{network.name} has no channel group {name!r}")
        group = network.groups[positions[name]]
        indices = np.asarray(list(channels), dtype=np.int64)
        if not len(indices) or len(np.unique(indices)) != len(indices) or not np.isin(indices, range(group.size)).all():
            raise InvalidModel(
                f"group {name!r} must keep distinct channels between 0 and {group.size - 1}, at least one; "
                f"got {len(indices)} channels"
            )
        if group.locked is not None and len(indices) < group.size:
            raise InvalidModel(f"group {name!r} is locked: {group.locked}")
        masks[positions[name]][:] = False
        masks[positions[name]][indices] = True
    return masks


def _shallow_weights(model: nn.Module) -> nn.Module:
    """A copy of the modules that shares all tensors."""
    memo: dict[int, object] = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return copy.deepcopy(model, memo)


def _with_own_weights(small: nn.Module, model: nn.Module) -> nn.Module:
    """Replaces what is still shared; so a model is never held three times, as copying first and cutting then would."""
    shared = {id(tensor) for tensor in [*model.parameters(), *model.buffers()]}
    owned: dict[int, torch.Tensor] = {}
    for module in small.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None or id(tensor) not in shared:
                    continue
                if id(tensor) not in owned:
                    copied = tensor.detach().clone()
                    is_parameter = isinstance(tensor, nn.Parameter)
                    owned[id(tensor)] = nn.Parameter(copied, tensor.requires_grad) if is_parameter else copied
                tensors[name] = owned[id(tensor)]  # type: ignore[assignment]
    return small


def tensors(output: Any) -> list[torch.Tensor]:
    """The tensors of a model's output, also in tuples, lists and dicts; complex ones as real (…, 2), as runtimes have
    them."""
    if isinstance(output, torch.Tensor):
        return [torch.view_as_real(output) if output.is_complex() else output]
    if not isinstance(output, list | tuple | Mapping):
        return []
    values = output.values() if isinstance(output, Mapping) else output
    return [tensor for value in values for tensor in tensors(value)]
