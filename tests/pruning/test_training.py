from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor, nn
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

from tests.pruning.helpers import PLAIN, launch, loader, pixel_net, pixels, same_weights, small_net
from widthwise.luts.errors import InvalidModel, WidthwiseError
from widthwise.pruning.data import load_data
from widthwise.pruning.training import (
    EpochReport,
    InvalidBatch,
    InvalidRecipe,
    Recipe,
    TrainingDiverged,
    evaluate,
    recalibrate,
    train,
)


@pytest.fixture(scope="module")
def digits() -> Any:
    return load_data("digits")


@pytest.fixture
def callers_accelerator() -> Iterator[Accelerator]:
    yield Accelerator(cpu=True, gradient_accumulation_steps=3)
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


class TestStep:
    def test_one_step_is_the_closed_form_and_biases_do_not_decay(self) -> None:
        model = pixel_net(weight=1.0, bias=3.0)
        recipe = Recipe(lr=0.1, weight_decay=0.5)
        train(model, loader(pixels(2.0), [0]), epochs=1, recipe=recipe)
        # d loss / d logits = (½ - 1, ½); times x = 2 for the weights, plus 0.5·1 of decay
        torch.testing.assert_close(model[0].weight.flatten(), torch.tensor([1 - 0.1 * (-1 + 0.5), 1 - 0.1 * 1.5]))
        torch.testing.assert_close(model[0].bias, torch.tensor([3.05, 2.95]))

    def test_momentum_carries_the_first_gradient_into_the_second_step(self) -> None:
        model = pixel_net()
        grads: list[Tensor] = []
        recipe = Recipe(lr=0.1, momentum=0.5, weight_decay=0.0, schedule="constant")
        train(
            model,
            loader(pixels(2.0), [0]),
            epochs=2,
            recipe=recipe,
            before_step=lambda _: grads.append(model[0].weight.grad.clone()),
        )
        torch.testing.assert_close(model[0].weight.detach(), -0.1 * (grads[0] + (0.5 * grads[0] + grads[1])))

    def test_no_norm_decays_whatever_its_shape(self) -> None:
        # Frozen at zero gradient: only decay could move a parameter.
        model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.LayerNorm([2, 3, 5]), nn.Flatten())
        before = copy.deepcopy(model)

        def no_gradient(_: int) -> None:
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)

        recipe = Recipe(lr=0.1, momentum=0.0, weight_decay=0.5, schedule="constant")
        train(model, loader(torch.randn(4, 1, 3, 5), [0, 1, 2, 3]), epochs=1, recipe=recipe, before_step=no_gradient)
        for (name, now), was in zip(model.named_parameters(), before.parameters(), strict=True):
            torch.testing.assert_close(now, was * (0.95 if name == "0.weight" else 1.0))

    def test_before_step_is_between_backward_and_the_optimizer(self) -> None:
        model = pixel_net()
        seen: list[tuple[int, float, float]] = []

        def before_step(step: int) -> None:
            weight = model[0].weight
            assert weight.grad is not None
            seen.append((step, weight[0].item(), weight.grad[0].item()))
            weight.grad.fill_(-1.0)  # what the optimizer then uses

        train(model, loader(pixels(2.0, 2.0), [0, 0], 1), epochs=2, recipe=PLAIN, before_step=before_step)
        assert [step for step, _, _ in seen] == [0, 1, 2, 3]
        assert [weight for _, weight, _ in seen] == pytest.approx([0.0, 0.1, 0.2, 0.3])
        assert seen[0][2] == pytest.approx(-1.0)
        assert model[0].weight.flatten().tolist() == pytest.approx([0.4, 0.4])
        assert model[0].weight.grad is None

    def test_accumulated_batches_step_as_one(self) -> None:
        images, labels = torch.randn(6, 1, 8, 8), [0, 1, 2, 3, 4, 5]
        whole, parts = (nn.Sequential(nn.Flatten(), nn.Linear(64, 6)) for _ in range(2))
        parts.load_state_dict(whole.state_dict())
        train(whole, loader(images, labels, 6), epochs=2, recipe=PLAIN)
        steps: list[int] = []
        recipe = Recipe(**{**vars(PLAIN), "gradient_accumulation": 3})
        train(parts, loader(images, labels, 2), epochs=2, recipe=recipe, before_step=steps.append)
        assert steps == [0, 1]
        torch.testing.assert_close(parts[1].weight, whole[1].weight)

    def test_a_short_last_window_steps_with_its_own_mean(self) -> None:
        model = pixel_net()
        seen: list[float] = []

        def before_step(_: int) -> None:
            seen.append(model[0].weight.grad[0].item())
            model[0].weight.grad.zero_()
            model[0].bias.grad.zero_()

        recipe = Recipe(**{**vars(PLAIN), "gradient_accumulation": 2})
        train(model, loader(pixels(2.0, 2.0, 2.0), [0, 0, 0], 1), epochs=1, recipe=recipe, before_step=before_step)
        assert seen == pytest.approx([-1.0, -1.0])

    def test_clips_the_norm_of_the_whole_gradient(self) -> None:
        model = pixel_net()
        norms: list[float] = []

        def before_step(_: int) -> None:
            norms.append(math.sqrt(sum(p.grad.square().sum().item() for p in model.parameters())))

        for clip, expected in ((None, math.sqrt(2.5)), (0.25, 0.25)):
            recipe = Recipe(**{**vars(PLAIN), "clip_norm": clip})
            train(copy.deepcopy(model), loader(pixels(2.0), [0]), epochs=1, recipe=recipe)
            model = pixel_net()
            train(model, loader(pixels(2.0), [0]), epochs=1, recipe=recipe, before_step=before_step)
            assert norms[-1] == pytest.approx(expected, rel=1e-4)

    def test_label_smoothing_is_in_the_reported_loss(self) -> None:
        logits = torch.tensor([[2.0, 0.0]])
        scaled = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
        nn.init.eye_(scaled[1].weight)
        recipe = Recipe(**{**vars(PLAIN), "label_smoothing": 0.2})
        report = train(scaled, loader(logits.view(1, 1, 1, 2), [0]), epochs=1, recipe=recipe).last
        log_p = [2 - math.log(math.exp(2) + 1), -math.log(math.exp(2) + 1)]
        assert report.loss == pytest.approx(-0.9 * log_p[0] - 0.1 * log_p[1], rel=1e-5)
        assert (report.accuracy, report.lr, report.test) == (1.0, 0.1, None)

    def test_a_teacher_adds_the_softened_divergence(self) -> None:
        teacher = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
        teacher[1].weight.data = torch.tensor([[2.0], [0.0]])
        model = pixel_net()
        recipe = Recipe(**{**vars(PLAIN), "distillation": 0.25, "temperature": 4.0})
        loss = train(model, loader(pixels(2.0), [0]), epochs=1, recipe=recipe, teacher=teacher).last.loss
        q = 1 / (1 + math.exp(-1))  # the teacher's logits (4, 0) at temperature 4
        divergence = q * math.log(q / 0.5) + (1 - q) * math.log((1 - q) / 0.5)
        assert loss == pytest.approx(0.75 * math.log(2) + 0.25 * 16 * divergence, rel=1e-5)
        assert teacher[1].weight.flatten().tolist() == [2.0, 0.0]
        assert teacher.training

    def test_groups_bring_their_own_settings_and_the_rest_the_recipes(self) -> None:
        model = pixel_net(weight=1.0)
        groups = [{"params": [model[0].bias], "lr": 0.01}]
        recipe = Recipe(lr=0.1, momentum=0.0, weight_decay=0.0)
        train(model, loader(pixels(2.0), [0]), epochs=1, recipe=recipe, parameter_groups=groups)
        torch.testing.assert_close(model[0].bias, torch.tensor([0.005, -0.005]))
        torch.testing.assert_close(model[0].weight.flatten(), torch.tensor([1.1, 0.9]))

    def test_frozen_parameters_stay(self) -> None:
        model = pixel_net(weight=1.0)
        model[0].weight.requires_grad_(False)
        train(model, loader(pixels(2.0), [0]), epochs=1, recipe=Recipe(lr=0.1, weight_decay=0.5))
        assert model[0].weight.flatten().tolist() == [1.0, 1.0]


