from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from widthwise.luts import (
    Block,
    Conditions,
    Estimator,
    Geometry,
    InvalidSpec,
    InvalidTable,
    LayerSpec,
    Lut,
    Measurement,
    NetworkKey,
    Role,
    Severity,
    Status,
    TableMismatch,
    TableSummary,
    check,
    schema,
)

Make = Callable[..., Path]

WRITER = """
import sys
from widthwise.luts import Block, Estimator, Geometry, LayerSpec, Lut, Measurement, NetworkKey, Role
path, who, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with Lut.open(path) as lut:
    run = lut.begin_run(f"writer {who}", {})
    for i in range(count):
        g = Geometry("relu", ((1, 0, i % 7, 5),), ((1, 0, i % 7, 5),))
        m = Measurement((Block(1.0 + i, 1.0),) * 3, 1.5)
        if i % 2:
            lut.add_layer(run, LayerSpec(g, (i + 1,)), Estimator.SINGLE, m)
        else:
            layers = [("x", LayerSpec(g, (i + 1,)), m)]
            lut.add_network(run, NetworkKey("s", "m", {"a": i + 1}), m, layers, role=Role.FIT)
        print(i, flush=True)
"""


def start_writer(path: Path, who: int, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, path, str(who), str(count)], stdout=subprocess.PIPE, text=True
    )


def scribble(path: Path, sql: str) -> None:
    """Do to the file what somebody else's program might."""
    db = sqlite3.connect(path)
    db.execute("PRAGMA ignore_check_constraints = ON")
    db.executescript(sql)
    db.close()


# ---- what goes in comes out --------------------------------------------------------------------------


def test_records_carry_what_was_stored(lut: Lut, kit: SimpleNamespace) -> None:
    dense, narrow = lut.networks()
    assert (dense.signature, dense.model, dense.widths, dense.role) == ("s1", "tiny", {"stem": 17}, Role.DENSE)
    assert (dense.latency_ms, dense.low_ms, dense.high_ms, dense.status) == (7.0, 7.0, 7.0, Status.STABLE)
    assert narrow.role is Role.HOLDOUT
    stem, act, narrow_stem, alone = lut.layers()
    assert (stem.spec, stem.layer_name, stem.network_id) == (LayerSpec(kit.CONV, (13, 17)), "stem", dense.id)
    assert (stem.latency_ms, stem.blocks, stem.estimator) == (3.0, 3, Estimator.IN_PLACE)
    assert (act.spec.channels, act.status) == ((17,), Status.UNSTABLE)
    assert narrow_stem.network_id == narrow.id
    assert (alone.network_id, alone.layer_name, alone.estimator) == (None, None, Estimator.SINGLE)


def test_layers_are_filtered(lut: Lut, kit: SimpleNamespace) -> None:
    assert [r.spec.channels for r in lut.layers([kit.RELU])] == [(17,), (19,)]
    assert [r.spec.channels for r in lut.layers([kit.RELU], estimator=Estimator.SINGLE)] == [(19,)]
    assert lut.layers([]) == []
    assert lut.layers([Geometry("never", (), ())]) == []
    assert lut.networks("another") == []
    assert lut.geometries() == {kit.CONV: 2, kit.RELU: 2}


def test_raw_samples_come_back(lut: Lut, kit: SimpleNamespace) -> None:
    assert lut.samples(lut.layers()[0]) == kit.timed(2.0, 3.0, 5.0)
    assert lut.samples(lut.networks()[0]) == kit.timed(7.0, 7.0, 7.0)


def test_the_summary_counts(lut: Lut) -> None:
    summary = lut.summary()
    assert summary == TableSummary(4, 2, 3, 2, 1, summary.seconds)
    assert summary.seconds >= 0


def test_a_run_is_on_record(lut: Lut) -> None:
    (run,) = lut.runs()
    assert (run.purpose, run.versions, run.info) == ("test", {"torch": "2.4"}, {"load": 0.25})
    assert run.started_utc.endswith("+00:00")
    assert run.started_utc <= run.last_utc


