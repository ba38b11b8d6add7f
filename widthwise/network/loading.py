"""A ``MODEL`` as users write it.

``torchvision:NAME``, ``timm:NAME``, ``path/to/file.py:factory``, ``package.module:factory``, or the folder of a pruned
model (``FOLDER@MODEL`` where that needs its factory).
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from widthwise.network.factories import build_model
from widthwise.network.folder import load
from widthwise.network.weights import load_weights

__all__ = ["folder_in", "load_model"]


def load_model(text: str, weights: str | Path | None = None, *, seed: int = 0) -> nn.Module:
    """The model in eval mode, with these weights or with its own: a folder's, or random ones from the seed.

    Raises:
        InvalidModel: no such model, the factory fails, or the weights don't fit.
    """
    if folder_in(text) is None:
        model = build_model(text, seed=seed)
    else:
        folder, _, factory = text.partition("@")
        model = load(folder, factory or None)
    if weights is not None:
        load_weights(model, weights)
    return model


def folder_in(text: str) -> Path | None:
    """The folder a ``MODEL`` names, if it names one that exists.

    Example:
        >>> folder_in("torchvision:resnet18"), folder_in(".@nets.py:small")
        (None, PosixPath('.'))
    """
    folder = Path(text.partition("@")[0])
    return folder if folder.is_dir() else None
