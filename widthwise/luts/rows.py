"""Rows of the LUT file: what goes in, and what is believed when it comes out.

Functions over an open connection, used by :mod:`~widthwise.luts.store` and
:mod:`~widthwise.luts.exchange`. A file may come from anywhere, so every value read is checked;
:class:`~widthwise.luts.schema.BadRow` names the table, the row and the fault.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from widthwise.luts.errors import InvalidSpec, InvalidTable
from widthwise.luts.measurement import Block, Conditions, Estimator, Measurement, Status, summarise
from widthwise.luts.records import LayerRecord, NetworkKey, NetworkRecord, Role, RunRecord, Scalar
from widthwise.luts.schema import BadRow
from widthwise.luts.spec import Geometry, LayerSpec

__all__ = [
    "TIMED_LAYERS",
    "TIMED_NETWORKS",
    "LayerItem",
    "Point",
    "dump_facts",
    "dump_samples",
    "insert_layers",
    "insert_network",
    "insert_run",
    "layer_record",
    "network_record",
    "parse_facts",
    "parse_samples",
    "parse_widths",
    "select_geometries",
    "select_layers",
    "select_networks",
    "select_points",
    "select_runs",
    "select_samples",
    "select_timed_layers",
    "utc_now",
]

_ESTIMATORS = {member.value: member for member in Estimator if member is not Estimator.WHOLE}
_encode = json.JSONEncoder(separators=(",", ":")).encode
_STATUSES = {member.value: member for member in Status}

_LAYER_COLUMNS = (
    "id, geometry, channels_1, channels_2, estimator, latency_ms, low_ms, high_ms, status, blocks, "
    "network, layer_name, run"
)
_NETWORK_COLUMNS = "id, signature, model, widths, role, latency_ms, low_ms, high_ms, status, blocks, run"
_POINT_COLUMNS = (
    "geometry, COALESCE(channels_1, 0), COALESCE(channels_2, 0), latency_ms, COALESCE(network, -1), "
    "estimator = 'in_place', status = 'unstable'"
)
TIMED_NETWORKS = f"SELECT {_NETWORK_COLUMNS}, samples FROM networks"
"""Every network with its raw samples: the columns :func:`network_record` takes, then the JSON."""
_INSERT_LAYER = (
    "INSERT INTO layers (id, run, geometry, channels_1, channels_2, estimator, network, layer_name, "
    "latency_ms, low_ms, high_ms, status, blocks) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
TIMED_LAYERS = f"SELECT {_LAYER_COLUMNS}, samples FROM layers LEFT JOIN layer_samples ON layer = id"
"""Every layer with its raw samples: the columns :func:`layer_record` takes, then the JSON."""
_SAMPLES = {
    "layers": "SELECT samples FROM layer_samples WHERE layer = ?",
    "networks": "SELECT samples FROM networks WHERE id = ?",
}


Point = tuple[Any, ...]
"""channels (0 for an axis it lacks) twice, latency_ms, network (-1 for none), in place, unstable."""


@dataclass(frozen=True, slots=True)
class LayerItem:
    """A layer measurement on its way in."""

    spec: LayerSpec
    estimator: Estimator
    measurement: Measurement
    name: str | None = None


def utc_now() -> str:
    """Now in UTC, ISO 8601 to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


# ---- in ----------------------------------------------------------------------------------------------


def dump_facts(facts: Mapping[str, Scalar], what: str) -> dict[str, str]:
    """Each value of a target, fingerprint or info as JSON.

    Raises:
        InvalidTable: a value that is no plain number, text, truth value or None.
    """
    dumped = {}
    for name, value in facts.items():
        if not isinstance(value, Scalar) or (isinstance(value, float) and not math.isfinite(value)):
            raise InvalidTable(
                f"{what} field {name!r} must be a finite number, text, true, false or none, got {value!r}"
            )
        dumped[str(name)] = json.dumps(value)
    return dumped


