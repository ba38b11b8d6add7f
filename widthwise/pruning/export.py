"""A narrow model for other runtimes, ONNX and ``torch.export``, held against PyTorch before it counts as written."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from widthwise.luts.errors import BadInput, Unmet, WidthwiseError
from widthwise.network.narrowing import tensors
from widthwise.profiling.faithful import TOLERANCES
from widthwise.profiling.runtimes.onnx_export import export_onnx
from widthwise.pruning.evaluation import in_eval_mode

__all__ = ["FILES", "ExportFailed", "Exported", "export", "require_exporters"]

FILES = {"onnx": "model.onnx", "pt2": "model.pt2"}
TOLERANCE = TOLERANCES["float32"]
"""Largest difference of outputs, relative to the largest."""

_OTHER = {"onnx": "pt2", "pt2": "onnx"}
_Run = Callable[[Sequence[Tensor]], list[Tensor]]


class ExportFailed(Unmet):
    """An exporter can't take the model, or what it wrote computes something else."""


@dataclass(frozen=True, slots=True)
class Exported:
    """A file that was written and checked.

    Attributes:
        difference: largest difference to PyTorch's outputs, relative to the largest.
        dynamic_batch: whether it takes any batch size, which was tried with another one; else the example's only.
        opset: of ONNX.
    """

    format: str
    file: str
    difference: float
    dynamic_batch: bool
    opset: int | None = None


def require_exporters(formats: Sequence[str]) -> None:
    """Refuses formats that can't be written here.

    Raises:
        BadInput: an unknown format, or one whose packages aren't installed.
    """
    for name in formats:
        if name not in FILES:
            raise BadInput(f"{name!r} is no format to export to; there are {' and '.join(FILES)}")
    if "onnx" in formats:
        for package in ("onnx", "onnxruntime"):
            try:
                importlib.import_module(package)
            except ImportError as error:
                raise BadInput(
                    f"exporting to ONNX and checking it needs {package}, which can't be imported ({error}); "
                    "pip install 'widthwise[onnx]'"
                ) from error


def export(model: nn.Module, example: Sequence[Tensor], folder: str | Path, formats: Sequence[str]) -> list[Exported]:
    """Writes the model into a folder as ``model.onnx`` or ``model.pt2``, with a batch of any size where that is free.

    Args:
        example: inputs; the outputs for them, and for one more of the batch, are compared with PyTorch's.

    Raises:
        BadInput: see :func:`require_exporters`.
        ExportFailed: keeps what the exporter says; nothing is written then.

    Example:
        >>> export(small, [images], "small", ["onnx"])[0].difference < 1e-3  # doctest: +SKIP
        True
    """
    require_exporters(formats)
    made = []
    home = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with in_eval_mode(model.cpu()):
        try:
            for name in formats:
                made.append(_written(name, model, tuple(tensor.cpu() for tensor in example), Path(folder)))
        finally:
            model.to(home)
    return made


def _written(name: str, model: nn.Module, example: tuple[Tensor, ...], folder: Path) -> Exported:
    path, draft = folder / FILES[name], folder / f".draft-{FILES[name]}"
    write = _write_onnx if name == "onnx" else _write_pt2
    try:
        for dynamic in (True, False):
            try:
                run, opset = write(model, example, draft, dynamic)
                worst = max(_difference(model, run, batch) for batch in _batches(example, dynamic))
            except Exception as error:  # exporters raise what they like
                if dynamic:
                    continue  # a batch of any size isn't free
                said = str(error) if isinstance(error, WidthwiseError) else f"{type(error).__name__}: {error}"
                raise ExportFailed(f"exporting to {name} failed: {said[:600]}; try --export {_OTHER[name]}") from error
            if worst <= TOLERANCE:
                draft.replace(path)
                return Exported(name, FILES[name], worst, dynamic, opset)
    finally:
        draft.unlink(missing_ok=True)
    raise ExportFailed(
        f"the model exported to {name} gives other outputs than PyTorch: by {worst:.2g} of the largest, allowed is "
        f"{TOLERANCE:g}; try --export {_OTHER[name]}"
    )


def _batches(example: tuple[Tensor, ...], dynamic: bool) -> list[tuple[Tensor, ...]]:
    return [example, _one_more(example)] if dynamic else [example]


def _one_more(example: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A batch larger by one."""
    return tuple(torch.cat([tensor, tensor[:1] * 0.5]) for tensor in example)


def _difference(model: nn.Module, run: _Run, example: tuple[Tensor, ...]) -> float:
    with torch.no_grad():
        expected, got = tensors(model(*example)), run(example)
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in got]:
        return float("inf")
    scale = max((float(tensor.abs().max()) for tensor in expected), default=0.0)
    worst = max((float((one - two).abs().max()) for one, two in zip(expected, got, strict=True)), default=0.0)
    return worst / max(scale, 1e-30) if worst == worst else float("inf")


def _write_onnx(model: nn.Module, example: tuple[Tensor, ...], path: Path, dynamic: bool) -> tuple[_Run, int]:
    import onnx
    import onnxruntime

    with torch.no_grad():
        outputs = _numbered("output", len(tensors(model(*example))))
    inputs = _numbered("input", len(example))
    written = export_onnx(model, example, outputs, inputs=inputs, dynamic_batch=dynamic)
    path.write_bytes(written)
    opset = max(
        entry.version for entry in onnx.load_from_string(written).opset_import if entry.domain in ("", "ai.onnx")
    )
    session = onnxruntime.InferenceSession(written, providers=["CPUExecutionProvider"])

    def run(batch: Sequence[Tensor]) -> list[Tensor]:
        fed = {name: tensor.numpy() for name, tensor in zip(inputs, batch, strict=True)}
        return [torch.from_numpy(array) for array in session.run(None, fed)]

    return run, int(opset)


def _write_pt2(model: nn.Module, example: tuple[Tensor, ...], path: Path, dynamic: bool) -> tuple[_Run, None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamic:
            batch = torch.export.Dim("batch")
            shapes: Any = tuple({0: batch} for _ in example)
            # A batch of one would be taken for a constant.
            program = torch.export.export(model, _one_more(example), dynamic_shapes=shapes)
        else:
            program = torch.export.export(model, example)
        with path.open("wb") as file:
            torch.export.save(program, file)
        # Loading unpickles (docs/artifacts.md); this file was written a moment ago, by this process.
        again = torch.export.load(str(path)).module()
    return lambda batch: tensors(again(*batch)), None


def _numbered(name: str, count: int) -> list[str]:
    return [name] if count == 1 else [f"{name}_{index}" for index in range(count)]
