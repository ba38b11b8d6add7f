"""Giving back the memory of networks that have been timed.

Traced graphs refer to themselves; without a collection after each batch the weights of networks long timed pile up
(VGG-16 grew by 2 GB in a minute), and what the allocator then holds in pieces stays with the process.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["cheap_collections", "return_free_memory"]


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
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
