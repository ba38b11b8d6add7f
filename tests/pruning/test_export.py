"""Exports: checked against PyTorch, with a free batch where that is free, and failures that say what to try."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.pruning.nets import EXAMPLE, make
from widthwise.luts.errors import BadInput
from widthwise.pruning.export import ExportFailed, export

pytest.importorskip("onnx")


@pytest.mark.parametrize("name", ["residual", "depthwise", "concat"])
@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_what_is_written_computes_the_same_for_any_batch(tmp_path: Path, name: str, form: str) -> None:
    model = make(name)
    (made,) = export(model, [EXAMPLE[:1]], tmp_path, [form])
    assert made.file == f"model.{form}" and [path.name for path in tmp_path.iterdir()] == [made.file]
    assert made.difference < 1e-3 and made.dynamic_batch and made.opset == (17 if form == "onnx" else None)
    assert torch.allclose(_run(tmp_path / made.file, form, EXAMPLE), model(EXAMPLE), rtol=1e-3, atol=1e-5)


def _run(path: Path, form: str, example: torch.Tensor) -> torch.Tensor:
    if form == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
        return torch.from_numpy(session.run(["output"], {"input": example.numpy()})[0])
    output: torch.Tensor = torch.export.load(str(path)).module()(example)
    return output


class _OneByOne(nn.Module):
    """Its batch size is in its code."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).reshape(2, 5, -1).mean(2)


@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_a_fixed_batch_is_said(tmp_path: Path, form: str) -> None:
    (made,) = export(_OneByOne(), [EXAMPLE], tmp_path, [form])
    assert not made.dynamic_batch and made.difference < 1e-3


class _TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sum": self.conv(x) + self.conv(y), "mean": self.conv(x).mean((2, 3))}


@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_several_inputs_and_outputs(tmp_path: Path, form: str) -> None:
    (made,) = export(_TwoInputs(), [EXAMPLE, EXAMPLE + 1], tmp_path, [form])
    assert made.dynamic_batch and made.difference < 1e-3


@pytest.mark.parametrize(("form", "other"), [("onnx", "pt2"), ("pt2", "onnx")])
def test_a_failure_keeps_its_message_and_names_the_other(
    tmp_path: Path, form: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ValueError("sorry, eager only")

    monkeypatch.setattr(torch.export, "export", fails)
    monkeypatch.setattr(torch.onnx, "export", fails)
    with pytest.raises(ExportFailed, match=rf"exporting to {form} failed: .*sorry, eager only.*; try --export {other}"):
        export(make("plain"), [EXAMPLE], tmp_path, [form])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_other_outputs_are_never_handed_out(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("widthwise.pruning.export._difference", lambda *_: 0.01)
    with pytest.raises(ExportFailed, match=r"gives other outputs than PyTorch: by 0\.01 .*allowed is 0\.001"):
        export(make("plain"), [EXAMPLE], tmp_path, [form])
    assert not list(tmp_path.iterdir())


def test_nan_is_a_difference(tmp_path: Path) -> None:
    model = make("plain")
    with torch.no_grad():
        model.fc2.bias[0] = float("nan")
    with pytest.raises(ExportFailed, match="gives other outputs than PyTorch: by inf"):
        export(model, [EXAMPLE], tmp_path, ["onnx"])


def test_formats_are_refused_before_anything_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="'tflite' is no format to export to; there are onnx and pt2"):
        export(make("plain"), [EXAMPLE], tmp_path, ["tflite"])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BadInput, match=r"needs onnxruntime, .*pip install 'widthwise\[onnx\]'"):
        export(make("plain"), [EXAMPLE], tmp_path, ["onnx"])


def test_the_models_mode_stays(tmp_path: Path) -> None:
    model = make("residual").train()
    export(model, [EXAMPLE], tmp_path, ["onnx"])
    assert model.training and model.bn.training
