"""What becomes of freed memory."""

from __future__ import annotations

import mmap
import platform
import subprocess
import sys

import pytest

import widthwise as ww
from widthwise.profiling import memory
from widthwise.profiling.conditions import watch_host

FAULTS = """
import statistics, torch, widthwise
from widthwise.profiling import memory
from widthwise.profiling.conditions import watch_host
torch.set_num_threads(1)
if {keep}:
    widthwise.keep_memory()
x = torch.zeros(12_000_000)
def run():
    with torch.inference_mode():
        x + 1.0
for _ in range(10):
    run()
faults = []
for _ in range(11):
    finish = watch_host(1)
    run()
    faults.append(finish().page_faults)
print(statistics.median(faults), memory._of_c_library("mallopt")(memory._MMAP_THRESHOLD, memory._LARGEST_KEPT))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc only")
def test_memory_that_is_kept_isnt_asked_for_again() -> None:
    """In processes of their own, since keeping can't be undone. By default 48 MB, 12,000 pages, always go back.

    The median of eleven runs: kept memory, too, is asked for once more where something small was put in its middle.
    """
    said = {}
    for keep in (True, False):
        command = [sys.executable, "-c", FAULTS.format(keep=keep)]
        faults, told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        if told == "0":
            pytest.skip("this version keeps blocks up to 32 MB")
        said[keep] = int(faults)
    assert said[True] < 50 < 10_000 < said[False]


def test_page_faults_are_counted() -> None:
    finish = watch_host(1)
    with mmap.mmap(-1, 1 << 24) as pages:
        for start in range(0, len(pages), mmap.PAGESIZE):
            pages[start] = 1
        faults = finish().page_faults
    assert faults is None or faults >= (1 << 24) / mmap.PAGESIZE / 512  # a huge page is one fault


def test_where_the_c_library_cant_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_of_c_library", lambda name: None)
    assert ww.keep_memory() is False
    memory.return_free_memory()


@pytest.mark.parametrize(("most", "kept"), [(2**26, True), (2**25, True), (0, False)])
def test_older_c_libraries_keep_less(monkeypatch: pytest.MonkeyPatch, most: int, kept: bool) -> None:
    monkeypatch.setattr(
        memory, "_of_c_library", lambda name: lambda parameter, value: int(parameter == -1 or value <= most)
    )
    assert ww.keep_memory() is kept
