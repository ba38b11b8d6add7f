"""The commands, as a user types them, on the fake runtime."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

import widthwise as ww
from widthwise.cli.app import app
from widthwise.pruning.evolution import SearchSettings

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 48, 3, padding=1)
        self.c, self.fc = nn.Conv2d(48, 32, 3, padding=1), nn.Linear(32, 10)
        self.na, self.nb, self.nc = nn.BatchNorm2d(32), nn.BatchNorm2d(48), nn.BatchNorm2d(32)
    def forward(self, x):
        x = torch.relu(self.na(self.a(x)))
        x = x + self.nc(self.c(torch.relu(self.nb(self.b(x)))))
        return self.fc(x.mean((2, 3)))

def net():
    return Net()

def other():
    return nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3))
"""
SHAPE = ["--input", "1,1,8,8"]
QUICK_SEARCH = SearchSettings(population=6, iterations=2, parents=2, mutations=2, crossovers=2, recalibration_batches=2)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def answer(*arguments: object, code: int = 0) -> dict[str, Any]:
    """The JSON object on standard output; nothing else may be there."""
    result = run(*arguments, "--json")
    assert result.exit_code == code, result.stderr or result.stdout
    lines = result.stdout.strip().splitlines()
    assert len(lines) == 1, result.stdout
    data: dict[str, Any] = json.loads(lines[0])
    return data


def refused(*arguments: object, code: int = 2) -> str:
    """The one line on standard error of a request that isn't met; never a traceback."""
    result = run(*arguments)
    assert result.exit_code == code, (result.exit_code, result.stdout, result.stderr)
    assert "Traceback" not in result.stderr + result.stdout
    lines = [line for line in result.stderr.splitlines() if line.startswith("widthwise: ")]
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a table and a plan."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "nets.py").write_text(MODEL)
    model, lut = f"{folder}/nets.py:net", folder / "d.lut"
    made = answer("profile", model, *SHAPE, "--target", "fake:cpu", "--lut", lut, "--time", "5s")
    assert {"layers", "networks", "unstable", "seconds"} <= set(made)
    assert made["networks"] >= 20 and lut.exists()
    made = answer("plan", model, *SHAPE, "--lut", lut, "--budget", "50%", "-o", folder / "plan.json")
    keys = {"dense_ms", "budget_ms", "predicted_ms", "interval_ms", "minimum_ms", "importance", "gap"}
    assert keys | {"solve_seconds", "widths"} <= set(made)
    assert made["predicted_ms"] <= made["budget_ms"] == pytest.approx(made["dense_ms"] / 2)
    return folder


@pytest.fixture
def model(place: Path) -> str:
    return f"{place}/nets.py:net"


def test_predict(place: Path, model: str, tmp_path: Path) -> None:
    dense = answer("predict", model, *SHAPE, "--lut", place / "d.lut")
    planned = answer("predict", model, *SHAPE, "--lut", place / "d.lut", "--plan", place / "plan.json")
    assert planned["predicted_ms"] < 0.6 * dense["predicted_ms"]
    low, high = planned["interval_ms"]
    assert low < planned["predicted_ms"] < high
    (tmp_path / "w.json").write_text('{"b": 8}')
    narrow = answer("predict", model, *SHAPE, "--lut", place / "d.lut", "--widths", tmp_path / "w.json")
    assert narrow["predicted_ms"] < dense["predicted_ms"]
    assert "conv2d" in run("predict", model, *SHAPE, "--lut", place / "d.lut").stdout
    assert sum(dense["breakdown"].values()) == pytest.approx(dense["predicted_ms"], rel=0.2)
    layers = answer("predict", model, *SHAPE, "--lut", place / "d.lut", "--by", "layer")["breakdown"]
    assert len(layers) > len(dense["breakdown"])
    assert "--by takes" in refused("predict", model, *SHAPE, "--lut", place / "d.lut", "--by", "colour")


