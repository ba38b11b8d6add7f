"""NVML through its real bindings, against a stub of the driver's library that is compiled here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from widthwise.luts.measurement import Conditions
from widthwise.profiling.conditions import is_contaminated
from widthwise.profiling.nvml import SLOWING, reasons_in

_LOOK = """
import json
from dataclasses import asdict
from widthwise.profiling.nvml import GpuLost, NoGpu, open_gpu
try:
    gpu = open_gpu({arguments})
    if isinstance(gpu, NoGpu):
        found = {{"absent": [gpu.reason, gpu.remedy]}}
    else:
        state = gpu.state()
        found = {{"identity": gpu.identity(), "state": asdict(state), "share": state.clock_share}}
except GpuLost as error:
    found = {{"lost": str(error)}}
print(json.dumps(found))
"""


def compiled(folder: Path, *flags: str) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler here to build the stub of libnvidia-ml.so.1")
    source = Path(__file__).with_name("nvml_stub.c")
    library = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", *flags, "-o", str(library), str(source)], check=True)
    return folder


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the stub as a current driver's library."""
    return compiled(tmp_path_factory.mktemp("driver"))


def run(driver: Path | None, arguments: list[str], **settings: int) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STUB_")}
    environment |= {f"STUB_{name}": str(value) for name, value in settings.items()}
    if driver is not None:
        environment["LD_LIBRARY_PATH"] = str(driver)
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)


def look(driver: Path, arguments: str = "", **settings: int) -> dict[str, Any]:
    done = run(driver, ["-c", _LOOK.format(arguments=arguments)], **settings)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def hazards(driver: Path, **settings: int) -> dict[str, dict[str, str]]:
    """What ``widthwise device`` says of the GPU."""
    done = run(driver, ["-m", "widthwise", "device", "--json"], **settings)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["hazards"]
    return {hazard["what"]: hazard for hazard in found if "GPU" in hazard["what"]}


def test_a_quiet_gpu(driver: Path) -> None:
    found = look(driver)
    assert found["identity"] == {
        "gpu": "Stub 9000",
        "gpu_memory_mib": 3072,
        "gpu_most_clock_mhz": 2000,
        "info.gpu_uuid": "GPU-stub",
        "info.gpu_driver": "999.1",
    }
    assert found["state"] == {
        "clock_mhz": 1700,
        "most_clock_mhz": 2000,
        "reasons": 0,
        "others": 0,
        "persistent": True,
        "partitioned": None,
        "refused": [],
    }
    assert found["share"] == pytest.approx(0.85)
    assert hazards(driver) == {}


def test_a_throttled_gpu_is_said_to_be(driver: Path) -> None:
    said = hazards(driver, REASONS=0x40 | 0x4, CLOCK=900)["GPU slowed down"]
    assert said["found"] == "thermal slowdown (hardware) at 900 MHz"
    assert "nvidia-smi" in said["remedy"]


def test_a_shared_partitioned_sleeping_gpu(driver: Path) -> None:
    said = hazards(driver, OTHERS=3, MIG=1, PERSISTENT=0)
    assert said.keys() == {"GPU shared", "GPU partitioned", "GPU sleeps"}
    assert said["GPU shared"]["found"].startswith("3 other processes")


@pytest.mark.parametrize("settings", [{"HANDLE": 15}, {"LOST_AFTER": 0}, {"LOST_AFTER": 2}])
def test_a_lost_gpu_says_what_is_kept_and_what_to_do(driver: Path, settings: dict[str, int]) -> None:
    assert "what was measured is kept; restart the machine" in look(driver, **settings)["lost"]
    assert hazards(driver, **settings).keys() == {"GPU lost"}


@pytest.mark.parametrize(
    ("settings", "reason", "remedy"),
    [
        ({"INIT": 9}, "the NVIDIA driver is installed but not loaded", "sudo modprobe nvidia, or restart"),
        ({"INIT": 4}, "the NVIDIA driver may not be used by this user", "join the group"),
        ({"INIT": 18}, "the NVIDIA driver was updated and its old version still runs", "restart"),
        ({"INIT": 999}, "the NVIDIA driver answers: ", "nvidia-smi"),
        ({"COUNT": 0}, "the driver sees no GPU number 0", "nvidia-smi -L"),
    ],
)
def test_a_driver_that_cannot_be_used(driver: Path, settings: dict[str, int], reason: str, remedy: str) -> None:
    said = look(driver, **settings)["absent"]
    assert said[0].startswith(reason)
    assert remedy in said[1]
    assert hazards(driver, **settings).keys() == {"no GPU"}


def test_no_driver_is_a_normal_state(tmp_path: Path) -> None:
    assert look(tmp_path)["absent"] == ["no NVIDIA driver here", ""]
    assert hazards(tmp_path) == {}


def test_refused_readings_are_none_and_named(driver: Path) -> None:
    state = look(driver, READ=4)["state"]
    assert state["clock_mhz"] is None and state["reasons"] is None and state["others"] is None
    assert state["refused"] == ["clock", "processes", "reasons"]
    assert hazards(driver, READ=4)["GPU readings refused"]["found"] == "clock, processes, reasons"


def test_readings_a_gpu_lacks_are_none(driver: Path) -> None:
    state = look(driver, READ=3)["state"]
    assert state["clock_mhz"] is None and state["refused"] == []
    assert hazards(driver, READ=3) == {}


def test_a_gpu_is_found_by_identity(driver: Path) -> None:
    assert look(driver, "'GPU-stub'")["identity"]["gpu"] == "Stub 9000"
    assert "absent" in look(driver, "'GPU-other'")


def test_an_old_driver_names_its_reasons_otherwise(tmp_path: Path) -> None:
    assert look(compiled(tmp_path, "-DOLD_DRIVER"), REASONS=0x20)["state"]["reasons"] == 0x20


def test_blocks_of_a_slowed_gpu_are_contaminated() -> None:
    assert reasons_in(SLOWING) == [
        "hardware slowdown",
        "thermal slowdown (driver)",
        "thermal slowdown (hardware)",
        "power brake",
    ]
    assert is_contaminated(Conditions(clock_share=0.7), runs=20)
    assert is_contaminated(Conditions(clock_share=0.99, slowed_by=0x48), runs=20)
    assert not is_contaminated(Conditions(clock_share=0.99, slowed_by=0x4), runs=20)  # a power cap alone is usual
