"""ONNX Runtime on the CPU: ``InferenceSession.run`` of the exported network, with all graph optimisations.

Layers come from ONNX Runtime's own profile. It names the kernels it ran, each after one of the operations it fused,
in whole microseconds; copies into and out of its blocked layout are kernels of their own and count with the layer
they serve. The profile is written when profiling ends, so a second session of the same model runs with profiling on.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from widthwise.luts.errors import InvalidModel, InvalidTarget
from widthwise.luts.spec import LayerSpec
from widthwise.profiling.runtimes.base import Candidate, NetworkSession, References, Runtime, Session
from widthwise.profiling.runtimes.deployment import (
    deployable,
    operation_in,
    owners,
    require_package,
    steady_process,
)
from widthwise.profiling.runtimes.onnx_export import export_onnx
from widthwise.profiling.runtimes.torch_layers import REFERENCE_CONVOLUTIONS, build_layer, square_convolution
from widthwise.profiling.target import Target

__all__ = ["OnnxRuntime", "attribute_kernels"]

_SUFFIX = "_kernel_time"
_REORDER = "Reorder"
_INTO_BLOCKS = "ReorderInput"
_SHARE_S = 0.03
_SHARE_RUNS = (8, 60)
"""A layer alone runs for so long, and so often, to find out which share of a call its kernel is."""

_Array = npt.NDArray[np.float64]


class OnnxRuntime(Runtime):
    """The ``onnxruntime:cpu`` target.

    Raises:
        InvalidTarget: the package isn't installed, or the target asks for what the CPU provider hasn't got.
    """

    fuses = True

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self._ort: Any = require_package("onnxruntime", "onnx", target)
        require_package("onnx", "onnx", target)
        if target.dtype != "float32":
            raise InvalidTarget(
                f"onnxruntime:cpu runs float32; its CPU kernels have no fast {target.dtype}. torch:cpu has bfloat16"
            )
        if target.memory_format != "contiguous":
            raise InvalidTarget("onnxruntime:cpu chooses its memory layout itself: leave --memory-format out")

    def versions(self) -> dict[str, str]:
        return {"onnxruntime": self._ort.__version__}

    def device_fields(self) -> dict[str, str | int]:
        return {"info.exporter": f"torch {torch.__version__}"}

    def active(self) -> AbstractContextManager[None]:
        return steady_process(self.target.threads)

    def references(self) -> References:
        return References(*(self.layer(square_convolution(*kernel)) for kernel in REFERENCE_CONVOLUTIONS))

    def network(self, candidate: Candidate) -> NetworkSession:
        graph = deployable(candidate.build(), candidate.network)
        model = export_onnx(graph, candidate.example)
        return _OrtNetwork(self._runner(model, candidate.example), owners(candidate.network))

    def layer(self, spec: LayerSpec) -> Session:
        module, inputs = build_layer(spec)
        return _OrtLayer(self._runner(export_onnx(module.eval(), inputs), inputs))

    def _runner(self, model: bytes, example: Sequence[torch.Tensor]) -> _Runner:
        return _Runner(self._ort, model, example, self.target.threads)


class _Runner:
    """One exported model as two sessions: one as deployed, and one with profiling on, made when it is needed."""

    def __init__(self, ort: Any, model: bytes, example: Sequence[torch.Tensor], threads: int) -> None:
        self._ort = ort
        self._model = model
        self._threads = threads
        self._deployed = self._session()
        names = [given.name for given in self._deployed.get_inputs()]
        self._feed = {name: tensor.numpy() for name, tensor in zip(names, example, strict=True)}
        self._profiled: Any = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def run(self) -> float:
        return self._timed(self._deployed)

    def run_profiled(self) -> float:
        if self._profiled is None:
            self._folder = tempfile.TemporaryDirectory(prefix="widthwise-")
            self._profiled = self._session(Path(self._folder.name) / "profile")
        return self._timed(self._profiled)

    def read_profile(self) -> list[list[tuple[str, float]]]:
        """(kernel, seconds) in order of execution, of each profiled run since the last reading."""
        if self._profiled is None:
            return []
        events = json.loads(Path(self._profiled.end_profiling()).read_text())
        assert self._folder is not None
        self._folder.cleanup()
        self._profiled = self._folder = None
        return runs_in(events)

    def outputs(self) -> tuple[torch.Tensor, ...]:
        return tuple(torch.from_numpy(np.asarray(output)) for output in self._deployed.run(None, self._feed))

    def _timed(self, session: Any) -> float:
        start = time.perf_counter_ns()
        session.run(None, self._feed)
        return (time.perf_counter_ns() - start) * 1e-9

    def _session(self, profile: Path | None = None) -> Any:
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        try:
            return self._ort.InferenceSession(self._model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its own exception classes have no common ancestor
            raise InvalidModel(refusal("onnxruntime", error)) from error


class _OrtNetwork(NetworkSession):
    def __init__(self, runner: _Runner, owner_of: Mapping[str, int]) -> None:
        self._runner = runner
        self._owner_of = owner_of

    def run(self) -> float:
        return self._runner.run()

    def run_layers(self) -> float:
        return self._runner.run_profiled()

    def read_layers(self) -> list[Sequence[float]]:
        count = max(self._owner_of.values()) + 1
        return [attribute_kernels(run, self._owner_of, count).tolist() for run in self._runner.read_profile()]

    def outputs(self) -> tuple[torch.Tensor, ...]:
        return self._runner.outputs()


class _OrtLayer(Session):
    """A call of a one-layer model, less what isn't its kernel: the call itself, and copies between layouts that a
    network makes once, not around each layer."""

    def __init__(self, runner: _Runner) -> None:
        self._runner = runner
        least, most = _SHARE_RUNS
        runner.run_profiled()
        once_s = runner.run_profiled()
        runs = min(most, max(least, round(_SHARE_S / max(once_s, 1e-9))))
        calls_s = [once_s, *(runner.run_profiled() for _ in range(runs))]
        kernels_s = [
            sum(seconds for name, seconds in run if not name.startswith(_REORDER)) for run in runner.read_profile()[1:]
        ]
        self._share = float(np.mean(kernels_s) / np.mean(calls_s))

    def run(self) -> float:
        return self._runner.run() * self._share


def runs_in(events: Sequence[Mapping[str, Any]]) -> list[list[tuple[str, float]]]:
    """The kernels of each run in a profile of ONNX Runtime: (name, seconds) in order of execution.

    Example:
        >>> events = [
        ...     {"cat": "Node", "name": "/op_fc/Gemm_kernel_time", "dur": 63},
        ...     {"cat": "Session", "name": "model_run", "dur": 70},
        ... ]
        >>> runs_in(events)
        [[('/op_fc/Gemm', 6.3e-05)]]
    """
    runs: list[list[tuple[str, float]]] = []
    current: list[tuple[str, float]] = []
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith(_SUFFIX):
            current.append((event["name"].removesuffix(_SUFFIX), event["dur"] * 1e-6))
        elif event["name"] == "model_run":
            runs.append(current)
            current = []
    return runs


def attribute_kernels(run: Sequence[tuple[str, float]], owner_of: Mapping[str, int], layers: int) -> _Array:
    """Seconds per layer of one run.

    A kernel belongs to the layer of the operation it is named after. One without such a name was inserted by the
    runtime: a copy into the blocked layout belongs to the layer that comes next, anything else to the one before.

    Example:
        >>> run = [("ReorderInput", 1.0), ("/op_conv/Conv_nchwc", 5.0), ("ReorderOutput", 2.0), ("/op_fc/Gemm", 3.0)]
        >>> attribute_kernels(run, {"conv": 0, "relu": 0, "fc": 1}, 2).tolist()
        [8.0, 3.0]
    """
    known = [owner_of.get(operation_in(name) or "") for name, _ in run]
    seconds = np.zeros(layers)
    for position, (name, spent_s) in enumerate(run):
        before = [owner for owner in known[: position + 1] if owner is not None]
        after = [owner for owner in known[position:] if owner is not None]
        forward = name.startswith(_INTO_BLOCKS)
        nearest = (after[:1] or before[-1:]) if forward else (before[-1:] or after[:1])
        seconds[nearest[0]] += spent_s
    return seconds


def refusal(runtime: str, error: Exception) -> str:
    """What a runtime said of a network it doesn't take, and of which layer."""
    text = " ".join(str(error).split())
    named = re.search(r"[/.\w]*op_\w+[/.\w]*", text)
    operation = operation_in(named[0]) if named else None
    where = f"layer {operation!r} of this network" if operation else "this network"
    return f"{runtime} can't run {where}: {text[:300]}"