positive = st.floats(1e-3, 1e5)
blocks = st.lists(st.builds(Block, positive, positive), min_size=1, max_size=7).map(tuple)
specs = st.builds(
    LayerSpec,
    st.builds(
        Geometry,
        st.sampled_from(["conv2d", "relu", "größe"]),
        st.lists(st.lists(st.integers(0, 9), max_size=4).map(tuple), max_size=2).map(tuple),
        st.just(((1, 0),)),
        st.dictionaries(
            st.text(st.characters(codec="utf-8"), max_size=5), st.integers() | st.booleans(), max_size=2
        ).map(lambda d: tuple(d.items())),
    ),
    st.lists(st.integers(1, 2**31), max_size=2).map(tuple),
)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.text(st.characters(codec="utf-8"), max_size=5), specs, blocks), max_size=4),
    blocks,
    st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), st.integers(1, 2**40), max_size=3),
    positive,
)
def test_anything_stored_is_read_again(
    layers: list[tuple[str, LayerSpec, tuple[Block, ...]]],
    whole: tuple[Block, ...],
    widths: dict[str, int],
    quiet: float,
) -> None:
    timed = [(name, spec, Measurement(b, quiet)) for name, spec, b in layers]
    with (
        tempfile.TemporaryDirectory() as folder,
        Lut.create(Path(folder) / "a.lut", target={}, fingerprint={}) as lut,
    ):
        lut.set_quiet_reference(quiet)
        run = lut.begin_run("p", {})
        lut.add_network(run, NetworkKey("s", "m", widths), Measurement(whole, quiet), timed, role=Role.FIT)
        (network,) = lut.networks()
        assert network.widths == widths
        assert lut.samples(network).blocks == whole
        assert [(r.layer_name, r.spec, lut.samples(r)) for r in lut.layers()] == timed
        assert [r.latency_ms for r in lut.layers()] == [m.latency_ms for _, _, m in timed]
        assert [(r.low_ms, r.high_ms) for r in lut.layers()] == [m.interval_ms for _, _, m in timed]
        assert not [finding for finding in check(lut) if finding.severity is Severity.ERROR]


# ---- whose table it is -------------------------------------------------------------------------------


def test_target_and_device_are_kept_and_compared(make: Make, kit: SimpleNamespace) -> None:
    with Lut.open(make(), readonly=True) as lut:
        assert (lut.target, lut.fingerprint) == (kit.TARGET, kit.DEVICE)
        lut.require_target(kit.TARGET)
        lut.require_device(kit.DEVICE | {"info.host": "elsewhere", "info.more": 1})
        with pytest.raises(TableMismatch) as caught:
            lut.require_target({"runtime": "torch", "device": "cuda", "dtype": "float32"})
        assert caught.value.fields == {"device": ("cpu", "cuda"), "dtype": (None, "float32"), "threads": (1, None)}
        assert "device: 'cpu' in the table, 'cuda' here; dtype: (nothing) in the table" in str(caught.value)
        with pytest.raises(TableMismatch, match="cores: 2 in the table, 3 here"):
            lut.require_device(kit.DEVICE | {"cores": 3})


@pytest.mark.parametrize("value", [[1], float("nan"), {"a": 1}])
def test_facts_are_plain_values(tmp_path: Path, value: object) -> None:
    with pytest.raises(InvalidTable, match="target field 'x' must be a finite number, text"):
        Lut.create(tmp_path / "a.lut", target={"x": value}, fingerprint={})  # type: ignore[dict-item]
    assert not list(tmp_path.iterdir())


def test_the_quiet_reference_is_set_once(make: Make) -> None:
    with Lut.open(make("empty.lut", filled=False)) as lut:
        assert lut.quiet_reference_ms is None
        lut.set_quiet_reference(2.0)
        lut.set_quiet_reference(3.0)  # nothing depends on it yet
        assert lut.quiet_reference_ms == 3.0
        for ms in (0.0, -1.0, float("nan"), float("inf")):
            with pytest.raises(InvalidTable, match="must be a positive number of milliseconds"):
                lut.set_quiet_reference(ms)
    with Lut.open(make("full.lut")) as lut:
        lut.set_quiet_reference(1.5)
        with pytest.raises(InvalidTable, match=r"on a quiet reference of 1\.5 ms, not 2\.0 ms"):
            lut.set_quiet_reference(2.0)
        assert lut.quiet_reference_ms == 1.5


