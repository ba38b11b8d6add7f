"""A pruned model as a folder that reloads anywhere, without pickle.

    model.safetensors    the weights
    plan.json            the plan that was applied
    architecture.json    how to rebuild the narrow model: the dense model's name, and each module's channels

Architectures of torchvision and timm are rebuilt by name; any other factory runs only if the caller passes
it: a folder from elsewhere never chooses what code runs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from widthwise.luts.errors import BadInput, InvalidModel
from widthwise.network.loading import is_trusted, load_model, load_weights
from widthwise.network.narrowing import resize, shapes_of
from widthwise.planner.plan import Plan

__all__ = ["Architecture", "load", "require_writable", "save"]

WEIGHTS, PLAN, ARCHITECTURE = "model.safetensors", "plan.json", "architecture.json"
_MOST_BYTES = 16 * 2**20


class Architecture(BaseModel):
    """How to rebuild a narrow model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    model: str
    inputs: list[list[int]]
    modules: dict[str, tuple[int, int]]
    torch: str


def require_writable(folder: Path) -> None:
    """Refuses a place where saving would destroy something or fail.

    Raises:
        BadInput: the folder can't be made or written to, or holds other things than a pruned model.
    """
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder} is a file; give a folder with -o")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / ARCHITECTURE).is_file():
        raise BadInput(f"{folder} holds other files; give an empty or new folder with -o")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise BadInput(f"can't write to {folder}: {error.strerror}; give another folder with -o") from error


def save(folder: str | Path, small: nn.Module, plan: Plan) -> Path:
    """Writes a narrow model to a folder; each file appears whole.

    Raises:
        BadInput: see :func:`require_writable`.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    require_writable(folder)
    draft = folder / ".draft"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in small.state_dict().items()}
        save_file(state, draft / WEIGHTS, metadata={"format": "pt"})
        plan.write(draft / PLAN)
        architecture = Architecture(
            model=plan.model, inputs=plan.inputs, modules=shapes_of(small), torch=torch.__version__
        )
        (draft / ARCHITECTURE).write_text(architecture.model_dump_json(indent=1) + "\n")
        for name in (WEIGHTS, PLAN, ARCHITECTURE):
            (draft / name).replace(folder / name)
    except OSError as error:
        raise BadInput(f"can't write to {folder}: {error.strerror}; give another folder with -o") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def load(folder: str | Path, model: str | Callable[[], nn.Module] | None = None) -> nn.Module:
    """The narrow model of a folder, in eval mode.

    Args:
        model: the factory of the dense model, or its ``MODEL`` string. Needed unless the model is one of
            torchvision or timm, since only the caller decides what code runs.

    Raises:
        InvalidModel: a file is missing or corrupt, or the factory makes another model.
    """
    folder = Path(folder)
    architecture = _read(folder / ARCHITECTURE)
    if model is None and not is_trusted(architecture.model):
        raise InvalidModel(
            f"{folder} was made from {architecture.model}, which is no library model; if you trust that code, pass it: "
            f"widthwise.load({str(folder)!r}, model={architecture.model!r}) or model=factory"
        )
    source = model if model is not None else architecture.model
    dense = load_model(source) if isinstance(source, str) else source()
    small = resize(dense, architecture.modules)
    load_weights(small, folder / WEIGHTS)
    return small.eval()


def _read(path: Path) -> Architecture:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InvalidModel(f"{path} is larger than any architecture; it isn't one widthwise wrote")
        return Architecture.model_validate(json.loads(path.read_text()))
    except OSError as error:
        raise InvalidModel(f"{path.parent} is no pruned model: can't read {path.name} ({error.strerror})") from error
    except ValidationError as error:
        raise InvalidModel(f"{path} is corrupt: {error.errors()[0]['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidModel(f"{path} is corrupt: {error}") from error
