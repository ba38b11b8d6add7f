"""Fixtures shared by all tests: small networks, and tables made with the fake runtime."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from widthwise.luts.store import Lut
from widthwise.network.network import Network
from widthwise.planner.correction import Correction, Line
from widthwise.planner.predictor import LatencyPredictor
from widthwise.profiling.conformance import SmallNet
from widthwise.profiling.profiler import Profiler, open_table
from widthwise.profiling.runtimes.fake import FakeRuntime, World
from widthwise.profiling.target import Target


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Batch norms that are no identities, so that a wrong index shows."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.5, 0.5),
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2.0),
            ):
                assert tensor is not None
                tensor.data.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))
    return model.eval()


@pytest.fixture
def branches() -> nn.Module:
    torch.manual_seed(0)
    return randomised(SmallNet())


@pytest.fixture
def example() -> torch.Tensor:
    return torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def network(branches: nn.Module, example: torch.Tensor) -> Network:
    return Network.trace(branches, example, name="branches")


def wide_net() -> nn.Module:
    """A plain residual network wide enough for a grid of widths."""
    torch.manual_seed(0)
    return randomised(_Wide())


class _Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1, bias=False)
        self.conv3 = nn.Conv2d(64, 32, 3, padding=1, bias=False)
        self.conv4 = nn.Conv2d(32, 48, 3, stride=2, padding=1)
        self.left = nn.Conv2d(48, 24, 1)
        self.right = nn.Conv2d(48, 40, 3, padding=1)
        self.conv5 = nn.Conv2d(64, 96, 3, padding=1)
        self.fc = nn.Linear(96, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(x + self.conv3(torch.relu(self.conv2(x))))
        x = torch.relu(self.conv4(x))
        x = torch.cat([self.left(x), self.right(x)], 1)
        x = torch.relu(self.conv5(x))
        return self.fc(x.mean((2, 3)))


@pytest.fixture(scope="session")
def wide() -> nn.Module:
    return wide_net()


@pytest.fixture(scope="session")
def wide_example() -> torch.Tensor:
    return torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def wide_network(wide: nn.Module, wide_example: torch.Tensor) -> Network:
    return Network.trace(wide, wide_example, name="wide")


@pytest.fixture(scope="session")
def fake_runtime() -> FakeRuntime:
    return FakeRuntime(Target.parse("fake:cpu"), World(seed=3))


@pytest.fixture(scope="session")
def wide_table(
    tmp_path_factory: pytest.TempPathFactory,
    wide: nn.Module,
    wide_network: Network,
    wide_example: torch.Tensor,
    fake_runtime: FakeRuntime,
) -> Iterator[Path]:
    """A finished table of the wide network on the fake runtime."""
    path = tmp_path_factory.mktemp("tables") / "wide.lut"
    with open_table(path, fake_runtime) as lut:
        Profiler(wide, wide_network, (wide_example,), runtime=fake_runtime, lut=lut).run(time_s=60, networks=60)
    yield path


@pytest.fixture(scope="session", params=["one line", "two lines"])
def fitted(request: pytest.FixtureRequest, wide_table: Path, wide_network: Network) -> LatencyPredictor:
    """A predictor of the wide network, as it comes and with a correction that bends at a third of the dense latency."""
    with Lut.open(wide_table, readonly=True) as lut:
        found = LatencyPredictor.fit(lut, wide_network)
    if request.param == "one line":
        return found
    bend_ms = found.dense_ms / 3
    found._correct = Correction((Line(1.0), Line(1.2, -0.2 * bend_ms)))
    return found.around(found.dense_ms)


@pytest.fixture
def wide_lut(wide_table: Path) -> Iterator[Lut]:
    with Lut.open(wide_table, readonly=True) as lut:
        yield lut
