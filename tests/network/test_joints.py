"""Whether what is concatenated must fill whole blocks, told by two networks of as many channels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from widthwise.luts.records import Role
from widthwise.luts.store import Lut
from widthwise.network.granularity import options_from, units_from
from widthwise.network.joints import block_probes, block_steps, joined_groups
from widthwise.network.network import Network
from widthwise.planner.predictor import LatencyPredictor
from widthwise.profiling.profiler import Profiler, open_table
from widthwise.profiling.runtimes.fake import FakeRuntime, World
from widthwise.profiling.target import Target


class _Forks(nn.Module):
    """Two forks; one more branch is too narrow for two blocks, and one of no whole ones."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 48, 3)
        self.left, self.right = nn.Conv2d(48, 64, 1), nn.Conv2d(48, 64, 1)
        self.narrow, self.odd = nn.Conv2d(48, 16, 1), nn.Conv2d(48, 40, 1)
        self.third, self.fourth = nn.Conv2d(184, 96, 3), nn.Conv2d(184, 32, 3)
        self.last = nn.Conv2d(128, 10, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(torch.cat([self.left(x), self.right(x), self.narrow(x), self.odd(x)], 1))
        return self.last(torch.relu(torch.cat([self.third(x), self.fourth(x)], 1))).mean((2, 3))


class _Fork(nn.Module):
    """As many channels each side, all of whole blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 64, 3), nn.Conv2d(3, 64, 3)
        self.norm, self.last = nn.BatchNorm2d(128), nn.Conv2d(128, 64, 3)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(torch.cat([self.left(x), self.right(x)], 1)))
        return self.head(torch.relu(self.last(x)).mean((2, 3)))


EXAMPLE = torch.zeros(1, 3, 16, 16)


@pytest.fixture(scope="module")
def fork() -> tuple[nn.Module, Network]:
    model = _Fork().eval()
    return model, Network.trace(model, EXAMPLE, name="fork")


def profiled(path: Path, model: nn.Module, network: Network, world: World, networks: int = 30) -> Lut:
    runtime = FakeRuntime(Target.parse("fake:cpu"), world)
    lut = open_table(path, runtime)
    Profiler(model, network, (EXAMPLE,), runtime=runtime, lut=lut).run(time_s=60, networks=networks)
    return lut


def test_what_is_joined() -> None:
    network = Network.trace(_Forks().eval(), EXAMPLE, name="forks")
    assert joined_groups(network) == ("left", "right", "third", "fourth")


def test_probes_have_as_many_channels() -> None:
    network = Network.trace(_Forks().eval(), EXAMPLE, name="forks")
    apart, whole = block_probes(network)
    assert apart == {"stem": 16, "left": 40, "right": 40, "narrow": 16, "odd": 16, "third": 56, "fourth": 24}
    assert sum(apart.values()) == sum(whole.values())
    assert apart["left"] + apart["right"] == whole["left"] + whole["right"], "also of each size"
    assert all(width % 16 == 0 for width in whole.values())
    assert all(width <= network.dense[group] for probe in (apart, whole) for group, width in probe.items())


def test_a_network_without_concatenations_is_not_probed(wide_network: Network) -> None:
    assert block_probes(wide_network) == ()
    assert block_steps(wide_network, []) == {}


@pytest.mark.parametrize(("block", "step"), [(1, 8), (8, 8), (16, 16)])
def test_plans_choose_whole_blocks_where_they_are_faster(
    tmp_path: Path, fork: tuple[nn.Module, Network], block: int, step: int
) -> None:
    model, network = fork
    with profiled(tmp_path / "t.lut", model, network, World(block=block, seed=5)) as lut:
        firm = block_steps(network, lut.networks(network.signature))
        assert firm == ({} if step == 8 else {"left": 16, "right": 16})
        options = options_from(lut, network)
        for group in ("left", "right"):
            assert set(options[group]) == set(range(step, 65, step))
            assert units_from(lut, network)[group] == step
        assert options["last"] == tuple(range(8, 65, 8)), "no part of a concatenation"
        drawn = [record for record in lut.networks(network.signature) if record.role is not Role.DENSE]
        off = [record for record in drawn if any(record.widths[group] % step for group in ("left", "right"))]
        assert len(off) <= len(drawn) / 4 + 1, "networks off the grid, and one probe"


def test_torn_networks_are_told_apart(tmp_path: Path, fork: tuple[nn.Module, Network]) -> None:
    """The predictor knows that they lie between the widths of plans, whose predictions they leave right."""
    model, network = fork
    world = World(block=16, seed=5)
    with profiled(tmp_path / "t.lut", model, network, world) as lut:
        predictor = LatencyPredictor.fit(lut, network)
        torn = predictor.predict({"left": 24, "right": 48})
        assert torn.between == ("left",)
        truth = FakeRuntime(Target.parse("fake:cpu"), world)
        for widths in ({"left": 32, "right": 48}, {"left": 16, "right": 64, "last": 24}, {"left": 48, "right": 16}):
            true_ms = truth.true_ms(network, network.require_widths(widths))
            assert predictor.predict(widths).latency_ms == pytest.approx(true_ms, rel=0.04)


def test_a_table_from_before_knows_nothing_of_blocks(tmp_path: Path, fork: tuple[nn.Module, Network]) -> None:
    model, network = fork
    with profiled(tmp_path / "t.lut", model, network, World(seed=5), networks=8) as lut:
        records = lut.networks(network.signature)
        probes = block_probes(network)
        assert all(probe in [dict(record.widths) for record in records] for probe in probes)
        before = [record for record in records if dict(record.widths) not in probes]
        assert block_steps(network, before) is None
        assert block_steps(network, [*before, *(r for r in records if dict(r.widths) == probes[0])]) is None
