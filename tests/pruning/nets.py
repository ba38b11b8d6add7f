"""Networks with couplings that matter to executors, distinct prime sizes, and plans for them made by hand."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tests.conftest import randomised
from widthwise.network.network import Network
from widthwise.network.weights import weights_fingerprint
from widthwise.planner.importance import score
from widthwise.planner.plan import Certificate, Plan, TableReference

EXAMPLE = torch.randn(2, 3, 11, 11, generator=torch.Generator().manual_seed(3))


class Residual(nn.Module):
    """Two blocks: one group of three coupled layers, two inner ones."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 13, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(13)
        self.inner1 = nn.Conv2d(13, 17, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(17)
        self.outer1 = nn.Conv2d(17, 13, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(13)
        self.inner2 = nn.Conv2d(13, 19, 1, bias=True)
        self.bn3 = nn.BatchNorm2d(19)
        self.outer2 = nn.Conv2d(19, 13, 3, bias=False, padding=1)
        self.bn4 = nn.BatchNorm2d(13)
        self.fc = nn.Linear(13, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.bn(self.stem(x)))
        x = functional.relu(x + self.bn2(self.outer1(functional.relu(self.bn1(self.inner1(x))))))
        x = functional.relu(x + self.bn4(self.outer2(functional.relu(self.bn3(self.inner2(x))))))
        return self.fc(x.mean((2, 3)))


class Depthwise(nn.Module):
    """An inverted residual: the depthwise norm's constant passes on what a pointwise row at zero gives."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 11, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(11)
        self.expand = nn.Conv2d(11, 23, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(23)
        self.depthwise = nn.Conv2d(23, 23, 3, padding=1, groups=23, bias=False)
        self.bn2 = nn.BatchNorm2d(23)
        self.project = nn.Conv2d(23, 11, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(11)
        self.fc = nn.Linear(11, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu6(self.bn(self.stem(x)))
        inner = functional.relu6(self.bn1(self.expand(x)))
        x = x + self.bn3(self.project(functional.relu6(self.bn2(self.depthwise(inner)))))
        return self.fc(x.mean((2, 3)))


class Concat(nn.Module):
    """A dense block: norms over concatenations, read by 1×1 convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 7, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(7)
        self.grow1 = nn.Conv2d(7, 11, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(18)
        self.grow2 = nn.Conv2d(18, 13, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(31)
        self.fc = nn.Linear(31, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.grow1(functional.relu(self.norm1(x)))], 1)
        x = torch.cat([x, self.grow2(functional.relu(self.norm2(x)))], 1)
        return self.fc(functional.relu(self.norm3(x)).mean((2, 3)))


class Plain(nn.Module):
    """No norms at all, and a linear group behind a flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 13, 3)
        self.conv2 = nn.Conv2d(13, 7, 3, bias=False)
        self.fc1 = nn.Linear(7 * 9, 17)
        self.fc2 = nn.Linear(17, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.conv2(functional.relu(self.conv1(x))))
        x = functional.relu(self.fc1(torch.flatten(functional.avg_pool2d(x, 2), 1)))
        return self.fc2(x)


ARCHITECTURES = {"residual": Residual, "depthwise": Depthwise, "concat": Concat, "plain": Plain}


def make(name: str) -> nn.Module:
    """One of them with weights that give a wrong index away."""
    torch.manual_seed(5)
    return randomised(ARCHITECTURES[name]())


def plan_for(model: nn.Module, widths: dict[str, int] | None = None, *, share: float = 0.5) -> Plan:
    """A plan for these widths, by default a share of every group; its latencies mean nothing."""
    return plan_of(Network.trace(model, EXAMPLE, name="tests"), model, widths, share=share)


def plan_of(network: Network, model: nn.Module, widths: dict[str, int] | None = None, *, share: float = 0.5) -> Plan:
    """The same for a network that is traced already."""
    importance = score(model, network)
    chosen = network.dense | (widths or {group: max(1, round(share * size)) for group, size in network.dense.items()})
    return Plan(
        widthwise="test",
        created="2026-01-01T00:00:00+00:00",
        model="tests",
        signature=network.signature,
        weights=weights_fingerprint(model),
        inputs=[list(shape) for shape in network.inputs],
        dense_ms=2.0,
        budget_ms=1.0,
        predicted_ms=1.0,
        interval_ms=(0.9, 1.1),
        minimum_ms=0.1,
        criterion="l1",
        importance=0.5,
        certificate=Certificate(status="optimal", objective=0.5, bound=0.5, gap=0.0, seconds=0.0),
        table=TableReference(target={}, device="none", quiet_reference_ms=1.0, networks=0, held_out=0),
        dense=network.dense,
        widths=chosen,
        kept={group: list(importance.kept(group, width)) for group, width in chosen.items()},
    )
