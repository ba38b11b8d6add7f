"""Ground floor: what was measured, as pure data. Nothing here touches hardware, torch or a terminal."""

from widthwise.luts.errors import InvalidSpec, InvalidTable, MissingLayers, TableMismatch
from widthwise.luts.measurement import Block, Estimator, Measurement, Status, Summary, summarise
from widthwise.luts.records import LayerRecord, NetworkKey, NetworkRecord, Role, RunRecord, Scalar, TableSummary
from widthwise.luts.spec import FREE, Geometry, LayerSpec, Option
from widthwise.luts.store import Lut
from widthwise.luts.table import LatencyTable, Surface

__all__ = [
    "FREE",
    "Block",
    "Estimator",
    "Geometry",
    "InvalidSpec",
    "InvalidTable",
    "LatencyTable",
    "LayerRecord",
    "LayerSpec",
    "Lut",
    "Measurement",
    "MissingLayers",
    "NetworkKey",
    "NetworkRecord",
    "Option",
    "Role",
    "RunRecord",
    "Scalar",
    "Status",
    "Summary",
    "Surface",
    "TableMismatch",
    "TableSummary",
    "summarise",
]
