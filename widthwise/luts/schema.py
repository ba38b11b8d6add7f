"""The LUT file on disk: its tables, its versions, and how it is opened.

One SQLite file per device and target. Whatever is wrong with a file is said in one line by
:class:`~widthwise.luts.errors.InvalidTable`, with the next step; no ``sqlite3`` error leaves this package.
"""

from __future__ import annotations

import os
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from widthwise.luts.errors import InvalidTable

__all__ = ["APPLICATION_ID", "SCHEMA_VERSION", "BadRow", "connect", "create", "translated"]

APPLICATION_ID = 0x57574C54  # "WWLT"
"""Tells a LUT from any other SQLite file (``PRAGMA application_id``)."""

BUSY_SECONDS = 30
"""How long a writer waits for another one."""

# Schema history, newest last. A change adds a version here, the SQL that leads to it at the end of
# _MIGRATIONS, and the same change to _TABLES.
#
#   1   facts, runs, geometries, networks, layers, layer_samples
#   2   a sample may hold a third element, the conditions it was taken under; rows of version 1 are valid as they are
_MIGRATIONS: tuple[str, ...] = ("",)
"""The i-th script turns version i + 1 into version i + 2."""

SCHEMA_VERSION = 1 + len(_MIGRATIONS)
"""The version this code writes (``PRAGMA user_version``)."""

# latency_ms, low_ms, high_ms, status and blocks are derived from samples (JSON [[latency_ms, reference_ms,
# conditions?], ...]) and facts.quiet_reference_ms; they stand beside them for whoever reads the file with SQL. The
# samples of layers have a table of their own because they are nine tenths of the file and a predictor reads all but
# them; their conditions are those of the network they were timed in.
_TABLES = """
CREATE TABLE facts (
    section TEXT NOT NULL CHECK (section IN ('target', 'fingerprint', 'table')),
    name    TEXT NOT NULL,
    value   TEXT NOT NULL,
    PRIMARY KEY (section, name)
);
CREATE TABLE runs (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid        TEXT NOT NULL UNIQUE,
    purpose     TEXT NOT NULL,
    started_utc TEXT NOT NULL,
    last_utc    TEXT NOT NULL,
    versions    TEXT NOT NULL,
    info        TEXT NOT NULL
);
CREATE TABLE geometries (
    id  INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL UNIQUE
);
CREATE TABLE networks (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    run        INTEGER NOT NULL REFERENCES runs (id),
    signature  TEXT NOT NULL,
    model      TEXT NOT NULL,
    widths     TEXT NOT NULL,
    role       TEXT NOT NULL CHECK (role IN ('dense', 'fit', 'holdout', 'verify')),
    latency_ms REAL NOT NULL CHECK (latency_ms > 0),
    low_ms     REAL NOT NULL CHECK (low_ms > 0),
    high_ms    REAL NOT NULL CHECK (high_ms >= low_ms),
    status     TEXT NOT NULL CHECK (status IN ('stable', 'unstable')),
    blocks     INTEGER NOT NULL CHECK (blocks > 0),
    samples    TEXT NOT NULL
);
CREATE INDEX networks_by_signature ON networks (signature);
CREATE TABLE layers (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    run        INTEGER NOT NULL REFERENCES runs (id),
    geometry   INTEGER NOT NULL REFERENCES geometries (id),
    channels_1 INTEGER CHECK (channels_1 > 0),
    channels_2 INTEGER CHECK (channels_2 > 0),
    estimator  TEXT NOT NULL CHECK (estimator IN ('in_place', 'single', 'imported')),
    network    INTEGER REFERENCES networks (id),
    layer_name TEXT,
    latency_ms REAL NOT NULL CHECK (latency_ms > 0),
    low_ms     REAL NOT NULL CHECK (low_ms > 0),
    high_ms    REAL NOT NULL CHECK (high_ms >= low_ms),
    status     TEXT NOT NULL CHECK (status IN ('stable', 'unstable')),
    blocks     INTEGER NOT NULL CHECK (blocks > 0)
);
CREATE TABLE layer_samples (
    layer   INTEGER PRIMARY KEY REFERENCES layers (id),
    samples TEXT NOT NULL
);
CREATE INDEX layers_by_geometry ON layers (geometry);
CREATE INDEX layers_by_network ON layers (network);
"""

