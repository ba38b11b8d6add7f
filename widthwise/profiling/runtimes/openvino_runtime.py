"""OpenVINO: ``InferRequest.infer`` of the compiled model, tuned for latency, on any device OpenVINO lists.

Layers come from its performance counters, and the runtime model says which operations each primitive computes. They
count whole microseconds.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from widthwise.luts.errors import InvalidTarget
from widthwise.luts.spec import LayerSpec
from widthwise.profiling.runtimes.base import Candidate, NetworkSession, PromptSession, Session
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

__all__ = ["OpenVinoRuntime"]

_PRECISIONS = {"float32": ("f32", "FP32"), "bfloat16": ("bf16", "BF16"), "float16": ("f16", "FP16")}
"""Of a dtype: the precision asked for and the capability a device lists."""

_EXECUTED = "EXECUTED"
_COPIES = ("Reorder", "Convert")
_FUSED = "originalLayersNames"


class OpenVinoRuntime(FusingCpuRuntime):
    """The targets ``openvino:cpu``, ``openvino:gpu``, …

    Raises:
        InvalidTarget: the package isn't installed, there is no such device, or it doesn't compute in this dtype.
    """

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self._openvino: Any = require_package("openvino", "openvino", target)
        require_package("onnx", "onnx", target)
        self._core = self._openvino.Core()
        self._device = target.device.upper()
        if self._device.partition(".")[0] not in {name.partition(".")[0] for name in self._core.available_devices}:
            known = ", ".join(f"openvino:{name.lower()}" for name in self._core.available_devices) or "none"
            raise InvalidTarget(f"OpenVINO finds no device {self._device} here; there are: {known}")
        if target.memory_format != "contiguous":
            raise InvalidTarget("OpenVINO chooses its memory layout itself: leave --memory-format out")
        self._precision, capability = _PRECISIONS[target.dtype]
        capabilities = self._core.get_property(self._device, "OPTIMIZATION_CAPABILITIES")
        if capability not in capabilities:
            raise InvalidTarget(
                f"OpenVINO computes in {', '.join(capabilities)} on {self._device}, not in {target.dtype}"
            )

    def versions(self) -> dict[str, str]:
        return {"openvino": self._openvino.get_version()}

    def device_fields(self) -> dict[str, str | int]:
        name = str(self._core.get_property(self._device, "FULL_DEVICE_NAME"))
        return {"openvino_device": name, "info.exporter": f"torch {torch.__version__}"}

    def network(self, candidate: Candidate) -> NetworkSession:
        graph = deployable(candidate.build(), candidate.network)
        model = export_onnx(graph, candidate.example, output_names(graph))
        return _OpenVinoNetwork(self._runner(model, candidate.example), owners(candidate.network))

    def layer(self, spec: LayerSpec) -> Session:
        module, inputs = build_layer(spec)
        runner = self._runner(export_onnx(module.eval(), inputs), inputs)
        runner.run_profiled()
        runs = runs_for_a_share(runner.run_profiled()[0])
        calls_s, kernels = zip(*((runner.run(), runner.run_profiled()[1]) for _ in range(runs)), strict=True)
        return LoneLayer(runner.run, calls_s, kernels)

    def _runner(self, model: bytes, example: Sequence[torch.Tensor]) -> _Runner:
        properties: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": self._precision}
        if self._device == "CPU":
            properties |= {"INFERENCE_NUM_THREADS": self.target.threads, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}

        def compiled(more: Mapping[str, Any]) -> Any:
            try:
                found = self._core.compile_model(read, self._device, properties | dict(more))
            except Exception as error:  # RuntimeError, and whatever its plugins raise
                raise refusal("OpenVINO", error) from error
            self._require_obedience(found)
            return found

        try:
            read = self._core.read_model(model, b"")
        except Exception as error:
            raise refusal("OpenVINO", error) from error
        return _Runner(compiled({}), compiled({"PERF_COUNT": True}), example)

    def _require_obedience(self, compiled: Any) -> None:
        """OpenVINO takes precision and threads for hints; what it made of them it says afterwards."""
        got = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if got != self._precision:
            raise InvalidTarget(
                f"OpenVINO computes in {got} on {self._device} although {self.target.dtype} was asked for; "
                "give another --dtype"
            )
        if self._device == "CPU":
            threads = compiled.get_property("INFERENCE_NUM_THREADS")
            if threads != self.target.threads:
                raise InvalidTarget(
                    f"OpenVINO runs {threads} threads although {self.target.threads} were asked for; "
                    "give another --threads"
                )


class _Runner:
    """A model compiled twice: as deployed, and with performance counters."""

    def __init__(self, deployed: Any, counted: Any, example: Sequence[torch.Tensor]) -> None:
        self._deployed, self._counted = (model.create_infer_request() for model in (deployed, counted))
        self._inputs = {position: tensor.numpy() for position, tensor in enumerate(example)}
        self._fused = {
            operation.get_friendly_name(): tuple(str(operation.get_rt_info()[_FUSED].astype(str)).split(","))
            for operation in counted.get_runtime_model().get_ops()
            if _FUSED in operation.get_rt_info()
        }

    def run(self) -> float:
        return self._timed(self._deployed)

    def run_profiled(self) -> tuple[float, list[Kernel]]:
        """Seconds of wall time, and what the counters say."""
        elapsed_s = self._timed(self._counted)
        return elapsed_s, [
            Kernel(
                (*self._fused.get(counter.node_name, ()), counter.node_name),
                counter.real_time.total_seconds(),
                copies=counter.node_type in _COPIES,
            )
            for counter in self._counted.profiling_info
            if counter.status.name == _EXECUTED
        ]

    def outputs(self) -> tuple[torch.Tensor, ...]:
        results = self._deployed.infer(self._inputs)
        return tuple(torch.from_numpy(np.array(result)).float() for result in results.values())

    def _timed(self, request: Any) -> float:
        start = time.perf_counter_ns()
        request.infer(self._inputs)
        return (time.perf_counter_ns() - start) * 1e-9


class _OpenVinoNetwork(PromptSession):
    def __init__(self, runner: _Runner, owner_of: Mapping[str, int]) -> None:
        super().__init__()
        self._runner = runner
        self._owner_of = owner_of

    def run(self) -> float:
        return self._runner.run()

    def report(self) -> Sequence[float]:
        return by_layer(self._runner.run_profiled()[1], self._owner_of)

    def outputs(self) -> tuple[torch.Tensor, ...]:
        return self._runner.outputs()
