"""TensorRT on an NVIDIA GPU: ``execute_async_v3`` of the built engine, from the call until the GPU has finished.

Not yet run on hardware. All of it has run against a stand-in written after TensorRT's documentation, with the CPU's
memory in place of a GPU's; engines, their reports and their times by TensorRT itself it has not seen.

Networks are strongly typed, the only kind TensorRT 11 knows: the exported model has the target's dtype, and so does
every kernel. TF32 is turned off, for float32 is what was asked for; TensorRT by itself would use it. ONNX has bfloat16
convolutions from opset 22 on and the exporter writes 17, so TensorRT's parser may refuse that dtype.

Which kernels are fastest TensorRT finds out by timing them, and not the same every time; networks and layers of one run
share these timings, so that equal layers get equal kernels.

Layers come from TensorRT's profiler, on an execution context of its own. It records CUDA events between kernels, so
what a run takes longer for them is taken off every kernel equally, see :func:`~.cuda_timing.without_stamps`. A layer
alone is the sum of its kernels by the same profiler, less copies between layouts; with its events, as there is no whole
to compare it with. References are those of ``torch-cudagraph:cuda``.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from widthwise.luts.errors import InvalidModel, InvalidTarget
from widthwise.luts.spec import LayerSpec
from widthwise.profiling.runtimes.base import (
    Candidate,
    NetworkSession,
    PromptSession,
    Session,
    UnsupportedLayer,
)
from widthwise.profiling.runtimes.cuda_timing import Recent, wall_s, without_stamps
from widthwise.profiling.runtimes.deployment import deployable, output_names, owners, refusal, require_package
from widthwise.profiling.runtimes.onnx_export import export_onnx
from widthwise.profiling.runtimes.reports import Kernel, by_layer
from widthwise.profiling.runtimes.tensorrt_reports import kernels_from, require_precision
from widthwise.profiling.runtimes.torch_cuda import FusingCudaRuntime
from widthwise.profiling.runtimes.torch_layers import build_layer, tensors
from widthwise.profiling.target import Target

__all__ = ["EngineBuilder", "TensorRtRuntime"]

_OLDEST = 10
_DTYPES = {
    "FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16,
    "INT32": torch.int32, "INT64": torch.int64, "INT8": torch.int8, "UINT8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


class TensorRtRuntime(FusingCudaRuntime):
    """The ``tensorrt:cuda`` target; not yet run on hardware.

    Raises:
        InvalidTarget: there is no GPU, the package isn't installed or older than 10, or a memory format is asked for.
    """

    def __init__(self, target: Target) -> None:
        if target.memory_format != "contiguous":
            raise InvalidTarget("TensorRT chooses its memory layout itself: leave --memory-format out")
        super().__init__(target)  # before the package is asked for: that is gigabytes
        self._trt: Any = require_package("tensorrt", "tensorrt", target)
        require_package("onnx", "tensorrt", target)
        if int(self._trt.__version__.partition(".")[0]) < _OLDEST:
            raise InvalidTarget(f"tensorrt:cuda needs TensorRT {_OLDEST} or newer; this is {self._trt.__version__}")
        with self._on_gpu():
            self._builder = EngineBuilder(self._trt, target)

    def versions(self) -> dict[str, str]:
        return {"tensorrt": str(self._trt.__version__), "cuda": str(torch.version.cuda)}

    def network(self, candidate: Candidate) -> NetworkSession:
        graph = deployable(candidate.build(), candidate.network)
        engine = self._engine(graph, candidate.example, output_names(graph))
        return _TensorRtNetwork(engine, owners(candidate.network))

    def layer(self, spec: LayerSpec) -> Session:
        module, inputs = build_layer(spec)
        try:
            return _LoneEngine(self._engine(module, inputs))
        except InvalidModel as error:
            raise UnsupportedLayer(f"{spec} can't be timed alone: {error}") from error

    def _engine(self, module: nn.Module, example: Sequence[torch.Tensor], outputs: Sequence[str] = ()) -> _Engine:
        with self._on_gpu():
            inputs = [self._placement.place(tensor).contiguous() for tensor in example]
            model = export_onnx(self._placement.deploy(module), inputs, outputs)
            return _Engine(self._trt, self._builder.build(model), inputs)


@dataclass(frozen=True, slots=True)
class _Built:
    """An engine, the names of its inputs and outputs in the model's order, and what its inspector says of it."""

    engine: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    inspected: str


