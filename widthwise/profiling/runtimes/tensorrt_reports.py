"""What TensorRT says of an engine and its runs, read without TensorRT or a GPU.

An engine's inspector lists its kernels, called layers there, as JSON; its profiler gives their times under the same
names. A name joins what was fused, ``/op_conv/Conv + /op_relu/Relu``, or is an invention, ``__myl_MulAdd_myl0_1``;
since 8.6 the field ``Metadata`` holds the ONNX nodes in either case. Copies between layouts are kernels of their own.

Written after NVIDIA's documentation and published reports of TensorRT 8.6 to 11; not yet run on hardware.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from widthwise.luts.errors import InvalidTarget
from widthwise.profiling.runtimes.deployment import operation_in
from widthwise.profiling.runtimes.reports import Kernel
from widthwise.profiling.target import Target

__all__ = ["kernels_from", "require_precision"]

_PATH = re.compile(r"[\w/]+")
_WEIGHTED = re.compile(r"/(?:Conv|ConvTranspose|Gemm|MatMul)(?=_|/|$)")
_COPY = "Reformatting CopyNode"
_COPY_TYPES = ("Reformat", "NoOp")

_TYPES = {
    "FP32": "float32", "Float": "float32", "FP16": "float16", "Half": "float16",
    "BFloat16": "bfloat16", "BF16": "bfloat16", "Int8": "int8", "INT8": "int8", "FP8": "float8",
}  # fmt: skip
_TYPE = re.compile(rf"\b(?:{'|'.join(_TYPES)})\b")
_TACTIC_TYPES = {"tf32": "TF32", "bf16": "bfloat16", "f16": "float16", "i8": "int8", "e4m3": "float8"}
_TACTIC_TYPE = re.compile(r"_(tf32|bf16|f16|i8|e4m3)(?=tf32|f32|bf16|f16|i8|i32|e4m3|_)")


def kernels_from(report: Sequence[tuple[str, float]], inspected: str) -> list[Kernel]:
    """The kernels of one run, in order of execution; their seconds add up to the report's.

    A kernel names the operations it computes in its metadata, else in its name, else in the names of its outputs.
    Where one computes several convolutions or matrix products (siblings run as one, a region compiled as a whole), its
    time is divided evenly among them: TensorRT doesn't say how much of it is whose.

    Args:
        report: (name, seconds) per kernel, as the profiler gave them.
        inspected: JSON the engine's inspector gave.

    Example:
        >>> kernels_from([("/op_conv/Conv + /op_relu/Relu", 5e-6)], '{"Layers": []}')[0].names
        ('/op_conv/Conv', '/op_relu/Relu')
    """
    layers: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for layer in _layers(inspected):
        layers[layer["Name"]].append(layer)
    seen: Counter[str] = Counter()
    kernels: list[Kernel] = []
    for name, seconds in report:
        alike = layers.get(name) or [{"Name": name}]
        kernels += _kernels(alike[min(seen[name], len(alike) - 1)], seconds)  # names may repeat
        seen[name] += 1
    return kernels


def require_precision(inspected: str, target: Target) -> None:
    """Makes sure that convolutions and matrix products compute in the target's dtype, as far as the inspector tells.

    It says of what type a kernel's input and weights are, and most kernels' names say what they multiply in, such as
    ``tf32``. What it leaves out isn't checked.

    Raises:
        InvalidTarget: a kernel computes in another precision; names the kernel.
    """
    for layer in _layers(inspected):
        if _copies(layer) or not ("Weights" in layer or _heads(_named(layer))):
            continue
        other = next((found for found in _precisions(layer) if found != target.dtype), None)
        if other is not None:
            raise InvalidTarget(
                f"TensorRT computes {layer['Name'][:200]!r} in {other} although {target.dtype} was asked for; "
                "give another --dtype"
            )


def _layers(inspected: str) -> Iterator[Mapping[str, Any]]:
    for layer in json.loads(inspected).get("Layers", ()):
        yield layer if isinstance(layer, dict) else {"Name": layer}  # a bare name where no details are kept


def _kernels(layer: Mapping[str, Any], seconds: float) -> list[Kernel]:
    name, named = layer["Name"], _named(layer)
    heads = _heads(named)
    if len(heads) > 1 and not _copies(layer):
        return [Kernel((head,), seconds / len(heads)) for head in heads]
    names = tuple(dict.fromkeys((*heads, *named))) or (name,)
    return [Kernel(names, seconds, copies=_copies(layer), forward=f"{_COPY} for Input" in name)]


def _copies(layer: Mapping[str, Any]) -> bool:
    return layer.get("LayerType") in _COPY_TYPES or layer["Name"].startswith(_COPY)


def _named(layer: Mapping[str, Any]) -> list[str]:
    """ONNX nodes, or results of them, by the first text that speaks of any."""
    outputs = " ".join(str(output.get("Name")) for output in layer.get("Outputs") or ())
    for text in (str(layer.get("Metadata") or ""), layer["Name"], outputs):
        named = [path for path in _PATH.findall(text) if operation_in(path)]
        if named:
            return named
    return []


def _heads(named: Sequence[str]) -> list[str]:
    """The convolutions and matrix products among them, one name for each operation."""
    heads: dict[str | None, str] = {}
    for path in named:
        if _WEIGHTED.search(path):
            heads.setdefault(operation_in(path), path)
    return list(heads.values())


def _precisions(layer: Mapping[str, Any]) -> Iterator[str]:
    inputs = layer.get("Inputs") or [{}]
    stated = [str(value) for key, value in inputs[0].items() if "type" in key.lower() or key == "Format"]
    weights = layer.get("Weights")
    if isinstance(weights, dict):
        stated.append(str(weights.get("Type")))
    for text in stated:  # ``Format/Datatype`` until TensorRT 10, ``Format`` and ``DataType`` from 11 on
        found = _TYPE.search(text)
        if found:
            yield _TYPES[found[0]]
    for short in _TACTIC_TYPE.findall(str(layer.get("TacticName") or "").lower()):
        yield _TACTIC_TYPES[short]
