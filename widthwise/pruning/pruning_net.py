"""PruningNet: one network whose weights are made for the widths it is asked to run at.

Source: Liu et al., MetaPruning: Meta Learning for Automatic Neural Network Channel Pruning, ICCV 2019 (1903.10258), and
its code. Each layer to narrow has a small generator, FC → ReLU → FC, from the width ratios of its input and output to a
weight of the dense size, which is then cropped. Here the generators are built from the channel groups of any network
that can be traced, and the crop takes the channels that a plan of these widths would keep.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from widthwise.luts.errors import InvalidModel
from widthwise.network.modules import NARROWABLE, cuts, dimensions, sizes
from widthwise.network.narrowing import Indices, kept_indices, narrow
from widthwise.network.network import Network
from widthwise.network.widths import Widths
from widthwise.planner.importance import Importance

__all__ = ["HIDDEN", "Generator", "PruningNet", "restart"]

HIDDEN = 32
"""Units between the two layers of a generator, as in the paper."""

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Generator(nn.Module):
    """Width ratios → the dense weight of one layer.

    Args:
        ratios: how many go in.
        weight: of the dense layer. With ``warm_start`` it is the second FC's bias, whose weights start at zero: the
            output is the trained weight at all ratios, and the first step's gradient moves it away from that.
        warm_start: else the FCs start at random, as in the paper.

    Example:
        >>> weight = torch.randn(5, 3, 1, 1)
        >>> torch.equal(Generator(2, weight)(torch.tensor([0.4, 0.7])), weight)
        True
    """

    def __init__(self, ratios: int, weight: Tensor, *, warm_start: bool = True) -> None:
        super().__init__()
        self.shape = weight.shape
        self.first = nn.Linear(ratios, HIDDEN).to(weight)
        if warm_start:
            self.second = nn.Linear(HIDDEN, weight.numel(), device="meta").to_empty(device=weight.device).to(weight)
            with torch.no_grad():
                self.second.weight.zero_()
                self.second.bias.copy_(weight.detach().flatten())
        else:
            self.second = nn.Linear(HIDDEN, weight.numel()).to(weight)

    def forward(self, ratios: Tensor) -> Tensor:
        made: Tensor = self.second(torch.relu(self.first(ratios)))
        return made.view(self.shape)

    @property
    def gain(self) -> float:
        """See :attr:`PruningNet.gain`; at ratios of one half."""
        with torch.no_grad():
            hidden = torch.relu(self.first(torch.full_like(self.first.weight[0], 0.5)))
        return 1 + float(hidden.square().sum())


@dataclass(frozen=True)
class _Site:
    """A layer with a generator: its path, the groups its weight depends on, and whether that weight was trainable."""

    path: str
    groups: tuple[str, ...]
    trainable: bool


class PruningNet(nn.Module):
    """A network that runs at any widths of its channel groups, on weights made for them.

    Layers that touch none of the groups keep their parameters; biases are ordinary parameters and cropped with the
    weights. Batch norms: the paper has one per width ratio, since each has statistics of its own. Here one is enough,
    because training uses the batch's statistics and every candidate of a search is recalibrated.

    A warm start keeps the norms' trained scales and offsets as ordinary, cropped parameters, where the paper has none
    (``affine=False``): the norm behind a layer undoes any scale folded into its weight, so they could go nowhere else,
    and at full width the network is then the trained one exactly. A net of three convolutions trained on 8×8 digits,
    20 recalibrated candidates of 30 to 100 % width: both ways start at 87 % accuracy; after six epochs, over three
    seeds, those with scales and offsets reach 97.4 to 98.5 % (the worst candidate 95.3 %), those without 97.2 to 97.8 %
    (the worst 88.9 %).

    No channel is moved: where the paper crops the first ones, this takes the best by ``importance``. The sets of
    growing widths are nested either way, these stay right where a layer holds only part of a group, and the channels'
    numbers are those of the dense model, which a plan's ``kept`` needs.

    Args:
        model: the dense model; left as it is.
        network: its network.
        groups: those whose widths vary.
        importance: says which channels of a group a width keeps.
        warm_start: start from the model's weights. Else all starts at random, with norms of narrowed layers at scale 1
            and offset 0, untrained, as in the paper.
        seed: of the generators' first weights.

    Attributes:
        widths: what ``forward`` runs at in train mode.
        resting: what ``forward`` runs at in eval mode; with running statistics of all the widths trained at, so what it
            gives is a rough figure. :meth:`materialise` and recalibrate for a true one.

    Raises:
        InvalidModel: a group is unknown or locked; a layer's weight is shared with another layer or computed.

    Example:
        >>> net = PruningNet(model, network, list(network.dense), score(model, network))  # doctest: +SKIP
        >>> net.widths = {"conv1": 11}  # doctest: +SKIP
        >>> small = net.materialise({"conv1": 11})  # doctest: +SKIP
    """

    def __init__(
        self,
        model: nn.Module,
        network: Network,
        groups: Sequence[str],
        importance: Importance,
        *,
        warm_start: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        network.require_widths(dict.fromkeys(groups, 1))
        self._network, self._importance = network, importance
        self.widths: dict[str, int] = network.dense
        self.resting: dict[str, int] = network.dense
        self.body = copy.deepcopy(model)
        _require_own_weights(self.body)
        self._frozen: list[str] = []
        self._sites: list[_Site] = []
        self.generators = nn.ModuleList()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach into GPUs, too
            if not warm_start:
                restart(self.body)
            for path, module in list(self.body.named_modules()):
                names = self._groups_of(path, groups)
                if isinstance(module, _NORMS):
                    if names and module.affine and not warm_start:
                        self._freeze(path, module)
                elif names:
                    self._generate(path, module, names, warm_start)

    @property
    def gain(self) -> float:
        """How many times as far a step of gradient descent moves a generated weight as it would an ordinary one.

        A weight is ``V·h + b``; a step on V and b moves it by ``1 + |h|²`` times its gradient. The mean over layers; 1
        where nothing is generated.
        """
        gains = [generator.gain for generator in self.generators if isinstance(generator, Generator)]
        return sum(gains) / len(gains) if gains else 1.0

    def forward(self, *inputs: Any) -> Any:
        return self.at(self.widths if self.training else self.resting, *inputs)

    def at(self, widths: Widths, *inputs: Any) -> Any:
        """What the network gives at these widths (groups not named keep all channels).

        Raises:
            InvalidModel: a group is unknown, or a width impossible.
        """
        kept = self.kept(widths)
        indices = kept_indices(self._network, kept)
        cropped = self._cropped(indices, self.weights(widths))
        with _grouped(self.body, indices):
            output = functional_call(self.body, cropped, inputs)
        self._keep_statistics(indices, cropped)
        return output

    def kept(self, widths: Widths) -> dict[str, tuple[int, ...]]:
        """The channels each group keeps at these widths."""
        complete = self._network.require_widths(widths)
        return {group: self._importance.kept(group, width) for group, width in complete.items()}

    def weights(self, widths: Widths) -> dict[str, Tensor]:
        """Path of each layer with a generator → its weight for these widths, not cropped yet."""
        dense = self._network.dense
        complete = self._network.require_widths(widths)
        made = {}
        for site, generator in zip(self._sites, self.generators, strict=True):
            ratios = [complete[group] / dense[group] for group in site.groups]
            first = next(generator.parameters())
            made[site.path] = generator(torch.tensor(ratios, dtype=first.dtype, device=first.device))
        return made

    def materialise(self, widths: Widths) -> nn.Module:
        """The narrow module of these widths, as :func:`narrow` would give it, with the weights made for them.

        Its batch norms have this network's running statistics, which are no single width's: recalibrate it.

        Raises:
            InvalidModel: a group is unknown, or a width impossible.
        """
        dense = copy.deepcopy(self.body)
        with torch.no_grad():
            made = self.weights(widths)
        for site in self._sites:
            dense.get_submodule(site.path).register_parameter(
                "weight", nn.Parameter(made[site.path].detach(), site.trainable)
            )
        for name in self._frozen:
            dense.get_parameter(name).requires_grad_(True)
        return narrow(dense, self._network, self.kept(widths))

    def _groups_of(self, path: str, groups: Sequence[str]) -> tuple[str, ...]:
        """Names of those of the groups that own channels of a module: of its input first, then of its output."""
        coupling = self._network.coupling
        names: dict[str, None] = {}
        for labels in (coupling.inputs.get(path), coupling.outputs.get(path)):
            if labels is not None:
                names |= dict.fromkeys(coupling.groups[owner].name for owner in coupling.owners(labels))
        return tuple(name for name in names if name in groups)

    def _generate(self, path: str, module: nn.Module, names: tuple[str, ...], warm_start: bool) -> None:
        weight = module._parameters.get("weight")
        if weight is None:
            raise InvalidModel(
                f"the weight of {path!r} is no plain parameter, so none can be generated in its place; remove its "
                "parametrization (torch.nn.utils.parametrize.remove_parametrizations) first"
            )
        self._sites.append(_Site(path, names, weight.requires_grad))
        generator = Generator(len(names), weight.cpu(), warm_start=warm_start)
        self.generators.append(generator.to(weight.device))
        module.register_parameter("weight", None)

    def _freeze(self, path: str, norm: nn.Module) -> None:
        for name, parameter in norm.named_parameters(path, recurse=False):
            if parameter.requires_grad:
                self._frozen.append(name)
                parameter.requires_grad_(False)

    def _cropped(
        self, indices: Mapping[str, tuple[Indices, Indices]], weights: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The tensors of the body that differ from its own, by name."""
        cropped = {}
        for path, (inputs, outputs) in indices.items():
            module = self.body.get_submodule(path)
            own = {**module._parameters, **module._buffers}
            if path in weights:
                own["weight"] = weights[path]
            for name, axes in cuts(module, inputs, outputs).items():
                tensor = own.get(name)
                if tensor is None:
                    continue
                part = _crop(tensor, *axes)
                if part is not tensor or path in weights:
                    cropped[f"{path}.{name}"] = part
        return cropped

    def _keep_statistics(self, indices: Mapping[str, tuple[Indices, Indices]], cropped: Mapping[str, Tensor]) -> None:
        """Writes the running statistics of cropped norms in train mode back to where they were cropped from."""
        for path, (_, outputs) in indices.items():
            norm = self.body.get_submodule(path)
            if not (isinstance(norm, _NORMS) and norm.training):
                continue
            for name in ("running_mean", "running_var"):
                whole, part = norm._buffers[name], cropped.get(f"{path}.{name}")
                if whole is not None and part is not None:
                    whole.index_copy_(0, torch.from_numpy(outputs).to(whole.device), part)


