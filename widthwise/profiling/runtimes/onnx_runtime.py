"""ONNX Runtime on the CPU: ``InferenceSession.run`` of the exported network, with all graph optimisations.

Layers come from ONNX Runtime's own profile. It names the kernels it ran, each after one of the operations it fused,
in whole microseconds; copies into and out of its blocked layout are kernels of their own and count with the layer
they serve. The profile is written when profiling ends, so a second session of the same model runs with profiling on.

Its CUDA provider has a runtime of its own, :mod:`.onnx_cuda`, because a node's time in the profile is that of its
launches there.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from widthwise.luts.errors import InvalidTarget
from widthwise.luts.spec import LayerSpec
from widthwise.profiling.runtimes.base import Candidate, NetworkSession, Session
from widthwise.profiling.runtimes.deployment import (
    deployable,
    output_names,
    owners,
    refusal,
    require_package,
)
from widthwise.profiling.runtimes.onnx_export import export_onnx
from widthwise.profiling.runtimes.reports import Kernel, LoneLayer, by_layer, runs_for_a_share
from widthwise.profiling.runtimes.torch_eager import FusingCpuRuntime
from widthwise.profiling.runtimes.torch_layers import build_layer
from widthwise.profiling.target import Target

__all__ = ["OnnxRuntime", "runs_in"]

_SUFFIX = "_kernel_time"
_REORDER = "Reorder"
_INTO_BLOCKS = "ReorderInput"
_STOPS_SPINNING = "session.force_spinning_stop"
"""Threads of a session spin during a run, and by default for 50 to 100 ms after it: on two cores two sessions in turns
took twice as long as each alone."""


class OnnxRuntime(FusingCpuRuntime):
    """The ``onnxruntime:cpu`` target.

    Raises:
        InvalidTarget: the package isn't installed, or the target asks for what the CPU provider hasn't got.
    """

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

    def network(self, candidate: Candidate) -> NetworkSession:
        graph = deployable(candidate.build(), candidate.network)
        model = export_onnx(graph, candidate.example, output_names(graph))
        return _OrtNetwork(self._runner(model, candidate.example), owners(candidate.network))

    def layer(self, spec: LayerSpec) -> Session:
        module, inputs = build_layer(spec)
        runner = self._runner(export_onnx(module.eval(), inputs), inputs)
        runner.run_profiled()
        calls_s = []
        for _ in range(runs_for_a_share(runner.run_profiled())):
            calls_s.append(runner.run())
            runner.run_profiled()
        return LoneLayer(runner.run, calls_s, runner.read_profile()[-len(calls_s) :])

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

    def read_profile(self) -> list[list[Kernel]]:
        """The kernels of each profiled run since the last reading."""
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
        options.add_session_config_entry(_STOPS_SPINNING, "1")
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        try:
            return self._ort.InferenceSession(self._model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its own exception classes have no common ancestor
            raise refusal("onnxruntime", error) from error


class _OrtNetwork(NetworkSession):
    def __init__(self, runner: _Runner, owner_of: Mapping[str, int]) -> None:
        self._runner = runner
        self._owner_of = owner_of

    def run(self) -> float:
        return self._runner.run()

    def run_layers(self) -> float:
        return self._runner.run_profiled()

    def read_layers(self) -> list[Sequence[float]]:
        return [by_layer(run, self._owner_of) for run in self._runner.read_profile()]

    def outputs(self) -> tuple[torch.Tensor, ...]:
        return self._runner.outputs()


def runs_in(events: Sequence[Mapping[str, Any]]) -> list[list[Kernel]]:
    """The kernels of each run in a profile of ONNX Runtime, in order of execution.

    Example:
        >>> events = [
        ...     {"cat": "Node", "name": "/op_fc/Gemm_kernel_time", "dur": 63},
        ...     {"cat": "Session", "name": "model_run", "dur": 70},
        ... ]
        >>> runs_in(events)
        [[Kernel(names=('/op_fc/Gemm',), seconds=6.3e-05, copies=False, forward=False)]]
    """
    runs: list[list[Kernel]] = []
    current: list[Kernel] = []
    for event in events:
        name = event["name"].removesuffix(_SUFFIX)
        if event["cat"] == "Node" and name != event["name"]:
            copies = name.startswith(_REORDER)
            current.append(Kernel((name,), event["dur"] * 1e-6, copies, forward=name.startswith(_INTO_BLOCKS)))
        elif name == "model_run":
            runs.append(current)
            current = []
    return runs