def test_budgets_of_the_slowest_runs(place: Path, model: str, tmp_path: Path) -> None:
    arguments = ("plan", model, *SHAPE, "--lut", place / "d.lut", "--budget", "50%", "-o", tmp_path / "p90.json")
    usual, slow = answer(*arguments), answer(*arguments, "--statistic", "p90")
    assert slow["statistic"] == "p90" and usual["statistic"] == "median"
    assert 1.005 < slow["dense_ms"] / usual["dense_ms"] < 1.03
    assert slow["budget_ms"] == pytest.approx(slow["dense_ms"] / 2)
    assert "90 % of single runs" in run(*arguments, "--statistic", "p90").stdout
    found = json.loads(run("verify", tmp_path / "p90.json", model, "--lut", place / "d.lut", "--json").stdout)
    assert found["measured_ms"] == pytest.approx(slow["predicted_ms"], rel=0.05)
    assert "--statistic takes p50 or p90" in refused(*arguments, "--statistic", "mean")


def test_apply_verify_and_load(place: Path, model: str, tmp_path: Path) -> None:
    made = answer("apply", place / "plan.json", model, "-o", tmp_path / "small")
    assert made["output"] == str(tmp_path / "small") and made["difference"] < 1e-4
    found = answer("verify", place / "plan.json", model, "--lut", place / "d.lut", code=0)
    assert {"dense_ms", "budget_ms", "predicted_ms", "measured_ms", "verdict"} <= set(found)
    assert found["measured_ms"] == pytest.approx(found["predicted_ms"], rel=0.05)


def test_apply_with_data_reports_accuracy(place: Path, model: str, tmp_path: Path) -> None:
    made = answer("apply", place / "plan.json", model, "-o", tmp_path / "s", "--data", "digits", "--epochs", 1)
    assert 0 <= made["accuracy"] <= 1


@pytest.mark.parametrize("importance", ["activation", "taylor", "sensitivity"])
def test_importance_from_data(place: Path, model: str, tmp_path: Path, importance: str) -> None:
    arguments = ("plan", model, *SHAPE, "--lut", place / "d.lut", "--budget", "50%", "--importance", importance)
    assert "activation or taylor or sensitivity and --data go together" in refused(*arguments)
    answer(*arguments, "--data", "digits", "-o", tmp_path / "own.json")
    plan = ww.Plan.read(tmp_path / "own.json")
    assert plan.criterion == importance and plan.predicted_ms <= plan.budget_ms
    answer("apply", tmp_path / "own.json", model, "-o", tmp_path / "small")


def test_frontier(place: Path, model: str) -> None:
    found = answer("frontier", model, *SHAPE, "--lut", place / "d.lut", "--points", 6)
    kept = [point["importance"] for point in found["points"]]
    assert kept == sorted(kept) and kept[-1] == pytest.approx(1.0) and len(kept) >= 3
    assert "magnitude retained" in run("frontier", model, *SHAPE, "--lut", place / "d.lut", "--points", 3).stdout
    assert "at least 2 points" in refused("frontier", model, *SHAPE, "--lut", place / "d.lut", "--points", 1)