# ---- what is refused ---------------------------------------------------------------------------------


def test_additions_that_cannot_be_are_refused_whole(lut: Lut, kit: SimpleNamespace) -> None:
    before = lut.summary()
    spec, good = LayerSpec(kit.RELU, (23,)), kit.timed(1.0)
    with pytest.raises(InvalidTable, match="has no run 99; call begin_run first"):
        lut.add_layer(99, spec, Estimator.SINGLE, good)
    with pytest.raises(InvalidTable, match=r"quiet reference of 2\.0 ms, .* on 1\.5 ms"):
        lut.add_layer(1, spec, Estimator.SINGLE, kit.timed(1.0, quiet=2.0))
    with pytest.raises(InvalidSpec, match="a layer cannot be 'whole'"):
        lut.add_layer(1, spec, Estimator.WHOLE, good)
    with pytest.raises(InvalidTable, match="cannot hold a value given"):
        layers = [("a", spec, good), ("b", LayerSpec(kit.RELU, (2**70,)), good)]
        lut.add_network(1, NetworkKey("s", "m", {}), good, layers, role=Role.FIT)
    with pytest.raises(InvalidTable, match="cannot hold a value given"):
        lut.add_network(1, NetworkKey("s", "\ud800", {}), good, role=Role.FIT)
    with pytest.raises(InvalidSpec, match="latency must be a positive number"):
        lut.add_layer(1, spec, Estimator.SINGLE, Measurement((Block(1e300, 1e-300),), 1.5))
    assert lut.summary() == before


def test_a_table_without_its_quiet_reference_takes_nothing(make: Make, kit: SimpleNamespace) -> None:
    with Lut.open(make(filled=False)) as lut:
        run = lut.begin_run("x", {})
        with pytest.raises(InvalidTable, match=r"call set_quiet_reference\(ms\) before adding"):
            lut.add_layer(run, LayerSpec(kit.RELU, (2,)), Estimator.SINGLE, kit.timed(1.0))


@pytest.mark.parametrize(
    ("signature", "widths", "message"), [("", {}, "needs a signature"), ("s", {"a": 0}, "positive")]
)
def test_network_keys_that_cannot_be_are_refused(signature: str, widths: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidSpec, match=message):
        NetworkKey(signature, "m", widths)


def test_network_keys_are_values() -> None:
    widths = {"a": 2, "b": 3}
    key = NetworkKey("s", "m", widths)
    assert {key, NetworkKey("s", "m", {"b": 3, "a": 2})} == {key}
    widths["a"] = 5
    assert key.widths["a"] == 2


def test_an_existing_file_is_never_replaced(make: Make, tmp_path: Path) -> None:
    path = make()
    before = path.read_bytes()
    with pytest.raises(InvalidTable, match="exists already: open it, or choose another name"):
        Lut.create(path, target={}, fingerprint={})
    with pytest.raises(InvalidTable, match=r"there is no folder .*; make it first"):
        Lut.create(tmp_path / "none" / "a.lut", target={}, fingerprint={})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.lut"]


# ---- files that are no table -------------------------------------------------------------------------


def refused(path: Path, message: str) -> None:
    for readonly in (True, False):
        with pytest.raises(InvalidTable, match=message) as caught:
            Lut.open(path, readonly=readonly)
        assert "\n" not in str(caught.value)


def test_files_that_are_no_table_are_refused_with_the_next_step(tmp_path: Path) -> None:
    refused(tmp_path / "a.lut", "no table at .*; make one with `widthwise profile")
    refused(tmp_path, "is not a file but a folder")
    refused(tmp_path / ("x" * 300), "cannot be opened: File name too long")
    (tmp_path / "empty").touch()
    refused(tmp_path / "empty", r"is empty \(0 bytes\); delete it")
    (tmp_path / "random").write_bytes(bytes(range(256)) * 40)
    refused(tmp_path / "random", "is not a LUT")
    scribble(tmp_path / "other.db", "CREATE TABLE t (x); INSERT INTO t VALUES (1)")
    refused(tmp_path / "other.db", "SQLite file of another program")


