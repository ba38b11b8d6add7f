"""What all commands share: arguments, output, exit codes, progress."""

from __future__ import annotations

import functools
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import typer

from widthwise.luts.errors import BadInput, InfeasibleBudget, Unmet, WidthwiseError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from widthwise.planner.plan import Plan

__all__ = [
    "BAD_INPUT",
    "UNMET",
    "Inputs",
    "Json",
    "LutPath",
    "Model",
    "Weights",
    "emit",
    "note",
    "open_dense",
    "open_model",
    "parse_duration",
    "parse_inputs",
    "progress",
    "reported",
]

UNMET, BAD_INPUT, INTERRUPTED = 1, 2, 130

Model = Annotated[
    str,
    typer.Argument(
        help="torchvision:NAME, timm:NAME, path/to/file.py:factory, package.module:factory or a pruned model's folder."
    ),
]
Inputs = Annotated[
    list[str], typer.Option("--input", help="Input shape, such as 1,3,224,224; repeat for several inputs.")
]
LutPath = Annotated[Path, typer.Option("--lut", help="The device's lookup table.")]
Weights = Annotated[Path | None, typer.Option("--weights", help=".safetensors, .pt or .pth of the model's state dict.")]
Json = Annotated[
    bool, typer.Option("--json", help="One JSON object on standard output; everything else on standard error.")
]

_P = ParamSpec("_P")


def reported(command: Callable[_P, None]) -> Callable[_P, None]:
    """Turns errors into an exit code and one line on stderr, with ``--json`` also an object on stdout."""

    @functools.wraps(command)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> None:
        as_json = bool(kwargs.get("as_json"))
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            _fail(
                "interrupted; everything measured so far is kept: run the same command to continue",
                INTERRUPTED,
                as_json,
            )
        except BadInput as error:
            _fail(str(error), BAD_INPUT, as_json, error)
        except (Unmet, WidthwiseError) as error:
            _fail(str(error), UNMET, as_json, error)
        except typer.Exit:
            raise
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            _fail(f"{where}{error.strerror or error}", BAD_INPUT, as_json, error)
        except Exception as error:
            hint = "set WIDTHWISE_DEBUG=1 for the traceback, and please report it"
            _fail(f"internal error: {type(error).__name__}: {error}; {hint}", UNMET, as_json, error)

    return run


def _fail(message: str, code: int, as_json: bool, error: Exception | None = None) -> None:
    if os.environ.get("WIDTHWISE_DEBUG") == "1" and error is not None:
        raise error
    one_line = " ".join(message.split())
    print(f"widthwise: {one_line}", file=sys.stderr)
    if as_json:
        answer: dict[str, Any] = {"error": one_line}
        if isinstance(error, InfeasibleBudget):
            answer["minimum_ms"] = error.minimum_ms
        print(json.dumps(answer))
    raise typer.Exit(code)


def emit(data: dict[str, Any]) -> None:
    """One JSON object on standard output."""
    print(json.dumps(data))


def note(text: str) -> None:
    """A line on standard error."""
    print(text, file=sys.stderr)


def parse_inputs(texts: list[str]) -> tuple[torch.Tensor, ...]:
    """Random example tensors of these shapes, always the same.

    Raises:
        BadInput: a shape isn't positive integers separated by commas.
    """
    shapes = []
    for text in texts:
        if not re.fullmatch(r"\s*\d+(\s*[,x×]\s*\d+)*\s*", text) or any(int(n) < 1 for n in re.findall(r"\d+", text)):
            raise BadInput(f"{text!r} is no input shape; give positive sizes, such as --input 1,3,224,224")
        shapes.append([int(n) for n in re.findall(r"\d+", text)])
    if any(_elements(shape) > 2**31 for shape in shapes):
        raise BadInput(f"input {texts} is too large to allocate; give the shape the model takes, such as 1,3,224,224")
    import torch

    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


def _elements(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def parse_duration(text: str) -> float:
    """Seconds of ``90``, ``90s`` or ``3m``.

    Raises:
        BadInput: another form, or not above zero.
    """
    match = re.fullmatch(r"\s*(\d*\.?\d+)\s*(s|m|min|h)?\s*", text)
    seconds = float(match[1]) * {"m": 60, "min": 60, "h": 3600}.get(match[2] or "", 1) if match else 0.0
    if seconds <= 0:
        raise BadInput(f"{text!r} is no duration; give one above zero, such as 90s or 3m")
    return seconds


def open_model(model: str, weights: Path | None) -> nn.Module:
    """The model, or a :class:`BadInput`."""
    from widthwise.network.loading import load_model

    return load_model(model, weights)


def open_dense(plan: Plan, path: Path, model: str | None, weights: Path | None, command: str) -> nn.Module:
    """The dense model of a plan: the one named, or the plan's own where that is a library's.

    Raises:
        BadInput: the plan's is none of a library's and none was named, so that a file never chooses what code runs.
    """
    from widthwise.network.factories import is_trusted

    if model is None and not is_trusted(plan.model):
        raise BadInput(
            f"{path} is for {plan.model}, which is no library model; name it: widthwise {command} {path} MODEL"
        )
    return open_model(model or plan.model, weights)


@contextmanager
def progress(title: str) -> Iterator[Callable[[float, str], None]]:
    """A bar on standard error; yields what to call with the share done and a few words."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=not console.is_terminal) as bar:
        task = bar.add_task(title, total=1.0, text="")
        yield lambda share, text: bar.update(task, completed=share, text=text)
