"""Ground floor: what was measured, as pure data. Nothing here touches hardware, torch or a terminal."""

from widthwise.luts.checks import Finding, Severity, check
from widthwise.luts.entry import Entry, entries
from widthwise.luts.errors import InvalidSpec, InvalidTable, MissingLayers, TableMismatch
from widthwise.luts.exchange import Merged, export_table, import_table, merge
from widthwise.luts.measurement import Block, Conditions, Estimator, Measurement, Status, Summary, summarise
from widthwise.luts.records import LayerRecord, NetworkKey, NetworkRecord, Role, RunRecord, Scalar, TableSummary
from widthwise.luts.spec import FREE, Geometry, LayerSpec, Option
from widthwise.luts.store import Lut
from widthwise.luts.table import LatencyTable, Surface

__all__ = [
    "FREE",
    "Block",
    "Conditions",
    "Entry",
    "Estimator",
    "Finding",
    "Geometry",
    "InvalidSpec",
    "InvalidTable",
    "LatencyTable",
    "LayerRecord",
    "LayerSpec",
    "Lut",
    "Measurement",
    "Merged",
    "MissingLayers",
    "NetworkKey",
    "NetworkRecord",
    "Option",
    "Role",
    "RunRecord",
    "Scalar",
    "Severity",
    "Status",
    "Summary",
    "Surface",
    "TableMismatch",
    "TableSummary",
    "check",
    "entries",
    "export_table",
    "import_table",
    "merge",
    "summarise",
]
