"""Tables of others, read as they were published: convolutions on GPUs, and layers and networks on phones.

Two CSV layouts are known by their columns:

* ``latency_ms, batch, in_channels, out_channels, kernel_size, in_size, stride, padding``: one convolution a row, as in
  NeuSight's data;
* ``model, operation, feature, latency_us``: one operation of a network a row, features as a Python dict of texts, as in
  qed-usc's mobile-ml-benchmark; a second file ``model, latency_us_mean, latency_us_std`` holds its whole networks.

Each becomes a target of its own, named after the file. Its milliseconds are those of its authors' stopwatch: there is
no reference kernel behind them (so it counts as 1 ms), and each is one sample (so it counts as unstable).
"""

from __future__ import annotations

import ast
import csv
import hashlib
import io
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from widthwise.luts.errors import InvalidSpec, InvalidTable
from widthwise.luts.formats import Header, Item, LayersItem, NetworkItem
from widthwise.luts.measurement import Block, Estimator, Measurement
from widthwise.luts.records import NetworkKey, Role, RunRecord, Scalar
from widthwise.luts.rows import LayerItem, utc_now
from widthwise.luts.spec import FREE, Geometry, LayerSpec, Option

__all__ = ["is_foreign", "read_foreign"]

_CONVOLUTIONS = frozenset(
    ("latency_ms", "batch", "in_channels", "out_channels", "kernel_size", "in_size", "stride", "padding")
)
_OPERATIONS = frozenset(("model", "operation", "feature", "latency_us"))
_NETWORKS = frozenset(("model", "latency_us_mean"))
_REFERENCE_MS = 1.0

_Row = Mapping[str, str]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Operation:
    """A row of the second layout."""

    model: str
    name: str
    spec: LayerSpec
    measurement: Measurement


def is_foreign(columns: Sequence[str]) -> bool:
    """Whether these are the columns of a known table of others."""
    return set(columns) >= _CONVOLUTIONS or set(columns) >= _OPERATIONS


def read_foreign(text: str, path: Path, networks: str | None = None) -> tuple[Header, Iterator[Item]]:
    """The header and the items of a foreign table.

    Args:
        text: the file's content.
        path: its name; up to the first dot it names the device.
        networks: content of the file with the whole networks, where there is one.

    Raises:
        InvalidTable: naming the line that can't be read.
    """
    device = path.name.partition(".")[0].removesuffix("_layers")
    digest = hashlib.sha256((text + (networks or "")).encode()).hexdigest()
    target: dict[str, Scalar] = {
        "runtime": "imported",
        "device": device,
        "threads": 1,
        "dtype": "float32",
        "memory_format": "contiguous",
    }
    header = Header(target, {"device": device, "info.source": path.name, "info.sha256": digest}, _REFERENCE_MS)
    now, identity = utc_now(), str(uuid.uuid5(uuid.NAMESPACE_URL, digest))
    run = RunRecord(0, identity, f"imported from {path.name}", now, now, {}, {"sha256": digest})
    rows = list(_rows(text, path))
    if set(rows[0][1]) >= _CONVOLUTIONS:
        layers = [_guarded(row, path, line, _convolution) for line, row in rows]
        return header, iter([run, LayersItem(identity, tuple(layers))])
    operations = [_guarded(row, path, line, _operation) for line, row in rows]
    wholes = {} if networks is None else _wholes(networks, path)
    return header, iter([run, *_networks(operations, wholes, identity)])


