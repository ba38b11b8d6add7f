"""The text formats of a table: JSON Lines and CSV, as streams of items.

JSON Lines: a header line, then one line for each run, each network with its layers, and each layer timed on its
own. CSV: one row per measurement; columns ``target.…`` and ``fingerprint.…`` say whose table it is.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any, TypeVar

from widthwise.luts.errors import InvalidSpec, InvalidTable
from widthwise.luts.measurement import Block, Estimator, Measurement, summarise
from widthwise.luts.records import NetworkKey, Role, RunRecord, Scalar
from widthwise.luts.rows import LayerItem, dump_facts, dump_samples, parse_samples, parse_widths, utc_now
from widthwise.luts.schema import BadRow
from widthwise.luts.spec import Geometry, LayerSpec

__all__ = ["Header", "Item", "LayersItem", "NetworkItem", "read_csv", "read_jsonl", "write_csv", "write_jsonl"]

T = TypeVar("T")

_FORMAT, _VERSION = "widthwise-lut", 1


@dataclass(frozen=True, slots=True)
class Header:
    """Whose table it is."""

    target: Mapping[str, Scalar]
    fingerprint: Mapping[str, Scalar]
    quiet_reference_ms: float | None


@dataclass(frozen=True, slots=True)
class NetworkItem:
    """A whole-network sample with the layers timed inside it; ``run`` is the run's uuid."""

    run: str
    network: NetworkKey
    role: Role
    measurement: Measurement
    layers: tuple[LayerItem, ...]


@dataclass(frozen=True, slots=True)
class LayersItem:
    """Layers timed on their own, in the order they were stored; ``run`` is the run's uuid."""

    run: str
    layers: tuple[LayerItem, ...]


Item = RunRecord | NetworkItem | LayersItem


# ---- JSON Lines --------------------------------------------------------------------------------------


def write_jsonl(file: IO[str], header: Header, contents: Iterable[Item]) -> None:
    """Write everything, raw samples included."""
    head = {"format": _FORMAT, "version": _VERSION, "target": dict(header.target)}
    head |= {"fingerprint": dict(header.fingerprint), "quiet_reference_ms": header.quiet_reference_ms}
    file.write(json.dumps(head) + "\n")
    for item in contents:
        for line in _lines(item):
            file.write(json.dumps(line, separators=(",", ":")) + "\n")


def _lines(item: Item) -> Iterator[dict[str, Any]]:
    if isinstance(item, RunRecord):
        names = ("uuid", "purpose", "started_utc", "last_utc", "versions", "info")
        yield {"run": {name: getattr(item, name) for name in names}}
    elif isinstance(item, NetworkItem):
        key = {"signature": item.network.signature, "model": item.network.model, "widths": dict(item.network.widths)}
        sample = {**key, "role": item.role.value, "samples": dump_samples(item.measurement)}
        yield {"network": sample, "of": item.run, "layers": [_layer(layer) for layer in item.layers]}
    else:
        for layer in item.layers:
            yield {"layer": _layer(layer), "of": item.run}


def _layer(item: LayerItem) -> dict[str, Any]:
    layer = {} if item.name is None else {"name": item.name}
    geometry = json.loads(item.spec.geometry.key)
    samples = dump_samples(item.measurement)
    return layer | {
        "geometry": geometry,
        "channels": item.spec.channels,
        "estimator": item.estimator.value,
        "samples": samples,
    }


def read_jsonl(file: IO[str], path: Path) -> tuple[Header, Iterator[Item]]:
    """The header, and the items as they are read.

    Raises:
        InvalidTable: naming the line that is not such a file's.
    """
    first = _guarded(lambda: _read_header(file.readline()), f"{path} line 1")
    return first, _read_items(file, path, first.quiet_reference_ms)


def _read_header(line: str) -> Header:
    head = json.loads(line)
    if head["format"] != _FORMAT:
        raise ValueError(f"its format is {head['format']!r}, not {_FORMAT!r}")
    if head["version"] != _VERSION:
        raise ValueError(f"its version is {head['version']!r}, this widthwise reads {_VERSION}; upgrade it")
    quiet = head["quiet_reference_ms"]
    dump_facts(head["target"], "target"), dump_facts(head["fingerprint"], "fingerprint")
    return Header(head["target"], head["fingerprint"], None if quiet is None else float(quiet))


def _read_items(file: IO[str], path: Path, quiet: float | None) -> Iterator[Item]:
    for number, line in enumerate(file, 2):
        if line.strip():
            yield _guarded(lambda line=line: _read_item(json.loads(line), quiet), f"{path} line {number}")  # type: ignore[misc]


