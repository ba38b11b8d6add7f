"""Networks as ONNX, for the runtimes that read it.

Every width vector is exported anew, as a user would. PyTorch's older exporter takes a tenth of a second for ResNet-18,
the newer one two; the older is tried first, and what one can't export the other may.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
from torch import nn

from widthwise.luts.errors import InvalidModel
from widthwise.profiling.runtimes.deployment import operation_in

__all__ = ["export_onnx"]

_OPSET = 17


def export_onnx(
    module: nn.Module,
    example: Sequence[torch.Tensor],
    outputs: Sequence[str] = (),
    *,
    inputs: Sequence[str] = (),
    dynamic_batch: bool = False,
) -> bytes:
    """The module as a serialised ONNX model whose nodes are named after its submodules.

    Args:
        outputs: their names, since runtimes name the last kernels after them.
        inputs: their names.
        dynamic_batch: let the first size of every input and output vary; needs all names.

    Raises:
        InvalidModel: neither exporter can; keeps what each of them says.
    """
    failed: list[str] = []
    exporters = {"TorchScript": _by_torchscript, "torch.export": _by_dynamo}
    for name, export in exporters.items():
        try:
            with _quietly():
                return export(module, tuple(example), list(inputs), list(outputs), dynamic_batch)
        except Exception as error:  # exporters raise what they like
            failed.append(f"the {name} exporter says: {_first_line(error)}")
    raise InvalidModel(f"this network can't be exported to ONNX; {'; '.join(failed)}")


def _by_torchscript(
    module: nn.Module, example: tuple[torch.Tensor, ...], inputs: list[str], outputs: list[str], dynamic_batch: bool
) -> bytes:
    written = io.BytesIO()
    torch.onnx.export(
        module,
        example,
        written,  # type: ignore[arg-type]  # the older exporter writes into buffers too
        dynamo=False,
        opset_version=_OPSET,
        input_names=inputs or None,
        output_names=outputs or None,
        dynamic_axes={name: {0: "batch"} for name in (*inputs, *outputs)} if dynamic_batch else None,
    )
    return written.getvalue()


def _by_dynamo(
    module: nn.Module, example: tuple[torch.Tensor, ...], inputs: list[str], outputs: list[str], dynamic_batch: bool
) -> bytes:
    free: dict[str, Any] = {}
    if dynamic_batch:  # PyTorch 2.4 knows no such argument
        free["dynamic_shapes"] = tuple({0: torch.export.Dim("batch")} for _ in example)
    program = torch.onnx.export(
        module, example, dynamo=True, input_names=inputs or None, output_names=outputs or None, **free
    )
    assert program is not None
    model = program.model_proto
    renamed: dict[str, str] = {}
    for position, node in enumerate(model.graph.node):
        scopes = next((entry.value for entry in node.metadata_props if entry.key.endswith("name_scopes")), "")
        operation = next(filter(None, (operation_in(scope) for scope in scopes.replace("'", "/").split("/"))), None)
        if operation is not None:
            node.name = f"/op_{operation}/{node.op_type}_{position}"
            results = {name: f"{node.name}_output_{place}" for place, name in enumerate(node.output)}
            renamed |= {name: new for name, new in results.items() if name and name not in outputs}
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]
    for value in (*model.graph.output, *model.graph.value_info):
        value.name = renamed.get(value.name, value.name)
    return bytes(model.SerializeToString())


@contextmanager
def _quietly() -> Iterator[None]:
    """Exporters warn of being replaced, and print."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
