"""A plan inside your own training loop: ``python -m examples.own_loop [l1|slimming|resrep]`` (half a minute).

Two calls are all an executor needs: ``before_step`` between backward and step, ``finish`` at the end.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

import widthwise as ww
from examples.digits_resnet import digits_resnet
from widthwise.pruning import Executor, FilterPruning, NetworkSlimming, ResRep
from widthwise.pruning.data import load_data
from widthwise.pruning.training import evaluate


def main() -> None:
    """Trains, plans 60 % of the latency, prunes and retrains."""
    torch.manual_seed(0)
    data = load_data("digits")
    model = digits_resnet()
    fit(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), data, epochs=3)
    example = torch.randn(1, *data.sample_shape)
    with (
        tempfile.TemporaryDirectory() as folder,
        ww.profile(model, example, path=Path(folder) / "device.lut", time_s=15, name="digits") as lut,
    ):
        plan = ww.plan(model, example, lut=lut, budget="60%", name="digits")
    epochs = 8
    run = executor_for(sys.argv[1] if len(sys.argv) > 1 else "l1", model, plan, example, epochs * len(data.train))
    optimizer = torch.optim.SGD(run.parameter_groups(lr=0.02), lr=0.02, momentum=0.9)
    fit(run.model, optimizer, data, epochs=epochs, executor=run)
    small = run.finish()
    print(f"dense {plan.dense_ms:.2f} ms, planned {plan.predicted_ms:.2f} ms")
    print(f"accuracy {evaluate(model, data.test).accuracy:.2%} → {evaluate(small, data.test).accuracy:.2%}")


def executor_for(method: str, model: torch.nn.Module, plan: ww.Plan, example: torch.Tensor, steps: int) -> Executor:
    """One of the methods; a run as short as this one needs strong pulls."""
    if method == "slimming":
        return NetworkSlimming(model, plan, [example], sparsity=1e-3)
    if method == "resrep":
        return ResRep(model, plan, [example], steps=steps, forget=0.02)
    return FilterPruning(model, plan, [example])


def fit(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    data: object,
    *,
    epochs: int,
    executor: Executor | None = None,
) -> None:
    """The loop you already have, with one line for the executor."""
    step = 0
    for _ in range(epochs):
        model.train()
        for images, labels in data.train:  # type: ignore[attr-defined]
            loss = torch.nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            if executor is not None:
                executor.before_step(step)
            optimizer.step()
            step += 1


if __name__ == "__main__":
    main()