class TestRecipe:
    def test_cosine_falls_to_zero_after_the_warmup(self) -> None:
        recipe = Recipe(lr=0.8, warmup_epochs=0.5)
        rates = [recipe.lr_at(step, steps_per_epoch=4, epochs=3) for step in range(12)]
        assert rates[:3] == pytest.approx([0.4, 0.8, 0.8])
        assert rates[7] == pytest.approx(0.4)  # half of the ten steps after the warmup
        assert rates[2 + 9] == pytest.approx(0.4 * (1 + math.cos(0.9 * math.pi)))

    def test_step_divides_by_ten_at_half_and_three_quarters(self) -> None:
        rates = [Recipe(lr=1.0, schedule="step").lr_at(step, 2, 4) for step in range(8)]
        assert rates == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])

    def test_constant(self) -> None:
        assert {Recipe(lr=0.3, schedule="constant").lr_at(step, 3, 2) for step in range(6)} == {0.3}

    def test_training_follows_it(self) -> None:
        reports: list[EpochReport] = []
        recipe = Recipe(lr=0.4, warmup_epochs=1)
        train(pixel_net(), loader(pixels(1, 1, 1, 1), [0] * 4, 2), epochs=3, recipe=recipe, on_epoch=reports.append)
        assert [report.lr for report in reports] == pytest.approx([recipe.lr_at(step, 2, 3) for step in (1, 3, 5)])
        assert [(report.epoch, report.epochs) for report in reports] == [(1, 3), (2, 3), (3, 3)]

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("lr", 0),
            ("lr", math.nan),
            ("momentum", 1.0),
            ("weight_decay", -1e-4),
            ("schedule", "linear"),
            ("warmup_epochs", -1),
            ("label_smoothing", 1.0),
            ("clip_norm", 0),
            ("gradient_accumulation", 0),
            ("mixed_precision", "fp64"),
            ("distillation", 1.5),
            ("temperature", 0),
            ("attention", -0.1),
            ("ema", 0.0),
            ("ema", 1.0),
            ("patience", 0),
            ("seed", -1),
        ],
    )
    def test_names_what_is_out_of_range(self, name: str, value: Any) -> None:
        with pytest.raises(InvalidRecipe, match=f"{name} must be .*; got {value!r}"):
            Recipe(**{name: value})

    def test_must_fit_the_run(self) -> None:
        batches = loader(pixels(1), [0])
        with pytest.raises(InvalidRecipe, match="epochs must be at least 1"):
            train(pixel_net(), batches, epochs=0)
        with pytest.raises(InvalidRecipe, match="leaves nothing of 2 epochs"):
            train(pixel_net(), batches, epochs=2, recipe=Recipe(warmup_epochs=2))


