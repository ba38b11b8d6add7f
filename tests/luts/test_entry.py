"""Entries: their intervals are about the next profile, not about their own blocks."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from widthwise.luts import (
    Block,
    Conditions,
    Entry,
    Estimator,
    InvalidTable,
    LayerSpec,
    Lut,
    Measurement,
    NetworkKey,
    Role,
    Status,
    entries,
)
from widthwise.luts.records import BESIDE_DENSE

Make = Callable[..., Path]
LAYERS = 211
QUIET_MS = 1.5


def profiled(
    make: Make, kit: SimpleNamespace, name: str, *, networks: tuple[int, ...], between: float, within: float, seed: int
) -> dict[LayerSpec, Entry]:
    """A table of layers that take 2 ms and more, each timed in as many networks as its turn says, with five blocks in
    each; latencies scatter between networks and between blocks by these standard deviations of their logarithms."""
    noise = np.random.default_rng(seed)
    with Lut.open(make(name, filled=False)) as lut:
        lut.set_quiet_reference(QUIET_MS)
        run = lut.begin_run("test", {})
        for network in range(max(networks)):
            layers = []
            for index in range(LAYERS):
                if network < networks[index % len(networks)]:
                    level = 2 + index / LAYERS
                    logs = noise.normal(0, between) + noise.normal(0, within, 5)
                    ms = (level * np.exp(logs)).tolist()
                    layers.append((f"l{index}", LayerSpec(kit.CONV, (7, index + 1)), kit.timed(*ms)))
            key = NetworkKey("s", "tiny", {"g": network + 1})
            lut.add_network(run, key, kit.timed(500.0, 500.0, 500.0), layers, role=Role.FIT)
        return {entry.spec: entry for entry in entries(lut)}


def differences(before: dict[LayerSpec, Entry], after: dict[LayerSpec, Entry]) -> tuple[np.ndarray, np.ndarray]:
    """Of the logarithms, and what both intervals explain."""
    off = [abs(np.log(after[spec].latency_ms / entry.latency_ms)) for spec, entry in before.items()]
    doubt = [
        np.hypot(*(np.log(e.high_ms / e.latency_ms) for e in (entry, after[spec]))) for spec, entry in before.items()
    ]
    return np.array(off), np.array(doubt)


@pytest.mark.parametrize(("between", "within"), [(0.06, 0.02), (0.0, 0.05), (0.03, 0.03)])
def test_intervals_cover_the_next_profile(make: Make, kit: SimpleNamespace, between: float, within: float) -> None:
    tables = [
        profiled(make, kit, f"{seed}.lut", networks=(1, 1, 2, 7), between=between, within=within, seed=seed)
        for seed in (3, 5)
    ]
    off, doubt = differences(*tables)
    assert 0.9 <= np.mean(off <= doubt) <= 0.995


def test_stable_entries_say_the_same_in_the_next_profile(make: Make, kit: SimpleNamespace) -> None:
    before, after = (
        profiled(make, kit, f"{seed}.lut", networks=(1, 3, 11, 31), between=0.04, within=0.04, seed=seed)
        for seed in (3, 5)
    )
    both = {spec for spec, entry in before.items() if {entry.status, after[spec].status} == {Status.STABLE}}
    off, _ = differences({spec: before[spec] for spec in both}, after)
    assert len(both) >= LAYERS / 4
    assert np.median(off) <= 0.015
    assert np.quantile(off, 0.95) <= 0.05
    assert all(before[spec].networks > 1 for spec in both)


def test_five_blocks_that_agree_settle_nothing_where_networks_differ(make: Make, kit: SimpleNamespace) -> None:
    found = profiled(make, kit, "a.lut", networks=(1, 5, 5), between=0.08, within=0.001, seed=3)
    alone = [entry for entry in found.values() if entry.networks == 1]
    assert alone
    assert all(entry.status is Status.UNSTABLE and entry.high_ms / entry.low_ms > 1.2 for entry in alone)


def test_more_networks_make_an_entry_surer(make: Make, kit: SimpleNamespace) -> None:
    found = profiled(make, kit, "a.lut", networks=(1, 4, 16), between=0.05, within=0.02, seed=3)
    widths = [
        np.median([entry.high_ms / entry.low_ms for entry in found.values() if entry.networks == count]) - 1
        for count in (1, 4, 16)
    ]
    assert widths[0] > 1.5 * widths[1] > 2.25 * widths[2]


def test_an_entry_is_the_median_of_its_blocks(make: Make, kit: SimpleNamespace) -> None:
    with Lut.open(make(filled=False)) as lut:
        lut.set_quiet_reference(QUIET_MS)
        run = lut.begin_run("test", {})
        spec = LayerSpec(kit.CONV, (13, 17))
        for width, ms in ((3, (2.0, 3.0, 5.0)), (5, (7.0, 11.0))):
            layers = [("stem", spec, kit.timed(*ms)), ("again", spec, kit.timed(13.0))]
            lut.add_network(run, NetworkKey("s", "tiny", {"g": width}), kit.timed(9.0), layers, role=Role.FIT)
        lut.add_layer(run, spec, Estimator.SINGLE, kit.timed(0.5))
        (entry,) = entries(lut)
    assert (entry.spec, entry.networks, entry.blocks) == (spec, 2, 7)
    assert entry.latency_ms == pytest.approx(7.0)
    assert entry.low_ms < 7.0 < entry.high_ms


def test_processes_that_disagree_on_the_dense_network_leave_its_layers_in_doubt(
    make: Make, kit: SimpleNamespace
) -> None:
    def doubt(name: str, *dense_ms: float) -> tuple[float, Status]:
        with Lut.open(make(name, filled=False)) as lut:
            lut.set_quiet_reference(QUIET_MS)
            for ms in dense_ms:
                run = lut.begin_run("test", {}, info={BESIDE_DENSE: True})
                lut.add_network(run, NetworkKey("s", "tiny", {"g": 43}), kit.timed(ms, ms, ms), role=Role.DENSE)
                for width in range(1, 42):
                    layers = [("stem", LayerSpec(kit.CONV, (13, 17)), kit.timed(2.0, 2.0))]
                    whole = kit.timed(9.0, 9.0, 9.0)
                    lut.add_network(run, NetworkKey("s", "tiny", {"g": width}), whole, layers, role=Role.FIT)
            (entry,) = entries(lut)
        return entry.high_ms / entry.latency_ms - 1, entry.status

    assert doubt("agreed.lut", 10.0, 10.0) == (pytest.approx(0.017, abs=0.01), Status.STABLE)
    assert doubt("apart.lut", 10.0, 12.0) == (pytest.approx(0.11, abs=0.02), Status.UNSTABLE)
    alone, together = (doubt(f"{count}.lut", *[10.0] * count)[0] for count in (1, 7))
    assert alone > 2 * together


def test_a_disturbed_machine_leaves_nothing_stable(make: Make, kit: SimpleNamespace) -> None:
    spec = LayerSpec(kit.CONV, (13, 17))
    with Lut.open(make(filled=False)) as lut:
        lut.set_quiet_reference(QUIET_MS)
        run = lut.begin_run("test", {})
        for width in range(1, 42):
            blocks = tuple(Block(2.0, QUIET_MS, Conditions(spoilt=1 if n % 2 else None)) for n in range(4))
            layers = [
                ("stem", spec, Measurement(blocks, QUIET_MS)),
                ("calm", LayerSpec(kit.CONV, (13, 19)), kit.timed(2.0, 2.0)),
            ]
            lut.add_network(run, NetworkKey("s", "tiny", {"g": width}), kit.timed(9.0), layers, role=Role.FIT)
        disturbed, calm = entries(lut)
    assert (disturbed.status, calm.status) == (Status.UNSTABLE, Status.STABLE)


def test_a_table_without_networks_has_no_entries(make: Make) -> None:
    with Lut.open(make(filled=False)) as lut:
        assert entries(lut) == []


@pytest.mark.parametrize(("ms", "reference_ms"), [(1e300, 1e-300), (1e-300, 1e300)])
def test_latencies_that_cannot_be_are_refused(make: Make, ms: float, reference_ms: float) -> None:
    path = make()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE layer_samples SET samples = ?", (json.dumps([[ms, reference_ms]]),))
    with Lut.open(path, readonly=True) as lut, pytest.raises(InvalidTable, match="luts check"):
        entries(lut)
