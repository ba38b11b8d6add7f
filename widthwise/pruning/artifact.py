"""A pruned model as a folder that reloads anywhere, without pickle: what is written.

:mod:`widthwise.network.folder` says what is in it and reads it; :mod:`widthwise.pruning.export` adds files for other
runtimes.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import torch
from torch import nn

from widthwise.luts.errors import BadInput, InvalidModel
from widthwise.network.factories import is_trusted
from widthwise.network.folder import (
    ARCHITECTURE,
    PLAN,
    WEIGHTS,
    Architecture,
    load,
    own_file,
    read_architecture,
    rebuilt,
)
from widthwise.network.loading import folder_in, load_model
from widthwise.network.narrowing import ModuleShape, shapes_of
from widthwise.network.portable import GraphData, NotPortable, as_data
from widthwise.planner.plan import Plan
from widthwise.pruning.evaluation import in_eval_mode
from widthwise.pruning.executor import difference_of, examples_of
from widthwise.pruning.export import FILES, export

__all__ = ["Architecture", "load", "require_writable", "save"]

_PACKAGES = ("torch", "torchvision", "timm")
_RGB = 3
_ROUNDING = 1e-5


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


def save(folder: str | Path, small: nn.Module, plan: Plan, *, formats: Sequence[str] = ()) -> Path:
    """Writes a narrow model to a folder; each file appears whole.

    Where the plan was made for a pruned model's folder, that folder's plans are copied beside it.

    Args:
        formats: ``onnx``, ``pt2`` or both, to write as well; see :func:`widthwise.pruning.export.export`.

    Raises:
        BadInput: see :func:`require_writable`; or the folder the plan builds on is gone or holds another plan by now.
        ExportFailed: the model is saved, but not in one of the formats.

    Example:
        >>> save("small", small, plan, formats=["onnx"])  # doctest: +SKIP
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    require_writable(folder)
    base, earlier = _before(plan)
    draft = folder / ".draft"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in small.state_dict().items()}
        save_file(state, draft / WEIGHTS, metadata={"format": "pt"})
        plan.write(draft / PLAN)
        for index, before in enumerate(earlier, start=1):
            before.write(draft / f"plan-{index}.json")
        graph, no_graph = _graph(small, draft / WEIGHTS, plan)
        shapes = shapes_of(small)
        architecture = Architecture(
            model=plan.model if base is None else base.model,
            options=_options(plan.model, shapes) if base is None else base.options,
            inputs=plan.inputs,
            modules=shapes,
            torch=torch.__version__,
            versions={name: version for name in _PACKAGES if (version := _version(name))},
            plans=[before.digest for before in (*earlier, plan)],
            graph=graph,
            no_graph=no_graph,
        )
        (draft / ARCHITECTURE).write_text(architecture.model_dump_json(indent=1) + "\n")
        for stale in (*folder.glob("plan-*.json"), *(folder / name for name in FILES.values())):
            stale.unlink(missing_ok=True)
        for path in sorted(draft.iterdir()):
            path.replace(folder / path.name)
    except OSError as error:
        raise BadInput(f"can't write to {folder}: {error.strerror}; give another folder with -o") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    export(small, examples_of(plan), folder, formats)
    return folder


def _before(plan: Plan) -> tuple[Architecture | None, list[Plan]]:
    """Architecture and plans of the folder a plan builds on; its own name is a ``MODEL`` like any other."""
    if plan.parent is None:
        return None, []
    folder = folder_in(plan.model)
    if folder is None or not (folder / PLAN).is_file():
        raise BadInput(f"the plan builds on {plan.model}, a pruned model that isn't there; put its folder back")
    last = Plan.read(own_file(folder, PLAN))
    if last.digest != plan.parent.digest:
        raise BadInput(
            f"the plan builds on another plan than {folder} holds now; plan again for it with `widthwise plan {folder}`"
        )
    base = read_architecture(folder)
    names = [f"plan-{index}.json" for index in range(1, len(base.plans))]
    return base, [*(Plan.read(own_file(folder, name)) for name in names), last]


def _graph(small: nn.Module, weights: Path, plan: Plan) -> tuple[GraphData | None, str]:
    """The graph, if it gives what the model gives; else the reason why there is none."""
    device = next((parameter.device for parameter in small.parameters()), torch.device("cpu"))
    example = [tensor.to(device) for tensor in examples_of(plan)]
    try:
        with in_eval_mode(small):
            data = as_data(small)
        difference = difference_of(small, rebuilt(data, weights).to(device), example)
    except NotPortable as error:
        return None, str(error)
    except Exception as error:  # whatever a model makes torch raise; it only isn't stored
        return None, next(iter(str(error).splitlines()), type(error).__name__)[:200]
    if not difference <= _ROUNDING:
        return None, f"its graph gives other outputs than the model, by {difference:.1g} of the largest"
    return data, ""


def _options(name: str, shapes: Mapping[str, ModuleShape]) -> dict[str, int]:
    """What a library's factory must be told to make a model this one can be cut from: more classes, more inputs."""
    if not (is_trusted(name) and shapes):
        return {}
    try:
        dense = shapes_of(load_model(name))
    except InvalidModel:
        return {}
    (first, *_), (*_, last) = shapes, shapes
    inputs, classes = shapes[first][0], shapes[last][1]
    found = {"in_chans": inputs} if inputs > _RGB and name.startswith("timm:") else {}
    return found | ({"num_classes": classes} if last in dense and classes > dense[last][1] else {})


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