def test_other_versions_are_refused(make: Make) -> None:
    path = make()
    scribble(path, "PRAGMA user_version = 99")
    reads = f"this one reads up to {schema.SCHEMA_VERSION}"
    refused(path, rf"newer widthwise \(schema 99, {reads}\); run `pip install --upgrade widthwise`")
    scribble(path, "PRAGMA user_version = 0")
    refused(path, "is damaged .schema version 0.")


def test_older_versions_are_migrated_when_writing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make()
    script = "ALTER TABLE runs ADD COLUMN weather TEXT; UPDATE runs SET weather = 'fair'"
    monkeypatch.setattr(schema, "_MIGRATIONS", (*schema._MIGRATIONS, script))
    monkeypatch.setattr(schema, "SCHEMA_VERSION", 3)
    with pytest.raises(InvalidTable, match="has the older schema 2; run `widthwise luts check"):
        Lut.open(path, readonly=True)
    with Lut.open(path) as lut:
        assert len(lut.layers()) == 4
    scribble(path, "UPDATE runs SET weather = 'foul'")
    with Lut.open(path, readonly=True) as lut:  # once is enough
        assert len(lut.networks()) == 2


def test_the_conditions_of_each_block_are_kept(lut: Lut) -> None:
    dense, narrow = lut.networks()
    assert [block.conditions for block in lut.samples(dense).blocks] == [None] * 3
    kept = [block.conditions for block in lut.samples(narrow).blocks]
    assert kept == [Conditions(cpu_share=share, switches=2) for share in (0.97, 0.5, 1.0)]


@pytest.mark.parametrize(
    "samples", ['[[1,1,{"cpu_share":"x"}]]', "[[1,1,3]]", '[[1,1,{"load":NaN}]]', "[[1,1,{},{}]]", '[{"a":1}]']
)
def test_conditions_that_cannot_be_are_refused(make: Make, samples: str) -> None:
    path = make()
    scribble(path, f"UPDATE networks SET samples = '{samples}'")
    with Lut.open(path, readonly=True) as lut, pytest.raises(InvalidTable, match="bad samples"):
        lut.samples(lut.networks()[0])


def test_conditions_of_later_versions_are_passed_over(make: Make) -> None:
    path = make()
    scribble(path, """UPDATE networks SET samples = '[[1,1,{"moon":0.5,"load":2}]]'""")
    with Lut.open(path, readonly=True) as lut:
        assert lut.samples(lut.networks()[0]).blocks[0].conditions == Conditions(load=2)


