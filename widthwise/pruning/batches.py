"""A training loader, epoch by epoch and from any batch on, the same however often a run was interrupted.

A worker process's random state can't be saved, nor can other processes' by the one that writes. So nothing is: a run
that stops for a checkpoint within an epoch begins its loader and its draws anew from a seed that only the place
decides, and so does the run that is resumed there.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader

from widthwise.pruning.evaluation import borrowed_sampler, shard

__all__ = ["Batches"]


class Batches:
    """This process's part of a loader; made by :meth:`borrowed`."""

    def __init__(self, loader: Any, sampler: Any, seed: int) -> None:
        self._loader, self._sampler, self._seed = loader, sampler, seed

    @classmethod
    @contextmanager
    def borrowed(cls, accelerator: Any, loader: DataLoader[Any], seed: int) -> Iterator[Batches]:
        """The loader has its own sampler and generators back afterwards."""
        with borrowed_sampler(loader), _own_generator(loader):
            sharded = shard(accelerator, loader)
            batch_sampler = _batch_sampler(sharded)
            # Accelerate's skipping looks for the sampler two levels down, where its own shards have none.
            inner = getattr(batch_sampler, "batch_sampler", None)
            if inner is not None and not hasattr(batch_sampler, "sampler"):
                batch_sampler.sampler = getattr(inner, "sampler", None)
            yield cls(sharded, getattr(batch_sampler, "sampler", None), seed)

    def __len__(self) -> int:
        return len(self._loader)

    def of(self, epoch: int, first: int = 0) -> Iterator[Any]:
        """An epoch's batches from ``first`` on; seeds everything random for them and for what is done with them."""
        from accelerate.data_loader import skip_first_batches
        from accelerate.utils import set_seed

        order = self._seed + epoch
        draws = zlib.crc32(f"{order}:{first}".encode()) if first else order
        set_seed(draws)
        for holder, value in ((self._loader, draws), (self._sampler, order)):
            generator = getattr(holder, "generator", None)
            if generator is not None and not hasattr(holder, "initial_seed"):  # Accelerate's seeds itself
                generator.manual_seed(value)
        if hasattr(self._loader, "set_epoch"):
            self._loader.set_epoch(epoch)
        # Persistent workers go on drawing where the last epoch ended; new ones begin from this one's seed.
        if first == 0 and not getattr(self._loader, "persistent_workers", False):
            return _closing(self._loader)
        if not isinstance(self._loader, DataLoader):
            return islice(self._loader, first, None)
        return _closing(skip_first_batches(self._loader, first))


def _closing(loader: Any) -> Iterator[Any]:
    """The loader's batches; one that is left early is forgotten by Accelerate, too."""
    try:
        yield from loader
    finally:
        if isinstance(loader, DataLoader) and hasattr(loader, "end"):
            loader.end()


def _batch_sampler(loader: Any) -> Any:
    sampler = getattr(loader, "sampler", None)
    return sampler if isinstance(sampler, BatchSampler) else getattr(loader, "batch_sampler", None)


@contextmanager
def _own_generator(loader: Any) -> Iterator[None]:
    """A sampler without a generator would draw the epoch's order from what everything else draws from."""
    sampler: Any = getattr(_batch_sampler(loader), "sampler", None)
    lent = getattr(loader, "generator", None)
    state = None if lent is None else lent.get_state()
    bare = hasattr(sampler, "generator") and sampler.generator is None
    if bare:
        sampler.generator = torch.Generator()
    try:
        yield
    finally:
        if bare:
            sampler.generator = None
        if lent is not None:
            lent.set_state(state)
