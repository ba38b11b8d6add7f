"""A stand-in for the package ``tensorrt``: what the runtime calls of it, after TensorRT's documentation.

Its engines compute with ONNX Runtime in the CPU's memory and report made-up times under names joined as TensorRT
joins them. It says nothing about how fast or how right TensorRT is.
"""

from __future__ import annotations

import ctypes
import enum
import json
import math
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime

KERNEL_MS = 0.004
_NUMPY = {"FLOAT": np.float32, "HALF": np.float16}
_FORMATS = {"FLOAT": "Row major linear FP32", "HALF": "Row major linear FP16 format"}
_ONNX = {onnx.TensorProto.FLOAT: "FLOAT", onnx.TensorProto.FLOAT16: "HALF"}


class Severity(enum.Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


class ILogger:
    Severity = Severity


class IProfiler:
    pass


class Network:
    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.model = onnx.ModelProto()

    @property
    def num_inputs(self) -> int:
        return len(self.model.graph.input)

    @property
    def num_outputs(self) -> int:
        return len(self.model.graph.output)

    def get_input(self, index: int) -> Any:
        return self.model.graph.input[index]

    def get_output(self, index: int) -> Any:
        return self.model.graph.output[index]


class OnnxParser:
    """Refuses the operator types in ``refused``."""

    refused: tuple[str, ...] = ()

    def __init__(self, network: Network, log: ILogger) -> None:
        self._network = network
        self._errors: list[Any] = []

    def parse(self, model: bytes) -> bool:
        self._network.model = onnx.load_from_string(model)
        for node in self._network.model.graph.node:
            if node.op_type in self.refused:
                desc = f"In node 3 with name: {node.name} and operator: {node.op_type} (importFallbackPluginImporter)"
                self._errors.append(SimpleNamespace(node_name=lambda node=node: node.name, desc=lambda desc=desc: desc))
        return not self._errors

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> Any:
        return self._errors[index]


class Config:
    def __init__(self) -> None:
        self.profiling_verbosity: Any = None
        self.flags = {"TF32"}
        self._cache: Any = None

    def clear_flag(self, flag: str) -> None:
        self.flags.discard(flag)

    def create_timing_cache(self, serialised: bytes) -> Any:
        return SimpleNamespace(known=serialised)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        self._cache = cache
        return not ignore_mismatch

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: memoryview(self._cache.known + b"."))


class Builder:
    """Keeps what it was asked to build in ``built``; builds nothing while ``broken`` holds a reason."""

    broken = ""

    def __init__(self, log: Any) -> None:
        self._log = log
        self.built: list[tuple[Network, Config]] = []

    def create_network(self, flags: int) -> Network:
        return Network(flags)

    def create_builder_config(self) -> Config:
        return Config()

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        self.built.append((network, config))
        if self.broken:
            self._log.log(Severity.WARNING, "nothing to worry about")
            self._log.log(Severity.ERROR, self.broken)
            return None
        plan: bytes = network.model.SerializeToString()
        return plan


class Engine:
    def __init__(self, plan: bytes) -> None:
        self.model = onnx.load_from_string(plan)
        self.session = onnxruntime.InferenceSession(plan, providers=["CPUExecutionProvider"])
        self.tensors = {
            value.name: value.type.tensor_type for value in (*self.model.graph.input, *self.model.graph.output)
        }

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(dim.dim_value for dim in self.tensors[name].shape.dim)

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=_ONNX[self.tensors[name].elem_type])

    def create_execution_context(self) -> Context:
        return Context(self)

    def create_engine_inspector(self) -> Any:
        return SimpleNamespace(get_engine_information=lambda format: json.dumps({"Layers": self.layers()}))

    def layers(self) -> list[Any]:
        """A copy, then one kernel for each node; an activation joins what feeds it."""
        kind = self.get_tensor_dtype(self.model.graph.input[0].name).name
        joined: list[list[str]] = []
        for node in self.model.graph.node:
            if node.op_type == "Relu" and joined:
                joined[-1].append(node.name)
            elif node.op_type not in ("Constant", "Identity"):
                joined.append([node.name])
        found: list[Any] = [{"Name": f"Reformatting CopyNode for Input Tensor 0 to {joined[0][0]}"}]
        for names in joined:
            metadata = "\x1f".join(f"[ONNX Layer: {name}]" for name in names)
            inputs = [{"Name": "in", "Format/Datatype": _FORMATS[kind]}]
            found.append({"Name": " + ".join(names), "Metadata": metadata, "Inputs": inputs, "Outputs": []})
        return [*found, "[trainStation1]"]


class Context:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._addresses: dict[str, int] = {}
        self.profiler: Any = None
        self.enqueue_emits_profile = True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        graph = self._engine.model.graph
        results = self._engine.session.run(None, {value.name: self._memory(value.name) for value in graph.input})
        for value, result in zip(graph.output, results, strict=True):
            self._memory(value.name)[...] = result
        return stream == Stream.cuda_stream

    def report_to_profiler(self) -> bool:
        for layer in self._engine.layers():
            self.profiler.report_layer_time(layer["Name"] if isinstance(layer, dict) else layer, KERNEL_MS)
        return not self.enqueue_emits_profile

    def _memory(self, name: str) -> np.ndarray:
        shape, dtype = self._engine.get_tensor_shape(name), _NUMPY[self._engine.get_tensor_dtype(name).name]
        size = math.prod(shape) * np.dtype(dtype).itemsize
        return np.frombuffer((ctypes.c_char * size).from_address(self._addresses[name]), dtype).reshape(shape)


class Stream:
    """In place of ``torch.cuda.Stream``."""

    cuda_stream = 7


def tensorrt() -> Any:
    """A fresh module."""
    module: Any = ModuleType("tensorrt")
    module.__spec__ = ModuleSpec("tensorrt", None, origin=__file__)  # torch asks whoever is imported where it lies
    module.__version__ = "10.9.0.34"
    module.ILogger, module.IProfiler = ILogger, IProfiler
    module.OnnxParser = type("OnnxParser", (OnnxParser,), {})
    module.Builder = type("Builder", (Builder,), {})
    module.Runtime = lambda log: SimpleNamespace(deserialize_cuda_engine=Engine)
    module.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    module.ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
    module.LayerInformationFormat = SimpleNamespace(JSON="json")
    module.BuilderFlag = SimpleNamespace(TF32="TF32")
    return module