def _rows(text: str, path: Path) -> Iterator[tuple[int, _Row]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    found = False
    try:
        for row in reader:
            found = True
            yield reader.line_num, row
    except csv.Error as error:
        raise InvalidTable(f"{path} line {reader.line_num} is no CSV: {error}; download it again") from error
    if not found:
        raise InvalidTable(f"{path} holds no measurement")


def _guarded(row: _Row, path: Path, line: int, read: Callable[[_Row], _T]) -> _T:
    try:
        return read(row)
    except (InvalidSpec, ValueError, TypeError, KeyError, SyntaxError, AttributeError, RecursionError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise InvalidTable(f"{path} line {line} can't be read: {reason}; correct it or leave it out") from error


def _convolution(row: _Row) -> LayerItem:
    names = ("batch", "in_size", "kernel_size", "stride", "padding")
    batch, size, kernel, stride, padding = (int(row[name]) for name in names)
    out = (size + 2 * padding - kernel) // stride + 1
    options = _square(kernel=kernel, stride=stride, padding=padding, dilation=1) | {"groups": 1}
    geometry = Geometry(
        "conv2d", ((batch, FREE, size, size),), ((batch, FREE, out, out),), tuple(sorted(options.items()))
    )
    spec = LayerSpec(geometry, (int(row["in_channels"]), int(row["out_channels"])))
    return LayerItem(spec, Estimator.IMPORTED, _once(float(row["latency_ms"])))


def _operation(row: _Row) -> _Operation:
    features = ast.literal_eval(row["feature"])
    spec = _SPECS[row["operation"]](features) if row["operation"] in _SPECS else None
    if spec is None:
        raise ValueError(f"operation {row['operation']!r} is not among {', '.join(sorted(_SPECS))}")
    return _Operation(row["model"], row["operation"].lower(), spec, _once(float(row["latency_us"]) / 1e3))


def _networks(operations: Sequence[_Operation], wholes: Mapping[str, Measurement], run: str) -> Iterator[Item]:
    """Each network with its operations; those of networks nobody timed as a whole stand alone."""
    by_model: dict[str, list[_Operation]] = {}
    for operation in operations:
        by_model.setdefault(operation.model, []).append(operation)
    for model, members in by_model.items():
        layers = tuple(
            LayerItem(member.spec, Estimator.IMPORTED, member.measurement, f"{member.name}_{index}")
            for index, member in enumerate(members)
        )
        if model in wholes:
            structure = "\n".join(str(member.spec) for member in members)
            key = NetworkKey(hashlib.sha256(structure.encode()).hexdigest()[:16], model, {})
            yield NetworkItem(run, key, Role.DENSE, wholes[model], layers)
        else:
            yield LayersItem(run, layers)


def _wholes(text: str, path: Path) -> dict[str, Measurement]:
    rows = list(_rows(text, path))
    if not set(rows[0][1]) >= _NETWORKS:
        raise InvalidTable(f"the networks of {path} need the columns {', '.join(sorted(_NETWORKS))}")

    def read(row: _Row) -> tuple[str, Measurement]:
        return row["model"], _once(float(row["latency_us_mean"]) / 1e3)

    return dict(_guarded(row, path, line, read) for line, row in rows)


def _once(latency_ms: float) -> Measurement:
    return Measurement((Block(latency_ms, _REFERENCE_MS),), _REFERENCE_MS)


def _square(**options: int) -> dict[str, Option]:
    return {name: (value, value) for name, value in options.items()}


_Features = Mapping[str, str | int]


def _plane(features: _Features, name: str) -> tuple[int, ...]:
    return (1, FREE, int(features[name]), int(features[name]))


def _windowed(kind: str, features: _Features, channels: tuple[int, ...], **options: Option) -> LayerSpec:
    every = options | _square(kernel=int(features["Kernel"]), stride=int(features["Stride"]))
    shapes = (_plane(features, "Input_shape"),), (_plane(features, "Output_shape"),)
    return LayerSpec(Geometry(kind, *shapes, tuple(sorted(every.items()))), channels)


def _dense_convolution(features: _Features) -> LayerSpec:
    channels = (int(features["Input_channel"]), int(features["Filter"]))
    return _windowed("conv2d", features, channels, groups=int(features["Group"]))


def _depthwise_convolution(features: _Features) -> LayerSpec:
    multiplier = int(features["Filter"])
    return _windowed("conv2d", features, (int(features["Input_channel"]),), groups="depthwise", multiplier=multiplier)


def _pooling(kind: str) -> Callable[[_Features], LayerSpec]:
    return lambda features: _windowed(kind, features, (int(features["Input_channel"]),))


def _mean(features: _Features) -> LayerSpec:
    return LayerSpec(
        Geometry("mean", (_plane(features, "Input_shape"),), ((1, FREE),)), (int(features["Input_channel"]),)
    )


def _linear(features: _Features) -> LayerSpec:
    channels = (int(features["Input_channel"]), int(features["Filter"]))
    return LayerSpec(Geometry("linear", ((1, FREE),), ((1, FREE),)), channels)


def _concatenation(features: _Features) -> LayerSpec:
    inputs = (_plane(features, "Input_shape"),) * max(1, int(features["Kernel"]))
    return LayerSpec(Geometry("cat", inputs, (_plane(features, "Output_shape"),)), (int(features["Filter"]),))


_SPECS: dict[str, Callable[[_Features], LayerSpec]] = {
    "CONV_2D": _dense_convolution,
    "CONV_2D_GROUP": _dense_convolution,
    "DEPTHWISE_CONV_2D": _depthwise_convolution,
    "MAX_POOL_2D": _pooling("max_pool2d"),
    "AVERAGE_POOL_2D": _pooling("avg_pool2d"),
    "MEAN": _mean,
    "FULLY_CONNECTED": _linear,
    "CONCATENATION": _concatenation,
}
"""What each operation of the phones' tables is."""
