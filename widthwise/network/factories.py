"""Models by the name of what builds them: a library's architecture, or a factory in a file or package.

They are built in eval mode with random weights from a fixed seed: nothing is ever downloaded.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from widthwise.luts.errors import InvalidModel

__all__ = ["ModelName", "build_model", "is_trusted"]

_FORMS = "torchvision:resnet18, timm:NAME, path/to/file.py:factory, package.module:factory or a folder made by apply"
_TRUSTED = ("torchvision", "timm")


@dataclass(frozen=True, slots=True)
class ModelName:
    """A parsed ``MODEL``.

    Example:
        >>> ModelName.parse("nets/mine.py:small").origin
        'nets/mine.py'
    """

    origin: str
    name: str

    @classmethod
    def parse(cls, text: str) -> ModelName:
        """Splits at the last colon.

        Raises:
            InvalidModel: the text has another form.
        """
        origin, colon, name = text.rpartition(":")
        if not (colon and origin and name):
            raise InvalidModel(f"{text!r} names no model; give one as {_FORMS}")
        return cls(origin, name)

    def __str__(self) -> str:
        return f"{self.origin}:{self.name}"


def is_trusted(text: str) -> bool:
    """Whether a stored name may be rebuilt without the caller naming it again: library architectures only."""
    return text.partition(":")[0] in _TRUSTED


def build_model(text: str, *, seed: int = 0, options: Mapping[str, int] | None = None) -> nn.Module:
    """The model of a name in eval mode, with random weights from the seed.

    Auxiliary training heads of torchvision's GoogLeNet and Inception are removed: inference never runs them.

    Args:
        options: for the factories of torchvision and timm, such as ``num_classes``.

    Raises:
        InvalidModel: no such model, or the factory fails.
    """
    parsed = ModelName.parse(text)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = _build(parsed, options or {})
    return _without_auxiliary_heads(model).eval()


def _build(parsed: ModelName, options: Mapping[str, int]) -> nn.Module:
    if parsed.origin == "torchvision":
        return _call(_torchvision(parsed.name, options), parsed)
    if parsed.origin == "timm":
        return _call(_timm(parsed.name, options), parsed)
    module = _import(parsed)
    factory = getattr(module, parsed.name, None)
    if not callable(factory):
        known = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise InvalidModel(f"{parsed.origin} has no factory {parsed.name!r}; it has {', '.join(known[:8]) or 'none'}")
    return _call(factory, parsed)


def _call(factory: Callable[[], Any], parsed: ModelName) -> nn.Module:
    try:
        model = factory()
    except InvalidModel:
        raise
    except Exception as error:  # user code
        raise InvalidModel(
            f"{parsed} failed to build: {type(error).__name__}: {error}; the factory must take no arguments"
        ) from error
    if not isinstance(model, nn.Module):
        raise InvalidModel(f"{parsed} gave a {type(model).__name__}, not a torch.nn.Module")
    return model


def _torchvision(name: str, more: Mapping[str, int]) -> Callable[[], nn.Module]:
    from torchvision import models

    known = models.list_models()
    if name not in known:
        raise InvalidModel(f"torchvision has no model {name!r}{_nearest(name, known)}")
    options: dict[str, Any] = {"weights": None, **more}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False  # their initialisation takes seconds and is only for training
    if name.startswith(("fcn", "deeplab", "lraspp", "fasterrcnn", "retinanet", "ssd", "maskrcnn", "keypointrcnn")):
        options["weights_backbone"] = None
    return lambda: models.get_model(name, **options)


def _timm(name: str, options: Mapping[str, Any]) -> Callable[[], nn.Module]:
    try:
        import timm
    except ImportError as error:
        raise InvalidModel("timm is not installed; pip install 'widthwise[timm]'") from error
    known = timm.list_models()
    if name.split(".")[0] not in known:
        raise InvalidModel(f"timm has no model {name!r}{_nearest(name, known)}")
    return lambda: timm.create_model(name, pretrained=False, **options)


def _nearest(name: str, known: list[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, known, n=3)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _import(parsed: ModelName) -> ModuleType:
    if not parsed.origin.endswith(".py"):
        sys.path.insert(0, "")
        try:
            return importlib.import_module(parsed.origin)
        except ModuleNotFoundError as error:
            raise InvalidModel(f"no module {parsed.origin!r}; give the model as {_FORMS}") from error
        except Exception as error:  # user code
            raise InvalidModel(f"{parsed.origin} fails to import: {type(error).__name__}: {error}") from error
        finally:
            sys.path.remove("")
    path = Path(parsed.origin)
    if not path.is_file():
        raise InvalidModel(f"no file {path}; give the model as {_FORMS}")
    name = f"widthwise_user_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # user code
        raise InvalidModel(f"{path} fails to run: {type(error).__name__}: {error}") from error
    return module


def _without_auxiliary_heads(model: nn.Module) -> nn.Module:
    if type(model).__module__ in ("torchvision.models.googlenet", "torchvision.models.inception"):
        untyped: Any = model
        untyped.aux_logits = False
        for name in ("aux1", "aux2", "AuxLogits"):
            if hasattr(untyped, name):
                setattr(untyped, name, None)
    return model
