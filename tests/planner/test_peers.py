"""Reference kernels that are slow for a whole process, while networks aren't."""

from __future__ import annotations

import math
import random
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import widthwise as ww
from widthwise.luts.measurement import Block, Measurement
from widthwise.luts.peers import on_scale, paces
from widthwise.luts.records import BESIDE_DENSE, NetworkKey, Role
from widthwise.luts.store import Lut
from widthwise.network.network import Network
from widthwise.planner.predictor import LatencyPredictor
from widthwise.profiling.profiler import Profiler, open_table
from widthwise.profiling.runtimes import References, Session
from widthwise.profiling.runtimes.fake import FakeRuntime, World
from widthwise.profiling.target import Target

FAKE = Target.parse("fake:cpu")
SLOW = 1.25


class _Slow(Session):
    def __init__(self, session: Session, factor: float) -> None:
        self._session, self._factor = session, factor

    def run(self) -> float:
        return self._factor * self._session.run()


class _Process(FakeRuntime):
    """A process whose reference kernels take a constant factor longer."""

    def __init__(self, factor: float, seed: int) -> None:
        super().__init__(FAKE, World(seed=seed, drift=0.02))
        self._factor = factor

    def references(self) -> References:
        kernels = super().references()
        return References(_Slow(kernels.compute, self._factor), _Slow(kernels.memory, self._factor))


@pytest.fixture(scope="module")
def table(
    tmp_path_factory: pytest.TempPathFactory, wide: nn.Module, wide_network: Network, wide_example: torch.Tensor
) -> Path:
    """Of four processes, of which the first has slow kernels."""
    path = tmp_path_factory.mktemp("peers") / "t.lut"
    for process, networks in enumerate((16, 32, 48, 60)):
        runtime = _Process(SLOW if process == 0 else 1.0, process)
        with open_table(path, runtime) as lut:
            profiler = Profiler(wide, wide_network, (wide_example,), runtime=runtime, lut=lut)
            profiler.run(time_s=60, networks=networks)
    return path


def errors(table: Path, network: Network) -> np.ndarray:
    """Of predicted shares of the dense network's latency."""
    rng, truth_ms = random.Random(5), FakeRuntime(FAKE).true_ms
    drawn = [{group: rng.choice(widths) for group, widths in network.options().items()} for _ in range(40)]
    with Lut.open(table, readonly=True) as lut:
        predictor = LatencyPredictor.fit(lut, network)
    shares = np.array([truth_ms(network, widths) for widths in drawn]) / truth_ms(network, network.dense)
    return np.asarray(predictor.predict_many(drawn) / predictor.dense_ms / shares - 1)


def test_networks_count_in_terms_of_the_dense_one_beside_them(
    table: Path, wide_network: Network, tmp_path: Path
) -> None:
    with Lut.open(table, readonly=True) as lut:
        pace, records = paces(lut), lut.networks()
        first = lut.runs()[0].id
        slow, usual = ([pace[r.id] for r in records if (r.run == first) is early] for early in (True, False))
        assert np.median(usual) / np.median(slow) == pytest.approx(SLOW / math.exp(0.05), rel=0.03)
        dense = [on_scale(record, pace) for record in records if record.role is Role.DENSE]
        assert all(record.low_ms <= record.latency_ms <= record.high_ms for record in dense)
        quiet_ms = FakeRuntime(FAKE).true_ms(wide_network, wide_network.dense)
        assert [record.latency_ms for record in dense] == pytest.approx([quiet_ms] * len(dense), rel=0.08)
        assert np.median([record.latency_ms for record in dense]) == pytest.approx(quiet_ms, rel=0.03)
    told = np.abs(errors(table, wide_network))
    assert told.mean() < 0.015 and told.max() < 0.06
    untold = tmp_path / "untold.lut"
    untold.write_bytes(table.read_bytes())
    with closing(sqlite3.connect(untold)) as db:
        db.execute("UPDATE runs SET info = replace(info, ?, 'forgotten')", (BESIDE_DENSE,))
        db.commit()
    with Lut.open(untold, readonly=True) as lut:
        assert paces(lut) == {}
    assert np.abs(errors(untold, wide_network)).mean() > 2 * told.mean()


