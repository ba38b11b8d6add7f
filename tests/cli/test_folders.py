"""A pruned model's folder as MODEL of the next round, and its exports, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import widthwise as ww
from tests.cli.test_commands import MODEL, SHAPE, answer, refused, run
from widthwise.network.folder import read_architecture

TARGET = ("--target", "fake:cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table and a model pruned once, with its exports."""
    folder = tmp_path_factory.mktemp("folders")
    (folder / "nets.py").write_text(MODEL)
    model, lut = f"{folder}/nets.py:net", folder / "d.lut"
    answer("profile", model, *SHAPE, *TARGET, "--lut", lut, "--time", "2s")
    answer("plan", model, *SHAPE, "--lut", lut, "--budget", "60%", "-o", folder / "one.json")
    made = answer("apply", folder / "one.json", model, "-o", folder / "one", "--export", "onnx", "--export", "pt2")
    assert [(export["file"], export["dynamic_batch"]) for export in made["exports"]] == [
        ("model.onnx", True),
        ("model.pt2", True),
    ]
    assert all(
        export["difference"] < 1e-3 and (folder / "one" / export["file"]).is_file() for export in made["exports"]
    )
    return folder


def test_profile_plan_and_apply_again(place: Path, tmp_path: Path) -> None:
    (place / "nets.py").rename(tmp_path / "nets.py")  # the folder is enough
    one, lut, second = place / "one", place / "d.lut", tmp_path / "two.json"
    try:
        profiled = answer("profile", one, *SHAPE, *TARGET, "--lut", lut, "--time", "2s")
        before = answer("predict", one, *SHAPE, "--lut", lut)
        planned = answer("plan", one, *SHAPE, "--lut", lut, "--budget", "70%", "-o", second)
        assert planned["dense_ms"] == pytest.approx(before["predicted_ms"], rel=0.2) and profiled["networks"] >= 1
        first, plan = ww.Plan.read(one / "plan.json"), ww.Plan.read(second)
        assert plan.parent is not None and plan.parent.digest == first.digest and plan.parent.model == first.model
        assert plan.dense == {group: first.widths[group] for group in plan.dense}
        answer("apply", second, one, "-o", tmp_path / "two")
        found = answer("verify", second, one, "--lut", lut, "--replan", "1", "-o", tmp_path / "again.json")
        assert found["measured_ms"] == pytest.approx(found["predicted_ms"], rel=0.3)
        assert ww.Plan.read(tmp_path / "again.json").parent == plan.parent
    finally:
        (tmp_path / "nets.py").rename(place / "nets.py")
    architecture = read_architecture(tmp_path / "two")
    assert architecture.plans == [first.digest, plan.digest] and architecture.model == first.model
    small = ww.load(tmp_path / "two")
    assert small.b.out_channels == plan.widths["b"] < 48
    own = ww.load(tmp_path / "two", model=f"{place}/nets.py:net")
    example = torch.randn(3, 1, 8, 8)
    assert type(own).__name__ == "Net" and torch.equal(own(example), small(example))


def test_a_folder_may_need_its_factory(place: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    for path in (place / "one").iterdir():
        (plain / path.name).write_bytes(path.read_bytes())
    data = json.loads((plain / "architecture.json").read_text())
    (plain / "architecture.json").write_text(json.dumps(data | {"graph": None, "no_graph": "it calls mine.f"}))
    arguments = (*SHAPE, *TARGET, "--lut", tmp_path / "new.lut")
    assert f"was made from {place}/nets.py:net" in refused("profile", plain, *arguments)
    answer("profile", f"{plain}@{place}/nets.py:net", *arguments, "--time", "1s")
    answer("plan", f"{plain}@{place}/nets.py:net", *SHAPE, "--lut", tmp_path / "new.lut", "--budget", "80%", "-o",
           tmp_path / "plan.json")  # fmt: skip
    answer("apply", tmp_path / "plan.json", f"{plain}@{place}/nets.py:net", "-o", tmp_path / "two")
    assert len(read_architecture(tmp_path / "two").plans) == 2


def test_bad_folders(place: Path, tmp_path: Path) -> None:
    lut = ("--lut", tmp_path / "new.lut")
    assert "is no pruned model: can't read architecture.json" in refused("profile", tmp_path, *SHAPE, *TARGET, *lut)
    assert "or a folder made by apply" in refused("profile", tmp_path / "none", *SHAPE, *TARGET, *lut)
    other = ("apply", place / "one.json", place / "one", "-o", tmp_path / "two")
    assert "this model is another one" in refused(*other)
    assert not (tmp_path / "new.lut").exists()


def test_bad_exports_are_refused_before_the_work(place: Path, tmp_path: Path) -> None:
    arguments = ("apply", place / "one.json", f"{place}/nets.py:net", "-o", tmp_path / "two", "--export")
    assert "'tflite' is no format to export to" in refused(*arguments, "tflite")
    shown = run(*arguments, "onnx").stdout
    assert "any batch size" in shown and "opset 17" in shown


def test_an_export_that_fails_leaves_the_model(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ValueError("no such operator")

    monkeypatch.setattr(torch.onnx, "export", fails)
    arguments = ("apply", place / "one.json", f"{place}/nets.py:net", "-o", tmp_path / "two", "--export", "onnx")
    assert "no such operator" in (message := refused(*arguments, code=1)) and "try --export pt2" in message
    ww.load(tmp_path / "two")
