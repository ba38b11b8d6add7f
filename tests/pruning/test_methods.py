from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.pruning.nets import EXAMPLE, make, plan_for
from widthwise.luts.errors import BadInput
from widthwise.network.network import Network
from widthwise.pruning.data import Data, load_data
from widthwise.pruning.images import Images
from widthwise.pruning.methods import Effort, execute, steps_per_epoch
from widthwise.pruning.recipe import InvalidRecipe, Recipe
from widthwise.pruning.training import EpochReport, InvalidCheckpoint


@pytest.fixture
def data() -> Data:
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(40, 3, 11, 11, generator=generator)
    labels = torch.randint(0, 5, (40,), generator=generator)
    train = DataLoader(TensorDataset(images, labels), 8, shuffle=True, generator=torch.Generator().manual_seed(0))
    return Data("noise", train, DataLoader(TensorDataset(images, labels), 8), 5, (3, 11, 11))


@pytest.mark.parametrize(
    ("method", "phases"),
    [("l1", {"retraining": 4}), ("slimming", {"sparse training": 1, "fine-tuning": 3}), ("resrep", {"compactors": 4})],
)
def test_a_method_spends_its_epochs_and_meets_the_plan(
    method: str, phases: dict[str, int], data: Data, tmp_path: Path
) -> None:
    model = make("residual")
    plan = plan_for(model)
    told: list[str] = []

    def on_epoch(phase: str, report: EpochReport) -> None:
        told.append(phase)
        assert report.epochs == phases[phase]

    effort = Effort(4, Recipe(lr=0.02), checkpoints=tmp_path)
    shares: list[float] = []
    applied = execute(method, model, plan, data, effort, on_epoch=on_epoch, on_share=shares.append)
    assert shares == sorted(shares) and len(shares) == 4 * 5 and shares[-1] == 1.0
    assert {phase: told.count(phase) for phase in told} == phases
    assert [len(history.epochs) for history in applied.histories] == list(phases.values())
    assert Network.trace(applied.model, EXAMPLE).dense == plan.widths
    again = execute(method, model, plan, data, effort)
    pairs = zip(applied.model.state_dict().values(), again.model.state_dict().values(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)


def test_a_run_is_not_gone_on_with_under_other_settings(data: Data, tmp_path: Path) -> None:
    model = make("residual")
    execute("resrep", model, plan_for(model), data, Effort(2, checkpoints=tmp_path))
    with pytest.raises(InvalidCheckpoint, match=r"executor is .* 'removed': {'stem': 7.* there and .*'stem': 9"):
        execute("resrep", model, plan_for(model, {"stem": 4}), data, Effort(2, checkpoints=tmp_path))


def test_a_run_too_short_for_resrep_says_so(data: Data) -> None:
    model = make("residual")
    applied = execute("resrep", model, plan_for(model), data, Effort(1))
    assert "removed channels still held" in applied.notes[0] and "train longer" in applied.notes[0]


def test_impossible_requests(data: Data) -> None:
    model = make("residual")
    with pytest.raises(BadInput, match="no method 'magic'; there are l1, slimming, resrep, metapruning"):
        execute("magic", model, plan_for(model), data, Effort(2))
    with pytest.raises(InvalidRecipe, match="slimming needs at least 2 epochs, one for each of its phases; got 1"):
        execute("slimming", model, plan_for(model), data, Effort(1))
    with pytest.raises(BadInput, match="searches by predicted latency; give the plan's table with --lut"):
        execute("metapruning", model, plan_for(model), data, Effort(2))


def test_steps_count_what_is_accumulated(data: Data) -> None:
    assert steps_per_epoch(data, Recipe()) == 5
    assert steps_per_epoch(data, Recipe(gradient_accumulation=2)) == 3


def test_plain_images_are_not_augmented() -> None:
    digits = load_data("digits", batch_size=7)
    images = digits.train.dataset.dataset  # type: ignore[attr-defined]
    assert isinstance(images, Images)
    augmented = Images(images.images, images.labels, images.view.__class__((0.0,), (1.0,), crop=True, flip=True))
    torch.manual_seed(0)
    assert not torch.equal(augmented[3][0], augmented[3][0])
    assert torch.equal(augmented.plain[3][0], images.images[3])


def test_augmentation_shifts_and_mirrors_whole_images() -> None:
    stored = torch.arange(1, 2 * 3 * 9 * 9 + 1, dtype=torch.float32).view(2, 3, 9, 9)
    view = Images(stored, torch.zeros(2), load_data("digits").train.dataset.dataset.view).view  # type: ignore[attr-defined]
    view = view.__class__((0.0,), (1.0,), crop=True, flip=True)
    torch.manual_seed(1)
    seen = view(stored)
    padded = nn.functional.pad(stored, (4, 4, 4, 4))
    for image, source in zip(seen, padded, strict=True):
        windows = [source[:, top : top + 9, left : left + 9] for top in range(9) for left in range(9)]
        assert any(torch.equal(image, window) or torch.equal(image, window.flip(-1)) for window in windows)