class TestReach:
    @pytest.mark.parametrize("start", [0.0, 0.25, 0.999, 1.0])
    def test_is_how_far_a_constant_gradient_moves_a_parameter(self, start: float) -> None:
        recipe = Recipe(lr=0.3, momentum=0.0, weight_decay=0.0, warmup_epochs=0.5)
        model = pixel_net()

        def before_step(step: int) -> None:
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, float(step >= round(12 * start)))

        data = loader(pixels(*range(8)), [0] * 8, 2)
        train(model, data, epochs=3, recipe=recipe, before_step=before_step)
        assert model[0].weight[0].item() == pytest.approx(-recipe.reach(4, 3, start=start), abs=1e-6)

    def test_momentum_multiplies_it(self) -> None:
        recipe = Recipe(lr=0.1, momentum=0.9, schedule="step")
        plain = 0.1 * (20 + 10 * 0.1 + 10 * 0.01)
        assert recipe.reach(10, 4, momentum=0.0) == pytest.approx(plain)
        assert recipe.reach(10, 4) == pytest.approx(10 * plain)
        assert recipe.reach(10, 4, momentum=0.99) == pytest.approx(100 * plain)

    def test_refuses_what_can_not_be(self) -> None:
        with pytest.raises(InvalidRecipe, match=r"momentum must be .*; got 1\.0"):
            Recipe().reach(1, 1, momentum=1.0)
        with pytest.raises(InvalidRecipe, match=r"start must be a share .*; got 5"):
            Recipe().reach(1, 1, start=5)


