"""What is timed next, and what for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from widthwise.luts.measurement import Estimator
from widthwise.luts.records import Role
from widthwise.luts.spec import LayerSpec
from widthwise.luts.store import Lut
from widthwise.network.network import Network
from widthwise.profiling.profiler import Profiler, open_table
from widthwise.profiling.runtimes.fake import FakeRuntime, World
from widthwise.profiling.sampler import Sampler, WidthSampler
from widthwise.profiling.target import Target

FAKE = Target.parse("fake:cpu")


class Narrowest:
    """An adviser who always advises the same."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def networks(self, lut: Lut, indices: Sequence[int], options: Mapping[str, Sequence[int]]) -> list[dict[str, int]]:
        self.asked.append(list(indices))
        return [{group: widths[0] for group, widths in options.items()} for _ in indices]

    def layers(self, lut: Lut, options: Mapping[str, Sequence[int]], *, most: int) -> list[LayerSpec]:
        return []


@pytest.fixture
def lut(tmp_path: Path) -> Iterator[Lut]:
    with open_table(tmp_path / "t.lut", FakeRuntime(FAKE)) as opened:
        yield opened


def profiled(
    lut: Lut, model: nn.Module, network: Network, example: torch.Tensor, *, networks: int, **options: object
) -> Profiler:
    profiler = Profiler(model, network, (example,), runtime=FakeRuntime(FAKE), lut=lut, **options)
    profiler.run(time_s=60, networks=networks)
    return profiler


def test_networks_of_all_sizes_are_drawn() -> None:
    """Also where there are many groups, whose widths even out when each is drawn for itself."""
    options = {f"group{index}": [*range(8, 129, 8)] for index in range(60)}
    for seed in range(5):
        draws = [WidthSampler(options, seed=seed).draw(index) for index in range(48)]
        for off_grid, most_apart in ((False, 0.15), (True, 0.29)):
            kept = [0.25, 0.9] + [
                sum(width / options[group][-1] for group, width in draw.widths.items()) / len(options)
                for draw in draws
                if draw.off_grid is off_grid and draw.role is not Role.DENSE
            ]
            kept.sort()
            assert max(after - before for before, after in pairwise(kept)) < most_apart


def test_a_random_tenth_is_held_out(wide_network: Network) -> None:
    for seed in range(5):
        sampler = WidthSampler(wide_network.options(), seed=seed)
        draws = [sampler.draw(index) for index in range(200)]
        held_out = [i for i, draw in enumerate(draws) if draw.role is Role.HOLDOUT and not draw.off_grid]
        assert len(held_out) == len(draws) / 10
        assert len({index % 10 for index in held_out}) > 1, "at random, not every tenth"


def test_some_networks_have_any_widths(wide_network: Network) -> None:
    options = wide_network.options()
    draws = [WidthSampler(options).draw(index) for index in range(132)]
    odd = [draw for draw in draws if draw.off_grid]
    assert len(odd) == len(draws) / 4
    assert sum(draw.off_grid for draw in draws[:8]) == 2, "where no more than eight fit into the time"
    assert sum(draw.role is Role.HOLDOUT for draw in odd) == pytest.approx(len(odd) / 4, abs=1)
    assert all(options[g][-1] / 8 <= width <= options[g][-1] for draw in odd for g, width in draw.widths.items())
    assert any(width % 4 for draw in odd for width in draw.widths.values())
    others = [draw.widths for draw in draws if not draw.off_grid]
    assert all(width in options[group] for widths in others for group, width in widths.items())


def test_any_widths_may_be_less_than_one_step() -> None:
    """Where what is concatenated must fill whole blocks, plans take a growth of 32 channels to 16 or leave it."""
    draws = [WidthSampler({"growth": (16, 32)}).draw(index) for index in range(132)]
    odd = {draw.widths["growth"] for draw in draws if draw.off_grid}
    assert 4 <= min(odd) <= 5 and 30 <= max(odd) <= 32
    assert len(odd & set(range(5, 16))) >= 4


def test_large_networks_have_any_widths_too() -> None:
    """Few groups are left as they are, however much of the dense network is kept."""
    options = {f"group{index}": [*range(8, 129, 8)] for index in range(60)}
    draws = [WidthSampler(options).draw(index) for index in range(132)]
    odd = [list(draw.widths.values()) for draw in draws if draw.off_grid]
    assert max(sum(widths) for widths in odd) > 0.7 * 60 * 128
    assert max(widths.count(128) for widths in odd) <= 6