def _read_item(line: dict[str, Any], quiet: float | None) -> Item:
    if "run" in line:
        run = line["run"]
        versions = {str(name): str(version) for name, version in run["versions"].items()}
        dump_facts(run["info"], "info")
        uid, purpose, started, last = (_str(run[name]) for name in ("uuid", "purpose", "started_utc", "last_utc"))
        _ = datetime.fromisoformat(started), datetime.fromisoformat(last)
        return RunRecord(0, uid, purpose, started, last, versions, run["info"])
    if quiet is None:
        raise ValueError("there is a measurement, and no quiet reference in the header")
    if "network" in line:
        sample = line["network"]
        widths = parse_widths(json.dumps(sample["widths"]), "network")
        key = NetworkKey(_str(sample["signature"]), _str(sample["model"]), widths)
        layers = tuple(_read_layer(layer, quiet) for layer in line["layers"])
        return NetworkItem(_str(line["of"]), key, Role(sample["role"]), _timed(sample, quiet), layers)
    return LayersItem(_str(line["of"]), (_read_layer(line["layer"], quiet),))


def _read_layer(layer: dict[str, Any], quiet: float) -> LayerItem:
    geometry = Geometry.parse(json.dumps(layer["geometry"]))
    name = None if layer.get("name") is None else _str(layer["name"])
    return LayerItem(_spec(geometry, layer["channels"]), Estimator(layer["estimator"]), _timed(layer, quiet), name)


def _timed(sample: dict[str, Any], quiet: float) -> Measurement:
    return parse_samples(json.dumps(sample["samples"]), quiet, "sample")


# ---- CSV ---------------------------------------------------------------------------------------------

_NEEDED = ("sample", "run", "network", "role", "signature", "model", "widths", "layer_name", "geometry")
_NUMBERS = ("channels_1", "channels_2", "estimator", "latency_ms", "quiet_reference_ms")
_DERIVED = ("low_ms", "high_ms", "status", "blocks")


def write_csv(file: IO[str], header: Header, contents: Iterable[Item]) -> None:
    """Write one row per measurement; ``network`` counts the networks of the file, layers in place repeat its number."""
    facts = {f"target.{name}": _cell(value) for name, value in header.target.items()}
    facts |= {f"fingerprint.{name}": _cell(value) for name, value in header.fingerprint.items()}
    common = facts | {"quiet_reference_ms": header.quiet_reference_ms}
    writer = csv.DictWriter(file, [*_NEEDED, *_NUMBERS, *_DERIVED, *facts], restval="")
    writer.writeheader()
    network = 0
    for item in contents:
        if isinstance(item, NetworkItem):
            network += 1
            writer.writerow(common | _network_row(item, network))
        if isinstance(item, NetworkItem | LayersItem):
            place = {"network": network if isinstance(item, NetworkItem) else "", "run": item.run}
            for layer, statistics in zip(
                item.layers, _statistics([layer.measurement for layer in item.layers]), strict=True
            ):
                writer.writerow(common | place | _layer_row(layer) | statistics)


def _network_row(item: NetworkItem, number: int) -> dict[str, Any]:
    key = item.network
    row = {"sample": "network", "network": number, "run": item.run, "role": item.role.value}
    row |= {"signature": key.signature, "model": key.model, "widths": json.dumps(dict(key.widths))}
    return row | _statistics([item.measurement])[0] | {"estimator": "whole"}


def _layer_row(item: LayerItem) -> dict[str, Any]:
    row = {"sample": "layer", "layer_name": item.name or ""}
    row |= {f"channels_{axis}": str(width) for axis, width in enumerate(item.spec.channels, 1)}
    return row | {"geometry": item.spec.geometry.key, "estimator": item.estimator.value}