_DERIVED = {"latency_ms", "low_ms", "high_ms", "status", "blocks"}
_COLUMNS = {
    "facts": {"section", "name", "value"},
    "runs": {"id", "uuid", "purpose", "started_utc", "last_utc", "versions", "info"},
    "geometries": {"id", "key"},
    "networks": {"id", "run", "signature", "model", "widths", "role", "samples"} | _DERIVED,
    "layers": {"id", "run", "geometry", "channels_1", "channels_2", "estimator", "network", "layer_name"} | _DERIVED,
    "layer_samples": {"layer", "samples"},
}


class BadRow(ValueError):
    """A stored row that cannot be what this package wrote; never leaves the package."""


def create(path: Path, facts: Sequence[tuple[str, str, str]]) -> None:
    """Make an empty table at ``path`` with its (section, name, JSON) facts; it appears whole or not at all.

    Raises:
        InvalidTable: something is there already, or the folder cannot be written.
    """
    if os.path.lexists(path):
        raise InvalidTable(f"{path} exists already: open it, or choose another name for the new table")
    if not path.parent.is_dir():
        raise InvalidTable(f"{path}: there is no folder {path.parent}; make it first")
    # A killed creation must not leave half a table under the final name, and two creators must not share one.
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.new")
    try:
        with translated(path):
            _write_schema(draft, facts)
        _publish(draft, path)
    except OSError as error:
        raise InvalidTable(f"{path} cannot be made here: {error.strerror}; choose a folder you can write to") from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def connect(path: Path, *, readonly: bool) -> sqlite3.Connection:
    """An open connection to the table at ``path``, checked to be one of ours and of this version.

    Raises:
        InvalidTable: there is none, or it is not a LUT this version can use.
    """
    _require_file(path, readonly=readonly)
    with translated(path):
        db = _open(path, readonly=readonly)
        try:
            _identify(db, path)
            _migrate(db, path, readonly=readonly)
            _require_tables(db, path)
        except BaseException:
            db.close()
            raise
    return db


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn what SQLite or a stored row complains about into one readable line.

    Raises:
        InvalidTable: in place of ``sqlite3.Error`` and ``BadRow``.
    """
    try:
        yield
    except BadRow as error:
        raise InvalidTable(
            f"{path} is damaged: {error}; `widthwise luts check {path}` lists every fault, or restore a copy"
        ) from error
    except (OverflowError, UnicodeEncodeError) as error:  # an integer beyond 64 bits, text that is not Unicode
        raise InvalidTable(f"{path} cannot hold a value given ({error}); nothing was stored") from error
    except sqlite3.Error as error:
        raise InvalidTable(f"{path} {_explain(error, path)}") from error


def _explain(error: sqlite3.Error, path: Path) -> str:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    known = {
        sqlite3.SQLITE_BUSY: f"has been busy for {BUSY_SECONDS} s; wait for the process that writes it, then try again",
        sqlite3.SQLITE_READONLY: "cannot be written; give it write permission, or open it read-only",
        sqlite3.SQLITE_CORRUPT: f"is damaged ({error}); restore a copy, or delete it and run `widthwise profile` again",
        sqlite3.SQLITE_NOTADB: "is not a LUT (no SQLite file); make one with `widthwise profile … --lut FILE`",
        sqlite3.SQLITE_FULL: "cannot grow: the disk is full; free some space, then go on (what was added is safe)",
        sqlite3.SQLITE_IOERR: f"cannot be read or written ({error}); check the disk",
        sqlite3.SQLITE_CANTOPEN: f"cannot be opened; check the permissions of the file and of {path.parent}",
    }
    return known.get(code, f"cannot be used ({error}); run `widthwise luts check {path}`")


def _write_schema(path: Path, facts: Sequence[tuple[str, str, str]]) -> None:
    db = sqlite3.connect(path, isolation_level=None)
    try:
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version = {SCHEMA_VERSION};")
        db.executemany("INSERT INTO facts (section, name, value) VALUES (?, ?, ?)", facts)
        db.execute("COMMIT")
    finally:
        db.close()


def _publish(draft: Path, path: Path) -> None:
    """Give the draft its name unless somebody was faster."""
    try:
        os.link(draft, path)
    except FileExistsError as error:
        raise InvalidTable(f"{path} was made by another process just now: open it") from error
    except OSError:  # a file system without hard links
        if path.exists():
            raise InvalidTable(f"{path} was made by another process just now: open it") from None
        draft.rename(path)


def _require_file(path: Path, *, readonly: bool) -> None:
    try:
        exists, regular = path.exists(), path.is_file()
    except OSError as error:
        raise InvalidTable(f"{path} cannot be opened: {error.strerror}") from error
    if not exists:
        raise InvalidTable(f"no table at {path}; make one with `widthwise profile MODEL --input … --lut {path}`")
    if not regular:
        raise InvalidTable(f"{path} is not a file but a folder or device; name the LUT file itself")
    # The file is never opened here directly: closing it would drop the locks that other connections of
    # this process hold on it (POSIX advisory locks belong to the process).
    if path.stat().st_size == 0:
        raise InvalidTable(f"{path} is empty (0 bytes); delete it and run `widthwise profile … --lut {path}`")
    if not os.access(path, os.R_OK if readonly else os.R_OK | os.W_OK):
        need = "read" if readonly else "write"
        raise InvalidTable(f"{path} cannot be {'read' if readonly else 'written'}; give yourself {need} permission")


def _open(path: Path, *, readonly: bool) -> sqlite3.Connection:
    db = _raw(path, "ro" if readonly else "rw")
    try:
        db.execute("PRAGMA schema_version").fetchone()
    except sqlite3.OperationalError as error:
        db.close()
        rollback = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_READONLY_ROLLBACK
        if not (rollback and os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
            raise
        # A writer was killed in the middle of a transaction. Bringing the file back to its last committed state
        # is not a change of what it holds, and only a writer may do it.
        repair = _raw(path, "rw")
        try:
            repair.execute("PRAGMA schema_version").fetchone()
        finally:
            repair.close()
        db = _raw(path, "ro")
    except sqlite3.Error:
        db.close()
        raise
    return db


def _raw(path: Path, mode: str) -> sqlite3.Connection:
    db = sqlite3.connect(f"{path.resolve().as_uri()}?mode={mode}", uri=True, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        db.execute("PRAGMA trusted_schema = OFF")
        db.execute("PRAGMA foreign_keys = ON")
        if mode == "rw":
            db.execute("PRAGMA journal_mode = DELETE").fetchone()
            db.execute("PRAGMA synchronous = FULL")
    except BaseException:
        db.close()
        raise
    return db


def _identify(db: sqlite3.Connection, path: Path) -> None:
    (application,) = db.execute("PRAGMA application_id").fetchone()
    if application != APPLICATION_ID:
        raise InvalidTable(
            f"{path} is an SQLite file of another program, not a LUT; name a file `widthwise profile` made"
        )
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise InvalidTable(
            f"{path} was written by a newer widthwise (schema {version}, this one reads up to {SCHEMA_VERSION}); "
            "run `pip install --upgrade widthwise`"
        )
    if version < 1:
        raise InvalidTable(f"{path} is damaged (schema version {version}); restore a copy or profile again")


def _migrate(db: sqlite3.Connection, path: Path, *, readonly: bool) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version == SCHEMA_VERSION:
        return
    if readonly:
        if not any(script.strip() for script in _MIGRATIONS[version - 1 :]):
            return  # the layout is the same
        raise InvalidTable(
            f"{path} has the older schema {version}; run `widthwise luts check {path}` once to upgrade it"
        )
    db.execute("BEGIN IMMEDIATE")
    try:
        # Read again: another process may have migrated it while this one waited for the lock.
        (version,) = db.execute("PRAGMA user_version").fetchone()
        for script in _MIGRATIONS[version - 1 :]:
            for statement in filter(str.strip, script.split(";")):
                db.execute(statement)
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _require_tables(db: sqlite3.Connection, path: Path) -> None:
    if db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchone():
        raise InvalidTable(f"{path} holds a trigger, which no LUT has; don't use this file")
    for table, columns in _COLUMNS.items():
        missing = columns - {row[1] for row in db.execute(f"PRAGMA table_info({table})")}
        if missing:
            names = ", ".join(sorted(missing))
            raise InvalidTable(f"{path} is damaged: table {table} lacks {names}; restore a copy or profile again")
