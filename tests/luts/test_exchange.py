from __future__ import annotations

import csv
import gzip
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from widthwise.luts import (
    Block,
    Estimator,
    Geometry,
    InvalidTable,
    LayerSpec,
    Lut,
    Measurement,
    Merged,
    NetworkKey,
    Role,
    Severity,
    TableMismatch,
    check,
    export_table,
    formats,
    import_table,
    merge,
)

Make = Callable[..., Path]
NOTHING = Merged(0, 0, 0)


def content(lut: Lut) -> list[tuple[object, ...]]:
    """Everything but the ids."""
    runs = {run.id: run.uuid for run in lut.runs()}
    networks = {
        n.id: (n.signature, n.model, tuple(n.widths.items()), n.role, n.latency_ms, n.low_ms, n.high_ms, n.status)
        for n in lut.networks()
    }
    return [
        *((runs[n.run], networks[n.id], lut.samples(n).blocks) for n in lut.networks()),
        *(
            (
                runs[r.run],
                r.spec,
                r.estimator,
                r.layer_name,
                networks.get(r.network_id or 0),
                r.latency_ms,
                lut.samples(r).blocks,
            )
            for r in sorted(lut.layers(), key=lambda r: (r.network_id is None, r.id))
        ),
    ]


def load(path: Path) -> list[tuple[object, ...]]:
    with Lut.open(path, readonly=True) as lut:
        return content(lut)


# ---- files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz"])
def test_json_lines_hold_everything(make: Make, tmp_path: Path, name: str) -> None:
    path, back = make(), tmp_path / "back.lut"
    with Lut.open(path, readonly=True) as lut:
        export_table(lut, tmp_path / name)
        runs, facts = lut.runs(), (lut.target, lut.fingerprint, lut.quiet_reference_ms)
    assert import_table(tmp_path / name, back) == Merged(1, 2, 4)
    assert import_table(tmp_path / name, back) == NOTHING
    assert load(back) == load(path)
    with Lut.open(back, readonly=True) as lut:
        assert lut.runs() == runs
        assert (lut.target, lut.fingerprint, lut.quiet_reference_ms) == facts
        assert check(lut) == []


def test_csv_holds_the_statistics(make: Make, tmp_path: Path, kit: SimpleNamespace) -> None:
    file, back = tmp_path / "t.csv", tmp_path / "back.lut"
    with Lut.open(make(device={"odd": '1"', "version": "10", "nothing": None, "on": True}), readonly=True) as lut:
        export_table(lut, file)
        records, networks = lut.layers(), lut.networks()
        fingerprint = lut.fingerprint
    with file.open(newline="") as text:
        rows = list(csv.DictReader(text))
    assert [row["sample"] for row in rows] == ["network", "layer", "layer", "network", "layer", "layer"]
    assert [float(row["latency_ms"]) for row in rows] == pytest.approx([7.0, 3.0, 0.7, 4.3, 1.9, 0.23])
    assert [row["network"] for row in rows] == ["1", "1", "1", "2", "2", ""]
    assert rows[1]["target.runtime"] == "torch"
    assert import_table(file, back) == Merged(1, 2, 4)
    assert import_table(file, back) == NOTHING
    with Lut.open(back, readonly=True) as lut:
        assert lut.fingerprint == fingerprint
        for before, after in zip(records, lut.layers(), strict=True):
            assert after.latency_ms == pytest.approx(before.latency_ms, rel=1e-14)
            assert (after.spec, after.layer_name, after.estimator) == (before.spec, before.layer_name, before.estimator)
            assert after.blocks == 1
        assert [(n.widths, n.role) for n in lut.networks()] == [(n.widths, n.role) for n in networks]


positive = st.floats(1e-3, 1e3)
name = st.text(st.characters(codec="utf-8"), max_size=6)
scalar = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | name
moments = st.tuples(name, st.integers(1, 10**6), st.lists(st.builds(Block, positive, positive), min_size=1, max_size=4))