def dump_samples(measurement: Measurement) -> list[list[Any]]:
    """The raw blocks as JSON values: ``[latency_ms, reference_ms]``, and the conditions where they were observed."""
    return [
        [float(block.latency_ms), float(block.reference_ms)]
        + ([block.conditions.as_dict()] if block.conditions is not None else [])
        for block in measurement.blocks
    ]


def insert_run(db: sqlite3.Connection, run: RunRecord) -> int:
    """Add a run and give its id here (``run.id`` is ignored)."""
    cursor = db.execute(
        "INSERT INTO runs (uuid, purpose, started_utc, last_utc, versions, info) VALUES (?, ?, ?, ?, ?, ?)",
        (
            run.uuid,
            run.purpose,
            run.started_utc,
            run.last_utc,
            json.dumps(dict(run.versions)),
            json.dumps(dict(run.info)),
        ),
    )
    return _new_id(cursor)


def insert_network(db: sqlite3.Connection, run: int, network: NetworkKey, role: Role, measurement: Measurement) -> int:
    """Add a whole-network sample and give its id."""
    widths = json.dumps(dict(network.widths))
    derived = _derived([measurement])[0]
    cursor = db.execute(
        "INSERT INTO networks (run, signature, model, widths, role, "
        "latency_ms, low_ms, high_ms, status, blocks, samples) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (run, network.signature, network.model, widths, Role(role).value, *derived),
    )
    return _new_id(cursor)


def insert_layers(db: sqlite3.Connection, run: int, items: Sequence[LayerItem], network: int | None = None) -> None:
    """Add layer samples; geometries are looked up each time, as other writers add theirs meanwhile."""
    if any(item.estimator is Estimator.WHOLE for item in items):
        raise InvalidSpec("a layer cannot be 'whole': that is a network's; use in_place, single or imported")
    ids = {geometry: _geometry_id(db, geometry) for geometry in {item.spec.geometry for item in items}}
    derived = _derived([item.measurement for item in items])
    # The caller holds the write lock and rows are never deleted, so these ids are nobody else's.
    (last,) = db.execute("SELECT COALESCE(MAX(id), 0) FROM layers").fetchone()
    layers, samples = [], []
    for identifier, (item, (*statistics, text)) in enumerate(zip(items, derived, strict=True), last + 1):
        geometry, (first, second) = ids[item.spec.geometry], _two(item.spec.channels)
        estimator = Estimator(item.estimator).value
        layers.append((identifier, run, geometry, first, second, estimator, network, item.name, *statistics))
        samples.append((identifier, text))
    db.executemany(_INSERT_LAYER, layers)
    db.executemany("INSERT INTO layer_samples (layer, samples) VALUES (?, ?)", samples)


def _two(channels: tuple[int, ...]) -> tuple[int | None, int | None]:
    first, second = (*map(int, channels), None, None)[:2]
    return first, second


def _derived(measurements: Sequence[Measurement]) -> list[tuple[float, float, float, str, int, str]]:
    rows = []
    for measurement, s in zip(measurements, summarise(measurements), strict=True):
        if not (0 < s.low_ms <= s.high_ms < math.inf and 0 < s.latency_ms < math.inf):
            raise InvalidSpec(f"latency must be a positive number of milliseconds, got {s.latency_ms}")
        samples = _encode(dump_samples(measurement))
        rows.append((s.latency_ms, s.low_ms, s.high_ms, s.status.value, s.blocks, samples))
    return rows


def _geometry_id(db: sqlite3.Connection, geometry: Geometry) -> int:
    key = geometry.key
    row = db.execute("SELECT id FROM geometries WHERE key = ?", (key,)).fetchone()
    return int(row[0]) if row else _new_id(db.execute("INSERT INTO geometries (key) VALUES (?)", (key,)))


def _new_id(cursor: sqlite3.Cursor) -> int:
    assert cursor.lastrowid is not None  # SQLite sets it on every INSERT
    return cursor.lastrowid


# ---- out ---------------------------------------------------------------------------------------------


def parse_facts(rows: Collection[tuple[Any, Any]], where: str) -> dict[str, Scalar]:
    """Name → value from (name, JSON) pairs.

    Raises:
        BadRow: a name or value that is none.
    """
    return {_text(name, where): _json(value, Scalar, f"{where} {name!r}") for name, value in rows}


