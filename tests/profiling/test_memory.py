"""What becomes of freed memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

import widthwise as ww
from widthwise.profiling import memory
from widthwise.profiling.conditions import watch_host

FAULTS = """
import torch, widthwise
from widthwise.profiling.conditions import watch_host
torch.set_num_threads(1)
kept = widthwise.keep_memory() if {keep} else None
x = torch.zeros(4_000_000)
def run():
    with torch.inference_mode():
        (x + 1.0) * 2.0
for _ in range(30):
    run()
finish = watch_host(1)
run()
print(kept, finish().page_faults)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_memory_that_is_kept_isnt_asked_for_again() -> None:
    """In processes of their own, since keeping can't be undone: 16 MB are 4,000 pages, none new once settled."""
    said = {}
    for keep in (True, False):
        command = [sys.executable, "-c", FAULTS.format(keep=keep)]
        said[keep] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    kept, faults = said[True]
    if kept == "False":
        pytest.skip("this C library can't be told")
    assert int(faults) < 50 < 3000 < int(said[False][1])


def test_page_faults_are_counted() -> None:
    finish = watch_host(1)
    pages = bytearray(1 << 24)
    faults = finish().page_faults
    assert faults is None or faults > len(pages) / (1 << 16)


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