@settings(deadline=None, max_examples=20)
@given(
    st.dictionaries(name, scalar, max_size=4),
    st.lists(moments, min_size=1, max_size=4),
    st.sampled_from(["jsonl", "csv"]),
)
def test_any_table_survives(
    kit: SimpleNamespace, facts: dict[str, object], rows: list[tuple[str, int, list[Block]]], suffix: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, file, back = (Path(folder) / name for name in ("a.lut", f"a.{suffix}", "b.lut"))
        with Lut.create(path, target=facts, fingerprint=facts) as lut:  # type: ignore[arg-type]
            lut.set_quiet_reference(3.0)
            run = lut.begin_run("p", {})
            timed = [(n, LayerSpec(kit.RELU, (c,)), Measurement(tuple(b), 3.0)) for n, c, b in rows]
            lut.add_network(run, NetworkKey("s", rows[0][0], {rows[0][0]: 5}), timed[0][2], timed, role=Role.FIT)
            lut.add_layer(run, *timed[0][1:2], Estimator.SINGLE, timed[0][2])
            export_table(lut, file)
            before, expected = lut.layers(), content(lut)
        import_table(file, back)
        with Lut.open(back, readonly=True) as lut:
            assert (lut.target, lut.fingerprint) == (facts, facts)
            assert [r.spec for r in lut.layers()] == [r.spec for r in before]
            assert [r.latency_ms for r in lut.layers()] == pytest.approx([r.latency_ms for r in before], rel=1e-12)
            if suffix == "jsonl":
                assert content(lut) == expected


def test_an_import_of_another_device_is_refused(make: Make, tmp_path: Path) -> None:
    with Lut.open(make("a.lut"), readonly=True) as lut:
        export_table(lut, tmp_path / "a.jsonl")
    other = make("b.lut", device={"cpu": "Abacus 5"}, filled=False)
    with pytest.raises(TableMismatch, match="cpu: 'Abacus 5' in the table, 'Abacus 3' here"):
        import_table(tmp_path / "a.jsonl", other)


def test_an_empty_table_travels_as_json_lines_only(make: Make, tmp_path: Path) -> None:
    with Lut.open(make(filled=False), readonly=True) as lut:
        export_table(lut, tmp_path / "a.jsonl")
        export_table(lut, tmp_path / "a.csv")
    assert import_table(tmp_path / "a.jsonl", tmp_path / "b.lut") == NOTHING
    with pytest.raises(InvalidTable, match="holds no measurement"):
        import_table(tmp_path / "a.csv", tmp_path / "c.lut")
    assert not (tmp_path / "c.lut").exists()


def test_places_and_suffixes_that_do_not_work_are_named(make: Make, tmp_path: Path) -> None:
    with Lut.open(make(), readonly=True) as lut:
        with pytest.raises(InvalidTable, match=r"must end in \.jsonl \(everything\) or \.csv"):
            export_table(lut, tmp_path / "a.txt")
        with pytest.raises(InvalidTable, match="cannot be written: No such file or directory"):
            export_table(lut, tmp_path / "none" / "a.csv")
    with pytest.raises(InvalidTable, match="cannot be read: No such file or directory; check the path"):
        import_table(tmp_path / "none.csv", tmp_path / "b.lut")


HEAD = {"format": "widthwise-lut", "version": 1, "target": {}, "fingerprint": {}, "quiet_reference_ms": 1.5}
RUN = {
    "run": {
        "uuid": "u",
        "purpose": "p",
        "started_utc": "2026-01-01",
        "last_utc": "2026-01-01",
        "versions": {},
        "info": {},
    }
}
LAYER = {"geometry": ["relu", [], [], {}], "channels": [3], "estimator": "single", "samples": [[1, 1]]}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "line 1 is not an exported"),
        (["{"], "line 1 is not an exported"),
        ([[1]], "line 1 is not an exported"),
        ([{}], "line 1 lacks 'format'"),
        ([HEAD | {"format": "x"}], "its format is 'x'"),
        ([HEAD | {"version": 2}], "its version is 2, this widthwise reads 1; upgrade"),
        ([HEAD | {"target": {"a": []}}], "target field 'a'"),
        ([HEAD | {"quiet_reference_ms": -1}], "must be a positive number of milliseconds"),
        ([HEAD, {"run": {}}], "line 2 lacks"),
        ([HEAD, {"run": RUN["run"] | {"started_utc": "soon"}}], "line 2 is not"),
        ([HEAD, {"layer": LAYER, "of": "u"}], "run 'u', which was not given"),
        ([HEAD | {"quiet_reference_ms": None}, RUN, {"layer": LAYER, "of": "u"}], "no quiet reference in the header"),
        ([HEAD, RUN, {"layer": LAYER | {"channels": ["3"]}, "of": "u"}], "line 3 .*channels must be integers"),
        ([HEAD, RUN, {"layer": LAYER | {"channels": [0]}, "of": "u"}], "line 3 .*positive numbers"),
        ([HEAD, RUN, {"layer": LAYER | {"samples": [[1, -1]]}, "of": "u"}], "line 3 .*bad samples"),
        ([HEAD, RUN, {"layer": LAYER | {"estimator": "guess"}, "of": "u"}], "line 3 .*guess"),
        ([HEAD, RUN, {"layer": LAYER | {"geometry": 5}, "of": "u"}], "line 3 .*not a geometry key"),
        ([HEAD, RUN, {"layer": LAYER | {"name": 5}, "of": "u"}], "line 3 .*text expected"),
        ([HEAD, RUN, {"network": {}, "of": "u"}], "line 3 lacks 'widths'"),
        ([HEAD, RUN, "[" * 100_000], "line 3 is not"),
        ([HEAD, RUN, '"x"'], "line 3 is not"),
    ],
)
def test_lines_that_cannot_be_are_named_and_leave_nothing_behind(
    tmp_path: Path, lines: list[object], message: str
) -> None:
    file, table = tmp_path / "a.jsonl", tmp_path / "a.lut"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    with pytest.raises(InvalidTable, match=message) as caught:
        import_table(file, table)
    assert "\n" not in str(caught.value)
    assert not table.exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("sample,run", "what,run", "lacks the columns sample"),
        ("layer,", "lair,", "line 3 is not .*'lair'"),
        ("0.7,", "quick,", "line 4 is not"),
        ("0.7,", "-0.7,", "line 4 is not .*positive"),
        ("single", "guess", "line 7 is not .*guess"),
        ("holdout", "boss", "line 5 is not .*boss"),
        (
            ",Abacus 3,2,here\nlayer",
            ",Abacus 5,2,here\nlayer",
            "line 3 is of another table than line 2|is of another table",
        ),
        ("\nnetwork,", "\nlayer,", "line 2 is not .*geometry"),
    ],
)
def test_rows_that_cannot_be_are_named(make: Make, tmp_path: Path, old: str, new: str, message: str) -> None:
    file = tmp_path / "a.csv"
    with Lut.open(make(), readonly=True) as lut:
        export_table(lut, file)
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(InvalidTable, match=message):
        import_table(file, tmp_path / "b.lut")
    assert not (tmp_path / "b.lut").exists()


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00", gzip.compress(b"x" * 999)[:20], b"\x1f\x8b\x08\x00" + b"\x07" * 40]
)
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "jsonl.gz", "csv.gz"])
def test_bytes_that_are_no_text_are_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    file = tmp_path / f"a.{suffix}"
    file.write_bytes(content)
    with pytest.raises(InvalidTable):
        import_table(file, tmp_path / "b.lut")
    assert not (tmp_path / "b.lut").exists()