def test_verify_plans_again(place: Path, model: str, tmp_path: Path) -> None:
    plan = ww.Plan.read(place / "plan.json")
    (tmp_path / "d.lut").write_bytes((place / "d.lut").read_bytes())
    plan.model_copy(update={"budget_ms": 0.7 * plan.predicted_ms}).write(tmp_path / "slow.json")
    lut = ("--lut", tmp_path / "d.lut")
    assert "needs -o" in refused("verify", tmp_path / "slow.json", model, *lut, "--replan", 2)
    found = answer("verify", tmp_path / "slow.json", model, *lut, "--replan", 2, "-o", tmp_path / "better.json")
    better = ww.Plan.read(tmp_path / "better.json")
    assert found["attempts"][0] > 1.3 and found["measured_ms"] <= better.budget_ms == found["budget_ms"]
    made = answer("plan", model, *SHAPE, *lut, "--budget", "50%", "--verify", 1)
    assert made["measured_ms"] <= 1.02 * made["budget_ms"] and made["verdict"] in ("meets", "can't tell")


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("l1", ["--rounds", 2]),
        ("slimming", []),
        ("resrep", ["--distill"]),
        ("metapruning", ["--lut", "d.lut"]),
    ],
)
def test_every_method_meets_the_plan_and_goes_on_where_it_was(
    place: Path, model: str, tmp_path: Path, method: str, options: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("widthwise.pruning.methods.SearchSettings", lambda: QUICK_SEARCH)
    options = [place / "d.lut" if option == "d.lut" else option for option in options]
    arguments = ("apply", place / "plan.json", model, "--method", method, "--data", "digits", "--epochs", 2, *options)
    arguments += ("--checkpoints", tmp_path / "kept")
    made = answer(*arguments, "-o", tmp_path / "small")
    assert 0 <= made["accuracy"] <= 1 and 0 <= made["accuracy_dense"] <= 1
    small = ww.load(tmp_path / "small", model=model)
    plan = ww.Plan.read(tmp_path / "small" / "plan.json")
    assert ww.Network.trace(small, torch.zeros(1, 1, 8, 8)).dense == plan.widths
    assert (plan.certificate.status == "searched") == (method == "metapruning")
    again = answer(*arguments, "-o", tmp_path / "again")
    assert again["accuracy"] == made["accuracy"]


def test_methods_say_what_they_need(place: Path, model: str, tmp_path: Path) -> None:
    arguments = ("apply", place / "plan.json", model, "-o", tmp_path / "o", "--method")
    assert "resrep prunes by training: give --data and --epochs" in refused(*arguments, "resrep")
    assert "needs at least 2 epochs" in refused(*arguments, "slimming", "--data", "digits", "--epochs", 1)
    assert "give the plan's table with --lut" in refused(*arguments, "metapruning", "--data", "digits", "--epochs", 2)
    assert "l1 prunes by training" in refused(*arguments, "l1", "--rounds", 2)


def test_report(place: Path, model: str, tmp_path: Path) -> None:
    plan, page = place / "plan.json", tmp_path / "report.html"
    assert answer("report", plan, "-o", page) == {"output": str(page), "measured": 0}
    short = page.read_text()
    assert "Channels kept" in short and "Where the time goes" not in short
    made = run("report", plan, model, "--lut", place / "d.lut", "-o", page)
    assert made.exit_code == 0 and str(page) in made.stdout.replace("\n", "")
    assert "Where the time goes" in page.read_text()
    assert "no library model; name it: widthwise report" in refused(
        "report", plan, "--lut", place / "d.lut", "-o", page
    )
    assert "this model is another one" in refused(
        "report", plan, f"{place}/nets.py:other", "--lut", place / "d.lut", "-o", page
    )
    assert "give --lut too" in refused("report", plan, model, "-o", page)
    assert "no table" in refused("report", plan, model, "--lut", tmp_path / "no.lut", "-o", page)
    assert "can't write the report" in refused("report", plan, "-o", tmp_path / "no" / "report.html")
    assert "Where the time goes" in page.read_text(), "what was there stays"


def test_solve(tmp_path: Path) -> None:
    problem = {
        "budget_ms": 3.0,
        "groups": {
            "a": {"widths": [1, 2], "importance": [1.0, 2.0]},
            "b": {"widths": [5, 9], "importance": [0.0, 5.0]},
        },
        "costs": [{"over": ["a", "b"], "ms": [[1.0, 2.5], [2.0, 4.0]]}],
    }
    (tmp_path / "p.json").write_text(json.dumps(problem))
    found = answer("solve", tmp_path / "p.json")
    assert found["widths"] == {"a": 1, "b": 9}
    assert (found["status"], found["latency_ms"], found["importance"]) == ("optimal", 2.5, 6.0)
    (tmp_path / "p.json").write_text(json.dumps(problem | {"budget_ms": 0.5}))
    assert answer("solve", tmp_path / "p.json", code=1)["minimum_ms"] == pytest.approx(1.0)


def test_solve_within_limits(tmp_path: Path) -> None:
    problem: dict[str, Any] = {
        "objective": "latency",
        "keep": 6.0,
        "groups": {
            "a": {"widths": [1, 2], "importance": [1.0, 2.0]},
            "b": {"widths": [5, 9], "importance": [0.0, 5.0]},
        },
        "costs": [{"over": ["a", "b"], "ms": [[1.0, 2.5], [2.0, 4.0]]}],
        "limits": [{"name": "macs", "most": 12, "costs": [{"over": ["a", "b"], "amount": [[5, 9], [10, 18]]}]}],
    }
    (tmp_path / "p.json").write_text(json.dumps(problem))
    found = answer("solve", tmp_path / "p.json")
    assert (found["status"], found["widths"], found["latency_ms"]) == ("optimal", {"a": 1, "b": 9}, 2.5)
    assert found["limits"] == [{"name": "macs", "amount": 9.0, "most": 12.0, "least": 5.0}]
    (tmp_path / "p.json").write_text(json.dumps(problem | {"keep": 7.0}))
    assert answer("solve", tmp_path / "p.json", code=1)["reason"].startswith(
        "each of importance, macs can be met alone"
    )
    (tmp_path / "p.json").write_text(json.dumps(problem | {"bounds": {"a": {"min": 3}}}))
    assert "bounds['a']: no width of at least 3 among [1, 2]" in refused("solve", tmp_path / "p.json")


def test_plan_within_limits(place: Path, model: str, tmp_path: Path) -> None:
    plan = ("plan", model, *SHAPE, "--lut", place / "d.lut")
    limits = ("--max-parameters", "40%", "--max-macs", "1M", "--min-width", "b=16", "--also", f"{place / 'd.lut'}:55%")
    made = answer(*plan, "--budget", "60%", *limits, "-o", tmp_path / "p.json")
    assert {limit["name"]: limit["amount"] <= limit["most"] for limit in made["limits"]} == {
        "parameters": True,
        "macs": True,
    }
    assert made["further"][0]["predicted_ms"] <= made["further"][0]["budget_ms"] and made["widths"]["b"] >= 16
    assert ww.Plan.read(tmp_path / "p.json").binding == made["binding"] != []
    assert "what binds" in run(*plan, "--budget", "60%", *limits).stdout
    fastest = answer(*plan, "--objective", "latency", "--keep", "80%", "--fix", "b=33")
    assert fastest["importance"] >= 0.8 and fastest["widths"]["b"] == 33 and fastest["objective"] == "latency"
    assert "no widths reach parameters" in refused(*plan, "--budget", "60%", "--max-parameters", "10", code=1)
    for wrong, line in (
        (("--budget", "60%", "--keep", "0.9"), "--keep belongs to --objective latency"),
        (("--objective", "latency"), "needs --keep"),
        (("--objective", "speed"), "is importance or latency, not 'speed'"),
        ((), "give --budget"),
        (("--budget", "60%", "--min-width", "b"), "'b' is no bound"),
        (("--budget", "60%", "--min-width", "b=9", "--max-width", "b=8"), "none are both"),
        (("--budget", "60%", "--max-macs", "lots"), "is no upper limit"),
        (("--budget", "60%", "--confidence", "1.5"), "a confidence must be above 0 and below 1"),
        (("--budget", "60%", "--confidence", "0.9999"), "measured networks"),
        (("--budget", "60%", "--also", ":50%"), "names no table"),
        (("--budget", "60%", "--also", "nowhere.lut"), "no table nowhere.lut"),
    ):
        assert line in refused(*plan, *wrong)


def test_luts(place: Path, tmp_path: Path) -> None:
    lut = place / "d.lut"
    shown = answer("luts", "show", lut)
    assert shown["target"]["runtime"] == "fake" and shown["networks"] >= 20
    answer("luts", "export", lut, "-o", tmp_path / "d.jsonl")
    copied = answer("luts", "import", tmp_path / "copy.lut", "--from", tmp_path / "d.jsonl")
    assert copied["networks"] == shown["networks"]
    assert answer("luts", "merge", tmp_path / "copy.lut", lut) == {"runs": 0, "networks": 0, "layers": 0}
    assert answer("luts", "check", lut)["findings"] == []


def test_luts_tell_how_well_each_layer_is_known(place: Path) -> None:
    lut = place / "d.lut"
    entries = answer("luts", "show", lut, "--layers")["entries"]
    assert "entries" not in answer("luts", "show", lut)
    convolutions = [entry for entry in entries if entry["spec"].startswith("conv2d")]
    assert len(convolutions) >= 20
    assert all(entry["low_ms"] < entry["latency_ms"] < entry["high_ms"] for entry in entries)
    told = run("luts", "show", lut, "--layers").stdout
    stable = sum(entry["status"] == "stable" for entry in entries)
    assert f"{stable:,} of {len(entries):,} layers" in " ".join(told.split())


def test_device() -> None:
    found = answer("device")
    assert {"cpu", "cores", "system"} <= set(found["fingerprint"])
    assert all(set(hazard) == {"what", "found", "remedy"} for hazard in found["hazards"])
    assert found["targets"]["fake:cpu"] == "fake 1" and "onnxruntime:cpu" in found["targets"]
    assert run("device").exit_code == 0


@pytest.mark.parametrize(
    "command", ["profile", "predict", "plan", "frontier", "apply", "verify", "solve", "report", "luts", "device"]
)
def test_help_has_an_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    if command != "luts":
        assert f"Example: widthwise {command}" in " ".join(result.stdout.split())


def test_help_and_import_load_nothing_heavy() -> None:
    code = (
        "import sys, widthwise, widthwise.cli.app; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'sklearn', 'scipy', 'pydantic')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_installed_command_runs() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "widthwise", "--version"], capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith("widthwise 0.")


# ---- bad input: one line with the next step, exit 2, nothing written over ----------------------------------


def test_bad_models(place: Path, model: str, tmp_path: Path) -> None:
    lut = tmp_path / "new.lut"
    assert "did you mean" in refused("profile", "torchvision:resnet81", *SHAPE, "--lut", lut)
    assert "no weight file" in refused("profile", model, *SHAPE, "--lut", lut, "--weights", tmp_path / "w.pt")
    (tmp_path / "w.pt").write_bytes(b"junk")
    assert "can't be read as weights" in refused("profile", model, *SHAPE, "--lut", lut, "--weights", tmp_path / "w.pt")
    from safetensors.torch import save_file
    from torch import zeros

    save_file({"x": zeros(1)}, tmp_path / "w.safetensors")
    message = refused(
        "plan", model, *SHAPE, "--lut", place / "d.lut", "--budget", "50%", "--weights", tmp_path / "w.safetensors"
    )
    assert "doesn't fit Net: it lacks 'a.weight'" in message
    assert not lut.exists()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("1,3,8,8", "can't be traced on input 1×3×8×8"),
        ("1,1,8", "can't be traced on input 1×1×8"),
        ("a,b", "is no input shape; give positive sizes"),
        ("1,0,8,8", "is no input shape"),
        ("999999,999999,999999", "too large to allocate"),
    ],
)
def test_bad_shapes(model: str, tmp_path: Path, shape: str, message: str) -> None:
    assert message in refused("profile", model, "--input", shape, "--target", "fake:cpu", "--lut", tmp_path / "x.lut")
    assert not (tmp_path / "x.lut").exists()


