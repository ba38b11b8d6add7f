from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from widthwise.luts.errors import InvalidTable, TableMismatch
from widthwise.luts.measurement import Estimator
from widthwise.luts.records import Role
from widthwise.luts.spec import LayerSpec
from widthwise.luts.store import Lut
from widthwise.network.narrowing import narrow
from widthwise.network.network import Network
from widthwise.profiling.profiler import Profiler, open_table, profile
from widthwise.profiling.runtimes.fake import FakeRuntime, World, staircase_ms
from widthwise.profiling.sampler import Batch
from widthwise.profiling.target import Target

FAKE = Target.parse("fake:cpu")


def run(
    path: Path, model: nn.Module, network: Network, example: torch.Tensor, networks: int, world: World | None = None
) -> FakeRuntime:
    runtime = FakeRuntime(FAKE, world)
    with open_table(path, runtime) as lut:
        Profiler(model, network, (example,), runtime=runtime, lut=lut).run(time_s=60, networks=networks)
    return runtime


def test_layers_in_place_come_close_to_the_truth(wide_lut: Lut, wide_network: Network) -> None:
    quiet = World(seed=3)
    records = wide_lut.layers(estimator=Estimator.IN_PLACE)
    ratios = np.array([record.latency_ms / staircase_ms(record.spec) for record in records])
    ratios /= np.median(ratios)  # the quiet reference is known only to its own noise
    assert np.quantile(np.abs(ratios - 1), 0.9) < 0.02
    singles = [r.latency_ms / staircase_ms(r.spec) for r in wide_lut.layers(estimator=Estimator.SINGLE)]
    assert singles and abs(np.median(singles) / quiet.single_factor - 1) < 0.05


def test_roles(wide_lut: Lut, wide_network: Network) -> None:
    records = wide_lut.networks(wide_network.signature)
    dense = [index for index, record in enumerate(records) if record.role is Role.DENSE]
    assert dense == list(range(0, 75, 5)), "four networks beside each"
    assert all((record.widths == wide_network.dense) == (index in dense) for index, record in enumerate(records))
    assert len(records) == 75
    assert len({tuple(sorted(record.widths.items())) for record in records}) > 50


