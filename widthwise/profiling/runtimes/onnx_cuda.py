"""ONNX Runtime on an NVIDIA GPU, with its CUDA provider: inputs and outputs bound to the GPU's memory.

ONNX Runtime's own profile counts launches there, not kernels: only builds with CUDA profiling record those. But it says
when each node began to launch, and PyTorch's profiler records what was launched when and how long it ran; the two
together are the layers (:mod:`.cuda_trace`), from the first kernel on; what the call takes before that is left to the
predictor's correction. Recording slows launches down, so what such a run takes longer than one without is taken off
every layer equally (:func:`~.cuda_timing.without_stamps`).

As with ``torch:cuda``, at batch size 1 a fast GPU waits for launches, and fewer channels change little. TF32 and the
search for convolution algorithms stay as ONNX Runtime has them by default; ``channels_last`` is its ``prefer_nhwc``.

There is no target for its TensorRT provider, which runs all it takes of a network as one node: the engine is
TensorRT's, and ``tensorrt:cuda`` times such engines with their layers.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from widthwise.luts.errors import InvalidModel, InvalidTarget
from widthwise.luts.spec import LayerSpec
from widthwise.profiling.runtimes.base import Candidate, NetworkSession, Session, UnsupportedLayer
from widthwise.profiling.runtimes.cuda_timing import Recent, wall_s, without_stamps
from widthwise.profiling.runtimes.cuda_trace import GpuWork, Step, in_steps, recorded
from widthwise.profiling.runtimes.deployment import deployable, output_names, owners, refusal, require_package
from widthwise.profiling.runtimes.onnx_export import export_onnx
from widthwise.profiling.runtimes.reports import Kernel, by_layer
from widthwise.profiling.runtimes.torch_cuda import CudaRuntime, FusingCudaRuntime
from widthwise.profiling.runtimes.torch_layers import build_layer
from widthwise.profiling.target import Target

__all__ = ["OnnxCudaRuntime", "steps_in"]

_PROVIDER = "CUDAExecutionProvider"
_SUFFIX = "_kernel_time"
_REPEATS = 10

_COPY = re.compile(r"Memcpy|Memset|.*onnxruntime.*Transpose")
"""Names of GPU work that moves data into another layout or place."""

_NUMPY = {
    torch.float32: np.float32, torch.float16: np.float16, torch.float64: np.float64, torch.int64: np.int64,
    torch.int32: np.int32, torch.uint8: np.uint8, torch.int8: np.int8, torch.bool: np.bool_,
}  # fmt: skip


class OnnxCudaRuntime(FusingCudaRuntime):
    """The ``onnxruntime:cuda`` target.

    Raises:
        InvalidTarget: there is no GPU, the package isn't installed or is built without the CUDA provider, or bfloat16
            is asked for.
    """

    as_in = CudaRuntime

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self._ort: Any = require_package("onnxruntime", "onnx-gpu", target)
        require_package("onnx", "onnx-gpu", target)
        if _PROVIDER not in self._ort.get_available_providers():
            raise InvalidTarget(
                f"target {target.runtime}:{target.device} needs ONNX Runtime's build for GPUs; this one has "
                f"{', '.join(self._ort.get_available_providers())}. Replace it: pip uninstall onnxruntime, then "
                "pip install 'widthwise[onnx-gpu]'"
            )
        if target.dtype == "bfloat16":
            raise InvalidTarget(
                "onnxruntime:cuda runs float32 or float16: its CUDA provider convolves no bfloat16, torch:cuda does"
            )
        self._ort.set_default_logger_severity(3)  # it warns of the provider's registration with every session

    def versions(self) -> dict[str, str]:
        return {"onnxruntime": self._ort.__version__} | self._torch.versions()

    def network(self, candidate: Candidate) -> NetworkSession:
        graph = deployable(candidate.build(), candidate.network)
        return _OrtCudaNetwork(self._runner(graph, candidate.example, output_names(graph)), owners(candidate.network))

    def layer(self, spec: LayerSpec) -> Session:
        module, inputs = build_layer(spec)
        try:
            return _LoneOrtLayer(self._runner(module, inputs))
        except InvalidModel as error:
            raise UnsupportedLayer(f"{spec} can't be timed alone: {error}") from error

    def _runner(self, module: torch.nn.Module, example: Sequence[torch.Tensor], outputs: Sequence[str] = ()) -> _Runner:
        with self._on_gpu():
            inputs = [self._placement.place(tensor).contiguous() for tensor in example]
            model = export_onnx(self._placement.deploy(module), inputs, outputs)
            return _Runner(self._ort, model, inputs, self.target)


class _Runner:
    """One exported model as two sessions on the GPU: as deployed, and with ONNX Runtime's profile, made when needed."""

    def __init__(self, ort: Any, model: bytes, inputs: Sequence[torch.Tensor], target: Target) -> None:
        self._ort = ort
        self._model = model
        self._inputs = inputs
        self._target = target
        self._deployed = self._session()
        self._bound = self._bind(self._deployed)
        self._profiled: Any = None
        self._profiled_bound: Any = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._records: list[list[GpuWork]] = []

    def run(self) -> float:
        """Seconds of wall time."""
        return wall_s(self._call)

    def work(self, repeats: int) -> list[GpuWork]:
        """What so many calls run on the GPU."""
        return recorded(lambda: [wall_s(self._call) for _ in range(repeats)])

    def run_profiled(self) -> float:
        """Seconds of wall time of a call whose kernels are recorded, to be read by :meth:`read_profile`."""
        if self._profiled is None:
            self._folder = tempfile.TemporaryDirectory(prefix="widthwise-")
            self._profiled = self._session(Path(self._folder.name) / "profile")
            self._profiled_bound = self._bind(self._profiled)
        took: list[float] = []
        call: Callable[[], object] = lambda: self._profiled.run_with_iobinding(self._profiled_bound)  # noqa: E731
        self._records.append(recorded(lambda: took.append(wall_s(call))))
        return took[0]

    def read_profile(self) -> list[list[Kernel]]:
        """The kernels of each profiled run since the last reading."""
        records, self._records = self._records, []
        if self._profiled is None:
            return []
        start_ns = int(self._profiled.get_profiling_start_time_ns())
        events = json.loads(Path(self._profiled.end_profiling()).read_text())
        assert self._folder is not None
        self._folder.cleanup()
        self._profiled = self._profiled_bound = self._folder = None
        runs = steps_in(events, start_ns)
        return [
            [Kernel((name,), seconds) for name, seconds in in_steps(work, steps, begin_ns=work[0].begin_ns)]
            for work, steps in zip(records, runs, strict=True)
        ]

    def outputs(self) -> tuple[torch.Tensor, ...]:
        self.run()
        return tuple(torch.from_numpy(np.asarray(output)).float() for output in self._bound.copy_outputs_to_cpu())

    def _call(self) -> None:
        self._deployed.run_with_iobinding(self._bound)

    def _bind(self, session: Any) -> Any:
        device = self._inputs[0].device
        bound = session.io_binding()
        for given, tensor in zip(session.get_inputs(), self._inputs, strict=True):
            bound.bind_input(
                given.name, device.type, device.index or 0, _NUMPY[tensor.dtype], tuple(tensor.shape), tensor.data_ptr()
            )
        for result in session.get_outputs():
            bound.bind_output(result.name, device.type, device.index or 0)
        return bound

    def _session(self, profile: Path | None = None) -> Any:
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = self._target.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        given = {
            "device_id": str(self._inputs[0].device.index or 0),
            "prefer_nhwc": str(int(self._target.memory_format == "channels_last")),
        }
        try:
            session = self._ort.InferenceSession(self._model, options, providers=[(_PROVIDER, given)])
        except Exception as error:  # its own exception classes have no common ancestor
            raise refusal("onnxruntime", error) from error
        if session.get_providers()[0] != _PROVIDER:
            raise InvalidTarget(
                f"ONNX Runtime {self._ort.__version__} can't load its CUDA provider and fell back to the CPU; it needs "
                f"the CUDA and cuDNN libraries it was built for, beside those of PyTorch {torch.__version__}: "
                "onnxruntime.preload_dlls() says which are missing"
            )
        return session