def parse_widths(text: Any, where: str) -> dict[str, int]:
    """Group → width from JSON.

    Raises:
        BadRow: the text is not that.
    """
    mapping: dict[str, Any] = _mapping(text, int, where)
    if any(isinstance(value, bool) or value < 1 for value in mapping.values()):
        raise BadRow(f"{where}: widths must be positive numbers, got {text[:80]!r}")
    return mapping


def parse_samples(text: Any, quiet_reference_ms: float, where: str) -> Measurement:
    """The measurement behind a row's raw samples.

    Raises:
        BadRow: the text is not ``[[latency_ms, reference_ms, conditions?], …]`` with positive numbers.
    """
    try:
        samples = json.loads(text)
        if not isinstance(samples, list):
            raise ValueError("not a list of samples")
        return Measurement(tuple(map(_block, samples)), quiet_reference_ms)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise BadRow(f"{where}: bad samples ({error})") from error


def _block(sample: Any) -> Block:
    if not (isinstance(sample, list) and 2 <= len(sample) <= 3 and all(type(n) in (int, float) for n in sample[:2])):
        raise ValueError("a sample is no pair of numbers")
    conditions = sample[2:]
    if conditions and not isinstance(conditions[0], dict):
        raise ValueError("conditions are no names with numbers")
    return Block(float(sample[0]), float(sample[1]), *map(Conditions.from_dict, conditions))


def select_samples(db: sqlite3.Connection, table: str, identifier: int, quiet_reference_ms: float) -> Measurement:
    """The raw blocks of one row of ``layers`` or ``networks``."""
    row = db.execute(_SAMPLES[table], (identifier,)).fetchone()
    if row is None:
        raise BadRow(f"{table} row {identifier} has no samples")
    return parse_samples(row[0], quiet_reference_ms, f"{table} row {identifier}")


def select_geometries(db: sqlite3.Connection) -> dict[int, Geometry]:
    """Every geometry by its id."""
    geometries = {}
    for identifier, key in db.execute("SELECT id, key FROM geometries ORDER BY id"):
        try:
            geometries[identifier] = Geometry.parse(key)
        except InvalidSpec as error:
            raise BadRow(f"geometries row {identifier}: {error}") from error
    return geometries


def select_layers(db: sqlite3.Connection, only: Collection[Geometry] | None = None) -> Iterator[LayerRecord]:
    """Layer records in the order of their ids: of all geometries, or ``only`` of some."""
    geometries = select_geometries(db)
    for row in db.execute(f"SELECT {_LAYER_COLUMNS} FROM layers {_among(geometries, only)} ORDER BY id"):
        yield layer_record(row, geometries)


def select_points(db: sqlite3.Connection, only: Collection[Geometry] | None = None) -> dict[Geometry, list[Point]]:
    """What a latency surface needs of each layer, unchecked, by geometry; a quarter of the cost of records."""
    geometries = select_geometries(db)
    points: dict[Geometry, list[Point]] = {}
    lists: dict[Any, list[Point]] = {key: points.setdefault(geometry, []) for key, geometry in geometries.items()}
    for key, *point in db.execute(f"SELECT {_POINT_COLUMNS} FROM layers {_among(geometries, only)} ORDER BY id"):
        if key not in lists:
            raise BadRow(f"a layer has an unknown geometry {key!r}")
        lists[key].append(tuple(point))
    return points


def _among(geometries: Mapping[int, Geometry], only: Collection[Geometry] | None) -> str:
    if only is None:
        return ""
    wanted = set(only)
    ids = (str(int(identifier)) for identifier, geometry in geometries.items() if geometry in wanted)
    return f"WHERE geometry IN ({','.join(ids)})"