def test_what_was_warmed_up_is_the_first_dense_network(
    tmp_path: Path, wide: nn.Module, wide_network: Network, wide_example: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    build = FakeRuntime.network
    monkeypatch.setattr(FakeRuntime, "network", lambda self, candidate: made.append(1) or build(self, candidate))
    run(tmp_path / "t.lut", wide, wide_network, wide_example, networks=8)
    with Lut.open(tmp_path / "t.lut", readonly=True) as lut:
        assert len(made) == len(lut.networks(wide_network.signature)) == 2 + 8


def test_every_layer_of_every_network_is_kept(wide_lut: Lut, wide_network: Network) -> None:
    records = wide_lut.layers(estimator=Estimator.IN_PLACE)
    assert len(records) == 75 * len(wide_network.layers)
    first = [record for record in records if record.network_id == records[0].network_id]
    assert [(record.layer_name, record.spec) for record in first] == [
        (layer.name, spec)
        for layer, spec in zip(wide_network.layers, wide_network.specs(wide_network.dense), strict=True)
    ]


def test_an_interrupted_run_continues_the_same_sequence(
    tmp_path: Path, wide: nn.Module, wide_network: Network, wide_example: torch.Tensor
) -> None:
    for networks in (3, 7):
        run(tmp_path / "twice.lut", wide, wide_network, wide_example, networks)
    run(tmp_path / "once.lut", wide, wide_network, wide_example, 7)
    drawn = []
    for name in ("twice", "once"):
        with Lut.open(tmp_path / f"{name}.lut", readonly=True) as lut:
            records = lut.networks(wide_network.signature)
        drawn.append([(dict(record.widths), record.role) for record in records if record.role is not Role.DENSE])
        assert len(records) == len(drawn[-1]) + 2
    assert drawn[0] == drawn[1] and len(drawn[0]) == 7


def test_ctrl_c_keeps_what_was_measured(
    tmp_path: Path, wide: nn.Module, wide_network: Network, wide_example: torch.Tensor
) -> None:
    path = tmp_path / "t.lut"

    def stop(share: float, text: str) -> None:
        if text == "8 networks":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile(wide, wide_network, (wide_example,), target=FAKE, path=path, on_progress=stop)
    with Lut.open(path, readonly=True) as lut:
        assert len(lut.networks(wide_network.signature)) == 8 + 2


def test_however_short_the_time_a_table_is_usable(
    tmp_path: Path, wide: nn.Module, wide_network: Network, wide_example: torch.Tensor
) -> None:
    report = profile(wide, wide_network, (wide_example,), target=FAKE, path=tmp_path / "t.lut", time_s=0.001)
    assert report.networks >= 3 and report.dense_ms > 0
    assert report.layers == report.networks * len(wide_network.layers)


@pytest.mark.parametrize("network_s", [0.75, 1.0, 3.0])
def test_the_last_batch_is_as_large_as_ends_in_time(
    tmp_path: Path,
    wide: nn.Module,
    wide_network: Network,
    wide_example: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
    network_s: float,
) -> None:
    now_s, single_s, time_s = 0.0, 0.375, 30.0

    def takes_its_time(self: Profiler, run: int, batch: Batch) -> dict[LayerSpec, None]:
        nonlocal now_s
        now_s += network_s * len(batch.networks) + single_s * len(batch.layers)
        return dict.fromkeys(batch.layers)

    monkeypatch.setattr(Profiler, "_time", takes_its_time)
    monkeypatch.setattr("widthwise.profiling.profiler.time.perf_counter", lambda: now_s)
    monkeypatch.setattr(Profiler, "_warm_up", lambda self: 1.0)
    monkeypatch.setattr(Profiler, "_dense_ms", lambda self: 1.0)
    runtime = FakeRuntime(FAKE)
    with open_table(tmp_path / "t.lut", runtime) as lut:
        Profiler(wide, wide_network, (wide_example,), runtime=runtime, lut=lut).run(time_s=time_s)
    assert time_s - max(network_s, 0.4) <= now_s <= time_s


def test_measuring_into_a_foreign_table_is_refused(
    tmp_path: Path, wide: nn.Module, wide_network: Network, wide_example: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.lut"
    profile(wide, wide_network, (wide_example,), target=FAKE, path=path, networks=3)
    with pytest.raises(TableMismatch) as other_target:
        profile(wide, wide_network, (wide_example,), target=Target.parse("fake:cpu", threads=2), path=path)
    assert other_target.value.fields == {"threads": (1, 2)}
    monkeypatch.setattr("widthwise.profiling.device._cpu_model", lambda: "another CPU")
    with pytest.raises(TableMismatch) as other_device:
        profile(wide, wide_network, (wide_example,), target=FAKE, path=path)
    assert set(other_device.value.fields) == {"cpu"}


def test_a_file_that_is_no_table_is_left_alone(
    tmp_path: Path, wide: nn.Module, wide_network: Network, wide_example: torch.Tensor
) -> None:
    path = tmp_path / "t.lut"
    path.write_text("mine")
    with pytest.raises(InvalidTable):
        profile(wide, wide_network, (wide_example,), target=FAKE, path=path)
    assert path.read_text() == "mine"


def test_networks_long_timed_are_freed(
    tmp_path: Path, branches: nn.Module, network: Network, example: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[weakref.ref[nn.Module]] = []
    most_alive = 0

    def remembering(*args: Any, **options: Any) -> nn.Module:
        nonlocal most_alive
        small = narrow(*args, **options)
        built.append(weakref.ref(small))
        most_alive = max(most_alive, sum(model() is not None for model in built))
        return small

    monkeypatch.setattr("widthwise.profiling.profiler.narrow", remembering)
    target = Target.parse("torch:cpu")
    profile(branches, network, (example,), target=target, path=tmp_path / "t.lut", time_s=300, networks=16)
    assert len(built) == 16 + 4 + 1  # the dense one also says what outputs must be
    assert most_alive <= 5  # those of one batch
