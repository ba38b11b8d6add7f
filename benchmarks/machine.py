"""What every figure is quoted with: machine, versions, date; and where results are kept."""

from __future__ import annotations

import datetime
import json
import platform
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, str]:
    """Machine, versions and date of a run."""
    import torch

    from widthwise import __version__
    from widthwise.profiling.device import fingerprint, gpu_fields

    device = fingerprint(more=gpu_fields())
    gpu = {"gpu": f"{device['gpu']} (driver {device.get('info.gpu_driver')})"} if "gpu" in device else {}
    return {
        "cpu": f"{device['cpu']}, {device['cores']} cores ({device['cpu_isa']})",
        **gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "widthwise": __version__,
        "date": datetime.date.today().isoformat(),
    }


def caption() -> str:
    """One line for below a table."""
    return "; ".join(f"{name} {value}" for name, value in machine().items())


def keep(name: str, data: Any) -> Path:
    """Writes results beside the machine's description as JSON."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), "results": data}, indent=1) + "\n")
    return path
