"""The demo: ``make demo``, or ``python -m examples.demo``.

Act one profiles torchvision's ResNet-18 on this CPU, plans 60 % of its latency, applies the plan and measures
the result. Act two trains a small ResNet on scikit-learn's digits, plans 50 %, applies and fine-tunes. Results
go to ``demo/``.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from torch import nn

import widthwise as ww
from examples.digits_resnet import digits_resnet
from widthwise.cli.common import progress
from widthwise.pruning.data import load_data
from widthwise.pruning.training import Recipe, evaluate, train
from widthwise.report.terminal import facts, plan_table, show

OUT = Path("demo")
SHOW_NAME = "torchvision:resnet18"


def profiled(model: nn.Module, example: torch.Tensor, name: str, path: Path, time_s: float) -> tuple[ww.Lut, float]:
    """A fresh table of the model, and the seconds it took."""
    path.unlink(missing_ok=True)
    start = time.perf_counter()
    with progress(f"profiling {name}") as on_progress:
        lut = ww.profile(model, example, path=path, time_s=time_s, name=name, on_progress=on_progress)
    return lut, time.perf_counter() - start


def act_one() -> dict[str, object]:
    """ResNet-18 at 60 % of its latency."""
    from widthwise.network.loading import load_model

    model = load_model(SHOW_NAME)
    example = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    lut, profile_seconds = profiled(model, example, SHOW_NAME, OUT / "resnet18.lut", time_s=100)
    with lut:
        plan = ww.plan(model, example, lut=lut, budget="60%", name=SHOW_NAME)
        plan.write(OUT / "plan.json")
        small = ww.apply(plan, model, example)
        ww.save(OUT / "resnet18", small, plan)
        reloaded = ww.load(OUT / "resnet18")
        verification = ww.verify(plan, reloaded, example, lut=lut, dense=model)
    network = ww.Network.trace(model, example, name=SHOW_NAME)
    show(plan_table(plan, network, verification=verification, profile_seconds=profile_seconds))
    return {
        "model": SHOW_NAME,
        "dense_ms": verification.dense_ms,
        "pace": verification.pace,
        "budget_ms": plan.budget_ms,
        "predicted_ms": plan.predicted_ms,
        "interval_ms": plan.interval_ms,
        "measured_ms": verification.measured_ms,
        "verdict": verification.verdict,
        "macs": [network.macs(plan.dense), network.macs(plan.widths)],
        "parameters": [network.parameters(plan.dense), network.parameters(plan.widths)],
        "profile_seconds": profile_seconds,
        "solve_seconds": plan.certificate.seconds,
        "gap": plan.gap,
        "widths": plan.widths,
    }


def act_two() -> dict[str, object]:
    """A network that is really trained: digits at 50 % of its latency."""
    name = "examples/digits_resnet.py:digits_resnet"
    data = load_data("digits")
    torch.manual_seed(0)
    model = digits_resnet()
    with progress("training on digits") as on_progress:
        train(model, data, epochs=6, recipe=Recipe(lr=0.05), on_epoch=lambda r: on_progress(r.epoch / 6, ""))
    dense_accuracy = evaluate(model, data.test).accuracy
    example = torch.randn(1, *data.sample_shape, generator=torch.Generator().manual_seed(0))
    lut, profile_seconds = profiled(model, example, name, OUT / "digits.lut", time_s=25)
    with lut:
        plan = ww.plan(model, example, lut=lut, budget="50%", name=name)
        small = ww.apply(plan, model, example)
        cut_accuracy = evaluate(small, data.test).accuracy
        with progress("fine-tuning") as on_progress:
            train(small, data, epochs=6, recipe=Recipe(lr=0.02), on_epoch=lambda r: on_progress(r.epoch / 6, ""))
        verification = ww.verify(plan, small, example, lut=lut, dense=model)
    accuracy = evaluate(small, data.test).accuracy
    rows = [
        (
            "latency",
            f"{verification.dense_ms:.3g} → {verification.measured_ms:.3g} ms (budget {plan.budget_ms:.3g} ms)",
        ),
        ("accuracy dense", f"{dense_accuracy:.2%}"),
        ("right after surgery", f"{cut_accuracy:.2%}"),
        ("after fine-tuning", f"{accuracy:.2%}"),
    ]
    show(facts("a small ResNet on digits, at 50 % of its latency", rows))
    return {
        "dense_ms": verification.dense_ms,
        "budget_ms": plan.budget_ms,
        "predicted_ms": plan.predicted_ms,
        "measured_ms": verification.measured_ms,
        "accuracy_dense": dense_accuracy,
        "accuracy_after_surgery": cut_accuracy,
        "accuracy": accuracy,
        "profile_seconds": profile_seconds,
    }


def main() -> None:
    """Both acts, and ``demo/summary.json``."""
    OUT.mkdir(exist_ok=True)
    summary = act_one()
    summary["digits"] = act_two()
    (OUT / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    show(f"written to {OUT}/: summary.json, plan.json, resnet18/ (reload with widthwise.load('{OUT}/resnet18'))")


if __name__ == "__main__":
    main()