class TestAverage:
    def test_is_the_closed_form_and_what_the_model_ends_with(self) -> None:
        model = pixel_net()
        seen: list[float] = []

        def before_step(_: int) -> None:
            for parameter in model.parameters():
                parameter.grad = -torch.ones_like(parameter)

        recipe = Recipe(**{**vars(PLAIN), "ema": 0.5})
        options: dict[str, Any] = {"recipe": recipe, "before_step": before_step}
        on_epoch = lambda _: seen.append(model[0].weight[0].item())  # noqa: E731
        train(model, loader(pixels(1.0), [0]), epochs=3, on_epoch=on_epoch, **options)
        assert seen == pytest.approx([0.1, 0.2, 0.3])  # the weights that are trained
        assert model[0].weight.flatten().tolist() == pytest.approx([0.225, 0.225])  # ((0.1 + 0.2) / 2 + 0.3) / 2

    def test_is_what_is_evaluated_with_statistics_to_match(self, digits: Any) -> None:
        model = small_net()
        history = train(model, digits, epochs=2, recipe=Recipe(lr=0.1, ema=0.9))
        assert history.last.test == evaluate(model, digits.test)
        assert history.last.test is not None
        assert history.last.test.accuracy > 0.5
        assert model[1].num_batches_tracked == 2 * len(digits.train)

    def test_divergence_returns_to_it(self) -> None:
        model = pixel_net()

        def before_step(step: int) -> None:
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, math.nan if step == 2 else -1.0)

        recipe = Recipe(**{**vars(PLAIN), "ema": 0.5})
        with pytest.raises(TrainingDiverged):
            train(model, loader(pixels(1.0, 1.0), [0, 0], 1), epochs=2, recipe=recipe, before_step=before_step)
        assert model[0].weight.flatten().tolist() == pytest.approx([0.15, 0.15])


class TestPatience:
    def run(self, biases: list[float], test: Any, **settings: Any) -> tuple[nn.Sequential, Any]:
        """One step an epoch, after which class 0 leads by so much."""
        model = pixel_net()

        def before_step(step: int) -> None:
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            model[0].bias.data = torch.tensor([biases[step], 0.0])

        recipe = Recipe(**{**vars(PLAIN), **settings})
        data = (loader(pixels(0.0), [0]), test)
        return model, train(model, data, epochs=len(biases), recipe=recipe, before_step=before_step)

    def test_stops_without_a_better_accuracy_and_ends_with_the_best(self) -> None:
        test = loader(pixels(0, 0, 0), [0, 0, 1])
        model, history = self.run([-1.0, 1.0, -1.0, 3.0, 5.0, 7.0], test, patience=2)
        assert [round(3 * report.test.accuracy) for report in history.epochs] == [1, 2, 1, 2]
        assert (history.best.epoch, history.last.epoch, history.last.epochs) == (2, 4, 6)
        assert model[0].bias.tolist() == [1.0, 0.0]

    def test_without_a_test_loader_the_loss_decides(self) -> None:
        model, history = self.run([1.0, 2.0, 0.5, 0.1, 0.2, 0.3], None, patience=2)
        assert (history.best.epoch, history.last.epoch) == (3, 5)
        assert model[0].bias.tolist() == [0.5, 0.0]

    def test_the_best_is_kept_of_a_run_that_is_not_stopped(self) -> None:
        test = loader(pixels(0, 0, 0), [0, 0, 1])
        model, history = self.run([1.0, -1.0, -1.0], test, patience=3)
        assert len(history.epochs) == 3
        assert model[0].bias.tolist() == [1.0, 0.0]

    def test_without_patience_all_epochs_run_and_the_last_stays(self) -> None:
        test = loader(pixels(0, 0, 0), [0, 0, 1])
        model, history = self.run([1.0, -1.0, -1.0, -2.0], test)
        assert len(history.epochs) == 4
        assert model[0].bias.tolist() == [-2.0, 0.0]


