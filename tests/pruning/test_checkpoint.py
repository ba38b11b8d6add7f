from __future__ import annotations

import errno
import io
import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler, TensorDataset

import widthwise as ww
from tests.conftest import wide_net
from tests.pruning.helpers import launch, loader, pixel_net, pixels, same_weights, small_net
from widthwise.luts.errors import BadInput
from widthwise.planner.plan import Plan
from widthwise.pruning.filters import FilterPruning
from widthwise.pruning.resrep import ResRep
from widthwise.pruning.training import (
    CheckpointNotWritten,
    EpochReport,
    History,
    InvalidCheckpoint,
    InvalidRecipe,
    Recipe,
    TrainingDiverged,
    train,
)

RECIPE = Recipe(lr=0.05, seed=3)


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Augmented from torch's global generator, as the data sets are."""

    def __len__(self) -> int:
        return 28

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = torch.arange(64.0).view(1, 8, 8).roll(index, 2) / 64
        return image + 0.1 * torch.randn(image.shape), torch.tensor(index % 10)


def batches(workers: int = 0, **options: Any) -> DataLoader[Any]:
    """Seven batches an epoch."""
    if "sampler" not in options:
        options |= {"shuffle": True, "generator": torch.Generator().manual_seed(7)}
    return DataLoader(Noisy(), 4, num_workers=workers, **options)


def net() -> nn.Sequential:
    model = small_net()
    return nn.Sequential(*model[:-1], nn.Dropout(0.3), model[-1])


class Killed(Exception):
    pass


def kill_at(step: int) -> Callable[[int, int], None]:
    def on_step(done: int, steps: int) -> None:
        if done == step:
            raise Killed

    return on_step


def interrupted(step: int, path: Path, model: nn.Module, again: nn.Module, data: Any, **options: Any) -> History:
    """Kills a run after a step, and goes on with another model as if in a fresh process."""
    with pytest.raises(Killed):
        train(model, data(), checkpoint=path, on_step=kill_at(step), **options)
    torch.rand(5)
    return train(again, data(), checkpoint=path, **options)


def without_times(history: History) -> list[EpochReport]:
    return [replace(report, seconds=0.0, remaining_s=0.0) for report in history.epochs]