def test_what_is_in_doubt_counts_by_half(tmp_path: Path) -> None:
    """Five batches of a process, whose dense network takes 10 ms in the median; and a verification."""
    with Lut.create(tmp_path / "t.lut", target={"runtime": "fake", "device": "cpu"}, fingerprint={}) as lut:
        lut.set_quiet_reference(1.0)
        info = {BESIDE_DENSE: True}
        run, again = (lut.begin_run(purpose, {}, info=info) for purpose in ("profile", "verify"))

        def add(latency_ms: float, width: int, role: Role, run: int) -> int:
            return lut.add_network(run, NetworkKey("s", "m", {"g": width}), measured(latency_ms), role=role)

        batches = {
            latency_ms: (add(latency_ms, 8, Role.DENSE, run), add(latency_ms / 2, 4, Role.FIT, run))
            for latency_ms in (9.98, 9.99, 10.0, 10.4, 13.0)
        }
        verified = add(10.4, 8, Role.VERIFY, again), add(5.0, 4, Role.VERIFY, again)
        pace = paces(lut)
    assert [pace[dense] for dense, _ in batches.values()] == [pace[other] for _, other in batches.values()]
    assert pace[batches[10.0][0]] == pytest.approx(1.0)
    assert pace[batches[10.4][0]] == pytest.approx(math.sqrt(1.04))
    assert pace[batches[13.0][0]] == pytest.approx(1.3 / math.exp(0.05))
    assert [pace[network] for network in verified] == pytest.approx([1.04, 1.04])


def test_verified_networks_are_on_the_scale_of_the_profile(tmp_path: Path) -> None:
    """The kernels were a fifth slower all through the profile, the dense network wasn't."""
    with Lut.create(tmp_path / "t.lut", target={"runtime": "fake", "device": "cpu"}, fingerprint={}) as lut:
        lut.set_quiet_reference(1.0)
        key = NetworkKey("s", "m", {"g": 8})
        for purpose, kernels_ms, role in (("profile", 1.2, Role.DENSE), ("verify", 1.0, Role.VERIFY)):
            lut.add_network(
                lut.begin_run(purpose, {}, info={BESIDE_DENSE: True}), key, measured(10.0, kernels_ms), role=role
            )
        pace = paces(lut)
        profiled, verified = (on_scale(record, pace).latency_ms for record in lut.networks())
    assert profiled == pytest.approx(verified) == pytest.approx(10.0 / math.sqrt(1.2))


def measured(latency_ms: float, kernels_ms: float = 1.0) -> Measurement:
    return Measurement((Block(latency_ms, kernels_ms),) * 5, 1.0)


def test_so_do_plans_that_were_measured(
    table: Path, wide: nn.Module, wide_example: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "own.lut"
    path.write_bytes(table.read_bytes())
    plan = ww.plan(wide, wide_example, lut=path, budget="60%", name="tests/conftest.py:wide_net")
    monkeypatch.setattr("widthwise.planner.verification.open_runtime", lambda target: _Process(SLOW, 9))
    found = ww.verify(plan, ww.apply(plan, wide), wide_example, lut=path, dense=wide)
    assert found.measured_ms == pytest.approx(plan.predicted_ms, rel=0.05)
    with Lut.open(path, readonly=True) as lut:
        pace = paces(lut)
        dense, kept = [record for record in lut.networks() if record.role is Role.VERIFY]
        assert pace[dense.id] == pace[kept.id] < 0.9
        assert on_scale(kept, pace).latency_ms == pytest.approx(found.measured_ms, rel=0.03)
    ww.verify(plan, ww.apply(plan, wide), wide_example, lut=path)
    with Lut.open(path, readonly=True) as lut:
        assert lut.networks()[-1].id not in paces(lut), "no dense model was at hand"