def test_tables_of_version_1_are_read_and_written(make: Make) -> None:
    path = make()
    scribble(path, "PRAGMA user_version = 1")
    with Lut.open(path, readonly=True) as lut:  # rows of version 1 are valid as they are
        assert len(lut.layers()) == 4
    with Lut.open(path) as lut:
        assert len(lut.networks()) == 2
    scribble(path, "PRAGMA user_version")
    with Lut.open(path, readonly=True) as lut:
        assert lut.schema_version == 2


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_refused(make: Make, keep: float) -> None:
    path = make()
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    refused(path, "is damaged|is not a LUT")


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("DROP TABLE layer_samples", "table layer_samples lacks layer, samples"),
        ("ALTER TABLE layers DROP COLUMN layer_name", "table layers lacks layer_name"),
        ("CREATE TRIGGER t AFTER INSERT ON runs BEGIN DELETE FROM layers; END", "holds a trigger"),
        ("UPDATE facts SET value = '{' WHERE name = 'runtime'", "target 'runtime': not JSON"),
        ("UPDATE facts SET value = '[1]' WHERE name = 'cpu'", "fingerprint 'cpu': unexpected"),
        ("UPDATE facts SET value = '-1' WHERE section = 'table'", "quiet_reference_ms is -1"),
        ("UPDATE facts SET value = '\"x\"' WHERE section = 'table'", "quiet_reference_ms is 'x'"),
        ("UPDATE facts SET value = 'NaN' WHERE section = 'table'", "quiet_reference_ms is nan"),
    ],
)
def test_damage_shows_on_opening(make: Make, sql: str, message: str) -> None:
    path = make()
    scribble(path, sql)
    refused(path, message)


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE layers SET latency_ms = -1",
        "UPDATE layers SET latency_ms = 9e999",
        "UPDATE layers SET latency_ms = 'fast'",
        "UPDATE layers SET high_ms = low_ms / 2",
        "UPDATE layers SET channels_1 = 0",
        "UPDATE layers SET channels_1 = 'x'",
        "UPDATE layers SET channels_1 = NULL, channels_2 = 3",
        "UPDATE layers SET blocks = 'many'",
        "UPDATE layers SET status = 'fine'",
        "UPDATE layers SET estimator = 'guess'",
        "UPDATE layers SET geometry = 77",
        "UPDATE layers SET status = CAST(x'ff' AS TEXT)",
        "UPDATE geometries SET key = '[]' WHERE id = 1",
        "UPDATE networks SET widths = '{\"a\": 0}'",
        "UPDATE networks SET widths = '{\"a\": true}'",
        "UPDATE networks SET widths = '[1]'",
        "UPDATE networks SET widths = 'x'",
        "UPDATE networks SET role = 'boss'",
        "UPDATE networks SET signature = ''",
        "UPDATE networks SET model = x'00ff'",
        "UPDATE networks SET latency_ms = 'slow'",
        "UPDATE networks SET samples = '[]'",
        "UPDATE networks SET samples = '[[1, -1]]'",
        "UPDATE layer_samples SET samples = '[[1]]'",
        "UPDATE layer_samples SET samples = '[[1, \"2\"]]'",
        "UPDATE layer_samples SET samples = '{'",
        "UPDATE layer_samples SET samples = '[[1e999, 1]]'",
        "UPDATE layer_samples SET samples = '7'",
        "UPDATE layer_samples SET samples = x'00'",
        "DELETE FROM layer_samples",
        "UPDATE runs SET started_utc = 'yesterday'",
        "UPDATE runs SET versions = '[]'",
        "UPDATE runs SET info = '{\"a\": [1]}'",
    ],
)
def test_hostile_rows_are_refused_and_found(make: Make, sql: str) -> None:
    path = make()
    scribble(path, sql)
    with Lut.open(path, readonly=True) as lut:
        with pytest.raises(InvalidTable) as caught:
            for record in (*lut.layers(), *lut.networks()):
                lut.samples(record)
            lut.runs()
        assert "\n" not in str(caught.value)
        assert check(lut)[0].severity is Severity.ERROR


def test_a_damaged_page_is_named(make: Make) -> None:
    path = make()
    with Lut.open(path, readonly=True) as lut:
        (root,) = lut._db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'layers'").fetchone()
        (size,) = lut._db.execute("PRAGMA page_size").fetchone()
    content = bytearray(path.read_bytes())
    content[(root - 1) * size : root * size] = b"\xa5" * size
    path.write_bytes(content)
    with Lut.open(path, readonly=True) as lut:
        with pytest.raises(InvalidTable, match=r"is damaged .*; restore a copy"):
            lut.layers()
        assert check(lut)[0].where == "file"


# ---- reading only ------------------------------------------------------------------------------------


def test_reading_does_not_touch_the_file(make: Make, tmp_path: Path, kit: SimpleNamespace) -> None:
    path = make()
    path.chmod(0o444)
    before, stamp = path.read_bytes(), path.stat().st_mtime_ns
    with Lut.open(path, readonly=True) as lut:
        assert len(lut.layers()) == 4
        assert check(lut) == []
        with pytest.raises(InvalidTable, match="cannot be written; give it write permission"):
            lut.begin_run("x", {})
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (before, stamp)
    assert [p.name for p in tmp_path.iterdir()] == ["a.lut"]


def test_a_closed_table_says_so(make: Make) -> None:
    lut = Lut.open(make())
    lut.close()
    lut.close()
    with pytest.raises(InvalidTable, match="closed"):
        lut.layers()