class TestResume:
    # Steps of three epochs of seven: within the first, at an epoch's end, beyond the second's, in the last.
    @pytest.mark.parametrize("step", [2, 3, 7, 10, 14, 20])
    @pytest.mark.parametrize("ema", [None, 0.7])
    def test_ends_as_if_never_killed(self, tmp_path: Path, step: int, ema: float | None) -> None:
        recipe = replace(RECIPE, ema=ema)
        whole, killed, again = net(), net(), net()
        options = {"epochs": 3, "recipe": recipe, "checkpoint_every": 3}
        history = train(whole, batches(), checkpoint=tmp_path / "whole.pt", **options)
        resumed = interrupted(step, tmp_path / "run.pt", killed, again, batches, **options)
        assert same_weights(whole, again)
        assert without_times(history) == without_times(resumed)
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []

    def test_from_epoch_to_epoch_it_changes_nothing(self, tmp_path: Path) -> None:
        plain, whole, again = net(), net(), net()
        train(plain, batches(), epochs=3, recipe=RECIPE)
        train(whole, batches(), epochs=3, recipe=RECIPE, checkpoint=tmp_path / "whole.pt")
        interrupted(16, tmp_path / "run.pt", net(), again, batches, epochs=3, recipe=RECIPE)
        assert same_weights(plain, whole)
        assert same_weights(plain, again)

    @pytest.mark.parametrize(
        "data",
        [
            lambda: batches(workers=2),
            lambda: batches(workers=1, persistent_workers=True),
            lambda: batches(sampler=SubsetRandomSampler(range(3, 25))),
            lambda: batches(sampler=SubsetRandomSampler(range(3, 25), torch.Generator().manual_seed(5))),
            lambda: [(torch.full((2, 1, 8, 8), float(i)), torch.tensor([i, i + 1])) for i in range(6)],
        ],
        ids=["worker processes", "persistent ones", "a sampler", "a sampler with a generator", "a list"],
    )
    def test_whatever_the_loader_is(self, tmp_path: Path, data: Any) -> None:
        whole, again = net(), net()
        options = {"epochs": 2, "recipe": replace(RECIPE, gradient_accumulation=2), "checkpoint_every": 2}
        train(whole, data(), checkpoint=tmp_path / "whole.pt", **options)
        interrupted(5, tmp_path / "run.pt", net(), again, data, **options)
        assert same_weights(whole, again)

    def test_within_an_epoch_every_image_still_comes_once(self, tmp_path: Path) -> None:
        images = torch.arange(12.0).view(12, 1, 1, 1)
        seen: list[float] = []

        class Recorder(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = pixel_net()

            def forward(self, x: Tensor) -> Any:
                seen.extend(x.flatten().tolist())
                return self.net(x)

        for sampler in (SubsetRandomSampler(range(12)), None):
            seen.clear()
            data = DataLoader(TensorDataset(images, torch.zeros(12).long()), 2, sampler is None, sampler)
            train(Recorder(), data, epochs=1, checkpoint=tmp_path / f"{sampler is None}.pt", checkpoint_every=2)
            assert sorted(seen) == list(range(12))
            assert seen != list(range(12))
            assert sampler is None or sampler.generator is None

    def test_a_finished_run_returns_at_once(self, tmp_path: Path) -> None:
        for number, recipe in enumerate((RECIPE, replace(RECIPE, ema=0.5), replace(RECIPE, patience=1, lr=1e-9))):
            model, again, path = net(), net(), tmp_path / f"{number}.pt"
            data = (batches(), loader(torch.randn(9, 1, 8, 8), [0] * 9))
            history = train(model, data, epochs=3, recipe=recipe, checkpoint=path)
            written = path.stat().st_mtime_ns
            assert train(again, data, epochs=3, recipe=recipe, checkpoint=path, on_step=kill_at(1)) == history
            assert same_weights(model, again)
            assert path.stat().st_mtime_ns == written

    def test_the_best_epoch_is_kept(self, tmp_path: Path) -> None:
        test = loader(torch.randn(9, 1, 8, 8), list(range(9)))
        whole, again = net(), net()
        options = {"epochs": 5, "recipe": replace(RECIPE, patience=2, ema=0.3), "checkpoint_every": 2}
        history = train(whole, (batches(), test), checkpoint=tmp_path / "whole.pt", **options)
        resumed = interrupted(11, tmp_path / "run.pt", net(), again, lambda: (batches(), test), **options)
        assert without_times(history) == without_times(resumed)
        assert same_weights(whole, again)

    def test_divergence_after_it_returns_to_the_last_good_epoch(self, tmp_path: Path) -> None:
        def poison(model: nn.Module) -> Callable[[int], None]:
            def before_step(step: int) -> None:
                if step == 11:
                    model[0].weight.grad.fill_(math.nan)  # type: ignore[index, union-attr, operator]

            return before_step

        whole, killed, again = net(), net(), net()
        options = {"epochs": 3, "recipe": RECIPE, "checkpoint_every": 2, "checkpoint": tmp_path / "run.pt"}
        with pytest.raises(Killed):
            train(killed, batches(), before_step=poison(killed), on_step=kill_at(11), **options)
        with pytest.raises(TrainingDiverged, match="end of epoch 1"):
            train(again, batches(), before_step=poison(again), **options)
        (tmp_path / "run.pt").unlink()
        with pytest.raises(TrainingDiverged, match="end of epoch 1"):
            train(whole, batches(), before_step=poison(whole), **options)
        assert same_weights(whole, again)


@pytest.fixture(scope="module")
def plan(wide_table: Path, wide: nn.Module, wide_example: Tensor) -> Plan:
    return ww.plan(wide, wide_example, lut=wide_table, budget="60%", name="tests/conftest.py:wide_net")


def wide_batches() -> DataLoader[Any]:
    images = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return loader(images, [index % 10 for index in range(24)], 4, shuffle=True)


class TestExecutors:
    @pytest.mark.parametrize("ema", [None, 0.5])
    @pytest.mark.parametrize(
        "make",
        [
            lambda plan: ResRep(wide_net(), plan, steps=12, lasso=0.5),
            lambda plan: FilterPruning(wide_net(), plan, rounds=3, steps=12),
            lambda plan: FilterPruning(wide_net(), plan),
        ],
        ids=["resrep", "rounds", "one shot"],
    )
    def test_their_state_goes_on_too(self, tmp_path: Path, plan: Plan, make: Any, ema: float | None) -> None:
        whole, killed, again = make(plan), make(plan), make(plan)
        options = {"epochs": 2, "recipe": replace(RECIPE, ema=ema, lr=0.01), "checkpoint_every": 4}
        train(whole.model, wide_batches(), executor=whole, checkpoint=tmp_path / "whole.pt", **options)
        with pytest.raises(Killed):
            train(
                killed.model,
                wide_batches(),
                executor=killed,
                checkpoint=tmp_path / "run.pt",
                on_step=kill_at(5),
                **options,
            )
        train(again.model, wide_batches(), executor=again, checkpoint=tmp_path / "run.pt", **options)
        assert same_weights(whole.model, again.model)
        assert same_weights(whole.finish(), again.finish())

    def test_what_only_their_state_knows_comes_back(self, tmp_path: Path, plan: Plan) -> None:
        class Counting(FilterPruning):
            count = 0

            def before_step(self, step: int) -> None:
                self.count += 1

            def state_dict(self) -> dict[str, Any]:
                return {**super().state_dict(), "count": self.count}

            def load_state_dict(self, state: dict[str, Any]) -> None:
                super().load_state_dict(state)
                self.count = state["count"]

        killed, again = Counting(wide_net(), plan), Counting(wide_net(), plan)
        options = {"epochs": 2, "checkpoint": tmp_path / "run.pt", "checkpoint_every": 4}
        with pytest.raises(Killed):
            train(killed.model, wide_batches(), executor=killed, on_step=kill_at(5), **options)
        train(again.model, wide_batches(), executor=again, **options)
        assert (killed.count, again.count) == (5, 12)

    def test_it_brings_steps_and_groups_and_its_weights_are_stored_once(self, tmp_path: Path, plan: Plan) -> None:
        run, other = (ResRep(wide_net(), plan, steps=6, lasso=0.5) for _ in range(2))
        recipe = Recipe(lr=0.01)
        train(run.model, wide_batches(), epochs=1, recipe=recipe, executor=run, checkpoint=tmp_path / "run.pt")
        groups = other.parameter_groups(lr=0.01)
        train(
            other.model,
            wide_batches(),
            epochs=1,
            recipe=recipe,
            before_step=other.before_step,
            parameter_groups=groups,
        )
        assert any(mask.any() for mask in run.masked.values())
        assert same_weights(run.model, other.model)
        bytes_ = sum(tensor.nbytes for tensor in run.model.state_dict().values())
        assert (tmp_path / "run.pt").stat().st_size < 2.6 * bytes_  # weights and momentum

    def test_what_it_brings_is_not_given_twice(self, plan: Plan) -> None:
        run = ResRep(wide_net(), plan, steps=6)
        with pytest.raises(BadInput, match=r"not the executor's; pass executor\.model"):
            train(wide_net(), wide_batches(), epochs=1, executor=run)
        with pytest.raises(InvalidRecipe, match="brings its own before_step"):
            train(run.model, wide_batches(), epochs=1, executor=run, before_step=run.before_step)
        with pytest.raises(InvalidRecipe, match="brings its own parameter_groups"):
            train(run.model, wide_batches(), epochs=1, executor=run, parameter_groups=[])


DATA = loader(torch.randn(6, 1, 8, 8), list(range(6)), 2)


def run(path: Path, model: nn.Module | None = None, **changes: Any) -> History:
    options: dict[str, Any] = {"epochs": 2, "recipe": RECIPE, "data": DATA, "checkpoint": path, **changes}
    return train(small_net() if model is None else model, options.pop("data"), **options)


class Payload:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("ran"),)