def _statistics(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    return [{name: getattr(summary, name) for name in ("latency_ms", *_DERIVED)} for summary in summarise(measurements)]


def read_csv(file: IO[str], path: Path) -> tuple[Header, Iterator[Item]]:
    """The header and the items of a file :func:`write_csv` wrote; each measurement is a single block.

    Raises:
        InvalidTable: naming the line that is not such a file's.
    """
    reader = csv.DictReader(file, strict=True)
    lines = _guarded(lambda: [(reader.line_num, row) for row in reader], f"{path}")
    names = list(reader.fieldnames or ())
    missing = [name for name in (*_NEEDED, *_NUMBERS) if name not in names]
    if missing or not lines:
        what = f"lacks the columns {', '.join(missing)}" if missing else "holds no measurement"
        raise InvalidTable(
            f"{path} {what}; export the table again, or use JSON Lines, which also holds the raw samples"
        )
    common = [name for name in names if name.startswith(("target.", "fingerprint.")) or name == "quiet_reference_ms"]
    first = lines[0][1]
    for number, row in lines:
        odd = [name for name in common if row[name] != first[name]]
        if odd:
            raise InvalidTable(
                f"{path} line {number} is of another table than line 2 ({', '.join(odd)}); split the file"
            )
    header = _guarded(lambda: _csv_header(first, common), f"{path} line 2")
    return header, iter(_csv_items(lines, path, header.quiet_reference_ms or 0.0))


def _csv_header(row: Mapping[str, str], common: Sequence[str]) -> Header:
    facts: dict[str, dict[str, Scalar]] = {"target": {}, "fingerprint": {}}
    for name in common:
        section, _, field = name.partition(".")
        if section in facts:
            facts[section][field] = _value(row[name])
    return Header(facts["target"], facts["fingerprint"], float(row["quiet_reference_ms"]))


def _csv_items(lines: Sequence[tuple[int, dict[str, str]]], path: Path, quiet: float) -> list[Item]:
    now = utc_now()
    runs = dict.fromkeys(row["run"] for _, row in lines)
    items: list[Item] = [RunRecord(0, run, f"imported from {path.name}", now, now, {}, {}) for run in runs]
    places: dict[str, int] = {}
    for number, row in lines:
        where = f"{path} line {number}"
        if row["sample"] == "network":
            places[row["network"]] = len(items)
            items.append(_guarded(lambda row=row: _csv_network(row, quiet), where))  # type: ignore[misc]
            continue
        layer: LayerItem = _guarded(lambda row=row: _csv_layer(row, quiet), where)  # type: ignore[misc]
        home = items[places[row["network"]]] if row["network"] in places else None
        if isinstance(home, NetworkItem):
            items[places[row["network"]]] = NetworkItem(
                home.run, home.network, home.role, home.measurement, (*home.layers, layer)
            )
        elif row["network"]:
            raise InvalidTable(f"{where} comes before its network {row['network']}; export the table again")
        else:
            items.append(LayersItem(row["run"], (layer,)))
    return items


def _csv_network(row: Mapping[str, str], quiet: float) -> NetworkItem:
    key = NetworkKey(row["signature"], row["model"], parse_widths(row["widths"], "widths"))
    return NetworkItem(row["run"], key, Role(row["role"]), _single(row, quiet), ())


def _csv_layer(row: Mapping[str, str], quiet: float) -> LayerItem:
    if row["sample"] != "layer":
        raise ValueError(f"sample is 'layer' or 'network', not {row['sample']!r}")
    channels = [int(row[name]) for name in ("channels_1", "channels_2") if row[name]]
    spec = _spec(Geometry.parse(row["geometry"]), channels)
    return LayerItem(spec, Estimator(row["estimator"]), _single(row, quiet), row["layer_name"] or None)


def _single(row: Mapping[str, str], quiet: float) -> Measurement:
    return Measurement((Block(float(row["latency_ms"]), quiet),), quiet)


def _cell(value: Scalar) -> str:
    """A fact as it reads best; text that would read as something else is quoted."""
    if isinstance(value, str):
        with suppress(ValueError):
            json.loads(value)
            return json.dumps(value)
        return value
    return json.dumps(value)


def _value(cell: str) -> Scalar:
    try:
        value: Scalar = json.loads(cell)
    except ValueError:
        value = cell
    dump_facts({"": value}, "cell")
    return value


# ---- both --------------------------------------------------------------------------------------------


def _str(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"text expected, got {value!r}")
    return value


def _spec(geometry: Geometry, channels: Sequence[Any]) -> LayerSpec:
    if any(type(width) is not int for width in channels):
        raise TypeError(f"channels must be integers, got {channels}")
    return LayerSpec(geometry, tuple(channels))


def _guarded(read: Callable[[], T], where: str) -> T:
    """What ``read`` gives, its complaints as one readable line."""
    try:
        return read()
    except KeyError as error:
        raise InvalidTable(f"{where} lacks {error}; export the table again") from error
    except (
        BadRow,
        InvalidSpec,
        InvalidTable,
        ValueError,
        TypeError,
        AttributeError,
        RecursionError,
        csv.Error,
    ) as error:
        raise InvalidTable(f"{where} is not an exported table's: {error}; export it again") from error