# ---- merging -----------------------------------------------------------------------------------------


def test_merging_copies_everything_once(make: Make, kit: SimpleNamespace) -> None:
    a, b = make("a.lut"), make("b.lut")
    both = load(a) + load(b)
    with Lut.open(a) as into, Lut.open(b, readonly=True) as other, Lut.open(a, readonly=True) as itself:
        assert merge(into, [other, itself]) == Merged(1, 2, 4)
        assert merge(into, [other, other]) == NOTHING
        assert sorted(map(repr, content(into))) == sorted(map(repr, both))
        assert check(into) == []


def test_merging_again_adds_what_was_measured_since(make: Make, kit: SimpleNamespace) -> None:
    with Lut.open(make("a.lut")) as into, Lut.open(make("b.lut")) as other:
        merge(into, [other])
        more = [("x", LayerSpec(kit.RELU, (29,)), kit.timed(0.5))]
        other.add_network(1, NetworkKey("s1", "tiny", {"stem": 3}), kit.timed(3.1), more, role=Role.FIT)
        other.add_layer(1, LayerSpec(kit.RELU, (31,)), Estimator.SINGLE, kit.timed(0.6))
        assert merge(into, [other]) == Merged(0, 1, 2)
        assert merge(into, [other]) == NOTHING
        assert into.runs()[-1].last_utc == other.runs()[0].last_utc
        assert [r.spec.channels for r in into.layers()][-2:] == [(29,), (31,)]


