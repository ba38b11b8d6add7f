"""Tables in and out: JSON Lines (everything), CSV (one row per measurement, statistics only), merging.

The format follows from the suffix: ``.jsonl`` or ``.csv``, with ``.gz`` after it compressed. A run keeps its
random uuid wherever it is copied, and the measurements of a run keep their order; so what a table already has
of a run is known, and copying the same run again adds only what is new.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import os
import sqlite3
import uuid
import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import starmap
from os import PathLike
from pathlib import Path
from typing import IO

from widthwise.luts import formats, rows
from widthwise.luts.checks import Finding, Severity, check
from widthwise.luts.errors import InvalidTable
from widthwise.luts.foreign import is_foreign, read_foreign
from widthwise.luts.formats import Header, Item, LayersItem, NetworkItem
from widthwise.luts.measurement import Measurement
from widthwise.luts.records import LayerRecord, NetworkKey, RunRecord
from widthwise.luts.schema import BadRow
from widthwise.luts.store import Lut

__all__ = ["Finding", "Merged", "Severity", "check", "export_table", "import_table", "merge"]

_BATCH = 500
"""Layers timed on their own that are stored together."""


@dataclass(frozen=True, slots=True)
class Merged:
    """How much was added."""

    runs: int
    networks: int
    layers: int

    def __add__(self, other: Merged) -> Merged:
        return Merged(self.runs + other.runs, self.networks + other.networks, self.layers + other.layers)


def merge(into: Lut, others: Sequence[Lut]) -> Merged:
    """Copy all measurements of ``others``, raw samples and all, and say how many there were to add.

    All tables must be of one target on one device. Where their quiet references differ the copied latencies are
    put on the scale of ``into``: a sample is a ratio to the same reference kernel. Merging a table twice, or into
    itself, adds nothing; merging it again after it grew adds what is new. Each table is copied whole or not at all.

    Raises:
        TableMismatch: naming the fields that differ; nothing has been copied then.
        InvalidTable: a table is damaged, or ``into`` cannot be written.
    """
    for other in others:
        into.require_target(other.target)
        into.require_device(other.fingerprint)
    added = Merged(0, 0, 0)
    for other in others:
        if not os.path.samefile(into.path, other.path):
            header = Header(other.target, other.fingerprint, other.quiet_reference_ms)
            with closing(_contents(other)) as contents:
                added += _absorb(into, header, contents)
    return added


def export_table(lut: Lut, path: str | PathLike[str]) -> None:
    """Write ``lut`` as JSON Lines or CSV, replacing what was there.

    JSON Lines holds everything. CSV holds one row per measurement with its statistics, for a spreadsheet or a data
    frame; the raw samples stay behind.

    Raises:
        InvalidTable: an unknown suffix, a damaged table, or a place that cannot be written.
    """
    path = Path(path)
    write = formats.write_csv if _format(path) == ".csv" else formats.write_jsonl
    header = Header(lut.target, lut.fingerprint, lut.quiet_reference_ms)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.new")
    try:
        with closing(_contents(lut)) as contents, _opened(draft, "wt", compressed=path.suffix == ".gz") as file:
            write(file, header, contents)
        draft.replace(path)
    except OSError as error:
        raise InvalidTable(f"{path} cannot be written: {error.strerror}; choose a folder you can write to") from error
    finally:
        draft.unlink(missing_ok=True)


def import_table(
    source: str | PathLike[str], destination: str | PathLike[str], *, networks: str | PathLike[str] | None = None
) -> Merged:
    """Read an exported table into ``destination``, which is made where it does not exist yet.

    Tables of others are read as :mod:`widthwise.luts.foreign` says, as targets of their own.

    From CSV each measurement comes back as a single block that gives the same latency, so it counts as unstable:
    its interval was measured, but not by anything that can be recomputed.

    Args:
        source: a ``.jsonl`` or ``.csv`` file, or either with ``.gz``.
        destination: the LUT file.
        networks: the file with the whole networks of a table of others.

    Raises:
        InvalidTable: ``source`` is no such file; the message names the line.
        TableMismatch: ``destination`` is of another target or device.
    """
    source, destination = Path(source), Path(destination)
    made = False
    try:
        with _opened(source, "rt", compressed=source.suffix == ".gz") as file:
            header, contents = _read(file, source, Path(networks) if networks is not None else None)
            made = not destination.exists()
            lut = (
                Lut.create(destination, target=header.target, fingerprint=header.fingerprint)
                if made
                else Lut.open(destination)
            )
            with lut:
                lut.require_target(header.target)
                lut.require_device(header.fingerprint)
                return _absorb(lut, header, contents)
    except BaseException as error:
        if made:
            destination.unlink(missing_ok=True)
        if isinstance(error, OSError | EOFError | UnicodeError | zlib.error):
            reason = getattr(error, "strerror", None) or str(error)
            raise InvalidTable(f"{source} cannot be read: {reason}; check the path and export it again") from error
        raise


def _read(file: IO[str], source: Path, networks: Path | None) -> tuple[Header, Iterator[Item]]:
    if _format(source) == ".jsonl":
        return formats.read_jsonl(file, source)
    columns: list[str] = []
    with suppress(csv.Error):  # read_csv says what is wrong with it
        columns = next(csv.reader(itertools.islice(file, 1)), [])
    file.seek(0)
    if not is_foreign(columns):
        return formats.read_csv(file, source)
    if networks is None:
        return read_foreign(file.read(), source)
    with _opened(networks, "rt", compressed=networks.suffix == ".gz") as other:
        return read_foreign(file.read(), source, other.read())


def _format(path: Path) -> str:
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix not in (".csv", ".jsonl"):
        raise InvalidTable(f"{path}: the name must end in .jsonl (everything) or .csv (statistics), or either and .gz")
    return suffix


def _opened(path: Path, mode: str, *, compressed: bool) -> IO[str]:
    if compressed:
        return gzip.open(path, mode, encoding="utf-8", newline="")  # type: ignore[return-value]  # text mode
    return open(path, mode, encoding="utf-8", newline="")


def _contents(lut: Lut) -> Generator[Item, None, None]:
    """Runs, networks with their layers, then layers timed on their own; one snapshot."""
    with lut.reading() as db:
        uuids = {}
        for run in rows.select_runs(db):
            uuids[run.id] = run.uuid
            yield run
        quiet = lut.quiet_reference_ms
        if quiet is None:
            return
        geometries = rows.select_geometries(db)
        for record in list(rows.select_networks(db)):
            uid, timed = _uuid(uuids, record.run), rows.select_samples(db, "networks", record.id, quiet)
            layers = tuple(starmap(_item, rows.select_timed_layers(db, geometries, quiet, "network = ?", (record.id,))))
            key = NetworkKey(record.signature, record.model, record.widths)
            yield NetworkItem(uid, key, record.role, timed, layers)
        for layer, timed in rows.select_timed_layers(db, geometries, quiet, "network IS NULL"):
            yield LayersItem(_uuid(uuids, layer.run), (_item(layer, timed),))


def _item(record: LayerRecord, measurement: Measurement) -> rows.LayerItem:
    return rows.LayerItem(record.spec, record.estimator, measurement, record.layer_name)


def _uuid(uuids: dict[int, str], run: int) -> str:
    if run not in uuids:
        raise BadRow(f"a measurement belongs to run {run}, which is not there")
    return uuids[run]


def _absorb(into: Lut, header: Header, contents: Iterable[Item]) -> Merged:
    """Add what ``into`` has not yet, in one transaction."""
    quiet = into.quiet_reference_ms
    if quiet is None and header.quiet_reference_ms is not None:
        quiet = header.quiet_reference_ms
        into.set_quiet_reference(quiet)
    with into.writing() as db:
        sink = _Sink(db, quiet)
        for item in _gathered(contents):
            sink.add(item)
    return sink.merged


def _gathered(contents: Iterable[Item]) -> Iterator[Item]:
    """The same items, with consecutive layers of one run in batches: their statistics are cheaper together."""
    run, batch = "", list[rows.LayerItem]()
    for item in contents:
        if batch and not (isinstance(item, LayersItem) and item.run == run and len(batch) < _BATCH):
            yield LayersItem(run, tuple(batch))
            batch.clear()
        if isinstance(item, LayersItem):
            run = item.run
            batch += item.layers
        else:
            yield item
    if batch:
        yield LayersItem(run, tuple(batch))


class _Sink:
    """Adds items to an open transaction, leaving out the first ones of each run that are there already."""

    def __init__(self, db: sqlite3.Connection, quiet_reference_ms: float | None) -> None:
        self.merged = Merged(0, 0, 0)
        self._db, self._quiet = db, quiet_reference_ms
        self._runs = {run.uuid: run for run in rows.select_runs(db)}
        self._networks = dict(db.execute("SELECT run, COUNT(*) FROM networks GROUP BY run"))
        self._layers = dict(db.execute("SELECT run, COUNT(*) FROM layers WHERE network IS NULL GROUP BY run"))

    def add(self, item: Item) -> None:
        if isinstance(item, RunRecord):
            self._add_run(item)
        elif item.run not in self._runs:
            raise BadRow(f"a measurement belongs to run {item.run!r}, which was not given before it")
        elif isinstance(item, NetworkItem):
            self._add_network(self._runs[item.run].id, item)
        else:
            self._add_layers(self._runs[item.run].id, item.layers)

    def _add_run(self, run: RunRecord) -> None:
        known = self._runs.get(run.uuid)
        if known is None:
            self._runs[run.uuid] = replace(run, id=rows.insert_run(self._db, run))
            self.merged += Merged(1, 0, 0)
        elif run.last_utc > known.last_utc:  # it went on after it was copied; both texts are UTC
            self._db.execute("UPDATE runs SET last_utc = ? WHERE id = ?", (run.last_utc, known.id))

    def _add_network(self, run: int, item: NetworkItem) -> None:
        if self._networks.get(run, 0):
            self._networks[run] -= 1
            return
        timed = self._scaled(item.measurement)
        network = rows.insert_network(self._db, run, item.network, item.role, timed)
        self._insert(run, item.layers, network)
        self.merged += Merged(0, 1, 0)

    def _add_layers(self, run: int, layers: Sequence[rows.LayerItem]) -> None:
        known = min(self._layers.get(run, 0), len(layers))
        if known:
            self._layers[run] -= known
        self._insert(run, layers[known:], None)

    def _insert(self, run: int, layers: Sequence[rows.LayerItem], network: int | None) -> None:
        scaled = [replace(layer, measurement=self._scaled(layer.measurement)) for layer in layers]
        rows.insert_layers(self._db, run, scaled, network)
        self.merged += Merged(0, 0, len(scaled))

    def _scaled(self, measurement: Measurement) -> Measurement:
        if self._quiet is None:
            raise BadRow("there is a measurement and no quiet reference")
        return Measurement(measurement.blocks, self._quiet)
