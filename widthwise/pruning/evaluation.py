"""Running a classifier over a loader: evaluation, batch-norm recalibration, and what training shares with them.

Everything that touches Hugging Face Accelerate's process-wide state, a model's device and mode, or the shape of a
batch is here, once; :mod:`widthwise.pruning.training` adds the loop.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import BatchSampler, DataLoader

from widthwise.luts.errors import BadInput, InvalidModel
from widthwise.pruning.recipe import InvalidRecipe

__all__ = [
    "Evaluation",
    "InvalidBatch",
    "accelerated",
    "batch_norms",
    "borrowed_sampler",
    "checked_logits",
    "describe",
    "evaluate",
    "evaluate_on",
    "in_eval_mode",
    "pair",
    "placed",
    "recalibrate",
    "shard",
    "share_statistics",
]


class InvalidBatch(BadInput, ValueError):
    """A batch that is no pair (images, labels), or labels the model has no output for."""


@dataclass(frozen=True)
class Evaluation:
    """Top-1 accuracy (0 to 1) and mean cross-entropy over so many examples."""

    accuracy: float
    loss: float
    examples: int


def evaluate(model: nn.Module, loader: DataLoader[Any]) -> Evaluation:
    """Accuracy and loss of a classifier over a loader, in eval mode; the model comes back as it was.

    Raises:
        InvalidModel: an output that is no tensor of logits ``(N, classes)``.
        InvalidBatch: no batches, no pairs, or labels outside the model's classes.

    Example:
        >>> evaluate(model, load_data("digits").test).accuracy  # doctest: +SKIP
        0.98
    """
    with accelerated() as accelerator, placed(model, accelerator.device):
        return evaluate_on(accelerator, model, loader)


def recalibrate(model: nn.Module, loader: DataLoader[Any], batches: int = 100) -> None:
    """Re-estimate the running statistics of all batch norms, after surgery has made them wrong.

    Mean and variance become the plain average over the batches (a cumulative average, momentum ``None``), so the
    old values are forgotten. Only batch norms run in train mode: dropout would distort what they see.

    Args:
        model: changed in its batch norms' buffers only.
        loader: batches ``(images, labels)``, or images alone; labels are not used. Train images, unless stated.
        batches: how many to use at most.

    Raises:
        InvalidBatch: the loader gives none; the old statistics are kept.

    Example:
        >>> recalibrate(pruned, load_data("digits").train)  # doctest: +SKIP
    """
    norms = [norm for norm in batch_norms(model) if norm.track_running_stats]
    if not norms:
        return
    kept = [(norm, norm.momentum, copy.deepcopy(norm.state_dict())) for norm in norms]
    done = 0
    with accelerated() as accelerator, placed(model, accelerator.device), torch.no_grad():
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        try:
            for batch in islice(loader, batches):
                model((batch[0] if isinstance(batch, tuple | list) else batch).to(accelerator.device))
                done += 1
            share_statistics(model)
        finally:
            for norm, momentum, state in kept:
                norm.momentum = momentum
                if not done:
                    norm.load_state_dict(state)
    if not done:
        raise InvalidBatch(
            "recalibrate got no batches; give it a loader with training images, and batches of 1 or more"
        )


@contextmanager
def accelerated(mixed_precision: str | None = None, seed: int | None = None) -> Iterator[Any]:
    """The only place that makes an Accelerator; leaves the process as if there had been none.

    Its settings are global to the process and can't be changed, so without this the first evaluation would
    forbid a later training in bf16. An Accelerator of the caller's own is joined, never reset.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, is_initialized
    from accelerate.utils import DataLoaderConfiguration, GradientAccumulationPlugin

    ours = not is_initialized()
    accumulation = GradientState().plugin_kwargs
    try:
        try:
            accelerator = Accelerator(
                mixed_precision=mixed_precision,
                # The order of epoch e is then a function of the seed and e, whatever generator the loader has.
                dataloader_config=DataLoaderConfiguration(use_seedable_sampler=seed is not None, data_seed=seed),
                gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # the loop does it
            )
        except ValueError as error:
            raise InvalidRecipe(f"{mixed_precision=} can't be used here: {error}") from error
        yield accelerator
    finally:
        GradientState().plugin_kwargs = accumulation
        if ours:
            AcceleratorState._reset_state()


