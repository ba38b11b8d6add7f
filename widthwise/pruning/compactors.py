"""Compactors: matrices that mix the channels of a layer, and how they are merged into it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from widthwise.network.members import Member

__all__ = ["Compacted", "Compactor", "Site", "insert", "merge"]


class Compactor(nn.Module):
    """Mixes channels: a matrix (D, D) over axis 1, the identity at first."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(size))

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 2:
            return functional.linear(x, self.weight)
        convolve = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}[x.ndim]
        mixed: Tensor = convolve(x, self.weight[(..., *[None] * (x.ndim - 2))])
        return mixed


class Compacted(nn.Module):
    """A layer, or the norm behind it, with a compactor."""

    def __init__(self, inner: nn.Module, compactor: Compactor) -> None:
        super().__init__()
        self.inner = inner
        self.compactor = compactor

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.compactor(self.inner(x))
        return mixed


@dataclass(frozen=True)
class Site:
    """A compactor: the layer it follows, the norm between them, and the rows that are a group's."""

    layer: str
    norm: str | None
    member: Member

    @property
    def path(self) -> str:
        return self.norm or self.layer

    def to(self, device: torch.device) -> Site:
        return replace(self, member=self.member.to(device))


def insert(model: nn.Module, site: Site) -> None:
    """Puts a compactor behind a layer, or behind the norm that follows it; in place."""
    parent, _, name = site.path.rpartition(".")
    inner = model.get_submodule(site.path)
    weight = model.get_submodule(site.layer).weight
    assert isinstance(weight, Tensor)
    compacted = Compacted(inner, Compactor(len(weight)).to(weight.device)).train(inner.training)
    setattr(model.get_submodule(parent), name, compacted)


def merge(model: nn.Module, site: Site, matrix: Tensor) -> None:
    """Multiplies a compactor into its layer. The norm between them gets the statistics that the layer then has, as if
    its channels were uncorrelated: in eval mode what it computes is exact, in train mode near."""
    layer = model.get_submodule(site.layer)
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    with torch.no_grad():
        if site.norm is None:
            weight.copy_(torch.tensordot(matrix, weight, 1))
            if isinstance(bias, Tensor):
                bias.copy_(matrix @ bias)
            return
        norm = model.get_submodule(site.norm)
        assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
        assert norm.running_mean is not None and norm.running_var is not None
        gamma = norm.weight if norm.affine else torch.ones_like(norm.running_var)
        beta = norm.bias if norm.affine else torch.zeros_like(norm.running_var)
        scale = gamma / (norm.running_var + norm.eps).sqrt()
        spread = matrix.square() @ (scale.square() * norm.running_var)
        weight.copy_(torch.tensordot(matrix * scale, weight, 1))
        mean, offset = matrix @ (scale * norm.running_mean), matrix @ beta
        if isinstance(bias, Tensor):
            bias.copy_(matrix @ (scale * bias))
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(spread if norm.affine else torch.full_like(spread, 1.0 - norm.eps))
        if norm.affine:
            norm.weight.copy_((spread + norm.eps).sqrt())
            norm.bias.copy_(offset)