class _OrtCudaNetwork(NetworkSession):
    def __init__(self, runner: _Runner, owner_of: Mapping[str, int]) -> None:
        self._runner = runner
        self._owner_of = owner_of
        self._whole = Recent()

    def run(self) -> float:
        return self._whole.add(self._runner.run())

    def run_layers(self) -> float:
        return self._runner.run_profiled()

    def read_layers(self) -> list[Sequence[float]]:
        return [self._by_layer(run) for run in self._runner.read_profile()]

    def outputs(self) -> tuple[torch.Tensor, ...]:
        return self._runner.outputs()

    def _by_layer(self, run: Sequence[Kernel]) -> Sequence[float]:
        seconds = without_stamps([kernel.seconds for kernel in run], self._whole.seconds)
        return by_layer(
            [replace(kernel, seconds=rest) for kernel, rest in zip(run, seconds, strict=True)], self._owner_of
        )


class _LoneOrtLayer(Session):
    """One layer's kernels, by their own clock: of several calls recorded at once, less copies between layouts, which a
    network doesn't make around each layer."""

    def __init__(self, runner: _Runner) -> None:
        self._runner = runner
        runner.run()

    def run(self) -> float:
        work = self._runner.work(_REPEATS)
        computing = [piece for piece in work if not _COPY.match(piece.name)] or work
        return sum(piece.end_ns - piece.begin_ns for piece in computing) * 1e-9 / _REPEATS


def steps_in(events: Sequence[Mapping[str, Any]], start_ns: int) -> list[list[Step]]:
    """The nodes of each run in a profile of ONNX Runtime.

    Args:
        events: of the profile, in µs since its start.
        start_ns: when that was, in ns since 1970.

    Example:
        >>> node = {"cat": "Node", "name": "/op_fc/Gemm_kernel_time", "ts": 12, "dur": 63}
        >>> steps_in([node, {"cat": "Session", "name": "model_run", "ts": 10, "dur": 70}], start_ns=1000)
        [[Step(name='/op_fc/Gemm', begin_ns=13000)]]
    """
    runs: list[list[Step]] = []
    current: list[Step] = []
    for event in events:
        begin_ns = start_ns + int(event["ts"]) * 1000
        name = event["name"].removesuffix(_SUFFIX)
        if event["cat"] == "Node" and name != event["name"]:
            current.append(Step(name, begin_ns))
        elif name == "model_run":
            runs.append(sorted(current, key=lambda step: step.begin_ns))
            current = []
    return runs
