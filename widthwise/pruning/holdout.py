"""Part of the training data held out, to choose by without touching the test data."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from widthwise.luts.errors import BadInput

__all__ = ["hold_out"]


def hold_out(
    loader: DataLoader[Any], share: float = 0.1, *, seed: int = 0, plain: Dataset[Any] | None = None
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Splits a training loader in two: for training and, in a fixed order, for validation.

    Stratified where the labels are known without reading every example (``targets``, as in torchvision's data sets,
    also behind subsets, or a ``TensorDataset``), else at random. The paper holds out 50 images per class of ImageNet.

    Both take the loader's batch size and workers, but no sampler of its own.

    Args:
        share: of the examples to hold out; at least one of each class, and never all of it.
        seed: of the choice, and of the order of the training batches.
        plain: the same examples, index for index, without augmentation, to validate on; by default the loader's own
            data set, so that validation images are augmented as training images are.

    Raises:
        BadInput: a share out of its range, a data set without length, or one too small to split.

    Example:
        >>> images, labels = torch.zeros(20, 3, 5, 5), torch.arange(2).repeat(10)
        >>> train, held = hold_out(DataLoader(TensorDataset(images, labels), batch_size=7), 0.2)
        >>> len(train.dataset), len(held.dataset), sorted(int(label) for _, label in held.dataset)
        (16, 4, [0, 0, 1, 1])
    """
    if not 0 < share < 1:
        raise BadInput(f"share must be above 0 and below 1, got {share}")
    size = len(loader.dataset) if hasattr(loader.dataset, "__len__") else 0
    if size < 2:
        raise BadInput(
            f"can't hold out part of {type(loader.dataset).__name__}: it needs a length of 2 or more; make a "
            "validation loader of your own"
        )
    if plain is not None and (not hasattr(plain, "__len__") or len(plain) != size):
        raise BadInput(f"plain must hold the same {size} examples as the loader's data set")
    held = _chosen(_labels(loader.dataset) or [0] * size, share, seed)
    rest = sorted(set(range(size)) - set(held))
    return (
        _like(loader, Subset(loader.dataset, rest), shuffle=True, generator=torch.Generator().manual_seed(seed)),
        _like(loader, Subset(plain if plain is not None else loader.dataset, held), shuffle=False),
    )


def _chosen(labels: list[int], share: float, seed: int) -> list[int]:
    """Indices of the share of each class; a class of one example stays in training."""
    classes: dict[int, list[int]] = defaultdict(list)
    for index, label in enumerate(labels):
        classes[label].append(index)
    rng = random.Random(seed)
    held = [
        index
        for _, members in sorted(classes.items())
        for index in rng.sample(members, min(len(members) - 1, max(1, round(share * len(members)))))
    ]
    if not held:
        raise BadInput(
            "every class has one example only: nothing can be held out; make a validation loader of your own"
        )
    return sorted(held)


def _labels(dataset: Any) -> list[int] | None:
    if isinstance(dataset, Subset):
        labels = _labels(dataset.dataset)
        return None if labels is None else [labels[index] for index in dataset.indices]
    found = dataset.tensors[-1] if isinstance(dataset, TensorDataset) else getattr(dataset, "targets", None)
    if isinstance(found, Tensor) and (found.ndim != 1 or found.is_floating_point()):
        return None
    return None if found is None else [int(label) for label in found]


def _like(loader: DataLoader[Any], dataset: Dataset[Any], **order: Any) -> DataLoader[Any]:
    if loader.batch_size is None:
        raise BadInput("the loader has a batch sampler of its own; make a validation loader of your own, too")
    size = len(dataset)  # type: ignore[arg-type]
    return DataLoader(
        dataset,
        loader.batch_size,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        # a last training batch of one can't be normalised
        drop_last=bool(order["shuffle"]) and size > loader.batch_size and size % loader.batch_size == 1,
        **order,
    )