@pytest.mark.parametrize(
    ("budget", "message"),
    [("soon", "is no budget"), ("0ms", "must be above zero"), ("-5ms", "is no budget"), ("0%", "must be above zero")],
)
def test_bad_budgets(place: Path, model: str, budget: str, message: str) -> None:
    assert message in refused("plan", model, *SHAPE, "--lut", place / "d.lut", f"--budget={budget}")


def test_an_unreachable_budget_exits_1_with_the_minimum(place: Path, model: str) -> None:
    arguments = ("plan", model, *SHAPE, "--lut", place / "d.lut", "--budget", "0.001ms")
    assert "the least it reaches is" in refused(*arguments, code=1)
    assert answer(*arguments, code=1)["minimum_ms"] > 0


def test_a_budget_the_dense_network_meets_is_no_error(place: Path, model: str) -> None:
    made = answer("plan", model, *SHAPE, "--lut", place / "d.lut", "--budget", "200%")
    assert made["status"] == "unchanged" and "already meets" in made["notes"][0]


def test_bad_tables(place: Path, model: str, tmp_path: Path) -> None:
    budget = ("--budget", "50%")
    assert "make one with `widthwise profile" in refused("plan", model, *SHAPE, "--lut", tmp_path / "no.lut", *budget)
    (tmp_path / "junk.lut").write_bytes(b"junk" * 1000)
    refused("plan", model, *SHAPE, "--lut", tmp_path / "junk.lut", *budget)
    refused("profile", model, *SHAPE, "--target", "fake:cpu", "--lut", tmp_path / "junk.lut")
    assert (tmp_path / "junk.lut").read_bytes() == b"junk" * 1000
    half = (place / "d.lut").read_bytes()
    (tmp_path / "half.lut").write_bytes(half[: len(half) // 2])
    refused("plan", model, *SHAPE, "--lut", tmp_path / "half.lut", *budget)
    message = refused("profile", model, *SHAPE, "--target", "fake:cpu", "--threads", 2, "--lut", place / "d.lut")
    assert "threads" in message
    other = f"{place}/nets.py:other"
    assert f"widthwise profile {other}" in refused("predict", other, *SHAPE, "--lut", place / "d.lut")


def test_a_table_of_another_device_is_for_planning_only(
    place: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lut = tmp_path / "d.lut"
    lut.write_bytes((place / "d.lut").read_bytes())
    monkeypatch.setattr("widthwise.profiling.device._cpu_model", lambda: "another CPU")
    answer("plan", model, *SHAPE, "--lut", lut, "--budget", "50%")
    assert "cpu" in refused("profile", model, *SHAPE, "--target", "fake:cpu", "--lut", lut)
    assert "cpu" in refused("verify", place / "plan.json", model, "--lut", lut)
    assert lut.read_bytes() == (place / "d.lut").read_bytes()


def test_bad_plans(place: Path, model: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "make one with `widthwise plan`" in refused("apply", tmp_path / "no.json", model, "-o", out)
    (tmp_path / "bad.json").write_text("{")
    assert "is not JSON" in refused("apply", tmp_path / "bad.json", model, "-o", out)
    assert "this model is another one" in refused("apply", place / "plan.json", f"{place}/nets.py:other", "-o", out)
    assert "no library model; name it" in refused("verify", place / "plan.json", "--lut", place / "d.lut")
    assert not out.exists() or not any(out.iterdir())


def test_bad_outputs(place: Path, model: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        refused("apply", place / "plan.json", model, "-o", out)
    assert (tmp_path / "file").read_text() == "mine"
    arguments = ("plan", model, *SHAPE, "--lut", place / "d.lut", "--budget", "50%", "-o")
    assert "can't write the plan" in refused(*arguments, tmp_path / "no" / "plan.json")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_output_folder(place: Path, model: str, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "can't write" in refused("apply", place / "plan.json", model, "-o", tmp_path / "locked" / "out")


def test_bad_options(place: Path, model: str, tmp_path: Path) -> None:
    lut = tmp_path / "x.lut"
    assert "is no duration" in refused("profile", model, *SHAPE, "--lut", lut, "--time", "soon")
    assert "no target tpu:0" in refused("profile", model, *SHAPE, "--lut", lut, "--target", "tpu:0")
    assert "dtype must be" in refused("profile", model, *SHAPE, "--lut", lut, "--dtype", "int4")
    assert "there are l1, slimming" in refused(
        "apply", place / "plan.json", model, "-o", tmp_path / "o", "--method", "magic"
    )
    assert "needs --data" in refused("apply", place / "plan.json", model, "-o", tmp_path / "o", "--epochs", 3)
    assert "there are magnitude, l1" in refused(
        "plan", model, *SHAPE, "--lut", place / "d.lut", "--budget", "5ms", "--importance", "x"
    )
    (tmp_path / "w.json").write_text('{"a": "wide"}')
    assert "group → channels kept" in refused(
        "predict", model, *SHAPE, "--lut", place / "d.lut", "--widths", tmp_path / "w.json"
    )
    assert run("plan", model).exit_code == 2


def test_ctrl_c_says_that_nothing_is_lost(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("widthwise.profiling.profiler.profile", interrupted)
    message = refused(
        "profile", model, *SHAPE, "--target", "fake:cpu", "--lut", tmp_path / "x.lut", "--workers", 1, code=130
    )
    assert "everything measured so far is kept" in message


def test_a_defect_shows_no_traceback_unless_asked(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("widthwise.profiling.profiler.profile", broken)
    arguments = ("profile", model, *SHAPE, "--target", "fake:cpu", "--lut", tmp_path / "x.lut", "--workers", 1)
    assert "internal error: ZeroDivisionError: oops; set WIDTHWISE_DEBUG=1" in refused(*arguments, code=1)
    monkeypatch.setenv("WIDTHWISE_DEBUG", "1")
    assert isinstance(run(*arguments).exception, ZeroDivisionError)
