"""Whether a table can be believed: its file, its rows, and numbers no stopwatch gives.

Interpolated tables have been sold as measured ones; real latencies carry noise, so points that lie on one
straight line to the last bit are named.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from typing import Any

import numpy as np

from widthwise.luts import rows
from widthwise.luts.errors import InvalidSpec, InvalidTable
from widthwise.luts.measurement import Measurement, Summary, summarise
from widthwise.luts.records import LayerRecord, NetworkRecord
from widthwise.luts.schema import BadRow
from widthwise.luts.spec import Geometry
from widthwise.luts.store import Lut

__all__ = ["Finding", "Severity", "check"]

_LISTED = 20
"""Findings of one sort beyond this many are counted, not listed."""

_SAME = 1e-9
"""Stored statistics may differ from recomputed ones by this share (another CPU rounds otherwise)."""

_ON_LINE = 1e-12
"""Distance from a straight line, as a share of the latency, that float rounding alone explains."""

_SUSPICIOUS_POINTS = 8
_SHORTEST_MS, _LONGEST_MS = 1e-6, 3.6e6  # a nanosecond, an hour
_DRIFT = 100.0  # a reference kernel this much slower or faster than undisturbed is another kernel or another unit


class Severity(StrEnum):
    """How bad a finding is."""

    ERROR = "error"
    """The table cannot be used as it is."""
    WARNING = "warning"
    """It can, and somebody should look."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing wrong with a table: where, what, and what to do about it."""

    severity: Severity
    where: str
    what: str
    next_step: str


@dataclass(slots=True)
class _Findings:
    """Findings so far, at most ``_LISTED`` of a sort."""

    listed: list[Finding] = field(default_factory=list)
    counts: Counter[tuple[Severity, str]] = field(default_factory=Counter)

    def add(self, severity: Severity, where: str, what: str, next_step: str) -> None:
        sort = (severity, next_step)
        self.counts[sort] += 1
        if self.counts[sort] <= _LISTED:
            self.listed.append(Finding(severity, where, what, next_step))

    def all(self) -> list[Finding]:
        more = [
            Finding(severity, "table", f"{count - _LISTED} more findings like these", step)
            for (severity, step), count in self.counts.items()
            if count > _LISTED
        ]
        return sorted(self.listed + more, key=lambda finding: finding.severity is not Severity.ERROR)


_RESTORE = "restore a copy of the file, or profile into a new one"
_REMEASURE = "profile into a new file; this row was changed after it was measured, or badly copied"
_LOOK = "find out where these numbers come from; measure them again if nobody knows"


def check(lut: Lut) -> list[Finding]:
    """Everything wrong with ``lut``, errors first; an empty list for a sound table.

    Looks at the file (SQLite's own checks), at every row (raw samples, statistics recomputed from them, absurd
    values) and at every geometry (straight lines and constants where a device gives noise).
    """
    findings = _Findings()
    with lut.reading() as db:
        for part in (_file, _runs, _quiet_reference, _networks, _layers):
            try:
                part(db, lut, findings)
            except (BadRow, InvalidTable, sqlite3.Error) as error:
                where = "file" if isinstance(error, sqlite3.Error) else "table"
                findings.add(Severity.ERROR, where, str(error), _RESTORE)
    return findings.all()


def _file(db: sqlite3.Connection, lut: Lut, findings: _Findings) -> None:
    for (message,) in db.execute(f"PRAGMA integrity_check({_LISTED})").fetchall():
        if message != "ok":
            findings.add(Severity.ERROR, "file", str(message), _RESTORE)
    for table, row, parent, _ in db.execute("PRAGMA foreign_key_check").fetchall():
        findings.add(Severity.ERROR, f"{table} row {row}", f"belongs to a row that {parent} lacks", _RESTORE)


def _runs(db: sqlite3.Connection, lut: Lut, findings: _Findings) -> None:
    for _ in rows.select_runs(db):
        pass


def _quiet_reference(db: sqlite3.Connection, lut: Lut, findings: _Findings) -> None:
    if lut.quiet_reference_ms is None:
        (measured,) = db.execute("SELECT EXISTS (SELECT 1 FROM layers) OR EXISTS (SELECT 1 FROM networks)").fetchone()
        severity = Severity.ERROR if measured else Severity.WARNING
        findings.add(severity, "table", "the quiet reference is missing", "run `widthwise profile` into a new file")


def _networks(db: sqlite3.Connection, lut: Lut, findings: _Findings) -> None:
    quiet = lut.quiet_reference_ms or 1.0
    cursor = db.execute(f"{rows.TIMED_NETWORKS} ORDER BY id")
    while chunk := list(islice(cursor, 1000)):
        timed: list[tuple[NetworkRecord, Measurement]] = []
        for *row, samples in chunk:
            try:
                record = rows.network_record(row)
                timed.append((record, rows.parse_samples(samples, quiet, f"networks row {record.id}")))
            except BadRow as error:
                findings.add(Severity.ERROR, f"networks row {row[0]}", str(error), _RESTORE)
        _compare("networks", timed, findings)


