"""Runtimes by name; each is imported only when a target asks for it."""

from __future__ import annotations

import importlib

from widthwise.luts.errors import InvalidTarget
from widthwise.profiling.runtimes.base import (
    Candidate,
    NetworkSession,
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
    "References",
    "Runtime",
    "Session",
    "UnsupportedLayer",
    "open_runtime",
]

RUNTIMES = {
    "torch": "widthwise.profiling.runtimes.torch_eager:TorchRuntime",
    "fake": "widthwise.profiling.runtimes.fake:FakeRuntime",
}
"""Runtime name → ``module:class``."""


def open_runtime(target: Target) -> Runtime:
    """The runtime of a target, ready to prepare sessions.

    Raises:
        InvalidTarget: no such runtime, or it can't run this target here.
    """
    place = RUNTIMES.get(target.runtime)
    if place is None:
        raise InvalidTarget(f"no runtime {target.runtime!r}; there are {', '.join(sorted(RUNTIMES))}")
    module, _, name = place.partition(":")
    runtime: Runtime = getattr(importlib.import_module(module), name)(target)
    return runtime
