"""Runtimes by name; each is imported only when a target asks for it."""

from __future__ import annotations

import importlib
from importlib import metadata

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
    "ENTRY_POINTS",
    "RUNTIMES",
    "Candidate",
    "NetworkSession",
    "PromptSession",
    "References",
    "Runtime",
    "Session",
    "UnsupportedLayer",
    "open_runtime",
    "targets_here",
]

_PACKAGE = "widthwise.profiling.runtimes"

RUNTIMES = {
    "torch:cpu": f"{_PACKAGE}.torch_eager:TorchRuntime",
    "torch:cuda": f"{_PACKAGE}.torch_cuda:CudaRuntime",
    "torch-cudagraph:cuda": f"{_PACKAGE}.torch_cuda:CudaGraphRuntime",
    "torch-compile:cpu": f"{_PACKAGE}.torch_compile:TorchCompileRuntime",
    "onnxruntime:cpu": f"{_PACKAGE}.onnx_runtime:OnnxRuntime",
    "onnxruntime:cuda": f"{_PACKAGE}.onnx_cuda:OnnxCudaRuntime",
    "openvino:*": f"{_PACKAGE}.openvino_runtime:OpenVinoRuntime",
    "tensorrt:cuda": f"{_PACKAGE}.tensorrt_runtime:TensorRtRuntime",
    "fake:cpu": f"{_PACKAGE}.fake:FakeRuntime",
}
"""Runtime and device, without its number, → ``module:class``; a device ``*`` is any."""

ENTRY_POINTS = "widthwise.runtimes"
"""Entry points of this group, named and written as in :data:`RUNTIMES`, add runtimes of others; ours go first."""


def open_runtime(target: Target) -> Runtime:
    """The runtime of a target, ready to prepare sessions.

    Raises:
        InvalidTarget: no such runtime, or it can't run this target here.
    """
    places = _places()
    device = target.device.partition(":")[0]
    place = places.get(f"{target.runtime}:{device}") or places.get(f"{target.runtime}:*")
    if place is None:
        known = ", ".join(sorted(places))
        raise InvalidTarget(f"no target {target.runtime}:{target.device}; there are {known} (cuda:1 is the second GPU)")
    module, _, name = place.partition(":")
    try:
        runtime: Runtime = getattr(importlib.import_module(module), name)(target)
    except (ImportError, AttributeError) as error:
        raise InvalidTarget(f"target {target.runtime}:{target.device} can't be loaded from {place}: {error}") from error
    return runtime


def targets_here() -> dict[str, str]:
    """Every target, with the versions that would run it here, or why none can.

    Example:
        >>> targets_here()["fake:cpu"]
        'fake 1'
    """
    found = {}
    for name in sorted(_places()):
        name = name.replace("*", "cpu")
        try:
            versions = open_runtime(Target.parse(name)).versions()
            found[name] = ", ".join(f"{library} {version}" for library, version in versions.items())
        except InvalidTarget as error:
            found[name] = f"not here: {error}"
    return found


def _places() -> dict[str, str]:
    others = {found.name: found.value for found in metadata.entry_points(group=ENTRY_POINTS)}
    return others | RUNTIMES
