from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from widthwise.luts import (
    Estimator,
    Geometry,
    InvalidTable,
    LatencyTable,
    LayerSpec,
    Lut,
    MissingLayers,
    NetworkKey,
    Role,
)


def test_surfaces_hold_the_points(lut: Lut, kit: SimpleNamespace) -> None:
    table = LatencyTable.load(lut)
    dense, narrow = (network.id for network in lut.networks())
    conv = table.surface(kit.CONV)
    assert conv.channels.tolist() == [[13, 17], [13, 11]]
    assert conv.latency_ms.tolist() == [3.0, 1.9]
    assert conv.network_id.tolist() == [dense, narrow]
    assert (len(conv), conv.axes) == (2, 2)
    relu = table.surface(kit.RELU)
    assert relu.channels.tolist() == [[17], [19]]
    assert relu.network_id.tolist() == [dense, -1]
    assert relu.in_place.tolist() == [True, False]
    assert relu.unstable.tolist() == [True, True]
    assert (relu.axes, relu.channels.dtype, relu.latency_ms.dtype) == (1, np.int64, np.float64)
    assert {surface.geometry for surface in table} == {kit.CONV, kit.RELU}


def test_held_out_networks_stay_out(lut: Lut, kit: SimpleNamespace) -> None:
    holdout = [n.id for n in lut.networks() if n.role is Role.HOLDOUT]
    table = LatencyTable.load(lut).without(holdout)
    assert table.surface(kit.CONV).channels.tolist() == [[13, 17]]
    everything = [n.id for n in lut.networks()]
    assert table.missing([kit.CONV]) == []
    assert LatencyTable.load(lut).without(everything).missing([kit.CONV, kit.RELU]) == [kit.CONV]


def test_layers_are_trimmed_to_the_networks_they_were_timed_in(lut: Lut, kit: SimpleNamespace) -> None:
    layers = [
        ("stem", LayerSpec(kit.CONV, (13, 5)), kit.timed(3.0)),
        ("act", LayerSpec(kit.RELU, (5,)), kit.timed(0.7)),
    ]
    small = lut.add_network(1, NetworkKey("s1", "tiny", {"stem": 5}), kit.timed(1.1), layers, role=Role.FIT)
    raw = LatencyTable.load(lut)
    surplus_ms = lut.surplus_ms()
    assert list(surplus_ms.values()) == pytest.approx([(3.7 - 7.0) / 2, 1.9 - 4.3, (3.7 - 1.1) / 2])
    assert list(surplus_ms) == [network.id for network in lut.networks()] and small in surplus_ms
    trimmed = raw.trimmed(surplus_ms)
    assert trimmed.surface(kit.CONV).latency_ms.tolist() == pytest.approx([3.0 + 1.65, 4.3, 1.7])
    assert trimmed.surface(kit.RELU).latency_ms.tolist() == pytest.approx([0.7 + 1.65, 0.23, 0.35]), "half at least"
    assert raw.surface(kit.RELU).latency_ms.tolist() == pytest.approx([0.7, 0.23, 0.7]), "raw as it was"


def test_missing_geometries_are_named(lut: Lut, kit: SimpleNamespace) -> None:
    table = LatencyTable.load(lut, [kit.RELU])
    assert len(table) == 1
    others = [Geometry("pool", ((1, 0, n),), ()) for n in range(7)]
    assert table.missing([kit.RELU, *others]) == others
    with pytest.raises(MissingLayers, match=r"no measurement of 7 of 8 layer shapes \(pool .* and more\); profile"):
        table.require([kit.RELU, *others])
    with pytest.raises(MissingLayers, match=r"1 of 1 layer shapes \(conv2d"):
        table.surface(kit.CONV)


def test_layers_without_widths_are_points_too(make: Callable[..., Path], kit: SimpleNamespace) -> None:
    with Lut.open(make()) as lut:
        fixed = Geometry("conv2d", ((1, 3, 7, 5),), ((1, 11, 7, 5),))
        lut.add_layer(1, LayerSpec(fixed, ()), Estimator.SINGLE, kit.timed(2.3))
        assert LatencyTable.load(lut).surface(fixed).channels.shape == (1, 0)


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("latency_ms = -1", "no positive number"),
        ("latency_ms = 'fast'", "is no measurement"),
        ("latency_ms = 9e999", "no positive number"),
        ("channels_1 = NULL", "disagree on how many widths"),
        ("channels_2 = 7", "disagree on how many widths"),
        ("geometry = 77", "unknown geometry 77"),
    ],
)
def test_damage_is_refused(make: Callable[..., Path], sql: str, message: str) -> None:
    with Lut.open(make()) as lut:
        lut._db.execute("PRAGMA ignore_check_constraints = ON")
        lut._db.execute("PRAGMA foreign_keys = OFF")
        lut._db.execute(f"UPDATE layers SET {sql} WHERE id = 2")
        with pytest.raises(InvalidTable, match=message):
            LatencyTable.load(lut)


def test_the_ground_floor_is_light() -> None:
    heavy = "torch", "pandas", "scipy", "sklearn", "rich", "typer"
    code = f"import sys, widthwise.luts; print([m for m in {heavy!r} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_everything_public_is_importable() -> None:
    import widthwise.luts as luts

    assert sorted(luts.__all__, key=lambda name: (not name.isupper(), name[0].islower(), name)) == luts.__all__
    assert all(hasattr(luts, name) for name in luts.__all__)