def _layers(db: sqlite3.Connection, lut: Lut, findings: _Findings) -> None:
    quiet = lut.quiet_reference_ms or 1.0
    geometries = _geometries(db, findings)
    points: dict[Geometry, dict[tuple[int, ...], float]] = {}
    cursor = db.execute(f"{rows.TIMED_LAYERS} ORDER BY id")
    while chunk := list(islice(cursor, 1000)):
        timed: list[tuple[LayerRecord, Measurement]] = []
        for *row, samples in chunk:
            try:
                record = rows.layer_record(row, geometries)
                timed.append((record, rows.parse_samples(samples, quiet, f"layers row {record.id}")))
                points.setdefault(record.spec.geometry, {}).setdefault(record.spec.channels, record.latency_ms)
            except BadRow as error:
                findings.add(Severity.ERROR, f"layers row {row[0]}", str(error), _RESTORE)
        _compare("layers", timed, findings)
    for geometry, surface in points.items():
        _suspicious(geometry, surface, findings)


def _geometries(db: sqlite3.Connection, findings: _Findings) -> dict[int, Geometry]:
    geometries = {}
    for identifier, key in db.execute("SELECT id, key FROM geometries"):
        try:
            geometry = Geometry.parse(key)
            if geometry.key != key:
                raise InvalidSpec(f"not in canonical form: {key[:120]!r}")
            geometries[identifier] = geometry
        except InvalidSpec as error:
            findings.add(Severity.ERROR, f"geometries row {identifier}", str(error), _RESTORE)
    return geometries


def _compare(table: str, timed: Sequence[tuple[LayerRecord | NetworkRecord, Measurement]], findings: _Findings) -> None:
    for (record, measurement), fresh in zip(timed, summarise([m for _, m in timed]), strict=True):
        where = f"{table} row {record.id}"
        wrong = list(_differences(record, fresh))
        if wrong:
            findings.add(Severity.ERROR, where, f"{', '.join(wrong)} disagree with the raw samples", _REMEASURE)
        if not _SHORTEST_MS <= record.latency_ms <= _LONGEST_MS:
            findings.add(Severity.WARNING, where, f"a latency of {record.latency_ms:g} ms is absurd", _LOOK)
        reference = [block.reference_ms / measurement.quiet_reference_ms for block in measurement.blocks]
        if max(reference) > _DRIFT or min(reference) < 1 / _DRIFT:
            what = f"its reference kernel ran at {min(reference):.3g} to {max(reference):.3g} times the quiet latency"
            findings.add(Severity.WARNING, where, what, _LOOK)


def _differences(record: LayerRecord | NetworkRecord, fresh: Summary) -> Iterator[str]:
    for name in ("latency_ms", "low_ms", "high_ms"):
        stored, computed = getattr(record, name), getattr(fresh, name)
        if abs(stored - computed) > _SAME * computed:
            yield name
    # At the very threshold, rounding may decide the status.
    if record.status is not fresh.status and record.latency_ms == fresh.latency_ms and record.low_ms == fresh.low_ms:
        yield "status"
    if record.blocks != fresh.blocks:
        yield "blocks"


def _suspicious(geometry: Geometry, surface: dict[tuple[int, ...], float], findings: _Findings) -> None:
    """Name a surface that is smoother than any device."""
    latency, repeats = Counter(surface.values()).most_common(1)[0]
    if repeats >= _SUSPICIOUS_POINTS:
        what = f"{repeats} different widths took {latency!r} ms, equal to the last bit: no measurement does that"
        findings.add(Severity.WARNING, str(geometry), what, _LOOK)
        return
    longest = max((_longest_line(line) for line in _lines(surface)), default=0)
    if longest >= _SUSPICIOUS_POINTS:
        what = f"{longest} neighbouring widths lie on one straight line to float precision: interpolated, not measured"
        findings.add(Severity.WARNING, str(geometry), what, _LOOK)


def _lines(surface: dict[tuple[int, ...], float]) -> Iterator[list[tuple[int, float]]]:
    """Points along each axis, all other widths equal; and along the diagonals through the origin's corner."""
    lines: dict[Any, list[tuple[int, float]]] = {}
    for channels, latency in surface.items():
        for axis, width in enumerate(channels):
            fixed = channels[:axis] + channels[axis + 1 :]
            lines.setdefault((axis, fixed), []).append((width, latency))
        if len(channels) == 2:
            lines.setdefault(("sum", channels[1] - channels[0]), []).append((channels[0], latency))
    yield from lines.values()


def _longest_line(points: list[tuple[int, float]]) -> int:
    """How many consecutive points at most lie on one straight line."""
    if len(points) < _SUSPICIOUS_POINTS:
        return 0
    x, y = np.array(sorted(points)).T
    left, right = x[1:-1] - x[:-2], x[2:] - x[1:-1]
    chord = (y[:-2] * right + y[2:] * left) / (left + right)
    longest = run = 0
    for straight in np.abs(y[1:-1] - chord) <= _ON_LINE * y[1:-1]:
        run = run + 1 if straight else 0
        longest = max(longest, run)
    return longest + 2
