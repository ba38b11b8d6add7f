"""Runtimes by name; each is imported only when a target asks for it."""

from __future__ import annotations

import importlib

from widthwise.luts.errors import InvalidTarget
from widthwise.profiling.runtimes.base import (
    Candidate,
    NetworkSession,
    PromptSession,
    References,
    Runtime,
    Session,
    UnsupportedLayer,
)
from widthwise.profiling.target import Target

__all__ = [
    "RUNTIMES",
    "Candidate",
    "NetworkSession",
    "PromptSession",
    "References",
    "Runtime",
    "Session",
    "UnsupportedLayer",
    "open_runtime",
]

_PACKAGE = "widthwise.profiling.runtimes"

RUNTIMES = {
    "torch:cpu": f"{_PACKAGE}.torch_eager:TorchRuntime",
    "torch:cuda": f"{_PACKAGE}.torch_cuda:CudaRuntime",
    "torch-cudagraph:cuda": f"{_PACKAGE}.torch_cuda:CudaGraphRuntime",
    "onnxruntime:cpu": f"{_PACKAGE}.onnx_runtime:OnnxRuntime",
    "fake:cpu": f"{_PACKAGE}.fake:FakeRuntime",
}
"""Runtime and device, without its number → ``module:class``."""


def open_runtime(target: Target) -> Runtime:
    """The runtime of a target, ready to prepare sessions.

    Raises:
        InvalidTarget: no such runtime, or it can't run this target here.
    """
    place = RUNTIMES.get(f"{target.runtime}:{target.device.partition(':')[0]}")
    if place is None:
        known = ", ".join(sorted(RUNTIMES))
        raise InvalidTarget(f"no target {target.runtime}:{target.device}; there are {known} (cuda:1 is the second GPU)")
    module, _, name = place.partition(":")
    runtime: Runtime = getattr(importlib.import_module(module), name)(target)
    return runtime
