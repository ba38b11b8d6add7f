"""The lookup table: one SQLite file per device and target, measured values only.

Every addition is one transaction that is on the disk when the call returns: a killed process loses nothing it
was told had been stored. Several processes may add at once.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Self

from widthwise.luts import rows
from widthwise.luts.errors import InvalidTable, TableMismatch
from widthwise.luts.measurement import Estimator, Measurement, Status
from widthwise.luts.records import LayerRecord, NetworkKey, NetworkRecord, Role, RunRecord, Scalar, TableSummary
from widthwise.luts.schema import SCHEMA_VERSION, BadRow, connect, create, translated
from widthwise.luts.spec import Geometry, LayerSpec

__all__ = ["INFO_PREFIX", "Lut"]

INFO_PREFIX = "info."
"""Fingerprint fields that start so are kept for the record and never compared."""

_QUIET = "quiet_reference_ms"


class Lut:
    """A lookup table file, open.

    Made by :meth:`create` or :meth:`open`; a context manager. All times are ms on the scale of the table's
    quiet reference (see :class:`~widthwise.luts.measurement.Measurement`).

    Attributes:
        path: the file.
        schema_version: version of its layout.

    Raises:
        InvalidTable: from any method, where the file turns out damaged, busy, full or write-protected.

    Example:
        >>> import tempfile
        >>> from widthwise.luts.measurement import Block
        >>> relu = LayerSpec(Geometry("relu", ((1, 0, 7, 5),), ((1, 0, 7, 5),)), (13,))
        >>> folder = tempfile.TemporaryDirectory()
        >>> path = Path(folder.name) / "cpu.lut"
        >>> with Lut.create(path, target={"runtime": "torch"}, fingerprint={"cpu": "x"}) as lut:
        ...     lut.set_quiet_reference(1.5)
        ...     run = lut.begin_run("docs", {"widthwise": "0.1.0"})
        ...     lut.add_layer(run, relu, Estimator.SINGLE, Measurement((Block(4.0, 2.0),), 1.5))
        ...     [record.latency_ms for record in lut.layers([relu.geometry])]
        [3.0]
        >>> folder.cleanup()
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self.schema_version = SCHEMA_VERSION
        self._db = connection

    @classmethod
    def create(
        cls, path: str | PathLike[str], *, target: Mapping[str, Scalar], fingerprint: Mapping[str, Scalar]
    ) -> Self:
        """A new, empty table for one target on one device.

        Args:
            path: the file to make.
            target: what runs the networks: runtime, device, threads, dtype, …
            fingerprint: the device; fields named ``info.…`` are kept for the record and not compared.

        Raises:
            InvalidTable: the file exists, the folder does not, or a field is no plain value.
        """
        facts = {
            "target": rows.dump_facts(target, "target"),
            "fingerprint": rows.dump_facts(fingerprint, "fingerprint"),
        }
        path = Path(path)
        create(path, [(section, name, value) for section, fields in facts.items() for name, value in fields.items()])
        return cls.open(path)

    @classmethod
    def open(cls, path: str | PathLike[str], *, readonly: bool = False) -> Self:
        """The table at ``path``.

        Raises:
            InvalidTable: there is none, or it is damaged, of another program or of a newer version.
        """
        path = Path(path)
        lut = cls(path, connect(path, readonly=readonly))
        try:
            # Read once, so that damage shows here and not in the middle of a measurement.
            _ = (lut.target, lut.fingerprint, lut.quiet_reference_ms)
        except BaseException:
            lut.close()
            raise
        return lut

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Lut({str(self.path)!r})"

    # ---- whose table it is ----------------------------------------------------------------------------

    @property
    def target(self) -> dict[str, Scalar]:
        """What ran the networks."""
        return self._facts("target")

    @property
    def fingerprint(self) -> dict[str, Scalar]:
        """The device it ran on."""
        return self._facts("fingerprint")

    @property
    def quiet_reference_ms(self) -> float | None:
        """Latency of the reference kernel on the undisturbed device, None until it is set."""
        with translated(self.path):
            value = self._facts("table").get(_QUIET)
            if value is not None and not (isinstance(value, int | float) and 0 < value < float("inf")):
                raise BadRow(f"{_QUIET} is {value!r}")
            return None if value is None else float(value)

    def set_quiet_reference(self, ms: float) -> None:
        """Set the scale of the table, once.

        Raises:
            InvalidTable: ``ms`` is no positive number, or other than the one that measurements were stored with.
        """
        if not 0 < ms < float("inf"):
            raise InvalidTable(f"the quiet reference must be a positive number of milliseconds, got {ms}")
        with self.writing() as db:
            present = self.quiet_reference_ms
            if present == ms:
                return
            if present is not None and self._count("layers") + self._count("networks"):
                raise InvalidTable(
                    f"{self.path} holds measurements on a quiet reference of {present} ms, not {ms} ms; "
                    "use the stored one (`quiet_reference_ms`), or profile into a new file"
                )
            self._store_quiet_reference(db, ms)

    def lower_quiet_reference(self, ms: float) -> None:
        """Put the whole table on the scale of a quieter device than it was begun on.

        Raw samples stay as they are; every latency derived from them shrinks by the same factor.

        Raises:
            InvalidTable: there is no quiet reference yet, or it is not above ``ms``.
        """
        with self.writing() as db:
            before = self.quiet_reference_ms
            if before is None or not 0 < ms < before:
                raise InvalidTable(f"{self.path} is on a quiet reference of {before} ms, which {ms} ms can't lower")
            for table in ("layers", "networks"):
                db.execute(
                    f"UPDATE {table} SET latency_ms = latency_ms * :by, low_ms = low_ms * :by, high_ms = high_ms * :by",
                    {"by": ms / before},
                )
            self._store_quiet_reference(db, ms)

    def _store_quiet_reference(self, db: sqlite3.Connection, ms: float) -> None:
        value = rows.dump_facts({_QUIET: float(ms)}, "table")[_QUIET]
        db.execute("INSERT OR REPLACE INTO facts (section, name, value) VALUES ('table', ?, ?)", (_QUIET, value))

    def require_target(self, target: Mapping[str, Scalar]) -> None:
        """Do nothing where ``target`` is this table's.

        Raises:
            TableMismatch: naming each field that differs.
        """
        self._require("target", self.target, dict(target), "profile this target into a file of its own")

    def require_device(self, fingerprint: Mapping[str, Scalar]) -> None:
        """Do nothing where ``fingerprint`` is of this table's device; fields named ``info.…`` are not compared.

        Raises:
            TableMismatch: naming each field that differs.
        """
        here = _identifying(fingerprint)
        self._require("device", _identifying(self.fingerprint), here, "profile this device into a file of its own")

    def _require(self, what: str, table: dict[str, Scalar], here: dict[str, Scalar], step: str) -> None:
        names = sorted(name for name in table.keys() | here.keys() if _lacks(table, here, name))
        fields: dict[str, tuple[object, object]] = {name: (table.get(name), here.get(name)) for name in names}
        if fields:
            listed = "; ".join(f"{name}: {_show(table, name)} in the table, {_show(here, name)} here" for name in names)
            raise TableMismatch(f"{self.path} is of another {what} ({listed}); {step}", fields)

    def _facts(self, section: str) -> dict[str, Scalar]:
        with translated(self.path):
            found = self._db.execute("SELECT name, value FROM facts WHERE section = ? ORDER BY rowid", (section,))
            return rows.parse_facts(found.fetchall(), section)

    # ---- in -------------------------------------------------------------------------------------------

    def begin_run(self, purpose: str, versions: Mapping[str, str], *, info: Mapping[str, Scalar] | None = None) -> int:
        """Open a session of measuring and give its id; every measurement belongs to one.

        Args:
            purpose: why it measures, free text.
            versions: package or driver → version.
            info: whatever else should be on record, such as the host's load.
        """
        rows.dump_facts(info or {}, "info")
        now = rows.utc_now()
        versions = {str(name): str(version) for name, version in versions.items()}
        record = RunRecord(0, uuid.uuid4().hex, purpose, now, now, versions, dict(info or {}))
        with self.writing() as db:
            return rows.insert_run(db, record)

    def add_layer(self, run: int, spec: LayerSpec, estimator: Estimator, measurement: Measurement) -> None:
        """Store one layer timed on its own.

        Raises:
            InvalidTable: no such run, or the measurement is on another quiet reference than the table.
        """
        with self.writing() as db:
            self._touch(db, run, [measurement])
            rows.insert_layers(db, run, [rows.LayerItem(spec, estimator, measurement)])

    def add_network(
        self,
        run: int,
        network: NetworkKey,
        measurement: Measurement,
        layers: Sequence[tuple[str, LayerSpec, Measurement]] = (),
        *,
        role: Role,
        estimator: Estimator = Estimator.IN_PLACE,
    ) -> int:
        """Store one whole network with the layers timed inside it, all or nothing, and give its id.

        Args:
            run: of :meth:`begin_run`.
            network: which network, at which widths.
            measurement: of the whole network.
            layers: (name in that network, what it is, how long it took).
            role: what the sample is for.
            estimator: how the layers were timed.

        Raises:
            InvalidTable: no such run, or a measurement is on another quiet reference than the table.
        """
        items = [rows.LayerItem(spec, estimator, timed, name) for name, spec, timed in layers]
        with self.writing() as db:
            self._touch(db, run, [measurement, *(item.measurement for item in items)])
            identifier = rows.insert_network(db, run, network, role, measurement)
            rows.insert_layers(db, run, items, identifier)
            return identifier

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One immediate transaction: nobody else writes, and all of it is stored or nothing."""
        with translated(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _touch(self, db: sqlite3.Connection, run: int, measurements: Sequence[Measurement]) -> None:
        quiet = self.quiet_reference_ms
        if quiet is None:
            raise InvalidTable(f"{self.path} has no quiet reference yet; call set_quiet_reference(ms) before adding")
        other = next((m.quiet_reference_ms for m in measurements if m.quiet_reference_ms != quiet), None)
        if other is not None:
            raise InvalidTable(
                f"a measurement is on a quiet reference of {other} ms, {self.path} on {quiet} ms; "
                "make it with the table's (`quiet_reference_ms`)"
            )
        if db.execute("UPDATE runs SET last_utc = ? WHERE id = ?", (rows.utc_now(), run)).rowcount != 1:
            raise InvalidTable(f"{self.path} has no run {run}; call begin_run first")

    # ---- out ------------------------------------------------------------------------------------------

    def layers(
        self,
        geometries: Collection[Geometry] | None = None,
        *,
        estimator: Estimator | None = None,
    ) -> list[LayerRecord]:
        """Layer records in the order they were stored.

        Args:
            geometries: only these; all where None.
            estimator: only those timed so; all where None.
        """
        with self.reading() as db:
            return [
                record
                for record in rows.select_layers(db, geometries)
                if estimator is None or record.estimator is estimator
            ]

    def points(self, geometries: Collection[Geometry] | None = None) -> dict[Geometry, list[rows.Point]]:
        """The unchecked rows :class:`~widthwise.luts.table.LatencyTable` makes its arrays of; use that instead."""
        with self.reading() as db:
            return rows.select_points(db, geometries)

    def surplus_ms(self) -> dict[int, float]:
        """Per network (id), by how much each of its layers would have to take less for them to add up to it; below zero
        where they add up to less."""
        with self.reading() as db:
            return rows.select_surplus(db)

    def networks(self, signature: str | None = None) -> list[NetworkRecord]:
        """Network records in the order they were stored, of one dense network or of all."""
        condition, values = ("", ()) if signature is None else ("WHERE signature = ?", (signature,))
        with self.reading() as db:
            return list(rows.select_networks(db, condition, values))

    def geometries(self) -> dict[Geometry, int]:
        """How many measurements each geometry has."""
        with self.reading() as db:
            counts = dict(db.execute("SELECT geometry, COUNT(*) FROM layers GROUP BY geometry"))
            return {geometry: counts.get(key, 0) for key, geometry in rows.select_geometries(db).items()}

    def runs(self) -> list[RunRecord]:
        """Every session of measuring, oldest first."""
        with self.reading() as db:
            return list(rows.select_runs(db))

    def samples(self, record: LayerRecord | NetworkRecord) -> Measurement:
        """The raw blocks behind a record of this table."""
        table = "layers" if isinstance(record, LayerRecord) else "networks"
        with self.reading() as db:
            quiet = self.quiet_reference_ms
            if quiet is None:
                raise InvalidTable(f"{self.path} has no quiet reference; run `widthwise luts check {self.path}`")
            return rows.select_samples(db, table, record.id, quiet)

    def summary(self) -> TableSummary:
        """Counts of what the table holds."""
        with self.reading() as db:
            unstable = [
                db.execute(f"SELECT COUNT(*) FROM {table} WHERE status = ?", (Status.UNSTABLE.value,)).fetchone()[0]
                for table in ("layers", "networks")
            ]
            counts = {table: self._count(table) for table in ("layers", "networks", "geometries", "runs")}
            return TableSummary(unstable=sum(unstable), seconds=sum(map(_seconds, rows.select_runs(db))), **counts)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One snapshot, so that several statements see the same table while others write."""
        with translated(self.path):
            self._db.execute("BEGIN")
            try:
                yield self._db
            finally:
                if self._db.in_transaction:  # SQLite has ended it itself after some errors
                    self._db.execute("ROLLBACK")  # nothing was written, and on a damaged file a COMMIT fails

    def _count(self, table: str) -> int:
        with translated(self.path):
            return int(self._db.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0])


def _identifying(fingerprint: Mapping[str, Scalar]) -> dict[str, Scalar]:
    return {name: value for name, value in fingerprint.items() if not name.startswith(INFO_PREFIX)}


def _lacks(table: Mapping[str, Scalar], here: Mapping[str, Scalar], name: str) -> bool:
    return name not in table or name not in here or table[name] != here[name]


def _show(facts: Mapping[str, Scalar], name: str) -> str:
    return repr(facts[name]) if name in facts else "(nothing)"


def _seconds(run: RunRecord) -> float:
    return (datetime.fromisoformat(run.last_utc) - datetime.fromisoformat(run.started_utc)).total_seconds()
