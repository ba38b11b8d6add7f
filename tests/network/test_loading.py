from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from widthwise.luts.errors import InvalidModel
from widthwise.network.factories import ModelName, is_trusted
from widthwise.network.loading import load_model
from widthwise.network.weights import read_weights, weights_fingerprint

FACTORY = """
import torch.nn as nn
def small():
    return nn.Sequential(nn.Conv2d(3, 7, 3), nn.ReLU(), nn.Conv2d(7, 5, 1))
def broken():
    raise RuntimeError("no such file")
def number():
    return 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FACTORY)
    return path


def test_every_form_of_model_loads(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(load_model(f"{file}:small")[2], nn.Conv2d)
    monkeypatch.chdir(tmp_path)
    assert isinstance(load_model("mine:small")[2], nn.Conv2d)
    assert not load_model("torchvision:squeezenet1_1").training
    pytest.importorskip("timm")
    assert load_model("timm:resnet10t").conv1 is not None


def test_random_weights_are_always_the_same(file: Path) -> None:
    assert weights_fingerprint(load_model(f"{file}:small")) == weights_fingerprint(load_model(f"{file}:small"))
    assert weights_fingerprint(load_model(f"{file}:small")) != weights_fingerprint(load_model(f"{file}:small", seed=1))


def test_googlenet_loses_its_training_heads() -> None:
    model = load_model("torchvision:googlenet")
    assert not any("aux" in name for name in model.state_dict())


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_load(file: Path, tmp_path: Path, suffix: str) -> None:
    source = load_model(f"{file}:small", seed=7)
    path = tmp_path / f"w{suffix}"
    if suffix == ".pt":
        torch.save({"state_dict": {f"module.{k}": v for k, v in source.state_dict().items()}}, path)
    else:
        save_file(source.state_dict(), path)
    assert weights_fingerprint(load_model(f"{file}:small", path)) == weights_fingerprint(source)


class _Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("executed",))


def test_pickled_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "evil.pt"
    torch.save({"weight": _Payload()}, path)
    with pytest.raises(InvalidModel, match="files that need unpickling are refused"):
        read_weights(path)
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(_Payload()))
    with pytest.raises(InvalidModel, match="can't be read as weights"):
        read_weights(tmp_path / "raw.pt")
    assert "executed" not in capsys.readouterr().out


def test_weights_that_do_not_fit_say_which(file: Path, tmp_path: Path) -> None:
    state = load_model(f"{file}:small").state_dict()
    cases = {
        "lacks '0.weight'": {k: v for k, v in state.items() if k != "0.weight"},
        "has an unknown 'extra'": state | {"extra": torch.zeros(1)},
        "has another shape for '0.bias'": state | {"0.bias": torch.zeros(2)},
    }
    for message, wrong in cases.items():
        save_file(wrong, tmp_path / "w.safetensors")
        with pytest.raises(InvalidModel, match=message):
            load_model(f"{file}:small", tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet18", "names no model; give one as torchvision:resnet18"),
        ("torchvision:resnet19", "no model 'resnet19'; did you mean"),
        ("nowhere.py:f", "no file nowhere.py"),
        ("no.such.module:f", "no module 'no.such.module'"),
        ("FILE:missing", "has no factory 'missing'; it has small, broken, number"),
        ("FILE:broken", "failed to build: RuntimeError: no such file"),
        ("FILE:number", "gave a int, not a torch.nn.Module"),
    ],
)
def test_bad_names_say_what_is_needed(file: Path, name: str, message: str) -> None:
    with pytest.raises(InvalidModel, match=message):
        load_model(name.replace("FILE", str(file)))


def test_missing_weights_and_trust(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match="no weight file"):
        read_weights(tmp_path / "none.pt")
    assert is_trusted("timm:x") and is_trusted("torchvision:x") and not is_trusted("mine.py:x")
    assert ModelName.parse("a:b:c") == ModelName("a:b", "c")
