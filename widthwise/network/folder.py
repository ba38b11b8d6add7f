"""A pruned model's folder as it is read; :mod:`widthwise.pruning.artifact` writes it.

    model.safetensors    the weights
    architecture.json    how to rebuild the narrow model: the dense model's name, each module's channels, the graph
    plan.json            the plan that was applied; plan-1.json, plan-2.json, … those before it

A folder from elsewhere never chooses what code runs. Architectures of torchvision and timm are rebuilt by name, others
from the stored graph (:mod:`widthwise.network.portable`); any other factory runs only if the caller passes it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from widthwise.luts.errors import InvalidModel
from widthwise.network.factories import build_model, is_trusted
from widthwise.network.narrowing import resize
from widthwise.network.portable import GraphData, from_data
from widthwise.network.weights import load_weights

__all__ = ["ARCHITECTURE", "PLAN", "WEIGHTS", "Architecture", "load", "own_file", "read_architecture", "rebuilt"]

WEIGHTS, PLAN, ARCHITECTURE = "model.safetensors", "plan.json", "architecture.json"
SCHEMA_VERSION = 2
"""History: 1, first version. 2, options of the factory, the plans applied, the graph, versions of more packages."""

_MOST_BYTES = 64 * 2**20
_Channels = Annotated[int, Field(ge=1, le=2**24)]


class Architecture(BaseModel):
    """How to rebuild a narrow model.

    Attributes:
        model: the dense model's name; where plans were applied one after the other, the first one's.
        options: what torchvision's or timm's factory is to be told, such as ``num_classes``.
        modules: path → (input, output) channels of what was narrowed or could have been.
        torch: version that wrote it; ``versions`` of the other packages that matter.
        plans: digest of each plan applied, the first first.
        graph: the narrow network itself, or None with the reason in ``no_graph``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1, 2] = 2
    model: str
    options: dict[Annotated[str, Field(pattern="^(num_classes|in_chans)$")], _Channels] = {}
    inputs: list[list[int]]
    modules: dict[str, tuple[int, int]]
    torch: str
    versions: dict[str, str] = {}
    plans: list[str] = []
    graph: GraphData | None = None
    no_graph: str = ""


def load(folder: str | Path, model: str | Callable[[], nn.Module] | None = None) -> nn.Module:
    """The narrow model of a folder, in eval mode.

    Args:
        model: the factory of the dense model, or its ``MODEL`` string, where its own class is wanted. Without it
            models of torchvision and timm are built by name, others from the stored graph; where there is none it is
            needed, since only the caller decides what code runs.

    Raises:
        InvalidModel: a file is missing, corrupt, of a newer version or a link out of the folder, or the factory makes
            another model.

    Example:
        >>> small = load("small")  # doctest: +SKIP
        >>> small = load("mine", model="nets.py:net")  # doctest: +SKIP
    """
    folder = Path(folder)
    architecture = read_architecture(folder)
    weights = own_file(folder, WEIGHTS)
    if model is not None:
        return _from_factory(architecture, build_model(model) if isinstance(model, str) else _made_by(model), weights)
    if is_trusted(architecture.model):
        try:
            dense = build_model(architecture.model, options=architecture.options)
            return _from_factory(architecture, dense, weights)
        except InvalidModel as error:
            if architecture.graph is None:
                raise InvalidModel(f"{error}{_other_versions(architecture)}") from error
            small = rebuilt(architecture.graph, weights)
            warnings.warn(
                f"{architecture.model} isn't what it was when {folder} was written ({error}); "
                "the model was rebuilt from the stored graph",
                stacklevel=2,
            )
            return small
    if architecture.graph is None:
        why = f" and has no stored graph ({architecture.no_graph})" if architecture.no_graph else ""
        name = f"{architecture.model!r} or model=" if ":" in architecture.model else ""
        raise InvalidModel(
            f"{folder} was made from {architecture.model}, which is no library model{why}; if you trust that code, "
            f"pass it: widthwise.load({str(folder)!r}, model={name}factory)"
        )
    return rebuilt(architecture.graph, weights)


def rebuilt(graph: GraphData, weights: Path) -> nn.Module:
    """The network of a stored graph with its weights.

    Raises:
        InvalidModel: the graph holds what it may not, or the weights don't fit it.
    """
    model = from_data(graph)
    load_weights(model, weights, assign=True)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:  # counters of batches, which old files lack
                module._buffers[name] = torch.zeros_like(buffer, device="cpu")
    return model.eval()


def read_architecture(folder: str | Path) -> Architecture:
    """How the model of a folder is rebuilt.

    Raises:
        InvalidModel: no such file, or one that is corrupt or of a newer version.
    """
    folder = Path(folder)
    path = own_file(folder, ARCHITECTURE)
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InvalidModel(f"{path} is larger than any architecture; it isn't one widthwise wrote")
        data: Any = json.loads(path.read_text())
    except OSError as error:
        raise InvalidModel(f"{folder} is no pruned model: can't read {path.name} ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InvalidModel(f"{path} is corrupt: {error}") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise InvalidModel(
            f"{path} has schema version {version}, this widthwise reads up to {SCHEMA_VERSION}: upgrade it with "
            "pip install -U widthwise"
        )
    try:
        return Architecture.model_validate(data)
    except (ValidationError, RecursionError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        where = ".".join(str(part) for part in first["loc"][:4])[:120] or "all of it"
        raise InvalidModel(f"{path} is corrupt: {where}: {first['msg']}") from error


def own_file(folder: Path, name: str) -> Path:
    """The path of a file in a folder from elsewhere.

    Raises:
        InvalidModel: it is a link out of the folder.
    """
    path = folder / name
    if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
        raise InvalidModel(f"{path} is a link out of its folder; put the file itself there, if you trust it")
    return path


def _made_by(factory: Callable[[], nn.Module]) -> nn.Module:
    if isinstance(factory, nn.Module):
        raise InvalidModel(
            f"model= takes a function that builds the dense model, not a {type(factory).__name__}; "
            "it is cut in place, so give lambda: copy.deepcopy(model)"
        )
    made = factory()
    if not isinstance(made, nn.Module):
        raise InvalidModel(f"the factory gave a {type(made).__name__}, not a torch.nn.Module; give one that does")
    return made


def _from_factory(architecture: Architecture, dense: nn.Module, weights: Path) -> nn.Module:
    small = resize(dense, architecture.modules)
    load_weights(small, weights)
    return small.eval()


def _other_versions(architecture: Architecture) -> str:
    """What may be why a library's model isn't what it was."""
    from importlib import metadata

    changed = []
    for name, was in architecture.versions.items():
        try:
            here = metadata.version(name)
        except metadata.PackageNotFoundError:
            here = "not installed"
        if here != was:
            changed.append(f"{name} {was}, here {here}")
    return f" (written with {'; '.join(changed)})" if changed else ""