def test_advice_is_taken_every_other_batch_once_the_table_knows_enough(
    lut: Lut, wide: nn.Module, wide_network: Network, wide_example: torch.Tensor
) -> None:
    adviser = Narrowest()
    profiled(lut, wide, wide_network, wide_example, networks=32, adviser=adviser)
    assert adviser.asked == [[20, 21, 22, 23], [28, 29, 30, 31]]
    narrowest = {group: widths[0] for group, widths in wide_network.options().items()}
    records = [record for record in lut.networks() if record.role is not Role.DENSE]
    advised = [index for batch in adviser.asked for index in batch if records[index].widths == narrowest]
    assert advised == [20, 21, 23, 28, 29, 31], "22 and 30 have widths of any kind"
    draw = WidthSampler(wide_network.options()).draw
    assert [record.role for record in records] == [draw(index).role for index in range(32)]


def test_the_steps_of_the_staircase_are_found(
    lut: Lut, wide: nn.Module, wide_network: Network, wide_example: torch.Tensor
) -> None:
    """The fake runtime computes in tiles of eight channels."""
    sampler = Sampler(wide_network, lut)
    assert sampler.steps == {}
    profiled(lut, wide, wide_network, wide_example, networks=24)
    found = Sampler(wide_network, lut)
    assert found.steps and set(found.steps.values()) == {8}
    probes = [record.spec for record in lut.layers(estimator=Estimator.SINGLE)]
    assert any(
        min(width % 8 for width in spec.channels) or any(width % 8 for width in spec.channels) for spec in probes
    )


def test_a_second_network_of_known_layers_needs_fewer_measurements(
    lut: Lut, wide: nn.Module, wide_network: Network, wide_example: torch.Tensor
) -> None:
    profiled(lut, wide, wide_network, wide_example, networks=20)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = wide

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x) * 2

    twice = Twice().eval()
    network = Network.trace(twice, (wide_example,), name="twice")
    new = {layer.geometry for layer in network.layers} - {layer.geometry for layer in wide_network.layers}
    assert new, "the multiplication is new to the table, so the network is"
    assert Sampler(network, lut)._most_networks == 100
    deeper = Network.trace(wide, (wide_example,), name="deeper")
    object.__setattr__(deeper, "signature", "another")
    assert Sampler(deeper, lut)._most_networks == 24


def test_what_the_runtime_cannot_time_alone_is_not_asked_for_again(lut: Lut, wide_network: Network) -> None:
    sampler = Sampler(wide_network, lut, networks=3)
    batch = sampler.ask(0.0)
    assert batch is not None and [draw.role for draw in batch.networks].count(Role.DENSE) == 1
    assert len(batch.networks) == 1 + 3
    sampler.tell(batch, {})
    seen: set[LayerSpec] = set()
    while batch := sampler.ask(0.95):
        assert batch.layers and not seen & set(batch.layers)
        seen |= set(batch.layers)
        sampler.tell(batch, dict.fromkeys(batch.layers))
    geometries = [spec.geometry for spec in seen]
    assert len(set(geometries)) >= 2
    assert sampler.ask(1.0) is None


def test_no_advice_is_asked_for_that_would_come_too_late(lut: Lut, wide_network: Network) -> None:
    class Knows(Narrowest):
        def layers(self, lut: Lut, options: Mapping[str, Sequence[int]], *, most: int) -> list[LayerSpec]:
            return list(dict.fromkeys(wide_network.specs(wide_network.dense)))

    for left_s, hears in ((2.0, False), (4.0, True)):
        sampler = Sampler(wide_network, lut, networks=3, adviser=Knows())
        batch = sampler.ask(0.0, 60.0)
        assert batch is not None
        sampler.tell(batch, {})
        assert bool(sampler.ask(0.95, left_s)) is hears


def test_noise_does_not_invent_steps(
    tmp_path: Path, wide: nn.Module, wide_network: Network, wide_example: torch.Tensor
) -> None:
    runtime = FakeRuntime(FAKE, World(noise=0.03, burst_rate=0.1, seed=3))
    with open_table(tmp_path / "t.lut", runtime) as lut:
        Profiler(wide, wide_network, (wide_example,), runtime=runtime, lut=lut).run(time_s=60, networks=16)
        assert set(Sampler(wide_network, lut).steps.values()) <= {8}