class EngineBuilder:
    """Builds engines for the current GPU that share one timing cache.

    Args:
        trt: the package ``tensorrt``.
        target: says the dtype.
    """

    def __init__(self, trt: Any, target: Target) -> None:
        self._trt = trt
        self._target = target
        self._log = _log(trt)
        self._builder = trt.Builder(self._log)
        self._runtime = trt.Runtime(self._log)  # must outlive its engines
        self._timings = b""

    def build(self, model: bytes) -> _Built:
        """The engine of a serialised ONNX model.

        Raises:
            InvalidModel: TensorRT can't parse or build it; names the layer where TensorRT does.
            InvalidTarget: the engine computes in another precision than the target's.
        """
        trt = self._trt
        self._log.errors.clear()
        network = self._builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, self._log)  # the network reads the weights it holds
        if not parser.parse(model):
            raise self._refusal([_complaint(parser.get_error(index)) for index in range(parser.num_errors)])
        config = self._config()
        plan = self._builder.build_serialized_network(network, config)
        engine = self._runtime.deserialize_cuda_engine(plan) if plan is not None else None
        if engine is None:
            raise self._refusal(self._log.errors)
        self._timings = bytes(config.get_timing_cache().serialize())
        inspected = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
        require_precision(inspected, self._target)
        inputs = tuple(network.get_input(index).name for index in range(network.num_inputs))
        outputs = tuple(network.get_output(index).name for index in range(network.num_outputs))
        return _Built(engine, inputs, outputs, inspected)

    def _config(self) -> Any:
        trt = self._trt
        config = self._builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        config.clear_flag(trt.BuilderFlag.TF32)
        config.set_timing_cache(config.create_timing_cache(self._timings), ignore_mismatch=False)
        return config

    def _refusal(self, complaints: Sequence[str]) -> InvalidModel:
        return refusal("TensorRT", RuntimeError("; ".join(complaints) or "it doesn't say why"))


class _Engine:
    """A built engine on the GPU: one execution context as deployed; one with the profiler, made when it is needed."""

    def __init__(self, trt: Any, built: _Built, inputs: Sequence[torch.Tensor]) -> None:
        self._trt = trt
        self._built = built
        self._tensors = dict(zip(built.inputs, inputs, strict=True)) | {
            name: torch.empty(
                tuple(built.engine.get_tensor_shape(name)),
                dtype=_DTYPES[built.engine.get_tensor_dtype(name).name],
                device=inputs[0].device,
            )
            for name in built.outputs
        }
        self._stream = _stream()
        self._deployed = self._context()
        self._profiled: Any = None
        self._report: Any = None

    def run(self) -> float:
        """Seconds of wall time."""
        return wall_s(lambda: self._start(self._deployed))

    def kernels(self) -> list[Kernel]:
        """The kernels of one run."""
        if self._profiled is None:
            self._profiled, self._report = self._context(), _report(self._trt)
            self._profiled.profiler = self._report
            self._profiled.enqueue_emits_profile = False  # otherwise the call itself waits for the GPU
        self._report.kernels.clear()
        wall_s(lambda: self._start(self._profiled))
        if not self._profiled.report_to_profiler():
            raise RuntimeError("TensorRT's profiler reports nothing of a run that has finished")
        return kernels_from(self._report.kernels, self._built.inspected)

    def outputs(self) -> tuple[torch.Tensor, ...]:
        self.run()
        return tensors(tuple(self._tensors[name] for name in self._built.outputs))

    def _context(self) -> Any:
        context = self._built.engine.create_execution_context()
        if context is None:
            raise RuntimeError("TensorRT makes no execution context; most likely the GPU's memory is full")
        for name, tensor in self._tensors.items():
            context.set_tensor_address(name, tensor.data_ptr())
        return context

    def _start(self, context: Any) -> None:
        if not context.execute_async_v3(self._stream.cuda_stream):
            raise RuntimeError("TensorRT can't run the engine it has built")


class _TensorRtNetwork(PromptSession):
    def __init__(self, engine: _Engine, owner_of: Mapping[str, int]) -> None:
        super().__init__()
        self._engine = engine
        self._owner_of = owner_of
        self._whole = Recent()

    def run(self) -> float:
        return self._whole.add(self._engine.run())

    def report(self) -> Sequence[float]:
        run = self._engine.kernels()
        seconds = without_stamps([kernel.seconds for kernel in run], self._whole.seconds)
        run = [replace(kernel, seconds=rest) for kernel, rest in zip(run, seconds, strict=True)]
        return by_layer(run, self._owner_of)

    def outputs(self) -> tuple[torch.Tensor, ...]:
        return self._engine.outputs()


class _LoneEngine(Session):
    """One layer's kernels, without copies between layouts, which a network doesn't make around each layer."""

    def __init__(self, engine: _Engine) -> None:
        self._engine = engine

    def run(self) -> float:
        return sum(kernel.seconds for kernel in self._engine.kernels() if not kernel.copies)


def _stream() -> torch.cuda.Stream:
    """On the default stream TensorRT synchronises more than it must, and warns of it."""
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


@functools.cache
def _log(trt: Any) -> Any:
    """The one logger of this process, as TensorRT takes no second; it keeps errors and prints nothing."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(msg)

    return Log()


def _report(trt: Any) -> Any:
    """A profiler that keeps (name, seconds) of each kernel."""

    class Report(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.kernels: list[tuple[str, float]] = []

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.kernels.append((layer_name, ms * 1e-3))

    return Report()


def _complaint(error: Any) -> str:
    return f"{error.node_name()}: {error.desc()}"