class TestFiles:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"recipe": replace(RECIPE, lr=0.02)}, "lr is 0.05 there and 0.02 here"),
            ({"recipe": replace(RECIPE, ema=0.5)}, "ema is None there and 0.5 here"),
            ({"epochs": 3}, "epochs is 2 there and 3 here"),
            ({"data": loader(torch.randn(4, 1, 8, 8), [0] * 4, 2)}, "batches_per_epoch is 3 there and 2 here"),
            ({"model": pixel_net()}, "model is '.*' there and '.*' here"),
            ({"teacher": nn.Flatten()}, "teacher is False there and True here"),
        ],
    )
    def test_of_another_run_are_refused(self, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
        path = tmp_path / "run.pt"
        run(path)
        before = path.read_bytes()
        with pytest.raises(InvalidCheckpoint, match=f"run.pt is of another run: .*{message}"):
            run(path, **changes)
        assert path.read_bytes() == before

    def test_hostile_ones_run_no_code(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        path = tmp_path / "run.pt"
        for write in (lambda: torch.save(Payload(), path), lambda: path.write_bytes(pickle.dumps(Payload()))):
            write()
            with pytest.raises(InvalidCheckpoint, match=r"run\.pt can't be read as a checkpoint"):
                run(path)
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
    def test_cut_ones_are_refused(self, tmp_path: Path, share: float) -> None:
        path = tmp_path / "run.pt"
        run(path)
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(InvalidCheckpoint, match=r"run\.pt can't be read.*delete it to start anew"):
            run(path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"format": "other"}, "is no training checkpoint"),
            ({"version": 2}, "is of version 2, this widthwise reads 1"),
            ({"tally": None}, "is corrupt"),
            ({"tally": {"batches": 1, "nonsense": 2}}, "is corrupt"),
            ({"reports": [{"epoch": 1}]}, "is corrupt"),
            ({"reports": 3}, "is corrupt"),
            ({"weights": {"model": {"0.weight": torch.zeros(12, 1, 3, 3)}}}, "is corrupt"),
            ({"optimizer": {}}, "is corrupt"),
            ({"good": {}}, "is corrupt"),
            ({"best": [1]}, "is corrupt"),
            ({"tally": {"batches": 99}}, "is corrupt"),
            ({"tally": {"batches": "many"}}, "is corrupt"),
        ],
    )
    def test_what_does_not_fit_is_refused_and_the_model_stays(
        self, tmp_path: Path, change: dict[str, Any], message: str
    ) -> None:
        path, model = tmp_path / "run.pt", small_net()
        run(path)
        torch.save({**torch.load(path, weights_only=True), **change}, path)
        with pytest.raises(InvalidCheckpoint, match=rf"run\.pt {message}"):
            run(path, model)
        assert same_weights(model, small_net())

    def test_a_full_disk_leaves_the_previous_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path, whole, again = tmp_path / "folder" / "run.pt", small_net(), small_net()
        run(tmp_path / "whole.pt", whole)
        save = torch.save

        def full(state: Any, file: Any) -> None:
            if len(state["reports"]) == 2:
                whole_file = io.BytesIO()
                save(state, whole_file)
                file.write(whole_file.getvalue()[:1000])
                raise OSError(errno.ENOSPC, "No space left on device")
            save(state, file)

        with monkeypatch.context() as patch:
            patch.setattr(torch, "save", full)
            with pytest.raises(CheckpointNotWritten, match=r"run\.pt: No space left.*previous checkpoint is whole"):
                run(path)
        assert [entry.name for entry in path.parent.iterdir()] == ["run.pt"]
        run(path, again)
        assert same_weights(whole, again)

    def test_momentum_of_other_shapes_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "run.pt"
        run(path)
        state = torch.load(path, weights_only=True)
        state["optimizer"]["state"][0]["momentum_buffer"] = torch.zeros(5)
        torch.save(state, path)
        with pytest.raises(InvalidCheckpoint, match=r"run\.pt is corrupt .*other shapes"):
            run(path)

    def test_what_could_not_be_read_again_is_not_written(self, tmp_path: Path, plan: Plan) -> None:
        class Odd(FilterPruning):
            def state_dict(self) -> dict[str, Any]:
                return {**super().state_dict(), "chosen": [np.int64(3)]}

        odd = Odd(wide_net(), plan)
        with pytest.raises(CheckpointNotWritten, match=r"\['chosen'\]\[0\] is a numpy\.int64; give tensors and plain"):
            run(tmp_path / "run.pt", odd.model, data=wide_batches(), executor=odd)

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
    def test_torchs_own_failure_on_a_full_disk_is_typed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        opened = Path.open
        monkeypatch.setattr(Path, "open", lambda path, mode="r": opened(Path("/dev/full"), mode))
        with pytest.raises(CheckpointNotWritten, match="can't write the checkpoint"):
            run(tmp_path / "run.pt")

    def test_a_place_that_can_not_be_written_to_is_known_before_the_first_step(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(CheckpointNotWritten, match="is a folder; give a file in it"):
            run(tmp_path, on_step=kill_at(1))
        with pytest.raises(CheckpointNotWritten, match="can't write the checkpoint"):
            run(tmp_path / "file" / "run.pt", on_step=kill_at(1))

    def test_how_often_must_make_sense(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidRecipe, match="at least 1 step; got 0"):
            run(tmp_path / "run.pt", checkpoint_every=0)
        with pytest.raises(InvalidRecipe, match="needs checkpoint"):
            train(small_net(), DATA, epochs=1, checkpoint_every=1)


@pytest.mark.parametrize("every", [None, 1], ids=["at the ends of epochs", "after every step"])
def test_divergence_leaves_the_last_good_one_and_names_it(tmp_path: Path, every: int | None) -> None:
    path, model = tmp_path / "run.pt", pixel_net()
    data = loader(pixels(2.0, 1.0, 3.0), [0, 1, 0], 1)
    before: dict[str, bytes] = {}

    def before_step(step: int) -> None:
        if step == 4:
            before["file"] = path.read_bytes()
            model[0].weight.grad.fill_(math.nan)

    with pytest.raises(TrainingDiverged, match=r"end of epoch 1\..*checkpoint from before is .*run\.pt") as caught:
        train(model, data, epochs=3, recipe=RECIPE, before_step=before_step, checkpoint=path, checkpoint_every=every)
    assert path.read_bytes() == before["file"]
    weights = torch.load(path, weights_only=True)["weights"]["model"]
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), TrainingDiverged)  # noqa: S301


