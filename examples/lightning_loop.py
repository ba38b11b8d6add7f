"""ResRep inside Lightning: ``pip install lightning``, then ``python -m examples.lightning_loop`` (a minute).

Lightning calls ``on_before_optimizer_step`` between backward and step: the place of ``before_step``. The optimizer gets
the executor's parameter groups. Everything else is the module you already have.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import nn

import widthwise as ww
from examples.digits_resnet import digits_resnet
from widthwise.pruning import Executor, ResRep
from widthwise.pruning.data import load_data
from widthwise.pruning.training import evaluate

LR = 0.02


class Classifier(lightning.LightningModule):
    """A classifier that an executor may ride along with."""

    def __init__(self, model: nn.Module, run: Executor | None = None) -> None:
        super().__init__()
        self.model, self.run = model, run

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self.model(images), labels)

    def on_before_optimizer_step(self, _: torch.optim.Optimizer) -> None:
        if self.run is not None:
            self.run.before_step(self.global_step)

    def configure_optimizers(self) -> Any:
        groups = self.model.parameters() if self.run is None else self.run.parameter_groups(LR)
        optimizer = torch.optim.SGD(groups, lr=LR, momentum=0.9, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(module: Classifier, loader: Any, epochs: int) -> None:
    """Lightning's loop, without its logs."""
    trainer = lightning.Trainer(
        max_epochs=epochs, logger=False, enable_checkpointing=False, enable_model_summary=False,
        enable_progress_bar=False, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(module, loader)


def main() -> None:
    """Trains, plans 60 % of the latency, and lets half of the channels forget."""
    torch.manual_seed(0)
    data = load_data("digits")
    model = digits_resnet()
    fit(Classifier(model), data.train, epochs=4)
    example = torch.randn(1, *data.sample_shape)
    with (
        tempfile.TemporaryDirectory() as folder,
        ww.profile(model, example, path=Path(folder) / "device.lut", time_s=15, name="digits") as lut,
    ):
        plan = ww.plan(model, example, lut=lut, budget="60%", name="digits")
    epochs = 10
    run = ResRep(model, plan, [example], steps=epochs * len(data.train), forget=0.02)
    fit(Classifier(run.model, run), data.train, epochs)
    small = run.finish()
    print(f"dense {plan.dense_ms:.2f} ms, planned {plan.predicted_ms:.2f} ms; rows left {run.residual:.1g}")
    print(f"accuracy {evaluate(model, data.test).accuracy:.2%} → {evaluate(small, data.test).accuracy:.2%}")


if __name__ == "__main__":
    main()