def layer_record(row: Sequence[Any], geometries: Mapping[int, Geometry]) -> LayerRecord:
    """The record in a row of ``layers``.

    Raises:
        BadRow: it is none.
    """
    identifier, geometry, first, second, estimator, latency, low, high, status, blocks, network, name, run = row
    try:
        channels = (first, second) if second is not None else () if first is None else (first,)
        spec = LayerSpec(geometries[geometry], channels)
        if 0 < latency < math.inf and 0 < low <= high < math.inf and blocks > 0:
            how, doubt = _ESTIMATORS[estimator], _STATUSES[status]
            return LayerRecord(identifier, spec, how, latency, low, high, doubt, blocks, network, name, run)
    except (KeyError, TypeError, ValueError):
        pass
    raise BadRow(f"layers row {identifier}: {tuple(row[1:])} is no measurement")


def select_networks(
    db: sqlite3.Connection, condition: str = "", values: Sequence[object] = ()
) -> Iterator[NetworkRecord]:
    """Network records in the order of their ids; ``condition`` is SQL of this package's own making."""
    for row in db.execute(f"SELECT {_NETWORK_COLUMNS} FROM networks {condition} ORDER BY id", values):
        yield network_record(row)


def network_record(row: Sequence[Any]) -> NetworkRecord:
    """The record in a row of ``networks``.

    Raises:
        BadRow: it is none.
    """
    identifier, signature, model, widths, role, latency, low, high, status, blocks, run = row
    where = f"networks row {identifier}"
    key = NetworkKey(_text(signature, where) or "?", _text(model, where), parse_widths(widths, where))
    try:
        if signature and 0 < latency < math.inf and 0 < low <= high < math.inf and blocks > 0:
            what, doubt = Role(role), _STATUSES[status]
            return NetworkRecord(identifier, signature, model, key.widths, what, latency, low, high, doubt, blocks, run)
    except (KeyError, TypeError, ValueError):
        pass
    raise BadRow(f"{where}: {tuple(row[1:])} is no measurement")


def select_surplus(db: sqlite3.Connection) -> dict[int, float]:
    """Per network (id), by how many ms its layers exceed it together, shared among them equally."""
    return dict(
        db.execute(
            "SELECT networks.id, (layers.total_ms - networks.latency_ms) / layers.count FROM networks JOIN ("
            "SELECT network, SUM(latency_ms) AS total_ms, COUNT(*) AS count FROM layers WHERE network IS NOT NULL "
            "GROUP BY network) AS layers ON layers.network = networks.id"
        )
    )


def select_timed_layers(
    db: sqlite3.Connection,
    geometries: Mapping[int, Geometry],
    quiet_reference_ms: float,
    condition: str,
    values: Sequence[int] = (),
) -> Iterator[tuple[LayerRecord, Measurement]]:
    """Layer records with their raw samples, those that meet a condition."""
    for *row, samples in db.execute(f"{TIMED_LAYERS} WHERE {condition} ORDER BY id", values):
        record = layer_record(row, geometries)
        yield record, parse_samples(samples, quiet_reference_ms, f"layers row {record.id}")


def select_runs(db: sqlite3.Connection) -> Iterator[RunRecord]:
    """Every run in the order of its id."""
    for identifier, *texts in db.execute(
        "SELECT id, uuid, purpose, started_utc, last_utc, versions, info FROM runs ORDER BY id"
    ):
        where = f"runs row {identifier}"
        uid, purpose, started, last, versions, info = (_text(text, where) for text in texts)
        try:
            datetime.fromisoformat(started)
            datetime.fromisoformat(last)
        except ValueError as error:
            raise BadRow(f"{where}: {error}") from error
        yield RunRecord(
            identifier, uid, purpose, started, last, _mapping(versions, str, where), _mapping(info, Scalar, where)
        )


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise BadRow(f"{where}: text expected, got {value!r}")
    return value


def _json(text: Any, kind: Any, where: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise BadRow(f"{where}: not JSON ({error})") from error
    if not isinstance(value, kind):
        raise BadRow(f"{where}: unexpected {str(value)[:80]!r}")
    return value


def _mapping(text: Any, kind: Any, where: str) -> dict[str, Any]:
    mapping: dict[str, Any] = _json(text, dict, where)
    if not all(isinstance(value, kind) for value in mapping.values()):
        raise BadRow(f"{where}: unexpected values in {text[:80]!r}")
    return mapping