def test_loaders_get_their_generators_back(tmp_path: Path) -> None:
    data = batches()
    assert data.generator is not None
    state = data.generator.get_state()
    train(net(), data, epochs=1, checkpoint=tmp_path / "run.pt", checkpoint_every=2)
    assert torch.equal(data.generator.get_state(), state)


TWO_PROCESSES = """
import torch
from accelerate import PartialState
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from widthwise.pruning.training import InvalidCheckpoint, CheckpointNotWritten, Recipe, train

torch.set_num_threads(1)

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(180, 10))

def go(path, model, stop=None, **options):
    def on_step(done, steps):
        if done == stop:
            raise KeyboardInterrupt
    torch.manual_seed(1)
    images, labels = torch.randn(80, 1, 8, 8), torch.randint(10, (80,))
    options = {"epochs": 2, "recipe": Recipe(lr=0.05, ema=0.6), "checkpoint_every": 2, **options}
    data = DataLoader(TensorDataset(images, labels), 8, shuffle=shuffle)
    train(model, (data, data), checkpoint=path, on_step=on_step, **options)
    return model

outcome = []
for shuffle in (True, False):
    whole, again = net(), net()
    go(f"whole{shuffle}.pt", whole)
    try:
        go(f"run{shuffle}.pt", net(), stop=8)
    except KeyboardInterrupt:
        pass
    go(f"run{shuffle}.pt", again)
    outcome.append(all(torch.equal(*pair) for pair in zip(whole.state_dict().values(), again.state_dict().values())))
rank = PartialState().process_index
outcome.append(float(sum(p.sum() for p in again.parameters())))
for path, options in (("runTrue.pt", {"epochs": 3}), (f"missing{rank}.pt" if rank else "runTrue.pt", {})):
    try:
        go(path, net(), **options)
    except InvalidCheckpoint as error:
        outcome.append(type(error).__name__)
save = torch.save
def full(state, file):
    raise OSError(28, "No space left on device")
torch.save = full
try:
    go("full.pt", net())
except CheckpointNotWritten as error:
    outcome.append(str(error))
with open(f"{rank}.txt", "w") as file:
    print(outcome, file=file)
"""


@pytest.mark.slow
def test_two_processes_resume_and_fail_together(tmp_path: Path) -> None:
    launch(TWO_PROCESSES, 2, tmp_path)
    first, second = ((tmp_path / f"{rank}.txt").read_text() for rank in (0, 1))
    assert first == second
    assert first.startswith("[True, True, ")
    assert first.count("InvalidCheckpoint") == 2
    assert "full.pt: No space left" in first