def test_merging_puts_ratios_on_one_scale(make: Make, kit: SimpleNamespace) -> None:
    into_path, other_path = make("a.lut", filled=False), make("b.lut", filled=False)
    for path, quiet in ((into_path, 2.0), (other_path, 3.0)):
        with Lut.open(path) as lut:
            lut.set_quiet_reference(quiet)
            sample = Measurement((Block(10.0, 5.0),), quiet)
            lut.add_layer(lut.begin_run("r", {}), LayerSpec(kit.RELU, (7,)), Estimator.SINGLE, sample)
    with Lut.open(into_path) as into, Lut.open(other_path, readonly=True) as other:
        merge(into, [other])
        assert [r.latency_ms for r in other.layers()] == [6.0]
        assert [r.latency_ms for r in into.layers()] == [4.0, 4.0]
        assert check(into) == []


def test_merging_what_disagrees_changes_nothing(make: Make) -> None:
    with (
        Lut.open(make("a.lut")) as into,
        Lut.open(make("b.lut")) as good,
        Lut.open(make("c.lut", target={"threads": 2})) as threads,
        Lut.open(make("d.lut", device={"cpu": "Abacus 5", "info.host": "there"})) as device,
    ):
        before = content(into)
        with pytest.raises(TableMismatch, match="threads: 1 in the table, 2 here") as caught:
            merge(into, [good, threads])
        assert caught.value.fields == {"threads": (1, 2)}
        with pytest.raises(TableMismatch, match="cpu: 'Abacus 3' in the table, 'Abacus 5' here"):
            merge(into, [good, device])
        assert content(into) == before


def test_a_damaged_table_is_merged_not_at_all(make: Make) -> None:
    with Lut.open(make("a.lut")) as into, Lut.open(make("b.lut")) as other:
        before = content(into)
        other._db.execute("UPDATE layer_samples SET samples = '[]' WHERE layer = 4")
        with pytest.raises(InvalidTable, match=r"b\.lut is damaged: layers row 4"):
            merge(into, [other])
        assert content(into) == before


