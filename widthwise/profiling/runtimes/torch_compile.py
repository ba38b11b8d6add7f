"""Inductor on the CPU: ``torch.compile`` with static shapes and frozen weights, which are prepacked for oneDNN.

Layers are timed in place, by time stamps between kernels; see :mod:`widthwise.profiling.runtimes.inductor`. A layer
that inductor computes within another one's kernel takes no time of its own. What a network takes beyond its layers are
the checks with which dynamo begins every call.

Weights are frozen by a setting that must be on already while dynamo traces: with ``options={"freezing": True}`` PyTorch
2.14 freezes nothing. Users set ``TORCHINDUCTOR_FREEZING=1`` or ``torch._inductor.config.freezing``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from widthwise.luts.errors import InvalidTarget
from widthwise.luts.spec import LayerSpec
from widthwise.profiling.runtimes.base import Candidate, NetworkSession, Session
from widthwise.profiling.runtimes.deployment import deployable, owners
from widthwise.profiling.runtimes.inductor import Compiled, Inductor, cpp_compiler, unknown_inductor
from widthwise.profiling.runtimes.reports import by_layer
from widthwise.profiling.runtimes.torch_eager import FusingCpuRuntime
from widthwise.profiling.runtimes.torch_layers import Placement, build_layer
from widthwise.profiling.target import Target

__all__ = ["TorchCompileRuntime"]


class TorchCompileRuntime(FusingCpuRuntime):
    """The ``torch-compile:cpu`` target.

    Raises:
        InvalidTarget: there is no C++ compiler, the dtype has no CPU kernels, or this PyTorch has another inductor.
    """

    own_threads = False

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        if target.dtype == "float16":
            raise InvalidTarget(
                "torch-compile:cpu runs float32 or bfloat16; float16 convolutions have no fast CPU kernels"
            )
        self._placement = Placement.of(target)
        self._inductor = Inductor.of_this_pytorch()
        self._compiler = cpp_compiler()

    def versions(self) -> dict[str, str]:
        return {"torch": torch.__version__}

    def device_fields(self) -> dict[str, str | int]:
        return {"info.compiler": self._compiler}

    def network(self, candidate: Candidate) -> NetworkSession:
        graph = deployable(candidate.build(), candidate.network)
        inputs = [self._placement.place(tensor) for tensor in candidate.example]
        return _CompiledNetwork(self._compiled(graph, inputs), owners(candidate.network))

    def layer(self, spec: LayerSpec) -> Session:
        module, inputs = build_layer(spec)
        # Between its kernels inductor keeps activations in this layout, whatever the network is given.
        inputs = [
            tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor for tensor in inputs
        ]
        dtype = self._placement.dtype
        return _CompiledLayer(self._compiled(module, [tensor.to(dtype) for tensor in inputs]))

    def _compiled(self, model: nn.Module, inputs: Sequence[torch.Tensor]) -> Compiled:
        return self._inductor.compile(self._placement.deploy(model), inputs, self.target.threads)


class _CompiledLayer(Session):
    """One layer; its kernels count, and not the call around them."""

    def __init__(self, compiled: Compiled) -> None:
        self.compiled = compiled

    def run(self) -> float:
        return sum(kernel.seconds for kernel in self.compiled.run_stamped()[1])


class _CompiledNetwork(NetworkSession):
    def __init__(self, compiled: Compiled, owner_of: Mapping[str, int]) -> None:
        if not any(compiled.wrapper.operations):
            raise unknown_inductor("its graphs name no submodules")
        self.compiled = compiled
        self._owner_of = owner_of
        self._reports: list[Sequence[float]] = []

    def run(self) -> float:
        return self.compiled.run()

    def run_layers(self) -> float:
        elapsed_s, kernels = self.compiled.run_stamped()
        self._reports.append(by_layer(kernels, self._owner_of))
        return elapsed_s

    def read_layers(self) -> list[Sequence[float]]:
        reports, self._reports = self._reports, []
        return reports

    def outputs(self) -> tuple[torch.Tensor, ...]:
        return self.compiled.outputs()
