"""Targets: what runs the network. A table belongs to one target on one device."""

from __future__ import annotations

from dataclasses import dataclass

from widthwise.luts.errors import InvalidTarget

__all__ = ["DTYPES", "Target"]

DTYPES = ("float32", "bfloat16", "float16")
_LAYOUTS = ("contiguous", "channels_last")


@dataclass(frozen=True, slots=True)
class Target:
    """Runtime, device, and what else changes every latency.

    Args:
        runtime: ``torch``, ``onnxruntime``, ``openvino``, …; see :mod:`widthwise.profiling.runtimes`.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        threads: intra-op threads.
        dtype: of weights and activations.
        memory_format: of activations.

    Raises:
        InvalidTarget: a value is not among those above.

    Example:
        >>> str(Target.parse("torch:cpu", threads=2))
        'torch:cpu, 2 threads, float32'
    """

    runtime: str
    device: str
    threads: int = 1
    dtype: str = "float32"
    memory_format: str = "contiguous"

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise InvalidTarget(f"threads must be at least 1, got {self.threads}")
        if self.dtype not in DTYPES:
            raise InvalidTarget(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.memory_format not in _LAYOUTS:
            raise InvalidTarget(f"memory format must be one of {', '.join(_LAYOUTS)}, got {self.memory_format!r}")

    @classmethod
    def parse(cls, text: str, *, threads: int = 1, dtype: str = "float32", memory_format: str = "contiguous") -> Target:
        """The target ``RUNTIME:DEVICE``; ``RUNTIME`` alone means its CPU."""
        runtime, _, device = text.partition(":")
        if not runtime:
            raise InvalidTarget(f"a target is RUNTIME:DEVICE, such as torch:cpu; got {text!r}")
        return cls(runtime, device or "cpu", threads, dtype, memory_format)

    @classmethod
    def from_dict(cls, fields: dict[str, object]) -> Target:
        """The target a table was made for.

        Raises:
            InvalidTarget: fields are missing or of another type.
        """
        try:
            return cls(
                str(fields["runtime"]),
                str(fields["device"]),
                int(str(fields["threads"])),
                str(fields["dtype"]),
                str(fields["memory_format"]),
            )
        except (KeyError, ValueError) as error:
            raise InvalidTarget(f"the table's target can't be read: {error}") from error

    def as_dict(self) -> dict[str, str | int]:
        """As stored in a table."""
        return {
            "runtime": self.runtime,
            "device": self.device,
            "threads": self.threads,
            "dtype": self.dtype,
            "memory_format": self.memory_format,
        }

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        layout = "" if self.memory_format == "contiguous" else f", {self.memory_format}"
        return f"{self.runtime}:{self.device}, {threads}, {self.dtype}{layout}"