class TestProgress:
    def test_every_step_is_told_with_those_of_the_run(self) -> None:
        seen: list[tuple[int, int]] = []
        recipe = Recipe(**{**vars(PLAIN), "gradient_accumulation": 2})
        data = loader(pixels(1, 1, 1), [0, 0, 0], 1)
        train(pixel_net(), data, epochs=2, recipe=recipe, on_step=lambda *counts: seen.append(counts))
        assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]

    def test_what_remains_is_the_mean_epoch_times_those_left(self) -> None:
        history = train(pixel_net(), loader(pixels(1), [0]), epochs=3)
        first, second, third = history.epochs
        assert first.remaining_s == pytest.approx(2 * first.seconds)
        assert second.remaining_s == pytest.approx((first.seconds + second.seconds) / 2)
        assert third.remaining_s == 0


class TestTrain:
    def test_learns_digits(self, digits: Any) -> None:
        model = small_net()
        history = train(model, digits, epochs=5, recipe=Recipe(lr=0.1))
        assert history.last.test is not None
        assert history.last.test.accuracy > 0.9
        assert history.last.test == evaluate(model, digits.test)
        assert [report.epoch for report in history.epochs] == [1, 2, 3, 4, 5]
        assert all(report.seconds > 0 for report in history.epochs)

    def test_equal_seeds_give_equal_weights_from_the_same_loaders(self, digits: Any) -> None:
        batches = load_data("digits", limit=200)
        first, again, other = small_net(), small_net(), small_net()
        order = next(iter(load_data("digits", limit=200).train))[1]
        train(first, batches, epochs=2, recipe=Recipe(seed=1))
        train(again, (batches.train, None), epochs=2, recipe=Recipe(seed=1), on_epoch=lambda _: torch.rand(3))
        train(other, batches, epochs=2, recipe=Recipe(seed=2))
        assert same_weights(first, again)
        assert not same_weights(first, other)
        assert torch.equal(next(iter(batches.train))[1], order)

    def test_gives_everything_back_as_it_was(self) -> None:
        model = small_net().eval()
        model[1].train()
        keys, modes = list(model.__dict__), [module.training for module in model.modules()]
        parameters = [id(parameter) for parameter in model.parameters()]
        batches = load_data("digits", limit=64)
        sampler = batches.train.batch_sampler.sampler  # type: ignore[union-attr]
        train(model, batches, epochs=1, recipe=Recipe(mixed_precision="bf16"))
        assert list(model.__dict__) == keys
        assert [module.training for module in model.modules()] == modes
        assert [id(parameter) for parameter in model.parameters()] == parameters
        assert all(parameter.grad is None and parameter.dtype == torch.float32 for parameter in model.parameters())
        assert batches.train.batch_sampler.sampler is sampler  # type: ignore[union-attr]
        assert same_weights(copy.deepcopy(model), model)

    def test_precision_may_change_from_run_to_run(self) -> None:
        batches = load_data("digits", limit=64)
        for precision in ("no", "bf16", None):
            train(small_net(), batches, epochs=1, recipe=Recipe(mixed_precision=precision))
            evaluate(small_net(), batches.test)

    def test_joins_the_callers_accelerator(self, callers_accelerator: Accelerator) -> None:
        batches = load_data("digits", limit=64)
        train(small_net(), batches, epochs=1)
        evaluate(small_net(), batches.test)
        assert callers_accelerator.gradient_accumulation_steps == 3
        assert callers_accelerator.mixed_precision == "no"
        with pytest.raises(InvalidRecipe, match="mixed_precision='bf16' can't be used here"):
            train(small_net(), batches, epochs=1, recipe=Recipe(mixed_precision="bf16"))

    def test_takes_batches_from_a_list(self) -> None:
        batches = [(pixels(2.0), torch.tensor([0]))] * 3
        assert len(train(pixel_net(), batches, epochs=2, recipe=PLAIN).epochs) == 2  # type: ignore[arg-type]

    def test_modes_return_after_an_error_too(self) -> None:
        model = pixel_net().eval()

        def stop(_: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(model, loader(pixels(1), [0]), epochs=1, before_step=stop)
        assert not any(module.training for module in model.modules())


class TestDivergence:
    @pytest.mark.parametrize("poisoned", [2, 3], ids=["seen in the next loss", "seen at the epoch's end"])
    def test_the_weights_of_the_last_good_epoch_return(self, poisoned: int) -> None:
        model = pixel_net()
        good: list[dict[str, Tensor]] = []

        def before_step(step: int) -> None:
            if step == poisoned:
                model[0].weight.grad.fill_(math.nan)

        with pytest.raises(TrainingDiverged, match=r"end of epoch 1.*lower lr") as caught:
            train(
                model,
                loader(pixels(2.0, 1.0), [0, 1], 1),
                epochs=3,
                recipe=PLAIN,
                before_step=before_step,
                on_epoch=lambda _: good.append(copy.deepcopy(model.state_dict())),
            )
        assert isinstance(caught.value, WidthwiseError)
        assert len(caught.value.history.epochs) == len(good) == 1
        assert all(torch.equal(tensor, good[0][name]) for name, tensor in model.state_dict().items())
        assert model[0].weight.grad is None

    def test_from_the_start_the_model_is_as_it_came(self) -> None:
        model = small_net()
        images = torch.full((4, 1, 8, 8), math.inf)
        with pytest.raises(TrainingDiverged, match=r"nan in step 1 of epoch 1.*it came with"):
            train(model, loader(images, [0, 1, 2, 3]), epochs=1)
        assert same_weights(model, small_net())


class Wrapped(nn.Module):
    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.net, self.wrap = pixel_net(), wrap

    def forward(self, images: Tensor) -> Any:
        return self.wrap(self.net(images))


class TestWhatDoesNotFit:
    @pytest.mark.parametrize(
        ("wrap", "message"),
        [
            (lambda x: (x, x), "a tuple of 2, not one tensor"),
            (lambda x: {"out": x}, "a dict with out, not one tensor"),
            (lambda x: x[..., None], r"must be \(1, classes\)"),
            (lambda x: x.repeat(3, 1), r"returns \(3, 2\)"),
        ],
    )
    @pytest.mark.parametrize("use", [evaluate, lambda model, batches: train(model, batches, epochs=1)])
    def test_outputs(self, wrap: Any, message: str, use: Any) -> None:
        with pytest.raises(InvalidModel, match=message):
            use(Wrapped(wrap), loader(pixels(1), [0]))

    @pytest.mark.parametrize("label", [2, -1])
    @pytest.mark.parametrize("use", [evaluate, lambda model, batches: train(model, batches, epochs=1)])
    def test_labels_out_of_range(self, label: int, use: Any) -> None:
        with pytest.raises(InvalidBatch, match=f"label {label} has no output: the model has 2 classes"):
            use(pixel_net(), loader(pixels(1, 1), [0, label]))

    @pytest.mark.parametrize(
        ("batches", "message"),
        [
            (loader(pixels(1), torch.tensor([[0.0, 1.0]])), r"integers of shape \(N,\); got torch.float32 \(1, 2\)"),
            (loader(pixels(1), torch.tensor([0.5])), "integers"),
            (DataLoader(TensorDataset(pixels(1))), "a list of 1"),
            (DataLoader(pixels(1)), "a tensor"),  # type: ignore[arg-type]
            (loader(pixels(1), [0], 2, drop_last=True), "no batches"),
            (iter([]), "with a length"),
        ],
    )
    def test_batches(self, batches: Any, message: str) -> None:
        with pytest.raises(InvalidBatch, match=message):
            train(pixel_net(), batches, epochs=1)
        with pytest.raises(InvalidBatch, match=message):
            evaluate(pixel_net(), batches)

    def test_parameters(self) -> None:
        model, batches = pixel_net(), loader(pixels(1), [0])
        stranger = [{"params": [nn.Parameter(torch.zeros(1))]}]
        twice = [{"params": [model[0].bias]}, {"params": [model[0].bias]}]
        with pytest.raises(InvalidRecipe, match="not the model's"):
            train(model, batches, epochs=1, parameter_groups=stranger)
        with pytest.raises(InvalidRecipe, match="twice"):
            train(model, batches, epochs=1, parameter_groups=twice)
        with pytest.raises(InvalidModel, match="no parameter to train"):
            train(model.requires_grad_(False), batches, epochs=1)

    def test_teachers(self) -> None:
        model, batches = pixel_net(), loader(pixels(1), [0])
        with pytest.raises(InvalidModel, match="deepcopy"):
            train(model, batches, epochs=1, teacher=model)
        with pytest.raises(InvalidModel, match=r"teacher's output a tensor \(1, 1\) is not"):
            train(model, batches, epochs=1, teacher=nn.Flatten())


class TestEvaluate:
    def test_counts_what_is_right(self) -> None:
        logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 3.0], [5.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
        labels = [0, 1, 2, 1, 0]
        model = nn.Sequential(nn.Flatten(), nn.Dropout(0.9))  # right in eval mode only
        result = evaluate(model, loader(logits.view(5, 1, 1, 3), labels, 2))
        losses = [math.log(sum(map(math.exp, row))) - row[y] for row, y in zip(logits.tolist(), labels, strict=True)]
        assert (result.accuracy, result.examples) == (0.6, 5)
        assert result.loss == pytest.approx(sum(losses) / 5)
        assert model.training
        assert model[1].training

    def test_counts_a_sampler_of_part_of_the_data_in_full(self) -> None:
        dataset = TensorDataset(pixels(*range(7)), torch.zeros(7, dtype=torch.int64))
        part = DataLoader(dataset, 3, sampler=SubsetRandomSampler(range(5)))
        assert evaluate(pixel_net(), part).examples == 5


class TestRecalibrate:
    def test_one_batch_gives_its_mean_and_unbiased_variance(self) -> None:
        images = torch.randn(5, 3, 7, 2) * 4 + 1
        norm = nn.BatchNorm2d(3, momentum=0.3)
        norm.running_mean.fill_(99.0)  # type: ignore[union-attr]
        model = nn.Sequential(nn.Dropout(0.5), norm).eval()
        recalibrate(model, loader(images, [0] * 5))
        by_channel = images.transpose(0, 1).flatten(1)
        torch.testing.assert_close(norm.running_mean, by_channel.mean(1))
        torch.testing.assert_close(norm.running_var, by_channel.var(1))
        assert (norm.momentum, norm.training) == (0.3, False)

    def test_batches_are_averaged_up_to_the_number_asked_for(self) -> None:
        images = torch.randn(9, 2, 3, 5)
        norm = nn.BatchNorm2d(2)
        recalibrate(norm, loader(images, [0] * 9, 3), batches=2)
        halves = [part.transpose(0, 1).flatten(1) for part in images[:6].split(3)]
        torch.testing.assert_close(norm.running_mean, sum(part.mean(1) for part in halves) / 2)
        torch.testing.assert_close(norm.running_var, sum(part.var(1) for part in halves) / 2)
        assert norm.training

    def test_repairs_a_network_without_touching_its_weights(self, digits: Any) -> None:
        model = small_net()
        train(model, digits, epochs=3, recipe=Recipe(lr=0.1))
        accuracy = evaluate(model, digits.test).accuracy
        weights = [parameter.detach().clone() for parameter in model.parameters()]
        for norm in (model[1], model[4]):
            norm.reset_running_stats()
        assert evaluate(model, digits.test).accuracy < accuracy - 0.2
        recalibrate(model, digits.train)
        assert evaluate(model, digits.test).accuracy > accuracy - 0.05
        assert all(torch.equal(now, was) for now, was in zip(model.parameters(), weights, strict=True))

    def test_no_batches_keep_the_old_statistics(self) -> None:
        norm = nn.BatchNorm2d(1)
        norm.running_mean.fill_(7.0)  # type: ignore[union-attr]
        with pytest.raises(InvalidBatch, match="no batches"):
            recalibrate(norm, loader(pixels(1), [0], 2, drop_last=True))
        assert (norm.running_mean.item(), norm.momentum) == (7.0, 0.1)  # type: ignore[union-attr]

    def test_a_network_without_batch_norm_is_left_alone(self) -> None:
        recalibrate(pixel_net(), loader(pixels(1), [0]))


TWO_PROCESSES = """
import hashlib, torch
from accelerate import PartialState
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from widthwise.pruning.training import Recipe, evaluate, recalibrate, train

torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(180, 10))
images, labels = torch.randn(301, 1, 8, 8), torch.randint(10, (301,))
loader = DataLoader(TensorDataset(images, labels), 32, shuffle=True)
steps = []
history = train(model, (loader, loader), epochs=2, recipe=Recipe(gradient_accumulation=2), before_step=steps.append)
recalibrate(model, loader, 3)
result = evaluate(model, loader)
weights = hashlib.sha256(b"".join(t.numpy().tobytes() for t in model.state_dict().values())).hexdigest()
state = PartialState()
with open(f"{state.process_index}.txt", "w") as file:
    print(state.num_processes, len(steps), result.examples, history.last.loss, result, weights, file=file)
"""


@pytest.mark.slow
def test_two_processes_end_with_the_same_network(tmp_path: Path) -> None:
    launch(TWO_PROCESSES, 2, tmp_path)
    first, second = ((tmp_path / f"{rank}.txt").read_text() for rank in (0, 1))
    assert first == second
    # ten batches over two processes, in windows of two: three steps an epoch; and no image counted twice
    assert first.split()[:3] == ["2", "6", "301"]


RESREP = """
import os, torch
from accelerate import PartialState
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from widthwise.network.network import Network
from widthwise.planner.plan import Certificate, Plan, TableReference
from widthwise.pruning import ResRep
from widthwise.pruning.training import Recipe, train

torch.set_num_threads(1)
torch.manual_seed(0)
# Without batch norm, whose statistics would be those of a process's part of the batch.
model = nn.Sequential(
    nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.Flatten(),
    nn.Linear(12 * 36, 10),
)
network = Network.trace(model, torch.randn(1, 1, 6, 6), name="net")
widths = {group.name: group.size // 2 for group in network.free}
widths = network.dense | widths
plan = Plan(
    widthwise="0", created="now", model="net", signature=network.signature, weights="", inputs=[[1, 1, 6, 6]],
    dense_ms=1, budget_ms=1, predicted_ms=1, interval_ms=(1, 1), minimum_ms=1, criterion="l1", importance=1,
    certificate=Certificate(status="feasible", objective=1, bound=1, gap=0, seconds=0),
    table=TableReference(target={}, device="", quiet_reference_ms=1, networks=0, held_out=0),
    dense=network.dense, widths=widths, kept={group: list(range(width)) for group, width in widths.items()},
)
images, labels = torch.randn(160, 1, 6, 6), torch.randint(10, (160,))
data = DataLoader(TensorDataset(images, labels), 16 // int(os.environ.get("WORLD_SIZE", 1)), shuffle=True)
run = ResRep(model, plan, steps=40, lasso=0.05)
history = train(run.model, data, epochs=4, recipe=Recipe(lr=0.02), executor=run)
small = run.finish()
state = PartialState()
result = {"masked": run.masked, "model": run.model.state_dict(), "small": small.state_dict(), "loss": history.last.loss}
torch.save({**result, "processes": state.num_processes}, f"{state.process_index}.pt")
"""


@pytest.mark.slow
def test_two_processes_let_the_same_channels_go_as_one(tmp_path: Path) -> None:
    results = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        launch(RESREP, processes, folder)
        results += [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(processes)]
    alone, first, second = results
    assert [result["processes"] for result in results] == [1, 2, 2]
    assert [int(mask.sum()) for mask in alone["masked"].values()] == [4, 6]
    for part in ("masked", "model", "small"):
        torch.testing.assert_close(first[part], second[part], rtol=0, atol=0)
        torch.testing.assert_close(alone[part], first[part], rtol=1e-4, atol=1e-5)
    assert first["loss"] == pytest.approx(alone["loss"], rel=1e-4)