def test_many_layers_are_batched(make: Make, kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("widthwise.luts.exchange._BATCH", 3)
    with Lut.open(make("a.lut", filled=False)) as into, Lut.open(make("b.lut")) as other:
        for width in (2, 3, 5, 7, 11, 13, 17):
            other.add_layer(1, LayerSpec(kit.RELU, (width,)), Estimator.SINGLE, kit.timed(float(width)))
        assert merge(into, [other]) == Merged(1, 2, 11)
        assert content(into) == content(other)


# ---- checking ----------------------------------------------------------------------------------------


def test_a_sound_table_has_no_findings(lut: Lut) -> None:
    assert check(lut) == []


def test_a_missing_quiet_reference_is_found(make: Make) -> None:
    with Lut.open(make(filled=False)) as lut:
        assert [(f.severity, f.what) for f in check(lut)] == [(Severity.WARNING, "the quiet reference is missing")]
    with Lut.open(make("b.lut")) as lut:
        lut._db.execute("DELETE FROM facts WHERE section = 'table'")
        assert (Severity.ERROR, "the quiet reference is missing") in [(f.severity, f.what) for f in check(lut)]


@pytest.mark.parametrize(
    ("sql", "what"),
    [
        ("UPDATE layers SET latency_ms = 2.9 WHERE id = 1", "latency_ms disagree with the raw samples"),
        ("UPDATE networks SET high_ms = 8 WHERE id = 1", "high_ms disagree with the raw samples"),
        ("UPDATE layers SET status = 'stable' WHERE id = 2", "status disagree with the raw samples"),
        ("UPDATE layers SET blocks = 5 WHERE id = 2", "blocks disagree with the raw samples"),
        ("UPDATE layers SET run = 7 WHERE id = 1", "belongs to a row that runs lacks"),
        ("UPDATE geometries SET key = key || ' ' WHERE id = 1", "not in canonical form"),
    ],
)
def test_rows_changed_by_hand_are_found(make: Make, sql: str, what: str) -> None:
    with Lut.open(make()) as lut:
        lut._db.execute("PRAGMA foreign_keys = OFF")
        lut._db.execute(sql)
        errors = [f for f in check(lut) if f.severity is Severity.ERROR]
        assert any(what in f.what for f in errors)
        assert all(f.next_step for f in errors)


def test_absurd_values_are_found(lut: Lut, kit: SimpleNamespace) -> None:
    lut.add_layer(1, LayerSpec(kit.RELU, (2,)), Estimator.SINGLE, kit.timed(4e6))
    lut.add_layer(1, LayerSpec(kit.RELU, (3,)), Estimator.SINGLE, Measurement((Block(1.0, 1500.0),), 1.5))
    assert [(f.severity, f.where) for f in check(lut)] == [(Severity.WARNING, f"layers row {n}") for n in (5, 6)]
    assert "1e+03 to 1e+03 times the quiet latency" in check(lut)[1].what


@pytest.mark.parametrize("along", ["input", "output", "one width"])
def test_straight_lines_sold_as_measurements_are_found(lut: Lut, kit: SimpleNamespace, along: str) -> None:
    for width in range(8, 72, 8):
        latency = kit.timed(0.31 + (width - 8) * (0.77 - 0.31) / 64)
        channels = {"input": (width, 19), "output": (19, width), "one width": (width,)}[along]
        geometry = Geometry("relu", ((1, 0, 3, 2),), ((1, 0, 3, 2),)) if along == "one width" else kit.CONV
        lut.add_layer(1, LayerSpec(geometry, channels), Estimator.SINGLE, latency)
    (finding,) = check(lut)
    assert finding.severity is Severity.WARNING
    assert finding.where == str(geometry)
    assert "8 neighbouring widths lie on one straight line" in finding.what


def test_one_latency_for_many_widths_is_found(lut: Lut, kit: SimpleNamespace) -> None:
    for width in (2, 3, 5, 7, 11, 13, 23, 29):
        lut.add_layer(1, LayerSpec(kit.RELU, (width,)), Estimator.SINGLE, kit.timed(0.61))
    (finding,) = check(lut)
    assert "8 different widths took" in finding.what


def test_noise_on_a_line_is_a_measurement(lut: Lut, kit: SimpleNamespace) -> None:
    for n, width in enumerate(range(8, 136, 8)):
        lut.add_layer(
            1, LayerSpec(kit.RELU, (width,)), Estimator.SINGLE, kit.timed(0.1 * width * (1 + 1e-6 * (-1) ** n))
        )
    assert check(lut) == []


def test_repeats_of_one_width_are_no_line(lut: Lut, kit: SimpleNamespace) -> None:
    for _ in range(12):
        lut.add_layer(1, LayerSpec(kit.RELU, (7,)), Estimator.SINGLE, kit.timed(0.61))
    assert check(lut) == []


def test_many_findings_are_counted(lut: Lut, kit: SimpleNamespace) -> None:
    for width in range(1, 30):
        lut.add_layer(1, LayerSpec(kit.CONV, (width, 2 * width * width)), Estimator.SINGLE, kit.timed(4e6 + width**3))
    findings = check(lut)
    assert len(findings) == 21
    assert findings[-1].what == "9 more findings like these"


def test_formats_export_their_names() -> None:
    assert all(hasattr(formats, name) for name in formats.__all__)
