"""A training run's state in one file, to go on from after it was killed.

The file holds tensors and plain values only and is read as such, so one from elsewhere runs no code. It is written
beside itself and renamed: whatever happens meanwhile, the last whole one stays.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from widthwise.luts.errors import BadInput
from widthwise.pruning.recipe import Recipe

__all__ = ["Checkpoint", "CheckpointNotWritten", "InvalidCheckpoint", "run_of"]

FORMAT = "widthwise training checkpoint"
VERSION = 1
"""History: 1, first version."""


class InvalidCheckpoint(BadInput):
    """A file that is corrupt, no checkpoint, of a newer version, or of another run."""


class CheckpointNotWritten(BadInput):
    """No room or no right to write a checkpoint; the previous one, if any, is whole."""


def run_of(
    recipe: Recipe, epochs: int, batches: int, model: nn.Module, optimizer: torch.optim.Optimizer, **parts: Any
) -> dict[str, Any]:
    """What must be equal for a run to go on from another's checkpoint, by name.

    Args:
        batches: per epoch, of one process.
        parts: more such values.
    """
    layout = [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in model.state_dict().items()]
    groups = [
        [len(group["params"]), *(float(group[key]) for key in ("initial_lr", "momentum", "weight_decay"))]
        for group in optimizer.param_groups
    ]
    return {
        **asdict(recipe),
        "epochs": epochs,
        "batches_per_epoch": batches,
        "model": f"{len(layout)} tensors, {hashlib.sha256(repr(layout).encode()).hexdigest()[:12]}",
        "parameter_groups": groups,
        **parts,
    }


@dataclass(frozen=True)
class Checkpoint:
    """The file of one run.

    Args:
        path: of the file; its folder is made.
        accelerator: the processes that share the run. The first writes, all read.
        run: see :func:`run_of`.
    """

    path: Path
    accelerator: Any
    run: Mapping[str, Any]

    def read(self) -> dict[str, Any] | None:
        """The state to go on from; ``None`` where there is no file yet.

        Raises:
            InvalidCheckpoint: see there; on every process, if one can't read it.
            CheckpointNotWritten: the folder can't be written to, which is better known before than after an epoch.
        """
        state, problem = None, self._unwritable() if self.accelerator.is_main_process else None
        failure: type[BadInput] = CheckpointNotWritten
        if problem is None:
            failure = InvalidCheckpoint
            try:
                state = self._load() if self.path.exists() else None
            except InvalidCheckpoint as error:
                problem = str(error)
        found = self._gathered((problem, failure is InvalidCheckpoint, None if state is None else state["tally"]))
        first = next(((text, invalid) for text, invalid, _ in found if text is not None), None)
        if first is not None:
            raise (InvalidCheckpoint if first[1] else CheckpointNotWritten)(first[0])
        if any(tally != found[0][2] for _, _, tally in found):
            raise InvalidCheckpoint(f"not all processes see the same {self.path}; put it into a folder that all share")
        return state

    def write(self, state: Mapping[str, Any]) -> None:
        """Replaces the file.

        Raises:
            CheckpointNotWritten: on every process; the previous file is whole.
        """
        problem = self._replace(state) if self.accelerator.is_main_process else None
        for text in self._gathered(problem):
            if text is not None:
                raise CheckpointNotWritten(text)

    def refusal(self, error: Exception) -> InvalidCheckpoint:
        """For a file whose parts don't fit what they are for."""
        return InvalidCheckpoint(f"{self.path} is corrupt ({_brief(error)}); delete it to start anew")

    @property
    def _draft(self) -> Path:
        """Always the same, so that what a killed run leaves is overwritten."""
        return self.path.with_name(f".{self.path.name}.draft")

    def _replace(self, state: Mapping[str, Any]) -> str | None:
        strange = _strange(state)
        if strange is not None:
            return f"can't write the checkpoint {self.path}: {strange}; give tensors and plain values only"
        try:
            with self._draft.open("wb") as file:
                torch.save({"format": FORMAT, "version": VERSION, "run": dict(self.run), **state}, file)
                file.flush()
                os.fsync(file.fileno())
            self._draft.replace(self.path)
        except (OSError, RuntimeError) as error:  # torch makes a RuntimeError of some that the file raises
            before = "; the previous checkpoint is whole" if self.path.exists() else ""
            reason = getattr(error, "strerror", None) or str(error)
            return (
                f"can't write the checkpoint {self.path}: {reason}{before}. Make room, or give another place, and "
                "start the same run again"
            )
        finally:
            with suppress(OSError):
                self._draft.unlink()
        return None

    def _unwritable(self) -> str | None:
        if self.path.is_dir():
            return f"the checkpoint {self.path} is a folder; give a file in it, such as {self.path / 'run.pt'}"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._draft.touch()
            self._draft.unlink()
        except OSError as error:
            return f"can't write the checkpoint {self.path}: {error.strerror}; give another place"
        return None

    def _load(self) -> dict[str, Any]:
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a foreign file makes of the reader
            raise InvalidCheckpoint(
                f"{self.path} can't be read as a checkpoint ({_brief(error)}); delete it to start anew, or give "
                "another file"
            ) from error
        if not (isinstance(state, dict) and state.get("format") == FORMAT and isinstance(state.get("run"), dict)):
            raise InvalidCheckpoint(f"{self.path} is no training checkpoint; give another file")
        if state.get("version") != VERSION:
            raise InvalidCheckpoint(
                f"{self.path} is of version {state.get('version')!r}, this widthwise reads {VERSION}; go on with the "
                "one that wrote it"
            )
        differing = [
            f"{name} is {state['run'].get(name)!r} there and {self.run.get(name)!r} here"
            for name in sorted({*self.run, *map(str, state["run"])})
            if state["run"].get(name) != self.run.get(name)
        ]
        if differing:
            raise InvalidCheckpoint(
                f"{self.path} is of another run: {'; '.join(differing)}. Give the same settings, or another file"
            )
        if not isinstance(state.get("tally"), dict):
            raise self.refusal(KeyError("tally"))
        return state

    def _gathered(self, value: Any) -> list[Any]:
        """What each process gives here, on all of them; so they all go on or none does."""
        from accelerate.utils import gather_object

        gathered: list[Any] = gather_object([value])
        return gathered


def _strange(value: Any, where: str = "the state") -> str | None:
    """Names what a reader that runs no code would refuse."""
    if value is None or isinstance(value, Tensor) or type(value) in (bool, int, float, str):
        return None
    if isinstance(value, dict):
        items = [(repr(key), item) for key, item in value.items()]
    elif type(value) in (list, tuple):
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        return f"{where} is a {type(value).__module__}.{type(value).__name__}"
    return next(filter(None, (_strange(item, f"{where}[{key}]") for key, item in items)), None)


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