@contextmanager
def placed(model: nn.Module, device: torch.device) -> Iterator[nn.Module]:
    """The model on a device; afterwards back where it was, each module in the mode it was in."""
    home = next((tensor.device for tensor in chain(model.parameters(), model.buffers())), device)
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield model.to(device)
    finally:
        model.to(home)
        for module, training in modes:
            module.training = training


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode; afterwards each module in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield model.eval()
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def borrowed_sampler(loader: DataLoader[Any]) -> Iterator[None]:
    """Gives a loader its sampler back: Accelerate puts a seeded one into the loader it is given."""
    batch_sampler: Any = getattr(loader, "batch_sampler", None)
    if isinstance(getattr(loader, "sampler", None), BatchSampler):
        batch_sampler = loader.sampler
    sampler = getattr(batch_sampler, "sampler", None)
    generator = getattr(sampler, "generator", None)
    state = None if generator is None else generator.get_state()
    try:
        yield
    finally:
        if sampler is not None:
            batch_sampler.sampler = sampler
        if generator is not None:
            generator.set_state(state)


def evaluate_on(accelerator: Any, model: nn.Module, loader: DataLoader[Any]) -> Evaluation:
    # The last batch is padded for several processes, and only then has to be cut; cutting goes by the length of
    # the data set, which a sampler of part of it makes wrong.
    gather = accelerator.gather_for_metrics if accelerator.num_processes > 1 else lambda figures: figures
    loss = correct = examples = 0.0
    model.eval()
    with torch.no_grad(), borrowed_sampler(loader):
        for batch in shard(accelerator, loader):
            images, labels, extremes = pair(batch, accelerator.device)
            with accelerator.autocast():
                output = model(images)
            logits = checked_logits(output, labels, extremes)
            losses = functional.cross_entropy(logits, labels, reduction="none")
            figures = gather(torch.stack([losses, (logits.argmax(1) == labels).float()], 1))
            batch_loss, batch_correct = figures.sum(0).tolist()
            loss, correct, examples = loss + batch_loss, correct + batch_correct, examples + len(figures)
    if not examples:
        raise InvalidBatch("the loader to evaluate on gives no batches; check its data set and batch_size")
    return Evaluation(correct / examples, loss / examples, int(examples))


def shard(accelerator: Any, loader: DataLoader[Any]) -> Any:
    """This process's part of a loader; any other iterable with a length is taken as it is."""
    if not hasattr(loader, "__len__") or not isinstance(loader, Iterable):
        raise InvalidBatch(f"need a loader of (images, labels) with a length, got {type(loader).__name__}")
    # Batches are moved after their labels were looked at, see pair().
    return accelerator.prepare_data_loader(loader, device_placement=False) if isinstance(loader, DataLoader) else loader


def pair(batch: Any, device: torch.device) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Images and labels on the device, and the least and the greatest label: read where the labels came from, since on
    a GPU reading means to wait for it."""
    if not (isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)):
        raise InvalidBatch(f"a batch must be a pair of tensors (images, labels); got {describe(batch)}")
    images, labels = batch
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        raise InvalidBatch(f"labels must be integers of shape (N,); got {labels.dtype} {tuple(labels.shape)}")
    low, high = (int(extreme) for extreme in torch.aminmax(labels)) if len(labels) else (0, 0)
    return images.to(device), labels.to(device).long(), (low, high)


def checked_logits(output: Any, labels: Tensor, extremes: tuple[int, int]) -> Tensor:
    """The model's output as float32 logits, after checking that every label has one."""
    if not isinstance(output, Tensor):
        raise InvalidModel(
            f"the model returns {describe(output)}, not one tensor of logits (N, classes); wrap it so that forward "
            "returns the logits only (torchvision's googlenet and inception_v3: aux_logits=False)"
        )
    if output.ndim != 2 or len(output) != len(labels):
        raise InvalidModel(f"logits must be ({len(labels)}, classes); the model returns {tuple(output.shape)}")
    # Checked before the loss: on a GPU an index out of range ends the process's whole CUDA context.
    low, high = extremes
    if low < 0 or high >= output.shape[1]:
        label = low if low < 0 else high
        raise InvalidBatch(
            f"label {label} has no output: the model has {output.shape[1]} classes, 0 to {output.shape[1] - 1}; "
            "give the model as many outputs as the data has classes"
        )
    return output.float()


def describe(thing: Any) -> str:
    if isinstance(thing, Tensor):
        return f"a tensor {tuple(thing.shape)}"
    if isinstance(thing, Mapping):
        return f"a {type(thing).__name__} with {', '.join(map(str, list(thing)[:5]))}"
    return f"a {type(thing).__name__} of {len(thing)}" if isinstance(thing, Sequence) else f"a {type(thing).__name__}"


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def share_statistics(model: nn.Module) -> None:
    """Gives every process the first one's running statistics; each has met other images. One process: nothing."""
    from accelerate.utils import broadcast

    for norm in batch_norms(model):
        for buffer in norm.buffers(recurse=False):
            buffer.copy_(broadcast(buffer))