def test_names_with_signs_of_their_own_work(make: Make) -> None:
    path = make("50% off? #1 größe.lut")
    with Lut.open(path, readonly=True) as lut:
        assert len(lut.layers()) == 4
        assert repr(lut) == f"Lut({str(path)!r})"


# ---- many writers, killed writers --------------------------------------------------------------------


def test_two_processes_write_at_once(make: Make) -> None:
    path, count = make(filled=False), 120
    with Lut.open(path) as lut:
        lut.set_quiet_reference(1.5)
    writers = [start_writer(path, who, count) for who in (1, 2)]
    for writer in writers:
        writer.communicate(timeout=60)
        assert writer.returncode == 0
    with Lut.open(path, readonly=True) as lut:
        summary = lut.summary()
        assert (summary.layers, summary.networks, summary.geometries, summary.runs) == (2 * count, count, 7, 2)
        assert [r.id for r in lut.layers()] == list(range(1, 2 * count + 1))
        assert not [f for f in check(lut) if f.severity is Severity.ERROR]


def test_a_busy_table_says_so(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make()
    monkeypatch.setattr(schema, "BUSY_SECONDS", 0)
    with Lut.open(path) as first, Lut.open(path) as second, first.writing():
        with pytest.raises(InvalidTable, match="has been busy for 0 s; wait for the process that writes it"):
            second.begin_run("x", {})
        assert len(second.layers()) == 4


def test_a_killed_writer_loses_nothing_it_acknowledged(make: Make) -> None:
    path = make(filled=False)
    with Lut.open(path) as lut:
        lut.set_quiet_reference(1.5)
    acknowledged = 0
    for who, rows in enumerate((3, 17, 40), 1):
        writer = start_writer(path, who, 10**6)
        assert writer.stdout is not None
        seen = [int(writer.stdout.readline()) for _ in range(rows)]
        os.kill(writer.pid, signal.SIGKILL)
        seen += [int(line) for line in writer.stdout.read().split()]
        writer.wait()
        writer.stdout.close()
        acknowledged += len(seen)
        with Lut.open(path, readonly=who == 2) as lut:
            run = lut.runs()[-1].id
            stored = [r.spec.channels[0] - 1 for r in lut.layers() if r.run == run]
            assert stored[: len(seen)] == seen
            assert len(stored) <= len(seen) + 1  # the last one may have been stored and not yet acknowledged
            assert not [f for f in check(lut) if f.severity is Severity.ERROR]
    assert acknowledged >= 60


def test_a_writer_killed_in_a_transaction_is_undone(make: Make, tmp_path: Path) -> None:
    path = make()
    script = """
import os, signal, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA cache_size = 1"); db.execute("PRAGMA cache_spill = 1")
db.execute("BEGIN IMMEDIATE")
for i in range(3000):
    db.execute("INSERT INTO geometries (key) VALUES (?)", ("x" * 900 + str(i),))
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script, path], check=False).returncode == -signal.SIGKILL
    assert (tmp_path / "a.lut-journal").exists()  # half a transaction lies in the file
    with Lut.open(path, readonly=True) as lut:
        assert len(lut.geometries()) == 2
        assert check(lut) == []
    assert not (tmp_path / "a.lut-journal").exists()


def test_a_table_begun_on_a_disturbed_machine_is_put_on_the_quiet_scale(lut: Lut) -> None:
    quiet_ms = lut.quiet_reference_ms
    assert quiet_ms is not None
    before = [record.latency_ms for record in [*lut.layers(), *lut.networks()]]
    lut.lower_quiet_reference(quiet_ms / 2)
    assert [record.latency_ms for record in [*lut.layers(), *lut.networks()]] == pytest.approx([x / 2 for x in before])
    assert lut.samples(lut.layers()[0]).latency_ms == pytest.approx(before[0] / 2)
    assert not [finding for finding in check(lut) if finding.severity is Severity.ERROR]
    with pytest.raises(InvalidTable, match="can't lower"):
        lut.lower_quiet_reference(quiet_ms)
