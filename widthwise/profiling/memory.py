"""Memory between inferences, and the memory of networks that have been timed.

Left alone, glibc gives the pages of activations back to the system when they are freed, or doesn't, depending on what
lies above them in the heap. Every inference then asks for thousands of pages anew, zeroed one by one: a fifth to a
third of a small network's latency, with steps when anything else in the process allocates. Processes differ, and so do
moments of one process; see ``benchmarks/memory.py``. So what is timed keeps its memory.

Traced graphs refer to themselves; without a collection after each batch the weights of networks long timed pile up
(VGG-16 grew by 2 GB in a minute), and what the allocator then holds in pieces stays with the process.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["can_keep_memory", "cheap_collections", "keep_memory", "return_free_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's ``mallopt``."""

_ALL = 2**30
_LARGEST_KEPT = 2**26
"""Larger blocks are weights rather than activations; kept in pieces by networks long timed they would pile up."""

_LARGEST_IN_OLD_VERSIONS = 2**25


def keep_memory() -> bool:
    """From now on this process keeps memory that is freed, ready for the next inference; True where that worked.

    Blocks up to 64 MB are kept (32 MB by old versions of glibc).

    Profiling and verifying do this, so their latencies are those of a process that does. Call it once at the start
    of yours, or start it with ``MALLOC_TRIM_THRESHOLD_=1073741824 MALLOC_MMAP_THRESHOLD_=67108864``. It can't be
    undone. Only glibc (Linux) is told; other allocators have their own ways, and jemalloc and tcmalloc keep memory
    anyway.

    Example:
        >>> import widthwise
        >>> widthwise.keep_memory() in (True, False)
        True
    """
    mallopt = _of_c_library("mallopt")
    if mallopt is None:
        return False
    mapped = mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT) or mallopt(_MMAP_THRESHOLD, _LARGEST_IN_OLD_VERSIONS)
    return bool(mallopt(_TRIM_THRESHOLD, _ALL) and mapped)


def can_keep_memory() -> bool:
    """Whether :func:`keep_memory` has an allocator to tell here; changes nothing."""
    return _of_c_library("mallopt") is not None and _of_c_library("gnu_get_libc_version") is not None


@contextmanager
def cheap_collections() -> Iterator[None]:
    """Takes what lives now out of the collector's sight, so that a collection costs milliseconds; with torch loaded
    it is a fifth of a second otherwise."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def return_free_memory() -> None:
    """Gives free pages of the heap back to the system, where the C library can (glibc); elsewhere nothing.

    The next network has to ask for them again, a tenth of a second for one as large as VGG-16.
    """
    trim = _of_c_library("malloc_trim")
    if trim is not None:
        trim(0)


def _of_c_library(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
