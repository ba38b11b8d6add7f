from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.pruning.helpers import PLAIN, loader, small_net
from widthwise.luts.errors import InvalidModel
from widthwise.pruning.distillation import attention_distance
from widthwise.pruning.training import InvalidRecipe, Recipe, train

ATTENTIVE = replace(PLAIN, attention=0.5, distillation=0.0)


def feature_net(channels: int, pattern: Tensor) -> nn.Module:
    """Its ``features`` are ``pattern`` in every channel for an image of ones."""

    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(pattern.repeat(channels, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight

    model = nn.Sequential()
    model.add_module("features", nn.Sequential(Features()))
    model.add_module("flat", nn.Flatten())
    model.add_module("head", nn.Linear(channels * pattern.numel(), 2))
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    return model


def test_the_distance_is_the_closed_form_and_channels_do_not_count() -> None:
    student = torch.tensor([[[[2.0, 0.0]]]]).repeat(1, 3, 1, 1)  # map (1, 0)
    teacher = torch.tensor([[[[1.0, 1.0]]]]).repeat(1, 7, 1, 1)  # map (1, 1) / √2
    assert float(attention_distance(student, teacher)) == pytest.approx(2 - 2**0.5)
    assert float(attention_distance(teacher[:, :2] * 9, teacher)) == pytest.approx(0.0, abs=1e-10)


def test_the_weight_of_the_sum_over_layers_is_added_to_the_loss() -> None:
    student = feature_net(3, torch.tensor([[2.0, 0.0]]))
    teacher = feature_net(7, torch.tensor([[1.0, 1.0]]))
    data = loader(torch.ones(2, 1, 1, 2), [0, 1])
    for layers, weight in ((["features", "features"], 0.5), (["features", "features.0"], 1.0)):
        model = copy.deepcopy(student)
        report = train(model, data, epochs=1, recipe=ATTENTIVE, teacher=teacher, attention_layers=layers).last
        assert report.loss == pytest.approx(math.log(2) + weight * (2 - 2**0.5), rel=1e-5)


def test_it_pulls_the_maps_together() -> None:
    student, teacher = small_net(0), small_net(1)
    images = torch.randn(8, 1, 8, 8)
    data = loader(images, [0] * 8)

    def distance() -> float:
        with torch.no_grad():
            return float(attention_distance(student.eval()[:6](images), teacher.eval()[:6](images)))

    before = distance()
    recipe = Recipe(lr=0.1, attention=50.0, distillation=0.0)
    train(student, data, epochs=20, recipe=recipe, teacher=teacher, attention_layers=["5"])
    assert distance() < 0.5 * before


def test_hooks_are_gone_afterwards_even_after_an_error() -> None:
    student, teacher = small_net(0), small_net(1)
    data = loader(torch.randn(4, 1, 8, 8), [0] * 4)
    recipe = Recipe(attention=1.0, ema=0.5)
    train(student, data, epochs=1, recipe=recipe, teacher=teacher, attention_layers=["2"])

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(student, data, epochs=1, recipe=recipe, teacher=teacher, attention_layers=["2"], before_step=stop)
    assert not any(module._forward_hooks for model in (student, teacher) for module in model.modules())
    copy.deepcopy(student)


def test_without_distillation_the_teacher_may_have_other_outputs() -> None:
    teacher = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1))
    data = loader(torch.randn(4, 1, 8, 8), [0] * 4)
    train(small_net(), data, epochs=1, recipe=ATTENTIVE, teacher=teacher, attention_layers=["0"])


class TestWhatDoesNotFit:
    @pytest.mark.parametrize(
        ("recipe", "teacher", "layers", "message"),
        [
            (ATTENTIVE, True, [], r"attention=0\.5 needs attention_layers"),
            (ATTENTIVE, False, ["2"], r"attention=0\.5 needs a teacher"),
            (PLAIN, True, ["2"], r"have no weight; set Recipe\.attention"),
            (ATTENTIVE, True, "2", r"sequence of module paths; got '2'"),
        ],
    )
    def test_settings(self, recipe: Recipe, teacher: bool, layers: Any, message: str) -> None:
        data = loader(torch.randn(4, 1, 8, 8), [0] * 4)
        with pytest.raises(InvalidRecipe, match=message):
            train(
                small_net(),
                data,
                epochs=1,
                recipe=recipe,
                teacher=small_net(1) if teacher else None,
                attention_layers=layers,
            )

    def test_paths_that_are_missing_are_named_beside_some_that_are_there(self) -> None:
        data = loader(torch.ones(2, 1, 1, 2), [0, 1])
        student, teacher = feature_net(3, torch.ones(1, 2)), small_net()
        with pytest.raises(InvalidModel, match=r"the model has no module 'feature', 'x'; it has features"):
            train(student, data, epochs=1, recipe=ATTENTIVE, teacher=teacher, attention_layers=["feature", "x"])
        with pytest.raises(InvalidModel, match=r"the teacher has no module 'features'; it has 0, 1, 2, 3, 4 and oth"):
            train(student, data, epochs=1, recipe=ATTENTIVE, teacher=teacher, attention_layers=["features"])

    @pytest.mark.parametrize(
        ("layer", "teacher", "message"),
        [
            ("8", None, r"'8' of the model gives a tensor \(4, 10\)"),
            ("1", nn.Sequential(nn.Flatten(), nn.Identity(), nn.Linear(64, 10)), r"'1' of the teacher gives"),
            ("0", nn.Sequential(nn.Conv2d(1, 2, 3)), r"is \(8, 8\) in the model and \(6, 6\) in the teacher"),
        ],
    )
    def test_layers(self, layer: str, teacher: nn.Module | None, message: str) -> None:
        data = loader(torch.randn(4, 1, 8, 8), [0] * 4)
        with pytest.raises(InvalidModel, match=message):
            train(
                small_net(),
                data,
                epochs=1,
                recipe=ATTENTIVE,
                teacher=teacher or small_net(1),
                attention_layers=[layer],
            )
