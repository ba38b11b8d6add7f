"""Weights of models: read without pickle, fitted strictly, told apart by a hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from widthwise.luts.errors import InvalidModel

__all__ = ["load_weights", "read_weights", "weights_fingerprint"]


def load_weights(model: nn.Module, path: str | Path, *, assign: bool = False) -> None:
    """Loads a state dict into the model, strictly.

    Args:
        assign: take the file's tensors for parameters instead of filling those there are: for the meta device.

    Raises:
        InvalidModel: the file is missing, unreadable, pickled code, or of another model.
    """
    state = read_weights(path)
    own = model.state_dict()
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unknown = [name for name in state if name not in own]
    wrong = [name for name in own if name in state and own[name].shape != state[name].shape]
    for names, what in ((missing, "lacks"), (unknown, "has an unknown"), (wrong, "has another shape for")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise InvalidModel(f"{path} doesn't fit {type(model).__name__}: it {what} {names[0]!r}{more}")
    if assign:  # what is mapped from a file may lie at odd addresses, where some kernels round otherwise
        state = {name: tensor.clone() for name, tensor in state.items()}
    model.load_state_dict(state, strict=False, assign=assign)


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """A state dict from ``.safetensors``, or from ``.pt``/``.pth`` with ``weights_only=True``; never unpickles code.

    Raises:
        InvalidModel: the file is missing, unreadable or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise InvalidModel(f"no weight file {path}; give a .safetensors, .pt or .pth file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise many types on hostile files
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InvalidModel(
            f"{path} can't be read as weights ({reason[:160]}); save a plain state dict, "
            "best as .safetensors (files that need unpickling are refused)"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InvalidModel(f"{path} holds no state dict (names → tensors); save model.state_dict()")
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def weights_fingerprint(model: nn.Module) -> str:
    """Hash of all parameters and buffers: tells whether a plan was made for these weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
