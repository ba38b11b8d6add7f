"""What a teacher adds to the loss: its softened answer, and where it looks.

Sources: Hinton et al., Distilling the Knowledge in a Neural Network, 2015 (1503.02531). Zagoruyko & Komodakis, Paying
More Attention to Attention, ICLR 2017 (1612.03928): a layer's attention map is the mean over its channels of squared
activations, flattened and of length 1, so a narrow layer can be compared with a wide one.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from widthwise.luts.errors import InvalidModel
from widthwise.pruning.evaluation import describe
from widthwise.pruning.recipe import InvalidRecipe, Recipe

__all__ = ["Teaching", "attention_distance", "require_layers", "teaching"]


class Teaching:
    """Adds the teacher's part to a loss; made by :func:`teaching`.

    Args:
        teacher: in eval mode, on the student's device.
        recipe: see :class:`Recipe`.
        student_saw: path → what the student gave there last; filled by hooks.
        teacher_saw: the same of the teacher.
        layers: paths of the layers whose attention maps are compared.
        autocast: gives the context to run the teacher in.
    """

    def __init__(
        self,
        teacher: nn.Module,
        recipe: Recipe,
        student_saw: dict[str, Any],
        teacher_saw: dict[str, Any],
        layers: Sequence[str],
        autocast: Callable[[], Any],
    ) -> None:
        self._teacher, self._recipe, self._layers, self._autocast = teacher, recipe, layers, autocast
        self._student_saw, self._teacher_saw = student_saw, teacher_saw

    def added_to(self, loss: Tensor, logits: Tensor, images: Tensor) -> Tensor:
        """The whole loss of a batch whose images the student has just met."""
        with torch.no_grad(), self._autocast():
            target = self._teacher(images)
        if self._recipe.distillation:
            loss = torch.lerp(loss, self._divergence(logits, target), self._recipe.distillation)
        for layer in self._layers:
            seen = self._student_saw.pop(layer, None), self._teacher_saw.pop(layer, None)
            loss = loss + self._recipe.attention * _compared(layer, *seen)
        return loss

    def _divergence(self, logits: Tensor, target: Any) -> Tensor:
        """Kullback–Leibler divergence from the teacher's softened answer, times T² to keep the gradient's scale."""
        if not (isinstance(target, Tensor) and target.shape == logits.shape):
            raise InvalidModel(f"the teacher's output {describe(target)} is not the model's {tuple(logits.shape)}")
        temperature = self._recipe.temperature
        student, soft = (functional.log_softmax(x.float() / temperature, 1) for x in (logits, target))
        return functional.kl_div(student, soft, log_target=True, reduction="batchmean") * temperature**2


@contextmanager
def teaching(
    teacher: nn.Module, student: nn.Module, recipe: Recipe, layers: Sequence[str], autocast: Callable[[], Any]
) -> Iterator[Teaching]:
    """A teacher's part of the loss; the hooks that read the layers are gone afterwards."""
    with ExitStack() as stack:
        saw = [stack.enter_context(_watched(model, layers)) for model in (student, teacher)]
        yield Teaching(teacher, recipe, saw[0], saw[1], tuple(dict.fromkeys(layers)), autocast)


def require_layers(recipe: Recipe, student: nn.Module, teacher: nn.Module | None, layers: Sequence[str]) -> None:
    """Checks that attention transfer has all it needs, or that nothing of it is asked for.

    Raises:
        InvalidRecipe: a weight without layers or teacher, or layers without a weight.
        InvalidModel: a layer that student or teacher hasn't.
    """
    if isinstance(layers, str):
        raise InvalidRecipe(f"attention_layers must be a sequence of module paths; got {layers!r}: write [{layers!r}]")
    if not recipe.attention and not layers:
        return
    if not recipe.attention:
        raise InvalidRecipe(f"attention_layers={list(layers)} have no weight; set Recipe.attention, such as to 1")
    if teacher is None or not layers:
        lacking = "a teacher" if teacher is None else "attention_layers, the paths of modules that both models have"
        raise InvalidRecipe(f"attention={recipe.attention:g} needs {lacking}")
    for whose, model in (("model", student), ("teacher", teacher)):
        known = [path for path, _ in model.named_modules() if path]
        missing = [path for path in layers if path not in known]
        if missing:
            near = difflib.get_close_matches(missing[0], known, 3, 0.4) or known[:5]
            raise InvalidModel(
                f"the {whose} has no module {', '.join(map(repr, missing))}; it has {', '.join(near)}"
                f"{' and others' if len(known) > len(near) else ''}"
            )


def attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance between two layers' attention maps, mean over the batch.

    Example:
        >>> wide = torch.rand(2, 8, 4, 4)
        >>> float(attention_distance(3 * wide, wide)) < 1e-10  # neither scale nor the number of channels counts
        True
    """
    return (_map(student) - _map(teacher)).square().sum(1).mean()


def _map(activation: Tensor) -> Tensor:
    return functional.normalize(activation.float().square().mean(1).flatten(1), dim=1)


def _compared(layer: str, student: Any, teacher: Any) -> Tensor:
    for whose, seen in (("model", student), ("teacher", teacher)):
        if not isinstance(seen, Tensor) or seen.ndim < 3:
            got = "isn't run by its forward" if seen is None else f"gives {describe(seen)}"
            raise InvalidModel(
                f"attention layer {layer!r} of the {whose} {got}; name layers that give one feature map (N, C, H, W)"
            )
    if student.shape[2:] != teacher.shape[2:]:
        raise InvalidModel(
            f"attention layer {layer!r} is {tuple(student.shape[2:])} in the model and {tuple(teacher.shape[2:])} in "
            "the teacher; name layers of equal height and width"
        )
    return attention_distance(student, teacher)


@contextmanager
def _watched(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What modules gave last, by path."""
    seen: dict[str, Any] = {}

    def keep(path: str) -> Callable[..., None]:
        return lambda module, inputs, output: seen.__setitem__(path, output)

    handles = [model.get_submodule(path).register_forward_hook(keep(path)) for path in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
