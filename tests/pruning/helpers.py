"""Small networks and loaders for tests of training, and jobs of several processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from widthwise.pruning.recipe import Recipe

PLAIN = Recipe(lr=0.1, momentum=0.0, weight_decay=0.0, schedule="constant")


def loader(images: Tensor, labels: list[int] | Tensor, batch_size: int = 64, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(images, torch.as_tensor(labels)), batch_size, **options)


def pixel_net(weight: float = 0.0, bias: float = 0.0) -> nn.Sequential:
    """Two logits ``weight·x + bias`` of a one-pixel image: equal, so the softmax is (½, ½)."""
    conv = nn.Conv2d(1, 2, 1)
    nn.init.constant_(conv.weight, weight)
    assert conv.bias is not None
    nn.init.constant_(conv.bias, bias)
    return nn.Sequential(conv, nn.Flatten())


def pixels(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1)


def small_net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 20, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(20),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(80, 10),
    )


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


_LEAVE = """
import os, torch.distributed
if torch.distributed.is_initialized():
    torch.distributed.barrier()
os._exit(0)  # gloo's threads may still run, and then the interpreter's way out ends the process by a signal
"""


def launch(script: str, processes: int, folder: Path) -> None:
    """Runs a script in ``folder`` as so many processes of one run, on CPUs."""
    (folder / "job.py").write_text(script + _LEAVE)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"PYTHONPATH": str(Path(__file__).parents[2]), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    several = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    ranks = [several | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    jobs = [
        subprocess.Popen(
            [sys.executable, "job.py"],
            cwd=folder,
            env={**os.environ, **common, **(rank if processes > 1 else {})},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ranks
    ]
    try:
        errors = [job.communicate(timeout=120)[1] for job in jobs]
    finally:
        for job in jobs:
            job.kill()
    assert [job.returncode for job in jobs] == [0] * processes, errors