def _crop(tensor: Tensor, *axes: Indices | None) -> Tensor:
    """These indices of each axis, as a copy wherever any is missing; None stands for all."""
    for axis, indices in enumerate(axes):
        if indices is not None and len(indices) < tensor.shape[axis]:
            tensor = tensor.index_select(axis, torch.from_numpy(indices).to(tensor.device))
    return tensor


@contextmanager
def _grouped(body: nn.Module, indices: Mapping[str, tuple[Indices, Indices]]) -> Iterator[None]:
    """Modules that say how many channels and groups they have left; afterwards as they were."""
    modules = {path: body.get_submodule(path) for path in indices}
    dense = {path: sizes(module, *map(np.arange, dimensions(module))) for path, module in modules.items()}
    try:
        for path, module in modules.items():
            _set(module, sizes(module, *indices[path]))
        yield
    finally:
        for path, module in modules.items():
            _set(module, dense[path])


def _set(module: nn.Module, attributes: Mapping[str, int]) -> None:
    for name, value in attributes.items():
        setattr(module, name, value)


def restart(model: nn.Module) -> None:
    """Draws all weights anew, as the model's layers do when they are made."""
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()


def _require_own_weights(model: nn.Module) -> None:
    owners: dict[int, str] = {}
    for path, module in model.named_modules():
        weight = module._parameters.get("weight") if isinstance(module, NARROWABLE) else None
        if weight is not None and owners.setdefault(id(weight), path) != path:
            raise InvalidModel(
                f"{owners[id(weight)]!r} and {path!r} share one weight, and each would get its own generator; give "
                "each a weight of its own (a copy) before pruning by MetaPruning"
            )
